"""Blocks of rows on their way: those that wait here, and what each worker of a cluster has.

Dask is told which worker a block is for. It takes that as an order which nobody carries out when the worker is gone, or
with leave for any other one, also those that were left out; so the order is given, and what becomes of a worker is
seen to here: what a lost one had waits again. `cluster_stretches` decides who gets what.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Executor, Future
from typing import Any

from zemosaic_pipeline.cluster_jobs import Job
from zemosaic_pipeline.cluster_stretches import Desk, Stretches, next_step
from zemosaic_pipeline.elsewhere import WorkerFacts

__all__ = ["Desks", "SecondCoadd", "Series"]

# A block over which so many workers were lost is tried again with nothing else at work, as Dask does on its own.
_MOST_LOST = 3


class SecondCoadd(RuntimeError):
    """Blocks of two co-adds met on one cluster; they are told apart by their numbers alone."""


class Series(Executor):
    """Blocks of one co-add, from the top; see `zemosaic_pipeline.cluster.Cluster.in_rows`."""

    def __init__(self, send: Callable[[int, Callable[..., Any], tuple[Any, ...]], Future[Any]]) -> None:
        self._send = send
        self._n = 0

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Send a call for the next block."""
        if kwargs:
            raise TypeError("arguments are sent by their places")
        self._n += 1
        return self._send(self._n - 1, function, args)


class Desks:
    """What waits, and what the workers have, by their addresses."""

    def __init__(self) -> None:
        self._waiting: dict[int, Job] = {}
        self._sent: defaultdict[str, list[Job]] = defaultdict(list)
        # Workers that are at work on what another one has answered in the meantime.
        self._late: defaultdict[str, list[Job]] = defaultdict(list)
        self._stretches = Stretches(1)
        self._series = 0

    @property
    def some_are_late(self) -> bool:
        """Whether workers may be at work on what others have answered."""
        return bool(self._late)

    def begin(self, most: int) -> int:
        """Begin a series of which so many blocks may be on their way; return its number.

        Raises
        ------
        SecondCoadd
            Somebody still waits for blocks of the series before.
        """
        with_workers = (job for jobs in self._sent.values() for job in jobs)
        jobs = (job for job in (*self._waiting.values(), *with_workers) if not job.outer.done())
        awaited = {job.block for job in jobs if job.block is not None}
        if awaited:
            raise SecondCoadd(
                f"blocks {sorted(awaited)} of another co-add are on their way; a cluster takes one co-add at a time"
            )
        self._waiting = {}
        self._stretches = Stretches(most)
        self._series += 1
        return self._series

    def check(self, series: int) -> None:
        """Raise `SecondCoadd` when another series has begun since this one."""
        if series != self._series:
            raise SecondCoadd(
                f"co-add {self._series} has begun on this cluster; {series} can send no more blocks"
            )

    def wait(self, job: Job) -> None:
        """Let a block wait until a worker has time for it."""
        assert job.block is not None
        self._waiting[job.block] = job

    def sent(self, job: Job, address: str) -> None:
        """Note that a block was sent to a worker."""
        job.address = address
        self._sent[address].append(job)

    def may_be_begun(self, job: Job) -> bool:
        """Tell whether a worker may be at work on a call: it has nothing from before, as far as is known."""
        return not job.address or self._sent[job.address][:1] == [job]

    def behind(self, job: Job) -> list[Job]:
        """Return what the worker of a block has beside and cannot have begun."""
        return [other for other in reversed(self._sent[job.address][1:]) if other is not job]

    def settled(self, job: Job) -> None:
        """Note that a worker has a block no more."""
        if job in self._sent[job.address]:
            self._sent[job.address].remove(job)
        job.address = ""

    def late(self, job: Job) -> None:
        """Note that another worker answered what one is at work on: that one has nothing else, and gets nothing."""
        if job.address:
            self._late[job.address].append(job)
        self.settled(job)

    def of_others(self, fit: Collection[str]) -> list[Job]:
        """Return the blocks that workers have which are not among these, as are lost ones; the begun one last."""
        for address in [address for address in self._late if address not in fit]:
            del self._late[address]
        return [job for address, jobs in self._sent.items() if address not in fit for job in reversed(jobs)]

    def lost(self, job: Job) -> bool:
        """Note that a worker was lost; tell whether so many were over this block that it is to be tried alone."""
        job.losses += self.may_be_begun(job)
        self.settled(job)
        return job.losses > _MOST_LOST

    def idle(self, fit: Mapping[str, WorkerFacts]) -> str:
        """Return a worker that has nothing; empty when all have."""
        return next((address for address in self._free(fit) if not self._sent[address]), "")

    def next(self, fit: Mapping[str, WorkerFacts]) -> tuple[Job, str, bool] | None:
        """Return which block is to be sent to whom, and whether another worker has it that shall not begin it."""
        self._waiting = {block: job for block, job in self._waiting.items() if not job.outer.done()}
        desks = {
            address: Desk(
                fit[address].host, tuple(job.block for job in self._sent[address] if job.block is not None)
            )
            for address in self._free(fit)
        }
        step = next_step(self._waiting, desks, self._stretches)
        if step is None:
            return None
        self._stretches = step.stretches
        if step.taken_from:
            job = next(job for job in self._sent[step.taken_from] if job.block == step.block)
            return job, step.address, True
        return self._waiting.pop(step.block), step.address, False

    def _free(self, fit: Mapping[str, WorkerFacts]) -> list[str]:
        """Return the workers that are at nothing which another one has answered."""
        for address, jobs in list(self._late.items()):
            if all(job.inner.done() for job in jobs):
                del self._late[address]
        return [address for address in fit if address not in self._late]
