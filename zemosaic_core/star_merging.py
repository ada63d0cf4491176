"""Merge the star positions of many frames into one list of stars. Arrays only; independent of frame order."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

__all__ = ["join_ghosts", "merge_positions", "vote_offset"]

# Detections are counted in cells of half the matching radius: fine enough to see a star's cloud of positions
# as one peak, coarse enough that the cloud fills its cell.
_CELLS_PER_RADIUS = 2
_ROUNDS = 3


def merge_positions(xy: np.ndarray, frame: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Find stars as peaks of the density of detections and give each detection to its nearest star.

    A star has at most one detection per frame (the nearest). Detections that fit nowhere become stars of
    their own, so every finite detection belongs to exactly one star.

    Parameters
    ----------
    xy : ndarray, shape (K, 2), float64
        Positions of all detections on the common plane.
    frame : ndarray, shape (K,), int
        Frame of each detection.
    radius : float
        Largest distance of a detection from its star, same units.

    Returns
    -------
    star_index : ndarray, shape (K,), int64
        -1 for a detection that is not finite.
    star_xy : ndarray, shape (M, 2), float64
        Mean position of the star's detections; stars ordered by position (y, then x).
    """
    xy = np.asarray(xy, dtype=np.float64)
    frame = np.asarray(frame, dtype=np.int64)
    labels = np.full(len(xy), -1, dtype=np.int64)
    todo = np.flatnonzero(np.isfinite(xy).all(axis=1))
    n_stars = 0
    for _ in range(_ROUNDS):
        if len(todo) == 0:
            break
        # At first all of them, most likely: no copies then.
        whole = len(todo) == len(xy)
        local = _assign_to_peaks(*((xy, frame) if whole else (xy[todo], frame[todo])), radius)
        labels[todo] = np.where(local >= 0, local + n_stars, -1)
        n_stars += int(local.max()) + 1
        todo = todo[local < 0]
    labels[todo] = n_stars + np.arange(len(todo))
    return _order_by_position(xy, labels)


def vote_offset(
    xy: np.ndarray, reference_xy: np.ndarray, radius: float, *, bin_size: float = 2.0, min_votes: int = 8
) -> tuple[float, float] | None:
    """Find the shift that brings most positions onto reference positions.

    All differences ``reference - xy`` within `radius` vote in a histogram smoothed over 3 x 3 bins; the peak
    must reach `min_votes`, a quarter of the positions, and stand clear of what chance alone would pile up.

    Returns
    -------
    (dx, dy) or None
        Median of the differences at the peak; None when no shift stands out, which is a normal answer.
    """
    if len(xy) == 0 or len(reference_xy) == 0:
        return None
    hits = cKDTree(reference_xy).query_ball_point(xy, radius)
    counts = np.array([len(h) for h in hits])
    if counts.sum() == 0:
        return None
    reference = np.concatenate([np.sort(np.asarray(h, dtype=np.int64)) for h in hits])
    difference = reference_xy[reference] - np.repeat(xy, counts, axis=0)
    n_bins = int(np.ceil(2 * radius / bin_size))
    edges = -radius + bin_size * np.arange(n_bins + 1)
    histogram = np.histogram2d(difference[:, 0], difference[:, 1], bins=(edges, edges))[0]
    padded = np.pad(histogram, 1)
    smooth = sum(padded[i : i + n_bins, j : j + n_bins] for i in range(3) for j in range(3))
    peak = np.unravel_index(int(np.argmax(smooth)), smooth.shape)
    votes = float(smooth[peak])
    chance = 9.0 * len(difference) / n_bins**2
    if votes < max(min_votes, 0.25 * len(xy), chance + 6.0 * np.sqrt(chance + 1.0)):
        return None
    centre = np.array([edges[peak[0]], edges[peak[1]]]) + bin_size / 2.0
    near = np.abs(difference - centre).max(axis=1) <= 1.5 * bin_size
    shift = np.median(difference[near], axis=0)
    return float(shift[0]), float(shift[1])


def join_ghosts(
    star_xy: np.ndarray,
    star_index: np.ndarray,
    frame: np.ndarray,
    radius: float,
    *,
    tolerance: float = 2.0,
    min_votes: int = 8,
    max_shifts: int = 20,
) -> np.ndarray | None:
    """Join stars that are in the list twice because whole groups of frames are shifted against each other.

    Two entries of the list are candidates if they lie within `radius` and no frame shows both (a real pair of
    stars is seen side by side by the same frames). A ghost shows itself by many candidates with the same
    separation; these are joined, one separation after the other.

    Returns
    -------
    ndarray, shape (K,), int64, or None
        New star numbers of the detections; None when there is no ghost, which is the usual answer.
    """
    n_stars = len(star_xy)
    seen = np.bincount(star_index[star_index >= 0], minlength=n_stars)
    solid = np.flatnonzero(seen >= 2)
    if len(solid) < 2:
        return None
    pairs = solid[cKDTree(star_xy[solid]).query_pairs(radius, output_type="ndarray")]
    pairs = _without_common_frame(pairs, star_index, frame, n_stars)
    difference = star_xy[pairs[:, 1]] - star_xy[pairs[:, 0]]
    # The order inside a pair means nothing: count every separation in the same half plane.
    flip = (difference[:, 0] < 0) | ((difference[:, 0] == 0) & (difference[:, 1] < 0))
    difference = np.where(flip[:, None], -difference, difference)
    joined = []
    for _ in range(max_shifts):
        # Half of the disc is empty, so what chance piles up is twice as dense as in a full one.
        chance = 2.0 * len(difference) * (tolerance / radius) ** 2
        needed = max(min_votes, chance + 6.0 * np.sqrt(chance + 1.0))
        if len(difference) < needed:
            break
        # Lengths only: the lists themselves would grow with the square of the number of ghosts.
        votes = cKDTree(difference).query_ball_point(difference, tolerance, return_length=True)
        best = int(np.argmax(votes))
        if votes[best] < needed:
            break
        rest = np.hypot(*(difference - difference[best]).T) > tolerance
        joined.append(pairs[~rest])
        pairs, difference = pairs[rest], difference[rest]
    if not joined:
        return None
    links = np.concatenate(joined)
    graph = coo_matrix((np.ones(len(links)), (links[:, 0], links[:, 1])), shape=(n_stars, n_stars))
    labels = connected_components(graph, directed=False)[1]
    return np.where(star_index >= 0, labels[np.maximum(star_index, 0)], -1)


