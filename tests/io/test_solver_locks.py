from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from zemosaic_core.errors import Cancelled, SaveFailed
from zemosaic_io import file_locks
from zemosaic_io.solvers import locks
from zemosaic_io.solvers.locks import LaunchRate, SolverSlots, slots_from_environment

HOLDER = """
import sys, time
from pathlib import Path
from zemosaic_io.solvers.locks import SolverSlots
with SolverSlots(1, Path(sys.argv[1])).hold():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("shared", [True, False])
def test_never_more_than_the_limit(tmp_path, shared):
    slots = SolverSlots(2, tmp_path if shared else None)
    lock, running, most = threading.Lock(), [0], [0]

    def work():
        with slots.hold():
            with lock:
                running[0] += 1
                most[0] = max(most[0], running[0])
            time.sleep(0.03)
            with lock:
                running[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 2


def test_place_of_a_killed_process_is_free_at_once(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout.readline().strip() == b"held"
    cancel = threading.Event()
    threading.Timer(0.3, cancel.set).start()
    with pytest.raises(Cancelled), SolverSlots(1, tmp_path).hold(cancel):
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with SolverSlots(1, tmp_path).hold():  # waits for ever if it is not
        pass


def test_lock_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    slots = SolverSlots(1, tmp_path / "file" / "locks")
    for _ in range(2):
        with pytest.raises(SaveFailed), slots.hold():
            pass


def test_environment(tmp_path):
    slots, rate = slots_from_environment(
        3,
        {
            "ZEMOSAIC_ASTAP_MAX_PROCS": "zero",
            "ZEMO_ASTAP_MAX_PROCS": "5",
            "ZEMOSAIC_ASTAP_LOCK_DIR": str(tmp_path),
            "ZEMOSAIC_ASTAP_RATE_SEC": "0.5",
            "ZEMOSAIC_ASTAP_RATE_BURST": "4",
        },
    )
    assert (slots.limit, slots.folder) == (5, tmp_path)
    assert (rate.interval_s, rate.burst) == (0.5, 4)
    slots, rate = slots_from_environment(3, {"ZEMOSAIC_ASTAP_DISABLE_IPC_LOCK": "Yes"})
    assert (slots.limit, slots.folder, rate.interval_s) == (3, None, 0.0)
    own = slots_from_environment(3, {})[0].folder.name
    assert own.startswith("zemosaic_astap_slots_")
    assert own.removeprefix("zemosaic_astap_slots_")


@pytest.mark.skipif(os.name == "nt", reason="modes of POSIX")
def test_lock_files_that_another_user_made_can_be_locked(tmp_path):
    folder = tmp_path / "shared"
    with SolverSlots(1, folder).hold():
        assert stat.S_IMODE(folder.stat().st_mode) == 0o1777
        assert stat.S_IMODE((folder / "slot_0.lock").stat().st_mode) == 0o666
    # What an older version or a strict umask made: may be read only.
    (folder / "slot_0.lock").chmod(0o444)
    with SolverSlots(1, folder).hold():
        cancel = threading.Event()
        cancel.set()
        with pytest.raises(Cancelled), SolverSlots(1, folder).hold(cancel):
            pass


def test_launch_rate(monkeypatch):
    now = [100.0]

    def sleep(seconds):
        now[0] += seconds

    monkeypatch.setattr(locks, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    rate = LaunchRate(0.2, burst=2)
    starts = []
    for _ in range(4):
        rate.wait()
        starts.append(now[0] - 100.0)
    assert starts[:2] == [0.0, 0.0]
    np.testing.assert_allclose(starts[2:], [0.2, 0.4], atol=0.06)  # looked at twenty times a second
    cancel = threading.Event()
    cancel.set()
    slow = LaunchRate(60.0, burst=1)
    slow.wait()
    with pytest.raises(Cancelled):
        slow.wait(cancel)


@pytest.mark.skipif(os.name == "nt", reason="locks of POSIX")
def test_where_there_are_no_locks_the_work_goes_on(tmp_path, monkeypatch):
    def flock(_handle, _how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(file_locks.fcntl, "flock", flock)
    with (tmp_path / "run.lock").open("wb") as file:
        assert file_locks.try_lock(file)
