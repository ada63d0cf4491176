"""Which way the chosen frames go: the route, finished stacks as input, and what each route would cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QGridLayout, QLabel

from zemosaic_ui.qt.form_fields import FieldRow
from zemosaic_ui.qt.session import Session
from zemosaic_ui.qt.widgets import Card, label, restyle
from zemosaic_ui.route_costs import RouteCost

__all__ = ["RouteCard"]

KEYS = ("route", "use_existing_master_tiles", "tiles_dir")


class RouteCard(Card):
    """Fields of the form, and a table with a line for each route; the one that is taken stands out."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self.rows = [FieldRow(session, key, compact=True) for key in KEYS]
        for made in self.rows:
            self.body.addWidget(made)
        self.grid = QGridLayout()
        self.grid.setHorizontalSpacing(8)
        self.grid.setVerticalSpacing(2)
        self.grid.setColumnStretch(0, 1)
        self.body.addLayout(self.grid)
        self.note = label("faint", wrap=True)
        self.body.addWidget(self.note)
        self._lines: list[tuple[QLabel, ...]] = []
        self._shown: tuple[Sequence[RouteCost], int, str] | None = None

    def show_costs(self, costs: Sequence[RouteCost], n_stacks: int, card: str) -> None:
        """Show what each route would cost, how many finished stacks take part, and the name of the card."""
        self._shown = (costs, n_stacks, card)
        text = self.session.texts
        while len(self._lines) < len(costs):
            self._add_line()
        notes = [text("filter_route_card", card=card) if card else text("filter_route_no_card")]
        if n_stacks:
            notes.insert(0, text("filter_route_stacks", n=n_stacks))
        for line, labels in enumerate(self._lines):
            cost = costs[line] if line < len(costs) else None
            for made, words in zip(labels, self._words(cost), strict=True):
                made.setText(words)
                made.setVisible(bool(words))
            if cost is None:
                continue
            reason = text.message(cost.reason_key, {"route": self._name(cost.route), **cost.reason_values})
            labels[0].setToolTip(reason)
            restyle(labels[0], "" if cost.is_taken else "muted" if cost.is_possible else "warn")
            if cost.is_taken:
                notes.insert(0, reason)
        self.note.setText("\n".join(notes))

    def show_problem(self, key: str, values: Mapping[str, Any]) -> None:
        """Say why nothing can be planned."""
        self._shown = None
        for labels in self._lines:
            for made in labels:
                made.hide()
        self.note.setText(self.session.texts.message(key, values))

    def _add_line(self) -> None:
        labels = (label("muted", wrap=True), label("faint"), label("faint"), label("faint"))
        for column, made in enumerate(labels):
            self.grid.addWidget(made, len(self._lines), column)
            if column:
                made.setAlignment(Qt.AlignmentFlag.AlignRight)
        self._lines.append(labels)

    def _name(self, route: str) -> str:
        text = self.session.texts
        key = f"option.route.choice.{route}"
        return text(key) if text.has(key) else text(f"filter_route_{route}")

    def _words(self, cost: RouteCost | None) -> tuple[str, str, str, str]:
        text = self.session.texts
        if cost is None:
            return "", "", "", ""
        mark = "▸ " if cost.is_taken else ""
        name = mark + self._name(cost.route)
        if not cost.is_possible:
            return name, "", "", "–"
        device = "GPU" if cost.uses_gpu else "CPU"
        return name, text.size(cost.memory_bytes), device, text.clock(cost.seconds)

    def retranslate(self) -> None:
        """Write all texts in the current language."""
        self.heading.setText(self.session.texts("filter_card_route"))
        for made in self.rows:
            made.retranslate()
        if self._shown is not None:
            self.show_costs(*self._shown)

    def retheme(self) -> None:
        """Draw icons in the colours of the theme."""
        for made in self.rows:
            made.retheme()
