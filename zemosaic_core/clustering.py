"""Group pointings on the sky: which frames belong to the same tile. Directions in, index lists out.

Everything works on unit vectors (right across RA 0 h and at the poles), is deterministic, and needs memory
proportional to the number of pointings even when thousands of them coincide.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from .errors import SettingsError
from .sphere import chord_from_deg, mean_direction, unit_vectors

__all__ = ["GroupLimits", "auto_threshold_deg", "cluster_pointings", "link_positions"]

# Neighbours looked up per pointing; only pointings with more neighbours than this inside the threshold need
# the slower exact completion, so the value trades memory for time and never changes the result.
_N_NEIGHBOURS = 24
# Extent (rms distance from the centre) above which a too large group is cut in space rather than in time.
_SPATIAL_SPLIT_FRACTION = 0.25


@dataclass(frozen=True)
class GroupLimits:
    """Sizes a group should have.

    Attributes
    ----------
    max_per_group : int
        Larger groups are cut; 0: no limit.
    min_per_group : int
        Smaller groups are merged into a near one where `max_per_group` allows 10 % more; 0: never.
    max_extent_deg : float
        Groups wider than this (largest distance from their centre, doubled) are cut in space; 0: no limit.
    """

    max_per_group: int = 0
    min_per_group: int = 0
    max_extent_deg: float = 0.0


def cluster_pointings(
    ra_deg: np.ndarray,
    dec_deg: np.ndarray,
    position_angle_deg: np.ndarray | None = None,
    *,
    threshold_deg: float = 0.0,
    orientation_split_deg: float = 0.0,
    target_groups: int = 0,
    max_per_group: int = 0,
    min_per_group: int = 0,
    max_extent_deg: float = 0.0,
    field_deg: float = 0.0,
    times: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Group pointings by single linkage on the sphere, then by orientation, then to the wanted sizes.

    Parameters
    ----------
    ra_deg, dec_deg : ndarray, shape (n,), degrees
        Finite centres of the frames.
    position_angle_deg : ndarray, shape (n,), degrees, optional
        Orientation of the frames; needed when `orientation_split_deg` > 0.
    threshold_deg : float
        Pointings closer than or as close as this are linked. 0: `auto_threshold_deg`.
    orientation_split_deg : float
        Largest spread of orientations inside one group, modulo 180 degrees because a frame turned upside down
        covers the same sky. 0: orientation is ignored. Linked angles are cut into equal intervals no wider
        than this, because slow field rotation would otherwise chain all of them together.
    target_groups : int
        > 0: the threshold is bisected so that the number of groups comes as near as possible.
    max_per_group, min_per_group, max_extent_deg
        See `GroupLimits`.
    field_deg : float
        Short side of a frame on the sky; 0: unknown. Scales the automatic threshold and the cuts.
    times : ndarray, shape (n,), optional
        Any monotonic time; the order in which too large groups are cut. Default: the given order.

    Returns
    -------
    list of ndarray of int64
        Ascending frame indices per group; groups in the order of their first member. Together they hold every
        frame exactly once.

    Raises
    ------
    SettingsError
        A negative threshold or limit, or positions that are not finite.
    """
    ra, dec = np.asarray(ra_deg, dtype=np.float64).ravel(), np.asarray(dec_deg, dtype=np.float64).ravel()
    _check(ra, dec, threshold_deg, orientation_split_deg, target_groups, max_per_group, min_per_group)
    if len(ra) == 0:
        return []
    vectors = unit_vectors(ra, dec)
    angles = None
    if orientation_split_deg > 0:
        if position_angle_deg is None:
            raise SettingsError(
                "cluster_needs_orientation",
                f"orientation_split_deg={orientation_split_deg} needs the frames' position angles",
                orientation_split_deg=float(orientation_split_deg),
            )
        angles = np.asarray(position_angle_deg, dtype=np.float64).ravel()

    def groups_at(threshold: float) -> list[np.ndarray]:
        groups = _members(link_positions(ra, dec, threshold))
        if angles is None:
            return groups
        return [part for g in groups for part in _split_orientation(g, angles, orientation_split_deg)]

    threshold = threshold_deg if threshold_deg > 0 else auto_threshold_deg(ra, dec, field_deg=field_deg)
    if target_groups > 0:
        threshold = _threshold_for_count(groups_at, target_groups, threshold)
    limits = GroupLimits(max_per_group, min_per_group, max_extent_deg)
    order = np.arange(len(ra)) if times is None else np.argsort(np.asarray(times), kind="stable")
    rank = np.empty(len(ra), dtype=np.int64)
    rank[order] = np.arange(len(ra))
    reach = 0.5 * field_deg if field_deg > 0 else threshold
    groups = [part for g in groups_at(threshold) for part in _split_large(g, vectors, rank, limits, reach)]
    groups = _merge_small(groups, ra, dec, limits, max(reach, 2.0 * threshold))
    return sorted((np.sort(g) for g in groups), key=lambda g: int(g[0]))


