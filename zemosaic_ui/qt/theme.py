"""Colours, fonts and style sheet of the desktop: one accent, calm surfaces, a dark theme fit for the night."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PySide6.QtCore import QObject, Qt, QTemporaryDir, Signal
from PySide6.QtGui import QColor, QFont, QFontDatabase, QPalette
from PySide6.QtWidgets import QApplication

__all__ = ["DARK", "LIGHT", "Theme", "ThemeSwitch", "number_font"]


@dataclass(frozen=True)
class Theme:
    """Named colours of a theme."""

    name: str
    window: str
    surface: str
    raised: str
    sunken: str
    border: str
    text: str
    muted: str
    faint: str
    accent: str
    accent_text: str
    accent_soft: str
    good: str
    warn: str
    bad: str

    @property
    def is_dark(self) -> bool:
        """Whether the background is dark."""
        return self.name == "dark"

    def colour(self, name: str) -> QColor:
        """Return a named colour."""
        return QColor(getattr(self, name))


# Amber keeps eyes adapted to the dark better than blue or white; greys are neutral, so that the colours of a
# picture beside them are judged rightly.
DARK = Theme(
    "dark",
    window="#131416",
    surface="#1b1c1f",
    raised="#26282c",
    sunken="#0e0f10",
    border="#34363b",
    text="#e3e1dc",
    muted="#a09d97",
    faint="#85827c",
    accent="#e2a24a",
    accent_text="#1a1206",
    accent_soft="#3a2d18",
    good="#7fb685",
    warn="#e2b34a",
    bad="#e07a6a",
)
LIGHT = Theme(
    "light",
    window="#f3f2ef",
    surface="#fdfdfc",
    raised="#e9e7e2",
    sunken="#ffffff",
    border="#d3d0c9",
    text="#232220",
    muted="#6a6762",
    faint="#7f7c76",
    accent="#a85d0c",
    accent_text="#ffffff",
    accent_soft="#f4e4cd",
    good="#37783f",
    warn="#94690a",
    bad="#b23a2a",
)


def number_font() -> QFont:
    """Return the fixed-width font of the system, for columns of numbers and the log."""
    font = QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont)
    font.setPointSizeF(max(8.0, QApplication.font().pointSizeF() - 0.5))
    return font


class ThemeSwitch(QObject):
    """Applies ``system``, ``dark`` or ``light`` to the application and tells the views that draw themselves."""

    changed = Signal()

    def __init__(self, app: QApplication, mode: str = "system") -> None:
        super().__init__(app)
        self._app = app
        self._mode = ""
        self._pictures = QTemporaryDir()
        self.theme = LIGHT
        app.setStyle("Fusion")
        app.styleHints().colorSchemeChanged.connect(self._on_system_changed)
        self.set_mode(mode)

    @property
    def mode(self) -> str:
        """The mode the user chose."""
        return self._mode

    def set_mode(self, mode: str) -> None:
        """Switch the theme at once."""
        self._mode = mode
        dark = mode == "dark" or (mode == "system" and self._system_is_dark())
        theme = DARK if dark else LIGHT
        if theme is self.theme and self._app.styleSheet():
            return
        self.theme = theme
        self._app.setPalette(_palette(theme))
        self._app.setStyleSheet(_style_sheet(theme, self._picture_files(theme)))
        self.changed.emit()

    def _picture_files(self, theme: Theme) -> dict[str, str]:
        """Write the few pictures a style sheet takes only from files; return name -> path."""
        stroke = 'fill="none" stroke-linecap="round" stroke-linejoin="round"'
        empty = f'<rect x="1" y="1" width="10" height="10" rx="2.5" fill="{theme.sunken}" stroke="{theme.faint}"/>'
        full = f'<rect x="0.5" y="0.5" width="11" height="11" rx="2.8" fill="{theme.accent}"/>'
        tick = f'<path d="M3 6.2l2.1 2.1 4-4.4" {stroke} stroke="{theme.accent_text}" stroke-width="1.6"/>'
        dash = f'<path d="M3.2 6h5.6" {stroke} stroke="{theme.accent_text}" stroke-width="1.8"/>'
        drawings = {
            "arrow_file": f'<path d="M2 4l4 4 4-4" {stroke} stroke="{theme.muted}" stroke-width="1.6"/>',
            "box_file": empty,
            "checked_file": full + tick,
            "partial_file": full + dash,
        }
        files = {}
        for name, drawing in drawings.items():
            path = f"{self._pictures.path()}/{name}_{theme.name}.svg"
            size = 'viewBox="0 0 12 12" width="12" height="12"'
            Path(path).write_text(
                f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{drawing}</svg>', encoding="utf-8"
            )
            files[name] = path
        return files

    def _system_is_dark(self) -> bool:
        return self._app.styleHints().colorScheme() == Qt.ColorScheme.Dark

    def _on_system_changed(self) -> None:
        if self._mode == "system":
            self.set_mode("system")


def _palette(theme: Theme) -> QPalette:
    palette = QPalette()
    roles = QPalette.ColorRole
    for role, name in (
        (roles.Window, "window"),
        (roles.WindowText, "text"),
        (roles.Base, "sunken"),
        (roles.AlternateBase, "surface"),
        (roles.Text, "text"),
        (roles.PlaceholderText, "faint"),
        (roles.Button, "raised"),
        (roles.ButtonText, "text"),
        (roles.ToolTipBase, "raised"),
        (roles.ToolTipText, "text"),
        (roles.Highlight, "accent"),
        (roles.HighlightedText, "accent_text"),
        (roles.Link, "accent"),
        (roles.Mid, "border"),
        (roles.Dark, "border"),
        (roles.Light, "raised"),
    ):
        palette.setColor(role, theme.colour(name))
    for role in (roles.WindowText, roles.Text, roles.ButtonText):
        palette.setColor(QPalette.ColorGroup.Disabled, role, theme.colour("faint"))
    return palette


def _style_sheet(theme: Theme, pictures: dict[str, str]) -> str:
    values = {name: getattr(theme, name) for name in Theme.__dataclass_fields__}
    text = _SHEET
    values |= pictures
    for name, value in values.items():
        text = (
            text.replace(f"${name};", f"{value};")
            .replace(f"${name} ", f"{value} ")
            .replace(f"${name})", f"{value})")
        )
    return text


_SHEET = """
QWidget { color: $text; }
QMainWindow, QDialog { background: $window; }
QToolTip { background: $raised; color: $text; border: 1px solid $border; padding: 6px; }

