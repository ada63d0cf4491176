"""The pages of options: Solver, System, Advanced (everything, searchable), Skin and Language."""

from __future__ import annotations

import html
import os
from pathlib import Path
from typing import Any

from PySide6.QtCore import QTimer, Signal
from PySide6.QtWidgets import (
    QButtonGroup,
    QComboBox,
    QFileDialog,
    QInputDialog,
    QLineEdit,
    QMenu,
    QVBoxLayout,
    QWidget,
)

from zemosaic_core.errors import SaveFailed, SettingsError
from zemosaic_settings import GROUPS, LEVELS
from zemosaic_ui import presets
from zemosaic_ui.qt.form_fields import FieldRow
from zemosaic_ui.qt.job import Job
from zemosaic_ui.qt.session import Session
from zemosaic_ui.qt.widgets import Card, button, label, row, scrolled, tool_button
from zemosaic_ui.texts import available_languages
from zemosaic_ui.variables import GPU_VARIABLES

__all__ = ["AdvancedPage", "LanguagePage", "SkinPage", "SolverPage", "SystemPage"]

SYSTEM_KEYS = ("scan_recursive", "resume", "cache_retention", "logging_level", "preferred_gui_backend")


class _Page(QWidget):
    """A scrolled page with a title; subclasses fill ``column``."""

    def __init__(self, session: Session, title_key: str, note_key: str) -> None:
        super().__init__()
        self.session = session
        self._keys = (title_key, note_key)
        self.title, self.note = label("title"), label("muted", wrap=True)
        self.head = QVBoxLayout()
        self.head.setContentsMargins(24, 18, 24, 6)
        self.head.setSpacing(6)
        self.head.addWidget(self.title)
        self.head.addWidget(self.note)
        content = QWidget()
        self.column = QVBoxLayout(content)
        self.column.setContentsMargins(24, 6, 24, 18)
        self.column.setSpacing(12)
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.setSpacing(0)
        outer.addLayout(self.head)
        outer.addWidget(scrolled(content), 1)
        self.rows: list[FieldRow] = []
        self.cards: dict[str, Card] = {}

    def add_card(self, heading_key: str, keys: list[str] | tuple[str, ...]) -> Card:
        """Add a card with the rows of some options."""
        card = Card()
        self.cards[heading_key] = card
        for key in keys:
            made = FieldRow(self.session, key)
            self.rows.append(made)
            card.body.addWidget(made)
        self.column.addWidget(card)
        return card

    def retranslate(self) -> None:
        """Write all texts in the current language."""
        text = self.session.texts
        self.title.setText(text(self._keys[0]))
        self.note.setText(text(self._keys[1]))
        for key, card in self.cards.items():
            card.heading.setText(text(key))
        for made in self.rows:
            made.retranslate()

    def retheme(self) -> None:
        """Draw icons in the colours of the theme."""
        for made in self.rows:
            made.retheme()


class SolverPage(_Page):
    """How frames get their place in the sky."""

    def __init__(self, session: Session) -> None:
        super().__init__(session, "ui_tab_solver", "ui_solver_note")
        form = session.form
        keys = [key for key, field in form.fields.items() if field.option.group == "solver"]
        own = [key for key in keys if not key.startswith(("astap_", "astrometry_"))]
        self.add_card("ui_solver_method", own)
        self.add_card("ui_solver_astap", [key for key in keys if key.startswith("astap_")])
        self.add_card("ui_solver_astrometry", [key for key in keys if key.startswith("astrometry_")])
        self.column.addStretch(1)
        form.on_change(self._on_changed)
        self.retranslate()
        self._show_needed()

    def _on_changed(self, key: str) -> None:
        if key == "solver_method":
            self._show_needed()

    def _show_needed(self) -> None:
        """Show only what belongs to the chosen solver."""
        method = self.session.form["solver_method"]
        self.cards["ui_solver_astap"].setVisible(method in ("AUTO", "ASTAP", "ASTROMETRY", "ANSVR"))
        self.cards["ui_solver_astrometry"].setVisible(method in ("AUTO", "ASTROMETRY", "ANSVR"))


