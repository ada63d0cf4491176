"""How many pixels of a picture have each brightness. Arrays only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["PictureHistogram", "picture_histogram"]


@dataclass(frozen=True)
class PictureHistogram:
    """Counts of the known pixels of a picture.

    Attributes
    ----------
    counts : ndarray, shape (3, 256), int64
        Pixels of each value of red, green and blue.
    black, white : float
        Share of the pixels that are black, and that are white, in every channel.
    """

    counts: np.ndarray
    black: float
    white: float


def picture_histogram(rgba: np.ndarray) -> PictureHistogram:
    """Count the values of a picture, (h, w, 4) uint8; transparent pixels do not count."""
    known = rgba[rgba[..., 3] > 0][:, :3]
    counts = np.stack([np.bincount(known[:, c], minlength=256) for c in range(3)])
    total = max(len(known), 1)
    black = float((known.max(axis=1, initial=0) == 0).sum() / total)
    white = float((known.min(axis=1, initial=255) == 255).sum() / total)
    return PictureHistogram(counts, black, white)
