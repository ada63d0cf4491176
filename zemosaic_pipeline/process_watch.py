"""Watch what a process, or a thread, does for its item: how much it computed, and for how long it did nothing."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress

import psutil

from zemosaic_pipeline.patience import Work

__all__ = ["ProcessWatch", "ThreadWatch"]

# Between two looks.
_LOOK_S = 1.0
# A longer pause between two looks is one of the whole run: it was halted, or the machine slept.
_LONGEST_PAUSE_S = 5.0
# Within so many seconds a process that is at work computes this much, even on a machine that has no time for it; the
# thread that watches for its parent takes a hundredth of that.
_WINDOW_S, _LEAST_CPU_S = 30.0, 0.1


class ProcessWatch:
    """What one process does for each of its items.

    Parameters
    ----------
    pid : int
    """

    def __init__(self, pid: int) -> None:
        self._process: psutil.Process | None = None
        # One that has ended already is told by its pipe.
        with suppress(psutil.Error):
            self._process = psutil.Process(pid)
        self._cpu_s, self._read_bytes = self._now() or (0.0, 0)
        self.begin(0)

    def begin(self, size_bytes: int) -> None:
        """Begin anew for another item, of a file of ``size_bytes``; 0 when it has none."""
        self._size_bytes = size_bytes
        # A process without an item does nothing, so what was seen last still holds.
        self._began_cpu_s = self._window_cpu_s = self._cpu_s
        self._still_s = self._window_s = 0.0
        self._looked_s = time.monotonic()

    def _now(self) -> tuple[float, int] | None:
        """Return seconds of the processor and bytes read so far; None when the process does not say."""
        if self._process is None:
            return None
        try:
            times = self._process.cpu_times()
            return times.user + times.system, _bytes_read(self._process)
        except psutil.Error:
            return None

    @property
    def is_due(self) -> bool:
        """Whether it is time for another look."""
        return time.monotonic() - self._looked_s >= _LOOK_S

    def look(self) -> Work:
        """Look again and return what was done until now."""
        passed_s = min(time.monotonic() - self._looked_s, _LONGEST_PAUSE_S)
        self._looked_s = time.monotonic()
        self._still_s += passed_s
        self._window_s += passed_s
        if (now := self._now()) is not None:
            self._cpu_s, read = now
            if read != self._read_bytes or self._cpu_s - self._window_cpu_s >= _LEAST_CPU_S:
                self._read_bytes, self._still_s = read, 0.0
                self._window_cpu_s, self._window_s = self._cpu_s, 0.0
            elif self._window_s >= _WINDOW_S:
                self._window_cpu_s, self._window_s = self._cpu_s, 0.0
        return Work(self._size_bytes, self._cpu_s - self._began_cpu_s, self._still_s)


class ThreadWatch(ProcessWatch):
    """What one thread of this process does.

    Where the system does not tell what a thread computes and reads (only Linux tells both), it looks as if it did
    nothing.

    Parameters
    ----------
    thread : Thread
        It has begun.
    """

    def __init__(self, thread: threading.Thread) -> None:
        self._thread = thread
        super().__init__(os.getpid())

    def _now(self) -> tuple[float, int] | None:
        ident, native = self._thread.ident, self._thread.native_id
        clock_of = getattr(time, "pthread_getcpuclockid", None)
        if clock_of is None or ident is None or not self._thread.is_alive():
            return None
        cpu_s = time.clock_gettime(clock_of(ident))
        read = 0
        with suppress(OSError, ValueError), open(f"/proc/self/task/{native}/io", encoding="ascii") as file:
            read = sum(int(line.split()[1]) for line in file if line.startswith(("rchar", "read_bytes")))
        return cpu_s, read


def _bytes_read(process: psutil.Process) -> int:
    """Bytes that a process has read so far; 0 where the system does not tell."""
    try:
        counters = process.io_counters()
    except (AttributeError, NotImplementedError):
        return 0
    return int(getattr(counters, "read_chars", 0) + counters.read_bytes)
