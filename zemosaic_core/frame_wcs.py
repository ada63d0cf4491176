"""Build the WCS of a frame from cards that anybody may have written; what cannot be built is no WCS."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from astropy.wcs import WCS, Sip

from zemosaic_core.sphere import image_geometry
from zemosaic_core.wcs_cards import WcsCards

__all__ = ["FrameWcs", "UnusableWcs", "build_frame_wcs", "wcs_of"]

# A field of a telescope; fields beyond it do not fit on the plane of a mosaic either.
MAX_FIELD_DEG = 60.0
# The way to the sky and back may miss the pixel it began at by this much.
MAX_ROUND_TRIP_PX = 0.5

log = logging.getLogger(__name__)


class UnusableWcs(ValueError):
    """Why cards describe no place in the sky, in English."""


def wcs_of(cards: Mapping[str, Any]) -> WCS:
    """Return a WCS of its own for cards that can be used; the same bits as ``WCS(dict(cards))``.

    Every phase asks for those of the frames. Astropy takes 2 ms to make one of cards and 6 kB to keep it, so what is
    kept are its numbers, with the cards (`WcsCards.memo`), and one WCS for all cards that differ in nothing else.
    """
    cards = WcsCards.of(cards)
    form = tuple(item for item in cards.items() if not _IS_NUMBER.fullmatch(item[0]))
    numbers, model = cards.memo, _MODELS.get(form)
    if numbers is None or model is None:
        made = WCS(dict(cards))
        numbers = _WcsNumbers.of(made)
        if numbers is not None:
            cards.memo = numbers
            if len(_MODELS) >= _MAX_MODELS:
                _MODELS.clear()
            _MODELS[form] = made
        return made.deepcopy()
    return numbers.put_into(model.deepcopy())


class FrameWcs(Sequence[WCS]):
    """The WCS of many frames, each made when it is asked for: thousands of them take 6 kB each.

    Parameters
    ----------
    cards : sequence of mapping
        Cards that can be used.
    """

    def __init__(self, cards: Sequence[Mapping[str, Any]]) -> None:
        self._cards = list(cards)

    def __len__(self) -> int:
        return len(self._cards)

    def __getitem__(self, position: Any) -> Any:
        return wcs_of(self._cards[position])


# What differs between frames that were placed in the same way.
_IS_NUMBER = re.compile(r"(CRVAL|CRPIX|CDELT|CROTA)[12]|(CD|PC)[12]_[12]|(A|B|AP|BP)_\d+_\d+")
_MAX_MODELS = 64
_MODELS: dict[tuple[tuple[str, Any], ...], WCS] = {}


@dataclass(frozen=True, slots=True)
class _WcsNumbers:
    """The numbers of a WCS as Astropy understood them.

    Attributes
    ----------
    linear : bytes
        float64: CRVAL, CRPIX, pole (longitude, latitude), then the matrix (CD), or the matrix (PC) with its steps
        (CDELT), or the rotations (CROTA) with them; which of them, the model says.
    sip : Sip or None
    """

    linear: bytes
    sip: Sip | None

    @staticmethod
    def of(made: WCS) -> _WcsNumbers | None:
        """Return the numbers; None where two matrices contradict each other, or there are other axes."""
        wcs = made.wcs
        if wcs.naxis != 2 or (wcs.has_cd() and wcs.has_pc()):
            return None
        parts = [wcs.crval, wcs.crpix, (wcs.lonpole, wcs.latpole)]
        if wcs.has_cd():
            parts.append(wcs.cd)
        else:
            parts.append(wcs.cdelt)
            parts += [wcs.get_pc()] if wcs.has_pc() else []
            parts += [wcs.crota] if wcs.has_crota() else []
        return _WcsNumbers(b"".join(np.asarray(part, float).tobytes() for part in parts), made.sip)

    def put_into(self, model: WCS) -> WCS:
        """Return the model with these numbers in it."""
        wcs, numbers = model.wcs, np.frombuffer(self.linear)
        wcs.crval, wcs.crpix, (wcs.lonpole, wcs.latpole) = numbers[:2], numbers[2:4], numbers[4:6]
        if wcs.has_cd():
            wcs.cd = numbers[6:].reshape(2, 2)
        else:
            # Asked before anything is set.
            has_pc, has_crota = wcs.has_pc(), wcs.has_crota()
            wcs.cdelt = numbers[6:8]
            if has_pc:
                wcs.pc = numbers[8:12].reshape(2, 2)
            if has_crota:
                wcs.crota = numbers[-2:]
        model.sip = self.sip
        return model


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
