"""A plan tells what a run would cost and writes nothing; the demo is written once."""

from __future__ import annotations

import json

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

import run_zemosaic
from zemosaic_core.errors import SettingsError
from zemosaic_core.grid import make_grid
from zemosaic_io import demo_session
from zemosaic_io.star_catalogue import catalogue_stars_near
from zemosaic_ui import commands, demo


@pytest.fixture(autouse=True)
def own_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("ZEMOSAIC_CONFIG_DIR", str(tmp_path / "user"))
    monkeypatch.setenv("ZEMOSAIC_GPU", "off")
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    folder = tmp_path_factory.mktemp("night")
    demo_session.write_demo_night(
        folder, panels=(1, 1), frames_per_panel=3, shape_hw=(160, 120), bad_frames=False, n_satellites=0
    )
    (folder / "note.fit").write_bytes(b"not an image")
    return folder


def test_plan_shows_frames_cost_and_what_is_left_out(night, tmp_path, capsys):
    assert run_zemosaic.main(["plan", str(night), str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "Usable frames: 3" in shown
    assert "Stacking master tiles" in shown
    assert "note.fit" in shown
    assert "switched off" in shown
    assert "{" not in shown
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def target_only(tmp_path_factory):
    """Four frames side by side, whose headers all name the target; and the size of their mosaic."""
    folder = tmp_path_factory.mktemp("target")
    truth = demo_session.write_demo_night(
        folder,
        panels=(1, 4),
        frames_per_panel=1,
        shape_hw=(960, 640),
        bad_frames=False,
        n_satellites=0,
        catalogue=catalogue_stars_near(*demo_session.DEMO_CENTER_DEG, 2.0),
    )
    for frame in truth.frames:
        with fits.open(folder / frame.name, mode="update") as hdus:
            hdus[0].header["RA"], hdus[0].header["DEC"] = demo_session.DEMO_CENTER_DEG
    wcs_list = [WCS(frame.setup.cards) for frame in truth.frames]
    return folder, make_grid(wcs_list, [(960, 640)] * 4).shape_hw


def planned(folder, tmp_path, capsys, *more):
    assert run_zemosaic.main(["plan", str(folder), str(tmp_path / "out"), "--json", *more]) == 0
    return json.loads(capsys.readouterr().out)


def test_headers_that_name_the_target_give_a_lower_bound_and_solved_frames_the_outline(
    target_only, tmp_path, capsys
):
    folder, true_hw = target_only
    told = planned(folder, tmp_path, capsys)
    assert told["outline"] == {
        "shape_hw": [960, 640],
        "known_from": "targets",
        "n_solved": 0,
        "n_asked": 0,
        "n_far": 0,
    }
    some = planned(folder, tmp_path, capsys, "--solve-some", "2")
    assert some["outline"] == {
        "shape_hw": some["canvas_hw"],
        "known_from": "solved",
        "n_solved": 2,
        "n_asked": 2,
        "n_far": 0,
    }
    np.testing.assert_allclose(some["canvas_hw"], true_hw, rtol=0.03)
    assert some["disk_bytes"] > 2 * told["disk_bytes"]


def test_plan_says_at_least_where_headers_name_the_target(target_only, tmp_path, capsys):
    assert run_zemosaic.main(["plan", str(target_only[0]), str(tmp_path / "out")]) == 0
    assert "at least" in capsys.readouterr().out


def test_plan_as_facts(night, tmp_path, capsys):
    arguments = ["plan", str(night), str(tmp_path / "out"), "--json", "--set", "astrometry_api_key=secret"]
    assert run_zemosaic.main(arguments) == 0
    text = capsys.readouterr().out
    facts = json.loads(text)
    assert facts["n_frames"] == 3
    assert facts["peak_bytes"] > 0
    assert "secret" not in text


def test_plan_of_an_empty_folder_fails_with_its_reason(tmp_path, capsys):
    assert run_zemosaic.main(["plan", str(tmp_path), str(tmp_path / "out")]) == 1
    assert str(tmp_path) in capsys.readouterr().err


@pytest.fixture
def written(monkeypatch):
    """Count how often a night is written, without rendering it."""
    calls = []

    def write(folder, *, panels, frames_per_panel, catalogue, **_):
        calls.append(frames_per_panel)
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(panels[0] * panels[1] * frames_per_panel):
            (folder / f"{number}.fit").write_bytes(b"")
        assert len(catalogue[0]) > 100

    monkeypatch.setattr(demo_session, "write_demo_night", write)
    return calls


def test_demo_is_written_once_and_again_when_it_differs(tmp_path, written):
    said = []
    for frames in (3, 3, 4):
        folder = demo.prepare_demo(tmp_path, frames, lambda key, **_: said.append(key))
    assert folder == tmp_path / "frames"
    assert written == [3, 4]
    assert said == ["demo_writing", "demo_reused", "demo_writing"]
    (folder / "0.fit").unlink()
    demo.prepare_demo(tmp_path, 4, lambda *_, **__: None)
    assert written == [3, 4, 4]
    assert len(list(folder.glob("*.fit"))) == 16


def test_demo_refuses_what_makes_no_night(tmp_path):
    with pytest.raises(SettingsError, match="3 to 1000"):
        demo.prepare_demo(tmp_path, 2, print)


def test_demo_command_runs_what_it_wrote(tmp_path, written, monkeypatch):
    asked = []
    monkeypatch.setattr(commands, "follow_run", lambda settings, *_, **__: asked.append(settings) or 0)
    assert run_zemosaic.main(["demo", str(tmp_path / "d"), "--frames", "3", "--quiet"]) == 0
    assert asked[0].input_dir == str(tmp_path / "d" / "frames")
    assert asked[0].output_dir == str(tmp_path / "d" / "mosaic")
