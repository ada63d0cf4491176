from __future__ import annotations

import json

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from scipy.spatial import cKDTree

from zemosaic_core.errors import SaveFailed
from zemosaic_core.stars import detect_stars
from zemosaic_core.synthetic_sky import pixel_to_sky, sky_to_pixel, tan_cards
from zemosaic_io.demo_session import plan_demo_night, write_demo_night

SMALL = {"frames_per_panel": 3, "shape_hw": (384, 288), "seed": 11}


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    return write_demo_night(tmp_path_factory.mktemp("night"), with_wcs=True, **SMALL)


def luminance(cfa):
    cfa = cfa.astype(np.float32)
    return (cfa[:-1, :-1] + cfa[1:, 1:] + cfa[:-1, 1:] + cfa[1:, :-1]) * np.float32(0.25)


def test_files_look_like_those_of_the_telescope(night):
    assert len(night.paths) == 12
    assert sorted(night.folder.iterdir()) == sorted(night.paths)
    with fits.open(night.paths[0], do_not_scale_image_data=True) as hdus:
        header, raw = hdus[0].header, hdus[0].data
        assert raw.dtype == np.dtype(">i2")
        assert raw.shape == (384, 288)
        assert (header["BITPIX"], header["BZERO"], header["BSCALE"]) == (16, 32768, 1)
        assert (header["BAYERPAT"], header["INSTRUME"], header["FILTER"]) == ("GRBG", "Seestar S50", "IRCUT")
        assert header["EXPTIME"] == 10.0
        assert "DATE-OBS" in header
        assert list(header).count("EXTEND") == 1


def test_header_wcs_is_the_truth(night):
    wcs = WCS(fits.getheader(night.paths[4]))
    rows, x, y, flux = night.stars_of(4)
    np.testing.assert_allclose(
        wcs.all_world2pix(night.sky.ra_deg[rows], night.sky.dec_deg[rows], 0), (x, y), atol=1e-5
    )
    assert flux.shape == (rows.size, 3)


def test_detected_stars_are_where_the_truth_says(night):
    index = next(i for i, frame in enumerate(night.frames) if frame.kind == "good")
    _, x, y, _ = night.stars_of(index)
    stars = detect_stars(luminance(fits.getdata(night.paths[index])), offset=(0.5, 0.5))
    distance, _ = cKDTree(np.c_[x, y]).query(np.c_[stars.x, stars.y])
    assert len(stars) > 25
    assert (distance < 1.0).mean() > 0.75  # the rest are knots of the galaxy


def test_without_wcs_there_are_only_rough_hints(tmp_path):
    night = write_demo_night(tmp_path, panels=(1, 2), **SMALL)
    for path, frame in zip(night.paths, night.frames, strict=True):
        header = fits.getheader(path)
        assert "CTYPE1" not in header
        true_ra, true_dec = frame.setup.cards["CRVAL1"], frame.setup.cards["CRVAL2"]
        miss = np.hypot((header["RA"] - true_ra) * np.cos(np.deg2rad(true_dec)), header["DEC"] - true_dec)
        assert 0.0 < miss < 0.1


def test_same_seed_writes_the_same_pixels(tmp_path, night):
    again = write_demo_night(tmp_path, with_wcs=False, **SMALL)
    for first, second in zip(night.paths[::5], again.paths[::5], strict=True):
        np.testing.assert_array_equal(fits.getdata(first), fits.getdata(second))


def test_full_night_has_its_bad_frames_satellites_rotation_and_dither(tmp_path):
    night = plan_demo_night(tmp_path)
    assert len(night.frames) == 48
    assert sorted(f.kind for f in night.frames if f.kind != "good") == ["clouded", "trailed"]
    assert sum(bool(f.setup.satellites) for f in night.frames) == 4
    angles = [np.rad2deg(np.arctan2(f.setup.cards["CD2_1"], -f.setup.cards["CD1_1"])) for f in night.frames]
    assert 20.0 < np.ptp(angles) < 32.0
    assert np.ptp(angles[:12]) == pytest.approx(4.0)
    assert len({(f.setup.cards["CRVAL1"], f.setup.cards["CRVAL2"]) for f in night.frames}) == 48
    assert len({f.name for f in night.frames}) == 48
    assert not any(tmp_path.iterdir())


def test_panels_leave_no_hole(tmp_path):
    night = plan_demo_night(tmp_path)
    height, width = night.frames[0].setup.shape_hw
    centre = tan_cards(10.6847, 41.2690, shape_hw=(height, width))
    x, y = np.meshgrid(np.linspace(-250, width + 250, 40), np.linspace(-550, height + 550, 60))
    ra, dec = pixel_to_sky(centre, x, y)
    covered = np.zeros(ra.shape, dtype=int)
    for frame in night.frames:
        fx, fy = sky_to_pixel(frame.setup.cards, ra, dec)
        covered += (fx >= 0) & (fx <= width - 1) & (fy >= 0) & (fy <= height - 1)
    assert covered.min() >= 5


def test_real_stars_are_used_when_given(tmp_path):
    rng = np.random.default_rng(0)
    catalogue = (10.68 + rng.uniform(-2, 2, 800), 41.27 + rng.uniform(-2, 2, 800), rng.uniform(6, 11.5, 800))
    night = plan_demo_night(tmp_path, catalogue=catalogue)
    bright = night.sky.mag < 9.5
    assert bright.sum() > 50
    assert np.isin(night.sky.mag[bright], catalogue[2]).all()


def test_truth_is_saved_on_request(tmp_path):
    stem = tmp_path / "truth"
    night = write_demo_night(tmp_path / "frames", panels=(1, 1), save_truth=stem, **SMALL)
    record = json.loads(stem.with_suffix(".json").read_text())
    assert [f["name"] for f in record["frames"]] == [f.name for f in night.frames]
    assert record["frames"][0]["setup"]["cards"]["CRVAL1"] == night.frames[0].setup.cards["CRVAL1"]
    with np.load(stem.with_suffix(".npz")) as tables:
        np.testing.assert_array_equal(tables["flux"], night.sky.flux)
        np.testing.assert_array_equal(tables["hot_flat"], night.hot_pixels.flat)


def test_progress_is_reported_and_a_blocked_folder_is_an_error(tmp_path):
    seen = []
    write_demo_night(tmp_path / "a", panels=(1, 1), on_frame=lambda i, n: seen.append((i, n)), **SMALL)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SaveFailed):
        write_demo_night(tmp_path / "file", panels=(1, 1), **SMALL)
