"""Normal equations of few unknowns, solved within compiled loops over many small fits. Arrays only."""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["factorise", "unwhiten", "whiten"]


@njit(cache=True, nogil=True, error_model="numpy")
def factorise(square, least_pivot):
    """Put the Cholesky factor ``L`` of a matrix (n, n) in the place of its lower half, the only one that is read.

    An unknown that the ones before it explain but for a share of ``least_pivot`` gets a pivot of 0.

    Returns
    -------
    bool
        Whether there is none of these.
    """
    known = True
    for i in range(len(square)):
        whole = square[i, i]
        for j in range(i + 1):
            left = square[i, j]
            for m in range(j):
                left -= square[i, m] * square[j, m]
            if j < i:
                square[i, j] = left / square[j, j] if square[j, j] > 0.0 else 0.0
            elif left > least_pivot * whole:
                square[i, i] = np.sqrt(left)
            else:
                square[i, i] = 0.0
                known = False
    return known


@njit(cache=True, nogil=True, error_model="numpy")
def whiten(factor, right):
    """Put ``L^-1 right`` in the place of ``right`` (n,); 0 for unknowns whose pivot is 0."""
    for i in range(len(right)):
        for m in range(i):
            right[i] -= factor[i, m] * right[m]
        right[i] = right[i] / factor[i, i] if factor[i, i] > 0.0 else 0.0


@njit(cache=True, nogil=True, error_model="numpy")
def unwhiten(factor, right):
    """Put ``L^-T right`` in the place of ``right`` (n,); 0 for unknowns whose pivot is 0."""
    n = len(right)
    for i in range(n - 1, -1, -1):
        for m in range(i + 1, n):
            right[i] -= factor[m, i] * right[m]
        right[i] = right[i] / factor[i, i] if factor[i, i] > 0.0 else 0.0
