"""Pointings are looked for by workers of a cluster: the same places as on one computer, and who is asked what."""

from __future__ import annotations

import os
import threading
from dataclasses import replace

import numpy as np
import psutil
import pytest
from solver_nights import RICH, Night, places_are_right

from zemosaic_core.errors import Cancelled
from zemosaic_io.manifest import Manifest
from zemosaic_io.solvers.astap import AstapSolver
from zemosaic_io.solvers.base import Availability, SolveOutcome, check_cancel, failed
from zemosaic_io.solvers.chain import SolverOptions
from zemosaic_io.solvers.embedded import EmbeddedSolver
from zemosaic_pipeline import cluster_solvers, elsewhere, solve_frames, solve_one_frame, solver_questions
from zemosaic_pipeline.cluster import Cluster
from zemosaic_pipeline.context import CancelToken, RunContext
from zemosaic_pipeline.elsewhere import Requirements
from zemosaic_pipeline.phase1_prepare import Prepared
from zemosaic_pipeline.plan import SolveOptions
from zemosaic_settings.executor import ExecutorChoice, PathMap

distributed = pytest.importorskip("distributed", reason="the extra cluster (distributed) is not installed")


# Pointings without stars in common.
OFFSETS_DEG = ((0.7, 0.0), (-0.7, 0.0), (0.0, 0.6))


class Program:
    """Stands for a solver program: answers with the cards given, and for other frames works until it is stopped."""

    name = "ASTAP"

    def __init__(self, answers, identity="one version") -> None:
        self.answers, self._identity = answers, identity
        self.asked: list[str] = []
        self.stopped: list[str] = []
        self.waits: dict[str, str] = {}
        self.at_work = threading.Event()

    def find(self):
        return Availability(True, "")

    def identity(self):
        return self._identity

    def solve(self, request, cancel=None):
        name = request.path.name
        self.asked.append(name)
        answer = self.answers.get(name, "no_solution")
        while self.waits.get(name, name) not in self.asked:
            self.at_work.wait(0.02)
        if isinstance(answer, dict):
            return SolveOutcome(True, self.name, dict(answer), 0.1)
        while answer == "forever":
            self.at_work.set()
            try:
                check_cancel(cancel)
            except Cancelled:
                self.stopped.append(name)
                raise
            self.at_work.wait(0.02)
        return failed(self.name, answer, "solver_" + answer)


@pytest.fixture(scope="module")
def scheduler():
    """Four workers in threads of this process."""
    with distributed.LocalCluster(
        n_workers=4, threads_per_worker=1, processes=False, dashboard_address=None, silence_logs=50,
    ) as started:  # fmt: skip
        yield started.scheduler_address


@pytest.fixture
def solve(scheduler, tmp_path, monkeypatch):
    """Return a function that gives a night its places, on the cluster or here."""
    said = {}

    def on(night, *solvers, there=None, cancel=None, astap_path=""):
        there = solvers if there is None else there
        monkeypatch.setattr(solve_frames, "make_solvers", lambda options: list(solvers))
        if there:
            monkeypatch.setattr(cluster_solvers, "make_solvers", lambda options: list(there))
        context = RunContext(
            tmp_path / "out",
            report=lambda event: said.setdefault(getattr(event, "key", ""), getattr(event, "values", None)),
            cancel=cancel or CancelToken(),
            policy=None, workers=1, threads=1,
        )  # fmt: skip
        if there:
            context.cluster = Cluster(
                ExecutorChoice("scheduler", scheduler), PathMap(), context.run_id,
                check=context.cancel.check, say=context.say,
            )  # fmt: skip
            context.cluster.require(Requirements(context.run_id, elsewhere.versions()))
        options = SolveOptions(
            SolverOptions("AUTO", timeout_s=20.0, max_instances=3, astap_path=astap_path, astap_data=astap_path),
            ignore_header_wcs=False, tolerance_px=2.0,
        )  # fmt: skip
        try:
            manifest = Manifest(tmp_path / f"m{len(list(tmp_path.iterdir()))}.json")
            found = solve_frames.run(Prepared(tuple(night.frames), {}), options, context, manifest)
            calls = sum(w["calls"] for w in context.cluster.facts()["workers"]) if there else 0
        finally:
            context.close()
        return {item.frame.name: replace(item.solution, seconds=0.0) for item in found}, said, calls

    return on


