"""Memory that is used again: clearing fresh pages takes an operating system longer than much of what fills them."""

from __future__ import annotations

import math
import threading
from bisect import bisect_left, insort
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

__all__ = ["Scratch"]


class Scratch:
    """Lends arrays and keeps them for the next one who asks. May be used from several threads at once.

    It never holds more arrays than were lent at the same time: where none is large enough, a larger one takes the place
    of the largest.
    """

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []
        self._lock = threading.Lock()

    @contextmanager
    def floats(self, *shape: int) -> Iterator[np.ndarray]:
        """Lend a float32 array of a shape, filled with anything, until the block is left."""
        size = math.prod(shape)
        memory = self._take(size)
        try:
            yield memory[:size].reshape(shape)
        finally:
            with self._lock:
                insort(self._free, memory, key=len)

    def _take(self, size: int) -> np.ndarray:
        with self._lock:
            # Sorted by size: the first that suffices is the best fit.
            place = bisect_left(self._free, size, key=len)
            if place < len(self._free):
                return self._free.pop(place)
            if self._free:
                self._free.pop()
        return np.empty(size, np.float32)
