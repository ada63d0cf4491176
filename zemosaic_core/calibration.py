"""Raw samples without what the sensor adds and the optics take: ``(raw - offset) / flat``. Arrays only.

The offset is the bias with the dark current of the exposure. It comes from darks of the same exposure, or from bias
frames and darks of another one: dark current grows in proportion to the time, the bias does not. The flat is the light
that an evenly lit surface leaves, each colour of the filter array relative to its own level in the middle of the
detector: the colour of the lamp says nothing, and stars in the middle keep their brightness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit

__all__ = [
    "Flat",
    "Offset",
    "bad_pixels_of_dark",
    "calibrated",
    "colour_levels",
    "flat_of_light",
    "kin_median",
    "level_saturated",
    "scaled_offset",
    "shared_sensor_places",
    "typical_variance",
]

# Share of the light in the middle below which a pixel sees nothing that could be put right.
_DARKEST_FLAT = 0.05
# Below this share of its neighbours of the same colour a pixel is dead.
_DEAD = 0.5
# A hot pixel is subtracted where that is sure: dark current changes by a third within some degrees, and three tenths
# of it left over must stay below three times the noise of a frame.
_HOT_SIGMA = 10.0
# Share of the pixels of a master of unknown noise that may be called bad.
_MOST_BAD = 0.005
# A pixel that scatters so much more than the others jumps between levels; its mean says little.
_UNSTEADY = 4.0
_MIN_FRAMES_FOR_SCATTER = 5
_MAD_TO_SIGMA = 1.4826


@dataclass(frozen=True)
class Offset:
    """What is subtracted from the raw samples.

    Attributes
    ----------
    value : ndarray, shape (H, W), float32
        ADU.
    variance : float
        Typical variance of `value`, ADU^2; 0 when it is not known.
    """

    value: np.ndarray
    variance: float


@dataclass(frozen=True)
class Flat:
    """What the raw samples are multiplied with.

    Attributes
    ----------
    inverse : ndarray, shape (H, W), float32
        1 in the middle of the detector; 1 for `dead` pixels too.
    relative_variance : float
        Typical variance of the flat relative to its square; 0 when it is not known.
    dead : ndarray, shape (k,), int64
        Flat indices of pixels that see much less light than their neighbours.
    """

    inverse: np.ndarray
    relative_variance: float
    dead: np.ndarray


@njit(cache=True, nogil=True)
def _calibrate(raw, offset, inverse, out):
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            # One rounding per step: no compiler may join them, whatever the machine.
            above = np.float32(raw[y, x]) - offset[y, x]
            out[y, x] = above * inverse[y, x]


def calibrated(raw: np.ndarray, offset: np.ndarray | None, inverse_flat: np.ndarray | None) -> np.ndarray:
    """Return ``(raw - offset) * inverse_flat`` in steps of float32.

    Parameters
    ----------
    raw : ndarray, shape (h, w), uint16 or float32
    offset, inverse_flat : ndarray, shape (h, w), float32, or None
        The same window; None: nothing is subtracted, or nothing multiplied.

    Returns
    -------
    ndarray, shape (h, w), float32
        May be below zero; NaN where `raw` is.

    Raises
    ------
    ValueError
        When the shapes differ.
    """
    for plane in (offset, inverse_flat):
        if plane is not None and plane.shape != raw.shape:
            raise ValueError(f"calibration of shape {plane.shape} does not fit samples of shape {raw.shape}")
    out = np.empty(raw.shape, np.float32)
    nothing = np.broadcast_to(np.zeros(1, np.float32), raw.shape)
    one = np.broadcast_to(np.ones(1, np.float32), raw.shape)
    _calibrate(raw, nothing if offset is None else offset, one if inverse_flat is None else inverse_flat, out)
    return out


def scaled_offset(dark: Offset | None, bias: Offset | None, ratio: float) -> Offset | None:
    """Return the offset for an exposure that is `ratio` times that of the dark.

    Parameters
    ----------
    dark, bias : Offset or None
        ``bias + ratio * (dark - bias)`` needs both unless the ratio is 1; a bias alone is all there is.

    Raises
    ------
    ValueError
        When a dark of another exposure comes without bias.
    """
    if dark is None:
        return bias
    if ratio == 1.0:
        return dark
    if bias is None:
        raise ValueError(f"a dark of {1 / ratio:g} times the exposure cannot be scaled without its bias")
    scale = np.float32(ratio)
    return Offset(
        bias.value + scale * (dark.value - bias.value),
        ratio**2 * dark.variance + (1.0 - ratio) ** 2 * bias.variance,
    )


def _middle(shape_hw: tuple[int, int]) -> tuple[slice, slice]:
    """Half the height and half the width in the middle, from an even row and column."""
    first = [n // 8 * 2 for n in shape_hw]
    return slice(first[0], first[0] + -(-shape_hw[0] // 2)), slice(first[1], first[1] + -(-shape_hw[1] // 2))


def colour_levels(plane: np.ndarray, pattern: str | None) -> np.ndarray:
    """Return the level of each phase of the 2 x 2 raster in the middle of the detector; phases of one colour share it.

    Parameters
    ----------
    plane : ndarray, shape (H, W)
    pattern : str or None
        Colours of the phases, row by row; None: all are one.

    Returns
    -------
    ndarray, shape (2, 2), float64
    """
    middle = plane[_middle(plane.shape)]
    names = "LLLL" if pattern is None else pattern
    levels = np.empty(4)
    for colour in set(names):
        phases = [k for k in range(4) if names[k] == colour]
        values = np.concatenate([middle[k // 2 :: 2, k % 2 :: 2].ravel() for k in phases])
        levels[phases] = np.nanmedian(values) if np.isfinite(values).any() else np.nan
    return levels.reshape(2, 2)


def flat_of_light(light: np.ndarray, variance: np.ndarray | None, n_frames: int, pattern: str | None) -> Flat:
    """Make a flat of what an evenly lit surface left on the sensor.

    Parameters
    ----------
    light : ndarray, shape (H, W), float32
        Without bias and dark current; in any unit.
    variance : ndarray, shape (H, W), float32, or None
        Of `light`; None when it is not known.
    n_frames : int
        Frames behind it.
    pattern : str or None
        Colours of the 2 x 2 raster at pixel (0, 0); None for a mono camera.

    Raises
    ------
    ValueError
        When a colour holds no light.
    """
    levels = colour_levels(light, pattern)
    if not (levels > 0).all():
        raise ValueError(
            f"a flat whose levels are {levels.ravel().tolist()} ADU above its pedestal holds no light"
        )
    height, width = light.shape
    tiled = np.tile(levels, (-(-height // 2), -(-width // 2)))[:height, :width]
    relative = light / tiled
    with np.errstate(invalid="ignore"):
        dead = ~(relative > _DARKEST_FLAT) | ~(relative > _DEAD * kin_median(relative))
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(dead, 1.0, 1.0 / relative).astype(np.float32)
        noise = None if variance is None else variance / np.square(light, dtype=np.float64)
    return Flat(inverse, typical_variance(noise, n_frames), np.flatnonzero(dead).astype(np.int64))


def bad_pixels_of_dark(dark: np.ndarray, variance: np.ndarray | None, n_frames: int) -> np.ndarray:
    """Find pixels whose dark current is so strong or unsteady that subtracting it does not make them good.

    Parameters
    ----------
    dark : ndarray, shape (H, W), float32
        Mean of the darks, ADU.
    variance : ndarray, shape (H, W), float32, or None
        Of that mean; None when it is not known.
    n_frames : int
        Darks behind it.

    Returns
    -------
    ndarray, shape (k,), int64
        Flat indices, ascending: pixels more than ten times the noise of one frame above or below their neighbours, and
        with five darks or more those that scatter four times as much as is usual and as their neighbours.
    """
    excess = dark - kin_median(dark)
    size = np.abs(excess)
    usual = float(_MAD_TO_SIGMA * np.nanmedian(size))
    usual_variance = typical_variance(variance, n_frames)
    frame_noise = np.sqrt(usual_variance * n_frames)
    limit = _HOT_SIGMA * max(frame_noise, usual)
    if not frame_noise > 0:
        # The noise of one frame is larger than that of the master, nobody knows by how much.
        limit = max(limit, float(np.nanquantile(size, 1.0 - _MOST_BAD)))
    with np.errstate(invalid="ignore"):
        bad = size > limit
        if variance is not None and n_frames >= _MIN_FRAMES_FOR_SCATTER:
            # Where the amplifier glows all pixels scatter.
            bad |= variance > _UNSTEADY**2 * np.maximum(usual_variance, kin_median(variance))
    return np.flatnonzero(bad | ~np.isfinite(dark)).astype(np.int64)


def typical_variance(variance: np.ndarray | None, n_frames: int) -> float:
    """Return the variance that pixels usually have, from variances that a few frames tell each; 0 when nothing does.

    The middle one of variances estimated from n values is smaller than their mean; Wilson and Hilferty (1931, Proc.
    Natl. Acad. Sci. 17, 684) tell by how much.

    Parameters
    ----------
    variance : ndarray or None
        NaN where not known.
    n_frames : int
        Values behind each.
    """
    known = np.empty(0) if variance is None else variance[np.isfinite(variance)]
    if not known.size or n_frames < 2:
        return 0.0
    return float(np.median(known)) / (1.0 - 2.0 / (9.0 * (n_frames - 1))) ** 3


@njit(cache=True, nogil=True)
def _kin_median(plane, out):
    height, width = plane.shape
    values = np.empty(8, np.float32)
    for y in range(height):
        for x in range(width):
            n = 0
            for dy in (-2, 0, 2):
                for dx in (-2, 0, 2):
                    j, i = y + dy, x + dx
                    if (dy != 0 or dx != 0) and 0 <= j < height and 0 <= i < width:
                        v = plane[j, i]
                        if v == v:
                            k = n
                            while k > 0 and values[k - 1] > v:
                                values[k] = values[k - 1]
                                k -= 1
                            values[k] = v
                            n += 1
            out[y, x] = np.float32(0.5) * (values[(n - 1) // 2] + values[n // 2]) if n > 0 else plane[y, x]


def kin_median(plane: np.ndarray) -> np.ndarray:
    """Return for each pixel the median of its eight nearest neighbours in the same phase, fewer at the border.

    Parameters
    ----------
    plane : ndarray, shape (H, W)

    Returns
    -------
    ndarray, shape (H, W), float32
    """
    plane = np.ascontiguousarray(plane, np.float32)
    out = np.empty_like(plane)
    _kin_median(plane, out)
    return out


def level_saturated(samples: np.ndarray, raw: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return calibrated samples in which all saturated ones of a phase are as bright as the brightest of them.

    Dark current and flat make many values of the one at which a sensor is full, which hides that it was full.

    Parameters
    ----------
    samples : ndarray, shape (H, W), float32
    raw : ndarray, shape (H, W)
        The samples as they were read.
    levels : ndarray, shape (4,)
        Raw value from which each phase of the 2 x 2 raster is saturated.
    """
    out = samples.copy()
    for k in range(4):
        phase = (slice(k // 2, None, 2), slice(k % 2, None, 2))
        full = raw[phase] >= levels[k]
        if full.any():
            out[phase][full] = samples[phase][full].max()
    return out


def shared_sensor_places(places: Sequence[np.ndarray], weights: np.ndarray, reach_px: float) -> float:
    """Return how much of the masters' noise the frames of a stack have in common, from 0 to 1.

    Frames that were not moved against each other see each star through the same pixels: what the masters get wrong
    there is the same in all of them and does not become less with their number, nor does it show in their scatter.

    Parameters
    ----------
    places : sequence of ndarray, shape (N, 2)
        Where several points of the sensor lie in the mosaic, px, one array per point.
    weights : ndarray, shape (N,)
    reach_px : float
        Frames whose points all lie closer than this see through the same pixels.

    Returns
    -------
    float
        Weighted share of the pairs of frames that do.
    """
    weights = np.asarray(weights, np.float64)
    total = float(weights.sum() ** 2 - (weights**2).sum())
    if not total > 0:
        return 0.0
    order = np.argsort(places[0][:, 0], kind="stable")
    points = np.stack(places, axis=1)[order]
    weights = weights[order]
    x = points[:, 0, 0]
    shared = 0.0
    last = np.searchsorted(x, x + reach_px, side="right")
    for i in range(len(x)):
        near = slice(i + 1, int(last[i]))
        close = (np.hypot(*np.moveaxis(points[near] - points[i], -1, 0)) < reach_px).all(axis=1)
        shared += 2.0 * float(weights[i] * weights[near][close].sum())
    return shared / total
