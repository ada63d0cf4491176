"""Workers of a Dask cluster as one `concurrent.futures.Executor`: who is fit for the run, and what becomes of a loss.

The engine is `distributed`; this is what it does not know of a run. A worker gets work after it was looked at
(`elsewhere.admit`): then it has one of a resource named after the run, which every call asks for, so that each worker
process holds one call of the run at a time. Calls of a worker that is lost or turns out to be unfit are made again by
others. Nothing of this happens in the background but the messages of Dask itself: who waits for a result looks after
the cluster while waiting.
"""

from __future__ import annotations

import logging
import pickle
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    Future,
    ThreadPoolExecutor,
    wait,
)
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zemosaic_core.errors import RunFailed, SkipItem
from zemosaic_pipeline.cluster_desks import Desks, Series
from zemosaic_pipeline.cluster_engine import CLOSE_S, GONE, POLL_S, Engine, connect, distributed, fetch
from zemosaic_pipeline.cluster_jobs import Awaited, Job, Pace
from zemosaic_pipeline.cluster_workers import Workers
from zemosaic_pipeline.elsewhere import (
    Answer,
    Call,
    Elsewhere,
    Requirements,
    RunStop,
    WorkerFacts,
    dismiss,
    keep_sets,
    resource_of,
    stop,
    work_packed,
)
from zemosaic_settings.executor import ExecutorChoice, PathMap

if TYPE_CHECKING:
    from zemosaic_io.calibration_sets import CalibrationSet

__all__ = ["Cluster", "NobodyCan", "WorkerDied"]

log = logging.getLogger(__name__)

# Without any worker for so long the run ends; one that was killed is back in seconds, on a busy machine in a minute.
_PATIENCE_S = 120.0
# Answers that are fetched at the same time.
_FETCHING = 16
# Calls on their way to each worker: it shall not wait for the next one.
_AHEAD = 2


class WorkerDied(Exception):
    """The processes that worked on a call died, the second time with no other call at work."""


class NobodyCan(Exception):
    """No worker is left that has what a call needs."""


