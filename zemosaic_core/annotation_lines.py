"""Lines of equal right ascension and declination over a picture, at round values."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from astropy.wcs import WCS

__all__ = ["GridLine", "grid_lines"]

_DEC_STEPS_ARCSEC = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 18000, 36000, 54000)
_RA_STEPS_SEC = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 10800)
_MOST_LINES = 6
_MOST_ROUND_POLE = 12
_SAMPLES = 49
_POINTS = 240


@dataclass(frozen=True, slots=True)
class GridLine:
    """A piece of a line of equal coordinates within the picture.

    Attributes
    ----------
    kind : {'ra', 'dec'}
    value_deg : float
    label : str
        ``12h 50m`` or ``+41° 20'``.
    points_px : ndarray, shape (n, 2), float64
        x and y along the line, origin 0; both ends lie on the border of the picture, or the line is closed.
    """

    kind: str
    value_deg: float
    label: str
    points_px: np.ndarray


def grid_lines(wcs: WCS, shape_hw: tuple[int, int]) -> tuple[GridLine, ...]:
    """Return about six lines of each kind; see `GridLine`."""
    h, w = shape_hw
    x, y = np.meshgrid(np.linspace(-0.5, w - 0.5, _SAMPLES), np.linspace(-0.5, h - 0.5, _SAMPLES))
    ra, dec = (np.asarray(v, dtype=np.float64) for v in wcs.all_pix2world(x.ravel(), y.ravel(), 0))
    low_dec, high_dec = float(dec.min()), float(dec.max())
    pole = _pole_inside(wcs, shape_hw, 1.0 if dec.mean() > 0 else -1.0)
    if pole:
        low_dec, high_dec = (low_dec, 90.0) if pole > 0 else (-90.0, high_dec)
    low_ra, wide = (0.0, 360.0) if pole else _arc(ra)
    lines: list[GridLine] = []
    dec_step = _step((high_dec - low_dec) * 3600.0, _DEC_STEPS_ARCSEC, _MOST_LINES)
    ra_step = _step(wide * 240.0, _RA_STEPS_SEC, _MOST_ROUND_POLE if pole else _MOST_LINES)
    # A little beyond the borders: each line has to reach them.
    beyond_ra, beyond_dec = (0.0 if pole else 0.1 * wide), 0.1 * (high_dec - low_dec)
    along_ra = np.linspace(low_ra - beyond_ra, low_ra + wide + beyond_ra, (4 if pole else 1) * _POINTS)
    along_dec = np.linspace(max(low_dec - beyond_dec, -90.0), min(high_dec + beyond_dec, 90.0), _POINTS)
    for arcsec in _multiples(low_dec * 3600.0, high_dec * 3600.0, dec_step):
        if abs(arcsec) < 90 * 3600:
            pieces = _pieces(wcs, shape_hw, along_ra, np.full(len(along_ra), arcsec / 3600.0))
            lines += [GridLine("dec", arcsec / 3600.0, _dec_label(arcsec, dec_step), p) for p in pieces]
    for sec in _multiples(low_ra * 240.0, (low_ra + wide) * 240.0, ra_step):
        if pole and sec >= 86400:
            continue
        # Near the pole lines would run into each other.
        part = along_dec[np.abs(along_dec) < 90.0 - dec_step / 7200.0] if pole else along_dec
        pieces = _pieces(wcs, shape_hw, np.full(len(part), sec / 240.0), part)
        lines += [GridLine("ra", sec / 240.0 % 360.0, _ra_label(sec % 86400, ra_step), p) for p in pieces]
    return tuple(lines)


def _pole_inside(wcs: WCS, shape_hw: tuple[int, int], sign: float) -> float:
    with np.errstate(invalid="ignore"):
        x, y = wcs.all_world2pix([0.0], [sign * 90.0], 0, quiet=True)
        inside = -0.5 <= x[0] < shape_hw[1] - 0.5 and -0.5 <= y[0] < shape_hw[0] - 0.5
    if not inside:
        return 0.0
    _, dec = wcs.all_pix2world(x, y, 0)
    return sign if sign * dec[0] > 89.9 else 0.0


def _arc(ra_deg: np.ndarray) -> tuple[float, float]:
    """Beginning and width of the smallest arc that holds all values, degrees."""
    ordered = np.sort(ra_deg % 360.0)
    gaps = np.diff(ordered, append=ordered[0] + 360.0)
    widest = int(np.argmax(gaps))
    return float(ordered[(widest + 1) % len(ordered)]), float(360.0 - gaps[widest])


def _step(extent: float, steps: tuple[int, ...], most: int) -> int:
    return next((step for step in steps if extent / step <= most), steps[-1])


def _multiples(low: float, high: float, step: int) -> list[int]:
    return [k * step for k in range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)]


def _pieces(wcs: WCS, shape_hw: tuple[int, int], ra_deg: np.ndarray, dec_deg: np.ndarray) -> list[np.ndarray]:
    """Cut the polyline through these places of the sky at the borders of the picture."""
    points = np.column_stack(wcs.all_world2pix(ra_deg, dec_deg, 0, quiet=True))
    corner = np.array([-0.5, -0.5]), np.array([shape_hw[1] - 0.5, shape_hw[0] - 0.5])
    pieces: list[list[np.ndarray]] = []
    for a, b in itertools.pairwise(points):
        cut = _within(a, b, *corner)
        if cut is None:
            continue
        if pieces and np.array_equal(pieces[-1][-1], cut[0]):
            pieces[-1].append(cut[1])
        else:
            pieces.append(list(cut))
    return [np.array(piece) for piece in pieces]


def _within(
    a: np.ndarray, b: np.ndarray, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Cut the line from a to b at the sides of a rectangle (Liang and Barsky 1984); None: it is outside."""
    way = b - a
    begin, end = 0.0, 1.0
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return None
    for k in (0, 1):
        if way[k] == 0.0:
            if not low[k] <= a[k] <= high[k]:
                return None
            continue
        first, last = sorted(((low[k] - a[k]) / way[k], (high[k] - a[k]) / way[k]))
        begin, end = max(begin, first), min(end, last)
    if begin >= end:
        return None
    return (a if begin == 0.0 else a + begin * way), (b if end == 1.0 else a + end * way)


def _ra_label(sec: int, step: int) -> str:
    hours, rest = divmod(sec, 3600)
    minutes, seconds = divmod(rest, 60)
    parts = [f"{hours}h"]
    if step % 3600:
        parts.append(f"{minutes:02d}m")
    if step % 60:
        parts.append(f"{seconds:02d}s")
    return " ".join(parts)


def _dec_label(arcsec: int, step: int) -> str:
    degrees, rest = divmod(abs(arcsec), 3600)
    minutes, seconds = divmod(rest, 60)
    parts = [f"{'-' if arcsec < 0 else '+'}{degrees}°"]
    if step % 3600:
        parts.append(f"{minutes:02d}'")
    if step % 60:
        parts.append(f'{seconds:02d}"')
    return " ".join(parts)
