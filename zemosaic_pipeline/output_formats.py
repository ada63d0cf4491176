"""Which further files were asked for, and whether this installation can write them."""

from __future__ import annotations

from importlib.util import find_spec

from zemosaic_core.errors import SettingsError
from zemosaic_settings.words import listed

__all__ = ["COPIES", "FORMATS", "LISTS", "PICTURES", "check_hips", "filter_numbers", "output_formats"]

PICTURES = ("png", "jpeg", "tiff16", "jxl")
"""Forms of the stretched picture."""
COPIES = ("fits.fz", "xisf")
"""Forms of the science file."""
LISTS = ("astrobin",)
"""Lists of the frames."""
FORMATS = (*PICTURES, *COPIES, *LISTS)

_OTHER_NAMES = {"jpg": "jpeg", "tif": "tiff16", "tiff": "tiff16", "fits": "", "fz": "fits.fz"}
_LIBRARIES = {"jxl": "pillow_jxl"}
_HIPS_LIBRARY = "reproject.hips"


def output_formats(text: str) -> tuple[str, ...]:
    """Return the forms that a setting such as ``jpeg, fits.fz`` names, each once, in the order of `FORMATS`.

    ``fits`` may be named and changes nothing: the science file is always written.

    Raises
    ------
    SettingsError
        A name is unknown, or its library is missing.
    """
    asked = set()
    for word in listed(text.replace(" ", ",").lower()):
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
        if name in _LIBRARIES:
            _check_library("save_formats", name, _LIBRARIES[name], "formats")
        asked.add(name)
    return tuple(name for name in FORMATS if name in asked)


def filter_numbers(text: str) -> dict[str, str]:
    """Return AstroBin's numbers of filters from a setting such as ``IRCUT=4711, LP=4712``; names in lower case.

    Raises
    ------
    SettingsError
        A part is not a name, ``=`` and a whole number.
    """
    numbers = {}
    for part in listed(text):
        name, _, number = (word.strip() for word in part.rpartition("="))
        if not name or not (number.isascii() and number.isdigit()):
            raise SettingsError(
                "settings_not_filter_numbers",
                f"astrobin_filters = {part!r} is not a filter and its number, such as IRCUT=4711",
                option="astrobin_filters",
                value=part,
            )
        numbers[name.lower()] = number
    return numbers


def check_hips(wanted: bool) -> bool:
    """Return whether a HiPS is wanted.

    Raises
    ------
    SettingsError
        It is, and its library is missing.
    """
    if wanted:
        _check_library("save_hips", "true", _HIPS_LIBRARY, "hips")
    return wanted


def _check_library(option: str, value: str, library: str, extra: str) -> None:
    if not _is_there(library):
        raise SettingsError(
            "settings_format_library",
            f'{option} = {value} needs the library {library}; pip install "zemosaic[{extra}]"',
            option=option,
            value=value,
            extra=extra,
        )


def _is_there(library: str) -> bool:
    try:
        return find_spec(library) is not None
    except ModuleNotFoundError:
        # The package around it is missing.
        return False
