"""Every option of ZeMosaic, declared once: default, limits, unit, group, level and text key.

An option that is not built is not declared. Names and defaults follow the settings files of ZeMosaic 4, so
that an existing file keeps its meaning; `Option.aliases` are other names found in such files and calls,
`Option.old_values` are values that exist no more and what stands for them now.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from zemosaic_settings.option import GROUPS, Option
from zemosaic_settings.picture_options import CROP_OPTIONS, PICTURE_OPTIONS
from zemosaic_settings.tile_options import TILE_OPTIONS

__all__ = ["ALIASES", "OPTIONS", "OPTIONS_BY_KEY", "options_in_group"]

# The texts are a room of their own that settings do not know; the names of its files say which languages there are.
_LANGUAGES = tuple(
    sorted({"en", *(path.stem for path in (Path(__file__).parent.parent / "locales").glob("*.json"))})
)

_FOLDERS = (
    Option(
        "input_dir",
        "folder",
        "",
        "folders",
        "basic",
        mirrors=("input_folder",),
    ),
    Option(
        "output_dir",
        "folder",
        "",
        "folders",
        "basic",
        mirrors=("output_folder",),
    ),
    Option("scan_recursive", "bool", True, "folders"),
    Option("use_existing_master_tiles", "bool", False, "folders", "basic"),
    Option("tiles_dir", "folder", "", "folders", "basic", aliases=("tiles",)),
    Option("grid_mode", "choice", "auto", "folders", choices=("auto", "off")),
    Option(
        "resume",
        "choice",
        "auto",
        "folders",
        choices=("off", "auto"),
        old_values=(("force", "auto"),),
    ),
    Option(
        "cache_retention",
        "choice",
        "keep",
        "folders",
        choices=("run_end", "keep"),
        old_values=(("per_tile", "run_end"),),
    ),
)

_SOLVER = (
    Option(
        "solver_method",
        "choice",
        "AUTO",
        "solver",
        "basic",
        choices=("AUTO", "EMBEDDED", "ASTAP", "ASTROMETRY", "ANSVR", "NONE"),
        aliases=("solver_choice",),
    ),
    Option(
        "astap_executable_path",
        "file",
        "",
        "solver",
        aliases=("astap_exe_path",),
    ),
    Option(
        "astap_data_directory_path",
        "folder",
        "",
        "solver",
        aliases=("astap_data_dir_param", "astap_data_dir"),
    ),
    Option(
        "astap_default_search_radius",
        "float",
        3.0,
        "solver",
        minimum=0.1,
        maximum=180.0,
        unit="deg",
        step=0.5,
        aliases=("astap_search_radius", "astap_search_radius_deg"),
    ),
    Option(
        "astap_default_downsample",
        "int",
        0,
        "solver",
        "expert",
        minimum=0,
        maximum=4,
        step=1,
        special="auto",
        aliases=("astap_downsample",),
    ),
    Option("astap_max_instances", "int", 1, "solver", "expert", minimum=1, maximum=16, step=1),
    Option(
        "astrometry_local_path",
        "file",
        "",
        "solver",
        aliases=("ansvr_config_path", "ansvr_path"),
    ),
    Option("astrometry_api_key", "secret", "", "solver", aliases=("api_key",)),
    Option(
        "astrometry_timeout",
        "int",
        60,
        "solver",
        minimum=5,
        maximum=3600,
        unit="s",
        step=10,
        aliases=("timeout",),
    ),
    Option("force_resolve_existing_wcs", "bool", False, "solver"),
    Option(
        "solve_tolerance_px",
        "float",
        0.3,
        "solver",
        "expert",
        minimum=0.05,
        maximum=5.0,
        unit="px",
        step=0.05,
    ),
)

_QUALITY = (
    Option("hot_pixel_correction", "bool", True, "quality"),
    Option("exclude_flagged_frames", "bool", True, "quality", "basic"),
    Option(
        "frame_quality_sigma",
        "float",
        4.0,
        "quality",
        minimum=1.0,
        maximum=20.0,
        unit="sigma",
        step=0.5,
    ),
)

_CALIBRATION = (
    Option("calibration", "choice", "auto", "calibration", "basic", choices=("auto", "off")),
    Option("darks_dir", "folder", "", "calibration", "basic", aliases=("darks",)),
    Option("flats_dir", "folder", "", "calibration", "basic", aliases=("flats",)),
    Option("bias_dir", "folder", "", "calibration", "basic", aliases=("bias",)),
    Option(
        "calibration_temperature_tolerance",
        "float",
        5.0,
        "calibration",
        minimum=0.1,
        maximum=40.0,
        unit="celsius",
        step=1.0,
    ),
)

_GROUPS = (
    Option("split_by_filter", "bool", False, "groups", "basic"),
    Option(
        "cluster_panel_threshold",
        "float",
        0.05,
        "groups",
        minimum=0.0,
        maximum=5.0,
        unit="deg",
        step=0.01,
        special="auto",
        aliases=("cluster_threshold",),
    ),
    Option("cluster_target_groups", "int", 0, "groups", minimum=0, maximum=999, step=1, special="auto"),
    Option(
        "cluster_orientation_split_deg",
        "float",
        0.0,
        "groups",
        minimum=0.0,
        maximum=180.0,
        unit="deg",
        step=1.0,
        special="off",
    ),
    Option("cluster_min_frames", "int", 8, "groups", minimum=0, maximum=1000, step=1, special="off"),
    Option(
        "max_raw_per_master_tile",
        "int",
        0,
        "groups",
        minimum=0,
        maximum=100_000,
        step=50,
        special="unlimited",
    ),
)

_STACKING = (
    Option(
        "stacking_normalize_method",
        "choice",
        "linear_fit",
        "stacking",
        choices=("none", "linear_fit", "sky_mean"),
        aliases=("stack_norm_method",),
    ),
    Option(
        "stacking_weighting_method",
        "choice",
        "noise_variance",
        "stacking",
        choices=("none", "noise_variance", "noise_fwhm"),
        aliases=("stack_weight_method",),
    ),
    Option(
        "stacking_rejection_algorithm",
        "choice",
        "winsorized_sigma_clip",
        "stacking",
        "basic",
        choices=("none", "kappa_sigma", "winsorized_sigma_clip", "linear_fit_clip"),
        aliases=("stack_reject_algo",),
    ),
    Option(
        "stacking_kappa_low",
        "float",
        3.0,
        "stacking",
        minimum=0.1,
        maximum=10.0,
        unit="sigma",
        step=0.1,
        aliases=("stack_kappa_low",),
    ),
    Option(
        "stacking_kappa_high",
        "float",
        3.0,
        "stacking",
        minimum=0.1,
        maximum=10.0,
        unit="sigma",
        step=0.1,
        aliases=("stack_kappa_high",),
    ),
    Option(
        "stacking_winsor_limits",
        "pair",
        "0.05,0.05",
        "stacking",
        "expert",
        minimum=0.0,
        maximum=0.49,
        unit="fraction",
        aliases=("parsed_winsor_limits",),
    ),
    Option(
        "stacking_final_combine_method",
        "choice",
        "mean",
        "stacking",
        choices=("mean", "median"),
        aliases=("stack_final_combine",),
    ),
    Option("resample_kernel", "choice", "lanczos3", "stacking", "expert", choices=("bilinear", "lanczos3")),
    Option("cfa_refine", "choice", "auto", "stacking", choices=("auto", "off")),
    Option("poststack_equalize_rgb", "bool", False, "stacking"),
    Option("apply_radial_weight", "bool", False, "stacking"),
    Option(
        "radial_feather_fraction",
        "float",
        0.8,
        "stacking",
        "expert",
        minimum=0.1,
        maximum=1.0,
        unit="fraction",
        step=0.05,
    ),
    Option("radial_shape_power", "float", 2.0, "stacking", "expert", minimum=0.1, maximum=10.0, step=0.1),
    Option(
        "min_radial_weight_floor",
        "float",
        0.0,
        "stacking",
        "expert",
        minimum=0.0,
        maximum=1.0,
        step=0.05,
    ),
)

_GRID = (
    Option(
        "global_wcs_pixelscale_mode",
        "choice",
        "median",
        "grid",
        choices=("min", "median", "max"),
    ),
    Option(
        "global_wcs_orientation",
        "choice",
        "north_up",
        "grid",
        "basic",
        choices=("north_up", "median_pc"),
    ),
    Option("drizzle_scale", "choice", "1", "grid", choices=("1", "1.5", "2")),
    Option(
        "canvas_max_megapixels",
        "float",
        2000.0,
        "grid",
        minimum=1.0,
        maximum=100_000.0,
        unit="mpx",
        step=100.0,
    ),
    Option("canvas_exclude_outliers", "bool", True, "grid"),
)

_ASSEMBLY = (
    Option(
        "route",
        "choice",
        "auto",
        "assembly",
        "basic",
        choices=("auto", "direct", "panels", "sds"),
        aliases=("sds_mode_default", "sds_mode"),
        old_values=(
            # A switch of version 4.
            ("true", "sds"),
            ("false", "auto"),
            ("mosaic_first", "direct"),
            ("mosaic-first", "direct"),
            ("seestar", "direct"),
            ("classic", "panels"),
        ),
    ),
    Option("sky_model", "choice", "full", "assembly", choices=("full", "planes", "none")),
    Option("remove_gradient", "bool", True, "assembly", "basic"),
    Option("observer_site", "text", "", "assembly"),
    Option(
        "final_assembly_method",
        "choice",
        "reproject_coadd",
        "assembly",
        "expert",
        choices=("reproject_coadd", "incremental"),
    ),
    Option("intertile_photometric_match", "bool", True, "assembly", "basic"),
    Option("intertile_gradient", "bool", True, "assembly"),
    Option("intertile_gradient_order", "int", 2, "assembly", "expert", minimum=1, maximum=2, step=1),
    Option("match_background_for_final", "bool", True, "assembly"),
    Option(
        "tile_feather_px",
        "int",
        96,
        "assembly",
        minimum=0,
        maximum=4096,
        unit="px",
        step=16,
        special="off",
    ),
    *CROP_OPTIONS,
)

_OUTPUT = (
    Option("save_final_as_uint16", "bool", False, "output", "basic"),
    Option("save_viewer_tiff", "bool", False, "output", "basic"),
    Option("save_variance", "bool", False, "output"),
    *PICTURE_OPTIONS,
    Option(
        "preview_png_p_low",
        "float",
        1.0,
        "output",
        "expert",
        minimum=0.0,
        maximum=50.0,
        unit="percent",
        step=0.5,
    ),
    Option(
        "preview_png_p_high",
        "float",
        99.9,
        "output",
        "expert",
        minimum=50.0,
        maximum=100.0,
        unit="percent",
        step=0.1,
    ),
    Option("preview_png_asinh_a", "float", 12.0, "output", minimum=0.001, maximum=1000.0, step=1.0),
    Option(
        "preview_png_max_dim",
        "int",
        3200,
        "output",
        minimum=64,
        maximum=32_768,
        unit="px",
        step=100,
    ),
    Option("preview_png_apply_wb", "bool", True, "output"),
    Option("colour_calibration", "choice", "auto", "output", "basic", choices=("auto", "off")),
    Option("white_reference", "choice", "g2v", "output", choices=("g2v", "average_spiral", "none")),
    Option("save_calibrated", "bool", False, "output"),
)

_PERFORMANCE = (
    Option(
        "use_gpu_phase5",
        "bool",
        True,
        "performance",
        "basic",
        mirrors=("stack_use_gpu", "use_gpu_stack"),
        aliases=("use_gpu",),
    ),
    Option("gpu_mode", "choice", "auto", "performance", choices=("auto", "off", "require")),
    Option(
        "gpu_id_phase5",
        "int",
        -1,
        "performance",
        minimum=-1,
        maximum=63,
        step=1,
        special="best",
    ),
    Option("gpu_selector", "text", "", "performance", "expert"),
    Option(
        "gpu_memory_mb",
        "int",
        0,
        "performance",
        minimum=0,
        maximum=1_048_576,
        unit="mb",
        step=256,
        special="auto",
    ),
    Option(
        "memory_limit_mb",
        "int",
        0,
        "performance",
        minimum=0,
        maximum=16_777_216,
        unit="mb",
        step=256,
        special="auto",
    ),
    Option(
        "stack_ram_budget_gb",
        "float",
        0.0,
        "performance",
        minimum=0.0,
        maximum=4096.0,
        unit="gb",
        step=0.5,
        special="auto",
    ),
    Option(
        "winsor_max_frames_per_pass",
        "int",
        0,
        "performance",
        "expert",
        minimum=0,
        maximum=100_000,
        step=10,
        special="auto",
    ),
    Option(
        "winsor_worker_limit",
        "int",
        0,
        "performance",
        "expert",
        minimum=0,
        maximum=1024,
        step=1,
        special="auto",
    ),
    Option(
        "num_processing_workers",
        "int",
        -1,
        "performance",
        minimum=-1,
        maximum=1024,
        step=1,
        special="auto",
        aliases=("num_base_workers",),
    ),
    Option("executor", "text", "local", "performance"),
    Option("map_path", "text", "", "performance", "expert"),
)

_INTERFACE = (
    Option(
        "language",
        "choice",
        "en",
        "interface",
        "basic",
        choices=_LANGUAGES,
    ),
    Option(
        "logging_level",
        "choice",
        "INFO",
        "interface",
        choices=("ERROR", "WARN", "INFO", "DEBUG"),
        old_values=(
            ("warning", "WARN"),
            ("critical", "ERROR"),
            ("info_detail", "DEBUG"),
            ("debug_detail", "DEBUG"),
            ("debug_very_detail", "DEBUG"),
        ),
    ),
    Option(
        "qt_theme_mode",
        "choice",
        "system",
        "interface",
        "basic",
        choices=("system", "dark", "light"),
    ),
    Option("preferred_gui_backend", "choice", "qt", "interface", choices=("qt", "tk")),
    Option("qt_main_window_geometry", "geometry", None, "interface", "expert", in_forms=False),
    Option("qt_filter_window_geometry", "geometry", None, "interface", "expert", in_forms=False),
)

OPTIONS: tuple[Option, ...] = (
    *_FOLDERS,
    *_SOLVER,
    *_QUALITY,
    *_CALIBRATION,
    *_GROUPS,
    *_STACKING,
    *_GRID,
    *_ASSEMBLY,
    *TILE_OPTIONS,
    *_OUTPUT,
    *_PERFORMANCE,
    *_INTERFACE,
)
"""Every option, in the order of the forms."""

OPTIONS_BY_KEY: Mapping[str, Option] = MappingProxyType({option.key: option for option in OPTIONS})

ALIASES: Mapping[str, str] = MappingProxyType(
    {alias: option.key for option in OPTIONS for alias in (*option.mirrors, *option.aliases)}
)
"""Other name -> key of the option it stands for."""


def options_in_group(group: str, *, in_forms: bool = True) -> tuple[Option, ...]:
    """Return the options of one of `GROUPS` in order; with ``in_forms`` only those a form shows."""
    if group not in GROUPS:
        raise ValueError(f"no option group is called {group!r}; there are {', '.join(GROUPS)}")
    return tuple(o for o in OPTIONS if o.group == group and (o.in_forms or not in_forms))
