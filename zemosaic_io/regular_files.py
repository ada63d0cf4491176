"""Open only what is a file of bytes: a pipe, a socket or a device by the name of a frame would hang the reader.

Files packed with gzip are unpacked as they are read, piece by piece; going back in one means to begin anew.
"""

from __future__ import annotations

import errno
import gzip
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from zemosaic_core.errors import SkipItem

__all__ = ["add_to_regular", "is_gzip", "open_regular", "open_unpacked"]

_GZIP = b"\x1f\x8b"

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


def add_to_regular(path: Path | str) -> BinaryIO:
    """Open a regular file to add to it, without a buffer; it is made where there is none.

    Raises
    ------
    OSError
        The file cannot be opened, or the name belongs to something else: opening a pipe would wait for its reader.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, name, 0)
    try:
        handle = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise _no_regular_file(path) from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise _no_regular_file(path)
        return open(handle, "ab", buffering=0)
    except BaseException:
        os.close(handle)
        raise


def _no_regular_file(path: Path | str) -> OSError:
    return OSError(errno.EINVAL, "it is no regular file", str(path))


def is_gzip(file: BinaryIO) -> bool:
    """Tell whether a file that was just opened is packed with gzip; it stays at its beginning."""
    begin = file.read(len(_GZIP))
    file.seek(0)
    return begin == _GZIP


@contextmanager
def open_unpacked(path: Path | str, *, packed: bool, buffering: int = -1) -> Iterator[BinaryIO]:
    """Open a regular file, or what is packed in it, for reading.

    Parameters
    ----------
    path : Path or str
    packed : bool
        The file is packed with gzip.
    buffering : int
        As in `open`, for files that are not packed.

    Raises
    ------
    SkipItem
        ``frame_not_regular``; or ``frame_unreadable``: what is packed is damaged or cut short.
    OSError
        The file cannot be opened or read.
    """
    with open_regular(path, buffering=-1 if packed else buffering) as file:
        if not packed:
            yield file
            return
        try:
            with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:
                yield cast(BinaryIO, unpacked)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise SkipItem(
                "frame_unreadable", f"{path} cannot be unpacked: {error}", path=str(path), reason=str(error)
            ) from error


def _check(path: Path | str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise SkipItem(
            "frame_not_regular", f"{path} is no regular file but a {kind}", path=str(path), kind=kind
        )
