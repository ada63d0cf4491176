from __future__ import annotations

import sys
import threading
import types

import pytest
from solver_fakes import make_request

from zemosaic_core.errors import Cancelled, SettingsError
from zemosaic_io.solvers.base import Availability, SolveOutcome, failed
from zemosaic_io.solvers.chain import SolverOptions, make_solvers, solve_with_chain

NO_PAUSE = {"ZEMOSAIC_ASTAP_BACKOFF_SEC": "0.01"}


class Scripted:
    """A solver that answers from a list."""

    def __init__(self, name, *kinds):
        self.name = name
        self.kinds = list(kinds)

    def find(self):
        return Availability(True, "")

    def solve(self, request, cancel=None):
        kind = self.kinds.pop(0)
        if kind == "solved":
            return SolveOutcome(True, self.name, {"CRVAL1": 1.0}, 0.1)
        return failed(self.name, kind, "solver_" + kind)


@pytest.fixture
def embedded(monkeypatch):
    """Stand in for the built-in solver."""
    module = types.ModuleType("zemosaic_io.solvers.embedded")
    module.EmbeddedSolver = lambda: Scripted("EMBEDDED", "solved")
    monkeypatch.setitem(sys.modules, "zemosaic_io.solvers.embedded", module)


@pytest.mark.parametrize(
    ("method", "extra", "names"),
    [
        ("AUTO", {}, ["EMBEDDED", "ASTAP", "ASTROMETRY"]),
        ("auto", {"api_key": "k"}, ["EMBEDDED", "ASTAP", "ASTROMETRY", "NOVA"]),
        ("EMBEDDED", {"api_key": "k"}, ["EMBEDDED"]),
        ("ASTAP", {}, ["ASTAP"]),
        ("ASTROMETRY", {"api_key": "k"}, ["ASTROMETRY", "NOVA", "ASTAP"]),
        ("ANSVR", {"local_path": "http://127.0.0.1:8080/api"}, ["ANSVR", "ASTAP"]),
        ("ANSVR", {"local_path": "/opt/ansvr.cfg"}, ["ANSVR", "ASTAP"]),
        ("NONE", {"api_key": "k"}, []),
    ],
)
def test_order(embedded, method, extra, names):
    solvers = make_solvers(SolverOptions(method=method, **extra), {})
    assert [solver.name for solver in solvers] == names


def test_key_from_the_environment(embedded):
    solvers = make_solvers(SolverOptions(method="ASTROMETRY"), {"ASTROMETRY_API_KEY": "k"})
    assert [solver.name for solver in solvers] == ["ASTROMETRY", "NOVA", "ASTAP"]


def test_unknown_method():
    with pytest.raises(SettingsError, match="MAGIC"):
        make_solvers(SolverOptions(method="MAGIC"))


def test_first_solution_ends_the_chain(tmp_path):
    solvers = [Scripted("A", "no_solution"), Scripted("B", "solved"), Scripted("C", "solved")]
    outcomes = solve_with_chain(make_request(tmp_path), solvers, environment=NO_PAUSE)
    assert [(o.solver, o.ok) for o in outcomes] == [("A", False), ("B", True)]


@pytest.mark.parametrize(
    ("kinds", "attempts"),
    [
        (["timeout", "solved"], ["timeout", "solved"]),
        (["crash", "crash", "solved"], ["crash", "crash"]),
        (["no_solution", "solved"], ["no_solution"]),
        (["unavailable", "solved"], ["unavailable"]),
        (["too_few_stars", "solved"], ["too_few_stars"]),
        (["crash", "no_solution", "solved"], ["crash", "no_solution"]),
    ],
)
def test_only_accidents_are_repeated(tmp_path, kinds, attempts):
    outcomes = solve_with_chain(make_request(tmp_path), [Scripted("A", *kinds)], environment=NO_PAUSE)
    assert [o.kind for o in outcomes] == attempts


def test_number_of_repeats(tmp_path):
    environment = {**NO_PAUSE, "ZEMOSAIC_ASTAP_RETRIES": "3"}
    outcomes = solve_with_chain(
        make_request(tmp_path), [Scripted("A", *["crash"] * 9)], environment=environment
    )
    assert len(outcomes) == 4
    environment["ZEMOSAIC_ASTAP_RETRIES"] = "0"
    outcomes = solve_with_chain(
        make_request(tmp_path), [Scripted("A", *["crash"] * 9)], environment=environment
    )
    assert len(outcomes) == 1


def test_no_solvers_no_attempts(tmp_path):
    assert solve_with_chain(make_request(tmp_path), []) == []


def test_cancel_between_attempts(tmp_path):
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Cancelled):
        solve_with_chain(make_request(tmp_path), [Scripted("A", "solved")], cancel)
    waiting = threading.Event()
    threading.Timer(0.1, waiting.set).start()
    with pytest.raises(Cancelled):
        solve_with_chain(
            make_request(tmp_path),
            [Scripted("A", "crash", "solved")],
            waiting,
            {"ZEMOSAIC_ASTAP_BACKOFF_SEC": "30"},
        )
