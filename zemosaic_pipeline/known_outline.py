"""The plan once every frame has its place: headers may name one target where the telescope walked around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from zemosaic_pipeline.cost import PlanRow, estimate_rows
from zemosaic_pipeline.phase2_group import frame_centres
from zemosaic_pipeline.plan import RunPlan, cost_basis
from zemosaic_pipeline.plan_limits import fit_to_memory
from zemosaic_pipeline.records import SolvedFrame

__all__ = ["with_known_outline"]


def with_known_outline(
    run: RunPlan,
    solved: Sequence[SolvedFrame],
    canvas_hw: tuple[int, int],
    memory_bytes: int,
    n_calibrations: int = 0,
) -> RunPlan:
    """Return the plan for a mosaic whose pixels are known; choices that were made before stay.

    Parameters
    ----------
    solved : sequence of SolvedFrame
        At least one; their places count, not what their headers say.
    canvas_hw : tuple of int
        Height and width of the mosaic, px.
    memory_bytes : int
        What the run may take.
    n_calibrations : int
        Different sets of masters that frames are calibrated with.

    Raises
    ------
    RunFailed
        ``run_error_plan_memory``: the smallest plan needs more.
    """
    infos = [
        replace(item.frame.info, ra_deg=float(ra), dec_deg=float(dec))
        for item, (ra, dec, _) in zip(solved, frame_centres(solved), strict=True)
    ]
    computes_on = {row.phase: (row.device, row.reason_key) for row in run.rows}

    def estimate(smaller: RunPlan) -> tuple[PlanRow, ...]:
        rows = estimate_rows(cost_basis(smaller), infos, canvas_hw, None, n_calibrations)
        kept = [(row, *computes_on[row.phase]) for row in rows]
        return tuple(replace(row, device=device, reason_key=reason) for row, device, reason in kept)

    return fit_to_memory(run, memory_bytes, estimate)
