"""As much of CuPy as `CupyDevice` uses, on host memory: shows that its own lines run, not that CUDA does."""

from __future__ import annotations

import ctypes
import types
from typing import ClassVar

import numpy as np
from simulated_device import CUDARuntimeError, OutOfMemoryError, compile_for_host, signatures

__all__ = ["make_fake_cupy"]


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

    def set_limit(self, *, size):
        self.limit = size


class Stream:
    current: ClassVar[list] = []

    def __init__(self, *, non_blocking):
        assert non_blocking
        self.ptr = id(self)

    def __enter__(self):
        Stream.current.append(self)
        return self

    def __exit__(self, *args):
        Stream.current.pop()

    def record(self, event):
        return event

    def wait_event(self, event):
        assert isinstance(event, Event)

    def synchronize(self):
        pass


class Event:
    def __init__(self, *, disable_timing):
        assert disable_timing

    def synchronize(self):
        pass


class PinnedMemory:
    def __init__(self, size):
        self.host = ctypes.create_string_buffer(size)


def _pinned_pointer(memory, offset):
    return memory.host


class RawModule:
    def __init__(self, *, code, options):
        assert "--fmad=false" in options
        self.code = code
        self.options = tuple(o for o in options if o.startswith("-D"))

    def get_function(self, name):
        return Function(self, name)


class Function:
    def __init__(self, module, name):
        self._params = signatures(module.code)[name]
        self._launch = getattr(compile_for_host(module.code, module.options), f"launch_{name}")

    def __call__(self, grid, block, args, *, shared_mem=0):
        assert Stream.current, "a launch belongs into a stream"
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


def make_fake_cupy(total=4 << 30, name=b"Fake RTX\0"):
    """Return a module object with CuPy's names."""
    pool = Pool()

    def memcpy_async(target, source, size, kind, stream):
        assert kind in (1, 2)
        assert isinstance(stream, int)
        ctypes.memmove(target, source, size)

    def empty(shape, dtype):
        n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if pool.used + n_bytes > (pool.limit or total):
            raise OutOfMemoryError(n_bytes)
        return Array(pool, shape, dtype)

    properties = {
        "name": name,
        "uuid": bytes(range(16)),
        "major": 8,
        "minor": 9,
        "totalGlobalMem": total,
        "kernelExecTimeoutEnabled": 1,
        "integrated": 0,
        "sharedMemPerBlock": 49152,
        "sharedMemPerBlockOptin": 101376,
    }
    runtime = types.SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        getDeviceCount=lambda: 1,
        getDeviceProperties=lambda index: properties,
        deviceGetPCIBusId=lambda index: "0000:01:00.0",
        driverGetVersion=lambda: 12090,
        runtimeGetVersion=lambda: 12090,
        memGetInfo=lambda: (total - pool.total, total),
        deviceSynchronize=lambda: None,
        memcpyAsync=memcpy_async,
        memsetAsync=lambda target, byte, size, stream: ctypes.memset(target, byte, size),
    )
    cuda = types.SimpleNamespace(
        runtime=runtime,
        Device=lambda index: types.SimpleNamespace(use=lambda: None),
        Stream=Stream,
        Event=Event,
        PinnedMemory=PinnedMemory,
        PinnedMemoryPointer=_pinned_pointer,
        memory=types.SimpleNamespace(OutOfMemoryError=lambda size, total, limit: OutOfMemoryError(str(size))),
    )
    pinned = types.SimpleNamespace(free_all_blocks=lambda: None)
    return types.SimpleNamespace(
        __version__="14.0",
        cuda=cuda,
        empty=empty,
        RawModule=RawModule,
        get_default_memory_pool=lambda: pool,
        get_default_pinned_memory_pool=lambda: pinned,
    )
