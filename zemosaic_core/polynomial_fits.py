"""Least squares of polynomials of two variables, compiled: many small fits, each of few hundred points. Arrays only.

By normal equations: in normalised coordinates the terms up to third order are far from each other, and where the points
do not tell them apart, the answer is that they do not (a plain least squares then decides).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .normal_equations import factorise, unwhiten, whiten

__all__ = ["clipped_fit", "least_squares", "nested_errors"]

# Terms that the ones before them explain to this share are not told apart.
_LEAST_PIVOT = 1e-6


@njit(cache=True, nogil=True, error_model="numpy")
def _normalised(src, keep):
    """Return middle and half of the longer side of the kept points."""
    low_x = low_y = np.inf
    high_x = high_y = -np.inf
    for k in range(len(src)):
        if keep[k]:
            low_x, high_x = min(low_x, src[k, 0]), max(high_x, src[k, 0])
            low_y, high_y = min(low_y, src[k, 1]), max(high_y, src[k, 1])
    half = max(high_x - low_x, high_y - low_y) / 2.0
    return (low_x + high_x) / 2.0, (low_y + high_y) / 2.0, half if half > 0 else 1.0


@njit(cache=True, nogil=True, error_model="numpy")
def _terms_of(u, v, out):
    out[0], out[1], out[2] = 1.0, u, v
    if len(out) > 3:
        out[3], out[4], out[5] = u * u, u * v, v * v
    if len(out) > 6:
        out[6], out[7], out[8], out[9] = u * u * u, u * u * v, u * v * v, v * v * v


@njit(cache=True, nogil=True, error_model="numpy")
def _factor(src, dst, keep, n_terms, x, y, scale):
    """Return whether the points tell the terms apart, the factor ``L`` of their squares, and ``L^-1 terms^T dst``."""
    square, right, terms = np.zeros((n_terms, n_terms)), np.zeros((n_terms, 2)), np.empty(n_terms)
    for k in range(len(src)):
        if keep[k]:
            _terms_of((src[k, 0] - x) / scale, (src[k, 1] - y) / scale, terms)
            for i in range(n_terms):
                for j in range(i + 1):
                    square[i, j] += terms[i] * terms[j]
                right[i, 0] += terms[i] * dst[k, 0]
                right[i, 1] += terms[i] * dst[k, 1]
    known = factorise(square, _LEAST_PIVOT)
    for r in range(2):
        whiten(square, right[:, r])
    return known, square, right


@njit(cache=True, nogil=True, error_model="numpy")
def _coefficients(factor, whitened):
    out = whitened.T.copy()
    for r in range(2):
        unwhiten(factor, out[r])
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def least_squares(src, dst, keep, n_terms):
    """Fit both targets to the kept points.

    Parameters
    ----------
    src, dst : ndarray, shape (n, 2), float64
    keep : ndarray, shape (n,), bool
    n_terms : int
        3, 6 or 10: first, second or third order.

    Returns
    -------
    known : bool
        False where the points do not tell the terms apart; the rest means nothing then.
    x, y, scale : float
        Middle and half side of the points: terms are of ``(src - (x, y)) / scale``.
    coefficients : ndarray, shape (2, n_terms)
    """
    x, y, scale = _normalised(src, keep)
    known, factor, whitened = _factor(src, dst, keep, n_terms, x, y, scale)
    return known, x, y, scale, _coefficients(factor, whitened) if known else np.zeros((2, n_terms))


@njit(cache=True, nogil=True, error_model="numpy")
def clipped_fit(src, dst, n_terms, clip_sigma, max_iterations, median_r2, needed):
    """Do as `transforms.fit_transform` does; return what `least_squares` does, and the pairs kept.

    Parameters
    ----------
    median_r2 : float
        Median of the squared residual distance in squares of the scatter per axis.
    needed : int
        With fewer pairs the last fit stays.
    """
    n = len(src)
    keep, new_keep = np.ones(n, np.bool_), np.ones(n, np.bool_)
    freedom = max(1.0 - needed / n, 0.1)
    known, x, y, scale, found = least_squares(src, dst, keep, n_terms)
    r2, terms = np.empty(n), np.empty(n_terms)
    for _ in range(max_iterations):
        if not known:
            break
        for k in range(n):
            _terms_of((src[k, 0] - x) / scale, (src[k, 1] - y) / scale, terms)
            left_x, left_y = -dst[k, 0], -dst[k, 1]
            for i in range(n_terms):
                left_x += found[0, i] * terms[i]
                left_y += found[1, i] * terms[i]
            r2[k] = left_x * left_x + left_y * left_y
        sigma2 = np.median(r2) / median_r2 / freedom
        most = clip_sigma * clip_sigma * sigma2 + (1e-12 * scale) ** 2
        count, same = 0, True
        for k in range(n):
            new_keep[k] = r2[k] <= most
            count += new_keep[k]
            same = same and new_keep[k] == keep[k]
        if count < needed or same:
            break
        keep[:] = new_keep
        known, x, y, scale, found = least_squares(src, dst, keep, n_terms)
    return known, x, y, scale, found, keep


@njit(cache=True, nogil=True, error_model="numpy")
def nested_errors(src, dst, n_terms):
    """Return squared leave-one-out errors of each pair, of the fits of first order up to that of ``n_terms``.

    Returns
    -------
    known : bool
        As in `least_squares`.
    errors : ndarray, shape (orders, n)
        Residual over one less leverage, squared; the polynomial of lower order is part of that of higher order.
    """
    n = len(src)
    keep = np.ones(n, np.bool_)
    x, y, scale = _normalised(src, keep)
    known, factor, whitened = _factor(src, dst, keep, n_terms, x, y, scale)
    errors = np.empty((1 if n_terms == 3 else 2 if n_terms == 6 else 3, n))
    terms = np.empty(n_terms)
    if not known:
        return known, errors
    for k in range(n):
        _terms_of((src[k, 0] - x) / scale, (src[k, 1] - y) / scale, terms)
        left_x, left_y, leverage, order = dst[k, 0], dst[k, 1], 0.0, 0
        for i in range(n_terms):
            for m in range(i):
                terms[i] -= factor[i, m] * terms[m]
            terms[i] /= factor[i, i]
            left_x -= terms[i] * whitened[i, 0]
            left_y -= terms[i] * whitened[i, 1]
            leverage += terms[i] * terms[i]
            if i in (2, 5, 9):
                free = max(1.0 - leverage, 1e-6)
                errors[order, k] = (left_x * left_x + left_y * left_y) / (free * free)
                order += 1
    return known, errors