def _without_common_frame(
    pairs: np.ndarray, star_index: np.ndarray, frame: np.ndarray, n_stars: int
) -> np.ndarray:
    order = np.lexsort((frame, star_index))
    order = order[star_index[order] >= 0]
    frames = frame[order]
    start = np.searchsorted(star_index[order], np.arange(n_stars + 1))
    keep = np.empty(len(pairs), dtype=bool)
    for k, (a, b) in enumerate(pairs):
        of_a, of_b = frames[start[a] : start[a + 1]], frames[start[b] : start[b + 1]]
        at = np.minimum(np.searchsorted(of_a, of_b), len(of_a) - 1)
        keep[k] = not (of_a[at] == of_b).any()
    return pairs[keep]


def _assign_to_peaks(xy: np.ndarray, frame: np.ndarray, radius: float) -> np.ndarray:
    centres = _density_peaks(xy, radius)
    label = np.full(len(xy), -1, dtype=np.int64)
    for _ in range(2):
        distance, nearest = cKDTree(centres).query(xy, distance_upper_bound=radius)
        label = np.where(np.isfinite(distance), nearest, -1)
        label = _one_per_frame(label, frame, np.where(np.isfinite(distance), distance, 0.0))
        used = label >= 0
        count = np.bincount(label[used], minlength=len(centres))
        mean = [np.bincount(label[used], xy[used, i], minlength=len(centres)) for i in (0, 1)]
        occupied = count > 0
        centres[occupied] = np.column_stack(mean)[occupied] / count[occupied, None]
    return _renumber(label)


def _density_peaks(xy: np.ndarray, radius: float) -> np.ndarray:
    """Centroids around the cells whose 3 x 3 count is the largest within two cells."""
    size = radius / _CELLS_PER_RADIUS
    origin = xy.min(axis=0)
    cell = np.floor((xy - origin) / size).astype(np.int64) + 2
    stride = int(cell[:, 0].max()) + 3
    keys, inverse, counts = np.unique(
        cell[:, 1] * stride + cell[:, 0], return_inverse=True, return_counts=True
    )
    sums = np.column_stack([np.bincount(inverse, xy[:, i]) for i in (0, 1)])
    smooth, smooth_sums = np.zeros(len(keys), dtype=np.int64), np.zeros((len(keys), 2))
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            at, there = _look_up(keys, keys + dy * stride + dx)
            smooth[there] += counts[at]
            smooth_sums[there] += sums[at]
    is_peak = np.ones(len(keys), dtype=bool)
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            if dx == 0 and dy == 0:
                continue
            step = dy * stride + dx
            at, there = _look_up(keys, keys + step)
            # Of two equal neighbours the one with the lower key wins.
            beaten = smooth[at] >= smooth[there] if step < 0 else smooth[at] > smooth[there]
            is_peak[there[beaten]] = False
    return smooth_sums[is_peak] / smooth[is_peak, None]


def _look_up(keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return indices into `keys` of the wanted keys that exist, and which of the wanted these are."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    there = np.flatnonzero(keys[at] == wanted)
    return at[there], there


def _one_per_frame(label: np.ndarray, frame: np.ndarray, distance: np.ndarray) -> np.ndarray:
    used = np.flatnonzero(label >= 0)
    order = used[np.lexsort((distance[used], frame[used], label[used]))]
    repeated = np.zeros(len(order), dtype=bool)
    repeated[1:] = (np.diff(label[order]) == 0) & (np.diff(frame[order]) == 0)
    out = label.copy()
    out[order[repeated]] = -1
    return out


def _renumber(label: np.ndarray) -> np.ndarray:
    out = np.full(len(label), -1, dtype=np.int64)
    used = label >= 0
    if used.any():
        out[used] = np.unique(label[used], return_inverse=True)[1]
    return out


def _order_by_position(xy: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    used = labels >= 0
    n = int(labels.max()) + 1 if used.any() else 0
    count = np.bincount(labels[used], minlength=n)
    mean = np.column_stack([np.bincount(labels[used], xy[used, i], minlength=n) for i in (0, 1)])
    mean = mean / np.maximum(count, 1)[:, None]
    order = np.lexsort((mean[:, 0], mean[:, 1]))
    rank = np.empty(n, dtype=np.int64)
    rank[order] = np.arange(n)
    out = np.where(used, rank[np.maximum(labels, 0)] if n else -1, -1)
    return out, mean[order]
