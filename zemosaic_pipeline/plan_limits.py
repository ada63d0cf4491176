"""A plan held against the machine: made smaller until it fits, or refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from zemosaic_core.errors import RunFailed
from zemosaic_pipeline.resource_watch import LEAST_DISK_BYTES

if TYPE_CHECKING:
    from zemosaic_pipeline.cost import PlanRow
    from zemosaic_pipeline.plan import RunPlan

__all__ = ["fit_to_handles", "fit_to_memory", "refuse_small_disk"]

# Below this a block of rows is so low that its halos cost more than its rows.
_LEAST_BLOCK_BYTES = 16_000_000
# Smaller than this a picture is no picture of a mosaic any more.
_LEAST_PICTURE_PX = 1000
# Open files of a process that measures (its pipe and sentinel here), of a reading thread, and of everything else.
_HANDLES_PER_WORKER, _HANDLES_PER_THREAD, _HANDLES_BASE = 3, 2, 40


def fit_to_memory(
    run: RunPlan, memory_bytes: int, estimate: Callable[[RunPlan], tuple[PlanRow, ...]]
) -> RunPlan:
    """Return the plan with its rows; where memory is short with fewer processes, lower blocks, a smaller picture.

    Memory that compiling would take does not refuse a run that fits when it is done.

    Parameters
    ----------
    run : RunPlan
    memory_bytes : int
        What the run may take.
    estimate : callable
        Gives the rows of a plan.

    Raises
    ------
    RunFailed
        ``run_error_plan_memory``: the smallest plan needs more.
    """
    planned = replace(run, rows=estimate(run))
    while planned.peak_bytes > memory_bytes:
        smaller = _smaller(planned)
        if smaller is None and run.compiles:
            # The first run may pass its limit then, which it was told; what it compiled until it is stopped stays.
            return fit_to_memory(replace(run, compiles=False), memory_bytes, estimate)
        if smaller is None:
            # Rounded apart: 420 MB that do not go into 420 MB tell nobody anything.
            needed_mb, free_mb = -(-planned.peak_bytes // 1_000_000), memory_bytes // 1_000_000
            raise RunFailed(
                "run_error_plan_memory",
                f"the run needs {needed_mb} MB of memory at least; {free_mb} MB may be used",
                needed_mb=needed_mb,
                free_mb=free_mb,
            )
        planned = replace(smaller, rows=estimate(smaller), is_reduced=True)
    return planned


def _smaller(run: RunPlan) -> RunPlan | None:
    """Return a plan whose largest phase takes less; None when there is none."""
    largest = max(run.rows, key=lambda row: row.ram_bytes).phase
    if largest == "phase1_prepare":
        return replace(run, workers=run.workers - 1) if run.workers > 1 else None
    if largest == "phase6_export":
        longest = run.output.preview["max_dim"]
        if longest <= _LEAST_PICTURE_PX:
            return None
        preview = run.output.preview | {"max_dim": max(_LEAST_PICTURE_PX, longest * 3 // 4)}
        return replace(run, output=replace(run.output, preview=preview))
    if run.block_budget_bytes > _LEAST_BLOCK_BYTES:
        return replace(run, block_budget_bytes=max(_LEAST_BLOCK_BYTES, run.block_budget_bytes * 3 // 4))
    return replace(run, threads=run.threads - 1) if run.threads > 1 else None


def fit_to_handles(run: RunPlan, handles: int) -> RunPlan:
    """Return the plan with as many processes and threads as open files allow.

    Raises
    ------
    RunFailed
        ``run_error_plan_handles``
    """
    workers, threads = run.workers, run.threads
    while (needed := _HANDLES_BASE + _HANDLES_PER_WORKER * workers + _HANDLES_PER_THREAD * threads) > handles:
        if workers == threads == 1:
            raise RunFailed(
                "run_error_plan_handles",
                f"the run needs {needed} open files at least; {handles} are allowed (ulimit -n)",
                needed=needed,
                allowed=handles,
            )
        workers, threads = max(1, workers - 1), max(1, threads - 1)
    if (workers, threads) == (run.workers, run.threads):
        return run
    return replace(run, workers=workers, threads=threads, is_reduced=True)


def refuse_small_disk(needed_bytes: int, free_bytes: int, path: str) -> None:
    """Refuse to begin what will not find room.

    Raises
    ------
    RunFailed
        ``run_error_plan_disk``
    """
    if needed_bytes + LEAST_DISK_BYTES > free_bytes:
        needed_mb, free_mb = round((needed_bytes + LEAST_DISK_BYTES) / 1e6), round(free_bytes / 1e6)
        raise RunFailed(
            "run_error_plan_disk",
            f"{path}: the run needs {needed_mb} MB of disk; {free_mb} MB are free",
            path=path,
            needed_mb=needed_mb,
            free_mb=free_mb,
        )
