"""Texts are found in every language, and a message is never lost because one of its values is."""

from __future__ import annotations

import ast
import errno
import json
import re
import string
from pathlib import Path

import numpy as np
import pytest

from locales.zemosaic_localization import ZeMosaicLocalization, available_languages
from zemosaic_core.gpu.terms import Reason
from zemosaic_pipeline.doctor import TOPICS
from zemosaic_pipeline.events import PHASES
from zemosaic_settings import GROUPS, LEVELS, OPTIONS

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "locales"
TEXTS = {
    code: json.loads((FOLDER / f"{code}.json").read_text(encoding="utf-8")) for code in available_languages()
}
ENGLISH = TEXTS["en"]


def placeholders(text: str) -> list[str]:
    return sorted(name for _, name, _, _ in string.Formatter().parse(text) if name is not None)


def test_languages_are_there():
    assert {"en", "fr"} <= set(available_languages())


def test_every_option_has_its_texts():
    wanted = [f"group.{group}" for group in GROUPS] + [f"level.{level}" for level in LEVELS]
    for option in OPTIONS:
        wanted += [f"{option.text_key}.label", f"{option.text_key}.help"]
        wanted += [option.choice_text_key(choice) for choice in option.choices]
        wanted += [f"unit.{option.unit}"] if option.unit else []
        wanted += [f"special.{option.special}"] if option.special else []
    texts = ZeMosaicLocalization("en")
    assert [key for key in wanted if not texts.has(key)] == []


def test_every_phase_topic_and_reason_has_its_text():
    wanted = [f"phase.{phase}" for phase in PHASES] + [f"doctor.topic.{topic}" for topic in TOPICS]
    wanted += [key for reason in Reason for key in (reason.text_key, reason.fallback_key)]
    assert [key for key in wanted if key not in ENGLISH] == []


# ------------------------------------------------------------------ keys the program names

# Function -> position of its text key.
_POSITION = {
    **dict.fromkeys(("SkipItem", "RunFailed", "SaveFailed", "SettingsError", "ZeMosaicError", "Message"), 0),
    **dict.fromkeys(("say", "texts"), 0),
    **dict.fromkeys(("leave_out", "failed"), 2),
}
_KEY = re.compile(r"^[a-z][a-z0-9]*([._][a-z0-9]+)+$")
ROOMS = ("zemosaic_core", "zemosaic_io", "zemosaic_settings", "zemosaic_pipeline", "zemosaic_ui")


def keys_named_in(path: Path) -> list[tuple[str, int]]:
    """Literal text keys in the calls of `_POSITION`, and what is passed as a key by name."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        position = _POSITION.get(name)
        values = list(node.args[position : position + 1]) if position is not None else []
        values += [item.value for item in node.keywords if item.arg in ("key", "advice_key")]
        for value in values:
            options = [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]
            for option in options:
                if (
                    isinstance(option, ast.Constant)
                    and isinstance(option.value, str)
                    and _KEY.match(option.value)
                ):
                    found.append((option.value, node.lineno))
    return found


GPU_KEY = re.compile(r"^gpu_(fallback|report|parity|info|chunk|chunking|summary|lease|op|reason)_[a-z_]+$")


def test_every_key_of_the_gpu_records_has_a_text():
    files = [ROOT / "zemosaic_gpu_policy.py", *(ROOT / "zemosaic_core" / "gpu").glob("*.py")]
    nodes = (node for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert sorted(text for text in texts if GPU_KEY.match(text) and text not in ENGLISH) == []


def program_files() -> list[Path]:
    return sorted([*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))])


def unfilled_in(path: Path) -> list[str]:
    """Placeholders of a text that the call which names its key gives no value for."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or any(item.arg is None for item in node.keywords):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        position = _POSITION.get(name)
        if position is None or len(node.args) <= position or name == "Message":
            continue
        key = node.args[position]
        if not isinstance(key, ast.Constant) or key.value not in ENGLISH:
            continue
        given = {str(item.arg).removesuffix("_key") for item in node.keywords} | {"path", "name"}
        given |= {"solver"} if name == "failed" else set()
        missing = set(placeholders(ENGLISH[key.value])) - given
        found += [f"line {node.lineno}: {key.value} lacks {', '.join(sorted(missing))}"] if missing else []
    return found