QFrame#card { background: $surface; border: 1px solid $border; border-radius: 8px; }
QFrame#rail { background: $surface; border: none; border-right: 1px solid $border; }
QFrame#footer { background: $surface; border: none; border-top: 1px solid $border; }
QFrame#dropping { background: $accent_soft; border: 2px dashed $accent; border-radius: 12px; }
QFrame#line { background: $border; max-height: 1px; min-height: 1px; border: none; }
QFrame#banner_bad { background: $surface; border: 1px solid $bad; border-radius: 8px; }
QFrame#banner { background: $accent_soft; border: 1px solid $accent; border-radius: 8px; }
QScrollArea, QScrollArea > QWidget > QWidget#scrolled { background: transparent; border: none; }

QLabel { background: transparent; }
QLabel#title, QWidget#elided_title { font-size: 17pt; font-weight: 600; }
QLabel#heading { font-size: 11pt; font-weight: 600; }
QLabel#strong { font-weight: 600; }
QLabel#brand { font-size: 14pt; font-weight: 600; color: $accent; }
QLabel#big { font-size: 15pt; font-weight: 600; }
QLabel#muted { color: $muted; }
QLabel#faint { color: $faint; font-size: 9pt; }
QLabel#problem { color: $bad; }
QLabel#good { color: $good; }
QLabel#warn { color: $warn; }
QLabel#bad { color: $bad; }

QPushButton, QToolButton { background: $raised; border: 1px solid $border; border-radius: 6px;
    padding: 6px 12px; }
QPushButton:hover, QToolButton:hover { border: 1px solid $accent; }
QPushButton:pressed, QToolButton:pressed { background: $sunken; }
QPushButton:disabled, QToolButton:disabled { color: $faint; background: $surface; }
QPushButton:focus, QToolButton:focus { border: 1px solid $accent; }
QPushButton#primary { background: $accent; color: $accent_text; border: 1px solid $accent;
    font-weight: 600; padding: 7px 22px; }
QPushButton#primary:hover { border: 1px solid $text; }
QPushButton#primary:disabled { background: $raised; color: $faint; border: 1px solid $border; }
QPushButton#danger:enabled { color: $bad; }
QPushButton#quality { padding: 10px 14px; text-align: center; }
QPushButton#quality:checked, QToolButton:checked, QPushButton#segment:checked { background: $accent_soft;
    border: 1px solid $accent; color: $text; }
