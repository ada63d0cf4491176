"""What a solution of the sky leaves and takes: residuals of frames and overlaps, the glow of the whole. Arrays only."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .sky_joint import JointProblem, SkyCells

__all__ = ["QUADRIC_UNIT_PX", "overlap_differences", "quadric_rows", "removed_quadric", "rms_per_frame"]

Array = NDArray[np.float64]

QUADRIC_UNIT_PX = 1000.0
"""Unit of the places in `removed_quadric`."""
_LEAST_SHARED_NODES = 8


def rms_per_frame(residual: Array, frame: NDArray[np.int64], n: int) -> Array:
    """Return the rms (n,) of what is left of each frame's cells; NaN for a frame without cells."""
    count = np.bincount(frame, minlength=n)
    total = np.bincount(frame, residual**2, minlength=n)
    return np.asarray(np.sqrt(np.divide(total, count, out=np.full(n, np.nan), where=count > 0)))


def overlap_differences(cells: SkyCells, left: Array, weight: Array, visit: NDArray[np.int64]) -> Array:
    """Return visits a and b, nodes that both see, and the rms difference of what is left of them, (P, 4)."""
    of_visit, at = np.unique(visit, return_inverse=True)
    n_nodes = cells.lattice.weights.shape[1]
    # The node that a cell weighs on most stands for its place.
    node = cells.lattice.nearest()
    place = at[cells.frame] * n_nodes + node
    shape = (len(of_visit), n_nodes)
    total = np.bincount(place, weight, minlength=shape[0] * shape[1]).reshape(shape)
    mean = np.bincount(place, weight * left, minlength=shape[0] * shape[1]).reshape(shape)
    mean = np.divide(mean, total, out=np.zeros(shape), where=total > 0)
    seen = (total > 0).astype(np.float64)
    shared = seen @ seen.T
    square, product = mean**2 @ seen.T, mean @ mean.T
    a, b = np.nonzero(np.triu(shared >= _LEAST_SHARED_NODES, 1))
    difference = np.sqrt(np.maximum(square + square.T - 2 * product, 0.0)[a, b] / shared[a, b])
    return np.column_stack([of_visit[a], of_visit[b], shared[a, b], difference])


def removed_quadric(
    cells: SkyCells,
    problem: JointProblem,
    glow: Array,
    curvature: Array,
) -> tuple[Array, tuple[float, float]]:
    """Fit a quadric over the mosaic to the glow that the frames lose there.

    Parameters
    ----------
    glow, curvature : ndarray, shape (N, 3)
        Of the frames of the problem, as in `sky_model.ChannelSky`.

    Returns
    -------
    quadric : ndarray, shape (6,)
        Coefficients of 1, x, y, x^2, xy, y^2 in units of `QUADRIC_UNIT_PX`; its median over the mosaic is 0. Zeros
        where too few nodes are seen.
    centre_xy : tuple of float
        Where x and y are 0, plane px.
    """
    removed = np.einsum("kp,kp->k", cells.basis, glow[cells.frame])
    removed += np.einsum("kp,kp->k", cells.curvature, curvature[cells.frame])
    weights = cells.lattice.weights
    total = weights.T @ (problem.weight * removed)
    weight = weights.T @ problem.weight
    good = problem.hits > 0.3
    xy = cells.lattice.node_xy
    centre = (xy[good].min(axis=0) + xy[good].max(axis=0)) / 2 if good.any() else xy.mean(axis=0)
    x, y = ((xy - centre) / QUADRIC_UNIT_PX).T
    terms = np.column_stack([np.ones(len(x)), x, y, x * x, x * y, y * y])
    if good.sum() < 2 * terms.shape[1]:
        return np.zeros(6), (float(centre[0]), float(centre[1]))
    mean = total[good] / np.maximum(weight[good], 1e-300)
    quadric = np.linalg.lstsq(terms[good], mean, rcond=None)[0]
    quadric[0] -= float(np.median(terms[good] @ quadric))
    return quadric, (float(centre[0]), float(centre[1]))


@njit(cache=True, nogil=True)
def quadric_rows(quadric, x, y, out):
    """Write a quadric over rows of a mosaic, in float64 and rounded at the end.

    Parameters
    ----------
    quadric : ndarray, shape (6,), float64
        Coefficients of 1, x, y, x^2, xy, y^2.
    x, y : ndarray, shape (W,) and (H,), float64
    out : ndarray, shape (H, W), float32
    """
    c = quadric
    for j in range(len(y)):
        for i in range(len(x)):
            value = c[0] + c[1] * x[i] + c[2] * y[j]
            value = value + c[3] * x[i] * x[i] + c[4] * x[i] * y[j]
            out[j, i] = value + c[5] * y[j] * y[j]
