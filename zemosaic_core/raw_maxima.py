"""Places in a raw frame where there may be a star: local maxima of the smoothed light. Arrays only.

Smoothed light is a sum of pixels with whole-number weights. Of a frame with a colour filter array the light is first
summed over every 2 x 2 window, which holds all colours whatever its phase; position (y, x) then lies at
(y + 0.5, x + 0.5) of the frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit

from zemosaic_core.few_values import insert_sorted
from zemosaic_core.raw_sky import SkyCells, mesh_at

__all__ = [
    "RINGS_PX",
    "RING_PX",
    "WIDE_RING_PX",
    "Maxima",
    "SearchMeshes",
    "find_maxima",
    "maxima_of_list",
    "row_shares",
    "search_meshes",
    "smoothing_sums",
]

# How far from a maximum its surroundings are, and how far in frames of wide stars.
RINGS_PX = RING_PX, WIDE_RING_PX = 6, 13

# (1 3 4 3 1) both ways is close to a star of FWHM 3 px; over 2 x 2 windows it is (1 4 7 7 4 1).
_TAPS = np.array([1, 3, 4, 3, 1], np.int32)
_KERNEL_SUM = int(_TAPS.sum()) ** 2
_MONO_NOISE = float((_TAPS.astype(float) ** 2).sum())
# Each phase holds three of the six taps per axis; both threes have this sum of squares.
_CFA_NOISE = 66.0
# How much a maximum must stand above what is around it: by its whole threshold on diffuse light, by less elsewhere.
_OWN_SIGMA = 3.5
_OWN_SIGMA_ON_LIGHT = 6.0
_LIGHT_SIGMA = 6.0
_CAPACITY = 8192
# With more maxima than that the limit is lifted by so much.
_NEXT_LIMIT = 1.5
# Rows of smoothed light that are kept: twice the farthest ring and one.
_RING_ROWS = 32
_FARTHEST_RING_PX = 15


@dataclass(frozen=True)
class Maxima:
    """Local maxima of the smoothed light of a frame, row by row.

    Attributes
    ----------
    y, x : ndarray, shape (n,), int32
        Pixel of the smoothed light.
    height, around : ndarray, shape (n,), int32
        Smoothed light there and typical smoothed light of the ring around it.
    sky, noise : ndarray, shape (n,), float64
        Smoothed sky underneath, diffuse light included, and the noise of the smoothed light.
    per_pixel : float
        Factor from smoothed light to one pixel.
    threshold_sigma : float
        The limit that was used.
    """

    y: np.ndarray
    x: np.ndarray
    height: np.ndarray
    around: np.ndarray
    sky: np.ndarray
    noise: np.ndarray
    per_pixel: float
    threshold_sigma: float

    @property
    def snr(self) -> np.ndarray:
        """Height above the sky over the noise, shape (n,)."""
        return (self.height - self.sky) / self.noise

    def __len__(self) -> int:
        return int(self.y.size)

    def select(self, keep: np.ndarray) -> Maxima:
        """Return the maxima chosen by a mask (n,)."""
        of_each = (self.y, self.x, self.height, self.around, self.sky, self.noise)
        return Maxima(*(values[keep] for values in of_each), self.per_pixel, self.threshold_sigma)


@dataclass(frozen=True)
class SearchMeshes:
    """Sky and noise of the smoothed light per cell, (ny, nx) float32, and the factor from it to one pixel."""

    sky: np.ndarray
    noise: np.ndarray
    per_pixel: float

    @property
    def usable(self) -> bool:
        """Whether the noise is known everywhere; else nothing is found."""
        return bool(np.isfinite(self.noise).all())

    def limit(self, threshold_sigma: float) -> np.ndarray:
        """Return what maxima must exceed, (ny, nx) float32."""
        return self.sky + np.float32(threshold_sigma) * self.noise


def smoothing_sums(cells: SkyCells, is_cfa: bool) -> tuple[np.ndarray, np.ndarray, float]:
    """Return sky and noise of the smoothed light per cell, (ny, nx) float32, and its factor to one pixel."""
    noise = np.maximum(
        cells.noise, 1e-3 * np.maximum(np.median(cells.noise, axis=(1, 2)), 1e-3)[:, None, None]
    )
    if is_cfa:
        sky = _KERNEL_SUM * cells.sky.sum(axis=0)
        spread = _CFA_NOISE * np.sqrt((noise**2).sum(axis=0))
        return sky.astype(np.float32), spread.astype(np.float32), 1.0 / (4 * _KERNEL_SUM)
    sky = _KERNEL_SUM * cells.sky.mean(axis=0)
    spread = _MONO_NOISE * np.sqrt((noise**2).mean(axis=0))
    return sky.astype(np.float32), spread.astype(np.float32), 1.0 / _KERNEL_SUM


def find_maxima(
    plane: np.ndarray,
    cells: SkyCells,
    is_cfa: bool,
    *,
    threshold_sigma: float,
    noise_factor: float = 1.0,
    ring_px: int = RING_PX,
) -> Maxima:
    """Find the local maxima of the smoothed light that stand out of the sky and of their surroundings.

    Parameters
    ----------
    plane : ndarray, shape (H, W), uint16
        Raw pixels without defects.
    cells : SkyCells
        Its sky.
    is_cfa : bool
        The pixels lie behind a colour filter array.
    threshold_sigma : float
        Least height above the sky in units of the noise of the smoothed light.
    noise_factor : float
        By how much the smoothed light is noisier than white noise would make it.
    ring_px : int
        Distance of what is called the surroundings of a maximum, 3 to 15; stars should be narrower.

    Returns
    -------
    Maxima
        At least 4 px inside the border. A frame with more than 8192 maxima is searched again with a higher limit.

    Raises
    ------
    ValueError
        When ``ring_px`` is out of range.
    """
    if not 3 <= ring_px <= _FARTHEST_RING_PX:
        raise ValueError(f"ring_px must be 3 to {_FARTHEST_RING_PX}, got {ring_px}")
    meshes = search_meshes(cells, is_cfa, noise_factor)
    rows = np.empty((_CAPACITY, 4), np.int32)
    found = 0
    if meshes.usable:
        while True:
            limit = meshes.limit(threshold_sigma)
            found = _list_maxima(plane, is_cfa, cells.cell_px, limit, meshes.sky, meshes.noise, ring_px, rows)
            if found <= _CAPACITY:
                break
            threshold_sigma *= _NEXT_LIMIT
    return _maxima_of_rows(rows[:found].copy(), meshes, cells.cell_px, is_cfa, threshold_sigma)


def search_meshes(cells: SkyCells, is_cfa: bool, noise_factor: float) -> SearchMeshes:
    """Return what maxima are searched with; parameters as in `find_maxima`."""
    sky, noise, per_pixel = smoothing_sums(cells, is_cfa)
    return SearchMeshes(sky, noise * np.float32(noise_factor), per_pixel)


def maxima_of_list(
    rows: np.ndarray,
    meshes: SearchMeshes,
    cell_px: int,
    is_cfa: bool,
    width: int,
    threshold_sigma: float,
) -> Maxima:
    """Return what `find_maxima` returns, from a list of all maxima above its first limit.

    Parameters
    ----------
    rows : ndarray, shape (n, 4), int32
        y, x, smoothed light, smoothed light of the ring; in reading order.
    meshes : SearchMeshes
    cell_px : int
    is_cfa : bool
    width : int
        Pixels of a row of the frame.
    threshold_sigma : float
    """
    while len(rows) > _CAPACITY:
        threshold_sigma *= _NEXT_LIMIT
        limits = np.empty(len(rows), np.int32)
        _limits_at(
            meshes.limit(threshold_sigma),
            cell_px,
            0.5 if is_cfa else 0.0,
            rows,
            np.empty(width, np.int32),
            limits,
        )
        rows = rows[rows[:, 2] > limits]
    return _maxima_of_rows(rows, meshes, cell_px, is_cfa, threshold_sigma)


def _maxima_of_rows(
    rows: np.ndarray, meshes: SearchMeshes, cell_px: int, is_cfa: bool, threshold_sigma: float
) -> Maxima:
    shift = 0.5 if is_cfa else 0.0
    at_y, at_x = rows[:, 0] + shift, rows[:, 1] + shift
    row_sky, row_noise = np.empty((2, len(rows)))
    mesh_at(meshes.sky, cell_px, at_x, at_y, row_sky)
    mesh_at(meshes.noise, cell_px, at_x, at_y, row_noise)
    # On diffuse light the surroundings are the sky, not the mesh; two sigma of them are noise.
    row_sky += np.maximum(rows[:, 3] - row_sky - 2.0 * row_noise, 0.0)
    return Maxima(*rows.T.copy(), row_sky, row_noise, meshes.per_pixel, threshold_sigma)


def row_shares(height: int, cell_px: int, n_rows: int, is_cfa: bool) -> np.ndarray:
    """Return how far rows of smoothed light lie from the middle of one row of cells to the next, (height,) float32."""
    v = (np.arange(height) + (0.5 if is_cfa else 0.0) + 0.5) / cell_px - 0.5
    return np.asarray(v - np.clip(np.floor(v), 0, max(n_rows - 2, 0)), np.float32)


@njit(cache=True, nogil=True)
def _limits_at(mesh, cell, shift, rows, line, out):
    """Limits at listed places, which are in order of rows."""
    before = -1
    for k in range(out.size):
        y = rows[k, 0]
        if y != before:
            _mesh_row(mesh, cell, y, shift, line)
            before = y
        out[k] = line[rows[k, 1]]


@njit(cache=True, nogil=True)
def _smooth_along(upper, lower, is_cfa, sums, out):
    """(1 3 4 3 1) along the row of 2 x 2 windows that begins at ``upper`` (CFA), or along ``upper`` (mono).

    Two pixels on either side, three on the right of windows, are left as they are.
    """
    width = sums.size
    three, four, seven = np.int32(3), np.int32(4), np.int32(7)
    if is_cfa:
        for x in range(width):
            sums[x] = np.int32(upper[x]) + np.int32(lower[x])
        n = width - 5
        a, b, c, d, e, f = sums[:n], sums[1:], sums[2:], sums[3:], sums[4:], sums[5:]
        inner = out[2 : n + 2]
        for x in range(n):
            inner[x] = (a[x] + f[x]) + four * (b[x] + e[x]) + seven * (c[x] + d[x])
    else:
        for x in range(width):
            sums[x] = np.int32(upper[x])
        n = width - 4
        a, b, c, d, e = sums[:n], sums[1:], sums[2:], sums[3:], sums[4:]
        inner = out[2 : n + 2]
        for x in range(n):
            inner[x] = (a[x] + e[x]) + three * (b[x] + d[x]) + four * c[x]


@njit(cache=True, nogil=True)
def _smooth_across(a, b, c, d, e, out):
    three, four = np.int32(3), np.int32(4)
    for x in range(out.size):
        out[x] = (a[x] + e[x]) + three * (b[x] + d[x]) + four * c[x]


@njit(cache=True, nogil=True)
def _any_above(values, bounds):
    most = np.int32(-1)
    for x in range(values.size):
        most = max(most, values[x] - bounds[x])
    return most > 0


@njit(cache=True, nogil=True)
def _mesh_row(mesh, cell, y, shift, row):
    """Whole-number part of a mesh interpolated along a pixel row; ``mesh_at`` at ``(x + shift, y + shift)``."""
    rows, columns = mesh.shape
    v = (y + shift + 0.5) / cell - 0.5
    j = min(max(math.floor(v), 0), max(rows - 2, 0))
    below = min(j + 1, rows - 1)
    fy = np.float32(v - j)
    width = row.size
    for i in range(max(columns - 1, 1)):
        right = min(i + 1, columns - 1)
        a = mesh[j, i] + fy * (mesh[below, i] - mesh[j, i])
        b = mesh[j, right] + fy * (mesh[below, right] - mesh[j, right])
        first = 0 if i == 0 else i * cell + cell // 2
        last = width if i >= columns - 2 else (i + 1) * cell + cell // 2
        slope = (b - a) / np.float32(cell)
        start = a + slope * np.float32(shift + 0.5 - 0.5 * cell - i * cell)
        part = row[first:last]
        for x in range(part.size):
            part[x] = np.int32(start + slope * np.float32(first + x))


@njit(cache=True, nogil=True)
def _surroundings(smooth, y, x, ring_px, low_y, high_y, low_x, high_x, ring):
    """Mean of ranks 2 to 4 of eight points around a maximum, cut off at the border.

    Low ranks, because a trail or a neighbour lifts some of the points.
    """
    diagonal = 2 * ring_px // 3
    left, right = max(x - diagonal, low_x), min(x + diagonal, high_x)
    above, below = max(y - diagonal, low_y), min(y + diagonal, high_y)
    here = smooth[y % _RING_ROWS]
    upper, lower = smooth[above % _RING_ROWS], smooth[below % _RING_ROWS]
    ring[0], ring[1] = here[max(x - ring_px, low_x)], here[min(x + ring_px, high_x)]
    ring[2] = smooth[max(y - ring_px, low_y) % _RING_ROWS, x]
    ring[3] = smooth[min(y + ring_px, high_y) % _RING_ROWS, x]
    ring[4], ring[5] = upper[left], upper[right]
    ring[6], ring[7] = lower[left], lower[right]
    for n in range(1, 8):
        insert_sorted(ring, n, ring[n])
    # Whole numbers, so that every body gives the same.
    return (ring[1] + ring[2] + ring[3]) // 3


@njit(cache=True, nogil=True)
def _list_maxima(plane, is_cfa, cell, threshold, sky, noise, ring_px, rows):
    """Write (y, x, height, around) of each maximum while there is room; return how many there are.

    Of equal neighbours the first one, in reading order, is the maximum.
    """
    height, width = plane.shape
    extra = 1 if is_cfa else 0
    shift = 0.5 if is_cfa else 0.0
    along = np.zeros((8, width), np.int32)
    smooth = np.zeros((_RING_ROWS, width), np.int32)
    sums = np.zeros(width, np.int32)
    limit = np.empty(width, np.int32)
    ring = np.empty(8, np.int64)
    # What is smoothed, first to last.
    low_y, high_y, low_x, high_x = 2, height - 3 - extra, 2, width - 3 - extra
    found = 0
    along_done, smooth_done = 0, low_y
    for y in range(low_y + 2, high_y - 1):
        while smooth_done <= min(y + ring_px, high_y):
            while along_done <= smooth_done + 2:
                below = min(along_done + extra, height - 1)
                _smooth_along(plane[along_done], plane[below], is_cfa, sums, along[along_done % 8])
                along_done += 1
            k = smooth_done
            _smooth_across(
                along[(k - 2) % 8],
                along[(k - 1) % 8],
                along[k % 8],
                along[(k + 1) % 8],
                along[(k + 2) % 8],
                smooth[k % _RING_ROWS],
            )
            smooth_done += 1
        _mesh_row(threshold, cell, y, shift, limit)
        before, here, after = (
            smooth[(y - 1) % _RING_ROWS],
            smooth[y % _RING_ROWS],
            smooth[(y + 1) % _RING_ROWS],
        )
        for x0 in range(0, width, cell):
            x1 = min(x0 + cell, width)
            if not _any_above(here[x0:x1], limit[x0:x1]):
                continue
            for x in range(max(low_x + 2, x0), min(high_x - 1, x1)):
                v = here[x]
                if v <= limit[x] or v <= here[x - 1] or v < here[x + 1]:
                    continue
                if v <= before[x - 1] or v <= before[x] or v <= before[x + 1]:
                    continue
                if v < after[x - 1] or v < after[x] or v < after[x + 1]:
                    continue
                around = _surroundings(smooth, y, x, ring_px, low_y, high_y, low_x, high_x, ring)
                row, column = min(y // cell, noise.shape[0] - 1), min(x // cell, noise.shape[1] - 1)
                unit = noise[row, column]
                light = (np.float32(around) - sky[row, column]) / (np.float32(_LIGHT_SIGMA) * unit)
                light = min(max(light, np.float32(0)), np.float32(1))
                needed = np.float32(_OWN_SIGMA) + np.float32(_OWN_SIGMA_ON_LIGHT - _OWN_SIGMA) * light
                if np.float32(v - around) < needed * unit:
                    continue
                if found < rows.shape[0]:
                    rows[found, 0], rows[found, 1], rows[found, 2], rows[found, 3] = y, x, v, around
                found += 1
    return found
