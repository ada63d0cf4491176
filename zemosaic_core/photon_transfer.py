"""The pedestal of a camera from how the noise of its sky grows with the light (photon transfer). Arrays only.

The variance of a pixel is ``K (m - P)`` plus that of reading, with the same K and pedestal P for all colours of one
sensor (Janesick 2007). A line through variance against level therefore ends at P, less the read noise squared over K:
the darkest that the light can have been. Colours and hours with different skies give the line its length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Pedestal", "pedestal_of_sky"]

Array = NDArray[np.float64]

# When nothing tells the pedestal: this share of the lowest sky, give or take half of it.
_GUESS, _GUESS_SIGMA = 0.3, 0.15
_LEAST_POINTS = 6
_ROUNDS = 8
# No line is better than this share of its values: cells hold stars, and their sky is a median of whole numbers.
_LEAST_SCATTER = 0.005
_HUBER = 1.5


@dataclass(frozen=True)
class Pedestal:
    """What the sensor reads without light.

    Attributes
    ----------
    level_adu, sigma_adu : ndarray, shape (C,), float64
        Pedestal per channel and its standard error.
    measured : bool
        From the noise; False: guessed from the lowest sky.
    """

    level_adu: Array
    sigma_adu: Array
    measured: bool


def pedestal_of_sky(mesh: Array, error: Array, sky: Array, group: NDArray[np.int64]) -> Pedestal:
    """Find the pedestal from level and noise of mesh cells, or guess it.

    Parameters
    ----------
    mesh, error : ndarray, shape (N, C, ny, nx), float64
        Sky per cell and its standard error, ADU; only ratios of errors matter. NaN, or an error of 0: unknown.
    sky : ndarray, shape (N, C), float64
        Sky of the frames, ADU.
    group : ndarray, shape (N,), int64
        Frames of one group stand for one measurement per channel: what they get wrong they get wrong together.

    Returns
    -------
    Pedestal
        Guessed where the line is too short, too loose, or ends outside 0 .. the lowest sky. Any guess moves the sky
        model by less than half an ADU: what is additive ends in the levels and constant patterns.
    """
    lowest = np.nanmin(np.where(np.isfinite(sky), sky, np.inf), axis=0)
    lowest = np.where(np.isfinite(lowest), np.maximum(lowest, 0.0), 0.0)
    guess = Pedestal(_GUESS * lowest, _GUESS_SIGMA * lowest, False)
    level, variance = _points(mesh, error, group)
    if len(level) < _LEAST_POINTS:
        return guess
    found = _end_of_line(level, variance)
    if found is None:
        return guess
    place, sigma = found
    darkest = float(lowest.min())
    if not (0.0 <= place < darkest and sigma < _GUESS_SIGMA * darkest):
        return guess
    return Pedestal(np.full(len(lowest), place), np.full(len(lowest), sigma), True)


def _points(mesh: Array, error: Array, group: NDArray[np.int64]) -> tuple[Array, Array]:
    """Return typical level and variance per group and channel."""
    known = np.isfinite(mesh) & np.isfinite(error) & (error > 0)
    points = []
    for label in np.unique(group):
        rows = group == label
        for c in range(mesh.shape[1]):
            use = known[rows, c]
            if use.any():
                points.append((np.median(mesh[rows, c][use]), np.median(error[rows, c][use] ** 2)))
    level, variance = np.array(points, dtype=np.float64).reshape(-1, 2).T
    return level, variance


def _end_of_line(level: Array, variance: Array) -> tuple[float, float] | None:
    """Return where a line through the variances meets zero, and the standard error of that; None without a slope."""
    design = np.column_stack([np.ones(len(level)), level])
    expected, weight = variance.copy(), np.ones(len(level))
    for _ in range(_ROUNDS):
        root = np.sqrt(weight) / expected
        fit = np.linalg.lstsq(design * root[:, None], variance * root, rcond=None)[0]
        if not fit[1] > 0 or not (design @ fit > 0).all():
            return None
        expected = design @ fit
        left = (variance - expected) / expected
        scatter = max(1.4826 * float(np.median(np.abs(left))), _LEAST_SCATTER)
        weight = np.minimum(1.0, _HUBER * scatter / np.maximum(np.abs(left), 1e-12))
    root = np.sqrt(weight) / expected
    spread = max(float((weight * left**2).sum() / max(len(level) - 2, 1)) ** 0.5, _LEAST_SCATTER)
    information = (design * root[:, None]).T @ (design * root[:, None])
    if not np.linalg.cond(information / np.sqrt(np.outer(np.diag(information), np.diag(information)))) < 1e8:
        return None
    covariance = spread**2 * np.linalg.inv(information)
    place = float(-fit[0] / fit[1])
    toward = np.array([-1.0, -place]) / fit[1]
    return place, float(np.sqrt(toward @ covariance @ toward))