def auto_threshold_deg(ra_deg: np.ndarray, dec_deg: np.ndarray, *, field_deg: float = 0.0) -> float:
    """Linking length from the pointings themselves.

    Twice the 95th percentile of nearest-neighbour distances (single drizzled frames stay together), kept
    between 10 % and 30 % of the field's short side, so that dithering within a panel links and neighbouring
    panels (usually half a field or more apart) do not. Without a field size: between 0.05 and 0.25 degrees.
    """
    low, high = (0.10 * field_deg, 0.30 * field_deg) if field_deg > 0 else (0.05, 0.25)
    vectors = unit_vectors(ra_deg, dec_deg).reshape(-1, 3)
    if len(vectors) < 2:
        return high
    chord = cKDTree(vectors).query(vectors, k=2)[0][:, 1]
    nearest = np.rad2deg(2.0 * np.arcsin(np.minimum(chord / 2.0, 1.0)))
    return float(np.clip(2.0 * np.percentile(nearest, 95), low, high))


def link_positions(ra_deg: np.ndarray, dec_deg: np.ndarray, threshold_deg: float) -> np.ndarray:
    """Label connected components of the graph that links positions at most `threshold_deg` apart.

    Returns
    -------
    ndarray, shape (n,), int64
        Labels numbered in the order of first members.

    Notes
    -----
    Exact, without ever listing all linked pairs: each point's nearest neighbours are linked first; only
    points whose last looked-up neighbour is still within reach can have missed a link, and these ask for the
    nearest point outside their own component until nothing changes.
    """
    vectors = unit_vectors(ra_deg, dec_deg).reshape(-1, 3)
    n = len(vectors)
    # Rounding of the chord must not cut a link that is exactly at the threshold.
    reach = float(chord_from_deg(threshold_deg)) * (1.0 + 1e-12) + 1e-15
    if n < 2:
        return np.zeros(n, dtype=np.int64)
    k = min(n, _N_NEIGHBOURS + 1)
    distance, neighbour = cKDTree(vectors).query(vectors, k=k)
    linked = distance <= reach
    rows = np.repeat(np.arange(n), linked.sum(axis=1))
    labels = _components(n, rows, neighbour[linked])
    saturated = linked[:, -1] & (k < n)
    while True:
        extra = _missing_links(vectors, labels, saturated, reach)
        if len(extra) == 0:
            return _first_member_order(labels)
        rows = np.concatenate([np.arange(n), extra[:, 0]])
        # Linking every point with the first of its component carries the old labels over.
        first = np.full(labels.max() + 1, n, dtype=np.int64)
        np.minimum.at(first, labels, np.arange(n))
        labels = _components(n, rows, np.concatenate([first[labels], extra[:, 1]]))


def _missing_links(
    vectors: np.ndarray, labels: np.ndarray, saturated: np.ndarray, reach: float
) -> np.ndarray:
    found = []
    for label in np.unique(labels[saturated]):
        inside = labels == label
        if inside.all():
            break
        outside = np.flatnonzero(~inside)
        asking = np.flatnonzero(inside & saturated)
        distance, nearest = cKDTree(vectors[outside]).query(vectors[asking], distance_upper_bound=reach)
        hit = np.isfinite(distance)
        found.append(np.column_stack([asking[hit], outside[nearest[hit]]]))
    return np.concatenate(found) if found else np.empty((0, 2), dtype=np.int64)


