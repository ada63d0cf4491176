"""The mosaic viewer: look at a finished mosaic, or at any FITS image, and open what belongs to it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from PySide6.QtCore import Qt, QTimer, QUrl, Signal
from PySide6.QtGui import QDesktopServices
from PySide6.QtWidgets import QFileDialog, QHBoxLayout, QMenu, QVBoxLayout, QWidget

from zemosaic_core.errors import SkipItem, ZeMosaicError
from zemosaic_core.stretch import StretchParams
from zemosaic_ui.footprints import find_outputs, read_footprints, report_of
from zemosaic_ui.look import Look, same_numbers, uncalibrated
from zemosaic_ui.mosaic_image import MosaicImage, sexagesimal
from zemosaic_ui.qt.compare_pane import ComparePane, same_place
from zemosaic_ui.qt.compare_panel import ComparePanel
from zemosaic_ui.qt.look_panel import LookPanel
from zemosaic_ui.qt.mosaic_canvas import MosaicCanvas
from zemosaic_ui.qt.session import Session
from zemosaic_ui.qt.theme import number_font
from zemosaic_ui.qt.widgets import ElidedLabel, label, row, scrolled, tool_button

__all__ = ["ViewerPage"]

OVERLAYS = ("coverage", "tiles", "frames", "annotation")
PANEL_PX = 276
# Endings of the forms in which a view is written.
SAVED_FORMS = {".png": "png", ".tif": "tiff16", ".tiff": "tiff16"}
FITS_FILES = "FITS (*.fit *.fits *.fts *.fz);;* (*)"


class ViewerPage(QWidget):
    """Canvas with tools above it, a panel beside it and a line of facts below it.

    Signals
    -------
    failed, said : words for the footer
    """

    failed = Signal(str)
    said = Signal(str)

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self.outputs: dict[str, str] = {}
        self._auto: dict[str, StretchParams] = {}
        self._other_auto: StretchParams | None = None
        self._look_number = 0
        self.canvas = MosaicCanvas(session)
        self.pane = ComparePane(session, self.canvas)
        self.look = LookPanel(session)
        self.compare = ComparePanel(session)
        self.open_button = tool_button(on_click=self.choose_file)
        self.recent = tool_button()
        self.recent_menu = QMenu(self.recent)
        self.recent_menu.aboutToShow.connect(self._fill_recent)
        self.recent.setMenu(self.recent_menu)
        self.recent.setPopupMode(self.recent.ToolButtonPopupMode.InstantPopup)
        self.fit_button = tool_button(on_click=self.canvas.fit)
        self.one_button = tool_button(on_click=lambda: self.canvas.zoom_to(1.0))
        self.plus, self.minus = (
            tool_button(on_click=lambda: self.canvas.zoom(1.4)),
            tool_button(on_click=lambda: self.canvas.zoom(1 / 1.4)),
        )
        self.overlay_buttons = {name: tool_button(checkable=True) for name in OVERLAYS}
        self.save_button = tool_button(on_click=self.choose_saved)
        self.folder_button = tool_button(on_click=self.open_folder)
        self.report_button = tool_button(on_click=self.open_report)
        self.name = ElidedLabel()
        self.facts, self.zoom_words = label("muted"), label("muted")
        self._lay_out()
        self._connect()
        self.retranslate()
        self.retheme()
        self._show_state()

    def _lay_out(self) -> None:
        first = row(self.open_button, self.recent, self.name, self.folder_button, self.report_button)
        first.setStretch(2, 1)
        second = row(
            self.fit_button,
            self.one_button,
            self.minus,
            self.plus,
            10,
            *self.overlay_buttons.values(),
            None,
            self.save_button,
            spacing=6,
        )
        panels = QWidget()
        column = QVBoxLayout(panels)
        column.setContentsMargins(0, 0, 4, 0)
        column.setSpacing(8)
        column.addWidget(self.look)
        column.addWidget(self.compare)
        column.addStretch(1)
        side = scrolled(panels)
        side.setFixedWidth(PANEL_PX)
        middle = QHBoxLayout()
        middle.setSpacing(10)
        middle.addWidget(self.pane, 1)
        middle.addWidget(side)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(16, 12, 12, 8)
        layout.setSpacing(8)
        layout.addLayout(first)
        layout.addLayout(second)
        layout.addLayout(middle, 1)
        layout.addLayout(row(self.facts, None, self.zoom_words))

    def _connect(self) -> None:
        self.canvas.zoomed.connect(self._on_zoomed)
        self.canvas.auto_ready.connect(self._on_auto)
        self.canvas.counted.connect(self.look.show_counts)
        self.pane.other_auto.connect(self._on_other_auto)
        self.canvas.hovered.connect(self._on_hovered)
        self.pane.other.hovered.connect(self._on_other_hovered)
        for canvas in (self.canvas, self.pane.other):
            canvas.failed.connect(self.failed)
        self.canvas.saved.connect(self._on_saved)
        self.look.chosen.connect(self._on_chosen)
        self.look.moved.connect(self._apply_look)
        self.look.keep_asked.connect(self._on_keep)
        self.compare.asked.connect(self.compare_with)
        self.compare.way_chosen.connect(self.pane.set_way)
        for name, choice in self.overlay_buttons.items():
            choice.toggled.connect(lambda on, name=name: self._on_overlay(name, on))
        self._hover: tuple[float, float] | None = None
        self._hover_timer = QTimer(self)
        self._hover_timer.setSingleShot(True)
        self._hover_timer.setInterval(30)
        self._hover_timer.timeout.connect(self._show_facts)

    # ------------------------------------------------------------------ opening

    def choose_file(self) -> None:
        """Ask for a FITS file to look at."""
        text = self.session.texts
        start = next(iter(self.session.memory.recent_results), "")
        path, _ = QFileDialog.getOpenFileName(self, text("ui_viewer_open"), start, FITS_FILES)
        if path:
            self.open_file(path)

    def offer(self, outputs: Mapping[str, str]) -> None:
        """Show a finished run's mosaic as soon as it is there."""
        if outputs.get("science") or outputs.get("mosaic"):
            self.open_outputs(outputs)

    def open_outputs(self, outputs: Mapping[str, str]) -> None:
        """Show the mosaic of a run with its coverage and its footprints."""
        path = outputs.get("science") or outputs.get("mosaic", "")
        if self.canvas.image is not None and str(self.canvas.image.path) == path:
            return
        self._open(path, dict(outputs))

    def open_file(self, path: str) -> None:
        """Show a FITS file; what belongs to it is looked for beside it."""
        self._open(path, find_outputs(Path(path)))

    def open_result_folder(self, folder: str) -> None:
        """Show the mosaic of an earlier run."""
        outputs = find_outputs(Path(folder))
        path = outputs.get("science")
        if path:
            self._open(path, outputs)
        else:
            self.failed.emit(self.session.texts("ui_viewer_no_mosaic", folder=folder))

    def _open(self, path: str, outputs: dict[str, str]) -> None:
        image = self._read(path, outputs)
        if image is None:
            return
        self.stop_comparing()
        self.outputs = outputs
        self._auto.clear()
        # Each picture begins as the settings have it.
        self.look.begin_as_settings()
        self.canvas.show_image(image)
        for name, (polygons, titles) in read_footprints(outputs, image).items():
            self.canvas.set_overlay(name, polygons, titles)
        if outputs.get("coverage") and self.canvas.renderer is not None:
            self.canvas.renderer.ask_coverage(outputs["coverage"])
        if self.overlay_buttons["annotation"].isChecked():
            self.canvas.show_overlay("annotation", True)
        if image.n_channels == 1:
            self.look.channels.setCurrentIndex(0)
        self._show_state()

    def _read(self, path: str, outputs: Mapping[str, str]) -> MosaicImage | None:
        try:
            return MosaicImage(Path(path), outputs)
        except SkipItem as error:
            self.failed.emit(self.session.texts.message(error.key, error.values))
            return None

    def close_file(self) -> None:
        """Let go of the file."""
        self.stop_comparing()
        self.canvas.close_image()
        self._show_state()

    def open_folder(self) -> None:
        """Open the folder of the file with the system's program."""
        if self.canvas.image is not None:
            QDesktopServices.openUrl(QUrl.fromLocalFile(str(self.canvas.image.path.parent)))

    def open_report(self) -> None:
        """Open the report of the run with the system's program."""
        if report_of(self.outputs):
            QDesktopServices.openUrl(QUrl.fromLocalFile(report_of(self.outputs)))

    def _fill_recent(self) -> None:
        self.recent_menu.clear()
        recent = self.session.memory.recent_results
        for path in recent:
            self.recent_menu.addAction(path, lambda path=path: self.open_result_folder(path))
        if not recent:
            self.recent_menu.addAction(self.session.texts("ui_recent_none")).setEnabled(False)

    # ------------------------------------------------------------------ the look

    def _on_auto(self, found: tuple[str, StretchParams]) -> None:
        view, params = found
        self._auto[view] = params
        if view == self.look.view and params.style == self.look.style_name:
            self._apply_look()

    def _on_other_auto(self, found: tuple[str, StretchParams]) -> None:
        self._other_auto = found[1]
        self._apply_look()

    def _on_chosen(self) -> None:
        known = self._auto.get(self.look.view)
        if known is not None and known.style == self.look.style_name:
            self._apply_look()
        elif self.canvas.renderer is not None:
            # Each channel view has a stretch of its own in each style.
            self.canvas.renderer.ask_auto(self.look.view, style=self.look.style_name)
        if self.pane.other.renderer is not None:
            self.pane.other.renderer.ask_auto(self.look.view, style=self.look.style_name)

    def _apply_look(self) -> None:
        params = self._auto.get(self.look.view)
        if params is None or params.style != self.look.style_name:
            return
        moved = self.look.move_wanted.of(params)
        calibrated = self.look.calibrated.isChecked()
        self._set_look(self.canvas, moved if calibrated else uncalibrated(moved))
        if self.compare.what == "before":
            self._set_look(self.pane.other, uncalibrated(moved))
        elif self._other_auto is not None:
            own = self.look.move_wanted.of(self._other_auto)
            own = own if calibrated else uncalibrated(own)
            self._set_look(self.pane.other, same_numbers(own, moved))

    def _set_look(self, canvas: MosaicCanvas, params: StretchParams) -> None:
        if canvas.image is not None:
            self._look_number += 1
            canvas.set_look(Look(self._look_number, self.look.view, params, self.look.calm.isChecked()))

    def _on_keep(self) -> None:
        self.look.keep_for_runs()
        self.said.emit(self.session.texts("ui_viewer_kept"))

    def _on_overlay(self, name: str, on: bool) -> None:
        self.canvas.show_overlay(name, on)

    # ------------------------------------------------------------------ comparing

    def compare_with(self, what: str) -> None:
        """Compare with the colours ``before`` their calibration, with another ``file``, or with nothing (``off``)."""
        if what == "file":
            text = self.session.texts
            start = str(self.canvas.image.path.parent) if self.canvas.image is not None else ""
            path, _ = QFileDialog.getOpenFileName(self, text("ui_compare_file"), start, FITS_FILES)
            if not path or not self.compare_with_file(path):
                self.compare.set_what("before" if self.compare.what == "before" else "off")
        elif what == "before" and self.canvas.image is not None:
            text = self.session.texts
            self.compare.set_what("before")
            self.look.calibrated.setChecked(True)
            captions = (text("ui_compare_after_caption"), text("ui_compare_before_caption"))
            self.pane.compare(self.canvas.image, captions, shared=True)
            self._apply_look()
        else:
            self.stop_comparing()

    def compare_with_file(self, path: str) -> bool:
        """Compare with another FITS file; return whether it can be shown."""
        image = self._read(path, find_outputs(Path(path)))
        if image is None or self.canvas.image is None:
            return False
        self.compare.set_what("file")
        self._other_auto = None
        own = self.canvas.image.path
        same_name = own.name == image.path.name
        captions = tuple(f"{p.parent.name}/{p.name}" if same_name else p.name for p in (own, image.path))
        self.pane.compare(image, (captions[0], captions[1]), shared=False)
        assert self.pane.other.renderer is not None
        self.pane.other.renderer.ask_auto(self.look.view, style=self.look.style_name)
        return True

    def stop_comparing(self) -> None:
        """Show one picture again."""
        self._other_auto = None
        self.pane.stop()
        self.compare.set_what("off")

    # ------------------------------------------------------------------ saving the view

    def choose_saved(self) -> None:
        """Ask where what is in sight is written to."""
        image, text = self.canvas.image, self.session.texts
        if image is None:
            return
        start = str(image.path.with_name(f"{image.path.stem}_view.png"))
        path, _ = QFileDialog.getSaveFileName(
            self, text("ui_viewer_save"), start, "PNG (*.png);;TIFF 16 bit (*.tif *.tiff)"
        )
        if path:
            self.save_view(Path(path))

    def save_view(self, path: Path) -> None:
        """Write what is in sight as PNG or as TIFF of 16 bits, whichever the name asks for."""
        form = SAVED_FORMS.get(path.suffix.lower())
        if form is None:
            path, form = path.with_name(path.name + ".png"), "png"
        self.canvas.save_view(path, form)

    def _on_saved(self, path: str) -> None:
        self.said.emit(self.session.texts("ui_viewer_saved", path=path))

    # ------------------------------------------------------------------ facts

    def _on_hovered(self, x: float, y: float) -> None:
        self._hover = (x, y)
        self._hover_timer.start()

    def _on_other_hovered(self, x: float, y: float) -> None:
        """Tell the values of the first picture at the place in the other one."""
        if self.canvas.image is not None and self.pane.other.image is not None:
            self._on_hovered(*same_place(self.pane.other.image, self.canvas.image, x, y)[:2])

    def _show_facts(self) -> None:
        image, text = self.canvas.image, self.session.texts
        if image is None or self._hover is None:
            self.facts.setText("")
            return
        x, y = self._hover
        try:
            values = image.values_at(math.floor(x + 0.5), math.floor(y + 0.5))
        except (OSError, ZeMosaicError):
            values = None  # the file went away while it was shown; the canvas has said so
        parts = [text.written(f"x {x:8.1f}   y {y:8.1f}")]
        sky = image.sky_at(x, y)
        if sky is not None:
            parts.insert(0, sexagesimal(*sky))
        if values is not None:
            parts.append("   ".join(text.number(value, 1) for value in values))
        self.facts.setText("      ".join(parts))

    def _on_zoomed(self, scale: float) -> None:
        self.zoom_words.setText(f"{self.session.texts.number(100 * scale, 0 if scale >= 0.1 else 1)} %")

    def _show_state(self) -> None:
        image, text = self.canvas.image, self.session.texts
        has = image is not None
        for control in (self.fit_button, self.one_button, self.plus, self.minus, self.save_button):
            control.setEnabled(has)
        calibrated = has and image.white_gains is not None
        self.look.set_image(has=has, colour=has and image.n_channels == 3, calibrated=calibrated)
        self.compare.set_image(has=has, calibrated=calibrated)
        self.folder_button.setEnabled(has)
        self.report_button.setEnabled(bool(report_of(self.outputs)))
        for name, choice in self.overlay_buttons.items():
            there = name in self.canvas.overlays or (
                name == "coverage" and bool(self.outputs.get("coverage"))
            )
            if name == "annotation":
                there = has and image.wcs is not None
            choice.setEnabled(has and there)
        if has:
            height, width = image.shape_hw
            size = f"{text.number(width)} × {text.number(height)}"
            self.name.set_text(f"{image.path}   {size}")
        else:
            self.name.set_text("")

    # ------------------------------------------------------------------ words and colours

    def retranslate(self) -> None:
        """Write all texts in the current language."""
        text = self.session.texts
        self.open_button.setText(text("ui_viewer_open"))
        for control, key in (
            (self.open_button, "ui_viewer_open"),
            (self.recent, "ui_recent"),
            (self.fit_button, "ui_viewer_fit"),
            (self.one_button, "ui_viewer_one"),
            (self.plus, "ui_viewer_plus"),
            (self.minus, "ui_viewer_minus"),
            (self.save_button, "ui_viewer_save_tip"),
            (self.folder_button, "ui_open_folder"),
            (self.report_button, "ui_open_report"),
        ):
            control.setToolTip(text(key))
            control.setAccessibleName(text(key))
        self.one_button.setText("1:1")
        self.save_button.setText(text("ui_viewer_save"))
        for name, choice in self.overlay_buttons.items():
            choice.setText(text(f"ui_viewer_{name}"))
            choice.setToolTip(text(f"ui_viewer_{name}_tip"))
        self.look.retranslate()
        self.compare.retranslate()
        self._show_state()
        self.canvas.update()

    def retheme(self) -> None:
        """Draw icons in the colours of the theme."""
        icon = self.session.icon
        for control, name in ((self.open_button, "open"), (self.save_button, "save")):
            control.setIcon(icon(name))
            control.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.recent.setIcon(icon("recent", "muted"))
        self.fit_button.setIcon(icon("fit"))
        self.plus.setIcon(icon("plus"))
        self.minus.setIcon(icon("minus"))
        self.folder_button.setIcon(icon("folder"))
        self.report_button.setIcon(icon("report"))
        for widget in (self.facts, self.zoom_words):
            widget.setFont(number_font())
        self.look.update()
        self.canvas.update()
