"""Every action of the main window, without a display and with workers that do what the test needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pace import calls_of
from PySide6.QtCore import QMimeData, QPoint, QPointF, Qt, QUrl
from PySide6.QtGui import QDragEnterEvent, QDropEvent
from PySide6.QtWidgets import QCheckBox, QComboBox, QLineEdit

from zemosaic_gui_qt import PAGES
from zemosaic_pipeline.events import PHASES, RunEnded
from zemosaic_ui.compute_state import ComputeState
from zemosaic_ui.end_words import end_words
from zemosaic_ui.qt.form_fields import FieldRow, PathEdit
from zemosaic_ui.run_state import RunStatus
from zemosaic_ui.variables import GPU_VARIABLES

ENDED = (RunStatus.SUCCESS, RunStatus.FAILED, RunStatus.CANCELLED)


def wait_end(qtbot, window, timeout=60_000):
    qtbot.waitUntil(
        lambda: window.controller.state.status in ENDED and not window.controller.is_active, timeout=timeout
    )


# ---------------------------------------------------------------------- pages, texts, themes


def test_every_page_opens_by_key_and_by_click(make_window, qtbot):
    window = make_window()
    for number, name in enumerate(PAGES, start=1):
        qtbot.keyClick(window, Qt.Key(Qt.Key.Key_0 + number), Qt.KeyboardModifier.ControlModifier)
        assert window.page == name
    qtbot.mouseClick(window.nav["solver"], Qt.MouseButton.LeftButton)
    assert window.page == "solver"


def test_language_switches_while_the_window_is_open(make_window, session, qtbot):
    window = make_window()
    assert window.start_button.text() == "Start"
    window.show_page("language")
    qtbot.mouseClick(window.pages["language"].buttons["fr"], Qt.MouseButton.LeftButton)
    assert window.start_button.text() == "Démarrer"
    assert window.nav["advanced"].text().strip() == "Avancé"
    assert session.form["language"] == "fr"
    session.form.set("language", "en")
    assert window.start_button.text() == "Start"


@pytest.mark.parametrize("language", ["en", "fr"])
def test_no_text_is_missing(make_window, session, language, caplog):
    session.form.set("language", language)
    window = make_window()
    for name in PAGES:
        window.show_page(name)
    shown = [child.text() for child in window.findChildren(QCheckBox)]
    assert not [text for text in shown if text.startswith("_")]
    assert not [record for record in caplog.records if "has no text" in record.message]


def test_theme_switches_at_once(make_window, session, themes, qtbot):
    window = make_window()
    qtbot.mouseClick(window.pages["skin"].buttons["light"], Qt.MouseButton.LeftButton)
    assert themes.theme.name == "light"
    qtbot.mouseClick(window.pages["skin"].buttons["dark"], Qt.MouseButton.LeftButton)
    assert themes.theme.name == "dark"


@pytest.mark.parametrize("size", [(1280, 720), (3840, 2160)])
def test_start_and_stop_are_on_screen(make_window, qtbot, size):
    window = make_window()
    window.resize(*size)
    for name in PAGES:
        window.show_page(name)
        qtbot.wait(1)
        corner = window.start_button.mapTo(
            window, QPoint(window.start_button.width(), window.start_button.height())
        )
        assert corner.x() <= window.width()
        assert corner.y() <= window.height()
        assert window.minimumSizeHint().width() <= 1280
        assert window.minimumSizeHint().height() <= 720


# ---------------------------------------------------------------------- the form


def fill(control, option):
    """Change a control as a person does; return the value the form should hold then."""
    if isinstance(control, QCheckBox):
        control.click()
        return not option.default
    if isinstance(control, QComboBox):
        index = (option.choices.index(option.default) + 1) % len(option.choices)
        control.setCurrentIndex(index)
        control.activated.emit(index)
        return option.choices[index]
    line = control.line if isinstance(control, PathEdit) else control
    texts = {"int": "3", "float": "1.5", "pair": "0.1,0.2"}
    text = texts.get(option.type, "/some/where")
    if option.type in ("int", "float") and not option.minimum <= float(text) <= option.maximum:
        text = f"{option.maximum:g}"
    line.setText(text)
    line.textEdited.emit(text)
    return {"int": int, "float": float}.get(option.type, str)(float(text) if option.type == "int" else text)


def test_every_option_can_be_changed_saved_and_read_again(make_window, session):
    window = make_window()
    expected = {}
    for row in window.advanced_page.rows:
        if row.key in ("gpu_mode", "preview_png_p_low", "preview_png_p_high"):
            continue
        expected[row.key] = fill(row.control, row.option)
        assert session.form[row.key] == expected[row.key], row.key
        assert not row.reset.isHidden() or session.form.fields[row.key].is_default
    assert session.save() is None
    stored = json.loads(session.config_path.read_text(encoding="utf-8"))
    for key, value in expected.items():
        assert stored[key] == value


def test_a_wrong_value_is_explained_beside_the_control(make_window, session, qtbot):
    window = make_window()
    row = next(row for row in window.advanced_page.rows if row.key == "stacking_kappa_low")
    row.control.clear()
    qtbot.keyClicks(row.control, "99")
    assert not row.problem.isHidden()
    assert "10" in row.problem.text()
    qtbot.mouseClick(row.reset, Qt.MouseButton.LeftButton)
    assert row.problem.isHidden()
    assert row.control.text() == "3"


def test_arrow_keys_step_a_number(make_window, session, qtbot):
    window = make_window()
    row = next(row for row in window.advanced_page.rows if row.key == "stacking_kappa_low")
    qtbot.keyClick(row.control, Qt.Key.Key_Up)
    assert session.form["stacking_kappa_low"] == pytest.approx(3.1)


def test_the_same_option_agrees_on_two_pages(make_window, session):
    window = make_window()
    rows = [
        row for page in (window.advanced_page, window.pages["solver"]) for row in page.findChildren(FieldRow)
    ]
    rows = [row for row in rows if row.key == "solver_method"]
    assert len(rows) == 2
    session.form.set("solver_method", "ASTAP")
    assert {row.control.currentText() for row in rows} == {"ASTAP"}


def test_search_shows_what_fits(make_window, qtbot):
    page = make_window().advanced_page
    page.search.setText("winsor")
    page.apply_search()
    assert "stacking_winsor_limits" in page.visible_keys()
    assert "input_dir" not in page.visible_keys()
    page.search.setText("no such option")
    page.apply_search()
    assert page.visible_keys() == []
    assert not page.nothing.isHidden()
    page.search.clear()
    page.changed_only.setChecked(True)
    assert page.visible_keys() == []


def test_quality_buttons_and_presets(make_window, session, qtbot, tmp_path):
    window = make_window()
    start = window.start_page
    qtbot.mouseClick(start.quality_buttons["fast"], Qt.MouseButton.LeftButton)
    assert session.form["resample_kernel"] == "bilinear"
    session.form.set("stacking_kappa_low", 2.0)
    window.advanced_page.save_preset(tmp_path / "p.json", "mine")
    qtbot.mouseClick(start.quality_buttons["balanced"], Qt.MouseButton.LeftButton)
    session.form.reset("stacking_kappa_low")
    window.take_dropped(str(tmp_path / "p.json"))
    assert session.form["stacking_kappa_low"] == 2.0
    assert start.quality_buttons["fast"].isChecked()


# ---------------------------------------------------------------------- folders


def test_dropping_a_folder_chooses_it(make_window, session, tmp_path, qtbot):
    window = make_window()
    night = tmp_path / "night"
    night.mkdir()
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(night))])
    action, button, none = Qt.DropAction.CopyAction, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
    enter = QDragEnterEvent(QPoint(50, 50), action, data, button, none)
    window.dragEnterEvent(enter)
    assert enter.isAccepted()
    assert not window.dropping.isHidden()
    window.dropEvent(QDropEvent(QPointF(50, 50), action, data, button, none))
    assert session.form["input_dir"] == str(night)
    assert session.form["output_dir"] == str(tmp_path / "night_mosaic")
    assert window.dropping.isHidden()


def test_files_are_counted_and_recent_folders_offered(make_window, session, folders, qtbot):
    window = make_window()
    session.memory.visit("inputs", "/" + "long_name/" * 40 + "night")
    start = window.start_page
    qtbot.waitUntil(lambda: "1" in start.input_note.text(), timeout=60_000)
    start._fill_recent(start.input_recent.menu(), "input_dir", "inputs")
    start.input_recent.menu().actions()[0].trigger()
    assert session.form["input_dir"].endswith("night")


def test_start_needs_folders_and_valid_settings(make_window, session, tmp_path):
    window = make_window()
    assert not window.start_run()
    assert window.footer_text.text() == session.texts("ui_input_needed")
    session.form.set("input_dir", str(tmp_path))
    session.form.set("output_dir", "")
    assert not window.start_run()
    session.form.set("output_dir", str(tmp_path / "out"))
    session.form.set("stacking_kappa_low", "99")
    assert not window.start_run()
    assert window.page == "advanced"
    assert window.controller.state.status is RunStatus.IDLE


# ---------------------------------------------------------------------- runs


def test_a_run_from_start_to_finish(make_window, session, folders, qtbot):
    window = make_window()
    qtbot.mouseClick(window.start_button, Qt.MouseButton.LeftButton)
    assert window.page == "run"
    assert not window.start_button.isEnabled()
    wait_end(qtbot, window)
    qtbot.wait(120)
    assert window.controller.state.status is RunStatus.SUCCESS
    assert not window.run_page.banner.isHidden()
    assert window.start_button.isEnabled()
    assert window.stop_button.isHidden()
    assert window.run_page.counters["tiles"].value.text() == "3"
    assert session.memory.recent_inputs[0] == session.form["input_dir"]
    assert session.memory.pace


def test_the_gpu_switch_reaches_the_worker(make_window, session, folders, qtbot):
    window = make_window()
    assert window.start_page.gpu_switch.isChecked()
    window.start_page.gpu_switch.click()
    window.start_run()
    wait_end(qtbot, window)
    seen = next(line for line in window.controller.state.log if line.key == "fake_config_seen")
    assert seen.values["config"]["use_gpu_phase5"] is False


def test_what_is_said_of_the_card_is_whole_sentences(make_window, session):
    """What the driver said stands in its place, and a card that was wished for and is not there is named."""
    page = make_window().start_page
    said = {"ok": False, "reason_key": "gpu_reason_driver_too_old", "detail": "cudaErrorInsufficientDriver"}
    page._on_said("gpu", {**said, "name": "", "total_bytes": 0, "wanted": ""})
    assert "cudaErrorInsufficientDriver" in page.gpu_state.text()
    assert "{" not in page.gpu_state.text()
    assert not page.gpu_detail.text()
    page._on_said("gpu", {**said, "reason_key": "gpu_reason_no_driver", "detail": "libcuda.so.1"})
    assert page.gpu_detail.text() == "libcuda.so.1"
    found = {
        "ok": True,
        "reason_key": "gpu_reason_gpu",
        "detail": "",
        "name": "RTX 4070",
        "total_bytes": 12 << 30,
    }
    page._on_said("gpu", {**found, "wanted": "GTX 970"})
    assert "GTX 970" in page.gpu_detail.text()
    page._on_said("gpu", {**found, "wanted": ""})
    assert not page.gpu_detail.text()


def test_the_compute_panel_says_what_the_card_said(make_window, session):
    window = make_window()
    compute = ComputeState()
    values = {"op_key": "gpu_op_stack", "reason_key": "gpu_reason_compile_failed", "detail": "nvrtc: error 6"}
    decision = {
        "kind": "decision",
        "op": "stack",
        "device": "cpu",
        "reason": "compile_failed",
        "values": values,
    }
    compute.add(decision)
    words = window.run_page._operation_words(compute.operations["stack"])
    assert "nvrtc: error 6" in words
    assert "{" not in words


def test_why_there_is_no_card_is_said_once(make_window):
    window = make_window()
    page, values = window.run_page, {"reason_key": "gpu_reason_no_driver"}
    probe = {"kind": "probe", "reason": "no_driver", "key": "gpu_fallback_unavailable", "values": values}
    page._compute.add({**probe, "level": "INFO"})
    for op in ("measure", "stack", "refine"):
        page._compute.add(
            {"kind": "decision", "op": op, "device": "cpu", "reason": "no_driver", "values": values}
        )
        page._compute.add({**probe, "kind": "fallback", "op": op, "level": "INFO"})
    page._show_compute()
    said = page.compute_text.text()
    assert said.count(page.session.texts("gpu_reason_no_driver")) == 1
    assert "Measuring the frames" in said


def test_a_failure_is_told_in_whole_sentences(make_window, session):
    window = make_window()
    window.controller.state.begin("in", "out", 0.0)
    values = {"path": "/proc/x", "reason": "[Errno 2] No such file or directory: '/proc/x'"}
    window.controller.state.apply(RunEnded("failed", key="error_output_not_writable", values=values), 1.0)
    assert end_words(window.controller, session.texts) == (
        "The run failed: Cannot write to the output folder /proc/x: there is no such file or folder."
    )


def test_a_control_that_a_variable_overrules_says_so(make_window, session, monkeypatch):
    monkeypatch.setenv("ZEMOSAIC_GPU", "off")
    monkeypatch.delenv("ZEMOSAIC_GPU_MEMORY_MB", raising=False)
    window = make_window()
    rows = {row.key: row for row in window.pages["system"].rows}
    window.pages["system"].retranslate()
    window.start_page._show_machine()
    for key in ("use_gpu_phase5", "gpu_mode"):
        assert "ZEMOSAIC_GPU" in rows[key].overruled.text()
        assert not rows[key].overruled.isHidden()
    assert rows["gpu_memory_mb"].overruled.isHidden()
    assert "ZEMOSAIC_GPU" in window.start_page.gpu_detail.text()
    listed = window.pages["system"].variables_text.text()
    assert "ZEMOSAIC_GPU = off" in listed
    assert all(name in listed for name in GPU_VARIABLES)


def test_a_computer_without_such_a_card_shows_nothing_amber(make_window, session, qtbot):
    window = make_window()
    page, words = window.start_page, {"name": "", "total_bytes": 0, "wanted": "", "ok": False}
    for reason, calm in (("no_driver", True), ("no_device", True), ("smoke_failed", False)):
        facts = {**words, "reason_key": f"gpu_reason_{reason}", "detail": "libcuda.so.1: 7", "calm": calm}
        page._on_said("gpu", facts)
        assert (page.gpu_state.objectName() == "warn") is not calm
        # What the system said of a driver that nobody misses is no words for people.
        assert ("libcuda" in page.gpu_detail.text() + page.gpu_state.text()) is not calm
    compute = window.run_page._compute
    step = {"kind": "fallback", "key": "gpu_fallback_unavailable", "level": "INFO", "op": "stack"}
    compute.add({**step, "reason": "no_driver", "values": {"reason_key": "gpu_reason_no_driver"}})
    window.run_page._show_compute()
    assert session.themes.theme.warn not in window.run_page.compute_text.text()
    compute.add({**step, "level": "WARN", "values": {"reason_key": "gpu_reason_cupy_missing"}, "op": "x"})
    window.run_page._show_compute()
    assert session.themes.theme.warn in window.run_page.compute_text.text()


def test_the_filter_choice_reaches_the_worker(make_window, session, folders, qtbot):
    window = make_window()
    frames = [str(folders / "subs" / "a.fit")]
    overrides = {"frame_selection": frames, "frame_groups": [frames], "cluster_panel_threshold": 0.2}
    window.take_filter(session.form["input_dir"], {**overrides, "filter_excluded_indices": [1, 2]})
    assert "1" in window.filter_note.text()
    assert session.form["cluster_panel_threshold"] == 0.2
    window.start_run()
    wait_end(qtbot, window)
    seen = next(line for line in window.controller.state.log if line.key == "fake_config_seen").values[
        "config"
    ]
    assert seen["frame_selection"] == frames
    assert seen["frame_groups"] == [frames]
    session.form.set("input_dir", str(folders))
    assert window.filter_choice == {}


@pytest.mark.parametrize("phase", ["phase0_survey", "phase3_master_tiles", "phase6_export"])
def test_stop_is_clean_in_a_phase(make_window, session, folders, qtbot, phase, monkeypatch):
    window = make_window()
    monkeypatch.setitem(window.filter_choice, "config", {"fake_hold_in": phase})
    monkeypatch.setitem(window.filter_choice, "folder", session.form["input_dir"])
    window.start_run()
    state = lambda: window.controller.state.phase(phase)  # noqa: E731
    qtbot.waitUntil(lambda: state() is not None and state().status == "done", timeout=60_000)
    qtbot.mouseClick(window.stop_button, Qt.MouseButton.LeftButton)
    assert window.controller.state.status is RunStatus.STOPPING
    wait_end(qtbot, window)
    assert window.controller.state.status is RunStatus.CANCELLED
    words = end_words(window.controller, session.texts)
    assert session.texts("run_cancelled") in words
    kept = window.controller.stop_report.tiles_kept
    # Nothing is said of nothing.
    assert (session.texts("ui_end_kept", tiles=kept, removed=0) in words) is bool(kept)


@pytest.mark.parametrize("worker", ["killed", "raises", "silent_exit", "success_then_crash"])
def test_a_crash_is_shown_as_a_failure(make_window, folders, qtbot, worker):
    window = make_window(f"fake_workers:{worker}")
    window.start_run()
    wait_end(qtbot, window)
    qtbot.wait(120)
    assert window.controller.state.status is RunStatus.FAILED
    assert window.run_page.banner.objectName() == "banner_bad"
    assert window.footer_text.text() == window.session.texts("ui_status_failed")
    lines = [text for line, text in window.run_page.log.model.lines if line.level == "ERROR"]
    assert lines


def test_log_levels_and_search(make_window, session, folders, qtbot):
    window = make_window()
    window.start_run()
    wait_end(qtbot, window)
    log = window.run_page.log
    qtbot.waitUntil(lambda: len(log.model.lines) >= 3)
    log.level.setCurrentIndex(2)
    qtbot.waitUntil(lambda: [line.level for line, _ in log.model.lines] == ["WARN"])
    log.level.setCurrentIndex(0)
    log.search.setText("frame_0001")
    qtbot.waitUntil(lambda: len(log.model.lines) == 1, timeout=60_000)
    log.copy_selected()


def test_closing_during_a_run_asks(fresh_window, session, folders, qtbot, monkeypatch):
    window = fresh_window
    window.filter_choice = {"folder": session.form["input_dir"], "config": {"fake_hold_in": "phase2_group"}}
    window.start_run()
    qtbot.waitUntil(lambda: window.controller.state.status is RunStatus.RUNNING, timeout=60_000)
    monkeypatch.setattr(window, "ask_to_close", lambda: False)
    assert not window.close()
    assert window.controller.is_active
    monkeypatch.setattr(window, "ask_to_close", lambda: True)
    window.close()
    qtbot.waitUntil(lambda: window.isHidden(), timeout=60_000)
    assert not window.controller.is_active
    assert window.controller.state.status is RunStatus.CANCELLED


def test_the_place_of_the_window_is_remembered(fresh_window, session):
    window = fresh_window
    window.setGeometry(30, 40, 1000, 650)
    window.close()
    stored = json.loads(session.config_path.read_text(encoding="utf-8"))
    assert stored["qt_main_window_geometry"] == [30, 40, 1000, 650]


def test_the_window_is_drawn_once_for_many_messages(make_window, folders, qtbot, monkeypatch):
    window = make_window("fake_workers:flood")
    drawn = []
    draw = window.run_page.refresh
    monkeypatch.setattr(window.run_page, "refresh", lambda *args: (drawn.append(1), draw(*args)))
    window.start_run()
    qtbot.waitUntil(lambda: not window.controller.is_active, timeout=120_000)
    assert window.controller.state.phase("phase1_prepare").done == 10_000
    assert window.controller.poll() == []
    calls = calls_of(lambda: draw(window.controller))
    # What is shown of a night does not grow with it.
    assert calls < 10_000, calls
    assert 0 < len(drawn) < 12_500


def test_phases_are_drawn_in_order(make_window, session, folders, qtbot):
    window = make_window()
    window.start_run()
    wait_end(qtbot, window)
    window.show_page("run")
    qtbot.wait(100)
    names = [row.name.text() for row in window.run_page.phase_rows]
    assert names == [session.texts(f"phase.{phase}") for phase in PHASES]


def test_files_outside_the_locales_hold_no_words_for_people():
    """Texts set on widgets come from keys: no literal with two words is passed to a text setter."""
    import ast

    root = Path(__file__).parents[2]
    files = [*(root / "zemosaic_ui").rglob("*.py"), *root.glob("zemosaic_*gui*.py")]
    setters = {
        "setText",
        "setToolTip",
        "setWindowTitle",
        "setTitle",
        "setPlaceholderText",
        "addAction",
        "set_text",
    }
    found = []
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in setters
            ):
                found += [
                    f"{path.name}:{node.lineno} {arg.value!r}"
                    for arg in node.args
                    if isinstance(arg, ast.Constant)
                    and isinstance(arg.value, str)
                    and " " in arg.value.strip()
                ]
    assert found == []


def test_line_edits_can_be_reached_by_keyboard(make_window):
    window = make_window()
    reachable = Qt.FocusPolicy.TabFocus.value
    for control in window.start_page.findChildren(QLineEdit):
        assert control.focusPolicy().value & reachable
    # Of the pages one can be reached by Tab, the others from there by the arrow keys.
    for control in (window.start_button, window.stop_button, window.filter_button, window.nav["main"]):
        assert control.focusPolicy().value & reachable


def test_the_first_start_has_no_settings_file_and_nothing_to_complain_about(themes, tmp_path, monkeypatch):
    from zemosaic_ui.qt.session import open_session

    monkeypatch.setenv("ZEMOSAIC_CONFIG_DIR", str(tmp_path / "never written"))
    assert open_session(themes).problems == []
    assert open_session(themes, tmp_path / "mine.json").problems == []
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    assert len(open_session(themes, tmp_path / "broken.json").problems) == 1
    themes.set_mode("dark")
