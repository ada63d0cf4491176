"""The pedestal of a camera from how the noise of its sky grows with the light (photon transfer). Arrays only.

The variance of a pixel is ``K (m - P)`` plus that of reading, with the same K and pedestal P for all colours of one
sensor (Janesick 2007). A line through variance against level therefore ends at P, less the read noise squared over K:
the darkest that the light can have been. Hours with different skies give the line its length; colours too, as far as
their noise is measured alike.
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
_ROUNDS = 4
_TRIALS = 400
# No variance is better than this: cells hold stars, and their sky is a median of whole numbers. And as much may the
# colours differ in how their noise is measured.
_LEAST_SCATTER, _COLOUR_SCATTER = 0.01, 0.02
_HUBER = 1.5
# Variances that scatter more than this about the law do not follow it.
_WORST_SCATTER = 0.06


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


def pedestal_of_sky(
    mesh: NDArray[np.floating],
    error: NDArray[np.floating],
    sky: Array,
    pixel_noise: Array,
    group: NDArray[np.int64],
) -> Pedestal:
    """Find the pedestal from level and noise of mesh cells, or guess it.

    Parameters
    ----------
    mesh, error : ndarray, shape (N, C, ny, nx), float32 or float64
        Sky per cell and its standard error, ADU. NaN, or an error of 0: unknown.
    sky, pixel_noise : ndarray, shape (N, C), float64
        Sky and noise of a pixel of the frames, ADU. The noise tells how many pixels a cell of each channel has.
    group : ndarray, shape (N,), int64
        Frames of one group stand for one measurement per channel: what they get wrong they get wrong together.

    Returns
    -------
    Pedestal
        Guessed where the line is too short or too loose. Any guess moves the sky model by less than half an ADU: what
        is additive ends in the levels and constant patterns.
    """
    lowest = np.nanmin(np.where(np.isfinite(sky), sky, np.inf), axis=0)
    lowest = np.where(np.isfinite(lowest), np.maximum(lowest, 0.0), 0.0)
    guess = Pedestal(_GUESS * lowest, _GUESS_SIGMA * lowest, False)
    level, variance, channel = _points(mesh, error, pixel_noise, group)
    darkest = float(min(lowest.min(), level.min(initial=np.inf)))
    if len(level) < _LEAST_POINTS or not darkest > 0:
        return guess
    place, sigma, scatter = _end_of_line(level, variance, channel, darkest)
    if not (sigma < _GUESS_SIGMA * darkest and scatter < _WORST_SCATTER):
        return guess
    return Pedestal(np.full(len(lowest), place), np.full(len(lowest), sigma), True)


def _points(
    mesh: NDArray[np.floating], error: NDArray[np.floating], pixel_noise: Array, group: NDArray[np.int64]
) -> tuple[Array, Array, NDArray[np.int64]]:
    """Return typical level and variance of a pixel per group and channel, and the channel."""
    known = np.isfinite(mesh) & np.isfinite(error) & (error > 0)
    points = []
    for c in range(mesh.shape[1]):
        if not known[:, c].any():
            continue
        # The frames hold these numbers as float32.
        squared = np.where(known[:, c], error[:, c].astype(np.float64) ** 2, np.nan)
        pixels = pixel_noise[:, c] ** 2 / np.nanmedian(squared, axis=(1, 2))
        pixels = pixels[np.isfinite(pixels) & (pixels > 0)]
        if not len(pixels):
            continue
        for label in np.unique(group):
            rows = group == label
            use = known[rows, c]
            if use.any():
                value = np.median(pixels) * np.median(squared[rows][use])
                points.append((np.median(mesh[rows, c][use].astype(np.float64)), value, c))
    table = np.array(points, dtype=np.float64).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2].astype(np.int64)


def _end_of_line(
    level: Array, variance: Array, channel: NDArray[np.int64], darkest: float
) -> tuple[float, float, float]:
    """Return mean and scatter of the likely pedestals in ``ln variance = ln K + own of colour + ln(m - P)``.

    The third number is the scatter of the variances about it.

    Robust; every pedestal from 0 to the darkest sky is tried.
    """
    trial = np.linspace(0.0, 0.99 * darkest, _TRIALS)
    wanted = np.log(variance)[None, :] - np.log(level[None, :] - trial[:, None])
    colours = (channel[:, None] == np.unique(channel)).astype(np.float64)
    design = np.column_stack([np.ones(len(level)), colours])
    pull = np.diag([0.0, *np.full(colours.shape[1], 1.0 / _COLOUR_SCATTER**2)])
    weight, scatter, best = np.ones(len(level)), _COLOUR_SCATTER, 0
    for _ in range(_ROUNDS):
        weighted = design * (weight / scatter**2)[:, None]
        fit = wanted @ weighted @ np.linalg.inv(design.T @ weighted + pull)
        left = wanted - fit @ design.T
        loss = ((weight * left**2).sum(axis=1) / scatter**2 + ((fit @ pull) * fit).sum(axis=1)) / 2
        best = int(np.argmin(loss))
        scatter = max(1.4826 * float(np.median(np.abs(left[best]))), _LEAST_SCATTER)
        weight = np.minimum(1.0, _HUBER * scatter / np.maximum(np.abs(left[best]), 1e-12))
    likely = np.exp(-(loss - loss[best]))
    likely /= likely.sum()
    mean = float(likely @ trial)
    return mean, float(np.sqrt(likely @ (trial - mean) ** 2)), scatter
