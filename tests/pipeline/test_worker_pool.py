"""Processes that die at work cost the item they died over, and nothing else."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import sys
import time
from pathlib import Path

import pytest
from items_of_all_kinds import tasks

from zemosaic_core.errors import Cancelled, RunFailed, SkipItem
from zemosaic_pipeline import worker_pool
from zemosaic_pipeline.frame_boundary import result_or_skip
from zemosaic_pipeline.machine import no_more_processes
from zemosaic_pipeline.worker_pool import WorkerPool

posix = pytest.mark.skipif(os.name == "nt", reason="signals and limits of POSIX")


def work(item: tuple[str, str]) -> str:
    """Do what an item says, such as dying."""
    name, what = item
    mark = Path(name)
    if what == "abort":
        os.abort()
    if what == "kill once" and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "leave":
        os._exit(3)
    if what == "raise":
        raise ValueError(name)
    if what == "strange":

        class Local(Exception):
            """Cannot be copied between processes."""

        raise Local(name)
    if what == "sleep":
        mark.touch()
        time.sleep(60)
    return mark.name


def looks_for_garbage(_item: str) -> bool:
    """Tell whether garbage is looked for while an item is worked on."""
    return gc.isenabled()


def test_garbage_is_looked_for_while_items_are_worked_on(pools):
    assert dict(pools(1).map(looks_for_garbage, ["a", "b"])) == {0: True, 1: True}


def take_memory(item: tuple[str, str]) -> str | SkipItem:
    """Die of want of memory like a process that the kernel ended, then alone by a limit."""
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if limit == resource.RLIM_INFINITY and item[1] == "greedy":
        os.kill(os.getpid(), signal.SIGKILL)
    taken = result_or_skip(item[0], bytearray, 1_500_000_000 if item[1] == "greedy" else 1000)
    return taken if isinstance(taken, SkipItem) else item[0]


@posix
def test_items_that_kill_are_left_out_by_name_and_the_rest_is_done(pools, tmp_path):
    fewer: list[int] = []
    pool = pools(2, on_fewer=fewer.append)
    items = tasks(tmp_path, item1="abort", item2="kill once", item5="leave")
    found = {Path(items[i][0]).name: answer for i, answer in pool.map(work, items, name_of=lambda i: i[0])}
    assert len(found) == 8
    skipped = {name: found.pop(name) for name in ("item1", "item5")}
    assert found == {name: name for name in found}
    assert {skip.key for skip in skipped.values()} == {"frame_killed_worker"}
    assert skipped["item1"].values == {"path": items[1][0], "reason": "SIGABRT"}
    assert skipped["item5"].values["reason"] == "exit code 3"
    # Only what is killed outright speaks of memory.
    assert fewer == [1]


@posix
@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit what a process takes")
def test_want_of_memory_is_told_as_such(pools, tmp_path):
    pool = pools(2, alone_bytes=300_000_000)
    items = tasks(tmp_path, item3="greedy")
    found = dict(pool.map(take_memory, items, name_of=lambda item: item[0]))
    skip = found.pop(3)
    assert (skip.key, skip.values["path"]) == ("frame_no_memory", items[3][0])
    assert skip.values["free_mb"] > 0
    assert found == {i: items[i][0] for i in found}
    assert len(found) == 7


@posix
def test_processes_start_from_a_folder_that_was_removed(pools, tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert dict(pools(1).map(work, tasks(tmp_path)[:1])) == {0: "item0"}


@posix
def test_processes_that_only_die_end_the_run(pools, tmp_path):
    items = [(str(tmp_path / f"{i}"), "leave") for i in range(20)]
    with pytest.raises(RunFailed) as error:
        list(pools(2).map(work, items))
    assert error.value.key == "run_error_worker_died"


@pytest.mark.parametrize(("what", "kind"), [("raise", ValueError), ("strange", RuntimeError)])
def test_what_is_raised_there_is_raised_here(pools, tmp_path, what, kind):
    with pytest.raises(kind) as error:
        list(pools(1).map(work, tasks(tmp_path, item0=what)))
    notes = "".join([*getattr(error.value, "__notes__", []), str(error.value)])
    assert "in work" in notes


def test_giving_up_ends_what_is_at_work(pools, tmp_path):
    """A minute of work is not waited for."""

    def check() -> None:
        if (tmp_path / "item0").exists():
            raise Cancelled()

    pool = pools(2, check=check)
    start = time.monotonic()
    with pytest.raises(Cancelled):
        list(pool.map(work, tasks(tmp_path, item0="sleep")))
    assert pool.ended_by_force
    assert time.monotonic() - start < 50


def test_a_limit_of_processes_is_told_as_one(monkeypatch):
    """Where not one can be started, and where one can that gets no thread to watch its parent with."""

    def refused(_process):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    pool = WorkerPool(2)
    with monkeypatch.context() as patched:
        patched.setattr(multiprocessing.get_context("spawn").Process, "start", refused)
        with pytest.raises(BlockingIOError) as error:
            list(pool.map(abs, [1, 2]))
    assert no_more_processes(error.value).key == "run_error_processes"
    ours, theirs = multiprocessing.Pipe()
    monkeypatch.setattr(worker_pool, "start_child", no_thread)
    ours.send_bytes(b"whatever is asked")
    worker_pool._serve(theirs, os.getpid(), 0)
    succeeded, answer = pickle.loads(ours.recv_bytes())
    assert not succeeded
    assert no_more_processes(answer).key == "run_error_processes"


def no_thread(parent_pid):
    raise RuntimeError("can't start new thread")


def test_a_signal_to_all_that_reaches_a_new_process_first_is_a_stop(monkeypatch):
    tried = []

    def start(_process) -> None:
        tried.append(True)
        raise BrokenPipeError

    def check() -> None:
        if tried:
            raise Cancelled()

    monkeypatch.setattr(multiprocessing.get_context("spawn").Process, "start", start)
    with pytest.raises(Cancelled):
        list(WorkerPool(2, check=check).map(work, [("a", "")]))
