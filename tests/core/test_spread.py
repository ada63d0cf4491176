"""Blocks worked on elsewhere: cut for so many places, taken in order, only so many on their way."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from itertools import pairwise

import pytest

from zemosaic_core.block_rows import tallest_block_rows
from zemosaic_core.spread import blocks_for, results_in_order


@pytest.mark.parametrize(("places", "height", "most"), [(1, 1000, 1024), (16, 40_000, 1024), (4, 90, 7)])
def test_blocks_cover_all_rows_once(places, height, most):
    blocks = blocks_for(places, height, most)
    assert blocks[0][0] == 0
    assert blocks[-1][1] == height
    assert all(a[1] == b[0] for a, b in pairwise(blocks))
    assert max(y1 - y0 for y0, y1 in blocks) <= most


def test_enough_blocks_for_all_places_but_none_too_low():
    assert len(blocks_for(4, 4000, 1024)) >= 12
    assert min(y1 - y0 for y0, y1 in blocks_for(64, 4000, 1024)) >= 64


class Counting(Executor):
    """Notes how many calls were on their way at most."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(4)
        self.open = self.most = 0
        self._lock = threading.Lock()

    def submit(self, function, /, *args, **kwargs) -> Future:
        with self._lock:
            self.open += 1
            self.most = max(self.most, self.open)
        return self._threads.submit(function, *args)

    def taken(self) -> None:
        with self._lock:
            self.open -= 1


def uneven(number: int) -> int:
    time.sleep(0.002 * (number % 3))
    return number * number


def test_results_come_in_order_and_only_so_many_are_on_their_way():
    executor = Counting()
    got = []
    for result in results_in_order(executor, ((uneven, (k,)) for k in range(20)), 3):
        got.append(result)
        executor.taken()
    assert got == [k * k for k in range(20)]
    assert executor.most == 3


def test_an_error_comes_in_its_turn_and_ends_the_rest():
    def fail(number: int) -> int:
        if number == 2:
            raise ValueError("two")
        return number

    with ThreadPoolExecutor(1) as threads:
        results = results_in_order(threads, ((fail, (k,)) for k in range(9)), 4)
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(ValueError, match="two"):
            next(results)


def test_low_blocks_grow_where_frames_are_few_and_high_ones_do_not():
    assert tallest_block_rows(64) == 192
    assert tallest_block_rows(120) == 256
    assert tallest_block_rows(300) == 300
