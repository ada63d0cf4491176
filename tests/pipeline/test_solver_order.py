"""Who is asked about which frame, and which answers are believed; the solvers are stand-ins, the stars are real."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from solver_nights import POOR, RICH, Night, places_are_right

from zemosaic_core.errors import RunFailed
from zemosaic_io.manifest import Manifest
from zemosaic_io.solvers.base import Availability, SolveOutcome, failed
from zemosaic_io.solvers.chain import SolverOptions
from zemosaic_pipeline import (
    late_searches,
    solve_files,
    solve_frames,
    solver_answers,
    solver_patience,
    star_matches,
)
from zemosaic_pipeline.context import CancelToken, RunContext
from zemosaic_pipeline.events import PhaseProgress
from zemosaic_pipeline.phase1_prepare import Prepared
from zemosaic_pipeline.plan import SolveOptions
from zemosaic_pipeline.solve_memory import SolveMemory
from zemosaic_pipeline.solver_answers import judge_answer
from zemosaic_settings import Settings


@dataclass
class Scripted:
    """A solver that answers with cards, or with a kind of failure, by the name of the file."""

    name: str
    answers: dict[str, object]
    asked: list[str] = field(default_factory=list)

    def find(self):
        return Availability(True, "")

    def solve(self, request, cancel=None):
        self.asked.append(request.path.name)
        answer = self.answers.get(request.path.name, "no_solution")
        if isinstance(answer, dict):
            return SolveOutcome(True, self.name, dict(answer), 0.1)
        return failed(self.name, answer, "solver_" + answer, 60.0)


@pytest.fixture
def solved(tmp_path, monkeypatch):
    """Return a function that solves a night with the solvers given, and what was said about it."""
    monkeypatch.setenv("ZEMOSAIC_ASTAP_BACKOFF_SEC", "0.01")

    def solve(night, *solvers, resumes="", report=None):
        events = []
        monkeypatch.setattr(solve_frames, "make_solvers", lambda options: list(solvers))
        context = RunContext(
            tmp_path / "out",
            report=report or events.append,
            cancel=CancelToken(),
            policy=None,
            workers=1,
            threads=1,
        )
        context.resumes = resumes
        solve.run_id = context.run_id
        options = SolveOptions(
            SolverOptions("AUTO", timeout_s=60.0), ignore_header_wcs=False, tolerance_px=2.0
        )
        try:
            manifest = Manifest(tmp_path / "out" / "m.json")
            found = solve_frames.run(Prepared(tuple(night.frames), {}), options, context, manifest)
        finally:
            context.close()
        by_name = {item.frame.name: item.solution for item in found}
        said = {event.key: event.values for event in events if getattr(event, "level", "") == "WARN"}
        return by_name, said

    return solve


def test_slow_solvers_are_asked_only_what_stars_of_neighbours_cannot_tell(tmp_path, solved):
    """Two pointings of which one is solved by the fast one; the other overlaps it. One frame is behind a cloud."""
    night = Night(tmp_path, RICH)
    for i in range(3):
        night.add(f"a{i}.fit").add(f"b{i}.fit", offset_deg=(0.0, 0.2))
    night.add("cloudy.fit", offset_deg=(0.0, 0.1), is_cloudy=True)
    fast = Scripted("EMBEDDED", {f"a{i}.fit": night.cards[f"a{i}.fit"] for i in range(3)})
    slow = Scripted("ASTROMETRY", dict(night.cards))
    slow.answers["cloudy.fit"] = "no_solution"
    found, _ = solved(night, fast, slow)
    assert len(found) == 6
    assert places_are_right(night, found)
    # Once, where its header says: other frames show that such headers are right.
    assert slow.asked == ["cloudy.fit"]


def test_a_solver_that_takes_all_its_time_again_and_again_is_given_up(tmp_path, solved):
    night = Night(tmp_path, RICH)
    night.add("good.fit")
    for i in range(8):
        night.add(f"far{i}.fit", offset_deg=(4.0 * i + 4.0, 0.0), is_cloudy=True)
    fast = Scripted("EMBEDDED", {"good.fit": night.cards["good.fit"]})
    slow = Scripted("ASTROMETRY", {f"far{i}.fit": "timeout" for i in range(8)})
    found, said = solved(night, fast, slow)
    assert set(found) == {"good.fit"}
    assert said["solver_given_up"] == {"solver": "ASTROMETRY", "searches": solver_patience.PATIENCE}
    # Each of three frames and its repeat; and one search of the whole sky with its own.
    assert len(slow.asked) <= 2 * solver_patience.PATIENCE + 2


@dataclass
class Choosy(Scripted):
    """The built-in solver's part: knows the frames of ``answers`` where ``knows`` says so of the request."""

    knows: object = None
    requests: list = field(default_factory=list)

    def solve(self, request, cancel=None):
        self.requests.append(request)
        if cancel is not None:
            cancel.is_set()
        if self.knows is not None and not self.knows(request):
            self.asked.append(request.path.name)
            return failed(self.name, "no_solution", "solver_no_solution", 0.1)
        return super().solve(request, cancel)


