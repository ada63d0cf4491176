"""A frame before the solvers: what they are asked, and what their answer is worth. The same here and on a worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zemosaic_core.cfa import luminance
from zemosaic_core.stars import StarList
from zemosaic_io.fits_read import read_window
from zemosaic_io.headers import FrameInfo
from zemosaic_io.solvers.base import Cancel, SolveOutcome, Solver, SolveRequest, failed
from zemosaic_io.solvers.chain import solve_with_chain
from zemosaic_pipeline.patient_reads import reads_of_process
from zemosaic_pipeline.position_search import Place
from zemosaic_pipeline.records import Solution
from zemosaic_pipeline.solver_answers import judge_answer

__all__ = ["Question", "SolverAnswer", "ask_solvers", "image_provider"]


@dataclass(frozen=True)
class Question:
    """Where a frame lies.

    Attributes
    ----------
    info : FrameInfo
    stars : StarList
        Its stars, brightest first, full-frame px.
    row_sums : ndarray or None
        Sums of the rows when the frame was measured; None: its pixels are not looked at.
    place : Place
        Where to look.
    """

    info: FrameInfo
    stars: StarList
    row_sums: np.ndarray | None
    place: Place


@dataclass(frozen=True)
class SolverAnswer:
    """What solvers found.

    Attributes
    ----------
    attempts : tuple of SolveOutcome
        Every attempt, in order.
    solution : Solution or None
        What to use of them, after the stars of the frame were asked about it.
    told : tuple of (str, dict)
        Text keys of what there is to say about answers that were mended or not used, with their values.
    """

    attempts: tuple[SolveOutcome, ...]
    solution: Solution | None
    told: tuple[tuple[str, dict[str, Any]], ...] = ()


def image_provider(
    info: FrameInfo, row_sums: np.ndarray | None = None
) -> Callable[[], tuple[np.ndarray, tuple[float, float]]]:
    """Return what gives a solver the frame's luminance (h, w) and the position of its first pixel.

    With ``row_sums`` the pixels have to be those that were measured.
    """

    def provide() -> tuple[np.ndarray, tuple[float, float]]:
        data = reads_of_process()(
            info.path, info.size_bytes, read_window, info, 0, info.shape_hw[0], sums=row_sums
        )
        if info.kind == "cfa":
            return luminance(data), (0.5, 0.5)
        return np.asarray(data if data.ndim == 2 else data.mean(axis=0), dtype=np.float32), (0.0, 0.0)

    return provide


def ask_solvers(
    question: Question, solvers: Sequence[Solver], work_dir: Path, cancel: Cancel | None
) -> SolverAnswer:
    """Ask solvers in turn; an answer counts when the stars of the frame do not speak against it.

    Parameters
    ----------
    question : Question
    solvers : sequence of Solver
    work_dir : Path
        For temporary files.
    cancel : Cancel or None
        Asked while a solver is at work.

    Raises
    ------
    SkipItem
        The file cannot be read any more, or holds other pixels than those measured.
    SaveFailed
        The folder for temporary files cannot be written.
    Cancelled
        ``cancel`` was set; no program is left.
    """
    info, place = question.info, question.place
    request = SolveRequest(
        path=info.path,
        shape_hw=info.shape_hw,
        ra_deg=place.ra_deg,
        dec_deg=place.dec_deg,
        scale_arcsec=place.scale_arcsec,
        radius_deg=place.radius_deg,
        stars=question.stars,
        image_provider=image_provider(info, question.row_sums),
        work_dir=work_dir,
        timeout_s=place.timeout_s,
        epoch=info.epoch,
        radius_is_limit=place.radius_is_limit,
    )
    answers: list[Solution] = []
    told: list[tuple[str, dict[str, Any]]] = []

    def believe(outcome: SolveOutcome) -> SolveOutcome:
        judged = judge_answer(info, question.stars, outcome)
        if judged.key:
            told.append((judged.key, judged.values))
        if judged.solution is None:
            return failed(outcome.solver, "no_solution", "solver_implausible", outcome.seconds)
        answers.append(judged.solution)
        return outcome

    attempts = solve_with_chain(request, solvers, cancel, believe=believe)
    return SolverAnswer(tuple(attempts), answers[0] if answers else None, tuple(told))
