"""Steps of finding frames in the sky that were done before, each under everything it follows from.

A run always goes through all steps, in the same order as the first one; only their answers are taken from here. So
adding or removing frames gives what a fresh run gives: a match with a neighbour is stored under the stars and the
place of that neighbour, and does not outlive them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from zemosaic_core.frame_wcs import build_frame_wcs
from zemosaic_core.stars import StarList
from zemosaic_io.headers import FrameInfo
from zemosaic_io.manifest import Manifest, hash_key
from zemosaic_io.solvers.base import SolveOutcome, Solver
from zemosaic_pipeline.measure import STAR_COLUMNS
from zemosaic_pipeline.plan import SolveOptions
from zemosaic_pipeline.position_search import Place
from zemosaic_pipeline.records import Frame, FrameMeasure, Solution

__all__ = ["SOLVE_VERSION", "HeaderCheck", "SolveMemory"]

# Part of every key: raise it when the answer of a step changes.
SOLVE_VERSION = 5
# Of the solver's options, what does not change its answer, or must not be written anywhere.
_NOT_IN_KEYS = ("max_instances", "api_key", "timeout_s")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeaderCheck:
    """What the star catalogue says about the WCS of a header; see `zemosaic_core.plate_solve.WcsCheck`."""

    rms_px: float
    n_matched: int
    confirmed: bool
    contradicts: bool


class SolveMemory:
    """Answers by key, and how many frames got their place from them.

    Parameters
    ----------
    manifest : Manifest
        Where they are.
    run_id : str
        This run.
    resumes : str
        The run that was interrupted and that this one goes on with; '' when there is none. What solvers did not find
        counts within a run and the one that goes on with it: the next time a program may answer, or in time.
    """

    def __init__(self, manifest: Manifest, run_id: str = "", resumes: str = "") -> None:
        self._manifest = manifest
        self._run_id = run_id
        self._resumes = resumes
        self.reused: set[int] = set()

    def stars_key(self, stars: StarList) -> str:
        """Return what names a list of stars."""
        return hash_key(*(getattr(stars, column) for column in STAR_COLUMNS))

    def header_key(self, info: FrameInfo, stars_key: str, cards: Mapping[str, Any]) -> str:
        """Return the key of a `HeaderCheck`; stars stand elsewhere at another date."""
        return self._key("header", stars_key, cards, info.shape_hw, info.epoch)

    def solver_key(
        self,
        frame: Frame,
        measure: FrameMeasure,
        stars_key: str,
        place: Place,
        solvers: Sequence[Solver],
        options: SolveOptions,
    ) -> str:
        """Return the key of what solvers found: they may see stars and pixels of the frame."""
        chosen = {k: v for k, v in asdict(options.solver).items() if k not in _NOT_IN_KEYS}
        seen = (stars_key, measure.content_key, frame.info.shape_hw, frame.info.epoch, asdict(place))
        return self._key("solver", seen, [solver.name for solver in solvers], chosen)

    def match_key(
        self,
        stars_key: str,
        shape_hw: tuple[int, int],
        neighbours: Sequence[tuple[str, Solution, float]],
        tolerance_px: float,
    ) -> str:
        """Return the key of a match: the frame's stars, and stars, place and scale of every neighbour tried."""
        others = [(key, s.wcs_cards, s.approximate, s.confirmed, width) for key, s, width in neighbours]
        return self._key("match", stars_key, shape_hw, others, tolerance_px)

    def header_check(self, key: str) -> HeaderCheck | None:
        """Return a check made before."""
        record = self._manifest.get(key)
        return None if record is None else _check_of(record)

    def keep_check(self, key: str, check: HeaderCheck) -> None:
        """Remember a check."""
        self._keep(key, asdict(check))

    def solution(self, key: str, shape_hw: tuple[int, int]) -> tuple[bool, Solution | None]:
        """Return whether the step was done before, and the solution it gave; None when it gave none.

        A record that gives no place for a frame of ``shape_hw`` pixels does not exist.
        """
        record = self._manifest.get(key)
        if record is None:
            return False, None
        if record == {}:
            return True, None
        solution = _solution_of(record, shape_hw)
        return solution is not None, solution

    def keep_solution(self, key: str, solution: Solution | None) -> None:
        """Remember a solution, or that a step gives none."""
        self._keep(key, {} if solution is None else asdict(solution))

    def is_known(self, key: str) -> bool:
        """Whether a step was done before, whatever it gave, in this run or in the one that was interrupted."""
        if self._manifest.get(key) is not None:
            return True
        record = self._manifest.get(self._manifest.key("failure", key))
        return record is not None and record.get("run") in (self._run_id, self._resumes or self._run_id)

    def failure(self, key: str) -> list[SolveOutcome] | None:
        """Return the attempts of a step that found nothing in the run that was interrupted; None: go and ask."""
        record = self._manifest.get(self._manifest.key("failure", key))
        try:
            if record is None or record["run"] != self._resumes or not self._resumes:
                return None
            outcomes = [SolveOutcome(**attempt) for attempt in record["attempts"]]
        except (KeyError, TypeError, ValueError) as error:
            log.warning("stored attempts cannot be used: %r", error)
            return None
        self.keep_failure(key, outcomes)
        return outcomes

    def keep_failure(self, key: str, outcomes: Sequence[SolveOutcome]) -> None:
        """Remember that solvers found nothing, for a run that goes on with this one."""
        attempts = [asdict(replace(outcome, wcs_cards=None)) for outcome in outcomes]
        self._keep(self._manifest.key("failure", key), {"run": self._run_id, "attempts": attempts})

    def save(self) -> None:
        """Write everything kept so far."""
        self._manifest.save()

    def _keep(self, key: str, record: dict[str, Any]) -> None:
        self._manifest.put(key, record)

    def _key(self, step: str, *parts: Any) -> str:
        return self._manifest.key("solve", SOLVE_VERSION, step, *parts)


def _check_of(record: Any) -> HeaderCheck | None:
    """Return the check that a record tells, or None when it tells none."""
    try:
        check = HeaderCheck(
            float(record["rms_px"]), int(record["n_matched"]), record["confirmed"], record["contradicts"]
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        log.warning("a stored check of a header cannot be used: %r", error)
        return None
    return check if isinstance(check.confirmed, bool) and isinstance(check.contradicts, bool) else None


def _solution_of(record: Any, shape_hw: tuple[int, int]) -> Solution | None:
    """Return the solution that a record tells, or None when it tells none."""
    try:
        solution = Solution(
            wcs_cards=dict(record["wcs_cards"]),
            method=str(record["method"]),
            rms_px=float(record["rms_px"]),
            n_matched=int(record["n_matched"]),
            approximate=bool(record["approximate"]),
            seconds=float(record["seconds"]),
            confirmed=bool(record["confirmed"]),
            attempts=tuple(map(dict, record["attempts"])),
        )
        build_frame_wcs(solution.wcs_cards, shape_hw)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        log.warning("a stored solution cannot be used: %r", error)
        return None
    return solution
