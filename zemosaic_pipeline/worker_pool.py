"""The processes that measure and match, and what becomes of the work of one that dies.

Each process holds one item at a time, so a death names its item. That item is tried again when nothing else is at
work, in a process of its own with a limit of memory; what ends that one as well is left out by name. A process that
the system killed outright most likely died of want of memory: it is not replaced, the rest goes on with fewer.

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
from typing import Any

from zemosaic_core.errors import RunFailed, SkipItem
from zemosaic_pipeline.child import limit_memory, start_child
from zemosaic_pipeline.frame_boundary import NO_MEMORY, portable_error

__all__ = ["WorkerPool"]

log = logging.getLogger(__name__)

_POLL_S = 0.2
# An item in work when the run ends gets this long to end by itself.
_GRACE_S = 0.4
# What an item may take beyond an idle process when it is tried alone, unless the caller knows better.
_ALONE_BYTES = 1_000_000_000
# Deaths without a single answer mean that processes cannot work here at all.
_HOPELESS = 4


@dataclass
class _Child:
    """A process, our end of its pipe, and the item it is at work on."""

    process: BaseProcess
    connection: Connection
    position: int | None = None


@dataclass(frozen=True)
class _Death:
    """A process ended without an answer."""

    exit_code: int | None

    @property
    def was_killed(self) -> bool:
        """The system, or somebody, ended it outright: what the kernel does when memory runs short."""
        return os.name == "posix" and self.exit_code == -signal.SIGKILL

    def __str__(self) -> str:
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
    alone_bytes : int
        Memory an item may take when it is tried alone.
    """

    def __init__(
        self,
        workers: int,
        *,
        check: Callable[[], None] = lambda: None,
        on_fewer: Callable[[int], None] = lambda _: None,
        alone_bytes: int = _ALONE_BYTES,
    ) -> None:
        self.workers = workers
        self.ended_by_force = False
        self.alone_bytes = alone_bytes
        self._check = check
        self._on_fewer = on_fewer
        self._children: list[_Child] = []
        self._answers = 0
        self._deaths = 0

    def map(
        self, function: Callable[[Any], Any], items: Sequence[Any], *, name_of: Callable[[Any], str] = str
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

        Yields
        ------
        tuple of int and object
            The answer; or a `SkipItem`: ``frame_killed_worker`` when two processes died over the item,
            ``frame_no_memory`` when it asked for more than there is.

        Raises
        ------
        RunFailed
            ``run_error_worker_died``: processes die whatever they do.
        """
        todo = deque(range(len(items)))
        suspects: list[int] = []
        try:
            while todo or self._busy():
                self._hand_out(function, items, todo)
                for child in self._ready():
                    position, answer = self._take(child)
                    if isinstance(answer, _Death):
                        log.warning("a process died (%s) at work on %s", answer, name_of(items[position]))
                        self._mourn(answer)
                        suspects.append(position)
                    elif _is_want_of_memory(answer):
                        suspects.append(position)
                    else:
                        # Nobody waits while the caller looks at the answer.
                        self._hand_out(function, items, todo)
                        yield position, answer
            for position in suspects:
                yield position, self.alone(function, items[position], name=name_of(items[position]))
        finally:
            self._end([child for child in self._children if child.position is not None], _GRACE_S)

    def alone(self, function: Callable[[Any], Any], item: Any, *, name: str) -> Any:
        """Return ``function(item)`` from a process of its own with a limit of memory; answers as in `map`."""
        # Two tries: the first death may have been an accident of the machine, as the one before it.
        for _ in range(2):
            self._end(list(self._children), _GRACE_S)
            child = self._start(self.alone_bytes)
            if child is None:
                raise _no_processes("none could be started")
            if not self._send(child, function, item, 0):
                continue
            while not wait([child.connection], _POLL_S):
                self._check()
            _, answer = self._take(child)
            if not isinstance(answer, _Death):
                # It has a limit that others shall not have.
                self._end([child], _GRACE_S)
                return answer
            log.warning("a process died (%s) at work on %s alone", answer, name)
            self._mourn(answer)
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

    def _hand_out(self, function: Callable[[Any], Any], items: Sequence[Any], todo: deque[int]) -> None:
        while todo:
            child = next((c for c in self._children if c.position is None), None)
            if child is None:
                child = self._start() if len(self._children) < self.workers else None
                if child is None:
                    return
            position = todo.popleft()
            if not self._send(child, function, items[position], position):
                # It was dead before it got the item, which therefore is not to blame.
                todo.appendleft(position)

    def _send(self, child: _Child, function: Callable[[Any], Any], item: Any, position: int) -> bool:
        """Give an item to an idle process; False, and the process is buried, when it is dead."""
        message = pickle.dumps((function, item), pickle.HIGHEST_PROTOCOL)
        try:
            child.connection.send_bytes(message)
        except OSError:
            self._mourn(self._bury(child))
            return False
        child.position = position
        return True

    def _ready(self) -> list[_Child]:
        """Return the processes that have answered or died; waits a moment for one."""
        busy = {child.connection: child for child in self._children if child.position is not None}
        self._check()
        return [busy[connection] for connection in wait(list(busy), _POLL_S)]  # type: ignore[index]

    def _take(self, child: _Child) -> tuple[int, Any]:
        """Return the position and answer of a process that is ready; `_Death` when it died."""
        position, child.position = child.position, None
        assert position is not None
        try:
            message = child.connection.recv_bytes()
        except (EOFError, OSError):
            return position, self._bury(child)
        self._answers += 1
        succeeded, answer = pickle.loads(message)
        if not succeeded:
            raise answer
        return position, answer

    # ------------------------------------------------------------------ processes

    def _start(self, limit_bytes: int = 0) -> _Child | None:
        """Start a process; None when the system gives no more, but some are at work."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_serve, args=(theirs, os.getpid(), limit_bytes), name="zemosaic-measure", daemon=True
        )
        try:
            process.start()
        except OSError as error:
            ours.close()
            self._perhaps_all_are_stopped()
            if not self._children:
                raise _no_processes(str(error)) from error
            log.warning("no more processes: %s", error)
            self._fewer(len(self._children))
            return None
        finally:
            # Ours alone: when the process dies, reading from it ends.
            theirs.close()
        child = _Child(process, ours)
        self._children.append(child)
        return child

    def _bury(self, child: _Child) -> _Death:
        child.process.join(_GRACE_S)
        death = _Death(child.process.exitcode)
        self._end([child], 0.0)
        return death

    def _mourn(self, death: _Death) -> None:
        """Draw the consequences of a death."""
        self._perhaps_all_are_stopped()
        self._deaths += 1
        if self._answers == 0 and self._deaths >= _HOPELESS:
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
                child.process.join()
            self._children.remove(child)


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
    start_child(parent_pid)
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
        function, item = pickle.loads(message)
        return pickle.dumps((True, function(item)), pickle.HIGHEST_PROTOCOL)
    except BaseException as error:  # noqa: BLE001 - it belongs to the process that asked
        return pickle.dumps((False, portable_error(error, traceback.format_exc())), pickle.HIGHEST_PROTOCOL)
