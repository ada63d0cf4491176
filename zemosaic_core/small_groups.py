"""Groups of few frames join the group that covers the same sky: a stack of few samples cannot reject anything."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .sphere import gnomonic, mean_direction, separation_deg, unit_vectors

__all__ = ["inside_quads", "merge_small_groups"]

# Groups share sky when this much of the smaller one's frames lies on frames of the other: dithered neighbours that
# hardly touch do not.
MIN_SHARE = 0.05
# Points along either side of a frame at which it is asked what else covers them.
_POINTS = 10


def merge_small_groups(
    groups: Sequence[np.ndarray],
    corners_deg: np.ndarray,
    *,
    min_frames: int,
    max_per_group: int = 0,
    kinds: Sequence[object] | None = None,
) -> list[np.ndarray]:
    """Give each small group, smallest first, to the group that covers most of its sky.

    Parameters
    ----------
    groups : sequence of ndarray of int
        Indices of frames; each frame is in one group.
    corners_deg : ndarray, shape (N, 4, 2), float64
        (RA, Dec) of the corners of every frame, in order around it.
    min_frames : int
        Smaller groups are merged where others cover at least `MIN_SHARE` of their sky. They may need several steps:
        two small groups become one, which joins a third.
    max_per_group : int
        A group is not made larger than 1.1 times this; 0: no limit.
    kinds : sequence, optional
        What frames of one group must have in common, for every frame.

    Returns
    -------
    list of ndarray of int64
        Ascending indices per group; groups in the order of their first member.
    """
    members = [np.sort(np.asarray(group, dtype=np.int64)) for group in groups]
    cap = 1.1 * max_per_group if max_per_group > 0 else np.inf
    label = np.empty(len(corners_deg), dtype=np.int64)
    for number, group in enumerate(members):
        label[group] = number
    centres = np.array([mean_direction(c[:, 0], c[:, 1]) for c in corners_deg]).reshape(-1, 2)
    radius = np.array(
        [
            separation_deg(m[0], m[1], c[:, 0], c[:, 1]).max()
            for m, c in zip(centres, corners_deg, strict=True)
        ]
    )
    vectors = unit_vectors(centres[:, 0], centres[:, 1]).reshape(-1, 3)
    alone: set[int] = set()
    while True:
        small = [n for n, g in enumerate(members) if 0 < len(g) < min_frames and n not in alone]
        if not small:
            break
        number = min(small, key=lambda n: (len(members[n]), int(members[n][0])))
        group = members[number]
        allowed = np.array([len(g) > 0 and len(g) + len(group) <= cap for g in members])
        allowed[number] = False
        if kinds is not None:
            kind = kinds[int(group[0])]
            allowed &= np.array([len(g) > 0 and kinds[int(g[0])] == kind for g in members])
        near = _near(group, vectors, radius)
        near = near[allowed[label[near]]]
        share = _shares(group, near, label[near], centres, corners_deg, len(members))
        # Of groups that cover as much, the larger one, then the earlier one.
        best = max(
            range(len(members)),
            key=lambda n: (round(float(share[n]), 6), len(members[n]), -n),
            default=number,
        )
        if share[best] < MIN_SHARE:
            alone.add(number)
            continue
        members[best] = np.sort(np.concatenate([members[best], group]))
        members[number] = np.empty(0, dtype=np.int64)
        label[group] = best
    return sorted((g for g in members if len(g)), key=lambda g: int(g[0]))


def _near(group: np.ndarray, vectors: np.ndarray, radius_deg: np.ndarray) -> np.ndarray:
    """Return the frames that may overlap one of the group, without those of the group itself."""
    near = np.zeros(len(vectors), dtype=bool)
    for i in group.tolist():
        chord = np.linalg.norm(vectors - vectors[i], axis=1)
        reach = np.minimum(radius_deg + radius_deg[i], 180.0)
        near |= chord <= 2.0 * np.sin(np.deg2rad(reach) / 2.0)
    near[group] = False
    return np.flatnonzero(near)


def _shares(
    group: np.ndarray,
    others: np.ndarray,
    labels: np.ndarray,
    centres_deg: np.ndarray,
    corners_deg: np.ndarray,
    n_groups: int,
) -> np.ndarray:
    """Return which share of the sky of a group's frames is covered by frames of each other group.

    Counted at points spread evenly over every frame of the group.
    """
    covered = np.zeros(n_groups)
    if not len(others):
        return covered
    along = (np.arange(_POINTS) + 0.5) / _POINTS
    u, v = (part.ravel() for part in np.meshgrid(along, along))
    corner_weights = np.stack([(1 - u) * (1 - v), u * (1 - v), u * v, (1 - u) * v], axis=-1)
    for i in group.tolist():
        # In a plane of its own, so that frames far apart and frames at a pole are treated alike.
        place = centres_deg[i]
        own = np.stack(gnomonic(*corners_deg[i].T, *place), axis=-1)
        quads = np.stack(gnomonic(corners_deg[others, :, 0], corners_deg[others, :, 1], *place), axis=-1)
        inside = inside_quads(corner_weights @ own, quads)
        for number in np.unique(labels):
            covered[number] += inside[:, labels == number].any(axis=1).mean()
    return covered / len(group)


def inside_quads(points: np.ndarray, quads: np.ndarray) -> np.ndarray:
    """Return (P, Q): whether points (P, 2) lie in convex quadrangles (Q, 4, 2); those with NaN hold none."""
    edges = np.roll(quads, -1, axis=1) - quads
    offsets = points[:, None, None, :] - quads[None]
    cross = edges[None, ..., 0] * offsets[..., 1] - edges[None, ..., 1] * offsets[..., 0]
    inside: np.ndarray = (cross >= 0).all(axis=-1) | (cross <= 0).all(axis=-1)
    return inside
