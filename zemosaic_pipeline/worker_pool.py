"""The processes that measure and match, and what becomes of the work of one that dies.

Each process holds one item at a time, so a death names its item. That item is tried again when nothing else is at
work, in a process of its own with a limit of memory; what ends that one as well is left out by name. A process that
the system killed outright most likely died of want of memory: it is not replaced, the rest goes on with fewer. An
item that keeps its process for longer than `patience` allows is treated as one over which its process died.

Imports nothing heavy: every worker process needs it.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

from zemosaic_core.errors import RunFailed, SkipItem
from zemosaic_pipeline.child import (
    importing,
    is_process_limit,
    leave_removed_folder,
    limit_memory,
    start_child,
)
from zemosaic_pipeline.frame_boundary import NO_MEMORY, portable_error
from zemosaic_pipeline.patience import (
    HOPELESS,
    TOLD_AFTER_S,
    Overdue,
    Pace,
    given_up,
    nothing_answers,
    overdue,
    paced,
)

if TYPE_CHECKING:
    from zemosaic_pipeline.process_watch import ProcessWatch

__all__ = ["WorkerPool"]

log = logging.getLogger(__name__)

_POLL_S = 0.2
# An item in work when the run ends gets this long to end by itself.
_GRACE_S = 0.4
# What an item may take beyond an idle process when it is tried alone, unless the caller knows better.
_ALONE_BYTES = 1_000_000_000
# A process whose system call does not come back, as with a disk that is gone, cannot even be killed.
_KILL_S = 5.0


@dataclass
class _Child:
    """A process, our end of its pipe, and the item it is at work on."""

    process: BaseProcess
    connection: Connection
    watch: ProcessWatch
    position: int | None = None
    name: str = ""
    is_told: bool = False
    overdue: Overdue | None = None


@dataclass(frozen=True)
class _Death:
    """A process ended without an answer, or was ended because none came."""

    exit_code: int | None
    overdue: Overdue | None = None

    @property
    def was_killed(self) -> bool:
        """The system, or somebody, ended it outright: what the kernel does when memory runs short."""
        return self.overdue is None and os.name == "posix" and self.exit_code == -signal.SIGKILL

    def __str__(self) -> str:
        if self.overdue is not None:
            return str(self.overdue)
        if self.exit_code is not None and self.exit_code < 0:
            try:
                return signal.Signals(-self.exit_code).name
            except ValueError:
                return f"signal {-self.exit_code}"
        return f"exit code {self.exit_code}"


class WorkerPool:
    """Processes that work on items, started at first use.

    Parameters
    ----------
    workers : int
        How many at most; smaller after processes were killed.
    check : callable
        Called several times a second while waiting; raises to give up.
    on_fewer : callable
        Told how many processes are left when one was killed and is not replaced.
    on_waiting : callable
        Told the name of an item and the seconds for which nothing of it has been computed or read; once per item.
    alone_bytes : int
        Memory an item may take when it is tried alone.
    """

    def __init__(
        self,
        workers: int,
        *,
        check: Callable[[], None] = lambda: None,
        on_fewer: Callable[[int], None] = lambda _: None,
        on_waiting: Callable[[str, float], None] = lambda _name, _seconds: None,
        alone_bytes: int = _ALONE_BYTES,
    ) -> None:
        self.workers = workers
        self.ended_by_force = False
        self.alone_bytes = alone_bytes
        self._check = check
        self._on_fewer = on_fewer
        self._on_waiting = on_waiting
        self._children: list[_Child] = []
        self._answers = 0
        self._deaths = 0
        self._silent_in_a_row = 0
        self._pace = Pace()
        self._paced_function: Callable[[Any], Any] | None = None

    def map(
        self,
        function: Callable[[Any], Any],
        items: Sequence[Any],
        *,
        name_of: Callable[[Any], str] = str,
        size_of: Callable[[Any], int] = lambda _: 0,
        may_compile: bool = True,
    ) -> Iterator[tuple[int, Any]]:
        """Yield ``(position, function(item))`` as answers come.

        Parameters
        ----------
        function : callable
            Can be imported by the processes. What it raises is raised here.
        items : sequence
            Can be pickled.
        name_of : callable
            Path of an item, for the reason when it is left out.
        size_of : callable
            Bytes of its file, or 0: a larger one may take longer.
        may_compile : bool
            The first item may take as long as compiling the program.

        Yields
        ------
        tuple of int and object
            The answer; or a `SkipItem`: ``frame_killed_worker`` when two processes died over the item,
            ``frame_no_memory`` when it asked for more than there is, ``frame_endless`` or ``frame_silent`` when it
            was waited for in vain twice.

        Raises
        ------
        RunFailed
            ``run_error_worker_died``: processes die whatever they do. ``run_error_nothing_answers``: items were
            waited for in vain, one after the other.
        """
        todo = deque(range(len(items)))
        suspects: list[int] = []
        if function is not self._paced_function:
            self._paced_function, self._pace = function, Pace(answered=0 if may_compile else 1)

        def hand_out() -> None:
            self._hand_out(function, items, todo, name_of, size_of)

        try:
            while todo or self._busy():
                hand_out()
                for child in self._ready():
                    position, answer = self._take(child)
                    if isinstance(answer, _Death):
                        log.warning("a process died (%s) at work on %s", answer, name_of(items[position]))
                        self._mourn(answer, name_of(items[position]))
                        suspects.append(position)
                    elif _is_want_of_memory(answer):
                        suspects.append(position)
                    else:
                        # Nobody waits while the caller looks at the answer.
                        hand_out()
                        yield position, answer
            for position in suspects:
                item = items[position]
                yield position, self.alone(function, item, name=name_of(item), size_bytes=size_of(item))
        finally:
            self._end([child for child in self._children if child.position is not None], _GRACE_S)

    def alone(self, function: Callable[[Any], Any], item: Any, *, name: str, size_bytes: int = 0) -> Any:
        """Return ``function(item)`` from a process of its own with a limit of memory; answers as in `map`."""
        # Two tries: the first death may have been an accident of the machine, as the one before it.
        for _ in range(2):
            self._end(list(self._children), _GRACE_S)
            child = self._start(self.alone_bytes)
            if child is None:
                raise _no_processes("none could be started")
            if not self._send(child, function, item, 0, name, size_bytes):
                continue
            while not self._ready():
                pass
            _, answer = self._take(child)
            if not isinstance(answer, _Death):
                # It has a limit that others shall not have.
                self._end([child], _GRACE_S)
                return answer
            log.warning("a process died (%s) at work on %s alone", answer, name)
            self._mourn(answer, name)
            if answer.overdue is not None:
                # Half an hour was given to it before this one.
                return given_up(answer.overdue, name)
        return SkipItem(
            "frame_killed_worker",
            f"{name}: the processes that worked on it died ({answer})",
            path=name,
            reason=str(answer),
        )

    def close(self) -> None:
        """End all processes and give their memory back; `map` starts new ones."""
        self._end(list(self._children), _GRACE_S)

    # ------------------------------------------------------------------ items

    def _busy(self) -> bool:
        return any(child.position is not None for child in self._children)

    def _hand_out(
        self,
        function: Callable[[Any], Any],
        items: Sequence[Any],
        todo: deque[int],
        name_of: Callable[[Any], str],
        size_of: Callable[[Any], int],
    ) -> None:
        while todo:
            child = next((c for c in self._children if c.position is None), None)
            if child is None:
                child = self._start() if len(self._children) < self.workers else None
                if child is None:
                    return
            position = todo.popleft()
            item = items[position]
            if not self._send(child, function, item, position, name_of(item), size_of(item)):
                # It was dead before it got the item, which therefore is not to blame.
                todo.appendleft(position)

    def _send(
        self,
        child: _Child,
        function: Callable[[Any], Any],
        item: Any,
        position: int,
        name: str,
        size_bytes: int,
    ) -> bool:
        """Give an item to an idle process; False, and the process is buried, when it is dead."""
        message = pickle.dumps((function, item), pickle.HIGHEST_PROTOCOL)
        try:
            child.connection.send_bytes(message)
        except OSError:
            self._mourn(self._bury(child))
            return False
        child.position, child.name, child.is_told = position, name, False
        child.watch.begin(size_bytes)
        return True

    def _ready(self) -> list[_Child]:
        """Return the processes that have answered or died, or have had their time; waits a moment for one."""
        busy = {child.connection: child for child in self._children if child.position is not None}
        self._check()
        ready = [busy[connection] for connection in wait(list(busy), _POLL_S)]  # type: ignore[index]
        for child in busy.values():
            if child not in ready and child.watch.is_due:
                work = child.watch.look()
                child.overdue = overdue(work, self._pace)
                if child.overdue is not None:
                    ready.append(child)
                elif work.still_s > TOLD_AFTER_S and not child.is_told:
                    child.is_told = True
                    log.warning("%s: nothing was computed or read for %.0f s", child.name, work.still_s)
                    self._on_waiting(child.name, work.still_s)
        return ready

    def _take(self, child: _Child) -> tuple[int, Any]:
        """Return the position and answer of a process that is ready; `_Death` when it died or had its time."""
        position, child.position = child.position, None
        assert position is not None
        if child.overdue is not None:
            self.ended_by_force = True
            self._end([child], 0.0)
            return position, _Death(None, child.overdue)
        try:
            message = child.connection.recv_bytes()
        except (EOFError, OSError):
            return position, self._bury(child)
        self._answers += 1
        self._silent_in_a_row = 0
        self._pace = paced(self._pace, child.watch.look())
        succeeded, answer = pickle.loads(message)
        if not succeeded:
            raise answer
        return position, answer

    # ------------------------------------------------------------------ processes

    def _start(self, limit_bytes: int = 0) -> _Child | None:
        """Start a process; None when the system gives no more, but some are at work."""
        # Here and not above: the processes themselves do without what it imports.
        from zemosaic_pipeline.process_watch import ProcessWatch

        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_serve, args=(theirs, os.getpid(), limit_bytes), name="zemosaic-measure", daemon=True
        )
        try:
            leave_removed_folder()
            process.start()
        except OSError as error:
            ours.close()
            self._perhaps_all_are_stopped()
            if not self._children:
                # A limit of processes is told as one by who knows the error.
                raise error if is_process_limit(error) else _no_processes(str(error)) from error
            log.warning("no more processes: %s", error)
            self._fewer(len(self._children))
            return None
        finally:
            # Ours alone: when the process dies, reading from it ends.
            theirs.close()
        child = _Child(process, ours, ProcessWatch(process.pid or 0))
        self._children.append(child)
        return child

    def _bury(self, child: _Child) -> _Death:
        child.process.join(_GRACE_S)
        death = _Death(child.process.exitcode)
        self._end([child], 0.0)
        return death

    def _mourn(self, death: _Death, name: str = "") -> None:
        """Draw the consequences of a death."""
        self._perhaps_all_are_stopped()
        if death.overdue is not None:
            self._silent_in_a_row += death.overdue.kind == "still"
            if self._silent_in_a_row >= HOPELESS:
                raise nothing_answers(death.overdue, name)
            return
        self._deaths += 1
        # Without a single answer, processes cannot work here at all.
        if self._answers == 0 and self._deaths >= HOPELESS:
            raise _no_processes(str(death))
        if death.was_killed and self.workers > 1:
            self._fewer(self.workers - 1)

    def _perhaps_all_are_stopped(self) -> None:
        """Give up when a signal to the whole group, which a process here was the first to get, has reached us too."""
        time.sleep(0.05)
        self._check()

    def _fewer(self, workers: int) -> None:
        if workers < self.workers:
            self.workers = workers
            self._on_fewer(workers)

    def _end(self, children: list[_Child], grace_s: float) -> None:
        """End processes: the idle ones leave when their pipe closes, those at work after their item or by force."""
        for child in children:
            if child.position is None:
                child.connection.close()
        until = time.monotonic() + grace_s
        for child in children:
            if child.position is not None:
                # What it still answers is not wanted, but it can end its files properly.
                if not wait([child.connection], max(0.0, until - time.monotonic())):
                    self.ended_by_force = True
                    child.process.kill()
                child.connection.close()
        for child in children:
            child.process.join(max(0.0, until + 0.3 - time.monotonic()))
            if child.process.is_alive():
                self.ended_by_force = True
                child.process.kill()
                child.process.join(_KILL_S)
                if child.process.is_alive():
                    _abandon(child.process)
            self._children.remove(child)


def _abandon(process: BaseProcess) -> None:
    """Wait no longer for a process that the system cannot end, neither here nor when this one ends."""
    log.warning("process %s cannot be ended; the system waits for a disk or a network folder", process.pid)
    multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]


def _is_want_of_memory(answer: Any) -> bool:
    return isinstance(answer, SkipItem) and answer.key == NO_MEMORY


def _no_processes(reason: str) -> RunFailed:
    return RunFailed(
        "run_error_worker_died",
        f"worker processes ended without an answer ({reason}); they may have run out of memory: "
        "set num_processing_workers lower",
        reason=reason,
    )


def _serve(connection: Connection, parent_pid: int, limit_bytes: int) -> None:
    """Body of a process: work until the pipe ends."""
    try:
        start_child(parent_pid)
    except RuntimeError as error:
        # No thread to watch the parent with: that is the answer to whatever is asked.
        connection.recv_bytes()
        connection.send_bytes(_told(error))
        return
    # Libraries warn of every odd card; what a file has wrong is told in the answer.
    warnings.simplefilter("ignore")
    if limit_bytes:
        limit_memory(limit_bytes)
    while True:
        try:
            message = connection.recv_bytes()
        except (EOFError, OSError):
            # What Python tidies up when it ends takes longer than the run wants to wait, and nobody needs it.
            os._exit(0)
        answer = _answer(message)
        try:
            connection.send_bytes(answer)
        except OSError:
            os._exit(0)


def _answer(message: bytes) -> bytes:
    try:
        with importing():
            function, item = pickle.loads(message)
        return pickle.dumps((True, function(item)), pickle.HIGHEST_PROTOCOL)
    except BaseException as error:  # noqa: BLE001 - it belongs to the process that asked
        return _told(error)


def _told(error: BaseException) -> bytes:
    return pickle.dumps((False, portable_error(error, traceback.format_exc())), pickle.HIGHEST_PROTOCOL)
