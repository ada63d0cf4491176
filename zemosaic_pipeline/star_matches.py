"""Lay the stars of one frame on those of others, in a process that does little else and stays small."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from zemosaic_core.errors import SkipItem
from zemosaic_core.star_patterns import find_similarity
from zemosaic_core.transforms import fit_transform
from zemosaic_pipeline.frame_boundary import result_or_skip

__all__ = ["Match", "Neighbour", "match_frame", "match_of"]

PAIR_RADIUS_PX = 2.5
MIN_PAIRS = 8

Match = tuple[int, np.ndarray, np.ndarray, float]


Neighbour = tuple[np.ndarray, float]
"""Stars of a solved frame, and how many of its pixels one of the frame to be matched is wide."""


def match_of(task: tuple[str, list[Neighbour], np.ndarray, float]) -> Match | SkipItem | None:
    """Match the frame with the path given; runs in a worker process."""
    path, neighbours, xy, tolerance_px = task
    return result_or_skip(path, match_frame, (neighbours, xy, tolerance_px))


def match_frame(task: tuple[list[Neighbour], np.ndarray, float]) -> Match | None:
    """Lay a frame's stars on the first neighbour that fits.

    Parameters
    ----------
    task : tuple
        The solved neighbours, star positions (n, 2) of the frame, and the largest residual allowed (px of the frame).

    Returns
    -------
    tuple or None
        Which neighbour, positions of the paired stars in it and in the frame, residual in px.
    """
    neighbours, xy, tolerance_px = task
    for which, (known_xy, width_px) in enumerate(neighbours):
        reference = known_xy / width_px
        found = find_similarity(reference, xy)
        if found is None:
            continue
        tree = cKDTree(reference)
        distance, nearest = tree.query(found.apply(xy), distance_upper_bound=PAIR_RADIUS_PX)
        paired = np.isfinite(distance)
        if np.count_nonzero(paired) < MIN_PAIRS:
            continue
        fit = fit_transform(xy[paired], reference[nearest[paired]], "affine")
        good = np.flatnonzero(paired)[fit.keep]
        if fit.rms_px <= tolerance_px and len(good) >= MIN_PAIRS:
            return which, known_xy[nearest[good]], xy[good], fit.rms_px
    return None
