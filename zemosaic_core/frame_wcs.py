"""Build the WCS of a frame from cards that anybody may have written; what cannot be built is no WCS."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from astropy.wcs import WCS

from zemosaic_core.sphere import image_geometry

__all__ = ["UnusableWcs", "build_frame_wcs", "wcs_of"]

# A field of a telescope; fields beyond it do not fit on the plane of a mosaic either.
MAX_FIELD_DEG = 60.0
# The way to the sky and back may miss the pixel it began at by this much.
MAX_ROUND_TRIP_PX = 0.5

log = logging.getLogger(__name__)


class UnusableWcs(ValueError):
    """Why cards describe no place in the sky, in English."""


def wcs_of(cards: Mapping[str, Any]) -> WCS:
    """Return a WCS of its own for cards that can be used.

    Every phase asks for those of the frames, and Astropy takes 2 ms to make one of cards, 0.05 ms to copy it.
    """
    return _made_of(tuple(cards.items())).deepcopy()


@lru_cache(maxsize=2048)
def _made_of(cards: tuple[tuple[str, Any], ...]) -> WCS:
    return WCS(dict(cards))


def build_frame_wcs(cards: Mapping[str, Any], shape_hw: tuple[int, int]) -> WCS:
    """Return the WCS that ``cards`` describe, after trying everything with it that a run will do.

    Parameters
    ----------
    cards : mapping
        Celestial FITS cards.
    shape_hw : tuple of int
        Height and width of the frame, px.

    Raises
    ------
    UnusableWcs
        The cards contradict each other, or lead to nowhere inside the frame.
    """
    try:
        wcs = wcs_of(cards)
        geometry = image_geometry(wcs, shape_hw)
        trip_px = _round_trip_px(wcs, shape_hw)
    except Exception as error:
        # astropy and wcslib have no common error for cards they cannot make sense of.
        log.debug("WCS cards %s cannot be used", dict(cards), exc_info=True)
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnusableWcs(f"no WCS follows from these cards: {reason}") from error
    numbers = (
        geometry.ra_deg,
        geometry.dec_deg,
        geometry.scale_deg,
        geometry.rotation_deg,
        *geometry.size_deg,
    )
    if not np.isfinite(numbers).all() or not geometry.scale_deg > 0:
        raise UnusableWcs("the frame's centre or borders have no place in the sky")
    if not trip_px <= MAX_ROUND_TRIP_PX:
        raise UnusableWcs(f"the way to the sky and back ends {trip_px:.3g} px away")
    if max(geometry.size_deg) > MAX_FIELD_DEG:
        raise UnusableWcs(f"the field would be {max(geometry.size_deg):.0f} degrees wide")
    return wcs


def _round_trip_px(wcs: WCS, shape_hw: tuple[int, int]) -> float:
    """Return how far from where they began corners and middles of the borders come back; NaN when they do not."""
    height, width = shape_hw
    x, y = np.meshgrid([0.0, (width - 1) / 2, width - 1.0], [0.0, (height - 1) / 2, height - 1.0])
    pixels = np.column_stack([x.ravel(), y.ravel()])
    back = wcs.all_world2pix(wcs.all_pix2world(pixels, 0), 0, tolerance=1e-4, maxiter=30)
    return float(np.abs(back - pixels).max())
