"""Quality presets of the start page and the user's own presets as JSON files to keep and to share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from zemosaic_config import write_json
from zemosaic_core.errors import SettingsError
from zemosaic_io.manifest import load_json
from zemosaic_settings import OPTIONS_BY_KEY, Settings
from zemosaic_ui.form_model import FormModel

__all__ = [
    "QUALITY_PRESETS",
    "apply_quality",
    "current_quality",
    "delete_preset",
    "list_presets",
    "preset_file_name",
    "read_preset",
    "write_preset",
]

QUALITY_PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "fast": MappingProxyType(
            {
                "resample_kernel": "bilinear",
                "stacking_rejection_algorithm": "kappa_sigma",
                "stacking_weighting_method": "none",
                "intertile_gradient": False,
            }
        ),
        "balanced": MappingProxyType({}),
        "best": MappingProxyType(
            {
                "stacking_rejection_algorithm": "winsorized_sigma_clip",
                "stacking_weighting_method": "noise_fwhm",
                "frame_quality_sigma": 3.0,
                "tile_feather_px": 128,
                "save_variance": True,
            }
        ),
    }
)
"""What each quality changes against the defaults; options that no preset names are left alone."""

# Options that belong to a person or a machine, not to a way of working: never part of a shared preset.
PRIVATE_GROUPS = ("folders", "interface", "performance")
PRIVATE_KEYS = (
    "astap_executable_path",
    "astap_data_directory_path",
    "astrometry_local_path",
    "astrometry_api_key",
)
FORMAT = "zemosaic-preset"


def _quality_keys() -> set[str]:
    return {key for values in QUALITY_PRESETS.values() for key in values}


def apply_quality(form: FormModel, name: str) -> None:
    """Set the options of a quality preset; the others' options of the same list go back to their defaults."""
    wanted = QUALITY_PRESETS[name]
    for key in _quality_keys():
        form.set(key, wanted.get(key, OPTIONS_BY_KEY[key].default))


def current_quality(form: FormModel) -> str:
    """Return the preset the form agrees with, or ``custom``."""
    for name, wanted in QUALITY_PRESETS.items():
        if all(form[key] == wanted.get(key, OPTIONS_BY_KEY[key].default) for key in _quality_keys()):
            return name
    return "custom"


def _is_shared(key: str) -> bool:
    option = OPTIONS_BY_KEY.get(key)
    return option is not None and option.group not in PRIVATE_GROUPS and key not in PRIVATE_KEYS


def write_preset(path: Path, name: str, form: FormModel) -> None:
    """Save the shareable options of a form that differ from their defaults.

    Raises
    ------
    SaveFailed
        The file cannot be written.
    """
    values = {key: form[key] for key in form.changed_keys if _is_shared(key)}
    write_json(path, {"format": FORMAT, "name": name, "options": values})


def read_preset(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the name and the full set of shareable option values of a preset file.

    Options the file does not name have their defaults, so that loading a preset gives the same form whatever
    was there before.

    Raises
    ------
    SettingsError
        The file is no preset, or a value is not allowed.
    """
    try:
        content = load_json(path, 10_000_000)
        options = content["options"]
        name = str(content.get("name") or path.stem)
        if content.get("format") != FORMAT or not isinstance(options, dict):
            raise KeyError("format")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingsError(
            "ui_preset_not_readable", f"{path} is not a preset: {error}", path=str(path), detail=str(error)
        ) from error
    settings = Settings.from_mapping(options).to_mapping()
    return name, {key: value for key, value in settings.items() if _is_shared(key)}


def list_presets(folder: Path) -> dict[str, Path]:
    """Return name -> file of the readable presets in a folder."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        try:
            found[read_preset(path)[0]] = path
        except SettingsError:
            continue  # a foreign JSON file in the folder is no preset; reading it by hand says why
    return found


def delete_preset(path: Path) -> None:
    """Remove a preset file."""
    path.unlink(missing_ok=True)


def preset_file_name(name: str) -> str:
    """Return a file name that every system accepts for a preset's name."""
    return (re.sub(r"[^\w\- ]+", "_", name).strip() or "preset") + ".json"
