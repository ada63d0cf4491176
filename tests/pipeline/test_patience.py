"""An item that keeps its process without end costs itself; one that is only slow costs nothing."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
from astropy.io import fits
from items_of_all_kinds import do, tasks
from made_frames import field_sky, pointings, run, write_all

from zemosaic_core.errors import RunFailed, SkipItem
from zemosaic_pipeline import measure, measure_on_card, patience, phase0_survey, process_watch, worker_pool
from zemosaic_pipeline.header_batches import read_batch
from zemosaic_pipeline.patience import Overdue, Pace, Work, overdue, paced
from zemosaic_pipeline.process_watch import ProcessWatch

posix = pytest.mark.skipif(os.name == "nt", reason="signals and pipes of POSIX")
MB = 1_000_000


@pytest.mark.parametrize(
    ("work", "pace", "kind"),
    [
        # The first item may be compiling on a slow machine.
        (Work(50 * MB, 1700, 0), Pace(), None),
        (Work(50 * MB, 1801, 0), Pace(), "busy"),
        # Many times what anything took, and minutes at least.
        (Work(50 * MB, 299, 0), Pace(9, 2.0, 50 * MB), None),
        (Work(50 * MB, 301, 0), Pace(9, 2.0, 50 * MB), "busy"),
        (Work(50 * MB, 1000, 0), Pace(9, 60.0, 50 * MB), None),
        (Work(50 * MB, 1300, 0), Pace(9, 60.0, 50 * MB), "busy"),
        # A file that is ten times larger may take ten times longer; a smaller one as long.
        (Work(500 * MB, 1300, 0), Pace(9, 60.0, 50 * MB), None),
        (Work(5 * MB, 1100, 0), Pace(9, 60.0, 50 * MB), None),
        # Items without a file, such as the stars of two frames.
        (Work(0, 301, 0), Pace(9, 2.0, 0), "busy"),
        # A server that starts anew; a folder that is gone; a slow one that gives 20 kB/s without a sign in between.
        (Work(MB, 0, 1700), Pace(9, 2.0, MB), None),
        (Work(MB, 0, 1801), Pace(9, 2.0, MB), "still"),
        (Work(50 * MB, 0, 2500), Pace(9, 2.0, MB), None),
        (Work(50 * MB, 0, 5001), Pace(9, 2.0, MB), "still"),
    ],
)
def test_what_has_had_its_time(work, pace, kind):
    found = overdue(work, pace)
    assert (found and found.kind) == kind


def test_the_pace_is_that_of_the_slowest_that_answered():
    pace = Pace()
    for cpu_s, size in ((1.0, 10), (5.0, 20), (2.0, 90)):
        pace = paced(pace, Work(size, cpu_s, 0.0))
    assert pace == Pace(3, 5.0, 20)


# ------------------------------------------------------------------ what is seen of a process


@pytest.fixture
def child():
    """Start programs; they end with the test."""
    made: list[subprocess.Popen] = []

    def start(code: str) -> int:
        made.append(subprocess.Popen([sys.executable, "-c", code]))
        return made[-1].pid

    yield start
    for process in made:
        process.kill()
        process.wait()


def watched(pid: int, seconds: float) -> Work:
    watch = ProcessWatch(pid)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.1)
        work = watch.look()
    return work


def test_a_process_that_sleeps_is_still_and_one_that_computes_is_not(child):
    sleeping = child("import time; time.sleep(600)")
    computing = child("while True: pass")
    time.sleep(1.0)  # both have begun
    assert watched(sleeping, 2.0).still_s > 1.0
    work = watched(computing, 4.0)
    assert work.cpu_s > 0.0
    assert work.still_s < 3.0


@posix
def test_a_process_that_reads_slowly_is_not_still(child, tmp_path):
    """As of a network folder that gives little at a time: hardly any computing, but bytes."""
    file = tmp_path / "slow"
    file.write_bytes(bytes(10_000))
    pid = child(
        f"import os, time\nf = os.open({str(file)!r}, os.O_RDONLY)\n"
        "while True: os.pread(f, 10, 0); time.sleep(0.3)"
    )
    time.sleep(1.0)
    if not getattr(psutil.Process(pid), "io_counters", None):
        pytest.skip("this system does not tell what a process reads")
    assert watched(pid, 2.0).still_s < 1.0


def test_a_drip_of_computing_is_no_work(child, monkeypatch):
    """The thread that watches for the parent computes a little now and then, also of a process that is stuck."""
    monkeypatch.setattr(process_watch, "_WINDOW_S", 0.5)
    seen = iter([0.01 * k for k in range(1000)])
    watch = ProcessWatch(os.getpid())
    monkeypatch.setattr(watch, "_now", lambda: (next(seen), 0))
    watch.begin(0)
    for _ in range(30):
        time.sleep(0.1)
        work = watch.look()
    assert work.still_s > 2.0


def test_the_sleep_of_the_machine_does_not_count(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(process_watch.time, "monotonic", lambda: now[0])
    watch = ProcessWatch(os.getpid())
    monkeypatch.setattr(watch, "_now", lambda: (watch._cpu_s, watch._read_bytes))
    watch.begin(0)
    for pause in (1.0, 8 * 3600.0, 1.0):
        now[0] += pause
        work = watch.look()
    assert work.still_s < 10.0


def test_a_process_that_is_gone_is_no_error():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert ProcessWatch(process.pid).look().cpu_s == 0.0


# ------------------------------------------------------------------ the pool


@pytest.fixture
def hasty(monkeypatch, pools):
    """Make pools to which hours are seconds."""
    monkeypatch.setattr(process_watch, "_LOOK_S", 0.1)
    monkeypatch.setattr(process_watch, "_WINDOW_S", 1.0)
    monkeypatch.setattr(process_watch, "_LEAST_CPU_S", 0.02)
    monkeypatch.setattr(patience, "LEAST_CPU_S", 8.0)
    monkeypatch.setattr(patience, "FIRST_CPU_S", 12.0)
    # The first item of a process takes what starting it takes.
    monkeypatch.setattr(patience, "TIMES_THE_SLOWEST", 1.0)
    monkeypatch.setattr(patience, "LEAST_STILL_S", 10.0)
    monkeypatch.setattr(worker_pool, "TOLD_AFTER_S", 2.0)
    return partial(pools, 2)


@posix
def test_items_without_an_end_are_left_out_by_name_and_the_rest_is_done(hasty, tmp_path):
    fewer: list[int] = []
    waited: list[tuple[str, float]] = []
    pool = hasty(on_fewer=fewer.append, on_waiting=lambda name, seconds: waited.append((name, seconds)))
    items = tasks(tmp_path, item1="compute", item4="read", item6="slow once")
    found = dict(pool.map(do, items, name_of=lambda item: item[0], size_of=lambda _: 100))
    assert {found[1].key, found[4].key} == {"frame_endless", "frame_silent"}
    assert found[1].values["path"] == items[1][0]
    assert found[1].values["minutes"] >= 0
    assert {i: found[i] for i in found if i not in (1, 4)} == {
        i: f"item{i}" for i in range(8) if i not in (1, 4)
    }
    # Told before anything is done about it; and not taken for want of memory.
    assert {name for name, _ in waited} >= {items[4][0], items[6][0]}
    assert min(seconds for _, seconds in waited) > 2.0
    assert fewer == []


@posix
def test_a_folder_that_is_gone_ends_the_run_instead_of_every_frame(hasty, tmp_path):
    with pytest.raises(RunFailed) as error:
        list(
            hasty().map(
                do, [(str(tmp_path / f"{i}"), "wait") for i in range(20)], name_of=lambda item: item[0]
            )
        )
    assert error.value.key == "run_error_nothing_answers"
    assert Path(error.value.values["path"]).parent == tmp_path


@posix
def test_a_process_that_cannot_be_killed_is_not_waited_for(hasty, tmp_path, monkeypatch):
    """As with a disk that is gone: the system call comes back when it likes, and the process stays until then."""
    process_class = multiprocessing.get_context("spawn").Process
    monkeypatch.setattr(worker_pool, "_KILL_S", 0.2)
    stuck: list = []

    def kill(process) -> None:
        stuck.append(process)

    with monkeypatch.context() as patched:
        patched.setattr(process_class, "kill", kill)
        found = dict(hasty().map(do, tasks(tmp_path, item0="wait")))
    assert isinstance(found[0], SkipItem)
    assert len(found) == 8
    alive = [process for process in stuck if process.is_alive()]
    assert alive
    # Nor when this process ends: nobody would have told it to.
    assert not set(alive) & set(multiprocessing.active_children())
    for process in alive:
        os.kill(process.pid, signal.SIGKILL)
        process.join()


def test_reasons_can_be_read():
    assert str(Overdue("busy", 400.0)) == "computed for 400 s"
    assert "nor read" in str(Overdue("still", 1800.0))


# ------------------------------------------------------------------ whole runs

STUCK = "light_003.fit"


def measure_or_hang(task):
    """Measure a frame; of one the read does not come back."""
    if task[0].path.name == STUCK:
        os.read(os.pipe()[0], 1)
    return measure.measure_frame(task)


def headers_or_hang(paths, root=None):
    """Read headers; of one file the read does not come back."""
    if any(path.endswith(STUCK) for path in paths):
        os.read(os.pipe()[0], 1)
    return read_batch(paths, root)


@posix
@pytest.mark.parametrize(
    ("module", "name", "function"),
    [
        (measure_on_card, "measure_frame", measure_or_hang),
        (phase0_survey, "read_batch", headers_or_hang),
    ],
)
def test_a_run_goes_on_without_the_frame(tmp_path, monkeypatch, module, name, function):
    # What computes has the patience of a real run, for it may compile; what is hasty here is the waiting.
    monkeypatch.setattr(process_watch, "_LOOK_S", 0.1)
    monkeypatch.setattr(patience, "LEAST_STILL_S", 12.0)
    write_all(tmp_path / "raw", field_sky(), pointings(n=5, step_px=(20, 0), seed=1))
    options = {"exclude_flagged_frames": False, "num_processing_workers": 2}
    with monkeypatch.context() as patched:
        patched.setattr(module, name, function)
        result = run(tmp_path / "raw", tmp_path / "out", **options)
    assert result.left_out == {STUCK: "frame_silent"}
    if module is measure_on_card:
        (tmp_path / "raw" / STUCK).unlink()
        without = run(tmp_path / "raw", tmp_path / "without", **options)
        np.testing.assert_array_equal(
            fits.getdata(result.outputs["science"]), fits.getdata(without.outputs["science"])
        )