def test_a_solver_given_up_is_not_asked_what_else_headers_may_have_meant(tmp_path, solved):
    """Given up in either round, it is told once; after it only the whole sky is searched, once per run."""
    night = Night(tmp_path, RICH)
    for i in range(5):
        night.add(f"far{i}.fit", offset_deg=(4.0 * i, 0.0), is_cloudy=True)

    def asked_in_vain(slow):
        told = []
        with pytest.raises(RunFailed):
            solved(night, slow, report=told.append)
        given_up = [event.values for event in told if getattr(event, "key", "") == "solver_given_up"]
        assert given_up == [{"solver": "ASTROMETRY", "searches": solver_patience.PATIENCE}]
        # Each search and its repeat.
        return [request for request in slow.requests if request.has_hint][::2]

    first = asked_in_vain(Choosy("ASTROMETRY", {name: "timeout" for name in night.cards}))
    assert len(first) == solver_patience.PATIENCE
    assert all(request.scale_arcsec for request in first)

    # As headers tell, it answers at once that there is nothing; at any scale it takes all its time.
    @dataclass
    class Slow(Choosy):
        def solve(self, request, cancel=None):
            quick = request.has_hint and request.scale_arcsec
            self.answers = {request.path.name: "no_solution" if quick else "timeout"}
            return super().solve(request, cancel)

    slow = Slow("ASTROMETRY", {})
    asked_in_vain(slow)
    second = [request for request in slow.requests if request.has_hint and not request.scale_arcsec]
    assert len(second) == 2 * solver_patience.PATIENCE


@pytest.mark.parametrize("prefixes", ["abcdefghij", "jihgfedcba"])
def test_one_frame_that_can_be_solved_gives_its_place_to_all_that_match_it(tmp_path, solved, prefixes):
    """Of ten frames of one pointing the solver knows one, which is asked late; whatever the files are called."""
    night = Night(tmp_path, RICH)
    names = [f"{prefix}.fit" for prefix in prefixes]
    for name in names:
        night.add(name)
    richest_first = sorted(night.frames, key=lambda item: -item[1].n_stars)
    known = richest_first[7][0].name
    solver = Choosy("EMBEDDED", {known: night.cards[known]})
    found, _ = solved(night, solver)
    assert set(found) == set(names)
    assert places_are_right(night, found)
    # The first two as far as the solver looks, others that show their stars near their headers' place.
    assert [request.radius_is_limit for request in solver.requests] == [False] * 2 + [True] * 6


def test_of_what_lies_on_a_frame_looked_for_in_vain_only_the_neighbourhood_is_searched(tmp_path, solved):
    night = Night(tmp_path, RICH)
    for i in range(6):
        night.add(f"a{i}.fit")
    night.add("cloudy.fit", is_cloudy=True)
    solver = Choosy("EMBEDDED", {})
    events = []
    with pytest.raises(RunFailed):
        solved(night, solver, report=events.append)
    wide = [r.path.name for r in solver.requests if not r.radius_is_limit and r.scale_arcsec and r.ra_deg]
    # Two for all that show their stars, and the one that shows others; the rest when nothing else was left to try.
    assert wide[2] == "cloudy.fit"
    assert sorted(wide) == sorted(night.cards)
    assert [r.radius_is_limit for r in solver.requests][:7].count(True) == 4
    # Each attempt is told, by frame and solver, and the bar moves.
    told = [event for event in events if isinstance(event, PhaseProgress) and "(EMBEDDED)" in event.item]
    assert len(told) >= len(solver.requests)
    assert {event.item for event in told} >= {f"{name} (EMBEDDED)" for name in night.cards}
    assert max(event.done for event in told) >= 6
    assert all(event.total == 7 for event in told)


