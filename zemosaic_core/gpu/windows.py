"""The way of the sources to the card: windows of rows through page-locked memory, decoded, debayered and sampled.

Threads that read ahead stage the windows there. A feed fills the slots of one block (`zemosaic_core.gpu.tiles`),
source after source; the copy of a window runs beside the work on the one before. Also declares what that takes on
the card.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from zemosaic_core.cfa import CfaColour, debayer_terms
from zemosaic_core.chunks import Buffer
from zemosaic_core.detector_surface import N_SURFACE
from zemosaic_core.gpu import kernels
from zemosaic_core.gpu.combine import Combiner
from zemosaic_core.gpu.device import Device, GpuFault, classify
from zemosaic_core.gpu.launch import PlannedMemory, Queue
from zemosaic_core.gpu.reader import MAX_SPANS, RAW_MARGIN, Part, Window
from zemosaic_core.gpu.tiles import TILE_H, TILE_W, TileTable
from zemosaic_core.lanczos_table import LANCZOS_TABLE
from zemosaic_core.pixel_map import step_shift, whole_nodes
from zemosaic_core.resample import HALO
from zemosaic_core.sources import CoaddSource, Kernel

__all__ = [
    "MAX_HOT",
    "N_TERMS",
    "SLOTS",
    "Ring",
    "SourceShape",
    "WindowFeed",
    "debayer_on_card",
    "extra_rows",
    "feed_buffers",
    "stage_window",
]

# Bad pixels of one window that fit the card's list; a frame with more is decoded by its source.
MAX_HOT = 1 << 16
# Photometric terms of a source and channel: gain, offset, plane, the radial pattern of the detector and its surface.
N_TERMS = 8 + N_SURFACE
# Rows of a column for one thread of `colour_shares`.
SHARE_ROWS = 4
# Windows on the card: one is being sampled while the next arrives.
SLOTS = 2


@dataclass(frozen=True)
class SourceShape:
    """What the sources of a co-add have in common: the numbers the plan and the blocks are made from.

    Attributes
    ----------
    n_channels, width : int
        Channels of every source, columns of the output grid.
    mapped : bool
        Samples have weights of their own: some source has a feather or a weight map.
    has_weight_map : bool
        Some source has a weight map.
    raw, planes : bool
        Some source comes as raw rows, some source comes decoded.
    calibrated : bool
        Some raw rows are calibrated samples, float32, twice as long as those of the file.
    """

    n_channels: int
    width: int
    mapped: bool
    has_weight_map: bool
    raw: bool
    planes: bool
    calibrated: bool = False

    @property
    def raw_bytes(self) -> int:
        """Bytes of a pixel of raw rows."""
        return 4 if self.calibrated else 2


def feed_buffers(shape: SourceShape, sources: Sequence[CoaddSource], kernel: Kernel) -> list[Buffer]:
    """Declare the arrays of a feed: those a window passes through, and the tables of all sources.

    The rows of a window are bounded by the slope of the maps.
    """
    bounds = [(extra_rows(s, kernel), _rows_per_row(s)) for s in sources]
    buffers = []

    def window(name: str, bytes_per_pixel: int, copies: int = 1) -> None:
        fixed = max((f * s.shape_hw[1] for (f, _), s in zip(bounds, sources, strict=True)), default=0)
        per_row = max((p * s.shape_hw[1] for (_, p), s in zip(bounds, sources, strict=True)), default=0)
        limit = max((s.shape_hw[0] * s.shape_hw[1] for s in sources), default=1)
        numbers = [int(v * bytes_per_pixel) for v in (fixed, per_row, limit)]
        buffers.append(Buffer(name, *numbers[:2], copies, numbers[2]))

    if shape.raw:
        window("raw windows", shape.raw_bytes, SLOTS)
        window("shares", 8)
        window("planes", 12)
        buffers.append(Buffer("hot pixels", 8 * MAX_HOT))
        buffers.append(Buffer("masked spans", 12 * MAX_SPANS))
    if shape.planes:
        window("plane windows", 4 * shape.n_channels, SLOTS)
    if shape.has_weight_map:
        window("weight windows", 4, SLOTS)
    nodes = sum(s.pixel_map.src_x.size for s in sources)
    buffers.append(Buffer("nodes", fixed=8 * max(1, nodes), copies=2))
    buffers.append(Buffer("terms", fixed=4 * N_TERMS * max(1, len(sources)) * shape.n_channels))
    return [*buffers, Buffer("taps", fixed=LANCZOS_TABLE.nbytes), Buffer("no weights", fixed=4)]


@dataclass(frozen=True)
class _OnCard:
    """A window on the card: colour planes, weights, and where they lie in the source."""

    planes: Any
    weights: Any
    origin: tuple[int, int]
    shape_hw: tuple[int, int]


class Ring:
    """Page-locked host memory that lives as long as the operation: locking pages takes its time.

    What is sent to the card waits in one of ``n_slots`` slots, taken in turns. Where the system does not lock so
    many pages, ordinary memory serves: transfers take longer, nothing else changes.

    Parameters
    ----------
    device : Device
    n_slots : int

    Attributes
    ----------
    unpinned : GpuFault or None
        What the system said when it refused.
    """

    def __init__(self, device: Device, n_slots: int) -> None:
        self.device = device
        self.unpinned: GpuFault | None = None
        self._slots: list[np.ndarray | None] = [None] * n_slots
        self._copied: list[Any] = [None] * n_slots

    def stage(self, turn: int, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return copies of host arrays in the slot of this turn, once what was there before has been sent.

        May be called from any thread, for slots that are not in use.
        """
        at = turn % len(self._slots)
        n_bytes = sum(array.nbytes for array in arrays)
        if self._copied[at] is not None:
            self.device.synchronize(self._copied[at])
        slot = self._slots[at]
        if slot is None or slot.nbytes < n_bytes:
            slot = self._slots[at] = self._memory(max(1, n_bytes))
        staged, offset = [], 0
        for array in arrays:
            place = slot[offset : offset + array.nbytes].view(array.dtype).reshape(array.shape)
            place[...] = array
            staged.append(place)
            offset += array.nbytes
        return staged

    def _memory(self, n_bytes: int) -> np.ndarray:
        if self.unpinned is None:
            try:
                return self.device.pinned(n_bytes)
            except Exception as error:
                fault = classify(error)
                if fault is None or fault.kind == "device_lost":
                    raise
                self.unpinned = fault
        return np.empty(n_bytes, np.uint8)

    def sent(self, turn: int, event: Any) -> None:
        """Note the event behind the copies of what was staged for this turn."""
        self._copied[turn % len(self._slots)] = event


