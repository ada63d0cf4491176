"""How many digits of a level of light are worth writing: counts of a sensor and values from 0 to 1 alike."""

from __future__ import annotations

import math

__all__ = ["decimals_of_light", "rounded_light"]

_SIGNIFICANT = 2


def decimals_of_light(value: float, least: int, significant: int = _SIGNIFICANT) -> int:
    """Return how many digits behind the decimal sign a level is written with.

    Parameters
    ----------
    value : float
        Level or difference of levels, in the unit of the frames.
    least : int
        What is enough for counts of a sensor.
    significant : int
        Digits that a small number keeps, as frames whose values run from 0 to 1 have them.
    """
    if not math.isfinite(value) or value == 0:
        return least
    return max(least, significant - 1 - math.floor(math.log10(abs(value))))


def rounded_light(value: float, least: int, significant: int = _SIGNIFICANT) -> float:
    """Return a level rounded as `decimals_of_light` says; a whole number where nothing stands behind the sign."""
    if not math.isfinite(value):
        return value
    decimals = decimals_of_light(value, least, significant)
    return round(value, decimals) if decimals > 0 else round(value)
