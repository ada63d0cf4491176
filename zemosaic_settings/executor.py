"""Where a run computes, and how other machines name its folders: two texts of the settings, read and checked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from zemosaic_core.errors import SettingsError

__all__ = ["ExecutorChoice", "PathMap", "executor_choice", "path_map"]

_SCHEDULER = re.compile(r"dask://(\[[0-9a-fA-F:]+\]|[^\s:/\[\]]+):(\d{1,5})/?")
_MOST_PORT = 65535


@dataclass(frozen=True)
class ExecutorChoice:
    """Where frames are measured and blocks co-added.

    Attributes
    ----------
    kind : {'local', 'dask', 'scheduler'}
        Processes of this run; a Dask cluster of its own on this machine; a scheduler that is at work somewhere.
    address : str
        ``tcp://HOST:PORT`` of that scheduler, else empty.
    """

    kind: Literal["local", "dask", "scheduler"]
    address: str = ""


def executor_choice(text: str) -> ExecutorChoice:
    """Return what ``local``, ``dask`` or ``dask://HOST:PORT`` asks for.

    Raises
    ------
    SettingsError
        ``settings_no_executor``: it is none of them.
    """
    plain = text.strip()
    if plain.lower() in ("", "local"):
        return ExecutorChoice("local")
    if plain.lower() == "dask":
        return ExecutorChoice("dask")
    match = _SCHEDULER.fullmatch(plain)
    if match is None or not 0 < int(match[2]) <= _MOST_PORT:
        raise SettingsError(
            "settings_no_executor",
            f"executor = {text!r} is not allowed; allowed are local, dask and dask://HOST:PORT, "
            "such as dask://192.168.1.20:8786",
            option="executor",
            value=text,
        )
    return ExecutorChoice("scheduler", f"tcp://{match[1]}:{match[2]}")


@dataclass(frozen=True)
class PathMap:
    """How other machines name the folders of this one.

    Attributes
    ----------
    pairs : tuple of (str, str)
        Folder here, the same folder there. The longest that fits counts; without any, names are the same.
    """

    pairs: tuple[tuple[str, str], ...] = ()

    def there(self, path: str) -> str:
        """Return the name that the other machines have for a path of this one."""
        return _renamed(path, self.pairs)

    def here(self, path: str) -> str:
        """Return the name on this machine of a path of the others."""
        return _renamed(path, [(there, here) for here, there in self.pairs])


def _renamed(path: str, pairs: tuple[tuple[str, str], ...] | list[tuple[str, str]]) -> str:
    plain = path.replace("\\", "/")
    for old, new in sorted(pairs, key=lambda pair: -len(pair[0])):
        root = old.replace("\\", "/").rstrip("/")
        if plain == root or plain.startswith(root + "/"):
            joined = new.rstrip("/\\") + plain[len(root) :]
            # A drive or a share of Windows is written as Windows does.
            return joined.replace("/", "\\") if "\\" in new or re.match(r"[A-Za-z]:", new) else joined
    return path


def path_map(text: str) -> PathMap:
    """Return the pairs of a setting such as ``/data/night=/mnt/nas/night``; several are parted by semicolons.

    Raises
    ------
    SettingsError
        ``settings_no_path_map``: a pair has no equals sign, or nothing on one side of it.
    """
    pairs = []
    for part in filter(None, (part.strip() for part in text.split(";"))):
        here, equals, there = (word.strip() for word in part.partition("="))
        if not (equals and here and there):
            raise SettingsError(
                "settings_no_path_map",
                f"map_path = {part!r} is not allowed; allowed is HERE=THERE, a folder of this machine and its name "
                "on the others",
                option="map_path",
                value=part,
            )
        pairs.append((here, there))
    return PathMap(tuple(pairs))
