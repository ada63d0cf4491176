"""Sorting a handful of values inside compiled kernels, where a call of a library would cost more than the work."""

from __future__ import annotations

from numba import njit

__all__ = ["insert_sorted"]


@njit(cache=True, nogil=True)
def insert_sorted(values, n, value):
    """Put a value into its place among the first ``n``, which are in ascending order."""
    k = n
    while k > 0 and values[k - 1] > value:
        values[k] = values[k - 1]
        k -= 1
    values[k] = value
