"""A child process that talks through a queue, watched so that its death is noticed and its children end.

Used for the run itself and for the background jobs of the filter (survey, measuring, solving). The window
never waits: starting, listening and ending all happen in threads, `poll` only empties a list.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import multiprocessing
import multiprocessing.queues
import os
import queue
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import IO, Any

import psutil

from zemosaic_pipeline.child import importing, is_process_limit, leave_removed_folder
from zemosaic_pipeline.outside_stop import EXIT_STOPPED, leave_at_once, send_the_rest, stop_from_outside
from zemosaic_ui.child_errors import ChildErrors

__all__ = ["ChildProcess", "end_process_tree"]

# After the process is gone its last messages may still be on their way through the pipe.
DRAIN_S = 1.0
# Of a process that was ended by force nothing more is needed.
FORCED_DRAIN_S = 0.2
FAMILY_S = 1.0
END_LOOK_S = 0.02
# The first message of a child, which starts the thread that sends them.
_CAN_SPEAK = None
# The last line of a child to which the system gives no thread to say anything with.
_NO_THREADS = "zemosaic: no more threads"


def _run_in_child(target: str, stream: IO[str], args: tuple, kwargs: dict) -> None:
    """Body of the child: what it cannot say itself is told by its standard error."""
    os.dup2(stream.fileno(), 2)
    sys.stderr = stream
    faulthandler.enable(stream)
    try:
        # The queue has a thread that sends; one that could not be started is not tried again, and nothing is heard.
        args[0].put(_CAN_SPEAK)
        _do_job(target, args, kwargs)
    except (RuntimeError, BlockingIOError) as error:
        if not is_process_limit(error):
            raise
        stream.write(f"{error}\n{_NO_THREADS}\n")
        # What was said before is still sent.
        sys.exit(1)


def _do_job(target: str, args: tuple, kwargs: dict) -> None:
    """Import the target here, so that the window never pays for its imports, and call it."""
    # Ctrl-C in a terminal reaches the whole group of processes; only the parent answers it, through the cancel
    # event, so that the run can end cleanly. Processes that the child starts inherit this.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    module, name = target.split(":")
    # Importing takes seconds on a busy machine, and there is nothing to end properly yet.
    with stop_from_outside(kwargs.get("cancel_event"), at_once=True), importing():
        job = getattr(importlib.import_module(module), name)
    # Nor is it looked for there later.
    gc.freeze()
    # A closed terminal or a window that was killed leaves no job behind, whether or not it looks at its cancel event.
    with stop_from_outside():
        try:
            job(*args, **kwargs)
        except SystemExit as leaving:
            if leaving.code == EXIT_STOPPED:
                leave_at_once(EXIT_STOPPED)
            raise
    send_the_rest(args[0])


def _start_tracker() -> None:
    """Start the process in which Python keeps book of semaphores, deaf to a closing terminal.

    Python makes it deaf to Ctrl-C and SIGTERM only. Killed by SIGHUP it is started anew, knows nothing of what it
    should free, and says so with tracebacks.
    """
    if not hasattr(signal, "pthread_sigmask"):
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_process_tree(pid: int, *, patience_s: float = 3.0) -> int:
    """Terminate a process and all its descendants, then kill what is left; return how many there were.

    The exit code of a child of this process stays with whoever started it: a child is never waited for here as
    psutil would. The one who takes the code is the only one who can see that the child is gone, and whoever asks
    `multiprocessing` or `subprocess` afterwards would wait for ever or be told zero.
    """
    try:
        parent = psutil.Process(pid)
        family = [*parent.children(recursive=True), parent]
    except psutil.NoSuchProcess:
        return 0
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    for process in _still_running(family, patience_s):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    _still_running(family, max(patience_s, 1.0))
    return len(family)


def _still_running(processes: list[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Wait until the processes have ended, at most ``timeout_s``; return those that have not."""
    until = time.monotonic() + timeout_s
    while alive := [process for process in processes if _is_at_work(process)]:
        if time.monotonic() > until:
            break
        time.sleep(END_LOOK_S)
    return alive


