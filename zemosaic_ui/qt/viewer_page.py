"""The mosaic viewer: look at a finished mosaic, or at any FITS image, and open what belongs to it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from PySide6.QtCore import Qt, QTimer, QUrl, Signal
from PySide6.QtGui import QDesktopServices
from PySide6.QtWidgets import QComboBox, QFileDialog, QMenu, QSlider, QVBoxLayout, QWidget

from zemosaic_core.errors import SkipItem, ZeMosaicError
from zemosaic_core.picture_style import STYLES
from zemosaic_core.stretch import StretchParams
from zemosaic_ui.footprints import find_outputs, read_footprints, report_of
from zemosaic_ui.mosaic_image import CHANNEL_VIEWS, MosaicImage, adjusted, sexagesimal
from zemosaic_ui.part_renderer import Look
from zemosaic_ui.qt.mosaic_canvas import MosaicCanvas
from zemosaic_ui.qt.session import Session
from zemosaic_ui.qt.theme import number_font
from zemosaic_ui.qt.widgets import ElidedLabel, label, row, tool_button

__all__ = ["ViewerPage"]

OVERLAYS = ("coverage", "tiles", "frames")


class ViewerPage(QWidget):
    """Canvas, tools above it and a line of facts below it."""

    failed = Signal(str)

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self.outputs: dict[str, str] = {}
        self._auto: dict[str, StretchParams] = {}
        self._look_number = 0
        self.canvas = MosaicCanvas(session)
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
        self.channels = QComboBox()
        self.styles = QComboBox()
        self.brightness, self.black, self.saturation = self._slider(), self._slider(), self._slider()
        self.brightness_label, self.black_label = label("muted"), label("muted")
        self.saturation_label = label("muted")
        self.auto_button = tool_button(on_click=self.reset_stretch)
        self.overlay_buttons = {name: tool_button(checkable=True) for name in OVERLAYS}
        self.folder_button = tool_button(on_click=self.open_folder)
        self.report_button = tool_button(on_click=self.open_report)
        self.name = ElidedLabel()
        self.facts, self.zoom_words = label("muted"), label("muted")
        self._lay_out()
        self._connect()
        self.retranslate()
        self.retheme()
        self._show_state()

    def _slider(self) -> QSlider:
        slider = QSlider(Qt.Orientation.Horizontal)
        slider.setRange(-100, 100)
        slider.setValue(0)
        slider.setFixedWidth(90)
        return slider

    def _lay_out(self) -> None:
        overlays = row(*self.overlay_buttons.values(), spacing=6)
        first = row(
            self.open_button, self.recent, self.name, overlays, self.folder_button, self.report_button
        )
        first.setStretch(2, 1)
        second = row(
            self.fit_button,
            self.one_button,
            self.minus,
            self.plus,
            10,
            self.channels,
            self.styles,
            10,
            self.brightness_label,
            self.brightness,
            self.black_label,
            self.black,
            self.saturation_label,
            self.saturation,
            self.auto_button,
            None,
            spacing=6,
        )
        layout = QVBoxLayout(self)
        layout.setContentsMargins(16, 12, 16, 8)
        layout.setSpacing(8)
        layout.addLayout(first)
        layout.addLayout(second)
        layout.addWidget(self.canvas, 1)
        layout.addLayout(row(self.facts, None, self.zoom_words))

    def _connect(self) -> None:
        canvas = self.canvas
        canvas.hovered.connect(self._on_hovered)
        canvas.zoomed.connect(self._on_zoomed)
        canvas.auto_ready.connect(self._on_auto)
        canvas.failed.connect(self.failed)
        self.channels.currentIndexChanged.connect(self._on_channels)
        self.styles.currentIndexChanged.connect(self._on_style)
        self._look_timer = QTimer(self)
        self._look_timer.setSingleShot(True)
        self._look_timer.setInterval(40)
        self._look_timer.timeout.connect(self._apply_look)
        for slider in (self.brightness, self.black, self.saturation):
            slider.valueChanged.connect(lambda _value: self._look_timer.start())
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
        path, _ = QFileDialog.getOpenFileName(
            self, text("ui_viewer_open"), start, "FITS (*.fit *.fits *.fts *.fz);;* (*)"
        )
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
        try:
            image = MosaicImage(Path(path))
        except SkipItem as error:
            self.failed.emit(self.session.texts.message(error.key, error.values))
            return
        self.outputs = outputs
        self._auto.clear()
        # Each picture begins as the settings have it.
        self.styles.blockSignals(True)
        self.styles.setCurrentIndex(self._style_of_settings())
        self.styles.blockSignals(False)
        self.canvas.show_image(image)
        for name, (polygons, titles) in read_footprints(outputs, image).items():
            self.canvas.set_overlay(name, polygons, titles)
        if outputs.get("coverage") and self.canvas.renderer is not None:
            self.canvas.renderer.ask_coverage(outputs["coverage"])
        if image.n_channels == 1:
            self.channels.setCurrentIndex(0)
        self._show_state()

    def close_file(self) -> None:
        """Let go of the file."""
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

    @property
    def view(self) -> str:
        """The channel view chosen."""
        return CHANNEL_VIEWS[max(0, self.channels.currentIndex())]

    def _on_auto(self, found: tuple[str, StretchParams]) -> None:
        view, params = found
        self._auto[view] = params
        if view == self.view and params.style == self.style:
            self._apply_look()

    def _on_channels(self, _index: int) -> None:
        if self.view in self._auto:
            self._apply_look()
        elif self.canvas.renderer is not None:
            self.canvas.renderer.ask_auto(self.view)

    @property
    def style(self) -> str:
        """The style chosen."""
        return list(STYLES)[max(0, self.styles.currentIndex())]

    def _style_of_settings(self) -> int:
        return list(STYLES).index(self.session.form["picture_style"])

    def _on_style(self, _index: int) -> None:
        # Each channel view has a stretch of its own in each style.
        self._auto.clear()
        if self.canvas.renderer is not None:
            self.canvas.renderer.ask_auto(self.view, style=self.style)

    def _apply_look(self) -> None:
        params = self._auto.get(self.view)
        if params is None:
            return
        self._look_number += 1
        sliders = (slider.value() / 100.0 for slider in (self.brightness, self.black, self.saturation))
        moved = adjusted(params, *sliders)
        self.canvas.set_look(Look(self._look_number, self.view, moved))

    def reset_stretch(self) -> None:
        """Go back to the automatic stretch."""
        for slider in (self.brightness, self.black, self.saturation):
            slider.setValue(0)

    def _on_overlay(self, name: str, on: bool) -> None:
        self.canvas.show_overlay(name, on)

    # ------------------------------------------------------------------ facts

    def _on_hovered(self, x: float, y: float) -> None:
        self._hover = (x, y)
        self._hover_timer.start()

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
        for control in (self.fit_button, self.one_button, self.plus, self.minus, self.brightness, self.black):
            control.setEnabled(has)
        self.channels.setEnabled(has and image.n_channels == 3)
        self.saturation.setEnabled(has and image.n_channels == 3)
        self.styles.setEnabled(has)
        self.auto_button.setEnabled(has)
        self.folder_button.setEnabled(has)
        self.report_button.setEnabled(bool(report_of(self.outputs)))
        for name, choice in self.overlay_buttons.items():
            there = name in self.canvas.overlays or (
                name == "coverage" and bool(self.outputs.get("coverage"))
            )
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
            (self.channels, "ui_viewer_channels"),
            (self.brightness, "ui_viewer_brightness"),
            (self.black, "ui_viewer_black"),
            (self.saturation, "ui_viewer_saturation"),
            (self.styles, "option.picture_style.label"),
            (self.auto_button, "ui_viewer_auto_tip"),
            (self.folder_button, "ui_open_folder"),
            (self.report_button, "ui_open_report"),
        ):
            control.setToolTip(text(key))
            control.setAccessibleName(text(key))
        self.one_button.setText("1:1")
        self.auto_button.setText(text("ui_viewer_auto"))
        self.brightness_label.setText(text("ui_viewer_brightness"))
        self.black_label.setText(text("ui_viewer_black"))
        self.saturation_label.setText(text("ui_viewer_saturation"))
        for name, choice in self.overlay_buttons.items():
            choice.setText(text(f"ui_viewer_{name}"))
            choice.setToolTip(text(f"ui_viewer_{name}_tip"))
        index = max(0, self.channels.currentIndex())
        self.channels.blockSignals(True)
        self.channels.clear()
        self.channels.addItems([text(f"ui_channels_{name}") for name in CHANNEL_VIEWS])
        self.channels.setCurrentIndex(index)
        self.channels.blockSignals(False)
        chosen = self.styles.currentIndex()
        self.styles.blockSignals(True)
        self.styles.clear()
        self.styles.addItems([text(f"option.picture_style.choice.{name}") for name in STYLES])
        self.styles.setCurrentIndex(max(0, chosen) if chosen >= 0 else self._style_of_settings())
        self.styles.blockSignals(False)
        self._show_state()
        self.canvas.update()

    def retheme(self) -> None:
        """Draw icons in the colours of the theme."""
        icon = self.session.icon
        self.open_button.setIcon(icon("open"))
        self.open_button.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.recent.setIcon(icon("recent", "muted"))
        self.fit_button.setIcon(icon("fit"))
        self.plus.setIcon(icon("plus"))
        self.minus.setIcon(icon("minus"))
        self.folder_button.setIcon(icon("folder"))
        self.report_button.setIcon(icon("report"))
        for widget in (self.facts, self.zoom_words):
            widget.setFont(number_font())
        self.canvas.update()
