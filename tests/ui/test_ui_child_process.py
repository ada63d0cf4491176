"""Ending a child by force leaves its exit code to the one who started it."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from zemosaic_ui import child_process
from zemosaic_ui.child_errors import remove_old_logs
from zemosaic_ui.child_process import ChildProcess, end_process_tree

SLEEPS = "import time; print('up', flush=True); time.sleep(60)"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEPS
WITH_CHILD = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {SLEEPS!r}]).wait()" + (
    "; time.sleep(60)"
)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("code", "number", "size"),
    [(SLEEPS, signal.SIGTERM, 1), (DEAF, signal.SIGKILL, 1), (WITH_CHILD, signal.SIGTERM, 2)],
)
def test_exit_code_stays_with_whoever_started_the_child(code, number, size):
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"up\n"
        assert end_process_tree(child.pid, patience_s=1.0) == size
        assert child.poll() == -number
    assert end_process_tree(child.pid) == 0


def test_logs_of_killed_parents_do_not_stay_for_ever(tmp_path):
    for name, days in (("zemosaic_child_a.log", 40), ("zemosaic_child_b.log", 2), ("other.log", 40)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - 86400 * days,) * 2)
    remove_old_logs(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.log", "zemosaic_child_b.log"]


@pytest.mark.skipif(os.name == "nt", reason="files without a name")
def test_what_a_child_said_is_kept_for_its_parent_and_nowhere_else(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    child = ChildProcess("test_ui_child_process:complain")
    assert child.wait(60)
    assert child.exit_code == 3
    assert child.error_text().endswith("the end \u2603\nand its child")
    assert 7_000 < len(child.error_text()) <= 8_000
    assert not list(tmp_path.iterdir())
    child.close()
    assert child.error_text() == ""


def complain(_queue, *, cancel_event):
    sys.stderr.write("x" * 10_000 + "the end \u2603\n")
    subprocess.run([sys.executable, "-c", "import sys; sys.stderr.write('and its child')"], check=False)
    sys.exit(3)


def tell_garbage(queue, *, cancel_event):
    """Body of a child that says whether garbage is looked for, and whether what it imported is left out of that."""
    queue.put((gc.isenabled(), gc.get_freeze_count() > 0))


def test_a_child_does_not_look_for_garbage_among_what_it_imported():
    child = ChildProcess("test_ui_child_process:tell_garbage")
    assert child.wait(60)
    assert child.poll() == [(True, True)]
    child.close()


@pytest.mark.parametrize("name", ["zemosaic-listener", "zemosaic-reader"])
def test_a_limit_of_threads_is_a_start_that_failed(monkeypatch, name):
    """Before, nobody ever heard of the end of such a process, and who waited for it waited for ever."""
    start = threading.Thread.start

    def limited(thread):
        if thread.name == name:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    child = ChildProcess("time:sleep")
    assert child.wait(30.0)
    assert "can't start new thread" in child.start_error
    assert child.met_process_limit
    assert child.is_finished
    child.close()


def test_a_limit_that_allows_no_process_at_all_is_a_start_that_failed(monkeypatch):
    """Python keeps book of semaphores in a process of its own; before, a traceback reached the terminal."""

    def limited():
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(child_process, "_start_tracker", limited)
    child = child_process.ChildProcess("time:sleep")
    assert child.met_process_limit
    assert child.is_finished
    assert (child.pid, child.exit_code, child.poll()) == (None, None, [])
    child.request_cancel()
    child.end_after(0.0)
    child.close()


class NoThreads:
    """Where this arrives no thread can be started any more."""

    def __setstate__(self, state):
        threading.Thread.start = refused


def refused(thread):
    raise RuntimeError("can't start new thread")


def get_no_thread(queue, *, cancel_event):
    """Body of a child that meets the limit later, and still says something before it ends."""
    queue.put("heard")
    refused(None)


@pytest.mark.parametrize("when", ["from the start", "later"])
def test_a_child_without_threads_says_so_in_another_way(when):
    never = NoThreads()
    never.state = 1
    arguments = [never] if when == "from the start" else []
    child = ChildProcess("test_ui_child_process:get_no_thread", *arguments)
    assert child.wait(60)
    assert child.exit_code == 1
    assert child.met_process_limit
    assert "Traceback" not in child.error_text()
    assert child.poll() == ([] if arguments else ["heard"])
    child.close()