@pytest.mark.parametrize("known", [2, 6])
def test_a_frame_far_from_its_header_is_found_though_better_ones_with_its_stars_were_not(
    tmp_path, solved, known
):
    """Of eight frames 3 degrees beside their headers the solver knows one; a pointing of the same mount follows it."""
    night = Night(tmp_path, RICH)
    for i in range(8):
        night.add(f"a{i}.fit", hint_deg=(RICH[0], RICH[1] - 3.0))
    for i in range(8):
        night.add(f"b{i}.fit", offset_deg=(0.0, 0.9), hint_deg=(RICH[0], RICH[1] + 0.9 - 3.0))
    first, second = (
        [
            frame.name
            for frame, measure in sorted(night.frames, key=lambda item: -item[1].n_stars)
            if frame.name[0] == group
        ]
        for group in "ab"
    )
    answers = {first[known]: night.cards[first[known]], second[-1]: night.cards[second[-1]]}

    def knows(request):
        cards = night.cards[request.path.name]
        apart = np.hypot(request.ra_deg - cards["CRVAL1"], request.dec_deg - cards["CRVAL2"])
        return request.scale_arcsec is not None and (apart < 1.0 or not request.radius_is_limit)

    solver = Choosy("EMBEDDED", answers, knows=knows)
    found, _ = solved(night, solver)
    assert len(found) == 16
    assert places_are_right(night, found)


def test_frames_looked_for_far_around_after_all_else_are_few_in_a_run(tmp_path, solved):
    """However many pointings are unknown; and none where other headers of that night are right."""
    night = Night(tmp_path, RICH)
    for i in range(8):
        for k in range(4):
            night.add(f"p{i}_{k}.fit", offset_deg=(0.0, 0.1 * i), hint_deg=(RICH[0] + 20.0 * i, RICH[1]))

    def looked_far(solver):
        return sum(
            r.has_hint and not r.radius_is_limit and r.radius_deg > 1.0 and r.scale_arcsec is not None
            for r in solver.requests
        )

    none = Choosy("EMBEDDED", {})
    with pytest.raises(RunFailed):
        solved(night, none)
    assert looked_far(none) == 2 * 8 + late_searches.MAX_FURTHER
    night.add("good.fit", offset_deg=(0.0, 4.0))
    some = Choosy("EMBEDDED", {"good.fit": night.cards["good.fit"]})
    solved(night, some)
    assert looked_far(some) == 2 * 8 + 1


def test_a_wrong_scale_far_from_the_place_told_is_looked_for_once_and_then_known(tmp_path, solved):
    """Three pointings whose headers tell half the scale, 3 degrees beside the place."""
    night = Night(tmp_path, RICH)
    for i in range(3):
        offset = (0.0, 1.0 * i)
        ra, dec = RICH[0], RICH[1] + offset[1]
        night.add(f"p{i}.fit", offset_deg=offset, hint_deg=(ra, dec - 3.0))
    true_scale = (
        3600
        * abs(np.linalg.det([[night.cards["p0.fit"][f"CD{i}_{j}"] for j in (1, 2)] for i in (1, 2)])) ** 0.5
    )
    for n, (frame, measure) in enumerate(night.frames):
        info = replace(frame.info, scale_arcsec=0.5 * true_scale)
        night.frames[n] = (replace(frame, info=info), measure)

    def knows(request):
        scale = request.scale_arcsec
        return not request.radius_is_limit and (scale is None or abs(scale / true_scale - 1) < 0.05)

    # Once, when it finds nothing.
    none = Choosy("EMBEDDED", {})
    with pytest.raises(RunFailed):
        solved(night, none)
    assert len([r for r in none.requests if r.scale_arcsec is None and not r.radius_is_limit]) == 1
    solver = Choosy("EMBEDDED", dict(night.cards), knows=knows)
    found, _ = solved(night, solver)
    assert places_are_right(night, found)
    assert len(found) == 3
    wide = [request for request in solver.requests if knows(request)]
    assert [request.scale_arcsec is None for request in wide] == [True, False, False]


def test_an_answer_that_the_stars_deny_leads_to_the_next_solver(tmp_path, solved):
    night = Night(tmp_path, RICH).add("a.fit").add("b.fit")
    liar = Scripted("ASTAP", {name: night.wrong(name, 0.5) for name in night.cards})
    honest = Scripted("ASTROMETRY", dict(night.cards))
    found, said = solved(night, liar, honest)
    assert {solution.method for solution in found.values()} == {"ASTROMETRY", "star_match"}
    assert places_are_right(night, found)
    assert "wcs_solver_wrong" in said
    assert all(solution.confirmed for solution in found.values())


