"""Find the same stars in two star lists at unknown rotation and shift; positions only, no files.

Triangles of neighbouring stars are compared by shape and size. Every agreement proposes a similarity, every
proposal is scored on all stars, and the best ones are refitted and tested against chance. The answer is
either overwhelmingly unlikely to be an accident or it is "no match".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from scipy.spatial import cKDTree

__all__ = [
    "MIN_LOG10_ODDS",
    "REFIT_LOOKS",
    "SEED_STARS",
    "PatternMatch",
    "Triangles",
    "chance_of_one_accident",
    "find_similarity",
    "fit_similarity",
    "log10_odds_against_chance",
    "make_triangles",
    "mutual_matches",
    "propose_similarities",
    "refine_similarity",
]

# A match is believed when the expected number of accidents as good as it, over everything that was tried, is
# below 1e-8: ten thousand frames then have one chance in ten thousand of a single wrong answer.
MIN_LOG10_ODDS = 8.0

# Every refit may pick up accidental companions; ten is a generous count of the independent looks it takes.
REFIT_LOOKS = 10.0
# Shape search from cheap to thorough: (fraction of max_stars, neighbours per star).
_STAGES = ((0.5, 7), (1.0, 8), (1.0, 14), (2.0, 9))
_N_PROPOSALS = 16
# The three stars of the proposing triangle agree by construction and prove nothing.
SEED_STARS = 3


@dataclass(frozen=True, slots=True)
class PatternMatch:
    """A verified similarity between two star lists.

    Attributes
    ----------
    matrix : numpy.ndarray
        float64 (2, 3): ``ref = matrix[:, :2] @ src + matrix[:, 2]``.
    ref_index, src_index : numpy.ndarray
        int64 (n,), the paired rows of the two lists.
    rms_px : float
        Root mean square distance of the pairs, in units of the reference list.
    log10_odds : float
        Minus the decimal logarithm of the expected number of accidental matches this good.
    n_candidates : int
        Stars of the source list that fall on the area of the reference list.
    """

    matrix: np.ndarray
    ref_index: np.ndarray
    src_index: np.ndarray
    rms_px: float
    log10_odds: float
    n_candidates: int

    @property
    def scale(self) -> float:
        """Reference units per source unit."""
        return math.sqrt(abs(float(np.linalg.det(self.matrix[:, :2]))))

    @property
    def mirrored(self) -> bool:
        """Whether the two lists have opposite handedness."""
        return float(np.linalg.det(self.matrix[:, :2])) < 0

    @property
    def rotation_deg(self) -> float:
        """Angle by which the source x axis is turned in the reference, in (-180, 180]."""
        return math.degrees(math.atan2(self.matrix[1, 0], self.matrix[0, 0]))

    def apply(self, xy: np.ndarray) -> np.ndarray:
        """Map source positions (n, 2) to reference positions (n, 2)."""
        return np.asarray(xy, dtype=np.float64) @ self.matrix[:, :2].T + self.matrix[:, 2]


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


def fit_similarity(ref_xy: np.ndarray, src_xy: np.ndarray, *, mirror: bool = False) -> np.ndarray:
    """Fit the similarity src -> ref by least squares.

    With positions as complex numbers relative to their means, ``ref = c * src`` where
    ``c = sum(conj(src) ref) / sum(|src|^2)``; a mirrored fit uses the conjugate of ``src``.

    Parameters
    ----------
    ref_xy, src_xy : numpy.ndarray
        float64 (n, 2), n >= 2.
    mirror : bool
        Fit a similarity of negative determinant.

    Returns
    -------
    numpy.ndarray
        float64 (2, 3).
    """
    ref_mean, src_mean = ref_xy.mean(axis=0), src_xy.mean(axis=0)
    r, s = ref_xy - ref_mean, src_xy - src_mean
    if mirror:
        s = s * (1.0, -1.0)
    spread = float((s * s).sum())
    a = float((s * r).sum()) / spread
    b = float((s[:, 0] * r[:, 1] - s[:, 1] * r[:, 0]).sum()) / spread
    linear = np.array([[a, -b], [b, a]])
    if mirror:
        linear[:, 1] *= -1.0
    return np.column_stack([linear, ref_mean - linear @ src_mean])


def mutual_matches(ref_tree: cKDTree, mapped_xy: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Pair stars that are each other's nearest within a radius.

    Parameters
    ----------
    ref_tree : scipy.spatial.cKDTree
        Tree of the reference positions.
    mapped_xy : numpy.ndarray
        float64 (n, 2), source positions in the reference's coordinates.
    radius : float
        Largest distance of a pair.

    Returns
    -------
    ref_index, src_index : numpy.ndarray
        int64, each star at most once, in source order.
    """
    distance, nearest = ref_tree.query(mapped_xy, distance_upper_bound=radius)
    src = np.flatnonzero(np.isfinite(distance))
    # Of several source stars that claim one reference star the nearest wins.
    src = src[np.argsort(distance[src], kind="stable")]
    _, first = np.unique(nearest[src], return_index=True)
    src = np.sort(src[first])
    return nearest[src].astype(np.int64), src.astype(np.int64)


