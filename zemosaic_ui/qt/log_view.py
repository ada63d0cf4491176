"""The log of a run: levels, search, and tens of thousands of lines without waiting."""

from __future__ import annotations

import time
from collections import deque

from PySide6.QtCore import QAbstractListModel, QModelIndex, QPersistentModelIndex, Qt, QTimer
from PySide6.QtGui import QColor, QGuiApplication, QKeySequence, QShortcut
from PySide6.QtWidgets import QComboBox, QLineEdit, QListView, QVBoxLayout, QWidget

from zemosaic_ui.qt.session import Session
from zemosaic_ui.qt.theme import number_font
from zemosaic_ui.qt.widgets import label, row, tool_button
from zemosaic_ui.run_state import LogLine, RunState

__all__ = ["LogView"]

_RANK = {"DEBUG": 0, "INFO": 1, "SUCCESS": 1, "WARN": 2, "ERROR": 3}
_LEVELS = ("DEBUG", "INFO", "WARN", "ERROR")
# Time per tick for putting lines into words.
_TICK_S = 0.012
_Index = QModelIndex | QPersistentModelIndex


class _LogModel(QAbstractListModel):
    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self.lines: list[tuple[LogLine, str]] = []

    def rowCount(self, parent: _Index = QModelIndex()) -> int:  # noqa: B008 - Qt's own signature
        return 0 if parent.isValid() else len(self.lines)

    def data(self, index: _Index, role: int = Qt.ItemDataRole.DisplayRole) -> object:
        line, words = self.lines[index.row()]
        if role == Qt.ItemDataRole.DisplayRole:
            return f"{self.session.texts.clock(line.seconds):>8}  {words}"
        if role == Qt.ItemDataRole.ToolTipRole:
            return words
        if role == Qt.ItemDataRole.ForegroundRole:
            theme = self.session.themes.theme
            name = {"ERROR": "bad", "WARN": "warn", "SUCCESS": "good", "DEBUG": "muted"}.get(
                line.level, "text"
            )
            return QColor(getattr(theme, name))
        return None

    def append(self, new: list[tuple[LogLine, str]]) -> None:
        if new:
            self.beginInsertRows(QModelIndex(), len(self.lines), len(self.lines) + len(new) - 1)
            self.lines += new
            self.endInsertRows()

    def clear(self) -> None:
        self.beginResetModel()
        self.lines = []
        self.endResetModel()


class LogView(QWidget):
    """Shows the log of a `RunState`; call `refresh` from the window's timer."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self._state: RunState | None = None
        self._seen = 0
        self._todo: deque[LogLine] = deque()
        self.heading = label("heading")
        self.level = QComboBox()
        self.level.setObjectName("log_level")
        self.search = QLineEdit()
        self.search.setObjectName("log_search")
        self.search.setClearButtonEnabled(True)
        self.search.setMaximumWidth(260)
        self.copy = tool_button("quiet", self.copy_selected)
        self.model = _LogModel(session)
        self.view = QListView()
        self.view.setModel(self.model)
        self.view.setUniformItemSizes(True)
        self.view.setFont(number_font())
        self.view.setSelectionMode(QListView.SelectionMode.ExtendedSelection)
        self.view.setHorizontalScrollMode(QListView.ScrollMode.ScrollPerPixel)
        self.view.setTextElideMode(Qt.TextElideMode.ElideRight)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(6)
        layout.addLayout(row(self.heading, None, self.search, self.level, self.copy))
        layout.addWidget(self.view, 1)
        QShortcut(QKeySequence.StandardKey.Copy, self.view, self.copy_selected)
        self._search_timer = QTimer(self)
        self._search_timer.setSingleShot(True)
        self._search_timer.setInterval(120)
        self._search_timer.timeout.connect(self.rebuild)
        self._feed = QTimer(self)
        self._feed.setInterval(0)
        self._feed.timeout.connect(self._feed_some)
        self.retranslate()
        self.level.setCurrentIndex(_LEVELS.index(session.form["logging_level"]))
        self.search.textChanged.connect(lambda _text: self._search_timer.start())
        self.level.currentIndexChanged.connect(self._on_level)

    def _on_level(self, index: int) -> None:
        self.session.form.set("logging_level", _LEVELS[index])
        self.rebuild()

    def refresh(self, state: RunState) -> None:
        """Take the lines that came since the last call."""
        if state is not self._state:
            self._state, self._seen = state, 0
            self._todo.clear()
            self.model.clear()
        new = state.log_total - self._seen
        if new > 0:
            start = max(0, len(state.log) - new)
            self._todo.extend(state.log[i] for i in range(start, len(state.log)))
            self._seen = state.log_total
            self._feed.start()

    def rebuild(self) -> None:
        """Show the lines that agree with level and search, a few hundred at a time."""
        self.model.clear()
        self._todo = deque(self._state.log if self._state is not None else ())
        if self._todo:
            self._feed.start()

    def _feed_some(self) -> None:
        words = self.search.text().casefold().split()
        least = _RANK[_LEVELS[max(0, self.level.currentIndex())]]
        found = []
        until = time.perf_counter() + _TICK_S
        while self._todo and time.perf_counter() < until:
            line = self._todo.popleft()
            if _RANK[line.level] < least:
                continue
            text = self.session.texts.log_words(line.key, line.level, line.values)
            if all(word in text.casefold() for word in words):
                found.append((line, text))
        bar = self.view.verticalScrollBar()
        at_end = bar.value() >= bar.maximum() - 2
        self.model.append(found)
        if at_end and found:
            self.view.scrollToBottom()
        if not self._todo:
            self._feed.stop()

    def copy_selected(self) -> None:
        """Copy the selected lines, or all shown ones, to the clipboard."""
        rows = sorted(index.row() for index in self.view.selectionModel().selectedRows())
        lines = [self.model.lines[i][1] for i in rows] if rows else [text for _, text in self.model.lines]
        QGuiApplication.clipboard().setText("\n".join(lines))

    def retranslate(self) -> None:
        """Write all texts in the current language."""
        text = self.session.texts
        self.heading.setText(text("ui_log"))
        self.search.setPlaceholderText(text("ui_log_search"))
        self.search.setAccessibleName(text("ui_log_search"))
        self.copy.setText(text("ui_log_copy"))
        index = self.level.currentIndex()
        self.level.blockSignals(True)
        self.level.clear()
        self.level.addItems([text(f"option.logging_level.choice.{name.lower()}") for name in _LEVELS])
        self.level.setCurrentIndex(max(0, index))
        self.level.blockSignals(False)
        self.level.setToolTip(text("option.logging_level.help"))
        self.rebuild()

    def retheme(self) -> None:
        """Draw with the colours of the theme."""
        self.view.setFont(number_font())
        self.view.viewport().update()
