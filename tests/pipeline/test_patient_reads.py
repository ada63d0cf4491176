"""A read in a thread that never comes back costs its frame, or ends the run with the reason."""

from __future__ import annotations

import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from made_frames import base_cards, field_sky, pointings, run, write, write_all
from made_sensor import Sensor, write_calibration

from zemosaic_core.errors import Cancelled, RunFailed, SkipItem
from zemosaic_io import calibration_sets, fits_read, frame_store
from zemosaic_io.headers import read_frame_info
from zemosaic_pipeline import calibrate, measure, measure_on_card, patient_reads
from zemosaic_pipeline.context import CancelToken
from zemosaic_pipeline.elsewhere import Unfit, _unseen
from zemosaic_pipeline.patience import HOPELESS, Overdue
from zemosaic_pipeline.patient_reads import PatientReads, reads_of_process
from zemosaic_pipeline.process_watch import ThreadWatch
from zemosaic_settings.executor import PathMap

STUCK = "light_003.fit"


@pytest.fixture
def hasty(monkeypatch):
    """Make half an hour a second."""
    monkeypatch.setattr(patient_reads, "_LOOK_S", 0.1)
    monkeypatch.setattr(patient_reads, "TOLD_AFTER_S", 0.3)
    monkeypatch.setattr(
        patient_reads,
        "overdue",
        lambda work, _pace: Overdue("still", work.still_s) if work.still_s > 1 else None,
    )


@pytest.fixture
def never():
    """Return a function that comes back when the test is over; it waits in the system, as for a disk that is gone."""
    ours, theirs = os.pipe()
    yield lambda *_, **__: os.read(ours, 1)
    os.close(theirs)


def test_answers_and_errors_are_those_of_the_call():
    reads = PatientReads()
    assert reads("a", 1, divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        reads("a", 1, divmod, 7, 0)
    assert reads("a", 1, int, "11", base=2) == 3


def test_many_threads_get_their_own_answers():
    reads = PatientReads()

    def add(a: int) -> int:
        time.sleep(0.001 * (a % 3))
        return a + 1

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda k: reads("a", 1, add, k), range(300))) == list(range(1, 301))


def test_a_read_without_an_end_is_given_up_by_name_and_others_go_on(hasty, never):
    told: list[tuple[str, float]] = []
    reads = PatientReads(on_waiting=lambda path, seconds: told.append((path, seconds)))
    with ThreadPoolExecutor(2) as threads:
        stuck = threads.submit(reads, "stuck.fit", 1, never)
        beside = [reads("good.fit", 1, divmod, k, 7) for k in range(100)]
        error = stuck.exception()
    assert isinstance(error, SkipItem)
    assert (error.key, error.values["path"]) == ("frame_silent", "stuck.fit")
    assert [path for path, _ in told] == ["stuck.fit"]
    assert beside == [divmod(k, 7) for k in range(100)]
    assert reads("good.fit", 1, divmod, 9, 2) == (4, 1)


def test_a_folder_that_does_not_answer_ends_the_run(hasty, never):
    reads = PatientReads()

    def ask(k: int) -> BaseException | None:
        try:
            reads(f"{k}.fit", 1, never)
        except (SkipItem, RunFailed) as error:
            return error
        return None

    with ThreadPoolExecutor(HOPELESS) as threads:
        found = list(threads.map(ask, range(HOPELESS)))
    assert sorted(getattr(error, "key", "") for error in found) == [
        *["frame_silent"] * (HOPELESS - 1),
        "run_error_nothing_answers",
    ]
    # Nobody waits for another one.
    began_s = time.monotonic()
    with pytest.raises(RunFailed):
        reads("next.fit", 1, divmod, 7, 2)
    assert time.monotonic() - began_s < 0.5


def test_a_stop_does_not_wait_for_a_read(hasty, never):
    cancel = CancelToken()
    cancel.set()
    began_s = time.monotonic()
    with pytest.raises(Cancelled):
        PatientReads(check=cancel.check)("stuck.fit", 1, never)
    assert time.monotonic() - began_s < 0.9


