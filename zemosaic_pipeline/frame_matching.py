"""Lay frames on solved neighbours by their stars; what is known so far of the places of all frames.

Rounds of matches spread solutions until no frame can be added. Every match is stored under what it follows from.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections import OrderedDict, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from zemosaic_core.errors import SkipItem
from zemosaic_core.frame_wcs import wcs_of
from zemosaic_core.sphere import separation_deg
from zemosaic_core.stars import StarList
from zemosaic_core.tan_fit import fit_tan
from zemosaic_io.solvers.base import SolveOutcome
from zemosaic_pipeline.context import RunContext
from zemosaic_pipeline.elsewhere import Elsewhere
from zemosaic_pipeline.frame_boundary import TRACEBACK
from zemosaic_pipeline.measure import STAR_COLUMNS
from zemosaic_pipeline.plan import SolveOptions
from zemosaic_pipeline.pointings import field_deg
from zemosaic_pipeline.position_search import NEAR_DEG
from zemosaic_pipeline.records import Frame, FrameMeasure, Solution
from zemosaic_pipeline.solve_memory import SolveMemory
from zemosaic_pipeline.star_matches import Match, match_of

if TYPE_CHECKING:
    from zemosaic_pipeline.cluster_solvers import ClusterSolvers

__all__ = ["KnownSky", "header_errors", "match_all", "moved_by"]

# Solved neighbours tried per frame and round; a frame that matches none of them waits for the next round.
NEIGHBOURS = 4
# Matches allow for scales that differ by less.
SAME_SCALE = 0.03
# Lists of stars in memory at a time.
KEPT_LISTS = 256

log = logging.getLogger(__name__)


# Night and camera.
Mount = tuple[str, str]


@dataclass
class KnownSky:
    """What is known so far: stars of every frame, solutions found, why frames could not even be tried.

    ``centres`` are those of the solutions: RA and Dec, degrees. ``unconfirmed`` are places that a solver told and no
    star of the catalogue spoke for or against, and whether they come from an earlier run; they are believed last.
    ``searched`` are the frames that the solver whose turn it is was asked about, ``looked_far`` those that the built-in
    one looked for in vain far around their headers' places. ``elsewhere`` asks solvers on the workers of a cluster, if
    there is one.
    """

    frames: dict[int, tuple[Frame, FrameMeasure]]
    stars: Mapping[int, StarList]
    memory: SolveMemory
    solutions: dict[int, Solution] = field(default_factory=dict)
    centres: dict[int, tuple[float, float]] = field(default_factory=dict)
    attempts: dict[int, list[SolveOutcome]] = field(default_factory=lambda: defaultdict(list))
    lost: dict[int, SkipItem] = field(default_factory=dict)
    keys: dict[int, str] = field(default_factory=dict)
    unconfirmed: dict[int, tuple[Solution, bool]] = field(default_factory=dict)
    searched: set[int] = field(default_factory=set)
    looked_far: set[int] = field(default_factory=set)
    alike: dict[tuple[int, int], bool] = field(default_factory=dict)
    elsewhere: ClusterSolvers | None = None

    @staticmethod
    def of(frames: Mapping[int, tuple[Frame, FrameMeasure]], memory: SolveMemory) -> KnownSky:
        """Return a sky of which nothing is known yet."""
        measures = {index: measure for index, (_, measure) in frames.items()}
        return KnownSky(dict(frames), _StarLists(measures), memory)

    def only(self, index: int) -> KnownSky:
        """Return a sky with this frame alone, of which nothing is known yet."""
        return KnownSky({index: self.frames[index]}, {index: self.stars[index]}, self.memory)

    def stars_key(self, index: int) -> str:
        """Return what names the stars of a frame."""
        if index not in self.keys:
            self.keys[index] = self.memory.stars_key(self.stars[index])
        return self.keys[index]

    def add(self, index: int, solution: Solution, *, remembered: bool = False) -> None:
        """Give a frame its place; ``remembered`` when an earlier run found it."""
        self.solutions[index] = solution
        height, width = self.frames[index][0].info.shape_hw
        ra, dec = wcs_of(solution.wcs_cards).all_pix2world((width - 1) / 2, (height - 1) / 2, 0)
        self.centres[index] = float(ra), float(dec)
        (self.memory.reused.add if remembered else self.memory.reused.discard)(index)

    def unsolved(self) -> list[int]:
        """Return the frames without a place."""
        return [index for index in self.frames if index not in self.solutions]

    def is_like(self, index: int, other: int, tolerance_px: float) -> bool:
        """Tell whether the stars of a frame are those of another one."""
        pair = index, other
        if pair not in self.alike:
            path = str(self.frames[index][0].info.path)
            match = match_of(
                (path, [(self.xy(other), self.width_px(index, other))], self.xy(index), tolerance_px)
            )
            self.alike[pair] = match is not None and not isinstance(match, SkipItem)
        return self.alike[pair]

    def xy(self, index: int) -> np.ndarray:
        """Return the stars of a frame (n, 2), px."""
        stars = self.stars[index]
        return np.column_stack([stars.x, stars.y]).astype(float)

    def width_px(self, index: int, other: int) -> float:
        """Return how many pixels of another frame one of a frame is wide, by their headers; 1 where these do not tell.

        Of one telescope it is 1, though what its headers tell may be wrong.
        """
        own, others = (self.frames[i][0].info.scale_arcsec for i in (index, other))
        width = own / others if own and others else 1.0
        return width if abs(width - 1.0) > SAME_SCALE else 1.0

    def mount_of(self, index: int) -> Mount:
        """Return what frames have in common whose headers are wrong by the same: night and camera."""
        info = self.frames[index][0].info
        return info.night, info.instrument

    def hint(self, index: int) -> tuple[float, float] | None:
        """Return RA and Dec of the centre, degrees: of the solution, else of the header; None when nothing is known."""
        if index in self.centres:
            return self.centres[index]
        info = self.frames[index][0].info
        return None if info.ra_deg is None or info.dec_deg is None else (info.ra_deg, info.dec_deg)


def header_errors(sky: KnownSky) -> dict[Mount, tuple[float, float]]:
    """Return how far from the places that their headers tell the frames of a mount were found.

    Degrees to the east and to the north, the median of each.
    """
    found: dict[Mount, list[tuple[float, float]]] = defaultdict(list)
    for index, (ra, dec) in sky.centres.items():
        info = sky.frames[index][0].info
        if info.ra_deg is not None and info.dec_deg is not None:
            east = ((ra - info.ra_deg + 180.0) % 360.0 - 180.0) * math.cos(math.radians(info.dec_deg))
            found[sky.mount_of(index)].append((east, dec - info.dec_deg))
    return {
        mount: (
            statistics.median(east for east, _ in errors),
            statistics.median(north for _, north in errors),
        )
        for mount, errors in found.items()
    }


def moved_by(radec_deg: tuple[float, float], error_deg: tuple[float, float]) -> tuple[float, float]:
    """Return the place beside one, by degrees to the east and to the north."""
    ra, dec = radec_deg
    east, north = error_deg
    ra = (ra + east / max(math.cos(math.radians(dec)), 0.01)) % 360.0
    return ra, min(max(dec + north, -90.0), 90.0)


class _StarLists(Mapping[int, StarList]):
    """The stars of every frame, read where they are asked for; those asked for last are kept.

    Neighbours in time are asked for together. A list takes 20 kB, and five go into a task: too much for thousands.
    """

    def __init__(self, measures: Mapping[int, FrameMeasure]) -> None:
        self._measures = measures
        self._kept: OrderedDict[int, StarList] = OrderedDict()

    def __getitem__(self, index: int) -> StarList:
        if index not in self._kept:
            self._kept[index] = StarList(**self._measures[index].columns(*STAR_COLUMNS))
            if len(self._kept) > KEPT_LISTS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(index)
        return self._kept[index]

    def __iter__(self) -> Iterator[int]:
        return iter(self._measures)

    def __len__(self) -> int:
        return len(self._measures)


class _Tasks(Sequence[Any]):
    """What a process is given for each waiting frame, put together when it is its turn."""

    def __init__(
        self, sky: KnownSky, todo: Sequence[int], chosen: Mapping[int, Sequence[int]], tolerance_px: float
    ) -> None:
        self._sky = sky
        self._todo = todo
        self._chosen = chosen
        self._tolerance_px = tolerance_px

    def __len__(self) -> int:
        return len(self._todo)

    def __getitem__(self, position: Any) -> Any:
        index, sky = self._todo[position], self._sky
        neighbours = [(sky.xy(other), sky.width_px(index, other)) for other in self._chosen[index]]
        return str(sky.frames[index][0].info.path), neighbours, sky.xy(index), self._tolerance_px


@dataclass(frozen=True)
class _Places:
    """Solved frames as arrays, so that each of thousands of frames finds its neighbours in no time."""

    index: np.ndarray
    radec: np.ndarray
    night: np.ndarray
    errors: Mapping[Mount, tuple[float, float]]

    @staticmethod
    def of(sky: KnownSky, solved: Sequence[int]) -> _Places:
        hints = [sky.hint(i) for i in solved]
        radec = [(math.nan, math.nan) if hint is None else hint for hint in hints]
        nights = [sky.frames[i][0].info.night for i in solved]
        return _Places(np.array(solved), np.array(radec, dtype=float), np.array(nights), header_errors(sky))

    def nearest(self, sky: KnownSky, index: int) -> list[int]:
        """Return the solved frames most likely to share stars: near in the sky, then near in time."""
        hint = sky.hint(index)
        info = sky.frames[index][0].info
        error = self.errors.get(sky.mount_of(index))
        if hint is not None and error is not None and math.hypot(*error) > NEAR_DEG:
            hint = moved_by(hint, error)
        apart = np.zeros(len(self.index))
        if hint is not None:
            apart = np.nan_to_num(separation_deg(*hint, self.radec[:, 0], self.radec[:, 1]))
        # Hints of one target differ by less than the mount's error: those differences say nothing.
        coarse = np.rint(apart / (0.3 * field_deg(info)))
        order = np.lexsort((np.abs(self.index - index), self.night != info.night, coarse))
        return self.index[order[:NEIGHBOURS]].tolist()


def _match_round(
    sky: KnownSky,
    waiting: Sequence[int],
    references: Sequence[int],
    options: SolveOptions,
    context: RunContext,
) -> None:
    """Try to lay the waiting frames on solved ones."""
    places = _Places.of(sky, references)
    chosen = {index: places.nearest(sky, index) for index in waiting}
    keys: dict[int, str] = {}
    found: dict[int, Solution | None] = {}
    for index, others in chosen.items():
        neighbours = [
            (sky.stars_key(other), sky.solutions[other], sky.width_px(index, other)) for other in others
        ]
        shape_hw = sky.frames[index][0].info.shape_hw
        keys[index] = sky.memory.match_key(sky.stars_key(index), shape_hw, neighbours, options.tolerance_px)
        known, solution = sky.memory.solution(keys[index], shape_hw)
        if known:
            found[index] = solution
    todo = [index for index in waiting if index not in found]
    remembered = set(found)
    tasks = _Tasks(sky, todo, chosen, options.tolerance_px)
    for position, match in context.map(
        match_of, tasks, name_of=lambda task: task[0], elsewhere=Elsewhere(match_of)
    ):
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


def _solution_of_match(sky: KnownSky, index: int, neighbours: Sequence[int], match: Match) -> Solution:
    which, reference_xy, xy, rms = match
    reference = neighbours[which]
    known = sky.solutions[reference]
    ra, dec = wcs_of(known.wcs_cards).all_pix2world(reference_xy[:, 0], reference_xy[:, 1], 0)
    cards, _ = fit_tan(ra, dec, xy[:, 0], xy[:, 1], sky.frames[index][0].info.shape_hw)
    return Solution(cards, "star_match", rms, len(xy), known.approximate, confirmed=known.confirmed)


def match_all(
    sky: KnownSky,
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
