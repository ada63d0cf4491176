"""Files of the GPU policy: the ledger of decisions, the remembered probe, the lease between two runs.

Knows nothing of what is decided; it only writes lines, reads a small JSON file and locks one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import platformdirs

from zemosaic_io import manifest
from zemosaic_io.atomic import replace_durably
from zemosaic_io.regular_files import add_to_regular

__all__ = ["LeaseTimeout", "Ledger", "cache_folder", "device_lease", "load_json", "save_json"]

_MAX_FACTS_BYTES = 10_000_000

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return a writable folder for small remembered facts; below the temporary folder as a last resort."""
    for folder in (Path(platformdirs.user_cache_dir("zemosaic")) / "gpu", _fallback_folder()):
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return folder
    return _fallback_folder()


def _fallback_folder() -> Path:
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    return Path(tempfile.gettempdir()) / f"zemosaic-gpu-{user}"


class Ledger:
    """Append-only JSON lines; each record is on disk when `write` returns.

    Parameters
    ----------
    path : Path or None
        None keeps no file.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def write(self, record: dict[str, Any]) -> None:
        """Append one record.

        Raises
        ------
        OSError
            The file cannot be written.
        """
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with add_to_regular(self.path) as file:
            file.write((json.dumps(record, ensure_ascii=False, default=str) + "\n").encode())


def load_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or an empty one when the file is missing or unreadable."""
    try:
        value = manifest.load_json(path, _MAX_FACTS_BYTES)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def save_json(path: Path, values: dict[str, Any]) -> bool:
    """Replace a small JSON file; return False when the folder cannot be written to (it is only a memory)."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(values), encoding="utf-8")
        replace_durably(temporary, path)
    except OSError:
        return False
    return True


class LeaseTimeout(Exception):
    """Another run kept the card for longer than the caller would wait."""


@dataclass
class _Turn:
    """Whose turn it is in this process: one thread's, as often as it likes."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    depth: int = 0
    file: BinaryIO | None = None


_TURNS: defaultdict[str, _Turn] = defaultdict(_Turn)


def _leave_turns_to_the_parent() -> None:
    """Close what a forked child inherited: a lock lives as long as any process has its file open."""
    for turn in _TURNS.values():
        if turn.file is not None:
            turn.file.close()
    _TURNS.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_turns_to_the_parent)


@contextmanager
def device_lease(
    uuid: str,
    *,
    timeout_s: float,
    cancelled: Callable[[], bool] = lambda: False,
    poll_s: float = 0.05,
) -> Iterator[float]:
    """Hold the card for this thread; yield the seconds waited.

    A thread that holds it already goes on at once. Other threads and processes take turns. The lock belongs to
    the open file, so the system gives it back when a holder is killed. Where no file can be locked (no folder
    to write to, a file system without locks) other processes are not waited for: one run is the usual case.

    Raises
    ------
    LeaseTimeout
        Not obtained within ``timeout_s``, or ``cancelled`` became true while waiting.
    """
    safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in uuid) or "device"
    turn = _TURNS[safe]
    start = time.monotonic()

    def wait_until(obtained: Callable[[], bool]) -> None:
        while not obtained():
            if cancelled() or time.monotonic() - start > timeout_s:
                raise LeaseTimeout(f"{safe}.lock is held by another run")
            time.sleep(poll_s)

    wait_until(lambda: turn.lock.acquire(blocking=False))
    try:
        if turn.depth:
            turn.depth += 1
            try:
                yield 0.0
            finally:
                turn.depth -= 1
            return
        turn.file = file = _open_lock_file(safe)
        try:
            if file is not None:
                wait_until(lambda: _try_lock(file))
            turn.depth = 1
            yield time.monotonic() - start
        finally:
            turn.depth, turn.file = 0, None
            if file is not None:
                _unlock(file)
                file.close()
    finally:
        turn.lock.release()


def _open_lock_file(name: str) -> BinaryIO | None:
    try:
        return (cache_folder() / f"{name}.lock").open("a+b")
    except OSError as error:
        log.warning("runs cannot take turns with the graphics card: %s", error)
        return None


if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: BinaryIO) -> bool:
        file.seek(0)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(file: BinaryIO) -> None:
        file.seek(0)
        with contextlib.suppress(OSError):  # it may never have been obtained
            msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _try_lock(file: BinaryIO) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            log.warning("runs cannot take turns with the graphics card: %s", error)
        return True

    def _unlock(file: BinaryIO) -> None:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)
