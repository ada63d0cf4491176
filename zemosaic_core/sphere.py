"""Geometry on the celestial sphere: directions, separations, tangent-plane WCS. Arrays only; no files.

Everything goes through unit vectors, so nothing special happens across RA 0 h or at the poles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from astropy.wcs import WCS

from .errors import RunFailed, SettingsError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = [
    "ImageGeometry",
    "angle_difference_deg",
    "chord_from_deg",
    "footprint",
    "gnomonic",
    "image_geometry",
    "lattice_point",
    "mean_direction",
    "position_angle_deg",
    "ra_dec",
    "separation_deg",
    "tan_wcs",
    "unit_vectors",
]


@dataclass(frozen=True)
class ImageGeometry:
    """Where an image points and how it lies on the sky.

    Attributes
    ----------
    ra_deg, dec_deg : float
        Direction of the image centre.
    scale_deg : float
        True angular size of one pixel at the centre (geometric mean of both axes).
    rotation_deg : float
        Position angle of the image's +y axis at the centre, east of north, in [0, 360).
    parity : int
        +1 when east is 90 degrees counter-clockwise of north as pixels are counted (+y up), as on the sky;
        -1 for a mirror image.
    size_deg : tuple of float
        True angular (width, height).
    """

    ra_deg: float
    dec_deg: float
    scale_deg: float
    rotation_deg: float
    parity: int
    size_deg: tuple[float, float]


def unit_vectors(ra_deg: ArrayLike, dec_deg: ArrayLike) -> np.ndarray:
    """Convert directions to unit vectors.

    Parameters
    ----------
    ra_deg, dec_deg : array_like, degrees, broadcastable shapes S

    Returns
    -------
    ndarray, shape S + (3,), float64
        NaN where a coordinate is NaN.
    """
    ra = np.deg2rad(np.asarray(ra_deg, dtype=np.float64))
    dec = np.deg2rad(np.asarray(dec_deg, dtype=np.float64))
    cos_dec = np.cos(dec)
    return np.stack(np.broadcast_arrays(cos_dec * np.cos(ra), cos_dec * np.sin(ra), np.sin(dec)), axis=-1)


def ra_dec(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Convert vectors of any length, shape (..., 3), to ``(ra_deg in [0, 360), dec_deg)``."""
    v = np.asarray(vectors, dtype=np.float64)
    ra = np.rad2deg(np.arctan2(v[..., 1], v[..., 0])) % 360.0
    # -1e-17 % 360 rounds to 360.0 itself, which is outside the promised interval.
    ra = np.where(ra >= 360.0, 0.0, ra)
    dec = np.rad2deg(np.arctan2(v[..., 2], np.hypot(v[..., 0], v[..., 1])))
    return ra, dec


def separation_deg(
    ra1_deg: ArrayLike, dec1_deg: ArrayLike, ra2_deg: ArrayLike, dec2_deg: ArrayLike
) -> np.ndarray:
    """Great-circle distance in degrees, accurate for tiny and for antipodal separations.

    ``atan2(|a x b|, a . b)`` keeps full precision where the arc cosine loses it.
    """
    a = unit_vectors(ra1_deg, dec1_deg)
    b = unit_vectors(ra2_deg, dec2_deg)
    (ax, ay, az), (bx, by, bz) = np.moveaxis(a, -1, 0), np.moveaxis(b, -1, 0)
    cross = np.sqrt((ay * bz - az * by) ** 2 + (az * bx - ax * bz) ** 2 + (ax * by - ay * bx) ** 2)
    return np.rad2deg(np.arctan2(cross, ax * bx + ay * by + az * bz))


def chord_from_deg(angle_deg: ArrayLike) -> np.ndarray:
    """Length of the straight chord between two unit vectors an angle apart: ``2 sin(angle / 2)``."""
    return 2.0 * np.sin(np.deg2rad(np.minimum(np.asarray(angle_deg, dtype=np.float64), 180.0)) / 2.0)


def position_angle_deg(
    ra1_deg: ArrayLike, dec1_deg: ArrayLike, ra2_deg: ArrayLike, dec2_deg: ArrayLike
) -> np.ndarray:
    """Direction from point 1 to point 2, degrees east of north in [0, 360)."""
    ra1, dec1, ra2, dec2 = (
        np.deg2rad(np.asarray(v, dtype=np.float64)) for v in (ra1_deg, dec1_deg, ra2_deg, dec2_deg)
    )
    d = ra2 - ra1
    east = np.cos(dec2) * np.sin(d)
    north = np.cos(dec1) * np.sin(dec2) - np.sin(dec1) * np.cos(dec2) * np.cos(d)
    angle = np.rad2deg(np.arctan2(east, north)) % 360.0
    return np.where(angle >= 360.0, 0.0, angle)


