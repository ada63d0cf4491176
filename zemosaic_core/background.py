"""Sky level, sky noise and the smooth sky underneath stars and nebulae. Arrays only."""

from __future__ import annotations

import numpy as np
from numba import njit

from zemosaic_core.statistics import clipped_central_mean_sigma, strided_sample

__all__ = [
    "estimate_background_map",
    "expand_mesh_row",
    "sky_and_noise_mesh",
    "sky_mesh",
    "sky_mesh_and_error",
    "sky_statistics",
]

# More values per mesh cell than this do not make its median better than the sky is smooth.
_MAX_CELL_VALUES = 2048
_USABLE_FRACTION = 0.3
_CLIP_SIGMA = 2.5
# 1 / standard deviation of a unit normal distribution cut at 2.5 sigma.
_CUT_CORRECTION = 1.0476
# Standard error of the mean of the central half of n normal values, in units of sigma / sqrt(n).
MIDMEAN_ERROR = 1.092


def sky_statistics(plane: np.ndarray, *, max_samples: int = 200_000) -> tuple[float, float]:
    """Level and noise of the sky in one plane.

    Parameters
    ----------
    plane : ndarray, shape (h, w)
        Any real dtype; NaN means missing.
    max_samples : int
        Evenly spread values used; 200,000 give the level of a 10-second frame to a quarter of an ADU.

    Returns
    -------
    sky, sigma : float
        Clipped central mean and standard deviation in the units of ``plane``; NaN when no value is finite.
        Stars are clipped away; a nebula that fills the frame is sky as far as this function can tell.
    """
    sample = strided_sample(plane, max_samples)
    if np.issubdtype(sample.dtype, np.integer):
        sample = sample.astype(np.float32)
    return clipped_central_mean_sigma(sample, clip_sigma=_CLIP_SIGMA)


def sky_mesh(planes: np.ndarray, cell_px: int) -> np.ndarray:
    """Robust sky of every cell of a coarse mesh.

    Cell ``(j, i)`` covers rows ``j * cell_px`` to ``(j + 1) * cell_px`` (the last row and column of cells
    may be smaller); stars are removed by clipping at 2.5 sigma until nothing changes.

    Parameters
    ----------
    planes : ndarray, shape (C, h, w) or (h, w)
        NaN means missing.
    cell_px : int
        Cell size, >= 4.

    Returns
    -------
    ndarray, shape (C, ny, nx), float32
        ``ny = ceil(h / cell_px)``; NaN where less than 30 % of the cell is usable sky.

    Raises
    ------
    ValueError
        When ``cell_px`` is smaller than 4 or ``planes`` has another number of dimensions.
    """
    return sky_mesh_and_error(planes, cell_px)[0]


def sky_mesh_and_error(planes: np.ndarray, cell_px: int) -> tuple[np.ndarray, np.ndarray]:
    """`sky_mesh` and how far each of its cells may be off by noise alone.

    Returns
    -------
    level, error : ndarray, shape (C, ny, nx), float32
        Sky of each cell, and the formal 1-sigma uncertainty of that level: scatter of the values that were kept
        over the root of their number. Structure within the cell counts as scatter; light of faint stars and
        wings, which lifts the level, is not in it. NaN where the level is.

    Raises
    ------
    ValueError
        As `sky_mesh`.
    """
    if cell_px < 4:
        raise ValueError(f"cell_px must be at least 4, got {cell_px}")
    planes = np.asarray(planes)
    if planes.ndim == 2:
        planes = planes[None]
    if planes.ndim != 3:
        raise ValueError(f"planes must have shape (C, h, w) or (h, w), got {planes.shape}")
    if planes.dtype not in (np.float32, np.float64):
        planes = planes.astype(np.float32)
    # One channel at a time keeps the sorted copies small.
    meshes = [_mesh(plane, cell_px) for plane in planes]
    return np.stack([level for level, _, _ in meshes]), np.stack([error for _, _, error in meshes])


