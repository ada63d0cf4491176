"""Pixels that lie: find them in single frames, keep those that stay, repair them before colours are interpolated.

Arrays only; a hot pixel is named by its flat index ``y * W + x`` in the whole sensor.
"""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["detect_and_correct", "find_candidates", "persistent", "repair_cfa"]

# A star spreads over its neighbours of other colours; a defect does not. The faintest neighbour signal of the
# sharpest star a telescope of this kind makes (FWHM 1.5 px, red star seen by a green pixel) is near a fifth.
_NEIGHBOUR_SHARE = 0.12
_NEIGHBOUR_SIGMA = 3.0
_MIN_FLOOR = 1e-5


@njit(cache=True, nogil=True)
def _insert(values, n, value):
    """Put a value into its place among the first ``n`` sorted ones."""
    k = n
    while k > 0 and values[k - 1] > value:
        values[k] = values[k - 1]
        k -= 1
    values[k] = value


@njit(cache=True, nogil=True)
def _median_same_colour(cfa, y, x, values):
    """Median of the up to eight pixels of the same colour around (y, x); NaN when there is none."""
    height, width = cfa.shape
    n = 0
    for dy in (-2, 0, 2):
        for dx in (-2, 0, 2):
            j, i = y + dy, x + dx
            if (dy != 0 or dx != 0) and 0 <= j < height and 0 <= i < width:
                _insert(values, n, np.float32(cfa[j, i]))
                n += 1
    if n == 0:
        return np.float32(np.nan)
    return np.float32(0.5) * (values[(n - 1) // 2] + values[n // 2])


@njit(cache=True, nogil=True)
def _excess_sample(cfa, stride):
    """Excess over the median of the same colour on a lattice that meets all four colours."""
    height, width = cfa.shape
    out = np.empty((height // stride + 1) * (width // stride + 1), np.float32)
    values = np.empty(8, np.float32)
    n = 0
    for y in range(2, height - 2, stride):
        for x in range(2 + (y // stride) % 2, width - 2, stride):
            out[n] = np.float32(cfa[y, x]) - _median_same_colour(cfa, y, x, values)
            n += 1
    return out[:n]


@njit(cache=True, nogil=True)
def _scan(cfa, noise, sigma, found):
    height, width = cfa.shape
    values = np.empty(8, np.float32)
    limit = np.float32(sigma * noise)
    n = 0
    for y in range(height):
        for x in range(width):
            value = np.float32(cfa[y, x])
            # Most pixels differ from their nearest kin by less than the limit: no median for them.
            x2 = x - 2 if x >= 2 else x + 2
            step = value - np.float32(cfa[y, x2])
            if -limit < step < limit:
                y2 = y - 2 if y >= 2 else y + 2
                step = value - np.float32(cfa[y2, x])
                if -limit < step < limit:
                    continue
            excess = value - _median_same_colour(cfa, y, x, values)
            sign = np.float32(1) if excess > 0 else np.float32(-1)
            excess *= sign
            if excess <= limit:
                continue
            allowed = max(np.float32(_NEIGHBOUR_SHARE) * excess, np.float32(_NEIGHBOUR_SIGMA * noise))
            isolated = True
            for dy in range(-2, 3):
                for dx in range(-2, 3):
                    j, i = y + dy, x + dx
                    near = max(abs(dy), abs(dx)) == 1
                    kin = dy % 2 == 0 and dx % 2 == 0 and (dy != 0 or dx != 0)
                    if not isolated or not (near or kin) or not (0 <= j < height and 0 <= i < width):
                        continue
                    other = sign * (np.float32(cfa[j, i]) - _median_same_colour(cfa, j, i, values))
                    # The same colour two pixels away may hold another defect; it must only not be brighter.
                    if other > (allowed if near else excess):
                        isolated = False
            if isolated and n < found.size:
                found[n] = y * width + x
                n += 1
    return n


def find_candidates(cfa: np.ndarray, *, sigma: float = 8.0) -> np.ndarray:
    """Find isolated pixels far above or below what surrounds them.

    A pixel is a candidate when it differs from the median of its eight neighbours of the same colour by more than
    `sigma` times the scatter of that difference over the frame, and none of its eight direct neighbours shows
    more than a small share of the same excess over its own colour. Star cores spread and are not found.

    Parameters
    ----------
    cfa : ndarray, shape (H, W), uint16 or float32
        Raw frame with any 2 x 2 colour pattern.
    sigma : float
        Threshold; > 0.

    Returns
    -------
    ndarray, shape (k,), int64
        Flat indices, ascending; at most one pixel in fifty (a frame with more is not to be repaired this way).

    Raises
    ------
    ValueError
        When the frame is not 2-D or smaller than 8 x 8, or `sigma` is not positive.
    """
    cfa = np.ascontiguousarray(cfa)
    if cfa.ndim != 2 or min(cfa.shape) < 8:
        raise ValueError(f"a frame needs two dimensions of at least 8 px, got shape {cfa.shape}")
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    sample = _excess_sample(cfa, max(1, int(np.sqrt(cfa.size / 60_000))) | 1)
    noise = 1.4826 * float(np.median(np.abs(sample - np.median(sample))))
    if noise <= 0:
        # Nearly all pixels equal (a synthetic or saturated frame): the smallest step of the numbers.
        noise = 1.0 if cfa.dtype.kind in "ui" else max(float(np.abs(sample).mean()), _MIN_FLOOR)
    found = np.empty(max(16, cfa.size // 50), np.int64)
    return found[: _scan(cfa, noise, float(sigma), found)].copy()


def persistent(
    counts: np.ndarray, n_frames: int, *, fraction: float = 0.5, min_frames: int = 3
) -> np.ndarray:
    """Keep the candidates that stay while the sky moves.

    Parameters
    ----------
    counts : ndarray, any shape, int
        How often every pixel of the sensor was a candidate.
    n_frames : int
        Frames looked at.
    fraction : float
        Share of the frames a defect must appear in, in (0, 1].
    min_frames : int
        And at least this often; with fewer frames nothing is called persistent.

    Returns
    -------
    ndarray, shape (k,), int64
        Flat indices, ascending.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}")
    needed = max(min_frames, int(np.ceil(fraction * n_frames)))
    return np.flatnonzero(np.asarray(counts).ravel() >= needed).astype(np.int64)


@njit(cache=True, nogil=True)
def _repair(cfa, out, indices, first_row):
    height, width = cfa.shape
    bad = np.zeros((height, width), np.bool_)
    for index in indices:
        y = index // width - first_row
        if 0 <= y < height:
            bad[y, index % width] = True
    values = np.empty(16, np.float32)
    for index in indices:
        y, x = index // width - first_row, index % width
        if not 0 <= y < height:
            continue
        n = 0
        # The next ring of the same colour only when the nearest is all bad.
        for reach in (2, 4):
            if n > 0:
                break
            for dy in (-reach, 0, reach):
                for dx in (-reach, 0, reach):
                    j, i = y + dy, x + dx
                    inside = 0 <= j < height and 0 <= i < width
                    if (dy != 0 or dx != 0) and inside and not bad[j, i]:
                        _insert(values, n, np.float32(cfa[j, i]))
                        n += 1
        if n > 0:
            out[y, x] = np.float32(0.5) * (values[(n - 1) // 2] + values[n // 2])


def repair_cfa(cfa: np.ndarray, flat_indices: np.ndarray, y0: int = 0) -> np.ndarray:
    """Replace bad pixels by the median of their good neighbours of the same colour.

    Parameters
    ----------
    cfa : ndarray, shape (h, W), uint16 or float32
        All columns of some rows of a raw frame.
    flat_indices : ndarray, int64
        Indices ``y * W + x`` in the whole frame; those outside the rows are ignored.
    y0 : int
        Row of the frame that is the first of `cfa`.

    Returns
    -------
    ndarray
        Repaired copy. Neighbours are those within these rows: to get the same result for any choice of rows, read
        four more on each side.

    Notes
    -----
    The mean of the two middle neighbours of an integer frame is cut to an integer.
    """
    out = np.array(cfa, order="C")
    if len(flat_indices):
        _repair(np.ascontiguousarray(cfa), out, np.ascontiguousarray(flat_indices, dtype=np.int64), int(y0))
    return out


def detect_and_correct(
    image: np.ndarray, threshold: float = 3.0, neighborhood_size: int = 5
) -> tuple[np.ndarray, np.ndarray]:
    """Replace outliers of a processed image by the local median.

    A pixel is hot when ``v > median + threshold * max(std, 1e-5)`` with median and standard deviation over the
    ``k x k`` neighbourhood, borders mirrored. The pixel itself is left out of the standard deviation: it would
    raise the very limit it is measured against. Missing pixels (NaN) are neither used nor touched.

    Parameters
    ----------
    image : ndarray, shape (h, w) or (h, w, C), any real dtype
    threshold : float
        In standard deviations; > 0.
    neighborhood_size : int
        Side ``k`` of the neighbourhood, at least 3; an even number is raised by one.

    Returns
    -------
    tuple of ndarray
        Corrected copy of the same dtype, and the mask of replaced pixels, bool, same shape.

    Raises
    ------
    ValueError
        When a number or the shape is not usable.
    """
    # Imported here: processes that only measure raw frames start without it.
    from scipy import ndimage

    image = np.asarray(image)
    size = int(neighborhood_size) | 1
    if image.ndim not in (2, 3) or size < 3 or not threshold > 0:
        raise ValueError(
            "image must be (h, w) or (h, w, C), neighborhood_size >= 3 and threshold > 0; got "
            f"{image.shape}, {neighborhood_size}, {threshold}"
        )
    planes = image[..., None] if image.ndim == 2 else image
    corrected = np.array(image, copy=True)
    result = corrected[..., None] if image.ndim == 2 else corrected
    mask = np.zeros(planes.shape, bool)
    for channel in range(planes.shape[-1]):
        plane = planes[..., channel].astype(np.float64)
        missing = ~np.isfinite(plane)
        filled = np.where(missing, np.median(plane[~missing]) if not missing.all() else 0.0, plane)
        median = ndimage.median_filter(filled, size=size, mode="mirror")
        # Relative to the frame's median the squares keep their digits.
        delta = filled - np.median(filled)
        n = size * size
        total = ndimage.uniform_filter(delta, size, mode="mirror") * n - delta
        squares = ndimage.uniform_filter(delta * delta, size, mode="mirror") * n - delta * delta
        spread = np.sqrt(np.maximum(squares / (n - 1) - (total / (n - 1)) ** 2, 0.0))
        hot = (filled > median + threshold * np.maximum(spread, _MIN_FLOOR)) & ~missing
        mask[..., channel] = hot
        result[..., channel][hot] = median[hot].astype(image.dtype)
    return corrected, mask.reshape(image.shape)
