"""A graphics card without a card: exact memory accounting, late execution, the project's own CUDA text.

The text runs through the host compiler. Strict about what a real card is strict about: argument types, array
bounds (guard zones), memory given back while queued work uses it, results read too early, uninitialised memory.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from zemosaic_core.chunks import round_up
from zemosaic_core.gpu.device import DeviceInfo, FaultScript, MemoryState

__all__ = ["CUDARuntimeError", "CompileException", "OutOfMemoryError", "SimulatedDevice", "compile_for_host"]

GUARD = 256
CANARY = 0xA5
POISON = 0xCB
COMPILER = shutil.which("g++") or shutil.which("clang++")


class OutOfMemoryError(MemoryError):
    """Named and shaped like CuPy's."""


class CUDARuntimeError(RuntimeError):
    """Named and shaped like CuPy's."""

    def __init__(self, status: int) -> None:
        super().__init__(f"cudaError {status}")
        self.status = status


class CompileException(Exception):
    """Named like CuPy's."""


class _Pool:
    """CuPy's pool: 512-byte pieces cut from driver allocations, best fit, split and merged."""

    def __init__(self, device: SimulatedDevice) -> None:
        self.device = device
        self.segments: list[list[list]] = []  # each segment: [size, used] pieces in order of address
        self.used = 0
        self.total = 0
        self.limit = 0
        self.peak = 0

    def malloc(self, n_bytes: int) -> tuple[list[list], list]:
        size = round_up(max(n_bytes, 1))
        best = None
        for segment in self.segments:
            for piece in segment:
                if not piece[1] and piece[0] >= size and (best is None or piece[0] < best[1][0]):
                    best = (segment, piece)
        if best is None:
            best = self._grow(size)
        segment, piece = best
        if piece[0] > size:
            at = next(i for i, other in enumerate(segment) if other is piece)
            segment.insert(at + 1, [piece[0] - size, False])
            piece[0] = size
        piece[1] = True
        self.used += size
        self.peak = max(self.peak, self.used)
        return segment, piece

    def _grow(self, size: int) -> tuple[list[list], list]:
        for attempt in range(3):
            over_limit = self.limit and self.total + size > self.limit
            if not over_limit and self.device.driver_malloc(size):
                self.total += size
                segment = [[size, False]]
                self.segments.append(segment)
                return segment, segment[0]
            if attempt < 2:
                gc.collect()
                self.free_all()
        raise OutOfMemoryError(
            f"Out of memory allocating {size:,} bytes (allocated so far: {self.total:,} bytes)."
        )

    def free(self, segment: list[list], piece: list) -> None:
        piece[1] = False
        self.used -= piece[0]
        merged: list[list] = []
        for other in segment:
            if merged and not merged[-1][1] and not other[1]:
                merged[-1][0] += other[0]
            else:
                merged.append(other)
        segment[:] = merged

    def free_all(self) -> int:
        gone = [s for s in self.segments if len(s) == 1 and not s[0][1]]
        self.segments = [s for s in self.segments if not (len(s) == 1 and not s[0][1])]
        returned = sum(s[0][0] for s in gone)
        self.total -= returned
        return returned


class _Block:
    """Bytes with guard zones on either side."""

    def __init__(self, n_bytes: int) -> None:
        self.bytes = np.empty(n_bytes + 2 * GUARD, np.uint8)
        self.bytes[:GUARD] = CANARY
        self.bytes[GUARD : GUARD + n_bytes] = POISON
        self.bytes[GUARD + n_bytes :] = CANARY
        self.n_bytes = n_bytes
        self.freed = False

    @property
    def data(self) -> np.ndarray:
        return self.bytes[GUARD : GUARD + self.n_bytes]

    def check(self) -> None:
        if not (
            np.all(self.bytes[:GUARD] == CANARY) and np.all(self.bytes[GUARD + self.n_bytes :] == CANARY)
        ):
            raise AssertionError("a kernel wrote outside its array")


