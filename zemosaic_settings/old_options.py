"""Options of ZeMosaic 4 that are options no more: what stands for each, and why.

A settings file may still hold them. Those that are set to something else than version 4 did by itself are told once at
the beginning of a run; `docs/from_zemosaic_4.md` lists all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["FATES", "OLD_OPTIONS", "OldOptions", "changed_old_options"]

FATES = ("replaced", "always", "automatic", "absent")
"""Another option stands for it; every run does it; the program decides by itself; there is nothing like it."""

_SUFFIX = "_config"


@dataclass(frozen=True)
class OldOptions:
    """Options with one fate.

    Attributes
    ----------
    fate : str
        One of `FATES`.
    instead : str
        Key of the option that stands for them; '' without one.
    why : str
        One English sentence for the documents.
    defaults : mapping of str to tuple
        Key -> what versions 4.1 and 4.5 did by themselves.
    """

    fate: str
    instead: str
    why: str
    defaults: Mapping[str, tuple[Any, ...]]

    @property
    def text_key(self) -> str:
        """Key of the sentence that a run says."""
        return f"old_option_{self.fate}"


OLD_OPTIONS: tuple[OldOptions, ...] = (
    OldOptions(
        "replaced",
        "solver_method",
        "The built-in solver decides by the stars how deep it looks.",
        {
            "astap_default_sensitivity": (100,),
            "astap_drizzled_fallback_enabled": (False,),
        },
    ),
    OldOptions(
        "replaced",
        "preferred_gui_backend",
        "A choice that is made counts.",
        {
            "preferred_gui_backend_explicit": (False,),
        },
    ),
    OldOptions(
        "automatic",
        "",
        "The window remembers its own sizes.",
        {
            "qt_main_columns_state": (None,),
            "qt_main_left_state": (None,),
        },
    ),
    OldOptions(
        "replaced",
        "route",
        "Frames of every telescope go all at once over one grid; no telescope needs a mode of its own.",
        {
            "auto_detect_seestar": (True,),
            "force_seestar_mode": (False,),
        },
    ),
    OldOptions(
        "replaced",
        "stacking_rejection_algorithm",
        "Frames are rejected and combined in one way on every route.",
        {
            "global_coadd_method": ("kappa_sigma",),
            "global_coadd_k": (2.0,),
        },
    ),
    OldOptions(
        "replaced",
        "poststack_equalize_rgb",
        "Colours are scaled once, over the whole mosaic, on every route.",
        {
            "sds_enable_final_rgb_equalize": (False,),
            "sds_final_rgb_equalize_gain_clip": ([0.95, 1.05],),
        },
    ),
    OldOptions(
        "absent",
        "",
        "A frame in two batches would count twice; here every frame counts once.",
        {
            "batch_overlap_pct": (40,),
            "allow_batch_duplication": (True,),
        },
    ),
    OldOptions(
        "replaced",
        "cluster_min_frames",
        "Groups of few frames join others that cover their sky.",
        {
            "min_safe_stack": (3,),
            "target_stack": (5,),
        },
    ),
    OldOptions(
        "automatic",
        "",
        "Tiles lie on the pixels of the mosaic and are merged in blocks of rows that fit the memory.",
        {
            "inter_master_memmap_policy": ("auto",),
            "inter_master_local_scale": ("final",),
        },
    ),
    OldOptions(
        "replaced",
        "intertile_photometric_match",
        "One robust solution over all overlaps brings merged tiles and others to one level.",
        {
            "inter_master_photometry_intersuper": (True,),
            "inter_master_photometry_clip_sigma": (3.0,),
        },
    ),
    OldOptions(
        "always",
        "",
        "Every sample has the weight of its noise, so the depth of the coverage changes no level and "
        "nothing has to be renormalised.",
        {
            "two_pass_coverage_renorm": (False, True),
            "two_pass_cov_sigma_px": (50,),
            "two_pass_cov_gain_clip": ([0.85, 1.18],),
        },
    ),
    OldOptions(
        "replaced",
        "crop",
        "The mosaic is cut to its covered part.",
        {
            "global_wcs_autocrop_enabled": (True,),
            "global_wcs_autocrop_margin_px": (128,),
        },
    ),
    OldOptions(
        "automatic",
        "",
        "The grid is as large as the frames, at a place and a scale that stay when frames are added; its"
        " WCS stands in the mosaic.",
        {
            "global_wcs_output_path": ("global_mosaic_wcs.fits",),
            "global_wcs_padding_percent": (2.0,),
            "global_wcs_res_override": (None,),
        },
    ),
    OldOptions(
        "replaced",
        "save_final_as_uint16",
        "Files for viewers have planes that every viewer reads.",
        {
            "legacy_rgb_cube": (False,),
            "save_display_fits": (False,),
        },
    ),
    OldOptions(
        "automatic",
        "",
        "Blocks of rows are planned to fit the memory and the card; nothing has to be spread over files,"
        " and results do not depend on it.",
        {
            "coadd_use_memmap": (True,),
            "coadd_memmap_dir": ("",),
            "coadd_cleanup_memmap": (True,),
            "assembly_process_workers": (0,),
            "auto_limit_frames_per_master_tile": (True,),
            "winsor_auto_fallback_on_memory_error": (True,),
            "winsor_min_frames_per_pass": (4,),
            "winsor_memmap_fallback": ("auto",),
            "winsor_split_strategy": ("sequential",),
            "grid_workers": (0,),
            "use_gpu_grid": (True,),
            "gpu_hybrid_vram_guard": (True,),
            "phase5_chunk_auto": (True,),
            "phase5_chunk_mb": (128,),
            "parallel_autotune_enabled": (True,),
            "chunk_profile_mode": ("safe_dynamic",),
            "parallel_target_cpu_load": (0.95,),
            "parallel_target_ram_fraction": (0.9,),
            "parallel_gpu_vram_fraction": (0.8,),
            "parallel_max_cpu_workers": (0,),
            "phase3_ram_high_pct": (82.0,),
            "phase3_ram_critical_pct": (88.0,),
            "phase3_chunk_scale_high": (0.7,),
            "phase3_chunk_scale_critical": (0.5,),
            "cleanup_temp_artifacts": (True,),
        },
    ),
    OldOptions(
        "replaced",
        "intertile_photometric_match",
        "One solution over all stars and all overlaps takes the place of chains that begin at an anchor.",
        {
            "center_out_normalization_p3": (True,),
            "center_out_anchor_mode": ("auto_central_quality",),
            "anchor_quality_probe_limit": (12,),
            "anchor_quality_span_range": ([0.02, 6.0],),
            "anchor_quality_median_clip_sigma": (2.5,),
            "enable_poststack_anchor_review": (True,),
            "poststack_anchor_probe_limit": (8,),
            "poststack_anchor_span_range": ([0.004, 10.0],),
            "poststack_anchor_median_clip_sigma": (3.5,),
            "poststack_anchor_min_improvement": (0.12,),
            "poststack_anchor_use_overlap_affine": (True,),
            "p3_center_sky_percentile": ([25.0, 60.0],),
            "p3_center_robust_clip_sigma": (2.5,),
            "p3_center_preview_size": (256,),
            "p3_center_min_overlap_fraction": (0.03,),
            "intertile_preview_size": (512, 128),
            "intertile_overlap_min": (0.05,),
            "intertile_sky_percentile": ([30.0, 70.0],),
            "intertile_robust_clip_sigma": (2.5,),
            "intertile_global_recenter": (True,),
            "intertile_recenter_clip": ([0.85, 1.18],),
            "intertile_prune_k": (8,),
            "intertile_prune_weight_mode": ("area",),
            "intertile_offset_only_v1": (False,),
            "intertile_gain_offset_v2": (False,),
            "intertile_gain_prior_lambda": (0.02,),
            "intertile_gain_clip": ([0.9, 1.1],),
            "intertile_offset_clip": ([-2000.0, 2000.0],),
            "intertile_pair_gain_clip": ([0.5, 2.0],),
            "intertile_pair_offset_abs_max": (5000.0,),
            "intertile_max_irls_iters": (3,),
            "intertile_enforce_requested_solver": (False,),
            "intertile_underconstrained_guard_enabled": (True,),
            "intertile_underconstrained_max_pairs": (1,),
            "intertile_underconstrained_max_active_tiles": (2,),
            "intertile_underconstrained_force_mode": ("offset_only",),
            "intertile_underconstrained_gain_clip": ([0.85, 1.18],),
            "intertile_underconstrained_offset_clip": ([-2000.0, 2000.0],),
            "intertile_affine_blend": (0.3,),
            "use_auto_intertile": (False,),
            "existing_master_tiles_anchor_photometry_enabled": (True,),
            "existing_master_tiles_anchor_gain_clip": ([0.9, 1.1],),
        },
    ),
    OldOptions(
        "replaced",
        "tile_feather_px",
        "Weights of tiles fade towards their borders whatever the method; nothing of a tile has to be "
        "cut off.",
        {
            "incremental_feather_parity": (False,),
            "apply_master_tile_crop": (True,),
            "master_tile_crop_percent": (3.0,),
            "phase5_alpha_soft_weights": (True,),
            "phase5_alpha_weight_floor": (0.02,),
        },
    ),
    OldOptions(
        "automatic",
        "",
        "The filter opens when it is asked for.",
        {
            "enable_early_filter": (True,),
        },
    ),
    OldOptions(
        "always",
        "",
        "What is missing is missing in the mosaic; files of their own are written by the command `crop`.",
        {
            "altaz_nanize": (True,),
            "altaz_nanize_threshold": (0.001,),
            "altaz_alpha_soft_threshold": (0.001,),
            "altaz_export_alpha_sidecar": (False,),
            "altaz_alpha_sidecar_format": ("png",),
        },
    ),
    OldOptions(
        "replaced",
        "altaz_min_coverage_frac",
        "The coverage tells which corners are thin, whatever the mount.",
        {
            "altaz_unknown_policy": ("auto",),
            "altaz_strict_overlap_crop_enabled": (True,),
            "altaz_strict_overlap_crop_alpha_threshold": (0.02,),
            "altaz_strict_overlap_crop_min_nonzero_frac": (0.08,),
            "altaz_strict_overlap_crop_bbox_pad_px": (6,),
            "altaz_strict_overlap_crop_min_size_px": (256,),
        },
    ),
    OldOptions(
        "replaced",
        "stacking_rejection_algorithm",
        "There is one implementation.",
        {
            "wsc_impl": ("pixinsight",),
        },
    ),
    OldOptions(
        "replaced",
        "poststack_equalize_rgb",
        "The whole mosaic is scaled, so that no steps of colour appear; `colour_calibration` does it by "
        "the stars.",
        {
            "poststack_rgb_equalize_gain_clip": ([0.95, 1.05],),
            "poststack_rgb_equalize_bg_percentile": ([5.0, 85.0],),
            "poststack_rgb_equalize_min_samples": (5000,),
            "poststack_rgb_equalize_min_coverage": (0.01,),
            "final_mosaic_rgb_equalize_enabled": (False,),
            "final_mosaic_rgb_equalize_clip_enabled": (True,),
            "final_mosaic_rgb_equalize_gain_clip": ([0.8, 1.25],),
            "existing_master_tiles_rgb_balance_prephase5": (True,),
            "existing_master_tiles_rgb_balance_gain_clip": ([0.9, 1.1],),
            "existing_master_tiles_rgb_balance_min_pixels": (5000,),
            "existing_master_tiles_final_rgb_equalize_gain_clip": ([0.9, 1.1],),
        },
    ),
    OldOptions(
        "replaced",
        "stacking_weighting_method",
        "Weights of tiles are the sums of those of their samples.",
        {
            "enable_tile_weighting": (True,),
            "tile_weight_mode": ("n_frames",),
            "tile_weight_v4_enabled": (True,),
            "tile_weight_v4_curve": ("sqrt",),
            "tile_weight_v4_strength": (1.0,),
            "tile_weight_v4_min": (0.75,),
            "tile_weight_v4_max": (1.35,),
            "tile_weight_v4_residual_penalty_enabled": (False,),
            "tile_weight_v4_residual_penalty_strength": (0.35,),
            "tile_weight_v4_temporal_penalty_enabled": (False,),
            "tile_weight_v4_temporal_penalty_strength": (0.2,),
            "tile_weight_v4_temporal_penalty_hours": (6.0,),
        },
    ),
    OldOptions(
        "replaced",
        "remove_gradient",
        "One model of the sky behind all frames takes the gradients out.",
        {
            "final_mosaic_dbe_enabled": (True,),
            "final_mosaic_dbe_strength": ("normal",),
            "final_mosaic_dbe_obj_k": (3.0,),
            "final_mosaic_dbe_obj_dilate_px": (3,),
            "final_mosaic_dbe_sample_step": (24,),
            "final_mosaic_dbe_smoothing": (0.6,),
        },
    ),
    OldOptions(
        "absent",
        "",
        "Seams are prevented in the science file and not painted over.",
        {
            "visual_seam_heal_enabled": (False,),
            "visual_seam_heal_strength": (0.45,),
            "visual_seam_heal_sigma_small": (24.0,),
            "visual_seam_heal_sigma_large": (96.0,),
            "visual_seam_heal_seam_sigma": (2.5,),
            "visual_seam_heal_max_rel_delta": (0.08,),
            "visual_seam_heal_multiscale_enabled": (False,),
            "visual_seam_heal_multiscale_mid_gain": (0.35,),
            "visual_seam_heal_multiscale_mid_sigma_scale": (0.6,),
            "visual_seam_heal_multiscale_mid_rel_scale": (0.7,),
            "patchwork_suppressor_enabled": (True,),
            "patchwork_suppressor_strength": ("strong",),
            "patchwork_suppressor_sigma_px": (64.0,),
            "patchwork_suppressor_seam_band_px": (320,),
            "patchwork_suppressor_max_delta": (0.3,),
            "patchwork_suppressor_protect_stars": (False,),
            "patchwork_suppressor_only_near_seams": (True,),
        },
    ),
    OldOptions(
        "absent",
        "",
        "There is one science file; pictures are made beside it.",
        {
            "export_aesthetic_fits": (True,),
            "scientific_fits_suffix": ("_science",),
            "aesthetic_fits_suffix": ("_aesthetic",),
            "aesthetic_fits_use_patchwork": (True,),
            "aesthetic_hole_fill_enabled": (True,),
            "aesthetic_hole_fill_max_radius_px": (96,),
            "aesthetic_hole_fill_blend": (0.85,),
            "aesthetic_hole_fill_only_near_seams": (True,),
            "aesthetic_hole_fill_protect_stars_details": (True,),
            "aesthetic_profile_preset": ("strong",),
            "aesthetic_profile_presets": (),
            "sds_enable_final_black_point_equalize": (False,),
            "final_mosaic_black_point_equalize_enabled": (False,),
            "final_mosaic_black_point_percentile": (0.1,),
        },
    ),
    OldOptions(
        "always",
        "",
        "The report tells memory, time and disk of every phase.",
        {
            "enable_resource_telemetry": (False,),
            "resource_telemetry_interval_sec": (1.5,),
            "resource_telemetry_log_to_csv": (True,),
        },
    ),
    OldOptions(
        "replaced",
        "exclude_flagged_frames",
        "Frames are judged by their stars and their sky.",
        {
            "stack_stat_min_finite_frac": (0.02,),
            "stack_stat_min_nonzero_frac": (1e-05,),
            "stack_stat_min_finite_px_per_channel": (4096,),
        },
    ),
)


def changed_old_options(mapping: Mapping[str, Any]) -> list[tuple[OldOptions, dict[str, Any]]]:
    """Return the families that a mapping sets to something else than version 4 did, each with those values.

    Parameters
    ----------
    mapping : mapping
        Values by name, with or without the old ``_config`` suffix; texts of numbers and switches count as such.
    """
    given = {name.removesuffix(_SUFFIX): value for name, value in mapping.items() if value is not None}
    found = []
    for family in OLD_OPTIONS:
        values = {
            key: given[key]
            for key, defaults in family.defaults.items()
            # A key without a known value held what nobody set by hand.
            if key in given and defaults and not any(_same(given[key], default) for default in defaults)
        }
        if values:
            found.append((family, values))
    return found


def _same(value: Any, default: Any) -> bool:
    if isinstance(value, list | tuple) and isinstance(default, list | tuple):
        return len(value) == len(default) and all(map(_same, value, default))
    if isinstance(value, bool) or isinstance(default, bool) or default is None:
        return str(value).strip().lower() == str(default).lower()
    try:
        return float(value) == float(default)
    except (TypeError, ValueError):
        return str(value).strip().lower() == str(default).lower()
