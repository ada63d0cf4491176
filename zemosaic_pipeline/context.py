"""What every phase may use besides its records and the plan: paths, reporter, cancel, workers, memory watch."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from zemosaic_core.errors import Cancelled, RunFailed
from zemosaic_gpu_policy import GpuPolicy
from zemosaic_io.manifest import STATE_FOLDER, make_folder
from zemosaic_io.output_lock import OutputLock
from zemosaic_io.result_set import ResultSet
from zemosaic_pipeline.child import start_child
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
from zemosaic_pipeline.records import LeftOut, MasterTile

__all__ = ["CancelToken", "MemoryWatch", "PhaseRecord", "RunContext"]

log = logging.getLogger(__name__)


ETA_TRUST_S = 2.0


class CancelToken:
    """A request to stop, honoured at item boundaries.

    Parameters
    ----------
    event
        Anything with ``is_set()`` and ``set()``: a threading or a multiprocessing Event.
    """

    def __init__(self, event: Any = None) -> None:
        self._event = threading.Event() if event is None else event

    def is_set(self) -> bool:
        """Whether a stop was asked for."""
        return bool(self._event.is_set())

    def set(self) -> None:
        """Ask to stop."""
        self._event.set()

    def check(self) -> None:
        """Raise `Cancelled` when a stop was asked for."""
        if self.is_set():
            raise Cancelled()


def private_bytes() -> int:
    """Memory of this process and its children that is theirs alone.

    File-backed pages are left out: a memory-mapped FITS file is the system's cache, not ours.
    """
    total = 0
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        try:
            info = process.memory_info()
        except psutil.NoSuchProcess:
            continue
        total += info.rss - getattr(info, "shared", 0)
    return total


def _submit(pool: Executor, function: Any, item: Any) -> Future:
    try:
        return pool.submit(function, item)
    except BrokenExecutor as error:
        raise _worker_died(error) from error


def _result(future: Future) -> Any:
    try:
        return future.result()
    except BrokenExecutor as error:
        raise _worker_died(error) from error


def _worker_died(error: BaseException) -> RunFailed:
    return RunFailed(
        "run_error_worker_died",
        f"a worker process ended without an answer ({error}); it may have run out of memory: "
        "set num_processing_workers lower",
        reason=str(error),
    )


class MemoryWatch:
    """Samples the memory of the run's processes; `take_peak` gives the peak since the last call."""

    def __init__(self, interval_s: float = 0.2) -> None:
        self._interval_s = interval_s
        self._peak = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory-watch", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._sample()

    def _sample(self) -> None:
        now = private_bytes()
        with self._lock:
            self._peak = max(self._peak, now)

    def take_peak(self) -> int:
        """Return the peak in bytes since the last call and start anew."""
        self._sample()
        with self._lock:
            peak, self._peak = self._peak, 0
        return peak

    def close(self) -> None:
        """Stop sampling."""
        self._stop.set()
        self._thread.join()


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
        Called with each event, from the run's own thread.
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
        make_folder(self.state_dir)
        self._lock = OutputLock(output_dir, self.state_dir)
        make_folder(self.work_dir)
        self.results = ResultSet(output_dir)
        self.left_out: list[LeftOut] = []
        self.phases: list[PhaseRecord] = []
        self.messages: list[Message] = []
        self.memory = MemoryWatch()
        self._pool: ProcessPoolExecutor | None = None
        self._phase = ""
        self._phase_items = 0
        self._phase_details: dict[str, Any] = {}
        self._planned_s: dict[str, float] = {}
        self._phase_started = time.perf_counter()
        self._last_eta = 0.0

    def say(self, key: str, level: str = "INFO", /, **values: Any) -> None:
        """Tell the user something by text key; any name may be among the values."""
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
        self.report(PhaseProgress(self._phase, done, total, item, within))
        now = time.perf_counter()
        if total > 0 and now - self._last_eta > 1.0 and self._planned_s:
            self._last_eta = now
            self.report(EtaUpdated(self._remaining_s(min(1.0, (done + within) / total))))

    def expect(self, seconds_by_phase: Mapping[str, float]) -> None:
        """Take the times the plan expects; from then on the run can say when it may end."""
        self._planned_s = dict(seconds_by_phase)

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
        if trace := values.pop(TRACEBACK, None):
            log.warning("%s is left out after an unexpected error\n%s", path, trace)
        event = FrameLeftOut(path, key, values)
        record = LeftOut(path, phase, key, event.values)
        self.left_out.append(record)
        self.report(event)
        return record

    def tile_finished(self, tile: MasterTile) -> None:
        """Tell that a master tile is on disk."""
        self.report(TileFinished(tile.tile_id, tile.path, len(tile.frames)))

    def preview_grown(self, path: str) -> None:
        """Tell that a newer preview of the mosaic is on disk."""
        self.report(PreviewGrown(path))

    def pool(self) -> Executor | None:
        """Return the process pool of the run, started at first use; None when ``workers`` is 1.

        A daemonic process may not have children: there, too, everything is done in the process itself.
        """
        if self.workers <= 1 or multiprocessing.current_process().daemon:
            return None
        if self._pool is None:
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(
                max_workers=self.workers, mp_context=spawn, initializer=start_child, initargs=(os.getpid(),)
            )
        return self._pool

    def release_pool(self) -> None:
        """End the worker processes and give their memory back; `pool` starts new ones."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def map(self, function: Any, items: Sequence[Any], *, chunk: int = 1) -> Iterator[tuple[int, Any]]:
        """Yield ``(position, function(item))`` as results come, checking for cancel between them.

        At most a few items per worker are in flight, so that neither memory nor a stop waits for a long queue.
        An exception of ``function`` is raised here.

        Raises
        ------
        RunFailed
            A worker process died: killed from outside, or by the system for want of memory.
        """
        pool = self.pool() if len(items) > 1 else None
        if pool is None:
            for position, item in enumerate(items):
                self.cancel.check()
                yield position, function(item)
            return
        waiting: dict[Any, int] = {}
        todo = iter(enumerate(items))
        exhausted = False
        while waiting or not exhausted:
            while not exhausted and len(waiting) < self.workers * (2 + chunk):
                try:
                    position, item = next(todo)
                except StopIteration:
                    exhausted = True
                    break
                waiting[_submit(pool, function, item)] = position
            if not waiting:
                break
            done, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            if self.cancel.is_set():
                for future in waiting:
                    future.cancel()
                self.cancel.check()
            for future in done:
                yield waiting.pop(future), _result(future)

    def close(self) -> None:
        """End the processes of the run and remove its temporary files."""
        self.release_pool()
        self.memory.close()
        shutil.rmtree(self.work_dir, ignore_errors=True)
        self.results.discard()
        self._lock.close()
