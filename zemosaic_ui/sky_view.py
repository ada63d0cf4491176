"""Footprints on a flat sky: projection, selection and colours as plain arrays; a view only draws them."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

__all__ = [
    "SkyPlane",
    "closed_lines",
    "group_colours",
    "inside_polygon",
    "middle_direction",
    "quality_colours",
]


def middle_direction(ra_deg: np.ndarray, dec_deg: np.ndarray) -> tuple[float, float]:
    """Return the direction in the middle of points on the sphere, safe across RA 0h and the poles.

    The median of the unit vectors is used, so that one frame pointed elsewhere does not move the view.

    Parameters
    ----------
    ra_deg, dec_deg : ndarray, shape (N,)
        NaN entries are left out; without any valid entry the answer is (0, 0).
    """
    valid = np.isfinite(ra_deg) & np.isfinite(dec_deg)
    if not valid.any():
        return 0.0, 0.0
    ra, dec = np.radians(ra_deg[valid]), np.radians(dec_deg[valid])
    x = np.median(np.cos(dec) * np.cos(ra))
    y = np.median(np.cos(dec) * np.sin(ra))
    z = np.median(np.sin(dec))
    return float(np.degrees(np.arctan2(y, x)) % 360.0), float(np.degrees(np.arctan2(z, np.hypot(x, y))))


@dataclass(frozen=True)
class SkyPlane:
    """Tangent plane of the sky around a centre.

    Coordinates are degrees: ``x`` grows to the East, ``y`` to the North. A view draws East to the left.
    """

    ra_deg: float
    dec_deg: float

    def project(self, ra_deg: np.ndarray, dec_deg: np.ndarray) -> np.ndarray:
        """Return the plane positions, shape (..., 2); NaN more than 80 degrees away (no tangent plane there)."""
        ra, dec = np.radians(ra_deg) - np.radians(self.ra_deg), np.radians(dec_deg)
        dec0 = np.radians(self.dec_deg)
        cosine = np.sin(dec0) * np.sin(dec) + np.cos(dec0) * np.cos(dec) * np.cos(ra)
        with np.errstate(invalid="ignore", divide="ignore"):
            scale = np.where(cosine > np.cos(np.radians(80.0)), 1.0 / cosine, np.nan)
        east = np.cos(dec) * np.sin(ra) * scale
        north = (np.cos(dec0) * np.sin(dec) - np.sin(dec0) * np.cos(dec) * np.cos(ra)) * scale
        return np.degrees(np.stack([east, north], axis=-1))

    def unproject(self, x: float, y: float) -> tuple[float, float]:
        """Return (ra, dec) in degrees of a plane position."""
        xi, eta, dec0 = np.radians(x), np.radians(y), np.radians(self.dec_deg)
        down = np.cos(dec0) - eta * np.sin(dec0)
        ra = np.arctan2(xi, down) + np.radians(self.ra_deg)
        dec = np.arctan2(np.sin(dec0) + eta * np.cos(dec0), np.hypot(xi, down))
        return float(np.degrees(ra) % 360.0), float(np.degrees(dec))

    def distance(self, ra_deg: np.ndarray, dec_deg: np.ndarray) -> np.ndarray:
        """Return the angle to the centre, degrees."""
        ra, dec = np.radians(ra_deg - self.ra_deg), np.radians(dec_deg)
        dec0 = np.radians(self.dec_deg)
        half = np.sin((dec - dec0) / 2) ** 2 + np.cos(dec0) * np.cos(dec) * np.sin(ra / 2) ** 2
        return np.degrees(2 * np.arcsin(np.sqrt(np.clip(half, 0.0, 1.0))))


def inside_polygon(points: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """Return which points (N, 2) lie inside a polygon (M, 2), by the even-odd rule; NaN points do not."""
    x, y = points[:, 0], points[:, 1]
    inside = np.zeros(len(points), dtype=bool)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        with np.errstate(invalid="ignore"):
            crosses = (y0 > y) != (y1 > y)
            if y1 != y0:
                inside ^= crosses & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return inside & np.isfinite(x) & np.isfinite(y)


def closed_lines(polygons: np.ndarray) -> np.ndarray:
    """Return polygons (N, M, 2) as one line (N * (M + 2), 2): each closed, then a NaN that lifts the pen."""
    closed = np.concatenate([polygons, polygons[:, :1], np.full_like(polygons[:, :1], np.nan)], axis=1)
    return closed.reshape(-1, 2)


@lru_cache(maxsize=8)
def _wheel(n: int, dark: bool) -> np.ndarray:
    # Steps of the golden ratio keep neighbouring numbers far apart on the colour wheel.
    hues = (0.58 + 0.61803398875 * np.arange(n)) % 1.0
    light = 0.66 if dark else 0.42
    rows = [colorsys.hls_to_rgb(hue, light, 0.62) for hue in hues]
    return (np.array(rows) * 255).astype(np.uint8)


def group_colours(groups: np.ndarray, *, dark: bool, n_colours: int = 16) -> np.ndarray:
    """Return an RGB colour (N, 3) uint8 per group number; -1 (no group) is grey."""
    colours = _wheel(n_colours, dark)[np.asarray(groups) % n_colours]
    colours[np.asarray(groups) < 0] = (128, 128, 132)
    return colours


def quality_colours(values: np.ndarray, *, low_is_good: bool, n_steps: int = 16) -> np.ndarray:
    """Return an RGB colour (N, 3) uint8 from good (teal) over ochre to bad (red) by rank; NaN is grey."""
    colours = np.full((len(values), 3), (128, 128, 132), dtype=np.uint8)
    valid = np.isfinite(values)
    if not valid.any():
        return colours
    low, high = np.percentile(values[valid], [2.0, 98.0])
    badness = np.clip((values[valid] - low) / max(high - low, 1e-12), 0.0, 1.0)
    badness = badness if low_is_good else 1.0 - badness
    # Few steps keep the number of different pens, and with it the drawing time, small.
    badness = np.round(badness * (n_steps - 1)) / (n_steps - 1)
    ramp = np.array([(45, 178, 160), (222, 178, 70), (220, 84, 74)], dtype=float)
    for channel in range(3):
        colours[valid, channel] = np.interp(badness, [0.0, 0.5, 1.0], ramp[:, channel]).astype(np.uint8)
    return colours
