"""The second pass on the card: the same sums as `zemosaic_core.refine.gather_block`, block by block of output rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np

from zemosaic_core.chunks import Buffer, Workload
from zemosaic_core.detector_surface import N_SURFACE
from zemosaic_core.errors import Cancelled
from zemosaic_core.gpu import kernels
from zemosaic_core.gpu.device import Device, DeviceInfo
from zemosaic_core.gpu.launch import PlannedMemory, Queue, drained
from zemosaic_core.gpu.reader import ReadAhead, Window, parts_of_block
from zemosaic_core.gpu.terms import CancelFlag, Parity
from zemosaic_core.gpu.windows import MAX_HOT, SLOTS, Ring, stage_window
from zemosaic_core.pixel_map import step_shift, whole_nodes
from zemosaic_core.refine import RefineSource, SampleSource, channels_of, rows_with, source_terms, turn_of
from zemosaic_core.refine_rows import BlocksInTurn
from zemosaic_core.refine_structure import HALO_ROWS, NEED_REACH, Gathered, kernel_numbers, needed_places
from zemosaic_core.sources import PixelMap, RawRows

__all__ = ["GpuRefine", "compare_gathered"]

# Numbers of a source and channel: photometry, radial pattern and surface, limit, background, weight.
_N_TERMS = 11 + N_SURFACE
_SUMS = tuple(item.name for item in fields(Gathered))
# Means of float32 sums; what differs by less is the order of rounding, what differs by more another set of samples.
_SAME_WEIGHT = 1e-4


class _Samples:
    """Untouched samples in the form in which windows are read ahead."""

    def __init__(self, pixels: SampleSource) -> None:
        self._pixels = pixels

    def read(self, key: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        return self._pixels.read_samples(key, y0, y1, x0, x1)[np.newaxis]

    def read_weight(self, key: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray | None:
        return self._pixels.read_weight(key, y0, y1, x0, x1)

    def read_raw(self, key: int, y0: int, y1: int) -> RawRows | None:
        raw = self._pixels.read_raw(key, y0, y1)
        # Which samples are missing or were cut off is known where whole samples are made of them.
        return raw if raw is None or (not np.isfinite(raw.clip).any() and not len(raw.masked)) else None


class GpuRefine:
    """Gathers blocks of rows on a card; also declares the memory for that.

    Parameters
    ----------
    pixels : SampleSource
    sources : sequence of RefineSource
        In the order in which they are summed.
    rows : BlocksInTurn
        The co-add.
    width, n_channels : int
    scale : float
        Output pixels per source pixel.
    threads : int
        Threads that read ahead.
    cancel : object with ``is_set()``, optional
        Looked at before every source.
    """

    def __init__(
        self,
        pixels: SampleSource,
        sources: Sequence[RefineSource],
        rows: BlocksInTurn,
        width: int,
        n_channels: int,
        *,
        scale: float = 1.0,
        threads: int = 2,
        cancel: CancelFlag | None = None,
    ) -> None:
        self._sources = [item for item in sources if np.any(np.asarray(item.source.weight) > 0)]
        self._by_key = {item.source.key: number for number, item in enumerate(self._sources)}
        self._pixels = _Samples(pixels)
        self._rows = rows
        self._width, self._n_channels = width, n_channels
        self._scale = scale
        self._threads = threads
        self._cancel = cancel
        self._ahead: ReadAhead | None = None
        self._ring: Ring | None = None

    def workload(self, op: str, rows: int, info: DeviceInfo | None) -> Workload:
        """Declare what ``rows`` output rows need on a card; without one only the name and the rows."""
        if info is None:
            return Workload(op, rows, ())
        n_pixels = sum(item.source.shape_hw[0] * item.source.shape_hw[1] for item in self._sources)
        return Workload(
            op,
            rows,
            self._buffers(),
            elements_per_row=self._width * self._n_channels,
            upload_bytes=2 * n_pixels + rows * self._width * (4 * self._n_channels + 5),
            download_bytes=4 * len(_SUMS) * rows * self._width * self._n_channels,
            detail={"sources": len(self._sources), "channels": self._n_channels, "width": self._width},
        )

    def _buffers(self) -> tuple[Buffer, ...]:
        row = 4 * self._n_channels * self._width
        window = max((item.source.shape_hw[0] * item.source.shape_hw[1] for item in self._sources), default=1)
        nodes = sum(item.source.pixel_map.src_x.size + item.to_output.src_x.size for item in self._sources)
        return (
            Buffer("model", fixed=2 * HALO_ROWS * row, per_row=row),
            Buffer("mask", per_row=4 * self._width),
            Buffer("need", fixed=2 * NEED_REACH * self._width, per_row=self._width),
            *(Buffer(name, per_row=row) for name in _SUMS),
            # A window is raw or plain; each has a place of its own, so that neither has to wait for the other.
            Buffer("raw window", fixed=2 * window),
            Buffer("plain window", fixed=4 * window),
            Buffer("weight window", fixed=4 * window),
            Buffer("differences", fixed=4 * window),
            Buffer("hot pixels", fixed=8 * MAX_HOT),
            Buffer("nodes", fixed=8 * max(1, nodes), copies=2),
            Buffer("terms", fixed=4 * _N_TERMS * self._n_channels * max(1, len(self._sources))),
        )

    def __call__(self, device: Device, y0: int, y1: int, next_rows: tuple[int, int] | None) -> Gathered:
        """Sum up over all sources for the rows ``y0 <= y < y1``; see `zemosaic_core.refine.gather_block`."""
        block = self._rows.block(y0, y1)
        shape = (self._n_channels, y1 - y0, self._width)
        top, bottom = rows_with(block.mask, y0)
        sources = [item.source for item in self._sources]
        parts = parts_of_block(sources, top, bottom, self._width, "bilinear") if top < bottom else []
        if not parts:
            return Gathered.blank(shape)
        if self._ring is None or self._ring.device is not device:
            self._ring = Ring(device, self._threads + 2 + SLOTS)
        if self._ahead is None:
            self._ahead = ReadAhead(
                self._pixels, raw=True, max_hot=MAX_HOT, threads=self._threads, stage=self._stage
            )
        queue = Queue(device)
        with drained(device):
            memory = PlannedMemory(device, self._buffers(), y1 - y0)
            onto = _OnCard(queue, memory, self._sources, shape)
            onto.load(block.image, block.image_y0, block.mask, y0, self._scale)
            for index, part in enumerate(parts):
                if self._cancel is not None and self._cancel.is_set():
                    raise Cancelled()
                window = self._ahead.take(parts, index, [])
                if window is not None:
                    onto.add(self._by_key[part.source.key], part.box, window, self._scale)
                    self._ring.sent(window.turn, queue.record())
            return onto.result()

    def _stage(self, window: Window) -> Window:
        assert self._ring is not None  # nothing is read before a block is begun
        return stage_window(self._ring, window)

    def close(self) -> None:
        """End the threads."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None
        self._ring = None


