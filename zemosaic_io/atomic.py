"""Files that are either written whole or not there: a temporary name beside the target, then a rename.

A rename alone survives a killed process. To survive a machine that loses its power the bytes have to reach the disk
before the name does, and the folder after it: `replace_durably` is the one place where that is done.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from zemosaic_core.errors import SaveFailed

__all__ = ["atomic_path", "make_durable", "open_temporary", "replace_durably", "save_failed", "sync_folder"]

# What file systems answer that do not know how to wait for their disk.
_CANNOT_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
# What was written is not there.
_LOST = tuple(getattr(errno, name) for name in ("ENOSPC", "EIO", "EDQUOT") if hasattr(errno, name))


@contextmanager
def atomic_path(path: Path | str, *, durable: bool = True) -> Iterator[Path]:
    """Give a temporary name beside ``path``; the file takes its final name when the block succeeds.

    Parameters
    ----------
    path : Path or str
        The final name.
    durable : bool
        Wait until the file is on the disk itself. False is for many small files that know whether they are whole:
        then `make_durable` is called for a number of them at once.

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
        replace_durably(temporary, path, durable=durable)
    except OSError as error:
        raise save_failed(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def replace_durably(temporary: Path, path: Path, *, durable: bool = True) -> None:
    """Give a complete file its final name so that after a loss of power there is the old file or the new one.

    With ``durable`` False that holds after the death of the process only.

    Raises
    ------
    OSError
        It could not be written or renamed.
    """
    if durable:
        _sync_file(temporary)
    os.replace(temporary, path)
    if durable:
        sync_folder(path.parent)


def make_durable(paths: Iterable[Path]) -> None:
    """Wait until files that have their final names already are on the disk itself.

    A file that is gone again is no error: somebody made it anew, or needs it no more. Nor is one that another program
    holds at this moment.

    Raises
    ------
    SaveFailed
        ``save_failed``: the disk is full or broken; some, above all of a network, tell only now.
    """
    paths = list(paths)
    for path in paths:
        try:
            _sync_file(path)
        except OSError as error:
            if error.errno in _LOST:
                raise save_failed(path, error) from error
    for folder in {path.parent for path in paths}:
        sync_folder(folder)


def _sync_file(path: Path) -> None:
    # Windows flushes through handles that may write only.
    handle = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Write the names in a folder to the disk, where the system knows such a thing."""
    if os.name != "posix":
        return
    # Network file systems may refuse; the names are theirs to keep then.
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


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
