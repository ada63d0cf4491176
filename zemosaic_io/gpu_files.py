"""Files of the GPU policy: the ledger of decisions, the remembered probe, the lease between two runs.

Knows nothing of what is decided; it only writes lines, reads a small JSON file and locks one.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs

__all__ = ["LeaseTimeout", "Ledger", "cache_folder", "device_lease", "load_json", "save_json"]


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
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")


def load_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or an empty one when the file is missing or unreadable."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def save_json(path: Path, values: dict[str, Any]) -> bool:
    """Replace a small JSON file; return False when the folder cannot be written to (it is only a memory)."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(values), encoding="utf-8")
        temporary.replace(path)
    except OSError:
        return False
    return True


class LeaseTimeout(Exception):
    """Another run kept the card for longer than the caller would wait."""


@contextmanager
def device_lease(
    uuid: str,
    *,
    timeout_s: float,
    cancelled: Callable[[], bool] = lambda: False,
    poll_s: float = 0.05,
) -> Iterator[float]:
    """Hold the card for this process; yield the seconds waited.

    The lock belongs to the open file, so the system gives it back when a holder is killed.

    Raises
    ------
    LeaseTimeout
        Not obtained within ``timeout_s``, or ``cancelled`` became true while waiting.
    """
    safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in uuid) or "device"
    path = cache_folder() / f"{safe}.lock"
    start = time.monotonic()
    with path.open("a+b") as file:
        while not _try_lock(file):
            if cancelled() or time.monotonic() - start > timeout_s:
                raise LeaseTimeout(f"{path.name} is held by another run")
            time.sleep(poll_s)
        try:
            yield time.monotonic() - start
        finally:
            _unlock(file)


if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: Any) -> bool:
        file.seek(0)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(file: Any) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _try_lock(file: Any) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(file: Any) -> None:
        fcntl.flock(file, fcntl.LOCK_UN)
