"""Blocks of rows worked on elsewhere: calls on an executor, their results taken in order, only so many on their way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import Any

from zemosaic_core.chunks import Workload

__all__ = ["blocks_for", "fair_rows", "results_in_order"]

# Blocks per place at least: the last ones shall not leave places idle for long.
_BLOCKS_PER_PLACE = 3
# Below this the rows around a block, which are read as well, cost more than the places win.
_LEAST_ROWS = 128


def fair_rows(places: int, rows: int) -> int:
    """Return the most rows of a block so that all places have some blocks to work on."""
    return max(_LEAST_ROWS, -(-rows // (_BLOCKS_PER_PLACE * max(1, places))))


def blocks_for(places: int, height: int, most_rows: int) -> list[tuple[int, int]]:
    """Cut rows into blocks for so many places; as `Workload.chunks`, but lower where there would be too few."""
    workload = Workload("spread", height, ())
    return list(workload.chunks(max(1, min(most_rows, fair_rows(places, height)))))


def results_in_order(
    executor: Executor, calls: Iterable[tuple[Callable[..., Any], tuple[Any, ...]]], most: int
) -> Iterator[Any]:
    """Yield the results of calls in their order; at most so many are on their way or wait to be taken.

    Raises
    ------
    Exception
        What a call raised, when it is its turn; those behind it are cancelled.
    """
    waiting: deque[Future[Any]] = deque()
    try:
        for function, args in calls:
            if len(waiting) >= most:
                yield waiting.popleft().result()
            waiting.append(executor.submit(function, *args))
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
