"""Second half of phase 1: give every frame its place in the sky.

The header's own WCS first; then one frame per pointing is solved, and the others are laid on solved neighbours
by their stars; what matches none is solved on its own. Nothing is written to the input files.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from astropy.wcs import WCS
from scipy.spatial import cKDTree

from zemosaic_core.cfa import luminance
from zemosaic_core.errors import RunFailed
from zemosaic_core.sphere import separation_deg
from zemosaic_core.star_patterns import find_similarity
from zemosaic_core.stars import StarList
from zemosaic_core.tan_fit import fit_tan
from zemosaic_core.transforms import fit_transform
from zemosaic_io.fits_read import read_window
from zemosaic_io.headers import FrameInfo
from zemosaic_io.manifest import Manifest
from zemosaic_io.solvers.base import SolveOutcome, Solver, SolveRequest
from zemosaic_io.solvers.chain import make_solvers, solve_with_chain
from zemosaic_io.solvers.embedded import check_wcs
from zemosaic_pipeline.context import RunContext
from zemosaic_pipeline.frame_wcs import UnusableWcs, build_frame_wcs
from zemosaic_pipeline.measure import STAR_COLUMNS
from zemosaic_pipeline.phase1_prepare import Prepared
from zemosaic_pipeline.plan import SolveOptions
from zemosaic_pipeline.pointings import field_deg, pointing_labels
from zemosaic_pipeline.position_search import Place, anywhere, other_readings
from zemosaic_pipeline.records import Frame, FrameMeasure, Solution, SolvedFrame

__all__ = ["SOLVE_VERSION", "image_provider", "match_frame", "run"]

SOLVE_VERSION = 3
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
    """What is known so far: stars of every frame, solutions found."""

    frames: dict[int, tuple[Frame, FrameMeasure]]
    stars: dict[int, StarList]
    solutions: dict[int, Solution] = field(default_factory=dict)
    wcs: dict[int, WCS] = field(default_factory=dict)
    attempts: dict[int, list[SolveOutcome]] = field(default_factory=lambda: defaultdict(list))

    def add(self, index: int, solution: Solution) -> None:
        self.solutions[index] = solution
        self.wcs[index] = WCS(solution.wcs_cards)

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


def _is_usable(cards: Mapping[str, Any], frame: Frame) -> bool:
    try:
        build_frame_wcs(cards, frame.info.shape_hw)
    except UnusableWcs as error:
        log.warning("%s: a WCS found for it is not used: %s", frame.info.path, error)
        return False
    return True


def match_frame(
    task: tuple[list[np.ndarray], np.ndarray, float],
) -> tuple[int, np.ndarray, np.ndarray, float] | None:
    """Lay a frame's stars on the first neighbour that fits; runs in a worker process.

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


def _use_headers(sky: _Sky, options: SolveOptions, context: RunContext) -> None:
    """Take the WCS of the headers: what the catalogue confirms first, what nothing speaks for last.

    Headers are copied from stack to frame and from night to night. So a frame whose header is not confirmed is laid
    on others by its stars where that can be done.
    """
    unconfirmed: dict[int, Solution] = {}
    doubtful: list[int] = []
    for index, (frame, _) in sky.frames.items():
        cards = frame.info.wcs_cards
        if cards is None or not _is_usable(cards, frame):
            continue
        check = check_wcs(cards, sky.stars[index], frame.info.shape_hw)
        solution = Solution(dict(cards), "header", check.rms_px, check.n_matched, confirmed=check.confirmed)
        if check.confirmed:
            sky.add(index, solution)
            continue
        unconfirmed[index] = solution
        if check.contradicts:
            doubtful.append(index)
    _match_all(sky, options, context, list(sky.solutions), unconfirmed)
    _settle_doubts(sky, doubtful, unconfirmed, options, context)
    for index, solution in unconfirmed.items():
        if index not in sky.solutions:
            sky.add(index, solution)


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
        found = _Sky({best: sky.frames[best]}, {best: sky.stars[best]})
        if _solve(best, found, solver, near, context):
            context.say("wcs_header_wrong", "WARN", frames=len(members), example=example)
            sky.add(best, found.solutions[best])
            _match_all(sky, options, context, [best], unconfirmed)
            continue
        context.say("wcs_header_unconfirmed", "WARN", frames=len(members), example=example)


