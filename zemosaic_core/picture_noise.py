"""Calm the noise of a picture where it is: shrink small differences at several scales, keep what stands out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from scipy import ndimage

from zemosaic_core.statistics import mad_sigma, strided_sample

__all__ = [
    "NoiseMap",
    "calm",
    "fill_from_around",
    "pixel_noise",
    "resample_cells",
    "smooth_excess",
    "smooth_known",
    "standing_out",
]

# Cells in which the local noise is measured: rims that only few frames reach are hardly wider.
_CELL_PX = 16
_CLEAR_SIGMA = 40.0
_MAX_SAMPLES = 400_000
_LEAST_NOISE = np.float32(1e-12)
# Scatter of the differences of white noise per scale, sums of squares of the differences of the taps.
_WHITE_SCATTER = (0.891, 0.2007, 0.0856, 0.0413, 0.0205, 0.0103)
# Resampled noise has more power at coarse scales than white noise of the same scatter has; colours between the pixels
# of a filter array have most.
_MOST_CORRELATED = 2.0
# Share of the noise of a pixel that one smoothing leaves: 0.27 of white noise, more of resampled one.
_LEFT_BY_SMOOTHING = 0.4
# Frames differ from what their weights say by up to this.
_MOST_UNTOLD = 1.15
# A small light is at most this many scales wide; its neighbourhood of that many taps goes with it.
_STAR_SCALES = 3
# Rows that are worked on together.
_STRIP = 128


@dataclass(frozen=True)
class NoiseMap:
    """What is known of the noise of an image's pixels.

    Attributes
    ----------
    sigma : ndarray, shape (C, ny, nx), float32
        Standard deviation of a pixel per cell, image units; NaN where it is not known.
    cell_px : float
        Size of the cells in pixels of the image.
    """

    sigma: np.ndarray
    cell_px: float

    def part(self, y0: int, x0: int) -> NoiseMap:
        """Return the noise of the part of the image that begins at a pixel, to the nearest cell."""
        # The last cells may be wider than the others.
        j, i = (
            min(round(at / self.cell_px), n - 1) for at, n in zip((y0, x0), self.sigma.shape[1:], strict=True)
        )
        return NoiseMap(self.sigma[:, j:, i:], self.cell_px)

    def reduced(self, factor: int) -> NoiseMap:
        """Return the noise of the image averaged over blocks of ``factor`` x ``factor`` pixels."""
        return NoiseMap(self.sigma / np.float32(factor), self.cell_px / factor)

    def of_sum(self, factors: tuple[float, ...], shape_hw: tuple[int, int]) -> np.ndarray:
        """Return the noise of a sum of channels times factors, as `calm` takes it for an image of ``shape_hw``."""
        weights = np.square(np.array(factors, np.float32))[:, None, None]
        sigma = np.sqrt((weights * np.square(self.sigma)).sum(axis=0))
        return resample_cells(sigma, self.cell_px, shape_hw)


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
    light = np.empty_like(plane)
    seen = np.empty_like(plane)
    half = np.empty_like(plane)
    _smooth(plane, spacing, half, light)
    _smooth(known, spacing, half, seen)
    np.maximum(seen, np.float32(1e-3), out=seen)
    light /= seen
    light *= known
    return light


def pixel_noise(plane: np.ndarray, known: np.ndarray) -> float:
    """Noise of one pixel, whatever smooth light lies beneath.

    The scatter around a smooth version of about 10 px; noise that resampling has spread over neighbours counts
    in full, stars and nebulae hardly at all.

    Parameters
    ----------
    plane, known : ndarray
        As for `smooth_known`.

    Returns
    -------
    float
        Standard deviation; 0 when nothing is known.
    """
    detail = plane - smooth_known(smooth_known(plane, known, 1), known, 2)
    detail[known <= 0] = np.nan
    sigma = mad_sigma(strided_sample(detail, _MAX_SAMPLES))
    return sigma if np.isfinite(sigma) else 0.0


def calm(
    plane: np.ndarray,
    known: np.ndarray,
    thresholds: tuple[float, ...],
    keep: float,
    *,
    bright_scales: int = 0,
    noise: np.ndarray | None = None,
) -> np.ndarray:
    """Take the noise out of a plane and leave stars and nebulae as they are.

    The plane is split into differences of ever smoother versions ("with holes", spacing 1, 2, 4 ... px). Where
    neither a difference nor 0.3 of the largest one within two taps exceeds ``t = threshold * noise``, it is noise.
    Where the larger of them is ``m``, the share ``1 - (t / m)^2`` remains (the non-negative garrote), which takes
    next to nothing from a star and keeps the dark ring of the difference around it, without which the star would
    get a bright one. The noise is measured in small cells, because a rim that few frames reach is noisier than the
    middle.

    Parameters
    ----------
    plane : ndarray, shape (h, w), float32
        Values above the sky; 0 where missing.
    known : ndarray, shape (h, w), float32
        1 or 0, see `smooth_known`.
    thresholds : tuple of float
        In sigma, finest scale first; their number is the number of scales.
    keep : float
        Share of the noise that stays, 0 to 1: a sky without any grain looks painted.
    bright_scales : int
        In that many of the finest scales what is darker than its surroundings counts half: the sky has small lights
        and hardly any small holes.

    Returns
    -------
    ndarray, shape (h, w), float32
        0 where missing.
    """
    cells = _cell_noise(plane - smooth_known(plane, known, 1), known)
    # What stands out that far needs no calming, and would leave its rings in every scale.
    clear = np.float32(_CLEAR_SIGMA * np.median(cells))
    current = np.clip(plane, -clear, clear)
    result = plane - current
    for scale, threshold in enumerate(thresholds):
        spacing = 1 << scale
        smoother = smooth_known(current, known, spacing)
        detail = np.subtract(current, smoother, out=current)
        scatter = _scatter_of_scale(detail, known, cells, scale, noise)
        largest = np.empty_like(detail)
        counting = np.maximum(detail, np.float32(-0.5) * detail) if scale < bright_scales else detail
        _largest_near(counting, spacing, largest)
        _add_shrunk(detail, largest, scatter, np.float32(threshold), np.float32(keep), result)
        del detail, counting, largest
        current = smoother
    result += current
    return result


def standing_out(plane: np.ndarray, known: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
    """Tell by how much small lights stand out of the noise, with the few pixels around them that are theirs.

    For stars of FWHM 2 px the largest of the three finest differences over its noise is within a fifth of what a filter
    of the star's own shape gives, at 3 and 4.5 px three quarters of it.

    Parameters
    ----------
    plane, known : ndarray
        As for `smooth_known`.
    noise : ndarray, optional
        As for `calm`.

    Returns
    -------
    ndarray, shape (h, w), float32
        In units of the noise, >= 0.
    """
    cells = _cell_noise(plane - smooth_known(plane, known, 1), known)
    result = np.zeros_like(plane)
    current = plane
    for scale in range(_STAR_SCALES):
        smoother = smooth_known(current, known, 1 << scale)
        detail = current - smoother
        scatter = _scatter_of_scale(detail, known, cells, scale, noise)
        _divide_by_cells(detail, scatter)
        size = 2 * (1 << scale) + 1
        np.maximum(result, ndimage.maximum_filter(detail, size=size, mode="nearest"), out=result)
        current = smoother
    result *= known
    return result


def smooth_excess(
    plane: np.ndarray, beneath: np.ndarray, known: np.ndarray, noise: np.ndarray | None = None
) -> np.ndarray:
    """Tell by how much a plane, slightly smoothed, lies above another one.

    Parameters
    ----------
    plane, known : ndarray
        As for `smooth_known`.
    beneath : ndarray, shape (h, w), float32
    noise : ndarray, optional
        As for `calm`.

    Returns
    -------
    ndarray, shape (h, w), float32
        In units of the noise that the smoothing leaves.
    """
    detail = plane - smooth_known(plane, known, 1)
    scatter = _scatter_of_scale(detail, known, _cell_noise(detail, known), 0, noise)
    excess = smooth_known(plane - beneath, known, 1)
    _divide_by_cells(excess, scatter * np.float32(_LEFT_BY_SMOOTHING / _WHITE_SCATTER[0]))
    return excess


def fill_from_around(plane: np.ndarray, use: np.ndarray) -> np.ndarray:
    """Replace the pixels that are not used by smooth means of those around them.

    Parameters
    ----------
    plane : ndarray, shape (h, w), float32
    use : ndarray, shape (h, w), float32
        Share of each pixel that counts, 0 to 1.

    Returns
    -------
    ndarray, shape (h, w), float32
        ``plane`` where ``use`` is 1; 0 where nothing that counts is within 64 px.
    """
    left = np.float32(1.0) - use
    filled = plane * use
    half, light, seen = np.empty_like(plane), np.empty_like(plane), np.empty_like(plane)
    value, weight = filled.copy(), use.astype(np.float32, copy=True)
    for scale in range(6):
        _smooth(value, 1 << scale, half, light)
        _smooth(weight, 1 << scale, half, seen)
        value, light = light, value
        weight, seen = seen, weight
        # By strips: copies of the whole planes would be the largest part of the picture's memory.
        for y in range(0, len(plane), _STRIP):
            rows = slice(y, y + _STRIP)
            enough = np.clip(weight[rows] * np.float32(8.0), 0.0, 1.0) * left[rows]
            filled[rows] += enough * value[rows] / np.maximum(weight[rows], np.float32(1e-3))
            left[rows] -= enough
    return filled


def resample_cells(cells: np.ndarray, cell_px: float, shape_hw: tuple[int, int]) -> np.ndarray:
    """Return a map of cells for another raster: that of `calm` over an image of ``shape_hw``.

    Parameters
    ----------
    cells : ndarray, shape (ny, nx)
        Values of cells of ``cell_px`` pixels of the image.
    cell_px : float
        Size of those cells in pixels of the image; need not be whole.

    Returns
    -------
    ndarray, shape (ceil(h / 16), ceil(w / 16)), float32
        The value at the middle of each cell.
    """
    rows, columns = (
        np.clip(((np.arange(-(-size // _CELL_PX)) + 0.5) * _CELL_PX / cell_px).astype(int), 0, n - 1)
        for size, n in zip(shape_hw, cells.shape, strict=True)
    )
    return np.asarray(cells[np.ix_(rows, columns)], dtype=np.float32)


def _scatter_of_scale(
    detail: np.ndarray, known: np.ndarray, cells: np.ndarray, scale: int, noise: np.ndarray | None
) -> np.ndarray:
    """Return the noise of the differences of a scale per cell, float32."""
    measured = cells * np.float32(_noise_in_cells(detail, known, cells))
    if noise is None:
        return measured
    white = _WHITE_SCATTER[min(scale, len(_WHITE_SCATTER) - 1)]
    # The finest differences of resampled noise are smaller than those of white noise.
    most = noise * np.float32(_MOST_UNTOLD * white * (1.0 if scale == 0 else _MOST_CORRELATED))
    return np.where(np.isfinite(most), np.minimum(measured, most), measured).astype(np.float32)


def _cell_noise(detail: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Noise of the finest differences per cell; cells with few known pixels take their neighbours' noise."""
    cells = np.empty((-(-detail.shape[0] // _CELL_PX), -(-detail.shape[1] // _CELL_PX)), np.float32)
    _fill_cells(detail, known, _CELL_PX, cells)
    missing = ~np.isfinite(cells)
    if missing.all():
        return np.zeros_like(cells)
    if missing.any():
        nearest = ndimage.distance_transform_edt(missing, return_distances=False, return_indices=True)
        cells = cells[tuple(nearest)]
    # The scatter of a median of 256 values; a step to a noisier rim stays where it is.
    return ndimage.median_filter(cells, footprint=[[0, 1, 0], [1, 1, 1], [0, 1, 0]], mode="nearest")


def _noise_in_cells(detail: np.ndarray, known: np.ndarray, cells: np.ndarray) -> float:
    """Noise of this scale over the noise of the finest one."""
    # Every 5th pixel both ways is plenty, and 5 and 16 have no common rhythm.
    rows, columns = np.arange(0, detail.shape[0], 5), np.arange(0, detail.shape[1], 5)
    noise = cells[np.ix_(rows // _CELL_PX, columns // _CELL_PX)]
    use = (known[::5, ::5] > 0) & (noise > _LEAST_NOISE)
    ratio = mad_sigma(detail[::5, ::5][use] / noise[use])
    return ratio if np.isfinite(ratio) else 0.0


@njit(cache=True, nogil=True)
def _mirrored(index, size):
    if size == 1:
        return 0
    period = 2 * (size - 1)
    index = abs(index) % period
    return period - index if index >= size else index


@njit(cache=True, nogil=True)
def _smooth(plane, spacing, half, result):
    height, width = plane.shape
    a, b, c = np.float32(6.0 / 16.0), np.float32(4.0 / 16.0), np.float32(1.0 / 16.0)
    reach = 2 * spacing
    for y in range(height):
        row, out = plane[y], half[y]
        for x in range(min(reach, width)):
            near = row[_mirrored(x - spacing, width)] + row[_mirrored(x + spacing, width)]
            far = row[_mirrored(x - reach, width)] + row[_mirrored(x + reach, width)]
            out[x] = a * row[x] + b * near + c * far
        for x in range(reach, width - reach):
            near = row[x - spacing] + row[x + spacing]
            out[x] = a * row[x] + b * near + c * (row[x - reach] + row[x + reach])
        for x in range(max(reach, width - reach), width):
            near = row[_mirrored(x - spacing, width)] + row[_mirrored(x + spacing, width)]
            far = row[_mirrored(x - reach, width)] + row[_mirrored(x + reach, width)]
            out[x] = a * row[x] + b * near + c * far
    for y in range(height):
        above, below = half[_mirrored(y - spacing, height)], half[_mirrored(y + spacing, height)]
        top, bottom = half[_mirrored(y - reach, height)], half[_mirrored(y + reach, height)]
        here, out = half[y], result[y]
        for x in range(width):
            out[x] = a * here[x] + b * (above[x] + below[x]) + c * (top[x] + bottom[x])


@njit(cache=True, nogil=True)
def _fill_cells(detail, known, cell, cells):
    height, width = detail.shape
    values = np.empty(cell * cell, dtype=np.float32)
    for j in range(cells.shape[0]):
        for i in range(cells.shape[1]):
            n = 0
            for y in range(j * cell, min(height, (j + 1) * cell)):
                for x in range(i * cell, min(width, (i + 1) * cell)):
                    if known[y, x] > 0:
                        values[n] = abs(detail[y, x])
                        n += 1
            cells[j, i] = np.float32(1.4826) * np.median(values[:n]) if n >= 24 else np.float32(np.nan)


@njit(cache=True, nogil=True)
def _largest_near(detail, spacing, result):
    """Largest size within two taps both ways, neighbours counting by 0.3."""
    height, width = detail.shape
    half = np.empty((height, width), dtype=np.float32)
    share = np.float32(0.3)
    for y in range(height):
        row, out = detail[y], half[y]
        for x in range(width):
            most = abs(row[x])
            for k in (-2, -1, 1, 2):
                i = x + k * spacing
                if 0 <= i < width:
                    most = max(most, abs(row[i]))
            out[x] = most
    for y in range(height):
        out = result[y]
        for x in range(width):
            out[x] = abs(detail[y, x])
        for k in range(-2, 3):
            j = y + k * spacing
            if 0 <= j < height:
                near = half[j]
                for x in range(width):
                    out[x] = max(out[x], share * near[x])


@njit(cache=True, nogil=True)
def _place_between(k, n):
    """Cell before pixel ``k`` of ``n`` cells, and how far the pixel lies on the way to the next centre."""
    half = np.float32(0.5)
    v = min(max((k + half) * np.float32(1.0 / _CELL_PX) - half, np.float32(0.0)), np.float32(n - 1))
    first = min(int(v), max(n - 2, 0))
    return first, np.float32(v - first)


@njit(cache=True, nogil=True)
def _cells_at_row(cells, y, line):
    """Interpolate the columns of cells at a row of pixels."""
    rows = cells.shape[0]
    j, share = _place_between(y, rows)
    for i in range(line.size):
        line[i] = cells[j, i] + share * (cells[min(j + 1, rows - 1), i] - cells[j, i])


@njit(cache=True, nogil=True)
def _cells_at_column(line, x):
    """Interpolate a row of `_cells_at_row` at a column of pixels."""
    i, share = _place_between(x, line.size)
    return line[i] + share * (line[min(i + 1, line.size - 1)] - line[i])


@njit(cache=True, nogil=True)
def _divide_by_cells(detail, cells):
    """Divide by the noise interpolated between the centres of cells; 0 where there is none."""
    height, width = detail.shape
    line = np.empty(cells.shape[1], dtype=np.float32)
    for y in range(height):
        _cells_at_row(cells, y, line)
        for x in range(width):
            noise = _cells_at_column(line, x)
            detail[y, x] = detail[y, x] / noise if noise > _LEAST_NOISE else np.float32(0.0)


@njit(cache=True, nogil=True)
def _add_shrunk(detail, largest, cells, factor, keep, result):
    """Add the shrunk differences; the noise between the centres of cells is interpolated."""
    height, width = detail.shape
    one = np.float32(1.0)
    line = np.empty(cells.shape[1], dtype=np.float32)
    for y in range(height):
        _cells_at_row(cells, y, line)
        for x in range(width):
            noise = _cells_at_column(line, x)
            limit = factor * noise
            most = largest[y, x]
            share = one - (limit / most) * (limit / most) if most > limit else np.float32(0.0)
            result[y, x] += detail[y, x] * (keep + (one - keep) * share)
