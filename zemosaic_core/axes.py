"""The order of the axes of an image: planes first (C, h, w) inside, planes last (h, w, C) for callers."""

from __future__ import annotations

import numpy as np

__all__ = ["to_chw", "to_hwc"]


def to_chw(image: np.ndarray) -> np.ndarray:
    """Return an (h, w) or (h, w, C) image as (C, h, w) float32, C-contiguous.

    Raises
    ------
    ValueError
        When the image has another number of dimensions.
    """
    image = np.asarray(image)
    if image.ndim == 2:
        return np.ascontiguousarray(image[None], dtype=np.float32)
    if image.ndim == 3:
        return np.ascontiguousarray(np.moveaxis(image, -1, 0), dtype=np.float32)
    raise ValueError(f"an image must be (h, w) or (h, w, C), got shape {image.shape}")


def to_hwc(planes: np.ndarray, *, flat: bool) -> np.ndarray:
    """Return (C, h, w) planes of any dtype as (h, w, C), C-contiguous; `flat`: the first plane as (h, w)."""
    return planes[0] if flat else np.ascontiguousarray(np.moveaxis(planes, 0, -1))
