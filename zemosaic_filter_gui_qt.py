"""The Qt frame filter: look at every frame of a folder, exclude, group, and see what it will become."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PySide6.QtCore import QRect, Qt, QTimer
from PySide6.QtGui import QCloseEvent, QKeySequence, QShortcut
from PySide6.QtWidgets import (
    QApplication,
    QDialog,
    QFileDialog,
    QProgressBar,
    QPushButton,
    QSplitter,
    QTabWidget,
    QVBoxLayout,
    QWidget,
)

from zemosaic_core.errors import SaveFailed, SettingsError
from zemosaic_io.folders import is_frame_name
from zemosaic_io.headers import FrameInfo
from zemosaic_settings import Settings
from zemosaic_ui.filter_model import METRICS, FilterModel, FrameRow
from zemosaic_ui.form_model import FormModel
from zemosaic_ui.plan_preview import PlanPreview, PlanWorker, question_of
from zemosaic_ui.qt.filter_panels import FilterPanels, SkyPane, TablePane
from zemosaic_ui.qt.job import Job
from zemosaic_ui.qt.session import Session, open_session
from zemosaic_ui.qt.sky_plot import QualityHistogram
from zemosaic_ui.qt.theme import ThemeSwitch
from zemosaic_ui.qt.widgets import button, label, row, scrolled

__all__ = ["FilterQtDialog", "launch_filter_interface_qt"]

REFRESH_MS = 60
# While thousands of headers stream in, redrawing table and sky more often would only slow them down.
STREAM_REFRESH_MS = 450
ROUTES_AFTER_MS = 900
SURVEY_AFTER_MS = 500


class FilterQtDialog(QDialog):
    """The filter dialog.

    Parameters
    ----------
    session : Session
        Its form is copied: nothing is changed unless the choice is accepted.
    folder : str
        Folder to survey.
    files : sequence of str, optional
        Look at these files instead of the folder.
    """

    def __init__(
        self,
        session: Session,
        folder: str,
        *,
        files: Sequence[str] | None = None,
        parent: QWidget | None = None,
        survey: bool = True,
    ) -> None:
        super().__init__(parent)
        form = FormModel(Settings.from_mapping(session.form.to_mapping()))
        self.session = dataclasses.replace(session, form=form)
        self.outer_session = session
        self.folder, self.files = folder, list(files) if files else None
        self.frames = FilterModel()
        self.preview: PlanPreview | None = None
        self.plan = PlanWorker()
        self._question = 0
        self._expected = 0
        self._dirty: set[str] = set()
        self._resolved = 0
        self._message = ""
        self.survey_job, self.work_job, self.route_job = Job(self), Job(self), Job(self)
        self._work = ""
        self._work_done = self._work_total = 0
        self.setWindowFlag(Qt.WindowType.WindowMaximizeButtonHint, True)
        self._build()
        self._connect()
        self.retranslate()
        self.retheme()
        self._restore_place()
        self.table.view.setFocus()
        if survey:
            self.start_survey()

    # ------------------------------------------------------------------ building

    def _build(self) -> None:
        self.title, self.status = label("title"), label("muted")
        self.progress = QProgressBar()
        self.progress.setTextVisible(False)
        self.progress.setFixedWidth(200)
        self.export_button = button("", self._on_export)
        self.undo_button = button("", self.frames.undo)
        self.cancel_work = button("", self.stop_work)
        self.sky = SkyPane(self.session, self.frames)
        self.table = TablePane(self.session, self.frames)
        self.panels = FilterPanels(self.session, self.frames)
        self.histograms = {name: QualityHistogram(self.session, self.frames, name) for name in METRICS}
        quality = QWidget()
        column = QVBoxLayout(quality)
        column.setContentsMargins(0, 8, 0, 0)
        self.quality_note = label("muted", wrap=True)
        column.addWidget(self.quality_note)
        for histogram in self.histograms.values():
            column.addWidget(histogram, 1)
        self.tabs = QTabWidget()
        self.tabs.addTab(self.sky, "")
        self.tabs.addTab(quality, "")
        self.splitter = QSplitter(Qt.Orientation.Horizontal)
        for pane in (self.tabs, self.table, scrolled(self.panels)):
            self.splitter.addWidget(pane)
        self.splitter.setSizes([420, 560, 288])
        self.splitter.setStretchFactor(0, 2)
        self.splitter.setStretchFactor(1, 3)
        self.splitter.setStretchFactor(2, 0)
        self.splitter.setChildrenCollapsible(False)
        self.ok_button, self.close_button = button("primary", self.accept), button("", self.reject)
        for made in self.findChildren(QPushButton):
            made.setAutoDefault(False)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(18, 14, 18, 12)
        layout.setSpacing(10)
        head = row(self.title, 10, self.status, None, self.progress, self.cancel_work, self.undo_button)
        head.addWidget(self.export_button)
        layout.addLayout(head)
        layout.addWidget(self.splitter, 1)
        self.counts = label("muted")
        layout.addLayout(row(self.counts, None, self.close_button, self.ok_button))

    def _connect(self) -> None:
        self.frames.on_change(self._on_frames_changed)
        self.session.form.on_change(self._on_form_changed)
        self.survey_job.said.connect(self._on_survey)
        self.survey_job.ended.connect(self._on_survey_ended)
        self.route_job.said.connect(self._on_routes)
        self.work_job.said.connect(self._on_work)
        self.work_job.ended.connect(self._on_work_ended)
        self.panels.solve_asked.connect(self.solve_missing)
        self.panels.measure_asked.connect(self.measure_quality)
        for histogram in self.histograms.values():
            histogram.cut.connect(self.frames.set_cut)
        self._refresh_timer = QTimer(self)
        self._refresh_timer.setSingleShot(True)
        self._refresh_timer.timeout.connect(self.refresh)
        # A process of its own is asked what the routes cost: only when nothing has changed for a moment.
        self._route_timer = QTimer(self)
        self._route_timer.setSingleShot(True)
        self._route_timer.setInterval(ROUTES_AFTER_MS)
        self._route_timer.timeout.connect(self.ask_routes)
        self._survey_timer = QTimer(self)
        self._survey_timer.setSingleShot(True)
        self._survey_timer.setInterval(SURVEY_AFTER_MS)
        self._survey_timer.timeout.connect(self._survey_again)
        self._plan_timer = QTimer(self)
        self._plan_timer.setInterval(60)
        self._plan_timer.timeout.connect(self._on_plan_tick)
        self._plan_timer.start()
        QShortcut(QKeySequence.StandardKey.Undo, self, self.frames.undo)
        QShortcut(QKeySequence.StandardKey.Find, self, self.table.search.setFocus)

    # ------------------------------------------------------------------ survey, measuring, solving

    def start_survey(self) -> None:
        """Read the headers of frames and finished stacks in the background."""
        form = self.session.form
        self._message = ""
        self.survey_job.start(
            "survey",
            self.folder,
            form["output_dir"],
            recursive=form["scan_recursive"],
            files=self.files,
            only_stacks=form["use_existing_master_tiles"],
            stacks_dir=form["tiles_dir"].strip(),
        )
        self._show_status()

    def _on_survey(self, kind: str, payload: Any) -> None:
        if kind == "total":
            self._expected = payload
        elif kind == "rows":
            self.frames.add(payload)
        elif kind == "error":
            self._message = self.session.texts.message(*payload)
        self._show_status()

    def _on_survey_ended(self, error: str) -> None:
        if error:
            self._message = error.splitlines()[-1]
        self._dirty.add("rows")
        self.refresh()

    def measure_quality(self) -> None:
        """Measure stars, sharpness and background of every kept frame without values."""
        stars = self.frames.column("stars")
        wanted = [
            row.info
            for i, row in enumerate(self.frames.rows)
            if _can_be_read(row) and self.frames.kept[i] and np.isnan(stars[i])
        ]
        self._start_work("measure", wanted)

    def solve_missing(self) -> None:
        """Find the place of every kept frame that has none."""
        placed = self.frames.has_place
        rows = self.frames.rows
        wanted = [
            r.path for i, r in enumerate(rows) if _can_be_read(r) and self.frames.kept[i] and not placed[i]
        ]
        self._start_work("solve", wanted)

    def _start_work(self, name: str, items: list[Any]) -> None:
        if not items or self.work_job.is_running:
            return
        self._work, self._work_done, self._work_total = name, 0, len(items)
        self.work_job.start(name, items, self.session.form.to_mapping())
        self._show_status()

    def stop_work(self) -> None:
        """Stop measuring or solving; what is known stays."""
        self.work_job.cancel()
        self._work = ""
        self._dirty.add("rows")
        self.refresh()

    def _on_work(self, kind: str, payload: Any) -> None:
        self._work_done += 1
        match kind:
            case "measures":
                self.frames.set_measures(payload)
            case "solved":
                self._resolved += 1
                self.frames.set_solution(payload)
            case "unsolved":
                path, key, values = payload
                name = Path(path).name
                self._message = f"{name}: {self.session.texts.message(key, values)}"
        self._show_status()

    def _on_work_ended(self, error: str) -> None:
        if error:
            self._message = error.splitlines()[-1]
        if self._work == "measure":
            self.tabs.setCurrentIndex(1)
        self._work = ""
        self._dirty.add("rows")
        self.refresh()

    @property
    def is_busy(self) -> bool:
        """Whether headers are read, or frames measured or solved."""
        return self.survey_job.is_running or self.work_job.is_running

    # ------------------------------------------------------------------ redrawing

    def _on_frames_changed(self, what: str) -> None:
        if what == "selection":
            self.table.view.show_selection()
            self.sky.plot.draw_selection()
            self._show_counts()
            return
        self._dirty.add(what)
        if not self._refresh_timer.isActive():
            streaming = self.is_busy and what in ("rows", "measures")
            self._refresh_timer.start(STREAM_REFRESH_MS if streaming else REFRESH_MS)

    def refresh(self) -> None:
        """Redraw what changed."""
        dirty, self._dirty = self._dirty, set()
        hides_some = self.table.view.table.show in ("kept", "excluded")
        if dirty & {"rows", "groups", "measures"} or (hides_some and "choice" in dirty):
            self.table.view.rebuild()
        elif "choice" in dirty:
            self.table.view.viewport().update()
        if dirty:
            self.sky.plot.draw()
        if dirty & {"rows", "measures", "choice"}:
            for histogram in self.histograms.values():
                histogram.draw()
        if dirty & {"rows", "choice"}:
            self.panels.show_rules()
            self.ask_preview()
        self._show_counts()
        self._show_status()

    def ask_preview(self) -> None:
        """Ask for groups, canvas and costs of the frames kept now."""
        try:
            settings = self.session.form.settings()
        except SettingsError:
            return  # the field says what is wrong
        self._question += 1
        self.plan.ask(question_of(self.frames, settings, self._question))

    def _on_plan_tick(self) -> None:
        found = self.plan.take()
        if found is None or found.number != self._question:
            return
        self.preview = found
        self.frames.set_groups(found.groups)
        self.panels.show_preview(found)
        self._route_timer.start()

    def ask_routes(self) -> None:
        """Ask what each route would cost with the frames kept now."""
        preview = self.preview
        if preview is None or self.is_busy:
            return
        try:
            settings = self.session.form.settings()
        except SettingsError:
            return  # the field says what is wrong
        kept = [self.frames.rows[int(i)] for i in np.flatnonzero(self.frames.kept)]
        self.route_job.start(
            "zemosaic_ui.route_costs:compare_routes",
            [row.info for row in kept if not row.is_stack],
            [row.info for row in kept if row.is_stack],
            {**settings.to_mapping(), "input_dir": self.folder},
            preview.canvas_hw,
            self._groups_by_hand(),
        )

    def _on_routes(self, kind: str, payload: Any) -> None:
        if kind == "error":
            self.panels.routes.show_problem(*payload)
        else:
            self.panels.routes.show_costs(*payload)

    def _groups_by_hand(self) -> list[list[str]]:
        """Return the groups that become tiles because the user wants them: none on routes that make their own."""
        if not self.panels.use_groups.isChecked() or self.session.form["route"] not in ("auto", "panels"):
            return []
        rows = self.frames.rows
        return [[rows[i].path for i in group] for group in self.frames.result().groups]

    def _on_form_changed(self, key: str) -> None:
        if key in ("use_existing_master_tiles", "tiles_dir"):
            # Other files are looked at now. A path is typed letter by letter.
            self._survey_timer.start()
        self.ask_preview()

    def _survey_again(self) -> None:
        self.stop_work()
        self.frames.clear()
        # At once: what is drawn meanwhile asks for files that are known no more.
        self.refresh()
        self.start_survey()

    def _show_counts(self) -> None:
        text = self.session.texts
        kept, total = int(self.frames.kept.sum()), len(self.frames)
        words = text("filter_counts", kept=kept, total=total)
        selected = int(self.frames.selected.sum())
        if selected:
            words += "   " + text("filter_selected", n=selected)
        self.counts.setText(words)
        self.ok_button.setEnabled(kept > 0 and not self.survey_job.is_running)

    def _show_status(self) -> None:
        text = self.session.texts
        busy = self.is_busy
        self.progress.setVisible(busy)
        self.cancel_work.setVisible(self.work_job.is_running)
        if self.survey_job.is_running:
            self.progress.setRange(0, self._expected)
            self.progress.setValue(len(self.frames))
            self.status.setText(text("filter_reading", n=len(self.frames)))
        elif self.work_job.is_running:
            self.progress.setRange(0, self._work_total)
            self.progress.setValue(self._work_done)
            counts = {"n": self._work_done, "total": self._work_total}
            self.status.setText(text(f"filter_working_{self._work}", **counts))
        else:
            self.status.setText(self._message)
        self.panels.set_busy(self.work_job.is_running or self.survey_job.is_running)

    # ------------------------------------------------------------------ result

    def items(self) -> list[dict[str, Any]]:
        """Return the kept frames as dictionaries."""
        return [_item(int(i), self.frames.rows[int(i)]) for i in self.frames.result().kept]

    def overrides(self) -> dict[str, Any]:
        """Return everything the run should know about the choice."""
        result, rows, form = self.frames.result(), self.frames.rows, self.session.form
        kept = [rows[i] for i in result.kept]
        stacks = [row.path for row in kept if row.is_stack]
        groups = self._groups_by_hand()
        keys = (
            "route",
            "use_existing_master_tiles",
            "tiles_dir",
            "cluster_panel_threshold",
            "cluster_target_groups",
            "cluster_orientation_split_deg",
            "max_raw_per_master_tile",
            "astap_max_instances",
        )
        return {
            **{key: form[key] for key in keys},
            "frame_selection": [row.path for row in kept if not row.is_stack] or stacks,
            "tile_selection": stacks if self.frames.is_stack.any() else None,
            "frame_groups": groups or None,
            "preplan_master_groups": groups,
            "filter_auto_group": bool(groups),
            "sds_mode": form["route"] == "sds",
            "filter_excluded_indices": [int(i) for i in result.excluded],
            "resolved_wcs_count": self._resolved,
            "filter_cancelled": False,
        }

    def _on_export(self) -> None:
        text = self.session.texts
        start = str(Path(self.folder).with_name("frames.csv"))
        path, _ = QFileDialog.getSaveFileName(self, text("filter_export"), start, "CSV (*.csv)")
        if path:
            self.export_csv(Path(path))

    def export_csv(self, path: Path) -> None:
        """Save the table."""
        try:
            self.frames.write_csv(path)
            self._message = self.session.texts("filter_exported", path=str(path))
        except SaveFailed as error:
            self._message = self.session.texts.message(error.key, error.values)
        self._show_status()

    # ------------------------------------------------------------------ words, colours, closing

    def retranslate(self) -> None:
        """Write all texts in the current language."""
        text = self.session.texts
        self.setWindowTitle(text("filter_title"))
        self.title.setText(text("filter_title"))
        self.export_button.setText(text("filter_export"))
        self.undo_button.setText(text("filter_undo"))
        self.undo_button.setToolTip("Ctrl+Z")
        self.cancel_work.setText(text("ui_stop"))
        self.ok_button.setText(text("filter_ok"))
        self.close_button.setText(text("filter_cancel"))
        self.tabs.setTabText(0, text("filter_tab_sky"))
        self.tabs.setTabText(1, text("filter_tab_quality"))
        self.quality_note.setText(text("filter_quality_note"))
        for part in (self.sky, self.table, self.panels, *self.histograms.values()):
            part.retranslate()
        self._show_counts()
        self._show_status()

    def retheme(self) -> None:
        """Draw with the colours of the theme."""
        self.undo_button.setIcon(self.session.icon("reset", "muted"))
        self.export_button.setIcon(self.session.icon("save", "muted"))
        for part in (self.sky, self.panels, *self.histograms.values()):
            part.retheme()

    def _restore_place(self) -> None:
        available = self.screen().availableGeometry()
        stored = self.outer_session.form["qt_filter_window_geometry"]
        wanted = QRect(*stored) if stored else available.adjusted(30, 30, -30, -30)
        self.setMinimumSize(900, 560)
        self.setGeometry(wanted.intersected(available) if available.intersects(wanted) else available)

    def done(self, result: int) -> None:
        """End the background work and remember the place of the window."""
        place = self.geometry()
        self.outer_session.form.set_hidden(
            "qt_filter_window_geometry", [place.x(), place.y(), place.width(), place.height()]
        )
        self.survey_job.cancel()
        self.work_job.cancel()
        self.route_job.cancel()
        self._route_timer.stop()
        self._survey_timer.stop()
        self._plan_timer.stop()
        self._refresh_timer.stop()
        self.plan.close()
        super().done(result)

    def closeEvent(self, event: QCloseEvent) -> None:
        """Closing the window is the same as cancelling."""
        self.reject()
        event.accept()


def _can_be_read(row: FrameRow) -> bool:
    """Whether the pixels of a file can be looked at here: stacks that are no FITS files only in a run."""
    return row.info is not None and is_frame_name(Path(row.path).name)


def _item(index: int, frame: FrameRow) -> dict[str, Any]:
    info = frame.info
    known = {} if info is None else _header(info)
    return {
        "path": frame.path,
        "index": index,
        "header": known,
        "shape": None if info is None else info.shape_hw,
        "center": None if np.isnan(frame.ra) else (frame.ra, frame.dec),
        "wcs": dict(info.wcs_cards) if info is not None and info.wcs_cards is not None else None,
        "instrument": frame.instrument,
    }


def _header(info: FrameInfo) -> dict[str, Any]:
    """Return what the survey knows under the names of FITS cards; thousands of files are not opened once more."""
    height, width = info.shape_hw
    cards = {
        "NAXIS1": width,
        "NAXIS2": height,
        "INSTRUME": info.instrument,
        "OBJECT": info.object_name,
        "DATE-OBS": info.date_obs,
        "EXPTIME": info.exposure_s,
        "FILTER": info.filter_name,
        "GAIN": info.gain,
        "BAYERPAT": info.cfa_pattern,
        "RA": info.ra_deg,
        "DEC": info.dec_deg,
        **(info.wcs_cards or {}),
    }
    return {name: value for name, value in cards.items() if value not in (None, "")}


def launch_filter_interface_qt(
    raw_files_or_dir: str | Path | Sequence[str | Path],
    initial_overrides: Mapping[str, Any] | None = None,
    *,
    stream_scan: bool = False,
    scan_recursive: bool = True,
    batch_size: int = 100,
    preview_cap: int = 200,
    solver_settings_dict: Mapping[str, Any] | None = None,
    config_overrides: Mapping[str, Any] | None = None,
) -> tuple[Any, bool, dict[str, Any]]:
    """Open the filter on a folder or a list of files and wait for the choice.

    Parameters
    ----------
    raw_files_or_dir : path or sequence of paths
        Folder, or files.
    initial_overrides, solver_settings_dict, config_overrides : mapping, optional
        Settings to begin with; the later ones win.
    scan_recursive : bool
        Look into subfolders too.
    stream_scan, batch_size, preview_cap
        Accepted for callers of the existing program; the survey always streams and every frame is drawn.

    Returns
    -------
    items : list of dict, or the input as it was given
        Kept frames with ``path index header shape center wcs instrument``; the input when nothing was accepted.
        ``center`` is (RA, Dec) in degrees, ``header`` and ``wcs`` are mappings of card names to values.
    accepted : bool
    overrides : dict
        Settings of route, tiles and grouping, ``frame_selection``, ``tile_selection`` (finished stacks; None where
        there are none), ``frame_groups``, ``preplan_master_groups``, ``sds_mode``, ``filter_excluded_indices``,
        ``resolved_wcs_count``, ``filter_cancelled``.
    """
    app = QApplication.instance() or QApplication(sys.argv[:1])
    session = open_session(ThemeSwitch(app))
    for values in (initial_overrides, solver_settings_dict, config_overrides):
        session.form.load(values or {})
    session.form.set("scan_recursive", scan_recursive)
    is_folder = isinstance(raw_files_or_dir, str | Path)
    files = None if is_folder else [str(path) for path in raw_files_or_dir]
    folder = str(raw_files_or_dir) if is_folder else str(Path(files[0]).parent if files else ".")
    dialog = FilterQtDialog(session, folder, files=files)
    accepted = dialog.exec() == QDialog.DialogCode.Accepted
    if accepted:
        return dialog.items(), True, dialog.overrides()
    return raw_files_or_dir, False, {"filter_cancelled": True}
