"""Light that was cut off: from which value on, and how that travels with a sample. Arrays only.

A pixel at the ceiling of its sensor says only that there was at least so much light. Such a pixel, and a sample that
one of them decides, is a NaN that holds this lower bound: everything that averages, sorts or rejects leaves it out
like any missing sample, at no cost. Only where nothing else is left of a pixel of the co-add the highest of its
bounds is taken: then no other frame could have said more, and no frame's own ceiling stands out beside it.

The bound is a positive float32 without its nine lowest bits, in the lowest 22 bits of a NaN whose sign is set; it is
rounded down by less than 1 part in 16,000. NaN of other origin hold 0 there or what would be no finite number.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import lru_cache

import numpy as np
from numba import njit

__all__ = [
    "BOUND_MARK",
    "BOUND_SHIFT",
    "FIRST_BOUND",
    "LAST_BOUND",
    "bounds_of",
    "clip_levels",
    "mark_clipped_cfa",
    "mark_clipped_planes",
    "samples_below",
    "with_bounds",
]

# The NaN of bound 0, as int32; the bound's own bits, shifted, are added to it.
BOUND_MARK = -(1 << 22)
BOUND_SHIFT = 9
FIRST_BOUND, LAST_BOUND = BOUND_MARK + 1, BOUND_MARK + (0x7F7FFFFF >> BOUND_SHIFT)
_LEAST = np.float32(2.0**-100)
# Pixels less than this part of the ceiling below it are at it: cut cores are not quite flat.
_CEILING_PART = 128
# Many pixels side by side at the ceiling, and more there than just below: the peaks of noise are rarer the higher
# they are. As in a single frame (`raw_defects`), here over all frames of a camera.
_MIN_TOUCHING = 3
_PILED_UP = 2


def with_bounds(values: np.ndarray) -> np.ndarray:
    """Return NaN that hold these lower bounds.

    Parameters
    ----------
    values : ndarray, float32
        Lower bounds; NaN stays NaN, what is not positive becomes almost 0.

    Returns
    -------
    ndarray, float32, same shape
    """
    values = np.ascontiguousarray(values, np.float32)
    bits = np.maximum(values, _LEAST).view(np.int32)
    marked = np.where(np.isfinite(values), BOUND_MARK + (bits >> BOUND_SHIFT), values.view(np.int32))
    return marked.astype(np.int32).view(np.float32)


def bounds_of(samples: np.ndarray) -> np.ndarray:
    """Return the lower bounds that samples hold; NaN where they are finite, or missing for another reason.

    Parameters
    ----------
    samples : ndarray, float32
    """
    bits = np.ascontiguousarray(samples, np.float32).view(np.int32)
    held = (bits >= FIRST_BOUND) & (bits <= LAST_BOUND)
    values = ((bits - BOUND_MARK) << BOUND_SHIFT).astype(np.int32).view(np.float32)
    return np.where(held, values, np.float32(np.nan))


def clip_levels(evidence: np.ndarray, cameras: Sequence[Hashable]) -> np.ndarray:
    """Return from which value on the light of each frame was cut off, from what all frames of its camera say.

    The highest value that pixels side by side share in any frame of a camera is its ceiling when all frames that reach
    it say so together: a lower one cannot be, because there are values above it.

    Parameters
    ----------
    evidence : ndarray, shape (N, C, 4)
        Per frame and colour as in `raw_defects.ceilings`: the highest value shared by pixels side by side, in ADU; how
        many pixels are within 1/128 of it; how many of them lie side by side; how many lie in the next 1/128 below.
    cameras : sequence of hashable, length N
        The same for frames of one sensor, gain and binning, whatever their exposure.

    Returns
    -------
    ndarray, shape (N, C), float32
        +inf: nothing tells that light was cut off.
    """
    evidence = np.asarray(evidence, float)
    levels = np.full(evidence.shape[:2], np.inf, np.float32)
    members: dict[Hashable, list[int]] = {}
    for i, camera in enumerate(cameras):
        members.setdefault(camera, []).append(i)
    for group in members.values():
        for channel in range(evidence.shape[1]):
            of_camera = evidence[group, channel]
            of_camera = of_camera[np.isfinite(of_camera).all(axis=1)]
            if not len(of_camera):
                continue
            top = of_camera[:, 0].max()
            reach = of_camera[of_camera[:, 0] >= top - abs(top) / _CEILING_PART]
            count, touching, below = reach[:, 1:].sum(axis=0)
            if touching >= _MIN_TOUCHING and count > _PILED_UP * below:
                # The lowest of the tops that are one ceiling, and what one frame calls close to it.
                levels[group, channel] = reach[:, 0].min() - abs(top) / _CEILING_PART
    return levels


def mark_clipped_planes(planes: np.ndarray, levels: np.ndarray) -> None:
    """Turn pixels at or above the level of their plane, in place, into NaN that hold it.

    Parameters
    ----------
    planes : ndarray, shape (C, h, w), float32
    levels : ndarray, shape (C,)
        In the unit of the planes; +inf: none.
    """
    for plane, level in zip(planes, np.asarray(levels, np.float32), strict=True):
        if np.isfinite(level):
            clipped = plane >= level
            if clipped.any():
                plane[clipped] = with_bounds(np.array([level]))[0]


def mark_clipped_cfa(
    planes: np.ndarray, sensor: np.ndarray, pattern: str, levels: Sequence[float] | np.ndarray
) -> None:
    """Turn what clipped pixels of a colour filter array decide, in place, into NaN that hold a lower bound.

    A colour that was measured at a pixel is clipped when that pixel is; one that was interpolated, when one of the
    nearest pixels of its colour is. Both then hold the level. At a clipped pixel the other colours, whose curvature it
    gave, hold themselves: the cut peak made them too low.

    Parameters
    ----------
    planes : ndarray, shape (3, h, w), float32
        From `cfa.debayer`.
    sensor : ndarray, shape (h, w), uint16 or float32
        The pixels they were made from.
    pattern : str
        Colours of the 2 x 2 cell at pixel (0, 0) of the window, read row by row.
    levels : sequence of float, length 3
        Of red, green and blue, ADU; +inf: none.

    Notes
    -----
    Neighbours are those in the window: read one more pixel on each inner side.
    """
    _mark_cfa(planes, planes.view(np.int32), sensor, _colours_of(pattern), np.asarray(levels, np.float32))


def samples_below(
    sensor: np.ndarray, pattern: str, levels: Sequence[float] | np.ndarray | None
) -> np.ndarray:
    """Return the samples of a colour filter array as float32, NaN where light was cut off.

    Parameters
    ----------
    sensor : ndarray, shape (h, w), uint16 or float32
    pattern : str
        As in `mark_clipped_cfa`.
    levels : sequence of float, length 3, optional
        Of red, green and blue, ADU; +inf: none. None: nothing was cut off.

    Returns
    -------
    ndarray, shape (h, w), float32
    """
    if levels is None:
        return np.array(sensor, np.float32, order="C")
    out = np.empty(sensor.shape, np.float32)
    _copy_below(np.ascontiguousarray(sensor), _colours_of(pattern), np.asarray(levels, np.float32), out)
    return out


@lru_cache
def _colours_of(pattern: str) -> np.ndarray:
    colours = np.array(["RGB".index(colour) for colour in pattern], np.int64)
    colours.setflags(write=False)
    return colours


@njit(cache=True, nogil=True)
def _copy_below(sensor, colours, levels, out):
    nan = np.float32(np.nan)
    ceilings = np.empty((2, out.shape[1]), np.float32)
    for y in range(2):
        for x in range(out.shape[1]):
            ceilings[y, x] = levels[colours[2 * y + x % 2]]
    for y in range(out.shape[0]):
        line, ceiling, target = sensor[y], ceilings[y & 1], out[y]
        for x in range(line.size):
            value = np.float32(line[x])
            target[x] = nan if value >= ceiling[x] else value


@njit(cache=True, nogil=True)
def _any_at_least(line, level):
    found = False
    for x in range(line.size):
        found |= np.float32(line[x]) >= level
    return found


@njit(cache=True, nogil=True)
def _mark_cfa(planes, bits, sensor, colours, levels):
    height, width = sensor.shape
    lowest = min(levels[0], min(levels[1], levels[2]))
    if not lowest < np.inf:
        return
    bounds = np.empty(3, np.float32)
    for c in range(3):
        bounds[c] = max(levels[c], _LEAST) if levels[c] < np.inf else np.float32(1)
    marks = BOUND_MARK + (bounds.view(np.int32) >> BOUND_SHIFT)
    rows = np.zeros(height, np.bool_)
    for y in range(height):
        rows[y] = _any_at_least(sensor[y], lowest)
    # First what keeps its own value, so that the level of the colour itself has the last word.
    for y in range(height):
        if not rows[y]:
            continue
        for x in range(width):
            own = colours[2 * (y % 2) + x % 2]
            if np.float32(sensor[y, x]) >= levels[own]:
                for c in range(3):
                    value = planes[c, y, x]
                    if c != own and value - value == np.float32(0):
                        planes[c, y, x] = max(value, _LEAST)
                        bits[c, y, x] = BOUND_MARK + (bits[c, y, x] >> BOUND_SHIFT)
    for y in range(height):
        if not rows[y]:
            continue
        for x in range(width):
            own = colours[2 * (y % 2) + x % 2]
            if not np.float32(sensor[y, x]) >= levels[own]:
                continue
            for j in range(max(0, y - 1), min(height, y + 2)):
                for i in range(max(0, x - 1), min(width, x + 2)):
                    if (j == y and i == x) or colours[2 * (j % 2) + i % 2] != own:
                        bits[own, j, i] = marks[own]
