"""The seam to the graphics card: a small set of calls that CuPy answers, or a simulated card in tests.

Knows nothing of operations, policies or reasons. Everything above it works with `Device`, so that a card can
be replaced by `install` without touching any imported library.
"""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

__all__ = [
    "CupyDevice",
    "Device",
    "DeviceInfo",
    "FaultScript",
    "GpuFault",
    "Kernel",
    "MemoryState",
    "classify",
    "devices_in_order",
    "import_cupy",
    "install",
    "installed",
    "is_asked_for",
]

# CUDA error numbers after which every later call of the process fails too.
STICKY_STATUS = frozenset({214, 700, 702, 710, 714, 715, 716, 717, 718, 719, 999})
# 2: out of memory. 208: "already mapped", which the pinned allocator answers when the host cannot lock more.
OOM_STATUS = frozenset({2, 208})
# Numbers of `cudaDeviceAttr`. The structure of all properties loses fields with every major version of CUDA;
# these questions stay.
_KERNEL_TIMEOUT, _INTEGRATED = 17, 18
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
_SHARED_BYTES, _SHARED_BYTES_OPT_IN = 8, 97

FaultKind = Literal["oom", "host_memory", "device_lost", "compile", "error"]


@dataclass(frozen=True)
class DeviceInfo:
    """What a card is.

    Attributes
    ----------
    name, uuid : str
        Marketing name and the identifier that stays the same across reboots.
    index : int
        CUDA number, in PCI order.
    compute_capability : int
        ``10 * major + minor``.
    total_bytes : int
        Memory of the card.
    drives_display : bool
        Kernels that run for seconds are killed by the system.
    integrated : bool
        Shares the memory of the processor.
    shared_bytes : int
        Largest shared memory of one block.
    driver_version, runtime_version : int
        As CUDA numbers them (12090 = 12.9).
    library : str
        Library and version behind the device.
    simulated : bool
        Not a real card.
    """

    name: str
    uuid: str
    index: int = 0
    compute_capability: int = 0
    total_bytes: int = 0
    drives_display: bool = False
    integrated: bool = False
    shared_bytes: int = 48 * 1024
    driver_version: int = 0
    runtime_version: int = 0
    library: str = ""
    simulated: bool = False


@dataclass(frozen=True)
class MemoryState:
    """Bytes on the card: all, free for everybody, handed out by our pool, held by our pool."""

    total: int
    free: int
    pool_used: int
    pool_total: int

    @property
    def pool_free(self) -> int:
        """Bytes our pool holds without using them."""
        return self.pool_total - self.pool_used


@dataclass(frozen=True)
class GpuFault:
    """An error of the card or its libraries, reduced to what may be kept (never the exception itself).

    An exception that is kept alive keeps its frames alive, and with them the arrays that filled the card.
    """

    kind: FaultKind
    type_name: str
    message: str
    status: int = 0


class Kernel(Protocol):
    """A compiled kernel."""

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: Sequence[Any],
        *,
        shared_bytes: int = 0,
        stream: Any,
    ) -> None:
        """Launch on ``stream``; ``args`` are device arrays and NumPy scalars in the kernel's own types."""


