"""Calm the noise of a picture where it is: shrink small differences at several scales, keep what stands out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from scipy import ndimage

from zemosaic_core.picture_smoothing import raise_row_to, smooth_known
from zemosaic_core.statistics import mad_sigma, strided_sample

__all__ = [
    "FinestScale",
    "NoiseMap",
    "calm",
    "excess",
    "finest_scale",
    "pixel_noise",
    "resample_cells",
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


def pixel_noise(plane: np.ndarray, known: np.ndarray) -> float:
    """Noise of one pixel, whatever smooth light lies beneath.

    The scatter around a smooth version of about 10 px; noise that resampling has spread over neighbours counts
    in full, stars and nebulae hardly at all.

    Parameters
    ----------
    plane, known : ndarray
        As for `picture_smoothing.smooth_known`.

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
        1 or 0, see `picture_smoothing.smooth_known`.
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


@dataclass(frozen=True)
class FinestScale:
    """The finest differences of a plane: what several steps look at.

    Attributes
    ----------
    smoother : ndarray, shape (h, w), float32
        The plane, smoothed at a spacing of 1 px.
    cells : ndarray, shape (ny, nx), float32
        Noise of the differences from it per cell, as it was measured.
    scatter : ndarray, shape (ny, nx), float32
        The same, bounded by what is known of the noise.
    """

    smoother: np.ndarray
    cells: np.ndarray
    scatter: np.ndarray


def finest_scale(plane: np.ndarray, known: np.ndarray, noise: np.ndarray | None = None) -> FinestScale:
    """Measure the finest differences of a plane; parameters as for `calm`."""
    smoother = smooth_known(plane, known, 1)
    detail = plane - smoother
    cells = _cell_noise(detail, known)
    return FinestScale(smoother, cells, _scatter_of_scale(detail, known, cells, 0, noise))


def standing_out(
    plane: np.ndarray, known: np.ndarray, finest: FinestScale, noise: np.ndarray | None = None
) -> np.ndarray:
    """Tell by how much small lights stand out of the noise, with the few pixels around them that are theirs.

    For stars of FWHM 2 px the largest of the three finest differences over its noise is within a fifth of what a filter
    of the star's own shape gives, at 3 and 4.5 px three quarters of it.

    Parameters
    ----------
    plane, known : ndarray
        As for `picture_smoothing.smooth_known`.
    finest : FinestScale
        Of this plane.
    noise : ndarray, optional
        As for `calm`.

    Returns
    -------
    ndarray, shape (h, w), float32
        In units of the noise, >= 0.
    """
    result, largest = np.zeros_like(plane), np.empty_like(plane)
    current = plane
    for scale in range(_STAR_SCALES):
        smoother = finest.smoother if scale == 0 else smooth_known(current, known, 1 << scale)
        detail = current - smoother
        scatter = (
            finest.scatter if scale == 0 else _scatter_of_scale(detail, known, finest.cells, scale, noise)
        )
        _divide_by_cells(detail, scatter)
        _largest_in_square(detail, 1 << scale, largest)
        np.maximum(result, largest, out=result)
        current = smoother
    result *= known
    return result


def excess(
    plane: np.ndarray, beneath: np.ndarray, known: np.ndarray, finest: FinestScale
) -> tuple[np.ndarray, np.ndarray]:
    """Tell by how much a plane lies above another one, pixel by pixel and slightly smoothed.

    Parameters
    ----------
    plane, known : ndarray
        As for `picture_smoothing.smooth_known`.
    beneath : ndarray, shape (h, w), float32
    finest : FinestScale
        Of the plane.

    Returns
    -------
    of_pixels, smoothed : ndarray, shape (h, w), float32
        In units of the noise of a pixel, and of the noise that the smoothing leaves.
    """
    scatter = finest.scatter * np.float32(1.0 / _WHITE_SCATTER[0])
    of_pixels = plane - beneath
    smoothed = smooth_known(of_pixels, known, 1)
    _divide_by_cells(of_pixels, scatter)
    _divide_by_cells(smoothed, scatter * np.float32(_LEFT_BY_SMOOTHING))
    return of_pixels, smoothed


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
def _largest_of_shifts(row, spacing, most):
    """Largest of a row's pixels within two taps both ways."""
    width = row.size
    most[:] = row
    for k in (1, 2):
        shift = k * spacing
        inner = max(0, width - shift)
        # Slices, because an index that might be negative keeps the compiler from working on several pixels at once.
        moved, shifted = row[min(shift, width) :], most[min(shift, width) :]
        for x in range(inner):
            most[x] = max(most[x], moved[x])
        for x in range(inner):
            shifted[x] = max(shifted[x], row[x])


