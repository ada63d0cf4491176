"""Values are checked in one place and a wrong one is named."""

from __future__ import annotations

import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from zemosaic_core.errors import SettingsError
from zemosaic_settings import OPTIONS, OPTIONS_BY_KEY, Settings, canonical_values, conflicting_names
from zemosaic_settings.values import parse_value


def test_old_names_of_the_worker_are_understood():
    settings = Settings.from_mapping(
        {
            "cluster_threshold_config": 0.2,
            "stack_norm_method": "SKY_MEAN",
            "parsed_winsor_limits": (0.1, 0.02),
            "num_base_workers_config": 3,
            "astap_exe_path": "/opt/astap",
            "gpu_id_phase5": None,
            "two_pass_coverage_renorm_config": True,
        }
    )
    assert settings.cluster_panel_threshold == 0.2
    assert settings.stacking_normalize_method == "sky_mean"
    assert settings.stacking_winsor_limits == "0.1,0.02"
    assert settings.winsor_limits == (0.1, 0.02)
    assert settings.num_processing_workers == 3
    assert settings.astap_executable_path == "/opt/astap"
    assert settings.gpu_id_phase5 == -1


def test_values_that_exist_no_more_keep_their_meaning():
    settings = Settings.from_mapping(
        {"cache_retention": "per_tile", "resume": "Force", "language": "de", "logging_level": "DEBUG_DETAIL"}
    )
    assert settings.cache_retention == "run_end"
    assert settings.resume == "auto"
    assert settings.language == "de"
    assert settings.logging_level == "DEBUG"


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        ({"use_gpu_phase5": False, "stack_use_gpu": True}, False),
        ({"use_gpu_phase5": None, "stack_use_gpu": "off"}, False),
        ({"use_gpu_phase5": "", "use_gpu_stack": 0}, False),
        ({"stack_use_gpu": True, "use_gpu_stack": False}, True),
        ({}, True),
    ],
)
def test_gpu_switch_under_any_name(mapping, expected):
    assert Settings.from_mapping(mapping).use_gpu_phase5 is expected


def test_gpu_switch_and_mode_together():
    assert Settings.from_mapping({"gpu_mode": "auto"}).asked_gpu_mode == "auto"
    assert Settings.from_mapping({"use_gpu_phase5": False}).asked_gpu_mode == "off"
    assert Settings.from_mapping({"gpu_mode": "REQUIRE"}).asked_gpu_mode == "require"
    with pytest.raises(SettingsError) as caught:
        Settings.from_mapping({"gpu_mode": "require", "use_gpu_phase5": False})
    assert caught.value.key == "settings_gpu_contradiction"


@pytest.mark.parametrize(
    ("mapping", "key", "words"),
    [
        (
            {"stacking_kappa_low": "three"},
            "settings_not_a_number",
            ["_low", "three", "0.1", "10"],
        ),
        ({"stacking_kappa_low": 99}, "settings_out_of_range", ["stacking_kappa_low", "99", "0.1", "10"]),
        ({"stacking_kappa_low": math.nan}, "settings_not_a_number", ["stacking_kappa_low", "nan"]),
        ({"stacking_kappa_low": True}, "settings_not_a_number", ["stacking_kappa_low", "True"]),
        ({"tile_feather_px": 1.5}, "settings_not_a_whole_number", ["tile_feather_px", "1.5", "4096"]),
        ({"solver_method": "platesolve"}, "settings_not_a_choice", ["solver_method", "platesolve", "ASTAP"]),
        (
            {"crop_science": "perhaps"},
            "settings_not_a_switch",
            ["crop_science", "perhaps", "true"],
        ),
        (
            {"crop_follow_signal": "perhaps"},
            "settings_not_a_choice",
            ["crop", "perhaps", "rectangle"],
        ),
        ({"stacking_winsor_limits": "0.1"}, "settings_not_a_pair", ["stacking_winsor_limits", "0.1", "0.49"]),
        ({"stacking_winsor_limits": "0.1,0.6"}, "settings_not_a_pair", ["stacking_winsor_limits", "0.6"]),
        ({"qt_main_window_geometry": "wide"}, "settings_not_a_geometry", ["qt_main_window_geometry", "wide"]),
        ({"input_dir": 7}, "settings_not_a_text", ["input_dir", "7"]),
        (
            {"preview_png_p_low": 50, "preview_png_p_high": 50},
            "settings_not_below",
            ["preview_png_p_low", "50"],
        ),
    ],
)
def test_wrong_value_is_refused_in_one_line_that_names_it(mapping, key, words):
    with pytest.raises(SettingsError) as caught:
        Settings.from_mapping(mapping)
    assert caught.value.key == key
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_unknown_name_is_left_aside_or_refused_with_the_nearest():
    assert Settings.from_mapping({"batch_overlap_pct": 20}) == Settings()
    with pytest.raises(SettingsError, match="did you mean stacking_kappa_low") as caught:
        Settings.from_mapping({"stacking_kapa_low": 2}, strict_unknown=True)
    assert caught.value.values["nearest"] == "stacking_kappa_low"
    with pytest.raises(SettingsError, match="'zzz'") as caught:
        Settings().updated({"zzz": 2})
    assert caught.value.key == "settings_unknown"


