"""Images made smaller by a whole number: means of the finite pixels of square blocks. Arrays only."""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["bin_down"]

# Rows converted at a time: a memory-mapped mosaic can be larger than the memory.
_ROWS = 256


def bin_down(image: np.ndarray, factor: int) -> np.ndarray:
    """Average the finite pixels of ``factor`` x ``factor`` blocks.

    Parameters
    ----------
    image : ndarray, shape (C, h, w)
        NaN means missing. Blocks at the far borders have the pixels that are there.
    factor : int
        At least 1.

    Returns
    -------
    ndarray, shape (C, ceil(h / factor), ceil(w / factor)), float32
        NaN where a block has no finite pixel.
    """
    channels, height, width = image.shape
    rows, columns = -(-height // factor), -(-width // factor)
    result = np.empty((channels, rows, columns), dtype=np.float32)
    strip = max(1, _ROWS // factor)
    for plane, out in zip(image, result, strict=True):
        for y in range(0, rows, strip):
            part = np.ascontiguousarray(plane[y * factor : (y + strip) * factor], dtype=np.float32)
            (_halve_rows if factor == 2 else _bin_rows)(part, factor, out[y : y + strip])
    return result


@njit(cache=True, nogil=True)
def _bin_rows(plane: np.ndarray, factor: int, result: np.ndarray) -> None:
    height, width = plane.shape
    columns = result.shape[1]
    total = np.empty(columns, dtype=np.float32)
    count = np.empty(columns, dtype=np.int32)
    for j in range(result.shape[0]):
        total[:] = np.float32(0.0)
        count[:] = 0
        for y in range(j * factor, min(height, (j + 1) * factor)):
            row = plane[y]
            for i in range(columns):
                for x in range(i * factor, min(width, (i + 1) * factor)):
                    value = row[x]
                    if np.isfinite(value):
                        total[i] += value
                        count[i] += 1
        for i in range(columns):
            result[j, i] = total[i] / np.float32(count[i]) if count[i] > 0 else np.float32(np.nan)


@njit(cache=True, nogil=True)
def _halve_rows(plane: np.ndarray, factor: int, result: np.ndarray) -> None:
    """Give the bits of `_bin_rows` for blocks of 2 x 2, the whole and finite ones of which take one division."""
    height, width = plane.shape
    n_whole = width // 2
    for j in range(result.shape[0]):
        if 2 * j + 1 == height:
            _bin_rows(plane[2 * j :], factor, result[j:])
            continue
        above, below, out = plane[2 * j], plane[2 * j + 1], result[j]
        for i in range(n_whole):
            out[i] = (above[2 * i] + above[2 * i + 1] + below[2 * i] + below[2 * i + 1]) * np.float32(0.25)
        for i in range(n_whole):
            if not np.isfinite(out[i]):
                total, count = np.float32(0.0), 0
                for value in (above[2 * i], above[2 * i + 1], below[2 * i], below[2 * i + 1]):
                    if np.isfinite(value):
                        total += value
                        count += 1
                out[i] = total / np.float32(count) if count > 0 else np.float32(np.nan)
        if n_whole < out.size:
            last = np.ascontiguousarray(plane[2 * j : 2 * j + 2, 2 * n_whole :])
            _bin_rows(last, factor, result[j : j + 1, n_whole:])