@njit(cache=True, nogil=True)
def _largest_near(detail, spacing, result):
    """Largest size within two taps both ways, neighbours counting by 0.3."""
    height, width = detail.shape
    n = min(height, 4 * spacing + 1)
    # Row y of the plane lies at y modulo n.
    half, sizes = np.empty((n, width), dtype=np.float32), np.empty(width, dtype=np.float32)
    share = np.float32(0.3)
    done = 0
    for y in range(height):
        while done < min(height, y + 2 * spacing + 1):
            row, near = detail[done], half[done % n]
            for x in range(width):
                sizes[x] = abs(row[x])
            _largest_of_shifts(sizes, spacing, near)
            for x in range(width):
                near[x] = share * near[x]
            done += 1
        row, out = detail[y], result[y]
        for x in range(width):
            out[x] = abs(row[x])
        for k in range(-2, 3):
            if 0 <= y + k * spacing < height:
                raise_row_to(out, half[(y + k * spacing) % n])


@njit(cache=True, nogil=True)
def _largest_in_square(plane, reach, result):
    """Largest value within so many pixels both ways."""
    height, width = plane.shape
    n = min(height, 2 * reach + 1)
    half = np.empty((n, width), dtype=np.float32)
    done = 0
    for y in range(height):
        while done < min(height, y + reach + 1):
            row, most = plane[done], half[done % n]
            most[:] = row
            for shift in range(1, min(reach, width - 1) + 1):
                raise_row_to(most[: width - shift], row[shift:])
                raise_row_to(most[shift:], row[: width - shift])
            done += 1
        out = result[y]
        out[:] = half[y % n]
        for j in range(max(0, y - reach), min(height, y + reach + 1)):
            raise_row_to(out, half[j % n])


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
def _columns_between(width, n):
    """`_place_between` of all columns."""
    first, share = np.empty(width, np.int64), np.empty(width, np.float32)
    for x in range(width):
        first[x], share[x] = _place_between(x, n)
    return first, share


@njit(cache=True, nogil=True)
def _cells_at_columns(line, first, share, noise):
    """Interpolate a row of `_cells_at_row` at all columns of pixels."""
    last = line.size - 1
    for x in range(noise.size):
        i = first[x]
        noise[x] = line[i] + share[x] * (line[min(i + 1, last)] - line[i])


@njit(cache=True, nogil=True, error_model="numpy")
def _divide_by_cells(detail, cells):
    """Divide by the noise interpolated between the centres of cells; 0 where there is none."""
    height, width = detail.shape
    line, noise = np.empty(cells.shape[1], dtype=np.float32), np.empty(width, dtype=np.float32)
    first, share = _columns_between(width, line.size)
    for y in range(height):
        _cells_at_row(cells, y, line)
        _cells_at_columns(line, first, share, noise)
        row = detail[y]
        for x in range(width):
            row[x] = row[x] / noise[x] if noise[x] > _LEAST_NOISE else np.float32(0.0)


@njit(cache=True, nogil=True, error_model="numpy")
def _add_shrunk(detail, largest, cells, factor, keep, result):
    """Add the shrunk differences; the noise between the centres of cells is interpolated."""
    height, width = detail.shape
    one = np.float32(1.0)
    line, noise = np.empty(cells.shape[1], dtype=np.float32), np.empty(width, dtype=np.float32)
    first, between = _columns_between(width, line.size)
    for y in range(height):
        _cells_at_row(cells, y, line)
        _cells_at_columns(line, first, between, noise)
        row, most, out = detail[y], largest[y], result[y]
        for x in range(width):
            limit = factor * noise[x]
            ratio = limit / most[x]
            share = one - ratio * ratio if most[x] > limit else np.float32(0.0)
            out[x] += row[x] * (keep + (one - keep) * share)
