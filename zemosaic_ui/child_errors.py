"""What a child process writes to its standard error: kept for its parent, and gone with the two of them."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import suppress
from multiprocessing import reduction
from pathlib import Path
from typing import IO, Any

__all__ = ["ChildErrors", "remove_old_logs"]

_TOLD_BYTES = 8_000
_OLD_LOG_S = 30 * 86400.0
_LOG_PREFIX = "zemosaic_child_"


class ChildErrors:
    """A file that parent and child share: the parent makes it and reads it, the child writes to it.

    On POSIX it has no name: however the two of them end, nothing is left that somebody would have to remove. On
    Windows, where another process needs a name to open it, the parent removes it; what parents left that were killed
    is removed by later ones.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._file: IO[bytes]
        if os.name == "posix":
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - open until `close`
        else:
            remove_old_logs(Path(tempfile.gettempdir()))
            handle, name = tempfile.mkstemp(prefix=_LOG_PREFIX, suffix=".log")
            self._file, self._path = open(handle, "r+b", buffering=0), Path(name)  # noqa: SIM115

    def __reduce__(self) -> tuple[Any, ...]:
        # Only a process that is being started can be given it.
        return _in_child, (self._path or reduction.DupFd(self._file.fileno()),)

    def tail(self) -> str:
        """Return the last lines that were written; nothing after `close`."""
        if self._file.closed:
            return ""
        handle = self._file.fileno()
        start = max(0, os.fstat(handle).st_size - _TOLD_BYTES)
        if hasattr(os, "pread"):
            # The place where the child goes on writing is shared, and stays.
            told = os.pread(handle, _TOLD_BYTES, start)
        else:
            self._file.seek(start)
            told = self._file.read(_TOLD_BYTES)
        return told.decode("utf-8", errors="replace").strip()

    def close(self) -> None:
        """Give the file back; call after the end of the child."""
        self._file.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _in_child(shared: Any) -> IO[str]:
    """Return the file as a stream of the child."""
    handle = os.open(shared, os.O_WRONLY | os.O_APPEND) if isinstance(shared, Path) else shared.detach()
    return open(handle, "w", buffering=1, encoding="utf-8", errors="backslashreplace")


def remove_old_logs(folder: Path) -> None:
    """Remove what parents left that were killed before they could: the logs of children that ended long ago."""
    oldest = time.time() - _OLD_LOG_S
    for path in folder.glob(f"{_LOG_PREFIX}*.log"):
        with suppress(OSError):
            if path.stat().st_mtime < oldest:
                path.unlink()
