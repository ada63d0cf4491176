"""A run on many machines, on paper: calls pass through a scheduler, a shared folder, workers and the client in turn.

Each of them serves one call after the other, in the order in which they come. Who works on which block is decided by
what decides it in a run (`zemosaic_pipeline.cluster_stretches`). What a call takes was measured (`benchmarks.cluster`);
that a worker is as fast as the machine it was measured on is an assumption.
"""

from __future__ import annotations

import heapq
import random
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count

from zemosaic_pipeline.cluster_stretches import Desk, Step, Stretches, next_step

__all__ = ["Machines", "Work", "simulate"]

# Calls on their way per worker: see `zemosaic_pipeline.cluster`; finished blocks as well: see `cluster_blocks`.
_AHEAD, _BLOCKS_AHEAD = 2, 4
# No two blocks take the same time: by so much more or less.
_UNEVEN = 0.2


@dataclass(frozen=True)
class Work:
    """Frames, their mosaic, and what they take.

    Attributes
    ----------
    frames : int
    frame_bytes : float
        Of a file.
    frame_hw, mosaic_hw : tuple of int
        Rows and columns, px.
    measure_s, stack_s, refine_s : float
        Processor seconds of a frame in each pass.
    measure_bytes : float
        What comes back of a measured frame.
    call_bytes : float
        What is sent of a frame with a block that it touches.
    stack_bytes_per_px, refine_bytes_per_px : float
        What goes back and forth for a pixel of a block beside that.
    halo_rows : int
        Rows of a frame that are read beside those of a block.
    """

    frames: int = 200_000
    frame_bytes: float = 4.2e6
    frame_hw: tuple[int, int] = (1_080, 1_920)
    mosaic_hw: tuple[int, int] = (30_000, 20_000)
    measure_s: float = 0.12
    stack_s: float = 0.30
    refine_s: float = 0.12
    measure_bytes: float = 30e3
    call_bytes: float = 16e3
    stack_bytes_per_px: float = 20.0
    refine_bytes_per_px: float = 3.3
    halo_rows: int = 26


@dataclass(frozen=True)
class Machines:
    """What serves the calls.

    Attributes
    ----------
    workers : int
        Processes of one thread each.
    block_bytes : float
        Memory of a worker for the samples of a block.
    of_computer : int
        Workers of a computer.
    slow : tuple of float
        How many times as long a worker takes, by the number of the worker; 1 where it is not said.
    stretches : bool
        False: each block goes to the worker that has least, whichever it is.
    page_cache_bytes : float
        What a computer keeps in memory of what it read from the shared folder.
    nas_bytes_per_s, net_bytes_per_s : float
        Of the shared folder, and of the network of the client.
    scheduler_s : float
        Of Dask for a call.
    store_s : float
        Of the client for a measured frame, whose arrays it stores.
    write_s_per_byte : float
        Of the client for what comes back of a block.
    alone_s_per_frame : float
        What only the client does between measuring and stacking: places, registration, flux scale, sky.
    """

    workers: int
    block_bytes: float = 4e9
    of_computer: int = 8
    slow: tuple[float, ...] = ()
    stretches: bool = True
    page_cache_bytes: float = 4e9
    nas_bytes_per_s: float = 110e6
    net_bytes_per_s: float = 110e6
    scheduler_s: float = 0.001
    store_s: float = 0.006
    write_s_per_byte: float = 3e-9
    alone_s_per_frame: float = 0.07


Served = tuple[str, float]