def _is_at_work(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class ChildProcess:
    """One spawned, non-daemonic process and its queue.

    Parameters
    ----------
    target : str
        ``"module:function"``, imported in the child. It is called as ``function(queue, *args, **kwargs)``
        and receives ``cancel_event`` as a keyword.
    """

    def __init__(self, target: str, *args: Any, **kwargs: Any) -> None:
        self._messages: deque[Any] = deque()
        self._started = threading.Event()
        self._ended = threading.Event()
        self._start_error = ""
        self._is_limited = False
        self._ending: threading.Thread | None = None
        self._is_forced = False
        self._errors = ChildErrors()
        context = multiprocessing.get_context("spawn")
        self._process: BaseProcess = context.Process(target=_run_in_child, name="ZeMosaicWorker")
        try:
            _start_tracker()
            self._queue: multiprocessing.queues.Queue = context.Queue()
            self._cancel = context.Event()
            arguments = (target, self._errors, (self._queue, *args), {**kwargs, "cancel_event": self._cancel})
            self._process = context.Process(
                target=_run_in_child, args=arguments, name="ZeMosaicWorker", daemon=False
            )
            # Pickling 10,000 paths into a pipe and waiting for the interpreter to read them takes a moment.
            threading.Thread(target=self._start_and_listen, name="zemosaic-listener", daemon=True).start()
        except (RuntimeError, BlockingIOError) as error:
            # The system lets this user start no more of them.
            self._fail(error)

    # ------------------------------------------------------------------ state

    @property
    def pid(self) -> int | None:
        """Process id, or None before the start."""
        return self._process.pid if self._started.is_set() else None

    @property
    def is_finished(self) -> bool:
        """True when the process is gone and all its messages have been received."""
        return self._ended.is_set()

    @property
    def exit_code(self) -> int | None:
        """Exit code; negative is the number of the signal that ended it; None while it runs."""
        return self._process.exitcode if self._started.is_set() else None

    @property
    def start_error(self) -> str:
        """Why the process could not be started, or an empty string."""
        return self._start_error

    @property
    def met_process_limit(self) -> bool:
        """Whether the system gave no process or thread to start with, here or in the child."""
        return self._is_limited or self.error_text().endswith(_NO_THREADS)

    def error_text(self) -> str:
        """Return the last lines the child wrote to its standard error."""
        return self._errors.tail()

    # ------------------------------------------------------------------ actions

    def poll(self, *, budget_s: float = 0.008, limit: int = 4000) -> list[Any]:
        """Return the messages that arrived, at most ``limit`` and for at most ``budget_s`` seconds."""
        taken: list[Any] = []
        until = time.monotonic() + budget_s
        while self._messages and len(taken) < limit and time.monotonic() < until:
            taken.append(self._messages.popleft())
        return taken

    @property
    def has_messages(self) -> bool:
        """True while messages wait for `poll`."""
        return bool(self._messages)

    def request_cancel(self) -> None:
        """Ask the child to stop at its next item."""
        if not self._ended.is_set():
            self._cancel.set()

    def end_after(
        self, grace_s: float, on_forced: Callable[[], None] | None = None, *, patience_s: float = 3.0
    ) -> None:
        """End the child and its descendants by force when it still runs after ``grace_s``; do not wait.

        ``patience_s`` lies between asking and killing.
        """
        if self._ending is not None and self._ending.is_alive() and grace_s > 0:
            return
        self._ending = threading.Thread(
            target=self._end, args=(grace_s, patience_s, on_forced), name="zemosaic-ending", daemon=True
        )
        self._ending.start()

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end; return whether it came in time."""
        return self._ended.wait(timeout_s)

    def close(self) -> None:
        """Forget what the child wrote to its standard error; call after the end."""
        self._errors.close()

    # ------------------------------------------------------------------ threads

    def _start_and_listen(self) -> None:
        try:
            leave_removed_folder()
            self._process.start()
        except (OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            self._fail(error)
            return
        reader = threading.Thread(target=self._listen, name="zemosaic-reader", daemon=True)
        try:
            reader.start()
        except RuntimeError as error:
            # Nobody would ever hear the process, nor that it ended.
            self._process.kill()
            self._process.join()
            self._fail(error)
            return
        self._started.set()
        self._end_orphans(self._family_until_the_end())
        # A process killed in the middle of a message leaves half of it in the pipe and the reader waiting
        # for the rest for ever; the reader is a daemon thread and is left behind in that case.
        reader.join(DRAIN_S if not self._is_forced else FORCED_DRAIN_S)
        self._ended.set()

    def _fail(self, error: Exception) -> None:
        self._is_limited = is_process_limit(error)
        self._start_error = f"{type(error).__name__}: {error}"
        self._started.set()
        self._ended.set()

    def _family_until_the_end(self) -> list[psutil.Process]:
        """Wait for the end of the process; return what it had started when that was last looked at."""
        family: list[psutil.Process] = []
        while self._process.is_alive():
            with suppress(psutil.NoSuchProcess):
                # While it is alive its own children can be told; afterwards they are nobody's.
                family = psutil.Process(self._process.pid).children(recursive=True) or family
            self._process.join(FAMILY_S)
        self._process.join()
        return family

    def _end_orphans(self, family: list[psutil.Process]) -> None:
        """End what a killed process left behind, such as solvers of others, which watch no parent."""
        if (self._process.exitcode or 0) >= 0:
            return
        for orphan in family:
            # psutil compares times of creation: a number that was given to another process is not hit.
            with suppress(psutil.NoSuchProcess):
                orphan.kill()

    def _listen(self) -> None:
        try:
            while True:
                # Asked before the queue is: what a process wrote before it ended is in the pipe by then.
                has_ended = not self._process.is_alive()
                try:
                    message = self._queue.get(timeout=0.01 if has_ended else 0.1)
                    if message is not _CAN_SPEAK:
                        self._messages.append(message)
                except queue.Empty:
                    if has_ended:
                        return
        except (EOFError, OSError):
            return

    def _end(self, grace_s: float, patience_s: float, on_forced: Callable[[], None] | None) -> None:
        self._started.wait(10.0)
        if self._ended.wait(grace_s) or self._process.pid is None or self._process.exitcode is not None:
            return
        self._is_forced = True
        if on_forced is not None:
            on_forced()
        end_process_tree(self._process.pid, patience_s=patience_s)
