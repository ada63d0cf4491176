"""Parts of the filter dialog: the sky with its tools, the table with its search, and the panel of rules."""

from __future__ import annotations

from PySide6.QtCore import QLocale, QTimer, Signal
from PySide6.QtGui import QDoubleValidator
from PySide6.QtWidgets import (
    QButtonGroup,
    QComboBox,
    QLineEdit,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from zemosaic_ui.filter_model import METRICS, FilterModel
from zemosaic_ui.plan_preview import PlanPreview
from zemosaic_ui.qt.form_fields import FieldRow
from zemosaic_ui.qt.frame_table import FrameTable
from zemosaic_ui.qt.route_card import RouteCard
from zemosaic_ui.qt.session import Session
from zemosaic_ui.qt.sky_plot import SkyPlot
from zemosaic_ui.qt.switch import Switch
from zemosaic_ui.qt.widgets import Card, button, label, row, tool_button

__all__ = ["FilterPanels", "SkyPane", "TablePane"]

GROUPING_KEYS = (
    "cluster_panel_threshold",
    "cluster_target_groups",
    "cluster_orientation_split_deg",
    "max_raw_per_master_tile",
)
SHOWS = ("all", "kept", "excluded", "selected")
COLOURS = ("group", "state", *METRICS)


class SkyPane(QWidget):
    """The sky plot with its tools."""

    def __init__(self, session: Session, frames: FilterModel) -> None:
        super().__init__()
        self.session = session
        self.plot = SkyPlot(session, frames)
        self.modes = {}
        group = QButtonGroup(self)
        for mode in ("rectangle", "lasso", "hand"):
            choice = tool_button(checkable=True)
            choice.clicked.connect(
                lambda _on, mode=mode: self.plot.set_mode("pan" if mode == "hand" else mode)
            )
            group.addButton(choice)
            self.modes[mode] = choice
        self.modes["rectangle"].setChecked(True)
        self.fit = tool_button(on_click=self.plot.show_all)
        self.colour = QComboBox()
        self.colour.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.colour.setMinimumContentsLength(11)
        self.colour.currentIndexChanged.connect(self._on_colour)
        self.position = label("faint")
        self.plot.hovered.connect(self.position.setText)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 8, 0, 0)
        layout.setSpacing(6)
        layout.addLayout(row(*self.modes.values(), self.fit, None, self.colour, spacing=6))
        layout.addWidget(self.plot, 1)
        layout.addWidget(self.position)

    def _on_colour(self, index: int) -> None:
        self.plot.colour_by = COLOURS[max(0, index)]
        if len(self.plot.frames):
            self.plot.draw()

    def retranslate(self) -> None:
        """Write all texts in the current language."""
        text = self.session.texts
        for mode, choice in self.modes.items():
            choice.setToolTip(text(f"filter_mode_{mode}"))
            choice.setAccessibleName(text(f"filter_mode_{mode}"))
        self.fit.setToolTip(text("filter_show_all"))
        self.fit.setAccessibleName(text("filter_show_all"))
        index = max(0, self.colour.currentIndex())
        self.colour.blockSignals(True)
        self.colour.clear()
        names = [
            f"filter_colour_{name}" if name in ("group", "state") else f"filter_column_{name}"
            for name in COLOURS
        ]
        self.colour.addItems([text("filter_colour_by", what=text(name)) for name in names])
        self.colour.setCurrentIndex(index)
        self.colour.blockSignals(False)
        self.plot.retranslate()

    def retheme(self) -> None:
        """Draw with the colours of the theme."""
        for mode, choice in self.modes.items():
            choice.setIcon(self.session.icon(mode))
        self.fit.setIcon(self.session.icon("fit"))
        self.plot.retheme()


