"""A run on many machines, on paper: calls pass through a scheduler, a shared folder, workers and the client in turn.

Each of them serves one call after the other, in the order in which they come. What a call takes was measured
(`benchmarks.cluster`); that a worker is as fast as the machine it was measured on is an assumption.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Machines", "Work", "simulate"]

# Calls on their way per worker: see `zemosaic_pipeline.cluster`.
_AHEAD = 2


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
    stack_bytes_per_px: float = 50.0
    refine_bytes_per_px: float = 64.0
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
    neighbours : int
        Blocks one below the other that a computer works on while it still has in memory what it read from the shared
        folder: rows that two of them need are read once.
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
    neighbours: int = 1
    nas_bytes_per_s: float = 110e6
    net_bytes_per_s: float = 110e6
    scheduler_s: float = 0.001
    store_s: float = 0.006
    write_s_per_byte: float = 3e-9
    alone_s_per_frame: float = 0.07


Step = tuple[str, float]


def simulate(work: Work, machines: Machines, *, grain: int = 10) -> dict[str, float | int | str]:
    """Return seconds, tasks, bytes read and sent, and who was busiest.

    ``grain``: so many frames are measured by one call of the simulation, which takes as long as that many.
    """
    seconds, tasks = 0.0, 0
    busy = dict.fromkeys(("workers", "shared folder", "network of the client", "client", "scheduler"), 0.0)
    read, sent = work.frames * work.frame_bytes, work.frames * (work.measure_bytes + 2e3)
    of_frame: list[Step] = [
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
    # Rows of a frame that a block reads, over those that it is made of.
    again = (rows + work.halo_rows) / rows
    read_again = (machines.neighbours * rows + work.halo_rows) / (machines.neighbours * rows)
    for own_s, per_px in ((work.stack_s, work.stack_bytes_per_px), (work.refine_s, work.refine_bytes_per_px)):
        read_here, back = read_again * work.frames * work.frame_bytes / blocks, per_px * rows * width
        block: list[Step] = [
            ("scheduler", machines.scheduler_s),
            ("network of the client", touching * work.call_bytes / machines.net_bytes_per_s),
            ("shared folder", read_here / machines.nas_bytes_per_s),
            ("workers", again * work.frames * own_s / blocks),
            ("network of the client", back / machines.net_bytes_per_s),
            ("client", back * machines.write_s_per_byte),
        ]
        seconds += _pass((list(block) for _ in range(blocks)), machines.workers, busy)
        tasks, read, sent = (
            tasks + blocks,
            read + blocks * read_here,
            sent + blocks * (back + touching * work.call_bytes),
        )
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


def _pass(calls: Iterable[list[Step]], workers: int, busy: dict[str, float]) -> float:
    """Return the seconds until all calls are through, and add what everybody was busy."""
    waiting = iter(calls)
    free = dict.fromkeys(busy, 1) | {"workers": workers}
    queues: dict[str, list[tuple[float, int, list[Step]]]] = {name: [] for name in busy}
    # When, in which order, and a call with the steps that it still has, the one at work first.
    events: list[tuple[float, int, list[Step]]] = []
    number, now = 0, 0.0

    def begin(at_s: float, steps: list[Step]) -> None:
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