class Device(Protocol):
    """One card as the engine sees it. Arrays are opaque: ``shape``, ``dtype``, ``nbytes``, nothing else."""

    info: DeviceInfo

    def bind(self) -> None:
        """Make this card current in the calling thread."""

    def memory(self) -> MemoryState:
        """Return what the driver and the pool say now."""

    def limit_pool(self, n_bytes: int) -> None:
        """Refuse to let the pool grow beyond ``n_bytes``; 0 removes the limit."""

    def release(self) -> int:
        """Wait for the card, give every unused block back to the driver, return the bytes given back."""

    def peak_bytes(self, *, reset: bool = False) -> int:
        """Return the largest number of pool bytes in use since the last reset."""

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return an uninitialised array on the card."""

    def pinned(self, n_bytes: int) -> np.ndarray:
        """Return page-locked host memory as uint8, freed with the array."""

    def stream(self) -> Any:
        """Return a new stream that does not wait for the default one."""

    def copy_in(self, target: Any, host: np.ndarray, stream: Any, offset: int = 0) -> None:
        """Queue a copy of a contiguous host array into ``target``, ``offset`` bytes from its start.

        ``host`` must live and stay as it is until the copy was waited for.
        """

    def copy_out(self, host: np.ndarray, source: Any, stream: Any) -> None:
        """Queue a copy of ``source`` into a contiguous host array."""

    def fill(self, target: Any, byte: int, stream: Any) -> None:
        """Queue setting every byte of ``target``."""

    def record(self, stream: Any) -> Any:
        """Return an event behind everything queued on ``stream``."""

    def wait(self, stream: Any, event: Any) -> None:
        """Let ``stream`` wait for ``event``."""

    def synchronize(self, waitable: Any = None) -> None:
        """Wait for a stream or an event, or for the whole card; late errors surface here."""

    def kernel(self, source: str, name: str, options: tuple[str, ...] = ()) -> Kernel:
        """Return a compiled kernel; compiled once per device, source and options."""


def classify(error: BaseException) -> GpuFault | None:
    """Return what an error says about the card, or None when it is not the card's (a bug: raise it)."""
    kind: FaultKind | None = None
    names = {cls.__name__ for cls in type(error).__mro__}
    status = int(getattr(error, "status", 0) or 0)
    text = str(error)
    if "OutOfMemoryError" in names or (status in OOM_STATUS and names & _CUDA_ERRORS):
        kind = "oom"
    elif names & _COMPILER_ERRORS or (isinstance(error, RuntimeError) and "CUDA headers" in text):
        kind = "compile"
    elif names & _CUDA_ERRORS:
        kind = "device_lost" if status in STICKY_STATUS else "error"
    elif isinstance(error, MemoryError):  # the card's own is named above
        kind = "host_memory"
    if kind is None:
        return None
    return GpuFault(kind, type(error).__name__, text[:300], status)


_CUDA_ERRORS = frozenset({"CUDARuntimeError", "CUDADriverError"})
_COMPILER_ERRORS = frozenset({"CompileException", "NVRTCError", "DynamicLibNotFoundError", "JitifyException"})


class FaultScript:
    """Failures on order, for tests: ``oom@3`` fails the third allocation, ``sticky700@9`` kills at call 9.

    Forms, separated by commas: ``oom@k``, ``oom>bytes``, ``error<status>@k`` (once), ``sticky<status>@k``
    (and everything after). Calls of every kind are counted for ``error`` and ``sticky``, allocations for
    ``oom``.

    Raises
    ------
    ValueError
        A part is not understood.
    """

    def __init__(self, text: str = "") -> None:
        self.calls = 0
        self.allocations = 0
        self.dead_status = 0
        self._oom_at: set[int] = set()
        self._oom_above = 0
        self._errors: dict[int, tuple[int, bool]] = {}
        for part in filter(None, (p.strip() for p in text.split(","))):
            head, mark, number = part.partition("@") if "@" in part else part.partition(">")
            if not number.isdigit():
                raise ValueError(
                    f"fault {part!r} is not understood; use oom@3, oom>1000000, error1@5 or sticky700@9"
                )
            if head == "oom" and mark == "@":
                self._oom_at.add(int(number))
            elif head == "oom":
                self._oom_above = int(number)
            elif head.removeprefix("error").isdigit():
                self._errors[int(number)] = (int(head.removeprefix("error")), False)
            elif head.removeprefix("sticky").isdigit():
                self._errors[int(number)] = (int(head.removeprefix("sticky")), True)
            else:
                raise ValueError(
                    f"fault {part!r} is not understood; use oom@3, oom>1000000, error1@5 or sticky700@9"
                )

    def next_call(self, allocation_bytes: int | None = None) -> int:
        """Count a call; return the CUDA status it has to fail with, or 0."""
        self.calls += 1
        if self.dead_status:
            return self.dead_status
        if self.calls in self._errors:
            status, sticky = self._errors[self.calls]
            self.dead_status = status if sticky else 0
            return status
        if allocation_bytes is not None:
            self.allocations += 1
            if self.allocations in self._oom_at or 0 < self._oom_above < allocation_bytes:
                return 2
        return 0


