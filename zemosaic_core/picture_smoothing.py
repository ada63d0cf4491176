"""Smooth a picture with pixels missing, and fill from around what does not count. Arrays only."""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["fill_from_around", "raise_row_to", "smooth_known"]

_FILL_SCALES = 6
# Places to be filled are looked for in squares of this size. Most are small: the finest scales suffice.
_TILE_PX = 64
_FEW_SCALES = 3
# More squares than this share cost more with their margins than the whole plane.
_MOST_TILES = 0.04
_A, _B, _C = np.float32(6.0 / 16.0), np.float32(4.0 / 16.0), np.float32(1.0 / 16.0)
_ONE, _LEAST_SEEN = np.float32(1.0), np.float32(1e-3)


def smooth_known(plane: np.ndarray, known: np.ndarray, spacing: int) -> np.ndarray:
    """Smooth with the cubic B-spline (1 4 6 4 1) / 16 whose taps lie ``spacing`` px apart, leaving out missing pixels.

    Parameters
    ----------
    plane : ndarray, shape (h, w), float32
        Values; 0 where missing.
    known : ndarray, shape (h, w), float32
        1 where there is a value, 0 where it is missing.
    spacing : int
        Distance of the taps, >= 1; borders are mirrored.

    Returns
    -------
    ndarray, shape (h, w), float32
        Weighted mean of the known pixels; 0 where the centre is missing.
    """
    result = np.empty_like(plane)
    _smooth_known(plane, known, spacing, result)
    return result