def log10_odds_against_chance(n: int, k: int, p: float, trials: float) -> float:
    """Bound how unlikely k accidental companions among n stars are.

    Each of n stars meets an unrelated star with probability p. The chance of at least k meetings is at most
    ``exp(-n D)`` with ``D = f ln(f/p) + (1-f) ln((1-f)/(1-p))`` and ``f = k/n`` (Chernoff); multiplied by the
    number of trials it bounds the expected number of accidents.

    Parameters
    ----------
    n, k : int
        Stars looked at and stars met.
    p : float
        Chance of one accidental meeting.
    trials : float
        Independent transformations that were tried.

    Returns
    -------
    float
        ``-log10(trials * exp(-n D))``; negative when accidents are to be expected.
    """
    penalty = math.log10(max(trials, 1.0))
    p = min(max(p, 1e-12), 1.0)
    if n <= 0 or k <= 0 or k / n <= p:
        return -penalty
    f = min(k / n, 1.0)
    divergence = f * math.log(f / p)
    if f < 1.0:
        divergence += (1.0 - f) * math.log((1.0 - f) / (1.0 - p))
    return n * divergence / math.log(10.0) - penalty


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


def find_similarity(
    ref_xy: np.ndarray,
    src_xy: np.ndarray,
    *,
    scale_bounds: tuple[float, float] = (0.97, 1.03),
    allow_mirror: bool = False,
    tolerance_px: float = 2.0,
    max_stars: int = 60,
    min_matches: int = 6,
) -> PatternMatch | None:
    """Find the similarity that lays one star list on another, if there is one beyond doubt.

    Parameters
    ----------
    ref_xy, src_xy : numpy.ndarray
        float (n, 2) positions, brightest first; rows that are not finite are ignored.
    scale_bounds : tuple of float
        Smallest and largest scale of the answer (reference units per source unit).
    allow_mirror : bool
        Also look for lists of opposite handedness.
    tolerance_px : float
        Largest distance of a pair, in reference units; half of it is allowed as position error in shapes.
    max_stars : int
        Brightest stars of each list that form triangles (twice as many in the last attempt); all stars take
        part in the verification.
    min_matches : int
        Fewest pairs of an answer.

    Returns
    -------
    PatternMatch or None
        None when no similarity is certain: fewer than ``min_matches`` pairs, or odds below
        ``10**MIN_LOG10_ODDS`` to one against chance.
    """
    ref_rows = np.flatnonzero(np.isfinite(ref_xy).all(axis=1))
    src_rows = np.flatnonzero(np.isfinite(src_xy).all(axis=1))
    ref = np.ascontiguousarray(np.asarray(ref_xy, dtype=np.float64)[ref_rows])
    src = np.ascontiguousarray(np.asarray(src_xy, dtype=np.float64)[src_rows])
    if min(len(ref), len(src)) < max(min_matches, SEED_STARS + 1):
        return None
    tree = cKDTree(ref)
    tried = 0
    for fraction, neighbours in _STAGES:
        n = max(int(max_stars * fraction), min_matches)
        ref_top, src_top = ref[:n], src[:n]
        mean_scale = math.sqrt(scale_bounds[0] * scale_bounds[1])
        proposals, count = propose_similarities(
            ref_top,
            src_top,
            make_triangles(ref_top, neighbours, min_side=5.0 * tolerance_px),
            make_triangles(src_top, neighbours, min_side=5.0 * tolerance_px / mean_scale),
            scale_bounds=scale_bounds,
            mirror=None if allow_mirror else False,
            error=0.5 * tolerance_px,
            radius=1.5 * tolerance_px,
        )
        tried += count
        match = _best_verified(ref, src, tree, proposals, tried, tolerance_px, min_matches, scale_bounds)
        if match is not None:
            return PatternMatch(
                matrix=match.matrix,
                ref_index=ref_rows[match.ref_index],
                src_index=src_rows[match.src_index],
                rms_px=match.rms_px,
                log10_odds=match.log10_odds,
                n_candidates=match.n_candidates,
            )
    return None


