"""A whole run on a night with known truth, judged by its files alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import sep
from astropy.io import fits
from astropy.wcs import WCS
from PIL import Image

from zemosaic_core.errors import SettingsError
from zemosaic_worker import run_hierarchical_mosaic


def sky_xy(mosaic, sky, rows):
    x, y = mosaic.wcs.all_world2pix(sky.ra_deg[rows], sky.dec_deg[rows], 0)
    return np.asarray(x), np.asarray(y)


def isolated(x, y, flux, radius):
    """Return stars without a neighbour that could disturb an aperture of this radius."""
    near = np.hypot(x[:, None] - x, y[:, None] - y)
    disturbing = (near < 2.5 * radius) & (flux[None, :] > 0.003 * flux[:, None])
    return disturbing.sum(axis=1) == 1


def measured_stars(mosaic, truth, channel=1):
    """Return truth and measurement of clean, bright stars: positions and fluxes."""
    sky = truth.sky
    rows = np.arange(len(sky.ra_deg))
    x, y = sky_xy(mosaic, sky, rows)
    height, width = mosaic.coverage.shape
    inside = (x > 12) & (x < width - 13) & (y > 12) & (y < height - 13)
    rows, x, y = rows[inside], x[inside], y[inside]
    flux = sky.flux[rows, channel]
    deep = mosaic.coverage[np.rint(y).astype(int), np.rint(x).astype(int)] >= 6
    usable = isolated(x, y, flux, 7.0) & (flux > 20_000) & (flux < 300_000) & deep
    image = np.ascontiguousarray(mosaic.image[channel])
    mask = ~np.isfinite(image)
    filled = np.where(mask, 0, image).astype(np.float32)
    got, _, _ = sep.sum_circle(filled, x[usable], y[usable], 7.0, mask=mask, bkgann=(10.0, 15.0))
    px, py, flag = sep.winpos(filled - np.nanmedian(image), x[usable], y[usable], 1.3, mask=mask)
    return rows[usable], np.hypot(px - x[usable], py - y[usable])[flag == 0], got / flux[usable]


def test_star_positions_agree_with_the_truth(small_mosaic, small_night):
    _, offset, _ = measured_stars(small_mosaic, small_night)
    assert len(offset) >= 15
    assert np.median(offset) < 0.1
    assert np.percentile(offset, 90) < 0.15


def test_star_fluxes_are_constant_over_the_mosaic(small_mosaic, small_night):
    """The scale is that of the clearest frames; what must hold is that it is one scale everywhere."""
    _, _, ratio = measured_stars(small_mosaic, small_night)
    scale = np.median(ratio)
    assert 0.85 < scale < 1.02
    assert 1.4826 * np.median(np.abs(ratio / scale - 1)) < 0.01


def test_hot_pixels_and_satellites_are_gone(small_mosaic, small_run):
    image = small_mosaic.image[1]
    deep = small_mosaic.coverage >= 6
    smooth = sep.Background(np.where(np.isfinite(image), image, np.nanmedian(image)).astype(np.float32), bw=32, bh=32)
    residual = image - smooth.back()
    noise = 1.4826 * np.nanmedian(np.abs(residual[deep]))
    # A trail or hot pixel that survived would leave single pixels far below and lines far above; stars are round.
    assert np.nanmin(residual[deep]) > -8 * noise
    rejected = [tile["rejected_fraction"] for tile in small_run.report["tiles"]]
    assert all(0.0005 < fraction < 0.05 for fraction in rejected)


def test_bad_frames_are_left_out_with_a_reason(small_run, small_night):
    bad = {frame.name: frame.kind for frame in small_night.frames if frame.kind != "good"}
    left = {Path(item["path"]).name: item["key"] for item in small_run.report["left_out"]}
    assert set(left) == set(bad)
    assert all(left.values())


def test_coverage_counts_frames_and_missing_is_nan(small_mosaic, small_run):
    missing = small_mosaic.coverage == 0
    assert missing.any()
    assert np.isnan(small_mosaic.image[:, missing]).all()
    assert np.isfinite(small_mosaic.image[:, ~missing]).mean() > 0.999
    assert not (small_mosaic.image[:, ~missing] == 0).any()
    assert small_mosaic.coverage.max() <= small_run.report["frames_used"]


def test_no_step_where_tiles_meet(small_run):
    """The residual in the overlaps is below the noise of the tiles' own means in a cell."""
    for overlap in small_run.report["photometry"]["overlaps"]:
        assert overlap["rms_after_adu"] < min(np.mean(t["noise_adu"]) for t in small_run.report["tiles"])


