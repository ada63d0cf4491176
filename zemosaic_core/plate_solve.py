"""Where on the sky is this star list? Triangles against a catalogue, outwards from a hint, verified.

Arrays only; the catalogue is a `StarSource`. A position is given only if accidents as good as it are expected
less than once in a billion searches *and* stars that took no part in the fit lie where it says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from zemosaic_core.errors import SkipItem
from zemosaic_core.plate_fit import (
    CatalogueStars,
    DetectedStars,
    PlateFit,
    StarSource,
    WcsCheck,
    fit_plate,
    from_plane,
    odds_of_pairs,
    stereographic,
    verify_wcs,
)
from zemosaic_core.star_patterns import PatternMatch, mutual_matches, refine_similarity
from zemosaic_core.star_triangles import SEED_STARS, Triangles, make_triangles, propose_similarities
from zemosaic_core.transforms import Kind

__all__ = [
    "CatalogueStars",
    "DetectedStars",
    "PlateSolution",
    "SolveHint",
    "StarSource",
    "WcsCheck",
    "solve_plate",
    "verify_wcs",
]

# Expected accidents per solution over everything tried for a frame: 1e-9.
MIN_LOG10_ODDS = 9.0
# Stars held back from the fit must agree by themselves; they saw only one trial, the solution itself.
MIN_HELD_OUT_LOG10_ODDS = 2.0
MIN_MATCHES = 7
# A similarity that agrees this well with the catalogue deserves the full fit; it decides nothing.
_WORTH_A_FIT = 3.0
_PAIRS_WORTH_A_LOOK = 6
# Pairing and fitting settle after two or three rounds; distortion lets pairs in the corners join one by one.
_REFITS = 8
# The plate must be known better than this before the pairs count as pairs: accidents fill the circle evenly
# and have an rms of 0.71 of the tolerance, true pairs of a few tenths of a pixel.
_RMS_PER_TOLERANCE = 0.5
# More catalogue stars per field than this add triangles, not certainty.
_STARS_PER_FIELD = 45
# Detected stars kept; fainter ones are below the catalogue anyway.
_MAX_STARS = 200
# Where mounts point that know roughly where they are, and where the search stops being cheap.
_POINTING_ERROR_DEG, _NEAR_DEG = 0.35, 1.05
# Circles of a wide search are no smaller: the whole sky for 640 x 480 px of 2.4 arcsec took 59 s with circles of 0.5
# degrees, 20 s with 1.5, 17 s with 2, and proposed less.
_LEAST_REACH_DEG, _LARGEST_REACH_DEG = 1.5, 4.0
_SCALES_ARCSEC = (0.4, 12.0)
_SCALE_BAND = 1.25


@dataclass(frozen=True, slots=True)
class SolveHint:
    """What is known before solving.

    Attributes
    ----------
    ra_deg, dec_deg : float or None
        Where the telescope thought it pointed; None: anywhere.
    radius_deg : float
        How far from there to look.
    scale_arcsec : float or None
        Size of a pixel; None: between 0.4 and 12 arcsec.
    scale_tolerance : float
        Relative error of it that is allowed.
    """

    ra_deg: float | None = None
    dec_deg: float | None = None
    radius_deg: float = 10.0
    scale_arcsec: float | None = None
    scale_tolerance: float = 0.04


@dataclass(frozen=True, slots=True)
class PlateSolution:
    """A verified position of a frame.

    Attributes
    ----------
    fit : PlateFit
        Pixels to sky.
    shape_hw : tuple of int
        Size of the frame.
    star_index : numpy.ndarray
        int64 (n,), rows of the detected stars that were identified.
    matched : CatalogueStars
        The same stars in the catalogue (in the order of `star_index`).
    n_expected : int
        Catalogue stars inside the frame.
    rms_px, rms_arcsec : float
        Root mean square distance of the pairs.
    log10_odds : float
        Minus the decimal logarithm of the accidents expected over the whole search.
    held_out_log10_odds : float
        The same for the half of the stars that was held back from a second fit, for one trial.
    n_tried : int
        Proposals scored in the search.
    """

    fit: PlateFit
    shape_hw: tuple[int, int]
    star_index: np.ndarray
    matched: CatalogueStars
    n_expected: int
    rms_px: float
    rms_arcsec: float
    log10_odds: float
    held_out_log10_odds: float
    n_tried: int

    @property
    def n_matched(self) -> int:
        """Identified stars."""
        return len(self.star_index)

    @property
    def scale_arcsec(self) -> float:
        """Geometric mean size of a pixel at the centre."""
        return 3600.0 * math.sqrt(abs(float(np.linalg.det(self.fit.cd))))

    @property
    def parity(self) -> int:
        """+1 as on the sky with +y up (det CD < 0), -1 for a mirror image."""
        return 1 if float(np.linalg.det(self.fit.cd)) < 0 else -1

    @property
    def rotation_deg(self) -> float:
        """Position angle of the +y axis, east of north, in [0, 360)."""
        cd = self.fit.cd
        return math.degrees(math.atan2(cd[0, 1], cd[1, 1])) % 360.0

    def wcs_cards(self) -> dict[str, float | int | str]:
        """FITS cards: TAN, or TAN-SIP where distortion was justified."""
        return self.fit.wcs_cards(self.shape_hw)


def solve_plate(
    stars: DetectedStars,
    shape_hw: tuple[int, int],
    catalogue: StarSource,
    hint: SolveHint,
    *,
    should_stop: Callable[[], bool] | None = None,
) -> PlateSolution:
    """Find the position of a frame.

    Parameters
    ----------
    stars : DetectedStars
        Detected stars, brightest first.
    shape_hw : tuple of int
        Size of the frame, px.
    catalogue : StarSource
        Catalogue.
    hint : SolveHint
        Where to begin and how far to go.
    should_stop : callable, optional
        Asked between parts of the sky; True ends the search without a result.

    Returns
    -------
    PlateSolution

    Raises
    ------
    SkipItem
        ``solve_too_few_stars``; ``solve_no_match`` when nothing in the searched part of the sky fits beyond
        doubt; ``solve_stopped``.
    """
    xy = np.column_stack([stars.x, stars.y]).astype(np.float64)
    rows = np.flatnonzero(np.isfinite(xy).all(axis=1))[:_MAX_STARS]
    if len(rows) < MIN_MATCHES:
        raise SkipItem(
            "solve_too_few_stars",
            f"{len(rows)} stars found, at least {MIN_MATCHES} are needed to find the position",
            n_stars=len(rows),
            needed=MIN_MATCHES,
        )
    search = _Search(np.ascontiguousarray(xy[rows]), rows, shape_hw, catalogue)
    for scale_bounds, effort, centres in _plan(hint, shape_hw):
        for ra, dec, reach in centres:
            if should_stop is not None and should_stop():
                raise SkipItem("solve_stopped", "the search was stopped before a position was found")
            solution = search.try_circle(ra, dec, reach, scale_bounds, effort)
            if solution is not None:
                return solution
    raise SkipItem(
        "solve_no_match",
        f"no part of the searched sky fits the {len(rows)} stars beyond doubt ({search.n_tried} proposals)",
        n_stars=len(rows),
        n_tried=search.n_tried,
        radius_deg=hint.radius_deg if hint.ra_deg is not None else 180.0,
    )


@dataclass(frozen=True, slots=True)
class _Effort:
    """How hard to look: detected stars per expected catalogue star, neighbours of stars on both sides."""

    star_ratio: float
    star_neighbours: int
    catalogue_neighbours: int


_QUICK = _Effort(1.3, 7, 7)
_NORMAL = _Effort(2.2, 10, 8)
_THOROUGH = _Effort(3.0, 14, 12)


def _plan(
    hint: SolveHint, shape_hw: tuple[int, int]
) -> Iterator[tuple[tuple[float, float], _Effort, Iterator[tuple[float, float, float]]]]:
    """Yield what to try: scale bounds, effort, circles of sky; nearest and cheapest first."""
    if hint.scale_arcsec is not None:
        tolerance = hint.scale_tolerance
        bands = [(hint.scale_arcsec * (1.0 - tolerance), hint.scale_arcsec * (1.0 + tolerance))]
    else:
        n = math.ceil(math.log(_SCALES_ARCSEC[1] / _SCALES_ARCSEC[0]) / math.log(_SCALE_BAND))
        edges = np.geomspace(*_SCALES_ARCSEC, n + 1)
        # Smart telescopes and small refractors lie around 2 arcsec per pixel.
        order = np.argsort(np.abs(np.log(edges[:-1] * edges[1:] / 4.0)), kind="stable")
        bands = [(float(edges[i]), float(edges[i + 1])) for i in order]
    if hint.ra_deg is None or hint.dec_deg is None:
        for band in bands:
            yield band, _QUICK, _whole_sky(_reach_of(band, shape_hw))
        return
    ra, dec = float(hint.ra_deg), float(hint.dec_deg)
    half = [0.5 * math.hypot(*shape_hw) * math.sqrt(lo * hi) / 3600.0 for lo, hi in bands]
    near = min(_NEAR_DEG, hint.radius_deg)
    for reach in dict.fromkeys((min(_POINTING_ERROR_DEG, near), near)):
        for effort in (_QUICK, _NORMAL):
            for band in bands:
                yield band, effort, iter([(ra, dec, reach)])
    for band in bands:
        yield band, _THOROUGH, iter([(ra, dec, near)])
    if hint.scale_arcsec is not None:
        # A focal length in the header that forgets the reducer or the extender.
        for factor in (0.8, 1.0, 1.25):
            middle = hint.scale_arcsec * factor
            yield (0.88 * middle, 1.13 * middle), _NORMAL, iter([(ra, dec, near)])
    if hint.radius_deg > near:
        for effort in (_QUICK, _NORMAL):
            for band, size in zip(bands, half, strict=True):
                reach = _reach_of(band, shape_hw, size)
                yield band, effort, _rings(ra, dec, near, hint.radius_deg, reach)


def _reach_of(band, shape_hw, half_deg: float | None = None) -> float:
    """Radius of one circle of a wide search: some fields, so that few circles are needed."""
    if half_deg is None:
        half_deg = 0.5 * math.hypot(*shape_hw) * math.sqrt(band[0] * band[1]) / 3600.0
    return min(max(2.0 * half_deg, _LEAST_REACH_DEG), _LARGEST_REACH_DEG)


def _rings(
    ra: float, dec: float, inner: float, outer: float, reach: float
) -> Iterator[tuple[float, float, float]]:
    """Cover the ring between two radii around a point with circles, nearest first."""
    step = reach * math.sqrt(2.0)
    middle = inner + 0.5 * step
    while middle - 0.5 * step < outer:
        n = max(math.ceil(2.0 * math.pi * math.sin(math.radians(min(middle, 90.0))) / math.radians(step)), 3)
        angle = 2.0 * math.pi * np.arange(n) / n
        radius = 2.0 * math.tan(math.radians(middle) / 2.0)
        x, y = np.rad2deg(radius * np.sin(angle)), np.rad2deg(radius * np.cos(angle))
        for a, d in zip(*from_plane(x, y, ra, dec, conformal=True), strict=True):
            yield float(a), float(d), reach
        middle += step


def _whole_sky(reach: float) -> Iterator[tuple[float, float, float]]:
    """Cover the sky with circles on rings of declination."""
    step = reach * math.sqrt(2.0)
    n_rings = math.ceil(180.0 / step)
    decs = -90.0 + (np.arange(n_rings) + 0.5) * 180.0 / n_rings
    # Most telescopes, and most of what they look at, are north of the equator.
    for dec in sorted(decs.tolist(), key=lambda d: abs(d - 25.0)):
        n = max(math.ceil(360.0 * math.cos(math.radians(abs(dec) - 0.5 * step)) / step), 3)
        for k in range(n):
            yield 360.0 * k / n, dec, reach


class _Search:
    """The search for one frame; counts every proposal, because each was a chance for an accident."""

    def __init__(
        self, xy: np.ndarray, rows: np.ndarray, shape_hw: tuple[int, int], catalogue: StarSource
    ) -> None:
        self._xy = xy
        self._rows = rows
        self._shape_hw = shape_hw
        self._catalogue = catalogue
        self._triangles: dict[tuple[int, int], Triangles] = {}
        self.n_tried = 0

    def try_circle(
        self, ra: float, dec: float, reach: float, scale_bounds: tuple[float, float], effort: _Effort
    ) -> PlateSolution | None:
        """Look for the frame's centre within `reach` degrees of a point."""
        scale = math.sqrt(scale_bounds[0] * scale_bounds[1])
        height, width = self._shape_hw
        half_deg = 0.5 * math.hypot(height, width) * scale / 3600.0
        field_deg2 = height * width * (scale / 3600.0) ** 2
        radius = reach + half_deg
        area = 2.0 * math.pi * (1.0 - math.cos(math.radians(radius))) * (180.0 / math.pi) ** 2
        near = self._catalogue.near(
            ra, dec, radius, math.ceil(_STARS_PER_FIELD * max(area / field_deg2, 1.0))
        )
        if len(near) < MIN_MATCHES:
            return None
        # In units of detected pixels, so that the similarity's scale is near one.
        sky_xy = np.column_stack(stereographic(near.ra_deg, near.dec_deg, ra, dec)) * (3600.0 / scale)
        tolerance = tolerance_px(scale)
        n_stars = self._star_count(len(near) * field_deg2 / area * effort.star_ratio)
        star_triangles = self._triangles_of(n_stars, effort.star_neighbours, tolerance)
        proposals, tried = propose_similarities(
            sky_xy,
            self._xy[:n_stars],
            make_triangles(sky_xy, effort.catalogue_neighbours, min_side=5.0 * tolerance),
            star_triangles,
            scale_bounds=(scale_bounds[0] / scale, scale_bounds[1] / scale),
            mirror=None,
            error=0.5 * tolerance,
            radius=1.5 * tolerance,
        )
        self.n_tried += tried
        tree = cKDTree(sky_xy)
        for matrix in proposals:
            match = refine_similarity(
                sky_xy,
                self._xy[: 2 * n_stars],
                matrix,
                tolerance=1.5 * tolerance,
                tried=1,
                min_pairs=_PAIRS_WORTH_A_LOOK,
                tree=tree,
            )
            if match is None or match.log10_odds < _WORTH_A_FIT:
                continue
            solution = self._finish(match, (ra, dec), scale, scale_bounds, tolerance)
            if solution is not None:
                return solution
        return None

    def _star_count(self, wanted: float) -> int:
        # A few fixed lengths, so that triangles of the frame are made once and not for every circle of sky.
        n = 12.0
        while n < wanted:
            n *= 1.3
        return min(int(n), 110, len(self._xy))

    def _triangles_of(self, n_stars: int, neighbours: int, tolerance: float) -> Triangles:
        key = (n_stars, neighbours)
        if key not in self._triangles:
            self._triangles[key] = make_triangles(self._xy[:n_stars], neighbours, min_side=5.0 * tolerance)
        return self._triangles[key]

    def _finish(
        self,
        match: PatternMatch,
        plane_centre: tuple[float, float],
        scale: float,
        scale_bounds: tuple[float, float],
        tolerance: float,
    ) -> PlateSolution | None:
        """Turn a promising similarity into a solution, or None if it does not stand the tests."""
        height, width = self._shape_hw
        middle = match.apply(np.array([[(width - 1) / 2.0, (height - 1) / 2.0]])) * (scale / 3600.0)
        ra, dec = (float(c[0]) for c in from_plane(middle[:, 0], middle[:, 1], *plane_centre, conformal=True))
        half_deg = 0.5 * math.hypot(height, width) * scale / 3600.0
        near = self._catalogue.near(ra, dec, 1.1 * half_deg)
        sky_xy = np.column_stack(stereographic(near.ra_deg, near.dec_deg, *plane_centre)) * (3600.0 / scale)
        catalogue_index, star = mutual_matches(cKDTree(sky_xy), match.apply(self._xy), 2.0 * tolerance)
        refined = self._refit(near, star, catalogue_index, (ra, dec), scale, tolerance)
        if refined is None:
            return None
        fit, star, catalogue_index = refined
        return self._judge(fit, near, star, catalogue_index, scale_bounds, tolerance)

    def _refit(
        self, near: CatalogueStars, star, index, centre, scale, tolerance, subset: np.ndarray | None = None
    ) -> tuple[PlateFit, np.ndarray, np.ndarray] | None:
        """Fit the plate and pair again until the pairs stay; `subset` limits the detected stars in the fit."""
        fit = None
        previous = None
        richest: Kind = "affine" if subset is not None else "poly3"
        for step in range(_REFITS):
            if subset is not None:
                use = subset[star]
                star, index = star[use], index[use]
            if len(star) < 4:
                return None
            x, y = self._xy[star].T
            fit, keep = fit_plate(
                x, y, near.ra_deg[index], near.dec_deg[index], self._shape_hw,
                near=centre, scale_deg=scale / 3600.0, max_kind="affine" if step == 0 else richest,
            )  # fmt: skip
            centre = (fit.ra_deg, fit.dec_deg)
            predicted = np.column_stack(fit.pixels(near.ra_deg, near.dec_deg))
            residual = np.hypot(*(predicted[index[keep]] - self._xy[star[keep]]).T)
            radius = min(tolerance, max(4.0 * float(np.median(residual)), 0.5 * tolerance))
            index, star = mutual_matches(cKDTree(predicted), self._xy, radius)
            pairs = (*star.tolist(), *index.tolist())
            if step > 0 and pairs == previous:
                break
            previous = pairs
        return fit, star, index

    def _judge(
        self,
        fit: PlateFit,
        near: CatalogueStars,
        star: np.ndarray,
        index: np.ndarray,
        scale_bounds: tuple[float, float],
        tolerance: float,
    ) -> PlateSolution | None:
        if len(star) < MIN_MATCHES:
            return None
        height, width = self._shape_hw
        predicted = np.column_stack(fit.pixels(near.ra_deg, near.dec_deg))
        inside = ((predicted >= -0.5) & (predicted < np.array([width, height]) - 0.5)).all(axis=1)
        distance = np.hypot(*(predicted[index] - self._xy[star]).T)
        rms = float(np.sqrt(np.mean(distance**2)))
        _, odds = odds_of_pairs(self._xy, predicted[inside], len(star), tolerance, max(self.n_tried, 1))
        scale = 3600.0 * math.sqrt(abs(float(np.linalg.det(fit.cd))))
        if (
            odds < MIN_LOG10_ODDS
            or rms > _RMS_PER_TOLERANCE * tolerance
            or not 0.995 * scale_bounds[0] <= scale <= 1.005 * scale_bounds[1]
        ):
            return None
        held_out = self._held_out_odds(fit, near, star, index, scale, tolerance)
        if held_out < MIN_HELD_OUT_LOG10_ODDS:
            return None
        return PlateSolution(
            fit=fit,
            shape_hw=self._shape_hw,
            star_index=self._rows[star],
            matched=CatalogueStars(near.ra_deg[index], near.dec_deg[index], near.mag[index]),
            n_expected=int(inside.sum()),
            rms_px=rms,
            rms_arcsec=rms * scale,
            log10_odds=odds,
            held_out_log10_odds=held_out,
            n_tried=self.n_tried,
        )

    def _held_out_odds(
        self,
        fit: PlateFit,
        near: CatalogueStars,
        star: np.ndarray,
        index: np.ndarray,
        scale: float,
        tolerance: float,
    ) -> float:
        """Fit to every second pair only and ask whether the other stars lie where that fit says."""
        subset = np.ones(len(self._xy), dtype=bool)
        subset[star[1::2]] = False
        half = self._refit(near, star, index, (fit.ra_deg, fit.dec_deg), scale, tolerance, subset)
        if half is None:
            return -math.inf
        plate = half[0]
        predicted = np.column_stack(plate.pixels(near.ra_deg, near.dec_deg))
        height, width = self._shape_hw
        inside = ((predicted >= -0.5) & (predicted < np.array([width, height]) - 0.5)).all(axis=1)
        inside[index[0::2]] = False
        others = self._xy.copy()[np.isin(np.arange(len(self._xy)), star[0::2], invert=True)]
        if not inside.any():
            return -math.inf
        pairs, _ = mutual_matches(cKDTree(predicted[inside]), others, tolerance)
        # These stars found no position: the pairs that `odds_of_pairs` takes away for that are given back.
        _, odds = odds_of_pairs(others, predicted[inside], len(pairs) + SEED_STARS, tolerance, 1.0)
        return odds


def tolerance_px(scale_arcsec: float) -> float:
    """Distance within which a detected and a catalogue star are one: 2 px, or 1.5 arcsec for small pixels.

    Stars whose motion is not known have gone their own way by a few tenths of an arcsecond since J2000.0, one in a
    hundred by more than 1.5.
    """
    return max(2.0, 1.5 / scale_arcsec)