@pytest.mark.parametrize("path", program_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_placeholder_gets_a_value(path):
    assert unfilled_in(path) == []


@pytest.mark.parametrize("path", program_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_key_the_program_names_has_a_text(path):
    assert [f"line {line}: {key}" for key, line in keys_named_in(path) if key not in ENGLISH] == []


# ------------------------------------------------------------------ the class


def test_get_fills_values_in_the_chosen_language():
    texts = ZeMosaicLocalization("fr")
    assert texts.get("run_finished", clock="0:01:00") == "Terminé en 0:01:00."
    texts.set_language("en")
    assert texts.language_code == "en"
    assert texts.get("run_finished", clock="0:01:00") == "Finished in 0:01:00."


@pytest.mark.parametrize(("code", "language"), [("fr_FR", "fr"), ("FR-ca", "fr"), ("xx", "en"), ("", "en")])
def test_language_code_is_understood_or_english(code, language):
    assert ZeMosaicLocalization(code).language_code == language


def test_missing_key_shows_itself_or_the_given_text():
    texts = ZeMosaicLocalization("fr")
    assert texts.get("no.such.key") == "_no.such.key_"
    assert texts.get("no.such.key", "Found {n}", n=3) == "Found 3"
    assert not texts.has("no.such.key")
    assert texts.has("run_finished")


@pytest.mark.parametrize(
    ("text", "values", "shown"),
    [
        ("{a} and {b}", {"a": 1}, "1 and {b}"),
        ("{a:.2f} px", {}, "{a} px"),
        ("{a:.2f} px", {"a": "many"}, "many px"),
        ("{a:.2f} px", {"a": None}, "None px"),
        ("{a.__class__}", {"a": 1}, "{a.__class__}"),
        ("C:\\data\\{odd", {}, "C:\\data\\{odd"),
        ("{} {}", {}, "{0} {1}"),
        ("{key} {text}", {"key": 1, "text": 2}, "1 2"),
    ],
)
def test_a_value_that_is_missing_or_odd_does_not_lose_the_message(text, values, shown):
    assert ZeMosaicLocalization().get("no.such.key", text, **values) == shown


def test_a_value_that_is_a_key_is_shown_as_its_text():
    texts = ZeMosaicLocalization("fr")
    shown = texts.get(
        "x.y", "{op}: {reason}", op="assemble", op_key="group.assembly", reason_key="no.such.key"
    )
    assert shown == "Assemblage: {reason}"
    nested = {"why": 0, "why_key": "settings_unknown", "option": "abc"}
    assert texts.get("x.y", "{why}", **nested) == "Aucune option ne s'appelle « abc »."


@pytest.mark.parametrize(
    ("code", "n", "word"),
    [
        ("en", 0, "rows"),
        ("en", 1, "row"),
        ("en", 2, "rows"),
        ("fr", 0, "ligne"),
        ("fr", 1, "ligne"),
        ("fr", 2, "lignes"),
        ("en", "some", "rows"),
    ],
)
def test_words_go_with_their_number(code, n, word):
    texts = ZeMosaicLocalization(code)
    default = {"en": "{n} {n:row|rows}", "fr": "{n} {n:ligne|lignes}"}[code]
    assert texts.get("no_such_key", default, n=n) == f"{n} {word}"
    assert texts.get("no_such_key", default, n=np.int64(n) if isinstance(n, int) else n) == f"{n} {word}"


@pytest.mark.parametrize(
    ("code", "text", "values", "shown"),
    [
        ("en", "{a} px", {"a": 1.25}, "1.25 px"),
        ("fr", "{a} px", {"a": 1.25}, "1,25 px"),
        ("fr", "{a} px", {"a": np.float32(0.5)}, "0,5 px"),
        ("fr", "{a:+.1f}°", {"a": -0.25}, "-0,2°"),
        ("fr", "{a} MB", {"a": 12345}, "12\u202f345 MB"),
        ("en", "{a} MB", {"a": 12345}, "12\u202f345 MB"),
        ("fr", "{a}", {"a": "v1.2, b"}, "v1.2, b"),
        ("fr", "{a}", {"a": True}, "True"),
        ("en", "{a:date}", {"a": "2024-10-12T22:15:30.5"}, "2024-10-12 22:15:30"),
        ("fr", "{a:date}", {"a": "2024-10-12T22:15:30+00:00"}, "12/10/2024 22:15:30 UTC"),
        ("fr", "{a:date}", {"a": "2024-10-12T22:15:30+02:00"}, "12/10/2024 22:15:30 +02:00"),
        ("fr", "{a:date}", {"a": "last night"}, "last night"),
    ],
)
def test_numbers_and_dates_are_written_by_the_language(code, text, values, shown):
    assert ZeMosaicLocalization(code).get("no_such_key", text, **values) == shown


def test_levels_between_0_and_1_are_written_without_powers_of_ten():
    text = ZeMosaicLocalization("fr")
    assert text.get("no_such_key", "{a} {b}", a=1.5e-05, b=-2.5e-07) == "0,000015 -0,00000025"


def test_texts_about_the_settings_file_show_numbers_as_they_stand_in_it():
    said = ZeMosaicLocalization("fr").get(
        "settings_out_of_range", option="x", value=1234.5, minimum=0.5, maximum=9.0
    )
    assert "1234.5" in said
    assert "0.5" in said


def test_languages_are_shown_under_their_own_names():
    texts = ZeMosaicLocalization("fr")
    assert texts.get("option.language.choice.en") == "English"
    assert not texts.has("option.language.choice.xx")
    names = [texts.get(f"option.language.choice.{code}") for code in available_languages()]
    assert len(set(names)) == len(names)


def test_the_text_of_a_key_may_need_another_one():
    said = ZeMosaicLocalization("en").get(
        "gpu_fallback_unavailable", reason_key="gpu_reason_off", by_key="gpu_by_command"
    )
    assert said.endswith("switched off by --gpu.")


@pytest.mark.parametrize("code", available_languages())
def test_what_is_said_of_the_card_needs_no_programmer(code):
    """No names of options, no words of the trade."""
    keys = [
        key
        for key in ENGLISH
        if key.startswith(("gpu_", "settings_gpu", "ui_gpu", "option.gpu", "option.use_gpu"))
    ]
    forbidden = r"gpu_\w+|use_gpu\w*|\bkernels?\b|\bnoyaux?\b|\bchunks?\b|phase5"
    words = {key: re.sub(r"\{[^}]*\}", "", TEXTS[code][key]) for key in keys}
    assert [key for key in keys if re.search(forbidden, words[key])] == []


def test_lists_and_counts_are_shown_as_people_write_them():
    texts = ZeMosaicLocalization()
    assert (
        texts.get("x.y", "{a}; {b}", a=["ASTAP", 2], b={"header": 3, "ASTAP": 1})
        == "ASTAP, 2; header: 3, ASTAP: 1"
    )


def test_empty_list_is_a_dash():
    assert ZeMosaicLocalization().get("x.y", "solvers: {a}", a=[]) == "solvers: –"


def test_missing_translation_falls_back_to_english(monkeypatch):
    texts = ZeMosaicLocalization("fr")
    monkeypatch.delitem(texts._texts, "run_finished")
    assert texts.get("run_finished", clock="1") == "Finished in 1."


@pytest.mark.parametrize("code", available_languages())
def test_reasons_of_the_system_are_told_in_the_language_of_the_user(code):
    texts = ZeMosaicLocalization(code)
    denied = texts.get("system_error.EACCES")
    for reason in ("Permission denied", "[Errno 13] Permission denied: '/out/a.fits'"):
        said = texts.get("save_failed", path="/out/a.fits", reason=reason)
        assert said.endswith(denied)
        assert said.count("/out/a.fits") == 1
        assert "Errno" not in said
    missing = "[Errno 2] No such file or directory: 'astap_cli'"
    said = texts.get("solver_crashed", solver="ASTAP", reason=missing)
    assert said.rstrip(".").endswith(f"{texts.get('system_error.ENOENT')}: astap_cli")


def test_only_what_the_system_says_is_put_in_other_words():
    texts = ZeMosaicLocalization("de")
    for value in ("Permission", "[Errno 9999] Something else", "Permission denied by the server"):
        assert value.removeprefix("[Errno 9999] ") in texts.get("save_failed", path="a", reason=value)
    assert sorted(key for key in ENGLISH if key.startswith("system_error.")) == sorted(
        f"system_error.{name}" for name in errno.errorcode.values() if f"system_error.{name}" in ENGLISH
    )
