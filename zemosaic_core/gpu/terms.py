"""The nouns of the GPU policy: reasons, overrides, status, budget, decision, report. Data only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from zemosaic_core.errors import SettingsError
from zemosaic_core.gpu.device import DeviceInfo

__all__ = [
    "CALM_REASONS",
    "FAULT_REASONS",
    "PASSING_REASONS",
    "RUN_WIDE_REASONS",
    "SIMULATED_SIZES_MB",
    "Audit",
    "Budget",
    "CancelFlag",
    "Decision",
    "GpuStatus",
    "Overrides",
    "Parity",
    "Reason",
    "RunReport",
    "reason_values",
]

SIMULATED_SIZES_MB = {"mini": 512, "notebook": 2048, "4gb": 4096, "6gb": 6144, "8gb": 8192, "12gb": 12288}


class Reason(StrEnum):
    """Why an operation or a chunk runs where it runs. There are no other reasons."""

    GPU = "gpu"
    OFF = "off"
    FORCED_CPU = "forced_cpu"
    FORKED_CHILD = "forked_child"
    NO_DRIVER = "no_driver"
    CUPY_MISSING = "cupy_missing"
    CUPY_IMPORT_ERROR = "cupy_import_error"
    DRIVER_TOO_OLD = "driver_too_old"
    NO_DEVICE = "no_device"
    COMPUTE_CAPABILITY = "compute_capability"
    VRAM_TOO_SMALL = "vram_too_small"
    COMPILER_MISSING = "compiler_missing"
    SMOKE_FAILED = "smoke_failed"
    PROBE_TIMEOUT = "probe_timeout"
    PROBE_CRASHED = "probe_crashed"
    LEASE_TIMEOUT = "lease_timeout"
    INSUFFICIENT_MEMORY = "insufficient_memory"
    WORKLOAD_TOO_SMALL = "workload_too_small"
    OUT_OF_MEMORY = "out_of_memory"
    OVERCOMMITTED = "overcommitted"
    HOST_MEMORY = "host_memory"
    PAGEABLE = "pageable"
    RUNTIME_ERROR = "runtime_error"
    COMPILE_FAILED = "compile_failed"
    DEVICE_LOST = "device_lost"
    TOO_MANY_FAILURES = "too_many_failures"
    WRONG_RESULTS = "wrong_results"

    @property
    def text_key(self) -> str:
        """Text key of the short phrase for this reason."""
        return f"gpu_reason_{self.value}"

    @property
    def fallback_key(self) -> str:
        """Text key of the sentence that tells the user of a fallback for this reason."""
        return f"gpu_fallback_{_SENTENCES.get(self, 'unavailable')}"

    @property
    def required_key(self) -> str:
        """Text key of the error where the card is a must."""
        return "gpu_required_memory" if self is Reason.INSUFFICIENT_MEMORY else "gpu_required"


_SENTENCES = {
    Reason.OFF: "disabled",
    Reason.FORCED_CPU: "forced_cpu",
    Reason.INSUFFICIENT_MEMORY: "insufficient_memory",
    Reason.WORKLOAD_TOO_SMALL: "workload_too_small",
    Reason.OUT_OF_MEMORY: "runtime_error",
    Reason.HOST_MEMORY: "runtime_error",
    Reason.RUNTIME_ERROR: "runtime_error",
    Reason.COMPILE_FAILED: "runtime_error",
    Reason.DEVICE_LOST: "runtime_error",
    Reason.TOO_MANY_FAILURES: "runtime_error",
    Reason.WRONG_RESULTS: "wrong_results",
}
# Reasons somebody chose or wants, and those of a computer that has no such card; everything else deserves a warning.
CALM_REASONS = frozenset(
    {
        Reason.GPU,
        Reason.OFF,
        Reason.FORCED_CPU,
        Reason.WORKLOAD_TOO_SMALL,
        Reason.PAGEABLE,
        Reason.NO_DRIVER,
        Reason.NO_DEVICE,
    }
)
# Reasons that hold for all operations of a run: told once.
RUN_WIDE_REASONS = frozenset(Reason) - {
    Reason.GPU,
    Reason.FORCED_CPU,
    Reason.INSUFFICIENT_MEMORY,
    Reason.WORKLOAD_TOO_SMALL,
    Reason.OUT_OF_MEMORY,
    Reason.OVERCOMMITTED,
    Reason.HOST_MEMORY,
    Reason.RUNTIME_ERROR,
    Reason.COMPILE_FAILED,
    Reason.TOO_MANY_FAILURES,
}
# Reasons that may be gone at the next operation: the card is asked again.
PASSING_REASONS = frozenset({Reason.INSUFFICIENT_MEMORY})
FAULT_REASONS = {
    "oom": Reason.OUT_OF_MEMORY,
    "host_memory": Reason.HOST_MEMORY,
    "error": Reason.RUNTIME_ERROR,
    "compile": Reason.COMPILE_FAILED,
    "device_lost": Reason.DEVICE_LOST,
}


@dataclass(frozen=True)
class Overrides:
    """What the environment asks for; each wins over the setting of the same meaning.

    Attributes
    ----------
    mode : str
        ``ZEMOSAIC_GPU``: auto, off, require; empty when not given.
    device : str
        ``ZEMOSAIC_GPU_DEVICE``: index, UUID or part of the name.
    memory_mb, reserve_mb, chunk_rows : int
        ``ZEMOSAIC_GPU_MEMORY_MB``, ``ZEMOSAIC_GPU_RESERVE_MB`` (-1: not given), ``ZEMOSAIC_GPU_CHUNK_ROWS``.
    simulate_mb : int
        ``ZEMOSAIC_GPU_SIMULATE``: size in MB or one of `SIMULATED_SIZES_MB`, the card pretends to be smaller.
    force_cpu_intertile : bool
        ``ZEMOSAIC_FORCE_CPU_INTERTILE``.
    fault : str
        ``ZEMOSAIC_GPU_FAULT``, see `FaultScript`; heard only together with ``ZEMOSAIC_TESTING=1``.
    """

    mode: str = ""
    device: str = ""
    memory_mb: int = 0
    reserve_mb: int = -1
    chunk_rows: int = 0
    simulate_mb: int = 0
    force_cpu_intertile: bool = False
    fault: str = ""

    @staticmethod
    def from_environment(environ: Mapping[str, str]) -> Overrides:
        """Read the variables.

        Raises
        ------
        SettingsError
            A value is not understood.
        """
        mode = environ.get("ZEMOSAIC_GPU", "").strip().lower()
        if mode not in ("", "auto", "off", "require"):
            raise _bad_variable("ZEMOSAIC_GPU", mode, "auto, off, require")
        size = environ.get("ZEMOSAIC_GPU_SIMULATE", "").strip().lower()
        simulate = SIMULATED_SIZES_MB.get(size) or _whole(environ, "ZEMOSAIC_GPU_SIMULATE", 0)
        truth = environ.get("ZEMOSAIC_FORCE_CPU_INTERTILE", "").strip().lower()
        return Overrides(
            mode=mode,
            device=environ.get("ZEMOSAIC_GPU_DEVICE", "").strip(),
            memory_mb=_whole(environ, "ZEMOSAIC_GPU_MEMORY_MB", 0),
            reserve_mb=_whole(environ, "ZEMOSAIC_GPU_RESERVE_MB", -1),
            chunk_rows=_whole(environ, "ZEMOSAIC_GPU_CHUNK_ROWS", 0),
            simulate_mb=simulate,
            force_cpu_intertile=truth not in ("", "0", "false", "no", "off"),
            fault=environ.get("ZEMOSAIC_GPU_FAULT", "") if environ.get("ZEMOSAIC_TESTING") == "1" else "",
        )


def _whole(environ: Mapping[str, str], name: str, missing: int) -> int:
    text = environ.get(name, "").strip()
    if not text:
        return missing
    if not text.isdigit():
        raise _bad_variable(name, text, "a whole number >= 0")
    return int(text)


def _bad_variable(name: str, value: str, allowed: str) -> SettingsError:
    message = f"environment variable {name}={value!r} is not understood; allowed: {allowed}"
    return SettingsError("settings_bad_environment", message, name=name, value=value, allowed=allowed)


@dataclass(frozen=True)
class GpuStatus:
    """Whether a card can be used at all; ``detail`` is what the driver or the library said.

    ``unmet_wish`` names a card that was wished for and is not there, when another one is used instead.
    """

    ok: bool
    reason: Reason
    detail: str = ""
    device: DeviceInfo | None = None
    unmet_wish: str = ""

    @property
    def reason_key(self) -> str:
        """Text key of the reason."""
        return self.reason.text_key

    @property
    def fallback_key(self) -> str:
        """Text key of the sentence that tells of it before there is an operation with its numbers."""
        return "gpu_fallback_unavailable" if self.reason in PASSING_REASONS else self.reason.fallback_key

    @property
    def reason_values(self) -> dict[str, str]:
        """What the text of the reason needs."""
        return reason_values(self.reason, self.detail)


def reason_values(reason: Reason, detail: str = "") -> dict[str, str]:
    """Return what the text of a reason needs: what was said, or who switched the card off, as a text key."""
    values = {"reason": reason.value, "reason_key": reason.text_key, "detail": detail}
    if reason is Reason.OFF:
        values |= {"by_key": detail or "gpu_by_settings", "detail": ""}
    return values


@dataclass(frozen=True)
class Budget:
    """Bytes of the card when it was last asked: ``usable = min(free + pool_free - reserve, cap)`` or 0."""

    total: int
    free: int
    pool_free: int
    reserve: int
    cap: int
    usable: int

    def holds(self, n_bytes: float, fraction: float = 1.0) -> bool:
        """Whether this fraction of what is usable holds so many bytes."""
        return n_bytes <= fraction * self.usable


@dataclass(frozen=True)
class Decision:
    """Where an operation runs and in which chunks.

    ``limits`` holds every bound on the rows of a chunk that was considered, so that the choice can be derived
    again from the record. ``estimated_bytes`` is the planned peak on the card; when the CPU was chosen for
    lack of memory, what the smallest chunk would have needed.
    """

    op: str
    device: str
    reason: Reason
    chunk_rows: int
    n_chunks: int
    estimated_bytes: int
    limits: dict[str, int] = field(default_factory=dict)

    @property
    def reason_key(self) -> str:
        """Text key of the reason."""
        return self.reason.text_key


@dataclass(frozen=True)
class Parity:
    """CPU against GPU on some rows: largest difference in units of the noise, away from rejection ties."""

    max_difference: float
    compared: int
    flipped: int

    @property
    def ok(self) -> bool:
        """Whether the promise holds: 1e-4 of the noise, and at most one decision in ten thousand differs."""
        return self.max_difference <= 1e-4 and self.flipped <= max(2, self.compared // 10_000)


@dataclass(frozen=True)
class Audit:
    """How results are checked: ``compare(gpu_result, cpu_result, first_row)`` on some rows of a chunk.

    ``rows`` lie together; how many such places an operation is checked at follows from its size.
    """

    rows: int
    compare: Callable[[Any, Any, int], Parity]


@dataclass
class RunReport:
    """What became of one operation. ``pieces`` are the rows handed on, in order: ``(y0, y1, device)``."""

    decision: Decision
    pieces: list[tuple[int, int, str]] = field(default_factory=list)
    gpu_rows: int = 0
    cpu_rows: int = 0
    gpu_chunks: int = 0
    cpu_chunks: int = 0
    splits: int = 0
    fallbacks: int = 0
    peak_bytes: int = 0
    seconds: float = 0.0
    cpu_body_seconds: float = 0.0
    cpu_body_rows: int = 0
    parity: Parity | None = None

    def forget_pieces(self) -> None:
        """Note that nothing of what was handed on counts any more."""
        self.pieces.clear()
        self.gpu_rows = self.cpu_rows = self.gpu_chunks = self.cpu_chunks = 0

    def account(self, y0: int, y1: int, device: str) -> None:
        """Note that rows were handed on."""
        self.pieces.append((y0, y1, device))
        if device == "gpu":
            self.gpu_rows += y1 - y0
            self.gpu_chunks += 1
        else:
            self.cpu_rows += y1 - y0
            self.cpu_chunks += 1


class CancelFlag(Protocol):
    """Anything that can say that a stop was asked for."""

    def is_set(self) -> bool:
        """Whether a stop was asked for."""
