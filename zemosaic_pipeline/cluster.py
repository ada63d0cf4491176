"""Workers of a Dask cluster as one `concurrent.futures.Executor`: who is fit for the run, and what becomes of a loss.

The engine is `distributed`; this is what it does not know of a run. A worker gets work after it was looked at
(`elsewhere.admit`): then it has one of a resource named after the run, which every call asks for, so that each worker
process holds one call of the run at a time. Calls of a worker that is lost or turns out to be unfit are made again by
others. Nothing of this happens in the background but the messages of Dask itself: who waits for a result looks after
the cluster while waiting.
"""

from __future__ import annotations

import logging
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
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zemosaic_core.errors import RunFailed, SkipItem
from zemosaic_pipeline.cluster_engine import CLOSE_S, GONE, POLL_S, Engine, connect, distributed, fetch
from zemosaic_pipeline.cluster_jobs import Awaited, Job, Pace
from zemosaic_pipeline.elsewhere import (
    Answer,
    Call,
    Elsewhere,
    Requirements,
    RunStop,
    Unfit,
    WorkerFacts,
    admit,
    dismiss,
    keep_sets,
    resource_of,
    stop,
    work,
)
from zemosaic_settings.executor import ExecutorChoice, PathMap

if TYPE_CHECKING:
    from zemosaic_io.calibration_sets import CalibrationSet

__all__ = ["Cluster", "NobodyCan", "WorkerDied"]

log = logging.getLogger(__name__)

# How often it is asked which workers there are.
_LOOK_S = 1.0
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


@dataclass
class _Tally:
    """What a worker has done for the run."""

    facts: WorkerFacts
    calls: int = 0
    lost: bool = False
    refused: Unfit | None = None