def simulate(work: Work, machines: Machines, *, grain: int = 10) -> dict[str, float | int | str]:
    """Return seconds, tasks, bytes read and sent, and who was busiest.

    ``grain``: so many frames are measured by one call of the simulation, which takes as long as that many.
    """
    seconds, tasks = 0.0, 0
    busy = dict.fromkeys(("workers", "shared folder", "network of the client", "client", "scheduler"), 0.0)
    read, sent = work.frames * work.frame_bytes, work.frames * (work.measure_bytes + 2e3)
    of_frame: list[Served] = [
        ("scheduler", machines.scheduler_s),
        ("network of the client", 2e3 / machines.net_bytes_per_s),
        ("shared folder", work.frame_bytes / machines.nas_bytes_per_s),
        ("workers", work.measure_s),
        ("network of the client", work.measure_bytes / machines.net_bytes_per_s),
        ("client", machines.store_s),
    ]
    calls = ([(name, grain * takes) for name, takes in of_frame] for _ in range(work.frames // grain))
    seconds += _pass(calls, machines.workers, busy)
    tasks += work.frames
    alone_s = machines.alone_s_per_frame * work.frames
    seconds, busy["client"] = seconds + alone_s, busy["client"] + alone_s

    height, width = work.mosaic_hw
    samples = work.frames * work.frame_hw[0] * work.frame_hw[1] / height
    rows = int(max(1, min(1_024, machines.block_bytes / (12 * samples))))
    blocks = -(-height // rows)
    touching = work.frames * min(1.0, (rows + work.frame_hw[0]) / height)
    # Rows of a frame that a block computes with, over those that it is made of.
    again = (rows + work.halo_rows) / rows
    row_bytes = work.frames * work.frame_bytes / height
    call_bytes = touching * work.call_bytes
    for own_s, per_px in ((work.stack_s, work.stack_bytes_per_px), (work.refine_s, work.refine_bytes_per_px)):
        back = per_px * rows * width
        block = _Block(
            rows,
            work.halo_rows,
            row_bytes,
            before=(
                ("scheduler", machines.scheduler_s),
                ("network of the client", call_bytes / machines.net_bytes_per_s),
            ),
            work_s=again * work.frames * own_s / blocks,
            after=(
                ("network of the client", back / machines.net_bytes_per_s),
                ("client", back * machines.write_s_per_byte),
            ),
        )  # fmt: skip
        took_s, read_here = _Rows(block, blocks, machines, busy).pass_through()
        seconds, read = seconds + took_s, read + read_here
        tasks, sent = tasks + blocks, sent + blocks * (back + call_bytes)
    busy["workers"] /= machines.workers
    name = max(busy, key=lambda key: busy[key])
    return {
        "seconds": round(seconds),
        "tasks": tasks,
        "block_rows": rows,
        "read_bytes": round(read),
        "sent_bytes": round(sent),
        "busiest": f"{name} ({100 * busy[name] / seconds:.0f} %)",
        **{f"busy_{key.replace(' ', '_')}_s": round(value) for key, value in busy.items()},
    }


def _pass(calls: Iterable[list[Served]], workers: int, busy: dict[str, float]) -> float:
    """Return the seconds until all calls are through, and add what everybody was busy."""
    waiting = iter(calls)
    free = dict.fromkeys(busy, 1) | {"workers": workers}
    queues: dict[str, list[tuple[float, int, list[Served]]]] = {name: [] for name in busy}
    # When, in which order, and a call with the steps that it still has, the one at work first.
    events: list[tuple[float, int, list[Served]]] = []
    number, now = 0, 0.0

    def begin(at_s: float, steps: list[Served]) -> None:
        nonlocal number
        name, takes_s = steps[0]
        number += 1
        if free[name]:
            free[name] -= 1
            busy[name] += takes_s
            heapq.heappush(events, (at_s + takes_s, number, steps))
        else:
            heapq.heappush(queues[name], (at_s, number, steps))

    def next_call() -> None:
        steps = next(waiting, None)
        if steps is not None:
            begin(now, steps)

    for _ in range(_AHEAD * workers):
        next_call()
    while events:
        now, _, steps = heapq.heappop(events)
        name = steps[0][0]
        free[name] += 1
        if queues[name]:
            _, _, first = heapq.heappop(queues[name])
            begin(now, first)
        if len(steps) > 1:
            begin(now, steps[1:])
        else:
            next_call()
    return now


@dataclass(frozen=True)
class _Block:
    """What a block takes: its rows and those around it, bytes of a row in all frames, and its way there and back."""

    rows: int
    halo_rows: int
    row_bytes: float
    before: tuple[Served, ...]
    work_s: float
    after: tuple[Served, ...]


@dataclass
class _PageCache:
    """Rows that a computer read last."""

    most_rows: float
    rows: OrderedDict[int, None] = field(default_factory=OrderedDict)

    def missing(self, first: int, end: int) -> int:
        """Read rows; return how many of them were not there."""
        n_missing = 0
        for row in range(first, end):
            n_missing += row not in self.rows
            self.rows[row] = None
            self.rows.move_to_end(row)
        while len(self.rows) > self.most_rows:
            self.rows.popitem(last=False)
        return n_missing


class _Rows:
    """A pass over all blocks: sent by what decides in a run, taken in their order."""

    def __init__(self, block: _Block, n_blocks: int, machines: Machines, busy: dict[str, float]) -> None:
        self._block, self._n_blocks, self._machines, self._busy = block, n_blocks, machines, busy
        self._most = _BLOCKS_AHEAD * machines.workers
        self._stretches = Stretches(self._most)
        self._desks: dict[int, list[int]] = {worker: [] for worker in range(machines.workers)}
        self._waiting = set(range(min(self._most, n_blocks)))
        n_computers = -(-machines.workers // machines.of_computer)
        self._caches = [_PageCache(machines.page_cache_bytes / block.row_bytes) for _ in range(n_computers)]
        self._free_s = dict.fromkeys(busy, 0.0)
        self._read_bytes = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number, self._now_s = count(), 0.0
        self._rng = random.Random(1)
        self._finished: set[int] = set()
        self._first = 0

    def pass_through(self) -> tuple[float, float]:
        """Return the seconds until the last block is written, and the bytes read from the shared folder."""
        self._assign()
        while self._events:
            self._now_s, _, act = heapq.heappop(self._events)
            act()
        return self._now_s, self._read_bytes

    def _later(self, at_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (at_s, next(self._number), act))

    def _served(self, name: str, takes_s: float) -> float:
        """Return when one who serves all in turn is done with what comes now."""
        self._free_s[name] = max(self._now_s, self._free_s[name]) + takes_s
        self._busy[name] += takes_s
        return self._free_s[name]

    def _computer(self, worker: int) -> int:
        return worker // self._machines.of_computer

    def _step(self) -> tuple[int, int, int | None] | None:
        """Return the next block to send, to which worker, and from which it is taken."""
        if not self._machines.stretches:
            worker = min(self._desks, key=lambda w: (len(self._desks[w]), self._rng.random()))
            if not self._waiting or len(self._desks[worker]) >= _AHEAD:
                return None
            return min(self._waiting), worker, None
        desks = {f"{w:06d}": Desk(f"{self._computer(w):06d}", tuple(has)) for w, has in self._desks.items()}
        step: Step | None = next_step(self._waiting, desks, self._stretches)
        if step is None:
            return None
        self._stretches = step.stretches
        return step.block, int(step.address), int(step.taken_from) if step.taken_from else None

    def _assign(self) -> None:
        while (found := self._step()) is not None:
            block, worker, taken_from = found
            self._waiting.discard(block)
            if taken_from is not None:
                self._desks[taken_from].remove(block)
            self._desks[worker].append(block)
            for name, takes_s in self._block.before:
                arrives_s = self._served(name, takes_s)
            if len(self._desks[worker]) == 1:
                self._later(arrives_s, lambda w=worker, b=block: self._begin(w, b))

    def _begin(self, worker: int, block: int) -> None:
        if self._desks[worker][:1] != [block]:
            return  # it was taken away on its way
        around = self._block.halo_rows // 2
        first, end = block * self._block.rows - around, (block + 1) * self._block.rows + around
        read_bytes = self._block.row_bytes * self._caches[self._computer(worker)].missing(first, end)
        self._read_bytes += read_bytes
        read_s = self._served("shared folder", read_bytes / self._machines.nas_bytes_per_s)
        slow = dict(enumerate(self._machines.slow)).get(worker, 1.0)
        takes_s = self._block.work_s * slow * self._rng.uniform(1 - _UNEVEN, 1 + _UNEVEN)
        self._busy["workers"] += takes_s
        self._later(read_s + takes_s, lambda: self._finish(worker, block))

    def _finish(self, worker: int, block: int) -> None:
        self._desks[worker].remove(block)
        if self._desks[worker]:
            self._begin(worker, self._desks[worker][0])
        for name, takes_s in self._block.after:
            at_s = self._served(name, takes_s)
        self._later(at_s, lambda: self._arrive(block))
        self._assign()

    def _arrive(self, block: int) -> None:
        self._finished.add(block)
        while self._first in self._finished:
            self._first += 1
            if self._first + self._most <= self._n_blocks:
                self._waiting.add(self._first + self._most - 1)
        self._assign()