class TablePane(QWidget):
    """The table with search and selection tools."""

    def __init__(self, session: Session, frames: FilterModel) -> None:
        super().__init__()
        self.session = session
        self.frames = frames
        self.view = FrameTable(session, frames)
        self.search = QLineEdit()
        self.search.setClearButtonEnabled(True)
        self.search.setObjectName("filter_search")
        self.search.setMinimumWidth(110)
        self.show_combo = QComboBox()
        self.keep, self.exclude = (
            tool_button(on_click=lambda: self._set(True)),
            tool_button(on_click=lambda: self._set(False)),
        )
        self.reset = tool_button(on_click=frames.clear_manual)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(120)
        self._timer.timeout.connect(self._apply)
        self.search.textChanged.connect(lambda _text: self._timer.start())
        self.show_combo.currentIndexChanged.connect(lambda _index: self._apply())
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(6)
        # Two lines: beside each other they would take their place from the rules on a small screen.
        first = row(self.search, self.show_combo, spacing=6)
        first.setStretch(0, 1)
        layout.addLayout(first)
        layout.addLayout(row(self.keep, self.exclude, self.reset, None, spacing=6))
        layout.addWidget(self.view, 1)

    def _apply(self) -> None:
        self.view.table.text = self.search.text()
        self.view.table.show = SHOWS[max(0, self.show_combo.currentIndex())]
        self.view.rebuild()

    def _set(self, keep: bool) -> None:
        """Keep or exclude the selected frames; without a selection all that are shown."""
        chosen = self.frames.selected.nonzero()[0]
        if not len(chosen):
            shown = [members for _, members in self.view.table.blocks]
            chosen = [position for members in shown for position in members]
        if len(chosen):
            self.frames.set_kept(chosen, keep)

    def retranslate(self) -> None:
        """Write all texts in the current language."""
        text = self.session.texts
        self.search.setPlaceholderText(text("filter_search"))
        self.search.setAccessibleName(text("filter_search"))
        for control, key in ((self.keep, "keep"), (self.exclude, "exclude"), (self.reset, "reset")):
            control.setText(text(f"filter_{key}"))
            control.setToolTip(text(f"filter_{key}_tip"))
        index = max(0, self.show_combo.currentIndex())
        self.show_combo.blockSignals(True)
        self.show_combo.clear()
        self.show_combo.addItems([text(f"filter_show_{name}_frames") for name in SHOWS])
        self.show_combo.setCurrentIndex(index)
        self.show_combo.blockSignals(False)
        self.view.viewport().update()


