"""Which frames look at places of the mosaic: the maps of all of them in tables, gone through by compiled code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .transforms import Transform

__all__ = ["FrameViews", "frame_views"]

_N_TERMS = 10


@dataclass(frozen=True)
class FrameViews:
    """Where N frames look.

    Attributes
    ----------
    middle_scale : ndarray, shape (N, 3), float64
        Centre and scale of the maps from the mosaic to the frames.
    terms : ndarray, shape (N, 2, 10), float64
        Their coefficients; zeros beyond their order.
    shapes_hw : ndarray, shape (N, 2), int64
        Sizes of the frames, px.
    covered : ndarray of bool, shape (K,)
        Cells that are covered, of all frames behind each other.
    cells : ndarray, shape (N, 3), int64
        First of its cells, and rows and columns of them, of each frame; none where nothing is covered.
    """

    middle_scale: NDArray[np.float64]
    terms: NDArray[np.float64]
    shapes_hw: NDArray[np.int64]
    covered: NDArray[np.bool_]
    cells: NDArray[np.int64]

    def others_at(self, i: int, xy: NDArray[np.float64], most: int | None = None) -> NDArray[np.int64]:
        """Count the frames other than ``i`` that look at places of the mosaic and are not covered there.

        Parameters
        ----------
        xy : ndarray, shape (P, 2), float64
            Plane px.
        most : int, optional
            Count no further than this.

        Returns
        -------
        ndarray, shape (P,), int64
        """
        limit = len(self.terms) if most is None else most
        return np.asarray(
            _others_at(
                i, np.ascontiguousarray(xy), limit, self.middle_scale, self.terms, self.shapes_hw, self.covered,
                self.cells,
            )
        )  # fmt: skip


def frame_views(
    to_frame: Sequence[Transform],
    shapes_hw: Sequence[tuple[int, int]],
    covered: Sequence[NDArray[np.bool_] | None],
) -> FrameViews:
    """Collect where frames look.

    Parameters
    ----------
    to_frame : sequence of Transform
        Mosaic px -> frame px.
    shapes_hw : sequence of tuple of int
    covered : sequence of ndarray of bool (ny, nx), or None
        Cells of each frame where something stands before the sky.
    """
    terms = np.zeros((len(to_frame), 2, _N_TERMS))
    for i, transform in enumerate(to_frame):
        terms[i, 0, : len(transform.coeff_x)] = transform.coeff_x
        terms[i, 1, : len(transform.coeff_y)] = transform.coeff_y
    flat = [np.zeros(0, bool) if mask is None else mask.ravel() for mask in covered]
    first = np.cumsum([0, *(len(mask) for mask in flat)])[:-1]
    sides = [(0, 0) if mask is None else mask.shape for mask in covered]
    return FrameViews(
        np.array([(*t.center, t.scale) for t in to_frame], float).reshape(-1, 3),
        terms,
        np.array(shapes_hw, np.int64).reshape(-1, 2),
        np.concatenate([np.zeros(0, bool), *flat]),
        np.column_stack([first, np.array(sides, np.int64).reshape(-1, 2)]).astype(np.int64),
    )


@njit(cache=True, nogil=True, error_model="numpy")
def _others_at(own, xy, most, middle_scale, terms, shapes_hw, covered, cells):
    seen = np.zeros(len(xy), np.int64)
    for i in range(len(terms)):
        if i == own:
            continue
        height, width = shapes_hw[i]
        first, ny, nx = cells[i]
        for k in range(len(xy)):
            if seen[k] >= most:
                continue
            u = (xy[k, 0] - middle_scale[i, 0]) / middle_scale[i, 2]
            v = (xy[k, 1] - middle_scale[i, 1]) / middle_scale[i, 2]
            x, y = _value(terms[i, 0], u, v), _value(terms[i, 1], u, v)
            if not (0 <= x <= width - 1 and 0 <= y <= height - 1):
                continue
            if ny > 0 and covered[first + int(y * ny / height) * nx + int(x * nx / width)]:
                continue
            seen[k] += 1
    return seen


@njit(cache=True, nogil=True, error_model="numpy")
def _value(c, u, v):
    """Return the polynomial in the order of `transforms.Transform`."""
    out = c[0] + c[1] * u + c[2] * v
    out = out + c[3] * u * u + c[4] * u * v + c[5] * v * v
    return out + u * u * (c[6] * u + c[7] * v) + v * v * (c[8] * u + c[9] * v)
