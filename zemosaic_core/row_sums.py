"""A checksum for each row of an image, so that any window of whole rows can be checked on its own."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numba import njit

__all__ = ["row_sums"]

# Any fixed number: the sums are stored and compared with sums made by the same weights.
_SEED = 20250326


def row_sums(rows: np.ndarray) -> np.ndarray:
    """Return a 32-bit sum per row over its bytes.

    A multilinear hash: ``(sum of weight * word, modulo 2^64) >> 32`` over words of at most 32 bits with random
    64-bit weights. Two different rows of one length have the same sum once in 2^32 (Carter & Wegman 1979,
    J. Comput. Syst. Sci. 18, 143; Lemire & Kaser 2014, Comput. J. 57, 1624). It is computed without holding the
    interpreter, at several gigabytes per second.

    Parameters
    ----------
    rows : ndarray, shape (..., H, W)
        C-contiguous; of any type: only its bytes count.

    Returns
    -------
    ndarray, shape (..., H), uint32
    """
    row_bytes = rows.shape[-1] * rows.itemsize
    word = next(t for t in (np.uint32, np.uint16, np.uint8) if row_bytes % np.dtype(t).itemsize == 0)
    words = np.ascontiguousarray(rows).view(word)
    sums = np.empty(words.shape[:-1], np.uint32)
    _sum_rows(words.reshape(sums.size, words.shape[-1]), _weights(words.shape[-1]), sums.reshape(-1))
    return sums


@njit(cache=True, nogil=True)
def _sum_rows(words, weights, sums):
    for y in range(words.shape[0]):
        line, total = words[y], np.uint64(0)
        for i in range(line.size):
            total += weights[i] * np.uint64(line[i])
        sums[y] = total >> np.uint64(32)


@lru_cache(maxsize=8)
def _weights(n: int) -> np.ndarray:
    return np.random.PCG64(_SEED).random_raw(n)