def _components(n: int, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    graph = coo_matrix((np.ones(len(rows)), (rows, cols)), shape=(n, n))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def _first_member_order(labels: np.ndarray) -> np.ndarray:
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    order = np.empty(len(first), dtype=np.int64)
    order[np.argsort(first)] = np.arange(len(first))
    return order[inverse]


def _members(labels: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def _split_orientation(group: np.ndarray, angles: np.ndarray, split_deg: float) -> list[np.ndarray]:
    """Cut the orientations of a group (modulo 180) into equal intervals of at most `split_deg`."""
    a = angles[group]
    known = np.isfinite(a)
    parts = [group[~known]] if (~known).any() else []
    members, a = group[known], a[known] % 180.0
    if len(members) == 0:
        return parts
    ordered = np.sort(a)
    gaps = np.diff(np.concatenate([ordered, ordered[:1] + 180.0]))
    # Angles are counted from behind the widest gap, so that no interval is cut at the arbitrary 0/180.
    start = ordered[(int(np.argmax(gaps)) + 1) % len(ordered)]
    from_start = (a - start) % 180.0
    from_start[from_start > 180.0 - 1e-9] = 0.0
    span = float(from_start.max())
    n_bins = max(1, int(np.ceil(span / split_deg - 1e-9)))
    bins = np.minimum((from_start / max(span, 1e-12) * n_bins).astype(np.int64), n_bins - 1)
    return parts + [members[bins == b] for b in range(n_bins) if (bins == b).any()]


def _threshold_for_count(groups_at, target: int, start: float) -> float:
    """Bisect the threshold on a logarithmic scale; the count never grows with the threshold."""
    low, high = 1e-4, 180.0
    best, best_miss = start, abs(len(groups_at(start)) - target)
    for _ in range(30):
        if best_miss == 0:
            break
        middle = float(np.sqrt(low * high))
        count = len(groups_at(middle))
        if abs(count - target) < best_miss:
            best, best_miss = middle, abs(count - target)
        low, high = (middle, high) if count > target else (low, middle)
    return best


def _split_large(
    group: np.ndarray, vectors: np.ndarray, rank: np.ndarray, limits: GroupLimits, reach_deg: float
) -> list[np.ndarray]:
    """Cut a group in halves along its longest direction while it is wide, in time once it is compact."""
    too_many = 0 < limits.max_per_group < len(group)
    offsets = vectors[group] - vectors[group].mean(axis=0)
    radius = np.rad2deg(np.linalg.norm(offsets, axis=1))
    too_wide = limits.max_extent_deg > 0 and 2.0 * float(radius.max()) > limits.max_extent_deg
    if len(group) < 2 or not (too_many or too_wide):
        return [group]
    rms = float(np.sqrt(np.mean(radius**2)))
    if not too_wide and rms <= _SPATIAL_SPLIT_FRACTION * 2.0 * reach_deg:
        in_time = group[np.argsort(rank[group], kind="stable")]
        return np.array_split(in_time, -(-len(group) // limits.max_per_group))
    axis = np.linalg.eigh(offsets.T @ offsets)[1][:, -1]
    # The sign of an eigenvector is arbitrary; fixing it keeps the cut the same on every machine.
    axis = axis * np.sign(axis[np.argmax(np.abs(axis))])
    along = np.argsort(np.round(offsets @ axis, 12), kind="stable")
    halves = np.array_split(group[along], 2)
    return [part for half in halves for part in _split_large(half, vectors, rank, limits, reach_deg)]


def _merge_small(
    groups: list[np.ndarray], ra: np.ndarray, dec: np.ndarray, limits: GroupLimits, within_deg: float
) -> list[np.ndarray]:
    """Give each small group, smallest first, to the nearest group near enough that has room for it."""
    if limits.min_per_group <= 1 or len(groups) < 2:
        return groups
    groups = list(groups)
    cap = 1.1 * limits.max_per_group if limits.max_per_group > 0 else np.inf
    centres = unit_vectors(*np.array([mean_direction(ra[g], dec[g]) for g in groups]).T)
    alive = np.ones(len(groups), dtype=bool)
    sizes = np.array([len(g) for g in groups])
    for index in sorted(range(len(groups)), key=lambda i: (len(groups[i]), int(groups[i].min()))):
        size = int(sizes[index])
        if not alive[index] or size >= limits.min_per_group:
            continue
        distance = np.linalg.norm(centres - centres[index], axis=1)
        allowed = alive & (sizes + size <= cap) & (distance <= chord_from_deg(within_deg))
        allowed[index] = False
        if not allowed.any():
            continue
        target = int(np.argmin(np.where(allowed, distance, np.inf)))
        groups[target] = np.concatenate([groups[target], groups[index]])
        sizes[target] += size
        centres[target] = unit_vectors(*mean_direction(ra[groups[target]], dec[groups[target]]))
        alive[index] = False
    return [g for g, a in zip(groups, alive, strict=True) if a]


def _check(ra: np.ndarray, dec: np.ndarray, *limits: float) -> None:
    if len(ra) != len(dec):
        raise ValueError(f"ra_deg and dec_deg must have the same length, got {len(ra)} and {len(dec)}")
    n_bad = int((~np.isfinite(ra) | ~np.isfinite(dec)).sum())
    if n_bad:
        message = f"{n_bad} pointings have no finite position; leave them out"
        raise SettingsError("cluster_bad_positions", message, n=n_bad)
    if any(not limit >= 0 for limit in limits):
        raise SettingsError(
            "cluster_bad_limits",
            f"thresholds and limits must be 0 or more, got {limits}",
            limits=list(limits),
        )