class SystemPage(_Page):
    """The machine: graphics card, memory, processes, files kept, and a check of the installation."""

    def __init__(self, session: Session) -> None:
        super().__init__(session, "ui_tab_system", "ui_system_note")
        self._findings: list[dict[str, Any]] = []
        self._error = ""
        self.job = Job(self)
        self.job.said.connect(self._on_said)
        self.job.ended.connect(self._on_ended)
        self.add_card(
            "group.performance",
            [key for key, field in session.form.fields.items() if field.option.group == "performance"],
        )
        variables = Card()
        self.cards["ui_variables"] = variables
        self.variables_text = label("muted", wrap=True)
        variables.body.addWidget(self.variables_text)
        self.column.addWidget(variables)
        self.add_card("ui_system_files", SYSTEM_KEYS)
        card = Card()
        self.cards["ui_doctor"] = card
        self.doctor_text = label(wrap=True)
        self.doctor_button = button("", self.examine)
        card.body.addWidget(self.doctor_text)
        card.body.addLayout(row(self.doctor_button, None))
        self.column.addWidget(card)
        self.column.addStretch(1)
        self.retranslate()

    def examine(self) -> None:
        """Check the installation in the background."""
        self._findings, self._error = [], ""
        self.job.start("doctor", self.session.form.to_mapping(), str(self.session.config_path))
        self._show()

    def _on_said(self, kind: str, payload: Any) -> None:
        if kind == "finding":
            self._findings.append(payload)
            self._show()

    def _on_ended(self, error: str) -> None:
        self._error = error.splitlines()[-1] if error else ""
        self._show()

    def _show(self) -> None:
        text, theme = self.session.texts, self.session.themes.theme
        colours = {"ok": theme.good, "warn": theme.warn, "fail": theme.bad, "info": theme.muted}
        lines = []
        for finding in self._findings:
            topic = text(f"doctor.topic.{finding['topic']}")
            said = text.message(finding["key"], finding["values"])
            dot = f'<span style="color:{colours[finding["state"]]}">●</span>'
            line = f'<p style="margin:3px 0">{dot} <b>{topic}</b>: {said}'
            if finding.get("advice_key"):
                advice = text.message(finding["advice_key"], finding["values"])
                line += f'<br><span style="color:{theme.muted}">{advice}</span>'
            lines.append(line + "</p>")
        if self.job.is_running:
            lines.append(text("ui_doctor_working"))
        elif self._error:
            lines.append(f'<span style="color:{theme.bad}">{self._error}</span>')
        elif not lines:
            lines.append(text("ui_doctor_note"))
        self.doctor_text.setText("".join(lines))
        self.doctor_button.setEnabled(not self.job.is_running)

    def retranslate(self) -> None:
        """Write all texts in the current language."""
        super().retranslate()
        text = self.session.texts
        self.doctor_button.setText(text("ui_doctor_check"))
        lines = [f"<p>{text('ui_variables_note')}</p>"]
        for name in GPU_VARIABLES:
            value = os.environ.get(name, "")
            shown = f" = {html.escape(value)}" if name in os.environ else ""
            lines.append(f'<p style="margin:3px 0"><b>{name}{shown}</b>: {text(f"variable.{name}")}</p>')
        self.variables_text.setText("".join(lines))
        self._show()

    def retheme(self) -> None:
        """Draw with the colours of the theme."""
        super().retheme()
        self._show()


