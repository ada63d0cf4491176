"""What the coverage of a mosaic says: where to cut it, how to fade its edges. Arrays only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit
from scipy import ndimage

if TYPE_CHECKING:
    from astropy.wcs import WCS

__all__ = [
    "LEAST_COVERAGE",
    "autocrop_bbox",
    "coverage_bbox",
    "covered_part",
    "crop_sides",
    "edge_ramp",
    "enlarge_rows",
    "inscribed_rectangle",
    "without_thin_rim",
]


# Share of the usual coverage below which a rim is ragged.
LEAST_COVERAGE = 0.5


def coverage_bbox(coverage: np.ndarray, minimum: float = 1) -> tuple[int, int, int, int]:
    """Bound the pixels whose coverage reaches a minimum.

    Parameters
    ----------
    coverage : ndarray, shape (h, w)
        Number or weight of samples; NaN counts as nothing.
    minimum : float
        Smallest coverage that counts.

    Returns
    -------
    tuple of int
        ``(y0, y1, x0, x1)``, end exclusive; ``(0, 0, 0, 0)`` when nothing reaches the minimum.
    """
    covered = np.asarray(coverage) >= minimum
    rows, columns = np.flatnonzero(covered.any(axis=1)), np.flatnonzero(covered.any(axis=0))
    if rows.size == 0:
        return (0, 0, 0, 0)
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def without_thin_rim(coverage: np.ndarray, share: float) -> np.ndarray:
    """Return which pixels are left when the rim that few frames saw is taken away.

    Parameters
    ----------
    coverage : ndarray, shape (h, w)
        Frames per pixel.
    share : float
        A rim is thin where it has fewer frames than this share of the median of all covered pixels. Thin places that
        deeper ones enclose are no rim.

    Returns
    -------
    ndarray, shape (h, w), bool
    """
    covered = coverage > 0
    if not covered.any():
        return covered
    deep = covered & (coverage >= share * float(np.median(coverage[covered])))
    return np.asarray(ndimage.binary_fill_holes(deep), bool)


def covered_part(depth: np.ndarray, *, inscribed: bool) -> tuple[int, int, int, int]:
    """Bound what at least half of the usual number of frames covers; or the largest full rectangle of that.

    Parameters
    ----------
    depth : ndarray, shape (h, w)
        Frames per pixel; 0 or NaN where there is none.

    Returns
    -------
    tuple of int
        As `autocrop_bbox`.
    """
    depth = np.nan_to_num(np.asarray(depth, dtype=np.float32))
    return autocrop_bbox(depth, min_fraction=LEAST_COVERAGE, inscribed=inscribed)


@njit(cache=True, nogil=True)
def _largest_rectangle(covered):
    """Largest rectangle of True: for every row the histogram of heights above it, searched with a stack."""
    height, width = covered.shape
    heights = np.zeros(width + 1, np.int64)
    stack = np.empty(width + 1, np.int64)
    best, box = 0, (0, 0, 0, 0)
    for y in range(height):
        for x in range(width):
            heights[x] = heights[x] + 1 if covered[y, x] else 0
        depth = 0
        for x in range(width + 1):
            while depth > 0 and heights[stack[depth - 1]] >= heights[x]:
                depth -= 1
                tall = heights[stack[depth]]
                left = stack[depth - 1] + 1 if depth > 0 else 0
                if tall * (x - left) > best:
                    best = tall * (x - left)
                    box = (y + 1 - tall, y + 1, left, x)
            stack[depth] = x
            depth += 1
    return box


def inscribed_rectangle(covered: np.ndarray) -> tuple[int, int, int, int]:
    """Find the largest rectangle that holds only covered pixels.

    Parameters
    ----------
    covered : ndarray, shape (h, w), bool

    Returns
    -------
    tuple of int
        ``(y0, y1, x0, x1)``, end exclusive; ``(0, 0, 0, 0)`` when nothing is covered. Of several the topmost.
    """
    box = _largest_rectangle(np.ascontiguousarray(covered, dtype=np.bool_))
    return tuple(int(value) for value in box)


def autocrop_bbox(
    coverage: np.ndarray, *, min_fraction: float = 0.0, inscribed: bool = False, margin: int = 0
) -> tuple[int, int, int, int]:
    """Choose the part of a mosaic worth keeping.

    Parameters
    ----------
    coverage : ndarray, shape (h, w)
    min_fraction : float
        Pixels below this fraction of the median coverage of the covered ones do not count.
    inscribed : bool
        True: the largest rectangle without a gap; False: the bounding box.
    margin : int
        Pixels taken off each side (a negative margin is not allowed).

    Returns
    -------
    tuple of int
        ``(y0, y1, x0, x1)``, end exclusive; ``(0, 0, 0, 0)`` when nothing is left.

    Raises
    ------
    ValueError
        When a number is out of range.
    """
    if not 0 <= min_fraction <= 1 or margin < 0:
        raise ValueError(f"min_fraction must be in [0, 1] and margin >= 0; got {min_fraction}, {margin}")
    coverage = np.asarray(coverage)
    positive = coverage[coverage > 0]
    if positive.size == 0:
        return (0, 0, 0, 0)
    covered = (coverage > 0) & (coverage >= min_fraction * float(np.median(positive)))
    y0, y1, x0, x1 = inscribed_rectangle(covered) if inscribed else coverage_bbox(covered)
    y0, y1, x0, x1 = y0 + margin, y1 - margin, x0 + margin, x1 - margin
    return (y0, y1, x0, x1) if y1 > y0 and x1 > x0 else (0, 0, 0, 0)


def edge_ramp(valid: np.ndarray, width_px: float) -> np.ndarray:
    """Fade a region towards its border.

    ``r*r*(3 - 2 r)`` with ``r = min(d / width_px, 1)`` and ``d`` the distance in px from the nearest pixel that is
    not valid; pixels beyond the array count as not valid.

    Parameters
    ----------
    valid : ndarray, shape (h, w), bool
    width_px : float
        Width of the ramp; 0: 1 everywhere inside.

    Returns
    -------
    ndarray, shape (h, w), float32
        0 where not valid, in (0, 1] elsewhere.
    """
    valid = np.asarray(valid, dtype=bool)
    if width_px <= 0:
        return valid.astype(np.float32)
    distance = ndimage.distance_transform_edt(np.pad(valid, 1))[1:-1, 1:-1]
    ramp = np.minimum(distance / float(width_px), 1.0)
    return (ramp * ramp * (3.0 - 2.0 * ramp)).astype(np.float32)


def crop_sides(image: np.ndarray, wcs: WCS, fraction_per_side: float) -> tuple[np.ndarray, WCS]:
    """Cut the same fraction off every side and keep every pixel at its place on the sky.

    Parameters
    ----------
    image : ndarray, shape (h, w) or (h, w, C)
    wcs : astropy.wcs.WCS
        Not changed.
    fraction_per_side : float
        In [0, 0.5).

    Returns
    -------
    tuple
        Cropped copy and its WCS (distortion included).

    Raises
    ------
    ValueError
        When the fraction is out of range or nothing is left.
    """
    if not 0 <= fraction_per_side < 0.5:
        raise ValueError(f"fraction_per_side must be in [0, 0.5), got {fraction_per_side}")
    height, width = image.shape[:2]
    dy, dx = int(height * fraction_per_side), int(width * fraction_per_side)
    if height - 2 * dy < 1 or width - 2 * dx < 1:
        raise ValueError(f"cutting {dy} rows and {dx} columns per side leaves nothing of {height} x {width}")
    cut = (slice(dy, height - dy), slice(dx, width - dx))
    return image[cut].copy(), wcs.slice(cut)


def enlarge_rows(small: np.ndarray, step: int, y0: int, y1: int, width: int) -> np.ndarray:
    """Interpolate some rows of a map that is known on every ``step``-th pixel.

    Parameters
    ----------
    small : ndarray, shape (h, w), float32
        Value ``[j, i]`` belongs to pixel ``(j * step, i * step)``; beyond the last one the value stays.
    step : int
    y0, y1 : int
        Rows of the large map, end exclusive.
    width : int
        Columns of the large map.

    Returns
    -------
    ndarray, shape (y1 - y0, width), float32
        Bilinear.
    """

    def place(positions: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = np.clip(positions / step, 0, length - 1)
        low = np.floor(at).astype(np.intp)
        return low, np.minimum(low + 1, length - 1), (at - low).astype(np.float32)

    top, bottom, down = place(np.arange(y0, y1), small.shape[0])
    left, right, across = place(np.arange(width), small.shape[1])
    upper = small[top][:, left] * (1 - across) + small[top][:, right] * across
    lower = small[bottom][:, left] * (1 - across) + small[bottom][:, right] * across
    return upper * (1 - down[:, None]) + lower * down[:, None]
