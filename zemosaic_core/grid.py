"""The output grid of a mosaic: a TAN canvas that just holds all footprints, and pointings that blow it up.

Arrays and WCS objects only. Sizes are true angular sizes, so the canvas is neither stretched by 1/cos(dec)
nor broken across RA 0 h or at a pole.

The canvas is a window of an endless grid that does not move when frames are added: the tangent point is a point of a
lattice fixed in the sky near the first frame, scale and rotation are round numbers, and the tangent point is the
middle of a pixel. More frames make the window larger, by whole pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

import numpy as np
from astropy.wcs import WCS
from scipy.spatial import ConvexHull, QhullError

from .clustering import link_positions
from .errors import RunFailed, SettingsError
from .sphere import (
    footprint,
    gnomonic,
    image_geometry,
    lattice_point,
    mean_direction,
    position_angle_deg,
    separation_deg,
    tan_wcs,
)

__all__ = [
    "BYTES_PER_PIXEL",
    "CanvasOutlier",
    "GridSpec",
    "canvas_outliers",
    "edge_step",
    "far_frames",
    "finer_grid",
    "footprint_boxes",
    "make_grid",
    "make_grid_from_footprints",
]

Orientation = Literal["north_up", "median_pc", "min_area"]
PixelScaleMode = Literal["min", "max", "median", "mean"]

# Image, weight and variance in three float32 channels plus a uint16 coverage: disk cost of a canvas pixel.
BYTES_PER_PIXEL = 3 * 3 * 4 + 2
# A gnomonic plane doubles its scale 60 degrees off and never ends at 90: a wider TAN mosaic is nonsense.
_MAX_RADIUS_DEG = 60.0
# Spacing of the fixed points on which grids are tangent to the sky, degrees. Over a mosaic of 2 degrees that begins one
# degree from such a point, pixels differ by 0.2 % of their area.
_LATTICE_DEG = 1.0
# Farther from the middle of a mosaic the first frame does not say where its plane touches the sky.
_MAX_OFFSET_DEG = 3.0
# Steps of the pixel size, as a share of it, and of the rotation, degrees.
_SCALE_STEP = 0.005
_MOST_EDGE_STEP = 8
_ROTATION_STEP_DEG = {"north_up": 10.0, "median_pc": 1.0, "min_area": 0.25}


@dataclass(frozen=True)
class GridSpec:
    """The canvas of a mosaic.

    Attributes
    ----------
    wcs : astropy.wcs.WCS
        TAN, ICRS; the tangent point may lie outside the canvas. CRPIX is a whole number.
    shape_hw : tuple of int
    scale_arcsec : float
        Pixel size at the tangent point.
    rotation_deg : float
        Position angle of +y at the tangent point, east of north.
    center_deg : tuple of float
        RA and Dec of the middle of the canvas.
    boxes : ndarray, shape (N, 4), int64
        ``(y0, y1, x0, x1)`` of each input on the canvas, end exclusive.
    """

    wcs: WCS
    shape_hw: tuple[int, int]
    scale_arcsec: float
    rotation_deg: float
    center_deg: tuple[float, float]
    boxes: np.ndarray


@dataclass(frozen=True)
class CanvasOutlier:
    """A far group of pointings and what keeping it on the canvas costs.

    Attributes
    ----------
    frames : ndarray of int64
        Indices of its pointings, ascending.
    extra_pixels : int
        Canvas pixels needed beyond the canvas of the main body.
    extra_bytes : int
        The same in bytes.
    growth : float
        ``extra_pixels`` relative to the canvas of the main body.
    separation_deg : float
        Distance of its centre from the centre of the main body.
    ra_deg, dec_deg : float
        Its centre.
    """

    frames: np.ndarray
    extra_pixels: int
    extra_bytes: int
    growth: float
    separation_deg: float
    ra_deg: float
    dec_deg: float


def finer_grid(spec: GridSpec, factor: float) -> GridSpec:
    """Return the same canvas with `factor` pixels for each of its pixels along an axis; its first edge stays.

    Lay the canvas out with `edge_step` of the factor, so that the finer pixels are those of a larger canvas, too.
    Boxes are those of the inputs on the finer pixels.
    """
    wcs = spec.wcs.deepcopy()
    wcs.wcs.crpix = factor * (wcs.wcs.crpix - 0.5) + 0.5
    if wcs.wcs.has_cd():
        wcs.wcs.cd = wcs.wcs.cd / factor
    else:
        wcs.wcs.cdelt = wcs.wcs.cdelt / factor
    wcs.wcs.set()
    height, width = (int(np.ceil(factor * n - 1e-9)) for n in spec.shape_hw)
    boxes = np.stack(
        [np.floor(factor * spec.boxes[:, 0]), np.ceil(factor * spec.boxes[:, 1]),
         np.floor(factor * spec.boxes[:, 2]), np.ceil(factor * spec.boxes[:, 3])],
        axis=1,
    ).astype(np.int64)  # fmt: skip
    return replace(
        spec, wcs=wcs, shape_hw=(height, width), scale_arcsec=spec.scale_arcsec / factor, boxes=boxes
    )


def edge_step(factor: float) -> int:
    """Return the steps in which the lower edges of a grid may move if its finer pixels are to stay in their places.

    With 1.5 pixels for one an odd number of pixels would move the finer ones by half of theirs.
    """
    return Fraction(factor).limit_denominator(_MOST_EDGE_STEP).denominator


def make_grid(
    wcs_list: Sequence[WCS],
    shapes_hw: Sequence[tuple[int, int]],
    *,
    pixelscale_mode: PixelScaleMode = "median",
    orientation: Orientation = "north_up",
    scale_factor: float = 1.0,
    padding_px: int = 2,
    edge_step_px: int = 1,
) -> GridSpec:
    """Lay out the canvas for frames with a celestial WCS.

    Parameters
    ----------
    wcs_list, shapes_hw : sequences of equal length
        In the order in which the frames were taken: later ones do not move the grid.
    pixelscale_mode : {'median', 'min', 'max', 'mean'}
        Which of the frames' true pixel sizes the canvas gets, rounded to three digits or so (half a percent).
    orientation : {'north_up', 'median_pc', 'min_area'}
        North along +y, which near the poles is that of the first frame to within 5 degrees; the frames' median
        orientation (modulo 180 degrees), in whole degrees; the smallest canvas, in quarters of a degree.
    scale_factor : float
        Output pixels per input pixel along an axis (> 1: finer).
    padding_px : int
        Empty border.
    edge_step_px : int
        The lower edges lie at multiples of this many pixels from the tangent point (`edge_step`).

    Returns
    -------
    GridSpec

    Raises
    ------
    RunFailed
        No frames, or frames spread over more sky than a tangent plane can hold.
    SettingsError
        Unknown mode or a scale that is not positive.
    """
    if len(wcs_list) != len(shapes_hw):
        raise ValueError(f"{len(wcs_list)} WCS but {len(shapes_hw)} shapes")
    geometry = [image_geometry(w, s) for w, s in zip(wcs_list, shapes_hw, strict=True)]
    return make_grid_from_footprints(
        [footprint(w, s) for w, s in zip(wcs_list, shapes_hw, strict=True)],
        np.array([g.scale_deg for g in geometry]),
        np.array([g.rotation_deg for g in geometry]),
        pixelscale_mode=pixelscale_mode,
        orientation=orientation,
        scale_factor=scale_factor,
        padding_px=padding_px,
        edge_step_px=edge_step_px,
    )


def make_grid_from_footprints(
    footprints: Sequence[np.ndarray],
    scales_deg: np.ndarray,
    rotations_deg: np.ndarray,
    *,
    pixelscale_mode: PixelScaleMode = "median",
    orientation: Orientation = "north_up",
    scale_factor: float = 1.0,
    padding_px: int = 2,
    edge_step_px: int = 1,
) -> GridSpec:
    """Lay out the canvas from outlines; see `make_grid`.

    Parameters
    ----------
    footprints : sequence of ndarray, shape (k, 2)
        (ra_deg, dec_deg) along each frame's outer pixel edges (`sphere.footprint`).
    scales_deg, rotations_deg : ndarray, shape (N,)
        True pixel size and position angle of +y of each frame, degrees.
    """
    if len(footprints) == 0:
        raise RunFailed("grid_no_frames", "no frame with a position on the sky: there is nothing to lay out")
    scale_deg = _canvas_scale(scales_deg, pixelscale_mode, scale_factor)
    points = np.concatenate([np.asarray(f, dtype=np.float64) for f in footprints])
    middle = _middle(points, _checked_centre(points))
    first = mean_direction(*np.asarray(footprints[0], dtype=np.float64).T)
    tangent = _tangent_point(first, points, middle)
    rotation = _canvas_rotation(orientation, points, rotations_deg, tangent, first, middle)
    pixel_wcs = tan_wcs(tangent, scale_deg, (1, 1), rotation)
    x, y = pixel_wcs.all_world2pix(points[:, 0], points[:, 1], 0)
    # Canvas pixel i covers i - 0.5 ... i + 0.5.
    x_low, y_low = (
        edge_step_px * np.floor((np.floor(v.min() + 0.5) - padding_px) / edge_step_px) for v in (x, y)
    )
    width = int(np.ceil(x.max() - 0.5) - x_low) + 1 + padding_px
    height = int(np.ceil(y.max() - 0.5) - y_low) + 1 + padding_px
    wcs = pixel_wcs.deepcopy()
    wcs.wcs.crpix = [1.0 - x_low, 1.0 - y_low]
    wcs.wcs.set()
    wcs.array_shape = (height, width)
    ra, dec = wcs.all_pix2world((width - 1) / 2, (height - 1) / 2, 0)
    center = float(ra) % 360.0, float(dec)
    grid = GridSpec(
        wcs, (height, width), scale_deg * 3600.0, rotation, center, np.empty((0, 4), dtype=np.int64)
    )
    return replace(grid, boxes=footprint_boxes(grid, footprints))


def footprint_boxes(grid: GridSpec, footprints: Sequence[np.ndarray], margin_px: int = 2) -> np.ndarray:
    """Bounding boxes of outlines on the canvas.

    Returns
    -------
    ndarray, shape (N, 4), int64
        ``(y0, y1, x0, x1)`` clipped to the canvas, end exclusive; empty (``y0 == y1``) when outside.
    """
    lengths = np.array([len(f) for f in footprints])
    points = np.concatenate([np.asarray(f, dtype=np.float64) for f in footprints])
    x, y = grid.wcs.all_world2pix(points[:, 0], points[:, 1], 0)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    h, w = grid.shape_hw
    low = [np.minimum.reduceat(v, starts) for v in (y, x)]
    high = [np.maximum.reduceat(v, starts) for v in (y, x)]
    columns = []
    for a, b, size in ((low[0], high[0], h), (low[1], high[1], w)):
        start = np.clip(np.floor(a + 0.5) - margin_px, 0, size)
        stop = np.clip(np.ceil(b - 0.5) + 1 + margin_px, 0, size)
        columns += [start, np.maximum(stop, start)]
    return np.column_stack(columns).astype(np.int64)


def canvas_outliers(
    ra_deg: np.ndarray,
    dec_deg: np.ndarray,
    *,
    field_deg: float,
    scale_deg: float,
    max_growth: float = 1.0,
    link_deg: float = 0.0,
    bytes_per_pixel: int = BYTES_PER_PIXEL,
) -> list[CanvasOutlier]:
    """Find pointings that make the canvas much larger than their own sky is worth.

    Pointings are linked into bodies; the main body is the one with most pointings. Each other body, cheapest
    first, is added to the canvas if that enlarges it by less than ``max_growth`` times the main body's canvas
    or if at least half of the new canvas is covered by its own frames; otherwise it is an outlier. Because
    every body is judged against the main one and not by leaving it out, two outliers cannot hide each other.

    Parameters
    ----------
    ra_deg, dec_deg : ndarray, shape (n,), degrees
        Centres of the frames.
    field_deg : float
        Diagonal of a frame on the sky.
    scale_deg : float
        Canvas pixel size.
    max_growth : float
        See above; 1 means "doubles the canvas".
    link_deg : float
        Pointings at most this far apart belong to one body; 0: 1.5 fields.
    bytes_per_pixel : int
        Disk cost of a canvas pixel.

    Returns
    -------
    list of CanvasOutlier
        Most expensive first; empty when the canvas is sane. Costs are estimated on an equidistant projection,
        which stays finite where the tangent plane does not.
    """
    ra, dec = np.asarray(ra_deg, dtype=np.float64), np.asarray(dec_deg, dtype=np.float64)
    if len(ra) < 2:
        return []
    labels = link_positions(ra, dec, link_deg if link_deg > 0 else 1.5 * field_deg)
    counts = np.bincount(labels)
    main = int(np.argmax(counts))
    center = mean_direction(ra[labels == main], dec[labels == main])
    distance = separation_deg(*center, ra, dec)
    angle = np.deg2rad(position_angle_deg(*center, ra, dec))
    plane = np.column_stack([distance * np.sin(angle), distance * np.cos(angle)])
    bodies = [np.flatnonzero(labels == k) for k in range(len(counts))]
    kept = _box(plane[bodies[main]], field_deg)
    main_area = _area(kept)
    others = [k for k in range(len(counts)) if k != main]
    others.sort(key=lambda k: (_area(_union(kept, _box(plane[bodies[k]], field_deg))), k))
    outliers = []
    for k in others:
        box = _box(plane[bodies[k]], field_deg)
        extra = _area(_union(kept, box)) - _area(kept)
        if extra <= max_growth * main_area or _area(box) >= 0.5 * extra:
            kept = _union(kept, box)
            continue
        pixels = int(np.ceil(extra / scale_deg**2))
        ra_k, dec_k = mean_direction(ra[bodies[k]], dec[bodies[k]])
        outliers.append(
            CanvasOutlier(
                frames=bodies[k],
                extra_pixels=pixels,
                extra_bytes=pixels * bytes_per_pixel,
                growth=float(extra / main_area),
                separation_deg=float(separation_deg(*center, ra_k, dec_k)),
                ra_deg=ra_k,
                dec_deg=dec_k,
            )
        )
    return sorted(outliers, key=lambda o: (-o.extra_pixels, int(o.frames[0])))


def far_frames(wcs_list: Sequence[WCS], shapes_hw: Sequence[tuple[int, int]]) -> list[CanvasOutlier]:
    """Find frames that make the canvas much larger than their own sky is worth; see `canvas_outliers`."""
    places = [image_geometry(wcs, shape) for wcs, shape in zip(wcs_list, shapes_hw, strict=True)]
    return canvas_outliers(
        np.array([place.ra_deg for place in places]),
        np.array([place.dec_deg for place in places]),
        field_deg=float(np.median([np.hypot(*place.size_deg) for place in places])),
        scale_deg=float(np.median([place.scale_deg for place in places])),
    )


def _canvas_scale(scales_deg: np.ndarray, mode: str, scale_factor: float) -> float:
    scales = np.asarray(scales_deg, dtype=np.float64)
    reducers = {"median": np.median, "min": np.min, "max": np.max, "mean": np.mean}
    if mode not in reducers:
        raise SettingsError(
            "grid_unknown_scale_mode",
            f"unknown pixel scale mode {mode!r}; use one of {sorted(reducers)}",
            mode=str(mode),
        )
    scale = float(reducers[mode](scales)) / scale_factor if scale_factor > 0 else np.nan
    if not (np.isfinite(scale) and scale > 0):
        raise SettingsError(
            "grid_bad_scale",
            f"canvas pixel size {scale} deg from scale factor {scale_factor}; both must be positive",
            scale_deg=float(scale),
            scale_factor=float(scale_factor),
        )
    return _round_number(scale * 3600.0, _SCALE_STEP) / 3600.0


def _round_number(value: float, share: float) -> float:
    """Round to a multiple of 1, 2 or 5 times a power of ten, the largest that is at most ``share`` of the value."""
    exponent = math.floor(math.log10(share * value))
    step = max(m for m in (1, 2, 5) if m * 10.0**exponent <= share * value)
    # By way of decimal digits: the same number comes out whatever was rounded to it.
    return float(f"{round(value / (step * 10.0**exponent)) * step}e{exponent}")


def _checked_centre(points: np.ndarray) -> tuple[float, float]:
    center = mean_direction(points[:, 0], points[:, 1])
    radius = float(separation_deg(*center, points[:, 0], points[:, 1]).max())
    if not radius <= _MAX_RADIUS_DEG:
        raise RunFailed(
            "grid_too_wide",
            f"the frames reach {radius:.1f} deg from their centre, a tangent plane holds "
            f"{_MAX_RADIUS_DEG:.0f} deg; leave out stray pointings",
            radius_deg=radius,
            limit_deg=_MAX_RADIUS_DEG,
        )
    return center


def _middle(points: np.ndarray, center: tuple[float, float]) -> tuple[float, float]:
    """Return the middle of the box around all points, north up."""
    for _ in range(3):
        wcs = tan_wcs(center, 1.0, (1, 1))
        x, y = wcs.all_world2pix(points[:, 0], points[:, 1], 0)
        ra, dec = wcs.all_pix2world((x.min() + x.max()) / 2.0, (y.min() + y.max()) / 2.0, 0)
        center = (float(ra) % 360.0, float(dec))
    return center


def _tangent_point(
    first: tuple[float, float], points: np.ndarray, middle: tuple[float, float]
) -> tuple[float, float]:
    """Return where the plane touches the sky.

    Near the first frame, which stays the first one when others are added later. A mosaic so wide that this would be
    too far from its middle gets a point of a coarser lattice: distortion matters more there.
    """
    point = lattice_point(first[0], first[1], _LATTICE_DEG)
    if float(separation_deg(*middle, *point)) <= _MAX_OFFSET_DEG:
        return point
    radius = float(separation_deg(*middle, points[:, 0], points[:, 1]).max())
    return lattice_point(*middle, 2.0 ** math.floor(math.log2(max(radius, 2.0)) - 1))


def _canvas_rotation(
    orientation: str,
    points: np.ndarray,
    rotations_deg: np.ndarray,
    tangent: tuple[float, float],
    first: tuple[float, float],
    middle: tuple[float, float],
) -> float:
    """Return the position angle of +y at the tangent point, in (-180, 180]."""
    if orientation == "north_up":
        angle = _north_deg(first, tangent)
    elif orientation == "median_pc":
        # Frames tell their angle to the north of their own place.
        angle = _median_orientation(np.asarray(rotations_deg, dtype=np.float64)) + _north_deg(middle, tangent)
        angle = (angle + 90.0) % 180.0 - 90.0
    elif orientation == "min_area":
        angle = _smallest_rectangle(np.column_stack(gnomonic(points[:, 0], points[:, 1], *tangent)))
    else:
        raise SettingsError(
            "grid_unknown_orientation",
            f"unknown canvas orientation {orientation!r}; use north_up, median_pc or min_area",
            orientation=str(orientation),
        )
    step = _ROTATION_STEP_DEG[orientation]
    return round(angle / step) * step


def _north_deg(place: tuple[float, float], tangent: tuple[float, float]) -> float:
    """Return which way north of a place points in a tangent plane, counted as position angles are."""
    xi, eta = gnomonic(np.full(2, place[0]), place[1] + np.array([-1e-3, 1e-3]), *tangent)
    return float(np.rad2deg(np.arctan2(np.diff(xi), np.diff(eta))[0]))


def _median_orientation(rotations_deg: np.ndarray) -> float:
    """Circular median modulo 180: a frame upside down lies the same way on the sky."""
    angles = rotations_deg[np.isfinite(rotations_deg)] % 180.0
    doubled = np.deg2rad(2.0 * angles)
    mean = np.rad2deg(np.arctan2(np.sin(doubled).mean(), np.cos(doubled).mean())) / 2.0
    folded = (angles - mean + 90.0) % 180.0 - 90.0
    angle = float((mean + np.median(folded)) % 180.0)
    # The smaller of both turns from north, so that a nearly north-up set stays nearly north-up.
    return angle if angle <= 90.0 else angle - 180.0


def _smallest_rectangle(plane: np.ndarray) -> float:
    """Rotation of the smallest enclosing rectangle: one of its sides lies on an edge of the convex hull."""
    try:
        hull = plane[ConvexHull(plane).vertices]
    except QhullError:
        # All points on a line: no area to save.
        return 0.0
    edges = np.roll(hull, -1, axis=0) - hull
    # Position angle of an edge as +y or +x axis alike, within 45 degrees of north up.
    candidates = np.unique(
        np.round((np.rad2deg(np.arctan2(edges[:, 0], edges[:, 1])) + 45.0) % 90.0 - 45.0, 9)
    )
    r = np.deg2rad(candidates)[:, None]
    across = hull[:, 0] * np.cos(r) - hull[:, 1] * np.sin(r)
    along = hull[:, 0] * np.sin(r) + hull[:, 1] * np.cos(r)
    return float(candidates[int(np.argmin(np.ptp(across, axis=1) * np.ptp(along, axis=1)))])


def _box(plane: np.ndarray, field_deg: float) -> np.ndarray:
    half = field_deg / 2.0
    return np.concatenate([plane.min(axis=0) - half, plane.max(axis=0) + half])


def _union(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.concatenate([np.minimum(a[:2], b[:2]), np.maximum(a[2:], b[2:])])


def _area(box: np.ndarray) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))
