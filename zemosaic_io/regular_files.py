"""Open only what is a file of bytes: a pipe, a socket or a device by the name of a frame would hang the reader."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from zemosaic_core.errors import SkipItem

__all__ = ["open_regular"]

_KINDS = {
    stat.S_IFDIR: "folder",
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


def open_regular(path: Path | str, *, buffering: int = -1) -> BinaryIO:
    """Open a regular file for reading; ``buffering`` as in `open`.

    Raises
    ------
    SkipItem
        ``frame_not_regular``: the name belongs to something else; it was not opened, or not read from.
    OSError
        The file cannot be opened.
    """
    # Looked at before it is opened, because opening alone can act on a device; and again afterwards, because
    # another thing may have taken the name. Without O_NONBLOCK opening a pipe waits for a writer.
    _check(path, os.stat(path).st_mode)
    flags = (
        os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    )
    handle = os.open(path, flags)
    try:
        _check(path, os.fstat(handle).st_mode)
    except BaseException:
        os.close(handle)
        raise
    return open(handle, "rb", buffering=buffering)


def _check(path: Path | str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise SkipItem(
            "frame_not_regular", f"{path} is no regular file but a {kind}", path=str(path), kind=kind
        )