def sky_and_noise_mesh(plane: np.ndarray, cell_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Sky and noise per cell with no gaps, each cell the median of its 3 x 3 neighbourhood.

    Parameters
    ----------
    plane : ndarray, shape (h, w), float32
        NaN means missing.
    cell_px : int
        Cell size, >= 4; cells lie as in `sky_mesh`.

    Returns
    -------
    sky, noise : ndarray, shape (ny, nx), float32
        Cells without usable sky take the medians of their neighbours; NaN only when no cell has any.
    """
    sky, noise, _error = _mesh(np.asarray(plane, dtype=np.float32), cell_px)
    known = np.isfinite(sky)
    if not known.any():
        return sky, noise
    while True:
        sky, noise = _median_of_neighbours(sky), _median_of_neighbours(noise)
        if np.isfinite(sky).all():
            return sky, noise


def _mesh(plane: np.ndarray, cell_px: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Level, scatter of one value and error of the level per cell."""
    shape = -(-plane.shape[0] // cell_px), -(-plane.shape[1] // cell_px)
    values = np.empty((shape[0] * shape[1], min(cell_px**2, _MAX_CELL_VALUES)), dtype=np.float32)
    counts = np.empty((values.shape[0], 2), dtype=np.int64)
    result = np.empty((values.shape[0], 3), dtype=np.float32)
    _gather_cells(np.ascontiguousarray(plane), cell_px, values, counts)
    # A sort by rows uses the vector units; one cell after another in a kernel takes ten times as long.
    values.sort(axis=1)
    _clip_cells(values, counts, _USABLE_FRACTION, result)
    return result[:, 0].reshape(shape), result[:, 1].reshape(shape), result[:, 2].reshape(shape)


def estimate_background_map(
    image: np.ndarray, *, method: str = "gaussian", sigma: float = 32.0
) -> np.ndarray:
    """Smooth light of an image, per channel.

    Parameters
    ----------
    image : ndarray, shape (h, w) or (h, w, C)
        NaN means missing.
    method : {'gaussian', 'mesh'}
        'gaussian': Gaussian blur that leaves missing pixels out. 'mesh': clipped medians of cells of
        ``2 * sigma`` px, smoothly interpolated; follows the sky and not the stars.
    sigma : float
        Scale of the smoothing in px, > 0.

    Returns
    -------
    ndarray, same shape, float32
        Background; NaN only where the image has no finite value within reach.

    Raises
    ------
    ValueError
        For an unknown method or a sigma that is not positive.
    """
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    image = np.asarray(image, dtype=np.float32)
    if image.ndim == 3:
        channels = [
            estimate_background_map(image[..., c], method=method, sigma=sigma) for c in range(image.shape[2])
        ]
        return np.stack(channels, axis=-1)
    if method == "gaussian":
        return _blur_finite(image, sigma)
    if method == "mesh":
        return _interpolate_mesh(image, max(4, round(2.0 * sigma)))
    raise ValueError(f"method must be 'gaussian' or 'mesh', got {method!r}")


def _blur_finite(image: np.ndarray, sigma: float) -> np.ndarray:
    """Normalised convolution: blur(image * valid) / blur(valid)."""
    # Imported here: the many processes that only measure frames start without it.
    from scipy import ndimage

    valid = np.isfinite(image)
    if valid.all():
        return ndimage.gaussian_filter(image, sigma, mode="reflect", truncate=3.0)
    seen = ndimage.gaussian_filter(valid.astype(np.float32), sigma, mode="reflect", truncate=3.0)
    light = ndimage.gaussian_filter(
        np.where(valid, image, np.float32(0.0)), sigma, mode="reflect", truncate=3.0
    )
    return np.where(seen > 1e-6, light / np.maximum(seen, 1e-6), np.float32(np.nan)).astype(np.float32)


def _interpolate_mesh(image: np.ndarray, cell_px: int) -> np.ndarray:
    from scipy import ndimage

    mesh = sky_mesh(image, cell_px)[0]
    known = np.isfinite(mesh)
    if not known.any():
        return np.full(image.shape, np.nan, dtype=np.float32)
    if not known.all():
        # A cell hidden by a star takes the nearest known neighbour; smoothing below rounds the step.
        nearest = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
        mesh = mesh[tuple(nearest)]
    mesh = ndimage.median_filter(mesh, size=3, mode="nearest")
    rows = (np.arange(image.shape[0]) + 0.5) / cell_px - 0.5
    columns = (np.arange(image.shape[1]) + 0.5) / cell_px - 0.5
    half = ndimage.map_coordinates(
        mesh, np.meshgrid(rows, np.arange(mesh.shape[1]), indexing="ij"), order=1, mode="nearest"
    )
    smooth = ndimage.map_coordinates(
        half, np.meshgrid(np.arange(half.shape[0]), columns, indexing="ij"), order=1, mode="nearest"
    )
    return smooth.astype(np.float32)


@njit(cache=True, nogil=True)
def _gather_cells(plane, cell, values, counts):
    """Copy the finite values of each cell to a row, infinity behind them; count values looked at and finite."""
    height, width = plane.shape
    columns = (width + cell - 1) // cell
    most = values.shape[1]
    for row in range(values.shape[0]):
        y0, x0 = (row // columns) * cell, (row % columns) * cell
        wide = min(width, x0 + cell) - x0
        area = (min(height, y0 + cell) - y0) * wide
        # An odd stride walks over the cell like a slanted line: all rows and columns are seen.
        stride = (area + most - 1) // most
        if stride % 2 == 0:
            stride += 1
        taken = 0
        count = 0
        y, x = y0, x0
        for _ in range(0, area, stride):
            taken += 1
            value = plane[y, x]
            if np.isfinite(value):
                values[row, count] = value
                count += 1
            x += stride
            while x >= x0 + wide:
                x -= wide
                y += 1
        values[row, count:] = np.inf
        counts[row, 0] = taken
        counts[row, 1] = count


@njit(cache=True, nogil=True)
def _clip_cells(values, counts, usable_fraction, result):
    for row in range(values.shape[0]):
        ordered = values[row, : counts[row, 1]]
        level, sigma, kept = _clipped_centre(ordered, counts[row, 0], usable_fraction)
        result[row, 0], result[row, 1] = level, sigma
        result[row, 2] = np.float32(MIDMEAN_ERROR) * sigma / np.float32(np.sqrt(kept))


@njit(cache=True, nogil=True)
def _median_of_neighbours(mesh):
    """Median of the finite cells of each 3 x 3 neighbourhood; NaN where there is none."""
    rows, columns = mesh.shape
    result = np.empty_like(mesh)
    values = np.empty(9, dtype=np.float32)
    for j in range(rows):
        for i in range(columns):
            n = 0
            for y in range(max(0, j - 1), min(rows, j + 2)):
                for x in range(max(0, i - 1), min(columns, i + 2)):
                    if np.isfinite(mesh[y, x]):
                        values[n] = mesh[y, x]
                        n += 1
            result[j, i] = np.median(values[:n]) if n > 0 else np.float32(np.nan)
    return result


@njit(cache=True, nogil=True)
def expand_mesh_row(mesh, cell, y, row):
    """Interpolate a mesh linearly along pixel row ``y``; at the borders its slope goes on.

    Parameters
    ----------
    mesh : ndarray, shape (ny, nx), float32
        One value per cell of ``cell`` px, valid at the cell's centre.
    cell : int
        Cell size in px.
    y : int
        Pixel row.
    row : ndarray, shape (w,), float32
        Receives the values.
    """
    rows, columns = mesh.shape
    v = (y + 0.5) / cell - 0.5
    j = min(max(int(np.floor(v)), 0), max(rows - 2, 0))
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
        start = a + slope * np.float32(0.5 - 0.5 * cell - i * cell)
        for x in range(first, last):
            row[x] = start + slope * np.float32(x)


@njit(cache=True, nogil=True)
def _clipped_centre(values, taken, usable_fraction):
    """Mean of the central half and sigma of ascending values after clipping, and how many were kept.

    NaN when too few of ``taken`` remain.
    """
    nothing = np.float32(np.nan)
    if values.size < usable_fraction * taken or values.size < 4:
        return nothing, nothing, 1
    n = values.size
    middle = 0.5 * (values[(n - 1) // 2] + values[n // 2])
    # Half of the central 68 % is sigma for a normal sky and cares little about stars.
    sigma = middle - values[int(0.1587 * (n - 1))]
    low, high = 0, n
    for _ in range(10):
        a = np.searchsorted(values, np.float32(middle - _CLIP_SIGMA * sigma))
        b = np.searchsorted(values, np.float32(middle + _CLIP_SIGMA * sigma), side="right")
        if (a == low and b == high) or b - a < 4:
            break
        low, high = a, b
        m = high - low
        middle = 0.5 * (values[low + (m - 1) // 2] + values[low + m // 2])
        total = 0.0
        for k in range(low, high):
            total += (values[k] - middle) ** 2
        sigma = np.sqrt(total / (m - 1)) * _CUT_CORRECTION
    if high - low < usable_fraction * taken:
        return nothing, nothing, 1
    quarter = (high - low) // 4
    total = 0.0
    for k in range(low + quarter, high - quarter):
        total += values[k]
    return np.float32(total / (high - low - 2 * quarter)), np.float32(sigma), high - low
