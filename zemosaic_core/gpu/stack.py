"""Stack registered images that lie in memory on the card: the same numbers as `combine_stack`."""

from __future__ import annotations

from typing import Any

import numpy as np

from zemosaic_core.chunks import Buffer, Workload
from zemosaic_core.gpu.combine import SampleTables, combine_buffers, combine_on_device
from zemosaic_core.gpu.device import Device, DeviceInfo
from zemosaic_core.gpu.launch import Queue, drained
from zemosaic_core.rejection import check_rule
from zemosaic_core.sources import CoaddBlock, CombineRule

__all__ = ["GpuStack"]

RING = 3
# Samples per second of the CPU engine with two threads, measured with 30 frames; only an order of magnitude.
CPU_SAMPLES_PER_SECOND = 2e7


class GpuStack:
    """Rejects and combines rows of a stack on a card; also declares the memory for that.

    Parameters
    ----------
    stack : ndarray, shape (N, C, h, w), float32
        NaN or infinite: missing.
    rule : CombineRule
    weights : ndarray, shape (N,) or (N, C), optional
        As in `zemosaic_core.rejection.combine_stack`.
    weight_maps : ndarray, shape (N, h, w), optional
        Not positive: missing.
    """

    def __init__(
        self,
        stack: np.ndarray,
        rule: CombineRule,
        *,
        weights: np.ndarray | None = None,
        weight_maps: np.ndarray | None = None,
    ) -> None:
        check_rule(rule)
        n, n_channels = stack.shape[:2]
        weights = np.ones((n, n_channels)) if weights is None else np.asarray(weights)
        columns = weights[:, None] if weights.ndim == 1 else weights
        self._stack = stack
        self._rule = rule
        self._weights = np.ascontiguousarray(np.broadcast_to(columns, (n, n_channels)), np.float32)
        self._maps = weight_maps

    def workload(self, op: str, info: DeviceInfo | None) -> Workload:
        """Declare what the whole stack needs on a card."""
        n, n_channels, height, width = self._stack.shape
        buffers = [Buffer("pool", per_row=4 * n * n_channels * width)]
        buffers.append(
            Buffer("pool weights", fixed=4)
            if self._maps is None
            else Buffer("pool weights", per_row=4 * n * width)
        )
        buffers += [Buffer(name, per_row=4 * n_channels * width) for name in ("image", "weight", "variance")]
        buffers += [
            Buffer(name, per_row=2 * n_channels * width) for name in ("rejected low", "rejected high")
        ]
        buffers.append(Buffer("coverage", per_row=2 * width))
        buffers += combine_buffers(n, n_channels, width, n, info)
        return Workload(
            op,
            height,
            tuple(buffers),
            elements_per_row=n * n_channels * width,
            upload_bytes=self._stack.nbytes,
            download_bytes=height * width * n_channels * 16,
            cpu_seconds=self._stack.size / CPU_SAMPLES_PER_SECOND,
            detail={"sources": n, "channels": n_channels, "width": width},
        )

    def __call__(self, device: Device, y0: int, y1: int, next_rows: tuple[int, int] | None) -> CoaddBlock:
        """Combine the rows ``y0 <= y < y1``."""
        n, n_channels, _, width = self._stack.shape
        rows = y1 - y0
        queue = Queue(device)
        with drained(device):
            values = device.empty((n * n_channels * rows * width,), np.float32)
            self._send(queue, values, self._stack[:, :, y0:y1])
            maps = device.empty((1,) if self._maps is None else (n * rows * width,), np.float32)
            if self._maps is not None:
                self._send(queue, maps, self._maps[:, y0:y1])
            order = np.arange(n, dtype=np.int64)
            tables = SampleTables(
                starts=order * (n_channels * rows * width),
                boxes=np.tile(np.array([0, rows, 0, width], np.int32), (n, 1)),
                weights=self._weights,
                map_starts=np.full(n, -1, np.int64) if self._maps is None else order * (rows * width),
            )
            return combine_on_device(queue, values, maps, tables, self._rule, (n_channels, rows, width), y0)

    @staticmethod
    def _send(queue: Queue, target: Any, images: np.ndarray) -> None:
        """Queue the images one behind the other through a ring of page-locked memory."""
        size = images[0].nbytes
        if size == 0:
            return
        ring = [queue.device.pinned(size) for _ in range(min(RING, len(images)))]
        copied: list[Any] = [None] * len(ring)
        for index, image in enumerate(images):
            place = index % len(ring)
            if copied[place] is not None:
                queue.device.synchronize(copied[place])
            ring[place].view(np.float32).reshape(image.shape)[...] = image
            queue.copy_in(target, ring[place], index * size)
            copied[place] = queue.record()
