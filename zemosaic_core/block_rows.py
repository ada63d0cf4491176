"""How high the blocks of rows are that processors co-add, here and on the workers of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from zemosaic_core.coadd import cut_by_samples, row_blocks, samples_of_rows, stack_columns_per_row
from zemosaic_core.sources import CoaddSource, CombineRule

__all__ = [
    "LATTICE_ROWS",
    "MAX_BLOCK_ROWS",
    "most_block_rows",
    "processor_blocks",
    "tallest_block_rows",
]

# Blocks stay small enough that progress moves and a stop is honoured within seconds; higher ones win nothing.
MAX_BLOCK_ROWS = 512
# The same for many frames on wide grids: samples of a block per channel and thread, a second of work. The memory of a
# block, 16 bytes for a sample of three colours, then hardly grows with the frames. Lower blocks than the least read too
# much of their frames in vain.
MAX_BLOCK_SAMPLES = 8_000_000
LEAST_BLOCK_ROWS = 64
# Where fewer frames lie over each other than in the densest rows, blocks are higher, up to so many times and so many
# rows: what a block reads around itself is little by then, and its results take memory, too.
TALLER, TALL_BLOCK_ROWS = 3, 256
# Blocks begin at multiples of this where memory allows.
LATTICE_ROWS = 64


def most_block_rows(columns: int, threads: int) -> int:
    """Return the rows of a block of the processor that so many threads finish in about a second.

    Parameters
    ----------
    columns : int
        Samples of a row and channel, summed over the sources.
    threads : int
    """
    return min(MAX_BLOCK_ROWS, max(LEAST_BLOCK_ROWS, MAX_BLOCK_SAMPLES * threads // max(1, columns)))


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

    Returns
    -------
    callable
        ``cut(y0, y1)`` returns ``(a, b)`` that cover the rows, in order.
    """
    planned = row_blocks(sources, shape_hw, n_channels, rule, budget_bytes)
    fitting = min(most_rows, max((y1 - y0 for y0, y1 in planned), default=1))
    densest = stack_columns_per_row(sources)
    dense_rows = min(fitting, most_block_rows(densest, threads))
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
