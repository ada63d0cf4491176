from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree

from zemosaic_core.background import expand_mesh_row
from zemosaic_core.errors import SkipItem
from zemosaic_core.stars import StarList, _smooth_over_noise, aperture_fluxes, detect_stars
from zemosaic_core.synthetic_galaxy import Galaxy
from zemosaic_core.synthetic_sky import (
    FrameSetup,
    Satellite,
    make_hot_pixels,
    make_sky,
    render_frame,
    star_pixels,
    tan_cards,
)

SHAPE = (960, 720)


def luminance(cfa: np.ndarray) -> np.ndarray:
    cfa = cfa.astype(np.float32)
    return (cfa[:-1, :-1] + cfa[1:, 1:] + cfa[:-1, 1:] + cfa[1:, :-1]) * np.float32(0.25)


def observe(seed=3, galaxy=None, density=90.0, **changes):
    sky = make_sky((10.6, 41.2), 0.9, seed=seed, stars_per_deg2=density, galaxy=galaxy)
    cards = tan_cards(10.6, 41.2, rotation_deg=33.0, shape_hw=SHAPE)
    setup = FrameSetup(cards, shape_hw=SHAPE, seed=(seed, 1), **changes)
    rows, x, y = star_pixels(sky, setup)
    return luminance(render_frame(sky, setup)), sky, setup, (rows, x, y)


def match(stars, x, y, radius=1.5):
    distance, index = cKDTree(np.c_[x, y]).query(np.c_[stars.x, stars.y])
    return distance < radius, index


@pytest.mark.parametrize("fwhm", [2.2, 3.0])
def test_bright_stars_are_centred_to_a_twentieth_of_a_pixel(fwhm):
    errors = []
    for seed in (3, 4, 5):
        image, _, _, (_, x, y) = observe(seed=seed, fwhm_px=fwhm)
        stars = detect_stars(image, offset=(0.5, 0.5), saturation=60000.0)
        found, index = match(stars, x, y)
        alone = cKDTree(np.c_[x, y]).query(np.c_[x, y], k=2)[0][:, 1][index] > 12.0
        bright = found & (stars.snr > 150) & ~stars.saturated & alone
        errors.append(np.c_[stars.x[bright] - x[index[bright]], stars.y[bright] - y[index[bright]]])
    errors = np.concatenate(errors)
    assert len(errors) > 15
    assert np.sqrt((errors**2).mean()) < 0.05
    assert np.abs(errors.mean(axis=0)).max() < 0.02


def test_nearly_all_detections_are_stars_in_spite_of_defects_and_a_satellite():
    hot = make_hot_pixels(SHAPE, count=150, seed=1)
    image, _, _, (_, x, y) = observe(
        hot_pixels=hot, n_cosmics=30, satellites=(Satellite(0, 100, 720, 800, 1.3, 1500.0),)
    )
    stars = detect_stars(image, offset=(0.5, 0.5))
    found, _ = match(stars, x, y)
    assert len(stars) > 60
    assert np.count_nonzero(~found) <= 0.04 * len(stars)


def test_almost_all_bright_stars_are_found():
    image, sky, _, (rows, x, y) = observe()
    stars = detect_stars(image, offset=(0.5, 0.5))
    inside = (x > 8) & (x < SHAPE[1] - 9) & (y > 8) & (y < SHAPE[0] - 9) & (sky.mag[rows] < 12.5)
    alone = cKDTree(np.c_[x, y]).query(np.c_[x, y], k=2)[0][:, 1] > 10.0
    wanted = inside & alone
    distance, _ = cKDTree(np.c_[stars.x, stars.y]).query(np.c_[x[wanted], y[wanted]])
    assert wanted.sum() > 15
    assert (distance < 1.0).mean() > 0.97


def test_galaxy_core_and_knots_do_not_pass_for_stars():
    galaxy = Galaxy(radius_deg=0.8)  # larger than the frame: hundreds of knots a little wider than stars
    image, _, _, (_, x, y) = observe(galaxy=galaxy)
    stars = detect_stars(image, offset=(0.5, 0.5))
    found, _ = match(stars, x, y)
    assert found.mean() > 0.85
    # The knots do not make the stars look wide either.
    plain = detect_stars(observe()[0])
    assert np.median(stars.fwhm_px) == pytest.approx(np.median(plain.fwhm_px), rel=0.08)


def test_flux_follows_transparency_and_width_follows_seeing():
    clear = detect_stars(observe(fwhm_px=2.4)[0])
    dim = detect_stars(observe(fwhm_px=2.4, transparency=(0.6, 0.6, 0.6))[0])
    wide = detect_stars(observe(fwhm_px=3.6)[0])
    found, index = match(dim, clear.x, clear.y)
    bright = found & (dim.snr > 80) & (clear.peak[index] < 40000)
    assert np.median(dim.flux[bright] / clear.flux[index][bright]) == pytest.approx(0.6, abs=0.01)
    assert np.median(wide.fwhm_px) > np.median(clear.fwhm_px) + 0.7


def test_list_is_sorted_cut_and_shifted():
    image = observe()[0]
    stars = detect_stars(image)
    shifted = detect_stars(image, max_stars=20, offset=(100.5, -3.0))
    assert (np.diff(stars.flux) <= 0).all()
    assert len(shifted) == 20
    np.testing.assert_allclose(shifted.x, stars.x[:20] + 100.5)
    np.testing.assert_allclose(shifted.y, stars.y[:20] - 3.0)
    assert len(stars.select(stars.snr > 50)) == np.count_nonzero(stars.snr > 50)


