"""GPU or CPU, how many rows at a time, and why: the only place where that is decided.

An operation declares its memory as a `Workload` and brings two bodies; `GpuPolicy.run` picks one, cuts the
rows, makes chunks smaller when memory runs short, falls back when it must, and writes down every such step
with its numbers. Knows no settings, no windows and no texts: a record carries a text key and values.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from zemosaic_core.chunks import Workload
from zemosaic_core.errors import RunFailed
from zemosaic_core.gpu import device as seam
from zemosaic_core.gpu.ladder import Ahead, CpuBody, GpuBody, Job, fault_of, run_chunks
from zemosaic_core.gpu.probe import probe as probe_here
from zemosaic_core.gpu.recorder import Recorder
from zemosaic_core.gpu.terms import (
    FAULT_REASONS,
    Audit,
    Budget,
    CancelFlag,
    Decision,
    GpuStatus,
    Overrides,
    Parity,
    Reason,
    RunReport,
)
from zemosaic_io.gpu_files import LeaseTimeout, Ledger, device_lease
from zemosaic_io.gpu_probe import Opened, remembered_status, status_of

__all__ = [
    "Audit",
    "Budget",
    "Decision",
    "GpuPolicy",
    "GpuStatus",
    "Overrides",
    "Parity",
    "Reason",
    "RunReport",
    "decide",
    "default_policy",
    "gpu_phase",
    "gpu_status",
    "make_budget",
    "release_defaults",
    "run_with_fallback",
]

log = logging.getLogger(__name__)
T = TypeVar("T")
MIB = 1 << 20

# PCIe as a slow laptop has it, and the price of planning, allocating and synchronising once.
TRANSFER_BYTES_PER_SECOND = 6e9
OPERATION_OVERHEAD_SECONDS = 0.01
LEASE_TIMEOUT_SECONDS = 30.0


def make_budget(
    memory: seam.MemoryState, info: seam.DeviceInfo, *, memory_mb: int, overrides: Overrides
) -> Budget:
    """Return what may be used of a card in this state.

    The reserve is what the driver's own estimate may be wrong by, and what the desktop may want meanwhile:
    8 % of the card but at least 512 MiB (a quarter of a very small one), 256 MiB more when it drives a
    display, 10 % more on Windows, where overcommitting does not fail but crawls through system memory.
    """
    total, free = memory.total, memory.free
    if overrides.simulate_mb:
        total, free = min(total, overrides.simulate_mb * MIB), min(free, overrides.simulate_mb * MIB)
    reserve = max(min(512 * MIB, total // 4), total * 8 // 100)
    if info.drives_display:
        reserve += min(256 * MIB, total // 8)
    if sys.platform == "win32":
        reserve += total // 10
    if overrides.reserve_mb >= 0:
        reserve = overrides.reserve_mb * MIB
    cap = (overrides.memory_mb or memory_mb) * MIB or total
    usable = max(0, min(free + memory.pool_free - reserve, cap))
    return Budget(total, free, memory.pool_free, reserve, cap, usable)


def decide(
    workload: Workload,
    status: GpuStatus,
    budget: Budget | None,
    *,
    ceiling_bytes: int = 0,
    chunk_rows: int = 0,
) -> Decision:
    """Decide where a workload runs and in which chunks. Pure: the same arguments give the same decision.

    Parameters
    ----------
    workload : Workload
        What the operation declares.
    status : GpuStatus
        Whether there is a card.
    budget : Budget or None
        What may be used of it; None only when there is none.
    ceiling_bytes : int
        Peak that has failed before is above this; 0 when nothing failed.
    chunk_rows : int
        Rows per chunk somebody asked for; 0 for free choice. Memory still has the last word.
    """
    if not status.ok or budget is None:
        return Decision(workload.op, "cpu", status.reason, 0, 0, 0)
    usable = min(budget.usable, ceiling_bytes) if ceiling_bytes else budget.usable
    rows = workload.rows - workload.start
    smallest = min(max(workload.min_rows, workload.align), rows)
    limits = {"rows": rows}
    if workload.host_rows:
        limits["host"] = max(smallest, workload.host_rows)
    if workload.elements_per_row:
        limits["index"] = (2**31 - 1) // workload.elements_per_row - 2 * workload.halo
    if chunk_rows:
        limits["asked"] = max(smallest, chunk_rows)
    several = min(limits.values()) < rows
    limits["memory"] = workload.rows_within(usable, several=several)
    if ceiling_bytes:
        limits["ceiling"] = workload.rows_within(ceiling_bytes, several=several)
    fitting = min(limits.values())
    if fitting < rows:
        fitting -= fitting % workload.align
    if fitting < smallest or rows == 0:
        reason = Reason.INSUFFICIENT_MEMORY if rows else Reason.WORKLOAD_TOO_SMALL
        return Decision(workload.op, "cpu", reason, 0, 0, workload.peak(smallest), limits)
    travel = (workload.upload_bytes + workload.download_bytes) / TRANSFER_BYTES_PER_SECOND
    if 0 < workload.cpu_seconds < travel + OPERATION_OVERHEAD_SECONDS:
        return Decision(workload.op, "cpu", Reason.WORKLOAD_TOO_SMALL, 0, 0, workload.peak(fitting), limits)
    chunks = workload.chunks(fitting)
    largest = max(b - a for a, b in chunks)
    return Decision(workload.op, "gpu", Reason.GPU, largest, len(chunks), workload.peak(largest), limits)


def gpu_status(*, refresh: bool = False, mode: str = "auto", choice: str = "") -> GpuStatus:
    """Return whether a card can be used. Safe without CuPy, in any thread or process; makes no CUDA context.

    Parameters
    ----------
    refresh : bool
        Ask again instead of using what was found before.
    mode : str
        ``off`` answers at once. ``ZEMOSAIC_GPU`` wins over it, as in a run.
    choice : str
        Card asked for, see `zemosaic_core.gpu.device.devices_in_order`; ``ZEMOSAIC_GPU_DEVICE`` wins over it.

    Raises
    ------
    SettingsError
        A variable of the environment is not understood.
    """
    overrides = Overrides.from_environment(os.environ)
    if refresh:
        remembered_status.cache_clear()
    return _status(overrides.mode or mode, overrides.device or choice)


def _status(mode: str, choice: str) -> GpuStatus:
    if mode == "off":
        return GpuStatus(False, Reason.OFF)
    seated = seam.installed()
    if seated is None:
        return _with_wish(remembered_status(choice, os.getpid()), choice)
    return _with_wish(GpuStatus(True, Reason.GPU, seated.info.name, seated.info), choice)


def _with_wish(status: GpuStatus, choice: str) -> GpuStatus:
    """Note that a card was only wished for and another one is used."""
    wished = choice.startswith("~") and status.ok and status.device is not None
    if not wished or seam.is_asked_for(status.device, choice):
        return status
    return replace(status, unmet_wish=choice.removeprefix("~"))


class GpuPolicy:
    """The decider of one run, with its memory of what went wrong.

    Parameters
    ----------
    mode : {'auto', 'off', 'require'}
        ``require`` turns every fallback into `RunFailed`. ``ZEMOSAIC_GPU`` wins over it.
    device : str, int or None
        Card asked for: index, UUID or part of its name; None or empty for the best one. With a ``~`` before
        it, a wish: when there is no such card, the best one is used and a warning recorded.
    memory_mb : int
        Never use more than this; 0 decides from what is free.
    ledger_path : Path or None
        JSON lines with every record; None keeps no file.
    on_record : callable, optional
        Called with every record (a dict with ``kind``, ``reason``, ``key``, ``values``, ``level``, numbers).
    environ : mapping, optional
        Instead of ``os.environ``.
    """

    def __init__(
        self,
        *,
        mode: str = "auto",
        device: str | int | None = None,
        memory_mb: int = 0,
        ledger_path: Path | None = None,
        on_record: Callable[[dict[str, Any]], None] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.overrides = Overrides.from_environment(os.environ if environ is None else environ)
        self.mode = self.overrides.mode or mode
        self._choice = self.overrides.device or ("" if device is None else str(device))
        self._memory_mb = memory_mb
        self._ledger = Ledger(ledger_path)
        self._on_record = on_record
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._leases = 0
        self.said: dict[str, str] = {}
        self._status: GpuStatus | None = None
        self._device: seam.Device | None = None
        self._budget: Budget | None = None
        self.recorder = Recorder(self._keep)
        self.ceilings: dict[str, int] = {}
        self.given_up: dict[str, Reason] = {}

    def _keep(self, record: dict[str, Any]) -> None:
        try:
            self._ledger.write(record)
        except OSError as error:
            log.warning("the GPU ledger %s cannot be written: %s", self._ledger.path, error)
            self._ledger = Ledger(None)
        if self._on_record is not None:
            self._on_record(record)

    @property
    def status(self) -> GpuStatus:
        """Whether a card can be used; asked once per run, and recorded when it is first known."""
        with self._lock:
            if self._status is None:
                self._status = self._first_status()
                self.recorder.probe(self._status, self._budget)
                if self.overrides.force_cpu_intertile:
                    key, variable = "gpu_info_intertile_forced", "ZEMOSAIC_FORCE_CPU_INTERTILE"
                    self.recorder.override(Reason.FORCED_CPU, "intertile", key=key, variable=variable)
            if self._status.ok and self._pid != os.getpid():
                return GpuStatus(
                    False, Reason.FORKED_CHILD, f"process {os.getpid()} was forked from {self._pid}"
                )
            return self._status

    def _first_status(self) -> GpuStatus:
        status = _status(self.mode, self._choice)
        if not status.ok:
            return status
        device = seam.installed()
        if device is None:
            Opened.pid = os.getpid()
            finding, device = probe_here(self._choice, seam.FaultScript(self.overrides.fault))
            status = _with_wish(status_of(finding), self._choice)
        if device is None:
            return status
        fault = None
        try:
            device.bind()
            memory = _memory_between_runs(device)
            self._budget = make_budget(
                memory, device.info, memory_mb=self._memory_mb, overrides=self.overrides
            )
            # The budget is the first line; the pool's own limit catches what was not declared.
            device.limit_pool(self._budget.usable)
        except Exception as error:  # noqa: BLE001 - reduced to a fault, or raised by fault_of
            fault = fault_of(error)
        if fault is not None:
            return GpuStatus(False, Reason.SMOKE_FAILED, f"{fault.type_name}: {fault.message}", status.device)
        self._device = device
        return status

    @property
    def budget(self) -> Budget | None:
        """What may be used of the card, frozen for the run; None when there is none."""
        return self._budget if self.status.ok else None

    def check_required(self) -> None:
        """Fail at once, and not at the first heavy phase, when the GPU is a must and there is none.

        Raises
        ------
        RunFailed
            ``gpu_required``, with the reason.
        """
        status = self.status
        if self.mode == "require" and not status.ok:
            values = {"op": "run", "op_key": "gpu_op_run", "reason": status.reason.value}
            values |= {"reason_key": status.reason_key, "detail": status.detail}
            said = f"{status.reason.value} {status.detail}".strip()
            raise RunFailed("gpu_required", f"the GPU is required but cannot be used: {said}", **values)

    def bind(self) -> None:
        """Open the card, if there is one, and make it current in the calling thread."""
        if self.status.ok and self._device is not None:
            self._device.bind()

    def plan(self, workload: Workload, *, wanted: bool = True) -> Decision:
        """Return where the workload would run; records nothing but the probe."""
        if not wanted or (self.overrides.force_cpu_intertile and workload.op.startswith("intertile")):
            return Decision(workload.op, "cpu", Reason.FORCED_CPU, 0, 0, 0)
        status = self.status
        given_up = self.given_up.get("*") or self.given_up.get(workload.op)
        if status.ok and given_up is not None:
            return Decision(workload.op, "cpu", given_up, 0, 0, 0)
        if self.mode == "require":
            workload = replace(workload, cpu_seconds=0.0)  # small work is no reason where the GPU is a must
        return decide(
            workload,
            status,
            self.budget,
            ceiling_bytes=self.ceilings.get(workload.op, 0),
            chunk_rows=self.overrides.chunk_rows,
        )

    def run(
        self,
        workload: Workload,
        gpu_body: GpuBody[T],
        cpu_body: CpuBody[T],
        *,
        emit: Callable[[int, int, T], None],
        cpu_rows: int = 0,
        cancel: CancelFlag | None = None,
        audit: Audit | None = None,
        wanted: bool = True,
        ahead: Ahead | None = None,
    ) -> RunReport:
        """Do all rows of a workload, each on the GPU or, for a recorded reason, on the CPU.

        Parameters
        ----------
        workload : Workload
            What the operation declares.
        gpu_body : callable
            ``(device, y0, y1, next_rows) -> result`` on the host. Idempotent, changes no input, keeps nothing
            on the card, and synchronises before it returns. ``next_rows`` is the chunk that will probably
            follow, for reading ahead; see ``ahead``.
        cpu_body : callable
            ``(y0, y1) -> result``, the same numbers.
        emit : callable
            ``(y0, y1, result)``, called once for each piece, in order of rows.
        cpu_rows : int
            Most rows of one CPU call; 0 for no limit.
        cancel : object with ``is_set()``, optional
            Looked at between chunks.
        audit : Audit, optional
            How to compare a piece of the result with the CPU.
        wanted : bool
            False when the caller was asked for the CPU.
        ahead : Ahead, optional
            The body, when it keeps the chunk it has begun for ``next_rows`` on the card. The workload then
            declares how many chunks are in flight.

        Raises
        ------
        Cancelled
            A stop was asked for.
        RunFailed
            In ``require`` mode, any fallback.
        """
        with self._lock:
            decision = self.plan(workload, wanted=wanted)
            report = RunReport(decision)
            job = Job(self, workload, report, gpu_body, cpu_body, emit, cpu_rows, cancel, audit, ahead)
            start = time.perf_counter()
            detail = job.detail_of(decision.reason)
            self.recorder.decision(workload, decision, self._budget, detail)
            try:
                if decision.device == "gpu":
                    self._run_on_card(job)
                else:
                    numbers = {
                        "needed_bytes": decision.estimated_bytes,
                        "rows": [workload.start, workload.rows],
                    }
                    job.leave_gpu(decision.reason, detail=detail, **numbers)
                    job.on_cpu(workload.start, workload.rows)
            finally:
                # Written for an operation that failed or was stopped too: its rows are the first ones only.
                job.report.seconds = time.perf_counter() - start
                self.recorder.operation(workload, job.report)
            return job.report

    def _run_on_card(self, job: Job) -> None:
        device = self._device
        assert device is not None  # a decision for the GPU is made from an open card only
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._lease(device.info.uuid, job.cancel))
            except LeaseTimeout as error:
                job.check_cancel()
                job.leave_gpu(
                    Reason.LEASE_TIMEOUT, detail=str(error), rows=[job.workload.start, job.workload.rows]
                )
                job.on_cpu(job.workload.start, job.workload.rows)
                return
            stack.enter_context(self.phase(job.workload.op))
            # Another policy of this process may have set its own limit meanwhile.
            if self._budget is not None:
                device.limit_pool(self._budget.usable)
            stack.callback(job.discard)
            run_chunks(job, device)

    @contextmanager
    def _lease(self, uuid: str, cancel: CancelFlag | None) -> Iterator[None]:
        if self._leases:  # an operation inside another one of this run
            self._leases += 1
            try:
                yield
            finally:
                self._leases -= 1
            return
        cancelled = (lambda: False) if cancel is None else cancel.is_set
        with device_lease(uuid, timeout_s=LEASE_TIMEOUT_SECONDS, cancelled=cancelled) as waited_s:
            if waited_s > 1.0:
                self.recorder.emit(
                    "lease", Reason.GPU, key="gpu_lease_waited", values={"seconds": round(waited_s)}
                )
            self._leases = 1
            try:
                yield
            finally:
                self._leases = 0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Give the card's memory back when the block ends, whatever happened in it."""
        try:
            yield
        finally:
            if self._leases <= 1:
                self.release(name)

    def release(self, name: str, *, collect: bool = False) -> seam.GpuFault | None:
        """Empty the pools, the one place that does; return what the card said against it, if anything.

        ``collect``: look for unreachable cycles first, which takes a moment; after a failure there may be some.
        """
        device = self._device
        if device is None or self._pid != os.getpid():
            return None
        if collect:
            gc.collect()
        fault, returned, numbers = None, 0, {}
        for _ in range(2):  # an error left behind by an earlier call surfaces here once
            try:
                returned = device.release()
                numbers = asdict(device.memory())
                break
            except Exception as error:  # noqa: BLE001 - reduced to a fault, or raised by fault_of
                fault = fault_of(error)
        if fault is not None:
            self.recorder.emit("release", FAULT_REASONS[fault.kind], op=name, level="DEBUG", fault=fault)
        elif returned:
            self.recorder.emit("release", Reason.GPU, op=name, level="DEBUG", returned=returned, **numbers)
        return fault

    def summary(self) -> dict[str, Any]:
        """Return device, budget, work share per operation, fallbacks, peaks and parity, JSON-serialisable."""
        status = self.status
        return {
            "mode": self.mode,
            "ok": status.ok,
            "reason": status.reason.value,
            "reason_key": status.reason_key,
            "detail": status.detail,
            "device": None if status.device is None else asdict(status.device),
            "budget": None if self._budget is None else asdict(self._budget),
            **self.recorder.summary(),
        }

    def report_lines(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the GPU section of the run report as text keys with their values."""
        return self.recorder.report_lines(self.status, self._budget)

    def close(self) -> None:
        """Empty the pools and record the sums of the run; a run that never asked for the card has none."""
        if self._status is None:
            return
        fault = self.release("run")
        if fault is None and self._device is not None and self._pid == os.getpid():
            self._device.limit_pool(0)
        sums = self.recorder.summary()
        chunks = {
            f"{side}_chunks": sum(op[f"{side}_chunks"] for op in sums["operations"].values())
            for side in ("gpu", "cpu")
        }
        values = {**chunks, "percent": f"{100 * sums['gpu_share']:.1f}", "fallbacks": len(sums["fallbacks"])}
        self.recorder.emit("summary", self._status.reason, key="gpu_summary_end", values=values)


def _memory_between_runs(device: seam.Device) -> seam.MemoryState:
    """Return what is free while no other run works on the card, if it lets go of it in time.

    Runs take turns, so what another one holds at this moment is not lost to this one.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(LeaseTimeout):
            stack.enter_context(device_lease(device.info.uuid, timeout_s=LEASE_TIMEOUT_SECONDS))
        device.release()
        return device.memory()


_DEFAULTS: dict[tuple[str, str], GpuPolicy] = {}
_DEFAULTS_LOCK = threading.Lock()


def default_policy(device: str = "", mode: str = "auto") -> GpuPolicy:
    """Return the policy of calls that bring none: environment respected, no ledger file, one per process."""
    with _DEFAULTS_LOCK:
        if (device, mode) not in _DEFAULTS:
            _DEFAULTS[device, mode] = GpuPolicy(device=device, mode=mode)
        return _DEFAULTS[device, mode]


def release_defaults(name: str) -> None:
    """Empty the pools of every card that a default policy opened; one that never asked for a card has none."""
    with _DEFAULTS_LOCK:
        policies = list(_DEFAULTS.values())
    for policy in policies:
        policy.release(name)


def run_with_fallback(
    workload: Workload, gpu: GpuBody[T], cpu: CpuBody[T], *, policy: GpuPolicy | None = None, **options: Any
) -> RunReport:
    """Run a workload under a policy, the process's own when none is given; see `GpuPolicy.run`."""
    return (policy or default_policy()).run(workload, gpu, cpu, **options)


@contextmanager
def gpu_phase(name: str, *, policy: GpuPolicy | None = None) -> Iterator[None]:
    """Give the card's memory back at the end of the block; see `GpuPolicy.phase`."""
    with (policy or default_policy()).phase(name):
        yield
