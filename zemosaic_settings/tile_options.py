"""Options of finished stacks and master tiles: what is judged, cut and joined before the mosaic is."""

from __future__ import annotations

from zemosaic_settings.option import Option

__all__ = ["TILE_OPTIONS"]

TILE_OPTIONS = (
    Option(
        "existing_master_tiles_quality_gate_enabled",
        "bool",
        True,
        "tiles",
    ),
    Option(
        "existing_master_tiles_quality_gate_mode",
        "choice",
        "warn",
        "tiles",
        choices=("warn", "fail"),
    ),
    Option(
        "existing_master_tiles_quality_gate_sigma_threshold",
        "float",
        8.0,
        "tiles",
        "expert",
        minimum=1.0,
        maximum=100.0,
        unit="sigma",
        step=0.5,
    ),
    Option(
        "existing_master_tiles_quality_gate_ratio_threshold",
        "float",
        5000.0,
        "tiles",
        "expert",
        minimum=1.0,
        maximum=1_000_000.0,
        step=100.0,
    ),
    Option(
        "existing_master_tiles_quality_gate_min_valid_frac",
        "float",
        0.05,
        "tiles",
        "expert",
        minimum=0.0,
        maximum=1.0,
        unit="fraction",
        step=0.05,
    ),
)
