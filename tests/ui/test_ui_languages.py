"""In every language the window fits a small screen and shows its texts whole."""

from __future__ import annotations

import pytest
from PySide6.QtCore import QCoreApplication, Qt
from PySide6.QtWidgets import (
    QAbstractButton,
    QAbstractSlider,
    QComboBox,
    QLabel,
    QLineEdit,
    QScrollBar,
    QWidget,
)

from locales.zemosaic_localization import available_languages
from zemosaic_filter_gui_qt import FilterQtDialog
from zemosaic_gui_qt import PAGES, ZeMosaicQtMainWindow
from zemosaic_pipeline.events import PHASES, PhaseStarted, RunEnded, RunStarted

SMALL_SCREEN = (1024, 700)


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


def begin_run(window: ZeMosaicQtMainWindow) -> None:
    """Show a run that stacks: the phase with the longest name."""
    state = window.controller.state
    state.begin("in", "out", 0.0)
    for event in (RunStarted("1", "in", "out", tuple(PHASES)), PhaseStarted("phase3_master_tiles", 6)):
        state.apply(event, 1.0)
    window.run_page.refresh(window.controller)


@pytest.mark.parametrize("language", available_languages())
def test_nothing_is_cut_off_on_a_small_screen(make_window, session, qtbot, language):
    window = make_window()
    session.form.set("language", language)
    window.resize(*SMALL_SCREEN)
    begin_run(window)
    wrong = []
    for page in PAGES:
        window.show_page(page)
        qtbot.wait(1)
        wrong += [f"{page}: {text}" for text in cut_off(window)]
        size = window.minimumSizeHint()
        wrong += [f"{page}: needs {size.width()} x {size.height()}"] * (
            size.width() > SMALL_SCREEN[0] or size.height() > SMALL_SCREEN[1]
        )
    session.form.set("language", "en")
    window.controller.state.apply(RunEnded("cancelled"), 2.0)
    assert wrong == []


@pytest.mark.parametrize("language", available_languages())
def test_the_choice_of_frames_fits_a_small_screen(session, tmp_path, qtbot, language):
    session.texts.set_language(language)
    dialog = FilterQtDialog(session, str(tmp_path), survey=False)
    qtbot.addWidget(dialog)
    dialog.resize(*SMALL_SCREEN)
    dialog.show()
    qtbot.wait(1)
    size = dialog.minimumSizeHint()
    assert (size.width() <= SMALL_SCREEN[0], size.height() <= SMALL_SCREEN[1]) == (True, True), size
    assert cut_off(dialog) == []
    dialog.reject()
    session.texts.set_language("en")


def test_qt_speaks_the_language_too(session):
    session.texts.set_language("fr")
    assert QCoreApplication.translate("QPlatformTheme", "Cancel") == "Annuler"
    session.texts.set_language("en")
    assert QCoreApplication.translate("QPlatformTheme", "Cancel") == "Cancel"


def test_a_fraction_is_typed_and_stepped_with_the_sign_of_the_language(make_window, session, qtbot):
    window = make_window()
    window.show_page("advanced")
    field = next(row for row in window.advanced_page.rows if row.key == "solve_tolerance_px").control
    assert field.text() == "0.3"
    session.form.set("language", "fr")
    assert field.text() == "0,3"
    field.setFocus()
    for typed, value in (("0,", 0.3), ("0,45", 0.45), ("0.45", 0.45)):
        field.clear()
        qtbot.keyClicks(field, typed)
        assert field.text() == typed
        assert typed == "0," or session.form["solve_tolerance_px"] == value
    qtbot.keyClick(field, Qt.Key.Key_Up)
    assert session.form["solve_tolerance_px"] > 0.45
    assert "," in field.text()
    session.form.set("language", "en")
    assert "," not in field.text()


def test_every_control_has_a_name_for_those_who_do_not_see_it(make_window, session, qtbot):
    window = make_window()
    kinds = QAbstractButton | QLineEdit | QComboBox | QAbstractSlider
    nameless = []
    for page in PAGES:
        window.show_page(page)
        qtbot.wait(1)
        for control in window.stack.currentWidget().findChildren(QWidget):
            # What Qt makes itself inside a field, or to move through a page, is no control of its own.
            if isinstance(control.parent(), QLineEdit) or isinstance(control, QScrollBar):
                continue
            if not control.isVisible() or not isinstance(control, kinds):
                continue
            text = control.text() if isinstance(control, QAbstractButton) else ""
            if not (control.accessibleName() or control.toolTip() or text):
                nameless.append(f"{page}: {type(control).__name__} {control.objectName()}")
    assert nameless == []
