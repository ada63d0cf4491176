"""The steps a policy takes when an operation runs on the card: chunk by chunk, smaller ones first, the CPU last.

Belongs to `zemosaic_gpu_policy`, which decides where an operation begins; here is what follows from an error.
"""

from __future__ import annotations

import random
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from zemosaic_core.chunks import Workload
from zemosaic_core.errors import Cancelled, RunFailed
from zemosaic_core.gpu.budget import is_overcommitted
from zemosaic_core.gpu.device import Device, GpuFault, MemoryState, classify
from zemosaic_core.gpu.recorder import Recorder
from zemosaic_core.gpu.terms import FAULT_REASONS, Audit, Budget, CancelFlag, GpuStatus, Reason, RunReport

__all__ = ["Ahead", "CpuBody", "CpuRows", "GpuBody", "Job", "Keeper", "Staging", "fault_of", "run_chunks"]

T = TypeVar("T")
GpuBody = Callable[[Device, int, int, tuple[int, int] | None], T]
CpuBody = Callable[[int, int], T]
CpuRows = int | Callable[[int, int], list[tuple[int, int]]]

# One chunk after another failing is not bad luck.
MAX_CONSECUTIVE_FAILURES = 3
# Chunks that need more of the budget than this start with an empty pool: the pieces that an earlier chunk left in it
# are of slightly other sizes, and there is no room for both.
TIGHT_SHARE = 0.8
# One row in so many is done again on the CPU and compared, at least one of every operation.
AUDIT_EVERY_ROWS = 1000
# Calls of the CPU body with fewer rows tell more of what lies around them than of its speed.
PACE_LEAST_ROWS = 16


class Ahead(Protocol):
    """A body on the card that begins the next chunk before it hands out this one."""

    def expect(self, chunk_rows: int) -> None:
        """Be told how many rows the largest chunk from now on has."""

    def discard(self) -> None:
        """Let go of what was begun; nothing of it is left on the card."""


class Staging(Protocol):
    """A body on the card that stages what it sends in page-locked memory where it gets some.

    Attributes
    ----------
    unpinned : GpuFault or None
        What the system said when it refused to lock pages; ordinary memory is used since.
    """

    unpinned: GpuFault | None


class Keeper(Protocol):
    """What a policy remembers over its operations.

    Attributes
    ----------
    mode : str
        In ``require`` mode any step back to the CPU is an error.
    recorder : Recorder
    ceilings : dict
        Operation -> bytes: the peak that has failed is above this.
    given_up : dict
        Operation, or ``*`` for all -> why it stays off the card for the rest of the run.
    said : dict
        Operation or ``*`` -> what the card said then.
    """

    mode: str
    recorder: Recorder
    ceilings: dict[str, int]
    given_up: dict[str, Reason]
    said: dict[str, str]

    @property
    def status(self) -> GpuStatus:
        """Whether there is a card."""

    @property
    def budget(self) -> Budget | None:
        """What may be used of it, when it was last asked."""

    def look(self) -> Budget | None:
        """Ask the card what may be used of it now."""

    def release(self, name: str, *, collect: bool = False) -> GpuFault | None:
        """Empty the pools."""


