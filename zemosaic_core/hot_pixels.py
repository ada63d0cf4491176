"""Pixels that lie: those that stay through a night, and their repair before colours are interpolated.

Arrays only; a hot or dead pixel is named by its flat index ``y * W + x`` in the whole sensor. Single frames are
searched by `raw_defects.find_defects`.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from zemosaic_core.few_values import insert_sorted

__all__ = ["DefectEvidence", "detect_and_correct", "repair_cfa", "repair_mono"]

# A defect must be listed in this share of the frames, and in two: what passes over a pixel once is a particle, a
# satellite or a star.
_LISTED_SHARE = 1.0 / 3.0
_MIN_LISTED = 2
# Significance of all frames together; frames that do not list the pixel count as 0.
_NIGHT_SIGMA = 10.0
_MIN_FLOOR = 1e-5


class DefectEvidence:
    """Adds up what the frames of one camera and night say about each pixel of the sensor.

    Sums over frames: their order does not matter beyond the last digit of a float64.

    Parameters
    ----------
    shape_hw : tuple of int
        Height and width of the sensor.
    """

    def __init__(self, shape_hw: tuple[int, int]) -> None:
        self._total = np.zeros(shape_hw[0] * shape_hw[1], np.float64)
        self._listed = np.zeros(self._total.size, np.int32)
        self._n_frames = 0

    def add(self, index: np.ndarray, significance: np.ndarray) -> None:
        """Add one frame.

        Parameters
        ----------
        index : ndarray, shape (k,), int64
            Pixels that stick out alone, each once.
        significance : ndarray, shape (k,)
            By how many sigma; negative for pixels that are too dark.
        """
        self._total[index] += significance
        self._listed[index] += np.sign(significance).astype(np.int32)
        self._n_frames += 1

    def persistent(self) -> np.ndarray:
        """Pixels that lie in the same sense again and again.

        Listed in a third of the frames and in two at least, with a summed significance of ten sigma,
        ``|sum s| >= 10 sqrt(frames)``.

        Returns
        -------
        ndarray, shape (k,), int64
            Flat indices, ascending; none from a single frame.
        """
        needed = max(_MIN_LISTED, int(np.ceil(_LISTED_SHARE * self._n_frames)))
        stays = np.abs(self._listed) >= needed
        stays &= np.abs(self._total) >= _NIGHT_SIGMA * np.sqrt(self._n_frames)
        return np.flatnonzero(stays).astype(np.int64)


@njit(cache=True, nogil=True)
def _repair(cfa, out, indices, first_row, step):
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
        for reach in (step, 2 * step):
            if n > 0:
                break
            for dy in (-reach, 0, reach):
                for dx in (-reach, 0, reach):
                    j, i = y + dy, x + dx
                    inside = 0 <= j < height and 0 <= i < width
                    if (dy != 0 or dx != 0) and inside and not bad[j, i]:
                        insert_sorted(values, n, np.float32(cfa[j, i]))
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
    return _repaired(cfa, flat_indices, y0, 2)


def repair_mono(rows: np.ndarray, flat_indices: np.ndarray, y0: int = 0) -> np.ndarray:
    """Replace bad pixels of a camera without colour filters by the median of their good neighbours.

    Parameters and result are those of `repair_cfa`; neighbours lie at one pixel, or at two when these are all bad, so
    two more rows on each side are enough.
    """
    return _repaired(rows, flat_indices, y0, 1)


def _repaired(rows: np.ndarray, flat_indices: np.ndarray, y0: int, step: int) -> np.ndarray:
    out = np.array(rows, order="C")
    if len(flat_indices):
        indices = np.ascontiguousarray(flat_indices, dtype=np.int64)
        _repair(np.ascontiguousarray(rows), out, indices, int(y0), step)
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