def test_update_wins_over_what_was_even_by_another_name():
    settings = Settings.from_mapping({"use_gpu_phase5": True}).updated({"stack_use_gpu": False})
    assert settings.use_gpu_phase5 is False
    assert Settings.from_mapping({"input_dir": "/a"}).updated({"input_folder": ""}).input_dir == ""


def test_settings_are_frozen_and_travel_to_another_process():
    settings = Settings.from_mapping({"qt_main_window_geometry": [1, 2, 300, 200]})
    with pytest.raises(ValidationError):
        settings.resume = "off"
    with pytest.raises(ValidationError):
        Settings(stacking_kappa_low=-1)
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert Settings.from_mapping(settings.to_mapping()) == settings


def test_secret_is_not_shown():
    settings = Settings.from_mapping({"astrometry_api_key": "swordfish"})
    assert "swordfish" not in repr(settings)
    with pytest.raises(SettingsError) as caught:
        Settings.from_mapping({"astrometry_api_key": 12345678})
    assert "12345678" not in str(caught.value)


def test_canonical_values_sort_known_from_unknown():
    known, unknown = canonical_values({"output_folder": "/o", "zz": 1, "gpu_id_phase5": None})
    assert known == {"output_dir": "/o"}
    assert unknown == ("zz",)


@given(st.sampled_from(OPTIONS), st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()))
def test_a_value_is_either_refused_or_stable(option, value):
    try:
        parsed = parse_value(option, value)
    except SettingsError:
        return
    assert parse_value(option, parsed) == parsed


@pytest.mark.parametrize("option", [o for o in OPTIONS if o.type in ("int", "float")], ids=lambda o: o.key)
def test_limits_are_inclusive(option):
    assert parse_value(option, str(option.minimum)) == option.minimum
    assert parse_value(option, option.maximum) == option.maximum
    for outside in (option.minimum - 1, option.maximum + 1):
        with pytest.raises(SettingsError):
            parse_value(OPTIONS_BY_KEY[option.key], outside)


@pytest.mark.parametrize(
    ("values", "choice"),
    [
        ({}, ""),
        ({"gpu_id_phase5": 2}, "2"),
        ({"gpu_selector": " RTX 3060 "}, "~RTX 3060"),
        ({"gpu_selector": " "}, ""),
        ({"gpu_selector": "RTX 3060", "gpu_id_phase5": 0}, "0"),
        ({"gpu_selector": "CPU (no GPU)"}, ""),
    ],
)
def test_the_card_is_chosen_by_number_or_wished_for_by_name(values, choice):
    assert Settings.from_mapping(values).gpu_choice == choice


def test_the_processor_by_name_means_off():
    """Files of earlier versions switch the card off so."""
    assert Settings.from_mapping({"gpu_selector": "CPU (no GPU)"}).asked_gpu_mode == "off"
    assert Settings.from_mapping({"gpu_selector": "cpu", "gpu_id_phase5": 0}).asked_gpu_mode == "auto"
    assert Settings.from_mapping({"gpu_selector": "CPUX 1"}).asked_gpu_mode == "auto"
    with pytest.raises(SettingsError) as caught:
        Settings.from_mapping({"gpu_selector": "CPU", "gpu_mode": "require"})
    assert caught.value.key == "settings_gpu_contradiction"


def test_names_of_one_setting_that_differ_are_named():
    (conflict,) = conflicting_names({"use_gpu_phase5": True, "stack_use_gpu": "off", "gpu_mode": "auto"})
    assert conflict.key == "settings_names_differ"
    assert (conflict.values["option"], conflict.values["other"]) == ("use_gpu_phase5", "stack_use_gpu")
    assert (conflict.values["value"], conflict.values["other_value"]) == (True, False)
    for agreeing in ({"use_gpu_phase5": True, "stack_use_gpu": 1}, {"use_gpu": None, "stack_use_gpu": False}):
        assert conflicting_names(agreeing) == ()
