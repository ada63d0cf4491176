"""What every worker process does first; imports nothing of the program, so that processes start fast."""

from __future__ import annotations

import os
import signal
import threading
import time

__all__ = ["start_child"]


def start_child(parent_pid: int) -> None:
    """Prepare a worker process: Ctrl-C is the parent's business, and without a parent there is no work.

    A worker waits for its next item on a pipe it holds both ends of; it would wait for ever when the parent is
    killed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent_pid:
            time.sleep(1.0)
        os._exit(1)

    if os.name == "posix":
        threading.Thread(target=watch, name="parent-watch", daemon=True).start()
