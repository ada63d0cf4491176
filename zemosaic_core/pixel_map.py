"""Build and bound `PixelMap`s: exact geometry on a coarse lattice, checked between its nodes. No pixels here."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from zemosaic_core.errors import RunFailed
from zemosaic_core.lent_arrays import njit_lent
from zemosaic_core.sources import PixelMap

if TYPE_CHECKING:
    from astropy.wcs import WCS

__all__ = [
    "NODES_PER_PX",
    "NO_NODE",
    "MapTransform",
    "build_pixel_map",
    "footprint_bbox",
    "map_coordinates_at",
    "map_row",
    "shift_pixel_map",
    "source_columns",
    "source_window",
    "step_shift",
    "wcs_transform",
    "whole_nodes",
]

MapTransform = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

# Fraction of a lattice cell at which interpolation is checked: the centre and both edge midpoints. The error of a
# bilinear interpolant of a smooth map is largest there.
_CHECK_POINTS = ((0.5, 0.5), (0.5, 0.0), (0.0, 0.5))
# Nodes are rounded to this many per pixel. Together with steps that are powers of two it makes every coordinate
# between the nodes exact in float64 up to 2^17 px, and in the whole numbers of the card: both get the same ones.
NODES_PER_PX = 1 << 24
# Stands for a node where the map is undefined.
NO_NODE = -(1 << 44)


def build_pixel_map(
    transform: MapTransform,
    bbox: tuple[int, int, int, int],
    *,
    max_error_px: float = 0.005,
    steps: tuple[int, ...] = (64, 32, 16, 8, 4),
) -> PixelMap:
    """Sample a transform on the coarsest lattice that reproduces it well enough.

    Parameters
    ----------
    transform : callable
        ``(X, Y) -> (x, y)``: float64 arrays of output pixels to float64 arrays of source pixels; NaN where the
        transform is undefined.
    bbox : tuple of int
        ``(y0, y1, x0, x1)`` in output pixels, end exclusive; the lattice covers it.
    max_error_px : float
        Largest allowed distance, in source px, between the transform and its bilinear interpolant.
    steps : tuple of int
        Lattice spacings to try, largest first; powers of two.

    Returns
    -------
    PixelMap
        With the first spacing whose measured error is small enough.

    Raises
    ------
    RunFailed
        When the box is empty, the transform is undefined in it, or even the finest lattice is too coarse.
    ValueError
        A step is no power of two.
    """
    if any(step < 1 or step & (step - 1) for step in steps):
        raise ValueError(f"steps of a pixel map must be powers of two, got {steps}")
    y0, y1, x0, x1 = (int(value) for value in bbox)
    if y1 <= y0 or x1 <= x0:
        raise RunFailed(
            "pixel_map_empty_box",
            f"the output box {bbox} holds no pixel; check the footprint",
            bbox=list(bbox),
        )
    error = np.inf
    for step in steps:
        nodes_y = y0 + step * np.arange(max(2, -(-(y1 - 1 - y0) // step) + 1), dtype=np.float64)
        nodes_x = x0 + step * np.arange(max(2, -(-(x1 - 1 - x0) // step) + 1), dtype=np.float64)
        grid_x, grid_y = np.meshgrid(nodes_x, nodes_y)
        src_x, src_y = transform(grid_x, grid_y)
        src_x, src_y = (
            np.rint(np.ascontiguousarray(nodes, dtype=np.float64) * NODES_PER_PX) / NODES_PER_PX
            for nodes in (src_x, src_y)
        )
        error = _interpolation_error(transform, grid_x, grid_y, src_x, src_y, step)
        if error <= max_error_px:
            return PixelMap(x0, y0, step, src_x, src_y, float(error))
    if not np.isfinite(error):
        raise RunFailed(
            "pixel_map_undefined",
            f"the transform has no value anywhere in the output box {bbox}",
            bbox=list(bbox),
        )
    raise RunFailed(
        "pixel_map_inaccurate",
        f"the map is off by {error:.4f} px at a spacing of {steps[-1]} px (allowed {max_error_px} px); "
        "the distortion is too strong for this lattice, allow a larger error or a finer step",
        error_px=float(error),
        allowed_px=float(max_error_px),
        step=int(steps[-1]),
    )


def _interpolation_error(transform, grid_x, grid_y, src_x, src_y, step) -> float:
    worst = -np.inf
    for fy, fx in _CHECK_POINTS:
        true_x, true_y = transform(grid_x[:-1, :-1] + fx * step, grid_y[:-1, :-1] + fy * step)
        error = np.hypot(_inside_cells(src_x, fy, fx) - true_x, _inside_cells(src_y, fy, fx) - true_y)
        error = error[np.isfinite(error)]
        if error.size:
            worst = max(worst, float(error.max()))
    return worst if worst >= 0 else np.inf


def _inside_cells(nodes: np.ndarray, fy: float, fx: float) -> np.ndarray:
    top = nodes[:-1, :-1] + fx * (nodes[:-1, 1:] - nodes[:-1, :-1])
    low = nodes[1:, :-1] + fx * (nodes[1:, 1:] - nodes[1:, :-1])
    return top + fy * (low - top)


def map_coordinates_at(pixel_map: PixelMap, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Evaluate a map at output pixels, with the very arithmetic of the sampling kernels.

    Parameters
    ----------
    pixel_map : PixelMap
    x, y : ndarray of int or float
        Output pixels, broadcast against each other. Beyond the lattice the outermost cell is extended.

    Returns
    -------
    tuple of ndarray, float64
        Source pixel coordinates ``(src_x, src_y)``.
    """
    step = pixel_map.step
    x, y = np.broadcast_arrays(np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64))
    ny, nx = pixel_map.src_x.shape
    i = np.clip(np.floor((x - pixel_map.x0) / step).astype(np.int64), 0, nx - 2)
    j = np.clip(np.floor((y - pixel_map.y0) / step).astype(np.int64), 0, ny - 2)
    fx = (x - pixel_map.x0 - i * step) * (1.0 / step)
    fy = (y - pixel_map.y0 - j * step) * (1.0 / step)
    result = []
    for nodes in (pixel_map.src_x, pixel_map.src_y):
        left = nodes[j, i] + fy * (nodes[j + 1, i] - nodes[j, i])
        right = nodes[j, i + 1] + fy * (nodes[j + 1, i + 1] - nodes[j, i + 1])
        result.append(left + fx * (right - left))
    return result[0], result[1]


