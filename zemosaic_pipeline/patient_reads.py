"""Calls that read files where threads do it: one that never comes back is given up, and its file named.

A thread cannot be ended. So each call is made in a thread that serves nothing else meanwhile; who asked waits for it,
and goes on without it when `patience` says so. What a call given up may still write belongs to it alone: functions
called here return arrays of their own and fill none of others. The threads are daemons, so that none keeps the process.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

from zemosaic_core.errors import RunFailed
from zemosaic_pipeline.patience import HOPELESS, TOLD_AFTER_S, Pace, given_up, nothing_answers, overdue

__all__ = ["PatientReads", "reads_of_process"]

P = ParamSpec("P")
R = TypeVar("R")

# Until a call is looked at for the first time, and between two looks.
_LOOK_S = 1.0


class PatientReads:
    """Threads that read for others.

    Parameters
    ----------
    check : callable
        Called every second while something is waited for; raises to give up.
    on_waiting : callable
        Told the path and the seconds for which nothing of it has been read; once per call, by the thread that waits.
    ends_run : bool
        `HOPELESS` calls in a row that were given up are the end of the run.

    Notes
    -----
    May be called from several threads. What is sent to another process is `reads_of_process` there.
    """

    def __init__(
        self,
        *,
        check: Callable[[], None] = lambda: None,
        on_waiting: Callable[[str, float], None] = lambda _path, _seconds: None,
        ends_run: bool = True,
    ) -> None:
        self._ends_run = ends_run
        self._check = check
        self._on_waiting = on_waiting
        self._idle: deque[_Reader] = deque()
        self._in_a_row = 0
        self._hopeless: RunFailed | None = None

    def __reduce__(self) -> tuple[Callable[[], PatientReads], tuple[()]]:
        return reads_of_process, ()

    def close(self) -> None:
        """End the threads that have nothing to do."""
        while self._idle:
            self._idle.pop().end()

    def __call__(
        self, path: Path | str, size_bytes: int, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Return ``function(*args, **kwargs)``, which reads the file at ``path`` of ``size_bytes``.

        Raises
        ------
        SkipItem
            ``frame_silent``: nothing came of it for as long as `patience` waits; or what the function raised.
        RunFailed
            ``run_error_nothing_answers``: it was so with several calls in a row.
        """
        if self._hopeless is not None:
            raise self._hopeless
        try:
            reader = self._idle.pop()
        except IndexError:
            reader = _Reader()
        reader.begin(lambda: function(*args, **kwargs))
        if not reader.has_ended(_LOOK_S):
            self._wait(reader, str(path), size_bytes)
        self._in_a_row = 0
        value, error = reader.result()
        self._idle.append(reader)
        if error is not None:
            raise error
        return cast(R, value)

    def _wait(self, reader: _Reader, path: str, size_bytes: int) -> None:
        """Return when a call has ended; raises when it is given up."""
        # Hardly ever needed, and processes that measure import this, too.
        from zemosaic_pipeline.process_watch import ThreadWatch

        watch, told = ThreadWatch(reader.thread), False
        watch.begin(size_bytes)
        while not reader.has_ended(_LOOK_S):
            try:
                self._check()
            except BaseException:
                reader.leave()
                raise
            work = watch.look()
            if work.still_s > TOLD_AFTER_S and not told:
                told = True
                self._on_waiting(path, work.still_s)
            # How much others computed is not known here; reading may take as long as compiling.
            found = overdue(work, Pace())
            if found is None:
                continue
            reader.leave()
            self._in_a_row += 1
            if self._ends_run and self._in_a_row >= HOPELESS:
                self._hopeless = nothing_answers(found, path)
                raise self._hopeless
            raise given_up(found, path)


@cache
def reads_of_process() -> PatientReads:
    """Return the threads of a process that is no run's own, such as a worker of a cluster; no run ends by them."""
    return PatientReads(ends_run=False)


class _Reader:
    """A thread that makes one call at a time."""

    def __init__(self) -> None:
        # Locks as signals, released by the other thread: semaphores take as long as reading a small window.
        self._asked, self._ended = threading.Lock(), threading.Lock()
        self._asked.acquire()
        self._ended.acquire()
        self._call: Callable[[], Any] | None = None
        self._result: tuple[Any, BaseException | None] = (None, None)
        self._is_left = False
        self.thread = threading.Thread(target=self._serve, name="patient-read", daemon=True)
        self.thread.start()

    def begin(self, call: Callable[[], Any] | None) -> None:
        self._call = call
        self._asked.release()

    def has_ended(self, within_s: float) -> bool:
        return self._ended.acquire(timeout=within_s)

    def result(self) -> tuple[Any, BaseException | None]:
        found, self._result = self._result, (None, None)
        return found

    def end(self) -> None:
        """End the thread, which waits for a call."""
        self.begin(None)

    def leave(self) -> None:
        """Nobody waits for the call any more; the thread ends with it."""
        self._is_left = True

    def _serve(self) -> None:
        while not self._is_left:
            self._asked.acquire()
            call, self._call = self._call, None
            if call is None:
                return
            try:
                self._result = call(), None
            except BaseException as error:  # noqa: BLE001 - it belongs to the thread that asked
                self._result = None, error
            del call
            self._ended.release()
