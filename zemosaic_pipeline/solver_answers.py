"""What a WCS is worth for a frame: whether a run can use it, and what the stars of the frame say of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zemosaic_core.errors import SkipItem
from zemosaic_core.frame_wcs import UnusableWcs, build_frame_wcs
from zemosaic_core.plate_solve import DetectedStars, WcsCheck
from zemosaic_io.headers import FrameInfo
from zemosaic_io.solvers.base import SolveOutcome
from zemosaic_io.solvers.embedded import check_wcs
from zemosaic_pipeline.records import Solution

__all__ = ["BUILT_IN", "JudgedAnswer", "check_frame_wcs", "judge_answer"]

BUILT_IN = "EMBEDDED"


@dataclass(frozen=True)
class JudgedAnswer:
    """What a solver's answer is worth.

    Attributes
    ----------
    solution : Solution or None
        What to use of it; None when it cannot be right.
    key : str
        Text key of what there is to say: why it is not used, or what was mended; empty when it is as it came.
    values : dict
        Values for the text.
    """

    solution: Solution | None
    key: str = ""
    values: dict[str, Any] = field(default_factory=dict)


def check_frame_wcs(info: FrameInfo, stars: DetectedStars, cards: Mapping[str, Any]) -> WcsCheck:
    """Hold a WCS against what a run will do with it, and against the catalogue at the time of the frame.

    Parameters
    ----------
    info : FrameInfo
        The frame.
    stars : DetectedStars
        Its stars, brightest first, full-frame px.
    cards : mapping
        Celestial WCS of the full frame.

    Raises
    ------
    SkipItem
        ``wcs_unusable``: it leads nowhere, or not back.
    """
    try:
        build_frame_wcs(cards, info.shape_hw)
    except UnusableWcs as error:
        raise SkipItem("wcs_unusable", f"{info.path}: {error}", path=str(info.path)) from error
    return check_wcs(cards, stars, info.shape_hw, epoch=info.epoch)


def judge_answer(info: FrameInfo, stars: DetectedStars, outcome: SolveOutcome) -> JudgedAnswer:
    """Decide what a solver's answer is worth.

    Some releases of other programs are off by a constant part of a pixel; where the stars confirm the rest, they say
    by how much, and CRPIX is mended.

    Parameters
    ----------
    info, stars
        As in `check_frame_wcs`.
    outcome : SolveOutcome
        An answer that is ``ok``.
    """
    path, solver = str(info.path), outcome.solver
    cards = dict(outcome.wcs_cards or {})
    try:
        check = check_frame_wcs(info, stars, cards)
    except SkipItem as unusable:
        return JudgedAnswer(None, unusable.key, {"path": path, "solver": solver, "reason": str(unusable)})
    if check.contradicts:
        values = {"path": path, "solver": solver, "matched": check.n_matched}
        return JudgedAnswer(None, "wcs_solver_wrong", values)
    key, values = "", {}
    if solver != BUILT_IN and check.confirmed and check.is_shifted:
        cards["CRPIX1"] += check.shift_x_px
        cards["CRPIX2"] += check.shift_y_px
        key = "wcs_solver_offset"
        values = {"path": path, "solver": solver, "offset_px": round(check.offset_px, 2)}
    rms = check.rms_px if outcome.rms_px is None else outcome.rms_px
    matched = check.n_matched if outcome.n_matched is None else outcome.n_matched
    solution = Solution(cards, solver, rms, matched, seconds=outcome.seconds, confirmed=check.confirmed)
    return JudgedAnswer(solution, key, values)
