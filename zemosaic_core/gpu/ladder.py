"""The steps a policy takes when an operation runs on the card: chunk by chunk, smaller ones first, the CPU last.

Belongs to `zemosaic_gpu_policy`, which decides where an operation begins; here is what follows from an error.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from zemosaic_core.chunks import Workload
from zemosaic_core.errors import Cancelled, RunFailed
from zemosaic_core.gpu.device import Device, GpuFault, classify
from zemosaic_core.gpu.recorder import Recorder
from zemosaic_core.gpu.terms import FAULT_REASONS, Audit, Budget, CancelFlag, GpuStatus, Reason, RunReport

__all__ = ["Ahead", "CpuBody", "GpuBody", "Job", "Keeper", "fault_of", "run_chunks"]

T = TypeVar("T")
GpuBody = Callable[[Device, int, int, tuple[int, int] | None], T]
CpuBody = Callable[[int, int], T]

# One chunk after another failing is not bad luck.
MAX_CONSECUTIVE_FAILURES = 3
# Chunks that need more of the budget than this start with an empty pool: the pieces that an earlier chunk left in it
# are of slightly other sizes, and there is no room for both.
TIGHT_SHARE = 0.8
# The same operation is checked against the CPU at its first run and then once in this many runs.
AUDIT_EVERY = 25


class Ahead(Protocol):
    """A body on the card that begins the next chunk before it hands out this one."""

    def expect(self, chunk_rows: int) -> None:
        """Be told how many rows the largest chunk from now on has."""

    def discard(self) -> None:
        """Let go of what was begun; nothing of it is left on the card."""


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
        """What may be used of it."""

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
        cpu_rows: int,
        cancel: CancelFlag | None,
        audit: Audit | None,
        ahead: Ahead | None,
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
        self.audit = audit if policy.recorder.tally(workload.op).runs % AUDIT_EVERY == 0 else None

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
        for a, b in self.workload.chunks(self.cpu_rows or max(1, y1 - y0), y0, y1):
            self.check_cancel()
            self.deliver(a, b, self.cpu_body(a, b), "cpu")

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
            raise RunFailed("gpu_required", message, **record["values"])

    def check_against_cpu(self, a: int, b: int, result: Any) -> None:
        """Do some rows in the middle of a finished chunk again on the CPU and compare."""
        audit, self.audit = self.audit, None
        if audit is None:
            return
        y0 = max(a, (a + b - audit.rows) // 2)
        y1 = min(b, y0 + audit.rows)
        parity = audit.compare(result, self.cpu_body(y0, y1), y0 - a)
        self.report.parity = parity
        self.policy.recorder.parity(self.workload.op, parity, (y0, y1))


def run_chunks(job: Job, device: Device) -> None:
    """Work through the chunks on the card; smaller chunks first, the CPU last."""
    workload, report, policy = job.workload, job.report, job.policy
    todo = deque(workload.chunks(report.decision.chunk_rows))
    job.expect(report.decision.chunk_rows)
    failures = 0
    while todo:
        job.check_cancel()
        a, b = todo.popleft()
        fault = _ready_card(job, device, b - a)
        result = None
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
        if fault is None:
            report.peak_bytes = max(report.peak_bytes, device.peak_bytes())
            job.deliver(a, b, result, "gpu")
            failures = 0
            job.check_against_cpu(a, b, result)
            continue
        job.discard()
        lost = policy.release(workload.op, collect=True)
        if lost is not None and lost.kind == "device_lost":
            fault = lost
        smaller = _half_of(workload, b - a)
        if fault.kind == "oom" and smaller >= max(workload.min_rows, workload.align):
            end = todo[-1][1] if todo else b
            policy.ceilings[workload.op] = workload.peak(smaller)
            todo = deque(workload.chunks(smaller, a, end))
            job.expect(smaller)
            policy.recorder.split(workload.op, (a, b), smaller, fault, planned_bytes=workload.peak(b - a))
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


def _half_of(workload: Workload, rows: int) -> int:
    """Return rows of a smaller chunk, half as many, or a quarter where two halves in flight need all there was."""
    smaller = rows // 2
    if workload.peak(smaller) > workload.peak(rows):
        smaller //= 2
    return smaller - smaller % workload.align


def _give_up(job: Job, fault: GpuFault, failures: int) -> tuple[Reason, str] | None:
    """Return why and for how long the GPU is left behind for more than this chunk, or None."""
    said = f"{fault.type_name}: {fault.message}"
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
