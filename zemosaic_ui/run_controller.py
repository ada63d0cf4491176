"""Start, follow and stop a run without any toolkit: a window calls `poll` from its timer and draws `state`.

State diagram: idle -> starting -> running -> success | failed | cancelled, and any active state -> stopping
-> cancelled (or what the worker reports when it ended first). A worker that dies without saying `RunEnded` is a
failure, whatever its exit code.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zemosaic_pipeline.events import Event, RunEnded, from_queue
from zemosaic_pipeline.outside_stop import EXIT_STOPPED, STOP_SIGNALS
from zemosaic_ui.child_process import ChildProcess
from zemosaic_ui.eta import Eta, EtaEstimator
from zemosaic_ui.run_state import PhaseState, RunState, RunStatus

__all__ = ["WORKER_TARGET", "RunController", "RunRequest", "StopReport"]

WORKER_TARGET = "zemosaic_worker:run_hierarchical_mosaic_process"
# A worker honours a stop at the next frame or block; the longest single step is one external plate solve,
# whose process it kills at once. Beyond this time something hangs.
STOP_GRACE_S = 20.0
# A worker that imports Python's own modules has not yet set up what answers a signal.
_STOPPED = (EXIT_STOPPED, *(-number for number in STOP_SIGNALS))


@dataclass(frozen=True)
class RunRequest:
    """What to run: the folders and every setting that differs from its default."""

    input_dir: str
    output_dir: str
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StopReport:
    """What a stopped run left behind.

    Attributes
    ----------
    forced : bool
        The worker did not end by itself in time.
    tiles_kept : int
        Finished master tiles that a resumed run will reuse.
    partial_removed : int
        Half-written files of this run that were removed.
    """

    forced: bool
    tiles_kept: int
    partial_removed: int


class RunController:
    """One run at a time.

    Parameters
    ----------
    target : str
        ``"module:function"`` that is called in the child as ``function(queue, input_dir, output_dir,
        config=dict, cancel_event=event)``.
    history : mapping
        Pace of past runs, see `EtaEstimator`.
    clock : callable
        Monotonic seconds.
    """

    def __init__(
        self,
        target: str = WORKER_TARGET,
        *,
        history: Mapping[str, float] | None = None,
        clock: Callable[[], float] = time.monotonic,
        grace_s: float = STOP_GRACE_S,
    ) -> None:
        self.state = RunState()
        self.request: RunRequest | None = None
        self.stop_report: StopReport | None = None
        self._target = target
        self._clock = clock
        self._grace_s = grace_s
        self._history = dict(history or {})
        self._eta = EtaEstimator(self._history)
        self._child: ChildProcess | None = None
        self._forced = False
        self._wall_start = 0.0

    # ------------------------------------------------------------------ what views ask

    @property
    def is_active(self) -> bool:
        """True from `start` until the run has ended and its process is gone."""
        return self.state.status.is_active or self._child is not None

    @property
    def pid(self) -> int | None:
        """Process id of the worker, or None."""
        return self._child.pid if self._child else None

    def elapsed(self) -> float:
        """Seconds since the start of the run."""
        return self.state.elapsed(self._clock())

    def phase_seconds(self, phase: PhaseState) -> float:
        """Seconds a phase took, or has taken so far."""
        return self._clock() - phase.started_at if phase.status == "running" else phase.seconds

    def eta(self) -> Eta | None:
        """Expected rest of the run, or None while nothing honest can be said."""
        return self._eta.estimate(self.state, self._clock())

    def learned_history(self) -> dict[str, float]:
        """Pace of past runs including this one."""
        return self._eta.learned(self.state)

    # ------------------------------------------------------------------ actions

    def start(self, request: RunRequest) -> None:
        """Start a run in its own process.

        Raises
        ------
        RuntimeError
            A run is in progress.
        """
        if self.is_active:
            raise RuntimeError("a run is already in progress")
        self.request, self.stop_report, self._forced = request, None, False
        self._eta = EtaEstimator(self._history)
        self.state = RunState()
        self._wall_start = time.time()
        self.state.begin(request.input_dir, request.output_dir, self._clock())
        self._child = ChildProcess(
            self._target, request.input_dir, request.output_dir, config=dict(request.config)
        )

    def stop(self, *, within_s: float | None = None) -> None:
        """Ask for a clean stop; the worker's whole family is ended by force if it does not obey in time.

        ``within_s`` is that time; without it, the patience of this controller.
        """
        if self._child is None:
            return
        self.state.request_stop()
        self._child.request_cancel()
        if within_s is None:
            self._child.end_after(self._grace_s, self._note_forced)
        else:
            self._child.end_after(within_s, self._note_forced, patience_s=0.0)

    def stop_now(self) -> None:
        """End the worker and its children at once (the window is closing)."""
        if self._child is None:
            return
        self.state.request_stop()
        self._child.request_cancel()
        self._child.end_after(0.0, self._note_forced)

    def note_stopped(self) -> None:
        """Take the end of the run for that of a stop, because who asked for it knows better than the worker."""
        self.state.apply(RunEnded("cancelled", key="ui_run_stopped"), self._clock())

    def wait(self, timeout_s: float) -> bool:
        """Wait until the worker is gone; return whether that happened in time."""
        return self._child is None or self._child.wait(timeout_s)

    def poll(self, *, budget_s: float = 0.008) -> list[Event]:
        """Take the events that arrived, apply them to `state` and return them; never blocks."""
        child = self._child
        if child is None:
            return []
        events: list[Event] = []
        now, until = self._clock(), time.monotonic() + budget_s
        while child.has_messages and time.monotonic() < until:
            for item in child.poll(limit=40):
                events.append(from_queue(item))
                self.state.apply(events[-1], now)
        if child.is_finished and not child.has_messages:
            events += self._close(child)
        return events

    # ------------------------------------------------------------------ end of the run

    def _note_forced(self) -> None:
        self._forced = True

    def _close(self, child: ChildProcess) -> list[Event]:
        """The process is gone: whatever it did not say itself is said here."""
        was_stopping = self.state.status is RunStatus.STOPPING
        ended: list[Event] = []
        if self.state.status.is_active:
            ended.append(self._missing_end(child, was_stopping))
            self.state.apply(ended[0], self._clock())
        elif self.state.status is RunStatus.SUCCESS and child.exit_code not in (0, None, *_STOPPED):
            # The announcement was made, yet the process broke afterwards: its last files may not be whole. Who was only
            # told to stop when all was done had nothing to break.
            ended.append(_died(child))
            self.state.apply(ended[0], self._clock())
        if self.state.status in (RunStatus.CANCELLED, RunStatus.FAILED):
            removed = self._remove_partial_files() if self._forced or was_stopping or child.exit_code else 0
            self.stop_report = StopReport(self._forced, len(self.state.tiles), removed)
        if self.state.status is RunStatus.SUCCESS:
            self._history = self.learned_history()
        self._child = None
        child.close()
        return ended

    def _missing_end(self, child: ChildProcess, was_stopping: bool) -> RunEnded:
        if was_stopping or child.exit_code in _STOPPED:
            return RunEnded("cancelled", key="ui_run_stopped")
        if child.met_process_limit:
            return RunEnded("failed", key="run_error_processes")
        if child.start_error:
            return RunEnded("failed", key="ui_worker_not_started", values={"detail": child.start_error})
        return _died(child)

    def _remove_partial_files(self) -> int:
        """Remove the temporary files that an interrupted atomic save left in the output folder."""
        folder = Path(self.request.output_dir) if self.request else None
        if folder is None or not os.path.isdir(folder):
            return 0
        removed = 0
        for path in folder.rglob("*.part"):
            if path.is_file() and path.stat().st_mtime >= self._wall_start - 1.0:
                path.unlink(missing_ok=True)
                removed += 1
        return removed


def _died(child: ChildProcess) -> RunEnded:
    code = child.exit_code
    text = child.error_text()
    values = {"exit_code": code, "detail": text[-4000:]}
    if code is not None and code < 0 and (seconds := _computing_allowed_s(-code)):
        return RunEnded("failed", key="ui_worker_cpu_limit", values={**values, "seconds": seconds})
    if code is not None and code < 0:
        # Want of memory ends a process by one of these; others are sent by somebody.
        of_system = {getattr(signal, name, 0) for name in ("SIGKILL", "SIGSEGV", "SIGABRT", "SIGBUS")}
        key = "ui_worker_killed" if -code in of_system else "ui_worker_signalled"
        return RunEnded("failed", key=key, values={**values, "signal": -code})
    return RunEnded("failed", key="ui_worker_died", values=values)


def _computing_allowed_s(number: int) -> int:
    """Seconds of computing that the system allows a process, when it may have ended one for that; else 0."""
    if os.name != "posix" or number not in (signal.SIGKILL, signal.SIGXCPU):
        return 0
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_CPU)
    return 0 if soft == resource.RLIM_INFINITY else soft