def angle_difference_deg(a_deg: ArrayLike, b_deg: ArrayLike, period_deg: float = 360.0) -> np.ndarray:
    """Signed difference ``a - b`` folded into [-period/2, period/2)."""
    half = period_deg / 2.0
    return (
        np.asarray(a_deg, dtype=np.float64) - np.asarray(b_deg, dtype=np.float64) + half
    ) % period_deg - half


def mean_direction(
    ra_deg: ArrayLike, dec_deg: ArrayLike, weights: ArrayLike | None = None
) -> tuple[float, float]:
    """Direction of the (weighted) sum of unit vectors; NaN positions are left out.

    Returns
    -------
    (float, float)
        RA in [0, 360) and Dec, degrees.

    Raises
    ------
    RunFailed
        No finite position, or positions that cancel out (antipodal), which have no mean.
    """
    v = unit_vectors(ra_deg, dec_deg).reshape(-1, 3)
    w = np.ones(len(v)) if weights is None else np.asarray(weights, dtype=np.float64).ravel()
    good = np.isfinite(v).all(axis=1) & np.isfinite(w)
    total = (v[good] * w[good, None]).sum(axis=0)
    if not good.any() or np.linalg.norm(total) < 1e-9 * max(float(np.abs(w[good]).sum()), 1e-300):
        raise RunFailed(
            "geometry_no_mean_direction",
            f"no mean direction: {int(good.sum())} finite positions out of {len(v)}; check the frames' WCS",
            n_finite=int(good.sum()),
            n=len(v),
        )
    ra, dec = ra_dec(total)
    return float(ra), float(dec)


def lattice_point(ra_deg: float, dec_deg: float, step_deg: float) -> tuple[float, float]:
    """Return the point of a lattice fixed in the sky that is nearest in declination, then in right ascension.

    Rings of points lie ``step_deg`` apart, from pole to pole, and so do, nearly, the points of a ring.

    Parameters
    ----------
    ra_deg, dec_deg : float
    step_deg : float
        Spacing; rounded so that a whole number of rings fits.
    """
    n_rings = max(1, round(180.0 / step_deg))
    dec = round((dec_deg + 90.0) * n_rings / 180.0) * 180.0 / n_rings - 90.0
    n = max(1, round(360.0 * math.cos(math.radians(dec)) / step_deg))
    return round(ra_deg * n / 360.0) % n * 360.0 / n, dec


def gnomonic(
    ra_deg: ArrayLike, dec_deg: ArrayLike, ra0_deg: float, dec0_deg: float
) -> tuple[np.ndarray, np.ndarray]:
    """Project on the plane tangent at ``(ra0, dec0)``.

    Returns
    -------
    (east_deg, north_deg) : ndarrays, float64
        ``xi`` towards east and ``eta`` towards north in degrees (radians of the plane times 180/pi); NaN for
        directions 90 degrees or more from the tangent point.
    """
    ra, dec = np.asarray(ra_deg, dtype=np.float64), np.asarray(dec_deg, dtype=np.float64)
    d = np.deg2rad(ra - ra0_deg)
    sin0, cos0 = np.sin(np.deg2rad(dec0_deg)), np.cos(np.deg2rad(dec0_deg))
    sin1, cos1 = np.sin(np.deg2rad(dec)), np.cos(np.deg2rad(dec))
    cos_c = sin0 * sin1 + cos0 * cos1 * np.cos(d)
    cos_c = np.where(cos_c > 1e-9, cos_c, np.nan)
    xi = cos1 * np.sin(d) / cos_c
    eta = (cos0 * sin1 - sin0 * cos1 * np.cos(d)) / cos_c
    return np.rad2deg(xi), np.rad2deg(eta)


