"""Find the text of a key in the user's language; the only reader of ``locales/*.json``."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import re
import string
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from locales.plural_forms import plural_index
from zemosaic_core.visible_text import visible_text

__all__ = ["REFERENCE_LANGUAGE", "ZeMosaicLocalization", "available_languages"]

REFERENCE_LANGUAGE = "en"
"""The language in which every key has a text."""

_KEY_SUFFIX = "_key"
_TALLY_SUFFIX = "_tally"
_LANGUAGE_CHOICE = "option.language.choice."
# These speak of what stands in the settings file, where numbers have a point in every language.
_AS_WRITTEN = "settings_"
_THIN_SPACE = "\u202f"
# What Python writes of a failure of the system: its number, its words, and mostly the file once more.
_SYSTEM_FAILURE = re.compile(
    r"\[(?:Errno|WinError) \d+\] (?P<words>.*?)(?:: (?P<quote>['\"])(?P<file>.*)(?P=quote))?"
)
_SYSTEM_KEYS = {os.strerror(number): f"system_error.{name}" for number, name in errno.errorcode.items()}
_FOLDER = Path(__file__).resolve().parent
_log = logging.getLogger(__name__)


def available_languages() -> tuple[str, ...]:
    """Return the codes of the languages that have a file, sorted."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.json")))


class ZeMosaicLocalization:
    """Texts, numbers and dates of one language, with English behind it.

    Parameters
    ----------
    language_code : str
        A code such as ``fr`` or ``fr_FR``; a language without a file gives English.
    """

    def __init__(self, language_code: str = REFERENCE_LANGUAGE) -> None:
        self._english = _read_texts(REFERENCE_LANGUAGE)
        self.set_language(language_code)

    def set_language(self, code: str) -> None:
        """Switch to another language; a language without a file gives English."""
        wanted = code.strip().replace("-", "_").split("_")[0].lower()
        if wanted not in available_languages():
            _log.info("no texts for language %r, using %r", code, REFERENCE_LANGUAGE)
            wanted = REFERENCE_LANGUAGE
        self.language_code = wanted
        self._texts = self._english if wanted == REFERENCE_LANGUAGE else _read_texts(wanted)

    def has(self, key: str) -> bool:
        """Return whether the key has a text in this language or in English."""
        return self._raw(key) is not None

    def _raw(self, key: str) -> str | None:
        text = self._texts.get(key, self._english.get(key))
        if text is None and key.startswith(_LANGUAGE_CHOICE):
            # People look for their language under its own name, whatever language the program speaks.
            return _names_of_languages().get(key.removeprefix(_LANGUAGE_CHOICE))
        return text

    def __call__(self, key: str, /, **values: Any) -> str:
        """Return the text of a key with its placeholders filled (`get`)."""
        return self.get(key, **values)

    def get(self, key: str, /, default_text: str | None = None, **kwargs: Any) -> str:
        """Return the text of a key with its placeholders filled.

        A value called ``<name>_key`` is itself a text key: its text stands where ``{name}`` is; ``<name>_tally`` is
        a mapping of text keys to numbers. ``{n:row|rows}`` is the word that goes with the number ``n``, its forms in
        the order of `locales.plural_forms`; ``{begun:date}`` is a moment in the language's order. Numbers get the
        language's decimal sign, except in texts about the settings file (``settings_...``). A key without a text
        gives ``default_text``, or ``_key_`` so that it is seen. A placeholder without a value stays readable as
        ``{name}``: a message is never lost because one of its values is.
        """
        text = self._raw(key)
        text = default_text if text is None else text
        if text is None:
            _log.warning("text key %r has no text", key)
            return f"_{key}_"
        values = {**kwargs, **self._texts_of_keys(kwargs)}
        values |= {
            name: self._system_words(value, kwargs) for name, value in values.items() if type(value) is str
        }
        return self._filled(text, values, numbers_as_written=key.startswith(_AS_WRITTEN))

    # ------------------------------------------------------------------ numbers and dates

    def number(self, value: float, digits: int = 0) -> str:
        """Return a number with the language's decimal sign and thin spaces between thousands; a dash for NaN.

        The thin space is the separator of ISO 80000-1: no language takes it for its decimal sign.
        """
        return self.written(f"{value:,.{digits}f}") if math.isfinite(value) else "–"

    def written(self, number: str) -> str:
        """Return a number that Python wrote with point and commas as the language writes it."""
        return number.replace(",", _THIN_SPACE).replace(".", self.get("ui_decimal_sign"))

    def size(self, n_bytes: float) -> str:
        """Return a size in the largest unit that keeps it above one (powers of ten)."""
        value, unit = float(n_bytes), "ui_unit_b"
        for name in ("ui_unit_kb", "ui_unit_mb", "ui_unit_gb", "ui_unit_tb"):
            if abs(value) < 999.5:
                break
            value, unit = value / 1000.0, name
        return f"{self.number(value, 0 if unit == 'ui_unit_b' or value >= 99.5 else 1)} {self.get(unit)}"

    def moment(self, iso: str) -> str:
        """Return date and time of day of an ISO 8601 text in the language's order; any other text as it is."""
        try:
            moment = datetime.fromisoformat(iso)
        except ValueError:
            return iso
        parts = {"year": f"{moment:%Y}", "month": f"{moment:%m}", "day": f"{moment:%d}"}
        offset = moment.utcoffset()
        zone = "" if offset is None else moment.isoformat()[-6:] if offset else "UTC"
        return " ".join(filter(None, (self.get("language.date", **parts), f"{moment:%H:%M:%S}", zone)))

    # ------------------------------------------------------------------ filling in

    def _system_words(self, value: str, beside: Mapping[str, Any]) -> str:
        """Return the reason the system gave in the user's language, without a file that the message names itself."""
        match = _SYSTEM_FAILURE.fullmatch(value)
        words = value if match is None else match["words"]
        known = self._raw(_SYSTEM_KEYS.get(words, ""))
        shown = words if known is None else known
        file = "" if match is None else match["file"] or ""
        is_named = any(
            isinstance(other, str) and other is not value and file in other for other in beside.values()
        )
        return f"{shown}: {file}" if file and not is_named else shown

    def _texts_of_keys(self, values: Mapping[str, Any]) -> dict[str, str]:
        found = {}
        for name, key in values.items():
            if name.endswith(_KEY_SUFFIX) and isinstance(key, str) and self.has(key):
                found[name.removesuffix(_KEY_SUFFIX)] = self._raw(key) or ""
            elif name.endswith(_TALLY_SUFFIX) and isinstance(key, Mapping):
                counted = (f"{self.get(item)}: {n}" for item, n in key.items())
                found[name.removesuffix(_TALLY_SUFFIX)] = ", ".join(counted)
        # The text of a key may name another one: the reason says by whom something was switched off.
        return {name: self._filled(text, {**values, **found}) for name, text in found.items()}

    def _filled(self, text: str, values: Mapping[str, Any], *, numbers_as_written: bool = False) -> str:
        try:
            return _Filler(self, numbers_as_written=numbers_as_written).vformat(text, (), values)
        except ValueError:  # a stray brace, as in a path that was given as default text
            return text


