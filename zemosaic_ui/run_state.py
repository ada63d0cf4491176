"""What a window knows about a run, built only from its events; no toolkit, no clock of its own.

`RunState.apply` is the single place where an event changes what is shown. Texts stay keys with values until
a view draws them, so that the language can change in the middle of a run.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from zemosaic_pipeline.events import (
    PHASES,
    EtaUpdated,
    Event,
    FrameLeftOut,
    GpuRecorded,
    Message,
    PhaseFinished,
    PhaseProgress,
    PhaseStarted,
    PreviewGrown,
    RunEnded,
    RunStarted,
    TileFinished,
)

__all__ = ["LOG_LEVELS", "LogLine", "PhaseState", "RunState", "RunStatus", "TileState"]

LOG_LEVELS = ("DEBUG", "INFO", "SUCCESS", "WARN", "ERROR")

# A night of 10,000 frames gives a few lines per frame; older lines are in the run's log file.
MAX_LOG_LINES = 50_000


class RunStatus(enum.StrEnum):
    """Where a run is."""

    IDLE = "idle"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    SUCCESS = "success"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_active(self) -> bool:
        """True while a worker may be alive."""
        return self in (RunStatus.STARTING, RunStatus.RUNNING, RunStatus.STOPPING)


@dataclass(frozen=True)
class LogLine:
    """One line of the log: a text key with its values, not yet in any language.

    Attributes
    ----------
    seconds : float
        Time since the run began, s.
    """

    seconds: float
    level: str
    key: str
    values: dict[str, Any] = field(default_factory=dict)


@dataclass
class PhaseState:
    """Progress of one phase; ``share`` is its expected part of the run in percent."""

    name: str
    number: str
    share: float
    status: str = "pending"  # pending | running | done | stopped
    done: int = 0
    total: int = 0
    within: float = 0.0
    item: str = ""
    started_at: float = 0.0
    seconds: float = 0.0
    peak_bytes: int = 0

    @property
    def fraction(self) -> float:
        """Finished part of the phase, 0..1."""
        if self.status == "done":
            return 1.0
        return min(1.0, self.finished / self.total) if self.total > 0 else 0.0

    @property
    def finished(self) -> float:
        """Finished items, with the finished share of the one being worked on."""
        return self.done + self.within


@dataclass(frozen=True)
class TileState:
    """One finished master tile."""

    tile_id: int
    path: str
    n_frames: int
    preview_path: str


class RunState:
    """Snapshot of a run that grows with its events.

    Attributes
    ----------
    status : RunStatus
    phases : list of PhaseState
        In the order of execution.
    log : deque of LogLine
        The newest `MAX_LOG_LINES` lines; ``log_total`` counts all lines ever added, so that a view can find
        the ones it has not drawn.
    left_out : list of FrameLeftOut
    tiles : list of TileState
    gpu_records : list of dict
        Records of the GPU ledger in order of arrival.
    warnings : list of Message
        Messages of level WARN or ERROR, also those of the ledger, each once.
    fraction : float
        Finished part of the whole run, 0..1; never goes back.
    """

    def __init__(self, phases: tuple[str, ...] = tuple(PHASES)) -> None:
        self.status = RunStatus.IDLE
        self.run_id = ""
        self.input_dir = ""
        self.output_dir = ""
        self.phases: list[PhaseState] = []
        self.log: deque[LogLine] = deque(maxlen=MAX_LOG_LINES)
        self.log_total = 0
        self.left_out: list[FrameLeftOut] = []
        self.tiles: list[TileState] = []
        self.gpu_records: list[dict[str, Any]] = []
        self.warnings: list[Message] = []
        self.preview_path = ""
        self.preview_version = 0
        self.outputs: dict[str, str] = {}
        self.end_key = ""
        self.end_values: dict[str, Any] = {}
        self.worker_eta_s: float | None = None
        self.worker_eta_at = 0.0
        self.started_at = 0.0
        self.ended_at = 0.0
        self.fraction = 0.0
        self._set_phases(phases)

    # ------------------------------------------------------------------ what views ask

    @property
    def current(self) -> PhaseState | None:
        """The phase in progress, or None."""
        return next((phase for phase in self.phases if phase.status == "running"), None)

    @property
    def frames_total(self) -> int:
        """Number of frames the survey announced (0 = not known yet)."""
        phase = self.phase("phase1_prepare")
        survey = self.phase("phase0_survey")
        return max(phase.total if phase else 0, survey.total if survey else 0)

    def phase(self, name: str) -> PhaseState | None:
        """Return the phase called ``name``, or None when this run has no such phase."""
        return next((phase for phase in self.phases if phase.name == name), None)

    def elapsed(self, now: float) -> float:
        """Seconds since the start; frozen when the run ended."""
        if not self.started_at:
            return 0.0
        return max(0.0, (now if self.status.is_active else self.ended_at) - self.started_at)

    # ------------------------------------------------------------------ what changes it

    def begin(self, input_dir: str, output_dir: str, now: float) -> None:
        """Note that a worker is being started."""
        self.status = RunStatus.STARTING
        self.input_dir, self.output_dir, self.started_at = input_dir, output_dir, now

    def request_stop(self) -> None:
        """Note that the user asked to stop."""
        if self.status.is_active:
            self.status = RunStatus.STOPPING

    def add_log(self, key: str, level: str, now: float, **values: Any) -> None:
        """Append a line of the window itself to the log."""
        self.log.append(LogLine(max(0.0, now - self.started_at), level, key, values))
        self.log_total += 1

    def apply(self, event: Event, now: float) -> None:
        """Change the state by one event that arrived at ``now`` (s, same clock as `begin`)."""
        match event:
            case RunStarted():
                self.run_id = event.run_id
                self.input_dir, self.output_dir = event.input_dir, event.output_dir
                self._set_phases(event.phases)
                if self.status is not RunStatus.STOPPING:
                    self.status = RunStatus.RUNNING
            case PhaseStarted():
                self._start_phase(event, now)
            case PhaseProgress():
                self._progress(event, now)
            case PhaseFinished():
                self._finish_phase(event)
            case FrameLeftOut():
                self.left_out.append(event)
                self.add_log(event.key, "WARN", now, **event.values, path=event.path)
            case TileFinished():
                self.tiles.append(TileState(event.tile_id, event.path, event.n_frames, event.preview_path))
                self.preview_version += 1
            case PreviewGrown():
                self.preview_path = event.path
                self.preview_version += 1
            case GpuRecorded():
                self.gpu_records.append(event.record)
                self._note_gpu_warning(event.record)
            case EtaUpdated():
                self.worker_eta_s, self.worker_eta_at = event.seconds, now
            case Message():
                self.add_log(event.key, _level(event.level), now, **event.values)
                if _level(event.level) in ("WARN", "ERROR"):
                    self.warnings.append(event)
            case RunEnded():
                self._end(event, now)
        self._update_fraction()

    def _note_gpu_warning(self, record: dict[str, Any]) -> None:
        level = _level(str(record.get("level", "INFO")))
        if level in ("WARN", "ERROR") and record.get("key") and not record.get("repeat"):
            self.warnings.append(Message(record["key"], level, record.get("values", {})))

    def _set_phases(self, names: tuple[str, ...]) -> None:
        known = [name for name in names if name in PHASES]
        total = sum(PHASES[name][1] for name in known) or 1.0
        self.phases = [PhaseState(name, PHASES[name][0], PHASES[name][1] * 100.0 / total) for name in known]

    def _start_phase(self, event: PhaseStarted, now: float) -> None:
        for other in self.phases:
            if other.status == "running":
                other.status, other.seconds = "done", now - other.started_at
        phase = self.phase(event.phase)
        if phase is None:
            return
        # Phases before this one that never reported were not needed (resume, or a route without them).
        for other in self.phases[: self.phases.index(phase)]:
            if other.status == "pending":
                other.status = "done"
        phase.status, phase.total, phase.started_at = "running", event.total, now
        if self.status is RunStatus.STARTING:
            self.status = RunStatus.RUNNING

    def _progress(self, event: PhaseProgress, now: float) -> None:
        phase = self.phase(event.phase)
        if phase is None:
            return
        if phase.status == "pending":
            self._start_phase(PhaseStarted(event.phase, event.total), now)
        if event.done + event.within >= phase.finished:
            phase.done, phase.within = event.done, event.within
        phase.total = max(event.total, event.done)
        phase.item = event.item or phase.item

    def _finish_phase(self, event: PhaseFinished) -> None:
        phase = self.phase(event.phase)
        if phase is not None:
            phase.status, phase.seconds, phase.peak_bytes = "done", event.seconds, event.peak_bytes

    def _end(self, event: RunEnded, now: float) -> None:
        self.status = RunStatus(event.outcome)
        self.outputs = dict(event.outputs)
        self.end_key, self.end_values, self.ended_at = event.key, dict(event.values), now
        for phase in self.phases:
            if phase.status == "running":
                phase.seconds = now - phase.started_at
                phase.status = "done" if self.status is RunStatus.SUCCESS else "stopped"
        if self.status is RunStatus.SUCCESS:
            self.add_log("ui_run_finished", "SUCCESS", now)
        elif event.key:
            level = "ERROR" if self.status is RunStatus.FAILED else "WARN"
            self.add_log(event.key, level, now, **event.values)

    def _update_fraction(self) -> None:
        if self.status is RunStatus.SUCCESS:
            self.fraction = 1.0
            return
        done = sum(phase.share * phase.fraction for phase in self.phases) / 100.0
        self.fraction = max(self.fraction, min(done, 0.999))


def _level(level: str) -> str:
    upper = level.upper()
    if upper in LOG_LEVELS:
        return upper
    return "WARN" if upper == "WARNING" else "INFO"