class AdvancedPage(_Page):
    """Every option, grouped by what it belongs to, with a search; presets to save, load and share."""

    failed = Signal(str)

    def __init__(self, session: Session) -> None:
        super().__init__(session, "ui_tab_advanced", "ui_advanced_note")
        self.search = QLineEdit()
        self.search.setObjectName("search_options")
        self.search.setClearButtonEnabled(True)
        self.search_icon = self.search.addAction(
            session.icon("search", "muted"), QLineEdit.ActionPosition.LeadingPosition
        )
        self.level = QComboBox()
        self.changed_only = tool_button(checkable=True)
        self.reset_all = button("", self._on_reset_all)
        self.preset = tool_button()
        self.preset.setPopupMode(self.preset.ToolButtonPopupMode.InstantPopup)
        self.preset_menu = QMenu(self.preset)
        self.preset_menu.aboutToShow.connect(self._fill_presets)
        self.preset.setMenu(self.preset_menu)
        self.head.addLayout(
            row(self.search, self.level, self.changed_only, self.preset, self.reset_all, spacing=8)
        )
        self.nothing = label("muted")
        self.column.addWidget(self.nothing)
        groups = session.form.groups()
        self._by_group: dict[str, list[FieldRow]] = {}
        for group in GROUPS:
            if group in groups and group != "interface":
                before = len(self.rows)
                self.add_card(f"group.{group}", [field.option.key for field in groups[group]])
                self._by_group[group] = self.rows[before:]
        self.column.addStretch(1)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(60)
        self._timer.timeout.connect(self.apply_search)
        self.search.textChanged.connect(lambda _text: self._timer.start())
        self.changed_only.toggled.connect(lambda _on: self.apply_search())
        self.retranslate()
        self.level.setCurrentIndex(1)
        self.level.currentIndexChanged.connect(lambda _index: self.apply_search())
        self.apply_search()
        self.retheme()

    def apply_search(self) -> None:
        """Show the options that agree with search, level and 'changed only'; a search looks at every level."""
        form, words = self.session.form, self.search.text().strip()
        found = set(form.search(words, self.session.texts))
        levels = LEVELS if words else LEVELS[: self.level.currentIndex() + 1]
        changed = set(form.changed_keys) if self.changed_only.isChecked() else None
        anything = False
        self.setUpdatesEnabled(False)
        for group, rows in self._by_group.items():
            shown = 0
            for made in rows:
                visible = made.key in found and made.option.level in levels
                visible = visible and (changed is None or made.key in changed)
                made.setVisible(visible)
                shown += visible
            self.cards[f"group.{group}"].setVisible(shown > 0)
            anything = anything or shown > 0
        self.nothing.setVisible(not anything)
        self.setUpdatesEnabled(True)

    def visible_keys(self) -> list[str]:
        """Return the options on show."""
        return [made.key for made in self.rows if not made.isHidden()]

    def _on_reset_all(self) -> None:
        keys = [made.key for rows in self._by_group.values() for made in rows]
        private = {"input_dir", "output_dir"}
        self.session.form.reset_all(key for key in keys if key not in private)

    # ------------------------------------------------------------------ presets

    def _fill_presets(self) -> None:
        text, menu = self.session.texts, self.preset_menu
        menu.clear()
        for name, path in presets.list_presets(self.session.presets_dir).items():
            menu.addAction(name, lambda path=path: self.load_preset(path))
        menu.addSeparator()
        menu.addAction(text("ui_preset_save"), self._on_save_preset)
        menu.addAction(text("ui_preset_import"), self._on_import_preset)
        menu.addAction(text("ui_preset_export"), self._on_export_preset)

    def load_preset(self, path: Path) -> None:
        """Take the options of a preset file."""
        try:
            self.session.form.load(presets.read_preset(path)[1])
        except SettingsError as error:
            self.failed.emit(self.session.texts.message(error.key, error.values))

    def save_preset(self, path: Path, name: str) -> None:
        """Save the changed options as a preset file."""
        try:
            presets.write_preset(path, name, self.session.form)
        except SaveFailed as error:
            self.failed.emit(self.session.texts.message(error.key, error.values))

    def _on_save_preset(self) -> None:
        text = self.session.texts
        name, ok = QInputDialog.getText(self, text("ui_preset_save"), text("ui_preset_name"))
        if ok and name.strip():
            self.save_preset(self.session.presets_dir / presets.preset_file_name(name), name.strip())

    def _on_import_preset(self) -> None:
        text = self.session.texts
        path, _ = QFileDialog.getOpenFileName(self, text("ui_preset_import"), "", "JSON (*.json)")
        if path:
            self.load_preset(Path(path))

    def _on_export_preset(self) -> None:
        text = self.session.texts
        path, _ = QFileDialog.getSaveFileName(self, text("ui_preset_export"), "preset.json", "JSON (*.json)")
        if path:
            self.save_preset(Path(path), Path(path).stem)

    # ------------------------------------------------------------------ words and colours

    def retranslate(self) -> None:
        """Write all texts in the current language."""
        super().retranslate()
        text = self.session.texts
        self.search.setPlaceholderText(text("ui_search_options"))
        self.search.setAccessibleName(text("ui_search_options"))
        index = max(0, self.level.currentIndex())
        self.level.blockSignals(True)
        self.level.clear()
        self.level.addItems([text(f"level.{name}") for name in LEVELS])
        self.level.setCurrentIndex(index)
        self.level.blockSignals(False)
        self.level.setToolTip(text("ui_level_note"))
        self.changed_only.setText(text("ui_changed_only"))
        self.reset_all.setText(text("ui_reset_all"))
        self.preset.setText(text("ui_presets"))
        self.nothing.setText(text("ui_search_nothing"))

    def retheme(self) -> None:
        """Draw icons in the colours of the theme."""
        super().retheme()
        self.search_icon.setIcon(self.session.icon("search", "muted"))


class _ChoicePage(_Page):
    """A page with one large choice."""

    def __init__(
        self, session: Session, title_key: str, note_key: str, option: str, values: list[str]
    ) -> None:
        super().__init__(session, title_key, note_key)
        self.option = option
        card = Card(heading=False)
        card.setMaximumWidth(400)
        self.buttons = {}
        self._group = QButtonGroup(self)
        for value in values:
            choice = button("quality", lambda value=value: session.form.set(option, value))
            choice.setCheckable(True)
            choice.setMaximumWidth(360)
            self._group.addButton(choice)
            self.buttons[value] = choice
            card.body.addWidget(choice)
        self.column.addWidget(card)
        self.column.addStretch(1)
        session.form.on_change(lambda key: key == option and self._show())
        self.retranslate()

    def _show(self) -> None:
        for value, choice in self.buttons.items():
            choice.setChecked(value == self.session.form[self.option])

    def retranslate(self) -> None:
        """Write all texts in the current language."""
        super().retranslate()
        chosen = self.session.form.fields[self.option].option
        for value, choice in self.buttons.items():
            choice.setText(self.session.texts(chosen.choice_text_key(value)))
        self._show()


class SkinPage(_ChoicePage):
    """Light, dark or as the system."""

    def __init__(self, session: Session) -> None:
        choices = list(session.form.fields["qt_theme_mode"].option.choices)
        super().__init__(session, "ui_tab_skin", "ui_skin_note", "qt_theme_mode", choices)


class LanguagePage(_ChoicePage):
    """The language of every text."""

    def __init__(self, session: Session) -> None:
        super().__init__(
            session, "ui_tab_language", "ui_language_note", "language", list(available_languages())
        )
