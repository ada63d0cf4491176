"""Where Numba keeps what it compiled: beside the source, or elsewhere when that may not be written.

Numba looks in two places, and refuses to import a function that it can keep in neither: a program installed for all
users and started by one without a home folder would not begin.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

__all__ = ["find_a_place", "place_for_compiled_code"]

_SETTING = "NUMBA_CACHE_DIR"


def find_a_place() -> None:
    """Tell Numba where to keep its code, unless it finds a place itself. Before it is imported: later it is deaf."""
    place = place_for_compiled_code(
        os.environ,
        beside=Path(__file__).parent / "__pycache__",
        own=Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "numba",
        temporary=Path(tempfile.gettempdir()),
    )
    if place is not None:
        os.environ[_SETTING] = str(place)


def place_for_compiled_code(
    environment: Mapping[str, str], *, beside: Path, own: Path, temporary: Path
) -> Path | None:
    """Return a folder for compiled code, or None where Numba needs none of ours.

    Parameters
    ----------
    environment : mapping
        A place that was chosen there stays.
    beside, own : Path
        Where Numba looks: beside the source, in the cache of the user.
    temporary : Path
        Where a folder of this user alone is made as a last resort.
    """
    if environment.get(_SETTING) or _can_write(beside) or (own.is_absolute() and _can_write(own)):
        return None
    user = os.getuid() if hasattr(os, "getuid") else environment.get("USERNAME", "user")
    shared = temporary / f"zemosaic-compiled-{user}"
    return (
        shared if _is_private(shared) else Path(tempfile.mkdtemp(dir=temporary, prefix="zemosaic-compiled-"))
    )


def _can_write(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _is_private(folder: Path) -> bool:
    """Make a folder that only this user writes to, for code is run from it; False when others can, too."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return False
    if not stat.S_ISDIR(found.st_mode) or not _can_write(folder):
        return False
    return os.name != "posix" or (found.st_uid == os.getuid() and not found.st_mode & 0o022)
