"""Sky of a raw frame, cell by cell and phase by phase, from histograms of whole numbers. Arrays only.

A *phase* is one of the four pixels of the 2 x 2 raster: of one colour in a frame with a colour filter array, and
alike in a mono frame. Everything is counted in whole numbers and worked out from these counts in a fixed order, so
that any body that counts the same gets the same bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit

from zemosaic_core.background import MIDMEAN_ERROR
from zemosaic_core.few_values import insert_sorted

__all__ = [
    "BINS",
    "CELL_PX",
    "COARSEST_BITS",
    "SkyCells",
    "cells_of_tables",
    "floor_quantiles",
    "histogram_bits",
    "mesh_at",
    "sky_cells",
]

CELL_PX = 64
BINS = 512
_CLIP_SIGMA = 2.5
# 1 / standard deviation of a unit normal distribution cut at 2.5 sigma.
_CUT_CORRECTION = 1.0476
_USABLE_FRACTION = 0.3
# Median of the absolute difference of two normal values over their sigma, inverted: 1 / (0.6745 sqrt 2).
_STEP_TO_SIGMA = 1.0483
# A bin is at most this part of the noise wide: coarser ones lose digits of the level.
_BIN_OF_NOISE = 1.0 / 8.0
COARSEST_BITS = 12
# Where more of the pixels than this are 0 the sky was cut off there.
_CUT_OFF_FRACTION = 0.15


@dataclass(frozen=True)
class SkyCells:
    """Sky of a raw frame per phase and cell of ``cell_px`` px; phases are (0, 0), (0, 1), (1, 0), (1, 1).

    Attributes
    ----------
    cell_px : int
        Side of a cell; cells of the last row and column may be smaller.
    level, error : ndarray, shape (4, ny, nx), float32
        Mean of the central half of the pixels after clipping, and its formal 1-sigma uncertainty; NaN where less
        than 30 % of the cell is sky, and in cells less than 8 px high or wide.
    spread, steps : ndarray, shape (4, ny, nx), float32
        Two estimates of the noise of one pixel: scatter after clipping, which holds structure too, and the
        typical step between neighbours of one phase, which does not. NaN where ``level`` is.
    sky, noise : ndarray, shape (4, ny, nx), float32
        Smooth and without gaps: medians of 3 x 3 cells of ``level`` and of the smaller noise.
    cut_off : ndarray of bool, shape (4, ny, nx)
        More than 15 % of the pixels are 0: the sky was cut off there. ``level`` and ``steps`` are mean and scatter of
        what is left of it, ``spread`` is the noise it had.
    """

    cell_px: int
    level: np.ndarray
    error: np.ndarray
    spread: np.ndarray
    steps: np.ndarray
    sky: np.ndarray
    noise: np.ndarray
    cut_off: np.ndarray

    def frame_noise(self) -> np.ndarray:
        """Return the noise of a typical pixel per phase, shape (4,); NaN when no cell is sky.

        The smaller of the two estimates, each a median over all cells first: single cells scatter, and the smaller
        of two scattered numbers is too small.
        """
        steps = np.where(self.cut_off, self.spread, self.steps)
        usable = [np.isfinite(plane) for plane in self.spread]
        return np.array(
            [
                min(np.median(s[u]), np.median(t[u])) if u.any() else math.nan
                for s, t, u in zip(self.spread, steps, usable, strict=True)
            ]
        )


def sky_cells(plane: np.ndarray, *, cell_px: int = CELL_PX, missing: np.ndarray | None = None) -> SkyCells:
    """Measure level and noise of the sky of every cell.

    Parameters
    ----------
    plane : ndarray, shape (H, W), uint16
        Raw pixels.
    cell_px : int
        Side of a cell, even, >= 8.
    missing : ndarray of bool, shape (H, W), optional
        Pixels that hold no measurement; they must be 0 in ``plane``.

    Returns
    -------
    SkyCells

    Raises
    ------
    ValueError
        When the plane is not 2-D uint16 of at least 16 x 16 px, or ``cell_px`` is not usable.
    """
    if plane.ndim != 2 or plane.dtype != np.uint16 or min(plane.shape) < 16:
        raise ValueError(
            f"a raw plane is 2-D, uint16, at least 16 x 16 px; got {plane.dtype} of shape {plane.shape}"
        )
    if cell_px < 8 or cell_px % 2:
        raise ValueError(f"cell_px must be even and at least 8, got {cell_px}")
    shape = 4, -(-plane.shape[0] // cell_px), -(-plane.shape[1] // cell_px)
    level, error, spread, steps = np.empty((4, *shape), np.float32)
    cut_off = np.zeros(shape, np.bool_)
    absent = _count_missing(missing, cell_px, shape)
    shift, unit, dropped = histogram_bits(plane)
    plane = np.ascontiguousarray(plane)
    _measure_cells(plane, cell_px, shift, unit, dropped, absent, level, error, spread, steps, cut_off)
    return cells_of_tables(cell_px, level, error, spread, steps, cut_off)


def cells_of_tables(
    cell_px: int,
    level: np.ndarray,
    error: np.ndarray,
    spread: np.ndarray,
    steps: np.ndarray,
    cut_off: np.ndarray,
) -> SkyCells:
    """Return the sky from what was measured cell by cell; parameters as in `SkyCells`."""
    sky, smooth_spread, noise = np.empty((3, *level.shape), np.float32)
    for phase in range(4):
        _fill_and_smooth(level[phase], sky[phase])
        _fill_and_smooth(spread[phase], smooth_spread[phase])
        _fill_and_smooth(steps[phase], noise[phase])
    # Of the smooth meshes, which scatter little: the smaller of two scattered numbers is too small.
    np.minimum(noise, smooth_spread, out=noise)
    return SkyCells(cell_px, level, error, spread, steps, sky, noise, cut_off)


def floor_quantiles(total: int) -> np.ndarray:
    """Return what a sky that was cut off is measured with: for 0 .. ``total`` zeros among ``total`` pixels.

    Returns
    -------
    ndarray, shape (total + 1, 2), float64
        Where the floor lies in a unit normal distribution, and where the middle of what is above it.
    """
    table = np.empty((total + 1, 2))
    _fill_quantiles(table)
    return table


@njit(cache=True, nogil=True)
def _fill_quantiles(table):
    total = table.shape[0] - 1
    for zeros in range(total + 1):
        share = zeros / total
        table[zeros, 0] = _normal_quantile(share)
        table[zeros, 1] = _normal_quantile(0.5 + 0.5 * share)


def _count_missing(missing: np.ndarray | None, cell_px: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Missing pixels per phase and cell."""
    counts = np.zeros(shape, np.int32)
    if missing is not None:
        y, x = np.nonzero(missing)
        np.add.at(counts, (2 * (y % 2) + x % 2, y // cell_px, x // cell_px), 1)
    return counts


def histogram_bits(plane: np.ndarray) -> tuple[int, int, float]:
    """Tell how many low bits a histogram may drop, how many bits are never set, and the mean of what is dropped.

    Cameras of 12 bits whose numbers are multiples of 16 keep exact levels that way, and so do those whose numbers have
    other steps: the values of a bin do not lie around its middle.

    Parameters
    ----------
    plane : ndarray, shape (H, W), uint16
    """
    lines = plane[plane.shape[0] // 64 :: max(1, plane.shape[0] // 24)].astype(np.int32)
    moves = np.abs(lines[:, 2:] - lines[:, :-2])[(lines[:, 2:] > 0) & (lines[:, :-2] > 0)][::3]
    sigma = float(np.median(moves)) * _STEP_TO_SIGMA if moves.size else 0.0
    bits = int(np.bitwise_or.reduce(lines, axis=None))
    unit = (bits & -bits).bit_length() - 1 if bits else 0
    fine = math.floor(math.log2(max(sigma * _BIN_OF_NOISE, 1.0)))
    shift = min(max(fine, unit), COARSEST_BITS)
    # Zeros hold nothing, or what is left of a sky that was cut off.
    known = lines[lines > 0]
    return shift, unit, float((known & ((1 << shift) - 1)).mean()) if known.size else 0.0


@njit(cache=True, nogil=True)
def _measure_cells(plane, cell, shift, unit, dropped, absent, level, error, spread, steps, cut_off):
    height, width = plane.shape
    counts = np.empty((4, BINS), np.int32)
    base = np.empty(4, np.int32)
    left = np.empty(4, np.float64)
    for row in range(level.shape[1]):
        y0, y1 = row * cell, min(height, (row + 1) * cell)
        high = (y1 - y0) // 2 * 2
        for column in range(level.shape[2]):
            x0, x1 = column * cell, min(width, (column + 1) * cell)
            wide = (x1 - x0) // 2 * 2
            level[:, row, column] = np.nan
            error[:, row, column] = np.nan
            spread[:, row, column] = np.nan
            steps[:, row, column] = np.nan
            if high < 8 or wide < 8:
                continue
            total = high * wide // 4
            coarse = shift
            while True:
                for p in range(4):
                    rough = _rough_median(plane, y0, x0, high, wide, p // 2, p % 2)
                    base[p] = (rough >> coarse) - BINS // 3
                _count_cell(plane, y0, y0 + high, x0, x0 + wide, np.int32(coarse), base, counts)
                fits = True
                for p in range(4):
                    lost = absent[p, row, column]
                    # Missing pixels are 0 and were counted where 0 falls.
                    counts[p, min(max(-base[p], 0), BINS - 1)] -= lost
                    if total - lost < max(_USABLE_FRACTION * total, 4):
                        continue
                    floor = -base[p]
                    cut = 0 <= floor < BINS and counts[p, floor] > _CUT_OFF_FRACTION * (total - lost)
                    if cut:
                        centre, sigma, left[p], kept, inside = _centre_above_floor(
                            counts[p], floor, total - lost
                        )
                    else:
                        centre, sigma, kept, inside = _clipped_centre(counts[p], total - lost)
                    cut_off[p, row, column] = cut
                    fits &= inside
                    if inside and kept >= _USABLE_FRACTION * total:
                        scale = float(1 << coarse)
                        offset = dropped + 0.5 * (scale - float(1 << shift))
                        level[p, row, column] = (centre + base[p]) * scale + offset
                        spread[p, row, column] = sigma * scale
                        error[p, row, column] = MIDMEAN_ERROR * sigma * scale / math.sqrt(kept)
                    else:
                        level[p, row, column] = np.nan
                if fits or coarse >= COARSEST_BITS:
                    break
                # The sky left the window of the histogram: again with wider bins.
                coarse += 2
            _count_steps(plane, y0, y0 + high, x0, x0 + wide, np.int32(coarse), counts)
            pairs = ((high + 3) // 4) * (wide // 2 - 1)
            for p in range(4):
                if not np.isfinite(level[p, row, column]):
                    error[p, row, column] = np.nan
                    spread[p, row, column] = np.nan
                    continue
                scale = float(1 << coarse)
                if cut_off[p, row, column]:
                    steps[p, row, column] = left[p] * scale
                    continue
                if absent[p, row, column] > 0:
                    # Steps from and to nothing say nothing.
                    steps[p, row, column] = spread[p, row, column]
                    continue
                middle = _quantile(counts[p], 0, BINS - 1, 0.5 * (pairs - 1))
                # Steps have no sign, so bin 0 begins in the middle of a unit; the other bins begin half a unit early.
                half = 0.5 * float(1 << unit) / scale
                middle = (middle + 0.5) * (1.0 - half) if middle < 0.5 else middle + 0.5 - half
                steps[p, row, column] = max(_STEP_TO_SIGMA * middle, 0.25) * scale


@njit(cache=True, nogil=True)
def _rough_median(plane, y0, x0, high, wide, py, px):
    """Median of nine pixels of one phase, spread over the cell."""
    values = np.empty(9, np.int32)
    for j in range(3):
        y = y0 + (((2 * j + 1) * high) // 6 // 2) * 2 + py
        for i in range(3):
            x = x0 + (((2 * i + 1) * wide) // 6 // 2) * 2 + px
            insert_sorted(values, 3 * j + i, np.int32(plane[y, x]))
    return values[4]


@njit(cache=True, nogil=True)
def _count_cell(plane, y0, y1, x0, x1, shift, base, counts):
    """Histogram of each phase; what lies outside the window is counted in its first and last bin."""
    counts[:] = 0
    b0, b1, b2, b3 = base[0], base[1], base[2], base[3]
    c0, c1, c2, c3 = counts[0], counts[1], counts[2], counts[3]
    top, zero = np.int32(BINS - 1), np.int32(0)
    # Slices and unsigned positions keep numba from checking for negative indices.
    for y in range(y0, y1 - 1, 2):
        upper = plane[y, x0:x1]
        lower = plane[y + 1, x0:x1]
        for k in range((x1 - x0) // 2):
            c0[np.uint32(min(max((np.int32(upper[2 * k]) >> shift) - b0, zero), top))] += 1
            c1[np.uint32(min(max((np.int32(upper[2 * k + 1]) >> shift) - b1, zero), top))] += 1
            c2[np.uint32(min(max((np.int32(lower[2 * k]) >> shift) - b2, zero), top))] += 1
            c3[np.uint32(min(max((np.int32(lower[2 * k + 1]) >> shift) - b3, zero), top))] += 1


@njit(cache=True, nogil=True)
def _count_steps(plane, y0, y1, x0, x1, shift, counts):
    """Histogram, per phase, of how far pixels lie from the next one of their phase; every second pair of rows."""
    counts[:] = 0
    c0, c1, c2, c3 = counts[0], counts[1], counts[2], counts[3]
    top = np.int32(BINS - 1)
    n = (x1 - x0) // 2 - 1
    for y in range(y0, y1 - 1, 4):
        upper = plane[y, x0:x1]
        lower = plane[y + 1, x0:x1]
        for k in range(n):
            c0[np.uint32(min(abs(np.int32(upper[2 * k]) - np.int32(upper[2 * k + 2])) >> shift, top))] += 1
            c1[
                np.uint32(min(abs(np.int32(upper[2 * k + 1]) - np.int32(upper[2 * k + 3])) >> shift, top))
            ] += 1
            c2[np.uint32(min(abs(np.int32(lower[2 * k]) - np.int32(lower[2 * k + 2])) >> shift, top))] += 1
            c3[
                np.uint32(min(abs(np.int32(lower[2 * k + 1]) - np.int32(lower[2 * k + 3])) >> shift, top))
            ] += 1


@njit(cache=True, nogil=True)
def _quantile(counts, first, last, rank):
    """Position of a rank among ``counts[first:last + 1]`` in bins; values lie evenly within +-0.5 of their bin."""
    below = 0
    for b in range(first, last + 1):
        c = counts[b]
        if below + c > rank:
            return b + (rank - below + 0.5) / c - 0.5
        below += c
    return float(last)


@njit(cache=True, nogil=True)
def _clipped_centre(counts, total):
    """Mean of the central half and sigma after clipping, how many were kept, and whether the window was wide enough.

    In bins. The window is too narrow when the values that were kept reach its first or last bin, where everything
    outside is counted too.
    """
    first, last = 0, BINS - 1
    while first < BINS - 1 and counts[first] == 0:
        first += 1
    while last > 0 and counts[last] == 0:
        last -= 1
    middle = _quantile(counts, first, last, 0.5 * (total - 1))
    # Half of the central 68 % is sigma for a normal sky and cares little about stars.
    sigma = max(middle - _quantile(counts, first, last, 0.1587 * (total - 1)), 0.5)
    low, high, n = first, last, total
    for _ in range(10):
        a = max(math.ceil(middle - _CLIP_SIGMA * sigma), first)
        b = min(math.floor(middle + _CLIP_SIGMA * sigma), last)
        centre = math.floor(middle + 0.5)
        s0, s1, s2 = 0, 0, 0
        for k in range(a, b + 1):
            c = counts[k]
            d = k - centre
            s0 += c
            s1 += c * d
            s2 += c * d * d
        if s0 < 4 or (a == low and b == high):
            break
        low, high, n = a, b, s0
        middle = _quantile(counts, low, high, 0.5 * (n - 1))
        delta = middle - centre
        squares = max(s2 - 2.0 * delta * s1 + delta * delta * s0, 0.0)
        sigma = max(math.sqrt(squares / (n - 1)) * _CUT_CORRECTION, 0.25)
    quarter = 0.25 * n
    seen, light = 0.0, 0.0
    for k in range(low, high + 1):
        end = seen + counts[k]
        part = min(end, n - quarter) - max(seen, quarter)
        if part > 0.0:
            light += part * k
        seen = end
    return light / (n - 2.0 * quarter), sigma, n, low > 0 and high < BINS - 1


@njit(cache=True, nogil=True)
def _normal_quantile(share):
    """Value below which this share of a unit normal distribution lies, by halving; within +-6."""
    low, high = -6.0, 6.0
    for _ in range(40):
        middle = 0.5 * (low + high)
        if 0.5 * (1.0 + math.erf(middle / math.sqrt(2.0))) < share:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


@njit(cache=True, nogil=True)
def _centre_above_floor(counts, floor, total):
    """Mean of a sky whose lower part became 0, the sigma it had, sigma of what is left, how many were kept, inside.

    The mean and the sigma of what is left are what smoothing and averaging such pixels gives. Sigma follows from the
    normal distribution whose part at the floor and whose middle above it are the ones seen; stars are left out.
    """
    last = BINS - 1
    while last > floor and counts[last] == 0:
        last -= 1
    zeros = counts[floor]
    share = zeros / total
    if last == floor or share > 0.99:
        return float(floor), 0.25, 0.25, zeros, True
    above = _quantile(counts, floor, last, zeros + 0.5 * (total - zeros)) - floor
    of_floor = _normal_quantile(share)
    sigma = max(above / (_normal_quantile(0.5 + 0.5 * share) - of_floor), 0.5)
    top = floor + (_CLIP_SIGMA - of_floor) * sigma
    s0, s1, s2 = 0, 0, 0
    for k in range(floor, min(int(top), last) + 1):
        c = counts[k]
        d = k - floor
        s0 += c
        s1 += c * d
        s2 += c * d * d
    mean = s1 / s0
    left = max(math.sqrt(max(s2 / s0 - mean * mean, 0.0)), 0.25)
    return floor + mean, sigma, left, s0, top < BINS - 1


@njit(cache=True, nogil=True)
def _fill_and_smooth(mesh, result):
    """Median of the finite cells of each 3 x 3 neighbourhood, repeated until there is no gap."""
    rows, columns = mesh.shape
    values = np.empty(9, np.float32)
    source = mesh.copy()
    for _ in range(rows + columns):
        gaps = False
        for j in range(rows):
            for i in range(columns):
                n = 0
                for y in range(max(0, j - 1), min(rows, j + 2)):
                    for x in range(max(0, i - 1), min(columns, i + 2)):
                        if np.isfinite(source[y, x]):
                            insert_sorted(values, n, source[y, x])
                            n += 1
                if n == 0:
                    gaps = True
                    result[j, i] = np.nan
                else:
                    result[j, i] = np.float32(0.5) * (values[(n - 1) // 2] + values[n // 2])
        if not gaps:
            return
        source[:] = result


@njit(cache=True, nogil=True)
def mesh_at(mesh, cell, x, y, out):
    """Interpolate a mesh linearly at frame positions; at the borders its slope goes on.

    Parameters
    ----------
    mesh : ndarray, shape (ny, nx), float32
    cell : int
        Side of a cell, px.
    x, y : ndarray, shape (n,), float64
        Positions, px.
    out : ndarray, shape (n,), float64
        Receives the values.
    """
    rows, columns = mesh.shape
    for k in range(x.size):
        u, v = (x[k] + 0.5) / cell - 0.5, (y[k] + 0.5) / cell - 0.5
        i = min(max(math.floor(u), 0), max(columns - 2, 0))
        j = min(max(math.floor(v), 0), max(rows - 2, 0))
        right, below = min(i + 1, columns - 1), min(j + 1, rows - 1)
        a = mesh[j, i] + (v - j) * (mesh[below, i] - mesh[j, i])
        b = mesh[j, right] + (v - j) * (mesh[below, right] - mesh[j, right])
        out[k] = a + (u - i) * (b - a)
