"""The world coordinates of a frame from matched stars: tangent plane, justified distortion, checks.

Arrays only; where catalogue stars come from is the business of a `StarSource`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from astropy.wcs import WCS
from scipy.spatial import cKDTree

from zemosaic_core.sphere import gnomonic, ra_dec, unit_vectors
from zemosaic_core.star_patterns import (
    REFIT_LOOKS,
    chance_of_one_accident,
    log10_odds_against_chance,
    mutual_matches,
)
from zemosaic_core.star_triangles import SEED_STARS
from zemosaic_core.transforms import Kind, choose_transform

__all__ = [
    "CatalogueStars",
    "DetectedStars",
    "PlateFit",
    "StarSource",
    "WcsCheck",
    "fit_plate",
    "from_plane",
    "odds_of_pairs",
    "stereographic",
    "verify_wcs",
]

_ARCSEC = 3600.0
_IDENTITY = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
_POWERS = {1: [(1, 0), (0, 1)], 2: [(2, 0), (1, 1), (0, 2)], 3: [(3, 0), (2, 1), (1, 2), (0, 3)]}
_ORDER: dict[str, int] = {"similarity": 1, "affine": 1, "poly2": 2, "poly3": 3}
# Distortion is fitted only where stars hold it: pairs must span this part of both sides of the frame.
_SPAN_FOR_DISTORTION = 0.75
# Differential refraction squeezes a field by 3e-4 at 45 degrees of altitude; cheap optics tilt by as much.
_ANISOTROPY = 3e-4
# Proper motions make a few true pairs stand out; cutting them at three sigma would shift sparse fields.
_CLIP_SIGMA = 5.0
# Typical distance of a star from its catalogue place: centroid, catalogue and 25 years of proper motion.
_CENTROID_ERROR_PX = 0.2
# A header's WCS counts as confirmed from these odds on; a chance of one in a million is safe for one look.
_CONFIRMED_LOG10_ODDS = 6.0
# With fewer stars their absence proves nothing: thin cloud hides as many.
_ENOUGH_TO_CONTRADICT = 8
# More stars make the check slower, not surer.
_MOST_EXPECTED = 300


class DetectedStars(Protocol):
    """Stars found in an image: pixel positions, origin 0, brightest first."""

    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True, slots=True)
class CatalogueStars:
    """Stars of a catalogue, brightest first.

    Attributes
    ----------
    ra_deg, dec_deg : numpy.ndarray
        float64 (n,), ICRS.
    mag : numpy.ndarray
        float64 (n,).
    """

    ra_deg: np.ndarray
    dec_deg: np.ndarray
    mag: np.ndarray

    def __len__(self) -> int:
        return len(self.ra_deg)


class StarSource(Protocol):
    """Something that knows the stars of the sky."""

    def near(
        self, ra_deg: float, dec_deg: float, radius_deg: float, max_stars: int | None = None
    ) -> CatalogueStars:
        """List the stars within a radius, brightest first."""


def stereographic(
    ra_deg: np.ndarray, dec_deg: np.ndarray, ra0_deg: float, dec0_deg: float
) -> tuple[np.ndarray, np.ndarray]:
    """Project on the plane that keeps angles: shapes of small patterns stay true far from the centre.

    ``(x, y) = (east, north) * 2 / (1 + cos c)`` with the direction cosines east, north and ``cos c`` to the
    centre.

    Returns
    -------
    (x_deg, y_deg) : numpy.ndarray
        float64; the scale grows as ``1 / cos^2(c/2)``.
    """
    d = np.deg2rad(ra_deg - ra0_deg)
    sin0, cos0 = math.sin(math.radians(dec0_deg)), math.cos(math.radians(dec0_deg))
    sin1, cos1 = np.sin(np.deg2rad(dec_deg)), np.cos(np.deg2rad(dec_deg))
    cos_d = np.cos(d)
    factor = 2.0 / np.maximum(1.0 + sin0 * sin1 + cos0 * cos1 * cos_d, 1e-9)
    return (
        np.rad2deg(factor * cos1 * np.sin(d)),
        np.rad2deg(factor * (cos0 * sin1 - sin0 * cos1 * cos_d)),
    )


def from_plane(
    x_deg: np.ndarray, y_deg: np.ndarray, ra0_deg: float, dec0_deg: float, *, conformal: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Undo the gnomonic (default) or the stereographic projection; returns RA in [0, 360) and Dec."""
    x, y = np.deg2rad(np.asarray(x_deg, np.float64)), np.deg2rad(np.asarray(y_deg, np.float64))
    r2 = x * x + y * y
    # Depth of the point along the line of sight to the centre, for sideways steps (x, y).
    depth = (1.0 - r2 / 4.0) if conformal else np.ones_like(r2)
    a, d = math.radians(ra0_deg), math.radians(dec0_deg)
    centre = np.array([math.cos(d) * math.cos(a), math.cos(d) * math.sin(a), math.sin(d)])
    east = np.array([-math.sin(a), math.cos(a), 0.0])
    north = np.array([-math.sin(d) * math.cos(a), -math.sin(d) * math.sin(a), math.cos(d)])
    return ra_dec(depth[..., None] * centre + x[..., None] * east + y[..., None] * north)