class Job:
    """One operation under a policy: its bodies, its report and how it leaves the card."""

    def __init__(
        self,
        policy: Keeper,
        workload: Workload,
        report: RunReport,
        gpu_body: GpuBody[Any],
        cpu_body: CpuBody[Any],
        emit: Callable[[int, int, Any], None],
        cpu_rows: CpuRows,
        cancel: CancelFlag | None,
        audit: Audit | None,
        ahead: Ahead | None,
        staging: Staging | None,
        restart: Callable[[], object] | None,
    ) -> None:
        self.policy = policy
        self.workload = workload
        self.report = report
        self.gpu_body = gpu_body
        self.cpu_body = cpu_body
        self.emit = emit
        self.cpu_rows = cpu_rows
        self.cancel = cancel
        self.ahead = ahead
        self.staging = staging
        self.restart = restart
        self.audit = audit
        self._places = []
        if audit:
            drawn = draw_rows(workload.rows - workload.start, report.decision.chunk_rows)
            self._places = [workload.start + row for row in drawn]

    def expect(self, chunk_rows: int) -> None:
        """Tell a body that works ahead how large its chunks are from now on."""
        if self.ahead is not None:
            self.ahead.expect(chunk_rows)

    def discard(self) -> None:
        """Let go of the chunk that was begun ahead, if any."""
        if self.ahead is not None:
            self.ahead.discard()

    def check_cancel(self) -> None:
        """Raise `Cancelled` when a stop was asked for."""
        if self.cancel is not None and self.cancel.is_set():
            raise Cancelled()

    def on_cpu(self, y0: int, y1: int) -> None:
        """Do some rows on the CPU."""
        if callable(self.cpu_rows):
            pieces = self.cpu_rows(y0, y1)
        else:
            pieces = self.workload.chunks(self.cpu_rows or max(1, y1 - y0), y0, y1)
        for a, b in pieces:
            self.check_cancel()
            start = time.perf_counter()
            result = self.cpu_body(a, b)
            if b - a >= PACE_LEAST_ROWS:
                self.report.cpu_body_seconds += time.perf_counter() - start
                self.report.cpu_body_rows += b - a
            self.deliver(a, b, result, "cpu")

    def deliver(self, a: int, b: int, result: Any, device: str) -> None:
        """Hand on a piece of the result, and account for its rows."""
        self.emit(a, b, result)
        self.report.account(a, b, device)

    def detail_of(self, reason: Reason) -> str:
        """Return what is known of a reason to leave the GPU that was there before the operation."""
        policy, status = self.policy, self.policy.status
        if not status.ok:
            return status.detail
        if reason not in FAULT_REASONS.values():
            return ""
        return policy.said.get("*" if policy.given_up.get("*") is reason else self.workload.op, "")

    def leave_gpu(self, reason: Reason, *, scope: str = "operation", **numbers: Any) -> None:
        """Record a fallback; in ``require`` mode it is an error."""
        budget = self.policy.budget
        numbers.setdefault("usable_bytes", budget.usable if budget else 0)
        record = self.policy.recorder.fallback(reason, self.workload.op, scope=scope, **numbers)
        self.report.fallbacks += 1
        if self.policy.mode == "require" and reason is not Reason.FORCED_CPU:
            said = f"{reason.value} {record['values']['detail']}".strip()
            message = f"the GPU is required but {self.workload.op} cannot use it: {said}"
            raise RunFailed(reason.required_key, message, **record["values"])

    def is_right(self, a: int, b: int, result: Any) -> bool:
        """Do the rows of a finished chunk that were drawn by lot again on the CPU and compare."""
        audit = self.audit
        if audit is None:
            return True
        for place in [place for place in self._places if a <= place < b]:
            y0 = max(a, min(place, b - audit.rows))
            y1 = min(b, y0 + audit.rows)
            parity = audit.compare(result, self.cpu_body(y0, y1), y0 - a)
            self.report.parity = parity
            self.policy.recorder.parity(self.workload.op, parity, (y0, y1))
            if not parity.ok:
                return False
        return True

    def note_staging(self) -> None:
        """Record once that pages could not be locked."""
        fault = self.staging.unpinned if self.staging is not None else None
        if fault is not None:
            self.policy.recorder.pageable(self.workload.op, fault)
            self.staging = None