@dataclass(frozen=True)
class _Preparation:
    """What every worker does before it gets work: a function with arguments, and who hears the answers."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    heard: Callable[[Mapping[str, Any]], object]


@dataclass
class _Housekeeping:
    """A question to workers that is being answered, and to which."""

    addresses: tuple[str, ...] = ()
    answers: Future[dict[str, Any]] | None = None


@dataclass
class _State:
    """What is known of the cluster in this run."""

    fit: dict[str, WorkerFacts] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    tallies: dict[str, _Tally] = field(default_factory=dict)
    looked_s: float = 0.0
    fit_s: float = 0.0
    were_none: bool = False


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
        self._pace = Pace()
        self._latest = ""
        self._state = _State()
        self._requirements: Requirements | None = None
        self._preparations: list[_Preparation] = []
        self._asked = _Housekeeping()
        self._questions = ThreadPoolExecutor(1, thread_name_prefix="cluster-questions")
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
            self._questions.shutdown(wait=False)
            self._fetching.shutdown(wait=False)
            raise
        self._client = self._engine.client

    # ------------------------------------------------------------------ workers

    @property
    def workers(self) -> int:
        """How many calls can be worked on at a time."""
        return len(self._state.fit)

    @property
    def fit(self) -> Mapping[str, WorkerFacts]:
        """The workers that get work, by their addresses."""
        return self._state.fit

    @property
    def threads(self) -> int:
        """Threads of the fit worker that has fewest."""
        return min((f.threads for f in self._state.fit.values()), default=1)

    @property
    def memory_bytes(self) -> int:
        """Memory of the smallest fit worker process; 0: none has a limit."""
        return min((f.memory_bytes for f in self._state.fit.values() if f.memory_bytes), default=0)

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
        self._requirements = requirements
        self._state.fit_s = time.monotonic()
        while not self._state.fit:
            self._tend()
            nobody_else = set(self._seen()) <= self._state.refused and self._asked.answers is None
            if self._seen() and nobody_else and not self._state.fit:
                raise _no_worker(self._choice.address)
            time.sleep(POLL_S)
        # Those that were asked together have answered together.
        self._say(
            "cluster_workers",
            workers=self.workers,
            hosts=", ".join(
                f"{host} ({n})" for host, n in Counter(f.host for f in self._state.fit.values()).items()
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
        preparation = _Preparation(function, args, heard)
        self._preparations.append(preparation)
        self._prepare(preparation, tuple(self._state.fit))

    def facts(self) -> dict[str, Any]:
        """Return what a report says of the cluster."""
        return {
            "scheduler": self._choice.address,
            "workers": [
                {
                    **asdict(tally.facts),
                    "unfit": None,
                    "calls": tally.calls,
                    "lost": tally.lost,
                    "refused": None
                    if tally.refused is None
                    else {"key": tally.refused.key, "values": tally.refused.values},
                }
                for tally in self._state.tallies.values()
            ],
        }

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
        assert self._requirements is not None
        call = Call(self.run_id, self._requirements.probes, function, tuple(args))
        job = Job(call, Awaited(self), tuple(needs), possible)
        self._send(job)
        return job.outer

    def give_up(self, future: Future[Any], stop_here: RunStop) -> None:
        """Cancel a call and tell it so where it is at work."""
        future.cancel()
        if self._state.fit:
            self._ask(stop, tuple(self._state.fit), stop_here.name)

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
        is_idle = not self._jobs
        for job in self._jobs:
            job.drop()
        self._jobs = []
        with suppress(Exception):
            if self._client.status == "running" and self._state.fit:
                fit = tuple(self._state.fit)
                if not is_idle:
                    self._ask(stop, fit, RunStop(self.run_id).name).result(CLOSE_S)
                if not self.is_on_this_machine:
                    self._ask(dismiss, fit, self.run_id).result(CLOSE_S)
        self._questions.shutdown(wait=False, cancel_futures=True)
        self._fetching.shutdown(wait=False, cancel_futures=True)
        self._engine.end()

    def _seen(self) -> list[str]:
        return list(self._client.scheduler_info()["workers"])

    def _ask(
        self, function: Callable[..., Any], addresses: tuple[str, ...], *args: Any
    ) -> Future[dict[str, Any]]:
        return self._questions.submit(
            self._client.run, function, *args, workers=list(addresses), on_error="return"
        )

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
        if now - self._state.looked_s > _LOOK_S or self._asked.answers is not None:
            self._state.looked_s = now
            self._look_at_workers()
        for job in [job for job in self._jobs if job.inner.done() or job.outer.done()]:
            self._settle(job)
        for job in [job for job in self._jobs if not job.possible()]:
            self._jobs.remove(job)
            job.drop()
            job.outer.set_exception(NobodyCan())
        if self._suspects:
            if not self._jobs and self.workers:
                self._send(self._suspects.pop(0))
        elif (late := self._pace.late(self._jobs, now)) is not None and self._one_is_idle():
            log.info("%s is late and sent once more", late.call.function.__name__)
            self._send(late.twin())
        if self._state.fit:
            self._state.fit_s = now
        elif self._requirements is not None and now - self._state.fit_s > _PATIENCE_S:
            raise _no_worker(self._choice.address)

    def _look_at_workers(self) -> None:
        state, seen = self._state, set(self._seen())
        for address in set(state.fit) - seen:
            facts = state.fit.pop(address)
            state.tallies[address].lost = True
            self._say("cluster_worker_lost", "WARN", name=facts.name, host=facts.host)
        if self._requirements is None:
            return
        if not state.fit:
            state.were_none = True
        if self._asked.answers is None:
            new = tuple(seen - set(state.fit) - state.refused)
            if new:
                self._asked = _Housekeeping(new, self._ask(admit, new, self._requirements))
        elif self._asked.answers.done():
            asked, self._asked = self._asked, _Housekeeping()
            assert asked.answers is not None
            with suppress(OSError):  # they left while they were asked
                self._take_in(asked.answers.result())

    def _take_in(self, answers: Mapping[str, Any]) -> None:
        state = self._state
        fresh = []
        for address, found in answers.items():
            if isinstance(found, WorkerFacts) and found.unfit is None:
                state.fit[address] = found
                state.tallies[address] = _Tally(found)
                fresh.append(address)
            elif isinstance(found, WorkerFacts):
                assert found.unfit is not None
                self._refuse(address, found, found.unfit)
            elif isinstance(found, ModuleNotFoundError):
                host = address.rpartition("/")[2].rpartition(":")[0]
                facts = WorkerFacts(address, host, 0, 0, 0, False)
                self._refuse(address, facts, Unfit("cluster_no_program", "ZeMosaic is not installed there"))
            else:
                log.warning("the worker %s did not answer: %r", address, found)
        for preparation in self._preparations:
            self._prepare(preparation, tuple(fresh))
        if fresh and state.were_none:
            # What was sent while nobody could take it does not find those who came since.
            state.were_none = False
            waiting, self._jobs = self._jobs, []
            for job in waiting:
                job.drop()
                self._send(job)

    def _prepare(self, preparation: _Preparation, addresses: tuple[str, ...]) -> None:
        if addresses:
            preparation.heard(self._ask(preparation.function, addresses, *preparation.args).result())

    def _refuse(self, address: str, facts: WorkerFacts, unfit: Unfit) -> None:
        self._state.refused.add(address)
        tally = self._state.tallies.setdefault(address, _Tally(facts))
        if tally.refused is None:
            tally.refused = unfit
            self._say(unfit.key, "WARN", name=facts.name, host=facts.host, **unfit.values)

    # ------------------------------------------------------------------ what becomes of calls

    def _send(self, job: Job) -> None:
        job.inner, job.sent_s = Future(), time.monotonic()
        resources = dict.fromkeys((resource_of(self.run_id), *job.needs), 1)
        job.remote = self._client.submit(work, job.call, pure=False, resources=resources)
        job.remote.add_done_callback(partial(self._fetch, job.inner))
        self._jobs.append(job)

    def _one_is_idle(self) -> bool:
        """Tell whether a fit worker has nothing to do; it gets what is sent next, as Dask goes by who has least."""
        with suppress(*GONE):  # among them what says that it took too long
            busy = self._fetching.submit(self._client.processing).result(CLOSE_S)
            return not all(busy.get(address) for address in self._state.fit)
        return False

    def _fetch(self, inner: Future[Answer], remote: Any) -> None:
        with suppress(RuntimeError):  # the run has ended
            self._fetching.submit(fetch, inner, remote)

    def _settle(self, job: Job) -> None:
        self._jobs.remove(job)
        if job.outer.done():
            job.drop()
            return
        # What was sent twice is done by the other one when this one comes to nothing.
        has_twin = any(other.outer is job.outer for other in self._jobs)
        if job.inner.cancelled():
            # What it gave was lost with its worker before it came here.
            if not has_twin:
                self._send(job)
            return
        error = job.inner.exception()
        if isinstance(error, self._distributed.KilledWorker):
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
            self._leave_out(answer.worker, answer.unfit)
            if not has_twin:
                self._send(job)
            return
        self._pace.note(job, answer.seconds, time.monotonic())
        for tally in self._state.tallies.values():
            if tally.facts.name == answer.worker and not tally.lost:
                tally.calls += 1
        self._latest = f"{answer.worker}, {answer.host}"
        if answer.error is not None:
            job.outer.set_exception(_as_here(answer.error, self.paths))
        else:
            job.outer.set_result(answer.value)

    def _leave_out(self, name: str, unfit: Unfit) -> None:
        """Give a worker nothing more to do."""
        for address, facts in list(self._state.fit.items()):
            if facts.name == name:
                del self._state.fit[address]
                self._ask(dismiss, (address,), self.run_id)
                self._refuse(address, facts, unfit)
        if not self._state.fit:
            self._state.were_none = True


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
