"""In every language the window fits a small screen and shows its texts whole."""

from __future__ import annotations

import pytest
from PySide6.QtCore import QCoreApplication
from PySide6.QtWidgets import QAbstractButton, QLabel, QWidget

from locales.zemosaic_localization import available_languages
from zemosaic_gui_qt import PAGES


def cut_off(window: QWidget) -> list[str]:
    """Texts of visible buttons and labels that are wider than their place."""
    found = []
    for widget in window.findChildren(QWidget):
        if not widget.isVisible() or not isinstance(widget, QAbstractButton | QLabel) or not widget.text():
            continue
        if isinstance(widget, QLabel) and widget.wordWrap():
            continue
        if widget.sizeHint().width() > widget.width() + 1:
            found.append(
                f"{widget.text()!r}: {widget.sizeHint().width()} px wide, there are {widget.width()}"
            )
    return found


@pytest.mark.parametrize("language", available_languages())
def test_nothing_is_cut_off_on_a_small_screen(make_window, session, qtbot, language):
    window = make_window()
    session.form.set("language", language)
    window.resize(1280, 720)
    wrong = []
    for page in PAGES:
        window.show_page(page)
        qtbot.wait(1)
        wrong += [f"{page}: {text}" for text in cut_off(window)]
        size = window.minimumSizeHint()
        wrong += [f"{page}: needs {size.width()} x {size.height()}"] * (
            size.width() > 1280 or size.height() > 720
        )
    session.form.set("language", "en")
    assert wrong == []


def test_qt_speaks_the_language_too(session):
    session.texts.set_language("fr")
    assert QCoreApplication.translate("QPlatformTheme", "Cancel") == "Annuler"
    session.texts.set_language("en")
    assert QCoreApplication.translate("QPlatformTheme", "Cancel") == "Cancel"
