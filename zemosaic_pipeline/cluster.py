"""Workers of a Dask cluster as one `concurrent.futures.Executor`: who is fit for the run, and what becomes of a loss.

The engine is `distributed`; this is what it does not know of a run. A worker gets work after it was looked at
(`elsewhere.admit`): then it has one of a resource named after the run, which every call asks for, so that each worker
process holds one call of the run at a time. Calls of a worker that is lost or turns out to be unfit are made again by
others. Nothing of this happens in the background but the messages of Dask itself: who waits for a result looks after
the cluster while waiting.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    CancelledError,
    Executor,
    Future,
    InvalidStateError,
    ThreadPoolExecutor,
    wait,
)
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from zemosaic_core.errors import RunFailed, SettingsError, SkipItem
from zemosaic_pipeline.elsewhere import (
    Answer,
    Call,
    Elsewhere,
    Requirements,
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

__all__ = ["OWN_DASK", "Cluster", "WorkerDied"]

log = logging.getLogger(__name__)

_POLL_S = 0.1
_CONNECT_S = 4.0
# How often it is asked which workers there are.
_LOOK_S = 1.0
# Without any worker for so long the run ends; one that was killed is back in seconds, on a busy machine in a minute.
_PATIENCE_S = 120.0
# A result that does not come in this time is asked for anew.
_FETCH_S = 60.0
_CLOSE_S = 1.0
# Calls on their way to each worker: it shall not wait for the next one.
_AHEAD = 2
# What Dask says when the other side is gone or does not answer in time.
_GONE = (OSError, RuntimeError, ValueError)
# How Dask is set up where the run starts it itself.
OWN_DASK: dict[str, Any] = {
    # What dies over one call is tried again with nothing else at work; then it is known whose fault it was.
    "distributed.scheduler.allowed-failures": 0,
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    # Statistics for Dask's page cost some percent of a processor for every worker; the watch over memory stays.
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "2s",
    "distributed.admin.system-monitor.disk": False,
}


class WorkerDied(Exception):
    """The processes that worked on a call died, the second time with no other call at work."""


@dataclass
class _Job:
    """A call, the future that who asked has of it, that of Dask, and what came of the latter; see `_fetch`."""

    call: Call
    outer: _Awaited
    remote: Any = None
    inner: Future[Answer] = field(default_factory=Future)
    deaths: int = 0

    def drop(self) -> None:
        """Ask for nothing more of what was sent."""
        self.inner.cancel()
        if self.remote is not None:
            self.remote.cancel()


class _Awaited(Future[Any]):
    """A future whose owner looks after the cluster while it waits."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__()
        self._cluster = cluster

    def result(self, timeout: float | None = None) -> Any:
        """Return the result; raises what the call raised, or why the run cannot go on."""
        self._cluster.wait([self], timeout)
        return super().result(0)


