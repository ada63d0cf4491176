"""A run as it happens: phases, counters, the growing picture, where things are computed, and the log."""

from __future__ import annotations

from PySide6.QtCore import QSize, Qt, Signal
from PySide6.QtWidgets import (
    QFrame,
    QGridLayout,
    QLabel,
    QProgressBar,
    QSplitter,
    QVBoxLayout,
    QWidget,
)

from zemosaic_ui.compute_state import ComputeState, OperationState
from zemosaic_ui.end_words import end_words
from zemosaic_ui.footprints import report_of
from zemosaic_ui.qt.live_preview import LivePreview
from zemosaic_ui.qt.log_view import LogView
from zemosaic_ui.qt.session import Session
from zemosaic_ui.qt.widgets import Card, ElidedLabel, button, label, restyle, row, scrolled
from zemosaic_ui.run_controller import RunController
from zemosaic_ui.run_state import PhaseState, RunState, RunStatus

__all__ = ["RunPage"]


class _PhaseRow(QWidget):
    """One phase: mark, name, progress, count and time."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self.mark, self.name, self.count = QLabel(), label(wrap=True), label("faint")
        self.mark.setFixedWidth(20)
        self.bar = QProgressBar()
        self.bar.setTextVisible(False)
        self.bar.setRange(0, 1000)
        grid = QGridLayout(self)
        grid.setContentsMargins(0, 2, 0, 2)
        grid.setHorizontalSpacing(8)
        grid.setVerticalSpacing(3)
        grid.addWidget(self.mark, 0, 0)
        grid.addWidget(self.name, 0, 1)
        grid.addWidget(self.count, 0, 2, Qt.AlignmentFlag.AlignRight)
        grid.addWidget(self.bar, 1, 1, 1, 2)
        grid.setColumnStretch(1, 1)
        self._shown: tuple[object, ...] = ()

    def show_phase(self, phase: PhaseState, now_s: float) -> None:
        """Draw the state of a phase; nothing is touched when nothing changed."""
        text = self.session.texts
        theme = self.session.themes.theme.name
        shown = (phase.status, phase.done, phase.total, round(now_s), text.language, theme)
        if shown == self._shown:
            return
        self._shown = shown
        icon, role = {
            "done": ("good", "good"),
            "running": ("busy", "accent"),
            "stopped": ("bad", "bad"),
        }.get(phase.status, ("pending", "faint"))
        self.mark.setPixmap(self.session.icon(icon, role).pixmap(QSize(16, 16)))
        self.name.setText(text(f"phase.{phase.name}"))
        restyle(self.name, {"pending": "muted", "running": "strong"}.get(phase.status, ""))
        count = f"{text.number(phase.done)} / {text.number(phase.total)}" if phase.total else ""
        time = (
            text.clock(now_s if phase.status == "running" else phase.seconds)
            if now_s or phase.seconds
            else ""
        )
        self.count.setText(time if phase.status in ("done", "stopped") else count)
        self.bar.setVisible(phase.status == "running")
        # Without a known total the bar only says that work goes on.
        self.bar.setRange(0, 1000 if phase.total else 0)
        self.bar.setValue(round(1000 * phase.fraction))


class _Counter(QWidget):
    """A number with a caption."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.caption = label("big"), label("faint")
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        layout.addWidget(self.value)
        layout.addWidget(self.caption)