def test_cards_that_are_no_wcs_cost_nothing(tmp_path, solved):
    night = Night(tmp_path, RICH).add("a.fit")
    odd = {**night.cards["a.fit"], "CD1_1": float("nan")}
    found, _ = solved(night, Scripted("ASTAP", {"a.fit": odd}), Scripted("NOVA", dict(night.cards)))
    assert found["a.fit"].method == "NOVA"
    with pytest.raises(RunFailed):
        solved(night, Scripted("ASTAP", {"a.fit": {"CTYPE1": 5}}))


def test_what_no_star_of_the_catalogue_confirms_is_believed_last_and_named(tmp_path, solved):
    night = Night(tmp_path, POOR)
    for i in range(3):
        night.add(f"a{i}.fit")
    only = Scripted("ASTAP", dict(night.cards))
    found, said = solved(night, only)
    assert len(found) == 3
    assert places_are_right(night, found)
    assert not any(solution.confirmed for solution in found.values())
    named = said["wcs_solver_unconfirmed"]
    assert named["solver"] == "ASTAP"
    # One answer per pointing is enough: the others lie on it by their stars.
    assert only.asked == [named["path"].rsplit("/", 1)[-1]]
    # A second solver is not asked what the first told and nobody can check.
    second = Scripted("ASTROMETRY", dict(night.cards))
    solved(night, Scripted("ASTAP", dict(night.cards)), second)
    assert second.asked == []


def test_what_does_not_lie_on_an_unconfirmed_frame_is_asked_about_too(tmp_path, solved):
    """A frame of that pointing with other stars, as after a turn of the camera."""
    night = Night(tmp_path, POOR).add("a.fit").add("b.fit").add("other.fit", is_cloudy=True)
    found, _ = solved(night, Scripted("ASTAP", dict(night.cards)))
    assert {name: solution.method for name, solution in found.items()} == {
        "a.fit": "ASTAP", "b.fit": "star_match", "other.fit": "ASTAP",
    }  # fmt: skip


def test_a_frame_is_laid_on_one_of_another_telescope(tmp_path, solved):
    """Whose stars no solver knows; of one telescope the headers may tell a wrong scale, as long as it is the same."""
    night = Night(tmp_path, RICH).add("a.fit").add("wide.fit", times_wider=1.6)
    found, _ = solved(night, Scripted("ASTAP", {"a.fit": night.cards["a.fit"]}))
    assert {name: solution.method for name, solution in found.items()} == {
        "a.fit": "ASTAP", "wide.fit": "star_match",
    }  # fmt: skip
    assert places_are_right(night, found)
    night.frames = [
        (replace(frame, info=replace(frame.info, scale_arcsec=3.0)), measure)
        for frame, measure in Night(tmp_path, RICH).add("b.fit").add("c.fit").frames
    ]
    found, _ = solved(night, Scripted("ASTAP", {"b.fit": night.cards["a.fit"]}))
    assert {name: solution.method for name, solution in found.items()} == {
        "b.fit": "ASTAP",
        "c.fit": "star_match",
    }


def test_a_frame_is_looked_for_again_when_its_date_was_mended(tmp_path, solved):
    """Stars stand elsewhere at another date: what was found with the wrong one is not what a fresh run finds."""
    night = Night(tmp_path, RICH).add("a.fit")
    solver = Scripted("ASTAP", dict(night.cards))
    for _ in range(2):
        solved(night, solver)
    assert solver.asked == ["a.fit"]
    frame, measure = night.frames[0]
    night.frames[0] = replace(frame, info=replace(frame.info, date_obs="2001-10-18T20:00:00")), measure
    solved(night, solver)
    assert solver.asked == ["a.fit"] * 2


def test_what_was_looked_for_in_vain_before_a_kill_is_not_looked_for_again(tmp_path, solved):
    """By the run that goes on; a new one asks anew, because a program may have been installed since."""
    night = Night(tmp_path, RICH).add("good.fit").add("far.fit", offset_deg=(4.0, 0.0), is_cloudy=True)
    fast = Scripted("EMBEDDED", {"good.fit": night.cards["good.fit"]})
    slow = Scripted("ASTROMETRY", {"far.fit": "timeout"})
    solved(night, fast, slow)
    asked = len(slow.asked), len(fast.asked)
    assert min(asked) > 0
    for _ in range(2):
        found, _ = solved(night, fast, slow, resumes=solved.run_id)
        assert (len(slow.asked), len(fast.asked)) == asked
        assert set(found) == {"good.fit"}
    solved(night, fast, slow)
    assert len(slow.asked) == 2 * asked[0]


