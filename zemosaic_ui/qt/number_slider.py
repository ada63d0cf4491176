"""A slider for a number option, with its name and value; limits and steps are those of the option."""

from __future__ import annotations

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QSlider, QVBoxLayout, QWidget

from zemosaic_settings import OPTIONS_BY_KEY, Option
from zemosaic_ui.qt.session import Session
from zemosaic_ui.qt.widgets import ElidedLabel, label, row

__all__ = ["NumberSlider"]

# More positions than this cannot be met with a mouse.
_MOST_STEPS = 250


class NumberSlider(QWidget):
    """Begins with the value of the settings and changes nothing there."""

    changed = Signal()

    def __init__(self, session: Session, key: str) -> None:
        super().__init__()
        self.session, self.key = session, key
        option = OPTIONS_BY_KEY[key]
        self._values = _positions(option, float(session.form[key]))
        self.name, self.value_label = (
            ElidedLabel(mode=Qt.TextElideMode.ElideRight, muted=True),
            label("faint"),
        )
        self.slider = QSlider(Qt.Orientation.Horizontal)
        self.slider.setRange(0, len(self._values) - 1)
        self.set_number(float(session.form[key]))
        self.slider.valueChanged.connect(self._on_value)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        line = row(self.name, self.value_label)
        line.setStretch(0, 1)
        layout.addLayout(line)
        layout.addWidget(self.slider)

    @property
    def number(self) -> int | float:
        """The value chosen, of the type of the option."""
        return self._values[self.slider.value()]

    def set_number(self, value: float) -> None:
        """Choose the position nearest to a value."""
        nearest = min(range(len(self._values)), key=lambda k: abs(self._values[k] - value))
        self.slider.setValue(nearest)

    def _on_value(self, _value: int) -> None:
        self._show_value()
        self.changed.emit()

    def _show_value(self) -> None:
        text, option = self.session.texts, OPTIONS_BY_KEY[self.key]
        unit = text(f"unit.{option.unit}") if option.unit and option.unit != "fraction" else ""
        self.value_label.setText(f"{text.field(self.number)} {unit}".strip())

    def retranslate(self) -> None:
        """Write all texts in the current language."""
        text = self.session.texts
        self.name.set_text(text(f"option.{self.key}.label"))
        self.slider.setToolTip(text(f"option.{self.key}.help"))
        self.slider.setAccessibleName(text(f"option.{self.key}.label"))
        self._show_value()


def _positions(option: Option, value: float) -> list[int] | list[float]:
    """Return the values that can be met: steps from the one of the settings to both limits."""
    assert option.minimum is not None
    assert option.maximum is not None
    assert option.step is not None
    # A limit of a thousand frames is a limit, not what people ask for.
    most = min(option.maximum, max(value, option.minimum + _MOST_STEPS * option.step))
    below = int((value - option.minimum) / option.step + 1e-9)
    above = int((most - value) / option.step + 1e-9)
    steps = [value + k * option.step for k in range(-below, above + 1)]
    found = sorted({round(v, 6) for v in (option.minimum, *steps, most)})
    return [round(v) for v in found] if option.type == "int" else found
