"""Pictures that were stacked elsewhere: their unit, their empty borders, coarser pixels, what each is worth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from zemosaic_core.missing_data import has_empty_border, zeros_to_nan

__all__ = [
    "FULL_SCALE",
    "StackWeights",
    "block_factor",
    "block_means",
    "counts_factor",
    "weights_of_stacks",
    "without_empty_border",
]

FULL_SCALE = 65535.0
# Floats of programs that work between 0 and 1; resampling lets single pixels reach a little beyond.
_UNIT_TOP = 1.0
_UNIT_OVERSHOOT = 1.5
# From so many source pixels per output pixel on they are averaged: a kernel as wide as the source would skip some.
_COARSER = 1.5
# Noise says what a stack is worth, but a stack whose noise was smoothed away says too much.
_TRUST = 4.0


def counts_factor(planes: np.ndarray) -> float:
    """Return what brings a picture to counts: 65535 when it is one between 0 and 1, else 1.

    Parameters
    ----------
    planes : ndarray, shape (C, h, w)
        NaN: missing. Whole numbers are counts.
    """
    if planes.dtype.kind != "f":
        return 1.0
    some = planes[:, ::4, ::4]
    finite = some[np.isfinite(some)]
    if not finite.size:
        return 1.0
    top, high = np.quantile(finite, 0.9999), finite.max()
    return FULL_SCALE if top <= _UNIT_TOP and high <= _UNIT_OVERSHOOT else 1.0


def without_empty_border(planes: np.ndarray) -> np.ndarray:
    """Return float32 planes (C, h, w) with an empty border, written as zero, as NaN; see `missing_data`."""
    planes = np.ascontiguousarray(planes, np.float32)
    if not has_empty_border(planes):
        return planes
    return zeros_to_nan(planes, (slice(0, planes.shape[1]), slice(0, planes.shape[2])))


def block_factor(source_scale: float, output_scale: float) -> int:
    """Return how many source pixels along each axis are averaged before a picture is sampled on a coarser grid.

    Parameters
    ----------
    source_scale, output_scale : float
        Size of a pixel, in one unit.
    """
    ratio = output_scale / source_scale
    return max(1, round(ratio)) if ratio >= _COARSER else 1


def block_means(window: np.ndarray, factor: int) -> np.ndarray:
    """Return means of blocks of ``factor`` x ``factor`` pixels; what is missing does not count.

    Parameters
    ----------
    window : ndarray, shape (C, h, w), float32
        Blocks begin at its first pixel; the last ones may be incomplete.

    Returns
    -------
    ndarray, shape (C, ceil(h / factor), ceil(w / factor)), float32
        NaN where less than half of a block is known.
    """
    if factor == 1:
        return window
    channels, height, width = window.shape
    rows, columns = -(-height // factor), -(-width // factor)
    padded = np.full((channels, rows * factor, columns * factor), np.nan, np.float32)
    padded[:, :height, :width] = window
    blocks = padded.reshape(channels, rows, factor, columns, factor)
    known = np.isfinite(blocks)
    count = known.sum(axis=(2, 4))
    total = np.where(known, blocks, 0.0).sum(axis=(2, 4), dtype=np.float64)
    enough = 2 * count >= factor * factor
    return np.where(enough, total / np.maximum(count, 1), np.nan).astype(np.float32)


@dataclass(frozen=True)
class StackWeights:
    """Weights (N,) of stacks in the unit of their noise weights, and whose noise was not believed, bool (N,)."""

    weights: np.ndarray
    held: np.ndarray


def weights_of_stacks(noise_weight: np.ndarray, exposure_s: np.ndarray) -> StackWeights:
    """Weigh stacks by their noise, held within a factor of 4 of what their exposures promise.

    Parameters
    ----------
    noise_weight : ndarray, shape (N,)
        Inverse variance of an output pixel, on one flux scale; NaN or not positive: unknown.
    exposure_s : ndarray, shape (N,)
        Seconds, or numbers of frames of one kind; NaN or not positive: unknown.

    Returns
    -------
    StackWeights
        Of stacks of which nothing is known the median of the others.
    """
    noise_weight, exposure_s = np.asarray(noise_weight, float), np.asarray(exposure_s, float)
    by_noise = np.where(np.isfinite(noise_weight) & (noise_weight > 0), noise_weight, np.nan)
    by_time = np.where(np.isfinite(exposure_s) & (exposure_s > 0), exposure_s, np.nan)
    both = np.isfinite(by_noise) & np.isfinite(by_time)
    weights, held = by_noise.copy(), np.zeros(len(by_noise), bool)
    if np.count_nonzero(both) > 1:
        rate = np.median(by_noise[both] / by_time[both])
        promised = by_time * rate
        bounded = np.clip(by_noise, promised / _TRUST, promised * _TRUST)
        held = both & (bounded != by_noise)
        weights = np.where(both, bounded, np.where(np.isfinite(by_noise), by_noise, promised))
    known = np.isfinite(weights)
    weights = np.where(known, weights, np.median(weights[known]) if known.any() else 1.0)
    return StackWeights(weights, held)
