"""The run controller against workers that behave, hang, die and lie."""

from __future__ import annotations

import itertools
import os
import signal
import time
from types import SimpleNamespace

import psutil
import pytest

from zemosaic_pipeline.events import (
    PHASES,
    Message,
    PhaseFinished,
    PhaseProgress,
    PhaseStarted,
    RunEnded,
    RunStarted,
)
from zemosaic_ui import run_controller
from zemosaic_ui.eta import EtaEstimator
from zemosaic_ui.run_controller import RunController, RunRequest
from zemosaic_ui.run_state import RunState, RunStatus


def follow(controller, *, until=lambda c: not c.is_active, timeout=120.0):
    events = []
    end = time.monotonic() + timeout
    while not until(controller):
        assert time.monotonic() < end, f"still {controller.state.status} after {timeout} s"
        events += controller.poll()
        time.sleep(0.01)
    return events


@pytest.fixture
def start(tmp_path):
    def run(name, grace_s=5.0, **config):
        controller = RunController(f"fake_workers:{name}", grace_s=grace_s)
        controller.start(RunRequest(str(tmp_path / "in"), str(tmp_path / "out"), config))
        return controller

    return run


def test_a_whole_run_is_a_success(start):
    controller = start("happy")
    follow(controller)
    state = controller.state
    assert state.status is RunStatus.SUCCESS
    assert state.fraction == 1.0
    assert len(state.tiles) == 3
    assert [frame.key for frame in state.left_out] == ["skip_no_stars"]
    assert state.outputs["mosaic"].endswith("mosaic.fits")
    assert all(phase.status == "done" for phase in state.phases)
    assert controller.learned_history()["phase1_prepare"] == pytest.approx(0.5 / 8)


def test_config_reaches_the_worker(start):
    controller = start("happy", use_gpu_phase5=False, stacking_kappa_low=2.5)
    follow(controller)
    line = next(line for line in controller.state.log if line.key == "fake_config_seen")
    assert line.values["config"]["use_gpu_phase5"] is False
    assert line.values["config"]["stacking_kappa_low"] == 2.5


@pytest.mark.parametrize("phase", list(PHASES))
def test_stop_in_each_phase_is_clean(start, phase):
    controller = start("happy", fake_hold_in=phase)
    follow(controller, until=lambda c: (p := c.state.phase(phase)) is not None and p.status == "done")
    controller.stop()
    assert controller.state.status is RunStatus.STOPPING
    follow(controller)
    assert controller.state.status is RunStatus.CANCELLED
    assert not controller.stop_report.forced
    assert controller.stop_report.tiles_kept == len(controller.state.tiles)


@pytest.mark.skipif(os.name == "nt", reason="there a folder in use cannot be removed")
def test_a_worker_starts_from_a_folder_that_was_removed(start, tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    controller = start("happy")
    follow(controller)
    assert controller.state.status is RunStatus.SUCCESS


def test_a_killed_worker_is_a_failure(start):
    controller = start("killed")
    follow(controller)
    assert controller.state.status is RunStatus.FAILED
    assert controller.state.end_key == "ui_worker_killed"
    assert controller.state.end_values["signal"] == 9


@pytest.mark.skipif(os.name == "nt", reason="limits of POSIX")
def test_a_worker_killed_for_the_time_it_took_says_so(start, monkeypatch):
    import resource

    monkeypatch.setattr(
        resource, "getrlimit", lambda which: (40, 50) if which == resource.RLIMIT_CPU else (-1, -1)
    )
    controller = start("killed")
    follow(controller)
    assert controller.state.end_key == "ui_worker_cpu_limit"
    assert controller.state.end_values["seconds"] == 40


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("number", "key"),
    [(9, "ui_worker_killed"), (10, "ui_worker_signalled"), (0, "ui_worker_died")],
)
def test_memory_is_blamed_for_what_want_of_memory_does(number, key):
    child = SimpleNamespace(exit_code=-number or 255, error_text=lambda: "", met_process_limit=False)
    assert run_controller._died(child).key == key


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_killed_worker_leaves_no_solver_behind(start):
    controller = start("killed_with_a_child")
    follow(controller)
    assert controller.state.end_key == "ui_worker_killed"
    pid = next(line for line in controller.state.log if line.key == "fake_child").values["pid"]
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_traceback_is_shown_as_failure(start):
    controller = start("raises")
    follow(controller)
    assert controller.state.status is RunStatus.FAILED
    assert "the tile did not fit" in controller.state.end_values["detail"]
    assert controller.state.log[-1].level == "ERROR"


def test_a_silent_end_is_a_failure(start):
    controller = start("silent_exit")
    follow(controller)
    assert controller.state.status is RunStatus.FAILED


def test_a_crash_after_success_is_a_failure(start):
    controller = start("success_then_crash")
    follow(controller)
    assert controller.state.status is RunStatus.FAILED


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_signal_after_success_changes_nothing(start):
    controller = start("success_then_stopped")
    follow(controller)
    assert controller.state.status is RunStatus.SUCCESS


