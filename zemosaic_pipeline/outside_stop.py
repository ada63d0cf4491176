"""What stops a run from outside its program: a signal to its process, or the end of the process that started it.

A run stops at the next item; one that does not within `STOP_WITHIN_S` is ended where it is. Nothing is lost by that:
every file is complete or not there, and the next run sweeps up.

Python runs the handler of a signal between two steps of the main thread, which may be seconds away in compiled code.
So the number of the signal also goes through a pair of sockets to the thread that watches.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

import psutil

__all__ = [
    "EXIT_STOPPED",
    "STOP_SIGNALS",
    "STOP_WITHIN_S",
    "StopRequest",
    "leave_at_once",
    "send_the_rest",
    "stop_from_outside",
]

EXIT_STOPPED = 130
STOP_WITHIN_S = 1.0
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
_LOOK_S = 0.1
# A window that is busy drawing reads its messages late; one that does not read at all is not waited for.
_UNREAD_S = 10.0

log = logging.getLogger(__name__)


class StopRequest:
    """The cancel event of the parent, or a stop from outside, whichever comes first.

    A signal must not touch the event: its lock may be held by the very code that was interrupted.
    """

    def __init__(self, event: Any = None) -> None:
        self._event = event
        self._asked = False
        self.since_s: float | None = None

    def is_set(self) -> bool:
        """Whether a stop was asked for."""
        return self._asked or (self._event is not None and bool(self._event.is_set()))

    def set(self) -> None:
        """Ask to stop."""
        if self.since_s is None:
            self.since_s = time.monotonic()
        self._asked = True


@contextmanager
def stop_from_outside(event: Any = None, *, at_once: bool = False) -> Iterator[StopRequest]:
    """Give the request that a run has to honour; signals and the end of the parent set it.

    The process ends with `EXIT_STOPPED`, its children before it, when the block has not ended in time.

    Parameters
    ----------
    event : optional
        The cancel event of the parent, anything with ``is_set()``.
    at_once : bool
        Nothing has been begun: end on the first word of anybody, of ``event`` as well.
    """
    request = StopRequest(event)
    ended = threading.Event()

    def note(_number: int, _frame: FrameType | None) -> None:
        request.set()

    # Whoever started the run with `nohup` wants it to outlive the terminal.
    watched = [s for s in STOP_SIGNALS if signal.getsignal(s) != signal.SIG_IGN]
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(False)
    watch = threading.Thread(
        target=_watch, args=(request, ended, at_once, ours, watched), name="stop-watch", daemon=True
    )
    watch.start()
    before = {number: signal.signal(number, note) for number in watched}
    fd_before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    try:
        yield request
    finally:
        ended.set()
        signal.set_wakeup_fd(fd_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        # The watch closes its own end: it may be waiting for it.
        theirs.close()


def send_the_rest(queue: Any) -> None:
    """Close a queue and wait until its messages are read, but not for a reader that is gone or does not read."""
    queue.close()
    sender = threading.Thread(target=queue.join_thread, name="last-messages", daemon=True)
    sender.start()
    sender.join(_LOOK_S)
    unread, since_s = -1, time.monotonic()
    while sender.is_alive() and not _parent_is_gone():
        left = _unread(queue)
        if left != unread:
            unread, since_s = left, time.monotonic()
        elif time.monotonic() - since_s > _UNREAD_S:
            break
        sender.join(_LOOK_S)
    if sender.is_alive():
        queue.cancel_join_thread()


def _unread(queue: Any) -> int:
    try:
        return int(queue.qsize())
    except NotImplementedError:
        return 0  # macOS does not count


def _watch(
    request: StopRequest, ended: threading.Event, at_once: bool, told: socket.socket, numbers: Sequence[int]
) -> None:
    patience_s = 0.0 if at_once else STOP_WITHIN_S
    with told:
        while not ended.is_set():
            if select.select([told], [], [], _LOOK_S)[0]:
                noticed = told.recv(64)
                if not noticed:
                    return  # the other end was closed: the block has ended
                if set(noticed) & set(numbers):
                    request.set()
            # The event counts from when it is seen: a person who stops a run waits no longer than a system.
            if _parent_is_gone() or request.is_set():
                request.set()
            if request.since_s is not None and time.monotonic() - request.since_s >= patience_s:
                _end_now(at_once)


def _parent_is_gone() -> bool:
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()


def leave_at_once(code: int) -> NoReturn:
    """End this process without what Python tidies up: that takes longer than a stop may, and nobody needs it."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


def _end_now(was_at_rest: bool) -> NoReturn:
    if not was_at_rest:
        # A thread of its own: on a disk that hangs a line of the log may take for ever.
        line = threading.Thread(
            target=log.warning, args=("the run did not stop in %s s and is ended", STOP_WITHIN_S)
        )
        line.daemon = True
        line.start()
        line.join(_LOOK_S)
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.kill()
    os._exit(EXIT_STOPPED)
