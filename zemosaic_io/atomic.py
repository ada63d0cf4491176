"""Files that are either written whole or not there: a temporary name beside the target, then a rename."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zemosaic_core.errors import SaveFailed

__all__ = ["atomic_path", "open_temporary", "save_failed"]


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Give a temporary name beside ``path``; the file takes its final name when the block succeeds.

    Raises
    ------
    SaveFailed
        ``save_failed`` when the folder cannot be written or an `OSError` occurs inside the block.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        temporary, file = open_temporary(path)
        file.close()
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise save_failed(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def open_temporary(path: Path) -> tuple[Path, Any]:
    """Create a temporary file in the folder of ``path`` so that the final rename stays on one disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem[:40]}.", suffix=".part", dir=path.parent)
    if os.name == "posix":
        # mkstemp makes the file private; results should obey the umask like every other file.
        mask = os.umask(0)
        os.umask(mask)
        os.fchmod(handle, 0o666 & ~mask)
    return Path(name), os.fdopen(handle, "r+b")


def save_failed(path: Path, error: Exception) -> SaveFailed:
    """Return the error that names the file and the reason."""
    reason = getattr(error, "strerror", None) or str(error)
    return SaveFailed("save_failed", f"{path} could not be written: {reason}", path=str(path), reason=reason)