class SimulatedArray:
    """Memory on the simulated card; NumPy cannot look into it by accident."""

    def __init__(self, device: SimulatedDevice, shape: tuple[int, ...], dtype: Any) -> None:
        self.shape = tuple(int(n) for n in shape)
        self.dtype = np.dtype(dtype)
        self.nbytes = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        segment, piece = device.pool.malloc(self.nbytes)
        self.block = _Block(self.nbytes)
        device.arrays.add(self)
        weakref.finalize(self, _free, device, segment, piece, self.block)

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")


def _free(device: SimulatedDevice, segment: list[list], piece: list, block: _Block) -> None:
    with device.lock:
        block.freed = True
        device.pool.free(segment, piece)


def locked(method: Callable) -> Callable:
    """Let one thread at a time use the card, as a driver does."""

    @functools.wraps(method)
    def call(self, *args, **options):
        with self.lock:
            return method(self, *args, **options)

    return call


class SimulatedStream:
    """Work that waits until somebody waits for it."""

    def __init__(self) -> None:
        self.queue: deque[Callable[[], None]] = deque()
        self.done = 0
        self.queued = 0

    def push(self, work: Callable[[], None]) -> None:
        self.queue.append(work)
        self.queued += 1

    def run_until(self, position: int) -> None:
        while self.done < position:
            self.done += 1
            self.queue.popleft()()


class SimulatedEvent:
    def __init__(self, stream: SimulatedStream) -> None:
        self.stream = stream
        self.position = stream.queued


class SimulatedDevice:
    """See the module. ``other`` bytes belong to other processes; ``hooks`` see every call, may interfere."""

    def __init__(
        self,
        total: int = 1 << 30,
        *,
        other: int = 0,
        name: str = "Simulated GPU",
        faults: str = "",
        shared_bytes: int = 99 * 1024,
        drives_display: bool = False,
        no_compiler: bool = False,
    ) -> None:
        self.info = DeviceInfo(
            name=name,
            uuid=f"simulated-{os.getpid()}-{id(self):x}",
            compute_capability=89,
            total_bytes=total,
            drives_display=drives_display,
            shared_bytes=shared_bytes,
            driver_version=12090,
            runtime_version=12090,
            library="simulated",
            simulated=True,
        )
        self.lock = threading.RLock()
        self.total = total
        self.other = other
        self.pool = _Pool(self)
        self.faults = FaultScript(faults)
        self.hooks: list[Callable[[SimulatedDevice, str, int], None]] = []
        self.arrays: weakref.WeakSet[SimulatedArray] = weakref.WeakSet()
        self.streams: weakref.WeakSet[SimulatedStream] = weakref.WeakSet()
        self.no_compiler = no_compiler
        self.free_lie = 1.0
        self.launches: list[str] = []
        self.late_status = 0
        self._kernels: dict[tuple[str, str, tuple[str, ...]], SimulatedKernel] = {}

    def step(self, kind: str, n_bytes: int | None = None) -> None:
        for hook in self.hooks:
            hook(self, kind, n_bytes or 0)
        status = self.faults.next_call(n_bytes)
        if self.faults.dead_status:
            # Nothing that was queued happens any more once the context is dead.
            for stream in self.streams:
                stream.queue.clear()
                stream.done = stream.queued
        if status == 2 and n_bytes is not None:
            raise OutOfMemoryError(f"Out of memory allocating {n_bytes:,} bytes (ordered by the test).")
        if status:
            raise CUDARuntimeError(status)

    def driver_malloc(self, size: int) -> bool:
        return self.pool.total + size <= self.total - self.other

    def bind(self) -> None:
        pass

    @locked
    def memory(self) -> MemoryState:
        self.step("memory")
        free = max(0, self.total - self.other - self.pool.total)
        return MemoryState(
            self.total, min(self.total, int(free * self.free_lie)), self.pool.used, self.pool.total
        )

    @locked
    def limit_pool(self, n_bytes: int) -> None:
        self.pool.limit = n_bytes

    @locked
    def release(self) -> int:
        self.synchronize()
        return self.pool.free_all()

    @locked
    def peak_bytes(self, *, reset: bool = False) -> int:
        peak = self.pool.peak
        if reset:
            self.pool.peak = self.pool.used
        return peak

    @locked
    def empty(self, shape: tuple[int, ...], dtype: Any) -> SimulatedArray:
        self.step("alloc", int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize)
        return SimulatedArray(self, shape, dtype)

    @locked
    def pinned(self, n_bytes: int) -> np.ndarray:
        self.step("pinned", n_bytes)
        return np.full(n_bytes, POISON, np.uint8)

    @locked
    def stream(self) -> SimulatedStream:
        self.step("stream")
        stream = SimulatedStream()
        self.streams.add(stream)
        return stream

    @locked
    def copy_in(
        self, target: SimulatedArray, host: np.ndarray, stream: SimulatedStream, offset: int = 0
    ) -> None:
        assert isinstance(target, SimulatedArray)
        assert host.flags.c_contiguous
        assert 0 <= offset <= offset + host.nbytes <= target.nbytes
        self.step("copy_in")
        block = target.block

        def work() -> None:
            _alive(block)
            block.data[offset : offset + host.nbytes] = host.reshape(-1).view(np.uint8)

        stream.push(work)

    @locked
    def copy_out(self, host: np.ndarray, source: SimulatedArray, stream: SimulatedStream) -> None:
        assert isinstance(source, SimulatedArray)
        assert host.flags.c_contiguous
        assert host.nbytes <= source.nbytes
        self.step("copy_out")
        block = source.block
        host.reshape(-1).view(np.uint8)[:] = POISON  # whoever reads before waiting shall see it

        def work() -> None:
            _alive(block)
            host.reshape(-1).view(np.uint8)[:] = block.data[: host.nbytes]

        stream.push(work)

    @locked
    def fill(self, target: SimulatedArray, byte: int, stream: SimulatedStream) -> None:
        self.step("fill")
        block = target.block

        def work() -> None:
            _alive(block)
            block.data[:] = byte

        stream.push(work)

    @locked
    def record(self, stream: SimulatedStream) -> SimulatedEvent:
        return SimulatedEvent(stream)

    @locked
    def wait(self, stream: SimulatedStream, event: SimulatedEvent) -> None:
        stream.push(lambda: event.stream.run_until(event.position))

    @locked
    def synchronize(self, waitable: Any = None) -> None:
        self.step("synchronize")
        if isinstance(waitable, SimulatedEvent):
            waitable.stream.run_until(waitable.position)
        else:
            for stream in [waitable] if waitable is not None else list(self.streams):
                stream.run_until(stream.queued)
        for array in list(self.arrays):
            array.block.check()
        if self.late_status:
            status, self.late_status = self.late_status, 0
            raise CUDARuntimeError(status)

    @locked
    def kernel(self, source: str, name: str, options: tuple[str, ...] = ()) -> SimulatedKernel:
        key = (source, name, options)
        if key not in self._kernels:
            self.step("compile")
            if self.no_compiler:
                raise RuntimeError("Failed to find CUDA headers. Please install CUDA toolkit headers")
            self._kernels[key] = SimulatedKernel(self, source, name, options)
        return self._kernels[key]


