"""A run in Tk: phases with their progress, counters, log."""

from __future__ import annotations

import tkinter as tk
from tkinter import ttk

from zemosaic_ui.end_words import end_words
from zemosaic_ui.run_controller import RunController
from zemosaic_ui.run_state import RunState
from zemosaic_ui.texts import Texts

__all__ = ["RunView"]

# Lines put into the log per tick; Tk's text widget is slow.
LINES_PER_TICK = 150
COUNTERS = ("elapsed", "eta", "frames", "left_out", "tiles")


class RunView(ttk.Frame):
    """Draws the state of a `RunController`; call `refresh` from the window's timer."""

    def __init__(self, parent: tk.Misc, texts: Texts) -> None:
        super().__init__(parent, padding=12)
        self.texts = texts
        self._state: RunState | None = None
        self._seen = 0
        self.bar = ttk.Progressbar(self, maximum=1000)
        self.bar.pack(fill="x")
        counters = ttk.Frame(self)
        counters.pack(fill="x", pady=8)
        self.captions: dict[str, ttk.Label] = {}
        self.values: dict[str, ttk.Label] = {}
        for name in COUNTERS:
            box = ttk.Frame(counters)
            box.pack(side="left", padx=(0, 26))
            self.values[name] = ttk.Label(box, text="–", font=("TkDefaultFont", 13, "bold"))
            self.captions[name] = ttk.Label(box)
            self.values[name].pack(anchor="w")
            self.captions[name].pack(anchor="w")
        self.phases = ttk.Treeview(self, columns=("count", "time"), height=8, selectmode="none")
        self.phases.column("#0", width=320)
        self.phases.column("count", width=130, anchor="e")
        self.phases.column("time", width=90, anchor="e")
        self.phases.pack(fill="x")
        self.end_note = ttk.Label(self, wraplength=860)
        self.end_note.pack(fill="x", pady=4)
        self.log = tk.Text(self, height=10, wrap="none", state="disabled", relief="flat")
        bar = ttk.Scrollbar(self, orient="vertical", command=self.log.yview)
        self.log.configure(yscrollcommand=bar.set)
        bar.pack(side="right", fill="y")
        self.log.pack(fill="both", expand=True)
        self.log.tag_configure("ERROR", foreground="#b23a2a")
        self.log.tag_configure("WARN", foreground="#94690a")
        self.log.tag_configure("SUCCESS", foreground="#37783f")

    def refresh(self, controller: RunController) -> None:
        """Draw the state of the run."""
        state, text = controller.state, self.texts
        if state is not self._state:
            self._state, self._seen = state, 0
            self._clear_log()
        self.bar["value"] = 1000 * state.fraction
        eta = controller.eta()
        shown = {
            "elapsed": text.clock(controller.elapsed()) if state.started_at else "–",
            "eta": text.about(eta.seconds, eta.spread) if eta else "–",
            "frames": text.number(state.frames_total) if state.frames_total else "–",
            "left_out": text.number(len(state.left_out)),
            "tiles": text.number(len(state.tiles)),
        }
        for name, value in shown.items():
            self.values[name].configure(text=value)
        self._show_phases(controller)
        self._show_end(controller)
        self._feed_log(state)

    def _show_phases(self, controller: RunController) -> None:
        text = self.texts
        marks = {"done": "✔", "running": "▸", "stopped": "✖", "pending": "·"}
        for phase in controller.state.phases:
            seconds = controller.phase_seconds(phase)
            count = f"{text.number(phase.done)} / {text.number(phase.total)}" if phase.total else ""
            row = {
                "text": f"{marks[phase.status]}  {text(f'phase.{phase.name}')}",
                "values": (count, text.clock(seconds) if seconds else ""),
            }
            if self.phases.exists(phase.name):
                self.phases.item(phase.name, **row)
            else:
                self.phases.insert("", "end", iid=phase.name, **row)

    def _show_end(self, controller: RunController) -> None:
        self.end_note.configure(text=end_words(controller, self.texts))

    def _feed_log(self, state: RunState) -> None:
        new = min(state.log_total - self._seen, len(state.log))
        if new <= 0:
            return
        start = len(state.log) - new
        self.log.configure(state="normal")
        for i in range(start, min(start + LINES_PER_TICK, len(state.log))):
            line = state.log[i]
            words = self.texts.log_words(line.key, line.level, line.values)
            self.log.insert("end", f"{self.texts.clock(line.seconds):>8}  {words}\n", line.level)
            self._seen += 1
        self.log.configure(state="disabled")
        self.log.see("end")

    def _clear_log(self) -> None:
        self.log.configure(state="normal")
        self.log.delete("1.0", "end")
        self.log.configure(state="disabled")

    def retranslate(self) -> None:
        """Write all texts in the current language; the log is written anew."""
        text = self.texts
        for name, caption in self.captions.items():
            caption.configure(text=text(f"ui_counter_{name}"))
        self.phases.heading("#0", text=text("ui_phases"), anchor="w")
        self._seen = 0
        self._clear_log()
