"""The Qt main window: from choosing a folder to looking at the mosaic, on the models of `zemosaic_ui`."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PySide6.QtCore import QEvent, QRect, QSize, Qt, QTimer, QUrl
from PySide6.QtGui import (
    QCloseEvent,
    QDesktopServices,
    QDragEnterEvent,
    QDragLeaveEvent,
    QDropEvent,
    QKeySequence,
    QResizeEvent,
    QShortcut,
)
from PySide6.QtWidgets import (
    QApplication,
    QButtonGroup,
    QFrame,
    QHBoxLayout,
    QLabel,
    QMainWindow,
    QMessageBox,
    QProgressBar,
    QStackedWidget,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from zemosaic_config import load_old_values
from zemosaic_core.errors import SettingsError
from zemosaic_io.folders import is_frame_name
from zemosaic_ui.footprints import report_of
from zemosaic_ui.qt.run_page import RunPage
from zemosaic_ui.qt.session import Session, open_session
from zemosaic_ui.qt.settings_pages import AdvancedPage, LanguagePage, SkinPage, SolverPage, SystemPage
from zemosaic_ui.qt.start_page import StartPage
from zemosaic_ui.qt.theme import ThemeSwitch
from zemosaic_ui.qt.tools_page import ToolsPage
from zemosaic_ui.qt.viewer_page import ViewerPage
from zemosaic_ui.qt.widgets import ElidedLabel, button, label, row, scrolled
from zemosaic_ui.run_controller import WORKER_TARGET, RunController, RunRequest
from zemosaic_ui.run_state import RunStatus

__all__ = ["ZeMosaicQtMainWindow", "run_qt_main"]

PAGES = ("main", "run", "mosaic", "tools", "solver", "system", "advanced", "skin", "language")
TICK_MS = 50
log = logging.getLogger(__name__)


class ZeMosaicQtMainWindow(QMainWindow):
    """The desktop application.

    Parameters
    ----------
    session : Session
        Texts, theme, form and memory.
    worker : str
        ``"module:function"`` of the worker; tests give another one.
    """

    def __init__(self, session: Session, *, worker: str = WORKER_TARGET) -> None:
        super().__init__()
        self.session = session
        self.controller = RunController(worker, history=session.memory.pace)
        self.filter_choice: dict[str, Any] = {}
        self._last_status = RunStatus.IDLE
        self._closing = False
        self.pages: dict[str, QWidget] = {}
        self.nav: dict[str, QToolButton] = {}
        self.stack = QStackedWidget()
        self._make_pages()
        self._make_frame()
        self._make_footer_actions()
        self._make_shortcuts()
        self.dropping = self._make_drop_overlay()
        self.setAcceptDrops(True)
        self.setMinimumSize(920, 600)
        self._timer = QTimer(self)
        self._timer.setInterval(TICK_MS)
        self._timer.timeout.connect(self._on_tick)
        self._timer.start()
        session.themes.set_mode(session.form["qt_theme_mode"])
        session.texts.set_language(session.form["language"])
        session.texts.on_language(self.retranslate)
        session.themes.changed.connect(self.retheme)
        session.form.on_change(self._on_form_changed)
        self.retranslate()
        self.retheme()
        self.show_page("main")
        self._restore_place()
        self._show_run_state()

    # ------------------------------------------------------------------ building

    def _make_pages(self) -> None:
        session = self.session
        self.start_page = StartPage(session)
        self.run_page = RunPage(session)
        self.viewer_page = ViewerPage(session)
        self.tools_page = ToolsPage(session)
        self.advanced_page = AdvancedPage(session)
        self.pages = {
            "main": self.start_page,
            "run": self.run_page,
            "mosaic": self.viewer_page,
            "tools": self.tools_page,
            "solver": SolverPage(session),
            "system": SystemPage(session),
            "advanced": self.advanced_page,
            "skin": SkinPage(session),
            "language": LanguagePage(session),
        }
        for name, page in self.pages.items():
            self.stack.addWidget(scrolled(page) if name == "main" else page)
        self.start_page.open_page.connect(self.show_page)
        self.advanced_page.failed.connect(self.complain)
        self.viewer_page.failed.connect(self.complain)
        self.viewer_page.said.connect(self.complain)
        self.tools_page.said.connect(self.complain)
        self.tools_page.show_asked.connect(self._show_written)
        self.run_page.open_result.connect(self.open_result)
        self.run_page.open_report.connect(self.open_report)
        self.run_page.open_folder.connect(lambda: _open_path(self.controller.state.output_dir))

    def _make_frame(self) -> None:
        rail = QFrame()
        rail.setObjectName("rail")
        rail.setFixedWidth(184)
        column = QVBoxLayout(rail)
        column.setContentsMargins(10, 16, 10, 12)
        column.setSpacing(3)
        brand = QLabel("ZeMosaic")
        brand.setObjectName("brand")
        brand.setContentsMargins(10, 0, 0, 10)
        column.addWidget(brand)
        self._nav_group = QButtonGroup(self)
        for name in PAGES:
            item = QToolButton()
            item.setObjectName("nav")
            item.setCheckable(True)
            item.setIconSize(QSize(19, 19))
            item.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
            item.setSizePolicy(item.sizePolicy().Policy.Expanding, item.sizePolicy().Policy.Fixed)
            item.clicked.connect(lambda _checked=False, name=name: self.show_page(name))
            self._nav_group.addButton(item)
            self.nav[name] = item
            if name in ("solver", "skin"):
                column.addSpacing(14)
            column.addWidget(item)
        column.addStretch(1)
        right = QVBoxLayout()
        right.setContentsMargins(0, 0, 0, 0)
        right.setSpacing(0)
        right.addWidget(self.stack, 1)
        right.addWidget(self._make_footer())
        outer = QWidget()
        layout = QHBoxLayout(outer)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        layout.addWidget(rail)
        layout.addLayout(right, 1)
        self.setCentralWidget(outer)

    def _make_footer(self) -> QFrame:
        footer = QFrame()
        footer.setObjectName("footer")
        self.footer_text = ElidedLabel()
        self.footer_bar = QProgressBar()
        self.footer_bar.setTextVisible(False)
        self.footer_bar.setRange(0, 1000)
        self.filter_note = label("muted")
        self.filter_clear = button("quiet", self.clear_filter)
        left = QVBoxLayout()
        left.setSpacing(4)
        left.addWidget(self.footer_text)
        left.addWidget(self.footer_bar)
        self.filter_button = button("", self.open_filter)
        self.start_button = button("primary", self.start_run)
        self.stop_button = button("danger", self.stop_run)
        layout = row(
            left, self.filter_note, self.filter_clear, self.filter_button, self.stop_button, self.start_button
        )
        layout.setStretch(0, 1)
        layout.setContentsMargins(24, 10, 18, 10)
        footer.setLayout(layout)
        return footer

    def _make_footer_actions(self) -> None:
        self.filter_button.setObjectName("")
        self.footer_bar.hide()
        self.filter_note.hide()
        self.filter_clear.hide()

    def _make_shortcuts(self) -> None:
        keys: dict[str, Any] = {
            "Ctrl+R": self.start_run,
            "F5": self.start_run,
            "Ctrl+.": self.stop_run,
            "Ctrl+F": self._focus_search,
            "Ctrl+L": self.open_filter,
            "Ctrl+O": lambda: self.start_page.input.choose.click(),
            "Ctrl+Shift+O": self.viewer_page.choose_file,
        }
        for number, name in enumerate(PAGES, start=1):
            keys[f"Ctrl+{number}"] = lambda name=name: self.show_page(name)
        for sequence, action in keys.items():
            QShortcut(QKeySequence(sequence), self, action)
        QShortcut(QKeySequence(QKeySequence.StandardKey.Quit), self, self.close)

    def _make_drop_overlay(self) -> QFrame:
        frame = QFrame(self)
        frame.setObjectName("dropping")
        words = label("title")
        words.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.drop_words = words
        layout = QVBoxLayout(frame)
        layout.addWidget(words)
        frame.hide()
        return frame

    # ------------------------------------------------------------------ pages

    def show_page(self, name: str) -> None:
        """Show a page by its name."""
        self.nav[name].setChecked(True)
        self.stack.setCurrentIndex(PAGES.index(name))

    @property
    def page(self) -> str:
        """Name of the page on show."""
        return PAGES[self.stack.currentIndex()]

    def _focus_search(self) -> None:
        if self.page == "run":
            self.run_page.log.search.setFocus()
            return
        self.show_page("advanced")
        self.advanced_page.search.setFocus()
        self.advanced_page.search.selectAll()

    # ------------------------------------------------------------------ the run

    def start_run(self) -> bool:
        """Start a run with the form's settings; return False when something must be put right first."""
        if self.controller.is_active:
            return False
        text, form = self.session.texts, self.session.form
        try:
            settings = form.settings()
        except SettingsError as error:
            option = str(error.values.get("option", ""))
            if option in form.fields:
                self.show_page("advanced")
                self.advanced_page.search.setText(option)
            self.complain(text.message(error.key, error.values))
            return False
        if not settings.input_dir or not Path(settings.input_dir).is_dir():
            self.show_page("main")
            self.complain(text("ui_input_needed"))
            return False
        if not settings.output_dir:
            self.show_page("main")
            self.complain(text("ui_output_needed"))
            return False
        self._remember_run(settings.input_dir, settings.output_dir)
        told = load_old_values(self.session.config_path)
        config = {**told, **settings.to_mapping(), **self.filter_choice.get("config", {})}
        config["gpu_asked_by"] = "gpu_by_window"
        self.controller.start(RunRequest(settings.input_dir, settings.output_dir, config))
        self.show_page("run")
        self._show_run_state()
        return True

    def stop_run(self) -> None:
        """Ask the run to stop cleanly."""
        if self.controller.state.status in (RunStatus.STARTING, RunStatus.RUNNING):
            self.controller.stop()
            self._show_run_state()

    def _remember_run(self, input_dir: str, output_dir: str) -> None:
        self.session.memory.visit("inputs", input_dir)
        self.session.memory.visit("outputs", output_dir)
        self._save_session()

    def _on_tick(self) -> None:
        active = self.controller.is_active
        if active:
            self.controller.poll()
        if active or self.controller.state.status is not self._last_status:
            self._show_run_state()
        if active or self.page == "run":
            self.run_page.refresh(self.controller)

    def _show_run_state(self) -> None:
        text, state = self.session.texts, self.controller.state
        active = self.controller.is_active
        self.start_button.setEnabled(not active)
        self.filter_button.setEnabled(not active)
        self.stop_button.setVisible(active)
        self.stop_button.setEnabled(state.status in (RunStatus.STARTING, RunStatus.RUNNING))
        self.footer_bar.setVisible(active)
        self.footer_bar.setValue(round(1000 * state.fraction))
        if active and state.current is not None and state.status is not RunStatus.STOPPING:
            phase = text(f"phase.{state.current.name}")
            self.footer_text.set_text(f"{phase}   {text.number(100 * state.fraction)} %")
        elif state.status is RunStatus.IDLE:
            self.footer_text.set_text(text("ui_ready"))
        else:
            self.footer_text.set_text(text(f"ui_status_{state.status.value}"))
        if state.status is not self._last_status:
            before, self._last_status = self._last_status, state.status
            if before.is_active and not state.status.is_active:
                self._on_run_ended()

    def _on_run_ended(self) -> None:
        state = self.controller.state
        self.run_page.refresh(self.controller)
        if state.status is RunStatus.SUCCESS:
            self.session.memory.pace = self.controller.learned_history()
            self.session.memory.visit("results", state.output_dir)
            self.viewer_page.offer(state.outputs)
        self._save_session()

    def open_result(self) -> None:
        """Show the finished mosaic."""
        outputs = self.controller.state.outputs
        path = outputs.get("science") or outputs.get("mosaic")
        if path:
            self.viewer_page.open_outputs(outputs)
            self.show_page("mosaic")

    def _show_written(self, path: str) -> None:
        self.viewer_page.open_file(path)
        self.show_page("mosaic")

    def open_report(self) -> None:
        """Open the report of the run with the system's program."""
        _open_path(report_of(self.controller.state.outputs))

    # ------------------------------------------------------------------ the filter

    def open_filter(self) -> None:
        """Open the frame filter on the input folder."""
        form, text = self.session.form, self.session.texts
        folder = form["input_dir"]
        if self.controller.is_active:
            return
        if not folder or not Path(folder).is_dir():
            self.show_page("main")
            self.complain(text("ui_input_needed"))
            return
        # Loaded when it is asked for: start-up must not wait for the plotting library.
        from zemosaic_filter_gui_qt import FilterQtDialog

        dialog = FilterQtDialog(self.session, folder, parent=self)
        if dialog.exec():
            self.take_filter(folder, dialog.overrides())
        dialog.deleteLater()

    def take_filter(self, folder: str, overrides: Mapping[str, Any]) -> None:
        """Keep the choice of the filter for the next run of this folder."""
        form = self.session.form
        for key, value in overrides.items():
            if key in form.fields:
                form.set(key, value)
        config = {key: overrides[key] for key in ("frame_selection", "frame_groups") if overrides.get(key)}
        stacks = overrides.get("tile_selection")
        if stacks is not None:
            # None of them is a choice, too.
            config["tile_selection"] = stacks
        self.filter_choice = {
            "folder": folder,
            "config": config,
            "kept": len({*(overrides.get("frame_selection") or ()), *(stacks or ())}),
            "excluded": len(overrides.get("filter_excluded_indices") or ()),
        }
        self._show_filter_note()

    def clear_filter(self) -> None:
        """Forget the choice of the filter: every frame is used."""
        self.filter_choice = {}
        self._show_filter_note()

    def _show_filter_note(self) -> None:
        choice, text = self.filter_choice, self.session.texts
        self.filter_note.setVisible(bool(choice))
        self.filter_clear.setVisible(bool(choice))
        if choice:
            total = choice["kept"] + choice["excluded"]
            note = text("ui_filter_chosen", kept=choice["kept"], total=total)
            self.filter_note.setText(note)

    def _on_form_changed(self, key: str) -> None:
        form = self.session.form
        if key == "language":
            self.session.texts.set_language(form["language"])
        elif key == "qt_theme_mode":
            self.session.themes.set_mode(form["qt_theme_mode"])
        elif self.filter_choice and (
            (key == "input_dir" and self.filter_choice["folder"] != form["input_dir"])
            or key in ("use_existing_master_tiles", "tiles_dir")
        ):
            self.clear_filter()

    # ------------------------------------------------------------------ words and colours

    def complain(self, words: str) -> None:
        """Say in the footer what must be put right."""
        self.footer_text.set_text(words)

    def retranslate(self) -> None:
        """Write all texts in the current language."""
        text = self.session.texts
        self.setWindowTitle(text("ui_window_title"))
        for number, (name, item) in enumerate(self.nav.items(), start=1):
            item.setText("  " + text(f"ui_tab_{name}"))
            item.setToolTip(f"{text(f'ui_tab_{name}')} (Ctrl+{number})")
        self.filter_button.setText(text("ui_filter"))
        self.filter_button.setToolTip(f"{text('ui_filter_tip')} (Ctrl+L)")
        self.start_button.setText(text("ui_start"))
        self.start_button.setToolTip("Ctrl+R")
        self.stop_button.setText(text("ui_stop"))
        self.stop_button.setToolTip(f"{text('ui_stop_tip')} (Ctrl+.)")
        self.filter_clear.setText(text("ui_filter_clear"))
        self.drop_words.setText(text("ui_drop_here"))
        for page in self.pages.values():
            page.retranslate()
        self._show_filter_note()
        self._show_run_state()

    def retheme(self) -> None:
        """Draw icons in the colours of the theme."""
        session = self.session
        for name, item in self.nav.items():
            item.setIcon(
                session.icon(name, "accent" if name in ("main", "run", "mosaic", "tools") else "muted")
            )
        self.start_button.setIcon(session.icon("play", "accent_text"))
        self.stop_button.setIcon(session.icon("stop", "bad"))
        self.filter_button.setIcon(session.icon("filter"))
        for page in self.pages.values():
            page.retheme()

    # ------------------------------------------------------------------ drag and drop

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        """Accept folders, FITS files and presets."""
        if any(url.isLocalFile() for url in event.mimeData().urls()):
            event.acceptProposedAction()
            self.dropping.setGeometry(self.rect().adjusted(30, 30, -30, -30))
            self.dropping.raise_()
            self.dropping.show()

    def dragLeaveEvent(self, event: QDragLeaveEvent) -> None:
        """Hide the invitation."""
        self.dropping.hide()

    def dropEvent(self, event: QDropEvent) -> None:
        """Take what was dropped."""
        self.dropping.hide()
        paths = [url.toLocalFile() for url in event.mimeData().urls() if url.isLocalFile()]
        if paths:
            event.acceptProposedAction()
            self.take_dropped(paths[0])

    def take_dropped(self, path: str) -> None:
        """Use a dropped folder as input, show a dropped FITS file, load a dropped preset."""
        target = Path(path)
        if target.is_dir():
            self.start_page.choose_input(str(target))
            self.show_page("main")
        elif target.suffix.lower() == ".json":
            self.advanced_page.load_preset(target)
        elif is_frame_name(target.name):
            self.viewer_page.open_file(str(target))
            self.show_page("mosaic")

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Keep the invitation as large as the window."""
        super().resizeEvent(event)
        self.dropping.setGeometry(self.rect().adjusted(30, 30, -30, -30))

    # ------------------------------------------------------------------ place, saving, closing

    def _restore_place(self) -> None:
        available = self.screen().availableGeometry()
        stored = self.session.form["qt_main_window_geometry"]
        wanted = QRect(*stored) if stored else QRect(0, 0, 1360, 860)
        wanted.setSize(wanted.size().boundedTo(available.size()))
        if not stored:
            wanted.moveCenter(available.center())
        # A screen that is not there any more must not take the window with it.
        if not available.intersects(wanted.adjusted(40, 0, -40, -40)):
            wanted.moveTopLeft(available.topLeft())
        self.setGeometry(wanted)

    def _save_session(self) -> None:
        problem = self.session.save()
        if problem is not None:
            self.complain(self.session.texts.message(problem.key, problem.values))

    def ask_to_close(self) -> bool:
        """Ask whether the run in progress may be stopped."""
        text = self.session.texts
        box = QMessageBox(
            QMessageBox.Icon.Question, text("ui_close_title"), text("ui_close_question"), parent=self
        )
        box.setInformativeText(text("ui_close_note"))
        stop = box.addButton(text("ui_close_stop"), QMessageBox.ButtonRole.DestructiveRole)
        stay = box.addButton(text("ui_close_stay"), QMessageBox.ButtonRole.RejectRole)
        box.setDefaultButton(stay)
        box.exec()
        return box.clickedButton() is stop

    def closeEvent(self, event: QCloseEvent) -> None:
        """Ask during a run; end every process; remember the place of the window."""
        if self.controller.is_active and not self._closing:
            if not self.ask_to_close():
                event.ignore()
                return
            # The window stays until the worker and its children are gone; it closes itself then.
            self._closing = True
            self.controller.stop()
            self._show_run_state()
            self._wait_and_close()
            event.ignore()
            return
        if self.controller.is_active:
            event.ignore()
            return
        place = self.geometry()
        self.session.form.set_hidden(
            "qt_main_window_geometry", [place.x(), place.y(), place.width(), place.height()]
        )
        self._save_session()
        self._timer.stop()
        self.start_page.close_jobs()
        self.pages["system"].job.cancel()
        self.run_page.preview.close_loader()
        self.viewer_page.close_file()
        self.tools_page.close_bench()
        self.session.texts.forget(self.retranslate)
        event.accept()

    def _wait_and_close(self) -> None:
        self.controller.poll()
        if self.controller.is_active:
            QTimer.singleShot(TICK_MS, self._wait_and_close)
        else:
            self.close()


def _open_path(path: str) -> None:
    if path:
        QDesktopServices.openUrl(QUrl.fromLocalFile(path))


def run_qt_main(config_path: str | None = None) -> int:
    """Open the desktop application and return its exit code."""
    app = QApplication.instance() or QApplication(sys.argv[:1])
    app.setApplicationName("ZeMosaic")
    session = open_session(ThemeSwitch(app), Path(config_path) if config_path else None)
    window = ZeMosaicQtMainWindow(session)
    window.show()
    window.start_page.ask_machine()
    for problem in session.problems:
        window.complain(session.texts.message(problem.key, problem.values))
    for number in (signal.SIGINT, signal.SIGTERM):
        # Python hears a signal when the window's timer next runs its code.
        signal.signal(number, lambda *_: window.close())
    code = app.exec()
    # Widgets that outlive the application are torn down in no particular order when Python ends.
    window.deleteLater()
    app.sendPostedEvents(None, QEvent.Type.DeferredDelete)
    return code


if __name__ == "__main__":
    sys.exit(run_qt_main())