def test_what_reads_or_computes_is_waited_for(hasty, monkeypatch, tmp_path):
    monkeypatch.setattr("zemosaic_pipeline.process_watch._LEAST_CPU_S", 0.02)
    (tmp_path / "slow").write_bytes(bytes(100))

    def slowly() -> int:
        with (tmp_path / "slow").open("rb", buffering=0) as file:
            for _ in range(15):
                file.read(4)
                time.sleep(0.15)
        return 1

    def long() -> int:
        until = time.monotonic() + 2.0
        while time.monotonic() < until:
            pass
        return 2

    here = threading.current_thread()
    reads = PatientReads()
    if os.path.exists(f"/proc/self/task/{here.native_id}/io"):
        assert reads("slow", 100, slowly) == 1
    if ThreadWatch(here).look().cpu_s or hasattr(time, "pthread_getcpuclockid"):
        assert reads("long", 100, long) == 2


def test_it_travels_without_its_threads():
    reads = PatientReads()
    assert reads("a", 1, abs, -1) == 1
    there = pickle.loads(pickle.dumps(reads))
    assert there("a", 1, abs, -2) == 2
    assert pickle.loads(pickle.dumps(reads)) is there


def test_a_process_of_many_runs_is_never_hopeless(hasty, never):
    with ThreadPoolExecutor(HOPELESS + 1) as threads:
        found = [threads.submit(reads_of_process(), f"{k}", 1, never).exception for k in range(HOPELESS + 1)]
        assert {getattr(error(), "key", "") for error in found} == {"frame_silent"}
    assert reads_of_process()("a", 1, abs, -1) == 1


def test_threads_end_with_the_run():
    reads = PatientReads()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda k: reads("a", 1, time.sleep, 0.01), range(20)))
    readers = [reader.thread for reader in reads._idle]
    assert 1 <= len(readers) <= 4
    reads.close()
    for thread in readers:
        thread.join(5)
        assert not thread.is_alive()


def test_a_worker_of_a_cluster_whose_folder_does_not_answer_is_unfit(hasty, never, monkeypatch):
    monkeypatch.setattr("zemosaic_pipeline.elsewhere._unseen_of", never)
    unfit = _unseen((("/night/a.fit", 1),))
    assert isinstance(unfit, Unfit)
    assert unfit.values["file"] == "/night/a.fit"


# ------------------------------------------------------------------ whole runs


def stuck_or(never, function, info, *args, **kwargs):
    return (never if info.path.name == STUCK else function)(info, *args, **kwargs)


def measured_or(never, task):
    return (never if task[0].path.name == STUCK else measure.measure_frame)(task)


@pytest.mark.parametrize("where", ["stacking", "measuring in the worker"])
def test_a_run_goes_on_without_the_frame(hasty, never, tmp_path, monkeypatch, where):
    write_all(tmp_path / "raw", field_sky(), pointings(n=5, step_px=(20, 0), seed=1))
    options = {"exclude_flagged_frames": False, "num_processing_workers": 1}
    with monkeypatch.context() as patched:
        if where == "stacking":
            patched.setattr(frame_store, "read_window", partial(stuck_or, never, fits_read.read_window))
        else:
            patched.setattr(measure_on_card, "measure_frame", partial(measured_or, never))
        result = run(tmp_path / "raw", tmp_path / "out", **options)
    assert result.left_out == {STUCK: "frame_silent"}
    if where != "stacking":
        (tmp_path / "raw" / STUCK).unlink()
        without = run(tmp_path / "raw", tmp_path / "without", **options)
        np.testing.assert_array_equal(
            fits.getdata(result.outputs["science"]), fits.getdata(without.outputs["science"])
        )


