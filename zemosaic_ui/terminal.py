"""A run on the terminal: live, in plain lines or almost silent, drawn from the same state as the windows."""

from __future__ import annotations

import enum
import os
import time
from collections import Counter
from pathlib import PurePath
from typing import Any

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from zemosaic_core.visible_text import visible_text
from zemosaic_io.manifest import load_json
from zemosaic_pipeline.events import (
    PHASES,
    Event,
    FrameLeftOut,
    GpuRecorded,
    Message,
    PhaseFinished,
    PhaseProgress,
    PhaseStarted,
    PreviewGrown,
    RunStarted,
    TileFinished,
)
from zemosaic_ui.run_controller import RunController
from zemosaic_ui.run_state import PhaseState, RunState, RunStatus
from zemosaic_ui.texts import Texts

__all__ = ["Display", "LiveDisplay", "PlainDisplay", "Verbosity", "make_display"]

# A line of plain progress at most this often: a log file of a night stays readable.
PLAIN_PROGRESS_S = 15.0
BAR_WIDTH = 28
_STYLES = {"ERROR": "bold red", "WARN": "yellow", "SUCCESS": "green", "DEBUG": "dim"}
_MARKS = {"done": "[green]✔[/]", "running": "[cyan]▶[/]", "stopped": "[red]✖[/]", "pending": "[dim]·[/]"}


class Verbosity(enum.Enum):
    """How much a run says."""

    QUIET = "quiet"
    """Warnings, errors and the written files."""
    NORMAL = "normal"
    """A live display on a terminal, a moderate number of lines elsewhere."""
    VERBOSE = "verbose"
    """A line for everything that happens."""


