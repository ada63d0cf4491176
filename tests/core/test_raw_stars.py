from __future__ import annotations

import numpy as np
import pytest
import twins_measure as twins

from zemosaic_core.raw_defects import NEVER_SATURATED
from zemosaic_core.raw_maxima import find_maxima
from zemosaic_core.raw_sky import sky_cells
from zemosaic_core.raw_stars import (
    Rows,
    Sharpness,
    aperture_radius_px,
    measure_rows,
    measure_sharpness,
    phase_fluxes,
)
from zemosaic_core.star_choice import choose_stars, common_width, on_trails

SHAPE = (200, 220)


def field(cfa, fwhm=2.6, seed=0):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : SHAPE[0], 0 : SHAPE[1]]
    at = [
        (30 * j + 20 + rng.uniform(-2, 2), 30 * i + 25 + rng.uniform(-2, 2))
        for j in range(6)
        for i in range(6)
    ]
    light = np.zeros(SHAPE)
    for sy, sx in at:
        light += rng.uniform(2000, 20000) * np.exp(
            -((x - sx) ** 2 + (y - sy) ** 2) / (2 * (fwhm / 2.3548) ** 2)
        )
    if cfa:
        light *= np.array([[1.0, 0.8], [0.6, 1.0]])[y % 2, x % 2]
    plane = np.clip(800 + light + rng.normal(0, 20, SHAPE), 0, 65535).astype(np.uint16)
    return plane, np.array(at)


@pytest.mark.parametrize("cfa", [True, False])
def test_rows_agree_with_plain_numpy_and_with_the_truth(cfa):
    plane, at = field(cfa)
    maxima = find_maxima(plane, sky_cells(plane), cfa, threshold_sigma=8.0)
    assert len(maxima) == len(at)
    sigma = 1.3
    rows = measure_rows(plane, cfa, maxima, np.arange(len(maxima)), sigma, aperture_radius_px(sigma))
    assert rows.valid.all()
    shift = 0.5 if cfa else 0.0
    for k in range(len(maxima)):
        sky = maxima.sky[k] * maxima.per_pixel
        twin = twins.star_row(plane, cfa, maxima.y[k], maxima.x[k], sky, sigma, aperture_radius_px(sigma))
        found = [v[k] for v in (rows.x, rows.y, rows.flux, rows.peak, rows.fwhm_px, rows.elongation)]
        np.testing.assert_allclose(found[:2], np.array(twin[:2]) + shift, atol=2e-4)
        np.testing.assert_allclose(found[2:], twin[2:], rtol=2e-4)
        assert np.hypot(at[:, 1] - rows.x[k], at[:, 0] - rows.y[k]).min() < 0.1


def test_a_row_at_the_border_or_without_light_is_no_error():
    plane, _ = field(False)
    plane[:6, :6] += 5000
    maxima = find_maxima(plane, sky_cells(plane), False, threshold_sigma=8.0)
    rows = measure_rows(plane, False, maxima, np.arange(len(maxima)), 5.5, 22.0)
    assert np.isfinite(rows.x).all()
    assert (rows.flux[~rows.valid] == 0).all()


@pytest.mark.parametrize("cfa", [True, False])
def test_light_per_phase_agrees_with_plain_numpy(cfa):
    plane, at = field(cfa)
    cells = sky_cells(plane)
    y, x = at.T
    light = phase_fluxes(plane, cfa, x, y, 3.3, cells)
    assert light.shape == (4 if cfa else 1, len(at))
    known = np.isfinite(light[0])
    assert known.sum() > 25
    for k in np.flatnonzero(known):
        for p in range(len(light)):
            slow = twins.phase_flux(plane, cfa, x[k], y[k], 3.3, p)
            # Two ways to clip the ring; its sky is uncertain by 2 ADU over 35 px.
            assert light[p, k] == pytest.approx(slow, abs=120)
    outside = phase_fluxes(plane, cfa, np.array([1.0, 110.0]), np.array([100.0, 198.5]), 3.3, cells)
    assert np.isnan(outside).all()


