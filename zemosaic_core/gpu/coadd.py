"""The co-add on the card: the same numbers as `zemosaic_core.coadd`, block by block of output rows.

Each source travels as it lies in its file (two bytes per pixel of a raw frame) through a ring of page-locked
memory, is decoded, repaired, debayered and sampled on the card, and joins the samples of the block; one kernel
rejects and combines. Nothing here decides whether to run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from threading import Event
from typing import Any

import numpy as np

from zemosaic_core.chunks import Workload
from zemosaic_core.errors import Cancelled
from zemosaic_core.gpu.combine import Combiner, combine_buffers
from zemosaic_core.gpu.device import Device, DeviceInfo, GpuFault
from zemosaic_core.gpu.launch import PlannedMemory, Queue, drained, settle
from zemosaic_core.gpu.reader import Part, ReadAhead, Window, parts_of_block
from zemosaic_core.gpu.terms import CancelFlag
from zemosaic_core.gpu.tiles import tile_table
from zemosaic_core.gpu.windows import (
    MAX_HOT,
    SLOTS,
    Ring,
    SourceShape,
    WindowFeed,
    extra_rows,
    feed_buffers,
    stage_window,
)
from zemosaic_core.pixel_map import shift_pixel_map
from zemosaic_core.rejection import check_rule
from zemosaic_core.sources import CoaddBlock, CoaddSource, CombineRule, Kernel, PixelSource

__all__ = ["GpuCoadd", "expected_workload"]

# Blocks on the card at a time: one is filled while the one before is combined and brought to the host.
IN_FLIGHT = 2
# Windows in page-locked memory besides one for each reading thread: two more that are read ahead or taken, and those
# that are on their way to the card.
RING_SPARE = 2 + SLOTS
# Samples per second of one thread of `zemosaic_core.coadd` (24 decoded frames of 540x960, lanczos3, winsorized).
# What a run measures itself counts more.
CPU_SAMPLES_PER_SECOND = 2.4e7
# A co-add that takes less goes to the card even so, in few chunks: a night of small tiles would else change sides.
LEAST_CPU_SECONDS = 0.25
# Of a pixel and channel in the result of a block: image, weight, variance, two counts of rejected samples.
_RESULT_BYTES = 16


class GpuCoadd:
    """Co-adds blocks of rows of one set of sources on a card; also declares the memory for that.

    Parameters
    ----------
    pixels : PixelSource
    sources : sequence of CoaddSource
        In the order in which samples are summed.
    width, n_channels : int
        Columns of the output grid, channels of every source.
    rule : CombineRule
    kernel : {'bilinear', 'lanczos3'}
    threads : int
        Threads that read ahead.
    host_bytes : int
        Memory that windows read ahead may take, and the results of a block as much again: fewer threads read
        when windows are large, blocks have fewer rows when the grid is wide. 0: no limit.
    most_rows : int
        Of one block; 0: no limit.
    cancel : object with ``is_set()``, optional
        Looked at before every source.
    """

    def __init__(
        self,
        pixels: PixelSource,
        sources: Sequence[CoaddSource],
        width: int,
        n_channels: int,
        rule: CombineRule,
        kernel: Kernel,
        *,
        threads: int = 2,
        host_bytes: int = 0,
        most_rows: int = 0,
        cancel: CancelFlag | None = None,
    ) -> None:
        check_rule(rule)
        self._sources = tuple(s for s in sources if np.any(np.asarray(s.weight) > 0))
        self._rule = rule
        self._kernel: Kernel = kernel
        self._cancel = cancel
        self._pixels = pixels
        self._threads = threads
        self._host_bytes = host_bytes
        self._most_rows = most_rows
        weight_map = any(s.has_weight_map for s in self._sources)
        mapped = weight_map or any(s.feather_px > 0 for s in self._sources)
        self._shape = SourceShape(n_channels, width, mapped, weight_map, raw=False, planes=True)
        self._ahead: ReadAhead | None = None
        self._ring: Ring | None = None
        self._feeder: ThreadPoolExecutor | None = None
        self._begun: _BlockInFlight | None = None
        self._plan: Workload | None = None
        self._chunk_rows = 0

    @property
    def unpinned(self) -> GpuFault | None:
        """What the system said when it refused to lock pages; see `zemosaic_core.gpu.windows.Ring`."""
        return None if self._ring is None else self._ring.unpinned

    def _look(self) -> ReadAhead:
        """Find out once which sources offer raw rows, and start the threads that read ahead."""
        if self._ahead is None:
            colour = self._shape.n_channels == 3
            rows = [
                self._pixels.read_raw(s.key, 0, min(2, s.shape_hw[0])) if colour else None
                for s in self._sources
            ]
            raw = [r is not None for r in rows]
            calibrated = any(r is not None and r.data.dtype == np.float32 for r in rows)
            self._shape = replace(self._shape, raw=any(raw), planes=not all(raw), calibrated=calibrated)
            self._ahead = ReadAhead(
                self._pixels, raw=any(raw), max_hot=MAX_HOT, threads=self._readers(), stage=self._stage
            )
        return self._ahead

    def _stage(self, window: Window) -> Window:
        assert self._ring is not None  # nothing is read before a block is begun
        return stage_window(self._ring, window)

    def _readers(self) -> int:
        """Number of reading threads for which the host's share of memory is enough.

        A thread has one window in its hands and one in the ring, which holds some more.
        """
        shape = self._shape
        per_pixel = 4 * shape.n_channels if shape.planes else shape.raw_bytes
        per_pixel += 4 if shape.has_weight_map else 0
        largest = max((s.shape_hw[0] * s.shape_hw[1] * per_pixel for s in self._sources), default=1)
        if not self._host_bytes:
            return self._threads
        return max(1, min(self._threads, (self._host_bytes // largest - RING_SPARE) // 2))

    def close(self) -> None:
        """Let go of a block in flight and end the threads."""
        self.discard()
        if self._feeder is not None:
            self._feeder.shutdown()
            self._feeder = None
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None
        self._ring = None

    def workload(self, op: str, rows: int, info: DeviceInfo | None, **numbers: Any) -> Workload:
        """Declare what ``rows`` output rows need on a card; ``numbers`` are further fields of `Workload`.

        Without a card (``info`` None) only the name and the rows are declared: nothing is read to find out.
        """
        bounds = [self._most_rows] if self._most_rows else []
        if self._host_bytes:
            row = max(1, self._shape.width * (_RESULT_BYTES * self._shape.n_channels + 2))
            bounds.append(max(1, self._host_bytes // row))
        if bounds:
            numbers = {"host_rows": min(bounds)} | numbers
        if info is None:
            return Workload(op, rows, (), **numbers)
        self._look()
        shape = self._shape
        numbers = {"cpu_seconds": _cpu_seconds(self._sources, shape.n_channels, self._threads)} | numbers
        self._plan = _declare(op, rows, self._sources, shape, self._rule, self._kernel, info, numbers)
        return self._plan

    def _planned(self, info: DeviceInfo) -> Workload:
        """Return what was declared, for a caller that has not asked for it too."""
        return self._plan or self.workload("stack", 0, info)

    def __call__(self, device: Device, y0: int, y1: int, next_rows: tuple[int, int] | None) -> CoaddBlock:
        """Co-add the rows ``y0 <= y < y1``; see `zemosaic_core.coadd.coadd_block`.

        Unless blocks are low, that of ``next_rows`` is begun as well: a thread of its own fills it while this one
        is combined, comes to the host and is used there. It stays on the card until it is asked for or `discard`
        is called.
        """
        self._look()
        if self._begun is not None and self._begun.rows != (y0, y1):
            self.discard()
        block, self._begun = self._begun or self._begin(device, (y0, y1)), None
        if next_rows is not None and self._chunk_rows >= self._planned(device.info).in_flight_rows:
            self._begun = self._begin(device, next_rows)
            block.following = self._begun.parts
        elif next_rows is not None:
            block.following = parts_of_block(self._sources, *next_rows, self._shape.width, self._kernel)
        return block.result()

    def _begin(self, device: Device, rows: tuple[int, int]) -> _BlockInFlight:
        if self._feeder is None:
            self._feeder = ThreadPoolExecutor(1, thread_name_prefix="gpu-feeder")
        if self._ring is None or self._ring.device is not device:
            self._ring = Ring(device, self._readers() + RING_SPARE)
        width, n_rows = self._shape.width, rows[1] - rows[0]
        self._chunk_rows = max(self._chunk_rows, n_rows)
        parts = parts_of_block(self._sources, *rows, width, self._kernel)
        block = _BlockInFlight(device, rows, (self._shape.n_channels, n_rows, width), parts, self._chunk_rows)
        block.filled = self._feeder.submit(self._fill, block)
        return block

    def _fill(self, block: _BlockInFlight) -> Combiner | None:
        """Bring all samples of a block to the card and queue their combination; None: there are none."""
        device, parts = block.device, block.parts
        if not parts:
            return None
        device.bind()
        with drained(device):
            queue, y0 = Queue(device), block.rows[0]
            memory = PlannedMemory(device, self._planned(device.info).buffers, block.planned_rows)
            boxes = np.array([(p.box[0] - y0, p.box[1] - y0, *p.box[2:]) for p in parts])
            table = tile_table(boxes, *block.shape[1:])
            weights = np.array([p.source.weight for p in parts], np.float32)
            mapped = self._shape.mapped
            combiner = Combiner(queue, memory, table, weights, self._rule, block.shape, mapped=mapped)
            assert self._ring is not None
            feed = WindowFeed(queue, memory, self._shape, parts, y0, self._kernel, self._ring)
            ahead = self._look()
            for index in range(len(parts)):
                if block.abandoned.is_set() or (self._cancel is not None and self._cancel.is_set()):
                    raise Cancelled()
                feed.sample(index, feed.upload(ahead.take(parts, index, block.following)), table, combiner)
            combiner.launch()
        return combiner

    def expect(self, chunk_rows: int) -> None:
        """Be told how many rows the largest chunk from now on has; blocks take the memory planned for it."""
        self._chunk_rows = chunk_rows

    def discard(self) -> None:
        """Let go of a block that was begun and is not wanted any more."""
        block, self._begun = self._begun, None
        if block is not None:
            block.abandon()


def expected_workload(
    op: str,
    shape_hw: tuple[int, int],
    n_channels: int,
    rule: CombineRule,
    kernel: Kernel,
    info: DeviceInfo | None,
    *,
    n_sources: int,
    source_hw: tuple[int, int],
    raw: bool,
    calibrated: bool = False,
    feather_px: float = 0.0,
    has_weight_map: bool = False,
    threads: int = 2,
) -> Workload:
    """Declare what a co-add will need on a card when its sources are known by number and size only.

    As `GpuCoadd.workload` for sources that are not turned and all cover the whole grid.

    Parameters
    ----------
    op : str
    shape_hw : tuple of int
        Height and width of the output grid.
    n_channels : int
    rule : CombineRule
    kernel : {'bilinear', 'lanczos3'}
    info : DeviceInfo or None
        None: only the name and the rows are declared.
    n_sources : int
    source_hw : tuple of int
        Height and width of every source.
    raw, calibrated : bool
        The sources come as raw rows; as calibrated ones.
    feather_px, has_weight_map
        See `CoaddSource`.
    threads : int
        Of the processor, with which the card is compared.
    """
    height, width = shape_hw
    if info is None:
        return Workload(op, height, ())
    box = (0, height, 0, width)
    terms = np.tile(np.array([1, 0, 0, 0], np.float32), (n_channels, 1))
    weight = np.ones(n_channels, np.float32)
    source = CoaddSource(
        0, source_hw, shift_pixel_map(0, 0, box), box, terms, weight, feather_px, has_weight_map
    )
    mapped = has_weight_map or feather_px > 0
    shape = SourceShape(
        n_channels, width, mapped, has_weight_map, raw=raw, planes=not raw, calibrated=calibrated
    )
    sources = (source,) * n_sources
    numbers = {"cpu_seconds": _cpu_seconds(sources, n_channels, threads)}
    return _declare(op, height, sources, shape, rule, kernel, info, numbers)


def _cpu_seconds(sources: Sequence[CoaddSource], n_channels: int, threads: int) -> float:
    """Expect how long the processor takes: no source gives more samples than about half as many again as its pixels."""
    samples = 0.0
    for source in sources:
        y0, y1, x0, x1 = source.bbox
        samples += min((y1 - y0) * (x1 - x0), 1.5 * source.shape_hw[0] * source.shape_hw[1])
    return samples * n_channels / (CPU_SAMPLES_PER_SECOND * max(1, threads))


def _reread_bytes(sources: Sequence[CoaddSource], per_pixel: int, kernel: Kernel) -> int:
    """Return what windows read beyond their block, times the output rows of the sources; see `Workload`."""
    total = 0.0
    for source in sources:
        height, width = source.shape_hw
        rows = min(source.bbox[1] - source.bbox[0], 1.5 * height)
        total += min(extra_rows(source, kernel), height) * width * per_pixel * rows
    return int(total)


def _rows_in_flight(sources: Sequence[CoaddSource], kernel: Kernel) -> int:
    """Return from how many rows on two blocks in flight are worth it.

    A window is higher than its block: by the margin of the kernel and by the slope of a turned source. Half the rows
    per block mean that this much is read and uploaded twice as often.
    """
    return 2 * math.ceil(max((extra_rows(source, kernel) for source in sources), default=0.0))


def _declare(
    op: str,
    rows: int,
    sources: Sequence[CoaddSource],
    shape: SourceShape,
    rule: CombineRule,
    kernel: Kernel,
    info: DeviceInfo,
    numbers: dict[str, Any],
) -> Workload:
    per_pixel = shape.raw_bytes if shape.raw else 4 * shape.n_channels
    boxes = [s.bbox for s in sources]
    combining = combine_buffers(boxes, shape.n_channels, shape.width, rule, info, mapped=shape.mapped)
    buffers = (*feed_buffers(shape, sources, kernel), *combining)
    fields: dict[str, Any] = {
        "in_flight": IN_FLIGHT,
        "in_flight_rows": _rows_in_flight(sources, kernel),
        "elements_per_row": shape.width * shape.n_channels,
        "upload_bytes": sum(s.shape_hw[0] * s.shape_hw[1] for s in sources) * per_pixel,
        "least_cpu_seconds": LEAST_CPU_SECONDS,
        "reread_bytes": _reread_bytes(sources, per_pixel, kernel),
        "download_bytes": rows * shape.width * (_RESULT_BYTES * shape.n_channels + 2),
        "detail": {"sources": len(sources), "channels": shape.n_channels, "width": shape.width},
    }
    return Workload(op, rows, buffers, **(fields | numbers))


class _BlockInFlight:
    """A block of rows that a thread fills on the card."""

    filled: Future[Combiner | None]

    def __init__(
        self,
        device: Device,
        rows: tuple[int, int],
        shape: tuple[int, int, int],
        parts: list[Part],
        planned_rows: int,
    ) -> None:
        self.device, self.rows, self.shape = device, rows, shape
        self.parts, self.planned_rows = parts, planned_rows
        self.following: list[Part] = []  # of the next block, once that is known: they are read ahead
        self.abandoned = Event()

    def result(self) -> CoaddBlock:
        """Wait for the block and bring it to the host."""
        try:
            combiner = self.filled.result()
        finally:
            del self.filled  # an error would hold the arrays of the block through it, in a circle
        if combiner is None:
            return CoaddBlock.blank(self.shape)
        with drained(self.device):
            return combiner.result()

    def abandon(self) -> None:
        """Stop filling, and wait until nothing on the card works with the block's memory."""
        self.abandoned.set()
        # How it ended matters to nobody: whoever needs these rows computes them again and meets the same error.
        error = self.filled.exception()
        if error is not None:
            error.__traceback__ = None  # its frames hold the arrays of the block
        settle(self.device)
