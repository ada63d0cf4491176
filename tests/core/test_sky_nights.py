"""Nights weighed one by one, against Gaussians written out in full."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from tests.core.test_glow_nights import local_sky, looking
from zemosaic_core import glow_nights
from zemosaic_core.glow_prior import FrameCircumstances, GlowPrior
from zemosaic_core.sky_joint import Reduced, full_covariance, posterior_of
from zemosaic_core.sky_nights import posterior_of_nights

PATTERNS = np.diag([40.0, 30.0, 20.0, 20.0])


def reduced_of(normal: np.ndarray, right: np.ndarray) -> Reduced:
    none = np.zeros((0, 0))
    return Reduced(normal, right, 0.0, None, none, none, none, np.zeros(0))  # type: ignore[arg-type]


@pytest.mark.parametrize("dates", [1, 2])
def test_mixture_is_that_of_dense_gaussians(dates: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(glow_nights, "N_NIGHTS", 24)
    altitude, azimuth, hours = looking(6)
    rng = np.random.default_rng(8)
    night = np.arange(6) // (6 // dates)
    gains = rng.uniform(0.9, 1.2, 6)
    circumstances = FrameCircumstances(hours, night, night, local_sky(altitude, azimuth))
    prior = GlowPrior(circumstances, gains, 400.0)
    nights = prior.nights()
    assert nights is not None
    # The frames measure mixtures of all unknowns with errors of a few ADU: as many as there are, so that dense
    # formulas apply.
    mixing = rng.standard_normal((22, 22))
    normal = mixing.T @ mixing / 9.0
    truth = np.concatenate([400.0 * nights.usual[5] @ nights.kinds[5], np.zeros(4)])
    right = normal @ (truth + rng.multivariate_normal(np.zeros(22), np.linalg.inv(normal)))
    reduced = reduced_of(normal, right)
    broad = posterior_of(reduced, prior, prior.usual, PATTERNS)
    found = posterior_of_nights(reduced, prior, nights, prior.usual, PATTERNS, broad)

    scatter = full_covariance(prior, prior.usual, PATTERNS, nights.beside)
    seen, noise = np.linalg.solve(normal, right), np.linalg.inv(normal)
    shares, means, covariances = [], [], []
    for kinds, usual, root in zip(nights.kinds, nights.usual, nights.root, strict=True):
        expected = np.concatenate([400.0 * usual @ kinds, np.zeros(4)])
        columns = np.vstack([400.0 * kinds.T @ root, np.zeros((4, root.shape[1]))])
        before = scatter + columns @ columns.T
        shares.append(multivariate_normal.logpdf(seen, expected, before + noise, allow_singular=True))
        gain = before @ np.linalg.inv(before + noise)
        means.append(expected + gain @ (seen - expected))
        covariances.append(before - gain @ before)
    whole = full_covariance(prior, prior.usual, PATTERNS)
    # As likely beforehand as all nights together.
    shares.append(np.log(len(nights.kinds)) + multivariate_normal.logpdf(seen, np.zeros(22), whole + noise))
    means.append(broad.unknowns)
    covariances.append(broad.covariance)
    share = np.exp(np.array(shares) - max(shares))
    share /= share.sum()
    assert share[:-1].sum() > 0.5
    mean = share @ np.array(means)
    away = np.array(means) - mean
    covariance = np.einsum("k,kij->ij", share, np.array(covariances)) + (share * away.T) @ away
    error = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose((found.unknowns - mean) / error, 0.0, atol=1e-3)
    np.testing.assert_allclose(
        found.covariance / np.outer(error, error), covariance / np.outer(error, error), atol=2e-3
    )


def test_light_that_no_night_has_is_left_to_the_gaussian():
    altitude, azimuth, hours = looking(6)
    same = np.zeros(6, np.int64)
    prior = GlowPrior(FrameCircumstances(hours, same, same, local_sky(altitude, azimuth)), np.ones(6), 400.0)
    nights = prior.nights()
    assert nights is not None
    # A night that is dark where all of those that were drawn shine.
    upside_down = replace(nights, usual=-nights.usual)
    truth = np.concatenate([400.0 * nights.usual[5] @ nights.kinds[5], np.zeros(4)])
    normal = np.eye(22) / 9.0
    reduced = reduced_of(normal, normal @ truth)
    sizes = prior.least
    broad = posterior_of(reduced, prior, sizes, PATTERNS)
    found = posterior_of_nights(reduced, prior, upside_down, sizes, PATTERNS, broad)
    np.testing.assert_allclose(found.unknowns, broad.unknowns, atol=1e-6)
    np.testing.assert_allclose(found.covariance, broad.covariance, atol=1e-6)
    believed = posterior_of_nights(reduced, prior, nights, sizes, PATTERNS, broad)
    assert np.abs(believed.unknowns - broad.unknowns).max() > 0.01


def test_directions_that_are_not_known_have_no_nights():
    hours = np.linspace(0.0, 1.0, 4)
    same = np.zeros(4, np.int64)
    assert GlowPrior(FrameCircumstances(hours, same, same, None), np.ones(4), 300.0).nights() is None