def test_outputs_have_the_known_names_and_true_headers(small_run, small_mosaic):
    report = small_run.report
    science = Path(small_run.outputs["science"])
    assert science.name == f"zemosaic_MT{len(report['tiles'])}_R{report['frames_used']}.fits"
    for ending in ("_coverage.fits", "_preview.png"):
        assert science.with_name(science.stem + ending).is_file()
    header = small_mosaic.header
    assert header["BITPIX"] == -32
    assert header["NRAWPROC"] == report["frames_used"]
    assert header["NMASTILE"] == len(report["tiles"])
    assert header["STK_REJ"] == "winsorized_sigma_clip"
    assert "BZERO" not in header
    assert header["CTYPE1"] == "RA---TAN"
    coverage = fits.getheader(small_run.outputs["coverage"])
    np.testing.assert_allclose(WCS(coverage).wcs.crval, small_mosaic.wcs.wcs.crval)
    assert not list(science.parent.glob(".*part"))


def test_preview_is_a_picture(small_run):
    with Image.open(small_run.outputs["preview"]) as picture:
        rgba = np.asarray(picture.convert("RGBA"))
    opaque = rgba[rgba[..., 3] > 0][:, :3]
    assert 10 < np.median(opaque) < 90
    assert (opaque.max(axis=1) > 200).mean() > 1e-4
    assert (opaque.max(axis=1) == 0).mean() < 0.01


def test_report_tells_everything(small_run):
    folder = Path(small_run.outputs["science"]).parent
    report = json.loads((folder / "run_report.json").read_text(encoding="utf-8"))
    assert report["outcome"] == "success"
    assert next(phase["phase"] for phase in report["phases"]) == "phase0_survey"
    assert all(phase["seconds"] >= 0 and phase["peak_bytes"] > 0 for phase in report["phases"])
    assert len(report["frames"]) == report["frames_used"]
    assert all(frame["solution"]["method"] == "header" for frame in report["frames"])
    page = (folder / "run_report.html").read_text(encoding="utf-8")
    assert "_report." not in page
    assert Path(small_run.outputs["preview"]).name in page


def test_inputs_are_untouched(small_run, small_night):
    assert sorted(path.name for path in small_night.folder.iterdir()) == sorted(f.name for f in small_night.frames)


def test_peak_memory_is_below_the_plan(small_run):
    assert small_run.report["peak_bytes"] <= 1.2 * small_run.report["planned_peak_bytes"]


def test_second_run_reuses_what_it_can_and_gives_the_same_picture(small_run, small_night, small_mosaic):
    folder = Path(small_run.outputs["science"]).parent
    again = run_hierarchical_mosaic(small_night.folder, folder, gpu_mode="off")
    keys = {message["key"] for message in again.report["messages"]}
    assert {"run_info_measures_reused", "run_info_solutions_reused", "run_info_tiles_reused"} <= keys
    np.testing.assert_array_equal(fits.getdata(again.outputs["science"]), small_mosaic.image)


def test_incremental_assembly_gives_the_same_picture(small_night, small_mosaic, tmp_path):
    result = run_hierarchical_mosaic(
        small_night.folder, tmp_path, gpu_mode="off", final_assembly_method="incremental"
    )
    image = fits.getdata(result.outputs["science"])
    np.testing.assert_allclose(image, small_mosaic.image, rtol=0, atol=2e-3, equal_nan=True)


def test_output_folder_must_not_be_the_input(small_night):
    with pytest.raises(SettingsError) as error:
        run_hierarchical_mosaic(small_night.folder, small_night.folder)
    assert error.value.key == "error_output_is_input"
