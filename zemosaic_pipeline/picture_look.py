"""How the settings want a picture stretched; the run and the viewer ask the same function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zemosaic_core.stretch import StretchMove

__all__ = ["MOVES", "stretch_move", "stretch_options"]

MOVES = ("black", "mid", "white", "saturation")
"""Numbers of a `StretchMove`; the options are called ``picture_<name>`` and are in percent."""

_CHOICES = ("p_low", "p_high", "asinh_a", "apply_wb")


def stretch_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `auto_stretch_params` is told, but for the move; ``values`` are settings by name."""
    return {
        **{name: values[f"preview_png_{name}"] for name in _CHOICES},
        "style": values["picture_style"],
    }


def stretch_move(values: Mapping[str, Any]) -> StretchMove:
    """Return what the settings change about the automatic choice."""
    return StretchMove(**{name: values[f"picture_{name}"] / 100.0 for name in MOVES})
