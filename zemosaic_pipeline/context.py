"""What every phase may use besides its records and the plan: paths, reporter, cancel, workers, memory watch."""

from __future__ import annotations

import logging
import multiprocessing
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zemosaic_core.errors import Cancelled, SkipItem, ZeMosaicError
from zemosaic_gpu_policy import GpuPolicy
from zemosaic_io.manifest import STATE_FOLDER, make_folder
from zemosaic_io.output_lock import OutputLock
from zemosaic_io.result_set import ResultSet
from zemosaic_pipeline.elsewhere import Elsewhere
from zemosaic_pipeline.events import (
    PHASES,
    EtaUpdated,
    FrameLeftOut,
    Message,
    PhaseFinished,
    PhaseProgress,
    PhaseStarted,
    PreviewGrown,
    Reporter,
    TileFinished,
)
from zemosaic_pipeline.frame_boundary import TRACEBACK
from zemosaic_pipeline.heap import give_memory_back, keep_freed_memory, return_freed_memory
from zemosaic_pipeline.patient_reads import PatientReads
from zemosaic_pipeline.plan import RunPlan
from zemosaic_pipeline.records import LeftOut, MasterTile
from zemosaic_pipeline.resource_watch import ResourceWatch
from zemosaic_pipeline.worker_pool import WorkerPool

if TYPE_CHECKING:
    from zemosaic_pipeline.cluster import Cluster

__all__ = ["CancelToken", "PhaseRecord", "RunContext"]

log = logging.getLogger(__name__)


ETA_TRUST_S = 2.0


# Phases that take and free large arrays all the time, and not more of them with more frames.
_REUSING = ("phase3_master_tiles", "phase5_assemble", "phase6_export")


class CancelToken:
    """A request to stop, honoured at item boundaries.

    Parameters
    ----------
    event
        Anything with ``is_set()`` and ``set()``: a threading or a multiprocessing Event.
    """

    def __init__(self, event: Any = None) -> None:
        self._event = threading.Event() if event is None else event
        self.reason: ZeMosaicError | None = None

    def is_set(self) -> bool:
        """Whether a stop was asked for."""
        return self.reason is not None or bool(self._event.is_set())

    def set(self) -> None:
        """Ask to stop."""
        self._event.set()

    def stop_because(self, error: ZeMosaicError) -> None:
        """Stop the run with an error; the first one counts."""
        if self.reason is None:
            self.reason = error

    def check(self) -> None:
        """Raise `Cancelled` when a stop was asked for, or the error that asked for it."""
        if self.reason is not None:
            raise self.reason
        if self.is_set():
            raise Cancelled()


@dataclass
class PhaseRecord:
    """Seconds, peak memory and items of a finished phase, for the report."""

    phase: str
    seconds: float
    peak_bytes: int
    items: int
    details: dict[str, Any] = field(default_factory=dict)


