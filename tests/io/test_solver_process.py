from __future__ import annotations

import os
import sys
import threading
import time

import pytest

from zemosaic_core.errors import Cancelled, SaveFailed
from zemosaic_io.solvers.process import run_child, solver_folder

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open("grandchild", "w").write(str(child.pid))
print("started", flush=True)
time.sleep(60)
"""


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().split(") ")[1][0] != "Z"


def wait_gone(pid):
    for _ in range(100):
        try:
            if not is_alive(pid):
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def test_output_and_exit_status(tmp_path):
    result = run_child([sys.executable, "-c", "import sys; print('hello'); sys.exit(3)"], tmp_path, 10)
    assert (result.returncode, result.tail, result.timed_out) == (3, "hello", False)


def test_program_that_does_not_exist(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        run_child(["/nowhere/prog"], tmp_path, 5)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
@pytest.mark.parametrize("how", ["timeout", "cancel"])
def test_the_whole_family_ends(tmp_path, how):
    cancel = threading.Event()
    command = [sys.executable, "-c", PARENT]
    if how == "timeout":
        result = run_child(command, tmp_path, 1.0)
        assert result.timed_out
        assert result.tail == "started"
    else:
        threading.Timer(1.0, cancel.set).start()
        start = time.monotonic()
        with pytest.raises(Cancelled):
            run_child(command, tmp_path, 60, cancel)
        assert time.monotonic() - start < 50  # the program itself would take 60 s
    assert wait_gone(int((tmp_path / "grandchild").read_text()))


def test_nothing_starts_after_cancel(tmp_path):
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Cancelled):
        run_child([sys.executable, "-c", "open('ran', 'w')"], tmp_path, 5, cancel)
    assert list(tmp_path.iterdir()) == []


def test_private_folder_is_removed(tmp_path):
    with solver_folder(tmp_path / "work") as folder:
        assert "." not in folder.name
        (folder / "x").write_text("")
    assert list((tmp_path / "work").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveFailed), solver_folder(tmp_path / "file"):
        pass


def test_of_a_flood_the_end_is_kept_and_nothing_else(tmp_path):
    flood = "import sys\nfor i in range(40_000): print('flood ' * 20)\nprint('last words')"
    result = run_child([sys.executable, "-c", flood], tmp_path, 60)
    assert result.tail.endswith("last words")
    assert len(result.tail) <= 4000
    assert not result.too_much
    endless = "import sys\nwhile True: sys.stdout.write('flood ' * 10_000)"
    result = run_child([sys.executable, "-c", endless], tmp_path, 60)
    assert (result.too_much, result.timed_out) == (True, False)
    assert list(tmp_path.iterdir()) == []


def test_a_program_may_not_fill_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("zemosaic_io.solvers.process._MAX_FOLDER_BYTES", 1_000_000)
    writes = "import time\nopen('big', 'wb').write(bytes(2_000_000))\ntime.sleep(60)"
    result = run_child([sys.executable, "-c", writes], tmp_path, 50)
    assert (result.too_much, result.timed_out) == (True, False)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_a_child_that_left_the_family_ends_too(tmp_path):
    """It has a session of its own and keeps the output open."""
    parent = PARENT.replace('time.sleep(60)"])', 'time.sleep(60)"], start_new_session=True)')
    assert parent != PARENT
    result = run_child([sys.executable, "-c", parent], tmp_path, 1.0)
    assert (result.timed_out, result.tail) == (True, "started")
    assert wait_gone(int((tmp_path / "grandchild").read_text()))
