"""What there is to see in a picture of the sky: named objects, lines of equal coordinates, scale and directions.

Everything is said in pixels of the picture, origin 0 in the centre of the first pixel, y growing with the rows as in
FITS; whoever draws decides about colours and letters. Arrays in, small frozen records out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from astropy.wcs import WCS

from zemosaic_core.annotation_lines import GridLine, grid_lines
from zemosaic_core.proper_motion import moved
from zemosaic_core.sphere import footprint, image_geometry, ra_dec, separation_deg, unit_vectors

__all__ = ["Annotation", "Compass", "GridLine", "Mark", "ScaleBar", "SkyObject", "annotate", "marks_in_field"]

# Two points of the sky this far apart tell the size of a pixel and the direction of north on the spot.
_STEP_DEG = 1e-3
# A place that comes back from the picture farther off than this was never in it: polynomials of distortion diverge.
_SAME_PLACE_PX = 1.0
_BAR_SHARE = 0.22
_BAR_ARCSEC = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 900, 1200, 1800, 3600, 7200, 18000, 36000, 72000)
_BRIGHT_STAR_MAG = 3.5
_COMMON_KINDS = frozenset({"galaxy", "galaxies"})


@dataclass(frozen=True, slots=True)
class SkyObject:
    """A named object or star.

    Attributes
    ----------
    kind : str
        ``galaxy``, ``nebula``, ``open_cluster``, ``star`` ...
    name : str
        The usual designation: ``M 94``, ``α And``.
    other_names : str
        Further designations, with commas between them.
    title : str
        What people call it; empty where it has no such name.
    ra_deg, dec_deg : float
        ICRS at J2000.0.
    major_arcmin, minor_arcmin : float
        Diameters; NaN: not known, or a star.
    angle_deg : float
        Position angle of the major axis, east of north; NaN: round or not known.
    mag : float
        V, or B where V is not known; NaN: neither is.
    pm_ra_mas, pm_dec_mas : float
        Proper motion in RA (with the cosine of declination) and Dec, mas/yr; 0 for all but stars.
    """

    kind: str
    name: str
    other_names: str
    title: str
    ra_deg: float
    dec_deg: float
    major_arcmin: float
    minor_arcmin: float
    angle_deg: float
    mag: float
    pm_ra_mas: float = 0.0
    pm_dec_mas: float = 0.0


@dataclass(frozen=True, slots=True)
class Mark:
    """An object where it lies in the picture.

    Attributes
    ----------
    sky_object : SkyObject
    x_px, y_px : float
    semi_major_px, semi_minor_px : float
        Half axes; NaN: size not known, or a star. Equal where the direction is not known.
    angle_deg : float
        Direction of the major axis from +x towards +y, [0, 180); 0 where it is round or not known.
    """

    sky_object: SkyObject
    x_px: float
    y_px: float
    semi_major_px: float
    semi_minor_px: float
    angle_deg: float

    @property
    def label(self) -> str:
        """What is written beside it."""
        thing = self.sky_object
        return f"{thing.name} {thing.title}" if thing.title else thing.name

    @property
    def is_well_known(self) -> bool:
        """Whether people look for it: a name of its own, a number of Messier or Caldwell, or a bright star."""
        thing = self.sky_object
        if thing.kind == "star":
            return thing.mag < _BRIGHT_STAR_MAG
        return bool(thing.title) or thing.name.startswith(("M ", "C "))


@dataclass(frozen=True, slots=True)
class ScaleBar:
    """A round angle and how many pixels it takes in the middle of the picture."""

    angle_arcsec: float
    length_px: float

    @property
    def label(self) -> str:
        """The angle in the largest unit that makes it a whole number."""
        for unit, size in (("°", 3600.0), ("'", 60.0)):
            if self.angle_arcsec >= size and self.angle_arcsec % size == 0:
                return f"{self.angle_arcsec / size:.0f}{unit}"
        return f'{self.angle_arcsec:.0f}"'


@dataclass(frozen=True, slots=True)
class Compass:
    """Directions in the middle of the picture as unit vectors (x, y), y growing with the rows."""

    north_xy: tuple[float, float]
    east_xy: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Annotation:
    """All there is to draw over a picture.

    Attributes
    ----------
    shape_hw : tuple of int
        The picture.
    marks : tuple of Mark
        What deserves a label most comes first.
    lines : tuple of GridLine
    scale_bar : ScaleBar
    compass : Compass
    """

    shape_hw: tuple[int, int]
    marks: tuple[Mark, ...]
    lines: tuple[GridLine, ...]
    scale_bar: ScaleBar
    compass: Compass


def annotate(
    wcs: WCS,
    shape_hw: tuple[int, int],
    objects: Sequence[SkyObject],
    *,
    epoch: float = 2000.0,
    seen: np.ndarray | None = None,
) -> Annotation:
    """Say what there is to draw over a picture.

    Parameters
    ----------
    wcs : astropy.wcs.WCS
        Celestial, of the picture itself.
    shape_hw : tuple of int
    objects : sequence of SkyObject
        Those of the whole sky.
    epoch : float
        Julian year of the picture; stars are where they were then.
    seen : ndarray of bool, optional
        Which parts of the picture show something, (h, w) of any size stretched over the whole; None: all.
    """
    geometry = image_geometry(wcs, shape_hw)
    arcsec_per_px = 3600.0 * geometry.scale_deg
    wanted = _BAR_SHARE * min(shape_hw) * arcsec_per_px
    angle = max((a for a in _BAR_ARCSEC if a <= wanted), default=_BAR_ARCSEC[0])
    north, east = _directions(wcs, np.array([geometry.ra_deg]), np.array([geometry.dec_deg]))
    return Annotation(
        (int(shape_hw[0]), int(shape_hw[1])),
        marks_in_field(wcs, shape_hw, objects, epoch=epoch, seen=seen),
        grid_lines(wcs, shape_hw),
        ScaleBar(float(angle), angle / arcsec_per_px),
        Compass(_unit(north[0]), _unit(east[0])),
    )


def marks_in_field(
    wcs: WCS,
    shape_hw: tuple[int, int],
    objects: Sequence[SkyObject],
    *,
    epoch: float = 2000.0,
    seen: np.ndarray | None = None,
) -> tuple[Mark, ...]:
    """Return the objects whose middle is in the picture, those first that deserve a label most; see `annotate`."""
    if not objects:
        return ()
    near = _near_field(wcs, shape_hw, objects)
    places = np.array([(o.ra_deg, o.dec_deg, o.pm_ra_mas, o.pm_dec_mas) for o in near]).reshape(-1, 4)
    ra, dec, pm_ra, pm_dec = places.T
    ra, dec = moved(ra, dec, pm_ra, pm_dec, epoch - 2000.0)
    xy = _pixels(wcs, ra, dec)
    inside = np.flatnonzero(_is_inside(wcs, shape_hw, xy, ra, dec, seen))
    ra, dec, xy, near = ra[inside], dec[inside], xy[inside], [near[i] for i in inside]
    angles = np.array([o.angle_deg for o in near])
    known = np.isfinite(angles)
    along, across = _directions(wcs, ra, dec, np.where(known, angles, 0.0))
    semi = np.array([(o.major_arcmin, o.minor_arcmin) for o in near]).reshape(-1, 2) / 120.0
    major, minor = semi[:, 0] * np.hypot(*along.T), semi[:, 1] * np.hypot(*across.T)
    # An ellipse turned at random would say what nobody knows.
    minor = np.where(known, minor, major)
    turned = np.where(known, np.rad2deg(np.arctan2(along[:, 1], along[:, 0])) % 180.0, 0.0)
    marks = [
        Mark(thing, float(x), float(y), float(a), float(b), float(angle))
        for thing, (x, y), a, b, angle in zip(near, xy, major, minor, turned, strict=True)
    ]
    return tuple(sorted(marks, key=_worth))


def _worth(mark: Mark) -> tuple[float, float, float, str]:
    """Key of the order of labels: known names, then what is large or bright, then the many small galaxies."""
    thing = mark.sky_object
    size = thing.major_arcmin if np.isfinite(thing.major_arcmin) else 0.0
    mag = thing.mag if np.isfinite(thing.mag) else 99.0
    known = mark.is_well_known
    if thing.kind == "star":
        return (0.5 if known else 2.0), mag, 0.0, thing.name
    return (0.0 if known else 3.0 if thing.kind in _COMMON_KINDS else 1.0), -size, mag, thing.name


def _near_field(wcs: WCS, shape_hw: tuple[int, int], objects: Sequence[SkyObject]) -> list[SkyObject]:
    """Objects in the circle round the picture: what lies behind the sky's horizon has no place in a plane."""
    geometry = image_geometry(wcs, shape_hw)
    rim = footprint(wcs, shape_hw, per_edge=8)
    radius = float(separation_deg(rim[:, 0], rim[:, 1], geometry.ra_deg, geometry.dec_deg).max())
    place = unit_vectors([o.ra_deg for o in objects], [o.dec_deg for o in objects])
    cosine = place @ unit_vectors(geometry.ra_deg, geometry.dec_deg)
    limit = float(np.cos(np.deg2rad(1.02 * radius + 0.1)))
    return [thing for thing, near in zip(objects, cosine >= limit, strict=True) if near]


