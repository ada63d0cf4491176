"""Numbers of the options of the tile tools, for command line and window; settings have a prefix."""

from __future__ import annotations

__all__ = ["ALTAZ", "CROP", "PREFIXES", "QUALITY"]

CROP = ("band_px", "k_sigma", "margin_px", "min_run")
ALTAZ = ("margin_percent", "decay", "min_coverage_abs", "min_coverage_frac", "morph_open_px")
QUALITY = ("edge_band_px", "k_sigma", "erode_px")
PREFIXES = {"quality_crop": CROP, "altaz": ALTAZ, "quality_gate": QUALITY}
