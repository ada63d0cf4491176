"""Joint adjustment of many frames that share stars: the sparse least squares behind geometry and photometry.

Each measurement ``k`` of star ``j(k)`` in frame ``f(k)`` obeys::

    y_k + B_k . p_f(k) = s_j(k) + noise

The unknown star values ``s`` are eliminated (they are weighted means), and the frame parameters ``p`` follow
from conjugate gradients on the reduced normal equations. Memory and time per step are proportional to the
number of measurements; no frame-by-frame matrix is ever formed. Arrays only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

__all__ = [
    "Adjustment",
    "corrections",
    "frame_components",
    "frame_information",
    "solve_adjustment",
    "star_means",
]


@dataclass(frozen=True)
class Adjustment:
    """Solution of `solve_adjustment`.

    Attributes
    ----------
    parameters : ndarray, shape (N, P, R), float64
        Frame parameters; R independent right-hand sides (for instance x and y) share the same design.
    star_values : ndarray, shape (M, R), float64
        Weighted mean of the corrected measurements of each star; NaN for a star without weight.
    steps : int
        Conjugate-gradient steps taken.
    converged : bool
        The residual fell below the tolerance.
    """

    parameters: np.ndarray
    star_values: np.ndarray
    steps: int
    converged: bool


def solve_adjustment(
    frame_index: np.ndarray,
    star_index: np.ndarray,
    basis: np.ndarray,
    values: np.ndarray,
    weights: np.ndarray,
    prior_weights: np.ndarray,
    n_stars: int,
    *,
    anchor_values: np.ndarray | None = None,
    anchor_weights: np.ndarray | None = None,
    start: np.ndarray | None = None,
    tolerance: float = 1e-9,
    max_steps: int = 1000,
) -> Adjustment:
    """Minimise ``sum w |y + B.p - s|^2 + sum lambda p^2 + sum w_a |s - a|^2``.

    Parameters
    ----------
    frame_index, star_index : ndarray, shape (K,), int64
    basis : ndarray, shape (K, P), float64
        ``B``.
    values : ndarray, shape (K, R), float64
        ``y``, finite.
    weights : ndarray, shape (K,), float64
        ``w`` >= 0; zero leaves the measurement out.
    prior_weights : ndarray, shape (N, P), float64
        ``lambda`` > 0: pulls the parameters to zero; this alone fixes what the stars leave free (the gauge).
    n_stars : int
    anchor_values, anchor_weights : ndarray, shape (M, R) and (M,), optional
        Known star values ``a`` and their weights ``w_a`` (0 where unknown).
    start : ndarray, shape (N, P, R), optional
        First guess.
    """
    frame, star = (np.ascontiguousarray(v, dtype=np.int64) for v in (frame_index, star_index))
    b, y = np.ascontiguousarray(basis, dtype=np.float64), np.ascontiguousarray(values, dtype=np.float64)
    w = np.ascontiguousarray(weights, dtype=np.float64)
    prior = np.ascontiguousarray(prior_weights, dtype=np.float64)
    n_right = y.shape[1]
    star_weight = np.bincount(star, w, minlength=n_stars)
    star_sum = _star_sums(star, w, y, n_stars)
    if anchor_values is not None and anchor_weights is not None:
        star_weight = star_weight + anchor_weights
        star_sum += anchor_weights[:, None] * np.where(anchor_weights[:, None] > 0, anchor_values, 0.0)
    inverse_weight = np.divide(1.0, star_weight, out=np.zeros(n_stars), where=star_weight > 0)
    right = np.zeros((*prior.shape, n_right))
    _gather(frame, star, b, w, y, star_sum * inverse_weight[:, None], right)
    blocks = _diagonal_blocks(frame, star, b, w, inverse_weight, prior)
    p = np.zeros_like(right) if start is None else np.array(start, dtype=np.float64)
    buffers = np.zeros((n_stars, n_right)), np.zeros_like(right)

    sizes = (0,) * prior.shape[1], (0,) * n_right

    def product(q: np.ndarray) -> np.ndarray:
        _normal_product(frame, star, b, w, inverse_weight, prior, q, *buffers, *sizes)
        return buffers[1].copy()

    p, steps, converged = _conjugate_gradients(
        product, -right, np.linalg.inv(blocks), p, tolerance, max_steps
    )
    corrected = corrections(frame, b, p)
    corrected += y
    total = _star_sums(star, w, corrected, n_stars)
    if anchor_values is not None and anchor_weights is not None:
        total += anchor_weights[:, None] * np.where(anchor_weights[:, None] > 0, anchor_values, 0.0)
    star_values = np.where(star_weight[:, None] > 0, total * inverse_weight[:, None], np.nan)
    return Adjustment(p, star_values, steps, converged)


def star_means(star_index: np.ndarray, values: np.ndarray, weights: np.ndarray, n_stars: int) -> np.ndarray:
    """Weighted mean of measurements per star, (M, R) float64; NaN for a star without weight."""
    total = _star_sums(star_index, weights, values, n_stars)
    weight = np.bincount(star_index, weights, minlength=n_stars)
    return np.divide(total, weight[:, None], out=np.full_like(total, np.nan), where=weight[:, None] > 0)


def frame_information(
    frame_index: np.ndarray, star_index: np.ndarray, weights: np.ndarray, n_frames: int, n_stars: int
) -> np.ndarray:
    """Information on one constant per frame, stars eliminated: ``sum w (1 - w / W)``, shape (N,)."""
    star_weight = np.bincount(star_index, weights, minlength=n_stars)[star_index]
    share = np.divide(weights, star_weight, out=np.zeros_like(weights), where=star_weight > 0)
    return np.bincount(frame_index, weights * (1.0 - share), minlength=n_frames)


def frame_components(
    frame_index: np.ndarray, star_index: np.ndarray, n_frames: int, n_stars: int
) -> np.ndarray:
    """Label frames that are linked by common stars, shape (N,), int64.

    The largest component is 0, the next 1 and so on (ties: the one with the earliest frame first); a frame
    without measurements is -1.
    """
    graph = coo_matrix(
        (np.ones(len(frame_index)), (frame_index, n_frames + star_index)), shape=(n_frames + n_stars,) * 2
    )
    labels = connected_components(graph, directed=False)[1][:n_frames]
    measured = np.bincount(frame_index, minlength=n_frames) > 0
    out = np.full(n_frames, -1, dtype=np.int64)
    if measured.any():
        found, first, inverse, counts = np.unique(
            labels[measured], return_index=True, return_inverse=True, return_counts=True
        )
        rank = np.empty(len(found), dtype=np.int64)
        rank[np.lexsort((first, -counts))] = np.arange(len(found))
        out[measured] = rank[inverse]
    return out


def _star_sums(star: np.ndarray, weights: np.ndarray, values: np.ndarray, n_stars: int) -> np.ndarray:
    out = np.zeros((n_stars, values.shape[1]))
    for r in range(values.shape[1]):
        out[:, r] = np.bincount(star, weights * values[:, r], minlength=n_stars)
    return out


def _conjugate_gradients(product, right, inverse_blocks, p, tolerance, max_steps):
    """Solve all right-hand sides side by side, each with its own step lengths (block-Jacobi)."""

    def precondition(v: np.ndarray) -> np.ndarray:
        return np.matmul(inverse_blocks, v)

    def dot(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        return np.einsum("npr,npr->r", u, v)

    residual = right - product(p) if p.any() else right.copy()
    z = precondition(residual)
    direction = z.copy()
    rho = dot(residual, z)
    goal = tolerance**2 * np.maximum(dot(right, precondition(right)), 1e-300)
    for step in range(max_steps):
        if (rho <= goal).all():
            return p, step, True
        moved = product(direction)
        curvature = dot(direction, moved)
        active = (rho > goal) & (curvature > 0)
        alpha = np.divide(rho, curvature, out=np.zeros_like(rho), where=active)
        p = p + alpha * direction
        residual = residual - alpha * moved
        z = precondition(residual)
        new_rho = dot(residual, z)
        beta = np.divide(new_rho, rho, out=np.zeros_like(rho), where=rho > 0)
        direction = z + beta * direction
        rho = new_rho
    return p, max_steps, bool((rho <= goal).all())


@njit(cache=True, nogil=True)
def corrections(frame, basis, parameters):
    """Return ``B.p`` of each measurement, (K, R) float64, without a table of the parameters of all of them.

    Parameters
    ----------
    frame : ndarray, shape (K,), int64
    basis : ndarray, shape (K, P), float64
    parameters : ndarray, shape (N, P, R), float64
    """
    out = np.zeros((len(frame), parameters.shape[2]))
    for k in range(len(frame)):
        own = parameters[frame[k]]
        for i in range(own.shape[0]):
            for r in range(own.shape[1]):
                out[k, r] += basis[k, i] * own[i, r]
    return out


@njit(cache=True, nogil=True)
def _gather(frame, star, basis, weight, values, star_mean, out):
    for k in range(len(frame)):
        f = frame[k]
        for i in range(basis.shape[1]):
            for r in range(values.shape[1]):
                out[f, i, r] += weight[k] * basis[k, i] * (values[k, r] - star_mean[star[k], r])


@njit(cache=True, nogil=True)
def _diagonal_blocks(frame, star, basis, weight, inverse_star_weight, prior):
    n, n_par = prior.shape
    out = np.zeros((n, n_par, n_par))
    for f in range(n):
        for i in range(n_par):
            out[f, i, i] = prior[f, i]
    for k in range(len(frame)):
        w = weight[k] * (1.0 - weight[k] * inverse_star_weight[star[k]])
        for i in range(n_par):
            for j in range(n_par):
                out[frame[k], i, j] += w * basis[k, i] * basis[k, j]
    return out


@njit(cache=True, nogil=True)
def _normal_product(
    frame, star, basis, weight, inverse_star_weight, prior, p, star_mean, out, parameters, columns
):
    """Multiply the reduced normal matrix with ``p``.

    ``parameters`` and ``columns`` are tuples of as many zeros as ``p`` has of both: their lengths are known when this
    is compiled, so the innermost loops are unrolled.
    """
    n_obs = len(basis)
    for f in range(p.shape[0]):
        for i in range(len(parameters)):
            for r in range(len(columns)):
                out[f, i, r] = prior[f, i] * p[f, i, r]
    star_mean[:] = 0.0
    for k in range(n_obs):
        f, j, w = frame[k], star[k], weight[k]
        for r in range(len(columns)):
            t = 0.0
            for i in range(len(parameters)):
                t += basis[k, i] * p[f, i, r]
            star_mean[j, r] += w * t
    for j in range(star_mean.shape[0]):
        for r in range(len(columns)):
            star_mean[j, r] *= inverse_star_weight[j]
    for k in range(n_obs):
        f, j, w = frame[k], star[k], weight[k]
        for r in range(len(columns)):
            t = 0.0
            for i in range(len(parameters)):
                t += basis[k, i] * p[f, i, r]
            t = w * (t - star_mean[j, r])
            for i in range(len(parameters)):
                out[f, i, r] += basis[k, i] * t