class RunContext:
    """Everything a phase may use besides its records and the plan.

    Parameters
    ----------
    output_dir : Path
        Where the results go; state lives in ``.zemosaic_state`` below it.
    report : Reporter
        Called with each event, from the run's own thread, or one that it waits for; by one at a time.
    cancel : CancelToken
        Checked at item boundaries.
    policy : GpuPolicy
        The one decider of GPU or CPU.
    workers : int
        Processes for measuring; 1 means no extra process.
    threads : int
        Threads of the co-add engine.
    """

    def __init__(
        self,
        output_dir: Path,
        *,
        report: Reporter,
        cancel: CancelToken,
        policy: GpuPolicy,
        workers: int,
        threads: int,
    ) -> None:
        self.run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
        self.started = datetime.now(UTC)
        # The run that was interrupted in this folder and that this one goes on with.
        self.resumes = ""
        self.output_dir = output_dir
        self.state_dir = output_dir / STATE_FOLDER
        self.work_dir = self.state_dir / f"run_{self.run_id}"
        self.report = report
        self.cancel = cancel
        self.policy = policy
        self.workers = workers
        self.threads = threads
        self.alone_bytes = 1_000_000_000
        make_folder(self.state_dir)
        self._lock = OutputLock(output_dir, self.state_dir)
        make_folder(self.work_dir)
        self.results = ResultSet(output_dir)
        self.left_out: list[LeftOut] = []
        # Files made of what was given -> the file that a user knows.
        self.known_as: dict[str, str] = {}
        self.phases: list[PhaseRecord] = []
        self.messages: list[Message] = []
        self.memory = ResourceWatch((output_dir, self.state_dir), cancel.stop_because, self._tell_waiting)
        # Other machines, or processes that are treated as such; None: all is done by processes and threads of this run.
        self.cluster: Cluster | None = None
        # For what reads frames in this process: threads of the co-add, and all the rest where there is one worker.
        self.reads = PatientReads(check=cancel.check, on_waiting=self._tell_waiting)
        self._pool: WorkerPool | None = None
        self._parts_left = False
        self._phase = ""
        self._phase_items = 0
        self._phase_details: dict[str, Any] = {}
        self._planned_s: dict[str, float] = {}
        self._phase_started = time.perf_counter()
        self._last_eta = 0.0

    def say(self, key: str, level: str = "INFO", /, **values: Any) -> None:
        """Tell the user something by text key; any name may be a value; ``path`` becomes what the user gave."""
        if isinstance(path := values.get("path"), str):
            values["path"] = self.known_as.get(path, path)
        message = Message(key, level, values)
        self.messages.append(message)
        self.report(message)

    def detail(self, **values: Any) -> None:
        """Keep facts of the current phase for the report."""
        self._phase_details.update(values)

    @contextmanager
    def phase(self, name: str, total: int = 0) -> Iterator[None]:
        """Time a phase, watch its memory, tell of its start and end."""
        self.cancel.check()
        give_memory_back()
        if name in _REUSING:
            keep_freed_memory()
        else:
            return_freed_memory()
        self.memory.take_peak()
        self._phase, self._phase_items, self._phase_details = name, 0, {}
        self.report(PhaseStarted(name, total))
        self._phase_started = start = time.perf_counter()
        with self.policy.phase(name):
            yield
        seconds = time.perf_counter() - start
        peak = self.memory.take_peak()
        self.phases.append(PhaseRecord(name, seconds, peak, self._phase_items, self._phase_details))
        self.report(PhaseFinished(name, seconds, peak))

    def progress(self, done: int, total: int, item: str = "", within: float = 0.0) -> None:
        """Tell how far the current phase is, and when the run may end; ``within`` is the share of the current item."""
        self._phase_items = done
        if self.cluster is not None and (worker := self.cluster.take_latest()):
            item = f"{item} ({worker})" if item else worker
        self.report(PhaseProgress(self._phase, done, total, item, within))
        now = time.perf_counter()
        if total > 0 and now - self._last_eta > 1.0 and self._planned_s:
            self._last_eta = now
            self.report(EtaUpdated(self._remaining_s(min(1.0, (done + within) / total))))

    def follow(self, plan: RunPlan) -> None:
        """Take what the plan expects and allows; from then on the run can say when it may end."""
        self._planned_s = {row.phase: row.seconds for row in plan.rows}
        if plan.workers < self.workers:
            self.release_pool()
        self.workers, self.threads = min(self.workers, plan.workers), plan.threads
        self.memory.limit_bytes = plan.memory_limit_bytes
        # What is tried alone may take what all processes together were planned to.
        planned = next(row.ram_bytes for row in plan.rows if row.phase == "phase1_prepare")
        self.alone_bytes = max(self.alone_bytes, 2 * planned)
        if self._pool is not None:
            self._pool.alone_bytes = self.alone_bytes

    def _remaining_s(self, share: float) -> float:
        """Return the seconds left: the planned times, stretched as the run has been slower or faster than planned."""
        order = list(PHASES)
        position = order.index(self._phase)
        planned = [self._planned_s.get(phase, 0.0) for phase in order]
        done = sum(planned[:position]) + share * planned[position]
        left = sum(planned[position + 1 :]) + (1 - share) * planned[position]
        spent = sum(record.seconds for record in self.phases) + time.perf_counter() - self._phase_started
        # Two planned seconds of trust keep a slow first second from promising hours.
        pace = (spent + ETA_TRUST_S) / (done + ETA_TRUST_S)
        return left * pace

    def leave_out(self, path: str, phase: str, key: str, /, **values: Any) -> LeftOut:
        """Note that a frame is not used; the caller's loop goes on. Any name may be among the values."""
        values.pop("path", None)
        path = self.known_as.get(path, path)
        if trace := values.pop(TRACEBACK, None):
            log.warning("%s is left out after an unexpected error\n%s", path, trace)
        event = FrameLeftOut(path, key, values)
        record = LeftOut(path, phase, key, event.values)
        self.left_out.append(record)
        self.report(event)
        return record

    def name_of(self, path: Path | str) -> str:
        """Return the name by which a user knows a file."""
        return Path(self.known_as.get(str(path), str(path))).name

    def tile_finished(self, tile: MasterTile) -> None:
        """Tell that a master tile is on disk."""
        self.report(TileFinished(tile.tile_id, tile.path, len(tile.frames)))

    def preview_grown(self, path: str) -> None:
        """Tell that a newer preview of the mosaic is on disk."""
        self.report(PreviewGrown(path))

    @property
    def may_have_children(self) -> bool:
        """A daemonic process may not: there everything is done in the process itself."""
        return not multiprocessing.current_process().daemon

    def release_pool(self) -> None:
        """End the worker processes and give their memory back; `map` starts new ones."""
        if self._pool is not None:
            self._pool.close()
            self._parts_left |= self._pool.ended_by_force
            self._pool = None

    def map(
        self,
        function: Any,
        items: Sequence[Any],
        *,
        name_of: Callable[[Any], str] = str,
        size_of: Callable[[Any], int] = lambda _: 0,
        may_compile: bool = True,
        apart: Callable[[Any], bool] = lambda _: False,
        elsewhere: Elsewhere | None = None,
    ) -> Iterator[tuple[int, Any]]:
        """Yield ``(position, function(item))`` as results come, checking for cancel between them.

        With one worker, or one item, the work is done in this process, except for what is better kept ``apart``
        from it. An exception of ``function`` is raised here. What becomes of items over which processes die is
        told in `WorkerPool`; ``name_of`` an item is its path, ``size_of`` it the bytes of its file, ``may_compile``
        as there. With a cluster, what can be done ``elsewhere`` is done there.

        Raises
        ------
        RunFailed
            Worker processes die whatever they do.
        """
        if self.cluster is not None and elsewhere is not None:
            yield from self.cluster.map_items(elsewhere, items, name_of=name_of)
            return

        def in_processes(some: Sequence[Any]) -> Iterator[tuple[int, Any]]:
            return self._processes().map(
                function, some, name_of=name_of, size_of=size_of, may_compile=may_compile
            )

        if self.workers > 1 and len(items) > 1 and self.may_have_children:
            yield from in_processes(items)
            return
        for position, item in enumerate(items):
            self.cancel.check()
            if apart(item) and self.may_have_children:
                _, result = next(in_processes([item]))
            else:
                result = self._here(function, item, name_of(item), size_of(item))
            yield position, result

    def _here(self, function: Any, item: Any, name: str, size_bytes: int) -> Any:
        """Return ``function(item)``; of an item that has a file, the reading is not waited for without end."""
        if not size_bytes:
            return function(item)
        try:
            return self.reads(name, size_bytes, function, item)
        except SkipItem as skip:
            return skip

    def _processes(self) -> WorkerPool:
        if self._pool is None:
            self._pool = WorkerPool(
                self.workers,
                check=self.cancel.check,
                on_fewer=self._go_on_with,
                on_waiting=self._tell_waiting,
                alone_bytes=self.alone_bytes,
            )
        return self._pool

    def _go_on_with(self, workers: int) -> None:
        self.workers = workers
        self.say("run_warn_fewer_workers", "WARN", workers=workers)

    def _tell_waiting(self, path: str, seconds: float) -> None:
        self.say("run_warn_waiting", "WARN", path=path, seconds=round(seconds))

    def close(self) -> None:
        """End the processes of the run, leave the cluster, and remove temporary files."""
        self.release_pool()
        self.reads.close()
        if self.cluster is not None:
            self.cluster.shutdown()
        self.memory.close()
        shutil.rmtree(self.work_dir, ignore_errors=True)
        if self._parts_left:
            self._lock.sweep()
        self.results.discard()
        self._lock.close()