class Display:
    """Prints what a run says; subclasses choose what is worth a line.

    Parameters
    ----------
    console : Console
        Where it goes.
    texts : Texts
        The user's language.
    errors : Console, optional
        Where warnings and failures go; to ``console`` when it is not given.
    """

    def __init__(
        self,
        console: Console,
        texts: Texts,
        verbosity: Verbosity = Verbosity.NORMAL,
        errors: Console | None = None,
    ) -> None:
        self.console = console
        self.errors = errors or console
        self.texts = texts
        self.verbosity = verbosity
        self._no_card = ""

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def show(self, event: Event, state: RunState) -> None:
        """Show one event; ``state`` already contains it."""

    def tick(self, controller: RunController) -> None:
        """Draw what changes with time."""

    def say(self, key: str, level: str = "INFO", **values: Any) -> None:
        """Print a text by key."""
        self.line(self.texts.message(key, values), level)

    def line(self, text: str, level: str = "INFO") -> None:
        """Print one line in the style of its level, warnings and failures where those belong."""
        console = self._for_warnings() if level in ("WARN", "ERROR") else self.console
        console.print(Text(text, _STYLES.get(level, "")), highlight=False, soft_wrap=True)

    def _for_warnings(self) -> Console:
        return self.errors

    def message(self, event: Message) -> None:
        """Print a message of the worker as far as the verbosity asks for it."""
        level = event.level.upper()
        wanted = {
            Verbosity.QUIET: level in ("WARN", "ERROR"),
            Verbosity.NORMAL: not level.startswith("DEBUG"),
            Verbosity.VERBOSE: True,
        }
        if wanted[self.verbosity]:
            self.line(self.texts.message(event.key, event.values), level)

    def gpu_record(self, event: GpuRecorded) -> None:
        """Print a record of the graphics card the first time it says something."""
        record = event.record
        values = record.get("values", {})
        if record.get("kind") == "probe":
            self._no_card = (
                record.get("reason", "") if record.get("key", "").startswith("gpu_fallback") else ""
            )
        elif (
            self._no_card
            and self.verbosity is not Verbosity.VERBOSE
            and (record.get("kind") == "summary" or record.get("reason") == self._no_card)
        ):
            return  # said once, at the start; every operation and the sum would only say it again
        if record.get("key") and (not record.get("repeat") or self.verbosity is Verbosity.VERBOSE):
            self.message(Message(record["key"], record.get("level", "INFO"), values))

    def end(self, state: RunState, elapsed_s: float) -> None:
        """Say how the run ended, what was left out and what was written."""
        self._left_out(state)
        if state.status is RunStatus.SUCCESS:
            self._outputs(state)
            if self.verbosity is not Verbosity.QUIET and "report" in state.outputs:
                self._summary(load_json(state.outputs["report"]))
            if self.verbosity is not Verbosity.QUIET:
                self.say("run_finished", "SUCCESS", clock=self.texts.clock(elapsed_s))
        elif state.status is RunStatus.CANCELLED:
            self.say("run_cancelled", "WARN")
        else:
            detail = self.texts.message(state.end_key, state.end_values) if state.end_key else ""
            self.say("run_failed", "ERROR", detail=detail)

    def _left_out(self, state: RunState) -> None:
        if not state.left_out:
            return
        self.say("run_left_out_total", "WARN", n=len(state.left_out))
        for key, count in Counter(item.key for item in state.left_out).most_common():
            example = next(item for item in state.left_out if item.key == key)
            reason = self.texts.reason(key, example.values, example.path)
            names = _name(example.path) + (", …" if count > 1 else "")
            self.line(f"  {count} × {reason} ({names})", "WARN")

    def _outputs(self, state: RunState) -> None:
        """Write one path per line, past the console: it wraps, cuts, expands tabs and draws emoji."""
        kinds = {kind: self._kind(kind) for kind in state.outputs}
        width = max(map(cell_len, kinds.values()), default=0)
        for kind, path in state.outputs.items():
            label = "" if self.verbosity is Verbosity.QUIET else set_cell_size(kinds[kind], width + 2)
            # Another program gets the path as it is; a terminal would obey what is in it.
            shown = visible_text(path) if self.console.is_terminal else path
            self.console.file.write(f"{label}{shown}\n")
        self.console.file.flush()

    def _summary(self, report: dict[str, Any]) -> None:
        """Print what became of the frames, how large the mosaic is, and what each phase cost."""
        number, mosaic = self.texts.number, report["mosaic"]
        facts = Table(show_header=False, box=box.SIMPLE, padding=(0, 1))
        facts.add_row(
            self.texts("summary.frames"),
            f"{number(report['frames_used'])} / {number(report['frames_found'])}",
        )
        facts.add_row(self.texts("summary.tiles"), number(len(report["tiles"])))
        size = f"{number(mosaic['width'])} × {number(mosaic['height'])} px"
        facts.add_row(self.texts("summary.mosaic"), f"{size}, {number(mosaic['scale_arcsec'], 3)}″/px")
        # A table of its own: beside it the columns of the phases would be as wide as the longest fact.
        self.console.print(facts)
        table = Table(show_header=False, box=box.SIMPLE, padding=(0, 1))
        table.add_column()
        table.add_column(justify="right")
        table.add_column()
        for phase in report["phases"]:
            name = self._phase_name(phase["phase"])
            table.add_row(name, f"{number(phase['seconds'], 1)} s", self.texts.size(phase["peak_bytes"]))
        table.add_section()
        planned = self.texts("summary.planned", size=self.texts.size(report["planned_peak_bytes"]))
        total = f"{self.texts.size(report['peak_bytes'])} ({planned})"
        table.add_row(self.texts("summary.total"), f"{number(report['seconds'], 1)} s", total)
        self.console.print(table)

    def _kind(self, kind: str) -> str:
        name, _, part = kind.partition(":")
        key = f"output.{name}"
        label = self.texts(key) if self.texts.has(key) else name
        return f"{label}, {part}" if part else label

    def _phase_name(self, phase: str) -> str:
        return self.texts(f"phase.{phase}")

    def _finished(self, event: PhaseFinished) -> None:
        self.say(
            "run_phase_finished",
            number=PHASES[event.phase][0],
            name=self._phase_name(event.phase),
            clock=self.texts.clock(event.seconds),
            memory=self.texts.size(event.peak_bytes),
        )


class PlainDisplay(Display):
    """One line after the other, for log files, pipes, ``--quiet`` and ``--verbose``."""

    def __init__(
        self,
        console: Console,
        texts: Texts,
        verbosity: Verbosity = Verbosity.NORMAL,
        errors: Console | None = None,
    ) -> None:
        super().__init__(console, texts, verbosity, errors)
        self._progress_at = 0.0

    def show(self, event: Event, state: RunState) -> None:
        """Print a line for the event where the verbosity asks for one."""
        if isinstance(event, Message):
            self.message(event)
        elif isinstance(event, GpuRecorded):
            self.gpu_record(event)
        elif self.verbosity is not Verbosity.QUIET:
            self._show_step(event)

    def _show_step(self, event: Event) -> None:
        verbose = self.verbosity is Verbosity.VERBOSE
        match event:
            case RunStarted():
                self.say("run_started", input_dir=event.input_dir, output_dir=event.output_dir)
            case PhaseStarted():
                self._progress_at = time.monotonic()
                name = self._phase_name(event.phase)
                self.say("run_phase_started", number=PHASES[event.phase][0], name=name)
            case PhaseProgress():
                self._progress(event, verbose)
            case PhaseFinished():
                self._finished(event)
            case TileFinished() if verbose:
                self.say("run_tile_finished", tile_id=event.tile_id, n_frames=event.n_frames)
            case PreviewGrown() if verbose:
                self.say("run_preview_grown", path=event.path)
            case FrameLeftOut() if verbose:
                reason = self.texts.reason(event.key, event.values, event.path)
                self.say("run_frame_left_out", "WARN", name=_name(event.path), reason=reason)
            case _:
                return

    def _progress(self, event: PhaseProgress, verbose: bool) -> None:
        now = time.monotonic()
        if not verbose and now - self._progress_at < PLAIN_PROGRESS_S:
            return
        self._progress_at = now
        name = self._phase_name(event.phase)
        key = "run_progress_item" if event.item else "run_progress"
        self.say(
            key,
            number=PHASES[event.phase][0],
            name=name,
            done=event.done,
            total=event.total,
            item=_name(event.item),
        )


