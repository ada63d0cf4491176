"""The settings file: flat JSON in the user's own folder, read, checked, migrated and saved.

Keys and meaning are those of ``zemosaic_settings.catalogue``. A key nobody knows stays in the file untouched,
so that a newer or older ZeMosaic finds its own options again.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from zemosaic_core.errors import SaveFailed, SettingsError
from zemosaic_io.atomic import replace_durably
from zemosaic_io.manifest import load_json
from zemosaic_settings.catalogue import OPTIONS, OPTIONS_BY_KEY
from zemosaic_settings.model import canonical_values, conflicting_names, misspelt_names
from zemosaic_settings.old_options import changed_old_options
from zemosaic_settings.option import Option
from zemosaic_settings.values import parse_value

__all__ = [
    "CONFIG_FILE_NAME",
    "DEFAULT_CONFIG",
    "ENVIRONMENT",
    "LoadedConfig",
    "detect_astap_installation",
    "environment_values",
    "get_astap_data_directory_path",
    "get_astap_default_downsample",
    "get_astap_default_search_radius",
    "get_astap_default_sensitivity",
    "get_astap_executable_path",
    "get_astap_max_instances",
    "get_config_path",
    "get_user_config_dir",
    "load_config",
    "read_config",
    "read_json",
    "save_config",
    "write_json",
]

CONFIG_FILE_NAME = "zemosaic_config.json"
# A settings file has a few thousand bytes.
_MAX_BYTES = 10_000_000

ENVIRONMENT: dict[str, str] = {
    "ZEMOSAIC_LANGUAGE": "language",
    "ZEMOSAIC_LOG_LEVEL": "logging_level",
    "ZEMOSAIC_GUI_BACKEND": "preferred_gui_backend",
    "ZEMOSAIC_ASTAP_MAX_PROCS": "astap_max_instances",
    "ZEMO_ASTAP_MAX_PROCS": "astap_max_instances",
    "ASTROMETRY_API_KEY": "astrometry_api_key",
}
"""Environment variable -> option it overrides for this process; of two for one option the first wins.

Those of the graphics card (``ZEMOSAIC_GPU*``) are read by ``zemosaic_gpu_policy`` alone; those that say where
ASTAP is (``ASTAP_EXE``, ``ASTAP_DATA_DIR`` ...) by the search for it.
"""

# The key of the network solver is only a fallback there: a key the user typed is the one to use.
_ONLY_WHEN_EMPTY = frozenset({"astrometry_api_key"})
_PATH_TYPES = frozenset({"folder", "file"})


def _with_mirrors(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return option values with every mirrored name beside its option."""
    result = dict(values)
    for option in OPTIONS:
        for mirror in option.mirrors:
            result[mirror] = values[option.key]
    return result


DEFAULT_CONFIG: dict[str, Any] = _with_mirrors({option.key: option.default for option in OPTIONS})
"""Every option with its default, and the names kept in step with it."""


@dataclass(frozen=True)
class LoadedConfig:
    """What a settings file says.

    Parameters
    ----------
    values : dict
        Every option, the names kept in step, and the keys nobody knows.
    problems : tuple of SettingsError
        What in the file could not be used; the default stands in its place.
    conflicts : tuple of SettingsError
        Settings that the file gives two values under two of their names, and which one is used; names that are
        nearly those of options.
    """

    values: dict[str, Any]
    problems: tuple[SettingsError, ...]
    conflicts: tuple[SettingsError, ...] = ()


def get_user_config_dir() -> str:
    """Return the folder of the user's settings; ``ZEMOSAIC_CONFIG_DIR`` overrides it."""
    chosen = os.environ.get("ZEMOSAIC_CONFIG_DIR", "")
    if chosen:
        return str(Path(chosen).expanduser())
    return platformdirs.user_config_dir("ZeMosaic", appauthor=False, roaming=True)


def get_config_path() -> str:
    """Return the path of the settings file; ``ZEMOSAIC_CONFIG`` overrides it."""
    chosen = os.environ.get("ZEMOSAIC_CONFIG", "")
    return str(Path(chosen).expanduser()) if chosen else str(Path(get_user_config_dir()) / CONFIG_FILE_NAME)


