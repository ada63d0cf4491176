"""How many solver programs run at once, in this process and on the whole machine, and how fast they start."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from zemosaic_core.errors import SaveFailed
from zemosaic_io.file_locks import try_lock
from zemosaic_io.solvers.base import Cancel, check_cancel

__all__ = ["LaunchRate", "SolverSlots", "slots_from_environment"]

_POLL_S = 0.05
_log = logging.getLogger(__name__)
_TRUE_WORDS = ("1", "true", "on", "yes")
_LIMIT_NAMES = ("ZEMOSAIC_ASTAP_MAX_PROCS", "ZEMO_ASTAP_MAX_PROCS", "ZEMO_FILTER_ASTAP_MAX_PROCS")


class SolverSlots:
    """A number of places; who has one may run a solver. Each user of a machine has places of their own.

    Parameters
    ----------
    limit : int
        Places, 1 or more.
    folder : Path or None
        Folder of the lock files shared by all processes of this machine; None: this process only.

    Notes
    -----
    The system frees a lock file when its process ends, however it ends: no stale locks, no waiting for them.
    """

    def __init__(self, limit: int, folder: Path | None = None) -> None:
        self.limit = max(1, int(limit))
        self.folder = folder
        self._places = threading.BoundedSemaphore(self.limit)

    @contextmanager
    def hold(self, cancel: Cancel | None = None) -> Iterator[None]:
        """Wait for a place and keep it for the block.

        Raises
        ------
        Cancelled
            ``cancel`` was set while waiting.
        SaveFailed
            ``save_failed``: the lock folder cannot be written.
        """
        while not self._places.acquire(timeout=_POLL_S):
            check_cancel(cancel)
        try:
            if self.folder is None:
                yield
                return
            file = self._wait_for_file(cancel)
            try:
                yield
            finally:
                file.close()
        finally:
            self._places.release()

    def _wait_for_file(self, cancel: Cancel | None) -> IO[bytes]:
        try:
            _make_for_all(self.folder)
            while True:
                for slot in range(self.limit):
                    file = _open_for_all(self.folder / f"slot_{slot}.lock")
                    if try_lock(file):
                        return file
                    file.close()
                check_cancel(cancel)
                time.sleep(_POLL_S)
        except OSError as error:
            reason = error.strerror or str(error)
            message = f"the lock folder {self.folder} cannot be used: {reason}"
            raise SaveFailed("save_failed", message, path=str(self.folder), reason=reason) from error


def _make_for_all(folder: Path) -> None:
    """Create a folder in which every user of the machine may make lock files, and nobody removes those of others."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        if os.name == "posix":
            folder.chmod(0o1777)


def _open_for_all(path: Path) -> IO[bytes]:
    """Open a lock file that any user may have made; the right to read it is enough to lock it."""
    try:
        return open(path, "r+b")
    except PermissionError:
        return open(path, "rb")
    except FileNotFoundError:
        # Not asked for before, because systems refuse to "create" the file of another user that is there already.
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        if os.name == "posix":
            os.fchmod(handle, 0o666)
        return os.fdopen(handle, "r+b")


class LaunchRate:
    """At most ``burst`` starts at once and one more every ``interval_s`` seconds; 0 seconds: no limit."""

    def __init__(self, interval_s: float = 0.0, burst: int = 2) -> None:
        self.interval_s = max(0.0, interval_s)
        self.burst = max(1, burst)
        self._tokens = float(self.burst)
        self._last = time.monotonic()
        self._lock = threading.Lock()

    def wait(self, cancel: Cancel | None = None) -> None:
        """Return when another start is allowed.

        Raises
        ------
        Cancelled
            ``cancel`` was set while waiting.
        """
        while not self._take():
            check_cancel(cancel)
            time.sleep(min(_POLL_S, self.interval_s))

    def _take(self) -> bool:
        if self.interval_s == 0.0:
            return True
        with self._lock:
            now = time.monotonic()
            self._tokens = min(float(self.burst), self._tokens + (now - self._last) / self.interval_s)
            self._last = now
            if self._tokens < 1.0:
                return False
            self._tokens -= 1.0
            return True


def slots_from_environment(
    limit: int, environment: Mapping[str, str] | None = None
) -> tuple[SolverSlots, LaunchRate]:
    """Return the slots and the launch rate for ASTAP.

    ``ZEMOSAIC_ASTAP_MAX_PROCS`` (then ``ZEMO_ASTAP_MAX_PROCS``, ``ZEMO_FILTER_ASTAP_MAX_PROCS``; the first
    valid one) replaces ``limit``; ``ZEMOSAIC_ASTAP_DISABLE_IPC_LOCK`` keeps the slots inside this process;
    ``ZEMOSAIC_ASTAP_LOCK_DIR`` moves the lock files; ``ZEMOSAIC_ASTAP_RATE_SEC`` and ``..._RATE_BURST`` slow
    down the starts (without them there is no rate limit).
    """
    environment = os.environ if environment is None else environment
    for name in _LIMIT_NAMES:
        value = environment.get(name, "").strip()
        if value.isdigit() and int(value) > 0:
            limit = int(value)
            break
    shared = environment.get("ZEMOSAIC_ASTAP_DISABLE_IPC_LOCK", "").strip().lower() not in _TRUE_WORDS
    stated = environment.get("ZEMOSAIC_ASTAP_LOCK_DIR", "").strip()
    folder = Path(stated) if stated else _own_lock_folder()
    rate = LaunchRate(
        _float(environment.get("ZEMOSAIC_ASTAP_RATE_SEC"), 0.0),
        int(_float(environment.get("ZEMOSAIC_ASTAP_RATE_BURST"), 2.0)),
    )
    return SolverSlots(limit, folder if shared else None), rate


def _own_lock_folder() -> Path:
    """Return where this user's runs count the programs: what another user made there could not be locked by us."""
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    return Path(tempfile.gettempdir()) / f"zemosaic_astap_slots_{user}"


def _float(text: str | None, default: float) -> float:
    try:
        return float(text) if text else default
    except ValueError:
        return default