def tan_wcs(
    center: tuple[float, float],
    scale_deg: float,
    shape_hw: tuple[int, int],
    rotation_deg: float = 0.0,
    parity: int = 1,
) -> WCS:
    """Make a gnomonic (TAN) celestial WCS with its tangent point at the centre of the image.

    Parameters
    ----------
    center : tuple of float
        RA and Dec of the tangent point, degrees.
    scale_deg : float
        Pixel size at the tangent point, degrees, > 0.
    shape_hw : tuple of int
        Height and width; the tangent point is at pixel ``((W - 1) / 2, (H - 1) / 2)``, origin 0.
    rotation_deg : float
        Position angle of the +y axis, east of north. 0: north along +y.
    parity : {1, -1}
        +1: as on the sky (north up, east left, i.e. RA grows towards -x); -1: mirror image.

    Returns
    -------
    astropy.wcs.WCS
        ICRS; PC matrix and CDELT set; ``array_shape`` set.

    Notes
    -----
    With pixel offsets (dx, dy) from the tangent point, rotation r and scale s::

        xi  = s * (-parity * cos r * dx + sin r * dy)
        eta = s * ( parity * sin r * dx + cos r * dy)

    so that +y points to position angle r and +x to r - 90 degrees (parity 1).
    """
    if not scale_deg > 0 or parity not in (1, -1) or min(shape_hw) < 1:
        raise SettingsError(
            "geometry_bad_grid",
            f"cannot make a WCS with scale {scale_deg} deg/px, shape {tuple(shape_hw)}, parity {parity}",
            scale_deg=float(scale_deg),
            shape=list(shape_hw),
            parity=int(parity),
        )
    r = np.deg2rad(rotation_deg)
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.cunit = ["deg", "deg"]
    wcs.wcs.radesys = "ICRS"
    # The default would turn the plane by 180 degrees where the tangent point is the pole itself.
    wcs.wcs.lonpole = 180.0
    wcs.wcs.crval = [float(center[0]) % 360.0, float(center[1])]
    wcs.wcs.crpix = [(shape_hw[1] + 1) / 2.0, (shape_hw[0] + 1) / 2.0]
    # CDELT carries the usual signs of the sky (east left), so an unrotated PC is the identity.
    wcs.wcs.cdelt = [-float(scale_deg), float(scale_deg)]
    wcs.wcs.pc = [
        [parity * np.cos(r), -np.sin(r)],
        [parity * np.sin(r), np.cos(r)],
    ]
    wcs.wcs.set()
    wcs.array_shape = (int(shape_hw[0]), int(shape_hw[1]))
    return wcs


def image_geometry(wcs: WCS, shape_hw: tuple[int, int]) -> ImageGeometry:
    """Measure centre, true scale, orientation and size of an image through its full WCS (SIP included)."""
    h, w = int(shape_hw[0]), int(shape_hw[1])
    xc, yc = (w - 1) / 2.0, (h - 1) / 2.0
    # Centre, a step of a tenth of the image along each axis, and the midpoints of the four borders.
    ax, ay = max(w / 10.0, 0.5), max(h / 10.0, 0.5)
    x = np.array([xc, xc - ax, xc + ax, xc, xc, -0.5, w - 0.5, xc, xc])
    y = np.array([yc, yc, yc, yc - ay, yc + ay, yc, yc, -0.5, h - 0.5])
    ra, dec = _all_pix2world(wcs, x, y)
    sx = float(separation_deg(ra[1], dec[1], ra[2], dec[2])) / (2 * ax)
    sy = float(separation_deg(ra[3], dec[3], ra[4], dec[4])) / (2 * ay)
    xi, eta = gnomonic(ra, dec, float(ra[0]), float(dec[0]))
    jac = np.array([[xi[2] - xi[1], xi[4] - xi[3]], [eta[2] - eta[1], eta[4] - eta[3]]])
    return ImageGeometry(
        ra_deg=float(ra[0]) % 360.0,
        dec_deg=float(dec[0]),
        scale_deg=float(np.sqrt(sx * sy)),
        rotation_deg=float(np.rad2deg(np.arctan2(jac[0, 1], jac[1, 1])) % 360.0),
        parity=1 if np.linalg.det(jac) < 0 else -1,
        size_deg=(
            float(separation_deg(ra[5], dec[5], ra[6], dec[6])),
            float(separation_deg(ra[7], dec[7], ra[8], dec[8])),
        ),
    )


def footprint(wcs: WCS, shape_hw: tuple[int, int], per_edge: int = 2) -> np.ndarray:
    """Outline of an image on the sky.

    Parameters
    ----------
    per_edge : int
        Points per edge: 2 gives corners and edge midpoints (8 points), 1 the corners only.

    Returns
    -------
    ndarray, shape (4 * per_edge, 2), float64
        (ra_deg, dec_deg) along the outer pixel edges, in order around the image.
    """
    h, w = int(shape_hw[0]), int(shape_hw[1])
    t = np.arange(per_edge) / per_edge
    x = np.concatenate([t, np.ones(per_edge), 1 - t, np.zeros(per_edge)]) * w - 0.5
    y = np.concatenate([np.zeros(per_edge), t, np.ones(per_edge), 1 - t]) * h - 0.5
    ra, dec = _all_pix2world(wcs, x, y)
    return np.column_stack([ra % 360.0, dec])


def _all_pix2world(wcs: WCS, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ra, dec = wcs.all_pix2world(x, y, 0)
    return np.asarray(ra, dtype=np.float64), np.asarray(dec, dtype=np.float64)
