"""Reject and combine samples that lie on the card; chooses where the sorted samples of a pixel live."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zemosaic_core.chunks import Buffer
from zemosaic_core.coadd import is_streaming
from zemosaic_core.gpu import kernels
from zemosaic_core.gpu.device import DeviceInfo
from zemosaic_core.gpu.launch import PlannedMemory, Queue
from zemosaic_core.gpu.tiles import TILE_W, TileTable, pool_buffers, tile_buffers, widest_depth
from zemosaic_core.rejection import REJECTION_CODES, noise_terms
from zemosaic_core.sources import CoaddBlock, CombineRule

__all__ = ["Combiner", "Storage", "combine_buffers", "storage_for"]

# Samples that are sorted in registers at once: sizes that compile without spilling, checked for every architecture
# by the tests.
REGISTER_SIZES = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128)
# Length of the runs that are merged when there are more samples than that.
MERGED_RUN = 64
# Shared memory of one thread block: some blocks shall fit beside each other into the 64 to 228 KB of a multiprocessor.
COLUMN_BYTES = 16 << 10
# The same for columns that all threads of a block merge: those of a few neighbours, whose samples share lines of
# memory; fewer where there are many samples. One pixel gets all that a block can have before a scratch array serves.
BLOCK_BYTES = 48 << 10
BLOCK_THREADS = 128
BLOCK_PIXELS = (4, 2, 1)
# Sums of each thread, and what is kept of each pixel.
_SUM_BYTES, _KEPT_BYTES = 24, 32
# The scratch array of merged columns: a share of the card between these bounds, enough threads to keep it busy.
SCRATCH_SHARE, SCRATCH_LEAST, SCRATCH_MOST = 64, 8 << 20, 512 << 20
SCRATCH_THREADS = 1 << 17
# Samples of one launch per kind of storage, about a tenth of a second on a slow card: the system kills a kernel
# of two seconds on a card that drives a display, and a desktop that stands still is no better.
LAUNCH_SAMPLES = (1 << 28, 1 << 26, 1 << 28, 1 << 27)
IN_SHARED, IN_SCRATCH, UNSORTED, IN_BLOCK = range(4)

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Storage:
    """Where the sorted samples of a pixel live while they are worked on.

    ``kind``: `IN_SHARED` memory, one run of ``run`` samples; `IN_SCRATCH`, runs of ``run`` samples merged in a
    scratch array with ``columns`` columns of twice ``rows`` samples; `UNSORTED`, nowhere; `IN_BLOCK`, the same in the
    shared memory of a block, which works on ``columns`` pixels at a time. ``threads`` per block.
    """

    kind: int
    run: int = 8
    threads: int = 128
    rows: int = 0
    columns: int = 0

    def options(self, *, mapped: bool, noise: bool) -> tuple[str, ...]:
        """Compiler options of this variant: samples have weights of their own, their noise is known."""
        numbers = {"STORAGE": self.kind, "RUN": self.run, "THREADS": self.threads}
        numbers |= {"MAPPED": int(mapped), "NOISE": int(noise)}
        if self.kind == IN_BLOCK:
            numbers["PIXELS"] = self.columns
        return tuple(f"-D{name}={value}" for name, value in numbers.items())

    @property
    def scratch_bytes(self) -> int:
        """Bytes of the scratch array."""
        return 8 * self.rows * self.columns if self.kind == IN_SCRATCH else 4

    def geometry(self, n_rows: int, width: int) -> tuple[tuple[int, ...], int]:
        """Return grid and bytes of shared memory of a launch over some rows."""
        if self.kind == IN_SCRATCH:
            across = -(-width // TILE_W) * TILE_W
            return (min(self.columns // self.threads, -(-n_rows * across // self.threads)),), 0
        if self.kind == IN_BLOCK:
            return (-(-width // self.columns), n_rows), block_bytes(self.rows, self.columns)
        shared = 4 * self.run * self.threads if self.kind == IN_SHARED else 0
        return (n_rows, -(-width // self.threads)), shared


def storage_for(depth: int, rule: CombineRule, info: DeviceInfo | None) -> Storage:
    """Return the fastest place for ``depth`` samples of one pixel on a card."""
    if is_streaming(rule):
        return Storage(UNSORTED)
    if depth <= REGISTER_SIZES[-1]:
        run = next(size for size in REGISTER_SIZES if size >= depth)
        return Storage(IN_SHARED, run, max(TILE_W, min(128, COLUMN_BYTES // (4 * run) // TILE_W * TILE_W)))
    rows = -(-depth // MERGED_RUN) * MERGED_RUN
    largest = info.shared_bytes if info else BLOCK_BYTES
    for pixels in BLOCK_PIXELS:
        if block_bytes(rows, pixels) <= (min(BLOCK_BYTES, largest) if pixels > 1 else largest):
            return Storage(IN_BLOCK, MERGED_RUN, BLOCK_THREADS, rows, pixels)
    share = max(SCRATCH_LEAST, min(SCRATCH_MOST, (info.total_bytes if info else 0) // SCRATCH_SHARE))
    columns = max(128, min(SCRATCH_THREADS, share // (8 * rows)) // 128 * 128)
    return Storage(IN_SCRATCH, MERGED_RUN, 128, rows, columns)


def block_bytes(rows: int, pixels: int) -> int:
    """Return the shared memory of a block that merges columns of so many rows for so many pixels."""
    return 8 * rows * pixels + _SUM_BYTES * BLOCK_THREADS + _KEPT_BYTES * pixels


def combine_buffers(
    boxes: Sequence[Box],
    n_channels: int,
    width: int,
    rule: CombineRule,
    info: DeviceInfo | None,
    *,
    mapped: bool,
) -> list[Buffer]:
    """Declare everything a `Combiner` allocates, whatever rows of the grid its block has.

    Parameters
    ----------
    boxes : sequence of tuple
        ``(y0, y1, x0, x1)`` of all sources on the whole output grid.
    n_channels, width : int
        Channels and columns of the grid.
    rule : CombineRule
    info : DeviceInfo or None
    mapped : bool
        Samples have weights of their own.
    """
    depth = widest_depth(boxes, width)
    storage = storage_for(max(1, depth), rule, info)
    # Fewer samples may get more columns, up to the next whole number of blocks.
    spare = 128 * 8 * storage.rows if storage.kind == IN_SCRATCH else 0
    results = [Buffer(name, per_row=4 * n_channels * width) for name in ("image", "weight", "variance")]
    results += [Buffer(name, per_row=2 * n_channels * width) for name in ("rejected low", "rejected high")]
    return [
        *pool_buffers(boxes, n_channels, mapped),
        *tile_buffers(boxes, n_channels, width, noise=rule.uses_noise),
        *results,
        Buffer("coverage", per_row=2 * width),
        Buffer("scratch", fixed=storage.scratch_bytes + spare),
        Buffer("quantiles", fixed=8 * (max(1, depth) + 1), copies=2),
        Buffer("background", fixed=4 * n_channels),
    ]


def quantile_tables(depth: int, limits: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return where the winsor quantiles of 0 .. ``depth`` sorted values lie: whole ranks and what is beyond them.

    The numbers of `zemosaic_core.lanes`, computed in float64 once instead of by every thread of a card.

    Returns
    -------
    tuple of ndarray, shape (depth + 1, 2), int32 and float32
    """
    top = np.maximum(np.arange(depth + 1) - 1, 0)[:, None]
    places = np.array([limits[0], 1.0 - limits[1]]) * top
    ranks = places.astype(np.int32)
    return ranks, (places - ranks).astype(np.float32)


