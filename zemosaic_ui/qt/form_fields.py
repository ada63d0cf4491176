"""One row of the options form: label, control, unit, limits, explanation and the way back to the default."""

from __future__ import annotations

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QKeyEvent, QWheelEvent
from PySide6.QtWidgets import (
    QCheckBox,
    QComboBox,
    QFileDialog,
    QFrame,
    QGridLayout,
    QLineEdit,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from zemosaic_settings import Option
from zemosaic_ui.qt.session import Session
from zemosaic_ui.qt.switch import Switch
from zemosaic_ui.qt.widgets import label, row, tool_button
from zemosaic_ui.variables import overruling

__all__ = ["FieldRow", "PathEdit"]

LABEL_WIDTH = 230


class _Combo(QComboBox):
    """A combo box that leaves the wheel to the page unless it has the focus."""

    def __init__(self) -> None:
        super().__init__()
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)

    def wheelEvent(self, event: QWheelEvent) -> None:
        if self.hasFocus():
            super().wheelEvent(event)
        else:
            event.ignore()


class _NumberEdit(QLineEdit):
    """A number that is typed freely and stepped with the arrow keys; the model judges it, not the control."""

    def __init__(self, option: Option) -> None:
        super().__init__()
        self._step = option.step or (1 if option.type == "int" else 0.1)
        self._whole = option.type == "int"
        self.decimal_sign = "."
        self.setMaximumWidth(130)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        steps = {Qt.Key.Key_Up: 1, Qt.Key.Key_Down: -1, Qt.Key.Key_PageUp: 10, Qt.Key.Key_PageDown: -10}
        count = steps.get(Qt.Key(event.key()))
        if count is None:
            super().keyPressEvent(event)
            return
        try:
            value = float(self.text().replace(self.decimal_sign, ".")) + count * self._step
        except ValueError:
            return
        shown = str(round(value)) if self._whole else f"{value:.6g}"
        self.setText(shown.replace(".", self.decimal_sign))
        self.textEdited.emit(self.text())


class PathEdit(QWidget):
    """A path with a button that opens the system's dialog; folders can be dropped on it."""

    edited = Signal(str)

    def __init__(self, session: Session, *, is_folder: bool) -> None:
        super().__init__()
        self._session = session
        self._is_folder = is_folder
        self.line = QLineEdit()
        self.line.setClearButtonEnabled(True)
        self.line.textEdited.connect(self.edited)
        self.choose = tool_button(on_click=self._on_choose)
        layout = row(self.line, self.choose)
        self.setLayout(layout)
        self.setFocusProxy(self.line)
        self.retheme()

    def retranslate(self, name: str) -> None:
        """Name the field, which has no text of its own, and its button in the current language."""
        self.line.setAccessibleName(name)
        words = self._session.texts("ui_choose_folder" if self._is_folder else "ui_choose_file")
        self.choose.setToolTip(words)
        self.choose.setAccessibleName(words)

    def retheme(self) -> None:
        """Draw the icon in the colours of the theme."""
        self.choose.setIcon(self._session.icon("folder"))

    def _on_choose(self) -> None:
        text = self._session.texts
        start = self.line.text()
        if self._is_folder:
            chosen = QFileDialog.getExistingDirectory(self, text("ui_choose_folder"), start)
        else:
            chosen, _ = QFileDialog.getOpenFileName(self, text("ui_choose_file"), start)
        if chosen:
            self.line.setText(chosen)
            self.edited.emit(chosen)