def _is_inside(
    wcs: WCS,
    shape_hw: tuple[int, int],
    xy: np.ndarray,
    ra_deg: np.ndarray,
    dec_deg: np.ndarray,
    seen: np.ndarray | None,
) -> np.ndarray:
    h, w = shape_hw
    x, y = xy.T
    with np.errstate(invalid="ignore"):
        inside: np.ndarray = (x >= -0.5) & (x < w - 0.5) & (y >= -0.5) & (y < h - 0.5)
    rows = np.flatnonzero(inside)
    if not len(rows):
        return inside
    back = np.asarray(wcs.all_pix2world(xy[rows], 0), dtype=np.float64)
    off = separation_deg(back[:, 0], back[:, 1], ra_deg[rows], dec_deg[rows])
    inside[rows[off > _SAME_PLACE_PX * image_geometry(wcs, shape_hw).scale_deg]] = False
    rows = np.flatnonzero(inside)
    if seen is not None and len(rows):
        row = ((y[rows] + 0.5) * (seen.shape[0] / h)).astype(np.int64)
        column = ((x[rows] + 0.5) * (seen.shape[1] / w)).astype(np.int64)
        inside[rows] = seen[row, column]
    return inside


def _pixels(wcs: WCS, ra_deg: np.ndarray, dec_deg: np.ndarray) -> np.ndarray:
    if not len(ra_deg):
        return np.empty((0, 2))
    return np.column_stack(wcs.all_world2pix(ra_deg, dec_deg, 0, quiet=True))


def _directions(
    wcs: WCS, ra_deg: np.ndarray, dec_deg: np.ndarray, angle_deg: np.ndarray | float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels per degree (n, 2) at each place along a position angle, and at right angles to it (towards east)."""
    here = unit_vectors(ra_deg, dec_deg)
    north, east = (
        unit_vectors(ra_deg, np.asarray(dec_deg) + 90.0),
        unit_vectors(np.asarray(ra_deg) + 90.0, 0.0),
    )
    cos, sin = (
        f(np.deg2rad(np.broadcast_to(angle_deg, np.shape(ra_deg))))[:, None] for f in (np.cos, np.sin)
    )
    step = np.deg2rad(_STEP_DEG)
    origin = _pixels(wcs, ra_deg, dec_deg)
    along, across = (
        (_pixels(wcs, *ra_dec(here + step * way)) - origin) / _STEP_DEG
        for way in (cos * north + sin * east, cos * east - sin * north)
    )
    return along, across


def _unit(vector: np.ndarray) -> tuple[float, float]:
    x, y = vector / np.hypot(*vector)
    return float(x), float(y)