def _alive(block: _Block) -> None:
    if block.freed:
        raise AssertionError("queued work uses memory that was given back before anybody waited for it")


_SCALARS = {
    "int": np.int32,
    "unsigned int": np.uint32,
    "long long": np.int64,
    "float": np.float32,
    "double": np.float64,
    "unsigned char": np.uint8,
    "unsigned short": np.uint16,
}
_SIGNATURE = re.compile(
    r'extern "C" __global__ void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\(([^)]*)\)', re.S
)


def signatures(source: str) -> dict[str, list[tuple[type, bool]]]:
    """Return per kernel the NumPy type of every parameter and whether it is a pointer."""
    found = {}
    for name, text in _SIGNATURE.findall(source):
        params = []
        for part in text.split(","):
            words = re.sub(r"\b(const|__restrict__)\b", " ", part)
            pointer = "*" in words
            base = " ".join(words.replace("*", " ").split()[:-1])
            params.append((_SCALARS[base], pointer))
        found[name] = params
    return found


def compile_for_host(source: str, options: tuple[str, ...] = ()) -> ctypes.CDLL:
    """Compile CUDA text with the host compiler; the library is kept in the temporary folder by content."""
    if COMPILER is None:
        raise FileNotFoundError("no host C++ compiler")
    shim = Path(__file__).with_name("host_shim.h").read_text()
    launchers = []
    poison = "memset(shared_column, 0xcb, sizeof shared_column);" if "shared_column" in source else ""
    for name, params in signatures(source).items():
        ctype = {v: k for k, v in _SCALARS.items()}
        args = ", ".join(
            f"*({ctype[kind]}**)args[{i}]" if pointer else f"*({ctype[kind]}*)args[{i}]"
            for i, (kind, pointer) in enumerate(params)
        )
        launchers.append(
            f'extern "C" void launch_{name}(const unsigned* d, void** args) {{'
            " gridDim={d[0],d[1],d[2]}; blockDim={d[3],d[4],d[5]};"
            " for(unsigned bz=0;bz<d[2];++bz) for(unsigned by=0;by<d[1];++by) for(unsigned bx=0;bx<d[0];++bx)"
            f" {{ blockIdx={{bx,by,bz}}; {poison}"
            " for(unsigned tz=0;tz<d[5];++tz) for(unsigned ty=0;ty<d[4];++ty) for(unsigned tx=0;tx<d[3];++tx)"
            f" {{ threadIdx={{tx,ty,tz}}; {name}({args}); }} }} }}"
        )
    text = shim + source + "\nfloat shared_column[60000];\n" + "\n".join(launchers)
    flags = ["-O2", "-std=c++17", "-ffp-contract=off", "-march=native", "-fPIC", "-shared", "-w"]
    digest = hashlib.blake2b((text + "".join(options) + "".join(flags)).encode(), digest_size=12).hexdigest()
    folder = Path(tempfile.gettempdir()) / f"zemosaic-host-kernels-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    library = folder / f"{digest}.so"
    if not library.exists():
        temporary = folder / f"{digest}.{os.getpid()}.so"
        command = [COMPILER, *flags, *options, "-x", "c++", "-", "-o", str(temporary)]
        done = subprocess.run(command, input=text, text=True, capture_output=True, check=False)
        if done.returncode:
            raise CompileException(done.stderr[:4000])
        temporary.replace(library)
    return ctypes.CDLL(str(library))