@pytest.mark.parametrize("fwhm", [1.2, 1.6, 2.2, 3.0, 6.0])
def test_a_hot_pixel_is_sharper_than_any_star(fwhm):
    plane, at = field(False, fwhm)
    for y, x in ((36, 40), (66, 70), (96, 100)):
        plane[y, x] += 6000
    cells = sky_cells(plane)
    maxima = find_maxima(plane, cells, False, threshold_sigma=8.0)
    sharpness = measure_sharpness(plane, False, maxima, cells, np.full(4, NEVER_SATURATED))
    apart = np.hypot(at[:, 1] - maxima.x[:, None], at[:, 0] - maxima.y[:, None]).min(axis=1)
    hot = (plane[maxima.y, maxima.x] > 6000) & (apart > 4)
    assert hot.sum() == 3
    assert (sharpness.share[hot] < 0.4).all()
    assert (sharpness.share[apart < 2] > 0.6).all()
    assert not sharpness.saturated.any()
    levels = np.full(4, 10000)
    saturated = measure_sharpness(plane, False, maxima, cells, levels).saturated
    peak = np.array(
        [plane[y - 1 : y + 2, x - 1 : x + 2].max() for y, x in zip(maxima.y, maxima.x, strict=True)]
    )
    np.testing.assert_array_equal(saturated, peak >= 10000)


def test_the_common_width_is_that_of_the_sharpest_crowd():
    rng = np.random.default_rng(0)
    stars, knots = rng.normal(3.0, 0.1, 60), rng.uniform(4.0, 14.0, 200)
    assert common_width(np.r_[stars, knots]) == pytest.approx(3.0, abs=0.1)
    assert common_width(np.array([2.5])) == 2.5


def made_rows(rng, n, fwhm=3.0, elongation=1.1):
    x, y = rng.uniform(10, 990, n), rng.uniform(10, 990, n)
    flux = 10 ** rng.uniform(3, 5, n)
    return [x, y, flux, flux / 9, rng.normal(fwhm, 0.05, n), rng.normal(elongation, 0.03, n)]


def choose(columns, snr, share=None):
    n = len(columns[0])
    share = np.full(n, 4.0, np.float32) if share is None else share
    sharpness = Sharpness(
        share, np.full(n, 0.05, np.float32), (0.7 * snr).astype(np.float32), np.zeros(n, bool)
    )
    return choose_stars(Rows(*columns, np.ones(n, bool)), snr, sharpness, (1000, 1000))


def test_a_satellite_of_many_maxima_does_not_pass_for_stars_nor_say_what_a_star_is():
    rng = np.random.default_rng(2)
    stars = made_rows(rng, 60)
    t = np.sort(rng.uniform(0, 1, 200))
    trail = [50 + 900 * t, 900 - 700 * t, 10 ** rng.normal(3.6, 0.1, 200), np.full(200, 400.0),
             rng.normal(5.0, 0.2, 200), rng.normal(2.6, 0.2, 200)]  # fmt: skip
    columns = [np.r_[a, b] for a, b in zip(stars, trail, strict=True)]
    snr = columns[2] / 100.0
    chosen = choose(columns, snr)
    assert (chosen < 60).all()
    assert len(chosen) >= 57
    found = on_trails(columns[0], columns[1], snr, columns[5] > 1.5, np.zeros(260, bool), (1000, 1000))
    assert found[60:].all()


def test_a_trailed_frame_keeps_its_long_stars_beside_the_knots_of_a_galaxy():
    rng = np.random.default_rng(3)
    stars, knots = made_rows(rng, 50, 6.0, 2.4), made_rows(rng, 90, 11.0, 1.2)
    knots[2] = 10 ** rng.uniform(3, 3.4, 90)
    columns = [np.r_[a, b] for a, b in zip(stars, knots, strict=True)]
    chosen = choose(columns, columns[2] / 100.0)
    assert np.isin(np.arange(50), chosen).mean() > 0.9
    assert (chosen >= 50).sum() < 10


def test_of_two_maxima_of_one_star_the_stronger_stays():
    rng = np.random.default_rng(4)
    columns = made_rows(rng, 30)
    columns[0][1], columns[1][1] = columns[0][0] + 0.8, columns[1][0] - 0.5
    snr = columns[2] / 100.0
    chosen = choose(columns, snr)
    assert np.isin([0, 1], chosen).sum() == 1
    assert (0 if snr[0] >= snr[1] else 1) in chosen


def test_single_pixels_go_and_sharp_stars_stay():
    rng = np.random.default_rng(5)
    columns = made_rows(rng, 60, 1.5)
    share = np.full(60, 1.8, np.float32)
    share[:6] = 0.1
    chosen = choose(columns, columns[2] / 100.0, share)
    assert set(chosen.tolist()) == set(range(6, 60))