def step_shift(pixel_map: PixelMap) -> int:
    """Return the binary logarithm of the step of a map.

    Raises
    ------
    ValueError
        The step is no power of two.
    """
    shift = pixel_map.step.bit_length() - 1
    if pixel_map.step != 1 << shift:
        raise ValueError(f"the step of a pixel map must be a power of two, got {pixel_map.step}")
    return shift


def whole_nodes(src_x: np.ndarray, src_y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes of maps as whole multiples of 2^-24 px, `NO_NODE` where a map is undefined.

    Parameters
    ----------
    src_x, src_y : ndarray, 1-D, float64
        Source pixel coordinates; NaN where the map is undefined.

    Returns
    -------
    tuple of ndarray, int64
        x and y of the nodes.
    """
    x, y = src_x * NODES_PER_PX, src_y * NODES_PER_PX
    defined = (np.abs(x) < -NO_NODE) & (np.abs(y) < -NO_NODE)  # false for NaN
    whole_x, whole_y = np.full((2, x.size), NO_NODE, np.int64)
    whole_x[defined], whole_y[defined] = np.rint(x[defined]), np.rint(y[defined])
    return whole_x, whole_y


def shift_pixel_map(dy: int, dx: int, bbox: tuple[int, int, int, int]) -> PixelMap:
    """Return the map of an image whose pixel (0, 0) lies on output pixel ``(dy, dx)``: an exact integer shift.

    Parameters
    ----------
    dy, dx : int
        Output pixel of the source's first pixel.
    bbox : tuple of int
        ``(y0, y1, x0, x1)`` in output pixels that the map must cover.
    """
    return build_pixel_map(lambda x, y: (x - float(dx), y - float(dy)), bbox, steps=(64,))


def wcs_transform(out_wcs: WCS, src_wcs: WCS) -> MapTransform:
    """Make the transform output pixel -> sky -> source pixel from two WCS.

    Both are copied, because wcslib objects must not be shared between threads; do not share the returned
    transform between threads either.

    Parameters
    ----------
    out_wcs, src_wcs : astropy.wcs.WCS
        Celestial WCS of the output grid and of the source, with or without SIP distortion.

    Returns
    -------
    callable
        ``(X, Y) -> (x, y)``; NaN where a point of the sky has no place in the source's projection.
    """
    out_own, src_own = copy.deepcopy(out_wcs), copy.deepcopy(src_wcs)

    def transform(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shape = np.shape(x)
        sky = out_own.all_pix2world(np.column_stack([np.ravel(x), np.ravel(y)]), 0)
        good = np.isfinite(sky).all(axis=1)
        pixels = np.full_like(sky, np.nan)
        if good.any():
            # quiet: points far outside a distorted field do not converge; they are far outside the image as well
            # and the lattice check catches any that matter.
            pixels[good] = src_own.all_world2pix(sky[good], 0, tolerance=1e-6, maxiter=30, quiet=True)
        return pixels[:, 0].reshape(shape), pixels[:, 1].reshape(shape)

    return transform


def footprint_bbox(
    transform_src_to_out: MapTransform,
    shape_hw: tuple[int, int],
    out_shape_hw: tuple[int, int],
    margin: int = 2,
) -> tuple[int, int, int, int]:
    """Bound the output pixels that an image can touch.

    Parameters
    ----------
    transform_src_to_out : callable
        Source pixels to output pixels, vectorised.
    shape_hw, out_shape_hw : tuple of int
        Height and width of the source and of the output grid.
    margin : int
        Output pixels added on every side for curvature between the sampled border points.

    Returns
    -------
    tuple of int
        ``(y0, y1, x0, x1)`` within the output grid, end exclusive; ``(0, 0, 0, 0)`` when they do not meet.
    """
    height, width = shape_hw
    along_x = np.linspace(0.0, width - 1.0, 33)
    along_y = np.linspace(0.0, height - 1.0, 33)
    border_x = np.concatenate([along_x, along_x, np.zeros(33), np.full(33, width - 1.0)])
    border_y = np.concatenate([np.zeros(33), np.full(33, height - 1.0), along_y, along_y])
    x, y = transform_src_to_out(border_x, border_y)
    good = np.isfinite(x) & np.isfinite(y)
    if not good.any():
        return (0, 0, 0, 0)
    x0 = max(0, int(np.floor(x[good].min())) - margin)
    y0 = max(0, int(np.floor(y[good].min())) - margin)
    x1 = min(out_shape_hw[1], int(np.ceil(x[good].max())) + 1 + margin)
    y1 = min(out_shape_hw[0], int(np.ceil(y[good].max())) + 1 + margin)
    return (y0, y1, x0, x1) if y1 > y0 and x1 > x0 else (0, 0, 0, 0)


def source_window(
    pixel_map: PixelMap,
    y0: int,
    y1: int,
    x0: int,
    x1: int,
    shape_hw: tuple[int, int],
    halo: int,
) -> tuple[int, int, int, int] | None:
    """Bound the source pixels needed to sample a box of output pixels.

    The map is bilinear inside a cell, hence its extremes over a box lie at the box's corners and where it crosses
    lattice lines: the bound is exact, not an estimate.

    Parameters
    ----------
    pixel_map : PixelMap
    y0, y1, x0, x1 : int
        Output box, end exclusive.
    shape_hw : tuple of int
        Source height and width.
    halo : int
        Taps a kernel needs beyond ``floor`` of the coordinate (1 bilinear, 3 lanczos3), added on every side.

    Returns
    -------
    tuple of int or None
        ``(sy0, sy1, sx0, sx1)`` within the source, end exclusive; None when the box falls outside the source.
    """
    if y1 <= y0 or x1 <= x0:
        return None
    low_x, high_x, low_y, high_y, complete = _extremes(
        pixel_map.src_x, pixel_map.src_y, pixel_map.y0, pixel_map.x0, pixel_map.step, y0, y1, x0, x1
    )
    if not low_x <= high_x:
        return None
    height, width = shape_hw
    if not complete:
        # A cell with an undefined corner has no samples, but its other cells need the nodes beyond this box.
        x, y = pixel_map.src_x, pixel_map.src_y
        good = np.isfinite(x) & np.isfinite(y)
        low_x, high_x = float(x[good].min()), float(x[good].max())
        low_y, high_y = float(y[good].min()), float(y[good].max())
    if high_x < 0 or high_y < 0 or low_x > width - 1 or low_y > height - 1:
        return None
    # One more pixel than needed: the corner values carry rounding of the order 1e-12 px.
    sx0, sx1 = max(0, int(np.floor(low_x)) - halo - 1), min(width, int(np.floor(high_x)) + halo + 2)
    sy0, sy1 = max(0, int(np.floor(low_y)) - halo - 1), min(height, int(np.floor(high_y)) + halo + 2)
    return sy0, sy1, sx0, sx1


def source_columns(
    pixel_map: PixelMap, box: tuple[int, int, int, int], window: tuple[int, int, int, int], halo: int
) -> np.ndarray:
    """Return which columns of each row of a source's window the samples of an output box need.

    A turned source is crossed by a box along a slope: a good part of its window is of no use.

    Parameters
    ----------
    pixel_map : PixelMap
    box : tuple of int
        ``(y0, y1, x0, x1)`` in output pixels.
    window : tuple of int
        From `source_window`.
    halo : int
        As there.

    Returns
    -------
    ndarray, shape (sy1 - sy0, 2), int64
        First column and the one behind the last, counted from that of the window; equal where nothing is needed.
    """
    sy0, sy1, sx0, sx1 = window
    columns = np.zeros((sy1 - sy0, 2), np.int64)
    columns[:, 0] = sx1 - sx0
    lattice = (int(pixel_map.y0), int(pixel_map.x0), int(pixel_map.step))
    complete = _widen_columns(
        pixel_map.src_x, pixel_map.src_y, lattice, box, (sy0, sx0), sx1 - sx0, halo, columns
    )
    if not complete:
        columns[:] = 0, sx1 - sx0
    columns[columns[:, 0] >= columns[:, 1]] = 0
    return columns


@njit(cache=True, nogil=True)
def _widen_columns(node_x, node_y, lattice, box, origin, width, halo, columns):
    """Widen the columns to what the borders of a box and of the lattice's cells in it need: they enclose the rest.

    Both are straight lines of the source. Returns whether the map is defined all over the box.
    """
    y0, y1, x0, x1 = box
    map_y0, map_x0, step = lattice
    n_rows, n_columns = node_x.shape
    here_x, here_y = np.empty(1, np.float64), np.empty(1, np.float64)
    other_x, other_y = np.empty(1, np.float64), np.empty(1, np.float64)
    y, above = y0, y0
    while True:
        x, before = x0, x0
        while True:
            map_row(node_x, node_y, lattice, y, x, here_x, here_y)
            for line in range(2):
                if line == 0:
                    map_row(node_x, node_y, lattice, y, before, other_x, other_y)
                else:
                    map_row(node_x, node_y, lattice, above, x, other_x, other_y)
                low_x, high_x = min(here_x[0], other_x[0]), max(here_x[0], other_x[0])
                low_y, high_y = min(here_y[0], other_y[0]), max(here_y[0], other_y[0])
                if not (np.isfinite(high_x - low_x) and np.isfinite(high_y - low_y)):
                    return False
                # One pixel more than needed, as in `source_window`.
                low_x, high_x = low_x - origin[1] - halo - 2, high_x - origin[1] + halo + 3
                low_y, high_y = low_y - origin[0] - halo - 2, high_y - origin[0] + halo + 3
                first = int(low_x) if low_x > 0 else 0
                last = min(width, int(high_x)) if high_x > 0 else 0
                top, bottom = int(low_y) if low_y > 0 else 0, int(high_y) if high_y > 0 else 0
                for row in range(top, min(len(columns), bottom)):
                    columns[row, 0] = min(columns[row, 0], first)
                    columns[row, 1] = max(columns[row, 1], last)
            if x == x1 - 1:
                break
            before, x = x, _next_break(x, x1, map_x0, step, n_columns)
        if y == y1 - 1:
            return True
        above, y = y, _next_break(y, y1, map_y0, step, n_rows)


@njit_lent()
def map_row(node_x, node_y, lattice, y, x0, sx, sy):
    """Fill `sx`, `sy` (float64) with the source coordinates of the output pixels (y, x0 ...)."""
    map_y0, map_x0, step = lattice
    inverse = 1.0 / step
    last_j, last_i = node_x.shape[0] - 2, node_x.shape[1] - 2
    rel_y = y - map_y0
    j = min(max(rel_y // step, 0), last_j)
    fy = (rel_y - j * step) * inverse
    n_cols = sx.size
    col = 0
    while col < n_cols:
        i = min(max((x0 + col - map_x0) // step, 0), last_i)
        stop = n_cols if i == last_i else min(n_cols, (i + 1) * step + map_x0 - x0)
        left_x = node_x[j, i] + fy * (node_x[j + 1, i] - node_x[j, i])
        left_y = node_y[j, i] + fy * (node_y[j + 1, i] - node_y[j, i])
        span_x = node_x[j, i + 1] + fy * (node_x[j + 1, i + 1] - node_x[j, i + 1]) - left_x
        span_y = node_y[j, i + 1] + fy * (node_y[j + 1, i + 1] - node_y[j, i + 1]) - left_y
        first = x0 - map_x0 - i * step
        for k in range(col, stop):
            fraction = (first + k) * inverse
            sx[k] = left_x + fraction * span_x
            sy[k] = left_y + fraction * span_y
        col = stop


@njit_lent()
def _next_break(at, stop, origin, step, n_nodes):
    """Return the lattice line behind a pixel, or the last pixel of a range where that comes first."""
    line = origin + ((at - origin) // step + 1) * step
    line = max(line, origin)
    return min(line, stop - 1) if line <= origin + (n_nodes - 1) * step else stop - 1


@njit(cache=True, nogil=True)
def _extremes(node_x, node_y, map_y0, map_x0, step, y0, y1, x0, x1):
    """Extremes of the finite coordinates at first and last pixels of a box and where it crosses lattice lines.

    Returns lowest and highest x, lowest and highest y, and whether all were finite.
    """
    n_rows, n_columns = node_x.shape
    low_x, high_x, low_y, high_y = np.inf, -np.inf, np.inf, -np.inf
    complete = True
    here_x, here_y = np.empty(1, np.float64), np.empty(1, np.float64)
    y = y0
    while True:
        x = x0
        while True:
            map_row(node_x, node_y, (map_y0, map_x0, step), y, x, here_x, here_y)
            sx, sy = here_x[0], here_y[0]
            if np.isfinite(sx) and np.isfinite(sy):
                low_x, high_x = min(low_x, sx), max(high_x, sx)
                low_y, high_y = min(low_y, sy), max(high_y, sy)
            else:
                complete = False
            if x == x1 - 1:
                break
            x = _next_break(x, x1, map_x0, step, n_columns)
        if y == y1 - 1:
            break
        y = _next_break(y, y1, map_y0, step, n_rows)
    return low_x, high_x, low_y, high_y, complete
