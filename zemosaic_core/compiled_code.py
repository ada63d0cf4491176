"""Where Numba keeps what it compiled: beside the source, or elsewhere when that may not be written.

Numba looks in two places, and refuses to import a function that it can keep in neither: a program installed for all
users and started by one without a home folder would not begin.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["find_a_place", "is_compiled", "place_for_compiled_code"]

_SETTING = "NUMBA_CACHE_DIR"
# The module whose functions take longest and most memory to compile.
_LARGEST = "coadd"


def find_a_place() -> None:
    """Tell Numba where to keep its code, unless it finds a place itself. Before it is imported: later it is deaf."""
    place = place_for_compiled_code(
        os.environ, beside=_beside(), own=_own(), temporary=Path(tempfile.gettempdir())
    )
    if place is not None:
        os.environ[_SETTING] = str(place)


def is_compiled(source: Path | None = None, places: Sequence[Path] | None = None) -> bool:
    """Whether an earlier process left compiled code of this version; after an installation there is none.

    Parameters
    ----------
    source : Path, optional
        Module that is asked for; by default the largest one.
    places : sequence of Path, optional
        Folders in which, or in whose folders, its code may lie; by default those where Numba looks.
    """
    source = source or Path(__file__).with_name(f"{_LARGEST}.py")
    if places is None:
        chosen = os.environ.get(_SETTING)
        places = [Path(chosen)] if chosen else [_beside(), _own()]
    try:
        made = source.stat().st_mtime
        found = [
            file
            for place in places
            for where in ("", "*/")
            for file in place.glob(f"{where}{source.stem}.*.nbi")
        ]
        return any(file.stat().st_mtime >= made for file in found)
    except OSError:
        return False


def _beside() -> Path:
    return Path(__file__).parent / "__pycache__"


def _own() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "numba"


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
