"""Which forms of the picture were asked for, and whether this installation can write them."""

from __future__ import annotations

from importlib.util import find_spec

from zemosaic_core.errors import SettingsError

__all__ = ["FORMATS", "picture_formats"]

FORMATS = ("png", "jpeg", "tiff16", "jxl")
_OTHER_NAMES = {"jpg": "jpeg", "tif": "tiff16", "tiff": "tiff16", "fits": ""}
_LIBRARIES = {"jxl": "pillow_jxl"}


def picture_formats(text: str) -> tuple[str, ...]:
    """Return the forms that a setting such as ``jpeg, tiff16`` names, each once, in the order of `FORMATS`.

    ``fits`` may be named and changes nothing: the science file is always written.

    Raises
    ------
    SettingsError
        A name is unknown, or its library is missing.
    """
    asked = set()
    for word in text.replace(";", ",").replace(" ", ",").lower().split(","):
        name = _OTHER_NAMES.get(word, word)
        if not name:
            continue
        if name not in FORMATS:
            allowed = ", ".join(FORMATS)
            raise SettingsError(
                "settings_not_a_choice",
                f"save_formats = {word!r} is not allowed; allowed are {allowed}",
                option="save_formats",
                value=word,
                allowed=allowed,
            )
        if name in _LIBRARIES and find_spec(_LIBRARIES[name]) is None:
            raise SettingsError(
                "settings_format_library",
                f'save_formats = {name} needs the library {_LIBRARIES[name]}; pip install "zemosaic[formats]"',
                option="save_formats",
                value=name,
            )
        asked.add(name)
    return tuple(name for name in FORMATS if name in asked)
