"""One thread behind a window that does what was asked for, job after job, and forgets what nobody wants any more."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["WorkThread"]

Job = TypeVar("Job")


class WorkThread(Generic[Job]):
    """A daemon thread with its queue; it starts with the first job.

    Parameters
    ----------
    name : str
        Name of the thread.
    do : callable
        ``do(job)``, called in the thread; it deals with the errors of its job itself.
    """

    def __init__(self, name: str, do: Callable[[Job], object]) -> None:
        self._name = name
        self._do = do
        self._jobs: deque[Job] = deque()
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def put(
        self, *jobs: Job, first: bool = False, replaces: Callable[[Job], bool] = lambda job: False
    ) -> None:
        """Add jobs at the end, or at the front; jobs that wait and that they replace are forgotten."""
        with self._wake:
            kept = [job for job in self._jobs if not replaces(job)]
            self._jobs = deque([*jobs, *kept] if first else [*kept, *jobs])
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()
            self._wake.notify()

    def clear(self) -> None:
        """Forget the jobs that wait."""
        with self._wake:
            self._jobs.clear()

    @property
    def waiting(self) -> int:
        """Number of jobs that wait; the one that is being done is not among them."""
        return len(self._jobs)

    def close(self, wait_s: float = 0.0) -> None:
        """Forget what waits and end the thread after its job; wait that long for it."""
        with self._wake:
            self._closed = True
            self._jobs.clear()
            self._wake.notify()
        if self._thread is not None and wait_s > 0:
            self._thread.join(wait_s)

    def _work(self) -> None:
        while True:
            with self._wake:
                while not self._jobs and not self._closed:
                    self._wake.wait()
                if self._closed:
                    return
                job = self._jobs.popleft()
            self._do(job)
