"""Where solver programs and their star data are on this machine. Looks, never installs, never starts them."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

__all__ = [
    "astap_data_files",
    "find_astap",
    "find_astap_data",
    "find_index_folders",
    "find_solve_field",
    "has_astap_database",
    "has_index_files",
    "index_files",
]

_ASTAP_NAMES = ("astap_cli", "astap", "astap.exe", "astap_cli.exe")
_ASTAP_VARIABLES = ("ASTAP_EXE", "ASTAP_BIN", "ASTAP_PATH")
_DATA_VARIABLES = ("ASTAP_DATA_DIR", "ASTAP_STAR_DB", "ASTAP_DATABASE")
# Star data of ASTAP: 1476 or 290 sky areas, or wide-field files .001 ...
_DATA_SUFFIXES = (".1476", ".290", ".001")


def find_astap(configured: str = "", environment: Mapping[str, str] | None = None) -> Path | None:
    """Return the ASTAP program, or None when there is none.

    Order: ``configured`` (program or its folder), the variables ASTAP_EXE, ASTAP_BIN, ASTAP_PATH, the usual
    places of the system, PATH. In each place the command-line version comes first: it needs no display.
    """
    environment = os.environ if environment is None else environment
    stated = [configured, *(environment.get(name, "") for name in _ASTAP_VARIABLES)]
    for text in stated:
        found = _program_in(text, _ASTAP_NAMES)
        if found:
            return found
    for folder in _astap_folders(environment):
        found = _program_in(str(folder), _ASTAP_NAMES)
        if found:
            return found
    return _on_path(_ASTAP_NAMES, environment)


def find_astap_data(
    configured: str = "", executable: Path | None = None, environment: Mapping[str, str] | None = None
) -> Path | None:
    """Return the folder with ASTAP's star database, or None when there is none.

    Order: ``configured``, the variables ASTAP_DATA_DIR, ASTAP_STAR_DB, ASTAP_DATABASE, the folder of the
    program, its ``data`` folder, the resources of a macOS bundle, the usual places.
    """
    environment = os.environ if environment is None else environment
    home = Path(environment.get("HOME") or environment.get("USERPROFILE") or Path.home())
    candidates = [configured, *(environment.get(name, "") for name in _DATA_VARIABLES)]
    if executable is not None:
        real = executable.resolve()
        for folder in (executable.parent, real.parent):
            candidates += [str(folder), str(folder / "data"), str(folder.parent / "Resources")]
    candidates += [
        "/usr/share/astap",
        "/usr/share/astap/data",
        "/usr/local/share/astap",
        "/opt/astap",
        "/opt/astap/share",
        str(home / ".local/share/astap"),
        str(home / "Library/Application Support/ASTAP"),
    ]
    for text in candidates:
        if text and has_astap_database(Path(text).expanduser()):
            return Path(text).expanduser()
    return None


def has_astap_database(folder: Path) -> bool:
    """Return True when a folder holds star data of ASTAP."""
    return bool(astap_data_files(folder))


def astap_data_files(folder: Path) -> list[Path]:
    """Return the files of ASTAP's star database in a folder."""
    return [folder / name for name in _names(folder) if name.lower().endswith(_DATA_SUFFIXES)]


def index_files(folder: Path) -> list[Path]:
    """Return astrometry.net's index files in a folder."""
    return [folder / name for name in _names(folder) if name.startswith("index-") and ".fits" in name]


def find_solve_field(configured: str = "", environment: Mapping[str, str] | None = None) -> Path | None:
    """Return astrometry.net's ``solve-field``, or None; ``configured`` may be the program or its folder."""
    environment = os.environ if environment is None else environment
    names = ("solve-field", "solve-field.exe")
    found = _program_in(configured, names) or _on_path(names, environment)
    if found:
        return found
    places = (
        "/usr/bin",
        "/usr/local/bin",
        "/usr/local/astrometry/bin",
        "/opt/homebrew/bin",
        "/opt/local/bin",
    )
    return next((p for p in (_program_in(place, names) for place in places) if p), None)


def find_index_folders(config: Path | None, executable: Path) -> list[Path]:
    """Return the folders with index files that astrometry.net's configuration names and that hold some.

    ``config`` None: the configuration that belongs to the program.
    """
    if config is None:
        prefix = executable.parent.parent
        usual = [
            Path("/etc/astrometry.cfg"),
            prefix / "etc/astrometry.cfg",
            Path("/usr/local/etc/astrometry.cfg"),
        ]
        config = next((path for path in usual if path.is_file()), None)
        if config is None:
            return []
    folders = []
    try:
        lines = config.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        words = line.split(None, 1)
        if len(words) == 2 and words[0] == "add_path":
            folders.append(Path(words[1].strip()))
        elif len(words) == 2 and words[0] == "index" and os.path.isabs(words[1].strip()):
            folders.append(Path(words[1].strip()).parent)
    return [folder for folder in folders if has_index_files(folder)]


def has_index_files(folder: Path) -> bool:
    """Return True when a folder holds astrometry.net index files."""
    return bool(index_files(folder))


def _astap_folders(environment: Mapping[str, str]) -> Iterator[Path]:
    home = Path(environment.get("HOME") or environment.get("USERPROFILE") or Path.home())
    if sys.platform == "win32":
        for name in ("ProgramFiles", "ProgramFiles(x86)", "ProgramW6432"):
            if environment.get(name):
                yield Path(environment[name]) / "astap"
        yield Path("C:/ASTAP")
    elif sys.platform == "darwin":
        for base in (Path("/Applications"), home / "Applications"):
            yield base / "ASTAP.app" / "Contents" / "MacOS"
            yield base / "ASTAP.app"
    else:
        yield from (Path("/usr/bin"), Path("/usr/local/bin"), Path("/opt/astap"), Path("/opt/astap/bin"))
        yield from (home / ".local/bin", home / "astap")


def _program_in(text: str, names: tuple[str, ...]) -> Path | None:
    """Return the program that ``text`` names: itself, or one of ``names`` in that folder."""
    if not text or not text.strip():
        return None
    path = Path(text.strip()).expanduser()
    if path.is_dir():
        return next((path / name for name in names if _is_program(path / name)), None)
    return path if _is_program(path) else None


def _is_program(path: Path) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK)


def _on_path(names: tuple[str, ...], environment: Mapping[str, str]) -> Path | None:
    for name in names:
        found = shutil.which(name, path=environment.get("PATH", ""))
        if found:
            return Path(found)
    return None


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
