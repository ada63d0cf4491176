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
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from zemosaic_core.chunks import Workload
from zemosaic_core.errors import RunFailed, SettingsError
from zemosaic_core.gpu import device as seam
from zemosaic_core.gpu.budget import decide, make_budget
from zemosaic_core.gpu.experience import Experience
from zemosaic_core.gpu.ladder import Ahead, CpuBody, CpuRows, GpuBody, Job, Staging, fault_of, run_chunks
from zemosaic_core.gpu.probe import Finding, check_card
from zemosaic_core.gpu.probe import probe as probe_here
from zemosaic_core.gpu.recorder import Recorder
from zemosaic_core.gpu.terms import (
    CALM_REASONS,
    FAULT_REASONS,
    PASSING_REASONS,
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
from zemosaic_io.gpu_probe import Opened, forget, remembered_status, status_of

__all__ = [
    "CALM_REASONS",
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
    "gpu_is_available",
    "gpu_memory_sufficient",
    "gpu_phase",
    "gpu_status",
    "make_budget",
    "release_defaults",
    "run_with_fallback",
]

log = logging.getLogger(__name__)
T = TypeVar("T")
# Text key of who switched the card off when it was the environment.
BY_VARIABLE = "gpu_by_variable"
# How long a run waits for another one to leave the card.
LEASE_TIMEOUT_SECONDS = 30.0
# A card that could not be used is not asked again before this has passed: asking takes a second or two.
RETRY_SECONDS = 10.0


def gpu_status(*, refresh: bool = False, mode: str = "auto", choice: str = "") -> GpuStatus:
    """Return whether a card can be used. Safe without CuPy, in any thread or process; makes no CUDA context.

    Parameters
    ----------
    refresh : bool
        Look at the card, in a process of its own, which takes a second or two where there is one. Else a good
        answer that is on disk is believed.
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
    by = BY_VARIABLE if overrides.mode else ""
    return _status(overrides.mode or mode, overrides.device or choice, refresh=refresh, by=by)


def _status(mode: str, choice: str, *, refresh: bool = False, by: str = "") -> GpuStatus:
    if mode == "off":
        return GpuStatus(False, Reason.OFF, by)
    seated = seam.installed()
    if seated is not None:
        found = (
            status_of(check_card(seated))
            if refresh
            else status_of(Finding("ok", seated.info.name, seated.info))
        )
        return _with_wish(found, choice)
    if refresh:
        forget(choice)
    return _with_wish(remembered_status(choice, os.getpid(), _visible()), choice)


def _visible() -> str:
    """Return which cards the environment shows to CUDA; an empty list hides all of them."""
    return repr(os.environ.get("CUDA_VISIBLE_DEVICES"))


def gpu_is_available() -> bool:
    """Return whether a card really runs kernels here, now. Safe in any thread or process, makes no CUDA context.

    The answer is that of `gpu_status` with ``refresh``, and of every run.
    """
    return gpu_status(refresh=True).ok


def gpu_memory_sufficient(estimated_bytes: float, safety_fraction: float = 0.75) -> bool:
    """Return whether ``estimated_bytes <= safety_fraction * usable bytes`` of the card now; False without a card.

    `safety_fraction` is limited to 0.1 .. 0.9. What is usable is what the policy plans chunks with.
    """
    budget = default_policy().look()
    return budget is not None and budget.holds(estimated_bytes, min(max(safety_fraction, 0.1), 0.9))


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
    host_bytes : int
        What the processor's part of the run takes at the same time, see `make_budget`.
    asked_by : str
        Text key of who chose ``mode``; the settings when empty.
    ledger_path : Path or None
        JSON lines with every record; None keeps no file.
    on_record : callable, optional
        Called with every record (a dict with ``kind``, ``reason``, ``key``, ``values``, ``level``, numbers).
    environ : mapping, optional
        Instead of ``os.environ``.

    Raises
    ------
    SettingsError
        A variable is not understood, or one says that the card is a must and the other that it is off.
    """

    def __init__(
        self,
        *,
        mode: str = "auto",
        device: str | int | None = None,
        memory_mb: int = 0,
        host_bytes: int = 0,
        asked_by: str = "",
        ledger_path: Path | None = None,
        on_record: Callable[[dict[str, Any]], None] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.overrides = Overrides.from_environment(os.environ if environ is None else environ)
        if {self.overrides.mode, mode} == {"off", "require"}:
            raise _contradiction(self.overrides.mode, mode)
        self.mode = self.overrides.mode or mode
        self._asked_by = BY_VARIABLE if self.overrides.mode else asked_by
        self._choice = self.overrides.device or ("" if device is None else str(device))
        self._memory_mb = memory_mb
        self._host_bytes = host_bytes
        self._ledger = Ledger(ledger_path)
        self._on_record = on_record
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._leases = 0
        self._patient = True
        self._asked_at = 0.0
        self.said: dict[str, str] = {}
        self._status: GpuStatus | None = None
        self._device: seam.Device | None = None
        self._budget: Budget | None = None
        self.recorder = Recorder(self._keep)
        self._experience = Experience()
        self.ceilings = self._experience.ceilings
        self.given_up: dict[str, Reason] = {}

    def _keep(self, record: dict[str, Any]) -> None:
        try:
            self._ledger.write(record)
        except OSError as error:
            log.warning("the GPU ledger %s cannot be written: %s", self._ledger.path, error)
            self._ledger = Ledger(None)
        if self._on_record is not None:
            self._on_record(record)

    def adopt(self, record: Mapping[str, Any], host: str) -> None:
        """Keep a record of the policy of another machine in this ledger, with the name of that machine."""
        self._keep({**record, "host": host})

    @property
    def status(self) -> GpuStatus:
        """Whether a card can be used; recorded when it is first known.

        Asked once per run. Only a card without any free memory is asked again, when there is work for it.
        """
        with self._lock:
            if self._status is None:
                self._status = self._first_status()
                self._asked_at = time.monotonic()
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
        status = _status(self.mode, self._choice, by=self._asked_by)
        if not status.ok:
            return status
        device = seam.installed()
        if device is None:
            Opened.pid = os.getpid()
            finding, device = probe_here(self._choice, seam.FaultScript(self.overrides.fault))
            status = _with_wish(status_of(finding), self._choice)
            if not status.ok:
                forget(self._choice)  # what was remembered of it is not true any more
        if device is None:
            return status
        fault = None
        try:
            device.bind()
            self._take(device, self._memory_between_runs(device), limit=True)
        except Exception as error:  # noqa: BLE001 - reduced to a fault, or raised by fault_of
            fault = fault_of(error)
        if fault is not None:
            return GpuStatus(False, Reason.SMOKE_FAILED, f"{fault.type_name}: {fault.message}", status.device)
        self._device = device
        return status

    def _take(self, device: seam.Device, memory: seam.MemoryState, *, limit: bool) -> None:
        """Make the budget of a state of the card.

        It is the first line; the pool's own limit catches what was not declared. Whoever only asks sets none: the
        pool belongs to all policies of the process, and it may be the turn of another one.
        """
        self._budget = make_budget(
            memory,
            device.info,
            memory_mb=self._memory_mb,
            overrides=self.overrides,
            host_bytes=self._host_bytes,
        )
        if limit:
            device.limit_pool(self._budget.usable + memory.pool_used)

    def _memory_between_runs(self, device: seam.Device) -> seam.MemoryState:
        """Return what is free while no other run works on the card, if it lets go of it in time.

        Runs take turns, so what another one holds at this moment is not lost to this one.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(device_lease(device.info.uuid, timeout_s=LEASE_TIMEOUT_SECONDS))
            except LeaseTimeout:
                self._patient = False  # waited for once; from now on the card is taken when it is free
            device.release()
            return device.memory()

    @property
    def budget(self) -> Budget | None:
        """What may be used of the card, when it was last asked; None when there is none."""
        return self._budget if self.status.ok else None

    def look(self) -> Budget | None:
        """Ask the card what may be used of it now; None when there is none, or it does not answer any more."""
        self._ask_again()
        device = self._device
        if not self.status.ok or device is None or "*" in self.given_up:
            return None
        fault = None
        try:
            self._take(device, device.memory(), limit=self._leases > 0)
        except Exception as error:  # noqa: BLE001 - reduced to a fault, or raised by fault_of
            fault = fault_of(error)
        if fault is not None and fault.kind == "device_lost":
            self.given_up["*"] = Reason.DEVICE_LOST
            self.said["*"] = f"{fault.type_name}: {fault.message}"
            return None
        return self._budget

    def _ask_again(self) -> None:
        """Open a card that had no room for a context before: others may have left it meanwhile."""
        with self._lock:
            passing = self._pid == os.getpid() and self.status.reason in PASSING_REASONS
            if passing and time.monotonic() - self._asked_at > RETRY_SECONDS:
                self._asked_at = time.monotonic()
                forget(self._choice)
                status = self._first_status()
                if status.ok:
                    self._status = status
                    self.recorder.probe(status, self._budget)

    def is_stale(self) -> bool:
        """Whether it is known that this policy cannot use a card, which may have changed."""
        known = self._status
        useless = "*" in self.given_up or (known is not None and not known.ok)
        return useless and time.monotonic() - self._asked_at > RETRY_SECONDS

    def check_required(self) -> None:
        """Fail at once, and not at the first heavy phase, when the GPU is a must and there is none.

        Raises
        ------
        RunFailed
            ``gpu_required``, with the reason.
        """
        status = self.status
        if self.mode == "require" and not status.ok:
            values = self.recorder.fallback_values(status.reason, "run", detail=status.detail)
            said = f"{status.reason.value} {status.detail}".strip()
            raise RunFailed("gpu_required", f"the GPU is required but cannot be used: {said}", **values)

    def check_fits(self, decision: Decision) -> None:
        """Fail at once when the GPU is a must and what is planned cannot be done on it.

        Raises
        ------
        RunFailed
            ``gpu_required``, with the reason.
        """
        if self.mode != "require" or decision.device == "gpu":
            return
        usable = self._budget.usable if self._budget is not None else 0
        values = self.recorder.fallback_values(
            decision.reason, decision.op, needed_bytes=decision.estimated_bytes, usable_bytes=usable
        )
        message = f"the GPU is required but {decision.op} cannot use it: {decision.reason.value}"
        raise RunFailed(decision.reason.required_key, message, **values)

    def bind(self) -> None:
        """Open the card, if there is one, and make it current in the calling thread."""
        if self.status.ok and self._device is not None:
            self._device.bind()

    def plan(self, workload: Workload, *, wanted: bool = True) -> Decision:
        """Return where the workload would run with what is free now; records nothing but the probe."""
        # The caller was asked for the CPU, or ZEMOSAIC_FORCE_CPU_INTERTILE is set; unset it to override.
        if not wanted or (self.overrides.force_cpu_intertile and workload.op.startswith("intertile")):
            return Decision(workload.op, "cpu", Reason.FORCED_CPU, 0, 0, 0)
        budget = self.look()
        status = self.status
        # A card that was lost or computed wrongly, or a kernel that does not compile: a new run tries again.
        given_up = self.given_up.get("*") or self.given_up.get(workload.op)
        if status.ok and given_up is not None:
            return Decision(workload.op, "cpu", given_up, 0, 0, 0)
        # Small work is no reason where the GPU is a must.
        untimed = self.mode == "require"
        workload = replace(workload, cpu_seconds=0.0) if untimed else self._experience.timed(workload)
        return decide(
            workload,
            status,
            budget,
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
        cpu_rows: CpuRows = 0,
        cancel: CancelFlag | None = None,
        audit: Audit | None = None,
        wanted: bool = True,
        ahead: Ahead | None = None,
        staging: Staging | None = None,
        restart: Callable[[], object] | None = None,
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
            ``(y0, y1, result)``, called once for each piece, in order of rows; see ``restart``.
        cpu_rows : int or callable
            Most rows of one CPU call; 0 for no limit. Or a function that cuts rows ``(y0, y1)`` into those of calls.
        cancel : object with ``is_set()``, optional
            Looked at between chunks.
        audit : Audit, optional
            How to compare a piece of the result with the CPU.
        wanted : bool
            False when the caller was asked for the CPU.
        ahead : Ahead, optional
            The body, when it keeps the chunk it has begun for ``next_rows`` on the card. The workload then
            declares how many chunks are in flight.
        staging : Staging, optional
            The body, when it stages in page-locked memory.
        restart : callable, optional
            Called when the card turns out to compute wrongly after pieces were handed on: they do not count any
            more, and ``emit`` gets all rows once more, from the first one. Without it, the rest comes from the CPU.

        Raises
        ------
        Cancelled
            A stop was asked for.
        RunFailed
            In ``require`` mode, any fallback.
        """
        with self._lock, contextlib.ExitStack() as turn:
            decision, said = self._decision_in_turn(workload, wanted, cancel, turn)
            report = RunReport(decision)
            job = Job(
                self, workload, report, gpu_body, cpu_body, emit, cpu_rows, cancel, audit, ahead, staging, restart
            )  # fmt: skip
            start = time.perf_counter()
            detail = said or job.detail_of(decision.reason)
            self.recorder.decision(workload, decision, self._budget, detail)
            try:
                if decision.device == "gpu":
                    self._run_on_card(job)
                else:
                    turn.close()
                    job.check_cancel()
                    numbers = {
                        "needed_bytes": decision.estimated_bytes,
                        "rows": [workload.start, workload.rows],
                    }
                    job.leave_gpu(decision.reason, detail=detail, **numbers)
                    job.on_cpu(workload.start, workload.rows)
            finally:
                # Written for an operation that failed or was stopped too: its rows are the first ones only.
                report.seconds = time.perf_counter() - start
                usable = self._budget.usable if self._budget is not None else 0
                self._experience.learn(workload, report, usable)
                self.recorder.operation(workload, report)
            return report

    def _decision_in_turn(
        self, workload: Workload, wanted: bool, cancel: CancelFlag | None, turn: contextlib.ExitStack
    ) -> tuple[Decision, str]:
        """Decide, with the card to ourselves if it may be used; return also what is known of the reason.

        What is free counts only when it is our turn: another run gives back what it holds at the end of its own.
        """
        decision = self.plan(workload, wanted=wanted)
        if self._device is None or decision.reason not in (Reason.GPU, Reason.INSUFFICIENT_MEMORY):
            return decision, ""
        try:
            turn.enter_context(self._lease(self._device.info.uuid, cancel))
        except LeaseTimeout as error:
            # Another run keeps the card. To override: let it end; this run takes the card as soon as it is free.
            return Decision(workload.op, "cpu", Reason.LEASE_TIMEOUT, 0, 0, decision.estimated_bytes), str(
                error
            )
        return self.plan(workload, wanted=wanted), ""

    def _run_on_card(self, job: Job) -> None:
        device = self._device
        assert device is not None  # a decision for the GPU is made from an open card only
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.phase(job.workload.op))
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
        timeout_s = LEASE_TIMEOUT_SECONDS if self._patient else 0.0
        self._patient = False
        with device_lease(uuid, timeout_s=timeout_s, cancelled=cancelled) as waited_s:
            self._patient = timeout_s > 0
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
            "by_key": status.reason_values.get("by_key", ""),
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


def _contradiction(variable: str, asked: str) -> SettingsError:
    message = (
        f"ZEMOSAIC_GPU={variable} contradicts the {asked!r} of the settings or of --gpu; change one of them"
    )
    return SettingsError(
        "settings_gpu_variable", message, variable="ZEMOSAIC_GPU", value=variable, asked=asked
    )


_DEFAULTS: dict[Any, GpuPolicy] = {}
_DEFAULTS_LOCK = threading.Lock()


def default_policy(device: str = "", mode: str = "auto") -> GpuPolicy:
    """Return the policy of calls that bring none: environment respected, no ledger file.

    One per process, environment and card; one that found no card is asked again by the next call.
    """
    overrides = Overrides.from_environment(os.environ)
    key = (device, mode, overrides, _visible(), seam.installed())
    with _DEFAULTS_LOCK:
        policy = _DEFAULTS.get(key)
        if policy is not None and policy.is_stale():
            remembered_status.cache_clear()
            policy = None
        if policy is None:
            policy = _DEFAULTS[key] = GpuPolicy(device=device, mode=mode)
        return policy


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
