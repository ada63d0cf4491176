"""The pedestal from the noise of the sky, on meshes whose pedestal is known."""

from __future__ import annotations

import numpy as np
import pytest

from zemosaic_core.photon_transfer import pedestal_of_sky

PEDESTAL = 400.0


def meshes(seed: int, skies: list[float], *, scatter: float = 0.03, outlier: float = 1.0):
    """Six frames of 40 cells per sky; red and blue get 0.7 and 0.6 of the light of green."""
    rng = np.random.default_rng(seed)
    light = np.repeat(skies, 6)[:, None] * np.array([0.7, 1.0, 0.6])
    level = PEDESTAL + light[..., None, None] * rng.normal(1.0, 0.004, (len(light), 3, 8, 5))
    variance = 14.0 * (level - PEDESTAL) * rng.normal(1.0, scatter, level.shape) ** 2
    variance[:6, 0] *= outlier
    # Green has twice the pixels.
    pixels = 900.0 * np.array([1.0, 2.0, 1.0])[:, None, None]
    error = np.sqrt(variance / pixels)
    noise = np.sqrt(np.median(variance, axis=(2, 3)))
    return level, error, np.median(level, axis=(2, 3)), noise, np.repeat(np.arange(len(skies)), 6)


@pytest.mark.parametrize("outlier", [1.0, 1.5])
def test_the_line_ends_at_the_pedestal(outlier):
    errors, claims = [], []
    for seed in range(10):
        found = pedestal_of_sky(*meshes(seed, [300.0, 420.0, 700.0], outlier=outlier))
        assert found.measured
        errors.append(found.level_adu[1] - PEDESTAL)
        claims.append(found.sigma_adu[1])
    assert np.abs(errors).max() < 60.0
    assert np.mean(np.abs(errors) < 2 * np.array(claims)) >= 0.9


def test_one_brightness_of_the_sky_tells_nothing():
    level, error, sky, noise, group = meshes(1, [300.0, 303.0, 305.0])
    found = pedestal_of_sky(level[:, :1], error[:, :1], sky[:, :1], noise[:, :1], group)
    assert not found.measured
    np.testing.assert_allclose(found.level_adu, 0.3 * sky[:, 0].min())
    np.testing.assert_allclose(found.sigma_adu, 0.15 * sky[:, 0].min())


def test_noise_that_does_not_grow_with_light_tells_nothing():
    level, error, sky, noise, group = meshes(2, [300.0, 420.0, 700.0])
    assert not pedestal_of_sky(level, np.ones_like(error), sky, noise, group).measured
    assert not pedestal_of_sky(level, np.full_like(error, np.nan), sky, noise, group).measured
