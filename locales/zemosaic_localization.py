"""Find the text of a key in the user's language; the only reader of ``locales/*.json``."""

from __future__ import annotations

import json
import logging
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zemosaic_core.visible_text import visible_text

__all__ = ["REFERENCE_LANGUAGE", "ZeMosaicLocalization", "available_languages"]

REFERENCE_LANGUAGE = "en"
"""The language in which every key has a text."""

_KEY_SUFFIX = "_key"
_TALLY_SUFFIX = "_tally"
_FOLDER = Path(__file__).resolve().parent
_log = logging.getLogger(__name__)


def available_languages() -> tuple[str, ...]:
    """Return the codes of the languages that have a file, sorted."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.json")))


class ZeMosaicLocalization:
    """Texts of one language, with English behind it.

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
        return key in self._texts or key in self._english

    def get(self, key: str, /, default_text: str | None = None, **kwargs: Any) -> str:
        """Return the text of a key with its placeholders filled.

        A value called ``<name>_key`` is itself a text key: its text stands where ``{name}`` is; ``<name>_tally`` is
        a mapping of text keys to numbers. ``{n:row|rows}`` is the word that goes with the number ``n``. A key without
        a text gives ``default_text``, or ``_key_`` so that it is seen. A placeholder without a value stays
        readable as ``{name}``: a message is never lost because one of its values is.
        """
        text = self._texts.get(key, self._english.get(key, default_text))
        if text is None:
            _log.warning("text key %r has no text", key)
            return f"_{key}_"
        return self._filled(text, {**kwargs, **self._texts_of_keys(kwargs)})

    def _texts_of_keys(self, values: Mapping[str, Any]) -> dict[str, str]:
        found = {}
        for name, key in values.items():
            if name.endswith(_KEY_SUFFIX) and isinstance(key, str) and self.has(key):
                found[name.removesuffix(_KEY_SUFFIX)] = self._texts.get(key, self._english.get(key, ""))
            elif name.endswith(_TALLY_SUFFIX) and isinstance(key, Mapping):
                counted = (f"{self.get(item)}: {n}" for item, n in key.items())
                found[name.removesuffix(_TALLY_SUFFIX)] = ", ".join(counted)
        # The text of a key may name another one: the reason says by whom something was switched off.
        return {name: self._filled(text, {**values, **found}) for name, text in found.items()}

    def _filled(self, text: str, values: Mapping[str, Any]) -> str:
        try:
            return _Filler(few=1 if self.language_code == "fr" else 0).vformat(text, (), values)
        except ValueError:  # a stray brace, as in a path that was given as default text
            return text


class _Filler(string.Formatter):
    """A formatter that leaves what it cannot fill.

    ``few``: 1 where nothing is counted in the singular, as in French; 0 where only one is.
    """

    def __init__(self, *, few: int) -> None:
        super().__init__()
        self._singular = (0, 1) if few else (1,)

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
            one, many = format_spec.split("|", 1)
            return one if value in self._singular else many
        try:
            shown = format(value, format_spec)
        except (TypeError, ValueError):
            shown = str(value)
        return visible_text(shown)


class _Missing:
    def __init__(self, name: str) -> None:
        self._name = name

    def __str__(self) -> str:
        return "{" + self._name + "}"

    def __format__(self, format_spec: str) -> str:
        return str(self)


def _read_texts(code: str) -> dict[str, str]:
    return json.loads((_FOLDER / f"{code}.json").read_text(encoding="utf-8-sig"))