def fill_from_around(plane: np.ndarray, use: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
    """Replace the pixels that are not used by smooth means of those around them.

    Parameters
    ----------
    plane : ndarray, shape (h, w), float32
    use : ndarray, shape (h, w), float32
        Share of each pixel that counts, 0 to 1.
    where : ndarray, shape (h, w), bool, optional
        The pixels of the result that are wanted; the fewer, the faster. None: all.

    Returns
    -------
    ndarray, shape (h, w), float32
        ``plane`` where ``use`` is 1; 0 where nothing that counts is within 64 px. What is not wanted may be anything
        between ``plane * use`` and the filled value.
    """
    if where is not None:
        filled = plane * use
        if _fill_tiles(plane, use, where, filled):
            return filled
    return _fill(plane, use, _FILL_SCALES)[0]


def _fill(plane: np.ndarray, use: np.ndarray, scales: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the filled plane and the share of each pixel that is still to be filled."""
    left = _ONE - use
    filled = plane * use
    value, weight = filled.copy(), use.astype(np.float32, copy=True)
    light, seen = np.empty_like(value), np.empty_like(value)
    for scale in range(scales):
        unfinished = _fill_scale(value, weight, 1 << scale, light, seen, filled, left)
        if not unfinished:
            break
        value, light = light, value
        weight, seen = seen, weight
    return filled, left


def _fill_tiles(plane: np.ndarray, use: np.ndarray, where: np.ndarray, filled: np.ndarray) -> bool:
    """Fill what is wanted square by square; False where that would cost more than the whole plane.

    A smoothing looks as far as its taps, so a square with a margin of all taps has the bits of the whole plane.
    """
    rows, columns = (np.arange(0, size, _TILE_PX) for size in plane.shape)
    wanted = np.logical_or.reduceat(np.logical_or.reduceat(where, rows, axis=0), columns, axis=1)
    tiles = np.argwhere(wanted) * _TILE_PX
    for scales in (_FEW_SCALES, _FILL_SCALES):
        if scales == _FILL_SCALES and len(tiles) > _MOST_TILES * wanted.size:
            return False
        margin = 2 * ((1 << scales) - 1)
        unfinished = []
        for y, x in tiles:
            top, side = max(0, y - margin), max(0, x - margin)
            window = (slice(top, y + _TILE_PX + margin), slice(side, x + _TILE_PX + margin))
            part, left = _fill(plane[window], use[window], scales)
            tile = (slice(y, y + _TILE_PX), slice(x, x + _TILE_PX))
            inner = (slice(y - top, y - top + _TILE_PX), slice(x - side, x - side + _TILE_PX))
            if scales < _FILL_SCALES and (left[inner][where[tile]] > 0).any():
                unfinished.append((y, x))
            else:
                filled[tile] = part[inner]
        tiles = np.array(unfinished, np.intp).reshape(-1, 2)
    return True


@njit(cache=True, nogil=True)
def raise_row_to(out, other):
    """Raise the values of a row to those of another of the same length, where these are larger; compiled."""
    for x in range(out.size):
        out[x] = max(out[x], other[x])


@njit(cache=True, nogil=True)
def _mirrored(index, size):
    if size == 1:
        return 0
    period = 2 * (size - 1)
    index = abs(index) % period
    return period - index if index >= size else index


@njit(cache=True, nogil=True)
def _taps_across(row, spacing, out):
    """Smooth a row."""
    width = row.size
    reach = 2 * spacing
    inner = max(0, width - 2 * reach)
    # Slices, because an index that might be negative keeps the compiler from working on several pixels at once.
    here, result = row[reach:], out[reach:]
    far_left, left = row, row[spacing:]
    right, far_right = row[reach + spacing :], row[2 * reach :]
    for x in range(inner):
        result[x] = _A * here[x] + _B * (left[x] + right[x]) + _C * (far_left[x] + far_right[x])
    for k in range(width - inner):
        x = k if k < reach else k + inner
        near = row[_mirrored(x - spacing, width)] + row[_mirrored(x + spacing, width)]
        far = row[_mirrored(x - reach, width)] + row[_mirrored(x + reach, width)]
        out[x] = _A * row[x] + _B * near + _C * far


@njit(cache=True, nogil=True)
def _taps_down(ring, y, height, spacing, x0, x1, out):
    """Smooth some columns of a row out of the smoothed rows around it, of which row y lies at y modulo their number."""
    n = ring.shape[0]
    here = ring[y % n, x0:x1]
    above, below = (
        ring[_mirrored(y - spacing, height) % n, x0:x1],
        ring[_mirrored(y + spacing, height) % n, x0:x1],
    )
    top, bottom = (
        ring[_mirrored(y - 2 * spacing, height) % n, x0:x1],
        ring[_mirrored(y + 2 * spacing, height) % n, x0:x1],
    )
    result = out[x0:x1]
    for x in range(result.size):
        result[x] = _A * here[x] + _B * (above[x] + below[x]) + _C * (top[x] + bottom[x])


@njit(cache=True, nogil=True)
def _whole_span(row):
    """First and last + 1 of the ones of a row if they are side by side and all others are missing; else nothing."""
    width = row.size
    first = 0
    while first < width and row[first] != _ONE:
        first += 1
    last = width
    while last > first and row[last - 1] != _ONE:
        last -= 1
    for x in range(first, last):
        if row[x] != _ONE:
            return 0, 0
    return first, last


@njit(cache=True, nogil=True, error_model="numpy")
def _divide_by_seen(light, seen, known, x0, x1):
    line, count, there = light[x0:x1], seen[x0:x1], known[x0:x1]
    for x in range(line.size):
        line[x] = line[x] / max(count[x], _LEAST_SEEN) * there[x]


@njit(cache=True, nogil=True, error_model="numpy")
def _smooth_known(plane, known, spacing, result):
    height, width = plane.shape
    reach = 2 * spacing
    n = min(height, 2 * reach + 1)
    light, seen = np.empty((n, width), np.float32), np.empty((n, width), np.float32)
    line = np.empty(width, np.float32)
    # Where all taps of a row are known they sum to exactly 1: nothing to count and to divide by.
    spans = np.empty((n, 2), np.int64)
    done = 0
    for y in range(height):
        while done < min(height, y + reach + 1):
            k = done % n
            _taps_across(plane[done], spacing, light[k])
            first, last = _whole_span(known[done])
            spans[k, 0] = first + reach if first > 0 else 0
            spans[k, 1] = last - reach if last < width else width
            if last - first == width:
                seen[k, :] = _ONE
            else:
                _taps_across(known[done], spacing, seen[k])
            done += 1
        first, last = np.int64(0), np.int64(width)
        for step in range(-2, 3):
            k = _mirrored(y + step * spacing, height) % n
            first, last = max(first, spans[k, 0]), min(last, spans[k, 1])
        last = max(first, last)
        out = result[y]
        _taps_down(light, y, height, spacing, 0, width, out)
        if first == last:
            _taps_down(seen, y, height, spacing, 0, width, line)
            _divide_by_seen(out, line, known[y], 0, width)
            continue
        if first > 0:
            _taps_down(seen, y, height, spacing, 0, first, line)
            _divide_by_seen(out, line, known[y], 0, first)
        if last < width:
            _taps_down(seen, y, height, spacing, last, width, line)
            _divide_by_seen(out, line, known[y], last, width)


@njit(cache=True, nogil=True, error_model="numpy")
def _fill_scale(value, weight, spacing, light, seen, filled, left):
    """Smooth value and weight and fill in as much as the weight allows; tell whether anything is left."""
    height, width = value.shape
    reach = 2 * spacing
    n = min(height, 2 * reach + 1)
    values, weights = np.empty((n, width), np.float32), np.empty((n, width), np.float32)
    zero, eight = np.float32(0.0), np.float32(8.0)
    done = 0
    most = zero
    for y in range(height):
        while done < min(height, y + reach + 1):
            _taps_across(value[done], spacing, values[done % n])
            _taps_across(weight[done], spacing, weights[done % n])
            done += 1
        line, count, out, rest = light[y], seen[y], filled[y], left[y]
        _taps_down(values, y, height, spacing, 0, width, line)
        _taps_down(weights, y, height, spacing, 0, width, count)
        for x in range(width):
            enough = min(max(count[x] * eight, zero), _ONE) * rest[x]
            out[x] += enough * line[x] / max(count[x], _LEAST_SEEN)
            rest[x] -= enough
        for x in range(width):
            most = max(most, rest[x])
    return most > zero
