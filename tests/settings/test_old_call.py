"""Callers written for version 4: positions, keywords with and without a suffix, solver settings, the filter."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from solver_settings import SolverSettings
from zemosaic_core.errors import SettingsError
from zemosaic_settings import OPTIONS_BY_KEY, Settings
from zemosaic_settings.catalogue import ALIASES
from zemosaic_settings.old_call import POSITIONS, read_call, with_callback_place
from zemosaic_settings.old_options import OLD_OPTIONS, changed_old_options


def test_positions_are_those_of_version_4():
    assert len(POSITIONS) == len(set(POSITIONS)) == 97
    assert POSITIONS[10] == "progress_callback"
    assert (POSITIONS[0], POSITIONS[1], POSITIONS[-1]) == (
        "input_folder",
        "output_folder",
        "early_filter_enabled",
    )
    # Every one is an option, was one, or is read by the call itself.
    own = {
        "input_folder", "output_folder", "progress_callback", "solver_settings", "skip_filter_ui", "filter_invoked",
        "filter_overrides", "filtered_header_items", "early_filter_enabled", "astap_sensitivity",
    }  # fmt: skip
    old = {key for family in OLD_OPTIONS for key in family.defaults}
    assert set(POSITIONS) - set(OPTIONS_BY_KEY) - set(ALIASES) - own - old == set()


def test_positions_and_keywords_say_the_same():
    callback = print
    values = [
        "/astap",
        "/stars",
        2.5,
        1,
        80,
        0.2,
        3,
        5.0,
        callback,
        0.5,
        "sky_mean",
        "none",
        "kappa_sigma",
        2.0,
        4.0,
    ]
    by_place = read_call(values, {"stack_final_combine": "median"})
    assert by_place.progress_callback is callback
    names = [name for name in POSITIONS[2:] if name != "progress_callback"]
    given = dict(zip(names, [v for v in values if v is not callback], strict=False))
    with_suffix = {f"{name}_config": value for name, value in given.items()}
    for keywords in (given, with_suffix):
        by_name = read_call((), {**keywords, "stack_final_combine_config": "median"})
        one, other = (Settings.from_mapping(call.options) for call in (by_place, by_name))
        assert one == other
        assert (one.cluster_panel_threshold, one.stacking_kappa_high) == (0.2, 4.0)
        assert one.stacking_final_combine_method == "median"
        ((family, told),) = changed_old_options(by_name.options)
        assert (family.instead, told) == ("solver_method", {"astap_default_sensitivity": 80})


def test_a_process_has_no_callback_or_one_that_does_not_count():
    rest = ["/astap", "/stars", 3.0, 2, 100, 0.05, 0, 0]
    for args in ([*rest, 4.0], [*rest, None, 4.0], [*rest, print, 4.0]):
        call = read_call(with_callback_place(args), {})
        assert call.progress_callback is None
        assert call.options["stack_ram_budget_gb"] == 4.0
    assert with_callback_place(rest) == rest


def test_solver_settings_as_a_mapping_and_as_an_object():
    given = {"solver_choice": "ANSVR", "timeout": 90, "astap_search_radius_deg": 1.5, "force_lum": True}
    for solver in (given, SimpleNamespace(**given), SolverSettings(solver_choice="ANSVR", timeout=90)):
        for name in ("solver_settings", "solver_settings_dict"):
            settings = Settings.from_mapping(read_call((), {name: solver}).options)
            assert (settings.solver_method, settings.astrometry_timeout) == ("ANSVR", 90)


def test_what_the_filter_said():
    call = read_call(
        (),
        {
            "skip_filter_ui": True,
            "filter_invoked": True,
            "early_filter_enabled_config": False,
            "filter_overrides": {
                "preplan_master_groups": [[{"path": "/a.fit"}, "/b.fit"], [], [{"path_raw": "/c.fit"}]],
                "cluster_panel_threshold": 0.3,
                "global_wcs_plan_override": {"sds_mode": True},
                "resolved_wcs_count": 2,
            },
            "filtered_header_items": [{"path": "/a.fit", "wcs": "W"}, {"path": "/b.fit", "wcs": None}],
        },
    )
    assert call.selection == {
        "frame_selection": ["/a.fit", "/b.fit"],
        "frame_groups": [["/a.fit", "/b.fit"], ["/c.fit"]],
    }
    assert call.known_wcs == {"/a.fit": "W"}
    settings = Settings.from_mapping(call.options)
    assert (settings.cluster_panel_threshold, settings.route) == (0.3, "sds")
    assert not call.cancelled
    assert read_call((), {"filter_overrides": {"filter_cancelled": True}}).cancelled
    plain = read_call((), {"filter_overrides": {"sds_mode": False}, "route": "panels"})
    assert Settings.from_mapping(plain.options).route == "panels"


def test_wrong_calls_are_refused():
    with pytest.raises(SettingsError) as caught:
        read_call([None] * 96, {})
    assert caught.value.key == "error_old_call_arguments"
    with pytest.raises(SettingsError, match="twice"):
        read_call(["/astap"], {"astap_exe_path_config": "/other"})
