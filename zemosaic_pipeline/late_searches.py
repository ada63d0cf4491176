"""Searches far and wide with the built-in solver, of which a run makes a few only, when headers led nowhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from zemosaic_io.solvers.base import Solver
from zemosaic_io.wcs_read import linear_scale_arcsec
from zemosaic_pipeline.context import RunContext
from zemosaic_pipeline.frame_matching import KnownSky, header_errors, match_all, moved_by
from zemosaic_pipeline.plan import SolveOptions
from zemosaic_pipeline.position_search import (
    MAX_NEAR_LOOKS,
    NEAR_DEG,
    Place,
    anywhere,
    near_only,
    wide_readings,
)
from zemosaic_pipeline.solve_one_frame import pointings_of, solve_frame, told_place
from zemosaic_pipeline.solver_answers import BUILT_IN

__all__ = ["search_everywhere", "search_further", "search_wrong_scales"]

# Frames looked for far around although others with their stars were not found there, in a run.
MAX_FURTHER = 12
# Lost frames that are looked for around the first one that was found.
_MAX_AROUND = 5
# Frames without a place that are worth a search of the whole sky, as a share of all.
LOST_SHARE = 0.25

# Scales of header and sky that differ by less are one: solvers allow for it everywhere.
_SAME_SCALE = 0.04


def search_further(sky: KnownSky, solver: Solver, options: SolveOptions, context: RunContext) -> None:
    """Look for more frames of the pointings of which none was found, though others with their stars were in vain.

    Where nothing of a mount's night was found, in turns one frame of each pointing far around, the one with the most
    stars first, `MAX_FURTHER` in a run. What was found tells the error of that mount's headers: then the others are
    looked for there alone, which costs little, and no more where the headers are right, because these frames are poor.
    """
    match_all(sky, options, context, list(sky.solutions))
    waiting: list[list[int]] = []
    for members in pointings_of(sky, sky.frames):
        if not any(i in sky.solutions or i in sky.unconfirmed or i in sky.lost for i in members):
            hinted = [i for i in members if sky.hint(i) is not None]
            waiting.append([i for i in hinted if i not in sky.looked_far])
    n_far = 0
    errors = header_errors(sky)
    while any(todo and (n_far < MAX_FURTHER or sky.mount_of(todo[0]) in errors) for todo in waiting):
        for todo in waiting:
            context.cancel.check()
            if not todo:
                continue
            error = errors.get(sky.mount_of(todo[0]))
            places: dict[int, Place] = {}
            if any(i in sky.solutions for i in todo):
                todo.clear()
            elif error is not None:
                if math.hypot(*error) > NEAR_DEG:
                    places = {i: _moved(told_place(i, sky, options), error) for i in todo[:MAX_NEAR_LOOKS]}
                todo.clear()
            elif n_far < MAX_FURTHER:
                n_far += 1
                best = todo.pop(0)
                sky.looked_far.add(best)
                places = {best: told_place(best, sky, options)}
            if _find_one(places, sky, solver, options, context):
                errors = header_errors(sky)


def _find_one(
    places: Mapping[int, Place],
    sky: KnownSky,
    solver: Solver,
    options: SolveOptions,
    context: RunContext,
) -> bool:
    """Look for frames until one is found, and lay others on it; return whether one was."""
    for index, place in places.items():
        context.cancel.check()
        if solve_frame(index, sky, [solver], options, context, place):
            match_all(sky, options, context, [index])
            return True
    return False


def _moved(told: Place, error: tuple[float, float]) -> Place:
    """Return the neighbourhood of a place beside the one told, by degrees to the east and north."""
    assert told.ra_deg is not None
    assert told.dec_deg is not None
    ra_deg, dec_deg = moved_by((told.ra_deg, told.dec_deg), error)
    return near_only(replace(told, ra_deg=ra_deg, dec_deg=dec_deg))


def _kind(sky: KnownSky, index: int) -> tuple[str, tuple[int, int], float | None]:
    """Return what tells frames of one camera and telescope by their headers."""
    info = sky.frames[index][0].info
    return info.instrument, info.shape_hw, info.scale_arcsec


def search_wrong_scales(
    sky: KnownSky, solvers: Sequence[Solver], options: SolveOptions, context: RunContext
) -> None:
    """Look far around the places of headers whose scale is wrong, with the built-in solver.

    Where no frame of a camera and telescope has a place, one of them is looked for at any scale, the one with the most
    stars; where one has, the scale is known, and the best frame of every pointing that is left is looked for.
    """
    built_in = [solver for solver in solvers if solver.name == BUILT_IN]
    unsolved = [i for i in sky.unsolved() if sky.hint(i) is not None and i not in sky.unconfirmed]
    if not built_in or not unsolved:
        return
    best_of = [members[0] for members in pointings_of(sky, unsolved)]
    best_of.sort(key=lambda i: -sky.frames[i][1].n_stars)
    tried: set[tuple[str, tuple[int, int], float | None]] = set()
    for best in best_of:
        context.cancel.check()
        kind = _kind(sky, best)
        told_scale = sky.frames[best][0].info.scale_arcsec
        scale = _scale_found(sky, kind)
        if told_scale is None or best in sky.solutions or (scale is None and kind in tried):
            continue
        if scale is not None and abs(scale / told_scale - 1.0) < _SAME_SCALE:
            continue
        tried.add(kind)
        for place in wide_readings(told_place(best, sky, options), scale):
            if solve_frame(best, sky, built_in, options, context, place):
                match_all(sky, options, context, [best])
                break


def _scale_found(sky: KnownSky, kind: tuple[str, tuple[int, int], float | None]) -> float | None:
    """Return the median scale of the frames of a kind that have a place; None when none has."""
    found = [
        scale
        for index, solution in sky.solutions.items()
        if _kind(sky, index) == kind and (scale := linear_scale_arcsec(solution.wcs_cards)) is not None
    ]
    return sorted(found)[len(found) // 2] if found else None


def search_everywhere(
    sky: KnownSky, solvers: Sequence[Solver], options: SolveOptions, context: RunContext
) -> None:
    """Look for one frame in the whole sky, once per run; others are laid on it, or looked for around it.

    It is the one with the most stars of those that no header and no other frame leads to. A few frames that have a
    hint and match none of the others are poor frames, not lost ones.
    """
    unsolved = sorted(sky.unsolved(), key=lambda i: -sky.frames[i][1].n_stars)
    lost = [i for i in unsolved if sky.hint(i) is None]
    if not unsolved or (sky.solutions and not lost and len(unsolved) < LOST_SHARE * len(sky.frames)):
        return
    best = (lost or unsolved)[0]
    sky.unconfirmed.clear()
    info = sky.frames[best][0].info
    place = anywhere(info, options.solver.timeout_s)
    minutes = math.ceil(place.timeout_s * len(solvers) / 60.0)
    context.say("solve_whole_sky", path=str(info.path), frames=len(unsolved), minutes=minutes)
    if not solve_frame(best, sky, solvers, options, context, place):
        return
    match_all(sky, options, context, [best])
    around = sky.hint(best)
    assert around is not None
    for index in [i for i in sky.unsolved() if sky.hint(i) is None][:_MAX_AROUND]:
        context.cancel.check()
        told = told_place(index, sky, options)
        if solve_frame(
            index, sky, solvers, options, context, replace(told, ra_deg=around[0], dec_deg=around[1])
        ):
            match_all(sky, options, context, [index])
