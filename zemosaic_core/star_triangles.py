"""Triangles of neighbouring stars, compared by shape and size: which similarities could lay one list on another.

Every agreement of two triangles proposes a similarity, every proposal is scored on all stars. Whether one of them is
true is judged in `star_patterns`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from scipy.spatial import cKDTree

__all__ = ["SEED_STARS", "Triangles", "make_triangles", "propose_similarities"]

# The three stars of the proposing triangle agree by construction and prove nothing.
SEED_STARS = 3
_N_PROPOSALS = 16


@dataclass(frozen=True, slots=True)
class Triangles:
    """Triangles of a star list, sorted by ``middle`` for the search.

    Attributes
    ----------
    vertices : numpy.ndarray
        int64 (n, 3) rows of the star list: opposite the longest, the middle and the shortest side.
    longest : numpy.ndarray
        float64 (n,), length of the longest side.
    middle, shortest : numpy.ndarray
        float64 (n,), the other sides divided by the longest.
    handedness : numpy.ndarray
        int8 (n,), sign of the vertices' sense of rotation.
    """

    vertices: np.ndarray
    longest: np.ndarray
    middle: np.ndarray
    shortest: np.ndarray
    handedness: np.ndarray


def make_triangles(xy: np.ndarray, neighbours: int, *, min_side: float = 0.0) -> Triangles:
    """Build the triangles each star forms with pairs of its nearest neighbours.

    Parameters
    ----------
    xy : numpy.ndarray
        float64 (n, 2) positions.
    neighbours : int
        Neighbours per star that take part; all when the list is shorter.
    min_side : float
        Triangles with a shorter side are dropped: their shape is mostly measuring noise.

    Returns
    -------
    Triangles
    """
    xy = np.ascontiguousarray(xy, dtype=np.float64)
    k = min(neighbours, len(xy) - 1)
    near = np.empty((0, 2), np.int64)
    if k >= 2:
        near = np.ascontiguousarray(cKDTree(xy).query(xy, k=k + 1)[1][:, 1:])
    vertices, longest, middle, shortest, handedness = _list_triangles(xy, near, float(max(min_side, 0.0)))
    order = np.argsort(middle, kind="stable")
    return Triangles(vertices[order], longest[order], middle[order], shortest[order], handedness[order])


@njit(cache=True, nogil=True)
def _knows(near, i, a, b):
    """Whether stars a and b are both among the neighbours of star i."""
    found = 0
    for j in range(near.shape[1]):
        if near[i, j] == a or near[i, j] == b:
            found += 1
    return found == 2


@njit(cache=True, nogil=True)
def _list_triangles(xy, near, min_side):
    n, k = near.shape
    most = n * k * (k - 1) // 2
    vertices = np.empty((most, 3), np.int64)
    longest = np.empty(most)
    middle = np.empty(most)
    shortest = np.empty(most)
    handedness = np.empty(most, np.int8)
    count = 0
    side = np.empty(3)
    v = np.empty(3, np.int64)
    for i in range(n):
        for ja in range(k):
            a = near[i, ja]
            for jb in range(ja + 1, k):
                b = near[i, jb]
                # Two stars at one position can put a star among its own neighbours.
                if i in (a, b) or a == b:
                    continue
                # A triangle seen from several of its stars belongs to the first of them.
                if (a < i and _knows(near, a, i, b)) or (b < i and _knows(near, b, i, a)):
                    continue
                v[0], v[1], v[2] = i, a, b
                for s in range(3):
                    p, q = v[(s + 1) % 3], v[(s + 2) % 3]
                    side[s] = math.sqrt((xy[p, 0] - xy[q, 0]) ** 2 + (xy[p, 1] - xy[q, 1]) ** 2)
                for s, t in ((0, 1), (1, 2), (0, 1)):
                    if side[s] < side[t]:
                        side[s], side[t] = side[t], side[s]
                        v[s], v[t] = v[t], v[s]
                if side[2] <= min_side:
                    continue
                cross = (xy[v[1], 0] - xy[v[0], 0]) * (xy[v[2], 1] - xy[v[0], 1]) - (
                    xy[v[1], 1] - xy[v[0], 1]
                ) * (xy[v[2], 0] - xy[v[0], 0])
                vertices[count] = v
                longest[count] = side[0]
                middle[count] = side[1] / side[0]
                shortest[count] = side[2] / side[0]
                handedness[count] = 1 if cross > 0 else -1
                count += 1
    return vertices[:count], longest[:count], middle[:count], shortest[:count], handedness[:count]


@njit(cache=True, nogil=True)
def _build_grid(xy, x0, y0, cell, nx, ny):
    """Sort stars into square cells; returns start offsets per cell and star indices in cell order."""
    start = np.zeros(nx * ny + 1, np.int64)
    where = np.empty(len(xy), np.int64)
    for i in range(len(xy)):
        c = int((xy[i, 1] - y0) / cell) * nx + int((xy[i, 0] - x0) / cell)
        where[i] = c
        start[c + 1] += 1
    for c in range(nx * ny):
        start[c + 1] += start[c]
    fill = start[:-1].copy()
    order = np.empty(len(xy), np.int64)
    for i in range(len(xy)):
        order[fill[where[i]]] = i
        fill[where[i]] += 1
    return start, order


@njit(cache=True, nogil=True)
def _count_hits(m, src, ref, start, order, x0, y0, cell, nx, ny, radius):
    r2 = radius * radius
    hits = 0
    for i in range(len(src)):
        x = m[0] * src[i, 0] + m[1] * src[i, 1] + m[2]
        y = m[3] * src[i, 0] + m[4] * src[i, 1] + m[5]
        cx0 = max(0, math.floor((x - radius - x0) / cell))
        cx1 = min(nx - 1, math.floor((x + radius - x0) / cell))
        cy0 = max(0, math.floor((y - radius - y0) / cell))
        cy1 = min(ny - 1, math.floor((y + radius - y0) / cell))
        found = False
        for cy in range(cy0, cy1 + 1):
            for cx in range(cx0, cx1 + 1):
                for j in range(start[cy * nx + cx], start[cy * nx + cx + 1]):
                    dx = ref[order[j], 0] - x
                    dy = ref[order[j], 1] - y
                    if dx * dx + dy * dy <= r2:
                        found = True
                        break
                if found:
                    break
            if found:
                break
        if found:
            hits += 1
    return hits


@njit(cache=True, nogil=True)
def _similarity_from_triangle(ref, src, rv, sv, mirror, out):
    rx = (ref[rv[0], 0] + ref[rv[1], 0] + ref[rv[2], 0]) / 3.0
    ry = (ref[rv[0], 1] + ref[rv[1], 1] + ref[rv[2], 1]) / 3.0
    sx = (src[sv[0], 0] + src[sv[1], 0] + src[sv[2], 0]) / 3.0
    sy = (src[sv[0], 1] + src[sv[1], 1] + src[sv[2], 1]) / 3.0
    flip = -1.0 if mirror else 1.0
    a = 0.0
    b = 0.0
    norm = 0.0
    for i in range(3):
        ux = src[sv[i], 0] - sx
        uy = flip * (src[sv[i], 1] - sy)
        vx = ref[rv[i], 0] - rx
        vy = ref[rv[i], 1] - ry
        a += ux * vx + uy * vy
        b += ux * vy - uy * vx
        norm += ux * ux + uy * uy
    a /= norm
    b /= norm
    out[0] = a
    out[1] = -b * flip
    out[3] = b
    out[4] = a * flip
    out[2] = rx - out[0] * sx - out[1] * sy
    out[5] = ry - out[3] * sx - out[4] * sy


@njit(cache=True, nogil=True)
def _keep_best(m, hits, best, best_hits, corners, same):
    """Keep the strongest distinct proposals, strongest first."""
    n = len(best_hits)
    for t in range(n):
        if best_hits[t] == 0:
            break
        far = 0.0
        for c in range(len(corners)):
            dx = (m[0] - best[t, 0]) * corners[c, 0] + (m[1] - best[t, 1]) * corners[c, 1] + m[2] - best[t, 2]
            dy = (m[3] - best[t, 3]) * corners[c, 0] + (m[4] - best[t, 4]) * corners[c, 1] + m[5] - best[t, 5]
            far = max(far, dx * dx + dy * dy)
        if far < same * same:
            if best_hits[t] >= hits:
                return
            for u in range(t, n - 1):
                best[u] = best[u + 1]
                best_hits[u] = best_hits[u + 1]
            best_hits[n - 1] = 0
            break
    place = n
    for t in range(n):
        if hits > best_hits[t]:
            place = t
            break
    if place == n:
        return
    for u in range(n - 1, place, -1):
        best[u] = best[u - 1]
        best_hits[u] = best_hits[u - 1]
    best[place] = m
    best_hits[place] = hits


@njit(cache=True, nogil=True)
def _search(
    ref, src, rv, rl, rm, rs, rh, sv, sl, sm, ss, sh, lo, hi, mirror, error, grid_start, grid_order, grid,
    radius, corners, n_best,
):  # fmt: skip
    """Compare all triangles of similar shape and size; score what they propose."""
    x0, y0, cell, nx, ny = grid[0], grid[1], grid[2], int(grid[3]), int(grid[4])
    best = np.zeros((n_best, 6))
    best_hits = np.zeros(n_best, np.int64)
    m = np.empty(6)
    tried = 0
    for i in range(len(sl)):
        # An error e of a position changes a side ratio by about e/longest.
        tol = error / (sl[i] * math.sqrt(lo * hi))
        first = np.searchsorted(rm, sm[i] - tol)
        for j in range(first, len(rl)):
            if rm[j] > sm[i] + tol:
                break
            if abs(rs[j] - ss[i]) > tol:
                continue
            if rl[j] + error < lo * sl[i] or rl[j] - error > hi * sl[i]:
                continue
            mirrored = rh[j] != sh[i]
            if mirrored and mirror == 0:
                continue
            if not mirrored and mirror == 2:
                continue
            _similarity_from_triangle(ref, src, rv[j], sv[i], mirrored, m)
            scale = math.sqrt(abs(m[0] * m[4] - m[1] * m[3]))
            if scale < lo or scale > hi:
                continue
            tried += 1
            hits = _count_hits(m, src, ref, grid_start, grid_order, x0, y0, cell, nx, ny, radius)
            if hits > SEED_STARS and hits > best_hits[n_best - 1]:
                _keep_best(m, hits, best, best_hits, corners, 2.0 * radius)
    return best, best_hits, tried


def propose_similarities(
    ref_xy: np.ndarray,
    src_xy: np.ndarray,
    ref_triangles: Triangles,
    src_triangles: Triangles,
    *,
    scale_bounds: tuple[float, float],
    mirror: bool | None,
    error: float,
    radius: float,
) -> tuple[list[np.ndarray], int]:
    """List the similarities that agreeing triangles propose, best supported first.

    Parameters
    ----------
    ref_xy, src_xy : numpy.ndarray
        float64 (n, 2) star positions.
    ref_triangles, src_triangles : Triangles
        Triangles of (subsets of) the two lists.
    scale_bounds : tuple of float
        Smallest and largest reference units per source unit.
    mirror : bool or None
        Handedness allowed: False equal, True opposite, None both.
    error : float
        Position error allowed in the comparison of shapes, in reference units.
    radius : float
        Distance within which a star counts as met when a proposal is scored, in reference units.

    Returns
    -------
    matrices : list of numpy.ndarray
        float64 (2, 3) each, at most sixteen distinct ones.
    tried : int
        How many proposals were scored.
    """
    ref_xy = np.ascontiguousarray(ref_xy, dtype=np.float64)
    src_xy = np.ascontiguousarray(src_xy, dtype=np.float64)
    low, high = ref_xy.min(axis=0), ref_xy.max(axis=0)
    span = np.maximum(high - low, 1e-6)
    cell = max(math.sqrt(span[0] * span[1] / len(ref_xy)), 2.0 * radius)
    nx, ny = int(span[0] / cell) + 1, int(span[1] / cell) + 1
    start, order = _build_grid(ref_xy, low[0], low[1], cell, nx, ny)
    (xa, ya), (xb, yb) = src_xy.min(axis=0), src_xy.max(axis=0)
    corners = np.array([[xa, ya], [xb, ya], [xa, yb], [xb, yb]])
    lo, hi = scale_bounds
    r, s = ref_triangles, src_triangles
    best, hits, tried = _search(
        ref_xy, src_xy, r.vertices, r.longest, r.middle, r.shortest, r.handedness,
        s.vertices, s.longest, s.middle, s.shortest, s.handedness,
        float(lo), float(hi), {False: 0, None: 1, True: 2}[mirror], float(error), start, order,
        np.array([low[0], low[1], cell, nx, ny]), float(radius), corners, _N_PROPOSALS,
    )  # fmt: skip
    return [m.reshape(2, 3) for m, h in zip(best, hits, strict=True) if h > 0], int(tried)
