"""A run that does not stop by itself is ended, and no reader is waited for that does not read."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from zemosaic_pipeline import outside_stop
from zemosaic_pipeline.outside_stop import StopRequest, send_the_rest, stop_from_outside

ROOT = Path(__file__).parents[2]
posix = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")

DEAF = """
import subprocess, sys, time
from zemosaic_pipeline.outside_stop import stop_from_outside
with stop_from_outside():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print(child.pid, flush=True)
    time.sleep(600)
"""

# Compiled code that lets other threads run: Python calls no handler of a signal before it comes back.
COMPILED = DEAF.replace(
    "    time.sleep(600)\n", "    import hashlib; hashlib.pbkdf2_hmac('sha256', b'x', b'y', 2_000_000_000)\n"
)
AT_REST = """
import os, sys, time
from zemosaic_pipeline.outside_stop import stop_from_outside
class Event:
    def is_set(self): return os.path.exists(sys.argv[1])
with stop_from_outside(Event(), at_once=True):
    time.sleep(0.3)
    open(sys.argv[1], "w").close()
    time.sleep(600)
"""


def deaf(before: str = "", code: str = DEAF) -> tuple[subprocess.Popen, psutil.Process]:
    """Start a program that honours no request, with a child; return both."""
    process = subprocess.Popen(
        [sys.executable, "-c", before + code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    return process, psutil.Process(int(process.stdout.readline()))


@posix
@pytest.mark.parametrize(
    ("number", "code"), list(zip(outside_stop.STOP_SIGNALS, (COMPILED, DEAF), strict=False))
)
def test_what_does_not_stop_is_ended_with_its_children(number, code):
    process, child = deaf(code=code)
    process.send_signal(number)
    assert process.wait(timeout=60) == 130
    assert psutil.wait_procs([child], timeout=60)[1] == []


def test_what_has_not_begun_is_ended_at_the_first_word(tmp_path):
    """Also by a request that a run would take its time for."""
    process = subprocess.run(
        [sys.executable, "-c", AT_REST, str(tmp_path / "asked")], cwd=ROOT, timeout=60, check=False
    )
    assert process.returncode == 130


def test_a_request_of_the_window_is_not_waited_for_longer(tmp_path):
    code = AT_REST.replace(", at_once=True", "")
    began_s = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "asked")], cwd=ROOT, timeout=60, check=False
    )
    assert process.returncode == 130
    assert time.monotonic() - began_s > outside_stop.STOP_WITHIN_S


@posix
def test_a_run_under_nohup_outlives_its_terminal():
    process, child = deaf("import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n")
    process.send_signal(signal.SIGHUP)
    time.sleep(2.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 130
    assert psutil.wait_procs([child], timeout=60)[1] == []


def orphan(pid_file: str) -> None:
    """Wait for the end of the parent, and tell by a file that it was noticed."""
    with stop_from_outside() as request:
        Path(pid_file).write_text(str(os.getpid()))
        while not request.is_set():
            time.sleep(0.02)
        Path(pid_file).with_suffix(".stopped").touch()


def test_the_end_of_the_parent_is_a_request_to_stop(tmp_path):
    """The parent starts the child and ends at once, the hard way."""
    code = (
        f"import sys, os, time; sys.path[:0] = {[str(ROOT), str(Path(__file__).parent)]!r}\n"
        "import multiprocessing as m, test_outside_stop as t\n"
        "if __name__ == '__main__':\n"
        f"    p = m.get_context('spawn').Process(target=t.orphan, args=({str(tmp_path / 'pid')!r},)); p.start()\n"
        f"    while not os.path.exists({str(tmp_path / 'pid')!r}): time.sleep(0.02)\n"
        "    os._exit(9)\n"
    )
    (tmp_path / "parent.py").write_text(code)
    assert subprocess.run([sys.executable, str(tmp_path / "parent.py")], check=False).returncode == 9
    until = time.monotonic() + 60
    while not (tmp_path / "pid.stopped").exists():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_messages_nobody_reads_do_not_keep_a_process(monkeypatch):
    monkeypatch.setattr(outside_stop, "_UNREAD_S", 0.3)
    queue = multiprocessing.get_context("spawn").Queue()
    for _ in range(50):
        queue.put("x" * 100_000)
    start = time.monotonic()
    send_the_rest(queue)
    assert time.monotonic() - start < 30


def test_a_request_knows_both_its_sources():
    class Event:
        def __init__(self, value: bool) -> None:
            self.is_set = lambda: value

    assert not StopRequest().is_set()
    assert StopRequest(Event(True)).is_set()
    asked = StopRequest(Event(False))
    assert not asked.is_set()
    asked.set()
    assert asked.is_set()
