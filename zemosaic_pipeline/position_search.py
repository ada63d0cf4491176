"""Where to look for a frame whose header led nowhere: other readings of the header, then the whole sky."""

from __future__ import annotations

from dataclasses import dataclass, replace

from zemosaic_io.headers import FrameInfo

__all__ = ["MAX_NEAR_LOOKS", "NEAR_DEG", "Place", "anywhere", "near_only", "other_readings", "wide_readings"]

# Wrong scales cost little near a place that is right, and much over a wide search.
NEAR_DEG = 1.0
# Frames of a pointing that show the stars of some looked for in vain, and are looked for near one place alone.
MAX_NEAR_LOOKS = 20
# The whole sky is searched once in a run: that may take longer than one frame among many.
WHOLE_SKY_TIMES = 4.0


@dataclass(frozen=True)
class Place:
    """Where a solver looks.

    Attributes
    ----------
    ra_deg, dec_deg : float or None
        Expected centre; None: anywhere.
    scale_arcsec : float or None
        Expected pixel scale; None: any.
    radius_deg : float
        How far from the centre to search.
    timeout_s : float
        Longest time for one attempt.
    radius_is_limit : bool
        As in `SolveRequest`.
    """

    ra_deg: float | None
    dec_deg: float | None
    scale_arcsec: float | None
    radius_deg: float
    timeout_s: float
    radius_is_limit: bool = False


def near_only(told: Place) -> Place:
    """Return the neighbourhood of a place, which costs little to look at."""
    return replace(told, radius_deg=min(NEAR_DEG, told.radius_deg), radius_is_limit=True)


def other_readings(told: Place) -> list[Place]:
    """Return what else a header may have meant that led nowhere, cheapest first.

    A right ascension below 24 may be hours that nobody called hours, and the scale may be that of another binning or
    without the reducer. Any scale is looked for near the place alone; `wide_readings` go on from there.
    """
    if told.dec_deg is None:
        return []
    near = min(NEAR_DEG, told.radius_deg)
    scales = [told.scale_arcsec, None] if told.scale_arcsec is not None else [None]
    return [
        Place(ra, told.dec_deg, scale, near, told.timeout_s, radius_is_limit=scale is None)
        for ra in _right_ascensions(told)
        for scale in scales
        if (ra, scale) != (told.ra_deg, told.scale_arcsec)
    ]


def wide_readings(told: Place, scale_arcsec: float | None) -> list[Place]:
    """Return the places of a header whose scale is wrong, far around: with the right one, or None for any.

    Any scale ten degrees around costs the built-in solver half a minute, 50 times what it costs near the place.
    """
    return [
        replace(told, ra_deg=ra, scale_arcsec=scale_arcsec, radius_deg=min(NEAR_DEG, told.radius_deg))
        for ra in _right_ascensions(told)
    ]


def _right_ascensions(told: Place) -> list[float]:
    if told.ra_deg is None:
        return []
    return [15.0 * told.ra_deg, told.ra_deg] if 0.0 < told.ra_deg < 24.0 else [told.ra_deg]


def anywhere(info: FrameInfo, timeout_s: float) -> Place:
    """Return the whole sky, at the scale that the header tells."""
    return Place(None, None, info.scale_arcsec, 180.0, WHOLE_SKY_TIMES * timeout_s)
