"""The fingerprint of pixels: fast, over bytes that are in memory anyway, and named by how it was made.

Measured on one core for a frame of 1080 x 1920 px (4 MB): XXH3-128 0.2 ms, BLAKE2b 4 to 8 ms. It tells frames apart;
nobody is kept from making two frames that have the same one. Where the package xxhash is missing BLAKE2b serves. The
name is part of the fingerprint, so that what was stored under the other one is made anew and never mistaken.
"""

from __future__ import annotations

import hashlib
import logging
from typing import Any

import numpy as np

try:
    import xxhash
except ImportError:  # a copy of the program without its packages: slower, and the keys say so
    xxhash = None

__all__ = ["PixelDigest"]

log = logging.getLogger(__name__)


class PixelDigest:
    """A fingerprint that grows piece by piece."""

    def __init__(self) -> None:
        self._state: Any
        if xxhash is not None:
            self._name, self._state = "xxh3", xxhash.xxh3_128()
        else:
            log.debug("xxhash is not installed, pixels are hashed with BLAKE2b")
            self._name, self._state = "blake2b", hashlib.blake2b(digest_size=16)

    def update(self, piece: bytes | memoryview | np.ndarray) -> None:
        """Add bytes; an array must be contiguous."""
        self._state.update(memoryview(piece).cast("B"))

    def key(self) -> str:
        """Return the name of the method and 32 hex digits."""
        return f"{self._name}-{self._state.hexdigest()}"