class Killed(BaseException):
    """Stands for the end of a process."""


def test_what_was_solved_before_a_kill_is_not_solved_again(tmp_path, solved, monkeypatch):
    """Whenever the kill comes: of every answer that was there before it, none is asked for again."""
    night = Night(tmp_path, RICH)
    for i in range(2):
        night.add(f"a{i}.fit").add(f"b{i}.fit", offset_deg=(0.0, 0.2))
    solver = Scripted("EMBEDDED", dict(night.cards))
    matched: list[bytes] = []
    real = star_matches.match_frame

    def match_frame(task):
        matched.append(b"".join(stars.tobytes() for stars in (*(xy for xy, _ in task[0]), task[1])))
        return real(task)

    monkeypatch.setattr(star_matches, "match_frame", match_frame)
    # A process that is killed writes nothing at its end.
    monkeypatch.setattr(SolveMemory, "save", lambda self: None)
    n_killed = 0
    for _ in range(20):
        before = len(solver.asked) + len(matched)

        def die_after_one_more(event, before=before):
            if isinstance(event, PhaseProgress) and len(solver.asked) + len(matched) > before:
                raise Killed

        try:
            found, _ = solved(night, solver, report=die_after_one_more)
            break
        except Killed:
            n_killed += 1
    assert n_killed >= 3
    assert places_are_right(night, found)
    assert len(found) == 4
    assert len(set(solver.asked)) == len(solver.asked)
    assert len(set(matched)) == len(matched)


@dataclass
class Seen:
    """Stars of a frame as a solver gets them."""

    x: np.ndarray
    y: np.ndarray


def test_an_answer_is_worth_the_same_inside_a_run_and_outside(tmp_path, monkeypatch):
    """A constant offset is mended, a wrong place and cards that are no WCS are not used; proper motions count."""
    night = Night(tmp_path, RICH).add("a.fit")
    frame, measure = night.frames[0]
    stars = Seen(*(measure.arrays()[axis].astype(float) for axis in "xy"))
    true = night.cards["a.fit"]
    shifted = {**true, "CRPIX1": true["CRPIX1"] + 0.6, "CRPIX2": true["CRPIX2"] - 0.4}
    epochs = []
    real = solver_answers.check_wcs
    monkeypatch.setattr(
        solver_answers, "check_wcs", lambda *args, epoch: epochs.append(epoch) or real(*args, epoch=epoch)
    )
    judged = judge_answer(frame.info, stars, SolveOutcome(True, "ASTAP", shifted, 0.1))
    assert judged.key == "wcs_solver_offset"
    assert judged.solution.confirmed
    assert abs(judged.solution.wcs_cards["CRPIX1"] - true["CRPIX1"]) < 0.1
    assert abs(judged.solution.wcs_cards["CRPIX2"] - true["CRPIX2"]) < 0.1
    assert epochs == [frame.info.epoch]
    wrong = judge_answer(frame.info, stars, SolveOutcome(True, "ASTAP", night.wrong("a.fit", 0.5), 0.1))
    assert (wrong.solution, wrong.key) == (None, "wcs_solver_wrong")
    none = judge_answer(frame.info, stars, SolveOutcome(True, "ASTAP", {"CTYPE1": 5}, 0.1))
    assert (none.solution, none.key) == (None, "wcs_unusable")

    monkeypatch.setattr(solve_files, "make_solvers", lambda _: [Scripted("ASTAP", {"a.fit": shifted})])
    monkeypatch.setattr(solve_files, "frame_stars", lambda *_: stars)
    (found,) = solve_files.iter_solutions([tmp_path / "a.fit"], Settings(), tmp_path)
    assert found.outcomes[-1].wcs_cards == judged.solution.wcs_cards
    assert found.confirmed
    # Where the catalogue has no star to hold against it, an answer is passed on and named.
    few = Seen(*(axis[:3] for axis in (stars.x, stars.y)))
    monkeypatch.setattr(solve_files, "frame_stars", lambda *_: few)
    (found,) = solve_files.iter_solutions([tmp_path / "a.fit"], Settings(), tmp_path)
    assert found.ok
    assert not found.confirmed
