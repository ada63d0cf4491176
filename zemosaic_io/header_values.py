"""Values as capture programs spell them: angles in hours or degrees, colour patterns; and the optics of telescopes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["PATTERNS", "KnownTelescope", "angle_deg", "known_telescope", "stated_pattern"]

PATTERNS = ("GRBG", "RGGB", "GBRG", "BGGR")
_ANGLE = re.compile(
    r"""\s*([+-]?)\s*
    (\d+(?:\.\d*)?)\s*(h|hr|hrs|hour|hours|d|deg|degs|degree|degrees|°|º|:)?
    (?:[\s:]*(\d+(?:\.\d*)?)\s*(?:m|min|mins|'|′|’|:)?
       (?:[\s:]*(\d+(?:\.\d*)?)\s*(?:s|sec|secs|"|″|”|'')?)?
    )?\s*\Z""",
    re.VERBOSE | re.IGNORECASE,
)
_DECIMAL_COMMA = re.compile(r"(?<=\d),(?=\d)")
_PATTERN_WORD = re.compile(r"(?<![A-Z])(" + "|".join(PATTERNS) + r")(?![A-Z])")
_NO_PATTERN = frozenset({"", "NONE", "MONO", "FALSE", "F", "NO", "N", "0"})
# These say that there is a pattern; which one stands in another card.
_SOME_PATTERN = frozenset({"TRUE", "T", "YES", "Y", "1"})


def angle_deg(value: Any, *, hours_if_text: bool) -> float | None:
    """Return an angle in degrees, or None when the value is none.

    Parameters
    ----------
    value : object
        A number (degrees), a decimal text (degrees), or a sexagesimal text with any separators: ``12:50:53.1``,
        ``12 50 53,1``, ``12h50m53s``, ``41°07'13"``, ``-0 30.5``.
    hours_if_text : bool
        A sexagesimal text without a unit is hours; with ``h`` it is hours anyway, with ``d`` or ``°`` degrees.
    """
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return float(value) if math.isfinite(value) else None
    text = _DECIMAL_COMMA.sub(".", _decoded(str(value)).replace("−", "-"))
    match = _ANGLE.match(text)
    if match is None:
        try:
            number = float(text)
        except ValueError:
            return None
        return number if math.isfinite(number) else None
    sign, whole, unit, minutes, seconds = match.groups()
    if minutes is not None and ("." in whole or float(minutes) > 60.0 or float(seconds or 0.0) > 60.0):
        return None
    angle = float(whole) + float(minutes or 0.0) / 60.0 + float(seconds or 0.0) / 3600.0
    letter = (unit or "").lower()[:1]
    in_hours = letter == "h" or (hours_if_text and minutes is not None and letter not in ("d", "°", "º"))
    return (-angle if sign == "-" else angle) * (15.0 if in_hours else 1.0)


def _decoded(text: str) -> str:
    """Read UTF-8 that was taken for Latin-1, as a degree sign in a header is."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text.replace("Â", "")


def stated_pattern(cards: Mapping[str, Any]) -> str | None:
    """Return the CFA pattern a header states, '' when it says or implies that there is none.

    Returns
    -------
    str or None
        One of `PATTERNS`; ''; None when a card says that there is a pattern, and none says which; or what is written
        there when that is no pattern.
    """
    some = False
    unknown = ""
    for key in ("BAYERPAT", "COLORTYP", "CFAIMAGE"):
        value = cards.get(key)
        word = "" if value is None else str(value).strip().upper()
        if match := _PATTERN_WORD.search(word):
            return match[1]
        some |= word in _SOME_PATTERN
        if word not in _NO_PATTERN | _SOME_PATTERN and key != "CFAIMAGE":
            unknown = unknown or word
    return unknown or (None if some else "")


@dataclass(frozen=True)
class KnownTelescope:
    """What is fixed in a telescope sold as a whole, for headers that do not tell it.

    Attributes
    ----------
    names : tuple of str
        What INSTRUME, TELESCOP or CREATOR hold, in small letters without blanks.
    focal_mm, pixel_um : float
        Focal length and size of an unbinned pixel.
    pattern : str
        CFA pattern of its raw frames; '' when it is not known well enough.
    """

    names: tuple[str, ...]
    focal_mm: float
    pixel_um: float
    pattern: str = ""

    @property
    def scale_arcsec(self) -> float:
        """Size of an unbinned pixel, arcsec."""
        return 206.264806 * self.pixel_um / self.focal_mm


# The longer name first where one begins like another. Where the numbers come from: docs/telescopes.md.
_TELESCOPES = (
    KnownTelescope(("seestars30pro", "s30pro"), 160.0, 2.9, "GRBG"),
    KnownTelescope(("seestars30", "s30"), 150.0, 2.9, "GRBG"),
    KnownTelescope(("seestars50", "s50", "seestar"), 250.0, 2.9, "GRBG"),
    KnownTelescope(("dwarfiii", "dwarf3"), 150.0, 2.0),
    KnownTelescope(("dwarfmini",), 150.0, 2.9),
    # Twice as many pixels in the file as on the sensor: its pixels of 2.9 um come out as 1.45 um.
    KnownTelescope(("dwarfii", "dwarf2"), 100.0, 1.45),
    KnownTelescope(("vesperapro",), 250.0, 2.0),
    KnownTelescope(("vesperaii", "vespera2"), 250.0, 2.9),
    KnownTelescope(("vespera",), 200.0, 2.9),
    KnownTelescope(("stellina",), 400.0, 2.4),
    KnownTelescope(("celestronorigin", "origin"), 335.0, 2.4),
    KnownTelescope(("odyssey", "imx415"), 320.0, 2.9),
    KnownTelescope(("evscopev2", "equinox2", "imx347"), 450.0, 2.9),
    KnownTelescope(("evscope", "equinox", "imx224"), 450.0, 3.75),
)


def known_telescope(cards: Mapping[str, Any]) -> KnownTelescope | None:
    """Return the telescope a header names, by INSTRUME, TELESCOP or CREATOR."""
    # Sensors of Unistellar are in cameras of others too.
    unistellar = str(cards.get("ORIGIN") or "").lower().startswith("unistellar")
    for key in ("TELESCOP", "INSTRUME", "CREATOR"):
        value = re.sub(r"[\W_]", "", str(cards.get(key) or "").lower()).removeprefix("zwo")
        for telescope in _TELESCOPES:
            for name in telescope.names:
                if value.startswith(name) and (unistellar or not name.startswith("imx")):
                    return telescope
    return None
