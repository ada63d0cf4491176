"""What the WCS cards of a header say: whether they can be used, the scale, where the middle lies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from zemosaic_io.fits_cards import is_celestial_key

__all__ = ["celestial_cards", "linear_centre", "linear_scale_arcsec"]

_CELESTIAL_PAIRS = ({"RA", "DEC"}, {"GLON", "GLAT"}, {"ELON", "ELAT"})
# Cards of a WCS that refine it.
_WCS_EXTRAS = ("RADESYS", "RADECSYS", "EQUINOX", "LONPOLE", "LATPOLE")
_MAX_SIP_ORDER = 9


def celestial_cards(cards: Mapping[str, Any]) -> dict[str, Any] | None:
    """Select the celestial WCS of axes 1 and 2, or None when it is absent or cannot be used.

    Usable means: the two axis types are a celestial pair, all numbers are finite, the linear part is invertible
    and a SIP distortion is complete. Capture programs write zeros there when they know nothing. Whether the cards
    together describe a projection is for those to find out who build it.
    """
    ctypes = [str(cards.get(f"CTYPE{i}") or "") for i in (1, 2)]
    if {c.split("-")[0].strip().upper() for c in ctypes} not in _CELESTIAL_PAIRS:
        return None
    numbers = [cards.get(k) for k in ("CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2")]
    if not all(_is_number(v) for v in numbers) or max(map(abs, numbers[:2])) > 720.0:
        return None
    latitude = 0 if ctypes[0].split("-")[0].strip().upper() in ("DEC", "GLAT", "ELAT") else 1
    if abs(numbers[latitude]) > 90.0 or linear_scale_arcsec(cards) is None:
        return None
    selected = {k: v for k, v in cards.items() if is_celestial_key(k) and v is not None}
    for key in _WCS_EXTRAS:
        # The frame is known without these; a wrong one must not cost the rest.
        if key in selected and not _is_sound(key, selected[key]):
            del selected[key]
    if not all(_is_sound(key, value) for key, value in selected.items()) or not _is_complete_sip(selected):
        return None
    selected["WCSAXES"] = 2
    return selected


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_sound(key: str, value: Any) -> bool:
    """Tell whether a WCS card holds what its name promises: printable ASCII text, or a finite number."""
    if key[:5] in ("CTYPE", "CUNIT", "RADES", "RADEC"):
        return isinstance(value, str) and value.isascii() and value.isprintable()
    return key == "WCSAXES" or _is_number(value)


def _is_complete_sip(cards: Mapping[str, Any]) -> bool:
    """Tell whether SIP polynomials, where there are any, come in pairs of a defined order (Shupe et al. 2005)."""
    for pair in (("A_ORDER", "B_ORDER"), ("AP_ORDER", "BP_ORDER")):
        orders = [cards.get(key) for key in pair]
        if orders == [None, None]:
            continue
        if not all(isinstance(order, int) and 0 <= order <= _MAX_SIP_ORDER for order in orders):
            return False
    return True


def linear_scale_arcsec(cards: Mapping[str, Any]) -> float | None:
    """Return the pixel scale, arcsec, from the determinant of the linear WCS; None when unusable."""
    matrix = _linear_matrix(cards)
    if matrix is None:
        return None
    scale = math.sqrt(abs(matrix[0] * matrix[3] - matrix[1] * matrix[2])) * 3600.0
    # 0.001" to 1 degree per pixel: outside it the numbers are placeholders.
    return scale if math.isfinite(scale) and 1e-3 < scale < 3600.0 else None


def linear_centre(wcs: Mapping[str, Any], shape_hw: tuple[int, int]) -> tuple[float, float]:
    """Sky position of the image centre: inverse gnomonic projection of the linear terms, good for a hint."""
    matrix = _linear_matrix(wcs)
    dx = 0.5 * (shape_hw[1] + 1) - wcs["CRPIX1"]
    dy = 0.5 * (shape_hw[0] + 1) - wcs["CRPIX2"]
    xi = math.radians(matrix[0] * dx + matrix[1] * dy)
    eta = math.radians(matrix[2] * dx + matrix[3] * dy)
    ra0, dec0 = math.radians(wcs["CRVAL1"]), math.radians(wcs["CRVAL2"])
    down = math.cos(dec0) - eta * math.sin(dec0)
    ra = ra0 + math.atan2(xi, down)
    dec = math.atan2(math.sin(dec0) + eta * math.cos(dec0), math.hypot(xi, down))
    return math.degrees(ra) % 360.0, math.degrees(dec)


def _linear_matrix(cards: Mapping[str, Any]) -> tuple[float, float, float, float] | None:
    """CD matrix, degrees per pixel, from CD, PC+CDELT or CDELT+CROTA2 (Calabretta & Greisen 2002, 6.1)."""

    def get(key: str, default: float) -> float:
        value = cards.get(key)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else default

    keys = [f"{name}{i}_{j}" for name in ("CD", "PC") for i in (1, 2) for j in (1, 2)]
    if not all(math.isfinite(get(key, 0.0)) for key in ("CDELT1", "CDELT2", "CROTA2", *keys)):
        return None
    if any(f"CD{i}_{j}" in cards for i in (1, 2) for j in (1, 2)):
        matrix = tuple(get(f"CD{i}_{j}", 0.0) for i in (1, 2) for j in (1, 2))
    elif "CDELT1" in cards and "CDELT2" in cards:
        d1, d2 = get("CDELT1", 0.0), get("CDELT2", 0.0)
        if any(f"PC{i}_{j}" in cards for i in (1, 2) for j in (1, 2)):
            pc = [get(f"PC{i}_{j}", float(i == j)) for i in (1, 2) for j in (1, 2)]
            matrix = (d1 * pc[0], d1 * pc[1], d2 * pc[2], d2 * pc[3])
        else:
            turn = math.radians(get("CROTA2", 0.0))
            matrix = (d1 * math.cos(turn), -d2 * math.sin(turn), d1 * math.sin(turn), d2 * math.cos(turn))
    else:
        return None
    return matrix if all(math.isfinite(v) for v in matrix) else None
