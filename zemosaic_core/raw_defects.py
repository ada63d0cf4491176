"""Pixels of one raw frame that lie: single ones far above or below their kin, and light that was cut off. Arrays only.

*Kin* are pixels of the same phase of the 2 x 2 raster (see `raw_sky`): of one colour where there is a colour filter
array. The pixel beyond the border is the mirrored one, which keeps the phase.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from zemosaic_core.few_values import insert_sorted
from zemosaic_core.raw_sky import SkyCells

__all__ = [
    "DEFECT_SIGMA",
    "NEVER_SATURATED",
    "ceilings",
    "defect_capacity",
    "find_defects",
    "isolation",
    "joined_ceiling",
    "mend_defects",
    "saturation_levels",
]

DEFECT_SIGMA = 6.0
# Light of the eight neighbours over that of the pixel: 0 for a defect, 0.7 for the reddest star a red pixel can see
# at FWHM 2 px, 2.3 for a mono star of FWHM 1.6 px.
_ISOLATED_SHARE = 0.4
# Second to seventh of eight normal values, in sigma.
_MIDDLE_OF_EIGHT = 1.70
# Pixels less than this part of the ceiling below it are at it: cut cores are not quite flat.
_CEILING_PART = 128
# A saturated core is a plateau: pixels side by side. Unsaturated peaks have one or two pixels that high.
_MIN_TOUCHING = 3
# And values pile up there: the peaks of noise on diffuse light are rarer the higher they are.
_PILED_UP = 2
NEVER_SATURATED = 1 << 16


def find_defects(
    plane: np.ndarray, cells: SkyCells, *, sigma: float = DEFECT_SIGMA, capacity: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """List single pixels that differ from their kin and not together with their neighbours.

    A pixel is listed when it lies more than ``sigma`` away from the median of its eight kin, in units of the noise
    of its cell or of half the scatter of these kin, whichever is larger, and when the excess of its eight direct
    neighbours over their own kin, all together, is less than 0.4 of its own. The neighbours are compared with kin
    three pixels away from the listed one, where even a wide star has little light.

    Parameters
    ----------
    plane : ndarray, shape (H, W), uint16
        Raw pixels; only read.
    cells : SkyCells
        Its sky.
    sigma : float
        Threshold.
    capacity : int, optional
        List at most this many; default one pixel in fifty, but at least 16.

    Returns
    -------
    index : ndarray, shape (k,), int64
        Flat indices ``y * W + x``, ascending.
    significance : ndarray, shape (k,), float32
        Distance from the kin in units of the noise; negative for pixels that are too dark.
    """
    capacity = defect_capacity(plane.size) if capacity is None else capacity
    found = np.empty(capacity, np.int64)
    significance = np.empty(capacity, np.float32)
    if not np.isfinite(cells.noise).all():
        return found[:0], significance[:0]
    n = _find(plane, cells.cell_px, cells.sky, cells.noise, np.float32(sigma), found, significance)
    return found[:n].copy(), significance[:n].copy()


def defect_capacity(n_pixels: int) -> int:
    """Return how many defects of a frame are listed: a frame with more is no picture."""
    return max(16, n_pixels // 50)


def mend_defects(plane: np.ndarray, index: np.ndarray) -> None:
    """Replace pixels, in place, by the median of their kin as they were before; halves are cut off.

    Parameters
    ----------
    plane : ndarray, shape (H, W), uint16
    index : ndarray, shape (k,), int64
        Flat indices.
    """
    _mend(plane, index)


def ceilings(plane: np.ndarray) -> np.ndarray:
    """Where the light of each phase was cut off, if it was.

    Parameters
    ----------
    plane : ndarray, shape (H, W), uint16
        Raw pixels.

    Returns
    -------
    ndarray, shape (4, 4), int64
        Per phase: the highest value that a pixel shares with one of its four nearest kin; how many pixels are within
        1/128 of it or above; how many of these lie side by side with another one; how many lie in the next 1/128
        below. A cut core is a plateau of many pixels with few just below it; a hot pixel or a star's peak is alone.
    """
    result = np.zeros((4, 4), np.int64)
    _find_ceilings(plane, result)
    return result


def joined_ceiling(evidence: np.ndarray) -> np.ndarray:
    """What phases of one colour say together, shape (4,): those that reach the highest ceiling, as in `ceilings`."""
    top = evidence[:, 0].max()
    at_top = evidence[:, 0] >= top - top // _CEILING_PART
    return np.array([top, *evidence[at_top, 1:].sum(axis=0)], np.int64)


def saturation_levels(evidence: np.ndarray) -> np.ndarray:
    """Values from which pixels of each phase are cut off, as far as one frame tells.

    Parameters
    ----------
    evidence : ndarray, shape (n, 4), int64
        Rows of `ceilings` or `joined_ceiling`.

    Returns
    -------
    ndarray, shape (n,), int64
        The largest 16-bit number where nothing was cut: that one always is.
    """
    top, count, touching, below = evidence.T
    cut = (touching >= _MIN_TOUCHING) & (count > _PILED_UP * below)
    return np.where(cut, top - top // _CEILING_PART, NEVER_SATURATED - 1)


@njit(cache=True, nogil=True)
def _mirrored(k, size):
    if k < 0:
        return -k
    return k if k < size else 2 * size - 2 - k


@njit(cache=True, nogil=True)
def _load_patch(plane, y, x, patch):
    """Copy the 7 x 7 pixels around (y, x)."""
    height, width = plane.shape
    if 3 <= y < height - 3 and 3 <= x < width - 3:
        for j in range(7):
            line = plane[y + j - 3, x - 3 : x + 4]
            for i in range(7):
                patch[j, i] = np.float32(line[i])
        return
    for j in range(7):
        for i in range(7):
            patch[j, i] = np.float32(plane[_mirrored(y + j - 3, height), _mirrored(x + i - 3, width)])


@njit(cache=True, nogil=True)
def _middle(values, n):
    return np.float32(0.5) * (values[(n - 1) // 2] + values[n // 2])


@njit(cache=True, nogil=True)
def isolation(plane, y, x, patch, values):
    """How far a pixel and its neighbours stand above their kin.

    Parameters
    ----------
    plane : ndarray, shape (H, W), uint16
    y, x : int
        The pixel.
    patch : ndarray, shape (7, 7), float32
        Room to work in.
    values : ndarray, shape (12,), float32
        Room to work in.

    Returns
    -------
    own, around, kin, scatter : float32
        Excess of the pixel over the median of its kin; summed excess of its eight neighbours over theirs; that
        median; sigma of the kin.
    """
    _load_patch(plane, y, x, patch)
    n = 0
    for j in (1, 3, 5):
        for i in (1, 3, 5):
            if j != 3 or i != 3:
                insert_sorted(values, n, patch[j, i])
                n += 1
    kin = _middle(values, 8)
    scatter = (values[6] - values[1]) * np.float32(1.0 / _MIDDLE_OF_EIGHT)
    own = patch[3, 3] - kin
    n = 0
    for j in (1, 3, 5):
        insert_sorted(values, n, patch[j, 0])
        insert_sorted(values, n + 1, patch[j, 6])
        n += 2
    sides = patch[3, 2] + patch[3, 4] - np.float32(2) * _middle(values, 6)
    n = 0
    for i in (1, 3, 5):
        insert_sorted(values, n, patch[0, i])
        insert_sorted(values, n + 1, patch[6, i])
        n += 2
    ends = patch[2, 3] + patch[4, 3] - np.float32(2) * _middle(values, 6)
    n = 0
    corners = np.float32(0)
    for j in (0, 2, 4, 6):
        for i in (0, 2, 4, 6):
            if (j == 2 or j == 4) and (i == 2 or i == 4):
                corners += patch[j, i]
            else:
                insert_sorted(values, n, patch[j, i])
                n += 1
    corners -= np.float32(4) * _middle(values, 12)
    return own, sides + ends + corners, kin, scatter


@njit(cache=True, nogil=True)
def _any_outside(values, upper, lower):
    most = np.int32(-1)
    for x in range(values.size):
        v = np.int32(values[x])
        most = max(most, max(v - upper[x], lower[x] - v))
    return most > 0


@njit(cache=True, nogil=True)
def _find(plane, cell, sky, noise, limit, found, significance):
    height, width = plane.shape
    columns = sky.shape[2]
    upper = np.empty((2, width), np.int32)
    lower = np.empty((2, width), np.int32)
    patch = np.empty((7, 7), np.float32)
    values = np.empty(12, np.float32)
    n = 0
    for y in range(height):
        row = y // cell
        if y % cell == 0:
            for x in range(width):
                for parity in range(2):
                    p = 2 * parity + x % 2
                    middle, margin = sky[p, row, x // cell], limit * noise[p, row, x // cell]
                    upper[parity, x] = np.int32(middle + margin)
                    lower[parity, x] = np.int32(middle - margin)
        line, high, low = plane[y], upper[y % 2], lower[y % 2]
        above, below = plane[_mirrored(y - 2, height)], plane[_mirrored(y + 2, height)]
        for column in range(columns):
            x0, x1 = column * cell, min(width, (column + 1) * cell)
            if not _any_outside(line[x0:x1], high[x0:x1], low[x0:x1]):
                continue
            for x in range(x0, x1):
                v = np.int32(line[x])
                if low[x] <= v <= high[x]:
                    continue
                left, right = line[_mirrored(x - 2, width)], line[_mirrored(x + 2, width)]
                # Only the highest, or lowest, of its kin along both axes is worth a closer look.
                if v > high[x]:
                    if v < left or v < right or v < above[x] or v < below[x]:
                        continue
                    sign = np.float32(1)
                else:
                    if v > left or v > right or v > above[x] or v > below[x]:
                        continue
                    sign = np.float32(-1)
                own, around, _kin, scatter = isolation(plane, y, x, patch, values)
                own *= sign
                around *= sign
                unit = max(noise[2 * (y % 2) + x % 2, row, column], np.float32(0.5) * scatter)
                if own > limit * unit and around < np.float32(_ISOLATED_SHARE) * own:
                    if n == found.size:
                        return n
                    found[n] = y * width + x
                    significance[n] = sign * own / unit
                    n += 1
    return n


@njit(cache=True, nogil=True)
def _mend(plane, index):
    width = plane.shape[1]
    patch = np.empty((7, 7), np.float32)
    values = np.empty(12, np.float32)
    fresh = np.empty(index.size, np.uint16)
    # All are read before any is written: the order does not matter.
    for k in range(index.size):
        _own, _around, kin, _scatter = isolation(plane, index[k] // width, index[k] % width, patch, values)
        fresh[k] = np.uint16(kin)
    for k in range(index.size):
        plane[index[k] // width, index[k] % width] = fresh[k]


@njit(cache=True, nogil=True)
def _shared(plane, y, x):
    """The pixel or the highest of its four nearest kin, whichever is lower."""
    height, width = plane.shape
    best = plane[y, _mirrored(x - 2, width)]
    best = max(best, plane[y, _mirrored(x + 2, width)])
    best = max(best, plane[_mirrored(y - 2, height), x])
    best = max(best, plane[_mirrored(y + 2, height), x])
    return min(plane[y, x], best)


@njit(cache=True, nogil=True)
def _find_ceilings(plane, result):
    height, width = plane.shape
    tops = np.zeros((height, 2), np.uint16)
    for y in range(height):
        line = plane[y]
        even, odd = np.uint16(0), np.uint16(0)
        for k in range(width // 2):
            even = max(even, line[2 * k])
            odd = max(odd, line[2 * k + 1])
        if width % 2:
            even = max(even, line[width - 1])
        tops[y, 0], tops[y, 1] = even, odd
    for p in range(4):
        py, px = p // 2, p % 2
        # Rows from the brightest down: most rows need no second look.
        order = np.argsort(tops[py::2, px])[::-1]
        top = np.uint16(0)
        for k in order:
            y = 2 * k + py
            if tops[y, px] <= top:
                break
            for x in range(px, width, 2):
                if plane[y, x] > top:
                    top = max(top, _shared(plane, y, x))
        step = np.int64(top) // _CEILING_PART
        bound = np.int64(top) - step
        count, touching, below = 0, 0, 0
        for y in range(py, height, 2):
            if tops[y, px] < bound - step:
                continue
            for x in range(px, width, 2):
                if plane[y, x] >= bound:
                    count += 1
                    touching += 1 if _shared(plane, y, x) >= bound else 0
                elif plane[y, x] >= bound - step:
                    below += 1
        result[p, 0], result[p, 1], result[p, 2], result[p, 3] = top, count, touching, below
