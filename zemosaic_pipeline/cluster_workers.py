"""The workers of a cluster in a run: which are fit, what they are told before they get work, what they have done."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from zemosaic_pipeline.elsewhere import Requirements, Unfit, WorkerFacts, admit, dismiss

__all__ = ["Workers"]

log = logging.getLogger(__name__)

# How often it is asked which workers there are.
_LOOK_S = 1.0


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
class Workers:
    """The workers that a client of Dask sees, by their addresses.

    Attributes
    ----------
    client : distributed.Client
    run_id : str
    say : callable
        As in `zemosaic_pipeline.cluster.Cluster`.
    requirements : Requirements or None
        What a worker must have; None: nobody is asked yet.
    fit : dict of str to WorkerFacts
        Those that get work.
    """

    client: Any
    run_id: str
    say: Callable[..., object]
    requirements: Requirements | None = None
    fit: dict[str, WorkerFacts] = field(default_factory=dict)
    _refused: set[str] = field(default_factory=set)
    _tallies: dict[str, _Tally] = field(default_factory=dict)
    _preparations: list[_Preparation] = field(default_factory=list)
    _asked: _Housekeeping = field(default_factory=_Housekeeping)
    _questions: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="cluster-questions")
    )
    _looked_s: float = 0.0
    _seen_last: set[str] = field(default_factory=set)
    _were_none: bool = False

    @property
    def are_all_refused(self) -> bool:
        """Whether there are workers, and none of them is fit or still being asked."""
        seen = self._seen()
        return bool(seen) and seen <= self._refused and self._asked.answers is None and not self.fit

    def ask(
        self, function: Callable[..., Any], addresses: tuple[str, ...], *args: Any
    ) -> Future[dict[str, Any]]:
        """Call a function on workers beside what they are at; their values or exceptions come by address."""
        return self._questions.submit(
            self.client.run, function, *args, workers=list(addresses), on_error="return"
        )

    def prepare(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        heard: Callable[[Mapping[str, Any]], object],
    ) -> None:
        """Call a function on all workers; see `zemosaic_pipeline.cluster.Cluster.prepare`."""
        preparation = _Preparation(function, args, heard)
        self._preparations.append(preparation)
        self._prepare(preparation, tuple(self.fit))

    def look(self, now_s: float) -> bool:
        """Look from time to time who has come and gone; return whether the first ones came after there were none."""
        if now_s - self._looked_s <= _LOOK_S and self._asked.answers is None:
            return False
        self._looked_s = now_s
        seen = self._seen()
        for address in set(self.fit) - seen:
            facts = self.fit.pop(address)
            self._tallies[address].lost = True
            self.say("cluster_worker_lost", "WARN", name=facts.name, host=facts.host)
        if self.requirements is None:
            return False
        self._were_none |= not self.fit
        if self._asked.answers is None:
            new = tuple(seen - set(self.fit) - self._refused)
            if new:
                self._asked = _Housekeeping(new, self.ask(admit, new, self.requirements))
        elif self._asked.answers.done():
            asked, self._asked = self._asked, _Housekeeping()
            assert asked.answers is not None
            with suppress(OSError):  # they left while they were asked
                return self._take_in(asked.answers.result())
        return False

    def note_answer(self, name: str) -> None:
        """Count a call of a worker."""
        for tally in self._tallies.values():
            if tally.facts.name == name and not tally.lost:
                tally.calls += 1

    def leave_out(self, name: str, unfit: Unfit) -> None:
        """Give a worker nothing more to do."""
        for address, facts in list(self.fit.items()):
            if facts.name == name:
                del self.fit[address]
                self.ask(dismiss, (address,), self.run_id)
                self._refuse(address, facts, unfit)
        self._were_none |= not self.fit

    def facts(self) -> list[dict[str, Any]]:
        """Return what a report says of each."""
        return [
            {
                **asdict(tally.facts),
                "unfit": None,
                "calls": tally.calls,
                "lost": tally.lost,
                "refused": None
                if tally.refused is None
                else {"key": tally.refused.key, "values": tally.refused.values},
            }
            for tally in self._tallies.values()
        ]

    def end(self) -> None:
        """Ask nothing more."""
        self._questions.shutdown(wait=False, cancel_futures=True)

    def _seen(self) -> set[str]:
        # `Client.scheduler_info` may answer with what it asks for itself from time to time, which names no workers.
        with suppress(OSError):
            known = self.client.sync(self.client.scheduler.identity, n_workers=-1)
            self._seen_last = set(known["workers"])
        return self._seen_last

    def _take_in(self, answers: Mapping[str, Any]) -> bool:
        fresh = []
        for address, found in answers.items():
            if isinstance(found, WorkerFacts) and found.unfit is None:
                self.fit[address] = found
                self._tallies.setdefault(address, _Tally(found)).lost = False
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
        came_back = bool(fresh) and self._were_none
        self._were_none &= not fresh
        return came_back

    def _prepare(self, preparation: _Preparation, addresses: tuple[str, ...]) -> None:
        if addresses:
            preparation.heard(self.ask(preparation.function, addresses, *preparation.args).result())

    def _refuse(self, address: str, facts: WorkerFacts, unfit: Unfit) -> None:
        self._refused.add(address)
        tally = self._tallies.setdefault(address, _Tally(facts))
        if tally.refused is None:
            tally.refused = unfit
            self.say(unfit.key, "WARN", name=facts.name, host=facts.host, **unfit.values)
