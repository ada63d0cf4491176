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
    error = np.sqrt(variance) / 40.0
    return level, error, np.median(level, axis=(2, 3)), np.repeat(np.arange(len(skies)), 6)


@pytest.mark.parametrize("outlier", [1.0, 1.5])
def test_the_line_ends_at_the_pedestal(outlier):
    errors, claims = [], []
    for seed in range(10):
        found = pedestal_of_sky(*meshes(seed, [300.0, 420.0, 700.0], outlier=outlier))
        assert found.measured
        errors.append(found.level_adu[1] - PEDESTAL)
        claims.append(found.sigma_adu[1])
    assert np.abs(errors).max() < 40.0
    assert np.mean(np.abs(errors) < 2 * np.array(claims)) >= 0.9


def test_one_brightness_of_the_sky_tells_nothing():
    level, error, sky, group = meshes(1, [300.0, 303.0, 305.0])
    found = pedestal_of_sky(level[:, :1], error[:, :1], sky[:, :1], group)
    assert not found.measured
    np.testing.assert_allclose(found.level_adu, 0.3 * sky.min())
    np.testing.assert_allclose(found.sigma_adu, 0.15 * sky.min())


def test_noise_that_does_not_grow_with_light_is_no_photon_noise():
    level, error, sky, group = meshes(2, [300.0, 420.0, 700.0])
    assert not pedestal_of_sky(level, np.ones_like(error), sky, group).measured
    assert not pedestal_of_sky(level, np.full_like(error, np.nan), sky, group).measured


def test_a_line_that_ends_above_the_lowest_sky_is_not_believed():
    level, error, sky, group = meshes(3, [300.0, 420.0, 700.0])
    steep = error * (level - PEDESTAL) ** 1.5
    assert not pedestal_of_sky(level, steep, sky, group).measured