class FilterPanels(QWidget):
    """Rules that exclude, measuring and solving, grouping, and what the choice becomes."""

    solve_asked = Signal()
    measure_asked = Signal()

    def __init__(self, session: Session, frames: FilterModel) -> None:
        super().__init__()
        self.session = session
        self.frames = frames
        self._preview: PlanPreview | None = None
        self._busy = False
        self.result_card, self.rules_card, self.work_card, self.group_card = Card(), Card(), Card(), Card()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 2, 0)
        layout.setSpacing(10)
        self.routes = RouteCard(session)
        for card in (self.result_card, self.routes, self.rules_card, self.work_card, self.group_card):
            card.body.setContentsMargins(14, 10, 14, 12)
            layout.addWidget(card)
        layout.addStretch(1)
        self.result_text, self.result_warning = label(wrap=True), label("warn", wrap=True)
        self.result_card.body.addWidget(self.result_text)
        self.result_card.body.addWidget(self.result_warning)
        self.stray_button = button("", self._on_stray)
        self.result_card.body.addWidget(self.stray_button)
        self._make_rules()
        self.measure_button, self.solve_button = (
            button("", self.measure_asked.emit),
            button("", self.solve_asked.emit),
        )
        self.work_note = label("faint", wrap=True)
        for item in (self.measure_button, self.solve_button, self.work_note):
            self.work_card.body.addWidget(item)
        self.use_groups = Switch()
        # Groups that nobody asked for would decide the route.
        self.use_groups.setChecked(session.form["route"] == "panels")
        self.rows = [FieldRow(session, key, compact=True) for key in GROUPING_KEYS]
        for item in (*self.rows, self.use_groups):
            self.group_card.body.addWidget(item)

    def _make_rules(self) -> None:
        self.distance_switch = Switch()
        self.distance = QLineEdit("5")
        self.distance.setObjectName("filter_distance")
        self.distance.setValidator(QDoubleValidator(0.0, 180.0, 3, self))
        self.distance.setMaximumWidth(70)
        self.distance_unit = label("muted")
        self.instrument = QComboBox()
        self.instrument.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.instrument.setMinimumWidth(120)
        self.need_wcs = Switch()
        self.distance_switch.toggled.connect(lambda _on: self._on_distance())
        self.distance.editingFinished.connect(self._on_distance)
        self.instrument.activated.connect(self._on_instrument)
        self.need_wcs.toggled.connect(lambda on: self.frames.set_rules(need_wcs=on))
        body = self.rules_card.body
        body.addLayout(row(self.distance_switch, self.distance, self.distance_unit, None, spacing=6))
        body.addWidget(self.need_wcs)
        body.addWidget(self.instrument)

    # ------------------------------------------------------------------ rules

    def _on_distance(self) -> None:
        number, known = QLocale.c().toDouble(self.distance.text().replace(",", "."))
        value = number if self.distance_switch.isChecked() and known else None
        if value != self.frames.rules.max_distance_deg:
            self.frames.set_rules(max_distance_deg=value)

    def _on_instrument(self, index: int) -> None:
        name = self.instrument.itemData(index)
        self.frames.set_rules(instruments=None if name is None else frozenset({name}))

    def _on_stray(self) -> None:
        if self._preview is not None and self._preview.stray:
            self.frames.set_kept(list(self._preview.stray), False)

    def show_rules(self) -> None:
        """Show the rules of the model; also after an undo."""
        rules = self.frames.rules
        for switch, on in (
            (self.distance_switch, rules.max_distance_deg is not None),
            (self.need_wcs, rules.need_wcs),
        ):
            switch.blockSignals(True)
            switch.setChecked(on)
            switch.blockSignals(False)
        names = self.frames.instruments
        wanted = next(iter(rules.instruments)) if rules.instruments else None
        self.instrument.blockSignals(True)
        self.instrument.clear()
        self.instrument.addItem(self.session.texts("filter_all_instruments"), None)
        for name in names:
            self.instrument.addItem(name or self.session.texts("filter_unknown_instrument"), name)
        self.instrument.setCurrentIndex(max(0, self.instrument.findData(wanted)) if wanted is not None else 0)
        self.instrument.blockSignals(False)
        self.instrument.setVisible(len(names) > 1 or wanted is not None)
        self._show_work()

    def set_busy(self, busy: bool) -> None:
        """Tell whether frames are being read, measured or solved."""
        self._busy = busy
        self._show_work()

    def _show_work(self) -> None:
        text, frames = self.session.texts, self.frames
        missing = int((frames.usable & frames.kept & ~frames.has_place).sum()) if len(frames) else 0
        self.solve_button.setEnabled(missing > 0 and not self._busy)
        self.solve_button.setText(text("filter_solve", n=missing))
        self.measure_button.setEnabled(len(frames) > 0 and not self._busy)

    # ------------------------------------------------------------------ the result

    def show_preview(self, preview: PlanPreview) -> None:
        """Show what the choice becomes."""
        self._preview = preview
        text = self.session.texts
        self.stray_button.setVisible(bool(preview.stray))
        warnings = []
        if preview.problem is not None:
            warnings.append(text.message(*preview.problem))
        if preview.without_place:
            warnings.append(text("filter_without_place", n=preview.without_place))
        if preview.stray:
            key = "filter_far_left_out" if preview.far_left_out else "filter_stray"
            warnings.append(text(key, n=len(preview.stray)))
        self.result_warning.setText("\n".join(warnings))
        self.result_warning.setVisible(bool(warnings))
        if not preview.groups and not preview.n_stacks:
            self.result_text.setText(text("filter_no_result"))
            return
        sizes = [len(group) for group in preview.groups]
        lines = []
        if sizes:
            lines.append(text("filter_result_tiles", n=len(sizes), low=min(sizes), high=max(sizes)))
        if preview.n_stacks:
            lines.append(text("filter_route_stacks", n=preview.n_stacks))
        height, width = preview.canvas_hw
        if height:
            mpx = text.number(height * width / 1e6, 1)
            lines.append(text("filter_result_canvas", width=width, height=height, mpx=mpx))
            lines.append(
                text(
                    "filter_result_memory",
                    memory=text.size(preview.memory_bytes),
                    disk=text.size(preview.disk_bytes),
                )
            )
            lines.append(text("filter_result_time", time=text.about(preview.seconds, 0.4)))
        self.result_text.setText("\n".join(lines))

    def retranslate(self) -> None:
        """Write all texts in the current language."""
        text = self.session.texts
        for card, key in (
            (self.result_card, "filter_card_result"),
            (self.rules_card, "filter_card_rules"),
            (self.work_card, "filter_card_work"),
            (self.group_card, "filter_card_groups"),
        ):
            card.heading.setText(text(key))
        self.distance_switch.setText(text("filter_distance"))
        self.distance_unit.setText(text("unit.deg"))
        self.need_wcs.setText(text("filter_need_wcs"))
        self.measure_button.setText(text("filter_measure"))
        self.work_note.setText(text("filter_work_note"))
        self.use_groups.setText(text("filter_use_groups"))
        self.stray_button.setText(text("filter_exclude_stray"))
        self.routes.retranslate()
        for made in self.rows:
            made.retranslate()
        self.show_rules()
        if self._preview is not None:
            self.show_preview(self._preview)
        else:
            self.result_text.setText(text("filter_no_result"))
            self.result_warning.hide()
            self.stray_button.hide()

    def retheme(self) -> None:
        """Draw icons in the colours of the theme."""
        self.routes.retheme()
        for made in self.rows:
            made.retheme()