def test_saturated_stars_are_marked_not_lost():
    image = observe()[0]
    stars = detect_stars(image, saturation=10000.0)
    level = np.median(image)
    np.testing.assert_array_equal(stars.saturated, stars.peak + level > 9950.0)
    assert 0 < stars.saturated.sum() < len(stars)


def test_trailed_frame_keeps_its_long_stars():
    stars = detect_stars(observe(trail_px=9.0, trail_angle_deg=20.0)[0])
    good = detect_stars(observe()[0])
    assert len(stars) > 25
    assert np.median(stars.elongation) > 1.6 > np.median(good.elongation)


def test_missing_pixels_cost_only_the_stars_in_them():
    image = observe()[0]
    holed = image.copy()
    holed[:, 300:420] = np.nan
    whole, part = detect_stars(image), detect_stars(holed)
    assert not ((part.x > 299) & (part.x < 420)).any()
    far = (whole.x < 250) | (whole.x > 470)
    distance, _ = cKDTree(np.c_[part.x, part.y]).query(np.c_[whole.x[far], whole.y[far]])
    assert (distance < 0.1).mean() > 0.95


def test_empty_sky_has_few_stars_and_nothing_finite_is_an_error():
    noise = np.random.default_rng(0).normal(900.0, 60.0, (500, 500)).astype(np.float32)
    assert len(detect_stars(noise)) <= 1
    with pytest.raises(SkipItem) as caught:
        detect_stars(np.full((100, 100), np.nan, dtype=np.float32))
    assert caught.value.key == "stars_no_pixels"


def plain_aperture(plane, x, y, radius, inner, outer):
    yy, xx = np.mgrid[: plane.shape[0], : plane.shape[1]]
    fine = (np.arange(5) - 2) * 0.2
    inside = np.zeros(plane.shape)
    for ey in fine:
        for ex in fine:
            inside += ((xx + ex - x) ** 2 + (yy + ey - y) ** 2 <= radius**2) / 25.0
    r2 = (xx - x) ** 2 + (yy - y) ** 2
    ring = np.sort(plane[(r2 >= inner**2) & (r2 <= outer**2)])
    ring = ring[np.isfinite(ring)]
    quarter = ring.size // 4
    used = inside > 0
    total = (inside[used] * plane[used]).sum()
    return total - inside.sum() * ring[quarter : ring.size - quarter].mean(dtype=float)


def test_apertures_agree_with_plain_numpy():
    rng = np.random.default_rng(9)
    planes = rng.normal(500.0, 20.0, (3, 60, 70)).astype(np.float32)
    x, y = rng.uniform(15, 55, 12), rng.uniform(15, 45, 12)
    fluxes = aperture_fluxes(planes, x, y, 3.3)
    assert fluxes.shape == (3, 12)
    for c in range(3):
        for k in range(12):
            slow = plain_aperture(planes[c], x[k], y[k], 3.3, 6.3, 10.3)
            assert fluxes[c, k] == pytest.approx(slow, abs=0.2)


def test_aperture_needs_all_its_pixels_and_most_of_its_ring():
    planes = np.full((1, 50, 50), 100.0, dtype=np.float32)
    planes[0, 25, 27] = np.nan
    x = np.array([25.0, 1.0, 10.0, 40.0, np.nan])
    y = np.array([25.0, 1.0, 10.0, 4.0, 3.0])
    fluxes = aperture_fluxes(planes, x, y, 3.0)[0]
    assert np.isnan(fluxes[[0, 1, 4]]).all()
    np.testing.assert_allclose(fluxes[[2, 3]], 0.0, atol=1e-3)
    with pytest.raises(ValueError, match="radius_px"):
        aperture_fluxes(planes, x, y, 0.0)


def test_star_list_without_saturation_marks_has_none():
    one = np.ones(2, dtype=np.float32)
    stars = StarList(np.zeros(2), np.zeros(2), one, one, one, one, one)
    assert stars.saturated.tolist() == [False, False]


def test_smoothing_over_noise_agrees_with_a_slow_twin():
    rng = np.random.default_rng(2)
    image = rng.normal(0, 10, (61, 83)).astype(np.float32)
    noise = rng.uniform(5, 15, (2, 3)).astype(np.float32)
    kernel = np.array([1, 3, 4, 3, 1]) / 12.0
    expected = image.astype(float)
    middle = sum(k * expected[:, 2 + d : 81 + d] for k, d in zip(kernel, range(-2, 3), strict=True))
    expected[:, 2:-2] = middle
    middle = sum(k * expected[2 + d : 59 + d] for k, d in zip(kernel, range(-2, 3), strict=True))
    expected[2:-2] = middle
    sigma, row = np.empty(image.shape), np.empty(83, np.float32)
    for y in range(61):
        expand_mesh_row(noise, 32, y, row)
        sigma[y] = row
    result = _smooth_over_noise(image, noise, 32)
    np.testing.assert_allclose(result, expected / sigma, rtol=1e-4, atol=1e-5)
    image[30, 40] = np.nan
    holed = _smooth_over_noise(image, noise, 32)
    assert (holed[28:33, 38:43] == 0).all()
    far = np.ones(image.shape, bool)
    far[28:33, 38:43] = False
    np.testing.assert_array_equal(holed[far], result[far])
