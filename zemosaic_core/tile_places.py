"""Which tiles lie in one place, and what joining them makes of their variance. Arrays only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

__all__ = ["CoveredCells", "kept_variance", "overlap_share", "tiles_of_one_place"]


@dataclass(frozen=True)
class CoveredCells:
    """Where a tile has pixels, on a lattice that all tiles share.

    Attributes
    ----------
    first_yx : tuple of int
        Lattice index of the first cell.
    covered : ndarray of bool, shape (ny, nx)
    """

    first_yx: tuple[int, int]
    covered: np.ndarray


def overlap_share(a: CoveredCells, b: CoveredCells) -> float:
    """Return which share of the smaller of two tiles lies on the other, 0 to 1."""
    y0, x0 = (max(p, q) for p, q in zip(a.first_yx, b.first_yx, strict=True))
    y1 = min(a.first_yx[0] + a.covered.shape[0], b.first_yx[0] + b.covered.shape[0])
    x1 = min(a.first_yx[1] + a.covered.shape[1], b.first_yx[1] + b.covered.shape[1])
    smaller = min(np.count_nonzero(a.covered), np.count_nonzero(b.covered))
    if y0 >= y1 or x0 >= x1 or smaller == 0:
        return 0.0
    windows = [
        part.covered[
            y0 - part.first_yx[0] : y1 - part.first_yx[0], x0 - part.first_yx[1] : x1 - part.first_yx[1]
        ]
        for part in (a, b)
    ]
    return float(np.count_nonzero(windows[0] & windows[1]) / smaller)


def tiles_of_one_place(
    tiles: Sequence[CoveredCells], *, threshold: float, min_group: int, max_group: int
) -> list[tuple[int, ...]]:
    """Return the groups of tiles that lie in one place.

    Parameters
    ----------
    tiles : sequence of CoveredCells
    threshold : float
        Two tiles belong together when this share of the smaller one lies on the other; what belongs to one of a group
        belongs to all.
    min_group, max_group : int
        Smaller groups are none. Larger ones are cut, in the order of their tiles, into nearly equal parts.

    Returns
    -------
    list of tuple of int
        Positions of tiles, ascending; groups in the order of their first tile. A tile is in one of them at most.
    """
    n = len(tiles)
    links = [(i, j) for i, j in combinations(range(n), 2) if overlap_share(tiles[i], tiles[j]) >= threshold]
    if not links:
        return []
    rows, columns = np.array(links).T
    graph = coo_matrix((np.ones(len(links)), (rows, columns)), (n, n))
    labels = connected_components(graph, directed=False)[1]
    groups: list[tuple[int, ...]] = []
    for label in dict.fromkeys(labels.tolist()):
        members = np.flatnonzero(labels == label)
        for part in np.array_split(members, -(-len(members) // max(2, max_group))):
            if len(part) >= max(2, min_group):
                groups.append(tuple(map(int, part)))
    return groups


def kept_variance(of_all: np.ndarray, all_weights: np.ndarray, kept_weights: np.ndarray) -> np.ndarray:
    """Return the variance of a weighted mean from which samples were rejected.

    Weights are inverse variances up to a factor that hardly differs between the samples of a pixel, so what is lost is
    the weight of the rejected ones: ``sum(w^2 v) / (sum(w) * sum_kept(w))``. Without rejection it is exact for any
    weights.

    Parameters
    ----------
    of_all : ndarray
        Variance of the mean of all samples, ``sum(w^2 v) / sum(w)^2``.
    all_weights, kept_weights : ndarray
        Sums of weights over all samples, and over those that were kept.

    Returns
    -------
    ndarray, float32
        NaN where nothing was kept.
    """
    known = kept_weights > 0
    scale = np.where(known, all_weights / np.where(known, kept_weights, 1.0), np.nan)
    return np.asarray(of_all * scale, np.float32)
