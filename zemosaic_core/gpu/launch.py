"""A stream of the card with the small conveniences the bodies share: launches by size, uploads, downloads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from zemosaic_core.chunks import Buffer
from zemosaic_core.gpu.device import Device, classify

__all__ = ["PlannedMemory", "Queue", "drained", "settle"]

THREADS_1D = 256
BLOCK_2D = (32, 8)


@contextmanager
def drained(device: Device) -> Iterator[None]:
    """Let no queued work outlive the block: when it is left by an error, the card is waited for first.

    The arrays of the block die with it; work that is still queued would write into memory that belongs to
    somebody else by then.
    """
    try:
        yield
    except BaseException:
        settle(device)
        raise


def settle(device: Device) -> None:
    """Wait for the card after something went wrong: an error of its own is no news any more."""
    try:
        device.synchronize()
    except Exception as error:
        if classify(error) is None:
            raise


class PlannedMemory:
    """Arrays of the sizes that an operation has declared for its largest chunk, whatever the chunk needs.

    So the plan is what happens; and as every chunk takes pieces of the same sizes, those of the one before fit, and
    the pool does not fall to pieces.

    Parameters
    ----------
    device : Device
    buffers : sequence of Buffer
    rows : int
        Rows of the largest chunk.
    """

    def __init__(self, device: Device, buffers: Sequence[Buffer], rows: int) -> None:
        self._device = device
        self._bytes = {buffer.name: buffer.n_bytes(rows) // buffer.copies for buffer in buffers}

    def empty(self, name: str, n: int, dtype: Any) -> Any:
        """Return one copy of a declared array with at least ``n`` elements, flat and uninitialised."""
        size = np.dtype(dtype).itemsize
        return self._device.empty((max(n, self._bytes[name] // size),), dtype)

    def upload(self, queue: Queue, name: str, host: np.ndarray) -> Any:
        """Return one copy of a declared array with ``host`` queued into it."""
        target = self.empty(name, host.size, host.dtype)
        queue.copy_in(target, np.ascontiguousarray(host))
        return target


class Queue:
    """One stream. Arrays it works with, on either side, are kept alive until `finish` or `download`."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._stream = device.stream()
        self._kept: list[Any] = []

    def launch_1d(
        self, source: str, name: str, n: int, args: Sequence[Any], *, options: tuple[str, ...] = ()
    ) -> None:
        """Launch one thread per element."""
        self.launch(source, name, (-(-n // THREADS_1D),), (THREADS_1D,), args, options=options)

    def launch_2d(
        self,
        source: str,
        name: str,
        width: int,
        height: int,
        args: Sequence[Any],
        *,
        options: tuple[str, ...] = (),
    ) -> None:
        """Launch one thread per pixel."""
        grid = (-(-width // BLOCK_2D[0]), -(-height // BLOCK_2D[1]))
        self.launch(source, name, grid, BLOCK_2D, args, options=options)

    def launch(
        self,
        source: str,
        name: str,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: Sequence[Any],
        *,
        options: tuple[str, ...] = (),
        shared_bytes: int = 0,
    ) -> None:
        """Launch a kernel; Python integers become 32-bit, floats must come as NumPy scalars."""
        kernel = self.device.kernel(source, name, options)
        self._kept.extend(args)
        typed = [np.int32(a) if isinstance(a, int) else a for a in args]
        kernel(grid, block, typed, shared_bytes=shared_bytes, stream=self._stream)

    def upload(self, host: np.ndarray) -> Any:
        """Return a new array on the card with a copy of ``host`` queued into it."""
        target = self.device.empty(host.shape, host.dtype)
        self.copy_in(target, np.ascontiguousarray(host))
        return target

    def copy_in(self, target: Any, host: np.ndarray, offset: int = 0) -> None:
        """Queue a copy of a contiguous host array into ``target``, ``offset`` bytes from its start."""
        self._kept += (host, target)
        self.device.copy_in(target, host, self._stream, offset)

    def fill(self, target: Any, byte: int) -> None:
        """Queue setting every byte of ``target``."""
        self.device.fill(target, byte, self._stream)

    def record(self) -> Any:
        """Return an event behind everything queued so far."""
        return self.device.record(self._stream)

    def wait(self, event: Any) -> None:
        """Let what is queued from now on wait for an event of another stream."""
        self.device.wait(self._stream, event)

    def finish(self) -> None:
        """Wait for everything queued."""
        self.device.synchronize(self._stream)
        self._kept.clear()

    def download(self, *arrays: Any, shapes: Sequence[tuple[int, ...]] = ()) -> list[np.ndarray]:
        """Return host copies of arrays, when everything queued before has happened.

        ``shapes``: copy only as much as these hold; by default everything.
        """
        shapes = shapes or [array.shape for array in arrays]
        hosts = [np.empty(shape, array.dtype) for shape, array in zip(shapes, arrays, strict=True)]
        for host, array in zip(hosts, arrays, strict=True):
            self.device.copy_out(host, array, self._stream)
        self.finish()
        return hosts
