"""What the viewer's picture is compared with, and how."""

from __future__ import annotations

from PySide6.QtCore import Signal
from PySide6.QtGui import QStandardItemModel
from PySide6.QtWidgets import QButtonGroup, QComboBox, QSizePolicy, QVBoxLayout, QWidget

from zemosaic_ui.qt.compare_pane import WAYS
from zemosaic_ui.qt.session import Session
from zemosaic_ui.qt.widgets import Card, row, tool_button

__all__ = ["ComparePanel"]

_WHATS = ("off", "before", "file")


class ComparePanel(QWidget):
    """A card with two choices.

    Signals
    -------
    asked : what the user wants to compare with: ``off``, ``before`` (the colour calibration) or another ``file``
    way_chosen : one of `compare_pane.WAYS`
    """

    asked = Signal(str)
    way_chosen = Signal(str)

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self.what = "off"
        self.choice = QComboBox()
        self.choice.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.choice.activated.connect(lambda index: self.asked.emit(_WHATS[index]))
        self.ways = {way: tool_button(checkable=True) for way in WAYS}
        group = QButtonGroup(self)
        for way, choice in self.ways.items():
            group.addButton(choice)
            choice.clicked.connect(lambda _on, way=way: self.way_chosen.emit(way))
        self.ways["side"].setChecked(True)
        self.card = Card()
        self.card.body.setContentsMargins(14, 10, 14, 12)
        self.card.body.addWidget(self.choice)
        self.card.body.addLayout(row(*self.ways.values(), None, spacing=6))
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.card)

    def set_what(self, what: str) -> None:
        """Show what is compared."""
        self.what = what
        self.choice.setCurrentIndex(_WHATS.index(what))
        for choice in self.ways.values():
            choice.setEnabled(what != "off")

    def set_image(self, *, has: bool, calibrated: bool) -> None:
        """Enable what makes sense: for a picture at all, for one whose colours are calibrated."""
        self.choice.setEnabled(has)
        model = self.choice.model()
        if isinstance(model, QStandardItemModel):
            model.item(_WHATS.index("before")).setEnabled(calibrated)

    def retranslate(self) -> None:
        """Write all texts in the current language."""
        text = self.session.texts
        self.card.heading.setText(text("ui_compare"))
        self.choice.setAccessibleName(text("ui_compare"))
        self.choice.clear()
        self.choice.addItems([text(f"ui_compare_{what}") for what in _WHATS])
        self.set_what(self.what)
        for way, choice in self.ways.items():
            choice.setText(text(f"ui_compare_{way}"))
