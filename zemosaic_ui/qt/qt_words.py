"""Qt's own words, such as the menu of a text field and the dialog for files, in the language of the window."""

from __future__ import annotations

import logging

from PySide6.QtCore import QCoreApplication, QLibraryInfo, QLocale, QTranslator

from zemosaic_ui.texts import Texts

__all__ = ["QtWords"]

_log = logging.getLogger(__name__)


class QtWords:
    """Follows the language of ``texts``; where Qt has no words in it, as in Icelandic, Qt's stay English."""

    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self._translator: QTranslator | None = None
        texts.on_language(self.follow)
        self.follow()

    def follow(self) -> None:
        """Install Qt's words of the current language in place of those before."""
        if self._translator is not None:
            QCoreApplication.removeTranslator(self._translator)
            self._translator = None
        translator = QTranslator()
        folder = QLibraryInfo.path(QLibraryInfo.LibraryPath.TranslationsPath)
        if translator.load(QLocale(self._texts.language), "qtbase", "_", folder):
            QCoreApplication.installTranslator(translator)
            self._translator = translator
        else:
            _log.info("Qt has no words in %r", self._texts.language)