class RunPage(QWidget):
    """Draws the state of a `RunController`; call `refresh` from the window's timer."""

    open_result = Signal()
    open_report = Signal()
    open_folder = Signal()

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self._state: RunState | None = None
        self._compute = ComputeState()
        self._compute_seen = -1
        # The counters keep their place: a long name of a phase stands whole in the list of phases.
        self.title = ElidedLabel(mode=Qt.TextElideMode.ElideRight)
        self.title.setObjectName("elided_title")
        self.item = ElidedLabel(muted=True)
        self.bar = QProgressBar()
        self.bar.setTextVisible(False)
        self.bar.setRange(0, 1000)
        self.counters = {name: _Counter() for name in ("elapsed", "eta", "frames", "left_out", "tiles")}
        self.banner = self._make_banner()
        self.phases_card = Card()
        self.phase_rows: list[_PhaseRow] = []
        self.preview = LivePreview(session)
        self.compute_card = Card()
        self.compute_text = label(wrap=True)
        self.compute_text.setAlignment(Qt.AlignmentFlag.AlignTop)
        self.compute_text.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.compute_card.body.addWidget(self.compute_text, 1)
        self.log = LogView(session)
        self._lay_out()
        self.retranslate()

    def _make_banner(self) -> QFrame:
        frame = QFrame()
        frame.setObjectName("banner")
        self.banner_text = label(wrap=True)
        self.banner_text.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.result_button = button("primary", self.open_result.emit)
        self.report_button = button("", self.open_report.emit)
        self.folder_button = button("", self.open_folder.emit)
        layout = row(self.banner_text, self.folder_button, self.report_button, self.result_button)
        layout.setContentsMargins(14, 8, 10, 8)
        layout.setStretch(0, 1)
        frame.setLayout(layout)
        frame.hide()
        return frame

    def _lay_out(self) -> None:
        self.middle = QSplitter(Qt.Orientation.Horizontal)
        left, right = scrolled(self.phases_card), scrolled(self.compute_card)
        self.phases_card.setObjectName("card")
        self.compute_card.setObjectName("card")
        for pane, width in ((left, 330), (self.preview, 500), (right, 280)):
            self.middle.addWidget(pane)
            pane.setMinimumWidth(min(width, 240))
        self.middle.setSizes([330, 500, 280])
        self.middle.setStretchFactor(1, 1)
        self.middle.setChildrenCollapsible(False)
        self.vertical = QSplitter(Qt.Orientation.Vertical)
        self.vertical.addWidget(self.middle)
        self.vertical.addWidget(self.log)
        self.vertical.setSizes([340, 150])
        self.vertical.setStretchFactor(0, 1)
        self.vertical.setChildrenCollapsible(False)
        head = QVBoxLayout()
        head.setSpacing(2)
        head.addWidget(self.title)
        head.addWidget(self.item)
        top = row(head, *self.counters.values(), spacing=26)
        top.setStretch(0, 1)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(24, 16, 24, 14)
        layout.setSpacing(10)
        layout.addLayout(top)
        layout.addWidget(self.bar)
        layout.addWidget(self.banner)
        layout.addWidget(self.vertical, 1)

    # ------------------------------------------------------------------ drawing

    def refresh(self, controller: RunController) -> None:
        """Draw the state of the run."""
        state = controller.state
        if state is not self._state:
            self._state = state
            self._compute, self._compute_seen = ComputeState(), -1
        self._show_head(controller, state)
        self._show_phases(controller, state)
        self.preview.refresh(state)
        self.log.refresh(state)
        while self._compute.n_records < len(state.gpu_records):
            self._compute.add(state.gpu_records[self._compute.n_records])
        if self._compute_seen != self._compute.n_records:
            self._show_compute()

    def _show_head(self, controller: RunController, state: RunState) -> None:
        text = self.session.texts
        phase = state.current
        if state.status is RunStatus.RUNNING and phase is not None:
            self.title.set_text(text(f"phase.{phase.name}"))
            self.item.set_text(phase.item)
        else:
            self.title.set_text(text(f"ui_status_{state.status.value}"))
            self.item.set_text("" if state.status is RunStatus.STOPPING else state.output_dir)
        self.bar.setValue(round(1000 * state.fraction))
        eta = controller.eta()
        values = {
            "elapsed": text.clock(controller.elapsed()) if state.started_at else "–",
            "eta": self._eta_words(state, eta),
            "frames": text.number(state.frames_total) if state.frames_total else "–",
            "left_out": text.number(len(state.left_out)) if state.started_at else "–",
            "tiles": text.number(len(state.tiles)) if state.started_at else "–",
        }
        for name, value in values.items():
            self.counters[name].value.setText(value)
        self._show_banner(controller, state)

    def _eta_words(self, state: RunState, eta: object) -> str:
        text = self.session.texts
        if not state.status.is_active or state.status is RunStatus.STOPPING:
            return "–"
        if eta is None:
            return text("ui_eta_unknown")
        return text.about(eta.seconds, eta.spread)

    def _show_banner(self, controller: RunController, state: RunState) -> None:
        ended = state.status in (RunStatus.SUCCESS, RunStatus.FAILED, RunStatus.CANCELLED)
        self.banner.setVisible(ended)
        if not ended:
            return
        words = end_words(controller, self.session.texts)
        restyle(self.banner, "banner_bad" if state.status is RunStatus.FAILED else "banner")
        if self.banner_text.text() != words:
            self.banner_text.setText(words)
        outputs = state.outputs
        self.result_button.setVisible(bool(outputs.get("science") or outputs.get("mosaic")))
        self.report_button.setVisible(bool(report_of(outputs)))
        self.folder_button.setVisible(bool(state.output_dir))

    def _show_phases(self, controller: RunController, state: RunState) -> None:
        while len(self.phase_rows) < len(state.phases):
            made = _PhaseRow(self.session)
            self.phase_rows.append(made)
            self.phases_card.body.addWidget(made)
            if len(self.phase_rows) == len(state.phases):
                self.phases_card.body.addStretch(1)
        for made, phase in zip(self.phase_rows, state.phases, strict=False):
            seconds = controller.phase_seconds(phase)
            made.show_phase(phase, seconds)
        for number, made in enumerate(self.phase_rows):
            made.setVisible(number < len(state.phases))

    def _show_compute(self) -> None:
        self._compute_seen = self._compute.n_records
        text, state, theme = self.session.texts, self._compute, self.session.themes.theme
        parts = []
        if state.device_name:
            parts.append(f"<p><b>{state.device_name}</b></p>")
        elif state.n_records:
            why = state.no_card
            said = "" if why is None else f"<br>{self._muted(text.message(why.key, why.values))}"
            parts.append(f"<p><b>{text('ui_compute_processor')}</b>{said}</p>")
        else:
            parts.append(f'<p style="color:{theme.muted}">{text("ui_compute_waiting")}</p>')
        if state.total_bytes:
            memory = text(
                "ui_compute_memory",
                usable=text.size(state.usable_bytes),
                free=text.size(state.free_bytes),
                total=text.size(state.total_bytes),
            )
            parts.append(f'<p style="color:{theme.muted}">{memory}</p>')
        for operation in state.operations.values():
            parts.append(self._operation_words(operation))
        if state.fallbacks:
            parts.append(f"<p><b>{text('ui_compute_fallbacks')}</b></p>")
            # The same reason for several operations is one line.
            said = {text.message(step.key, step.values): step.level for step in state.fallbacks}
            for words, level in list(said.items())[-12:]:
                colour = theme.warn if level in ("WARN", "ERROR") else theme.muted
                parts.append(f'<p style="color:{colour}">{words}</p>')
        self.compute_text.setText("".join(parts))

    def _muted(self, words: str) -> str:
        return f'<span style="color:{self.session.themes.theme.muted}">{words}</span>'

    def _operation_words(self, operation: OperationState) -> str:
        text, theme = self.session.texts, self.session.themes.theme
        name = (
            text.message(f"gpu_op_{operation.op}", {}) if text.has(f"gpu_op_{operation.op}") else operation.op
        )
        device = text(f"ui_device_{operation.device}")
        colour = theme.good if operation.device == "gpu" else theme.text
        # Names stand in sentences elsewhere, with a small letter and an article.
        lines = [f'<b>{name[:1].upper()}{name[1:]}</b> – <span style="color:{colour}">{device}</span>']
        no_card = self._compute.no_card
        is_said = no_card is not None and no_card.reason == operation.reason  # once is enough, at the top
        if operation.device == "cpu" and not is_said and text.has(f"gpu_reason_{operation.reason}"):
            lines.append(text.message(f"gpu_reason_{operation.reason}", operation.values))
        if operation.n_chunks:
            lines.append(text("ui_compute_chunks", n=operation.n_chunks, rows=operation.chunk_rows))
        if operation.planned_bytes and operation.device != "cpu":
            used = text.size(operation.peak_bytes) if operation.peak_bytes else "–"
            lines.append(text("ui_compute_plan", planned=text.size(operation.planned_bytes), used=used))
        detail = "<br>".join(map(self._muted, lines[1:]))
        return f"<p>{lines[0]}{'<br>' + detail if detail else ''}</p>"

    def retranslate(self) -> None:
        """Write all texts in the current language."""
        text = self.session.texts
        self.phases_card.heading.setText(text("ui_phases"))
        self.compute_card.heading.setText(text("ui_compute_where"))
        for name, counter in self.counters.items():
            counter.caption.setText(text(f"ui_counter_{name}"))
        self.result_button.setText(text("ui_open_mosaic"))
        self.report_button.setText(text("ui_open_report"))
        self.folder_button.setText(text("ui_open_folder"))
        self.log.retranslate()
        self._show_compute()
        self.preview.update()

    def retheme(self) -> None:
        """Draw with the colours of the theme."""
        self.log.retheme()
        self._show_compute()
        self.preview.update()