def test_places_are_those_of_one_computer(solve, tmp_path, monkeypatch):
    night = Night(tmp_path, RICH)
    for i in range(2):
        for pointing in range(3):
            night.add(f"{pointing}_{i}.fit", offset_deg=OFFSETS_DEG[pointing])
    here, _, _ = solve(night, EmbeddedSolver(), there=[])
    assert places_are_right(night, here)
    assert len(here) == 6

    def not_here(*_):
        pytest.fail("a frame was not looked for on a worker")

    monkeypatch.setattr(solve_one_frame, "ask_solvers", not_here)
    there, _, calls = solve(night, EmbeddedSolver())
    assert there == here
    assert calls >= 3


def test_what_is_not_needed_any_more_is_stopped(solve, tmp_path):
    """The second pointing, which keeps a worker busy for good, lies on the first by its stars."""
    night = Night(tmp_path, RICH)
    night.add("a.fit").add("b.fit", offset_deg=(0.0, 0.3)).add("c.fit", offset_deg=OFFSETS_DEG[1])
    program = Program({"a.fit": night.cards["a.fit"], "b.fit": "forever", "c.fit": night.cards["c.fit"]})
    # The answer about the third one comes first.
    program.waits["a.fit"] = "c.fit"
    found, _, _ = solve(night, program)
    assert places_are_right(night, found)
    assert len(found) == 3
    assert program.stopped == program.asked[program.asked.index("b.fit") :][:1] == ["b.fit"]


@pytest.mark.parametrize(("identity", "key"), [("", "missing"), ("another", "differs")])
def test_without_the_same_solver_on_a_worker_this_computer_asks(solve, tmp_path, identity, key):
    night = Night(tmp_path, RICH).add("a.fit").add("b.fit", offset_deg=OFFSETS_DEG[1])
    here, there = Program(dict(night.cards)), Program(dict(night.cards), identity)
    found, said, _ = solve(night, here, there=[there])
    assert len(found) == 2
    assert (len(here.asked), there.asked) == (2, [])
    assert said[f"cluster_solver_{key}"]["solver"] == "ASTAP"
    assert said["cluster_solver_here"] == {"solver": "ASTAP"}


@pytest.mark.skipif(os.name == "nt", reason="the program is a shell script")
def test_a_program_on_a_worker_ends_with_the_run(solve, tmp_path, monkeypatch):
    folder = tmp_path / "astap"
    folder.mkdir()
    program = folder / "astap_cli"
    program.write_text(
        f"#!/bin/sh\necho $$ > {folder}/pid.new\nmv {folder}/pid.new {folder}/pid\nsleep 600\n"
    )
    program.chmod(0o755)
    (folder / "a_0101.1476").write_bytes(b"stars")
    night = Night(tmp_path, RICH).add("a.fit")
    monkeypatch.setattr(solver_questions, "read_window", lambda *_, **__: np.ones((100, 100), np.uint16))
    cancel = CancelToken()
    processes = []

    def stop_when_it_runs():
        while not (folder / "pid").exists():
            threading.Event().wait(0.02)
        root = psutil.Process(int((folder / "pid").read_text()))
        processes.extend([root, *root.children(recursive=True)])
        cancel.set()

    watcher = threading.Thread(target=stop_when_it_runs, daemon=True)
    watcher.start()
    with pytest.raises(Cancelled):
        solve(night, AstapSolver(str(program), str(folder)), cancel=cancel, astap_path=str(folder))
    watcher.join(10)
    assert processes
    assert psutil.wait_procs(processes, timeout=5)[1] == []
