"""Check and convert one value of one option; nothing else."""

from __future__ import annotations

import json
import math
from typing import Any

from zemosaic_core.errors import SettingsError
from zemosaic_settings.option import Option

__all__ = ["parse_value", "split_pair"]

_TRUE = frozenset({"1", "true", "yes", "on", "y", "oui"})
_FALSE = frozenset({"0", "false", "no", "off", "n", "non"})


def parse_value(option: Option, value: Any) -> Any:
    """Return ``value`` as the option stores it.

    Strings are converted, so that command line, environment and settings file go through one gate.

    Raises
    ------
    SettingsError
        The value is not allowed; the message names the option, the value and what is allowed.
    """
    value = _modernised(option, value)
    match option.type:
        case "bool":
            return _switch(option, value)
        case "int" | "float":
            return _number(option, value)
        case "choice":
            return _choice(option, value)
        case "pair":
            return _pair(option, value)
        case "geometry":
            return _geometry(option, value)
        case _:
            return _text(option, value)


def split_pair(text: str) -> tuple[float, float]:
    """Return the two numbers of a stored pair ``"low,high"``."""
    low, high = text.split(",")
    return float(low), float(high)


def _modernised(option: Option, value: Any) -> Any:
    # A choice may have been a switch once.
    return (
        dict(option.old_values).get(str(value).strip().lower(), value)
        if isinstance(value, str | bool)
        else value
    )


def _refused(option: Option, value: Any, key: str, english: str, **values: Any) -> SettingsError:
    shown = "***" if option.type == "secret" else value
    return SettingsError(
        key,
        f"{option.key} = {shown!r} is not allowed; allowed is {english}",
        option=option.key,
        value=str(shown),
        **values,
    )


def _switch(option: Option, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if isinstance(value, int | float | str) and word in _TRUE | _FALSE:
        return word in _TRUE
    raise _refused(option, value, "settings_not_a_switch", "true or false")


def _number(option: Option, value: Any) -> int | float:
    assert option.minimum is not None
    assert option.maximum is not None
    whole = option.type == "int"
    limits = {"minimum": option.minimum, "maximum": option.maximum}
    allowed = f"a {'whole ' if whole else ''}number from {option.minimum:g} to {option.maximum:g}"
    key = "settings_not_a_whole_number" if whole else "settings_not_a_number"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _refused(option, value, key, allowed, **limits)
    try:
        number = float(value)
    except (OverflowError, ValueError):
        raise _refused(option, value, key, allowed, **limits) from None
    if not math.isfinite(number) or (whole and number != int(number)):
        raise _refused(option, value, key, allowed, **limits)
    if not option.minimum <= number <= option.maximum:
        raise _refused(option, value, "settings_out_of_range", allowed, **limits)
    return int(number) if whole else number


def _choice(option: Option, value: Any) -> str:
    if isinstance(value, str):
        for choice in option.choices:
            if choice.lower() == value.strip().lower():
                return choice
    allowed = ", ".join(option.choices)
    raise _refused(option, value, "settings_not_a_choice", f"one of {allowed}", allowed=allowed)


def _pair(option: Option, value: Any) -> str:
    limits = {"minimum": option.minimum, "maximum": option.maximum}
    allowed = f"two numbers from {option.minimum:g} to {option.maximum:g} with a comma between them"
    parts = value.strip(" ()[]").split(",") if isinstance(value, str) else value
    try:
        low, high = (float(part) for part in parts)
    except (OverflowError, TypeError, ValueError):
        raise _refused(option, value, "settings_not_a_pair", allowed, **limits) from None
    if not all(option.minimum <= number <= option.maximum for number in (low, high)):
        raise _refused(option, value, "settings_not_a_pair", allowed, **limits)
    return f"{low:g},{high:g}"


def _geometry(option: Option, value: Any) -> tuple[int, int, int, int] | None:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise _refused(option, value, "settings_not_a_geometry", "four whole numbers") from None
    if value is None:
        return None
    try:
        x, y, width, height = (int(number) for number in value)
    except (OverflowError, TypeError, ValueError):
        raise _refused(option, value, "settings_not_a_geometry", "four whole numbers") from None
    return x, y, width, height


def _text(option: Option, value: Any) -> str:
    if not isinstance(value, str) and not hasattr(value, "__fspath__"):
        raise _refused(option, value, "settings_not_a_text", "a text")
    return str(value)
