"""Both sweeps over raw frames on the card: many frames of one size at a time, only tables and lists come back.

The numbers are those of `measure_pass.sweep_raw`, bit by bit. What there is of a cell, not of a pixel, is worked out on
the host between the sweeps, by the code that the processor's sweep uses.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from zemosaic_core.chunks import Buffer, Workload
from zemosaic_core.gpu import kernels
from zemosaic_core.gpu.device import Device
from zemosaic_core.gpu.launch import BLOCK_2D, THREADS_1D, PlannedMemory, Queue, drained
from zemosaic_core.gpu.windows import Ring
from zemosaic_core.measure_pass import MEND_SIGMA, RawSweeps
from zemosaic_core.raw_defects import DEFECT_SIGMA, defect_capacity, mend_defects
from zemosaic_core.raw_maxima import RINGS_PX, Maxima, SearchMeshes, maxima_of_list, row_shares, search_meshes
from zemosaic_core.raw_sky import (
    BINS,
    CELL_PX,
    COARSEST_BITS,
    SkyCells,
    cells_of_tables,
    floor_quantiles,
    histogram_bits,
)

__all__ = ["FRAMES_PER_CHUNK", "CardSweeps", "GpuSweeps", "RawFrame"]

# Launches for so many frames together cost little more than for one, and so few hold little memory.
FRAMES_PER_CHUNK = 8
# Pixels per second of one thread of `sweep_raw`, measured with 1080 x 1920 px: what the card takes off it.
CPU_PIXELS_PER_SECOND = 1.7e8
STRIP_ROWS = 32
# Two maxima never touch, so there is at most one in 2 x 2 pixels; the list takes four numbers for each.
_PIXELS_PER_MAXIMUM = 4
_TABLES = ("level", "error", "spread", "steps")


@dataclass(frozen=True)
class RawFrame:
    """A raw frame for the card: pixels (H, W) uint16, none of them missing; ``noise_factor`` as in `sweep_raw`."""

    plane: np.ndarray
    noise_factor: float = 1.0


@dataclass(frozen=True)
class CardSweeps:
    """What comes back of one frame.

    Attributes
    ----------
    cells : SkyCells
    defects, defect_sigma, evidence
        As in `measure_pass.RawSweeps`.
    maxima : ndarray, shape (n, 4), int32
        Of all maxima above the first limit, by place: place and ring, light, light of either ring.
    meshes : SearchMeshes
        What they were searched with.
    """

    cells: SkyCells
    defects: np.ndarray
    defect_sigma: np.ndarray
    evidence: np.ndarray
    maxima: np.ndarray
    meshes: SearchMeshes
    is_cfa: bool
    detect_sigma: float

    def with_pixels(self, plane: np.ndarray) -> RawSweeps:
        """Return what `measure_pass.sweep_raw` returns for these pixels."""
        mended = plane.copy()
        mend_defects(mended, self.defects[np.abs(self.defect_sigma) >= MEND_SIGMA])
        find = partial(self._find, plane.shape[1])
        return RawSweeps(mended, self.cells, self.defects, self.defect_sigma, self.evidence, find)

    def _find(self, width: int, ring_px: int) -> Maxima:
        bit = RINGS_PX.index(ring_px)
        chosen = self.maxima[(self.maxima[:, 0] & (1 << bit)) != 0]
        place = chosen[:, 0] >> 2
        rows = np.stack([place // width, place % width, chosen[:, 1], chosen[:, 2 + bit]], axis=1)
        return maxima_of_list(
            rows.astype(np.int32), self.meshes, self.cells.cell_px, self.is_cfa, width, self.detect_sigma
        )


@dataclass(frozen=True)
class _Listed:
    """What the second sweep lists of a frame; as in `CardSweeps`."""

    defects: np.ndarray
    defect_sigma: np.ndarray
    evidence: np.ndarray
    maxima: np.ndarray


@functools.lru_cache(maxsize=8)
def _floor_tables(shape_hw: tuple[int, int], cell_px: int) -> np.ndarray:
    """`floor_quantiles` of inner cells, of those at the right, at the bottom and in the corner."""
    tables = np.zeros((4, cell_px * cell_px // 4 + 1, 2))
    ends = [(-(-size // cell_px) - 1) * cell_px for size in shape_hw]
    last_high, last_wide = ((size - end) // 2 * 2 for size, end in zip(shape_hw, ends, strict=True))
    for kind in range(4):
        total = (last_high if kind >= 2 else cell_px) * (last_wide if kind % 2 else cell_px) // 4
        if total:
            tables[kind, : total + 1] = floor_quantiles(total)
    return tables


class GpuSweeps:
    """Sweeps over raw frames of one size; also declares the memory for them, a frame being a row of the work.

    Parameters
    ----------
    shape_hw : tuple of int
        Of every frame.
    is_cfa : bool
    detect_sigma, cell_px
        As in `measure_pass.sweep_raw`.
    """

    def __init__(
        self, shape_hw: tuple[int, int], is_cfa: bool, *, detect_sigma: float, cell_px: int = CELL_PX
    ) -> None:
        self._shape_hw, self._is_cfa = shape_hw, is_cfa
        self._detect_sigma, self._cell_px = detect_sigma, cell_px
        self._cells_hw = tuple(-(-size // cell_px) for size in shape_hw)

    @property
    def _n_pixels(self) -> int:
        return self._shape_hw[0] * self._shape_hw[1]

    @property
    def _n_cells(self) -> int:
        return self._cells_hw[0] * self._cells_hw[1]

    def _buffers(self) -> tuple[Buffer, ...]:
        n, cells, listed = self._n_pixels, self._n_cells, defect_capacity(self._n_pixels)
        tables = _floor_tables(self._shape_hw, self._cell_px)
        return (
            Buffer("raw", per_row=2 * n),
            Buffer("work", per_row=max(4 * n, 16 * BINS * cells)),
            Buffer("smooth", per_row=4 * n),
            Buffer("bits", per_row=8),
            Buffer("dropped", per_row=8),
            Buffer("floor", fixed=tables.nbytes),
            Buffer("open", per_row=4 * cells),
            Buffer("still open", fixed=4),
            Buffer("per cell", per_row=16 * cells, copies=2 + len(_TABLES)),
            Buffer("left", per_row=32 * cells),
            Buffer("cut off", per_row=4 * cells),
            Buffer("phases", per_row=16 * cells, copies=2),
            Buffer("light", per_row=4 * cells, copies=3),
            Buffer("flags", per_row=4, copies=6),
            Buffer("shares", fixed=4 * self._shape_hw[0]),
            Buffer("listed", per_row=8 * listed),
            Buffer("fresh", per_row=2 * listed),
            Buffer("evidence", per_row=64),
        )

    def workload(self, op: str, n_frames: int, threads: int) -> Workload:
        """Declare what measuring so many frames needs on a card; ``threads`` of the processor would do it else."""
        return Workload(
            op,
            n_frames,
            self._buffers(),
            host_rows=FRAMES_PER_CHUNK,
            elements_per_row=self._n_pixels,
            upload_bytes=2 * self._n_pixels * n_frames,
            download_bytes=(self._n_pixels // 20 + 100 * self._n_cells) * n_frames,
            cpu_seconds=self._n_pixels * n_frames / (CPU_PIXELS_PER_SECOND * max(1, threads)),
            detail={"height": self._shape_hw[0], "width": self._shape_hw[1], "cells": self._n_cells},
        )

    def __call__(
        self,
        device: Device,
        frames: Sequence[RawFrame],
        ring: Ring,
        *,
        each: Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]] = map,
    ) -> list[CardSweeps | None]:
        """Sweep over some frames.

        Parameters
        ----------
        device : Device
        frames : sequence of RawFrame
        ring : Ring
            Page-locked memory for the way there.
        each : callable
            Like `map`; may use threads for what the host does with each frame.

        Returns
        -------
        list
            None for a frame with more defects than the list holds, of which the processor lists the first ones.
        """
        queue = Queue(device)
        with drained(device):
            memory = PlannedMemory(device, self._buffers(), len(frames))
            on_card = _OnCard(queue, memory, self._shape_hw, self._cell_px, self._is_cfa, len(frames))
            for index, frame in enumerate(frames):
                (staged,) = ring.stage(index, [frame.plane])
                queue.copy_in(on_card.raw, staged, 2 * self._n_pixels * index)
                ring.sent(index, queue.record())
            tables = on_card.measure_cells(list(each(histogram_bits, [frame.plane for frame in frames])))
            cells = list(each(lambda one: cells_of_tables(self._cell_px, *one), tables))
            meshes = [
                search_meshes(one, self._is_cfa, frame.noise_factor)
                for one, frame in zip(cells, frames, strict=True)
            ]
            limits = [one.limit(self._detect_sigma) for one in meshes]
            found = on_card.find_places(cells, meshes, limits)
        return [
            None
            if one is None
            else CardSweeps(
                cells[k],
                one.defects,
                one.defect_sigma,
                one.evidence,
                one.maxima,
                meshes[k],
                self._is_cfa,
                self._detect_sigma,
            )
            for k, one in enumerate(found)
        ]


class _OnCard:
    """The arrays of some frames on the card, and the kernels in their order."""

    def __init__(
        self,
        queue: Queue,
        memory: PlannedMemory,
        shape_hw: tuple[int, int],
        cell_px: int,
        is_cfa: bool,
        n_frames: int,
    ) -> None:
        self._queue, self._memory, self._shape_hw, self._n = queue, memory, shape_hw, n_frames
        self._cell_px, self._is_cfa = cell_px, int(is_cfa)
        self._rows, self._columns = (-(-size // cell_px) for size in shape_hw)
        self._n_cells = self._rows * self._columns
        self._n_pixels = shape_hw[0] * shape_hw[1]
        self.raw = memory.empty("raw", n_frames * self._n_pixels, np.uint16)
        self._work = memory.empty("work", n_frames * max(self._n_pixels, 4 * BINS * self._n_cells), np.int32)

    def _launch(self, name: str, grid: tuple[int, int], block: tuple[int, ...], args: Sequence[Any]) -> None:
        self._queue.launch(kernels.source("measure"), name, (*grid, self._n), block, args)

    def _per_item(self, name: str, n: int, args: Sequence[Any]) -> None:
        self._launch(name, (-(-n // THREADS_1D), 1), (THREADS_1D,), args)

    def _per_pixel(self, name: str, args: Sequence[Any], *, step: int = 1) -> None:
        height, width = (-(-size // step) for size in self._shape_hw)
        self._launch(name, (-(-width // BLOCK_2D[0]), -(-height // BLOCK_2D[1])), BLOCK_2D, args)

    def _per_strip(self, name: str, args: Sequence[Any]) -> None:
        height, width = self._shape_hw
        self._launch(name, (-(-width // THREADS_1D), -(-height // STRIP_ROWS)), (THREADS_1D,), args)

    def measure_cells(self, bits: Sequence[tuple[int, int, float]]) -> list[tuple[np.ndarray, ...]]:
        """Return level, error, spread, steps and cut_off of each frame, see `SkyCells`."""
        queue, memory, n_cells = self._queue, self._memory, self._n_cells
        height, width = self._shape_hw
        layout = (height, width, self._cell_px, self._columns, n_cells)
        numbers = memory.upload(queue, "bits", np.array([one[:2] for one in bits], np.int32))
        dropped = memory.upload(queue, "dropped", np.array([one[2] for one in bits], np.float64))
        floors = _floor_tables(self._shape_hw, self._cell_px)
        floor = memory.upload(queue, "floor", floors)
        high, wide = (
            np.minimum(self._cell_px, size - self._cell_px * np.arange(n)) // 2 * 2 >= 8
            for size, n in ((height, self._rows), (width, self._columns))
        )
        usable = np.broadcast_to(high[:, None] & wide, (self._n, self._rows, self._columns))
        is_open = memory.upload(queue, "open", usable.astype(np.int32))
        n_open = memory.empty("still open", 1, np.int32)
        per_cell = 4 * n_cells * self._n
        tables = [memory.empty("per cell", per_cell, np.float32) for _ in _TABLES]
        left = memory.empty("left", per_cell, np.float64)
        cut_off = memory.empty("cut off", per_cell, np.uint8)
        bases, fits = (memory.empty("phases", per_cell, np.int32) for _ in range(2))
        level, error, spread, steps = tables
        for table in tables:
            queue.fill(table, 0xFF)  # not a number
        for table in (cut_off, fits):
            queue.fill(table, 0)
        for turn in range(COARSEST_BITS + 1):
            counting = (numbers, turn)
            for array in (self._work, n_open):
                queue.fill(array, 0)
            self._per_item("cell_bases", 4 * n_cells, (self.raw, *layout, *counting, is_open, bases))
            self._per_pixel(
                "count_values", (self.raw, *layout, *counting, 0, is_open, bases, self._work), step=2
            )
            self._per_item(
                "cell_centres", 4 * n_cells,
                (*layout, numbers, dropped, turn, floor, floors[0].size, is_open, bases, self._work, level, error,
                 spread, left, cut_off, fits),
            )  # fmt: skip
            self._per_item("close_cells", n_cells, (n_cells, *counting, fits, is_open, n_open))
            queue.fill(self._work, 0)
            self._per_pixel(
                "count_values", (self.raw, *layout, *counting, 1, is_open, bases, self._work), step=2
            )
            self._per_item(
                "cell_steps", 4 * n_cells,
                (*layout, *counting, is_open, self._work, left, cut_off, level, error, spread, steps),
            )  # fmt: skip
            if not queue.download(n_open, shapes=[(1,)])[0][0]:
                break
        shape = (self._n, 4, self._rows, self._columns)
        *numbers_of, cut = queue.download(*tables, cut_off, shapes=[shape] * 5)
        return list(zip(*numbers_of, cut.astype(np.bool_), strict=True))

    def find_places(
        self, cells: Sequence[SkyCells], meshes: Sequence[SearchMeshes], limits: Sequence[np.ndarray]
    ) -> list[_Listed | None]:
        """Return defects, their significance, evidence of saturation and maxima of each frame."""
        queue, memory = self._queue, self._memory
        height, width = self._shape_hw
        frame = (height, width)
        sky, noise = (
            memory.upload(queue, "per cell", np.stack([getattr(one, name) for one in cells]))
            for name in ("sky", "noise")
        )
        light = [
            memory.upload(queue, "light", np.stack(parts).astype(np.float32))
            for parts in (limits, [one.sky for one in meshes], [one.noise for one in meshes])
        ]
        known = [bool(np.isfinite(one.noise).all()) for one in cells]
        flags = [
            memory.upload(queue, "flags", np.array(values, np.int32))
            for values in (known, [one.usable for one in meshes])
        ]
        n_defects, n_maxima = (memory.empty("flags", self._n, np.int32) for _ in range(2))
        evidence = memory.empty("evidence", 16 * self._n, np.int32)
        for array in (n_defects, n_maxima, evidence):
            queue.fill(array, 0)
        capacity = defect_capacity(self._n_pixels)
        defects = memory.empty("listed", 2 * capacity * self._n, np.int32)
        fresh = memory.empty("fresh", capacity * self._n, np.uint16)
        shares = row_shares(height, self._cell_px, self._rows, bool(self._is_cfa))
        share = memory.upload(queue, "shares", shares)
        layout = (height, width, self._cell_px, self._columns, self._n_cells)
        self._per_pixel(
            "find_defects",
            (self.raw, *layout, sky, noise, flags[0], np.float32(DEFECT_SIGMA), capacity, defects, n_defects),
        )
        listed = (np.float32(MEND_SIGMA), capacity, defects, n_defects, fresh)
        self._per_item("fresh_values", capacity, (self.raw, *frame, *listed))
        self._per_item("mend_defects", capacity, (self.raw, *frame, *listed))
        self._per_strip("ceiling_tops", (self.raw, *frame, evidence))
        self._per_strip("ceiling_counts", (self.raw, *frame, evidence))
        smooth = memory.empty("smooth", self._n_pixels * self._n, np.int32)
        self._per_pixel("smooth_along", (self.raw, *frame, self._is_cfa, self._work))
        self._per_pixel("smooth_across", (self._work, *frame, smooth))
        # What was smoothed along the rows is not needed any more; the list lies in its place.
        most = self._n_pixels // _PIXELS_PER_MAXIMUM
        self._per_pixel(
            "list_maxima",
            (smooth, *frame, self._is_cfa, self._cell_px, self._rows, self._columns, *light, share, flags[1], most,
             self._work, n_maxima),
        )  # fmt: skip
        counted, places, found = queue.download(
            n_defects, n_maxima, evidence, shapes=[(self._n,), (self._n,), (self._n, 4, 4)]
        )
        listed_defects, listed_maxima = self._lists(
            (defects, 2, capacity, n_defects, counted, self._work),
            (self._work, 4, most, n_maxima, places, smooth),
        )
        return [
            None
            if counted[k] > capacity
            else _Listed(
                listed_defects[k][:, 0].astype(np.int64),
                np.ascontiguousarray(listed_defects[k][:, 1]).view(np.float32),
                found[k].astype(np.int64),
                listed_maxima[k],
            )
            for k in range(self._n)
        ]

    def _lists(self, *asked: tuple[Any, int, int, Any, np.ndarray, Any]) -> list[list[np.ndarray]]:
        """Bring lists here, each sorted by its first number.

        Each is asked for by array, numbers of an entry, capacity, its lengths on the card and here, and the array it is
        packed into; that may be the array of a list asked for later on.
        """
        queue, packed = self._queue, list[Any]()
        lengths = list[np.ndarray]()
        for array, words, capacity, on_card, counts, target in reversed(asked):
            lengths.insert(0, np.minimum(counts, capacity))
            starts = np.concatenate([[0], np.cumsum(lengths[0])[:-1]]).astype(np.int32)
            args = (array, words, capacity, on_card, self._memory.upload(queue, "flags", starts), target)
            self._per_item("pack_lists", max(1, int(lengths[0].max())), args)
            packed.insert(0, target)
        shapes = [(max(1, int(length.sum())), one[1]) for length, one in zip(lengths, asked, strict=True)]
        result = []
        for host, length in zip(queue.download(*packed, shapes=shapes), lengths, strict=True):
            parts = np.split(host[: length.sum()], np.cumsum(length)[:-1])
            result.append([part[np.argsort(part[:, 0], kind="stable")] for part in parts])
        return result