class _Filler(string.Formatter):
    """A formatter that leaves what it cannot fill, and writes numbers, dates and counted words by the language."""

    def __init__(self, words: ZeMosaicLocalization, *, numbers_as_written: bool) -> None:
        super().__init__()
        self._words = words
        self._numbers_as_written = numbers_as_written

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, str]:
        # Only plain names: a text file has no business reaching into the attributes of a value.
        if field_name in kwargs:
            return kwargs[field_name], field_name
        return _Missing(field_name), field_name

    def format_field(self, value: Any, format_spec: str) -> str:
        if isinstance(value, Mapping):
            value = ", ".join(f"{name}: {item}" for name, item in value.items())
        elif isinstance(value, list | tuple | set | frozenset):
            value = ", ".join(str(item) for item in value) or "–"
        if "|" in format_spec:
            return self._counted(value, format_spec.split("|"))
        if format_spec == "date":
            return visible_text(self._words.moment(str(value)))
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        try:
            shown = format(value, format_spec or ("," if is_number and not self._numbers_as_written else ""))
        except (TypeError, ValueError):
            return visible_text(str(value))
        if isinstance(value, float) and not format_spec and "e-" in shown:
            # Levels of frames whose values run from 0 to 1: people read no powers of ten.
            shown = f"{Decimal(repr(float(value))):f}"
        return visible_text(
            self._words.written(shown) if is_number and not self._numbers_as_written else shown
        )

    def _counted(self, value: Any, forms: Sequence[str]) -> str:
        if not isinstance(value, Integral):
            return forms[-1]
        return forms[min(plural_index(self._words.language_code, int(value)), len(forms) - 1)]


class _Missing:
    def __init__(self, name: str) -> None:
        self._name = name

    def __str__(self) -> str:
        return "{" + self._name + "}"

    def __format__(self, format_spec: str) -> str:
        return str(self)


def _read_texts(code: str) -> dict[str, str]:
    return json.loads((_FOLDER / f"{code}.json").read_text(encoding="utf-8-sig"))


@cache
def _names_of_languages() -> dict[str, str]:
    return {code: _read_texts(code).get("language.name", code) for code in available_languages()}