class Cluster(Executor):
    """A Dask cluster for one run.

    Parameters
    ----------
    choice : ExecutorChoice
        ``dask`` starts one on this machine, ``scheduler`` joins one.
    paths : PathMap
    run_id : str
    workers : int
        Processes of a cluster that is started.
    memory_bytes : int
        What these may take together; 0: no limit.
    folder : Path, optional
        For files of Dask itself.
    check : callable
        Called several times a second while waiting; raises to give up.
    say : callable
        ``say(key, level, **values)`` tells the user something.

    Raises
    ------
    SettingsError
        ``cluster_no_library``, ``cluster_unreachable``.
    """

    def __init__(
        self,
        choice: ExecutorChoice,
        paths: PathMap,
        run_id: str,
        *,
        workers: int = 1,
        memory_bytes: int = 0,
        folder: Path | None = None,
        check: Callable[[], None] = lambda: None,
        say: Callable[..., object] = lambda *_, **__: None,
    ) -> None:
        self.paths = paths
        self.run_id = run_id
        self._check = check
        self._say = say
        self._jobs: list[Job] = []
        self._suspects: list[Job] = []
        self._desks = Desks()
        self._pace = Pace()
        self._latest = ""
        self._fit_s = 0.0
        # Dask has one thread for all: a worker that stands still with an answer would keep back those of the others.
        self._fetching = ThreadPoolExecutor(_FETCHING, thread_name_prefix="cluster-fetching")
        self._choice = choice
        self._distributed = distributed()
        try:
            self._engine: Engine = connect(
                choice,
                workers=workers,
                memory_bytes=memory_bytes,
                folder=folder,
                check=check,
            )
        except BaseException:
            self._fetching.shutdown(wait=False)
            raise
        self._client = self._engine.client
        self._workers = Workers(self._client, run_id, say)

    # ------------------------------------------------------------------ workers

    @property
    def workers(self) -> int:
        """How many calls can be worked on at a time."""
        return len(self.fit)

    @property
    def fit(self) -> Mapping[str, WorkerFacts]:
        """The workers that get work, by their addresses."""
        return self._workers.fit

    @property
    def threads(self) -> int:
        """Threads of the fit worker that has fewest."""
        return min((f.threads for f in self.fit.values()), default=1)

    @property
    def memory_bytes(self) -> int:
        """Memory of the smallest fit worker process; 0: none has a limit."""
        return min((f.memory_bytes for f in self.fit.values() if f.memory_bytes), default=0)

    @property
    def is_on_this_machine(self) -> bool:
        """Whether the run started the cluster itself."""
        return self._engine.local is not None

    def take_latest(self) -> str:
        """Return which worker answered last, and where it is; empty when nobody has since this was asked."""
        latest, self._latest = self._latest, ""
        return latest

    def require(self, requirements: Requirements) -> None:
        """Look which workers are fit; from now on they, and those that come later, get work.

        Raises
        ------
        RunFailed
            ``cluster_no_worker``: there is none.
        """
        self._workers.requirements = requirements
        self._fit_s = time.monotonic()
        while not self.fit:
            self._tend()
            if self._workers.are_all_refused:
                raise _no_worker(self._choice.address)
            time.sleep(POLL_S)
        # Those that were asked together have answered together.
        self._say(
            "cluster_workers",
            workers=self.workers,
            hosts=", ".join(
                f"{host} ({n})" for host, n in Counter(f.host for f in self.fit.values()).items()
            ),
        )
        if link := self._engine.dashboard:
            self._say("cluster_dashboard", link=link)

    def provide(self, sets: Mapping[str, CalibrationSet]) -> None:
        """Send what frames are calibrated with to all workers, by the names of the files, before it is needed."""
        if sets:
            self.prepare(keep_sets, dict(sets))

    def prepare(
        self,
        function: Callable[..., Any],
        *args: Any,
        heard: Callable[[Mapping[str, Any]], object] = lambda _: None,
    ) -> None:
        """Call a function on all workers, and on those that come later before they get work.

        Parameters
        ----------
        function : callable
        *args
            Its arguments.
        heard : callable
            Gets what workers answered together, by their addresses: a value or an exception.
        """
        self._workers.prepare(function, args, heard)

    def facts(self) -> dict[str, Any]:
        """Return what a report says of the cluster."""
        return {"scheduler": self._choice.address, "workers": self._workers.facts()}

    # ------------------------------------------------------------------ calls

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Send a call to a worker; the arguments are sent with it."""
        if kwargs:
            raise TypeError("arguments are sent by their places")
        return self.send(function, args)

    def send(
        self,
        function: Callable[..., Any],
        args: Sequence[Any],
        needs: Sequence[str] = (),
        possible: Callable[[], bool] = lambda: True,
    ) -> Future[Any]:
        """Send a call to a worker that has the resources it needs.

        Parameters
        ----------
        function : callable
        args : sequence
        needs : sequence of str
            Resources of Dask.
        possible : callable
            Tells whether any worker has them; where none is left the call raises `NobodyCan`.
        """
        job = Job(self._call(function, args), Awaited(self), tuple(needs), possible)
        self._send(job)
        return job.outer

    def in_rows(self, most: int) -> Executor:
        """Return what sends blocks of a co-add, from the top: neighbours go to one computer (`cluster_stretches`).

        Parameters
        ----------
        most : int
            Blocks that may be on their way at a time.

        Raises
        ------
        SecondCoadd
            Blocks of another co-add are on their way. What is returned raises it when another one has begun since.
        """
        series = self._desks.begin(most)

        def send(block: int, function: Callable[..., Any], args: tuple[Any, ...]) -> Future[Any]:
            self._desks.check(series)
            job = Job(self._call(function, args), Awaited(self), block=block)
            self._send(job)
            return job.outer

        return Series(send)

    def _call(self, function: Callable[..., Any], args: Sequence[Any]) -> Call:
        assert self._workers.requirements is not None
        return Call(self.run_id, self._workers.requirements.probes, function, tuple(args))

    def give_up(self, future: Future[Any], stop_here: RunStop) -> None:
        """Cancel a call and tell it so where it is at work."""
        future.cancel()
        if self.fit:
            self._workers.ask(stop, tuple(self.fit), stop_here.name)

    def map_items(
        self, elsewhere: Elsewhere, items: Sequence[Any], *, name_of: Callable[[Any], str]
    ) -> Iterator[tuple[int, Any]]:
        """Yield the position of an item and what became of it, as answers come; as `WorkerPool.map`."""
        waiting: dict[Future[Any], int] = {}
        todo = iter(enumerate(items))
        try:
            while True:
                while len(waiting) < max(1, _AHEAD * self.workers):
                    position, item = next(todo, (-1, None))
                    if position < 0:
                        break
                    waiting[self.submit(elsewhere.function, elsewhere.send(item, self.paths))] = position
                if not waiting:
                    return
                for future in self.wait(list(waiting)):
                    position = waiting.pop(future)
                    try:
                        answer = future.result()
                    except WorkerDied as death:
                        name = name_of(items[position])
                        message = f"{name}: the workers that worked on it died ({death})"
                        yield (
                            position,
                            SkipItem("frame_killed_worker", message, path=name, reason=str(death)),
                        )
                        continue
                    yield position, elsewhere.receive(items[position], answer)
        finally:
            for future in waiting:
                future.cancel()

    def wait(self, futures: Sequence[Future[Any]], timeout_s: float | None = None) -> list[Future[Any]]:
        """Return the futures that are done, when one is; none of them after ``timeout_s``."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self._tend()
            done = [future for future in futures if future.done()]
            if done or (until is not None and time.monotonic() > until):
                return done
            if self._jobs:
                wait([job.inner for job in self._jobs], POLL_S, FIRST_COMPLETED)
            else:
                time.sleep(POLL_S)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster, or end the one that was started; what is at work is not waited for."""
        is_idle = not self._jobs and not self._desks.some_are_late
        for job in self._jobs:
            job.drop()
        self._jobs = []
        with suppress(Exception):
            if self._client.status == "running" and self.fit:
                fit = tuple(self.fit)
                if not is_idle:
                    self._workers.ask(stop, fit, RunStop(self.run_id).name).result(CLOSE_S)
                if not self.is_on_this_machine:
                    self._workers.ask(dismiss, fit, self.run_id).result(CLOSE_S)
        self._workers.end()
        self._fetching.shutdown(wait=False, cancel_futures=True)
        self._engine.end()

    # ------------------------------------------------------------------ while waiting

    def _tend(self) -> None:
        """Look after calls and workers.

        Raises
        ------
        RunFailed
            ``cluster_lost``: the scheduler does not answer any more. ``cluster_no_worker``: nobody is left.
        """
        self._check()
        if self._client.status != "running":
            raise RunFailed(
                "cluster_lost",
                f"the Dask scheduler {self._choice.address} does not answer any more; what is finished is kept",
                address=self._choice.address,
            )
        now = time.monotonic()
        if self._workers.look(now):
            # What was sent while nobody could take it does not find those who came since.
            waiting, self._jobs = self._jobs, []
            for job in waiting:
                job.drop()
                self._send(job)
        for job in [job for job in self._jobs if job.inner.done() or job.outer.done()]:
            if job in self._jobs:
                self._settle(job)
        for job in [job for job in self._jobs if not job.possible()]:
            self._jobs.remove(job)
            job.drop()
            job.outer.set_exception(NobodyCan())
        self._assign()
        if self._suspects:
            if not self._jobs and self.workers:
                self._send(self._suspects.pop(0))
        elif (late := self._pace.late(self._jobs, now)) is not None:
            self._send_once_more(late)
        if self.fit:
            self._fit_s = now
        elif self._workers.requirements is not None and now - self._fit_s > _PATIENCE_S:
            raise _no_worker(self._choice.address)

    # ------------------------------------------------------------------ what becomes of calls

    def _send(self, job: Job) -> None:
        """Send a call to any worker; a block waits until one has time for it, unless workers died over it."""
        if job.block is not None and not job.deaths:
            self._desks.wait(job)
        else:
            self._send_to(job)

    def _send_to(self, job: Job, address: str = "") -> None:
        job.inner, job.sent_s = Future(), time.monotonic()
        resources = dict.fromkeys((resource_of(self.run_id), *job.needs), 1)
        only: dict[str, Any] = {"workers": [address], "allow_other_workers": False} if address else {}
        packed = pickle.dumps(job.call, pickle.HIGHEST_PROTOCOL)
        job.remote = self._client.submit(work_packed, packed, pure=False, resources=resources, **only)
        if address:
            self._desks.sent(job, address)
        job.remote.add_done_callback(partial(self._fetch, job, job.inner))
        self._jobs.append(job)

    def _send_once_more(self, late: Job) -> None:
        """Send a call to a worker that has nothing to do, if there is one."""
        if late.block is None:
            idle, address = self._one_is_idle(), ""
        else:
            address = self._desks.idle(self.fit)
            idle = bool(address)
        if idle:
            log.info("%s is late and sent once more", late.call.function.__name__)
            self._send_to(late.twin(), address)

    def _assign(self) -> None:
        """Send the blocks that wait to the workers that have time for them."""
        for job in self._desks.of_others(self.fit):
            self._lose(job)
        while (found := self._desks.next(self.fit)) is not None:
            job, address, is_elsewhere = found
            if is_elsewhere:
                self._take_back(job)
            self._send_to(job, address)

    def _take_back(self, job: Job) -> None:
        """Let a worker have a call no more."""
        self._jobs.remove(job)
        self._desks.settled(job)
        job.drop()

    def _lose(self, job: Job) -> None:
        """Let a block be worked on by others, whose worker is lost or gets no more work."""
        has_twin = self._has_twin(job)
        to_be_tried_alone = self._desks.lost(job)
        self._take_back(job)
        if has_twin or job.outer.done():
            return
        if to_be_tried_alone:
            job.deaths += 1
            self._suspects.append(job)
        else:
            self._send(job)

    def _leave_to_another(self, job: Job) -> None:
        """Let be what another worker has answered, or nobody waits for."""
        is_at_work = bool(job.address) and self._desks.may_be_begun(job) and not job.inner.done()
        if not is_at_work or job.outer.cancelled():
            self._desks.settled(job)
            job.drop()
            return
        # A block cannot be stopped where it is at work; until it is finished that worker gets nothing more.
        for behind in self._desks.behind(job):
            self._lose(behind)
        self._desks.late(job)

    def _has_twin(self, job: Job) -> bool:
        """Tell whether a call was sent twice: what one of them had is done by the other when it comes to nothing."""
        return any(other.outer is job.outer and other is not job for other in self._jobs)

    def _one_is_idle(self) -> bool:
        """Tell whether a fit worker has nothing to do; it gets what is sent next, as Dask goes by who has least."""
        with suppress(*GONE):  # among them what says that it took too long
            busy = self._fetching.submit(self._client.processing).result(CLOSE_S)
            return not all(busy.get(address) for address in self.fit)
        return False

    def _fetch(self, job: Job, inner: Future[Answer], remote: Any) -> None:
        if job.outer.done():
            # Another one was faster, or nobody waits any more.
            inner.cancel()
            return
        with suppress(RuntimeError):  # the run has ended
            self._fetching.submit(fetch, inner, remote)

    def _settle(self, job: Job) -> None:
        self._jobs.remove(job)
        if job.outer.done():
            self._leave_to_another(job)
            return
        # What was sent twice is done by the other one when this one comes to nothing.
        has_twin = self._has_twin(job)
        error = None if job.inner.cancelled() else job.inner.exception()
        was_killed = isinstance(error, self._distributed.KilledWorker)
        # Dask blames whatever a worker had; what that had not begun is not to blame.
        to_blame = was_killed and self._desks.may_be_begun(job)
        if to_blame:
            for behind in self._desks.behind(job):
                self._lose(behind)
        self._desks.settled(job)
        if job.inner.cancelled() or (was_killed and not to_blame):
            # What it gave was lost with its worker before it came here.
            if not has_twin:
                self._send(job)
            return
        if was_killed:
            if has_twin:
                return
            job.deaths += 1
            log.warning("workers died over a call: %s", error)
            if job.deaths > 1:
                job.outer.set_exception(WorkerDied(str(error)))
            else:
                self._suspects.append(job)
            return
        if error is not None:
            job.outer.set_exception(error)
            return
        answer = job.inner.result()
        if answer.unfit is not None:
            self._workers.leave_out(answer.worker, answer.unfit)
            if not has_twin:
                self._send(job)
            return
        self._pace.note(job, answer.seconds, time.monotonic())
        self._workers.note_answer(answer.worker)
        self._latest = f"{answer.worker}, {answer.host}"
        if answer.error is not None:
            job.outer.set_exception(_as_here(answer.error, self.paths))
        else:
            job.outer.set_result(answer.value)


def _as_here(error: BaseException, paths: PathMap) -> BaseException:
    """Return an error that names a file as this machine does."""
    if isinstance(error, SkipItem) and "path" in error.values:
        path = paths.here(str(error.values["path"]))
        return SkipItem(error.key, str(error), **{**error.values, "path": path})
    return error


def _no_worker(address: str) -> RunFailed:
    return RunFailed(
        "cluster_no_worker",
        f"no worker of the Dask cluster {address} can take part in the run",
        address=address,
    )