@dataclass(frozen=True, slots=True)
class PlateFit:
    """Pixels to sky: a polynomial of pixel offsets onto the plane tangent at the reference point.

    With ``(u, v) = (x - x0, y - y0) / unit`` and degrees of the tangent plane east and north::

        xi = sum_ij east[i, j] u^i v^j,    eta = sum_ij north[i, j] u^i v^j

    without constant terms: pixel ``(x0, y0)`` sees exactly ``(ra_deg, dec_deg)``.

    Attributes
    ----------
    ra_deg, dec_deg : float
        Tangent point.
    x0, y0 : float
        Its pixel, origin 0; the middle of the frame.
    unit : float
        Pixels that become 1 in the polynomial.
    east, north : numpy.ndarray
        float64 (order + 1, order + 1); unused corner zero.
    order : int
        1 plain TAN, 2 or 3 with SIP distortion.
    """

    ra_deg: float
    dec_deg: float
    x0: float
    y0: float
    unit: float
    east: np.ndarray
    north: np.ndarray
    order: int

    @property
    def cd(self) -> np.ndarray:
        """Linear terms, degrees per pixel, float64 (2, 2): rows east and north, columns x and y."""
        return np.array([[p[1, 0], p[0, 1]] for p in (self.east, self.north)]) / self.unit

    def plane(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tangent-plane coordinates (east, north), degrees, of pixel positions."""
        u, v = (np.asarray(x) - self.x0) / self.unit, (np.asarray(y) - self.y0) / self.unit
        return np.polynomial.polynomial.polyval2d(u, v, self.east), np.polynomial.polynomial.polyval2d(
            u, v, self.north
        )

    def sky(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """RA and Dec of pixel positions."""
        return from_plane(*self.plane(x, y), self.ra_deg, self.dec_deg)

    def pixels(self, ra_deg: np.ndarray, dec_deg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixel positions of directions; NaN beyond 90 degrees. Exact to 1e-6 px inside the frame."""
        xi, eta = gnomonic(ra_deg, dec_deg, self.ra_deg, self.dec_deg)
        inverse = np.linalg.inv(self.cd)
        x = self.x0 + inverse[0, 0] * xi + inverse[0, 1] * eta
        y = self.y0 + inverse[1, 0] * xi + inverse[1, 1] * eta
        if self.order == 1:
            return x, y
        # Distortion is small against the linear terms: a few corrections by the linear inverse converge.
        for _ in range(6):
            east, north = self.plane(x, y)
            x = x + inverse[0, 0] * (xi - east) + inverse[0, 1] * (eta - north)
            y = y + inverse[1, 0] * (xi - east) + inverse[1, 1] * (eta - north)
        return x, y

    def wcs_cards(self, shape_hw: tuple[int, int]) -> dict[str, float | int | str]:
        """FITS cards of this solution: TAN, or TAN-SIP with the inverse polynomials AP and BP."""
        suffix = "-SIP" if self.order > 1 else ""
        cd = self.cd
        cards: dict[str, float | int | str] = {
            "WCSAXES": 2,
            "CTYPE1": "RA---TAN" + suffix,
            "CTYPE2": "DEC--TAN" + suffix,
            "CUNIT1": "deg",
            "CUNIT2": "deg",
            "CRPIX1": self.x0 + 1.0,
            "CRPIX2": self.y0 + 1.0,
            "CRVAL1": self.ra_deg,
            "CRVAL2": self.dec_deg,
            "CD1_1": float(cd[0, 0]),
            "CD1_2": float(cd[0, 1]),
            "CD2_1": float(cd[1, 0]),
            "CD2_2": float(cd[1, 1]),
            "RADESYS": "ICRS",
        }
        if self.order > 1:
            cards |= self._sip_cards(shape_hw)
        return cards

    def _sip_cards(self, shape_hw: tuple[int, int]) -> dict[str, float | int | str]:
        inverse = np.linalg.inv(self.cd)
        cards: dict[str, float | int | str] = {"A_ORDER": self.order, "B_ORDER": self.order}
        for degree in range(2, self.order + 1):
            for i, j in _POWERS[degree]:
                a, b = inverse @ (self.east[i, j], self.north[i, j]) / self.unit**degree
                cards[f"A_{i}_{j}"], cards[f"B_{i}_{j}"] = float(a), float(b)
        order = self.order + 1
        cards |= {"AP_ORDER": order, "BP_ORDER": order}
        dy, dx = np.mgrid[0 : shape_hw[0] - 1 : 15j, 0 : shape_hw[1] - 1 : 15j]
        dx, dy = dx.ravel() - self.x0, dy.ravel() - self.y0
        east, north = self.plane(dx + self.x0, dy + self.y0)
        u, v = inverse @ np.stack([east, north])
        powers = [(i, j) for i in range(order + 1) for j in range(order + 1 - i) if i + j > 0]
        design = np.stack([(u / self.unit) ** i * (v / self.unit) ** j for i, j in powers], axis=1)
        solution = np.linalg.lstsq(design, np.stack([dx - u, dy - v], axis=1), rcond=None)[0]
        for (i, j), (a, b) in zip(powers, solution, strict=True):
            cards[f"AP_{i}_{j}"] = float(a / self.unit ** (i + j))
            cards[f"BP_{i}_{j}"] = float(b / self.unit ** (i + j))
        return cards


def fit_plate(
    x: np.ndarray,
    y: np.ndarray,
    ra_deg: np.ndarray,
    dec_deg: np.ndarray,
    shape_hw: tuple[int, int],
    *,
    near: tuple[float, float],
    scale_deg: float,
    max_kind: Kind = "poly3",
) -> tuple[PlateFit, np.ndarray]:
    """Fit the plate to pairs of pixel and sky positions.

    The lowest order of 1, 2 and 3 that the leave-one-out errors justify is taken (see `choose_transform`);
    orders above 1 only when the pairs span the frame.

    Parameters
    ----------
    x, y : numpy.ndarray
        float64 (n,) pixel positions, n >= 3, not on a line.
    ra_deg, dec_deg : numpy.ndarray
        float64 (n,), the same stars on the sky.
    shape_hw : tuple of int
        Size of the frame; its middle becomes the reference pixel.
    near : tuple of float
        RA and Dec near the middle of the frame.
    scale_deg : float
        Approximate size of a pixel.
    max_kind : {'affine', 'poly2', 'poly3'}
        Richest form allowed.

    Returns
    -------
    fit : PlateFit
    keep : numpy.ndarray
        bool (n,), pairs that were not clipped as outliers.
    """
    height, width = shape_hw
    x0, y0 = (width - 1) / 2.0, (height - 1) / 2.0
    unit = max(shape_hw) / 2.0
    dx, dy = x - x0, y - y0
    if max_kind in ("poly2", "poly3") and (
        np.ptp(x) < _SPAN_FOR_DISTORTION * width or np.ptp(y) < _SPAN_FOR_DISTORTION * height
    ):
        max_kind = "affine"
    xi, eta = gnomonic(ra_deg, dec_deg, *near)
    pixels = np.column_stack([dx, dy])
    chosen = choose_transform(
        pixels, np.column_stack([xi, eta]) / scale_deg, max_kind=max_kind, clip_sigma=_CLIP_SIGMA
    )
    keep, order = chosen.keep, _ORDER[chosen.kind]
    ra0, dec0 = near
    for _ in range(3):
        xi, eta = gnomonic(ra_deg[keep], dec_deg[keep], ra0, dec0)
        east, north = _fit_terms(dx[keep] / unit, dy[keep] / unit, xi, eta, order, scale_deg)
        ra0, dec0 = (float(c) for c in from_plane(east[0, 0], north[0, 0], ra0, dec0))
    # The last step moved the tangent point by less than rounding; its constant terms are zero by definition.
    east[0, 0] = north[0, 0] = 0.0
    return PlateFit(ra0, dec0, x0, y0, unit, east, north, order), keep


def _fit_terms(u, v, xi, eta, order: int, scale_deg: float) -> tuple[np.ndarray, np.ndarray]:
    """Least squares for all terms; returns the two coefficient tables with their constants.

    Unequal scales and skewed axes (refraction, a tilted sensor) are small: two extra equations say that they
    are zero within `_ANISOTROPY`, which steadies frames with few stars and leaves well measured ones alone.
    """
    powers = [(0, 0)] + [p for degree in range(1, order + 1) for p in _POWERS[degree]]
    n = len(powers)
    terms = np.stack([u**i * v**j for i, j in powers], axis=1)
    zero = np.zeros_like(terms)
    unknown = {p: k for k, p in enumerate(powers)}
    x, y = unknown[1, 0], unknown[0, 1]
    plain = np.linalg.lstsq(terms[:, :3], np.stack([xi, eta], axis=1), rcond=None)[0]
    parity = math.copysign(1.0, plain[1, 0] * plain[2, 1] - plain[2, 0] * plain[1, 1])
    prior = np.zeros((2, 2 * n))
    prior[0, x], prior[0, n + y] = 1.0, -parity  # equal scales
    prior[1, y], prior[1, n + x] = 1.0, parity  # right angle
    unit_deg = float(np.hypot(plain[1, 0], plain[1, 1]))
    prior *= _CENTROID_ERROR_PX * scale_deg / (_ANISOTROPY * unit_deg)
    design = np.concatenate([np.hstack([terms, zero]), np.hstack([zero, terms]), prior])
    solution = np.linalg.lstsq(design, np.concatenate([xi, eta, np.zeros(2)]), rcond=None)[0]
    east, north = np.zeros((order + 1, order + 1)), np.zeros((order + 1, order + 1))
    for k, (i, j) in enumerate(powers):
        east[i, j], north[i, j] = solution[k], solution[n + k]
    return east, north


def odds_of_pairs(
    star_xy: np.ndarray, catalogue_xy: np.ndarray, n_pairs: int, tolerance_px: float, tried: float
) -> tuple[int, float]:
    """Weigh pairs of detected and catalogue stars in one frame against chance.

    Parameters
    ----------
    star_xy, catalogue_xy : numpy.ndarray
        float64 (n, 2) pixel positions of detected stars and of the catalogue stars that should be there.
    n_pairs : int
        Pairs within `tolerance_px`.
    tolerance_px : float
        Largest distance of a pair.
    tried : float
        Independent positions that were tried.

    Returns
    -------
    n_looked_at : int
        Stars of the shorter list.
    log10_odds : float
        See `log10_odds_against_chance`; three pairs are spent on finding the position.
    """
    if min(len(star_xy), len(catalogue_xy)) < 2:
        return min(len(star_xy), len(catalogue_xy)), -math.inf
    few, many = sorted((star_xy, catalogue_xy), key=len)
    _, p = chance_of_one_accident(many, few, cKDTree(many), _IDENTITY, tolerance_px)
    n = len(few)
    return n, log10_odds_against_chance(n - SEED_STARS, n_pairs - SEED_STARS, p, tried * REFIT_LOOKS)


@dataclass(frozen=True, slots=True)
class WcsCheck:
    """What the catalogue says about a WCS.

    Attributes
    ----------
    confirmed : bool
        The stars lie where the WCS says (after removing the common shift) beyond reasonable doubt.
    n_stars : int
        Stars that were detected.
    n_expected : int
        Catalogue stars that the WCS puts into the frame (at most the 300 brightest).
    n_matched : int
        Those of them that were found.
    log10_odds : float
        Against chance.
    rms_px : float
        Root mean square distance of the pairs after removing the shift; NaN without pairs.
    shift_x_px, shift_y_px : float
        Median of (detected minus predicted); NaN without pairs. Meaningful only when ``confirmed``.
    shift_error_px : float
        Standard error of the shift per axis; NaN without pairs.
    """

    confirmed: bool
    n_stars: int
    n_expected: int
    n_matched: int
    log10_odds: float
    rms_px: float
    shift_x_px: float
    shift_y_px: float
    shift_error_px: float

    @property
    def offset_px(self) -> float:
        """Size of the common shift; NaN unless the place is confirmed."""
        return math.hypot(self.shift_x_px, self.shift_y_px) if self.confirmed else math.nan

    @property
    def is_shifted(self) -> bool:
        """Whether a confirmed WCS is off by more than five standard errors and more than 0.2 px."""
        return self.confirmed and self.offset_px > max(0.2, 5.0 * self.shift_error_px)

    @property
    def contradicts(self) -> bool:
        """Whether enough stars should be there and are not: the WCS belongs to another place."""
        enough = min(self.n_expected, self.n_stars)
        return not self.confirmed and enough >= _ENOUGH_TO_CONTRADICT and self.n_matched < 0.3 * enough


def verify_wcs(
    wcs: WCS,
    stars: DetectedStars,
    catalogue: StarSource,
    *,
    shape_hw: tuple[int, int] | None = None,
    tolerance_px: float = 2.0,
    search_px: float = 12.0,
) -> WcsCheck:
    """Check a WCS against the catalogue and measure a common shift.

    A solver may be right about the place and wrong by a constant shift of a pixel; therefore the shift within
    `search_px` on which most stars agree is found first, and reported.

    Parameters
    ----------
    wcs : astropy.wcs.WCS
        Celestial, of the image in which the stars were measured.
    stars : DetectedStars
        Detected stars.
    catalogue : StarSource
        Catalogue.
    shape_hw : tuple of int, optional
        Size of the image; ``wcs.array_shape`` by default.
    tolerance_px : float
        Largest distance of a pair.
    search_px : float
        Largest shift looked for.

    Returns
    -------
    WcsCheck
        ``confirmed`` is False also when there are too few stars to say; see `WcsCheck.contradicts`.
    """
    shape = shape_hw or wcs.array_shape
    if shape is None:
        raise ValueError("shape_hw is needed: the WCS does not know the size of its image")
    star_xy = np.column_stack([stars.x, stars.y]).astype(np.float64)
    predicted = _predict(wcs, catalogue, shape)
    nan = math.nan
    nothing = WcsCheck(False, len(star_xy), len(predicted), 0, -math.inf, nan, nan, nan, nan)
    if len(star_xy) == 0 or len(predicted) == 0:
        return nothing
    shift = _common_shift(star_xy, predicted, search_px, tolerance_px)
    tree = cKDTree(star_xy)
    for _ in range(3):
        star, expected = mutual_matches(tree, predicted + shift, tolerance_px)
        if len(star) == 0:
            return nothing
        shift = np.median(star_xy[star] - predicted[expected], axis=0)
    looks = (2.0 * search_px / tolerance_px) ** 2
    _, odds = odds_of_pairs(star_xy, predicted + shift, len(star), tolerance_px, looks)
    rest = star_xy[star] - predicted[expected] - shift
    rms = float(np.sqrt((rest**2).sum(axis=1).mean()))
    # The median of n values scatters sqrt(pi/2) times as much as their mean; sigma per axis is rms / sqrt 2.
    error = rms / math.sqrt(2.0) * math.sqrt(math.pi / 2.0 / len(star))
    return WcsCheck(
        confirmed=odds >= _CONFIRMED_LOG10_ODDS,
        n_stars=len(star_xy),
        n_expected=len(predicted),
        n_matched=len(star),
        log10_odds=odds,
        rms_px=rms,
        shift_x_px=float(shift[0]),
        shift_y_px=float(shift[1]),
        shift_error_px=error,
    )


def _predict(wcs: WCS, catalogue: StarSource, shape_hw: tuple[int, int]) -> np.ndarray:
    """Pixel positions (n, 2) at which the WCS puts catalogue stars into the frame."""
    height, width = shape_hw
    celestial = wcs.celestial
    if celestial.wcs.lngtyp != "RA":
        # Galactic or ecliptic axes: such a picture did not come from a telescope's camera; not judged.
        return np.empty((0, 2))
    corner_x = np.array([(width - 1) / 2.0, 0.0, width - 1.0, 0.0, width - 1.0])
    corner_y = np.array([(height - 1) / 2.0, 0.0, 0.0, height - 1.0, height - 1.0])
    ra, dec = celestial.all_pix2world(corner_x, corner_y, 0)
    if not (np.isfinite(ra).all() and np.isfinite(dec).all()):
        return np.empty((0, 2))
    v = unit_vectors(ra, dec)
    radius = float(np.rad2deg(np.arccos(np.clip(v[1:] @ v[0], -1.0, 1.0)).max()))
    if radius > 45.0:
        return np.empty((0, 2))
    near = catalogue.near(float(ra[0]), float(dec[0]), radius * 1.02)
    if len(near) == 0:
        return np.empty((0, 2))
    xy = np.column_stack(celestial.all_world2pix(near.ra_deg, near.dec_deg, 0, quiet=True))
    inside = ((xy >= -0.5) & (xy < np.array([width, height]) - 0.5)).all(axis=1)
    return xy[inside][:_MOST_EXPECTED]


def _common_shift(star_xy, predicted, search_px, tolerance_px) -> np.ndarray:
    """Find the shift within `search_px` that brings most predicted stars on detected ones."""
    pairs = cKDTree(star_xy).query_ball_point(predicted, search_px)
    shifts = np.concatenate([star_xy[hits] - predicted[i] for i, hits in enumerate(pairs)])
    if len(shifts) == 0:
        return np.zeros(2)
    votes = cKDTree(shifts).query_ball_point(shifts, 0.75 * tolerance_px, return_length=True)
    # Of equally supported shifts the smallest is the least surprising.
    return shifts[np.lexsort((np.hypot(*shifts.T), -votes))[0]]
