"""Every option of version 4 is an option still, or has a fate that is told; the documents say the same."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from zemosaic_settings import OPTIONS_BY_KEY
from zemosaic_settings.catalogue import ALIASES
from zemosaic_settings.old_options import FATES, OLD_OPTIONS, changed_old_options

ROOT = Path(__file__).resolve().parent.parent.parent
# Keys of the settings files of 4.1 and 4.5.
_TEXT = """
astap_executable_path astap_data_directory_path astap_default_search_radius astap_default_downsample
astap_default_sensitivity astap_max_instances language preferred_gui_backend preferred_gui_backend_explicit
qt_theme_mode qt_main_window_geometry qt_filter_window_geometry qt_main_columns_state qt_main_left_state
input_dir output_dir num_processing_workers stacking_normalize_method stacking_weighting_method
stacking_rejection_algorithm stacking_kappa_low stacking_kappa_high stacking_winsor_limits
stacking_final_combine_method poststack_equalize_rgb apply_radial_weight radial_feather_fraction
radial_shape_power use_gpu_phase5 gpu_id_phase5 gpu_selector final_assembly_method auto_detect_seestar
force_seestar_mode global_wcs_output_path global_wcs_pixelscale_mode global_wcs_padding_percent
global_wcs_res_override global_wcs_orientation global_wcs_autocrop_enabled global_wcs_autocrop_margin_px
sds_mode_default sds_coverage_threshold global_coadd_method global_coadd_k inter_master_merge_enable
inter_master_overlap_threshold inter_master_min_group_size inter_master_stack_method
inter_master_memmap_policy inter_master_local_scale inter_master_max_group
inter_master_photometry_intragroup inter_master_photometry_intersuper inter_master_photometry_clip_sigma
two_pass_coverage_renorm two_pass_cov_sigma_px two_pass_cov_gain_clip solver_method astrometry_local_path
astrometry_api_key save_final_as_uint16 legacy_rgb_cube coadd_use_memmap coadd_memmap_dir
coadd_cleanup_memmap cache_retention assembly_process_workers auto_limit_frames_per_master_tile
winsor_worker_limit winsor_max_frames_per_pass winsor_auto_fallback_on_memory_error
winsor_min_frames_per_pass winsor_memmap_fallback winsor_split_strategy max_raw_per_master_tile
center_out_normalization_p3 center_out_anchor_mode anchor_quality_probe_limit anchor_quality_span_range
anchor_quality_median_clip_sigma enable_poststack_anchor_review poststack_anchor_probe_limit
poststack_anchor_span_range poststack_anchor_median_clip_sigma poststack_anchor_min_improvement
poststack_anchor_use_overlap_affine p3_center_sky_percentile p3_center_robust_clip_sigma
p3_center_preview_size p3_center_min_overlap_fraction intertile_photometric_match intertile_preview_size
intertile_overlap_min intertile_sky_percentile intertile_robust_clip_sigma intertile_global_recenter
force_resolve_existing_wcs intertile_recenter_clip use_auto_intertile match_background_for_final
incremental_feather_parity enable_early_filter apply_master_tile_crop master_tile_crop_percent
quality_crop_enabled quality_crop_band_px quality_crop_k_sigma quality_crop_margin_px quality_gate_enabled
quality_gate_threshold quality_gate_edge_band_px quality_gate_k_sigma quality_gate_erode_px
quality_gate_move_rejects altaz_cleanup_enabled altaz_margin_percent altaz_decay altaz_nanize
altaz_export_alpha_fits altaz_export_alpha_sidecar altaz_alpha_sidecar_format quality_crop_min_run
crop_follow_signal astap_drizzled_fallback_enabled use_existing_master_tiles grid_workers wsc_impl
poststack_rgb_equalize_gain_clip poststack_rgb_equalize_bg_percentile poststack_rgb_equalize_min_samples
poststack_rgb_equalize_min_coverage final_mosaic_rgb_equalize_enabled final_mosaic_rgb_equalize_clip_enabled
final_mosaic_rgb_equalize_gain_clip preview_png_p_low preview_png_p_high preview_png_asinh_a
preview_png_max_dim preview_png_apply_wb visual_seam_heal_enabled visual_seam_heal_strength
visual_seam_heal_sigma_small visual_seam_heal_sigma_large visual_seam_heal_seam_sigma
visual_seam_heal_max_rel_delta visual_seam_heal_multiscale_enabled visual_seam_heal_multiscale_mid_gain
visual_seam_heal_multiscale_mid_sigma_scale visual_seam_heal_multiscale_mid_rel_scale
existing_master_tiles_rgb_balance_prephase5 existing_master_tiles_rgb_balance_gain_clip
existing_master_tiles_rgb_balance_min_pixels existing_master_tiles_anchor_photometry_enabled
existing_master_tiles_anchor_gain_clip existing_master_tiles_final_rgb_equalize_gain_clip
sds_enable_final_rgb_equalize sds_final_rgb_equalize_gain_clip sds_enable_final_black_point_equalize
batch_overlap_pct allow_batch_duplication min_safe_stack target_stack use_gpu_grid gpu_hybrid_vram_guard
phase5_chunk_auto phase5_chunk_mb enable_tile_weighting tile_weight_mode tile_weight_v4_enabled
tile_weight_v4_curve tile_weight_v4_strength tile_weight_v4_min tile_weight_v4_max
tile_weight_v4_residual_penalty_enabled tile_weight_v4_residual_penalty_strength
tile_weight_v4_temporal_penalty_enabled tile_weight_v4_temporal_penalty_strength
tile_weight_v4_temporal_penalty_hours sds_min_batch_size sds_target_batch_size sds_min_coverage_keep
save_display_fits cleanup_temp_artifacts enable_resource_telemetry resource_telemetry_interval_sec
resource_telemetry_log_to_csv parallel_autotune_enabled chunk_profile_mode parallel_target_cpu_load
parallel_target_ram_fraction parallel_gpu_vram_fraction parallel_max_cpu_workers phase3_ram_high_pct
phase3_ram_critical_pct phase3_chunk_scale_high phase3_chunk_scale_critical resume intertile_prune_k
intertile_prune_weight_mode intertile_offset_only_v1 intertile_gain_offset_v2 intertile_gain_prior_lambda
intertile_gain_clip intertile_offset_clip intertile_pair_gain_clip intertile_pair_offset_abs_max
intertile_max_irls_iters intertile_enforce_requested_solver intertile_underconstrained_guard_enabled
intertile_underconstrained_max_pairs intertile_underconstrained_max_active_tiles
intertile_underconstrained_force_mode intertile_underconstrained_gain_clip
intertile_underconstrained_offset_clip intertile_affine_blend patchwork_suppressor_enabled
patchwork_suppressor_strength patchwork_suppressor_sigma_px patchwork_suppressor_seam_band_px
patchwork_suppressor_max_delta patchwork_suppressor_protect_stars patchwork_suppressor_only_near_seams
phase5_alpha_soft_weights phase5_alpha_weight_floor export_aesthetic_fits scientific_fits_suffix
aesthetic_fits_suffix aesthetic_fits_use_patchwork aesthetic_hole_fill_enabled
aesthetic_hole_fill_max_radius_px aesthetic_hole_fill_blend aesthetic_hole_fill_only_near_seams
aesthetic_hole_fill_protect_stars_details aesthetic_profile_preset aesthetic_profile_presets
final_mosaic_dbe_enabled final_mosaic_dbe_strength final_mosaic_black_point_equalize_enabled
final_mosaic_black_point_percentile final_mosaic_dbe_obj_k final_mosaic_dbe_obj_dilate_px
final_mosaic_dbe_sample_step final_mosaic_dbe_smoothing existing_master_tiles_quality_gate_enabled
existing_master_tiles_quality_gate_mode existing_master_tiles_quality_gate_sigma_threshold
existing_master_tiles_quality_gate_ratio_threshold existing_master_tiles_quality_gate_min_valid_frac
altaz_alpha_soft_threshold altaz_nanize_threshold altaz_unknown_policy altaz_min_coverage_abs
altaz_min_coverage_frac altaz_morph_open_px altaz_strict_overlap_crop_enabled
altaz_strict_overlap_crop_alpha_threshold altaz_strict_overlap_crop_min_nonzero_frac
altaz_strict_overlap_crop_bbox_pad_px altaz_strict_overlap_crop_min_size_px stack_stat_min_finite_frac
stack_stat_min_nonzero_frac stack_stat_min_finite_px_per_channel
"""
NAMES = _TEXT.split()


def test_every_option_of_version_4_is_one_or_has_a_fate():
    old = [key for family in OLD_OPTIONS for key in family.defaults]
    assert len(old) == len(set(old))
    assert set(NAMES) - set(old) - set(OPTIONS_BY_KEY) - set(ALIASES) == set()
    assert set(old) - set(NAMES) == set()
    assert set(old) & (set(OPTIONS_BY_KEY) | set(ALIASES)) == set()


def test_fates_name_what_there_is():
    for family in OLD_OPTIONS:
        assert family.fate in FATES
        assert (family.instead in OPTIONS_BY_KEY) is (family.fate == "replaced"), family
        assert family.why.endswith(".")


def test_the_table_of_the_documents_is_up_to_date():
    spec = importlib.util.spec_from_file_location(
        "old_options_table", ROOT / "tools" / "old_options_table.py"
    )
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    path = ROOT / "docs" / "from_zemosaic_4.md"
    text = path.read_text(encoding="utf-8")
    assert tool.with_table(text) == text, "run: python -m tools.old_options_table docs/from_zemosaic_4.md"
    assert f"Of the {len(NAMES)} options" in text
    with pytest.raises(ValueError, match="needs the lines"):
        tool.with_table("nothing")


def test_what_version_4_did_by_itself_is_not_told():
    defaults = {key: values[0] for family in OLD_OPTIONS for key, values in family.defaults.items() if values}
    assert changed_old_options(defaults) == []
    assert changed_old_options({"two_pass_coverage_renorm": True, "astap_default_sensitivity": "100"}) == []
    assert (
        changed_old_options({"stacking_kappa_low": 1.0, "nobody_knows": 3, "sds_coverage_threshold": None})
        == []
    )


@pytest.mark.parametrize(
    ("given", "fate", "instead"),
    [
        ({"batch_overlap_pct": 20}, "absent", ""),
        ({"inter_master_photometry_intersuper_config": False}, "replaced", "intertile_photometric_match"),
        ({"two_pass_cov_gain_clip": [0.5, 2.0]}, "always", ""),
        ({"phase5_chunk_mb": 512}, "automatic", ""),
    ],
)
def test_what_was_changed_is_told_with_what_stands_for_it(given, fate, instead):
    ((family, values),) = changed_old_options(given)
    assert (family.fate, family.instead) == (fate, instead)
    assert list(values.values()) == list(given.values())
    assert family.text_key == f"old_option_{fate}"
