"""Plate-solver settings as one object, for programs that drive the solvers without the rest.

The settings file of `zemosaic_config` is the one truth; this is a view of its solver options under the names
that solver settings have in ZeMosaic 4.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from zemosaic_config import get_config_path, load_config, read_json, save_config, write_json
from zemosaic_settings import OPTIONS_BY_KEY, Settings, canonical_values

__all__ = ["SolverSettings"]

_OPTION_OF = {
    "solver_choice": "solver_method",
    "api_key": "astrometry_api_key",
    "timeout": "astrometry_timeout",
    "astrometry_local_path": "astrometry_local_path",
    "astap_executable_path": "astap_executable_path",
    "astap_data_directory_path": "astap_data_directory_path",
    "astap_search_radius_deg": "astap_default_search_radius",
    "astap_downsample": "astap_default_downsample",
    "astap_max_instances": "astap_max_instances",
    "force_resolve_existing_wcs": "force_resolve_existing_wcs",
}


def _default(field_name: str) -> Any:
    return OPTIONS_BY_KEY[_OPTION_OF[field_name]].default


@dataclass
class SolverSettings:
    """How frames are solved; each field is an option of the settings file (`to_config` names it)."""

    solver_choice: str = _default("solver_choice")
    api_key: str = _default("api_key")
    timeout: int = _default("timeout")
    astrometry_local_path: str = _default("astrometry_local_path")
    astap_executable_path: str = _default("astap_executable_path")
    astap_data_directory_path: str = _default("astap_data_directory_path")
    astap_search_radius_deg: float = _default("astap_search_radius_deg")
    astap_downsample: int = _default("astap_downsample")
    astap_max_instances: int = _default("astap_max_instances")
    force_resolve_existing_wcs: bool = _default("force_resolve_existing_wcs")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Return the solver settings of a flat settings mapping; other keys are left aside.

        Raises
        ------
        SettingsError
            A value is not allowed.
        """
        known, _ = canonical_values(config)
        settings = Settings.from_mapping({key: known[key] for key in _OPTION_OF.values() if key in known})
        return cls(**{name: getattr(settings, key) for name, key in _OPTION_OF.items()})

    def to_config(self) -> dict[str, Any]:
        """Return the same values under the keys of the settings file."""
        return {_OPTION_OF[field.name]: getattr(self, field.name) for field in fields(self)}

    @staticmethod
    def default_path() -> str:
        """Return the path of the settings file."""
        return get_config_path()

    @classmethod
    def load_default(cls) -> Self:
        """Return the solver settings of the settings file."""
        return cls.from_config(load_config())

    def save_default(self) -> None:
        """Put these values into the settings file; its other options stay as they are.

        Raises
        ------
        SettingsError, SaveFailed
            As `zemosaic_config.save_config`.
        """
        save_config(self.to_config())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Return the solver settings in a JSON file of its own; keys nobody knows are left aside.

        Raises
        ------
        SettingsError
            The file cannot be read or holds a value that is not allowed.
        """
        return cls.from_config(read_json(Path(path)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write these values into a JSON file of its own.

        Raises
        ------
        SaveFailed
            The file cannot be written.
        """
        write_json(Path(path), asdict(self))