QToolButton { padding: 6px 9px; }
QToolButton#quiet, QPushButton#quiet { background: transparent; border: 1px solid transparent; padding: 3px 6px; }
QToolButton#quiet:hover, QPushButton#quiet:hover { background: $raised; }
QToolButton#quiet:focus, QPushButton#quiet:focus { border: 1px solid $accent; }
QToolButton::menu-indicator { image: none; }

QToolButton#nav { background: transparent; border: none; border-radius: 6px; padding: 9px 12px;
    text-align: left; color: $muted; }
QToolButton#nav:hover { background: $raised; color: $text; }
QToolButton#nav:focus { border: 1px solid $border; }
QToolButton#nav:checked { background: $accent_soft; color: $text; font-weight: 600; }

QLineEdit, QComboBox, QPlainTextEdit, QTextEdit, QSpinBox, QDoubleSpinBox { background: $sunken;
    border: 1px solid $border; border-radius: 6px; padding: 5px 8px; selection-background-color: $accent;
    selection-color: $accent_text; }
QLineEdit:focus, QComboBox:focus, QPlainTextEdit:focus, QTextEdit:focus, QSpinBox:focus,
    QDoubleSpinBox:focus { border: 1px solid $accent; }
QLineEdit[refused="true"] { border: 1px solid $bad; }
QLineEdit:disabled, QComboBox:disabled { color: $faint; background: $surface; }
QAbstractSpinBox QLineEdit { border: none; padding: 0; background: transparent; }
QTreeView::indicator, QListView::indicator { width: 15px; height: 15px; }
QTreeView::indicator:unchecked { image: url($box_file); }
QTreeView::indicator:checked { image: url($checked_file); }
QTreeView::indicator:indeterminate { image: url($partial_file); }
QComboBox::drop-down { border: none; width: 22px; }
QComboBox::down-arrow { image: url($arrow_file); width: 12px; height: 12px; margin-right: 8px; }
QComboBox QAbstractItemView { background: $surface; border: 1px solid $border; padding: 4px;
    selection-background-color: $accent_soft; selection-color: $text; outline: none; }

QCheckBox { spacing: 8px; background: transparent; }
QCheckBox:focus { color: $accent; }

QProgressBar { background: $raised; border: none; border-radius: 3px; max-height: 6px; min-height: 6px; }
QProgressBar::chunk { background: $accent; border-radius: 3px; }
QProgressBar#quietbar::chunk { background: $muted; }

QTreeView, QListView, QTableView { background: $sunken; border: 1px solid $border; border-radius: 6px;
    alternate-background-color: $surface; outline: none; }
QTreeView::item, QListView::item, QTableView::item { padding: 3px 4px; border: none; }
QTreeView::item:selected, QListView::item:selected, QTableView::item:selected { background: $accent_soft;
    color: $text; }
QHeaderView::section { background: $surface; color: $muted; border: none; border-right: 1px solid $border;
    border-bottom: 1px solid $border; padding: 5px 8px; }

QTabWidget::pane { border: none; border-top: 1px solid $border; top: -1px; }
QTabBar::tab { background: transparent; color: $muted; padding: 7px 14px; border: none;
    border-bottom: 2px solid transparent; }
QTabBar::tab:selected { color: $text; border-bottom: 2px solid $accent; }
QTabBar::tab:hover { color: $text; }

QSplitter::handle { background: $window; }
QSplitter::handle:horizontal { width: 8px; }
QSplitter::handle:vertical { height: 8px; }
QScrollBar:vertical { background: transparent; width: 10px; margin: 0; }
QScrollBar:horizontal { background: transparent; height: 10px; margin: 0; }
QScrollBar::handle { background: $border; border-radius: 5px; min-height: 30px; min-width: 30px; }
QScrollBar::handle:hover { background: $faint; }
QScrollBar::add-line, QScrollBar::sub-line, QScrollBar::add-page, QScrollBar::sub-page { background: none;
    border: none; width: 0; height: 0; }
QSlider::groove:horizontal { background: $raised; height: 4px; border-radius: 2px; }
QSlider::sub-page:horizontal { background: $accent; border-radius: 2px; }
QSlider::handle:horizontal { background: $text; width: 14px; height: 14px; margin: -5px 0; border-radius: 7px; }
QSlider::handle:horizontal:focus { background: $accent; }
QMenu { background: $surface; border: 1px solid $border; padding: 4px; }
QMenu::item { padding: 6px 22px 6px 12px; border-radius: 4px; }
QMenu::item:selected { background: $accent_soft; color: $text; }
QMenu::item:disabled { color: $faint; }
QMenu::separator { height: 1px; background: $border; margin: 4px 8px; }
"""
