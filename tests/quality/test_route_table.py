"""The table of the routes: the truth of a demo night, and what is measured beside the route direct."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from benchmarks.demo_truth import as_glow_night
from benchmarks.route_figures import Mosaic, compared
from benchmarks.route_table import table
from zemosaic_core.synthetic_sky import Camera, render_frame
from zemosaic_io.demo_session import plan_demo_night

SHAPE_HW = (260, 300)
SIGMA = 10.0


def test_the_sky_of_a_demo_frame_is_that_of_its_pixels():
    planned = plan_demo_night("", panels=(1, 1), frames_per_panel=6, shape_hw=(384, 256), n_satellites=0)
    night = as_glow_night(planned, (1, 1), 6)
    assert len(night.frames) == 4  # neither the clouded one nor the trailed one
    setup = replace(night.frames[0].setup, transparency=(0.0, 0.0, 0.0), hot_pixels=None, n_cosmics=0)
    plain = replace(setup, glow_adu=None)
    raw = render_frame(planned.sky, plain).astype(float) - Camera().pedestal_adu
    y, x = np.mgrid[:384, :256]
    sky = night.glow_at(0, x, y)
    # GRBG, in quarters of the frame: a slope the other way round would show.
    for channel, (row, column) in enumerate(((0, 1), (0, 0), (1, 0))):
        for part in (np.s_[:192, :128], np.s_[:192, 128:], np.s_[192:, :128], np.s_[192:, 128:]):
            found, true = (plane[part][row::2, column::2].mean() for plane in (raw, sky[channel]))
            assert found == pytest.approx(true, rel=0.01)


def mosaic(folder, image, crpix=(150.0, 130.0)):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.cdelt = ["RA---TAN", "DEC--TAN"], [10.0, 40.0], [-1e-3, 1e-3]
    wcs.wcs.crpix = crpix
    folder.mkdir()
    fits.writeto(folder / "a.fits", image.astype(np.float32), wcs.to_header())
    fits.writeto(folder / "v.fits", np.full(image.shape, SIGMA**2, np.float32))
    outputs = {"science": str(folder / "a.fits"), "variance": str(folder / "v.fits")}
    (folder / "run_report.json").write_text(json.dumps({"outputs": outputs}), encoding="utf-8")
    return Mosaic(folder)


def test_levels_fluxes_and_pixels_are_found_in_the_size_in_which_they_differ(tmp_path):
    rng = np.random.default_rng(4)
    y, x = np.mgrid[: SHAPE_HW[0], : SHAPE_HW[1]]
    sky = 500.0 + SIGMA * rng.standard_normal(SHAPE_HW)
    stars = np.zeros(SHAPE_HW)
    for cy, cx in rng.uniform(20, 240, (60, 2)):
        stars += rng.uniform(3_000, 30_000) * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 3.0)
    direct = mosaic(tmp_path / "direct", sky + stars)
    same = compared(mosaic(tmp_path / "same", np.pad(sky + stars, 7), (157.0, 137.0)), direct)
    assert same["levels_adu"] == same["flux_percent"] == same["flux_scatter_percent"] == 0
    assert same["differing_ppm"] == 0
    other = sky + 1.02 * stars + 3.0 * (x > 150)
    spots = rng.integers(0, SHAPE_HW, (12, 2))
    other[tuple(spots.T)] += 500.0
    found = compared(mosaic(tmp_path / "other", other), direct)
    assert found["levels_adu"] == pytest.approx(1.5, abs=0.2)
    assert found["flux_percent"] == pytest.approx(2.0, abs=0.1)
    assert 4 <= found["differing_ppm"] * np.prod(SHAPE_HW) / 1e6 <= 12 / 0.5


def test_a_column_that_no_route_has_is_left_out():
    row = {
        "route": "direct", "tiles": 1, "registration_px": 0.16, "overlap_adu": None, "noise_adu": 23.4,
        "levels_adu": 0.0, "flux_percent": 0.0, "flux_scatter_percent": 0.0, "differing_ppm": 0.0, "peak_mb": 800.0,
        "planned_mb": 900.0, "cpu_s": 31.0, "again_cpu_s": None, "same_again": None,
    }  # fmt: skip
    head, _, line = table([row])
    assert "overlaps" not in head
    assert "trails" not in head
    assert line.startswith("| direct | 1 | 0.16 | 23.40 |")
    assert "800 / 900" in line
