from __future__ import annotations

import numpy as np
import pytest

from zemosaic_core.picture_noise import calm, pixel_noise
from zemosaic_core.picture_smoothing import smooth_known


def slow_smooth(plane, known, spacing):
    taps = {-2: 1 / 16, -1: 4 / 16, 0: 6 / 16, 1: 4 / 16, 2: 1 / 16}
    height, width = plane.shape
    padded = [np.pad(a, 2 * spacing, mode="reflect") for a in (plane.astype(float), known.astype(float))]
    sums = [np.zeros(plane.shape), np.zeros(plane.shape)]
    for j, a in taps.items():
        for i, b in taps.items():
            y, x = (2 + j) * spacing, (2 + i) * spacing
            for total, source in zip(sums, padded, strict=True):
                total += a * b * source[y : y + height, x : x + width]
    return np.where(known > 0, sums[0] / np.maximum(sums[1], 1e-3), 0.0)


@pytest.mark.parametrize("spacing", [1, 2, 4])
def test_smoothing_agrees_with_a_slow_twin_and_leaves_missing_pixels_out(spacing):
    rng = np.random.default_rng(1)
    known = (rng.random((40, 53)) > 0.2).astype(np.float32)
    plane = (rng.normal(5, 2, known.shape) * known).astype(np.float32)
    np.testing.assert_allclose(
        smooth_known(plane, known, spacing), slow_smooth(plane, known, spacing), rtol=2e-5, atol=1e-5
    )
    flat = smooth_known(np.float32(3.0) * known, known, spacing)
    np.testing.assert_allclose(flat, 3.0 * known, rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (3, 2), (17, 5)])
def test_images_smaller_than_the_taps(shape):
    ones = np.ones(shape, np.float32)
    for spacing in (1, 8):
        np.testing.assert_allclose(smooth_known(ones, ones, spacing), 1.0, rtol=1e-6)
    np.testing.assert_allclose(calm(2 * ones, ones, (3.0, 3.0), 0.2), 2.0, rtol=1e-6)


def test_noise_is_that_of_a_pixel_whatever_shines_beneath():
    rng = np.random.default_rng(2)
    yy, xx = np.mgrid[:300, :400]
    nebula = 4000.0 * np.exp(-((yy - 150) ** 2 + (xx - 200) ** 2) / 2e4)
    plane = (nebula + rng.normal(0, 20, nebula.shape)).astype(np.float32)
    known = np.ones(plane.shape, np.float32)
    known[:100, :100] = 0
    plane[known == 0] = 0
    assert pixel_noise(plane, known) == pytest.approx(20.0, rel=0.06)
    assert pixel_noise(np.zeros((5, 5), np.float32), np.zeros((5, 5), np.float32)) == 0.0


def test_noise_goes_where_it_is_and_stars_stay():
    rng = np.random.default_rng(3)
    yy, xx = np.mgrid[:200, :260]
    clean = sum(
        height * np.exp(-((yy - y) ** 2 + (xx - x) ** 2) / 6.0)
        for y, x, height in ((50, 60, 5000.0), (120, 60, 500.0), (60, 200, 3000.0))
    )
    noise = np.where(xx < 160, 10.0, 40.0)  # as at a rim that fewer frames reach
    plane = (clean + noise * rng.normal(size=clean.shape)).astype(np.float32)
    known = np.ones(plane.shape, np.float32)
    known[:, 250:] = 0
    plane[known == 0] = 0
    result = calm(plane, known, (3.5, 3.5, 3.0, 2.5), 0.15, bright_scales=2)
    assert (result[:, 250:] == 0).all()
    for rows, columns in ((slice(140, 200), slice(90, 150)), (slice(100, 200), slice(180, 245))):
        before, after = float(plane[rows, columns].std()), result[rows, columns].std()
        assert after < 0.35 * before
        # Sums stay: what is taken from one pixel is not given to the sky.
        assert result[rows, columns].mean() == pytest.approx(plane[rows, columns].mean(), abs=0.1 * before)
    for y, x in ((50, 60), (120, 60), (60, 200)):
        assert result[y, x] == pytest.approx(clean[y, x], abs=3.5 * noise[y, x])
        ring = np.hypot(yy - y, xx - x)
        ring = (ring > 7) & (ring < 12)
        assert abs(result[ring].mean()) < 0.5 * noise[y, x]


def test_share_of_noise_kept():
    rng = np.random.default_rng(4)
    plane = rng.normal(0, 1, (128, 128)).astype(np.float32)
    known = np.ones_like(plane)
    everything = calm(plane, known, (3.0, 3.0, 3.0), 1.0)
    np.testing.assert_allclose(everything, plane, atol=1e-5)
    some, none = (calm(plane, known, (4.5, 4.5, 4.5), keep).std() for keep in (0.3, 0.0))
    assert none < 0.1
    assert none + 0.15 < some < 0.4