class Combiner:
    """Combines the samples of one block, once they are on the card.

    Parameters
    ----------
    queue : Queue
    memory : PlannedMemory
        Made from `combine_buffers`.
    table : TileTable
    weights : ndarray, shape (N, C)
        Weight of all samples of a source and channel.
    rule : CombineRule
    shape : tuple of int
        ``(C, h, w)`` of the block.
    mapped : bool
        Samples have weights of their own.

    Attributes
    ----------
    values, maps : arrays on the card
        Samples, channel after channel, and their weights: for the caller to fill. A sample that is missing, has
        no weight or belongs to a source without weight is NaN.
    bases, counts, slots : arrays on the card
        See `TileTable`.
    table : TileTable
    """

    def __init__(
        self,
        queue: Queue,
        memory: PlannedMemory,
        table: TileTable,
        weights: np.ndarray,
        rule: CombineRule,
        shape: tuple[int, int, int],
        *,
        mapped: bool,
    ) -> None:
        self._queue, self.table, self._rule, self._shape, self._mapped = queue, table, rule, shape, mapped
        n_channels, height, width = shape
        n = n_channels * height * width
        self._storage = storage_for(max(1, table.depth), rule, queue.device.info)
        # The largest first: what the pool has left of an earlier block is then not cut up by small ones.
        self.values = memory.empty("pool", n_channels * table.n_samples, np.float32)
        self.maps = memory.empty("pool weights", table.n_samples if mapped else 1, np.float32)
        self._scratch = memory.empty("scratch", self._storage.scratch_bytes // 4, np.float32)
        self._floats = [memory.empty(name, n, np.float32) for name in ("image", "weight", "variance")]
        self._rejected = [memory.empty(name, n, np.uint16) for name in ("rejected low", "rejected high")]
        self._coverage = memory.empty("coverage", height * width, np.uint16)
        self.bases = memory.upload(queue, "tile places", table.bases)
        self.counts = memory.upload(queue, "tile counts", table.counts)
        self._firsts = memory.upload(queue, "tile counts", table.firsts)
        self.slots = memory.upload(queue, "slots", table.slots)
        self._weights = memory.upload(queue, "sample weights", table.per_item(weights))
        quantiles = quantile_tables(table.depth, rule.winsor_limits)
        self._quantiles = [memory.upload(queue, "quantiles", part) for part in quantiles]
        self._few, variances, background, self._mismatch = noise_terms(rule, weights)
        self._variances = self._weights
        if rule.uses_noise:
            self._variances = memory.upload(queue, "sample weights", table.per_item(variances))
        self._background = memory.upload(queue, "background", background)

    def launch(self) -> None:
        """Queue the combination, in pieces that end soon enough for a card that drives a display."""
        n_channels, height, width = self._shape
        table, rule, queue, storage = self.table, self._rule, self._queue, self._storage
        image, weight, variance = self._floats
        before = (
            self.values, self.maps, self.bases, self._firsts, self.counts, self._weights, *self._quantiles,
            np.int64(table.n_samples), table.members.size, table.tiles_yx[1], *self._shape,
        )  # fmt: skip
        after = (
            REJECTION_CODES[rule.rejection], np.float32(rule.kappa_low), np.float32(rule.kappa_high),
            int(rule.combine == "median"), self._variances, self._background, self._few, self._mismatch,
            image, weight, self._coverage, variance, *self._rejected, self._scratch,
        )  # fmt: skip
        options = storage.options(mapped=self._mapped, noise=rule.uses_noise)
        rows = max(1, LAUNCH_SAMPLES[storage.kind] // max(1, n_channels * width * table.depth))
        for first in range(0, height, rows):
            n_rows = min(rows, height - first)
            grid, shared = storage.geometry(n_rows, width)
            queue.launch(
                kernels.source("combine"), "combine_pool", grid, (storage.threads,),
                (*before, first, n_rows, *after), options=options, shared_bytes=shared,
            )  # fmt: skip
            if queue.device.info.drives_display:
                queue.device.synchronize(queue.record())

    def result(self) -> CoaddBlock:
        """Bring the result to the host when everything queued has happened."""
        image, weight, variance = self._floats
        arrays = (image, weight, self._coverage, variance, *self._rejected)
        shapes = [self._shape[1:] if array is self._coverage else self._shape for array in arrays]
        return CoaddBlock(*self._queue.download(*arrays, shapes=shapes))
