"""Where to look for a frame whose header led nowhere: other readings of the header, then the whole sky."""

from __future__ import annotations

from dataclasses import dataclass

from zemosaic_io.headers import FrameInfo

__all__ = ["Place", "anywhere", "other_readings"]

# Wrong scales cost little near a place that is right, and much over a wide search.
NEAR_DEG = 1.0
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
    """

    ra_deg: float | None
    dec_deg: float | None
    scale_arcsec: float | None
    radius_deg: float
    timeout_s: float


def other_readings(told: Place) -> list[Place]:
    """Return what else a header may have meant that led nowhere, cheapest first.

    A right ascension below 24 may be hours that nobody called hours, and the scale may be that of another binning or
    without the reducer.
    """
    if told.ra_deg is None or told.dec_deg is None:
        return []
    near = min(NEAR_DEG, told.radius_deg)
    hours = [15.0 * told.ra_deg] if 0.0 < told.ra_deg < 24.0 else []
    scales = [told.scale_arcsec, None] if told.scale_arcsec is not None else [None]
    readings = [
        Place(ra, told.dec_deg, scale, near, told.timeout_s)
        for ra in (*hours, told.ra_deg)
        for scale in scales
    ]
    return [
        place for place in readings if (place.ra_deg, place.scale_arcsec) != (told.ra_deg, told.scale_arcsec)
    ]


def anywhere(info: FrameInfo, timeout_s: float) -> Place:
    """Return the whole sky, at the scale that the header tells."""
    return Place(None, None, info.scale_arcsec, 180.0, WHOLE_SKY_TIMES * timeout_s)
