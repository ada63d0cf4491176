"""Small building blocks of the pages: cards, labels, buttons and texts that do not burst the layout."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import QSize, Qt
from PySide6.QtGui import QFontMetrics, QPainter, QPaintEvent, QResizeEvent
from PySide6.QtWidgets import (
    QFrame,
    QHBoxLayout,
    QLabel,
    QLayout,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

__all__ = ["Card", "ElidedLabel", "WrapLabel", "button", "label", "restyle", "row", "scrolled", "tool_button"]


def label(name: str = "", *, wrap: bool = False) -> QLabel:
    """Return a label styled by an object name of the style sheet."""
    made = WrapLabel() if wrap else QLabel()
    made.setObjectName(name)
    return made


def restyle(widget: QWidget, name: str) -> None:
    """Give a widget another object name and draw it in the style of that name."""
    if widget.objectName() != name:
        widget.setObjectName(name)
        widget.style().unpolish(widget)
        widget.style().polish(widget)


def button(name: str = "", on_click: Callable[[], object] | None = None) -> QPushButton:
    """Return a push button."""
    made = QPushButton()
    made.setObjectName(name)
    made.setCursor(Qt.CursorShape.PointingHandCursor)
    if on_click is not None:
        made.clicked.connect(lambda _checked=False: on_click())
    return made


def tool_button(
    name: str = "", on_click: Callable[[], object] | None = None, *, checkable: bool = False
) -> QToolButton:
    """Return a tool button with an 18 px icon."""
    made = QToolButton()
    made.setObjectName(name)
    made.setIconSize(QSize(18, 18))
    made.setCheckable(checkable)
    made.setFocusPolicy(Qt.FocusPolicy.TabFocus)
    if on_click is not None:
        made.clicked.connect(lambda _checked=False: on_click())
    return made


def row(*items: QWidget | QLayout | int | None, spacing: int = 8) -> QHBoxLayout:
    """Return widgets beside each other; None is a spring, a number a gap."""
    layout = QHBoxLayout()
    layout.setSpacing(spacing)
    layout.setContentsMargins(0, 0, 0, 0)
    for item in items:
        if item is None:
            layout.addStretch(1)
        elif isinstance(item, int):
            layout.addSpacing(item)
        elif isinstance(item, QLayout):
            layout.addLayout(item)
        else:
            layout.addWidget(item)
    return layout


class WrapLabel(QLabel):
    """A label that breaks its lines and asks for exactly the height that needs, whatever its width."""

    def __init__(self) -> None:
        super().__init__()
        self.setWordWrap(True)
        policy = QSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Preferred)
        policy.setHeightForWidth(True)
        self.setSizePolicy(policy)

    def minimumSizeHint(self) -> QSize:
        """Ask for one line: Qt's own answer assumes a narrow label and makes every page look too tall."""
        return QSize(40, self.fontMetrics().height())


class Card(QFrame):
    """A framed group with a heading."""

    def __init__(self, *, heading: bool = True) -> None:
        super().__init__()
        self.setObjectName("card")
        self.body = QVBoxLayout(self)
        self.body.setContentsMargins(18, 14, 18, 16)
        self.body.setSpacing(8)
        self.heading = label("heading")
        if heading:
            self.body.addWidget(self.heading)
        else:
            self.heading.setParent(self)
            self.heading.hide()


class ElidedLabel(QWidget):
    """A line that is shortened in the middle when there is no room, with the whole text as tooltip."""

    def __init__(self, *, mode: Qt.TextElideMode = Qt.TextElideMode.ElideMiddle, muted: bool = False) -> None:
        super().__init__()
        self._text = ""
        self._mode = mode
        self._muted = muted
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)

    def set_text(self, text: str) -> None:
        """Show a text."""
        if text != self._text:
            self._text = text
            self.setToolTip(text)
            self.setAccessibleName(text)
            self.update()

    def text(self) -> str:
        """Return the whole text."""
        return self._text

    def sizeHint(self) -> QSize:
        """Ask for one line and no width of its own."""
        return QSize(80, QFontMetrics(self.font()).height() + 4)

    def minimumSizeHint(self) -> QSize:
        """Allow any width."""
        return QSize(20, QFontMetrics(self.font()).height() + 4)

    def paintEvent(self, event: QPaintEvent) -> None:
        """Draw the shortened text."""
        painter = QPainter(self)
        colour = self.palette().placeholderText() if self._muted else self.palette().windowText()
        painter.setPen(colour.color())
        text = painter.fontMetrics().elidedText(self._text, self._mode, self.width())
        painter.drawText(self.rect(), Qt.AlignmentFlag.AlignVCenter | Qt.AlignmentFlag.AlignLeft, text)


class _ColumnScroll(QScrollArea):
    """A scroll area whose content never grows wider than the view."""

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        content = self.widget()
        if content is not None:
            content.setMaximumWidth(max(self.viewport().width(), 1))

    def minimumSizeHint(self) -> QSize:
        """Ask for the width of the content and its scroll bar: there is no other way to see its right side."""
        content = self.widget()
        width = 0 if content is None else content.minimumSizeHint().width()
        bar = self.verticalScrollBar().sizeHint().width()
        return QSize(width + bar + 2 * self.frameWidth(), super().minimumSizeHint().height())


def scrolled(content: QWidget) -> QScrollArea:
    """Put a page into a vertical scroll area, so that nothing is off-screen on small displays."""
    content.setObjectName("scrolled")
    area = _ColumnScroll()
    area.setWidgetResizable(True)
    area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    area.setFrameShape(QFrame.Shape.NoFrame)
    area.setWidget(content)
    return area