def draw_rows(rows: int, chunk_rows: int) -> list[int]:
    """Draw the rows at which an operation is checked: one of the first chunk, the others from all."""
    lot = random.Random()
    first = lot.randrange(max(1, min(rows, chunk_rows or rows)))
    others = max(0, min(rows // AUDIT_EVERY_ROWS - 1, rows - 1))
    return sorted({first, *lot.sample(range(rows), others)})


def run_chunks(job: Job, device: Device) -> None:
    """Work through the chunks on the card; smaller chunks first, the CPU last."""
    workload, report, policy = job.workload, job.report, job.policy
    todo = deque(workload.chunks(report.decision.chunk_rows))
    job.expect(report.decision.chunk_rows)
    failures = 0
    watch = _MemoryWatch(job, device)
    while todo:
        job.check_cancel()
        a, b = todo.popleft()
        fault = _ready_card(job, device, b - a)
        result = None
        start = time.perf_counter()
        if fault is None:
            try:
                result = job.gpu_body(device, a, b, todo[0] if todo else None)
            except Exception as error:  # noqa: BLE001 - reduced to a fault, or raised by fault_of
                fault = fault_of(error)
            except BaseException as error:
                traceback.clear_frames(error.__traceback__)
                raise
        # The except block is left before anything is retried: the traceback of the failed attempt would keep
        # its arrays, and with them the memory that is missing.
        job.note_staging()
        if fault is None:
            report.peak_bytes = max(report.peak_bytes, device.peak_bytes())
            seconds = time.perf_counter() - start
            # Compared before it is handed on. A card that computes wrongly once is not believed again in this run;
            # to use it all the same there is no way: the results would be wrong.
            if not job.is_right(a, b, result):
                _redo(job, a)
                return
            job.deliver(a, b, result, "gpu")
            failures = 0
            smaller = watch.smaller_chunk(b - a, seconds) if todo else 0
            if smaller:
                # The card lends memory it does not have: smaller chunks, before the desktop crawls.
                job.discard()
                policy.release(workload.op)
                end = todo[-1][1]
                policy.recorder.split(
                    workload.op, (b, end), smaller, None, reason=Reason.OVERCOMMITTED,
                    planned_bytes=workload.peak(b - a), free_bytes=watch.free,
                )  # fmt: skip
                todo = deque(workload.chunks(smaller, b, end))
                job.expect(smaller)
                report.splits += 1
            continue
        job.discard()
        lost = policy.release(workload.op, collect=True)
        if lost is not None and lost.kind == "device_lost":
            fault = lost
        smaller = _half_of(workload, b - a)
        # Too little memory, of the card or of the host, where the result of a chunk goes: chunks are halved.
        if fault.kind in ("oom", "host_memory") and smaller >= max(workload.min_rows, workload.align):
            end = todo[-1][1] if todo else b
            if fault.kind == "oom":
                smaller = _fitting(workload, policy.look(), smaller)
                policy.ceilings[workload.op] = workload.peak(smaller)
            todo = deque(workload.chunks(smaller, a, end))
            job.expect(smaller)
            policy.recorder.split(
                workload.op, (a, b), smaller, fault, reason=FAULT_REASONS[fault.kind],
                planned_bytes=workload.peak(b - a),
            )  # fmt: skip
            report.splits += 1
            continue
        failures += 1
        rest = _give_up(job, fault, failures)
        end = todo[-1][1] if todo and rest else b
        numbers = {"needed_bytes": workload.peak(b - a), "rows": [a, end], "fault": fault}
        job.leave_gpu(
            FAULT_REASONS[fault.kind] if rest is None else rest[0],
            scope=rest[1] if rest else "chunk",
            **numbers,
        )
        job.on_cpu(a, end)
        if rest:
            return


class _MemoryWatch:
    """Looks after every chunk whether the card still has the memory that was planned with."""

    def __init__(self, job: Job, device: Device) -> None:
        self._job, self._device = job, device
        self._before = self._ask()
        self._best = float("inf")
        self._times = 0
        self.free = 0

    def _ask(self) -> MemoryState | None:
        try:
            return self._device.memory()
        except Exception as error:  # noqa: BLE001 - reduced to a fault, or raised by fault_of
            fault_of(error)
            return None  # the next chunk meets the same error and is answered there

    def smaller_chunk(self, rows: int, seconds: float) -> int:
        """Return how many rows the next chunks may have when the card lends more than it has; 0: as before."""
        workload, budget, now = self._job.workload, self._job.policy.budget, self._ask()
        if now is None or self._before is None or budget is None:
            return 0
        per_row = seconds / rows
        lent = is_overcommitted(self._before, now, budget, per_row, self._best)
        self._best = min(self._best, per_row)
        self.free = now.free
        smaller = _half_of(workload, rows)
        # What three halvings have not mended has another cause.
        if (
            not lent
            or self._times >= MAX_CONSECUTIVE_FAILURES
            or smaller < max(workload.min_rows, workload.align)
        ):
            return 0
        self._times += 1
        return smaller


def _redo(job: Job, a: int) -> None:
    """Leave a card that computed wrongly for the rest of the run, and do the operation again on the CPU.

    Where what was handed on before cannot be taken back, what comes from ``a`` on is done on the CPU.
    """
    policy, parity = job.policy, job.report.parity
    job.discard()
    policy.release(job.workload.op)
    policy.given_up["*"] = Reason.WRONG_RESULTS
    worst = parity.max_difference if parity is not None else 0.0
    policy.said["*"] = f"{worst:.2g}"
    first = a
    if a > job.workload.start and job.restart is not None:
        first = job.workload.start
        job.restart()
        job.report.forget_pieces()
    job.leave_gpu(
        Reason.WRONG_RESULTS, scope="run", detail=policy.said["*"], rows=[first, job.workload.rows],
        needed_bytes=job.report.decision.estimated_bytes,
    )  # fmt: skip
    job.on_cpu(first, job.workload.rows)


def _fitting(workload: Workload, budget: Budget | None, rows: int) -> int:
    """Return at most ``rows``, fewer where less is free now than was planned with."""
    smallest = max(workload.min_rows, workload.align)
    if budget is None:
        return rows
    fitting = workload.rows_within(budget.usable, several=True)
    fitting -= fitting % workload.align
    return min(rows, fitting) if fitting >= smallest else rows


def _half_of(workload: Workload, rows: int) -> int:
    """Return rows of a smaller chunk, half as many, or a quarter where two halves in flight need all there was."""
    smaller = rows // 2
    if workload.peak(smaller) > workload.peak(rows):
        smaller //= 2
    return smaller - smaller % workload.align


def _give_up(job: Job, fault: GpuFault, failures: int) -> tuple[Reason, str] | None:
    """Return why and for how long the GPU is left behind for more than this chunk, or None."""
    said = f"{fault.type_name}: {fault.message}"
    # A lost context answers nothing any more, a kernel that does not compile will not the next time, and one chunk
    # after another failing is no accident. A new run tries again; `require` makes each of them an error.
    if fault.kind == "device_lost":
        job.policy.given_up["*"] = Reason.DEVICE_LOST
        job.policy.said["*"] = said
        return Reason.DEVICE_LOST, "run"
    if fault.kind == "compile":
        job.policy.given_up[job.workload.op] = Reason.COMPILE_FAILED
        job.policy.said[job.workload.op] = said
        return Reason.COMPILE_FAILED, "operation"
    if failures >= MAX_CONSECUTIVE_FAILURES:
        return Reason.TOO_MANY_FAILURES, "operation"
    return None


def _ready_card(job: Job, device: Device, rows: int) -> GpuFault | None:
    """Open the card for the first chunk; empty its pool for a later one that needs nearly all there is."""
    report, budget = job.report, job.policy.budget
    if report.gpu_chunks + report.splits + report.fallbacks:
        # A body that works ahead takes the same pieces for every chunk, and has one of them in flight.
        tight = budget is not None and job.workload.peak(rows) > TIGHT_SHARE * budget.usable
        tight = tight and job.ahead is None
        return job.policy.release(job.workload.op) if tight else None
    try:
        device.bind()
        device.peak_bytes(reset=True)
    except Exception as error:  # noqa: BLE001 - reduced to a fault, or raised by fault_of
        return fault_of(error)
    return None


def fault_of(error: Exception) -> GpuFault:
    """Reduce an error of the card to a `GpuFault` and let go of its frames; raise what is not the card's."""
    fault = classify(error)
    if fault is None:
        # Its report keeps the lines, and lets go of the arrays that fill the card.
        traceback.clear_frames(error.__traceback__)
        raise error
    error.__traceback__ = error.__context__ = error.__cause__ = None
    return fault
