"""What every page of the desktop shares: texts, theme, the form, the memory and where they are saved."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from PySide6.QtGui import QIcon

import zemosaic_config
from zemosaic_core.errors import SaveFailed, SettingsError
from zemosaic_settings import Settings
from zemosaic_ui.form_model import FormModel
from zemosaic_ui.qt.icons import make_icon
from zemosaic_ui.qt.qt_words import QtWords
from zemosaic_ui.qt.theme import ThemeSwitch
from zemosaic_ui.texts import Texts
from zemosaic_ui.ui_memory import UiMemory, read_memory, write_memory

__all__ = ["Session", "open_session"]

_log = logging.getLogger(__name__)


@dataclass
class Session:
    """The shared things; ``problems`` are what could not be read from the settings file."""

    texts: Texts
    themes: ThemeSwitch
    form: FormModel
    memory: UiMemory
    config_path: Path
    memory_path: Path
    presets_dir: Path
    problems: list[SettingsError] = field(default_factory=list)
    qt_words: QtWords | None = None
    icons: dict[tuple[str, str, str], QIcon] = field(default_factory=dict, repr=False)

    def icon(self, name: str, role: str = "text") -> QIcon:
        """Return an icon in a colour of the current theme."""
        theme = self.themes.theme
        known = (name, theme.name, role)
        if known not in self.icons:
            self.icons[known] = make_icon(name, theme, role=role)
        return self.icons[known]

    def save(self) -> SaveFailed | SettingsError | None:
        """Save settings and memory; return what went wrong, for the window to show."""
        try:
            zemosaic_config.save_config(self.form.to_mapping(), self.config_path)
            write_memory(self.memory_path, self.memory)
        except (SaveFailed, SettingsError) as error:
            _log.warning("%s", error)
            return error
        return None


def open_session(themes: ThemeSwitch, config_path: Path | None = None) -> Session:
    """Read the settings file and the memory and put the session together."""
    path = Path(config_path or zemosaic_config.get_config_path())
    problems: list[SettingsError] = []
    try:
        # Without a path of its own the user's file is meant, and before the first save perhaps an older program's.
        loaded = zemosaic_config.read_config(config_path, missing_ok=True)
        settings, problems = Settings.from_mapping(loaded.values), list(loaded.problems)
    except SettingsError as error:
        settings, problems = Settings(), [error]
    memory_path = path.with_name("zemosaic_window.json")
    texts = Texts(settings.language)
    session = Session(
        texts=texts,
        themes=themes,
        form=FormModel(settings),
        memory=read_memory(memory_path),
        config_path=path,
        memory_path=memory_path,
        presets_dir=path.with_name("presets"),
        problems=problems,
        qt_words=QtWords(texts),
    )
    themes.set_mode(settings.qt_theme_mode)
    return session
