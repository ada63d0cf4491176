"""The files of one run: written where nobody looks, and put into the output folder all together.

Until then the files of the run before are what lies in the folder, whole and of one piece. A list of what is to be
moved is on disk before the first file moves, so a run that is killed in between is finished by the next start.

A result may be a folder, such as one of tiles. It gets a file by which it is known again, and only a folder that has it
is ever replaced or removed.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from zemosaic_core.errors import SaveFailed
from zemosaic_io.atomic import make_durable, save_failed, sync_folder
from zemosaic_io.manifest import load_json, make_folder, save_json

__all__ = ["ResultSet", "finish_or_discard", "is_own_folder"]

_FOLDER = ".zemosaic_new"
_OWN = ".made_by_zemosaic"
_OLD = ".old"
_LIST = "publish.json"
_MAX_LIST_BYTES = 1_000_000

log = logging.getLogger(__name__)


class ResultSet:
    """What one run makes for its user.

    Parameters
    ----------
    output_dir : Path
        Where the files go in the end. The caller holds its lock.

    Attributes
    ----------
    folder : Path
        Where they are written, on the same file system; `publish` waits for the disk, writers need not.

    Raises
    ------
    SaveFailed
        ``save_failed``: the folder cannot be made.
    """

    def __init__(self, output_dir: Path) -> None:
        self.output_dir = output_dir
        self.folder = output_dir / _FOLDER
        self._obsolete: set[str] = set()
        make_folder(self.folder)

    def final(self, path: Path | str) -> str:
        """Return where a file written in `folder`, or in a folder there, will lie."""
        path = Path(path)
        return str(
            self.output_dir / (path.relative_to(self.folder) if self.folder in path.parents else path.name)
        )

    def replaces(self, names: Iterable[str]) -> None:
        """Note files and folders of the output folder that go when the new ones come; folders of others stay."""
        self._obsolete |= set(names)

    def refuse_what_is_in_the_way(self, name: str, *, is_folder: bool) -> None:
        """Refuse a result that could not be put into its place: what stands there belongs to somebody else.

        Parameters
        ----------
        name : str
        is_folder : bool
            The result is a folder.

        Raises
        ------
        SaveFailed
            ``save_failed``
        """
        there = self.output_dir / name
        if is_folder:
            reason = (
                "" if is_own_folder(there) or not there.exists() else "it is not a folder of an earlier run"
            )
        else:
            reason = "it is a folder" if there.is_dir() else ""
        if reason:
            raise SaveFailed("save_failed", f"{there}: {reason}", path=str(there), reason=reason)

    def publish(self) -> None:
        """Put all files into the output folder, and remove those they replace.

        Raises
        ------
        SaveFailed
            ``save_failed``: nothing was moved; or the next start moves the rest.
        """
        # The report last: until all is there the one in the folder says that the run is at work.
        names = sorted((path.name for path in self.folder.iterdir()), key=lambda n: ("report" in n, n))
        for name in names:
            self.refuse_what_is_in_the_way(name, is_folder=(self.folder / name).is_dir())
        obsolete = sorted(self._obsolete - set(names))
        for name in names:
            if (self.folder / name).is_dir():
                (self.folder / name / _OWN).touch()
        make_durable(path for path in self.folder.rglob("*") if path.is_file())
        save_json(self.folder / _LIST, {"files": names, "obsolete": obsolete})
        try:
            _move(self.output_dir, names, obsolete)
        except OSError as error:
            raise save_failed(Path(error.filename or self.output_dir), error) from error

    def discard(self) -> None:
        """Remove what was written and not published, unless it has to be finished by the next start."""
        if not (self.folder / _LIST).is_file():
            shutil.rmtree(self.folder, ignore_errors=True)


def is_own_folder(path: Path) -> bool:
    """Tell whether a folder is the result of a run."""
    return (path / _OWN).is_file()


def finish_or_discard(output_dir: Path) -> None:
    """Deal with what a killed run left: a set that was complete is put in its place, any other never was."""
    folder = output_dir / _FOLDER
    if not folder.is_dir():
        return
    files, obsolete = _listed(folder / _LIST)
    if files:
        log.warning("the results of an earlier run are put into their place: %s", ", ".join(files))
        try:
            _move(output_dir, files, obsolete)
            return
        except OSError as error:
            log.warning("they cannot all be moved: %s", error)
    shutil.rmtree(folder, ignore_errors=True)


def _listed(path: Path) -> tuple[list[str], list[str]]:
    """Return the files to move and to remove; nothing when the list was never written or is damaged."""
    try:
        listed: Any = load_json(path, _MAX_LIST_BYTES)
        files, obsolete = list(listed["files"]), list(listed["obsolete"])
    except (OSError, ValueError, KeyError, TypeError):
        return [], []
    names = [*files, *obsolete]
    if not all(
        isinstance(name, str) and name not in ("", "..") and Path(name).name == name for name in names
    ):
        return [], []
    return files, obsolete


def _move(output_dir: Path, names: Iterable[str], obsolete: Iterable[str]) -> None:
    folder = output_dir / _FOLDER
    for name in names:
        # Those that are not there any more were moved before.
        if (folder / name).exists():
            if (folder / name).is_dir() and is_own_folder(output_dir / name):
                _move_aside(output_dir / name, folder)
            os.replace(folder / name, output_dir / name)
    for name in obsolete:
        if is_own_folder(output_dir / name):
            _move_aside(output_dir / name, folder)
        elif not (output_dir / name).is_dir():
            (output_dir / name).unlink(missing_ok=True)
    sync_folder(output_dir)
    shutil.rmtree(folder, ignore_errors=True)


def _move_aside(path: Path, folder: Path) -> None:
    """Put a folder where it is removed with `folder`; a name cannot be taken from one folder by another."""
    aside = folder / f"{path.name}{_OLD}"
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(path, aside)
