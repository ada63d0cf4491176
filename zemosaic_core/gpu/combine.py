"""Reject and combine samples that lie on the card; chooses where the sorted samples of a pixel live."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zemosaic_core.chunks import Buffer
from zemosaic_core.gpu import kernels
from zemosaic_core.gpu.device import DeviceInfo
from zemosaic_core.gpu.launch import Queue
from zemosaic_core.rejection import REJECTION_CODES
from zemosaic_core.sources import CoaddBlock, CombineRule

__all__ = [
    "SampleTables",
    "Storage",
    "combine_buffers",
    "combine_on_device",
    "geometry",
    "launches",
    "near_counts",
    "near_lists",
    "storage_for",
]

TILE_W, TILE_H = 128, 16
# Sorted samples in registers: sizes that compile without spilling, checked for every architecture by the tests.
REGISTER_SIZES = (8, 16, 24, 32, 48, 64, 96)
# Before Volta a thread runs out of registers earlier.
OLD_CAPABILITY, OLD_REGISTER_LIMIT = 70, 48
SCRATCH_BYTES = 64 << 20
# Samples of one launch per kind of storage, about a tenth of a second on a slow card: the system kills a kernel
# of two seconds on a card that drives a display, and a desktop that stands still is no better.
LAUNCH_SAMPLES = (1 << 28, 1 << 26, 1 << 24)
SCRATCH_THREADS = 1 << 16

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Storage:
    """Where the sorted samples of a pixel live while they are worked on.

    ``kind`` 0: registers, ``size`` samples; 1: shared memory, ``threads`` columns per block; 2: a scratch array
    with ``threads`` columns.
    """

    kind: int
    size: int
    threads: int

    @property
    def options(self) -> tuple[str, ...]:
        """Compiler options of this variant."""
        return (f"-DSTORAGE={self.kind}", *((f"-DNMAX={self.size}",) if self.kind == 0 else ()))

    @property
    def scratch_bytes(self) -> int:
        """Bytes of the scratch array."""
        return 4 * self.size * self.threads if self.kind == 2 else 4


@dataclass(frozen=True)
class SampleTables:
    """Where the samples of each source lie; the host side of `zemosaic_core.rejection.SamplePool`.

    Attributes
    ----------
    starts, map_starts : ndarray, shape (N,), int64
    boxes : ndarray, shape (N, 4), int32
    weights : ndarray, shape (N, C), float32
    """

    starts: np.ndarray
    boxes: np.ndarray
    weights: np.ndarray
    map_starts: np.ndarray


def storage_for(depth: int, info: DeviceInfo | None) -> Storage:
    """Return the fastest place for ``depth`` samples of one pixel on a card."""
    capability = info.compute_capability if info else 0
    limit = REGISTER_SIZES[-1] if capability >= OLD_CAPABILITY else OLD_REGISTER_LIMIT
    if depth <= limit:
        return Storage(0, next(size for size in REGISTER_SIZES if size >= depth), TILE_W)
    shared = info.shared_bytes if info else 48 * 1024
    for threads in (128, 64, 32):
        if 4 * depth * threads <= shared:
            return Storage(1, depth, threads)
    threads = max(128, min(SCRATCH_THREADS, SCRATCH_BYTES // (4 * depth)) // 128 * 128)
    return Storage(2, depth, threads)


def near_counts(boxes: Sequence[Box], height: int, width: int) -> int:
    """Return the largest number of boxes ``(y0, y1, x0, x1)`` that touch one tile of the output grid."""
    counts = np.zeros((-(-height // TILE_H), -(-width // TILE_W)), np.int32)
    for y0, y1, x0, x1 in boxes:
        y0, y1, x0, x1 = max(y0, 0), min(y1, height), max(x0, 0), min(x1, width)
        if y1 > y0 and x1 > x0:
            counts[y0 // TILE_H : (y1 - 1) // TILE_H + 1, x0 // TILE_W : (x1 - 1) // TILE_W + 1] += 1
    return int(counts.max()) if counts.size else 0


def combine_buffers(
    n_sources: int, n_channels: int, width: int, depth: int, info: DeviceInfo | None
) -> list[Buffer]:
    """Declare what `combine_on_device` allocates besides the samples and the results."""
    columns = -(-width // TILE_W)
    n = max(1, n_sources)
    return [
        Buffer("scratch", fixed=storage_for(max(1, depth), info).scratch_bytes),
        Buffer("starts", fixed=8 * n, copies=2),
        Buffer("boxes", fixed=16 * n),
        Buffer("pool source weights", fixed=4 * n * n_channels),
        # One list per tile; a block may begin and end inside a tile.
        Buffer("lists", fixed=4 * (2 * columns + 1), per_row=-(-4 * columns // TILE_H)),
        Buffer("items", fixed=8 * columns * depth, per_row=-(-4 * columns * depth // TILE_H)),
    ]


def near_lists(
    boxes: np.ndarray, height: int, width: int, row_phase: int
) -> tuple[np.ndarray, np.ndarray, int, int]:
    """List per output tile the sources whose boxes touch it, in their order.

    Returns
    -------
    tuple
        ``lists`` (tiles + 1,) int32 offsets into ``items`` int32, the number of tiles per row of tiles, and the
        length of the longest list.
    """
    n_x = -(-width // TILE_W)
    n_y = (height + row_phase - 1) // TILE_H + 1
    tiles, members = [], []
    for source, (y0, y1, x0, x1) in enumerate(boxes.tolist()):
        if y1 <= y0 or x1 <= x0:
            continue
        rows = np.arange((y0 + row_phase) // TILE_H, (y1 - 1 + row_phase) // TILE_H + 1)
        cols = np.arange(x0 // TILE_W, (x1 - 1) // TILE_W + 1)
        touched = (rows[:, None] * n_x + cols).ravel()
        tiles.append(touched)
        members.append(np.full(touched.size, source, np.int32))
    tile = np.concatenate(tiles) if tiles else np.zeros(0, np.int64)
    member = np.concatenate(members) if members else np.zeros(0, np.int32)
    order = np.argsort(tile, kind="stable")
    counts = np.bincount(tile, minlength=n_x * n_y)
    lists = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return lists, member[order], n_x, int(counts.max()) if counts.size else 0


def launches(storage: Storage, depth: int, shape: tuple[int, int, int]) -> list[tuple[int, int]]:
    """Cut the rows of a block into launches of bounded work: first row and number of rows of each."""
    n_channels, height, width = shape
    per_row = max(1, n_channels * width * depth)
    rows = max(1, LAUNCH_SAMPLES[storage.kind] // per_row)
    return [(first, min(rows, height - first)) for first in range(0, height, rows)]


def geometry(storage: Storage, rows: int, width: int) -> tuple[tuple[int, ...], int, int]:
    """Return grid, threads per block and bytes of shared memory of a launch."""
    if storage.kind == 2:
        return (min(storage.threads // 128, -(-rows * width // 128)),), 128, 0
    shared = 4 * storage.size * storage.threads if storage.kind == 1 else 0
    return (rows, -(-width // storage.threads)), storage.threads, shared


def combine_on_device(
    queue: Queue,
    values: Any,
    maps: Any,
    tables: SampleTables,
    rule: CombineRule,
    shape: tuple[int, int, int],
    first_row: int = 0,
) -> CoaddBlock:
    """Reject and combine a pool of samples, and bring the result to the host.

    Parameters
    ----------
    queue : Queue
    values, maps : arrays on the card
        Samples and their weights, see `SampleTables`.
    tables : SampleTables
    rule : CombineRule
    shape : tuple of int
        ``(C, h, w)`` of the block.
    first_row : int
        Row of the output grid the block starts with; lists of sources follow the grid, not the block.
    """
    device = queue.device
    n_channels, height, width = shape
    row_phase = first_row % TILE_H
    lists, items, n_tiles_x, depth = near_lists(tables.boxes, height, width, row_phase)
    storage = storage_for(max(1, depth), device.info)
    pool = [queue.upload(a) for a in (tables.starts, tables.boxes, tables.weights)]
    map_starts = queue.upload(tables.map_starts)
    near = [queue.upload(a) for a in (lists, items if items.size else np.zeros(1, np.int32))]
    image, weight, variance = (device.empty(shape, np.float32) for _ in range(3))
    low, high = (device.empty(shape, np.uint16) for _ in range(2))
    coverage = device.empty(shape[1:], np.uint16)
    scratch = device.empty((storage.scratch_bytes // 4,), np.float32)
    before = (values, *pool, maps, map_starts, *near, n_tiles_x, row_phase, n_channels, height, width)
    after = (
        REJECTION_CODES[rule.rejection], np.float32(rule.kappa_low), np.float32(rule.kappa_high),
        np.float64(rule.winsor_limits[0]), np.float64(rule.winsor_limits[1]), int(rule.combine == "median"),
        image, weight, coverage, variance, low, high, scratch,
    )  # fmt: skip
    for first, rows in launches(storage, depth, shape):
        grid, threads, shared = geometry(storage, rows, width)
        queue.launch(
            kernels.source("combine"), "combine_pool", grid, (threads,), (*before, first, rows, *after),
            options=storage.options, shared_bytes=shared,
        )  # fmt: skip
        if device.info.drives_display:
            device.synchronize(queue.record())
    hosts = queue.download(image, weight, coverage, variance, low, high)
    return CoaddBlock(*hosts)
