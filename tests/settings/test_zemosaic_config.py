"""The settings file: nothing is lost, nothing is half written, other names stay in step."""

from __future__ import annotations

import json
import os
import stat
import sys

import pytest

import zemosaic_config
from solver_settings import SolverSettings
from zemosaic_config import DEFAULT_CONFIG, get_config_path, load_config, read_config, save_config
from zemosaic_core.errors import SaveFailed, SettingsError
from zemosaic_settings import OPTIONS_BY_KEY
from zemosaic_settings.old_options import OLD_OPTIONS


@pytest.fixture(autouse=True)
def config_file(tmp_path, monkeypatch):
    for name in ("ZEMOSAIC_CONFIG", *zemosaic_config.ENVIRONMENT):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ZEMOSAIC_CONFIG_DIR", str(tmp_path / "user"))
    return tmp_path / "user" / "zemosaic_config.json"


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def test_defaults_without_a_file(config_file):
    assert load_config() == DEFAULT_CONFIG
    assert set(OPTIONS_BY_KEY) <= set(DEFAULT_CONFIG)
    assert DEFAULT_CONFIG["stack_use_gpu"] is DEFAULT_CONFIG["use_gpu_stack"] is True
    assert not config_file.exists()


def test_path_follows_the_environment(monkeypatch, config_file, tmp_path):
    assert get_config_path() == str(config_file)
    monkeypatch.setenv("ZEMOSAIC_CONFIG", str(tmp_path / "other.json"))
    assert get_config_path() == str(tmp_path / "other.json")
    monkeypatch.delenv("ZEMOSAIC_CONFIG")
    monkeypatch.delenv("ZEMOSAIC_CONFIG_DIR")
    assert "ZeMosaic" in get_config_path()


def test_round_trip_keeps_unknown_keys_and_flat_json(config_file):
    write(config_file, {"batch_overlap_pct": 20, "stacking_kappa_low": 2.5, "of_the_future": {"a": [1]}})
    config = load_config()
    config["tile_feather_px"] = 32
    assert save_config(config) is True
    stored = json.loads(config_file.read_text(encoding="utf-8"))
    assert stored["of_the_future"] == {"a": [1]}
    assert stored["batch_overlap_pct"] == 20
    assert stored["stacking_kappa_low"] == 2.5
    assert stored["tile_feather_px"] == 32
    assert load_config()["tile_feather_px"] == 32


@pytest.mark.parametrize("changed", ["use_gpu_phase5", "stack_use_gpu", "use_gpu_stack"])
def test_gpu_names_stay_in_step_whichever_is_changed(changed, config_file):
    config = load_config()
    config[changed] = False
    save_config(config)
    loaded = load_config()
    assert (loaded["use_gpu_phase5"], loaded["stack_use_gpu"], loaded["use_gpu_stack"]) == (False,) * 3


@pytest.mark.parametrize(("key", "other"), [("input_dir", "input_folder"), ("output_dir", "output_folder")])
def test_folder_names_stay_in_step(key, other, config_file):
    save_config({other: "/sky"})
    assert load_config()[key] == load_config()[other] == "/sky"
    save_config({key: "/nebula", other: "/sky"})
    assert load_config()[key] == load_config()[other] == "/nebula"


def test_old_suffixed_name_is_saved_under_its_own(config_file):
    save_config({"max_raw_per_master_tile_config": 40})
    stored = json.loads(config_file.read_text(encoding="utf-8"))
    assert stored["max_raw_per_master_tile"] == 40
    assert "max_raw_per_master_tile_config" not in stored


def test_partial_save_keeps_the_rest(config_file):
    save_config({"language": "fr"})
    save_config({"resume": "off"})
    assert (load_config()["language"], load_config()["resume"]) == ("fr", "off")


def test_bad_value_in_a_file_is_reported_and_its_default_stands(config_file):
    write(config_file, {"stacking_kappa_low": "abc", "resume": "off"})
    loaded = read_config()
    assert loaded.values["stacking_kappa_low"] == 3.0
    assert loaded.values["resume"] == "off"
    assert [problem.values["option"] for problem in loaded.problems] == ["stacking_kappa_low"]
    with pytest.raises(SettingsError, match="abc"):
        load_config(strict=True)


@pytest.mark.parametrize("content", ["{ not json", "[1, 2]"])
def test_damaged_file_is_reported_and_set_aside_on_save(content, config_file):
    write(config_file, content)
    assert [problem.key for problem in read_config().problems] == ["settings_file_unreadable"]
    save_config({"resume": "off"})
    aside = config_file.with_name(config_file.name + ".unreadable")
    assert aside.read_text(encoding="utf-8") == content
    assert load_config(strict=True)["resume"] == "off"


def test_named_file_must_exist(tmp_path):
    with pytest.raises(SettingsError, match=r"missing\.json"):
        load_config(tmp_path / "missing.json", strict=True)
    with pytest.raises(SettingsError) as raised:
        load_config(tmp_path / "missing.json", strict=True)
    # Nobody can correct or delete what is not there.
    assert raised.value.key == "settings_file_missing"


