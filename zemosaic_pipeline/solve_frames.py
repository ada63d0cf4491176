"""Second half of phase 1: give every frame its place in the sky.

The header's own WCS first; then one frame per pointing is solved, and the others are laid on solved neighbours
by their stars, those of other pointings too; what matches none is solved on its own. The solvers take turns, the fast
ones first: each is asked only about frames that nothing before it found a place for. What lies on a frame that was
looked for in vain is looked for near the place that its header tells, which costs little, and some of it far around
when nothing else led to a place. Nothing is written to the input files.

Every run goes this way from its beginning; what single steps gave before comes from `SolveMemory`.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from zemosaic_core.errors import RunFailed, SkipItem
from zemosaic_io.manifest import Manifest
from zemosaic_io.solvers.base import SolveOutcome, Solver
from zemosaic_io.solvers.chain import make_solvers
from zemosaic_io.solvers.embedded import EmbeddedSolver
from zemosaic_pipeline.context import RunContext
from zemosaic_pipeline.frame_boundary import result_or_skip
from zemosaic_pipeline.frame_matching import KnownSky, match_all
from zemosaic_pipeline.late_searches import search_everywhere, search_further, search_wrong_scales
from zemosaic_pipeline.phase1_prepare import Prepared
from zemosaic_pipeline.plan import SolveOptions
from zemosaic_pipeline.position_search import MAX_NEAR_LOOKS, Place, near_only, other_readings
from zemosaic_pipeline.records import Solution, SolvedFrame
from zemosaic_pipeline.solve_memory import HeaderCheck, SolveMemory
from zemosaic_pipeline.solve_one_frame import pointings_of, question_of, solve_frame, told_place
from zemosaic_pipeline.solver_answers import BUILT_IN, check_frame_wcs
from zemosaic_pipeline.solver_patience import SolverPatience

__all__ = ["run"]

PHASE = "phase1_prepare"
# When this many frames of a pointing failed and none was solved, the rest are not sent through a solver; of solvers
# that take up to a minute for a frame they cannot solve, it is less.
MAX_FAILED = 5
MAX_FAILED_SLOWLY = 2
# Frames with the same stars that the built-in solver looks for far around their headers: the first may be poor.
ENOUGH_ALIKE = 2
# How far from their header frames are looked for whose stars the catalogue does not seem to know.
_NEARBY_DEG = 1.0

log = logging.getLogger(__name__)


def _use_headers(sky: KnownSky, options: SolveOptions, context: RunContext) -> None:
    """Take the WCS of the headers: what the catalogue confirms first, what nothing speaks for last.

    Headers are copied from stack to frame and from night to night. So a frame whose header is not confirmed is laid
    on others by its stars where that can be done.
    """
    unconfirmed: dict[int, Solution] = {}
    doubtful: list[int] = []
    remembered: set[int] = set()
    for index, (frame, _) in sky.frames.items():
        cards = frame.info.wcs_cards
        if cards is None:
            continue
        key = sky.memory.header_key(frame.info, sky.stars_key(index), cards)
        known = sky.memory.header_check(key)
        check = known
        if check is None:
            found = result_or_skip(frame.info.path, check_frame_wcs, frame.info, sky.stars[index], cards)
            if isinstance(found, SkipItem):
                log.warning("the WCS of its header is not used: %s", found)
                continue
            check = HeaderCheck(
                float(found.rms_px), int(found.n_matched), bool(found.confirmed), bool(found.contradicts)
            )
            sky.memory.keep_check(key, check)
        solution = Solution(cards, "header", check.rms_px, check.n_matched, confirmed=check.confirmed)
        if known is not None:
            remembered.add(index)
        if check.confirmed:
            sky.add(index, solution, remembered=known is not None)
            continue
        unconfirmed[index] = solution
        if check.contradicts:
            doubtful.append(index)
    match_all(sky, options, context, list(sky.solutions), unconfirmed)
    _settle_doubts(sky, doubtful, unconfirmed, options, context)
    for index, solution in unconfirmed.items():
        if index not in sky.solutions:
            sky.add(index, solution, remembered=index in remembered)


def _settle_doubts(
    sky: KnownSky,
    doubtful: Sequence[int],
    unconfirmed: Mapping[int, Solution],
    options: SolveOptions,
    context: RunContext,
) -> None:
    """Let the built-in solver look at one frame of each pointing whose header the catalogue speaks against.

    Where it finds another place, the headers of that pointing are wrong, and all frames without a confirmed place are
    laid on that frame. Where it finds none, the catalogue may simply not know these stars: the headers are kept, and
    the run says so. After that it is not sent far and wide for every other pointing, which takes it seconds each.
    """
    solver = EmbeddedSolver()
    radius_deg = min(_NEARBY_DEG, options.solver.search_radius_deg)
    near = replace(options, solver=replace(options.solver, search_radius_deg=radius_deg))
    kept: list[int] = []
    for pointing in sorted(pointings_of(sky, doubtful), key=len, reverse=True):
        members = [index for index in pointing if index not in sky.solutions]
        if not members:
            continue
        best, alone = members[0], sky.only(members[0])
        if solve_frame(best, alone, [solver], near, context):
            example = context.name_of(sky.frames[best][0].info.path)
            context.say("wcs_header_wrong", "WARN", frames=len(members), example=example)
            sky.add(best, alone.solutions[best], remembered=best in sky.memory.reused)
            match_all(sky, options, context, [best], unconfirmed)
            continue
        solver = EmbeddedSolver(least_radius_deg=radius_deg)
        kept += members
    # One that was found later may have shown where these are.
    kept = [index for index in kept if index not in sky.solutions]
    if kept:
        # Stacks of a large mosaic are a pointing each; one sentence is read, a hundred are not.
        example = context.name_of(sky.frames[kept[0]][0].info.path)
        context.say("wcs_header_unconfirmed", "WARN", frames=len(kept), example=example)


def _place_of(
    index: int, in_vain: Sequence[int], sky: KnownSky, options: SolveOptions, is_slow: bool
) -> Place | None:
    """Return where a frame is looked for after others of its pointing were in vain; None where nothing is told.

    What shows the same stars as some of those is looked for near what its header tells alone: of the rest of the sky
    the answer is known.
    """
    if sky.hint(index) is None:
        # Frames that know nothing of their place wait for others: see `search_everywhere`.
        return None
    told = told_place(index, sky, options)
    alike = sum(sky.is_like(index, other, options.tolerance_px) for other in in_vain[:MAX_FAILED])
    return near_only(told) if alike >= (1 if is_slow else ENOUGH_ALIKE) else told


def _tries(
    members: Sequence[int], sky: KnownSky, options: SolveOptions, is_slow: bool
) -> Iterator[tuple[int, Place]]:
    """Yield what a solver is asked about a pointing as long as it finds nothing, as `_ask_members` goes on."""
    in_vain: list[int] = []
    n_near, most = 0, MAX_FAILED_SLOWLY if is_slow else MAX_FAILED
    for index in members:
        if len(in_vain) + (n_near if is_slow else 0) >= most or n_near >= MAX_NEAR_LOOKS:
            return
        place = _place_of(index, in_vain, sky, options, is_slow)
        if place is None:
            continue
        yield index, place
        if place.radius_is_limit:
            n_near += 1
        else:
            in_vain.append(index)


def _solve_by_pointing(sky: KnownSky, solver: Solver, options: SolveOptions, context: RunContext) -> None:
    """Solve the best frame of each pointing and lay the others on it; then whatever is left, on its own.

    Only when all pointings have had their turn the best frame of each is looked for where its header may have meant:
    what is found by then needs no such search.
    """
    is_slow = solver.name != BUILT_IN
    sky.searched = set()
    patience = SolverPatience(solver, context)
    pointings = pointings_of(sky, sky.unsolved())
    for n_done, members in enumerate(pointings):
        if sky.elsewhere is not None and sky.elsewhere.can([solver.name]):
            _look_ahead(pointings[n_done:], sky, solver, options, is_slow)
        _ask_members(members, sky, solver, options, context, patience)
        if patience.is_out:
            return
    readings_patience = SolverPatience(solver, context)
    for members in pointings:
        # Where other headers have led to a place, it is the frame that is poor, and searching on takes slow solvers
        # minutes.
        if is_slow and sky.solutions:
            return
        best = next((i for i in members if sky.hint(i) is not None), None)
        if best is None or any(i in sky.solutions or i in sky.unconfirmed for i in members):
            continue
        for place in other_readings(told_place(best, sky, options)):
            context.cancel.check()
            if solve_frame(best, sky, [solver], options, context, place):
                _spread(best, members, sky, solver, options, context)
                readings_patience.solved()
                _ask_members(members, sky, solver, options, context, readings_patience)
                break
            if best in sky.unconfirmed or best in sky.lost:
                break
            readings_patience.failed(sky.attempts[best])
            if readings_patience.is_out:
                return


def _ask_members(
    members: Sequence[int],
    sky: KnownSky,
    solver: Solver,
    options: SolveOptions,
    context: RunContext,
    patience: SolverPatience,
) -> None:
    """Ask a solver about the frames of a pointing that have no place and that it was not asked about yet."""
    if any(i in sky.unconfirmed for i in members):
        # Another solver has told a place; if it comes to nothing else, that will be believed.
        return
    is_slow = solver.name != BUILT_IN
    most = MAX_FAILED_SLOWLY if is_slow else MAX_FAILED
    in_vain: list[int] = []
    n_near = 0
    for index in members:
        context.cancel.check()
        if index in sky.solutions or index in sky.searched or patience.is_out:
            continue
        is_first = not any(i in sky.solutions for i in members)
        if is_first and len(in_vain) + (n_near if is_slow else 0) >= most:
            break
        place = _place_of(index, in_vain, sky, options, is_slow)
        if place is None or (place.radius_is_limit and n_near >= MAX_NEAR_LOOKS):
            continue
        found = solve_frame(index, sky, [solver], options, context, place)
        sky.searched.add(index)
        if found:
            _spread(index, members, sky, solver, options, context)
            patience.solved()
            continue
        if index in sky.unconfirmed:
            break
        if place.radius_is_limit:
            n_near += 1
        else:
            in_vain.append(index)
            if not is_slow:
                sky.looked_far.add(index)
        patience.failed(sky.attempts[index])
    # Of the others of this pointing as much is known.
    sky.searched.update(members)


def _spread(
    index: int,
    members: Sequence[int],
    sky: KnownSky,
    solver: Solver,
    options: SolveOptions,
    context: RunContext,
) -> None:
    """Lay other frames on one that was solved just now."""
    context.progress(len(sky.solutions), len(sky.frames), sky.frames[index][0].name)
    match_all(sky, options, context, [index], members)
    # Frames of other pointings may lie on it as well, and need no slow solver then.
    match_all(sky, options, context, list(sky.solutions) if solver.name != BUILT_IN else [])


def _look_ahead(
    pointings: Sequence[Sequence[int]],
    sky: KnownSky,
    solver: Solver,
    options: SolveOptions,
    is_slow: bool,
) -> None:
    """Let workers of a cluster begin with the pointings that come next; see `ClusterSolvers.look_ahead`."""
    assert sky.elsewhere is not None

    def is_known(index: int, place: Place) -> bool:
        frame, measure = sky.frames[index]
        key = sky.memory.solver_key(frame, measure, sky.stars_key(index), place, [solver], options)
        return sky.memory.is_known(key)

    def series() -> Iterator[Iterator[tuple[int, Place]]]:
        for members in pointings:
            if not any(i in sky.solutions or i in sky.unconfirmed for i in members):
                yield _tries(members, sky, options, is_slow)

    sky.elsewhere.look_ahead(
        [solver.name], series, question_of=partial(question_of, sky=sky), is_known=is_known
    )


def _believe_unconfirmed(
    sky: KnownSky, solvers: Sequence[Solver], options: SolveOptions, context: RunContext
) -> None:
    """Take, last of all, what solvers told and the catalogue neither confirms nor denies; say so by name.

    What matches none of these frames, of a pointing that only such an answer leads to, is then asked about on its own.
    """
    asked = {solver.name: solver for solver in solvers}
    for index in sorted(sky.unconfirmed):
        if index in sky.solutions:
            continue
        _believe(index, sky, options, context)
        solver = asked.get(sky.solutions[index].method)
        members = next(group for group in pointings_of(sky, sky.frames) if index in group)
        n_failed = 0
        for other in members:
            if other in sky.solutions or solver is None or n_failed >= MAX_FAILED:
                continue
            context.cancel.check()
            if solve_frame(other, sky, [solver], options, context):
                match_all(sky, options, context, [other])
            elif other in sky.unconfirmed:
                _believe(other, sky, options, context)
            else:
                n_failed += 1


def _believe(index: int, sky: KnownSky, options: SolveOptions, context: RunContext) -> None:
    solution, remembered = sky.unconfirmed[index]
    sky.add(index, solution, remembered=remembered)
    path = str(sky.frames[index][0].info.path)
    context.say("wcs_solver_unconfirmed", "WARN", path=path, solver=solution.method)
    match_all(sky, options, context, [index])


def _place_by_hint(sky: KnownSky, options: SolveOptions, context: RunContext) -> None:
    """Without any solver: one frame lies where the mount says, north up; the others follow by their stars."""
    for members in pointings_of(sky, sky.unsolved()):
        for index in members:
            info = sky.frames[index][0].info
            if index in sky.solutions or info.ra_deg is None or info.scale_arcsec is None:
                continue
            if any(solution.approximate for solution in sky.solutions.values()):
                # A second frame placed by hint alone would lie minutes of arc off the first: no seam survives that.
                return
            # The sensor of these telescopes reads out mirrored with respect to the sky (positive determinant).
            scale, (height, width) = info.scale_arcsec / 3600, info.shape_hw
            cards = {
                "WCSAXES": 2, "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CUNIT1": "deg", "CUNIT2": "deg",
                "CRPIX1": (width + 1) / 2, "CRPIX2": (height + 1) / 2, "CRVAL1": info.ra_deg, "CRVAL2": info.dec_deg,
                "CD1_1": scale, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": scale, "RADESYS": "ICRS",
            }  # fmt: skip
            sky.add(index, Solution(cards, "hint", float("nan"), 0, approximate=True))
            context.say("wcs_approximate", "WARN", path=str(info.path))
            match_all(sky, options, context, [index])


def _attempts(outcomes: Sequence[SolveOutcome]) -> tuple[dict[str, Any], ...]:
    return tuple(
        {"solver": o.solver, "ok": o.ok, "seconds": round(o.seconds, 3), "key": o.key, "values": o.values}
        for o in outcomes
    )


def run(
    prepared: Prepared, options: SolveOptions, context: RunContext, manifest: Manifest
) -> list[SolvedFrame]:
    """Return the frames whose place is known; the others are left out with every attempt's outcome.

    Raises
    ------
    RunFailed
        No frame could be placed.
    """
    memory = SolveMemory(manifest, context.run_id, context.resumes)
    sky = KnownSky.of({frame.index: (frame, measure) for frame, measure in prepared.frames}, memory)
    try:
        solvers = _find_places(sky, options, context)
    finally:
        # A stopped run keeps what it found.
        memory.save()
    return _finish(sky, solvers, options, context)


def _find_places(sky: KnownSky, options: SolveOptions, context: RunContext) -> list[Solver]:
    """Go through all ways to place frames; return the solvers that could be asked."""
    if not options.ignore_header_wcs:
        _use_headers(sky, options, context)
    solvers: list[Solver] = []
    if sky.unsolved():
        solvers = [solver for solver in make_solvers(options.solver) if solver.find().ok]
        context.say(
            "run_info_solvers", solvers=[solver.name for solver in solvers], frames=len(sky.unsolved())
        )
        match_all(sky, options, context, list(sky.solutions))
        if solvers and context.cluster is not None:
            from zemosaic_pipeline.cluster_solvers import ClusterSolvers

            sky.elsewhere = ClusterSolvers(context.cluster, options.solver, solvers, context.say)
        for solver in solvers:
            _solve_by_pointing(sky, solver, options, context)
            if solver.name == BUILT_IN:
                search_further(sky, solver, options, context)
            if sky.elsewhere is not None:
                sky.elsewhere.forget()
            match_all(sky, options, context, list(sky.solutions))
        if solvers:
            _believe_unconfirmed(sky, solvers, options, context)
            search_wrong_scales(sky, solvers, options, context)
            search_everywhere(sky, solvers, options, context)
            _believe_unconfirmed(sky, solvers, options, context)
        elif options.solver.method.upper() == "NONE":
            _place_by_hint(sky, options, context)
    return solvers


def _finish(
    sky: KnownSky, solvers: Sequence[Solver], options: SolveOptions, context: RunContext
) -> list[SolvedFrame]:
    for index, (frame, _) in sky.frames.items():
        if index in sky.solutions:
            continue
        path = str(frame.info.path)
        if index in sky.lost:
            context.leave_out(path, PHASE, sky.lost[index].key, **sky.lost[index].values)
        elif solvers or options.solver.method.upper() == "NONE":
            key = "frame_unsolved" if solvers else "frame_not_connected"
            context.leave_out(path, PHASE, key, attempts=list(_attempts(sky.attempts[index])))
        else:
            context.leave_out(path, PHASE, "frame_no_solver")
    if reused := sky.memory.reused & set(sky.solutions):
        context.say("run_info_solutions_reused", frames=len(reused))
    counts: dict[str, int] = defaultdict(int)
    for solution in sky.solutions.values():
        counts[solution.method] += 1
    context.detail(solved_by_tally={f"method.{method}": n for method, n in counts.items()})
    if not sky.solutions:
        raise RunFailed(
            "run_error_nothing_solved" if solvers else "run_error_no_solver",
            "no frame has a place in the sky: install a plate solver, or set solver_method=NONE for an approximate one",
        )
    context.say("run_info_solved", frames=len(sky.solutions), by=dict(counts))
    return [SolvedFrame(*sky.frames[index], sky.solutions[index]) for index in sorted(sky.solutions)]
