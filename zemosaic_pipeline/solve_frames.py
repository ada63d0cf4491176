"""Second half of phase 1: give every frame its place in the sky.

The header's own WCS first; then one frame per pointing is solved, and the others are laid on solved neighbours
by their stars; what matches none is solved on its own. Nothing is written to the input files.

Every run goes this way from its beginning; what single steps gave before comes from `SolveMemory`.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from astropy.wcs import WCS
from scipy.spatial import cKDTree

from zemosaic_core.cfa import luminance
from zemosaic_core.errors import RunFailed, SkipItem
from zemosaic_core.plate_solve import WcsCheck
from zemosaic_core.sphere import separation_deg
from zemosaic_core.star_patterns import find_similarity
from zemosaic_core.stars import StarList
from zemosaic_core.tan_fit import fit_tan
from zemosaic_core.transforms import fit_transform
from zemosaic_io.fits_read import read_window
from zemosaic_io.frame_identity import is_as_surveyed, locate_again
from zemosaic_io.headers import FrameInfo
from zemosaic_io.manifest import Manifest
from zemosaic_io.solvers.base import SolveOutcome, Solver, SolveRequest
from zemosaic_io.solvers.chain import make_solvers, solve_with_chain
from zemosaic_io.solvers.embedded import check_wcs
from zemosaic_pipeline.context import RunContext
from zemosaic_pipeline.frame_boundary import TRACEBACK, result_or_skip
from zemosaic_pipeline.frame_wcs import UnusableWcs, build_frame_wcs
from zemosaic_pipeline.measure import STAR_COLUMNS
from zemosaic_pipeline.phase1_prepare import Prepared
from zemosaic_pipeline.plan import SolveOptions
from zemosaic_pipeline.pointings import field_deg, pointing_labels
from zemosaic_pipeline.position_search import Place, anywhere, other_readings
from zemosaic_pipeline.records import Frame, FrameMeasure, Solution, SolvedFrame
from zemosaic_pipeline.solve_memory import HeaderCheck, SolveMemory

__all__ = ["image_provider", "match_frame", "run"]

PHASE = "phase1_prepare"
# Solved neighbours tried per frame and round; a frame that matches none of them waits for the next round.
NEIGHBOURS = 4
PAIR_RADIUS_PX = 2.5
MIN_PAIRS = 8
# When this many frames of a pointing failed and none was solved, the rest are not sent through slow solvers.
MAX_FAILED = 5

# Frames without a place that are worth a search of the whole sky, as a share of all.
LOST_SHARE = 0.25

log = logging.getLogger(__name__)


@dataclass
class _Sky:
    """What is known so far: stars of every frame, solutions found, why frames could not even be tried."""

    frames: dict[int, tuple[Frame, FrameMeasure]]
    stars: dict[int, StarList]
    memory: SolveMemory
    solutions: dict[int, Solution] = field(default_factory=dict)
    wcs: dict[int, WCS] = field(default_factory=dict)
    attempts: dict[int, list[SolveOutcome]] = field(default_factory=lambda: defaultdict(list))
    lost: dict[int, SkipItem] = field(default_factory=dict)

    @staticmethod
    def of(frames: Mapping[int, tuple[Frame, FrameMeasure]], memory: SolveMemory) -> _Sky:
        stars = {index: _star_list(measure) for index, (_, measure) in frames.items()}
        return _Sky(dict(frames), stars, memory)

    def only(self, index: int) -> _Sky:
        """Return a sky with this frame alone, of which nothing is known yet."""
        return _Sky({index: self.frames[index]}, {index: self.stars[index]}, self.memory)

    @cached_property
    def stars_key(self) -> dict[int, str]:
        return {index: self.memory.stars_key(stars) for index, stars in self.stars.items()}

    def add(self, index: int, solution: Solution, *, remembered: bool = False) -> None:
        self.solutions[index] = solution
        self.wcs[index] = WCS(solution.wcs_cards)
        (self.memory.reused.add if remembered else self.memory.reused.discard)(index)

    def unsolved(self) -> list[int]:
        return [index for index in self.frames if index not in self.solutions]

    def xy(self, index: int) -> np.ndarray:
        stars = self.stars[index]
        return np.column_stack([stars.x, stars.y]).astype(float)

    def hint(self, index: int) -> tuple[float, float] | None:
        if index in self.wcs:
            height, width = self.frames[index][0].info.shape_hw
            ra, dec = self.wcs[index].all_pix2world((width - 1) / 2, (height - 1) / 2, 0)
            return float(ra), float(dec)
        info = self.frames[index][0].info
        return None if info.ra_deg is None or info.dec_deg is None else (info.ra_deg, info.dec_deg)


Match = tuple[int, np.ndarray, np.ndarray, float]


def _match_of(task: tuple[str, list[np.ndarray], np.ndarray, float]) -> Match | SkipItem | None:
    """Match the frame with the path given; runs in a worker process."""
    path, *stars = task
    return result_or_skip(path, match_frame, tuple(stars))


def match_frame(task: tuple[list[np.ndarray], np.ndarray, float]) -> Match | None:
    """Lay a frame's stars on the first neighbour that fits.

    Parameters
    ----------
    task : tuple
        Star positions (n, 2) of the solved neighbours, of the frame, and the largest residual allowed (px).

    Returns
    -------
    tuple or None
        Which neighbour, positions of the paired stars in it and in the frame, residual in px.
    """
    neighbours, xy, tolerance_px = task
    for which, reference in enumerate(neighbours):
        found = find_similarity(reference, xy)
        if found is None:
            continue
        tree = cKDTree(reference)
        distance, nearest = tree.query(found.apply(xy), distance_upper_bound=PAIR_RADIUS_PX)
        paired = np.isfinite(distance)
        if np.count_nonzero(paired) < MIN_PAIRS:
            continue
        fit = fit_transform(xy[paired], reference[nearest[paired]], "affine")
        good = np.flatnonzero(paired)[fit.keep]
        if fit.rms_px <= tolerance_px and len(good) >= MIN_PAIRS:
            return which, reference[nearest[good]], xy[good], fit.rms_px
    return None


def _star_list(measure: FrameMeasure) -> StarList:
    arrays = measure.arrays()
    return StarList(**{column: arrays[column] for column in STAR_COLUMNS})


def _pointings(sky: _Sky, indices: Iterable[int]) -> list[list[int]]:
    """Bring frames together that the mount says point alike, richest star lists first."""
    members: dict[int, list[int]] = defaultdict(list)
    indices = list(indices)
    for index, label in zip(indices, pointing_labels([sky.frames[i][0].info for i in indices]), strict=True):
        members[label].append(index)
    return [sorted(group, key=lambda i: -sky.frames[i][1].n_stars) for group in members.values()]


def _check(sky: _Sky, index: int, cards: Mapping[str, Any]) -> WcsCheck:
    """Hold a WCS against what a run will do with it and against the catalogue.

    Raises
    ------
    SkipItem
        It cannot be used.
    """
    frame, _ = sky.frames[index]
    shape_hw = frame.info.shape_hw
    try:
        build_frame_wcs(cards, shape_hw)
    except UnusableWcs as error:
        raise SkipItem("wcs_unusable", f"{frame.info.path}: {error}", path=str(frame.info.path)) from error
    return check_wcs(cards, sky.stars[index], shape_hw, epoch=frame.info.epoch)


def _use_headers(sky: _Sky, options: SolveOptions, context: RunContext) -> None:
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
        key = sky.memory.header_key(sky.stars_key[index], cards, frame.info.shape_hw)
        known = sky.memory.header_check(key)
        check = known
        if check is None:
            found = result_or_skip(frame.info.path, _check, sky, index, cards)
            if isinstance(found, SkipItem):
                log.warning("the WCS of its header is not used: %s", found)
                continue
            check = HeaderCheck(
                float(found.rms_px), int(found.n_matched), bool(found.confirmed), bool(found.contradicts)
            )
            sky.memory.keep_check(key, check)
        solution = Solution(dict(cards), "header", check.rms_px, check.n_matched, confirmed=check.confirmed)
        if known is not None:
            remembered.add(index)
        if check.confirmed:
            sky.add(index, solution, remembered=known is not None)
            continue
        unconfirmed[index] = solution
        if check.contradicts:
            doubtful.append(index)
    _match_all(sky, options, context, list(sky.solutions), unconfirmed)
    _settle_doubts(sky, doubtful, unconfirmed, options, context)
    for index, solution in unconfirmed.items():
        if index not in sky.solutions:
            sky.add(index, solution, remembered=index in remembered)


def _settle_doubts(
    sky: _Sky,
    doubtful: Sequence[int],
    unconfirmed: Mapping[int, Solution],
    options: SolveOptions,
    context: RunContext,
) -> None:
    """Let the built-in solver look at one frame of each pointing whose header the catalogue speaks against.

    Where it finds another place, the headers of that pointing are wrong, and all frames without a confirmed place are
    laid on that frame. Where it finds none, the catalogue may simply not know these stars: the headers are kept, and
    the run says so.
    """
    solver = make_solvers(replace(options.solver, method="EMBEDDED"))
    radius_deg = min(1.0, options.solver.search_radius_deg)
    near = replace(options, solver=replace(options.solver, search_radius_deg=radius_deg))
    for pointing in sorted(_pointings(sky, doubtful), key=len, reverse=True):
        members = [index for index in pointing if index not in sky.solutions]
        if not members:
            continue
        best, example = members[0], sky.frames[members[0]][0].name
        alone = sky.only(best)
        if _solve(best, alone, solver, near, context):
            context.say("wcs_header_wrong", "WARN", frames=len(members), example=example)
            sky.add(best, alone.solutions[best], remembered=best in sky.memory.reused)
            _match_all(sky, options, context, [best], unconfirmed)
            continue
        context.say("wcs_header_unconfirmed", "WARN", frames=len(members), example=example)


def image_provider(info: FrameInfo, row_sums: np.ndarray | None = None) -> Any:
    """Return what gives a solver the frame's luminance (h, w) and the position of its first pixel.

    With ``row_sums`` the pixels have to be those that were measured.
    """

    def provide() -> tuple[np.ndarray, tuple[float, float]]:
        data = read_window(info, 0, info.shape_hw[0], sums=row_sums)
        if info.kind == "cfa":
            return luminance(data), (0.5, 0.5)
        return np.asarray(data if data.ndim == 2 else data.mean(axis=0), dtype=np.float32), (0.0, 0.0)

    return provide


def _told_place(index: int, sky: _Sky, options: SolveOptions) -> Place:
    """Return where the header says that a frame lies."""
    ra, dec = sky.hint(index) or (None, None)
    scale = sky.frames[index][0].info.scale_arcsec
    return Place(ra, dec, scale, options.solver.search_radius_deg, options.solver.timeout_s)


def _solve(
    index: int,
    sky: _Sky,
    solvers: Sequence[Solver],
    options: SolveOptions,
    context: RunContext,
    place: Place | None = None,
) -> bool:
    """Ask the solvers for one frame; return whether it has a place now."""
    frame, measure = sky.frames[index]
    place = place or _told_place(index, sky, options)
    key = sky.memory.solver_key(frame, measure, sky.stars_key[index], place, solvers, options)
    known, solution = sky.memory.solution(key)
    if not known:
        found = result_or_skip(frame.info.path, _ask_solvers, index, sky, solvers, place, context)
        if isinstance(found, SkipItem):
            log.warning("not solved: %s %s", found, found.values.get(TRACEBACK, ""))
            sky.lost[index] = found
        else:
            solution = found
            if solution is not None:
                # What failed is tried again: the next time a program may answer, or in time.
                sky.memory.keep_solution(key, solution)
    if solution is None:
        return False
    sky.add(index, solution, remembered=known)
    return True


def _ask_solvers(
    index: int, sky: _Sky, solvers: Sequence[Solver], place: Place, context: RunContext
) -> Solution | None:
    """Return what the solvers find, after the stars of the frame were asked about it.

    Raises
    ------
    SkipItem
        The file cannot be read any more, or holds other pixels than those measured.
    """
    frame, measure = sky.frames[index]
    request = SolveRequest(
        path=frame.info.path,
        shape_hw=frame.info.shape_hw,
        ra_deg=place.ra_deg,
        dec_deg=place.dec_deg,
        scale_arcsec=place.scale_arcsec,
        radius_deg=place.radius_deg,
        stars=sky.stars[index],
        image_provider=image_provider(frame.info, measure.arrays()["row_sums"]),
        work_dir=context.work_dir,
        timeout_s=place.timeout_s,
        epoch=frame.info.epoch,
    )
    outcomes = solve_with_chain(request, solvers, context.cancel)
    sky.attempts[index].extend(outcomes)
    last = outcomes[-1] if outcomes else None
    if last is None or not last.ok:
        return None
    if last.solver != "EMBEDDED" and not is_as_surveyed(frame.info):
        # The other program may have read the file itself.
        locate_again(frame.info, measure.content_key)
    check = _check(sky, index, last.wcs_cards)
    if check.contradicts:
        context.say(
            "wcs_solver_wrong", "WARN", path=str(frame.info.path), solver=last.solver, matched=check.n_matched
        )
        return None
    cards = dict(last.wcs_cards)
    if last.solver != "EMBEDDED" and check.confirmed and check.is_shifted:
        # Some releases of a solver are off by a constant part of a pixel; the stars say by how much.
        cards["CRPIX1"] += check.offset_px[0]
        cards["CRPIX2"] += check.offset_px[1]
        context.say(
            "wcs_solver_offset",
            "WARN",
            path=str(frame.info.path),
            solver=last.solver,
            offset_px=round(math.hypot(*check.offset_px), 2),
        )
    rms = check.rms_px if last.rms_px is None else last.rms_px
    matched = check.n_matched if last.n_matched is None else last.n_matched
    return Solution(cards, last.solver, rms, matched, seconds=last.seconds, confirmed=check.confirmed)


@dataclass(frozen=True)
class _Places:
    """Solved frames as arrays, so that each of thousands of frames finds its neighbours in no time."""

    index: np.ndarray
    radec: np.ndarray
    night: np.ndarray

    @staticmethod
    def of(sky: _Sky, solved: Sequence[int]) -> _Places:
        hints = [sky.hint(i) for i in solved]
        radec = [(math.nan, math.nan) if hint is None else hint for hint in hints]
        nights = [sky.frames[i][0].info.night for i in solved]
        return _Places(np.array(solved), np.array(radec, dtype=float), np.array(nights))

    def nearest(self, sky: _Sky, index: int) -> list[int]:
        """Return the solved frames most likely to share stars: near in the sky, then near in time."""
        hint = sky.hint(index)
        info = sky.frames[index][0].info
        apart = np.zeros(len(self.index))
        if hint is not None:
            apart = np.nan_to_num(separation_deg(*hint, self.radec[:, 0], self.radec[:, 1]))
        # Hints of one target differ by less than the mount's error: those differences say nothing.
        coarse = np.rint(apart / (0.3 * field_deg(info)))
        order = np.lexsort((np.abs(self.index - index), self.night != info.night, coarse))
        return self.index[order[:NEIGHBOURS]].tolist()


def _match_round(
    sky: _Sky, waiting: Sequence[int], references: Sequence[int], options: SolveOptions, context: RunContext
) -> None:
    """Try to lay the waiting frames on solved ones."""
    places = _Places.of(sky, references)
    chosen = {index: places.nearest(sky, index) for index in waiting}
    keys: dict[int, str] = {}
    found: dict[int, Solution | None] = {}
    for index, others in chosen.items():
        neighbours = [(sky.stars_key[other], sky.solutions[other]) for other in others]
        shape_hw = sky.frames[index][0].info.shape_hw
        keys[index] = sky.memory.match_key(sky.stars_key[index], shape_hw, neighbours, options.tolerance_px)
        known, solution = sky.memory.solution(keys[index])
        if known:
            found[index] = solution
    todo = [index for index in waiting if index not in found]
    remembered = set(found)
    tasks = [
        (
            str(sky.frames[index][0].info.path),
            [sky.xy(other) for other in chosen[index]],
            sky.xy(index),
            options.tolerance_px,
        )
        for index in todo
    ]
    for position, match in context.map(_match_of, tasks, name_of=lambda task: task[0]):
        index = todo[position]
        if isinstance(match, SkipItem):
            log.warning("not matched: %s %s", match, match.values.get(TRACEBACK, ""))
            continue
        found[index] = None if match is None else _solution_of_match(sky, index, chosen[index], match)
        sky.memory.keep_solution(keys[index], found[index])
        context.progress(len(sky.solutions) + len(found), len(sky.frames), sky.frames[index][0].name)
    # In the order of the frames, not in that of the answers.
    for index in waiting:
        solution = found.get(index)
        if solution is not None:
            sky.add(index, solution, remembered=index in remembered)


def _solution_of_match(sky: _Sky, index: int, neighbours: Sequence[int], match: Match) -> Solution:
    which, reference_xy, xy, rms = match
    reference = neighbours[which]
    ra, dec = sky.wcs[reference].all_pix2world(reference_xy[:, 0], reference_xy[:, 1], 0)
    cards, _ = fit_tan(ra, dec, xy[:, 0], xy[:, 1], sky.frames[index][0].info.shape_hw)
    known = sky.solutions[reference]
    return Solution(cards, "star_match", rms, len(xy), known.approximate, confirmed=known.confirmed)


def _match_all(
    sky: _Sky,
    options: SolveOptions,
    context: RunContext,
    fresh: Sequence[int],
    among: Collection[int] | None = None,
) -> None:
    """Spread solutions by star matching until no frame (of ``among``, or of all) can be added."""
    references = sorted(fresh)
    while references:
        waiting = [i for i in sky.unsolved() if among is None or i in among]
        if not waiting:
            return
        before = set(sky.solutions)
        _match_round(sky, waiting, references, options, context)
        references = sorted(set(sky.solutions) - before)


def _solve_by_pointing(
    sky: _Sky, solvers: Sequence[Solver], options: SolveOptions, context: RunContext
) -> None:
    """Solve the best frame of each pointing and lay the others on it; then whatever is left, on its own."""
    for members in _pointings(sky, sky.unsolved()):
        failed = 0
        for index in members:
            context.cancel.check()
            if index in sky.solutions or sky.hint(index) is None:
                # Frames that know nothing of their place wait for others: see `_search_everywhere`.
                continue
            if failed >= MAX_FAILED and not any(i in sky.solutions for i in members):
                break
            # The best frame of a pointing is looked for wherever its header may have meant.
            places = [_told_place(index, sky, options)]
            if failed == 0 and not any(i in sky.solutions for i in members):
                places += other_readings(places[0])
            if any(_solve(index, sky, solvers, options, context, place) for place in places):
                context.progress(len(sky.solutions), len(sky.frames), sky.frames[index][0].name)
                _match_all(sky, options, context, [index], members)
            else:
                failed += 1
    _match_all(sky, options, context, list(sky.solutions))
    _search_everywhere(sky, solvers, options, context)


def _search_everywhere(
    sky: _Sky, solvers: Sequence[Solver], options: SolveOptions, context: RunContext
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
    info = sky.frames[best][0].info
    context.say("solve_whole_sky", path=str(info.path), frames=len(unsolved))
    if not _solve(best, sky, solvers, options, context, anywhere(info, options.solver.timeout_s)):
        return
    _match_all(sky, options, context, [best])
    around = sky.hint(best)
    assert around is not None
    for index in [i for i in sky.unsolved() if sky.hint(i) is None][:MAX_FAILED]:
        context.cancel.check()
        told = _told_place(index, sky, options)
        if _solve(index, sky, solvers, options, context, replace(told, ra_deg=around[0], dec_deg=around[1])):
            _match_all(sky, options, context, [index])


def _place_by_hint(sky: _Sky, options: SolveOptions, context: RunContext) -> None:
    """Without any solver: one frame lies where the mount says, north up; the others follow by their stars."""
    for members in _pointings(sky, sky.unsolved()):
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
            _match_all(sky, options, context, [index])


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
    memory = SolveMemory(manifest)
    sky = _Sky.of({frame.index: (frame, measure) for frame, measure in prepared.frames}, memory)
    try:
        solvers = _find_places(sky, options, context)
    finally:
        # A stopped run keeps what it found.
        memory.save()
    return _finish(sky, solvers, options, context)


def _find_places(sky: _Sky, options: SolveOptions, context: RunContext) -> list[Solver]:
    """Go through all ways to place frames; return the solvers that could be asked."""
    if not options.ignore_header_wcs:
        _use_headers(sky, options, context)
    solvers: list[Solver] = []
    if sky.unsolved():
        solvers = [solver for solver in make_solvers(options.solver) if solver.find().ok]
        context.say(
            "run_info_solvers", solvers=[solver.name for solver in solvers], frames=len(sky.unsolved())
        )
        _match_all(sky, options, context, list(sky.solutions))
        if solvers:
            _solve_by_pointing(sky, solvers, options, context)
        elif options.solver.method.upper() == "NONE":
            _place_by_hint(sky, options, context)
    return solvers


def _finish(
    sky: _Sky, solvers: Sequence[Solver], options: SolveOptions, context: RunContext
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