class SimulatedKernel:
    """A compiled kernel; a launch is queued, its arguments are checked as strictly as a card would punish."""

    def __init__(self, device: SimulatedDevice, source: str, name: str, options: tuple[str, ...]) -> None:
        self._device = device
        self.lock = device.lock
        self._name = name
        self._params = signatures(source)[name]
        self._launch = getattr(compile_for_host(source, options), f"launch_{name}")

    @locked
    def __call__(self, grid, block, args, *, shared_bytes: int = 0, stream: SimulatedStream) -> None:
        assert len(args) == len(self._params), f"{self._name}: {len(args)} arguments for {len(self._params)}"
        assert int(np.prod(block)) <= 1024
        assert all(0 < n <= limit for n, limit in zip(grid, (2**31 - 1, 65535, 65535), strict=False)), grid
        assert shared_bytes <= self._device.info.shared_bytes
        for i, (value, (kind, pointer)) in enumerate(zip(args, self._params, strict=True)):
            assert isinstance(value, SimulatedArray) == pointer, (
                f"{self._name}: argument {i} is {type(value)}"
            )
            assert value.dtype == kind, (
                f"{self._name}: argument {i} is {value.dtype}, the kernel wants {kind}"
            )
        self._device.step("launch")
        self._device.launches.append(self._name)
        blocks = [
            value.block if pointer else None for value, (_, pointer) in zip(args, self._params, strict=True)
        ]
        scalars = [
            None if pointer else np.array(value)
            for value, (_, pointer) in zip(args, self._params, strict=True)
        ]
        dims = (ctypes.c_uint * 6)(*(*grid, 1, 1)[:3], *(*block, 1, 1)[:3])

        def work() -> None:
            pointers = (ctypes.c_void_p * len(blocks))()
            keep = []
            for i, (data, scalar) in enumerate(zip(blocks, scalars, strict=True)):
                if data is not None:
                    _alive(data)
                    holder = ctypes.c_void_p(data.data.ctypes.data)
                    keep.append(holder)
                    pointers[i] = ctypes.addressof(holder)
                else:
                    pointers[i] = scalar.ctypes.data
            self._launch(dims, pointers)

        stream.push(work)
