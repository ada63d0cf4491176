"""How high blocks of the processor are: their memory does not grow with the frames."""

from __future__ import annotations

import numpy as np
import pytest

from zemosaic_core.block_rows import least_block_rows, most_block_rows, processor_blocks
from zemosaic_core.coadd import coadd_buffers, samples_of_rows
from zemosaic_core.pixel_map import build_pixel_map
from zemosaic_core.sources import CoaddSource, CombineRule

SHAPE = (160, 200)


def sources(n: int, degrees: float, shape: tuple[int, int] = SHAPE) -> list[CoaddSource]:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    box = (0, shape[0], 0, shape[1])
    pixel_map = build_pixel_map(lambda x, y: (c * x - s * y, s * x + c * y), box)
    terms = np.tile(np.array([1, 0, 0, 0], np.float32), (3, 1))
    return [CoaddSource(k, shape, pixel_map, box, terms, np.ones(3, np.float32)) for k in range(n)]


def bytes_of_blocks(of: list[CoaddSource]) -> int:
    cut = processor_blocks(of, SHAPE, 3, CombineRule(), 4 << 30, threads=2)
    blocks = cut(0, SHAPE[0])
    assert blocks[0][0] == 0
    assert blocks[-1][1] == SHAPE[0]
    samples = samples_of_rows(of, SHAPE[0])
    buffers = {b.name: b for b in coadd_buffers(len(of), 3, SHAPE[1], CombineRule(), False, columns=1)}
    return max(int(samples[a:b].sum()) for a, b in blocks) * buffers["stack"].per_row


def test_samples_of_a_block_do_not_grow_with_the_frames():
    of = {n: bytes_of_blocks(sources(n, 0.5)) for n in (40, 400, 1000, 2500)}
    assert of[40] < of[400]
    assert max(of.values()) <= 72_000_000
    assert of[2500] >= 0.8 * of[1000]


@pytest.mark.parametrize(("degrees", "least"), [(0.0, 12), (2.0, 12), (5.0, 14), (15.0, 25), (60.0, 64)])
def test_blocks_of_turned_frames_are_higher(degrees, least):
    # What a block of so many rows reads is some four times itself: rows that an output row crosses, and a margin.
    assert least_block_rows(sources(7, degrees)) == least


def test_a_map_without_a_value_says_nothing_about_the_turn():
    nowhere = build_pixel_map(lambda x, y: (x, y), (0, 160, 0, 200))
    nowhere.src_y[:] = np.nan
    lost = CoaddSource(
        9, SHAPE, nowhere, (0, 160, 0, 200), np.zeros((3, 4), np.float32), np.ones(3, np.float32)
    )
    assert least_block_rows([lost]) == 12
    assert least_block_rows([lost, *sources(2, 15.0)]) == 25


def test_blocks_that_travel_are_larger():
    assert most_block_rows(600_000, 2, least_rows=12) == 12
    assert most_block_rows(600_000, 2, least_rows=12, larger=3) == 36
    assert most_block_rows(60_000, 2) == 100
    assert most_block_rows(60_000, 2, larger=3) == 300
