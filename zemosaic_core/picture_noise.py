"""Calm the noise of a picture where it is: shrink small differences at several scales, keep what stands out."""

from __future__ import annotations

import numpy as np
from numba import njit
from scipy import ndimage

from zemosaic_core.statistics import mad_sigma, strided_sample

__all__ = ["calm", "pixel_noise", "smooth_known"]

# Cells in which the local noise is measured: rims that only few frames reach are hardly wider.
_CELL_PX = 16
_CLEAR_SIGMA = 40.0
_MAX_SAMPLES = 400_000
_LEAST_NOISE = np.float32(1e-12)


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
        limit = np.float32(threshold * _noise_in_cells(detail, known, cells))
        largest = np.empty_like(detail)
        standing_out = np.maximum(detail, np.float32(-0.5) * detail) if scale < bright_scales else detail
        _largest_near(standing_out, spacing, largest)
        _add_shrunk(detail, largest, cells, limit, np.float32(keep), result)
        del detail, standing_out, largest
        current = smoother
    result += current
    return result


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
def _add_shrunk(detail, largest, cells, factor, keep, result):
    """Add the shrunk differences; the noise between the centres of cells is interpolated."""
    height, width = detail.shape
    rows, columns = cells.shape
    step = np.float32(1.0 / _CELL_PX)
    half, one = np.float32(0.5), np.float32(1.0)
    line = np.empty(columns, dtype=np.float32)
    for y in range(height):
        v = min(max((y + half) * step - half, np.float32(0.0)), np.float32(rows - 1))
        j = min(int(v), max(rows - 2, 0))
        fy = np.float32(v - j)
        for i in range(columns):
            line[i] = cells[j, i] + fy * (cells[min(j + 1, rows - 1), i] - cells[j, i])
        for x in range(width):
            u = min(max((x + half) * step - half, np.float32(0.0)), np.float32(columns - 1))
            i = min(int(u), max(columns - 2, 0))
            noise = line[i] + np.float32(u - i) * (line[min(i + 1, columns - 1)] - line[i])
            limit = factor * noise
            most = largest[y, x]
            share = one - (limit / most) * (limit / most) if most > limit else np.float32(0.0)
            result[y, x] += detail[y, x] * (keep + (one - keep) * share)
