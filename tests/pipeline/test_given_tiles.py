"""Finished stacks become a mosaic: a run's own tiles bit by bit, others resampled; bad input gives one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from zemosaic_core.errors import RunFailed, SettingsError
from zemosaic_pipeline.routes import choose_route
from zemosaic_pipeline.tile_intake import tile_files, tile_folders
from zemosaic_settings import Settings
from zemosaic_worker import run_hierarchical_mosaic

OPTIONS = {
    "gpu_mode": "off",
    "num_base_workers": 1,
    "use_existing_master_tiles": True,
    "colour_calibration": "off",
}


@pytest.fixture(scope="module")
def tile(small_run):
    """The master tile of a run."""
    folder = Path(small_run.report["settings"]["output_dir"]) / ".zemosaic_state" / "tiles"
    (path,) = folder.glob("*.fits")
    return path


def image_of(result):
    with fits.open(result.outputs["science"]) as hdus:
        return hdus[0].data.astype(np.float32), hdus[0].header.copy()


def keys_of(result):
    return {message["key"] for message in result.report["messages"]}


def test_own_tiles_fed_back_give_the_same_mosaic(small_run, tile, tmp_path):
    before = (tile.stat().st_mtime_ns, tile.read_bytes())
    # As a filter says which stacks take part.
    fed = run_hierarchical_mosaic(
        small_run.report["settings"]["output_dir"],
        tmp_path / "fed",
        config={"tile_selection": [str(tile)]},
        **OPTIONS,
    )
    image, header = image_of(fed)
    original, known = image_of(small_run)
    np.testing.assert_array_equal(image, original)
    assert (header["CRPIX1"], header["EXPTOTAL"]) == (known["CRPIX1"], known["EXPTOTAL"])
    assert {"run_info_tile_set", "tiles_only_one", "route_tiles"} <= keys_of(fed)
    assert (tile.stat().st_mtime_ns, tile.read_bytes()) == before


def test_stacks_of_others_are_brought_to_one_scale(tile, small_run, tmp_path):
    """The tile in two overlapping halves: counts with an alpha plane, and half the light between 0 and 1."""
    with fits.open(tile) as hdus:
        planes, header = hdus[0].data.astype(np.float32), hdus[0].header.copy()
    width = planes.shape[2]
    left, right = planes[:, :, : width * 5 // 8], planes[:, :, width * 3 // 8 :]
    folder = tmp_path / "stacks"
    folder.mkdir()
    cards = WCS(header, naxis=2).to_header(relax=True)
    cards["NEXP_SUM"], cards["EXPTOTAL"], cards["ZMT_TYPE"] = 9, 90.0, "Master Tile"
    alpha = np.where(np.isfinite(left).all(axis=0), 255, 0).astype(np.uint8)
    fits.HDUList([fits.PrimaryHDU(np.nan_to_num(left), cards), fits.ImageHDU(alpha, name="ALPHA")]).writeto(
        folder / "master_tile_001.fits"
    )
    moved = WCS(header, naxis=2)
    moved.wcs.crpix -= [width * 3 // 8, 0]
    other = moved.to_header(relax=True)
    other["STACKCNT"], other["LIVETIME"] = 9, 90.0
    fits.writeto(folder / "half.fit", (np.nan_to_num(right) / 65535 * 0.5).astype(np.float32), other)
    made = run_hierarchical_mosaic(folder, tmp_path / "made", **OPTIONS)
    image, found = image_of(made)
    original, known = image_of(small_run)
    assert keys_of(made) & {"tiles_disconnected", "run_info_tile_set"} == set()
    assert found["STACKCNT"] == 18
    # Messages call them what the user does, not what the copies among the state of the run are called.
    named = {message["values"].get("example") for message in made.report["messages"]} - {None}
    assert named
    assert named <= {path.name for path in folder.iterdir()}
    # The same stars in the same places with the same light.
    levels = []
    for x, y in ((0.25, 0.5), (0.5, 0.5), (0.75, 0.5)):
        at = np.array([[x * original.shape[2], y * original.shape[1]]])
        sky = WCS(known, naxis=2).all_pix2world(at, 0)
        here = WCS(found, naxis=2).all_world2pix(sky, 0)[0]
        a = box_around(original, *at[0])
        b = box_around(image, *here)
        assert np.std(b) == pytest.approx(np.std(a), rel=0.35)
        levels.append(float(np.median(b) - np.median(a)))
    # One level for all; what the sky of each had is not known here.
    assert np.ptp(levels) < 40


def box_around(image, x, y, side=60):
    return np.nan_to_num(image[1, int(y) - side : int(y) + side, int(x) - side : int(x) + side])


def test_a_route_of_tiles_needs_no_frames():
    assert choose_route("auto", n_chosen_groups=0, n_tiles=3, n_frames=0).route == "tiles"
    assert choose_route("auto", n_chosen_groups=0, n_tiles=3, n_frames=5).route == "direct"


def test_bad_folders_are_refused_in_one_sentence(tmp_path):
    def settings(**values):
        return Settings.from_mapping(
            {"input_dir": str(tmp_path), "output_dir": str(tmp_path / "out"), **values}
        )

    assert not tile_folders(settings())
    with pytest.raises(SettingsError, match="does not exist"):
        tile_folders(settings(tiles_dir=str(tmp_path / "nowhere")))
    state = tmp_path / "out" / ".zemosaic_state" / "tiles"
    state.mkdir(parents=True)
    with pytest.raises(SettingsError, match="belong to the output folder"):
        tile_folders(settings(tiles_dir=str(state)))
    assert tile_folders(settings(tiles_dir=str(tmp_path))).with_frames
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunFailed, match="no usable stack"):
        run_hierarchical_mosaic(tmp_path / "empty", tmp_path / "out2", **OPTIONS)
    with pytest.raises(RunFailed, match="no usable stack"):
        run_hierarchical_mosaic(
            tmp_path / "out",
            tmp_path / "out2",
            filter_overrides={"tile_selection": ["/elsewhere.fits"]},
            **OPTIONS,
        )


def test_the_output_folder_of_a_run_stands_for_its_tiles(tmp_path):
    tiles = tmp_path / ".zemosaic_state" / "tiles"
    tiles.mkdir(parents=True)
    (tiles / "master_tile_000.fits").touch()
    (tmp_path / "zemosaic_MT1_R9.fits").touch()
    assert tile_files(tmp_path, recursive=True) == [tiles / "master_tile_000.fits"]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "m.tif").touch()
    (tmp_path / "b" / "m.fits").touch()
    assert tile_files(tmp_path / "b", recursive=False) == [tmp_path / "b" / "m.tif"]
    (tmp_path / "c").mkdir()
    for name in (
        "m.fits",
        "m.fits.fz",
        "m.xisf",
        "n.fits.fz",
        "o.xisf",
        "m_picture.tif",
        "m_calibrated.fits",
    ):
        (tmp_path / "c" / name).touch()
    assert [p.name for p in tile_files(tmp_path / "c", recursive=False)] == ["m.fits", "n.fits.fz", "o.xisf"]
