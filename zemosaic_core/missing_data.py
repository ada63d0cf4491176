"""Pixels that hold no measurement although they hold a number. Arrays only."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from zemosaic_core.statistics import mad_sigma

__all__ = ["RIM_PX", "constant_share", "has_empty_border", "zeros_to_nan"]

_BLOCK = 32
_STEP = 8
# Less than this share of a picture is no border but dead pixels.
_SMALLEST_BORDER = 1e-3
# Zeros away from the border, as a share of all pixels there: with more of them zero is a dark sky cut off.
_MOST_DARK = 0.01
# The picture was resampled by who made it; its outermost pixels hold part of the emptiness beside them.
RIM_PX = 2


def has_empty_border(planes: np.ndarray) -> bool:
    """Tell whether a picture is surrounded by emptiness that was written as zero.

    That is so when pixels that are exactly 0 in all planes touch the border and hardly any other pixel is 0: a sky
    that was cut off at zero has zeros everywhere.

    Parameters
    ----------
    planes : ndarray, shape (C, h, w) or (h, w)
    """
    zero = (planes == 0).all(axis=0) if planes.ndim == 3 else planes == 0
    n_zero = np.count_nonzero(zero)
    if n_zero < _SMALLEST_BORDER * zero.size or n_zero == zero.size:
        return False
    # Imported here: processes that measure frames start without it, and few frames need it.
    from scipy import ndimage

    parts, _ = ndimage.label(zero)
    rim = np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])
    outside = np.isin(parts, np.unique(rim[rim > 0]))
    n_outside = np.count_nonzero(outside)
    inside = zero.size - n_outside
    return bool(n_outside >= _SMALLEST_BORDER * zero.size and n_zero - n_outside <= _MOST_DARK * inside)


def zeros_to_nan(window: npt.NDArray[np.float32], inner: tuple[slice, slice]) -> npt.NDArray[np.float32]:
    """Cut ``inner`` out of a window and make NaN of what is empty: zero in all planes, and two pixels around that.

    Parameters
    ----------
    window : ndarray, shape (C, h, w), float32
        The pixels wanted, with two more on each side where the picture has them.
    inner : tuple of slice
        Rows and columns of the window that are wanted.
    """
    empty = (window == 0).all(axis=0)
    result = np.ascontiguousarray(window[(slice(None), *inner)])
    if empty.any():
        from scipy import ndimage

        reach = 2 * RIM_PX + 1
        result[:, ndimage.maximum_filter(empty, size=reach, mode="constant")[inner]] = np.nan
    return result


def constant_share(image: np.ndarray, *, zero_bytes: float = 0.0) -> float:
    """Return the share of a raw frame that lies in blocks of 32 x 32 pixels of one exact value.

    No sensor gives that, except where it is saturated: blocks at the highest value of the frame do not count, nor
    such as have the value of the sky around them (a sky without noise after rounding).

    Parameters
    ----------
    image : ndarray, shape (h, w)
        Whole numbers, or floats; NaN never counts.
    zero_bytes : float
        The value that a pixel has whose bytes in the file are 0: never taken for saturation.
    """
    rows, columns = image.shape[0] // _BLOCK, image.shape[1] // _BLOCK
    if not rows or not columns:
        return 0.0
    # A few samples of each block first: nearly all frames need no more.
    per_block = _BLOCK // _STEP
    samples = image[: rows * _BLOCK : _STEP, : columns * _BLOCK : _STEP]
    blocks = samples.reshape(rows, per_block, columns, per_block)
    same = blocks.min(axis=(1, 3)) == blocks.max(axis=(1, 3))
    if not same.any():
        return 0.0
    others = blocks.transpose(0, 2, 1, 3)[~same]
    others = others[np.isfinite(others)]
    sky, spread = (np.median(others), mad_sigma(others)) if others.size else (np.nan, 0.0)
    highest = np.nanmax(image)
    count = 0
    for row, column in np.argwhere(same):
        block = image[row * _BLOCK : (row + 1) * _BLOCK, column * _BLOCK : (column + 1) * _BLOCK]
        value = block[0, 0]
        is_sky = abs(float(value) - float(sky)) <= max(1.0, 2.0 * float(spread))
        is_full = value == highest and value != zero_bytes
        count += int(not is_full and not is_sky and (block == value).all())
    return float(count / (rows * columns))
