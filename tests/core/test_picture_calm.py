from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.special import erf

from zemosaic_core.picture_calm import calm_light_and_colours
from zemosaic_core.picture_noise import NoiseMap, finest_scale, resample_cells, standing_out
from zemosaic_core.picture_smoothing import fill_from_around
from zemosaic_core.stretch import preview_rgba

NOISE = 0.09
SHAPE = (240, 300)


def dense_field(fwhm_px=1.9, faint=4200, seed=4):
    """Many more stars than can be told apart, smaller than two pixels, over little noise."""
    rng = np.random.default_rng(seed)
    height, width = SHAPE
    reach, sigma = 12, fwhm_px / 2.355
    flux = 0.75 / rng.uniform(1e-4, 1, faint) ** 0.9
    x, y = rng.uniform(0, width, faint), rng.uniform(0, height, faint)
    clean = np.full((height + 2 * reach, width + 2 * reach), 100.0)
    edges = np.arange(-reach - 0.5, reach + 1)
    for light, px, py in zip(flux, x, y, strict=True):
        i, j = int(px), int(py)
        across, down = (np.diff(erf((edges - d) / (sigma * np.sqrt(2)))) / 2 for d in (px - i, py - j))
        clean[j : j + 2 * reach + 1, i : i + 2 * reach + 1] += light * np.outer(down, across)
    clean = clean[reach:-reach, reach:-reach]
    return (clean + rng.normal(0, NOISE, clean.shape)).astype(np.float32), clean, x, y, flux


@pytest.fixture(scope="module")
def dense():
    return dense_field()


