"""As much of CuPy as `CupyDevice` uses, on host memory: shows that its own lines run, not that CUDA does.

Follows CuPy where it is easily misread: the current card and with it the pool belong to the calling thread, the
sixteen bytes of a UUID arrive as a C string, and what CUDA 13 no longer has among the properties is not there.
"""

from __future__ import annotations

import ctypes
import threading
import types
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from simulated_device import CUDARuntimeError, OutOfMemoryError, compile_for_host, signatures

__all__ = ["Card", "make_fake_cupy"]


class _Memory:
    def __init__(self, array):
        self.ptr = array.ctypes.data


class Array:
    """A device array: only its own pool knows what is inside."""

    def __init__(self, pool, shape, dtype):
        self.shape, self.dtype = shape, np.dtype(dtype)
        self._host = np.full(int(np.prod(shape)) * self.dtype.itemsize + 1, 0xCB, np.uint8)
        self.nbytes = self._host.nbytes - 1
        self.data = _Memory(self._host)
        self._pool = pool
        pool.used += -(-self.nbytes // 512) * 512
        pool.total = max(pool.total, pool.used)

    def __del__(self):
        self._pool.used -= -(-self.nbytes // 512) * 512

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")


class Pool:
    def __init__(self):
        self.used = self.total = self.limit = 0

    def used_bytes(self):
        return self.used

    def total_bytes(self):
        return self.total

    def free_all_blocks(self):
        self.total = self.used

    def set_limit(self, size=None, fraction=None):
        assert fraction is None
        self.limit = size


class Stream:
    current: ClassVar[list] = []

    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        assert non_blocking
        assert not null
        assert not ptds
        self.ptr = id(self)

    def __enter__(self):
        Stream.current.append(self)
        return self

    def __exit__(self, *args):
        Stream.current.pop()

    def record(self, event=None):
        return event

    def wait_event(self, event):
        assert isinstance(event, Event)

    def synchronize(self):
        pass


class Event:
    def __init__(self, block=False, disable_timing=False, interprocess=False):
        assert disable_timing

    def synchronize(self):
        pass


class PinnedMemory:
    def __init__(self, size, flags=0):
        self.host = ctypes.create_string_buffer(size)


def _pinned_pointer(mem, offset):
    return mem.host


class RawModule:
    def __init__(self, *, code, options):
        assert "--fmad=false" in options
        self.code = code
        self.options = tuple(o for o in options if o.startswith("-D"))

    def get_function(self, name):
        return Function(self, name)


class Function:
    def __init__(self, module, name):
        self.max_dynamic_shared_size_bytes = 48 * 1024
        self._params = signatures(module.code)[name]
        self._launch = getattr(compile_for_host(module.code, module.options), f"launch_{name}")

    def __call__(self, grid, block, args, *, shared_mem=0):
        assert Stream.current, "a launch belongs into a stream"
        assert shared_mem <= self.max_dynamic_shared_size_bytes
        assert isinstance(args, tuple)
        keep, pointers = [], (ctypes.c_void_p * len(args))()
        for i, (value, (kind, pointer)) in enumerate(zip(args, self._params, strict=True)):
            if pointer:
                assert isinstance(value, Array)
                assert value.dtype == kind
                keep.append(ctypes.c_void_p(value.data.ptr))
                pointers[i] = ctypes.addressof(keep[-1])
            else:
                assert isinstance(value, np.generic)
                assert value.dtype == kind
                keep.append(np.array(value))
                pointers[i] = keep[-1].ctypes.data
        self._launch((ctypes.c_uint * 6)(*(*grid, 1, 1)[:3], *(*block, 1, 1)[:3]), pointers)


@dataclass
class Card:
    """A card of the machine that is made up."""

    name: str = "Fake RTX"
    total: int = 4 << 30
    capability: tuple[int, int] = (8, 9)
    uuid: bytes = bytes(range(1, 17))
    display: bool = True
    integrated: bool = False
    broken: int = 0  # CUDA status of every allocation


def make_fake_cupy(*cards):
    """Return a module object with CuPy's names; one card unless some are given."""
    cards = cards or (Card(),)
    pools = [Pool() for _ in cards]
    thread = threading.local()

    def current():
        return getattr(thread, "index", 0)

    def check(index):
        if not 0 <= index < len(cards):
            raise CUDARuntimeError(101)
        return cards[index]

    def get_device_properties(device):
        card = check(device)
        return {
            "name": card.name.encode(),
            "uuid": card.uuid.split(b"\0")[0],
            "major": card.capability[0],
            "minor": card.capability[1],
            "totalGlobalMem": card.total,
            "sharedMemPerBlock": 49152,
        }

    def device_get_attribute(attrib, device):
        card = check(device)
        known = {
            17: card.display,
            18: card.integrated,
            75: card.capability[0],
            76: card.capability[1],
            97: 101376,
        }
        if attrib not in known:
            raise CUDARuntimeError(1)
        return int(known[attrib])

    def memcpy_async(dst, src, size, kind, stream):
        assert kind in (1, 2)
        assert isinstance(stream, int)
        ctypes.memmove(dst, src, size)

    def empty(shape, dtype=float, order="C"):
        card, pool = cards[current()], pools[current()]
        if card.broken:
            raise CUDARuntimeError(card.broken)
        n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if pool.used + n_bytes > (pool.limit or card.total):
            raise OutOfMemoryError(n_bytes)
        return Array(pool, shape, dtype)

    class Device:
        def __init__(self, device=None):
            self.id = current() if device is None else device

        def use(self):
            check(self.id)
            thread.index = self.id

    class MemoryPool:
        """The pool of the card that is current when it is asked."""

        def __getattr__(self, name):
            return getattr(pools[current()], name)

    runtime = types.SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        getDeviceCount=lambda: len(cards),
        getDeviceProperties=get_device_properties,
        deviceGetAttribute=device_get_attribute,
        deviceGetPCIBusId=lambda device: f"0000:{device + 1:02x}:00.0",
        driverGetVersion=lambda: 12090,
        runtimeGetVersion=lambda: 12090,
        memGetInfo=lambda: (cards[current()].total - pools[current()].total, cards[current()].total),
        deviceSynchronize=lambda: None,
        memcpyAsync=memcpy_async,
        memsetAsync=lambda ptr, value, size, stream: ctypes.memset(ptr, value, size),
    )
    cuda = types.SimpleNamespace(
        runtime=runtime,
        Device=Device,
        Stream=Stream,
        Event=Event,
        PinnedMemory=PinnedMemory,
        PinnedMemoryPointer=_pinned_pointer,
        memory=types.SimpleNamespace(
            OutOfMemoryError=lambda size, total, limit=0: OutOfMemoryError(str(size))
        ),
    )
    pinned = types.SimpleNamespace(free_all_blocks=lambda: None)
    return types.SimpleNamespace(
        __version__="14.0",
        cuda=cuda,
        empty=empty,
        RawModule=RawModule,
        get_default_memory_pool=MemoryPool,
        get_default_pinned_memory_pool=lambda: pinned,
        pools=pools,
    )
