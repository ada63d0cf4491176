"""What the C library does with freed memory: keep it for what asks next, or hand it back to the system.

The GNU library begins by giving each large array pages of its own, and learns from the first that is freed to take the
next ones of up to 32 MB from one heap, which it can only give back from its end: small things that live on between them
keep all of it. Where windows of frames are read all the time that is right, for fresh pages have to be cleared. Where
each of thousands of frames leaves something small, it keeps more memory free than the run uses.

Who has set ``MALLOC_MMAP_THRESHOLD_`` has decided that already: then nothing is changed.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

__all__ = ["give_memory_back", "keep_freed_memory", "keep_one_heap", "return_freed_memory"]

# Of malloc.h in the GNU C library.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
# Where its own thresholds end up in a process that frees arrays of such sizes, if nobody sets them.
_KEPT_BYTES, _KEPT_END_BYTES = 32 << 20, 64 << 20
# With fresh pages for arrays from 128 kB on laying out 120 frames took 0.6 s more of 3.2, from here on 0.4 s more.
_OWN_PAGES_BYTES = 1 << 20


def give_memory_back() -> None:
    """Hand memory that was freed back to the system, where its C library can (glibc): it keeps much of it otherwise.

    A phase then starts from what it needs, and not from the largest of what others needed before.
    """
    trim = _of_c_library("malloc_trim")
    if trim is not None:
        trim(0)


def keep_freed_memory() -> bool:
    """Let this process use freed memory again, up to 64 MB at a time; return whether its C library could be told so.

    Others than that of GNU have no such thresholds, and those that the environment sets stay.
    """
    return _set(_KEPT_BYTES, _KEPT_END_BYTES)


def keep_one_heap() -> bool:
    """Let all threads take memory from one heap, which keeps what is freed; returned is the same as of the others.

    Calls on a worker run beside its first thread. The heaps of such threads are made of parts of 64 MB, each of which
    goes back when it is empty, whatever the thresholds are.
    """
    return keep_freed_memory() and bool(_of_c_library("mallopt")(_M_ARENA_MAX, 1))


def return_freed_memory() -> bool:
    """Give arrays from 1 MB on pages of their own, which go back when they are freed.

    Returned is the same as of `keep_freed_memory`.
    """
    return _set(_OWN_PAGES_BYTES, _OWN_PAGES_BYTES)


def _set(mmap_bytes: int, trim_bytes: int) -> bool:
    mallopt = _of_c_library("mallopt")
    if mallopt is None or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, mmap_bytes) and mallopt(_M_TRIM_THRESHOLD, trim_bytes))


def _of_c_library(name: str) -> Any:
    """Return a function of the C library of Linux, or None where there is none of that name."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