def image_provider(info: FrameInfo) -> Any:
    """Return what gives a solver the frame's luminance (h, w) and the position of its first pixel."""

    def provide() -> tuple[np.ndarray, tuple[float, float]]:
        data = read_window(info, 0, info.shape_hw[0])
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
    frame, _ = sky.frames[index]
    place = place or _told_place(index, sky, options)
    request = SolveRequest(
        path=frame.info.path,
        shape_hw=frame.info.shape_hw,
        ra_deg=place.ra_deg,
        dec_deg=place.dec_deg,
        scale_arcsec=place.scale_arcsec,
        radius_deg=place.radius_deg,
        stars=sky.stars[index],
        image_provider=image_provider(frame.info),
        work_dir=context.work_dir,
        timeout_s=place.timeout_s,
    )
    outcomes = solve_with_chain(request, solvers, context.cancel)
    sky.attempts[index].extend(outcomes)
    last = outcomes[-1] if outcomes else None
    if last is None or not last.ok or not _is_usable(last.wcs_cards, frame):
        return False
    check = check_wcs(last.wcs_cards, sky.stars[index], frame.info.shape_hw)
    if check.contradicts:
        context.say(
            "wcs_solver_wrong", "WARN", path=str(frame.info.path), solver=last.solver, matched=check.n_matched
        )
        return False
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
    sky.add(
        index, Solution(cards, last.solver, rms, matched, seconds=last.seconds, confirmed=check.confirmed)
    )
    return True


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
) -> int:
    """Try to lay the waiting frames on solved ones; return how many were."""
    todo = list(waiting)
    places = _Places.of(sky, references)
    chosen = [places.nearest(sky, index) for index in todo]
    tasks = [
        ([sky.xy(other) for other in others], sky.xy(index), options.tolerance_px)
        for index, others in zip(todo, chosen, strict=True)
    ]
    matched = 0
    for position, result in context.map(match_frame, tasks):
        if result is None:
            continue
        which, reference_xy, xy, rms = result
        reference = chosen[position][which]
        index = todo[position]
        ra, dec = sky.wcs[reference].all_pix2world(reference_xy[:, 0], reference_xy[:, 1], 0)
        cards, _ = fit_tan(ra, dec, xy[:, 0], xy[:, 1], sky.frames[index][0].info.shape_hw)
        known = sky.solutions[reference]
        sky.add(
            index, Solution(cards, "star_match", rms, len(xy), known.approximate, confirmed=known.confirmed)
        )
        matched += 1
        context.progress(len(sky.solutions), len(sky.frames), sky.frames[index][0].name)
    return matched


def _match_all(
    sky: _Sky,
    options: SolveOptions,
    context: RunContext,
    fresh: Sequence[int],
    among: Collection[int] | None = None,
) -> None:
    """Spread solutions by star matching until no frame (of ``among``, or of all) can be added."""
    references = list(fresh)
    while references:
        waiting = [i for i in sky.unsolved() if among is None or i in among]
        if not waiting:
            return
        before = set(sky.solutions)
        _match_round(sky, waiting, references, options, context)
        references = [index for index in sky.solutions if index not in before]


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


def _stored_solution(
    manifest: Manifest, info: FrameInfo, measure: FrameMeasure, options: SolveOptions
) -> tuple[str, Solution | None]:
    # The header's WCS is part of it: another program may have solved the same pixels anew since.
    key = manifest.key(
        "solution", SOLVE_VERSION, measure.content_key, info.wcs_cards, options.solver.method,
        options.ignore_header_wcs, options.tolerance_px,
    )  # fmt: skip
    record = manifest.get(key)
    if record is None:
        return key, None
    try:
        return key, Solution(**{**record, "attempts": tuple(record["attempts"])})
    except (TypeError, KeyError):
        return key, None


def run(
    prepared: Prepared, options: SolveOptions, context: RunContext, manifest: Manifest
) -> list[SolvedFrame]:
    """Return the frames whose place is known; the others are left out with every attempt's outcome.

    Raises
    ------
    RunFailed
        No frame could be placed.
    """
    frames = {frame.index: (frame, measure) for frame, measure in prepared.frames}
    sky = _Sky(frames, {index: _star_list(measure) for index, (_, measure) in frames.items()})
    keys: dict[int, str] = {}
    for index, (frame, measure) in frames.items():
        keys[index], stored = _stored_solution(manifest, frame.info, measure, options)
        if stored is not None:
            sky.add(index, stored)
    if sky.solutions:
        context.say("run_info_solutions_reused", frames=len(sky.solutions))
    fresh = _Sky({i: frames[i] for i in sky.unsolved()}, {i: sky.stars[i] for i in sky.unsolved()})
    if not options.ignore_header_wcs:
        _use_headers(fresh, options, context)
        for index, solution in fresh.solutions.items():
            sky.add(index, solution)
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
    return _finish(sky, solvers, options, keys, context, manifest)


def _finish(
    sky: _Sky,
    solvers: Sequence[Solver],
    options: SolveOptions,
    keys: dict[int, str],
    context: RunContext,
    manifest: Manifest,
) -> list[SolvedFrame]:
    for index, (frame, _) in sky.frames.items():
        if index in sky.solutions:
            manifest.put(keys[index], asdict(sky.solutions[index]))
            continue
        if solvers or options.solver.method.upper() == "NONE":
            key = "frame_unsolved" if solvers else "frame_not_connected"
            context.leave_out(str(frame.info.path), PHASE, key, attempts=list(_attempts(sky.attempts[index])))
        else:
            context.leave_out(str(frame.info.path), PHASE, "frame_no_solver")
    manifest.save()
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
