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

PICTURE_OPTIONS = (
    Option("picture_style", "choice", "natural", "output", "basic", choices=("natural", "deep", "print")),
    Option("picture_flatten", "bool", False, "output"),
    Option("save_formats", "text", "", "output", "basic"),
    Option("save_annotation", "bool", False, "output", "basic"),
)
