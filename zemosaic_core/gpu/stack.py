"""Stack registered images that lie in memory on the card: the same numbers as `combine_stack`."""

from __future__ import annotations

import numpy as np

from zemosaic_core.chunks import Buffer, Workload
from zemosaic_core.gpu import kernels
from zemosaic_core.gpu.combine import Combiner, combine_buffers
from zemosaic_core.gpu.device import Device, DeviceInfo, GpuFault
from zemosaic_core.gpu.launch import PlannedMemory, Queue, drained
from zemosaic_core.gpu.tiles import TILE_H, TILE_W, tile_table
from zemosaic_core.gpu.windows import SLOTS, Ring
from zemosaic_core.rejection import check_rule
from zemosaic_core.sources import CoaddBlock, CombineRule

__all__ = ["GpuStack"]

# Samples per second of one thread of `combine_stack`, measured with 30 images and winsorized clipping. What a run
# measures itself counts more.
CPU_SAMPLES_PER_SECOND = 1.7e8


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
    threads : int
        Of the processor, with which the card is compared.
    """

    def __init__(
        self,
        stack: np.ndarray,
        rule: CombineRule,
        *,
        weights: np.ndarray | None = None,
        weight_maps: np.ndarray | None = None,
        threads: int = 2,
    ) -> None:
        check_rule(rule)
        n, n_channels = stack.shape[:2]
        weights = np.ones((n, n_channels)) if weights is None else np.asarray(weights)
        columns = weights[:, None] if weights.ndim == 1 else weights
        self._stack = stack
        self._rule = rule
        self._weights = np.ascontiguousarray(np.broadcast_to(columns, (n, n_channels)), np.float32)
        self._maps = weight_maps
        self._threads = threads
        self.unpinned: GpuFault | None = None

    def _buffers(self, info: DeviceInfo | None) -> tuple[Buffer, ...]:
        n, n_channels, height, width = self._stack.shape
        mapped = self._maps is not None
        return (
            Buffer("planes", per_row=4 * n_channels * width),
            Buffer("plane weights", per_row=4 * width if mapped else 0, fixed=4),
            Buffer("source weights", fixed=4 * max(1, n * n_channels)),
            *combine_buffers([(0, height, 0, width)] * n, n_channels, width, self._rule, info, mapped=mapped),
        )

    def workload(self, op: str, info: DeviceInfo | None) -> Workload:
        """Declare what the whole stack needs on a card."""
        n, n_channels, height, width = self._stack.shape
        return Workload(
            op,
            height,
            self._buffers(info),
            elements_per_row=n_channels * width,
            upload_bytes=self._stack.nbytes,
            download_bytes=height * width * n_channels * 16,
            cpu_seconds=self._stack.size / (CPU_SAMPLES_PER_SECOND * max(1, self._threads)),
            detail={"sources": n, "channels": n_channels, "width": width},
        )

    def __call__(self, device: Device, y0: int, y1: int, next_rows: tuple[int, int] | None) -> CoaddBlock:
        """Combine the rows ``y0 <= y < y1``."""
        n, n_channels, _, width = self._stack.shape
        rows, mapped = y1 - y0, self._maps is not None
        queue = Queue(device)
        with drained(device):
            table = tile_table(np.tile((0, rows, 0, width), (n, 1)), rows, width)
            shape = (n_channels, rows, width)
            memory = PlannedMemory(device, self._buffers(device.info), rows)
            combiner = Combiner(queue, memory, table, self._weights, self._rule, shape, mapped=mapped)
            planes = memory.empty("planes", n_channels * rows * width, np.float32)
            shares = memory.empty("plane weights", rows * width if mapped else 1, np.float32)
            weights = memory.upload(queue, "source weights", self._weights)
            ring = Ring(device, SLOTS)
            for index in range(n):
                images = [np.asarray(self._stack[index, :, y0:y1], np.float32)]
                if self._maps is not None:
                    images.append(np.asarray(self._maps[index, y0:y1], np.float32))
                for target, image in zip((planes, shares), ring.stage(index, images), strict=False):
                    queue.copy_in(target, image)
                ring.sent(index, queue.record())
                args = (
                    planes, *shape, weights, index * n_channels, shares, int(mapped), combiner.bases,
                    combiner.counts, combiner.slots, np.int64(table.slot_starts[index]), table.tiles_yx[1],
                    combiner.values, np.int64(table.n_samples), combiner.maps,
                )  # fmt: skip
                queue.launch(
                    kernels.source("place"), "place_samples", table.tiles_yx[::-1], (TILE_W, TILE_H), args
                )
            self.unpinned = self.unpinned or ring.unpinned
            combiner.launch()
            return combiner.result()
