"""Streaks as missing pixels: which are no part of the sky, and which pixels they take. Arrays only."""

from __future__ import annotations

import numpy as np

__all__ = ["ends_within", "joined_spans", "points_given_up", "share_beside", "streak_points", "streak_spans"]

STEP_PX = 32.0
# Streaks of two frames are the same thing in the sky when they are that parallel.
_PARALLEL = np.cos(np.radians(4.0))
# A streak that so many of the other frames show in the same place belongs to the sky.
_IN_THE_SKY = 0.5
# Trails cross the frame. One that lies within it belongs to the sky when anybody shows this much of it.
_OF_SHORT_ONES = 0.5
_FROM_BORDER_PX = 2 * STEP_PX
# Others have to look at this much of a streak before it is a trail also where they do not.
_SEEN_ENOUGH = 0.25


def streak_points(streak: np.ndarray) -> np.ndarray:
    """Return the ends of the pieces of a streak, about 32 px long, shape (k + 1, 2), px.

    Parameters
    ----------
    streak : ndarray, shape (5,)
        `streaks.STREAK_COLUMNS`.
    """
    first, last = np.asarray(streak[:2], float), np.asarray(streak[2:4], float)
    n = max(1, int(np.ceil(np.linalg.norm(last - first) / STEP_PX)))
    return first + np.linspace(0, 1, n + 1)[:, None] * (last - first)


def share_beside(points: np.ndarray, line: np.ndarray, reach_px: float) -> np.ndarray:
    """Mask of points that lie along another line, which runs in the same direction.

    Parameters
    ----------
    points : ndarray, shape (k, 2)
        Along a streak, on the mosaic.
    line : ndarray, shape (m, 2)
        Points along another one.
    reach_px : float
    """
    along, other = points[-1] - points[0], line[-1] - line[0]
    lengths = np.linalg.norm(along), np.linalg.norm(other)
    if min(lengths) == 0 or abs(along @ other) < _PARALLEL * lengths[0] * lengths[1]:
        return np.zeros(len(points), bool)
    unit = other / lengths[1]
    away = points - line[0]
    t = away @ unit
    off = np.abs(away[:, 0] * unit[1] - away[:, 1] * unit[0])
    return (off <= reach_px) & (t >= -STEP_PX) & (t <= lengths[1] + STEP_PX)


def ends_within(streak: np.ndarray, shape_hw: tuple[int, int]) -> bool:
    """Return whether a streak (5,) both begins and ends within its frame, not at the border."""
    ends = np.asarray(streak[:4], float).reshape(2, 2)
    size = np.array(shape_hw[::-1])
    return bool(((ends > _FROM_BORDER_PX) & (ends < size - _FROM_BORDER_PX)).all())


def points_given_up(looked_at: np.ndarray, shown: np.ndarray, *, is_short: bool = False) -> np.ndarray:
    """Tell which points of a streak are no light of the sky, by what other frames show in the same places.

    What half of their looks show as well is an edge-on galaxy, a filament. A streak that they have seen enough of not
    to be there is a trail to its end, also where nobody else looks: there a gap is left, not a satellite. Filaments
    that are hardly bright enough to be found are found in some of the frames, but unlike most trails they end there.

    Parameters
    ----------
    looked_at, shown : ndarray, shape (k,), int64
        How many other frames look at each point, and how many show a streak there.
    is_short : bool
        It ends within its frame.

    Returns
    -------
    ndarray of bool, shape (k,)
    """
    seen = looked_at > 0
    if not seen.any() or shown.sum() > _IN_THE_SKY * looked_at.sum():
        return np.zeros(len(looked_at), bool)
    if is_short and np.mean(shown[seen] > 0) >= _OF_SHORT_ONES:
        return np.zeros(len(looked_at), bool)
    return np.ones(len(looked_at), bool) if seen.mean() >= _SEEN_ENOUGH else seen


def streak_spans(
    points: np.ndarray, kept: np.ndarray, half_width_px: float, shape_hw: tuple[int, int]
) -> np.ndarray:
    """Return the pixels within a distance of some pieces of a streak as spans ``(y, x0, x1)``.

    Parameters
    ----------
    points : ndarray, shape (k + 1, 2)
        Ends of the pieces, px.
    kept : ndarray of bool, shape (k,)
        Which pieces are wanted.
    half_width_px : float
    shape_hw : tuple of int
        Size of the frame.

    Returns
    -------
    ndarray, shape (n, 3), int32
        End exclusive, in the order of y; they may overlap.
    """
    height, width = shape_hw
    spans = []
    for (x0, y0), (x1, y1) in zip(points[:-1][kept], points[1:][kept], strict=True):
        top, bottom = (
            max(0, int(np.ceil(min(y0, y1) - half_width_px))),
            min(height - 1, int(np.floor(max(y0, y1) + half_width_px))),
        )
        if bottom < top:
            continue
        y = np.arange(top, bottom + 1, dtype=float)
        left, right = _row_limits(y, (x0, y0, x1, y1), half_width_px)
        first = np.maximum(0, np.ceil(left)).astype(np.int64)
        end = np.minimum(width, np.floor(right) + 1).astype(np.int64)
        there = end > first
        spans.append(np.stack([y[there], first[there], end[there]], axis=1).astype(np.int32))
    return joined_spans(spans)


def _row_limits(
    y: np.ndarray, ends: tuple[float, float, float, float], radius: float
) -> tuple[np.ndarray, np.ndarray]:
    """Leftmost and rightmost x within ``radius`` of a segment, per row; empty rows have left > right."""
    x0, y0, x1, y1 = ends
    left, right = np.full(len(y), np.inf), np.full(len(y), -np.inf)
    for cx, cy in ((x0, y0), (x1, y1)):
        inside = radius**2 - (y - cy) ** 2
        half = np.sqrt(np.maximum(inside, 0))
        left = np.where(inside >= 0, np.minimum(left, cx - half), left)
        right = np.where(inside >= 0, np.maximum(right, cx + half), right)
    length = np.hypot(x1 - x0, y1 - y0)
    if length > 0:
        # The two sides of the segment, moved outwards.
        nx, ny = -(y1 - y0) / length * radius, (x1 - x0) / length * radius
        for sign in (-1, 1):
            ax, ay, bx, by = x0 + sign * nx, y0 + sign * ny, x1 + sign * nx, y1 + sign * ny
            if abs(by - ay) < 1e-9:
                continue
            t = (y - ay) / (by - ay)
            on = (t >= 0) & (t <= 1)
            x = ax + t * (bx - ax)
            left, right = np.where(on, np.minimum(left, x), left), np.where(on, np.maximum(right, x), right)
    return left, right


def joined_spans(parts: list[np.ndarray]) -> np.ndarray:
    """Return all spans of several lists in the order of y and x, those that touch or overlap made one."""
    parts = [part for part in parts if len(part)]
    if not parts:
        return np.empty((0, 3), np.int32)
    spans = np.concatenate(parts).astype(np.int64)
    spans = spans[np.lexsort((spans[:, 1], spans[:, 0]))]
    # The furthest end so far, row by row: rows are moved apart so that none reaches into the next.
    apart = int(spans[:, 2].max()) + 2
    ends = np.maximum.accumulate(spans[:, 0] * apart + spans[:, 2])
    starts = spans[:, 0] * apart + spans[:, 1]
    new = np.concatenate([[True], starts[1:] > ends[:-1]])
    first = np.flatnonzero(new)
    last = np.concatenate([first[1:], [len(spans)]]) - 1
    rows = spans[first, 0]
    return np.stack([rows, spans[first, 1], ends[last] - rows * apart], axis=1).astype(np.int32)
