"""How the viewer's picture looks: channels, style, the four sliders, and how many pixels have each brightness."""

from __future__ import annotations

import numpy as np
from PySide6.QtCore import QPointF, QSize, Qt, QTimer, Signal
from PySide6.QtGui import QColor, QPainter, QPaintEvent, QPen, QPolygonF
from PySide6.QtWidgets import QComboBox, QGridLayout, QLabel, QSizePolicy, QSlider, QVBoxLayout, QWidget

from zemosaic_core.picture_histogram import PictureHistogram
from zemosaic_core.picture_style import STYLES
from zemosaic_core.stretch import StretchMove
from zemosaic_pipeline.picture_look import MOVES
from zemosaic_ui.look import CHANNEL_VIEWS
from zemosaic_ui.qt.session import Session
from zemosaic_ui.qt.switch import Switch
from zemosaic_ui.qt.widgets import Card, button, label, row

__all__ = ["HistogramPlot", "LookPanel"]

_CURVES = (QColor(224, 96, 88), QColor(110, 190, 110), QColor(104, 150, 235))
# Dragging a slider asks for a picture at most so often.
_DRAG_MS = 40


class HistogramPlot(QWidget):
    """Red, green and blue of the picture, black on the left, white on the right."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self.histogram: PictureHistogram | None = None
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)

    def sizeHint(self) -> QSize:
        """Ask for a flat strip."""
        return QSize(200, 74)

    def show_counts(self, histogram: PictureHistogram | None) -> None:
        """Draw another histogram; None for none."""
        self.histogram = histogram
        self.update()

    def paintEvent(self, event: QPaintEvent) -> None:
        """Draw the curves; their heights are square roots, or nothing but the sky would be seen."""
        painter = QPainter(self)
        painter.fillRect(self.rect(), self.session.themes.theme.colour("sunken"))
        if self.histogram is None:
            return
        heights = np.sqrt(self.histogram.counts)
        top = float(heights.max(initial=1.0)) or 1.0
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setCompositionMode(QPainter.CompositionMode.CompositionMode_SourceOver)
        grey = bool((heights[0] == heights[1]).all() and (heights[0] == heights[2]).all())
        x = np.linspace(1, self.width() - 1, heights.shape[1])
        for line, colour in zip(heights[:1] if grey else heights, _CURVES, strict=False):
            y = self.height() - 1 - line / top * (self.height() - 4)
            shape = QPolygonF([QPointF(a, b) for a, b in zip(x, y, strict=True)])
            painter.setPen(QPen(self.session.themes.theme.colour("muted") if grey else colour, 1.3))
            painter.drawPolyline(shape)


class LookPanel(QWidget):
    """Everything that decides how pixels become colours.

    Signals
    -------
    moved : sliders or switches changed
    chosen : channels or style changed; another automatic stretch is needed
    keep_asked : the look is wanted for the next runs
    """

    moved = Signal()
    chosen = Signal()
    keep_asked = Signal()

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self.channels, self.styles = QComboBox(), QComboBox()
        for combo in (self.channels, self.styles):
            combo.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.histogram = HistogramPlot(session)
        self.shares = label("faint", wrap=True)
        self.sliders = {name: _slider() for name in MOVES}
        self.names: dict[str, QLabel] = {name: label("muted") for name in MOVES}
        self.numbers: dict[str, QLabel] = {name: label("faint") for name in MOVES}
        self.calm, self.calibrated = Switch(), Switch()
        self.auto_button = button("", self.reset)
        self.keep_button = button("", self.keep_asked.emit)
        self.card = Card()
        self._lay_out()
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(_DRAG_MS)
        self._timer.timeout.connect(self.moved)
        for name, slider in self.sliders.items():
            slider.valueChanged.connect(lambda value, name=name: self._on_slider(name, value))
        for switch in (self.calm, self.calibrated):
            switch.setChecked(True)
            switch.toggled.connect(lambda _on: self.moved.emit())
        self.channels.currentIndexChanged.connect(lambda _index: self.chosen.emit())
        self.styles.currentIndexChanged.connect(lambda _index: self.chosen.emit())

    def _lay_out(self) -> None:
        body = self.card.body
        body.setContentsMargins(14, 10, 14, 12)
        body.setSpacing(6)
        choices = row(self.channels, self.styles, spacing=6)
        choices.setStretch(0, 1)
        choices.setStretch(1, 1)
        body.addLayout(choices)
        body.addWidget(self.histogram)
        body.addWidget(self.shares)
        lines = QGridLayout()
        lines.setHorizontalSpacing(6)
        for line, (name, slider) in enumerate(self.sliders.items()):
            self.numbers[name].setFixedWidth(30)
            self.numbers[name].setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
            for column, widget in enumerate((self.names[name], slider, self.numbers[name])):
                lines.addWidget(widget, line, column)
        body.addLayout(lines)
        for item in (self.calm, self.calibrated):
            body.addWidget(item)
        body.addLayout(row(self.auto_button, self.keep_button, None, spacing=6))
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.card)

    # ------------------------------------------------------------------ what is chosen

    @property
    def view(self) -> str:
        """The channel view chosen."""
        return CHANNEL_VIEWS[max(0, self.channels.currentIndex())]

    @property
    def style_name(self) -> str:
        """The style of the picture."""
        return list(STYLES)[max(0, self.styles.currentIndex())]

    @property
    def move_wanted(self) -> StretchMove:
        """What the sliders change about the automatic stretch."""
        return StretchMove(**{name: slider.value() / 100.0 for name, slider in self.sliders.items()})

    def _on_slider(self, name: str, value: int) -> None:
        self.numbers[name].setText(f"{value:+d}" if value else "")
        self._timer.start()

    def reset(self) -> None:
        """Go back to the automatic stretch."""
        for slider in self.sliders.values():
            slider.setValue(0)

    def begin_as_settings(self) -> None:
        """Show a picture as the next run would make it; says nothing of it."""
        form = self.session.form
        controls = (self.styles, self.channels, *self.sliders.values(), self.calm, self.calibrated)
        for control in controls:
            control.blockSignals(True)
        self.styles.setCurrentIndex(list(STYLES).index(form["picture_style"]))
        for name, slider in self.sliders.items():
            slider.setValue(round(form[f"picture_{name}"]))
            self.numbers[name].setText(f"{slider.value():+d}" if slider.value() else "")
        for control in controls:
            control.blockSignals(False)

    def keep_for_runs(self) -> None:
        """Write style and sliders into the settings of the next run."""
        form = self.session.form
        form.set("picture_style", self.style_name)
        for name, slider in self.sliders.items():
            form.set(f"picture_{name}", float(slider.value()))

    def set_image(self, *, has: bool, colour: bool, calibrated: bool) -> None:
        """Enable what makes sense: for a picture at all, one with colours, one whose white is known."""
        for control in (self.styles, self.calm, self.auto_button, self.keep_button, *self.sliders.values()):
            control.setEnabled(has)
        self.channels.setEnabled(has and colour)
        self.sliders["saturation"].setEnabled(has and colour)
        self.calibrated.setEnabled(has and calibrated)
        if not has:
            self.show_counts(None)

    def show_counts(self, histogram: PictureHistogram | None) -> None:
        """Show how many pixels have each brightness."""
        self.histogram.show_counts(histogram)
        text = self.session.texts
        words = ""
        if histogram is not None:
            black, white = (text.number(100 * share, 2) for share in (histogram.black, histogram.white))
            words = text("ui_viewer_shares", black=black, white=white)
        self.shares.setText(words)

    # ------------------------------------------------------------------ words and colours

    def retranslate(self) -> None:
        """Write all texts in the current language."""
        text = self.session.texts
        self.card.heading.setText(text("ui_viewer_look"))
        for name in MOVES:
            self.names[name].setText(text(f"ui_viewer_{name}"))
            self.sliders[name].setToolTip(text(f"option.picture_{name}.help"))
            self.sliders[name].setAccessibleName(text(f"ui_viewer_{name}"))
        for control, key in (
            (self.channels, "ui_viewer_channels"),
            (self.styles, "option.picture_style.label"),
            (self.histogram, "ui_viewer_histogram"),
            (self.auto_button, "ui_viewer_auto_tip"),
            (self.keep_button, "ui_viewer_keep_tip"),
            (self.calm, "ui_viewer_calm_tip"),
            (self.calibrated, "ui_viewer_calibrated_tip"),
        ):
            control.setToolTip(text(key))
            control.setAccessibleName(text(key))
        self.auto_button.setText(text("ui_viewer_auto"))
        self.keep_button.setText(text("ui_viewer_keep"))
        self.calm.setText(text("ui_viewer_calm"))
        self.calibrated.setText(text("ui_viewer_calibrated"))
        _refill(self.channels, [text(f"ui_channels_{name}") for name in CHANNEL_VIEWS], 0)
        first = list(STYLES).index(self.session.form["picture_style"])
        _refill(self.styles, [text(f"option.picture_style.choice.{name}") for name in STYLES], first)
        self.show_counts(self.histogram.histogram)


def _slider() -> QSlider:
    slider = QSlider(Qt.Orientation.Horizontal)
    slider.setRange(-100, 100)
    slider.setValue(0)
    return slider


def _refill(combo: QComboBox, words: list[str], first: int) -> None:
    """Put other words into a list; what was chosen stays chosen."""
    chosen = combo.currentIndex()
    combo.blockSignals(True)
    combo.clear()
    combo.addItems(words)
    combo.setCurrentIndex(chosen if chosen >= 0 else first)
    combo.blockSignals(False)