class LiveDisplay(Display):
    """All phases at a glance, redrawn in place; messages scroll above."""

    def __init__(self, console: Console, texts: Texts, errors: Console | None = None) -> None:
        super().__init__(console, texts, errors=errors)
        self._live = Live(
            console=console,
            refresh_per_second=8,
            transient=True,
            redirect_stderr=self.errors.is_terminal,  # a file gets what was written to it
        )

    def __enter__(self) -> LiveDisplay:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def _for_warnings(self) -> Console:
        # Two streams that write on one terminal would tear the picture.
        return self.console if self._live.is_started and self.errors.is_terminal else self.errors

    def show(self, event: Event, state: RunState) -> None:
        """Print messages and ended phases above the display."""
        if isinstance(event, Message):
            self.message(event)
        elif isinstance(event, GpuRecorded):
            self.gpu_record(event)
        elif isinstance(event, PhaseFinished):
            self._finished(event)

    def tick(self, controller: RunController) -> None:
        """Redraw."""
        eta = controller.eta()
        self._live.update(self.draw(controller.state, controller.elapsed(), eta.seconds if eta else None))

    def draw(self, state: RunState, elapsed_s: float, eta_s: float | None) -> RenderableType:
        """Return the picture of a state."""
        table = Table.grid(padding=(0, 1))
        table.add_column(width=1)
        table.add_column(no_wrap=True)
        table.add_column(width=BAR_WIDTH)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis", style="dim")
        for phase in state.phases:
            table.add_row(*self._phase_row(phase))
        return Group(Text(""), table, self._footer(state, elapsed_s, eta_s))

    def _phase_row(self, phase: PhaseState) -> tuple[RenderableType, ...]:
        name = self._phase_name(phase.name)
        if phase.status == "running":
            total = phase.total or None
            bar = ProgressBar(total, phase.finished if total else 0, width=BAR_WIDTH, pulse=total is None)
            count = f"{phase.done}/{phase.total}" if total else ""
            return Text.from_markup(_MARKS["running"]), name, bar, count, escape(_name(phase.item))
        taken = (
            self.texts.clock(phase.seconds) if phase.status in ("done", "stopped") and phase.seconds else ""
        )
        style = "dim" if phase.status == "pending" else ""
        return Text.from_markup(_MARKS[phase.status]), Text(name, style=style), "", taken, ""

    def _footer(self, state: RunState, elapsed_s: float, eta_s: float | None) -> RenderableType:
        parts = [
            f"{100 * state.fraction:3.0f} %",
            self.texts("run_elapsed", clock=self.texts.clock(elapsed_s)),
        ]
        if eta_s is not None:
            parts.append(self.texts("run_eta", clock=self.texts.clock(eta_s)))
        if state.tiles:
            parts.append(self.texts("run_tiles_total", n=len(state.tiles)))
        if state.left_out:
            parts.append(self.texts("run_left_out_total", n=len(state.left_out)))
        bar = ProgressBar(1.0, state.fraction, width=BAR_WIDTH)
        footer = Table.grid(padding=(0, 2))
        footer.add_row(bar, Text("   ".join(parts), style="bold"))
        return footer


def make_display(
    texts: Texts, verbosity: Verbosity, console: Console | None = None, errors: Console | None = None
) -> Display:
    """Return the display that fits: live on a terminal that can, plain lines everywhere else.

    Without consoles, warnings and failures go to standard error and everything else to standard output.
    """
    if console is None:
        console, errors = Console(), errors or Console(stderr=True)
    if verbosity is Verbosity.NORMAL and console.is_terminal and not console.is_dumb_terminal:
        return LiveDisplay(console, texts, errors)
    return PlainDisplay(console, texts, verbosity, errors)


def _name(path: str) -> str:
    """Return the last part of a path, whichever system wrote it, as it may be shown."""
    return visible_text(PurePath(path.replace(os.altsep or "\\", "/")).name) if path else ""
