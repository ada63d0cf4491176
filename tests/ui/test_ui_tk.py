"""The Tk window: the same models, a small view. Needs a display (a virtual one is enough)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import tkinter as tk

import pytest

from zemosaic_ui.run_state import RunStatus

pytestmark = pytest.mark.display


@pytest.fixture(scope="module", autouse=True)
def virtual_display():
    """Give Tk a screen nobody sees where there is none and Xvfb is installed."""
    if os.environ.get("DISPLAY") or sys.platform in ("win32", "darwin") or shutil.which("Xvfb") is None:
        yield
        return
    reader, writer = os.pipe()
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", str(writer), "-screen", "0", "1280x800x24"],
        pass_fds=[writer],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(writer)
    with os.fdopen(reader) as told:
        number = told.readline().strip()
    patch = pytest.MonkeyPatch()
    patch.setenv("DISPLAY", f":{number}")
    yield
    patch.undo()
    server.terminate()
    server.wait(10)


@pytest.fixture
def gui(tmp_path):
    from zemosaic_gui import ZeMosaicGUI

    try:
        root = tk.Tk()
    except tk.TclError as error:
        pytest.skip(f"no display: {error}")
    made = ZeMosaicGUI(root, tmp_path / "config.json", worker="fake_workers:happy")
    yield made
    made.controller.stop_now()
    made.controller.wait(10.0)
    while made.controller.is_active:
        made.controller.poll()
    if root.tk is not None and made._last_status is not None:
        with contextlib.suppress(tk.TclError):  # the test closed it
            made.close()


def spin(gui, until, timeout=60.0):
    end = time.monotonic() + timeout
    while not until():
        assert time.monotonic() < end
        gui.root.update()
        time.sleep(0.01)


def test_options_make_the_round_trip(gui, tmp_path):
    rows = gui.form_view.rows
    rows["stacking_kappa_low"].value.set("2.5")
    rows["hot_pixel_correction"].value.set(False)
    rows["resample_kernel"].control.current(0)
    rows["resample_kernel"].control.event_generate("<<ComboboxSelected>>")
    gui.root.update()
    assert gui.form["stacking_kappa_low"] == 2.5
    assert gui.form["hot_pixel_correction"] is False
    assert gui.form["resample_kernel"] == "bilinear"
    rows["stacking_kappa_low"].value.set("77")
    assert "10" in rows["stacking_kappa_low"].note.cget("text")
    rows["stacking_kappa_low"].reset.invoke()
    assert rows["stacking_kappa_low"].value.get() == "3"
    gui.close()
    stored = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert stored["hot_pixel_correction"] is False


def test_every_option_is_there_and_can_be_searched(gui):
    assert set(gui.form_view.rows) == set(gui.form.fields)
    gui.form_view.words.set("winsor")
    gui.root.update()
    assert gui.form_view.rows["stacking_winsor_limits"].caption.winfo_manager() == "grid"
    assert gui.form_view.rows["save_variance"].caption.winfo_manager() == ""


def test_language_switches(gui):
    gui.form.set("language", "fr")
    assert gui.start_button.cget("text") == "Démarrer"
    gui.form.set("language", "en")
    assert gui.start_button.cget("text") == "Start"


def test_a_run_with_the_gpu_switched_off(gui, tmp_path):
    (tmp_path / "in").mkdir()
    assert not gui.start_run()
    gui.form.set("input_dir", str(tmp_path / "in"))
    gui.form.set("output_dir", str(tmp_path / "out"))
    gui.gpu_box.invoke()
    assert gui.start_run()
    spin(gui, lambda: not gui.controller.is_active)
    spin(gui, lambda: "3" in gui.run_view.values["tiles"].cget("text"))
    assert gui.controller.state.status is RunStatus.SUCCESS
    seen = next(line for line in gui.controller.state.log if line.key == "fake_config_seen")
    assert seen.values["config"]["use_gpu_phase5"] is False


def test_closing_during_a_run_asks_and_ends_the_worker(gui, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    gui.controller._target = "fake_workers:deaf"
    gui.controller._grace_s = 0.3
    gui.form.set("input_dir", str(tmp_path / "in"))
    gui.form.set("output_dir", str(tmp_path / "out"))
    assert gui.start_run()
    spin(gui, lambda: gui.controller.state.status is RunStatus.RUNNING)
    monkeypatch.setattr(gui, "ask_to_close", lambda: False)
    gui.close()
    assert gui.controller.is_active
    monkeypatch.setattr(gui, "ask_to_close", lambda: True)
    gui.close()
    end = time.monotonic() + 60
    while time.monotonic() < end and gui.controller.is_active:
        try:
            gui.root.update()
        except tk.TclError:
            break
        time.sleep(0.01)
    assert not gui.controller.is_active


def test_the_first_start_has_nothing_to_complain_about(gui, tmp_path):
    assert not (tmp_path / "config.json").exists()
    assert gui.note.get() == ""
