"""What the plan says about tiles: which of those that are given are poor, what is cut, masked and left out."""

from __future__ import annotations

from dataclasses import dataclass

from zemosaic_core.altaz_mask import AltAzOptions
from zemosaic_core.quality_crop import CropOptions
from zemosaic_core.sources import CombineRule
from zemosaic_core.tile_quality import QualityOptions
from zemosaic_pipeline.batches import tile_numbers
from zemosaic_settings import Settings

__all__ = [
    "MergeOptions",
    "QualityGate",
    "TileCheckOptions",
    "TileGateOptions",
    "merge_options",
    "tile_checks",
    "tile_gate",
]


@dataclass(frozen=True)
class TileGateOptions:
    """When a stack that was given is poor, and whether the run ends then; see `zemosaic_core.tile_gate`."""

    enabled: bool
    fail: bool
    sigma: float
    ratio: float
    min_valid: float


@dataclass(frozen=True)
class QualityGate:
    """Which tiles are poor, and whether they are left out or only told."""

    threshold: float
    options: QualityOptions
    leave_out: bool


@dataclass(frozen=True)
class TileCheckOptions:
    """What is done to tiles before they are joined; None: nothing.

    Attributes
    ----------
    keep_share : float
        Rims of batches that fewer frames saw than this share of what is usual are not kept; 0: all is.
    leave_out : tuple of int
        Numbers of tiles that the user does not want.
    """

    crop: CropOptions | None
    altaz: AltAzOptions | None
    gate: QualityGate | None
    keep_share: float = 0.0
    leave_out: tuple[int, ...] = ()

    @property
    def rewrites(self) -> bool:
        """Whether tiles are written once more, cut or masked."""
        return not (self.crop is None and self.altaz is None and self.keep_share == 0)


# Tiles were rejected pixel by pixel before. Of two that differ by chance the lower one would stay: at 3 sigma that
# happens in one of 400 values and leaves dark pixels, while what is to go, a trail that one tile shows, lies far above.
LEAST_MERGE_KAPPA = 5.0


@dataclass(frozen=True)
class MergeOptions:
    """Which tiles are merged before they are joined, and how.

    Attributes
    ----------
    overlap : float
        Share of the smaller of two tiles that lies on the other.
    rule : CombineRule
    match_levels : bool
        Tiles of a group are brought to one level before they are compared.
    """

    enabled: bool
    overlap: float
    min_group: int
    max_group: int
    rule: CombineRule
    match_levels: bool


def merge_options(settings: Settings) -> MergeOptions:
    """Return which tiles become one."""
    how = settings.inter_master_stack_method
    rule = CombineRule(
        "winsorized_sigma_clip" if how == "winsor" else "none",
        max(settings.stacking_kappa_low, LEAST_MERGE_KAPPA),
        max(settings.stacking_kappa_high, LEAST_MERGE_KAPPA),
        settings.winsor_limits,
        "median" if how == "median" else "mean",
    )
    return MergeOptions(
        settings.inter_master_merge_enable,
        settings.inter_master_overlap_threshold,
        settings.inter_master_min_group_size,
        settings.inter_master_max_group,
        rule,
        settings.inter_master_photometry_intragroup,
    )


def tile_gate(settings: Settings) -> TileGateOptions:
    """Return when a given stack is poor."""
    return TileGateOptions(
        settings.existing_master_tiles_quality_gate_enabled,
        settings.existing_master_tiles_quality_gate_mode == "fail",
        settings.existing_master_tiles_quality_gate_sigma_threshold,
        settings.existing_master_tiles_quality_gate_ratio_threshold,
        settings.existing_master_tiles_quality_gate_min_valid_frac,
    )


def tile_checks(settings: Settings) -> TileCheckOptions:
    """Return what is done to tiles before they are joined."""
    crop = CropOptions(
        settings.quality_crop_band_px,
        settings.quality_crop_k_sigma,
        settings.quality_crop_margin_px,
        settings.quality_crop_min_run,
    )
    altaz = AltAzOptions(
        settings.altaz_margin_percent,
        settings.altaz_decay,
        settings.altaz_min_coverage_abs,
        settings.altaz_min_coverage_frac,
        settings.altaz_morph_open_px,
    )
    gate = QualityGate(
        settings.quality_gate_threshold,
        QualityOptions(
            settings.quality_gate_edge_band_px, settings.quality_gate_k_sigma, settings.quality_gate_erode_px
        ),
        settings.quality_gate_move_rejects,
    )
    return TileCheckOptions(
        crop if settings.quality_crop_enabled else None,
        altaz if settings.altaz_cleanup_enabled else None,
        gate if settings.quality_gate_enabled else None,
        settings.sds_min_coverage_keep,
        tile_numbers(settings.leave_out_tiles),
    )