def import_cupy() -> Any:
    """Import CuPy with a cache folder it can write to and devices numbered in PCI order.

    CuPy creates its cache folder while it is imported and dies with OSError when the home folder is
    read-only; an environment variable set before the import is the only way to move it.

    Raises
    ------
    ImportError, OSError, RuntimeError
        As CuPy raises them.
    """
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    # As CuPy spells it: without a home folder this stays relative, where Path.home() raises.
    folder = Path(os.path.expanduser("~/.cupy/kernel_cache"))
    if "CUPY_CACHE_DIR" not in os.environ and not (folder.is_absolute() and _can_create(folder)):
        user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
        os.environ["CUPY_CACHE_DIR"] = str(Path(tempfile.gettempdir()) / f"zemosaic-cupy-{user}")
    return importlib.import_module("cupy")


def _can_create(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def devices_in_order(infos: Sequence[DeviceInfo], choice: str) -> list[DeviceInfo]:
    """Return the cards to try, the one to be preferred first.

    Parameters
    ----------
    infos : sequence of DeviceInfo
        All cards of the machine.
    choice : str
        An index, the start of a UUID, or a part of the name: only the cards that it names, those whose
        name ends with it if there are any. Empty or ``auto``: all, discrete before integrated, then the most memory
        first. With a ``~`` before it, it is only a wish: the cards it names come first, all others behind them.

    Raises
    ------
    LookupError
        No card fits.
    """
    ranked = sorted(infos, key=lambda info: (info.integrated, -info.total_bytes, info.index))
    if not ranked:
        raise LookupError("no device")
    wanted = choice.strip()
    if not wanted.removeprefix("~") or wanted.lower() == "auto":
        return ranked
    named = [info for info in ranked if is_asked_for(info, wanted)]
    # "RTX 3060" is the end of one name and the middle of another, "RTX 3060 Ti".
    exact = [info for info in named if _plain_name(info.name).endswith(_plain_name(wanted.removeprefix("~")))]
    if wanted.startswith("~"):
        return sorted(ranked, key=lambda info: (info not in exact, info not in named))
    if not named:
        raise LookupError(f"no device {choice!r} among {[f'{info.index}: {info.name}' for info in infos]}")
    return exact or named


def is_asked_for(info: DeviceInfo, choice: str) -> bool:
    """Return whether a choice as `devices_in_order` takes it names this card; an empty one names every card."""
    wanted = choice.strip().removeprefix("~").strip().lower()
    if wanted in ("", "auto"):
        return True
    if wanted.isdecimal():
        # A whole word of a name, as "3060"; a device number that is not there must not find a card.
        return int(wanted) == info.index or (len(wanted) > 2 and wanted in _plain_name(info.name).split())
    start = wanted.removeprefix("gpu-").replace("-", "")
    if len(start) > 3 and info.uuid.lower().startswith(start):
        return True
    return _plain_name(wanted) in _plain_name(
        info.name
    )  # of "NVIDIA" alone nothing is left: any card will do


def _plain_name(name: str) -> str:
    """Return a card's name as CUDA and the desktop both spell it: without maker, and without "Laptop GPU"."""
    words = name.lower().replace("(r)", " ").replace("(tm)", " ").split()
    return " ".join(word for word in words if word not in ("nvidia", "laptop", "gpu"))


def _text(value: Any) -> str:
    return value.decode(errors="replace").rstrip("\0") if isinstance(value, bytes) else str(value)


def _identity(uuid: bytes, pci: str) -> str:
    """Return what tells a card from all others here, the same in every process.

    CuPy reads the sixteen bytes as a C string: they end at the first zero byte, and run on into what lies behind
    when there is none.
    """
    return uuid[:16].hex() if len(uuid) >= 16 else f"{uuid.hex()}-{pci}".lstrip("-")


class CupyDevice:
    """A real card through CuPy. Build it only in the process that works with it: it makes a CUDA context."""

    def __init__(self, index: int, *, faults: FaultScript | None = None) -> None:
        self._cupy = import_cupy()
        self._runtime = self._cupy.cuda.runtime
        self._index = index
        self._faults = faults or FaultScript()
        self._kernels: dict[tuple[str, str, tuple[str, ...]], Kernel] = {}
        self._peak = 0
        self._card = self._cupy.cuda.Device(index)
        self.info = self.describe(index)
        self.bind()

    @staticmethod
    def describe(index: int) -> DeviceInfo:
        """Return the facts of one card."""
        cupy = import_cupy()
        runtime = cupy.cuda.runtime
        properties = runtime.getDeviceProperties(index)

        def attribute(number: int) -> int:
            return int(runtime.deviceGetAttribute(number, index))

        return DeviceInfo(
            name=_text(properties["name"]),
            uuid=_identity(properties.get("uuid") or b"", runtime.deviceGetPCIBusId(index)),
            index=index,
            compute_capability=10 * attribute(_CAPABILITY_MAJOR) + attribute(_CAPABILITY_MINOR),
            total_bytes=int(properties["totalGlobalMem"]),
            drives_display=bool(attribute(_KERNEL_TIMEOUT)),
            integrated=bool(attribute(_INTEGRATED)),
            # A card too old to be asked for more has what every block gets.
            shared_bytes=attribute(_SHARED_BYTES_OPT_IN) or attribute(_SHARED_BYTES),
            driver_version=int(runtime.driverGetVersion()),
            runtime_version=int(runtime.runtimeGetVersion()),
            library=f"cupy {cupy.__version__}",
        )

    def _step(self, allocation_bytes: int | None = None) -> None:
        self.bind()
        status = self._faults.next_call(allocation_bytes)
        if status == 2 and allocation_bytes is not None:
            raise self._cupy.cuda.memory.OutOfMemoryError(allocation_bytes, 0, 0)
        if status:
            raise self._runtime.CUDARuntimeError(status)

    def bind(self) -> None:
        """Make this card current in the calling thread; the current card is a property of each thread."""
        self._card.use()

    def memory(self) -> MemoryState:
        """Return what the driver and the pool say now."""
        self._step()
        free, total = self._runtime.memGetInfo()
        pool = self._cupy.get_default_memory_pool()
        return MemoryState(int(total), int(free), int(pool.used_bytes()), int(pool.total_bytes()))

    def limit_pool(self, n_bytes: int) -> None:
        """Refuse to let the pool grow beyond ``n_bytes``; 0 removes the limit."""
        self.bind()  # pools and their limits belong to the card that is current
        self._cupy.get_default_memory_pool().set_limit(size=n_bytes)

    def release(self) -> int:
        """Wait for the card, give every unused block back to the driver, return the bytes given back."""
        self.synchronize()
        pool = self._cupy.get_default_memory_pool()
        before = int(pool.total_bytes())
        pool.free_all_blocks()
        self._cupy.get_default_pinned_memory_pool().free_all_blocks()
        return before - int(pool.total_bytes())

    def peak_bytes(self, *, reset: bool = False) -> int:
        """Return the largest number of pool bytes in use since the last reset."""
        peak = self._peak
        if reset:
            self.bind()
            self._peak = int(self._cupy.get_default_memory_pool().used_bytes())
        return peak

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return an uninitialised array on the card."""
        dtype = np.dtype(dtype)
        self._step(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        array = self._cupy.empty(shape, dtype)
        # Every allocation of the engine passes here, so the pool's own count needs no hook.
        self._peak = max(self._peak, int(self._cupy.get_default_memory_pool().used_bytes()))
        return array

    def pinned(self, n_bytes: int) -> np.ndarray:
        """Return page-locked host memory as uint8, freed with the array.

        CuPy's pinned pool rounds up to a power of two and keeps what it has; this does neither.
        """
        self._step(n_bytes)
        memory = self._cupy.cuda.PinnedMemory(n_bytes)
        return np.frombuffer(self._cupy.cuda.PinnedMemoryPointer(memory, 0), np.uint8, n_bytes)

    def stream(self) -> Any:
        """Return a new stream that does not wait for the default one."""
        self._step()
        return self._cupy.cuda.Stream(non_blocking=True)

    def copy_in(self, target: Any, host: np.ndarray, stream: Any, offset: int = 0) -> None:
        """Queue a copy of a contiguous host array into ``target``, ``offset`` bytes from its start."""
        _check_copy(host, target, offset)
        self._step()
        self._runtime.memcpyAsync(target.data.ptr + offset, host.ctypes.data, host.nbytes, 1, stream.ptr)

    def copy_out(self, host: np.ndarray, source: Any, stream: Any) -> None:
        """Queue a copy of ``source`` into a contiguous host array."""
        _check_copy(host, source)
        self._step()
        self._runtime.memcpyAsync(host.ctypes.data, source.data.ptr, host.nbytes, 2, stream.ptr)

    def fill(self, target: Any, byte: int, stream: Any) -> None:
        """Queue setting every byte of ``target``."""
        self._step()
        self._runtime.memsetAsync(target.data.ptr, byte, target.nbytes, stream.ptr)

    def record(self, stream: Any) -> Any:
        """Return an event behind everything queued on ``stream``."""
        return stream.record(self._cupy.cuda.Event(disable_timing=True))

    def wait(self, stream: Any, event: Any) -> None:
        """Let ``stream`` wait for ``event``."""
        stream.wait_event(event)

    def synchronize(self, waitable: Any = None) -> None:
        """Wait for a stream or an event, or for the whole card; late errors surface here."""
        self._step()
        if waitable is None:
            self._runtime.deviceSynchronize()
        else:
            waitable.synchronize()

    def kernel(self, source: str, name: str, options: tuple[str, ...] = ()) -> Kernel:
        """Return a compiled kernel; compiled once per device, source and options."""
        key = (source, name, options)
        if key not in self._kernels:
            self._step()
            module = self._cupy.RawModule(code=source, options=("-std=c++17", "--fmad=false", *options))
            function = module.get_function(name)  # compiles
            self._kernels[key] = _CupyKernel(function, self._step)
        return self._kernels[key]


class _CupyKernel:
    def __init__(self, function: Any, step: Any) -> None:
        self._function = function
        self._step = step

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: Sequence[Any],
        *,
        shared_bytes: int = 0,
        stream: Any,
    ) -> None:
        self._step()
        # More than 48 KiB of shared memory must be asked for.
        if shared_bytes > 48 * 1024:
            self._function.max_dynamic_shared_size_bytes = shared_bytes
        with stream:
            self._function(grid, block, tuple(args), shared_mem=shared_bytes)


def _check_copy(host: np.ndarray, device_array: Any, offset: int = 0) -> None:
    if not host.flags.c_contiguous:
        raise ValueError("only contiguous host arrays can be copied to or from the device")
    if offset + host.nbytes > device_array.nbytes:
        raise ValueError(
            f"{offset} + {host.nbytes} bytes do not fit a device array of {device_array.nbytes} bytes"
        )


class _Seat:
    """Holds the one device that replaces the real one; None almost always."""

    device: Device | None = None


def installed() -> Device | None:
    """Return the device put in place by `install`, if any."""
    return _Seat.device


@contextmanager
def install(device: Device) -> Iterator[Device]:
    """Let this process use ``device`` instead of looking for a card, inside the ``with`` block."""
    before = _Seat.device
    _Seat.device = device
    try:
        yield device
    finally:
        _Seat.device = before
