"""Possible nights, and what the levels of frames say of slopes among them."""

from __future__ import annotations

import numpy as np

from zemosaic_core.glow_nights import N_NIGHTS, PossibleNights, possible_nights
from zemosaic_core.glow_prior import PROBE_UV, FrameCircumstances, GlowPrior, LocalSky
from zemosaic_core.night_sky import airmass
from zemosaic_core.synthetic_glow import Glow, glow_adu

# Half a frame, degrees, across and up.
HALF_DEG = np.array([0.7, 1.2])
NO_MOON = (-30.0, 0.0, 90.0)


def looking(n: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Altitude and azimuth (n, 5) in degrees of a target that sinks for two hours, and the hours."""
    hours = np.linspace(0.0, 2.0, n)
    altitude = 58.0 - 9.0 * hours[:, None] + HALF_DEG[1] * PROBE_UV[:, 1]
    azimuth = 200.0 + 18.0 * hours[:, None] + HALF_DEG[0] * PROBE_UV[:, 0] / np.cos(np.radians(altitude))
    return altitude, azimuth, hours


def local_sky(altitude: np.ndarray, azimuth: np.ndarray, moonlight: np.ndarray | None = None) -> LocalSky:
    a, z = np.radians(altitude), np.radians(azimuth)
    direction = np.stack([np.cos(a) * np.cos(z), np.cos(a) * np.sin(z), np.sin(a)], axis=-1)
    return LocalSky(direction, airmass(altitude), np.zeros_like(a) if moonlight is None else moonlight)


def drawn(
    night: np.ndarray, order: np.ndarray | None = None, moonlight: np.ndarray | None = None
) -> PossibleNights:
    altitude, azimuth, hours = looking(len(night))
    local = local_sky(altitude, azimuth, moonlight)
    rows = np.arange(len(night)) if order is None else order
    return possible_nights(
        local.direction[rows], local.airmass[rows], local.moonlight[rows], hours[rows], night[rows]
    )


def test_nights_shine_and_their_mean_light_is_one():
    light = drawn(np.zeros(12, np.int64)).drawn
    assert light.shape == (N_NIGHTS, 12, 5)
    assert light.min() > 0.0
    np.testing.assert_allclose(light.mean(axis=(1, 2)), 1.0)
    # Towards the horizon it is brighter in nearly every night, towards the east as often as towards the west.
    brighter_below = (light[:, :, 4] > light[:, :, 3]).mean()
    assert brighter_below > 0.9
    assert abs((light[:, 0, 1] > light[:, 0, 2]).mean() - 0.5) < 0.1


def test_order_of_frames_and_numbers_of_nights_do_not_matter():
    night = np.repeat([0, 1], 6)
    order = np.random.default_rng(3).permutation(12)
    light = drawn(night).drawn
    np.testing.assert_allclose(drawn(night, order).drawn, light[:, order])
    np.testing.assert_array_equal(drawn(7 + 2 * night).drawn, light)
    assert np.abs(drawn(np.zeros(12, np.int64)).drawn - light).max() > 0.1


def test_amounts_of_light_have_the_mean_and_scatter_of_the_nights_drawn():
    nights = drawn(np.zeros(12, np.int64))
    usual = (nights.usual[:, None] @ nights.kinds.reshape(N_NIGHTS, nights.usual.shape[1], -1))[:, 0]
    # The mean over all places is 1, in each draw and so in their mean.
    np.testing.assert_allclose(usual.mean(axis=1), 1.0)
    away = nights.drawn.reshape(N_NIGHTS, -1) - usual
    found = np.einsum("kp,kp->p", away, away) / N_NIGHTS
    columns = nights.kinds.reshape(N_NIGHTS, nights.usual.shape[1], -1).transpose(0, 2, 1) @ nights.root
    np.testing.assert_allclose(found, np.einsum("kpj,kpj->p", columns, columns) / N_NIGHTS, rtol=0.3)
    np.testing.assert_allclose(nights.between_dates, 0.0, atol=1e-12)
    two = drawn(np.repeat([0, 1], 6))
    assert two.between_dates.std() > 0.05


def test_the_moon_shines_where_it_is_up():
    moonlight = np.zeros((12, 5))
    moonlight[6:] = 1.0
    night = np.zeros(12, np.int64)
    with_moon, without = (drawn(night, moonlight=m).drawn for m in (moonlight, None))
    ratio = (with_moon[:, 6:].mean(axis=(1, 2)) / with_moon[:, :6].mean(axis=(1, 2))) / (
        without[:, 6:].mean(axis=(1, 2)) / without[:, :6].mean(axis=(1, 2))
    )
    assert ratio.min() > 1.02


def test_the_levels_of_frames_tell_their_slopes():
    """A night's light falls off towards somewhere, and the target moves: its levels say how steeply."""
    altitude, azimuth, hours = looking()
    n, level_error, plane_error = len(hours), 0.005, 0.002
    prior = GlowPrior(
        FrameCircumstances(hours, np.zeros(n, np.int64), np.zeros(n, np.int64), local_sky(altitude, azimuth)),
        np.ones(n),
        1.0,
    )
    covariance = prior.covariance(prior.usual)
    levels, planes = np.arange(0, 3 * n, 3), np.setdiff1d(np.arange(3 * n), np.arange(0, 3 * n, 3))
    seen = covariance[np.ix_(levels, levels)] + level_error**2 * np.eye(n)
    gain = np.linalg.solve(seen, covariance[np.ix_(levels, planes)]).T
    open_ = covariance[np.ix_(planes, planes)] - gain @ covariance[np.ix_(levels, planes)]
    rng = np.random.default_rng(4)
    errors, slopes = [], []
    for _ in range(40):
        glow = Glow(
            airglow_adu=rng.uniform(60, 180),
            air_adu=rng.uniform(60, 250),
            dome_adu=rng.uniform(300, 3000),
            dome_azimuth_deg=rng.uniform(0, 360),
            dome_scale_deg=rng.uniform(15, 30),
        )
        light = np.stack(
            [glow_adu(glow, a, z, h, NO_MOON)[1] for a, z, h in zip(altitude, azimuth, hours, strict=True)]
        )
        light /= light.mean()
        true = 0.5 * np.stack([light[:, 1] - light[:, 2], light[:, 3] - light[:, 4]], axis=-1)
        measured = light[:, 0] * (1.0 + level_error * rng.standard_normal(n))
        found = (gain @ measured).reshape(n, 2)
        errors.append((found - true).mean(axis=0))
        slopes.append(true.mean(axis=0))
    mean = np.kron(np.ones((1, n)) / n, np.eye(2))
    stated = np.sqrt(np.diag(mean @ open_ @ mean.T))
    wrong, right = np.array(errors), np.array(slopes)
    assert np.sqrt((wrong**2).mean()) < 0.27 * np.sqrt((right**2).mean())
    assert (np.abs(wrong) < 2.0 * np.hypot(stated, plane_error)).mean() > 0.9
