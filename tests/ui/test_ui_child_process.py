"""Ending a child by force leaves its exit code to the one who started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from zemosaic_ui.child_process import end_process_tree

SLEEPS = "import time; print('up', flush=True); time.sleep(60)"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEPS
WITH_CHILD = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEPS!r}]).wait()"


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
