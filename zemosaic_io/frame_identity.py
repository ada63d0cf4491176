"""Whether a frame is still the one it was: by what the file system says, and by the bytes that are really read.

Times and sizes are only a hint. They can stay while the bytes change (a restored backup, a copy that keeps times) and
change while the pixels stay (another program writes its solution into the header). So a difference is a reason
to look, and what decides is the content: `locate_again` after a difference, and the sums of rows that
`zemosaic_io.fits_read` compares with every row that goes into a stack.
"""

from __future__ import annotations

import os
from dataclasses import replace

from zemosaic_core.errors import SkipItem
from zemosaic_io import fits_read
from zemosaic_io.headers import FrameInfo, read_frame_info

__all__ = ["header_holds", "is_as_surveyed", "locate_again"]

_LAYOUT = ("shape_hw", "axes", "n_stored_planes", "bitpix", "bzero", "bscale", "blank")
_PLACE = ("size_bytes", "mtime_ns", "ctime_ns", "inode", "hdu", "data_offset")


def is_as_surveyed(info: FrameInfo) -> bool:
    """Tell whether the file system shows the file as it was when its header was read.

    Raises
    ------
    SkipItem
        ``frame_unreadable``: it is gone.
    """
    try:
        now = os.stat(info.path)
    except OSError as error:
        reason = str(error.strerror or error)
        raise SkipItem(
            "frame_unreadable", f"{info.path} cannot be read: {reason}", path=str(info.path), reason=reason
        ) from error
    then = (info.size_bytes, info.mtime_ns, info.ctime_ns, info.inode)
    return then == (now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino)


def header_holds(info: FrameInfo) -> bool:
    """Tell whether the header still says what it said; asked when `is_as_surveyed` says no.

    Some file systems number their files anew at every look, so that alone must not cost a frame.

    Raises
    ------
    SkipItem
        The file cannot be used any more.
    """
    now = read_frame_info(info.path)
    return replace(now, mtime_ns=info.mtime_ns, ctime_ns=info.ctime_ns, inode=info.inode) == info


def locate_again(info: FrameInfo, content_key: str) -> FrameInfo:
    """Find the pixels of a frame in a file that changed; what was read from its header before stays.

    Parameters
    ----------
    info : FrameInfo
        The frame as it was surveyed.
    content_key : str
        Its pixels as they were measured (`fits_read.content_key`).

    Returns
    -------
    FrameInfo
        ``info`` with the place of the pixels as it is now.

    Raises
    ------
    SkipItem
        ``frame_changed``: the pixels are others; or the file cannot be read any more.
    """
    now = read_frame_info(info.path)
    if (
        any(getattr(now, name) != getattr(info, name) for name in _LAYOUT)
        or fits_read.content_key(now) != content_key
    ):
        raise fits_read.frame_changed(info.path)
    return replace(info, **{name: getattr(now, name) for name in _PLACE})
