"""No option is silently ignored: whatever is changed, the plan of the run changes, or what is named here does."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
from made_frames import base_cards, pointings, write

from zemosaic_io.headers import read_frame_info
from zemosaic_pipeline import calibrate, plan
from zemosaic_pipeline.machine import Machine
from zemosaic_pipeline.tile_intake import tile_folders
from zemosaic_settings import OPTIONS, Option, Settings

TESTS = Path(__file__).parent.parent
# What no plan holds, and the test that watches it.
ELSEWHERE = {
    "scan_recursive": "io/test_folders.py",
    "grid_mode": "pipeline/test_listed_frames.py",
    "executor": "settings/test_executor.py",
    "map_path": "settings/test_executor.py",
}
# An option that needs another one to mean anything.
TOGETHER = {
    "radial_": {"apply_radial_weight": True},
    "min_radial_": {"apply_radial_weight": True},
    "quality_crop_": {"quality_crop_enabled": True},
    "altaz_": {"altaz_cleanup_enabled": True},
    "quality_gate_": {"quality_gate_enabled": True},
    "sds_": {"route": "sds"},
    "cluster_min_frames": {"route": "panels"},
    "crop_science": {"crop": "rectangle"},
}
OTHER_NUMBERS = {"memory_limit_mb": 8000}
OTHER_TEXTS = {
    "astrobin_filters": "IRCUT=4711",
    "leave_out_tiles": "1",
    "observer_site": "10, 20",
    "save_formats": "tiff",
    "stacking_winsor_limits": "0.1,0.2",
}


@pytest.fixture(autouse=True)
def asked_of_the_card(monkeypatch):
    """What the settings ask of the graphics card, instead of a card."""
    monkeypatch.setattr(plan, "GpuPolicy", lambda **asked: asked)


@pytest.fixture(scope="module")
def infos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("options")
    made = []
    for i, setup in enumerate(pointings(n=12, shape_hw=(48, 64))):
        path = write(folder / f"{i}.fit", np.full((48, 64), 300 + i, np.uint16), base_cards(setup, i))
        made.append(read_frame_info(path))
    return made


def facts(settings, infos):
    """What a run goes by; nothing of it is the settings themselves."""
    machine = Machine(8, 16_000_000_000, 1_000_000_000_000)
    run = plan.resolve(settings, infos, machine, canvas_hw=(60, 80))
    card = plan.make_policy(settings, machine, None)
    return run, card, calibrate.options_from(settings), tile_folders(settings)


def another(option: Option, folder: Path):
    """Return a value that is not the default."""
    match option.type:
        case "bool":
            return not option.default
        case "choice":
            return next(choice for choice in option.choices if choice != option.default)
        case "int" | "float":
            step = option.step or 1
            tried = (OTHER_NUMBERS.get(option.key, 2 * option.default + 3), option.default + step)
            return next((value for value in tried if value <= option.maximum), option.default - step)
        case "folder":
            return str(folder)
        case _:
            return OTHER_TEXTS.get(option.key, "something")


def of_a_run(option: Option) -> bool:
    return option.group != "interface" and option.key not in ELSEWHERE


@pytest.mark.parametrize("option", [o for o in OPTIONS if of_a_run(o)], ids=lambda option: option.key)
def test_changing_an_option_changes_what_a_run_goes_by(option, infos, tmp_path):
    given = {"input_dir": str(tmp_path / "in"), "output_dir": str(tmp_path / "out")}
    for prefix, needed in TOGETHER.items():
        if option.key.startswith(prefix):
            given |= {key: value for key, value in needed.items() if key != option.key}
    (tmp_path / "in").mkdir()
    (tmp_path / "other").mkdir()
    before = Settings.from_mapping(given)
    after = before.updated({option.key: another(option, tmp_path / "other")})
    assert before != after
    assert facts(before, infos) != facts(after, infos)


def test_what_is_watched_elsewhere_is():
    for key, name in ELSEWHERE.items():
        option = next(option for option in OPTIONS if option.key == key)
        text = (TESTS / name).read_text(encoding="utf-8")
        assert any(word in text for word in (*option.all_names, "recursive")), key


def test_facts_are_compared_by_value(infos, tmp_path):
    given = {"input_dir": str(tmp_path), "output_dir": str(tmp_path / "out")}
    one, other = (facts(Settings.from_mapping(given), infos) for _ in range(2))
    assert one == other
    assert astuple(one[0].route) == astuple(other[0].route)
