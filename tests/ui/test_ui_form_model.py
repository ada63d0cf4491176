"""The form model, the presets and the window's memory."""

from __future__ import annotations

import json

import pytest

from zemosaic_core.errors import SaveFailed, SettingsError
from zemosaic_settings import OPTIONS, Settings
from zemosaic_ui import presets
from zemosaic_ui.form_model import FormModel
from zemosaic_ui.texts import Texts
from zemosaic_ui.ui_memory import UiMemory, read_memory, write_memory


def another_value(option):
    if option.key in ("executor", "map_path"):
        return {"executor": "dask://nas:8786", "map_path": "/night=/mnt/night"}[option.key]
    match option.type:
        case "bool":
            return not option.default
        case "int" | "float":
            return option.maximum if option.default != option.maximum else option.minimum
        case "choice":
            return next(choice for choice in option.choices if choice != option.default)
        case "pair":
            return "0.1,0.2"
        case _:
            return "/some/where"


def test_every_option_of_the_forms_makes_the_round_trip():
    form = FormModel()
    expected = {}
    for key, field in form.fields.items():
        if key in ("gpu_mode", "preview_png_p_low", "preview_png_p_high"):
            continue  # these depend on another option; tried below
        expected[key] = another_value(field.option)
        assert form.set(key, expected[key]) is None
    settings = form.settings()
    for key, value in expected.items():
        assert getattr(settings, key) == value
    again = FormModel(Settings.from_mapping(json.loads(json.dumps(settings.to_mapping()))))
    assert again.to_mapping() == form.to_mapping()


def test_a_refused_value_is_explained_and_the_accepted_one_stays():
    form = FormModel()
    problem = form.set("stacking_kappa_low", "99")
    assert problem.key == "settings_out_of_range"
    assert problem.values["maximum"] == 10.0
    assert form["stacking_kappa_low"] == 3.0
    assert "stacking_kappa_low" in form.problems
    with pytest.raises(SettingsError):
        form.settings()
    assert form.set("stacking_kappa_low", "2.5") is None
    assert form.settings().stacking_kappa_low == 2.5


def test_values_that_contradict_each_other_are_refused_together():
    form = FormModel()
    form.set("use_gpu_phase5", False)
    form.set("gpu_mode", "require")
    with pytest.raises(SettingsError) as caught:
        form.settings()
    assert caught.value.key == "settings_gpu_contradiction"


def test_back_to_default_and_listeners():
    form = FormModel()
    heard = []
    form.on_change(heard.append)
    form.set("tile_feather_px", 10)
    form.set("tile_feather_px", 10)
    assert form.changed_keys == ["tile_feather_px"]
    form.reset("tile_feather_px")
    assert form.fields["tile_feather_px"].is_default
    assert heard == ["tile_feather_px", "tile_feather_px"]


@pytest.mark.parametrize(
    ("language", "words", "key"),
    [
        ("en", "rejection", "stacking_rejection_algorithm"),
        ("fr", "rejet", "stacking_rejection_algorithm"),
        ("en", "kappa low", "stacking_kappa_low"),
        ("en", "stack_norm_method", "stacking_normalize_method"),
    ],
)
def test_search_finds_by_label_name_and_alias(language, words, key):
    assert key in FormModel().search(words, Texts(language))


def test_search_ignores_accents_and_unknown_words():
    form = FormModel()
    texts = Texts("fr")
    assert form.search("zzzz", texts) == []
    assert set(form.search("", texts)) == set(form.fields)


def test_groups_hold_every_field_once():
    form = FormModel()
    keys = [field.option.key for fields in form.groups().values() for field in fields]
    assert sorted(keys) == sorted(o.key for o in OPTIONS if o.in_forms)
    basic = [field.option.level for fields in form.groups(level="basic").values() for field in fields]
    assert set(basic) == {"basic"}


@pytest.mark.parametrize("name", list(presets.QUALITY_PRESETS))
def test_quality_presets_are_valid_and_recognised(name):
    form = FormModel()
    presets.apply_quality(form, "best")
    presets.apply_quality(form, name)
    assert form.problems == {}
    assert presets.current_quality(form) == name
    form.set("stacking_rejection_algorithm", "linear_fit_clip")
    assert presets.current_quality(form) == "custom"


def test_a_preset_is_shared_without_private_values(tmp_path):
    form = FormModel()
    form.set("astrometry_api_key", "secret")
    form.set("input_dir", "/me")
    form.set("stacking_kappa_low", 2.0)
    path = tmp_path / presets.preset_file_name("My night / S50")
    presets.write_preset(path, "My night / S50", form)
    assert "secret" not in path.read_text()
    assert "/me" not in path.read_text()
    name, values = presets.read_preset(path)
    other = FormModel()
    other.set("tile_feather_px", 5)
    other.set("input_dir", "/you")
    other.load(values)
    assert name == "My night / S50"
    assert other["stacking_kappa_low"] == 2.0
    assert other["tile_feather_px"] == 96
    assert other["input_dir"] == "/you"
    assert presets.list_presets(tmp_path) == {"My night / S50": path}


def test_what_is_no_preset_is_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"options": []}')
    with pytest.raises(SettingsError):
        presets.read_preset(path)
    path.write_text('{"format": "zemosaic-preset", "options": {"stacking_kappa_low": 77}}')
    with pytest.raises(SettingsError):
        presets.read_preset(path)
    assert presets.list_presets(tmp_path) == {}


def test_a_preset_that_cannot_be_saved_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveFailed):
        presets.write_preset(tmp_path / "file" / "p.json", "p", FormModel())


def test_memory_round_trip_and_damage(tmp_path):
    path = tmp_path / "m.json"
    memory = UiMemory()
    for i in range(12):
        memory.visit("inputs", f"/night{i}")
    memory.visit("inputs", "/night5")
    write_memory(path, memory)
    assert read_memory(path).recent_inputs[:2] == ["/night5", "/night11"]
    assert len(read_memory(path).recent_inputs) == 8
    path.write_text("{broken")
    assert read_memory(path) == UiMemory()
    path.write_text('{"recent_inputs": "no list"}')
    assert read_memory(path) == UiMemory()


def test_numbers_read_well():
    en, fr = Texts("en"), Texts("fr")
    assert en.clock(3725) == "1:02:05"
    assert en.clock(65) == "1:05"
    if en.has("ui_decimal_sign"):
        assert en.number(12345.678, 1) == "12\u202f345.7"
        assert fr.number(1.5, 1) == "1,5"
        assert en.size(1_530_000_000) == "1.5 GB"
        assert fr.size(1_530_000_000) == "1,5 Go"
    assert en.message("no_such_key", {"a": 1}) == "no_such_key (a=1)"


def test_values_under_names_of_version_4_are_taken():
    form = FormModel()
    form.set("route", "panels")
    assert form.load({"sds_mode": True, "nothing_of_the_kind": 1}) == ["nothing_of_the_kind"]
    assert form["route"] == "sds"
