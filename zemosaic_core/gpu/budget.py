"""How much of a card may be used, whether an operation is worth the way there, and in which chunks. Pure.

Arithmetic for `zemosaic_gpu_policy`, which asks the card and takes the steps; nothing here touches one.
"""

from __future__ import annotations

import math
import sys

from zemosaic_core.chunks import Workload
from zemosaic_core.gpu.device import DeviceInfo, MemoryState
from zemosaic_core.gpu.terms import Budget, Decision, GpuStatus, Overrides, Reason

__all__ = ["card_seconds", "decide", "is_overcommitted", "make_budget", "worthwhile_bytes"]

MIB = 1 << 20
# PCIe as a slow laptop has it, reading from the page cache and staging, and the price of planning, allocating and
# synchronising: once, and again for each further chunk.
TRANSFER_BYTES_PER_SECOND = 6e9
READ_BYTES_PER_SECOND = 1.5e9
OPERATION_OVERHEAD_SECONDS = 0.01
CHUNK_OVERHEAD_SECONDS = 0.002
# A chunk as large as one before that takes this many times as long is not bad luck when memory is short, too.
SLOW_FACTOR = 3.0


def make_budget(
    memory: MemoryState, info: DeviceInfo, *, memory_mb: int, overrides: Overrides, host_bytes: int = 0
) -> Budget:
    """Return what may be used of a card in this state.

    The reserve is what the driver's own estimate may be wrong by, and what the desktop may want meanwhile:
    8 % of the card but at least 512 MiB (a quarter of a very small one), 256 MiB more when it drives a
    display, 10 % more on Windows, where overcommitting does not fail but crawls through system memory.

    Parameters
    ----------
    memory : MemoryState
        What driver and pool say now.
    info : DeviceInfo
    memory_mb : int
        Never use more than this; 0: no such limit.
    overrides : Overrides
    host_bytes : int
        What the processor's part of the run takes at the same time. A card that shares the memory of the processor
        cannot have these bytes too; where nothing is said, half of what is free is left to it.
    """
    total, free = memory.total, memory.free
    if overrides.simulate_mb:
        total, free = min(total, overrides.simulate_mb * MIB), min(free, overrides.simulate_mb * MIB)
    reserve = max(min(512 * MIB, total // 4), total * 8 // 100)
    if info.drives_display:
        reserve += min(256 * MIB, total // 8)
    if sys.platform == "win32":
        reserve += total // 10
    if overrides.reserve_mb >= 0:
        reserve = overrides.reserve_mb * MIB
    if info.integrated:
        reserve += host_bytes or free // 2
    cap = (overrides.memory_mb or memory_mb) * MIB or total
    usable = max(0, min(free + memory.pool_free - reserve, cap))
    return Budget(total, free, memory.pool_free, reserve, cap, usable)


def card_seconds(workload: Workload, rows: int) -> float:
    """Return what the way to the card and back costs in chunks of ``rows`` rows, in seconds.

    Not counted are the kernels themselves: where the way alone takes longer than the processor needs, they do not
    matter. Each chunk has a price of its own, and what lies around it is read and uploaded again.
    """
    n_chunks = -(-workload.rows // max(1, rows))
    again = workload.reread_bytes / max(1, rows) if n_chunks > 1 else 0.0
    travel = (workload.upload_bytes + workload.download_bytes + again) / TRANSFER_BYTES_PER_SECOND
    overhead = OPERATION_OVERHEAD_SECONDS + max(0, n_chunks - 1) * CHUNK_OVERHEAD_SECONDS
    return travel + again / READ_BYTES_PER_SECOND + overhead


def _cpu_seconds(workload: Workload) -> float:
    return max(workload.cpu_seconds, workload.least_cpu_seconds) if workload.cpu_seconds > 0 else 0.0


def worthwhile_bytes(workload: Workload) -> int:
    """Return the peak of the smallest chunks with which the card is faster than the processor; 0 when none are."""
    cpu_seconds = _cpu_seconds(workload)
    if not workload.rows or cpu_seconds < card_seconds(workload, workload.rows):
        return 0
    low, high = 1, workload.rows
    while low < high:
        middle = (low + high) // 2
        if card_seconds(workload, middle) <= cpu_seconds:
            high = middle
        else:
            low = middle + 1
    return workload.peak(low)


def decide(
    workload: Workload,
    status: GpuStatus,
    budget: Budget | None,
    *,
    ceiling_bytes: int = 0,
    chunk_rows: int = 0,
) -> Decision:
    """Decide where a workload runs and in which chunks. Pure: the same arguments give the same decision.

    Parameters
    ----------
    workload : Workload
        What the operation declares.
    status : GpuStatus
        Whether there is a card.
    budget : Budget or None
        What may be used of it; None only when there is none.
    ceiling_bytes : int
        Peak that has failed before is above this; 0 when nothing failed.
    chunk_rows : int
        Rows per chunk somebody asked for; 0 for free choice. Memory still has the last word.
    """
    # No card, switched off, given up: `status` says which. To override: the setting or variable it names.
    if not status.ok or budget is None:
        return Decision(workload.op, "cpu", status.reason, 0, 0, 0)
    usable = min(budget.usable, ceiling_bytes) if ceiling_bytes else budget.usable
    rows = workload.rows - workload.start
    smallest = min(-(-max(workload.min_rows, 1) // workload.align) * workload.align, rows)
    limits = {"rows": rows}
    if workload.host_rows:
        limits["host"] = max(smallest, workload.host_rows)
    if workload.elements_per_row:
        limits["index"] = (2**31 - 1) // workload.elements_per_row - 2 * workload.halo
    if chunk_rows:
        limits["asked"] = max(smallest, chunk_rows)
    several = min(limits.values()) < rows
    limits["memory"] = workload.rows_within(usable, several=several)
    if ceiling_bytes:
        limits["ceiling"] = workload.rows_within(ceiling_bytes, several=several)
    fitting = min(limits.values())
    if fitting < rows:
        fitting -= fitting % workload.align
    # Not even the smallest chunk fits. To override: free memory of the card, a smaller ZEMOSAIC_GPU_RESERVE_MB.
    if fitting < smallest or rows == 0:
        reason = Reason.INSUFFICIENT_MEMORY if rows else Reason.WORKLOAD_TOO_SMALL
        return Decision(workload.op, "cpu", reason, 0, 0, workload.peak(smallest), limits)
    # The way to the card takes longer than the processor. To override: require, which is never asked this; chunks
    # that somebody asked for are not held against the card.
    if 0 < _cpu_seconds(workload) < card_seconds(workload, rows if chunk_rows else fitting):
        needed = worthwhile_bytes(workload)
        short = needed > usable
        reason = Reason.INSUFFICIENT_MEMORY if short else Reason.WORKLOAD_TOO_SMALL
        return Decision(workload.op, "cpu", reason, 0, 0, needed if short else workload.peak(fitting), limits)
    chunks = workload.chunks(fitting)
    largest = max(b - a for a, b in chunks)
    return Decision(workload.op, "gpu", Reason.GPU, largest, len(chunks), workload.peak(largest), limits)


def is_overcommitted(
    before: MemoryState, now: MemoryState, budget: Budget, seconds_per_row: float, best_per_row: float
) -> bool:
    """Tell whether the card lends memory that it does not have, as drivers under Windows do instead of failing.

    Parameters
    ----------
    before, now : MemoryState
        When the operation began, and with a chunk on the card.
    budget : Budget
        What was planned with.
    seconds_per_row, best_per_row : float
        Of the last chunk, and the least of this operation; infinite when there is none to compare with.

    Returns
    -------
    bool
        Nothing is free, not even what was to stay so. Or less than half of that, and the pool has grown by far
        more than what is free has shrunk, or chunks have become much slower.
    """
    if now.free <= min(budget.reserve // 8, budget.total // 200):
        return True
    if now.free >= budget.reserve // 2:
        return False
    grown, shrunk = now.pool_total - before.pool_total, before.free - now.free
    lent = grown > budget.total // 50 and shrunk < grown // 2
    return lent or (math.isfinite(best_per_row) and seconds_per_row > SLOW_FACTOR * best_per_row)