class _OnCard:
    """The arrays of one block on the card."""

    def __init__(
        self,
        queue: Queue,
        memory: PlannedMemory,
        sources: Sequence[RefineSource],
        shape: tuple[int, int, int],
    ) -> None:
        self._queue, self._memory = queue, memory
        self._sources, self._shape = sources, shape
        self._sums = [memory.empty(name, int(np.prod(shape)), np.float32) for name in _SUMS]
        for array in self._sums:
            queue.fill(array, 0)
        largest = max(item.source.shape_hw[0] * item.source.shape_hw[1] for item in sources)
        self._raw = memory.empty("raw window", largest, np.uint16)
        self._plain = memory.empty("plain window", largest, np.float32)
        self._weights = memory.empty("weight window", largest, np.float32)
        self._differences = memory.empty("differences", largest, np.float32)
        self._hot = memory.empty("hot pixels", MAX_HOT, np.int64)
        maps = [lattice for item in sources for lattice in (item.source.pixel_map, item.to_output)]
        self._starts = np.concatenate([[0], np.cumsum([lattice.src_x.size for lattice in maps])])
        nodes_x = np.concatenate([lattice.src_x.ravel() for lattice in maps])
        nodes_y = np.concatenate([lattice.src_y.ravel() for lattice in maps])
        self._node_x, self._node_y = (
            memory.upload(queue, "nodes", nodes) for nodes in whole_nodes(nodes_x, nodes_y)
        )
        # Of each source: the terms of each channel, then their limits, backgrounds and weights.
        numbers = [
            np.concatenate(
                [source_terms(item.source).ravel(), item.limit, item.background, item.source.weight]
            )
            for item in sources
        ]
        self._terms = memory.upload(queue, "terms", np.concatenate(numbers).astype(np.float32))

    def load(self, image: np.ndarray, image_y0: int, mask: np.ndarray, y0: int, scale: float) -> None:
        """Queue the copies of what decides about the block."""
        need = needed_places(mask, scale)
        self._model_h, self._model_y0, self._y0, self._need_h = image.shape[1], image_y0, y0, len(need)
        self._model = self._memory.upload(self._queue, "model", np.ascontiguousarray(image, np.float32))
        self._mask = self._memory.upload(self._queue, "mask", mask)
        self._need = self._memory.upload(self._queue, "need", need)

    def add(self, number: int, box: tuple[int, int, int, int], window: Window, scale: float) -> None:
        """Queue what one source adds to the sums of a box."""
        queue, item = self._queue, self._sources[number]
        source, raw = item.source, window.raw
        n_channels, rows, width = self._shape
        hot, coded, calibrated = np.empty(0, np.int64), 0, False
        first = window.origin[0] * source.shape_hw[1]
        if raw is not None:
            hot = np.unique(raw.hot_pixels)
            hot = hot[(hot >= first) & (hot < first + window.shape_hw[0] * window.shape_hw[1])]
            calibrated = raw.data.dtype == np.float32
            queue.copy_in(self._plain if calibrated else self._raw, raw.data)
            coded = 2 if calibrated else int(raw.big_endian_signed)
            if hot.size:
                queue.copy_in(self._hot, hot)
        else:
            assert window.planes is not None
            queue.copy_in(self._plain, window.planes)
        if window.weights is not None:
            queue.copy_in(self._weights, window.weights)
        place = (*window.shape_hw, *window.origin, *source.shape_hw)
        channels = [int(c) for c in channels_of(item.pattern)]
        offset = _N_TERMS * n_channels * number
        queue.launch_2d(
            kernels.source("refine"), "sample_differences", window.shape_hw[1], window.shape_hw[0],
            (self._plain if calibrated else self._raw, coded, int(raw is not None), self._plain, self._hot,
             int(hot.size), np.int64(first), *place, *self._map(2 * number + 1, item.to_output), *channels,
             self._terms, offset, n_channels, int(source.surface is not None), np.float32(item.blur_px2), self._model,
             self._model_h, width,
             self._model_y0, self._need, self._need_h, self._y0 - NEED_REACH, self._differences),
        )  # fmt: skip
        queue.launch_2d(
            kernels.source("refine"), "gather_differences", box[3] - box[2], box[1] - box[0],
            (self._differences, *place, *self._map(2 * number, source.pixel_map), *channels, self._terms,
             offset + (_N_TERMS - 1) * n_channels, np.float32(source.feather_px), np.float32(source.feather_start),
             self._weights, int(window.weights is not None), *kernel_numbers(scale), self._mask, self._y0, width, *box,
             *turn_of(item.to_output, scale), np.int64(rows * width), *self._sums),
        )  # fmt: skip

    def _map(self, number: int, lattice: PixelMap) -> tuple[object, ...]:
        start = np.int64(self._starts[number])
        ny, nx = lattice.src_x.shape
        return self._node_x, self._node_y, start, ny, nx, lattice.y0, lattice.x0, step_shift(lattice)

    def result(self) -> Gathered:
        """Wait for the sums and bring them to the host."""
        return Gathered(*self._queue.download(*self._sums, shapes=[self._shape] * len(self._sums)))


def compare_gathered(gpu: Gathered, cpu: Gathered, first_row: int) -> Parity:
    """Compare rows of sums of the card with those of the CPU.

    The largest difference of the means in units of their noise; pixels where another set of samples was summed are
    counted.
    """
    rows = slice(first_row, first_row + cpu.total.shape[1])
    weight, total = gpu.weight[:, rows], gpu.total[:, rows]
    same = np.abs(weight - cpu.weight) <= _SAME_WEIGHT * np.maximum(cpu.weight, 1e-30)
    both = same & (cpu.weight > 0)
    if not both.any():
        return Parity(0.0, int(same.size), int((~same).sum()))
    found = cpu.weight[both].astype(np.float64)
    noise = float(np.sqrt(np.median(cpu.square[both] / found**2)))
    difference = np.abs(total[both].astype(np.float64) - cpu.total[both]) / found
    return Parity(float(difference.max()) / (noise or 1.0), int(same.size), int((~same).sum()))
