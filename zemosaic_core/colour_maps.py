"""Numbers as colours, for pictures of coverage and the like."""

from __future__ import annotations

import numpy as np

__all__ = ["coverage_rgba"]

# From deep blue over teal to warm yellow, with even steps of lightness; sRGB.
_ANCHORS = np.array(
    [
        [24, 28, 60],
        [38, 70, 120],
        [36, 116, 140],
        [44, 158, 132],
        [122, 192, 98],
        [214, 214, 88],
        [253, 240, 170],
    ],
    dtype=float,
)


def coverage_rgba(depth: np.ndarray) -> np.ndarray:
    """Colour a map of counts.

    Parameters
    ----------
    depth : ndarray, shape (h, w)
        Counts or weights; 0 or NaN: nothing there.

    Returns
    -------
    ndarray, shape (h, w, 4), uint8
        Transparent where nothing is there; the largest value has the brightest colour.
    """
    depth = np.nan_to_num(np.asarray(depth, dtype=float))
    top = depth.max(initial=0.0)
    share = depth / top if top > 0 else depth
    nodes = np.linspace(0.0, 1.0, len(_ANCHORS))
    rgba = np.empty((*depth.shape, 4), np.uint8)
    for channel, anchors in enumerate(_ANCHORS.T):
        rgba[..., channel] = np.rint(np.interp(share, nodes, anchors))
    rgba[..., 3] = np.where(depth > 0, 255, 0)
    return rgba