class FieldRow(QFrame):
    """The control of one option, bound both ways to the form model."""

    def __init__(self, session: Session, key: str, *, compact: bool = False) -> None:
        super().__init__()
        self.session = session
        self.compact = compact
        self.key = key
        self.option = session.form.fields[key].option
        self._loading = False
        self.caption = label(wrap=True)
        if not compact:
            self.caption.setFixedWidth(LABEL_WIDTH)
            self.caption.setContentsMargins(0, 5, 0, 0)
        self.help = label("faint", wrap=True)
        self.problem = label("problem", wrap=True)
        self.problem.hide()
        self.overruled = label("muted", wrap=True)
        self.unit = label("muted")
        self.reset = tool_button("quiet", on_click=lambda: session.form.reset(key))
        self.control = self._make_control()
        self.control.setObjectName(f"field_{key}")
        self.caption.setBuddy(self.control)
        self._lay_out()
        session.form.on_change(self._on_model_changed)
        self.destroyed.connect(lambda _=None, form=session.form, me=self._on_model_changed: form.forget(me))
        self.retranslate()
        self.retheme()

    # ------------------------------------------------------------------ building

    def _make_control(self) -> QWidget:
        kind = self.option.type
        if kind == "bool":
            box = Switch()
            box.toggled.connect(self._on_typed)
            return box
        if kind == "choice":
            combo = _Combo()
            combo.setMinimumWidth(190)
            combo.setSizePolicy(QSizePolicy.Policy.Fixed, QSizePolicy.Policy.Fixed)
            combo.activated.connect(lambda index: self._on_typed(self.option.choices[index]))
            return combo
        if kind in ("folder", "file"):
            path = PathEdit(self.session, is_folder=kind == "folder")
            path.edited.connect(self._on_typed)
            return path
        edit = _NumberEdit(self.option) if kind in ("int", "float", "pair") else QLineEdit()
        if kind == "secret":
            edit.setEchoMode(QLineEdit.EchoMode.PasswordEchoOnEdit)
        edit.textEdited.connect(self._on_typed)
        return edit

    def _lay_out(self) -> None:
        if self.compact:
            self.help.hide()
            self.help.setParent(self)
            column = QVBoxLayout(self)
            column.setContentsMargins(0, 2, 0, 2)
            column.setSpacing(2)
            column.addWidget(self.caption)
            column.addLayout(row(self.control, self.unit, self.reset, None, spacing=6))
            column.addWidget(self.problem)
            column.addWidget(self.overruled)
            return
        grid = QGridLayout(self)
        grid.setContentsMargins(0, 6, 0, 6)
        grid.setHorizontalSpacing(14)
        grid.setVerticalSpacing(4)
        grid.addWidget(self.caption, 0, 0, Qt.AlignmentFlag.AlignTop)
        wide = self.option.type in ("folder", "file", "text", "secret")
        line = row(self.control, self.unit, self.reset, *(() if wide else (None,)))
        grid.addLayout(line, 0, 1)
        grid.addWidget(self.problem, 1, 1)
        grid.addWidget(self.overruled, 2, 1)
        grid.addWidget(self.help, 3, 1)
        grid.setColumnStretch(1, 1)

    # ------------------------------------------------------------------ words and colours

    def retranslate(self) -> None:
        """Write all texts in the current language."""
        text, option = self.session.texts, self.option
        self.caption.setText(text(f"{option.text_key}.label"))
        self.help.setText(text(f"{option.text_key}.help"))
        winner = overruling(self.key)
        self.overruled.setVisible(winner is not None)
        if winner is not None:
            self.overruled.setText(text("ui_overruled", variable=winner[0], value=winner[1]))
        self.unit.setText(self._unit_text())
        self.reset.setToolTip(text("ui_back_to_default", value=self._value_text(option.default)))
        self.reset.setAccessibleName(text("ui_back_to_default", value=self._value_text(option.default)))
        tip = f"{text(f'{option.text_key}.help')}\n\n{option.key}"
        self.control.setToolTip(tip)
        self.caption.setToolTip(tip)
        self.control.setAccessibleName(text(f"{option.text_key}.label"))
        if isinstance(self.control, PathEdit):
            self.control.retranslate(text(f"{option.text_key}.label"))
        if isinstance(self.control, QComboBox):
            self._loading = True
            self.control.clear()
            self.control.addItems([text(option.choice_text_key(choice)) for choice in option.choices])
            self._loading = False
        if isinstance(self.control, _NumberEdit) and option.type == "float":
            self.control.decimal_sign = text("ui_decimal_sign")
        if isinstance(self.control, QLineEdit) and option.type in ("text", "secret"):
            self.control.setPlaceholderText(text("ui_empty"))
        self._show_value()

    def retheme(self) -> None:
        """Draw icons in the colours of the theme."""
        self.reset.setIcon(self.session.icon("reset", "muted"))
        if isinstance(self.control, PathEdit):
            self.control.retheme()

    def _unit_text(self) -> str:
        text, option = self.session.texts, self.option
        if option.type not in ("int", "float", "pair"):
            return ""
        unit = text(f"unit.{option.unit}") if option.unit else ""
        low, high = (text.written(f"{value:,.10g}") for value in (option.minimum, option.maximum))
        limits = f"{low} – {high}"
        special = f"{low} = {text(f'special.{option.special}')}" if option.special else ""
        if self.compact:
            return "  ".join(part for part in (unit, special) if part)
        return "   ".join(part for part in (unit, limits, special) if part)

    def _value_text(self, value: object) -> str:
        text, option = self.session.texts, self.option
        if option.type == "bool":
            return text("ui_on") if value else text("ui_off")
        if option.type == "choice":
            return text(option.choice_text_key(str(value)))
        return text.field(value) if str(value) else text("ui_empty")

    # ------------------------------------------------------------------ binding

    def _on_typed(self, value: object) -> None:
        if not self._loading:
            self.session.form.set(self.key, self.session.texts.typed(self.option.type, value))

    def _on_model_changed(self, key: str) -> None:
        if key == self.key:
            self._show_value()

    def _show_value(self) -> None:
        field = self.session.form.fields[self.key]
        self._loading = True
        control = self.control
        if isinstance(control, QCheckBox):
            control.setChecked(bool(field.value))
            control.setText(self._value_text(field.value))
        elif isinstance(control, QComboBox):
            control.setCurrentIndex(self.option.choices.index(field.value))
        else:
            line = control.line if isinstance(control, PathEdit) else control
            on_screen = self.session.texts.typed(self.option.type, line.text())
            if not line.hasFocus() or _differs(str(on_screen), field.typed):
                line.setText(self.session.texts.field(field.typed))
            line.setProperty("refused", field.problem is not None)
            line.style().unpolish(line)
            line.style().polish(line)
        self._loading = False
        self.reset.setVisible(not field.is_default)
        self.problem.setVisible(field.problem is not None)
        if field.problem is not None:
            values = {**field.problem.values, "option": self.session.texts(f"{self.option.text_key}.label")}
            self.problem.setText(self.session.texts(field.problem.key, **values))


def _differs(shown: str, typed: object) -> bool:
    """Whether a control shows something else than the model holds; "2." and 2.0 are the same while typing."""
    if isinstance(typed, bool) or not isinstance(typed, int | float):
        return shown != str(typed)
    try:
        return float(shown) != float(typed)
    except ValueError:
        return True
