"""Blocks of rows of a co-add and of its second pass on the workers of a cluster.

What goes there are the maps and terms of the frames that touch a block, what comes back are its finished rows. Raw
frames are read where the block is worked on. Blocks are taken in their order, and only as many are on their way as
fit into the memory of this machine once they are finished; so results depend neither on the workers nor on their order.

Neighbouring blocks share a few rows around their border, which are read from the shared folder once where one computer
has both: which worker gets which block is decided in `cluster_stretches`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zemosaic_core.block_rows import FAR_BLOCKS_LARGER, MAX_BLOCK_ROWS, MAX_REFINE_ROWS, processor_blocks
from zemosaic_core.chunks import iter_row_chunks
from zemosaic_core.coadd import rows_per_pass
from zemosaic_core.errors import RunFailed
from zemosaic_core.refine import RefineSource, largest_source_px
from zemosaic_core.refine_rows import CoaddStore, RowsApart, refine_buffers
from zemosaic_core.refine_structure import HALO_ROWS, share_of_channels
from zemosaic_core.sources import CoaddSource, CombineRule, Kernel, SampleNoise
from zemosaic_core.spread import blocks_for, fair_rows, results_in_order
from zemosaic_core.tile_rows import TileRows, TileRule
from zemosaic_gpu_policy import GpuPolicy
from zemosaic_io.frame_store import FrameStore
from zemosaic_pipeline.cluster import Cluster, WorkerDied
from zemosaic_pipeline.cluster_block_work import (
    CoaddPart,
    RefinePart,
    coadd_part,
    looked_at,
    refine_part,
    values_at,
)
from zemosaic_pipeline.cost import PARENT_BYTES
from zemosaic_pipeline.elsewhere import RunStop, frame_there

__all__ = ["ClusterBlocks"]

# Share of a worker's memory for a block; the rest is for what is read and sent, and for Dask.
_BLOCK_SHARE = 0.5
_LEAST_BLOCK_BYTES = 16_000_000
# Bytes per pixel of a finished block: see `TileRows`.
_TILE_BYTES, _TILE_BYTES_PER_CHANNEL = 2 + 1 + 4, 4 + 4
# The same of the second pass, where its mask is nowhere 0: places wait here; mask, image, weight and variance are sent,
# image and variance come back.
_REFINE_BYTES, _REFINE_BYTES_PER_CHANNEL = 8 + 4, (3 + 2) * 4
# What travels of a frame with each block that it touches: maps, terms, sums of its rows.
_FRAME_BYTES = 16_000
# Results on their way or waiting, per worker: while the first one is late, the others go on.
_AHEAD = 4


@dataclass(frozen=True)
class ClusterBlocks:
    """The blocks of a run that has a cluster.

    Parameters
    ----------
    cluster : Cluster
    policy : GpuPolicy
        Gets the records of the policies of workers that have a card.
    """

    cluster: Cluster
    policy: GpuPolicy

    def coadd(
        self,
        pixels: FrameStore,
        sources: Sequence[CoaddSource],
        shape_hw: tuple[int, int],
        n_channels: int,
        rule: CombineRule,
        kernel: Kernel,
        *,
        kept: TileRule,
        sink: Callable[[int, int, TileRows], object],
        budget_bytes: int,
        max_frames_per_pass: int = 0,
        on_rows: Callable[[int, int], object] | None = None,
        first_row: int = 0,
        lattice_row: int = 0,
        **_: Any,
    ) -> None:
        """Do what `zemosaic_utils.coadd_on_grid` does; what that says of threads and cards is each worker's own.

        `sink` gets what a tile keeps of each block, made where the block was co-added.

        Raises
        ------
        RunFailed
            ``cluster_block_died``; or the cluster cannot go on.
        """
        height, width = shape_hw
        budget = self._worker_budget(budget_bytes)
        most = min(MAX_BLOCK_ROWS, rows_per_pass(sources, max_frames_per_pass))
        cut = processor_blocks(
            sources,
            shape_hw,
            n_channels,
            rule,
            budget,
            threads=self.cluster.threads,
            most_rows=min(most, fair_rows(self.cluster.workers, height - first_row)),
            lattice_row=lattice_row,
            larger=FAR_BLOCKS_LARGER,
        )
        blocks = cut(first_row, height)

        def part(y0: int, y1: int) -> CoaddPart:
            there = tuple(s for s in sources if s.bbox[0] < y1 and s.bbox[1] > y0 and np.any(s.weight > 0))
            return CoaddPart(
                self._pixels(pixels, [source.key for source in there]),
                there,
                (y0, y1),
                width,
                n_channels,
                rule,
                kernel,
                budget,
                lattice_row,
                self.policy.mode,
                kept.of_rows(y0, y1),
                RunStop(self.cluster.run_id),
            )

        calls = ((coadd_part, (part(y0, y1),)) for y0, y1 in blocks)
        bytes_per_row = width * (_TILE_BYTES + _TILE_BYTES_PER_CHANNEL * n_channels)
        of_frames = _FRAME_BYTES * _most_touching([source.bbox for source in sources], blocks)
        of_result = bytes_per_row * max((b - a for a, b in blocks), default=1)
        most_ahead = self._on_their_way(of_result + of_frames, budget_bytes)
        for (y0, y1), (made, host, records) in zip(blocks, self._results(calls, most_ahead), strict=True):
            for record in records:
                self.policy.adopt(record, host)
            sink(y0, y1, made)
            if on_rows is not None:
                on_rows(y1, height)

    def refine(
        self,
        pixels: FrameStore,
        sources: Sequence[RefineSource],
        shape_hw: tuple[int, int],
        store: CoaddStore,
        noise: SampleNoise,
        *,
        budget_bytes: int,
        scale: float = 1.0,
        on_rows: Callable[[int, int], object] | None = None,
        **_: Any,
    ) -> None:
        """Do what `zemosaic_align_stack.refine_on_grid` does, of a store whose rows are written to another place.

        Raises
        ------
        RunFailed
            As `coadd`.
        """
        height, width = shape_hw
        n_channels = len(noise.variance)
        rows = RowsApart(store, sources, height, noise)
        shares = share_of_channels(sources[0].pattern)
        buffers = refine_buffers(n_channels, width, 4 * largest_source_px(sources), 1)
        planned = list(iter_row_chunks(buffers, height, self._worker_budget(budget_bytes), halo=HALO_ROWS))
        most = min(MAX_REFINE_ROWS, max(y1 - y0 for y0, y1 in planned))
        blocks = blocks_for(self.cluster.workers, height, most)

        # What is replaced, of the blocks on their way.
        places: deque[np.ndarray] = deque()

        def part(y0: int, y1: int) -> RefinePart:
            block = rows.block(y0, y1)
            wanted = block.mask > 0
            at = np.flatnonzero(wanted)
            places.append(at)
            image_rows = (block.image_y0, block.image_y0 + block.image.shape[1])
            there = tuple(item for item in sources if item.source.bbox[0] < y1 and item.source.bbox[1] > y0)
            return RefinePart(
                self._pixels(pixels, [item.source.key for item in there]),
                there,
                block.image[:, looked_at(wanted, y0, image_rows, scale)],
                image_rows,
                np.packbits(wanted),
                block.mask[wanted],
                values_at(block.weight, at),
                None if block.variance is None else values_at(block.variance, at),
                (y0, y1),
                width,
                shares,
                scale,
                RunStop(self.cluster.run_id),
            )

        calls = ((refine_part, (part(y0, y1),)) for y0, y1 in blocks)
        bytes_per_row = width * (_REFINE_BYTES + _REFINE_BYTES_PER_CHANNEL * n_channels)
        of_result = bytes_per_row * (blocks[0][1] - blocks[0][0])
        of_frames = _FRAME_BYTES * _most_touching([item.source.bbox for item in sources], blocks)
        results = self._results(calls, self._on_their_way(of_result + of_frames, budget_bytes))
        for (y0, y1), (image, variance) in zip(blocks, results, strict=True):
            rows.replace(y0, y1, places.popleft(), image, variance)
            if on_rows is not None:
                on_rows(y1, height)

    def _pixels(self, pixels: FrameStore, keys: Sequence[int]) -> FrameStore:
        paths = self.cluster.paths
        return pixels.part(keys, lambda info: frame_there(info, paths))

    def _worker_budget(self, budget_bytes: int) -> int:
        """Return what a block may take: as planned for this machine, and within the memory of the smallest worker."""
        limit = self.cluster.memory_bytes
        if not limit:
            return budget_bytes
        return max(_LEAST_BLOCK_BYTES, min(budget_bytes, int(_BLOCK_SHARE * (limit - PARENT_BYTES))))

    def _on_their_way(self, result_bytes: int, budget_bytes: int) -> int:
        """Return how many blocks may be on their way: so many that no worker waits, as far as they fit here."""
        workers = self.cluster.workers
        return max(1, min(_AHEAD * workers, budget_bytes // max(1, result_bytes)))

    def _results(
        self, calls: Iterator[tuple[Callable[..., Any], tuple[Any, ...]]], most: int
    ) -> Iterator[Any]:
        try:
            yield from results_in_order(self.cluster.in_rows(most), calls, most)
        except WorkerDied as death:
            raise RunFailed(
                "cluster_block_died", f"workers died twice over one block: {death}", reason=str(death)
            ) from death


def _most_touching(boxes: Sequence[tuple[int, int, int, int]], blocks: Sequence[tuple[int, int]]) -> int:
    """Return how many boxes (y0, y1, x0, x1) touch the block of rows that most of them touch."""
    tops, bottoms = (np.sort([box[side] for box in boxes]) for side in (0, 1))
    rows = np.array(blocks).reshape(-1, 2)
    counts = np.searchsorted(tops, rows[:, 1]) - np.searchsorted(bottoms, rows[:, 0], side="right")
    return int(counts.max(initial=0))
