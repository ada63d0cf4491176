"""What every worker process does first; imports nothing of the program, so that processes start fast."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["importing", "is_process_limit", "leave_removed_folder", "limit_memory", "start_child"]

# Added to what the kernel thinks of a process that works for another: when memory runs short it goes first.
_OOM_SCORE = 300


def start_child(parent_pid: int) -> None:
    """Prepare a worker process: Ctrl-C is the parent's business, and without a parent there is no work.

    A process in the middle of an item does not look at its pipe; so it watches its parent as well.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent_pid:
            time.sleep(0.5)
        os._exit(1)

    if os.name == "posix":
        threading.Thread(target=watch, name="parent-watch", daemon=True).start()
    if sys.platform == "linux":
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE))


@contextmanager
def importing() -> Iterator[None]:
    """Import without looking for garbage among what that makes: it stays to the end.

    Looking through it again and again is a sixth to a fifth of the time that importing takes. For processes of ours.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def is_process_limit(error: BaseException) -> bool:
    """Tell whether an error is a limit of processes or threads, such as that of ``ulimit -u``."""
    # Python has no class of its own for it: `threading` raises this, `os.fork` what is called "try again".
    is_thread = isinstance(error, RuntimeError) and "can't start new thread" in str(error)
    return is_thread or isinstance(error, BlockingIOError)


def leave_removed_folder() -> None:
    """Go to the root when the folder this process works in was removed: no process can be started from there."""
    try:
        os.getcwd()
    except FileNotFoundError:
        os.chdir(os.sep)


def limit_memory(more_bytes: int) -> None:
    """Let this process take ``more_bytes`` beyond what it has; asking for more gives `MemoryError`.

    Does nothing where the system has no such limit.
    """
    if os.name != "posix":
        return
    import resource

    # What a process may write to counts on Linux; elsewhere only its whole address space can be limited.
    which = resource.RLIMIT_DATA if sys.platform == "linux" else resource.RLIMIT_AS
    _, hard = resource.getrlimit(which)
    limit = _taken_bytes() + more_bytes
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    with suppress(ValueError, OSError):
        resource.setrlimit(which, (limit, hard))


def _taken_bytes() -> int:
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    import psutil

    return int(psutil.Process().memory_info().vms)
