"""Run another program: with limits of time and space, gone with its whole family on cancel, its last words kept.

`ProgramSolver` is what solvers that are other programs share.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from zemosaic_core.errors import SaveFailed
from zemosaic_io.solvers.base import (
    Availability,
    Cancel,
    SolveOutcome,
    SolveRequest,
    check_cancel,
    failed,
)

__all__ = ["ChildResult", "ProgramSolver", "run_child", "solver_folder"]

log = logging.getLogger(__name__)

_POLL_S = 0.05
_GRACE_S = 1.0
_TAIL_BYTES = 4000
# More than any solver prints, and than it keeps on disk for the largest frame.
_MAX_PRINTED_BYTES = 16_000_000
_MAX_FOLDER_BYTES = 4_000_000_000
_LOOK_AT_FOLDER_S = 0.5


@dataclass(frozen=True)
class ChildResult:
    """How a program ended.

    Attributes
    ----------
    returncode : int
        Exit status; negative: the signal that ended it (POSIX).
    timed_out : bool
        It was ended by us because it took too long.
    too_much : bool
        It was ended by us because it printed or wrote more than a solver does.
    seconds : float
        Wall time.
    tail : str
        End of what it printed.
    """

    returncode: int
    timed_out: bool
    seconds: float
    tail: str
    too_much: bool = False


class ProgramSolver(ABC):
    """A solver that is another program: it is looked for once, and its ends are told alike."""

    name: str

    def __init__(self) -> None:
        self._availability: Availability | None = None

    def find(self) -> Availability:
        """Look for the program and for what it needs; costs nothing the second time."""
        if self._availability is None:
            self._availability = self._look()
        return self._availability

    @abstractmethod
    def _look(self) -> Availability:
        """Look for the program and for what it needs."""

    @abstractmethod
    def _parts(self) -> tuple[list[Path], list[Path]]:
        """Return the files of the program, and those of its star data; asked when it can be used."""

    def identity(self) -> str:
        """Return a digest of the program's bytes and of names and sizes of its star data; '' when it cannot be used."""
        if not self.find().ok:
            return ""
        programs, data = self._parts()
        digest = hashlib.sha256()
        try:
            for program in programs:
                digest.update(program.read_bytes())
            names = sorted((file.name, file.stat().st_size) for file in data)
        except OSError as error:
            log.warning("%s cannot be compared with that of other machines: %s", self.name, error)
            return ""
        digest.update(repr(names).encode())
        return digest.hexdigest()

    def _run(
        self,
        command: Sequence[str],
        folder: Path,
        request: SolveRequest,
        timeout_s: float,
        cancel: Cancel | None,
    ) -> ChildResult | SolveOutcome:
        """Run the program; an outcome instead of a result when it did not start or took too long."""
        try:
            child = run_child(command, folder, timeout_s, cancel)
        except OSError as error:
            return failed(self.name, "crash", "solver_crashed", reason=str(error))
        if child.timed_out:
            limit = round(request.timeout_s)
            return failed(self.name, "timeout", "solver_timeout", child.seconds, limit_s=limit)
        if child.too_much:
            return failed(self.name, "no_solution", "solver_floods", child.seconds)
        return child


def run_child(
    command: Sequence[str], cwd: Path, timeout_s: float, cancel: Cancel | None = None
) -> ChildResult:
    """Run ``command`` in ``cwd`` and wait.

    The child leads its own process group, and what it started is looked for before it ends, so programs that start
    others leave nobody behind. Of what it prints only the end is kept.

    Raises
    ------
    Cancelled
        ``cancel`` was set; the family is gone.
    OSError
        The program cannot be started.
    """
    check_cancel(cancel)
    start = looked = time.monotonic()
    timed_out = too_much = False
    child = subprocess.Popen(
        list(command),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **_own_group(),
    )
    words = _LastWords(child.stdout)
    try:
        while True:
            with suppress(subprocess.TimeoutExpired):
                child.wait(_POLL_S)
                break
            check_cancel(cancel)
            now = time.monotonic()
            timed_out = now - start > timeout_s
            if now - looked > _LOOK_AT_FOLDER_S:
                looked = now
                too_much = _folder_bytes(cwd) > _MAX_FOLDER_BYTES
            too_much = too_much or words.count > _MAX_PRINTED_BYTES
            if timed_out or too_much:
                break
    finally:
        _end_family(child)
    return ChildResult(child.returncode, timed_out, time.monotonic() - start, words.end(), too_much)


class _LastWords:
    """Reads what a program prints, as fast as it comes, and keeps the end of it.

    A thread reads, because the pipe of a program that has ended stays open as long as a process has it that nobody
    knows any more; such a thread is left behind.
    """

    def __init__(self, pipe: Any) -> None:
        self.count = 0
        self._pipe = pipe
        self._tail = b""
        self._thread = threading.Thread(target=self._read, name="solver-output", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with suppress(OSError, ValueError):
            while piece := os.read(self._pipe.fileno(), 65536):
                self.count += len(piece)
                self._tail = (self._tail + piece)[-_TAIL_BYTES:]

    def end(self) -> str:
        """Return the end of what was printed, once nothing more comes."""
        self._thread.join(_GRACE_S)
        if not self._thread.is_alive():
            self._pipe.close()
        return self._tail.decode("utf-8", "replace").strip()


def _folder_bytes(folder: Path) -> int:
    """Return the size of the files in a folder, without those in folders below it."""
    total = 0
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):
                total += entry.stat(follow_symlinks=False).st_size
    return total


@contextmanager
def solver_folder(work_dir: Path) -> Iterator[Path]:
    """Give a temporary folder with a short name without dots; it is removed with all it holds.

    Raises
    ------
    SaveFailed
        ``save_failed``: the work folder cannot be written.
    """
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="solve_", dir=work_dir)).resolve()
    except OSError as error:
        reason = error.strerror or str(error)
        raise SaveFailed("save_failed", f"{work_dir}: {reason}", path=str(work_dir), reason=reason) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _own_group() -> dict[str, Any]:
    if os.name == "nt":
        flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
        return {"creationflags": flags}
    return {"start_new_session": True}


def _end_family(child: subprocess.Popen[bytes]) -> None:
    """End the child and everything it started, in its group or, while it lives, out of it."""
    relatives = _relatives(child)
    if os.name == "nt":
        if child.poll() is None:
            subprocess.run(
                ["taskkill", "/T", "/F", "/PID", str(child.pid)], capture_output=True, check=False, timeout=10
            )
            child.wait(10)
    else:
        if child.poll() is None:
            _signal_group(child.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                child.wait(_GRACE_S)
        _signal_group(child.pid, signal.SIGKILL)
        child.wait()
    for process in relatives:
        with suppress(psutil.Error):
            process.kill()


def _relatives(child: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Return the descendants of a child that still runs; psutil knows them by their start, not by number alone."""
    try:
        return psutil.Process(child.pid).children(recursive=True) if child.poll() is None else []
    except psutil.Error:
        return []


def _signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        # Nobody is left; macOS says "not permitted" for a group of zombies.
        return
