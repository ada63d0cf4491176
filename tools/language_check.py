"""Check the texts of languages against English: ``python -m tools.language_check [CODE ...]``.

Says which keys are missing or left over, which placeholders differ, which counted words have too few or too many forms,
which sentences were left in English, and which short texts are too long for the place that English has in the window.
Exit code 1 when there is something to say.
"""

from __future__ import annotations

import argparse
import json
import re
import string
import sys
from collections.abc import Mapping
from pathlib import Path

from locales.plural_forms import plural_categories
from locales.zemosaic_localization import REFERENCE_LANGUAGE, available_languages

__all__ = ["findings", "main", "read_texts", "room_for"]

_FOLDER = Path(__file__).resolve().parent.parent / "locales"
# What stands on buttons, in tables and beside fields cannot break into lines as sentences do.
_SHORT = re.compile(
    r"^(ui_(?!.*(note|hint|tip|subtitle|died|killed|waiting|end_|probe|overruled|preset_not))|filter_(?!.*(tip|mode|note))"
    r"|level\.|group\.|phase\.|option\..*\.(label|choice\..*)$|output\.|doctor\.topic|unit\.|special\.|plan\.column"
    r"|report\.(card|frame_|tile_|phase_|overlap_[abct]|left_[fpr]|message_|setting_)|method\.|device\.)"
)
_ENGLISH_WORDS = re.compile(r"\b(the|is|are|of|and|with|not|this)\b")
_SHORTEST_SENTENCE = 4
_MARGIN = 10
_VALUE = 5
_STRETCH = 1.6


def read_texts(code: str) -> dict[str, str]:
    """Return the texts of a language by key, as they stand in its file."""
    texts: dict[str, str] = json.loads((_FOLDER / f"{code}.json").read_text(encoding="utf-8"))
    return texts


def room_for(english: str) -> int:
    """Return how many characters a short text may have where the English one stands."""
    return round(_STRETCH * _length(english)) + _MARGIN


def findings(code: str, texts: Mapping[str, str], english: Mapping[str, str]) -> list[str]:
    """Return what is wrong with the texts of a language, one line each."""
    found = [f"{key}: missing" for key in english if key not in texts]
    found += [f"{key}: English has no such text" for key in texts if key not in english]
    for key in english.keys() & texts.keys():
        found += [f"{key}: {problem}" for problem in _problems(code, key, texts[key], english[key])]
    return sorted(found)


def _problems(code: str, key: str, text: str, english: str) -> list[str]:
    if not text.strip():
        return ["empty"]
    found = []
    if _fields(text) != _fields(english):
        found.append(f"placeholders {_worded(_fields(text))}, English has {_worded(_fields(english))}")
    wanted = plural_categories(code)
    for forms in _counted(text):
        if len(forms) != len(wanted) or not all(forms):
            found.append(f"{{...:{'|'.join(forms)}}} needs the forms {', '.join(wanted)}")
    if code != REFERENCE_LANGUAGE:
        said = re.sub(r"\{[^}]*\}", "", text)
        if text == english and len(said.split()) >= _SHORTEST_SENTENCE and _ENGLISH_WORDS.search(said):
            found.append("left in English")
        if _SHORT.match(key) and _length(text) > room_for(english):
            found.append(f"{_length(text)} characters, there is room for {room_for(english)}")
    return found


def _length(text: str) -> int:
    """Return the length a text may reach: values like ``1 234``, counted words in their longest form."""
    length = 0
    for said, name, spec, _ in string.Formatter().parse(text):
        words = (spec or "").split("|")
        length += len(said) + (0 if name is None else max(map(len, words)) if len(words) > 1 else _VALUE)
    return length


def _parsed(text: str) -> list[tuple[str, str]]:
    return [(name, spec or "") for _, name, spec, _ in string.Formatter().parse(text) if name is not None]


def _fields(text: str) -> set[tuple[str, str]]:
    """Return names with their formats; how often a number is counted with is each language's own affair."""
    return {(name, spec) for name, spec in _parsed(text) if "|" not in spec}


def _worded(fields: set[tuple[str, str]]) -> str:
    return ", ".join(sorted("{" + ":".join(filter(None, field)) + "}" for field in fields)) or "none"


def _counted(text: str) -> list[list[str]]:
    return [spec.split("|") for _, spec in _parsed(text) if "|" in spec]


def main() -> int:
    """Print what is wrong with some or all languages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("code", nargs="*", default=available_languages())
    english, wrong = read_texts(REFERENCE_LANGUAGE), False
    for code in parser.parse_args().code:
        for line in findings(code, read_texts(code), english):
            wrong = True
            print(f"{code}: {line}")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
