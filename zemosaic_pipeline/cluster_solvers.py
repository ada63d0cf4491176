"""Solvers on the workers of a cluster: who has them as this computer has them, and questions asked ahead of time.

Frames are given their places in one order, whatever the cluster: what is asked next follows from the answers before.
Only that a pointing is asked about while the ones before it are still at work is new; what turns out not to be needed
is stopped. So the places are those of a run on one computer. Services on the network are asked by the computer of the
run alone: there is one queue there, and a key that stays where it is.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from zemosaic_core.errors import SaveFailed, SkipItem
from zemosaic_io.solvers.astap import AstapSolver
from zemosaic_io.solvers.base import Solver
from zemosaic_io.solvers.chain import SolverOptions, make_solvers
from zemosaic_pipeline.cluster import Cluster, NobodyCan, WorkerDied
from zemosaic_pipeline.elsewhere import (
    RunStop,
    WorkerFacts,
    frame_there,
    own_worker,
    resource_of,
    unfit_of_disk,
)
from zemosaic_pipeline.position_search import Place
from zemosaic_pipeline.solver_questions import Question, SolverAnswer, ask_solvers

__all__ = ["ClusterSolvers", "Tries"]

# A frame by its number, and where to look for it.
Try = tuple[int, Place]
Tries = Iterable[Try]
_POLL_S = 1.0
_MISSING, _DIFFERS, _SAME = "missing", "differs", "same"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Asked:
    """A question that a worker has."""

    future: Future[SolverAnswer]
    stop: RunStop


@dataclass(frozen=True)
class _Ahead:
    """What `ClusterSolvers.look_ahead` was told."""

    names: tuple[str, ...]
    series: Callable[[], Iterator[Tries]]
    question_of: Callable[[int, Place], Question]
    is_known: Callable[[int, Place], bool]


@dataclass(frozen=True)
class _Task:
    """A question on its way to a worker."""

    question: Question
    options: SolverOptions
    names: tuple[str, ...]
    stop: RunStop


@lru_cache(maxsize=4)
def _solvers(options: SolverOptions) -> dict[str, Solver]:
    return {solver.name: solver for solver in make_solvers(options)}


def _skill(run_id: str, solver: str) -> str:
    return f"{resource_of(run_id)}-{solver}"


async def find_solvers(
    run_id: str, wanted: Mapping[str, str], options: SolverOptions, dask_worker: Any = None
) -> dict[str, str]:
    """Look which solvers the worker this runs on has as the computer of the run has them; it gets their resources.

    Parameters
    ----------
    wanted : mapping of str to str
        `Solver.identity` there, by name.

    Returns
    -------
    dict of str to str
        ``same``, ``missing`` or ``differs``, by name.
    """
    # Programs installed since the last run are found.
    _solvers.cache_clear()
    found = await asyncio.to_thread(_compare, wanted, options)
    names = [name for name, state in found.items() if state == _SAME]
    await dask_worker.set_resources(**{_skill(run_id, name): 1 for name in names})
    return found


def _compare(wanted: Mapping[str, str], options: SolverOptions) -> dict[str, str]:
    found = {}
    for name, identity in wanted.items():
        own = _solvers(options)[name].identity()
        found[name] = _MISSING if not own else _SAME if own == identity else _DIFFERS
    return found


def _ask_there(task: _Task) -> SolverAnswer:
    """Ask solvers about a frame; runs on a worker."""
    solvers = [_solvers(task.options)[name] for name in task.names]
    try:
        return ask_solvers(task.question, solvers, Path(own_worker().folder), task.stop)
    except SaveFailed as error:
        cause = error.__cause__
        unfit = unfit_of_disk(cause) if isinstance(cause, OSError) else None
        if unfit is None:
            raise
        raise unfit from error


class ClusterSolvers:
    """Asks solvers on the workers of a cluster.

    Parameters
    ----------
    cluster : Cluster
    options : SolverOptions
    solvers : sequence of Solver
        Those that this computer has.
    say : callable
        As in `Cluster`.
    """

    def __init__(
        self,
        cluster: Cluster,
        options: SolverOptions,
        solvers: Sequence[Solver],
        say: Callable[..., object],
    ) -> None:
        self._cluster = cluster
        self._say = say
        # Programs may lie elsewhere on the workers; where they do not lie there at all the usual places are looked at.
        there = cluster.paths.there
        self._options = replace(
            options,
            api_key="",
            astap_path=there(options.astap_path),
            astap_data=there(options.astap_data),
            local_path=there(options.local_path),
        )
        self._wanted = {solver.name: identity for solver in solvers if (identity := solver.identity())}
        self._asked: dict[tuple[Try, tuple[str, ...]], _Asked] = {}
        self._n_asked = 0
        self._has: dict[str, frozenset[str]] = {}
        self._here: set[str] = set()
        self._ahead: _Ahead | None = None
        cluster.prepare(find_solvers, cluster.run_id, self._wanted, self._options, heard=self._heard)
        for name in self._wanted:
            self.can([name])

    def can(self, names: Sequence[str]) -> bool:
        """Whether a worker has all these solvers as this computer has them; it is said once when none has."""
        if not all(name in self._wanted for name in names):
            return False
        if self._workers(names):
            self._here.difference_update(names)
            return True
        for name in names:
            if name not in self._here and not self._workers([name]):
                self._here.add(name)
                self._say("cluster_solver_here", solver=name)
        return False

    def ask(self, at: Try, question: Question, names: Sequence[str]) -> SolverAnswer | None:
        """Return what solvers say about a frame; None when no worker can ask them any more.

        Raises
        ------
        SkipItem
            As `ask_solvers`; ``frame_killed_worker``: workers died over it twice.
        """
        key = (at, tuple(names))
        asked = self._asked.pop(key, None) or self._send(question, tuple(names))
        try:
            while not asked.future.done():
                self._look_ahead()
                ahead = [other.future for other in self._asked.values() if not other.future.done()]
                self._cluster.wait([asked.future, *ahead], _POLL_S)
            answer: SolverAnswer = asked.future.result()
        except NobodyCan:
            return None
        except WorkerDied as death:
            path = str(question.info.path)
            raise SkipItem(
                "frame_killed_worker",
                f"{path}: the workers that looked for its place died ({death})",
                path=path,
                reason=str(death),
            ) from death
        path = str(question.info.path)
        return replace(answer, told=tuple((key, {**values, "path": path}) for key, values in answer.told))

    def look_ahead(
        self,
        names: Sequence[str],
        series: Callable[[], Iterator[Tries]],
        question_of: Callable[[int, Place], Question],
        is_known: Callable[[int, Place], bool],
    ) -> None:
        """Ask about what will be needed next while workers have nothing else to do.

        Parameters
        ----------
        names : sequence of str
            The solvers.
        series : callable
            Returns what would be asked about each pointing that has no place yet, in turn; of each only what comes
            next is asked.
        question_of, is_known : callable
            What the question is, and whether it was answered before.
        """
        self._ahead = _Ahead(tuple(names), series, question_of, is_known)
        self._look_ahead()

    def forget(self) -> None:
        """Stop whatever was asked ahead."""
        self._ahead = None
        for key in list(self._asked):
            self._give_up(key)

    def _workers(self, names: Sequence[str]) -> list[WorkerFacts]:
        wanted = frozenset(names)
        fit = self._cluster.fit
        return [fit[address] for address, has in self._has.items() if address in fit and wanted <= has]

    def _heard(self, answers: Mapping[str, Any]) -> None:
        """Note which workers have what, and say what is missing."""
        lacking: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for address, found in answers.items():
            if not isinstance(found, dict):
                log.warning("the worker %s did not say which solvers it has: %r", address, found)
                continue
            self._has[address] = frozenset(name for name, state in found.items() if state == _SAME)
            for name, state in found.items():
                if state != _SAME:
                    lacking[name, state][self._cluster.fit[address].host] += 1
        for (name, state), hosts in lacking.items():
            key = "cluster_solver_missing" if state == _MISSING else "cluster_solver_differs"
            self._say(key, solver=name, hosts=", ".join(f"{host} ({n})" for host, n in hosts.items()))

    def _most_ahead(self, names: Sequence[str]) -> int:
        """Return how many questions may be open ahead: one worker is left for what is needed at once."""
        able = self._workers(names)
        most = min(len(able), self._cluster.workers - 1)
        if AstapSolver.name in names:
            # The others of a computer would wait for each other.
            most = min(most, len({facts.host for facts in able}) * self._options.max_instances)
        return most

    def _look_ahead(self) -> None:
        ahead = self._ahead
        if ahead is None:
            return
        n_open, most = 0, self._most_ahead(ahead.names)
        wanted: set[int] = set()
        for tries in ahead.series():
            for at in tries:
                wanted.add(at[0])
                if (asked := self._asked.get((at, ahead.names))) is None:
                    if n_open >= most:
                        break
                    if ahead.is_known(*at):
                        continue
                    asked = self._send(ahead.question_of(*at), ahead.names)
                    self._asked[at, ahead.names] = asked
                if not asked.future.done():
                    n_open += 1
                    break
                if asked.future.exception() is not None or asked.future.result().solution is not None:
                    break
        for key, asked in list(self._asked.items()):
            if key[0][0] not in wanted and not asked.future.done():
                self._give_up(key)

    def _send(self, question: Question, names: tuple[str, ...]) -> _Asked:
        self._n_asked += 1
        stop = RunStop(self._cluster.run_id, str(self._n_asked))
        there = replace(question, info=frame_there(question.info, self._cluster.paths))
        needs = [_skill(self._cluster.run_id, name) for name in names]
        task = _Task(there, self._options, names, stop)
        return _Asked(self._cluster.send(_ask_there, [task], needs, lambda: bool(self._workers(names))), stop)

    def _give_up(self, key: tuple[Try, tuple[str, ...]]) -> None:
        asked = self._asked.pop(key)
        if not asked.future.done():
            self._cluster.give_up(asked.future, asked.stop)
