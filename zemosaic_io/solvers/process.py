"""Run another program: with a time limit, gone with its whole family on cancel, its last words kept.

`ProgramSolver` is what solvers that are other programs share.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

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

_POLL_S = 0.05
_GRACE_S = 1.0
_TAIL_BYTES = 4000


@dataclass(frozen=True)
class ChildResult:
    """How a program ended.

    Attributes
    ----------
    returncode : int
        Exit status; negative: the signal that ended it (POSIX).
    timed_out : bool
        It was ended by us because it took too long.
    seconds : float
        Wall time.
    tail : str
        End of what it printed.
    """

    returncode: int
    timed_out: bool
    seconds: float
    tail: str


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
        return child


def run_child(
    command: Sequence[str], cwd: Path, timeout_s: float, cancel: Cancel | None = None
) -> ChildResult:
    """Run ``command`` in ``cwd`` and wait.

    The child leads its own process group, so programs that start others leave nobody behind. What it prints
    goes to a file: a pipe would block when a grandchild keeps it open.

    Raises
    ------
    Cancelled
        ``cancel`` was set; the family is gone.
    OSError
        The program cannot be started.
    """
    check_cancel(cancel)
    output = cwd / "output.txt"
    start = time.monotonic()
    timed_out = False
    with open(output, "wb") as sink:
        child = subprocess.Popen(
            list(command),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            **_own_group(),
        )
        try:
            while True:
                try:
                    child.wait(_POLL_S)
                    break
                except subprocess.TimeoutExpired:
                    check_cancel(cancel)
                    if time.monotonic() - start > timeout_s:
                        timed_out = True
                        break
        finally:
            _end_family(child)
    tail = output.read_bytes()[-_TAIL_BYTES:].decode("utf-8", "replace").strip()
    return ChildResult(child.returncode, timed_out, time.monotonic() - start, tail)


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


def _own_group() -> dict:
    if os.name == "nt":
        flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
        return {"creationflags": flags}
    return {"start_new_session": True}


def _end_family(child: subprocess.Popen) -> None:
    """End the child and everything it started that is still in its group."""
    if os.name == "nt":
        if child.poll() is None:
            subprocess.run(
                ["taskkill", "/T", "/F", "/PID", str(child.pid)], capture_output=True, check=False, timeout=10
            )
            child.wait(10)
        return
    if child.poll() is None:
        _signal_group(child.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            child.wait(_GRACE_S)
    _signal_group(child.pid, signal.SIGKILL)
    child.wait()


def _signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        # Nobody is left; macOS says "not permitted" for a group of zombies.
        return
