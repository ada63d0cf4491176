"""Watches memory and disk while a run is at work, and stops it before the system does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from zemosaic_core.errors import RunFailed, ZeMosaicError
from zemosaic_pipeline.machine import free_disk
from zemosaic_pipeline.patience import TOLD_AFTER_S

__all__ = ["LEAST_DISK_BYTES", "ResourceWatch", "bytes_of", "family_of", "private_bytes"]

# With less than this no file of a run can be relied on to become complete.
LEAST_DISK_BYTES = 20_000_000
# Samples of the memory between two looks at the disk, and for processes that were started.
_LOOK_EVERY = 5
# A thread whose look at a disk does not come back is not waited for at the end.
_END_S = 0.5


def family_of(process: psutil.Process | None = None) -> list[psutil.Process]:
    """Return a process, by default this one, and its children; none when it has ended.

    Every process of the system is looked at for it: 1 to 7 ms.
    """
    first = process or psutil.Process()
    try:
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def bytes_of(family: Sequence[psutil.Process]) -> int:
    """Return the memory of processes that is theirs alone; what has ended counts nothing.

    File-backed pages are left out: a memory-mapped FITS file is the system's cache, not ours.
    """
    total = 0
    for member in family:
        try:
            info = member.memory_info()
        except psutil.NoSuchProcess:
            continue
        total += info.rss - getattr(info, "shared", 0)
    return total


def private_bytes(process: psutil.Process | None = None) -> int:
    """Return the memory of a process, by default this one, and its children that is theirs alone."""
    return bytes_of(family_of(process))


class ResourceWatch:
    """Samples the memory of the run's processes and the disk its files go to.

    Parameters
    ----------
    folders : sequence of Path
        Where the run writes: its results and its state may lie on different disks.
    stop : callable
        Told why the run has to stop: ``run_error_disk_nearly_full``, or ``run_error_memory_limit``.
    on_waiting : callable
        Told the folder, and for how many seconds its disk has not said what is free; once for each such look.
    interval_s : float
        Between two samples of the memory.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        stop: Callable[[ZeMosaicError], None],
        on_waiting: Callable[[str, float], None] = lambda _folder, _seconds: None,
        interval_s: float = 0.2,
    ) -> None:
        self.limit_bytes = 0
        self._folders = folders
        self._tell = stop
        self._on_waiting = on_waiting
        self._asked: tuple[Path, float] | None = None
        self._told: tuple[Path, float] | None = None
        self._interval_s = interval_s
        self._peak = 0
        self._family: list[psutil.Process] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="resource-watch", daemon=True)
        # A disk that hangs must not keep the memory from being watched.
        self._disk_thread = threading.Thread(target=self._watch_disk, name="disk-watch", daemon=True)
        self._thread.start()
        self._disk_thread.start()

    def _watch(self) -> None:
        count = 0
        while not self._stop.wait(self._interval_s):
            if count % _LOOK_EVERY == 0:
                self._family = family_of()
            self._sample()
            count += 1
            self._look_at_watch()

    def _watch_disk(self) -> None:
        while not self._stop.wait(_LOOK_EVERY * self._interval_s):
            for folder in self._folders:
                self._asked = folder, time.monotonic()
                self._look_at_disk(folder)
                self._asked = None

    def _look_at_watch(self) -> None:
        """Tell of a disk that has not answered for long, by which the run stands still as well."""
        asked = self._asked
        if asked is None or asked is self._told:
            return
        seconds = time.monotonic() - asked[1]
        if seconds > TOLD_AFTER_S:
            self._told = asked
            self._on_waiting(str(asked[0]), seconds)

    def _sample(self) -> None:
        now = bytes_of(self._family)
        with self._lock:
            self._peak = max(self._peak, now)
        if 0 < self.limit_bytes < now:
            used_mb, limit_mb = round(now / 1e6), round(self.limit_bytes / 1e6)
            self._tell(
                RunFailed(
                    "run_error_memory_limit",
                    f"the run took {used_mb} MB of memory where memory_limit_mb allows {limit_mb}",
                    used_mb=used_mb,
                    limit_mb=limit_mb,
                )
            )

    def _look_at_disk(self, folder: Path) -> None:
        try:
            free = free_disk(folder)
        except OSError:
            return  # a disk that is gone is told by whoever writes next
        if free < LEAST_DISK_BYTES:
            self._tell(
                RunFailed(
                    "run_error_disk_nearly_full",
                    f"{folder}: {free} bytes are free",
                    path=str(folder),
                    free_mb=round(free / 1e6),
                )
            )

    def take_peak(self) -> int:
        """Return the peak in bytes since the last call and start anew."""
        self._family = family_of()
        self._sample()
        with self._lock:
            peak, self._peak = self._peak, 0
        return peak

    def close(self) -> None:
        """Stop sampling."""
        self._stop.set()
        self._thread.join()
        self._disk_thread.join(_END_S)
