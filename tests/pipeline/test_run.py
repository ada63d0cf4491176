"""A whole run on a night with known truth, judged by its files alone."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sep
from astropy.io import fits
from astropy.wcs import WCS
from PIL import Image

from zemosaic_core.errors import SettingsError
from zemosaic_core.synthetic_sky import render_ideal
from zemosaic_worker import run_hierarchical_mosaic, run_hierarchical_mosaic_process

APERTURE_PX = 5.0
RING_PX = (9.0, 14.0)
# Of the made-up camera: the photon noise of the stars themselves.
ADU_PER_ELECTRON = 14.3


def ideal_image(mosaic, night):
    """Return the noiseless truth on the pixels of the mosaic."""
    header, matrix = mosaic.header, mosaic.wcs.pixel_scale_matrix
    cards = {key: header[key] for key in ("CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2")}
    cards |= {f"CD{i + 1}_{j + 1}": matrix[i, j] for i in range(2) for j in range(2)}
    setup = replace(
        night.frames[0].setup,
        cards=cards,
        shape_hw=mosaic.coverage.shape,
        transparency=(1.0, 1.0, 1.0),
        fwhm_px=2.65,
    )
    return render_ideal(night.sky, setup)


def measured_stars(mosaic, night, channel=1):
    """Return x, position errors (px), flux ratios to the truth and their expected noise, of well exposed stars."""
    sky, image = night.sky, np.ascontiguousarray(mosaic.image[channel])
    truth = np.ascontiguousarray(ideal_image(mosaic, night)[channel])
    x, y = mosaic.wcs.all_world2pix(sky.ra_deg, sky.dec_deg, 0)
    height, width = image.shape
    inside = (x > 16) & (x < width - 17) & (y > 16) & (y < height - 17)
    x, y, flux = x[inside], y[inside], sky.flux[inside, channel]
    deep = mosaic.coverage[np.rint(y).astype(int), np.rint(x).astype(int)] >= 6
    usable = deep & (flux > 15_000) & (flux < 300_000)
    x, y, flux = x[usable], y[usable], flux[usable]
    mask = ~np.isfinite(image)
    filled = np.where(mask, 0, image).astype(np.float32)
    got, _, _ = sep.sum_circle(filled, x, y, APERTURE_PX, mask=mask, bkgann=RING_PX)
    expected, _, _ = sep.sum_circle(truth, x, y, APERTURE_PX, bkgann=RING_PX)
    alone = np.abs(expected / flux - np.median(expected / flux)) < 0.05
    px, py, flag = sep.winpos(filled - np.nanmedian(image), x, y, 1.3, mask=mask)
    frames = mosaic.coverage[np.rint(y).astype(int), np.rint(x).astype(int)]
    sky_noise = np.nanmedian(np.abs(np.diff(image, axis=1))) / 0.954 * np.sqrt(2 * np.pi) * APERTURE_PX
    noise = np.sqrt(sky_noise**2 + ADU_PER_ELECTRON * flux / frames)
    good = alone & (flag == 0)
    return x[good], np.hypot(px - x, py - y)[good], (got / expected)[good], (noise / flux)[good]


def test_star_positions_agree_with_the_truth(small_mosaic, small_night):
    _, offset, _, _ = measured_stars(small_mosaic, small_night)
    assert len(offset) >= 15
    assert np.median(offset) < 0.05
    assert np.percentile(offset, 90) < 0.1


def test_star_fluxes_are_within_one_percent_of_one_scale(small_mosaic, small_night):
    """The scale is that of the clearer frames; what must hold is that it is one scale everywhere."""
    x, _, ratio, noise = measured_stars(small_mosaic, small_night)
    scale = np.average(ratio, weights=noise**-2)
    assert 0.85 < scale < 1.02
    deviation = np.abs(ratio / scale - 1)
    assert (deviation < 0.01 + 2 * noise).mean() > 0.9
    left = x < np.median(x)
    sides = [np.average(ratio[side], weights=noise[side] ** -2) / scale for side in (left, ~left)]
    assert abs(sides[0] - sides[1]) < 0.01


def test_every_colour_is_as_sharp_as_the_others(small_mosaic, small_night):
    """Half of the light of a star within the same diameter in red, green and blue, and as in the truth."""
    sky = small_night.sky
    x, y = small_mosaic.wcs.all_world2pix(sky.ra_deg, sky.dec_deg, 0)
    height, width = small_mosaic.coverage.shape
    inside = (x > 16) & (x < width - 17) & (y > 16) & (y < height - 17)
    inside &= (sky.flux[:, 1] > 20_000) & (sky.flux[:, 1] < 300_000)
    x, y = x[inside], y[inside]
    deep = small_mosaic.coverage[np.rint(y).astype(int), np.rint(x).astype(int)] >= 6
    x, y = x[deep], y[deep]
    truth = ideal_image(small_mosaic, small_night)
    diameters = np.empty((3, len(x)))
    expected = np.empty((3, len(x)))
    for channel in range(3):
        for image, out in ((small_mosaic.image[channel], diameters), (truth[channel], expected)):
            filled = np.where(np.isfinite(image), image, np.nanmedian(image)).astype(np.float32)
            flat = np.ascontiguousarray(filled - sep.Background(filled, bw=24, bh=24).back())
            flux, _, _ = sep.sum_circle(flat, x, y, 6.0)
            radius, _ = sep.flux_radius(flat, x, y, np.full(len(x), 6.0), 0.5, normflux=flux)
            out[channel] = 2 * radius
    alone = np.abs(expected[1] / np.median(expected[1]) - 1) < 0.1
    ratio = np.median((diameters / expected)[:, alone], axis=1)
    assert alone.sum() >= 15
    assert ratio[[0, 2]] == pytest.approx([ratio[1], ratio[1]], abs=0.03)
    assert ratio == pytest.approx([1, 1, 1], abs=0.08)


def test_hot_pixels_and_satellites_are_gone(small_mosaic, small_run):
    image = small_mosaic.image[1]
    deep = small_mosaic.coverage >= 6
    smooth = sep.Background(
        np.where(np.isfinite(image), image, np.nanmedian(image)).astype(np.float32), bw=32, bh=32
    )
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


def test_no_step_where_tiles_meet(small_night, tmp_path):
    """The residual in the overlaps is below the noise of the tiles' own means in a cell."""
    panels = run_hierarchical_mosaic(small_night.folder, tmp_path, gpu_mode="off", route="panels")
    overlaps = panels.report["photometry"]["overlaps"]
    assert overlaps
    for overlap in overlaps:
        assert overlap["rms_after_adu"] < min(np.mean(t["noise_adu"]) for t in panels.report["tiles"])


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
    assert all(0 < tile["map_error_px"] <= 0.01 for tile in report["tiles"])
    page = (folder / "run_report.html").read_text(encoding="utf-8")
    assert "_report." not in page
    assert Path(small_run.outputs["preview"]).name in page


def test_inputs_are_untouched(small_run, small_night):
    assert sorted(path.name for path in small_night.folder.iterdir()) == sorted(
        f.name for f in small_night.frames
    )


def test_peak_memory_is_below_the_plan(small_night, tmp_path):
    """In a process of its own, as users run it: the test's own process holds much else."""
    spawn = multiprocessing.get_context("spawn")
    queue = spawn.Queue()
    worker = spawn.Process(
        target=run_hierarchical_mosaic_process,
        args=(queue, str(small_night.folder), str(tmp_path)),
        kwargs={"config": {"gpu_mode": "off"}},
    )
    worker.start()
    keys = []
    while not keys or keys[-1] not in ("PROCESS_DONE", "PROCESS_ERROR"):
        keys.append(queue.get(timeout=250)[0])
    worker.join(60)
    assert (keys[-1], worker.exitcode) == ("PROCESS_DONE", 0)
    report = json.loads((tmp_path / "run_report.json").read_text(encoding="utf-8"))
    assert report["peak_bytes"] <= 1.2 * report["planned_peak_bytes"]
    assert "run_info_grid" in (tmp_path / "zemosaic_worker.log").read_text(encoding="utf-8")


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
