"""Ask solvers about one frame: what was asked before is taken from `SolveMemory`, what is new goes there."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence

from zemosaic_core.errors import SkipItem
from zemosaic_io.frame_identity import is_as_surveyed, locate_again
from zemosaic_io.solvers.base import Solver
from zemosaic_pipeline.context import RunContext
from zemosaic_pipeline.frame_boundary import TRACEBACK, result_or_skip
from zemosaic_pipeline.frame_matching import KnownSky
from zemosaic_pipeline.plan import SolveOptions
from zemosaic_pipeline.pointings import pointing_labels
from zemosaic_pipeline.position_search import Place
from zemosaic_pipeline.records import Solution
from zemosaic_pipeline.search_progress import TellingCancel
from zemosaic_pipeline.solver_answers import BUILT_IN
from zemosaic_pipeline.solver_questions import Question, ask_solvers

__all__ = ["pointings_of", "question_of", "solve_frame", "told_place"]

log = logging.getLogger(__name__)


def pointings_of(sky: KnownSky, indices: Iterable[int]) -> list[list[int]]:
    """Bring frames together that the mount says point alike, richest star lists first."""
    members: dict[int, list[int]] = defaultdict(list)
    indices = list(indices)
    for index, label in zip(indices, pointing_labels([sky.frames[i][0].info for i in indices]), strict=True):
        members[label].append(index)
    return [sorted(group, key=lambda i: -sky.frames[i][1].n_stars) for group in members.values()]


def told_place(index: int, sky: KnownSky, options: SolveOptions) -> Place:
    """Return where the header says that a frame lies."""
    ra, dec = sky.hint(index) or (None, None)
    scale = sky.frames[index][0].info.scale_arcsec
    return Place(ra, dec, scale, options.solver.search_radius_deg, options.solver.timeout_s)


def solve_frame(
    index: int,
    sky: KnownSky,
    solvers: Sequence[Solver],
    options: SolveOptions,
    context: RunContext,
    place: Place | None = None,
) -> bool:
    """Ask the solvers for one frame; return whether it has a place now."""
    frame, measure = sky.frames[index]
    place = place or told_place(index, sky, options)
    key = sky.memory.solver_key(frame, measure, sky.stars_key(index), place, solvers, options)
    known, solution = sky.memory.solution(key, frame.info.shape_hw)
    if not known and (attempts := sky.memory.failure(key)) is not None:
        sky.attempts[index].extend(attempts)
        return False
    if not known:
        n_before = len(sky.attempts[index])
        found = result_or_skip(frame.info.path, _ask_solvers, index, sky, solvers, place, context)
        if isinstance(found, SkipItem):
            log.warning("not solved: %s %s", found, found.values.get(TRACEBACK, ""))
            sky.lost[index] = found
        else:
            solution = found
            if solution is not None:
                sky.memory.keep_solution(key, solution)
            else:
                sky.memory.keep_failure(key, sky.attempts[index][n_before:])
    if solution is None:
        return False
    if not solution.confirmed and solution.method != BUILT_IN:
        sky.unconfirmed.setdefault(index, (solution, known))
        return False
    sky.add(index, solution, remembered=known)
    return True


def question_of(index: int, place: Place, sky: KnownSky) -> Question:
    """Return what solvers are asked about a frame."""
    frame, measure = sky.frames[index]
    return Question(frame.info, sky.stars[index], measure.columns("row_sums")["row_sums"], place)


def _telling(
    index: int, sky: KnownSky, solvers: Sequence[Solver], place: Place, context: RunContext
) -> TellingCancel:
    done = len(sky.searched.union(sky.solutions) - {index})
    item = f"{sky.frames[index][0].name} ({', '.join(solver.name for solver in solvers)})"
    return TellingCancel(context, done, len(sky.frames), item, place.timeout_s)


def _ask_solvers(
    index: int, sky: KnownSky, solvers: Sequence[Solver], place: Place, context: RunContext
) -> Solution | None:
    """Return what the solvers find, here or on a worker of the cluster.

    Raises
    ------
    SkipItem
        The file cannot be read any more, or holds other pixels than those measured.
    """
    frame, measure = sky.frames[index]
    question = question_of(index, place, sky)
    names = [solver.name for solver in solvers]
    answer = None
    if sky.elsewhere is not None and sky.elsewhere.can(names):
        answer = sky.elsewhere.ask((index, place), question, names)
    if answer is None:
        answer = ask_solvers(
            question, solvers, context.work_dir, _telling(index, sky, solvers, place, context)
        )
    sky.attempts[index].extend(answer.attempts)
    for key, values in answer.told:
        if key == "wcs_unusable":
            log.warning("the answer of %s is not used: %s", values["solver"], values["reason"])
        else:
            context.say(key, "WARN", **values)
    if answer.solution is not None and answer.solution.method != BUILT_IN and not is_as_surveyed(frame.info):
        # The other program may have read the file itself.
        locate_again(frame.info, measure.content_key)
    return answer.solution