def test_a_deaf_worker_and_its_children_are_ended(start, tmp_path):
    controller = start("deaf", grace_s=0.5)
    follow(controller, until=lambda c: any(line.key == "fake_child" for line in c.state.log))
    pid = next(line for line in controller.state.log if line.key == "fake_child").values["pid"]
    controller.stop()
    follow(controller)
    assert controller.state.status is RunStatus.CANCELLED
    assert controller.stop_report.forced
    assert controller.stop_report.partial_removed == 1
    assert controller.stop_report.tiles_kept == 1
    assert not (tmp_path / "out" / "tile.fits.part").exists()
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_missing_target_is_a_failure(tmp_path):
    controller = RunController("no_such_module:run")
    controller.start(RunRequest(str(tmp_path), str(tmp_path), {}))
    follow(controller)
    assert controller.state.status is RunStatus.FAILED
    assert "no_such_module" in controller.state.end_values["detail"]


def test_a_flood_arrives_whole(start):
    controller = start("flood")
    follow(controller)
    assert controller.state.phase("phase1_prepare").done == 10_000
    assert len(controller.state.left_out) == 2500


def test_a_flood_never_holds_the_window(start, monkeypatch):
    controller = start("flood")
    # Once all has arrived, it is taken in steps: each message takes a millisecond here.
    controller.wait(60.0)
    ticks = itertools.count()
    monkeypatch.setattr(run_controller.time, "monotonic", lambda: next(ticks) / 1000)
    monkeypatch.setattr(RunState, "apply", lambda self, event, now: next(ticks))
    taken = len(controller.poll(budget_s=0.1))
    assert 40 <= taken <= 200


def test_fraction_never_goes_back_and_skipped_phases_count():
    state = RunState()
    state.begin("in", "out", 0.0)
    state.apply(RunStarted("r", "in", "out", tuple(PHASES)), 0.0)
    state.apply(PhaseStarted("phase3_master_tiles", 10), 1.0)
    before = state.fraction
    assert before >= 0.44
    state.apply(PhaseStarted("phase1_prepare", 10), 2.0)
    assert state.fraction >= before


def test_log_levels_of_the_old_protocol_are_understood():
    state = RunState()
    for level in ("WARNING", "INFO_DETAIL", "error"):
        state.apply(Message("k", level), 0.0)
    assert [line.level for line in state.log] == ["WARN", "INFO", "ERROR"]


def test_eta_says_nothing_before_it_knows_and_then_is_close():
    state = RunState()
    eta = EtaEstimator()
    state.begin("in", "out", 1.0)
    state.apply(RunStarted("r", "in", "out", ("phase1_prepare", "phase3_master_tiles")), 1.0)
    state.apply(PhaseStarted("phase1_prepare", 100), 1.0)
    assert eta.estimate(state, 2.0) is None
    for done in range(1, 51):
        state.apply(PhaseProgress("phase1_prepare", done, 100), 1.0 + done)
        found = eta.estimate(state, 1.0 + done)
    # 100 s for this phase and the same share to come: 50 + 100 s are left.
    assert found.seconds == pytest.approx(150.0, rel=0.1)
    assert found.spread > 0.3


def test_eta_uses_past_runs():
    state = RunState()
    eta = EtaEstimator({"phase3_master_tiles": 0.2})
    state.begin("in", "out", 1.0)
    state.apply(RunStarted("r", "in", "out", ("phase1_prepare", "phase3_master_tiles")), 1.0)
    state.apply(PhaseStarted("phase1_prepare", 100), 1.0)
    for done in range(1, 51):
        state.apply(PhaseProgress("phase1_prepare", done, 100), 1.0 + done)
        found = eta.estimate(state, 1.0 + done)
    assert found.seconds == pytest.approx(50.0 + 20.0, rel=0.1)
    assert found.spread < 0.2


def test_eta_ends_with_the_run():
    state = RunState()
    state.begin("in", "out", 1.0)
    state.apply(PhaseFinished("phase0_survey", 1.0, 0), 2.0)
    state.apply(RunEnded("success"), 3.0)
    assert EtaEstimator().estimate(state, 4.0) is None
    assert state.elapsed(99.0) == pytest.approx(2.0)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("code", "outcome"),
    [(130, "cancelled"), (-signal.SIGTERM, "cancelled"), (-signal.SIGKILL, "failed"), (1, "failed")],
)
def test_a_worker_that_a_stop_ended_before_it_could_say_so_was_stopped(code, outcome):
    child = SimpleNamespace(exit_code=code, start_error="", error_text=lambda: "", met_process_limit=False)
    assert RunController()._missing_end(child, False).outcome == outcome


def test_a_worker_that_could_not_start_because_of_a_stop_was_stopped():
    child = SimpleNamespace(
        exit_code=None, start_error="BrokenPipeError: ", error_text=lambda: "", met_process_limit=False
    )
    assert RunController()._missing_end(child, True).outcome == "cancelled"
    assert RunController()._missing_end(child, False).key == "ui_worker_not_started"
