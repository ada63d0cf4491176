"""The co-add on the card: the same numbers as `zemosaic_core.coadd`, block by block of output rows.

Each source travels as it lies in its file (two bytes per pixel of a raw frame) through a ring of page-locked
memory, is decoded, repaired, debayered and sampled on the card, and joins the samples of the block; one kernel
rejects and combines. Nothing here decides whether to run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from zemosaic_core.chunks import Buffer, Workload
from zemosaic_core.errors import Cancelled
from zemosaic_core.gpu import kernels
from zemosaic_core.gpu.combine import Combiner, combine_buffers
from zemosaic_core.gpu.device import Device, DeviceInfo
from zemosaic_core.gpu.launch import Queue, drained
from zemosaic_core.gpu.reader import RAW_MARGIN, Part, ReadAhead, Window, parts_of_block
from zemosaic_core.gpu.terms import CancelFlag
from zemosaic_core.gpu.tiles import (
    TILE_H,
    TILE_W,
    TileTable,
    pool_buffers,
    tile_buffers,
    tile_table,
    widest_depth,
)
from zemosaic_core.pixel_map import step_shift, whole_nodes
from zemosaic_core.rejection import check_rule
from zemosaic_core.resample import HALO, LANCZOS_TABLE
from zemosaic_core.sources import CoaddBlock, CoaddSource, CombineRule, Kernel, PixelSource

__all__ = ["GpuCoadd"]

# Bad pixels of one window that fit the card's list; a frame with more is decoded by its source.
MAX_HOT = 1 << 16
# Windows on the card: one is being sampled while the next arrives. Page-locked host copies: one more.
SLOTS = 2
RING = 3
# Of a pixel and channel in the result of a block: image, weight, variance, two counts of rejected samples.
_RESULT_BYTES = 16


@dataclass(frozen=True)
class _Shape:
    """What the sources have in common: the numbers the plan and the blocks are made from."""

    n_channels: int
    width: int
    mapped: bool
    has_weight_map: bool
    raw: bool
    planes: bool


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
        weight_map = any(s.has_weight_map for s in self._sources)
        mapped = weight_map or any(s.feather_px > 0 for s in self._sources)
        self._shape = _Shape(n_channels, width, mapped, weight_map, raw=False, planes=True)
        self._ahead: ReadAhead | None = None
        self._ring = _Ring()

    def _look(self) -> ReadAhead:
        """Find out once which sources offer raw rows, and start the threads that read ahead."""
        if self._ahead is None:
            colour = self._shape.n_channels == 3
            raw = [
                colour and self._pixels.read_raw(s.key, 0, min(2, s.shape_hw[0])) is not None
                for s in self._sources
            ]
            self._shape = replace(self._shape, raw=any(raw), planes=not all(raw))
            self._ahead = ReadAhead(self._pixels, raw=any(raw), max_hot=MAX_HOT, threads=self._readers())
        return self._ahead

    def _readers(self) -> int:
        """Number of reading threads whose windows, one more, and the ring fit the host's share of memory."""
        shape = self._shape
        per_pixel = (4 * shape.n_channels if shape.planes else 2) + (4 if shape.has_weight_map else 0)
        largest = max((s.shape_hw[0] * s.shape_hw[1] * per_pixel for s in self._sources), default=1)
        if not self._host_bytes:
            return self._threads
        return max(1, min(self._threads, self._host_bytes // largest - RING - 1))

    def close(self) -> None:
        """End the reading threads."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None
        self._ring = _Ring()

    def workload(self, op: str, rows: int, info: DeviceInfo | None, **numbers: Any) -> Workload:
        """Declare what ``rows`` output rows need on a card; ``numbers`` are further fields of `Workload`.

        Without a card (``info`` None) only the name and the rows are declared: nothing is read to find out.
        """
        if self._host_bytes:
            row = max(1, self._shape.width * (_RESULT_BYTES * self._shape.n_channels + 2))
            numbers = {"host_rows": max(1, self._host_bytes // row)} | numbers
        if info is None:
            return Workload(op, rows, (), **numbers)
        self._look()
        shape = self._shape
        boxes = [s.bbox for s in self._sources]
        depth = widest_depth(boxes, shape.width)
        buffers = [
            *self._window_buffers(),
            *self._table_buffers(),
            *pool_buffers(boxes, shape.n_channels, shape.mapped),
            *tile_buffers(boxes, shape.n_channels, shape.width),
            *combine_buffers(shape.n_channels, shape.width, depth, self._rule, info),
        ]
        fields: dict[str, Any] = {
            "elements_per_row": shape.width * shape.n_channels,
            "upload_bytes": self._upload_bytes(),
            "download_bytes": rows * shape.width * (_RESULT_BYTES * shape.n_channels + 2),
            "detail": {"sources": len(self._sources), "channels": shape.n_channels, "width": shape.width},
        }
        return Workload(op, rows, tuple(buffers), **(fields | numbers))

    def _upload_bytes(self) -> int:
        per_pixel = 2 if self._shape.raw else 4 * self._shape.n_channels
        return sum(s.shape_hw[0] * s.shape_hw[1] * per_pixel for s in self._sources)

    def _window_buffers(self) -> list[Buffer]:
        """Declare the arrays a window passes through; its rows are bounded by the slope of the maps."""
        shape = self._shape
        bounds = [_window_rows(s, self._kernel) for s in self._sources]
        buffers = []

        def window(name: str, bytes_per_pixel: int, copies: int = 1) -> None:
            fixed = max(
                (f * s.shape_hw[1] for (f, _), s in zip(bounds, self._sources, strict=True)), default=0
            )
            per_row = max(
                (p * s.shape_hw[1] for (_, p), s in zip(bounds, self._sources, strict=True)), default=0
            )
            limit = max((s.shape_hw[0] * s.shape_hw[1] for s in self._sources), default=1)
            numbers = (int(v * bytes_per_pixel) for v in (fixed, per_row, limit))
            buffers.append(Buffer(name, *(next(numbers), next(numbers)), copies, next(numbers)))

        if shape.raw:
            window("raw windows", 2, SLOTS)
            window("planes", 12)
            buffers.append(Buffer("hot pixels", 8 * MAX_HOT))
        if shape.planes:
            window("plane windows", 4 * shape.n_channels, SLOTS)
        if shape.has_weight_map:
            window("weight windows", 4, SLOTS)
        return buffers

    def _table_buffers(self) -> list[Buffer]:
        nodes = sum(s.pixel_map.src_x.size for s in self._sources)
        n = max(1, len(self._sources)) * self._shape.n_channels
        buffers = [Buffer("nodes", fixed=8 * max(1, nodes), copies=2), Buffer("terms", fixed=16 * n)]
        buffers += [Buffer("taps", fixed=LANCZOS_TABLE.nbytes), Buffer("no weights", fixed=4)]
        return buffers

    def __call__(self, device: Device, y0: int, y1: int, next_rows: tuple[int, int] | None) -> CoaddBlock:
        """Co-add the rows ``y0 <= y < y1``; see `zemosaic_core.coadd.coadd_block`."""
        self._look()
        width = self._shape.width
        parts = parts_of_block(self._sources, y0, y1, width, self._kernel)
        following = (
            [] if next_rows is None else parts_of_block(self._sources, *next_rows, width, self._kernel)
        )
        if not parts:
            return CoaddBlock.blank((self._shape.n_channels, y1 - y0, width))
        queue = Queue(device)
        with drained(device):
            block = _Block(device, queue, self._shape, parts, (y0, y1), self._kernel, self._ring)
            boxes = np.array([(p.box[0] - y0, p.box[1] - y0, *p.box[2:]) for p in parts])
            table = tile_table(boxes, y1 - y0, width)
            weights = np.array([p.source.weight for p in parts], np.float32)
            shape = (self._shape.n_channels, y1 - y0, width)
            combiner = Combiner(queue, table, weights, self._rule, shape, mapped=self._shape.mapped)
            for index, part, window in self._windows(block, following):
                block.sample(index, part, window, table, combiner)
            return combiner.result()

    def _windows(self, block: _Block, following: list[Part]):
        """Yield each part with its window on the card, reading ahead."""
        ahead = self._look()
        for index, part in enumerate(block.parts):
            if self._cancel is not None and self._cancel.is_set():
                raise Cancelled()
            yield index, part, block.upload(ahead.take(block.parts, index, following))


def _window_rows(source: CoaddSource, kernel: Kernel) -> tuple[float, float]:
    """Bound the source rows a block needs as ``fixed + per_row * rows``, from the slopes of the lattice."""
    step = source.pixel_map.step
    nodes = source.pixel_map.src_y
    down = np.abs(np.diff(nodes, axis=0)) / step
    along = np.abs(np.diff(nodes, axis=1)) / step
    per_row = float(np.nanmax(down)) if np.isfinite(down).any() else 1.0
    slope = float(np.nanmax(along)) if np.isfinite(along).any() else 0.0
    fixed = slope * (source.bbox[3] - source.bbox[2]) + 2 * (HALO[kernel] + RAW_MARGIN) + 4
    return fixed, per_row


@dataclass(frozen=True)
class _OnCard:
    """A window on the card: colour planes, weights, and where they lie in the source."""

    planes: Any
    weights: Any
    origin: tuple[int, int]
    shape_hw: tuple[int, int]


class _Ring:
    """Page-locked host memory that lives as long as the operation: locking pages takes its time."""

    def __init__(self) -> None:
        self._slots: list[np.ndarray] = []

    def slots(self, device: Device, n_bytes: int) -> list[np.ndarray]:
        """Return slots of at least so many bytes; earlier ones are dropped when they are too small."""
        if not self._slots or self._slots[0].nbytes < n_bytes:
            self._slots = []
            self._slots = [device.pinned(n_bytes) for _ in range(RING)]
        return self._slots


class _Block:
    """The arrays of one block on the card and the way of a window through them."""

    def __init__(
        self,
        device: Device,
        queue: Queue,
        shape: _Shape,
        parts: list[Part],
        rows: tuple[int, int],
        kernel: Kernel,
        ring: _Ring,
    ) -> None:
        self.device, self.queue, self.parts, self.rows = device, queue, parts, rows
        self._shape = shape
        self._lanczos = kernel == "lanczos3"
        self._copies = Queue(device)
        sizes = [_window_pixels(part) for part in parts]
        largest = max(sizes)
        n = shape.n_channels
        self._raw = [device.empty((largest,), np.uint16) for _ in range(SLOTS if shape.raw else 0)]
        self._planes = device.empty((3 * largest,), np.float32) if shape.raw else None
        self._hot = device.empty((MAX_HOT,), np.int64) if shape.raw else None
        self._decoded = [
            device.empty((n * largest,), np.float32) for _ in range(SLOTS if shape.planes else 0)
        ]
        self._weights = [
            device.empty((largest,), np.float32) for _ in range(SLOTS if shape.has_weight_map else 0)
        ]
        bytes_per_pixel = max(2 if shape.raw else 0, 4 * n if shape.planes else 0)
        bytes_per_pixel += 4 if shape.has_weight_map else 0
        self._ring = ring.slots(device, max(1, largest * bytes_per_pixel))
        self._copied: list[Any] = [None] * RING
        self._used: list[Any] = [None] * SLOTS
        self._count = 0
        # Slopes and places of all sources in four arrays; the kernels get offsets into them.
        self._node_starts = np.concatenate([[0], np.cumsum([p.source.pixel_map.src_x.size for p in parts])])
        node_x, node_y = zip(*(whole_nodes(p.source.pixel_map) for p in parts), strict=True)
        self._node_x, self._node_y = (
            queue.upload(np.concatenate(node_x)),
            queue.upload(np.concatenate(node_y)),
        )
        self._terms = queue.upload(np.concatenate([_terms(p.source) for p in parts]))
        self._table = queue.upload(np.array(LANCZOS_TABLE))
        self._nothing = device.empty((1,), np.float32)

    def upload(self, window: Window | None) -> _OnCard | None:
        """Queue the copy of a window and its decoding; the host may go on at once."""
        if window is None:
            return None
        slot, place = self._count % SLOTS, self._count % RING
        self._count += 1
        if self._copied[place] is not None:
            self.device.synchronize(self._copied[place])
        if self._used[slot] is not None:
            self._copies.wait(self._used[slot])
        pieces = [(self._raw[slot], window.raw.data)] if window.raw is not None else []
        unplanned = window.planes is not None and not self._decoded
        if window.planes is not None and not unplanned:
            pieces.append((self._decoded[slot], window.planes))
        pieces += [(self._weights[slot], window.weights)] if window.weights is not None else []
        offset = 0
        for target, data in pieces:
            data = np.ascontiguousarray(data)
            locked = self._ring[place][offset : offset + data.nbytes]
            locked[:] = data.reshape(-1).view(np.uint8)
            offset += data.nbytes
            self._copies.copy_in(target, locked)
        self._copied[place] = self._copies.record()
        self.queue.wait(self._copied[place])
        planes = self._planes if window.planes is None or unplanned else self._decoded[slot]
        if unplanned:
            # A raw frame with too many bad pixels came decoded: behind the work that still uses the planes.
            self.queue.copy_in(self._planes, window.planes)
        if window.raw is not None:
            self._decode(self._raw[slot], window)
        weights = self._weights[slot] if window.weights is not None else self._nothing
        return _OnCard(planes, weights, window.origin, window.shape_hw)

    def _decode(self, raw: Any, window: Window) -> None:
        rows = window.raw
        assert rows is not None
        height, width = window.shape_hw
        source, coded = kernels.source("decode"), int(rows.big_endian_signed)
        first = rows.y0 * width
        hot = np.unique(rows.hot_pixels)
        hot = hot[(hot >= first) & (hot < first + height * width)]
        if hot.size:
            self.queue.copy_in(self._hot, hot)
            args = (raw, coded, self._hot, int(hot.size), np.int64(first), height, width)
            self.queue.launch_1d(source, "mend_hot", hot.size, args)
        pattern = rows.pattern[2:] + rows.pattern[:2] if rows.y0 % 2 else rows.pattern
        phase = (int(pattern[0] == "G"), pattern.index("R") // 2)
        self.queue.launch_2d(
            source, "debayer_raw", width, height, (raw, coded, height, width, *phase, self._planes)
        )

    def sample(
        self, index: int, part: Part, window: _OnCard | None, table: TileTable, combiner: Combiner
    ) -> None:
        """Queue the sampling of a window into the slots of its source."""
        source, lattice = part.source, part.source.pixel_map
        top, bottom, left, right = table.spans[index].tolist()
        if window is None:
            # A window of no pixels: the kernel finds every coordinate outside.
            window = _OnCard(self._nothing, self._nothing, (0, 0), (0, 0))
        args = (
            window.planes, self._shape.n_channels, *window.shape_hw, *window.origin, *source.shape_hw,
            self._node_x, self._node_y, np.int64(self._node_starts[index]), *lattice.src_x.shape,
            lattice.y0, lattice.x0, step_shift(lattice), self.rows[0], *part.box,
            self._table, self._terms, index * 4 * self._shape.n_channels,
            np.float32(source.feather_px), window.weights, int(source.has_weight_map),
            combiner.bases, combiner.counts, combiner.slots, np.int64(table.slot_starts[index]), top, left,
            table.tiles_yx[1], combiner.values, np.int64(table.n_samples), combiner.maps, int(self._shape.mapped),
        )  # fmt: skip
        self.queue.launch(
            kernels.source("sample"), "sample_source", (right - left, bottom - top), (TILE_W, TILE_H), args,
            options=(f"-DLANCZOS={int(self._lanczos)}",),
        )  # fmt: skip
        if self._count:
            self._used[(self._count - 1) % SLOTS] = self.queue.record()


def _terms(source: CoaddSource) -> np.ndarray:
    """Return the photometric terms, flat; a channel without weight gets terms that make every sample missing."""
    terms = np.array(source.photometry, np.float32)
    terms[~(np.asarray(source.weight) > 0)] = np.nan
    return terms.ravel()


def _window_pixels(part: Part) -> int:
    if part.window is None:
        return 1
    height, width = part.source.shape_hw
    return (min(height, part.window[1] + RAW_MARGIN) - max(0, part.window[0] - RAW_MARGIN)) * width