def noise_map(sigma=NOISE, shape=SHAPE):
    return NoiseMap(np.full((1, -(-shape[0] // 32), -(-shape[1] // 32)), sigma, np.float32), 32.0)


def rings(picture, x, y):
    """Mean profile of each star, (n, 12)."""
    yy, xx = np.mgrid[: picture.shape[0], : picture.shape[1]]
    found = []
    for px, py in zip(x, y, strict=True):
        r = np.hypot(yy - py, xx - px).astype(int)
        near = r < 12
        count = np.bincount(r[near], minlength=12)
        found.append(np.bincount(r[near], picture[near].astype(float), 12) / np.maximum(count, 1))
    return np.array(found)


def test_no_moats_and_no_lost_light_in_a_dense_undersampled_field(dense):
    image, _clean, x, y, flux = dense
    plain = preview_rgba(image, calm_noise=False)[..., 0]
    calm = preview_rgba(image, noise=noise_map())[..., 0]
    inside = (x > 12) & (x < SHAPE[1] - 12) & (y > 12) & (y < SHAPE[0] - 12)
    brightest = np.flatnonzero(inside)[np.argsort(-flux[inside])[:40]]
    before, after = (rings(picture, x[brightest], y[brightest]) for picture in (plain, calm))
    assert (after.mean(axis=0) > after[:, 8:].mean() - 1.0).all()
    assert (after.mean(axis=0) > before.mean(axis=0) - 1.0).all()


def test_faint_stars_keep_their_light(dense):
    image, clean, x, y, flux = dense
    light = image - np.float32(100.0)
    known = np.ones(light.shape, bool)
    cells = noise_map().of_sum((1.0,), SHAPE)
    calmed, _ = calm_light_and_colours(light, [], known, cells)
    kept = []
    for px, py, star in zip(x, y, flux, strict=True):
        i, j = int(px), int(py)
        lonely = 8 < i < SHAPE[1] - 9 and 8 < j < SHAPE[0] - 9
        if not (lonely and 8 < star * 0.22 / NOISE < 20):
            continue
        if clean[j - 2 : j + 3, i - 2 : i + 3].max() > clean[j, i]:
            continue
        core, around = np.s_[j - 1 : j + 2, i - 1 : i + 2], np.s_[j - 6 : j + 7, i - 6 : i + 7]
        sky = np.percentile(light[around], 20)
        kept.append((calmed[core] - sky).sum() / (light[core] - sky).sum())
    assert len(kept) > 30
    assert np.percentile(kept, 5) > 0.9
    # What is measured in the picture takes the unresolved stars for noise and thins the others.
    blind, _ = calm_light_and_colours(light, [], known)
    assert np.abs(blind - light).std() > 1.2 * np.abs(calmed - light).std()


def test_dips_that_resampling_makes_are_filled_and_dark_clouds_are_not():
    rng = np.random.default_rng(1)
    yy, xx = np.mgrid[:160, :160]
    r = np.hypot(yy - 80, xx - 50)
    image = 300.0 * np.exp(-(r**2) / 1.6) - 12.0 * np.exp(-((r - 4) ** 2) / 1.0)
    cloud = np.hypot(yy - 80, xx - 115) < 14
    image = (image - 20.0 * cloud + rng.normal(0, 1, image.shape)).astype(np.float32)
    calmed, _ = calm_light_and_colours(image, [], np.ones(image.shape, bool))
    ring = (r > 3) & (r < 5)
    assert image[ring].mean() < -8
    assert calmed[ring].min() > -1.0
    assert calmed[cloud].mean() == pytest.approx(image[cloud].mean(), abs=1.0)
    # Beside a star a dark cloud that is darker than ringing stays dark as well.
    deep = image.copy()
    deep[(r > 3) & (r < 8)] -= 60.0
    assert calm_light_and_colours(deep, [], np.ones(image.shape, bool))[0][ring].mean() < -40


def test_noise_alone_is_calmed_and_keeps_its_mean():
    noise = np.random.default_rng(2).normal(0, 1, (200, 200)).astype(np.float32)
    known = np.ones(noise.shape, bool)
    known[:30] = False
    noise[~known] = 0
    calmed, colours = calm_light_and_colours(noise, [noise], known)
    assert (calmed[~known] == 0).all()
    assert calmed[known].std() < 0.25
    assert abs(calmed[known].mean() - noise[known].mean()) < 0.02
    assert colours[0][known].std() < 0.1


def test_stars_stand_out_by_what_a_filter_of_their_shape_gives():
    rng = np.random.default_rng(3)
    yy, xx = np.mgrid[:300, :300]
    for fwhm, tolerance in ((2.0, 0.2), (3.0, 0.3), (4.5, 0.3)):
        sigma = fwhm / 2.355
        plane = rng.normal(0, 1, (300, 300))
        flux = 30.0 * np.sqrt(4 * np.pi) * sigma
        for y in range(30, 300, 40):
            for x in range(30, 300, 40):
                plane += (
                    flux / (2 * np.pi * sigma**2) * np.exp(-((yy - y) ** 2 + (xx - x) ** 2) / (2 * sigma**2))
                )
        plane, known = plane.astype(np.float32), np.ones(plane.shape, np.float32)
        found = standing_out(plane, known, finest_scale(plane, known))
        at = found[30:300:40, 30:300:40]
        assert np.median(at) == pytest.approx(30.0, rel=tolerance)
        assert np.percentile(found[:12], 99) < 5


def test_filling_leaves_what_counts_alone_and_is_smooth_elsewhere():
    plane = np.full((80, 80), 7.0, np.float32)
    plane[30:45, 30:45] = 500.0
    use = np.ones_like(plane)
    use[30:45, 30:45] = 0
    np.testing.assert_allclose(fill_from_around(plane, use), 7.0, rtol=1e-5)
    assert (fill_from_around(plane, np.zeros_like(plane)) == 0).all()


def test_noise_of_few_frames_of_sums_and_of_smaller_pictures():
    sigma = np.array([[3.0, 3.0, 1.5], [3.0, np.nan, 1.5]], np.float32)
    noise = NoiseMap(np.stack([sigma, sigma / 2, sigma]), 16.0)
    half = noise.reduced(2)
    assert half.cell_px == 8.0
    of_light = half.of_sum((1 / 3,) * 3, (16, 24))
    assert of_light.shape == (1, 2)
    assert of_light[0, 1] == pytest.approx(np.sqrt(1.5**2 + 1.5**2 + 0.75**2) / 6)
    assert np.isnan(noise.of_sum((1.0, 0.0, 0.0), (32, 48))[1, 1])
    assert resample_cells(np.array([[1.0, 2.0]]), 16.0, (16, 32)).tolist() == [[1.0, 2.0]]


def test_the_grain_beside_a_star_is_not_shown_as_part_of_it():
    rng = np.random.default_rng(6)
    noise = gaussian_filter(rng.normal(0, 1, (300, 300)), 0.7)
    noise /= noise.std()
    yy, xx = np.mgrid[:300, :300]
    clean, distance = np.zeros((300, 300)), np.full((300, 300), 99.0)
    for y, x in rng.uniform(-0.5, 0.5, (36, 2)) + np.argwhere(np.ones((6, 6))) * 44 + 36:
        r = np.hypot(yy - y, xx - x)
        clean += rng.uniform(8, 20) * np.exp(-(r**2) / 4.4)
        distance = np.minimum(distance, r)
    image = (clean + noise).astype(np.float32)
    cells = np.ones((19, 19), np.float32)
    calmed, _ = calm_light_and_colours(image, [], np.ones(image.shape, bool), cells)
    core, beside, sky = distance < 3.5, (distance > 5) & (distance < 8), distance > 16
    off = calmed - clean
    grain = np.abs(np.diff(off, axis=0, append=0))
    assert calmed[core].sum() == pytest.approx(image[core].sum(), rel=0.04)
    assert off[distance < 1].std() < 1.3
    assert off[sky].std() < 0.25
    assert grain[beside].mean() < 1.8 * grain[sky].mean()