def _best_verified(
    ref, src, tree, proposals, tried, tolerance, min_matches, scale_bounds
) -> PatternMatch | None:
    best = None
    for matrix in proposals:
        match = refine_similarity(
            ref, src, matrix, tolerance=tolerance, tried=tried, min_pairs=min_matches, tree=tree
        )
        if match is None or match.log10_odds < MIN_LOG10_ODDS:
            continue
        if not scale_bounds[0] <= match.scale <= scale_bounds[1]:
            continue
        if best is None or match.log10_odds > best.log10_odds:
            best = match
    return best


def refine_similarity(
    ref: np.ndarray,
    src: np.ndarray,
    matrix: np.ndarray,
    *,
    tolerance: float,
    tried: int,
    min_pairs: int = SEED_STARS + 1,
    tree: cKDTree | None = None,
) -> PatternMatch | None:
    """Refit a proposal on all its pairs until they no longer change, then weigh it against chance.

    Parameters
    ----------
    ref, src : numpy.ndarray
        float64 (n, 2) positions.
    matrix : numpy.ndarray
        float64 (2, 3), the proposal src -> ref.
    tolerance : float
        Largest distance of a pair, in reference units.
    tried : int
        Proposals that were scored so far: each was a chance for an accident.
    min_pairs : int
        Fewer pairs are no match; saves the judgement of hopeless proposals.
    tree : scipy.spatial.cKDTree, optional
        Tree of `ref`, when the caller has one.

    Returns
    -------
    PatternMatch or None
        None when fewer stars agree; the caller judges ``log10_odds``.
    """
    tree = cKDTree(ref) if tree is None else tree
    mirror = float(np.linalg.det(matrix[:, :2])) < 0
    previous = None
    radius = 2.0 * tolerance
    for _ in range(12):
        mapped = src @ matrix[:, :2].T + matrix[:, 2]
        ref_index, src_index = mutual_matches(tree, mapped, radius)
        if len(ref_index) < max(min_pairs, SEED_STARS + 1):
            return None
        distance = np.hypot(*(mapped[src_index] - ref[ref_index]).T)
        pairs = ref_index * len(src) + src_index
        if previous is not None and np.array_equal(pairs, previous):
            break
        previous = pairs
        matrix = fit_similarity(ref[ref_index], src[src_index], mirror=mirror)
        # Four medians are 4.7 sigma of true pairs; what lies farther is an accident that would bend the fit.
        radius = min(tolerance, max(4.0 * float(np.median(distance)), 0.25 * tolerance))
    n, p = chance_of_one_accident(ref, src, tree, matrix, tolerance)
    odds = log10_odds_against_chance(
        n - SEED_STARS, len(ref_index) - SEED_STARS, p, max(tried, 1) * REFIT_LOOKS
    )
    rms = float(np.sqrt(np.mean(distance**2)))
    return PatternMatch(matrix, ref_index, src_index, rms, odds, n)


def chance_of_one_accident(
    ref: np.ndarray, src: np.ndarray, tree: cKDTree, matrix: np.ndarray, tolerance: float
) -> tuple[int, float]:
    """Count the source stars on the common area and the chance that one of them meets a star by accident.

    The density of reference stars is the larger of two estimates, over the common area and in rings around
    the mapped stars themselves, so that stars crowding in clusters do not make an accident look impossible.
    """
    mapped = src @ matrix[:, :2].T + matrix[:, 2]
    low, high = ref.min(axis=0) - tolerance, ref.max(axis=0) + tolerance
    inside = ((mapped >= low) & (mapped <= high)).all(axis=1)
    n = int(inside.sum())
    src_low, src_high = src.min(axis=0), src.max(axis=0)
    lattice = (np.stack(np.meshgrid(np.arange(12), np.arange(12)), axis=-1).reshape(-1, 2) + 0.5) / 12.0
    points = (src_low + lattice * (src_high - src_low)) @ matrix[:, :2].T + matrix[:, 2]
    common = float(((points >= low) & (points <= high)).all(axis=1).mean())
    scale2 = abs(float(np.linalg.det(matrix[:, :2])))
    area = max(common * scale2 * float(np.prod(src_high - src_low)), 16.0 * tolerance**2)
    back = (ref - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
    n_ref = int(((back >= src_low) & (back <= src_high)).all(axis=1).sum())
    uniform = n_ref * math.pi * tolerance**2 / area
    ring = tree.query_ball_point(mapped[inside], 10.0 * tolerance, return_length=True)
    core = tree.query_ball_point(mapped[inside], tolerance, return_length=True)
    local = float(np.sum(ring - core)) / (99.0 * max(n, 1))
    return n, max(uniform, local)
