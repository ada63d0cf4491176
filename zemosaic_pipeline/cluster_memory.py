"""How a worker of a cluster gives back memory: late, as other processes do.

Dask starts its workers so that the C library returns each freed array to the system at once
(``MALLOC_TRIM_THRESHOLD_``). What reads windows of frames all the time then takes fresh pages all the time, and
clearing them took most of the system's time in co-adding.
"""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

# Of malloc.h in the GNU C library.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Where its own thresholds end up in a process that frees arrays of such sizes, if nobody sets them.
_MMAP_BYTES, _TRIM_BYTES = 32 << 20, 64 << 20


def keep_freed_memory() -> bool:
    """Let this process use freed memory again, up to 64 MB at a time; return whether its C library could be told so.

    Others than that of GNU have no such thresholds, and Dask sets none for them.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES) and mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES))
