"""What `benchmarks.quality` asks of a run, and how it keeps its nights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits
from PIL import Image

from benchmarks import quality
from benchmarks.quality_peers import run_peer
from benchmarks.quality_picture import BLACK_ADU, WHITE_ADU, side_by_side
from benchmarks.quality_scene import Scene
from zemosaic_io.glow_session import NightSpec
from zemosaic_settings import Settings

SMALL = NightSpec(panels=(1, 1), frames_per_panel=2, shape_hw=(160, 120), galaxy=None, n_satellites=0)


@pytest.fixture
def named_nights(monkeypatch):
    nights = {"tiny": SMALL}
    monkeypatch.setattr(quality, "night_spec", nights.__getitem__)
    return nights


def test_every_route_is_one_that_the_settings_know(tmp_path):
    for route in quality.ROUTES:
        wanted = quality.route_settings(route)
        assert wanted is not None
        settings = Settings.from_mapping(
            {"input_dir": str(tmp_path), "output_dir": str(tmp_path / "out"), **wanted}
        )
        assert {key: getattr(settings, key) for key in wanted} == wanted


def test_nights_are_kept_made_anew_when_they_changed_and_never_replace_other_files(tmp_path, named_nights):
    night = quality.night_of("tiny", tmp_path)
    written = {path: path.stat().st_mtime_ns for path in night.paths}
    assert len(written) == 2
    assert {p: p.stat().st_mtime_ns for p in quality.night_of("tiny", tmp_path).paths} == written
    named_nights["tiny"] = replace(SMALL, frames_per_panel=3)
    changed = quality.night_of("tiny", tmp_path)
    assert len(list(changed.folder.iterdir())) == len(changed.frames) == 3
    foreign = tmp_path / "other" / "tiny" / "raw"
    foreign.mkdir(parents=True)
    with pytest.raises(FileExistsError, match="choose another folder"):
        quality.night_of("tiny", tmp_path / "other")


def test_another_program_gets_the_same_frames(tmp_path, named_nights):
    night = quality.night_of("tiny", tmp_path)
    pytest.importorskip("reproject")
    mosaic, cost = run_peer("reproject", night, tmp_path / "tiny" / "reproject")
    image = fits.getdata(mosaic)
    assert image.shape[0] == 3
    frame = fits.getdata(night.paths[0])
    assert np.nanmedian(image[1]) == pytest.approx(np.median(frame[::2, ::2]), rel=0.05)
    assert cost["seconds"] > 0
    with pytest.raises(ValueError, match="peer 'other'"):
        run_peer("other", night, tmp_path)


def test_pictures_show_one_linear_stretch_and_no_data_as_such(tmp_path):
    ramp = np.linspace(BLACK_ADU, WHITE_ADU, 64, dtype=np.float32)
    image = np.broadcast_to(ramp, (3, 40, 64)).copy()
    diffuse = np.broadcast_to(ramp, (3, 40, 64)).copy()
    image[:, :20] = np.nan
    clean = np.ones((40, 64), bool)
    plain = np.ones((40, 64), np.float32)
    scene = Scene(image + 700.0, diffuse, 0 * diffuse, clean, plain, plain, image, (1.0, 1.0, 1.0), {})
    with Image.open(side_by_side({"": scene}, tmp_path / "a.png", width_px=64)) as picture:
        rgb = np.asarray(picture)
    assert rgb.shape == (40, 64 + 8 + 64, 3)
    np.testing.assert_allclose(rgb[30, :64, 0], np.linspace(0, 255, 64), atol=1.0)
    np.testing.assert_allclose(rgb[30, 72:].astype(int), rgb[30, :64].astype(int), atol=1)
    assert len(np.unique(rgb[18:20, :64])) == 1
