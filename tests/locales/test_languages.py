"""Every language says everything, counts as its speakers do and has room in the window."""

from __future__ import annotations

import pytest

from locales.plural_forms import plural_categories, plural_index
from locales.zemosaic_localization import available_languages
from tools.language_check import findings, read_texts, room_for
from zemosaic_settings import OPTIONS_BY_KEY

ENGLISH = {
    "ui_start": "Start",
    "found": "{n} {n:file|files} of {size:.1f} MB",
    "said": "The sky is not there",
}
GERMAN = {
    "ui_start": "Los",
    "found": "{n} {n:Datei|Dateien} mit {size:.1f} MB",
    "said": "Der Himmel ist nicht da",
}


@pytest.mark.parametrize("code", available_languages())
def test_nothing_is_wrong_with_a_language(code):
    assert findings(code, read_texts(code), read_texts("en")) == []


def test_languages_are_found_by_their_files():
    assert OPTIONS_BY_KEY["language"].choices == available_languages()


@pytest.mark.parametrize(
    ("key", "text", "finding"),
    [
        ("ui_start", None, "ui_start: missing"),
        ("extra", "Mehr", "extra: English has no such text"),
        ("ui_start", " ", "ui_start: empty"),
        (
            "ui_start",
            "Jetzt endlich alles anfangen",
            f"ui_start: 28 characters, there is room for {room_for('Start')}",
        ),
        ("found", "{n} {n:Datei|Dateien}", "found: placeholders {n}, English has {n}, {size:.1f}"),
        ("found", "{n} mit {size} MB", "found: placeholders {n}, {size}, English has {n}, {size:.1f}"),
        ("found", "{n} {n:a|b|c}, {size:.1f}", "found: {...:a|b|c} needs the forms one, other"),
        ("found", "{n} {n:a|}, {size:.1f}", "found: {...:a|} needs the forms one, other"),
        ("said", "The sky is not there", "said: left in English"),
    ],
)
def test_the_check_finds(key, text, finding):
    texts = {**GERMAN, key: text}
    texts = {name: said for name, said in texts.items() if said is not None}
    assert findings("de", texts, ENGLISH) == [finding]


def test_the_check_has_nothing_to_say_of_good_texts():
    assert findings("de", GERMAN, ENGLISH) == []
    assert findings("de", {**GERMAN, "found": "{size:.1f} MB: {n}"}, ENGLISH) == []
    assert findings("pl", {**GERMAN, "found": "{n} {n:plik|pliki|plików}, {size:.1f} MB"}, ENGLISH) == []


@pytest.mark.parametrize(
    ("code", "forms"),
    [
        # Numbers with the category that CLDR gives as its own examples.
        ("en", {0: "other", 1: "one", 2: "other", 21: "other"}),
        ("de", {0: "other", 1: "one", 11: "other", 101: "other"}),
        ("fr", {0: "one", 1: "one", 2: "other", 21: "other"}),
        ("pt", {0: "other", 1: "one", 2: "other"}),
        ("is", {0: "other", 1: "one", 2: "other", 11: "other", 21: "one", 101: "one", 111: "other"}),
        ("pl", {0: "many", 1: "one", 2: "few", 4: "few", 5: "many", 12: "many", 14: "many", 21: "many"}),
        ("pl", {22: "few", 24: "few", 25: "many", 102: "few", 112: "many", 1000: "many"}),
    ],
)
def test_plural_forms_are_those_of_the_language(code, forms):
    assert {n: plural_categories(code)[plural_index(code, n)] for n in forms} == forms