def environment_values(environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return option -> value as the environment variables of `ENVIRONMENT` ask for.

    Raises
    ------
    SettingsError
        A variable holds a value that its option does not allow.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    for variable, key in ENVIRONMENT.items():
        text = environ.get(variable, "").strip()
        if text and key not in values:
            values[key] = parse_value(OPTIONS_BY_KEY[key], text)
    return values


def read_config(path: str | os.PathLike[str] | None = None, *, missing_ok: bool = False) -> LoadedConfig:
    """Read a settings file and say what in it cannot be used.

    Without ``path`` the user's file is read; where there is none yet, the one an older ZeMosaic kept beside
    its program, and without that all is default. A file that was named must exist, unless ``missing_ok``: a
    window names the file it will save to.
    """
    problems: list[SettingsError] = []
    stored: dict[str, Any] = {}
    try:
        stored = read_json(_file_to_read(path), missing_ok=missing_ok or path is None)
    except SettingsError as error:
        problems.append(error)
    known, unknown = canonical_values(stored)
    values = {option.key: _stored_value(option, known, problems) for option in OPTIONS}
    try:
        _apply_environment(values)
    except SettingsError as error:
        problems.append(error)
    kept = {name: stored[name] for name in unknown}
    doubtful = (*conflicting_names(stored), *misspelt_names(unknown))
    return LoadedConfig({**kept, **_with_mirrors(values)}, tuple(problems), doubtful)


def load_config(path: str | os.PathLike[str] | None = None, *, strict: bool = False) -> dict[str, Any]:
    """Return every setting as a flat dictionary; see `read_config` for the problems of a file.

    Raises
    ------
    SettingsError
        With ``strict``: the file is unreadable or holds a value that is not allowed.
    """
    loaded = read_config(path)
    if strict and loaded.problems:
        raise loaded.problems[0]
    return loaded.values


def load_old_values(path: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Return what a settings file says to version 4 only, as far as that is not what version 4 did by itself."""
    values = read_config(path, missing_ok=True).values
    return {key: values[key] for _, found in changed_old_options(values) for key in found}


def save_config(config: Mapping[str, Any], path: str | os.PathLike[str] | None = None) -> bool:
    """Write settings into the settings file and return True; an empty mapping writes nothing: False.

    What ``config`` does not name keeps its value in the file. Where an option and its other names disagree,
    the one that differs from the file is what the caller changed, and all names follow it. A value that only
    the environment put there is not written.

    Raises
    ------
    SettingsError
        A value is not allowed; nothing is written.
    SaveFailed
        The file cannot be written; the old file is whole.
    """
    if not config:
        return False
    target = Path(get_config_path() if path is None else path)
    stored = _readable_or_set_aside(target)
    old = {**DEFAULT_CONFIG, **_checked(stored)}
    new = {**old, **_changed(config, old)}
    environment = environment_values()
    for key, value in environment.items():
        if new[key] == value and (key not in _ONLY_WHEN_EMPTY or not old[key]):
            new[key] = old[key]
    own = _with_mirrors({option.key: new[option.key] for option in OPTIONS})
    aliases = {name for option in OPTIONS for name in option.all_names}
    others = {key: value for key, value in {**stored, **config}.items() if _plain(key) not in aliases}
    write_json(target, {**own, **others})
    return True


def detect_astap_installation() -> tuple[str | None, str | None]:
    """Return the paths of the ASTAP program and of its star database, ``None`` for what is not found."""
    # Reading a settings file must not cost the import of the solvers.
    from zemosaic_io.solvers import locate

    executable = locate.find_astap()
    data = locate.find_astap_data(executable=executable)
    return (str(executable) if executable else None, str(data) if data else None)


def get_astap_executable_path() -> str:
    """Return the ASTAP program: the one in the settings if it exists, else the one found, else ``""``."""
    configured = load_config()["astap_executable_path"]
    return configured if os.path.isfile(configured) else detect_astap_installation()[0] or ""


def get_astap_data_directory_path() -> str:
    """Return the star database: the one in the settings if it exists, else the one found, else ``""``."""
    configured = load_config()["astap_data_directory_path"]
    return configured if configured and os.path.isdir(configured) else detect_astap_installation()[1] or ""


def get_astap_default_search_radius() -> float:
    """Return the search radius of the settings, degrees."""
    return load_config()["astap_default_search_radius"]


def get_astap_default_downsample() -> int:
    """Return the downsampling of the settings, 0 (ASTAP chooses) to 4."""
    return load_config()["astap_default_downsample"]


def get_astap_default_sensitivity() -> int:
    """Return the sensitivity an older settings file may hold; ASTAP has no such option and never gets it."""
    value = load_config().get("astap_default_sensitivity", 100)
    return value if isinstance(value, int) else 100


def get_astap_max_instances() -> int:
    """Return how many ASTAP processes may run at once."""
    return load_config()["astap_max_instances"]


def _plain(name: str) -> str:
    return name.removesuffix("_config")


def _file_to_read(path: str | os.PathLike[str] | None) -> Path:
    if path is not None:
        return Path(path)
    own = Path(get_config_path())
    beside = Path(__file__).resolve().parent / CONFIG_FILE_NAME
    return beside if not own.exists() and beside.exists() else own


def read_json(path: Path, *, missing_ok: bool = False) -> dict[str, Any]:
    """Return the JSON object in a file; with ``missing_ok`` a file that does not exist is empty.

    Raises
    ------
    SettingsError
        The file cannot be read or holds something else.
    """
    try:
        content = load_json(path, _MAX_BYTES)
    except (OSError, ValueError) as error:
        if missing_ok and isinstance(error, FileNotFoundError):
            return {}
        if isinstance(error, FileNotFoundError):
            raise SettingsError(
                "settings_file_missing", f"there is no settings file {path}", path=str(path)
            ) from error
        raise _unreadable(path, str(error)) from error
    if not isinstance(content, dict):
        raise _unreadable(path, f"it holds a {type(content).__name__}, not one JSON object")
    return content


def _unreadable(path: Path, detail: str) -> SettingsError:
    return SettingsError(
        "settings_file_unreadable",
        f"the settings file {path} cannot be read: {detail}; correct it or delete it",
        path=str(path),
        detail=detail,
    )


def _stored_value(option: Option, known: Mapping[str, Any], problems: list[SettingsError]) -> Any:
    if option.key not in known:
        return option.default
    try:
        value = parse_value(option, known[option.key])
    except SettingsError as error:
        problems.append(error)
        return option.default
    return os.path.expanduser(value) if option.type in _PATH_TYPES else value


def _apply_environment(values: dict[str, Any]) -> None:
    for key, value in environment_values().items():
        if key not in _ONLY_WHEN_EMPTY or not values[key]:
            values[key] = value


def _checked(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return the usable options of a file that is about to be replaced; the rest falls to its default."""
    known, _ = canonical_values(mapping)
    ignored: list[SettingsError] = []
    return {key: _stored_value(OPTIONS_BY_KEY[key], known, ignored) for key in known}


def _changed(config: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options the caller gives, each from that of its names whose value is new."""
    given = {_plain(name): value for name, value in config.items()}
    result = {}
    for option in OPTIONS:
        values = _values_given(option, (given[name] for name in option.all_names if name in given))
        if values:
            result[option.key] = next((value for value in values if value != old[option.key]), values[0])
    return result


def _values_given(option: Option, values: Iterable[Any]) -> list[Any]:
    nothing = () if option.type == "geometry" else (None,)
    nothing += () if option.type in ("text", "secret", *_PATH_TYPES) else ("",)
    return [parse_value(option, value) for value in values if value not in nothing]


def _readable_or_set_aside(path: Path) -> dict[str, Any]:
    """Return what a file holds; one that cannot be read is renamed first, so that nothing in it is lost."""
    try:
        return read_json(path, missing_ok=True)
    except SettingsError:
        try:
            os.replace(path, path.with_name(path.name + ".unreadable"))
        except OSError as error:
            raise _not_saved(path, error) from error
        return {}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, readable by its owner only.

    Raises
    ------
    SaveFailed
        The file cannot be written; an old one is whole.
    """
    text = json.dumps(content, indent=4, ensure_ascii=False) + "\n"
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # mkstemp gives a file that only its owner may read: the settings can hold the key of an account.
        handle, temporary = tempfile.mkstemp(prefix=path.name + ".", suffix=".part", dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        replace_durably(Path(temporary), path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise _not_saved(path, error) from error


def _not_saved(path: Path, error: OSError) -> SaveFailed:
    return SaveFailed(
        "settings_file_not_saved",
        f"the settings file {path} cannot be written: {error}",
        path=str(path),
        detail=str(error),
    )
