"""Shared things of the window tests: no display is needed, nothing outside the test's folder is touched."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import pytest

# Spawned workers find the stand-ins by this path.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def themes(qapp):
    from zemosaic_ui.qt.theme import ThemeSwitch

    # One for all tests: a style sheet is set on every widget there is, which is slow.
    return ThemeSwitch(qapp, "dark")


@pytest.fixture(scope="session")
def shared_session(themes, tmp_path_factory):
    from zemosaic_ui.qt.session import open_session

    path = tmp_path_factory.mktemp("config") / "zemosaic_config.json"
    path.write_text(json.dumps({"qt_theme_mode": "dark"}), encoding="utf-8")
    return open_session(themes, path)


@pytest.fixture
def session(shared_session, tmp_path, monkeypatch):
    """The shared session, as if freshly started."""
    from zemosaic_ui.ui_memory import UiMemory

    monkeypatch.setenv("ZEMOSAIC_CONFIG_DIR", str(tmp_path / "config"))
    form = shared_session.form
    form.reset_all(key for key in form.fields if key != "qt_theme_mode")
    form.set("qt_theme_mode", "dark")
    shared_session.memory = UiMemory()
    return shared_session


@pytest.fixture(scope="session")
def _window(shared_session):
    from zemosaic_gui_qt import ZeMosaicQtMainWindow

    window = ZeMosaicQtMainWindow(shared_session, worker="fake_workers:happy")
    window.show()
    yield window
    window.close()


@pytest.fixture
def make_window(session, _window, qtbot):
    """Give the one window, with a fresh controller for the worker a test wants: windows take a second to build."""
    from zemosaic_ui.run_controller import RunController
    from zemosaic_ui.run_state import RunStatus

    def make(worker="fake_workers:happy"):
        _window.controller = RunController(worker)
        _window._last_status = RunStatus.IDLE
        _window.clear_filter()
        _window.viewer_page.close_file()
        _window.advanced_page.search.clear()
        _window.advanced_page.changed_only.setChecked(False)
        _window.advanced_page.apply_search()
        _window.run_page.log.search.clear()
        _window.run_page.refresh(_window.controller)
        _window.resize(1360, 860)
        _window.show_page("main")
        _window._show_run_state()
        _window.activateWindow()
        qtbot.waitUntil(_window.isActiveWindow)
        return _window

    yield make
    _end(_window)


@pytest.fixture
def fresh_window(session, folders, qtbot):
    """A window with a form of its own, for tests that close it."""
    import dataclasses

    from zemosaic_gui_qt import ZeMosaicQtMainWindow
    from zemosaic_ui.form_model import FormModel
    from zemosaic_ui.texts import Texts

    own = dataclasses.replace(session, form=FormModel(session.form.settings()), texts=Texts("en"))
    window = ZeMosaicQtMainWindow(own, worker="fake_workers:happy")
    qtbot.addWidget(window)
    window.show()
    yield window
    _end(window)


def _end(window):
    window.controller.stop_now()
    window.controller.wait(10.0)
    while window.controller.is_active:
        window.controller.poll()


@pytest.fixture
def folders(tmp_path, session):
    (tmp_path / "subs").mkdir()
    (tmp_path / "subs" / "a.fit").write_bytes(b"SIMPLE")
    session.form.set("input_dir", str(tmp_path / "subs"))
    session.form.set("output_dir", str(tmp_path / "out"))
    return tmp_path