def test_a_run_whose_folder_is_gone_while_it_stacks_ends_and_keeps_its_state(
    hasty, never, tmp_path, monkeypatch
):
    write_all(tmp_path / "raw", field_sky(), pointings(n=5, step_px=(20, 0), seed=1))
    options = {"exclude_flagged_frames": False, "num_processing_workers": 1}
    with monkeypatch.context() as patched:
        patched.setattr(frame_store, "read_window", never)
        with pytest.raises(RunFailed) as error:
            run(tmp_path / "raw", tmp_path / "out", **options)
    assert error.value.key == "run_error_nothing_answers"
    measured = {path: path.stat().st_ino for path in (tmp_path / "out").rglob("frames/*.npz")}
    assert len(measured) == 5
    again = run(tmp_path / "raw", tmp_path / "out", **options)
    assert again.left_out == {}
    assert {path: path.stat().st_ino for path in measured} == measured


def test_a_worker_of_a_cluster_leaves_out_the_frame_whose_read_never_comes_back(
    hasty, never, tmp_path, monkeypatch
):
    """While it measures, and while it stacks: what it reads blocks with came with the work."""
    write_all(tmp_path, field_sky(), pointings(n=2, seed=1))
    stuck, good = (read_frame_info(path) for path in sorted(tmp_path.glob("*.fit")))
    options = measure.MeasureOptions(quality_sigma=3.0, exclude_flagged=False, find_hot_pixels=True)
    real = measure._look
    monkeypatch.setattr(
        measure,
        "_look",
        lambda info, *args: (never if info.path == stuck.path else real)(info, *args),
    )
    tasks = [measure._send((info, options, str(tmp_path / "x.npz")), PathMap(())) for info in (stuck, good)]
    looks = [measure._look_elsewhere(task) for task in tasks]
    assert (looks[0].key, looks[0].values["path"]) == ("frame_silent", str(stuck.path))
    assert isinstance(looks[1], measure.Look)
    there = pickle.loads(pickle.dumps(frame_store.FrameStore({0: stuck, 1: good}, reads=PatientReads())))
    read = frame_store.read_window
    monkeypatch.setattr(
        frame_store,
        "read_window",
        lambda info, *args, **kwargs: (never if info.path == stuck.path else read)(info, *args, **kwargs),
    )
    with pytest.raises(SkipItem) as error:
        there.read(0, 0, 20, 0, 20)
    assert (error.value.key, error.value.values["path"]) == ("frame_silent", str(stuck.path))
    assert there.read(1, 0, 20, 0, 20).shape == (3, 20, 20)


@pytest.mark.parametrize(
    ("module", "where", "is_used"), [(calibrate, "_examine", True), (calibration_sets, "read_window", False)]
)
def test_a_dark_that_never_comes_is_told_by_name(hasty, never, tmp_path, monkeypatch, module, where, is_used):
    """Where darks are looked at, the others make the master; where they are stacked, there is none, and it is said."""
    sensor, setups = Sensor(), pointings(n=3, seed=1)
    for number, setup in enumerate(setups):
        data = sensor.read_out(sensor.light(field_sky(), setup), seconds=10.0, seed=number)
        write(tmp_path / "raw" / f"light_{number}.fit", data, base_cards(setup, number))
    write_calibration(tmp_path / "made", sensor, setups[0], n=4, kinds="D")
    stuck = "dark_002.fit"
    real = getattr(module, where)
    options = {"exclude_flagged_frames": False, "num_processing_workers": 1, "sky_model": "none"}
    with monkeypatch.context() as patched:
        patched.setattr(
            module,
            where,
            lambda info, *args, **kwargs: (never if info.path.name == stuck else real)(info, *args, **kwargs),
        )
        result = run(
            tmp_path / "raw", tmp_path / "out", darks_dir=str(tmp_path / "made" / "darks"), **options
        )
    told = [m["values"] for m in result.report["messages"] if m["key"] == "run_warn_calibration_frame"]
    assert [(Path(values["path"]).name, values["reason_key"]) for values in told] == [(stuck, "frame_silent")]
    assert result.left_out == {}
    if is_used:
        (tmp_path / "made" / "darks" / stuck).unlink()
        options["darks_dir"] = str(tmp_path / "made" / "darks")
    without = run(tmp_path / "raw", tmp_path / "without", **options)
    np.testing.assert_array_equal(
        fits.getdata(result.outputs["science"]), fits.getdata(without.outputs["science"])
    )
