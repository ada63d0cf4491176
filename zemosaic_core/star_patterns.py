"""Find the same stars in two star lists at unknown rotation and shift; positions only, no files.

Triangles of neighbouring stars propose similarities (`star_triangles`); the best ones are refitted on all stars and
tested against chance. The answer is either overwhelmingly unlikely to be an accident or it is "no match".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from zemosaic_core.star_triangles import SEED_STARS, make_triangles, propose_similarities

__all__ = [
    "MIN_LOG10_ODDS",
    "REFIT_LOOKS",
    "PatternMatch",
    "chance_of_one_accident",
    "find_similarity",
    "fit_similarity",
    "log10_odds_against_chance",
    "mutual_matches",
    "refine_similarity",
]

# A match is believed when the expected number of accidents as good as it, over everything that was tried, is
# below 1e-8: ten thousand frames then have one chance in ten thousand of a single wrong answer.
MIN_LOG10_ODDS = 8.0

# Every refit may pick up accidental companions; ten is a generous count of the independent looks it takes.
REFIT_LOOKS = 10.0
# Shape search from cheap to thorough: (fraction of max_stars, neighbours per star).
_STAGES = ((0.5, 7), (1.0, 8), (1.0, 14), (2.0, 9))


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
