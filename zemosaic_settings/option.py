"""What one option of ZeMosaic is: its type, limits, unit, group and level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["GROUPS", "KINDS", "LEVELS", "Option"]

GROUPS = (
    "folders",
    "solver",
    "quality",
    "calibration",
    "groups",
    "stacking",
    "grid",
    "assembly",
    "tiles",
    "output",
    "performance",
    "interface",
)
"""Groups in the order in which the forms and the README show them; the text key is ``group.<name>``."""

LEVELS = ("basic", "advanced", "expert")

KINDS = ("bool", "int", "float", "choice", "text", "folder", "file", "secret", "pair", "geometry")
"""What an option holds.

``folder``, ``file``, ``text`` and ``secret`` are strings; ``pair`` is the string ``"low,high"``;
``geometry`` is ``None`` or four integers (x, y, width, height) of a window.
"""


@dataclass(frozen=True)
class Option:
    """One option.

    Parameters
    ----------
    key : str
        Name in the settings file, in `Settings`, on the command line and in the texts.
    type : str
        One of `KINDS`.
    default : object
        Value of a fresh installation.
    group, level : str
        Where a form shows it (`GROUPS`), and to whom (`LEVELS`).
    minimum, maximum : float or None
        Inclusive limits of a number, or of each member of a pair.
    choices : tuple of str
        Allowed values of a choice, as they are stored; typed in any case.
    unit : str
        Name of the unit, text key ``unit.<name>``; empty for a pure number.
    step : float or None
        Sensible increment for a spin box.
    special : str
        Text key suffix of what the smallest value means (``auto``, ``off``, ``unlimited``), or empty.
    aliases : tuple of str
        Other names accepted on input; the first of two given names wins, this option's own key before all.
    mirrors : tuple of str
        Those aliases which the settings file also keeps, always with the same value.
    old_values : tuple of pairs
        (retired text value in lower case, the value that stands for it now).
    in_forms : bool
        False for what a window remembers by itself.
    """

    key: str
    type: str
    default: Any
    group: str
    level: str = "advanced"
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    unit: str = ""
    step: float | None = None
    special: str = ""
    aliases: tuple[str, ...] = ()
    mirrors: tuple[str, ...] = ()
    old_values: tuple[tuple[str, str], ...] = ()
    in_forms: bool = True

    @property
    def text_key(self) -> str:
        """Key of the texts: ``<text_key>.label`` and ``<text_key>.help``."""
        return f"option.{self.key}"

    def choice_text_key(self, choice: str) -> str:
        """Return the text key of one of `choices`."""
        return f"option.{self.key}.choice.{choice.lower()}"

    @property
    def all_names(self) -> tuple[str, ...]:
        """The key, then every alias, in the order in which they win."""
        return (self.key, *self.mirrors, *self.aliases)
