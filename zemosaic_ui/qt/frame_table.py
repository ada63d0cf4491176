"""The filter's table: groups with tri-state boxes, frames below them, sorted and filtered by the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PySide6.QtCore import (
    QAbstractItemModel,
    QItemSelection,
    QItemSelectionModel,
    QModelIndex,
    QPersistentModelIndex,
    Qt,
)
from PySide6.QtGui import QColor, QKeyEvent
from PySide6.QtWidgets import QAbstractItemView, QHeaderView, QTreeView

from zemosaic_ui.filter_model import COLUMNS, GROUP_OF_STACKS, FilterModel
from zemosaic_ui.qt.session import Session

__all__ = ["FrameTable", "FrameTableModel"]

_Index = QModelIndex | QPersistentModelIndex
_NUMBERS = {"exposure": 1, "stars": 0, "fwhm": 2, "elongation": 2, "background": 0}
_ROLE = Qt.ItemDataRole
# Put together once: the view asks for them tens of thousands of times.
_PLAIN = Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable
_CHECKABLE = _PLAIN | Qt.ItemFlag.ItemIsUserCheckable


class FrameTableModel(QAbstractItemModel):
    """Two levels: groups and frames; internal id 0 marks a group, n > 0 a frame of group n - 1."""

    def __init__(self, session: Session, frames: FilterModel) -> None:
        super().__init__()
        self.session = session
        self.frames = frames
        self.blocks: list[tuple[int, np.ndarray]] = []
        self.column, self.descending = "file", False
        self.text, self.show = "", "all"

    def rebuild(self) -> None:
        """Sort, filter and group anew."""
        order = self.frames.order(self.column, descending=self.descending, text=self.text, show=self.show)
        self.beginResetModel()
        self.blocks = self.frames.by_group(order)
        self.endResetModel()

    # ------------------------------------------------------------------ structure

    def index(self, row: int, column: int, parent: _Index = QModelIndex()) -> QModelIndex:  # noqa: B008
        """Return the index of a cell."""
        if not parent.isValid():
            return self.createIndex(row, column, 0)
        return self.createIndex(row, column, parent.row() + 1)

    def parent(self, index: _Index) -> QModelIndex:
        """Return the group of a frame."""
        number = index.internalId()
        return self.createIndex(number - 1, 0, 0) if number else QModelIndex()

    def rowCount(self, parent: _Index = QModelIndex()) -> int:  # noqa: B008
        """Return the number of groups, or of frames of a group."""
        if not parent.isValid():
            return len(self.blocks)
        return len(self.blocks[parent.row()][1]) if parent.internalId() == 0 and parent.column() == 0 else 0

    def columnCount(self, parent: _Index = QModelIndex()) -> int:  # noqa: B008
        """Return the number of columns."""
        return len(COLUMNS)

    def position(self, index: _Index) -> int | None:
        """Return the frame an index stands for, or None for a group."""
        number = index.internalId()
        return int(self.blocks[number - 1][1][index.row()]) if number else None

    def positions_below(self, index: _Index) -> np.ndarray:
        """Return the frames of an index: one, or all of a group."""
        position = self.position(index)
        return self.blocks[index.row()][1] if position is None else np.array([position])

    # ------------------------------------------------------------------ content

    def flags(self, index: _Index) -> Qt.ItemFlag:
        """Say what can be done with a cell."""
        return _CHECKABLE if index.column() == 0 else _PLAIN

    def data(self, index: _Index, role: int = _ROLE.DisplayRole) -> object:
        """Return what a cell shows."""
        position = self.position(index)
        if position is None:
            return self._group_data(index, role)
        column = COLUMNS[index.column()]
        if role == _ROLE.DisplayRole:
            return self._cell(position, column)
        if role == _ROLE.CheckStateRole and index.column() == 0:
            return Qt.CheckState.Checked if self.frames.kept[position] else Qt.CheckState.Unchecked
        if role == _ROLE.ToolTipRole:
            return self.frames.rows[position].path if index.column() == 0 else self._cell(position, column)
        if role == _ROLE.ForegroundRole and not self.frames.kept[position]:
            return QColor(self.session.themes.theme.faint)
        if role == _ROLE.TextAlignmentRole and column in _NUMBERS:
            return Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
        return None

    def _group_data(self, index: _Index, role: int) -> object:
        number, members = self.blocks[index.row()]
        kept = int(self.frames.kept[members].sum())
        if role == _ROLE.DisplayRole and index.column() == 0:
            text = self.session.texts
            key = "filter_group_stacks" if number == GROUP_OF_STACKS else "filter_group_none"
            key = "filter_group" if number >= 0 else key
            return text(key, n=number + 1, kept=kept, total=len(members))
        if role == _ROLE.CheckStateRole and index.column() == 0:
            if kept == 0:
                return Qt.CheckState.Unchecked
            return Qt.CheckState.Checked if kept == len(members) else Qt.CheckState.PartiallyChecked
        if role == _ROLE.BackgroundRole:
            return QColor(self.session.themes.theme.raised)
        return None

    def _cell(self, position: int, column: str) -> str:
        row, text = self.frames.rows[position], self.session.texts
        if column == "file":
            return Path(row.path).name
        if column == "date":
            return text.moment(row.date)
        if column == "instrument":
            return row.instrument
        if column == "wcs":
            return text(f"filter_wcs_{row.wcs}")
        if column == "reason":
            key = self.frames.reason_key(position)
            values = row.refused_values if row.refused_key == key else {}
            return text.reason(key, values, row.path) if key else ""
        value = self.frames.column(column)[position]
        return text.number(value, _NUMBERS[column]) if np.isfinite(value) else ""

    def setData(self, index: _Index, value: object, role: int = _ROLE.EditRole) -> bool:
        """Keep or exclude the frame or the whole group whose box was clicked."""
        if role != _ROLE.CheckStateRole:
            return False
        self.frames.set_kept(self.positions_below(index), Qt.CheckState(value) == Qt.CheckState.Checked)
        return True

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = _ROLE.DisplayRole) -> object:
        """Return the name of a column."""
        if role == _ROLE.DisplayRole and orientation == Qt.Orientation.Horizontal:
            return self.session.texts(f"filter_column_{COLUMNS[section]}")
        return None


class FrameTable(QTreeView):
    """The view; its selection is the selection of the filter model."""

    def __init__(self, session: Session, frames: FilterModel) -> None:
        super().__init__()
        self.table = FrameTableModel(session, frames)
        self.frames = frames
        self._syncing = False
        self._open: set[int] = set()
        self.setModel(self.table)
        self.setUniformRowHeights(True)
        self.setTextElideMode(Qt.TextElideMode.ElideMiddle)
        self.setAlternatingRowColors(False)
        self.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        self.setAllColumnsShowFocus(True)
        header = self.header()
        header.setSectionsClickable(True)
        header.setSortIndicatorShown(True)
        header.setStretchLastSection(True)
        header.setSectionResizeMode(QHeaderView.ResizeMode.Interactive)
        header.sectionClicked.connect(self._on_header)
        for column, width in enumerate((230, 156, 76, 104, 90, 64, 84, 90, 90, 160)):
            self.setColumnWidth(column, width)
        self.selectionModel().selectionChanged.connect(self._on_selection)
        self.expanded.connect(lambda index: self._note_open(index, True))
        self.collapsed.connect(lambda index: self._note_open(index, False))

    def rebuild(self) -> None:
        """Show the frames anew, with open groups left open."""
        bar = self.verticalScrollBar().value()
        self._syncing = True
        self.table.rebuild()
        few = len(self.table.blocks) == 1
        for row, (number, _) in enumerate(self.table.blocks):
            if few or number in self._open:
                self.setExpanded(self.table.index(row, 0), True)
        self._syncing = False
        self.show_selection(scroll=False)
        self.verticalScrollBar().setValue(bar)

    def _note_open(self, index: QModelIndex, is_open: bool) -> None:
        if not index.parent().isValid():
            number = self.table.blocks[index.row()][0]
            (self._open.add if is_open else self._open.discard)(number)

    def _on_header(self, section: int) -> None:
        column = COLUMNS[section]
        self.table.descending = self.table.column == column and not self.table.descending
        self.table.column = column
        order = Qt.SortOrder.DescendingOrder if self.table.descending else Qt.SortOrder.AscendingOrder
        self.header().setSortIndicator(section, order)
        self.rebuild()

    def _on_selection(self) -> None:
        if self._syncing:
            return
        found = [self.table.positions_below(index) for index in self.selectionModel().selectedRows()]
        self._syncing = True
        self.frames.select(np.concatenate(found) if found else np.zeros(0, dtype=int))
        self._syncing = False

    def show_selection(self, *, scroll: bool = True) -> None:
        """Highlight the frames the model has selected."""
        if self._syncing:
            return
        self._syncing = True
        selection, first = QItemSelection(), None
        for row, (_, members) in enumerate(self.table.blocks):
            chosen = np.flatnonzero(self.frames.selected[members])
            if not len(chosen):
                continue
            parent = self.table.index(row, 0)
            # Neighbouring rows become one range: thousands of single ranges are slow.
            for run in np.split(chosen, np.flatnonzero(np.diff(chosen) != 1) + 1):
                top, bottom = (
                    self.table.index(int(run[0]), 0, parent),
                    self.table.index(int(run[-1]), 0, parent),
                )
                selection.select(top, bottom)
                first = first or top
        flags = QItemSelectionModel.SelectionFlag
        self.selectionModel().select(selection, flags.ClearAndSelect | flags.Rows)
        if first is not None and scroll:
            self.scrollTo(first, QAbstractItemView.ScrollHint.EnsureVisible)
        self._syncing = False

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Space keeps or excludes everything selected."""
        if event.key() == Qt.Key.Key_Space:
            self.toggle_selected()
        else:
            super().keyPressEvent(event)

    def toggle_selected(self) -> None:
        """Exclude the selected frames, or keep them when all are excluded."""
        chosen = np.flatnonzero(self.frames.selected)
        if len(chosen):
            self.frames.set_kept(chosen, not bool(self.frames.kept[chosen].any()))
