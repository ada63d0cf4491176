"""Which files of a folder are frames. Names only: nothing is opened, moved or changed."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from zemosaic_core.errors import RunFailed

__all__ = ["EXCLUDED_FOLDERS", "FRAME_SUFFIXES", "is_frame_name", "survey_files"]

_log = logging.getLogger(__name__)

FRAME_SUFFIXES = (".fit", ".fits", ".fts")
# The existing program moves frames it could not solve into this folder; they stay left out.
EXCLUDED_FOLDERS = frozenset({"unaligned_by_zemosaic", ".zemosaic_state"})


def is_frame_name(name: str) -> bool:
    """Return True when a file name looks like a FITS frame, plain, ``.fz`` or ``.gz``; hidden files are not frames."""
    lowered = name.lower()
    if lowered.startswith("."):
        # macOS leaves "._name.fits" companions on foreign disks.
        return False
    return lowered.endswith(tuple(s + packed for s in FRAME_SUFFIXES for packed in ("", ".fz", ".gz")))


def survey_files(
    root: Path | str,
    *,
    recursive: bool = True,
    exclude: Iterable[Path | str] = (),
    tell_unlistable: Callable[[Path, OSError], None] = lambda _, __: None,
) -> list[Path]:
    """List the frames below a folder; links to folders are followed, each folder is listed once.

    Parameters
    ----------
    root : Path or str
        Folder to look in.
    recursive : bool
        Look into subfolders too.
    exclude : iterable of paths
        Folders (with everything below) or files to leave out, e.g. the output folder.
    tell_unlistable : callable
        Told of each subfolder that cannot be listed, and why: whatever frames it has are missing.

    Returns
    -------
    list of Path
        Sorted by relative path without regard to case, so that every system gives the same order.

    Raises
    ------
    RunFailed
        ``input_folder_missing`` or ``input_folder_unreadable``.
    """
    root = Path(root)
    if not root.is_dir():
        raise RunFailed("input_folder_missing", f"{root} is not a folder", path=str(root))
    left_out = {_identity(Path(p)) for p in exclude}

    def fail(error: OSError) -> None:
        if Path(error.filename or root) == root:
            message = f"{root} cannot be listed: {error}"
            raise RunFailed("input_folder_unreadable", message, path=str(root), reason=str(error)) from error
        _log.warning("subfolder left out, it cannot be listed: %s", error)
        tell_unlistable(Path(error.filename), error)

    found: list[Path] = []
    seen: set[str] = set()
    # Links are followed after the folders themselves: what lies below the root under its own name keeps it.
    waiting = [root]
    while waiting:
        for folder, folder_names, file_names in os.walk(waiting.pop(0), onerror=fail):
            here = Path(folder)
            real = os.path.realpath(here)
            if real in seen:
                folder_names.clear()
                continue
            seen.add(real)
            folder_names[:] = sorted(
                name
                for name in folder_names
                if recursive
                and name.lower() not in EXCLUDED_FOLDERS
                and _identity(here / name) not in left_out
                and _identity(Path(os.path.realpath(here / name))) not in left_out
            )
            # `os.walk` lists links to folders and does not enter them; as a start it does.
            waiting.extend(here / name for name in folder_names if (here / name).is_symlink())
            frames = [here / name for name in file_names if is_frame_name(name)]
            found.extend(path for path in frames if not left_out or _identity(path) not in left_out)
    return sorted(found, key=lambda p: (str(p.relative_to(root)).casefold(), str(p)))


def _identity(path: Path) -> str:
    return os.path.normcase(os.path.abspath(path))
