"""Options of the finished picture: how it looks, where it is cut, and in which forms it is written."""

from __future__ import annotations

from zemosaic_settings.option import Option

__all__ = ["CROP_OPTIONS", "PICTURE_OPTIONS"]

CROP_OPTIONS = (
    Option(
        "crop",
        "choice",
        "signal",
        "assembly",
        "basic",
        choices=("none", "signal", "coverage", "rectangle"),
        aliases=("crop_follow_signal",),
        old_values=(("true", "signal"), ("false", "none")),
    ),
    Option("crop_science", "bool", False, "assembly"),
)

_MOVES = ("picture_black", "picture_mid", "picture_white", "picture_saturation")

PICTURE_OPTIONS = (
    Option("picture_style", "choice", "natural", "output", "basic", choices=("natural", "deep", "print")),
    *(
        Option(key, "float", 0.0, "output", minimum=-100.0, maximum=100.0, unit="percent", step=5.0)
        for key in _MOVES
    ),
    Option("picture_flatten", "bool", False, "output"),
    Option("save_formats", "text", "", "output", "basic"),
    Option("astrobin_filters", "text", "", "output"),
    Option("save_annotation", "bool", False, "output", "basic"),
    Option("save_zoom", "bool", False, "output", "basic"),
    Option("save_hips", "bool", False, "output", aliases=("hips",)),
)
