"""Real Seestar frames of three nights and two telescopes, where they lie beside the project."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from scipy.spatial import cKDTree

from zemosaic_core.stars import detect_stars
from zemosaic_io.star_catalogue import catalogue_stars_near
from zemosaic_worker import run_hierarchical_mosaic

FRAMES = Path(__file__).resolve().parents[3] / "shared" / "data" / "seestar_m94"
pytestmark = pytest.mark.skipif(not FRAMES.is_dir(), reason="the real frames are not beside the project")


@pytest.fixture(scope="module")
def solved(tmp_path_factory):
    return run_hierarchical_mosaic(
        FRAMES, tmp_path_factory.mktemp("m94"), gpu_mode="off", solver_method="EMBEDDED"
    )


def test_all_frames_become_one_mosaic(solved):
    report = solved.report
    assert report["frames_used"] == report["frames_found"] == 16
    assert not report["left_out"]
    assert all(frame["solution"]["confirmed"] for frame in report["frames"])
    assert max(frame["registration"]["rms_px"] for frame in report["frames"]) < 0.3


def test_the_mosaic_lies_where_the_catalogue_says(solved):
    with fits.open(solved.outputs["science"]) as hdus:
        image, wcs = hdus[0].data.astype(np.float32), WCS(hdus[0].header).celestial
    green = np.where(np.isfinite(image[1]), image[1], np.nanmedian(image[1])).astype(np.float32)
    found = detect_stars(green, max_stars=400)
    centre = wcs.pixel_to_world(green.shape[1] / 2, green.shape[0] / 2)
    ra, dec, _ = catalogue_stars_near(centre.ra.deg, centre.dec.deg, 1.0, epoch=2025.24)
    x, y = wcs.all_world2pix(ra, dec, 0)
    distance, nearest = cKDTree(np.column_stack([found.x, found.y])).query(
        np.column_stack([x, y]), distance_upper_bound=2.0
    )
    paired = np.isfinite(distance)
    assert paired.sum() >= 15
    dx, dy = found.x[nearest[paired]] - x[paired], found.y[nearest[paired]] - y[paired]
    assert abs(np.median(dx)) < 0.1
    assert abs(np.median(dy)) < 0.1
    assert np.median(np.hypot(dx, dy)) < 0.4


def test_without_any_solver_the_mosaic_is_approximate_and_says_so(solved, tmp_path):
    result = run_hierarchical_mosaic(FRAMES, tmp_path, gpu_mode="off", solver_method="NONE")
    report = result.report
    assert report["frames_used"] == 16
    assert report["mosaic"]["approximate"]
    assert fits.getheader(result.outputs["science"])["WCSAPPRX"] is True
    assert {frame["solution"]["method"] for frame in report["frames"]} == {"hint", "star_match"}
    assert report["mosaic"]["scale_arcsec"] == pytest.approx(
        solved.report["mosaic"]["scale_arcsec"], rel=0.01
    )
    assert "wcs_approximate" in {message["key"] for message in report["messages"]}


@pytest.mark.solver
@pytest.mark.skipif(shutil.which("solve-field") is None, reason="solve-field is not installed")
def test_an_outside_solver_gives_the_same_place(solved, tmp_path):
    frames = sorted(FRAMES.glob("*20250326*.fit"))[:3]
    for frame in frames:
        (tmp_path / "raw").mkdir(exist_ok=True)
        shutil.copy(frame, tmp_path / "raw")
    result = run_hierarchical_mosaic(
        tmp_path / "raw", tmp_path / "out", gpu_mode="off", solver_method="ASTROMETRY", frame_quality_sigma=20
    )
    methods = [frame["solution"]["method"] for frame in result.report["frames"]]
    assert "ASTROMETRY" in methods
    for frame in result.report["frames"]:
        same = next(f for f in solved.report["frames"] if Path(f["path"]).name == Path(frame["path"]).name)
        corners, expected = np.array(frame["footprint"]), np.array(same["footprint"])
        apart = (corners - expected) * [np.cos(np.radians(41)), 1] * 3600
        assert np.abs(apart.mean(axis=0)).max() < 0.5


def test_a_position_that_is_wrong_is_dropped(tmp_path):
    """The mount was somewhere else, it says: the frame is found in the whole sky."""
    (tmp_path / "raw").mkdir()
    source = sorted(FRAMES.glob("*.fit"))[0]
    with fits.open(source) as hdus:
        header = hdus[0].header
        header["RA"], header["DEC"] = 10.0, -60.0
        hdus.writeto(tmp_path / "raw" / "elsewhere.fit")
    result = run_hierarchical_mosaic(
        tmp_path / "raw", tmp_path / "out", gpu_mode="off", solver_method="EMBEDDED", astrometry_timeout=120
    )
    assert result.report["frames_used"] == 1
    mosaic = result.report["mosaic"]["wcs"]
    # The tangent point lies on a lattice of one degree.
    assert (mosaic["CRVAL1"], mosaic["CRVAL2"]) == pytest.approx((192.7, 41.1), abs=0.8)
    assert "solve_whole_sky" in {message["key"] for message in result.report["messages"]}