def stage_window(ring: Ring, window: Window) -> Window:
    """Return a window whose pixels lie in page-locked memory."""
    raw = None if window.raw is None else window.raw.data
    arrays = [array for array in (raw, window.planes, window.weights) if array is not None]
    staged = iter(ring.stage(window.turn, arrays))
    return replace(
        window,
        raw=None if window.raw is None else replace(window.raw, data=next(staged)),
        planes=None if window.planes is None else next(staged),
        weights=None if window.weights is None else next(staged),
    )


class WindowFeed:
    """The arrays of one block on the card and the way of a window, staged by `stage_window`, through them.

    Parameters
    ----------
    queue : Queue
        For everything but the copies of windows, which have a stream of their own.
    memory : PlannedMemory
        Made from `feed_buffers`.
    shape : SourceShape
    parts : list of Part
    block_y : int
        First output row of the block.
    kernel : {'bilinear', 'lanczos3'}
    ring : Ring
    """

    def __init__(
        self,
        queue: Queue,
        memory: PlannedMemory,
        shape: SourceShape,
        parts: list[Part],
        block_y: int,
        kernel: Kernel,
        ring: Ring,
    ) -> None:
        self.queue, self.parts = queue, parts
        self._block_y = block_y
        self._shape = shape
        self._lanczos = kernel == "lanczos3"
        self._copies = Queue(queue.device)
        largest = max(_window_pixels(part) for part in parts)
        n = shape.n_channels

        def slots(name: str, n_elements: int, dtype: type, wanted: bool) -> list[Any]:
            return [memory.empty(name, n_elements, dtype) for _ in range(SLOTS if wanted else 0)]

        self._planes = memory.empty("planes", 3 * largest, np.float32) if shape.raw else None
        self._decoded = slots("plane windows", n * largest, np.float32, shape.planes)
        self._weights = slots("weight windows", largest, np.float32, shape.has_weight_map)
        # Places of two bytes: two of them for a calibrated sample.
        self._raw = slots("raw windows", largest * shape.raw_bytes // 2, np.uint16, shape.raw)
        self._shares = memory.empty("shares", 2 * largest, np.float32) if shape.raw else None
        self._hot = memory.empty("hot pixels", MAX_HOT, np.int64) if shape.raw else None
        self._spans = memory.empty("masked spans", 3 * MAX_SPANS, np.int32) if shape.raw else None
        self._ring = ring
        self._used: list[Any] = [None] * SLOTS
        self._count = 0
        # Slopes and places of all sources in four arrays; the kernels get offsets into them.
        self._node_starts = np.concatenate([[0], np.cumsum([p.source.pixel_map.src_x.size for p in parts])])
        nodes_x = np.concatenate([p.source.pixel_map.src_x.ravel() for p in parts])
        nodes_y = np.concatenate([p.source.pixel_map.src_y.ravel() for p in parts])
        self._node_x, self._node_y = (
            memory.upload(queue, "nodes", nodes) for nodes in whole_nodes(nodes_x, nodes_y)
        )
        self._terms = memory.upload(queue, "terms", np.concatenate([_terms(p.source) for p in parts]))
        self._table = memory.upload(queue, "taps", np.array(LANCZOS_TABLE))
        self._nothing = memory.empty("no weights", 1, np.float32)

    def upload(self, window: Window | None) -> _OnCard | None:
        """Queue the copy of a window and its decoding; the host may go on at once."""
        if window is None:
            return None
        slot = self._count % SLOTS
        self._count += 1
        if self._used[slot] is not None:
            self._copies.wait(self._used[slot])
        # A raw frame with too many bad pixels came decoded: behind the work that still uses the planes.
        unplanned = window.planes is not None and not self._decoded
        stream = self.queue if unplanned else self._copies
        planes = self._planes if window.planes is None or unplanned else self._decoded[slot]
        if window.raw is not None:
            stream.copy_in(self._raw[slot], window.raw.data.view(np.uint16))
        if window.planes is not None:
            stream.copy_in(planes, window.planes)
        if window.weights is not None:
            stream.copy_in(self._weights[slot], window.weights)
        copied = stream.record()
        self._ring.sent(window.turn, copied)
        self.queue.wait(copied)
        if window.raw is not None:
            self._decode(self._raw[slot], window)
        weights = self._weights[slot] if window.weights is not None else self._nothing
        return _OnCard(planes, weights, window.origin, window.shape_hw)

    def _decode(self, raw: Any, window: Window) -> None:
        rows = window.raw
        assert rows is not None
        height, width = window.shape_hw
        coded = 2 if rows.data.dtype == np.float32 else int(rows.big_endian_signed)
        source = kernels.source("decode")
        first = rows.y0 * width
        hot = np.unique(rows.hot_pixels)
        hot = hot[(hot >= first) & (hot < first + height * width)]
        if hot.size:
            self.queue.copy_in(self._hot, hot)
            args = (raw, coded, self._hot, int(hot.size), np.int64(first), height, width)
            self.queue.launch_1d(source, "mend_hot", hot.size, args)
        pattern = rows.pattern[2:] + rows.pattern[:2] if rows.y0 % 2 else rows.pattern
        debayer_on_card(
            self.queue, raw, window.shape_hw, pattern, rows.colour, self._shares, self._planes, coded=coded
        )
        if np.isfinite(rows.clip).any():
            args = (
                raw, coded, height, width, int(pattern[0] == "G"), pattern.index("R") // 2,
                *np.array(rows.clip, np.float32), self._planes,
            )  # fmt: skip
            self.queue.launch_2d(source, "mark_clipped", width, height, args)
        if len(rows.masked):
            self.queue.copy_in(self._spans, np.ascontiguousarray(rows.masked, np.int32))
            args = (self._spans, len(rows.masked), rows.y0, height, width, 3, self._planes)
            self.queue.launch_1d(source, "mask_spans", len(rows.masked), args)

    def sample(self, index: int, window: _OnCard | None, table: TileTable, combiner: Combiner) -> None:
        """Queue the sampling of the window of a part into the slots of its source."""
        part = self.parts[index]
        source, lattice = part.source, part.source.pixel_map
        top, bottom, left, right = table.spans[index].tolist()
        if window is None:
            # A window of no pixels: the kernel finds every coordinate outside.
            window = _OnCard(self._nothing, self._nothing, (0, 0), (0, 0))
        args = (
            window.planes, self._shape.n_channels, *window.shape_hw, *window.origin, *source.shape_hw,
            self._node_x, self._node_y, np.int64(self._node_starts[index]), *lattice.src_x.shape,
            lattice.y0, lattice.x0, step_shift(lattice), self._block_y, *part.box,
            self._table, self._terms, index * N_TERMS * self._shape.n_channels, int(source.radial is not None),
            int(source.surface is not None), np.float32(source.feather_px), np.float32(source.feather_start),
            window.weights, int(source.has_weight_map),
            combiner.bases, combiner.counts, combiner.slots, np.int64(table.slot_starts[index]), top, left,
            table.tiles_yx[1], combiner.values, np.int64(table.n_samples), combiner.maps, int(self._shape.mapped),
        )  # fmt: skip
        self.queue.launch(
            kernels.source("sample"), "sample_source", (right - left, bottom - top), (TILE_W, TILE_H), args,
            options=(f"-DLANCZOS={int(self._lanczos)}",),
        )  # fmt: skip
        if self._count:
            self._used[(self._count - 1) % SLOTS] = self.queue.record()


def debayer_on_card(
    queue: Queue,
    raw: Any,
    shape_hw: tuple[int, int],
    pattern: str,
    colour: CfaColour | None,
    shares: Any,
    planes: Any,
    *,
    coded: int,
) -> None:
    """Queue what `zemosaic_core.cfa.debayer` does to raw pixels on the card.

    Parameters
    ----------
    queue : Queue
    raw : array on the card, (h, w), uint16; or float32 in twice as many places of uint16
        ``coded``: 1 as FITS stores them, 0 native, 2 float32.
    shape_hw : tuple of int
    pattern : str
        At the first pixel.
    colour : CfaColour or None
    shares, planes : arrays on the card, (2, h, w) and (3, h, w), float32
        The first for what is between the two steps, the second for the result.
    coded : int
    """
    height, width = shape_hw
    source, terms = kernels.source("decode"), debayer_terms(colour)
    frame = (raw, coded, height, width, int(pattern[0] == "G"), pattern.index("R") // 2)
    pulls = [terms.pull[wanted, here] for wanted, here in ((1, 0), (2, 0), (0, 1), (2, 1), (0, 2), (1, 2))]
    args = (*frame, *terms.gain, *terms.zero, *pulls, shares)
    queue.launch_2d(source, "colour_shares", width, -(-height // SHARE_ROWS), args)
    queue.launch_2d(source, "debayer_raw", width, height, (*frame, shares, *terms.sky, *terms.depth, planes))


def _terms(source: CoaddSource) -> np.ndarray:
    """Return the photometric terms, flat; a channel without weight gets terms that make every sample missing."""
    radial = np.zeros_like(source.photometry) if source.radial is None else source.radial
    surface = np.zeros((len(radial), N_SURFACE)) if source.surface is None else source.surface
    terms = np.concatenate([source.photometry, radial, surface], axis=1, dtype=np.float32)
    terms[~(np.asarray(source.weight) > 0)] = np.nan
    return terms.ravel()


def _window_pixels(part: Part) -> int:
    if part.window is None:
        return 1
    height, width = part.source.shape_hw
    return (min(height, part.window[1] + RAW_MARGIN) - max(0, part.window[0] - RAW_MARGIN)) * width


def extra_rows(source: CoaddSource, kernel: Kernel) -> float:
    """Bound the source rows that a block needs whatever its own height: a turned row crosses many source rows."""
    along = source.pixel_map.row_slopes[0]
    slope = 0.0 if math.isnan(along) else along
    return slope * (source.bbox[3] - source.bbox[2]) + 2 * (HALO[kernel] + RAW_MARGIN) + 4


def _rows_per_row(source: CoaddSource) -> float:
    """Bound the source rows per output row, from the slope of the lattice."""
    down = source.pixel_map.row_slopes[1]
    return 1.0 if math.isnan(down) else down