def test_file_beside_the_program_is_read_until_there_is_an_own_one(monkeypatch, tmp_path, config_file):
    monkeypatch.setattr(zemosaic_config, "__file__", str(tmp_path / "zemosaic_config.py"))
    write(tmp_path / "zemosaic_config.json", {"resume": "off"})
    assert load_config()["resume"] == "off"
    save_config({"resume": "auto"})
    assert load_config()["resume"] == "auto"


def test_wrong_value_is_not_saved(config_file):
    with pytest.raises(SettingsError, match="tile_feather_px"):
        save_config({"tile_feather_px": -4})
    assert not config_file.exists()


def test_empty_mapping_writes_nothing(config_file):
    assert save_config({}) is False
    assert not config_file.exists()


def test_failed_save_leaves_the_old_file_and_no_litter(config_file, monkeypatch):
    save_config({"resume": "off"})
    before = config_file.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(SaveFailed, match="No space left"):
        save_config({"resume": "auto"})
    assert config_file.read_bytes() == before
    assert os.listdir(config_file.parent) == [config_file.name]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX file modes")
def test_file_is_readable_by_its_owner_only(config_file):
    save_config({"astrometry_api_key": "k"})
    assert stat.S_IMODE(config_file.stat().st_mode) == 0o600


def test_environment_overrides_but_is_not_saved(monkeypatch, config_file):
    save_config({"language": "fr"})
    monkeypatch.setenv("ZEMOSAIC_LANGUAGE", "en")
    monkeypatch.setenv("ZEMOSAIC_ASTAP_MAX_PROCS", "4")
    config = load_config()
    assert (config["language"], config["astap_max_instances"]) == ("en", 4)
    save_config(config)
    monkeypatch.delenv("ZEMOSAIC_LANGUAGE")
    monkeypatch.delenv("ZEMOSAIC_ASTAP_MAX_PROCS")
    assert (load_config()["language"], load_config()["astap_max_instances"]) == ("fr", 1)


def test_key_of_the_environment_is_only_a_fallback(monkeypatch, config_file):
    monkeypatch.setenv("ASTROMETRY_API_KEY", "from-outside")
    assert load_config()["astrometry_api_key"] == "from-outside"
    save_config(load_config())
    assert json.loads(config_file.read_text())["astrometry_api_key"] == ""
    save_config({"astrometry_api_key": "typed"})
    assert load_config()["astrometry_api_key"] == "typed"


def test_bad_environment_value_is_reported(monkeypatch, config_file):
    monkeypatch.setenv("ZEMOSAIC_LOG_LEVEL", "LOUD")
    assert [problem.values["value"] for problem in read_config().problems] == ["LOUD"]


def test_home_sign_in_paths_is_expanded(config_file):
    write(config_file, {"input_dir": "~/sky"})
    assert load_config()["input_dir"] == os.path.expanduser("~/sky")


def test_configured_astap_wins_over_the_search(tmp_path, config_file):
    program = tmp_path / "astap"
    program.write_bytes(b"")
    save_config({"astap_executable_path": str(program), "astap_data_directory_path": str(tmp_path)})
    assert zemosaic_config.get_astap_executable_path() == str(program)
    assert zemosaic_config.get_astap_data_directory_path() == str(tmp_path)
    assert zemosaic_config.get_astap_default_search_radius() == 3.0
    assert zemosaic_config.get_astap_default_downsample() == 0
    assert zemosaic_config.get_astap_default_sensitivity() == 100
    assert zemosaic_config.get_astap_max_instances() == 1


def test_solver_settings_are_a_view_of_the_file(config_file, tmp_path):
    settings = SolverSettings.load_default()
    settings.solver_choice, settings.timeout = "ASTAP", 99
    settings.save_default()
    assert load_config()["solver_method"] == "ASTAP"
    assert load_config()["astrometry_timeout"] == 99
    settings.save(tmp_path / "solver.json")
    assert SolverSettings.load(tmp_path / "solver.json") == SolverSettings.load_default() == settings


def test_solver_settings_of_an_older_program_load(tmp_path):
    write(
        tmp_path / "s.json",
        {"solver_choice": "ansvr", "astap_sensitivity": 100, "intertile_gain_limits": [0, 1]},
    )
    assert SolverSettings.load(tmp_path / "s.json").solver_choice == "ANSVR"
    with pytest.raises(SettingsError, match=r"none\.json"):
        SolverSettings.load(tmp_path / "none.json")


def test_a_misspelt_option_of_the_file_is_told_and_keys_of_others_are_not(tmp_path):
    path = tmp_path / "zemosaic_config.json"
    old = {key: 3 for family in OLD_OPTIONS for key in family.defaults}
    path.write_text(json.dumps({**old, "stacking_kapa_low": 2.5, "observatory": "home", "kappa": 1}), "utf-8")
    told = read_config(path).conflicts
    assert [(error.key, error.values["option"], error.values["nearest"]) for error in told] == [
        ("settings_unknown_nearest", "stacking_kapa_low", "stacking_kappa_low")
    ]
