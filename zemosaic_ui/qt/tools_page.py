"""Cut bad edges off a finished picture, mask thin corners, and score it: before and after, at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PySide6.QtCore import QRectF, Qt, QTimer, Signal
from PySide6.QtGui import QColor, QImage, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QFileDialog, QGridLayout, QHBoxLayout, QLabel, QVBoxLayout, QWidget

from zemosaic_core.altaz_mask import AltAzOptions
from zemosaic_core.quality_crop import CropOptions
from zemosaic_core.tile_quality import QualityOptions
from zemosaic_io.tile_tools import cropped_name
from zemosaic_ui.qt.number_slider import NumberSlider
from zemosaic_ui.qt.session import Session
from zemosaic_ui.qt.switch import Switch
from zemosaic_ui.qt.widgets import Card, ElidedLabel, button, label, row, scrolled, tool_button
from zemosaic_ui.tile_workbench import BenchPicture, BenchScore, TileWorkbench, ToolWishes
from zemosaic_ui.tool_numbers import PREFIXES

__all__ = ["PictureView", "ToolsPage"]

PANEL_PX = 316
FITS_FILES = "FITS (*.fit *.fits *.fts *.fz);;* (*)"
PARTS = ("CC", "ED", "SC", "NBR", "BU", "SDED", "CEC", "CER", "EOC", "TRL")
_TICK_MS = 40
# Dragging a slider asks again at most so often.
_DRAG_MS = 120


class PictureView(QWidget):
    """A picture as large as there is room, with a frame round the part that is kept."""

    def __init__(self, caption_key: str, session: Session) -> None:
        super().__init__()
        self.session, self.caption_key = session, caption_key
        self.picture: QImage | None = None
        self.box: tuple[float, float, float, float] | None = None
        self.hint_key = ""
        self.setMinimumSize(200, 160)

    def show_picture(
        self, rgba: np.ndarray | None, box: tuple[float, float, float, float] | None = None
    ) -> None:
        """Show a picture whose first row is at the bottom; ``box`` is (y0, y1, x0, x1) in its pixels."""
        self.picture, self.box = None, box
        if rgba is not None:
            data = np.ascontiguousarray(rgba[::-1])
            height, width = data.shape[:2]
            self.picture = QImage(data.data, width, height, 4 * width, QImage.Format.Format_RGBA8888).copy()
        self.update()

    def paintEvent(self, event: QPaintEvent) -> None:
        """Draw picture, frame and caption."""
        painter = QPainter(self)
        painter.fillRect(self.rect(), QColor("#0a0a0b"))
        if self.picture is not None:
            width, height = self.picture.width(), self.picture.height()
            scale = min(self.width() / width, self.height() / height)
            left, top = (self.width() - scale * width) / 2, (self.height() - scale * height) / 2
            painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform)
            painter.drawImage(QRectF(left, top, scale * width, scale * height), self.picture)
            if self.box is not None:
                y0, y1, x0, x1 = self.box
                painter.setPen(QPen(self.session.themes.theme.colour("accent"), 1.6))
                kept = QRectF(
                    left + scale * x0, top + scale * (height - y1), scale * (x1 - x0), scale * (y1 - y0)
                )
                painter.drawRect(kept.adjusted(0.8, 0.8, -0.8, -0.8))
        painter.setPen(QColor("#a09d97"))
        area = self.rect().adjusted(10, 8, -10, -8)
        painter.drawText(area, Qt.AlignmentFlag.AlignLeft, self.session.texts(self.caption_key))
        if self.hint_key:
            how = Qt.AlignmentFlag.AlignCenter | Qt.TextFlag.TextWordWrap
            painter.drawText(area, how, self.session.texts(self.hint_key))


class ToolsPage(QWidget):
    """Two pictures with the tools beside them.

    Signals
    -------
    said : words for the footer
    show_asked : path of a result that is to be looked at
    """

    said = Signal(str)
    show_asked = Signal(str)

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self.bench = TileWorkbench()
        self.path: Path | None = None
        self.written = ""
        self.picture: BenchPicture | None = None
        self.score: BenchScore | None = None
        self.open_button = tool_button(on_click=self.choose_file)
        self.name = ElidedLabel()
        self.before = PictureView("tools_before", session)
        self.after = PictureView("tools_after", session)
        self.verdict = label("muted", wrap=True)
        self.switches = {"quality_crop": Switch(), "altaz": Switch()}
        self.sliders = {
            f"{prefix}_{name}": NumberSlider(session, f"{prefix}_{name}")
            for prefix, names in PREFIXES.items()
            for name in (*names, *(("threshold",) if prefix == "quality_gate" else ()))
        }
        self.cards = {prefix: Card() for prefix in PREFIXES}
        self.score_words = label("heading", wrap=True)
        self.part_labels: dict[str, tuple[QLabel, QLabel, QLabel]] = {}
        self.apply_button = button("primary", self.choose_target)
        self.show_button = button("", lambda: self.show_asked.emit(self.written))
        self._lay_out()
        self._timer = QTimer(self)
        self._timer.setInterval(_TICK_MS)
        self._timer.timeout.connect(self._on_tick)
        self._ask_timer = QTimer(self)
        self._ask_timer.setSingleShot(True)
        self._ask_timer.setInterval(_DRAG_MS)
        self._ask_timer.timeout.connect(self._ask)
        self.switches["quality_crop"].setChecked(True)
        for switch in self.switches.values():
            switch.toggled.connect(lambda _on: self._changed())
        for slider in self.sliders.values():
            slider.changed.connect(self._changed)
        self.retranslate()
        self.retheme()
        self._show_state()

    def _lay_out(self) -> None:
        panel = QWidget()
        column = QVBoxLayout(panel)
        column.setContentsMargins(0, 0, 4, 0)
        column.setSpacing(8)
        for prefix in ("quality_gate", "quality_crop", "altaz"):
            card = self.cards[prefix]
            card.body.setContentsMargins(14, 10, 14, 12)
            card.body.setSpacing(5)
            if prefix in self.switches:
                card.body.addWidget(self.switches[prefix])
            else:
                card.body.addWidget(self.score_words)
                card.body.addLayout(self._parts())
            for key, slider in self.sliders.items():
                if key.startswith(prefix):
                    card.body.addWidget(slider)
            column.addWidget(card)
        column.addStretch(1)
        side = scrolled(panel)
        side.setFixedWidth(PANEL_PX)
        pictures = QVBoxLayout()
        pictures.setSpacing(6)
        pictures.addWidget(self.before, 1)
        pictures.addWidget(self.after, 1)
        middle = QHBoxLayout()
        middle.setSpacing(10)
        middle.addLayout(pictures, 1)
        middle.addWidget(side)
        first = row(self.open_button, self.name, self.show_button, self.apply_button)
        first.setStretch(1, 1)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(16, 12, 12, 8)
        layout.setSpacing(8)
        layout.addLayout(first)
        layout.addLayout(middle, 1)
        layout.addWidget(self.verdict)

    def _parts(self) -> QGridLayout:
        grid = QGridLayout()
        grid.setHorizontalSpacing(8)
        grid.setVerticalSpacing(1)
        grid.setColumnStretch(0, 1)
        for line, name in enumerate(("", *PARTS)):
            labels = (label("muted"), label("faint"), label("faint"))
            for column, made in enumerate(labels):
                grid.addWidget(made, line, column)
                if column:
                    made.setAlignment(Qt.AlignmentFlag.AlignRight)
            self.part_labels[name] = labels
        return grid

    # ------------------------------------------------------------------ the picture

    def choose_file(self) -> None:
        """Ask for a picture."""
        start = str(self.path.parent) if self.path else next(iter(self.session.memory.recent_results), "")
        path, _ = QFileDialog.getOpenFileName(self, self.session.texts("tools_open"), start, FITS_FILES)
        if path:
            self.open_file(path)

    def open_file(self, path: str) -> None:
        """Put a picture on the bench; it is read in the background."""
        self.path, self.written = Path(path), ""
        self.picture = self.score = None
        self.bench.ask_open(self.path, self.wishes())
        self._timer.start()
        self._show_state()

    def close_bench(self) -> None:
        """End the background work."""
        self._timer.stop()
        self._ask_timer.stop()
        self.bench.close()

    def wishes(self) -> ToolWishes:
        """Return what the controls say."""
        numbers: dict[str, dict[str, Any]] = {
            prefix: {name: self.sliders[f"{prefix}_{name}"].number for name in names}
            for prefix, names in PREFIXES.items()
        }
        return ToolWishes(
            CropOptions(**numbers["quality_crop"]) if self.switches["quality_crop"].isChecked() else None,
            AltAzOptions(**numbers["altaz"]) if self.switches["altaz"].isChecked() else None,
            QualityOptions(**numbers["quality_gate"]),
            self.sliders["quality_gate_threshold"].number,
        )

    def _changed(self) -> None:
        self._ask_timer.start()

    def _ask(self) -> None:
        if self.path is not None:
            self.written = ""
            self.bench.ask(self.wishes())
            self._timer.start()
            self._show_state()

    # ------------------------------------------------------------------ the result

    def choose_target(self) -> None:
        """Ask where the result is written to; never over the original."""
        if self.path is None:
            return
        start = str(cropped_name(self.path))
        path, _ = QFileDialog.getSaveFileName(self, self.session.texts("tools_apply"), start, "FITS (*.fits)")
        if path:
            # The dialog has asked about a file that is there.
            self.apply_to(Path(path), overwrite=True)

    def apply_to(self, target: Path, *, overwrite: bool = False) -> None:
        """Write the result; the footer tells the end."""
        self.bench.ask_apply(target, self.wishes(), overwrite=overwrite)
        self._timer.start()

    def _on_tick(self) -> None:
        found = self.bench.take()
        for finding in found:
            match finding.kind:
                case "picture":
                    self.picture = finding.content
                case "score":
                    self.score = finding.content
                case "written":
                    self.written = finding.content
                    self.said.emit(self.session.texts("tools_written", path=self.written))
                case "failed":
                    key, values = finding.content
                    self.said.emit(self.session.texts.message(key, values))
        if found:
            self._show_state()

    def _show_state(self) -> None:
        text, picture = self.session.texts, self.picture
        self.name.set_text("" if self.path is None else str(self.path))
        self.before.hint_key = "tools_empty" if self.path is None else ""
        self.apply_button.setEnabled(picture is not None)
        self.show_button.setEnabled(bool(self.written))
        if picture is None:
            self.before.show_picture(None)
            self.after.show_picture(None)
            self.verdict.setText("")
        else:
            y0, y1, x0, x1 = (edge / picture.step for edge in picture.cut.box)
            self.before.show_picture(picture.before, (y0, y1, x0, x1))
            self.after.show_picture(picture.after)
            words = text(
                "tools_verdict",
                kept=text.number(100 * picture.cut.kept, 1),
                masked=text.number(100 * picture.cut.masked, 1),
            )
            reason = (
                text(f"tools_{picture.cut.reason_key}") if self.switches["quality_crop"].isChecked() else ""
            )
            self.verdict.setText(f"{words} {reason}".strip())
        self._show_score(self.score)

    def _show_score(self, score: BenchScore | None) -> None:
        text = self.session.texts
        if score is None:
            self.score_words.setText("")
        else:
            before, after = (text.number(parts["score"], 3) for parts in (score.before, score.after))
            key = "tools_score_passes" if score.accepted_after else "tools_score_fails"
            self.score_words.setText(text(key, before=before, after=after))
        for name, (_, before_label, after_label) in self.part_labels.items():
            if name:
                before_label.setText(text.number(score.before[name], 2) if score is not None else "")
                after_label.setText(text.number(score.after[name], 2) if score is not None else "")

    # ------------------------------------------------------------------ words and colours

    def retranslate(self) -> None:
        """Write all texts in the current language."""
        text = self.session.texts
        self.open_button.setText(text("tools_open"))
        self.open_button.setToolTip(text("tools_open_tip"))
        self.apply_button.setText(text("tools_apply"))
        self.apply_button.setToolTip(text("tools_apply_tip"))
        self.show_button.setText(text("tools_show"))
        self.cards["quality_gate"].heading.setText(text("tools_card_score"))
        self.cards["quality_crop"].heading.setText(text("tools_card_crop"))
        self.cards["altaz"].heading.setText(text("tools_card_altaz"))
        self.switches["quality_crop"].setText(text("tools_use_crop"))
        self.switches["altaz"].setText(text("tools_use_altaz"))
        for slider in self.sliders.values():
            slider.retranslate()
        for name, (title, before, after) in self.part_labels.items():
            if name:
                title.setText(text(f"tools_part_{name.lower()}"))
                title.setToolTip(name)
            else:
                before.setText(text("tools_before"))
                after.setText(text("tools_after"))
        self._show_state()

    def retheme(self) -> None:
        """Draw icons in the colours of the theme."""
        self.open_button.setIcon(self.session.icon("open"))
        self.open_button.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.before.update()
        self.after.update()
