"""An on/off switch: a check box that shows its state at a glance."""

from __future__ import annotations

from PySide6.QtCore import QPointF, QRectF, QSize, Qt
from PySide6.QtGui import QPainter, QPaintEvent, QPalette
from PySide6.QtWidgets import QCheckBox

__all__ = ["Switch"]

WIDTH, HEIGHT, GAP = 34, 18, 10


class Switch(QCheckBox):
    """Behaves like a check box for mouse, keyboard and screen readers; only the picture differs."""

    def __init__(self) -> None:
        super().__init__()
        self.setCursor(Qt.CursorShape.PointingHandCursor)

    def sizeHint(self) -> QSize:
        """Leave room for the switch and its text."""
        text = self.fontMetrics().horizontalAdvance(self.text())
        return QSize(WIDTH + GAP + text + 4, max(HEIGHT, self.fontMetrics().height()) + 8)

    def minimumSizeHint(self) -> QSize:
        """Allow the text to be cut, not the switch."""
        return QSize(WIDTH + GAP, self.sizeHint().height())

    def hitButton(self, position: object) -> bool:
        """React anywhere on switch and text."""
        return True

    def paintEvent(self, event: QPaintEvent) -> None:
        """Draw the switch in the colours of the palette."""
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        palette = self.palette()
        on = self.isChecked()
        track = palette.color(QPalette.ColorRole.Highlight if on else QPalette.ColorRole.Mid)
        if not self.isEnabled():
            track.setAlpha(90)
        top = (self.height() - HEIGHT) / 2
        area = QRectF(1, top, WIDTH - 2, HEIGHT)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(track)
        painter.drawRoundedRect(area, HEIGHT / 2, HEIGHT / 2)
        knob = palette.color(QPalette.ColorRole.HighlightedText if on else QPalette.ColorRole.Base)
        painter.setBrush(knob)
        x = area.right() - HEIGHT / 2 if on else area.left() + HEIGHT / 2
        painter.drawEllipse(QPointF(x, area.center().y()), HEIGHT / 2 - 3, HEIGHT / 2 - 3)
        if self.hasFocus():
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.setPen(palette.color(QPalette.ColorRole.Text))
            painter.drawRoundedRect(area.adjusted(-0.5, -1.5, 0.5, 1.5), HEIGHT / 2 + 1, HEIGHT / 2 + 1)
        painter.setPen(palette.color(QPalette.ColorRole.WindowText))
        words = self.rect().adjusted(WIDTH + GAP, 0, 0, 0)
        painter.drawText(words, Qt.AlignmentFlag.AlignVCenter | Qt.AlignmentFlag.AlignLeft, self.text())