@dataclass
class _Tally:
    """What a worker has done for the run."""

    facts: WorkerFacts
    calls: int = 0
    lost: bool = False
    refused: Unfit | None = None


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
        self._local: Any = None
        self._jobs: list[_Job] = []
        self._suspects: list[_Job] = []
        self._latest = ""
        self._state = _State()
        self._requirements: Requirements | None = None
        self._sets: dict[str, CalibrationSet] = {}
        self._asked = _Housekeeping()
        self._questions = ThreadPoolExecutor(1, thread_name_prefix="cluster-questions")
        self._choice = choice
        self._distributed = _distributed()
        try:
            self._client: Any = self._connect(workers, memory_bytes, folder)
        except BaseException:
            self._questions.shutdown(wait=False)
            raise

    # ------------------------------------------------------------------ workers

    @property
    def workers(self) -> int:
        """How many calls can be worked on at a time."""
        return len(self._state.fit)

    @property
    def memory_bytes(self) -> int:
        """Memory of the smallest fit worker process; 0: none has a limit."""
        return min((f.memory_bytes for f in self._state.fit.values() if f.memory_bytes), default=0)

    @property
    def is_on_this_machine(self) -> bool:
        """Whether the run started the cluster itself."""
        return self._local is not None

    @property
    def dashboard(self) -> str:
        """Address of Dask's page about the cluster; empty when it has none."""
        # Without bokeh there is only a page that says so.
        with suppress(*_GONE):
            if self._client.run_on_scheduler(find_spec, "bokeh") is not None:
                return str(self._client.dashboard_link)
        return ""

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
            time.sleep(_POLL_S)
        # Those that were asked together have answered together.
        self._say(
            "cluster_workers",
            workers=self.workers,
            hosts=", ".join(
                f"{host} ({n})" for host, n in Counter(f.host for f in self._state.fit.values()).items()
            ),
        )
        if link := self.dashboard:
            self._say("cluster_dashboard", link=link)

    def provide(self, sets: Mapping[str, CalibrationSet]) -> None:
        """Send what frames are calibrated with to all workers, by the names of the files, before it is needed."""
        self._sets = dict(sets)
        if self._sets and self._state.fit:
            self._ask(keep_sets, tuple(self._state.fit), self._sets).result()

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
        assert self._requirements is not None
        call = Call(self.run_id, self._requirements.probes, function, args)
        job = _Job(call, _Awaited(self))
        self._send(job)
        return job.outer

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
                wait([job.inner for job in self._jobs], _POLL_S, FIRST_COMPLETED)
            else:
                time.sleep(_POLL_S)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster, or end the one that was started; what is at work is not waited for."""
        is_idle = not self._jobs
        for job in self._jobs:
            job.drop()
        self._jobs = []
        with suppress(Exception):
            if self._local is None and self._client.status == "running" and self._state.fit:
                fit = list(self._state.fit)
                if not is_idle:
                    self._ask(stop, tuple(fit), self.run_id).result(_CLOSE_S)
                self._ask(dismiss, tuple(fit), self.run_id).result(_CLOSE_S)
        self._questions.shutdown(wait=False, cancel_futures=True)
        self._end_dask()

    # ------------------------------------------------------------------ the engine

    def _connect(self, workers: int, memory_bytes: int, folder: Path | None) -> Any:
        import dask

        client_type = self._distributed.Client
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        # A block of a co-add may bring along what is known of a thousand frames.
        dask.config.set({"distributed.admin.large-graph-warning-threshold": "1GB"})
        if self._choice.kind == "dask":
            with dask.config.set(OWN_DASK), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._local = self._distributed.LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    processes=True,
                    host="127.0.0.1",
                    memory_limit=memory_bytes // workers or None,
                    dashboard_address="127.0.0.1:0",
                    worker_dashboard_address=None,
                    local_directory=None if folder is None else str(folder),
                    silence_logs=logging.CRITICAL,
                )
            return client_type(self._local, set_as_default=False, direct_to_workers=True)
        address = self._choice.address
        opening = self._questions.submit(
            client_type,
            address,
            timeout=_CONNECT_S,
            set_as_default=False,
            # Blocks are large: they come straight from the worker, by the scheduler only where that cannot be.
            direct_to_workers=True,
            name="zemosaic",
        )
        try:
            while not opening.done():
                self._check()
                wait([opening], _POLL_S)
            return opening.result()
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise SettingsError(
                "cluster_unreachable",
                f"no Dask scheduler answers at {address}: {error}",
                address=address,
                reason=str(error) or type(error).__name__,
            ) from error

    def _end_dask(self) -> None:
        ours = [] if self._local is None else [nanny.pid for nanny in self._local.workers.values()]
        with suppress(*_GONE):
            self._client.close(timeout=_CLOSE_S)
        if self._local is None:
            return
        with suppress(*_GONE):
            self._local.close(timeout=_CLOSE_S)
        for pid in filter(None, ours):
            # Those that were too busy to leave in time.
            with suppress(psutil.Error):
                process = psutil.Process(pid)
                if process.ppid() == os.getpid():
                    process.kill()

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
        for job in [job for job in self._jobs if job.inner.done() or job.outer.cancelled()]:
            self._settle(job)
        if self._suspects and not self._jobs and self.workers:
            self._send(self._suspects.pop(0))
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
        if fresh and self._sets:
            self._ask(keep_sets, tuple(fresh), self._sets).result()
        if fresh and state.were_none:
            # What was sent while nobody could take it does not find those who came since.
            state.were_none = False
            waiting, self._jobs = self._jobs, []
            for job in waiting:
                job.drop()
                self._send(job)

    def _refuse(self, address: str, facts: WorkerFacts, unfit: Unfit) -> None:
        self._state.refused.add(address)
        tally = self._state.tallies.setdefault(address, _Tally(facts))
        if tally.refused is None:
            tally.refused = unfit
            self._say(unfit.key, "WARN", name=facts.name, host=facts.host, **unfit.values)

    # ------------------------------------------------------------------ what becomes of calls

    def _send(self, job: _Job) -> None:
        job.inner = Future()
        job.remote = self._client.submit(work, job.call, pure=False, resources={resource_of(self.run_id): 1})
        job.remote.add_done_callback(partial(_fetch, job.inner))
        self._jobs.append(job)

    def _settle(self, job: _Job) -> None:
        self._jobs.remove(job)
        if job.outer.cancelled():
            job.drop()
            return
        if job.inner.cancelled():
            # What it gave was lost with its worker before it came here.
            self._send(job)
            return
        error = job.inner.exception()
        if isinstance(error, self._distributed.KilledWorker):
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
            self._send(job)
            return
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


def _fetch(inner: Future[Answer], remote: Any) -> None:
    """Bring what became of a call here; runs in the thread that Dask has for that.

    The futures of Dask's own executor are never done when a result is lost twice before it was fetched.
    """
    try:
        try:
            inner.set_result(remote.result(timeout=_FETCH_S))
        except InvalidStateError:
            raise
        except (CancelledError, OSError):  # among the latter those that say that it took too long
            inner.cancel()
        except Exception as error:  # noqa: BLE001 - it belongs to who waits for the call
            inner.set_exception(error)
    except InvalidStateError:
        log.debug("an answer came after nobody waited for it any more")


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


def _distributed() -> Any:
    try:
        return import_module("distributed")
    except ImportError as error:
        raise SettingsError(
            "cluster_no_library", f'Dask is not installed; pip install "zemosaic[cluster]": {error}'
        ) from error
