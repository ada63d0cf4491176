"""Compile loops that work on arrays of their caller and make none of their own.

Every part of an array that compiled code takes is counted: a locked addition when the part is taken, another when it is
done with, and no other thread may touch the count meanwhile. Where a row takes dozens of parts that is a good share of
its time. Whoever only works on what it was lent need not count, because the caller keeps the arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

__all__ = ["njit_lent"]


def njit_lent(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function that neither makes nor returns arrays, without counting who uses the ones it takes parts of.

    Parameters
    ----------
    **options
        As for `numba.njit`; compiled code is kept and the interpreter is let go.

    Returns
    -------
    callable
        The decorator. What it decorates refuses to compile where it makes an array.
    """
    # Nothing calls these through C pointers; making that possible takes 6 % of the time to compile them.
    return njit(cache=True, nogil=True, _nrt=False, no_cfunc_wrapper=True, **options)
