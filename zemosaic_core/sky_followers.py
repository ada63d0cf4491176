"""Frames beyond those that are solved jointly: their glow against the sky that the others found. Arrays only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["fit_to_sky"]

Array = NDArray[np.float64]

_MIN_CELLS = 6
_HUBER_SIGMA = 2.0


def fit_to_sky(
    difference: Array,
    sigma: Array,
    basis: Array,
    sizes_adu: Array,
    patterns: Array,
    relative_light: Array,
    found: Array,
) -> tuple[Array, Array, Array]:
    """Fit level, plane and perhaps curvature of frames to a known sky; robust, all frames at once.

    Parameters
    ----------
    difference, sigma : ndarray, shape (R, K)
        Cells of R frames less that sky, and their errors; NaN where either is not known.
    basis, patterns : ndarray, shape (K, B) and (K, 2)
        B is 3, or 6 with curvature.
    sizes_adu : ndarray, shape (B,)
        How large each term usually is; 0 where it may be anything.
    relative_light : ndarray, shape (R,)
        Light of the frames over that of those the sky was found from.
    found : ndarray, shape (2, 2)
        Detector patterns that belong to that sky.

    Returns
    -------
    glow : ndarray, shape (R, 3)
        Zeros for a frame with too few cells on that sky.
    curvature : ndarray, shape (R, 3)
        Zeros for such a frame, and where curvature is not fitted.
    rms : ndarray, shape (R,)
        NaN for such a frame.
    """
    target = difference - np.outer(relative_light, patterns @ found[0]) - patterns @ found[1]
    good = np.isfinite(target) & np.isfinite(sigma)
    enough = good.sum(axis=1) >= _MIN_CELLS
    target = np.where(good, target, 0.0)
    noise_weight = np.where(good, 1.0 / np.where(good, sigma, 1.0) ** 2, 0.0)
    best_weight = np.maximum(noise_weight.max(axis=1, keepdims=True), 1e-300)
    noise_weight /= best_weight
    n_terms = basis.shape[1]
    usual = np.divide(1.0, sizes_adu**2, out=np.zeros(n_terms), where=sizes_adu > 0)
    weight, glow, left = noise_weight, np.zeros((len(target), n_terms)), target
    scatter = best_weight[:, 0] ** -0.5
    for _ in range(5):
        normal = np.einsum("rk,ki,kj->rij", weight, basis, basis, optimize=True) + 1e-9 * np.eye(n_terms)
        normal += (scatter**2)[:, None, None] * np.diag(usual)
        glow = np.linalg.solve(
            normal, np.einsum("rk,rk,ki->ri", weight, target, basis, optimize=True)[..., None]
        )[..., 0]
        left = target - glow @ basis.T
        scatter = np.ones(len(target))
        scatter[enough] = np.maximum(1.4826 * _medians(np.abs(left[enough]), good[enough]), 1e-9)
        reach = _HUBER_SIGMA * scatter[:, None]
        weight = noise_weight * np.minimum(1.0, reach / np.maximum(np.abs(left), 1e-12))
    count = np.maximum(good.sum(axis=1), 1)
    rms = np.sqrt((np.where(good, left, 0.0) ** 2).sum(axis=1) / count)
    glow = np.where(enough[:, None], glow, 0.0)
    curvature = glow[:, 3:] if n_terms > 3 else np.zeros((len(glow), 3))
    return glow[:, :3], curvature, np.where(enough, rms, np.nan)


def _medians(values: Array, good: NDArray[np.bool_]) -> Array:
    """Return the median of the good values in each row; each row has some."""
    ascending = np.sort(np.where(good, values, np.inf), axis=1)
    n = good.sum(axis=1)
    rows = np.arange(len(values))
    return np.asarray(0.5 * (ascending[rows, (n - 1) // 2] + ascending[rows, n // 2]))
