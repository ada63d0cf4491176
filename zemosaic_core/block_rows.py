"""How high the blocks of rows are that processors co-add, here and on the workers of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from zemosaic_core.coadd import cut_by_samples, row_blocks, samples_of_rows, stack_columns_per_row
from zemosaic_core.sources import CoaddSource, CombineRule

__all__ = [
    "FAR_BLOCKS_LARGER",
    "LATTICE_ROWS",
    "MAX_BLOCK_ROWS",
    "MAX_REFINE_ROWS",
    "least_block_rows",
    "most_block_rows",
    "processor_blocks",
    "tallest_block_rows",
]

# Blocks stay small enough that progress moves and a stop is honoured within seconds; higher ones win nothing.
MAX_BLOCK_ROWS = 512
# The same of the second pass, which has two blocks in work.
MAX_REFINE_ROWS = 256
# The same for many frames on wide grids: samples of a block per channel and thread. The memory of a block, 12 to 16
# bytes for a sample of three colours, then does not grow with the frames until blocks have the least rows: lower ones
# would read some four times what they are made of. A turned frame is read far beyond a low block, so of such frames
# blocks stay higher.
MAX_BLOCK_SAMPLES = 3_000_000
LEAST_BLOCK_ROWS, LEAST_TURNED_ROWS = 12, 64
# Rows of a frame around those a block samples: of the kernel, of debayering and of mending.
ROWS_AROUND, MOST_READ = 26, 4
# Blocks that travel to other machines hold so many times more: with each go the maps of all frames that touch it.
FAR_BLOCKS_LARGER = 3
# Where fewer frames lie over each other than in the densest rows, blocks are higher, up to so many times and so many
# rows: what a block reads around itself is little by then, and its results take memory, too.
TALLER, TALL_BLOCK_ROWS = 3, 256
# Blocks begin at multiples of this where memory allows.
LATTICE_ROWS = 64


def most_block_rows(
    columns: int, threads: int, *, least_rows: int = LEAST_TURNED_ROWS, larger: int = 1
) -> int:
    """Return the rows of a block of the processor whose memory does not grow with the frames.

    Parameters
    ----------
    columns : int
        Samples of a row and channel, summed over the sources.
    threads : int
        Threads that work on one block; each should have enough to do.
    least_rows : int
        From `least_block_rows`; by default those of frames that are turned as far as can be.
    larger : int
        So many times as many samples and least rows.
    """
    most_samples = larger * MAX_BLOCK_SAMPLES * threads
    return min(MAX_BLOCK_ROWS, max(larger * least_rows, most_samples // max(1, columns)))


def least_block_rows(sources: Sequence[CoaddSource]) -> int:
    """Return the rows below which a block reads its sources more than some four times, as most of them are turned."""
    crossed = np.array([_rows_crossed(source) for source in sources])
    crossed = crossed[np.isfinite(crossed)]
    around = ROWS_AROUND + (float(np.median(crossed)) if len(crossed) else 0.0)
    return int(min(LEAST_TURNED_ROWS, max(LEAST_BLOCK_ROWS, around // (MOST_READ - 1))))


def _rows_crossed(source: CoaddSource) -> float:
    """Rows of a source that an output row crosses; NaN where the map does not tell."""
    row = source.pixel_map.src_y[len(source.pixel_map.src_y) // 2]
    slope = abs(float(row[-1] - row[0])) / (source.pixel_map.step * (len(row) - 1))
    return slope * (source.bbox[3] - source.bbox[2])


def processor_blocks(
    sources: Sequence[CoaddSource],
    shape_hw: tuple[int, int],
    n_channels: int,
    rule: CombineRule,
    budget_bytes: int,
    *,
    threads: int,
    most_rows: int = MAX_BLOCK_ROWS,
    lattice_row: int = 0,
    larger: int = 1,
) -> Callable[[int, int], list[tuple[int, int]]]:
    """Return what cuts rows of a co-add into blocks of the processor.

    Parameters
    ----------
    sources, shape_hw, n_channels, rule, budget_bytes, lattice_row
        As in `zemosaic_utils.coadd_on_grid`.
    threads : int
        Threads that work on one block.
    most_rows : int
        Most rows of a block where the most sources meet.
    larger : int
        As in `most_block_rows`.

    Returns
    -------
    callable
        ``cut(y0, y1)`` returns ``(a, b)`` that cover the rows, in order.
    """
    planned = row_blocks(sources, shape_hw, n_channels, rule, budget_bytes)
    fitting = min(most_rows, max((y1 - y0 for y0, y1 in planned), default=1))
    densest = stack_columns_per_row(sources)
    least = least_block_rows(sources)
    dense_rows = min(fitting, most_block_rows(densest, threads, least_rows=least, larger=larger))
    samples = samples_of_rows(sources, shape_hw[0])

    def cut(y0: int, y1: int) -> list[tuple[int, int]]:
        return cut_by_samples(
            samples, y0, y1, densest * dense_rows, min(fitting, tallest_block_rows(dense_rows)),
            lattice_rows=LATTICE_ROWS, origin=lattice_row,
        )  # fmt: skip

    return cut


def tallest_block_rows(dense_rows: int) -> int:
    """Return the most rows of a block of the processor, of rows with few samples, from those of the densest rows."""
    return max(dense_rows, min(TALL_BLOCK_ROWS, TALLER * dense_rows))
