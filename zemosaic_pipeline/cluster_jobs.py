"""Calls of a run that are on their way to workers of a cluster, and which of them is late.

A worker may be slow or stand still without being lost. Calls read files and return values, nothing else, so one that is
late is sent a second time as soon as a worker has nothing else to do; the first answer counts, and both would be the
same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zemosaic_pipeline.elsewhere import Answer, Call

if TYPE_CHECKING:
    from zemosaic_pipeline.cluster import Cluster

__all__ = ["Awaited", "Job", "Pace"]

# Calls are late when for so many times as long as one of them takes, and longer than this, none was answered.
_LATE_TIMES = 1.5
_LATE_S = 1.0


class Awaited(Future[Any]):
    """A future whose owner looks after the cluster while it waits."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__()
        self._cluster = cluster

    def result(self, timeout: float | None = None) -> Any:
        """Return the result; raises what the call raised, or why the run cannot go on."""
        self._cluster.wait([self], timeout)
        return super().result(0)


@dataclass(eq=False)
class Job:
    """A call, the future that who asked has of it, that of Dask, and what came of the latter; see `fetch`.

    ``needs`` are resources of Dask; ``possible`` tells whether a worker has them. ``sent_s`` is a time of
    `time.monotonic`. Two jobs with the same ``outer`` are one call that was sent twice.

    A call for a block of rows has its number; then ``address`` is the worker it was sent to, empty while it waits, and
    ``losses`` tells how many workers were lost while they were at work on it.
    """

    call: Call
    outer: Awaited
    needs: tuple[str, ...] = ()
    possible: Callable[[], bool] = lambda: True
    remote: Any = None
    inner: Future[Answer] = field(default_factory=Future)
    deaths: int = 0
    sent_s: float = 0.0
    block: int | None = None
    address: str = ""
    losses: int = 0

    def drop(self) -> None:
        """Ask for nothing more of what was sent."""
        self.inner.cancel()
        if self.remote is not None:
            self.remote.cancel()

    def twin(self) -> Job:
        """Return the same call, to be sent once more."""
        return Job(self.call, self.outer, self.needs, self.possible, block=self.block)


@dataclass
class Pace:
    """How long workers take for calls, by their functions, and when the last one was answered."""

    spent: dict[str, tuple[float, int]] = field(default_factory=dict)
    answered_s: float = 0.0

    def note(self, job: Job, seconds: float, now_s: float) -> None:
        """Count a call that took a worker so long."""
        total, n = self.spent.get(job.call.function.__name__, (0.0, 0))
        self.spent[job.call.function.__name__] = (total + seconds, n + 1)
        self.answered_s = now_s

    def late(self, jobs: Sequence[Job], now_s: float) -> Job | None:
        """Return the call that may be sent once more: the first one, when none was answered for longer than it takes.

        Calls for which not every worker will do, such as those of a solver, and those that a worker died over are not
        sent twice.
        """
        asked = [job.outer for job in jobs if not job.outer.done()]
        for job in sorted(jobs, key=lambda job: job.sent_s):
            total, n = self.spent.get(job.call.function.__name__, (0.0, 0))
            if n == 0 or job.needs or job.deaths or asked.count(job.outer) != 1:
                continue
            if now_s - max(self.answered_s, job.sent_s) > max(_LATE_S, _LATE_TIMES * total / n):
                return job
        return None
