"""All option values of a run, checked and frozen: `Settings`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from zemosaic_core.errors import SettingsError
from zemosaic_settings.catalogue import ALIASES, OPTIONS, OPTIONS_BY_KEY
from zemosaic_settings.executor import ExecutorChoice, PathMap, executor_choice, path_map
from zemosaic_settings.old_options import OLD_OPTIONS
from zemosaic_settings.values import parse_value, split_pair

__all__ = ["Settings", "canonical_values", "conflicting_names", "misspelt_names"]

_OLD_SUFFIX = "_config"

Geometry = tuple[int, int, int, int]


def _declared(key: str) -> Any:
    """Return the pydantic field of an option; everything but the type comes from the catalogue."""
    option = OPTIONS_BY_KEY[key]
    schema: dict[str, Any] = {"group": option.group, "level": option.level}
    if option.choices:
        schema["enum"] = list(option.choices)
    if option.unit:
        schema["unit"] = option.unit
    limits = {}
    if option.type in ("int", "float"):
        limits = {"ge": option.minimum, "le": option.maximum}
    shown = option.type != "secret"
    return Field(default=option.default, json_schema_extra=schema, repr=shown, **limits)


class Settings(BaseModel):
    """Every option of the catalogue as an attribute of the same name.

    Make one with `from_mapping` (a file, a command line, another program's keywords) or `updated`; both check
    every value. An object cannot be changed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    input_dir: str = _declared("input_dir")
    output_dir: str = _declared("output_dir")
    scan_recursive: bool = _declared("scan_recursive")
    use_existing_master_tiles: bool = _declared("use_existing_master_tiles")
    tiles_dir: str = _declared("tiles_dir")
    grid_mode: str = _declared("grid_mode")
    resume: str = _declared("resume")
    cache_retention: str = _declared("cache_retention")

    solver_method: str = _declared("solver_method")
    astap_executable_path: str = _declared("astap_executable_path")
    astap_data_directory_path: str = _declared("astap_data_directory_path")
    astap_default_search_radius: float = _declared("astap_default_search_radius")
    astap_default_downsample: int = _declared("astap_default_downsample")
    astap_max_instances: int = _declared("astap_max_instances")
    astrometry_local_path: str = _declared("astrometry_local_path")
    astrometry_api_key: str = _declared("astrometry_api_key")
    astrometry_timeout: int = _declared("astrometry_timeout")
    force_resolve_existing_wcs: bool = _declared("force_resolve_existing_wcs")
    solve_tolerance_px: float = _declared("solve_tolerance_px")

    hot_pixel_correction: bool = _declared("hot_pixel_correction")
    exclude_flagged_frames: bool = _declared("exclude_flagged_frames")
    frame_quality_sigma: float = _declared("frame_quality_sigma")

    calibration: str = _declared("calibration")
    darks_dir: str = _declared("darks_dir")
    flats_dir: str = _declared("flats_dir")
    bias_dir: str = _declared("bias_dir")
    calibration_temperature_tolerance: float = _declared("calibration_temperature_tolerance")

    split_by_filter: bool = _declared("split_by_filter")
    cluster_panel_threshold: float = _declared("cluster_panel_threshold")
    cluster_target_groups: int = _declared("cluster_target_groups")
    cluster_orientation_split_deg: float = _declared("cluster_orientation_split_deg")
    cluster_min_frames: int = _declared("cluster_min_frames")
    max_raw_per_master_tile: int = _declared("max_raw_per_master_tile")

    stacking_normalize_method: str = _declared("stacking_normalize_method")
    stacking_weighting_method: str = _declared("stacking_weighting_method")
    stacking_rejection_algorithm: str = _declared("stacking_rejection_algorithm")
    stacking_kappa_low: float = _declared("stacking_kappa_low")
    stacking_kappa_high: float = _declared("stacking_kappa_high")
    stacking_winsor_limits: str = _declared("stacking_winsor_limits")
    stacking_final_combine_method: str = _declared("stacking_final_combine_method")
    resample_kernel: str = _declared("resample_kernel")
    cfa_refine: str = _declared("cfa_refine")
    poststack_equalize_rgb: bool = _declared("poststack_equalize_rgb")
    apply_radial_weight: bool = _declared("apply_radial_weight")
    radial_feather_fraction: float = _declared("radial_feather_fraction")
    radial_shape_power: float = _declared("radial_shape_power")
    min_radial_weight_floor: float = _declared("min_radial_weight_floor")

    global_wcs_pixelscale_mode: str = _declared("global_wcs_pixelscale_mode")
    global_wcs_orientation: str = _declared("global_wcs_orientation")
    drizzle_scale: str = _declared("drizzle_scale")
    canvas_max_megapixels: float = _declared("canvas_max_megapixels")
    canvas_exclude_outliers: bool = _declared("canvas_exclude_outliers")

    route: str = _declared("route")
    sky_model: str = _declared("sky_model")
    remove_gradient: bool = _declared("remove_gradient")
    observer_site: str = _declared("observer_site")
    final_assembly_method: str = _declared("final_assembly_method")
    intertile_photometric_match: bool = _declared("intertile_photometric_match")
    intertile_gradient: bool = _declared("intertile_gradient")
    intertile_gradient_order: int = _declared("intertile_gradient_order")
    match_background_for_final: bool = _declared("match_background_for_final")
    tile_feather_px: int = _declared("tile_feather_px")
    crop: str = _declared("crop")
    crop_science: bool = _declared("crop_science")

    sds_coverage_threshold: float = _declared("sds_coverage_threshold")
    sds_min_batch_size: int = _declared("sds_min_batch_size")
    sds_target_batch_size: int = _declared("sds_target_batch_size")
    sds_min_coverage_keep: float = _declared("sds_min_coverage_keep")
    leave_out_tiles: str = _declared("leave_out_tiles")
    inter_master_merge_enable: bool = _declared("inter_master_merge_enable")
    inter_master_overlap_threshold: float = _declared("inter_master_overlap_threshold")
    inter_master_min_group_size: int = _declared("inter_master_min_group_size")
    inter_master_max_group: int = _declared("inter_master_max_group")
    inter_master_stack_method: str = _declared("inter_master_stack_method")
    inter_master_photometry_intragroup: bool = _declared("inter_master_photometry_intragroup")
    existing_master_tiles_quality_gate_enabled: bool = _declared("existing_master_tiles_quality_gate_enabled")
    existing_master_tiles_quality_gate_mode: str = _declared("existing_master_tiles_quality_gate_mode")
    existing_master_tiles_quality_gate_sigma_threshold: float = _declared(
        "existing_master_tiles_quality_gate_sigma_threshold"
    )
    existing_master_tiles_quality_gate_ratio_threshold: float = _declared(
        "existing_master_tiles_quality_gate_ratio_threshold"
    )
    existing_master_tiles_quality_gate_min_valid_frac: float = _declared(
        "existing_master_tiles_quality_gate_min_valid_frac"
    )
    quality_crop_enabled: bool = _declared("quality_crop_enabled")
    quality_crop_band_px: int = _declared("quality_crop_band_px")
    quality_crop_k_sigma: float = _declared("quality_crop_k_sigma")
    quality_crop_margin_px: int = _declared("quality_crop_margin_px")
    quality_crop_min_run: int = _declared("quality_crop_min_run")
    altaz_cleanup_enabled: bool = _declared("altaz_cleanup_enabled")
    altaz_margin_percent: float = _declared("altaz_margin_percent")
    altaz_decay: float = _declared("altaz_decay")
    altaz_min_coverage_abs: float = _declared("altaz_min_coverage_abs")
    altaz_min_coverage_frac: float = _declared("altaz_min_coverage_frac")
    altaz_morph_open_px: int = _declared("altaz_morph_open_px")
    altaz_export_alpha_fits: bool = _declared("altaz_export_alpha_fits")
    quality_gate_enabled: bool = _declared("quality_gate_enabled")
    quality_gate_threshold: float = _declared("quality_gate_threshold")
    quality_gate_edge_band_px: int = _declared("quality_gate_edge_band_px")
    quality_gate_k_sigma: float = _declared("quality_gate_k_sigma")
    quality_gate_erode_px: int = _declared("quality_gate_erode_px")
    quality_gate_move_rejects: bool = _declared("quality_gate_move_rejects")

    save_final_as_uint16: bool = _declared("save_final_as_uint16")
    save_viewer_tiff: bool = _declared("save_viewer_tiff")
    save_variance: bool = _declared("save_variance")
    picture_style: str = _declared("picture_style")
    picture_black: float = _declared("picture_black")
    picture_mid: float = _declared("picture_mid")
    picture_white: float = _declared("picture_white")
    picture_saturation: float = _declared("picture_saturation")
    picture_flatten: bool = _declared("picture_flatten")
    save_formats: str = _declared("save_formats")
    astrobin_filters: str = _declared("astrobin_filters")
    save_annotation: bool = _declared("save_annotation")
    save_zoom: bool = _declared("save_zoom")
    save_hips: bool = _declared("save_hips")
    preview_png_p_low: float = _declared("preview_png_p_low")
    preview_png_p_high: float = _declared("preview_png_p_high")
    preview_png_asinh_a: float = _declared("preview_png_asinh_a")
    preview_png_max_dim: int = _declared("preview_png_max_dim")
    preview_png_apply_wb: bool = _declared("preview_png_apply_wb")
    colour_calibration: str = _declared("colour_calibration")
    white_reference: str = _declared("white_reference")
    save_calibrated: bool = _declared("save_calibrated")

    use_gpu_phase5: bool = _declared("use_gpu_phase5")
    gpu_mode: str = _declared("gpu_mode")
    gpu_id_phase5: int = _declared("gpu_id_phase5")
    gpu_selector: str = _declared("gpu_selector")
    gpu_memory_mb: int = _declared("gpu_memory_mb")
    memory_limit_mb: int = _declared("memory_limit_mb")
    stack_ram_budget_gb: float = _declared("stack_ram_budget_gb")
    winsor_max_frames_per_pass: int = _declared("winsor_max_frames_per_pass")
    winsor_worker_limit: int = _declared("winsor_worker_limit")
    num_processing_workers: int = _declared("num_processing_workers")
    executor: str = _declared("executor")
    map_path: str = _declared("map_path")

    language: str = _declared("language")
    logging_level: str = _declared("logging_level")
    qt_theme_mode: str = _declared("qt_theme_mode")
    preferred_gui_backend: str = _declared("preferred_gui_backend")
    qt_main_window_geometry: Geometry | None = _declared("qt_main_window_geometry")
    qt_filter_window_geometry: Geometry | None = _declared("qt_filter_window_geometry")

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], *, strict_unknown: bool = False) -> Self:
        """Return checked settings; what the mapping does not name keeps its default.

        Parameters
        ----------
        mapping : mapping
            Option values under their own key, an alias, or either with the old ``_config`` suffix. ``None``
            means "not given".
        strict_unknown : bool
            Refuse a name that no option has, instead of leaving it aside.

        Raises
        ------
        SettingsError
            A value is not allowed, or a name is unknown; one line says which and what is allowed.
        """
        known, unknown = canonical_values(mapping)
        if strict_unknown and unknown:
            raise _unknown_option(unknown[0])
        values = {key: parse_value(OPTIONS_BY_KEY[key], value) for key, value in known.items()}
        settings = cls(**values)
        settings._check_together()
        return settings

    def updated(self, changes: Mapping[str, Any], *, strict_unknown: bool = True) -> Self:
        """Return settings with some values changed; names are accepted as in `from_mapping`.

        Raises
        ------
        SettingsError
            As in `from_mapping`.
        """
        conflicts = conflicting_names(changes)
        if conflicts:
            raise conflicts[0]
        known, unknown = canonical_values(changes)
        if strict_unknown and unknown:
            raise _unknown_option(unknown[0])
        return self.from_mapping({**self.to_mapping(), **known})

    def to_mapping(self) -> dict[str, Any]:
        """Return key -> value for every option, JSON-serialisable."""
        return self.model_dump(mode="json")

    @property
    def winsor_limits(self) -> tuple[float, float]:
        """Fractions winsorized at the low and at the high end, each in [0, 0.5)."""
        return split_pair(self.stacking_winsor_limits)

    @property
    def gpu_choice(self) -> str:
        """The card asked for as the policy takes it: its CUDA number, ``~`` and a name wished for, or empty.

        A name may come from a settings file that moved here with its owner's old card; it never stops a run.
        """
        if self.gpu_id_phase5 >= 0:
            return str(self.gpu_id_phase5)
        if self._names_no_card:
            return ""
        return f"~{self.gpu_selector.strip()}" if self.gpu_selector.strip() else ""

    @property
    def asked_gpu_mode(self) -> str:
        """``off``, ``auto`` or ``require``: what the switch, the mode and the name of the card say together.

        Files of earlier versions switch the card off by the name "CPU (no GPU)".
        """
        return self.gpu_mode if self.use_gpu_phase5 and not self._names_no_card else "off"

    @property
    def _names_no_card(self) -> bool:
        return self.gpu_id_phase5 < 0 and self.gpu_selector.strip().lower().split("(")[0].strip() == "cpu"

    @property
    def executor_choice(self) -> ExecutorChoice:
        """Where the run computes."""
        return executor_choice(self.executor)

    @property
    def path_map(self) -> PathMap:
        """How the other machines of a cluster name the folders of this one."""
        return path_map(self.map_path)

    def _check_together(self) -> None:
        # Reading them refuses what is not allowed.
        _ = self.executor_choice, self.path_map
        if self.preview_png_p_low >= self.preview_png_p_high:
            raise SettingsError(
                "settings_not_below",
                f"preview_png_p_low = {self.preview_png_p_low:g} is not allowed; allowed is a number below "
                f"preview_png_p_high = {self.preview_png_p_high:g}",
                option="preview_png_p_low",
                value=self.preview_png_p_low,
                other="preview_png_p_high",
                other_value=self.preview_png_p_high,
            )
        if self.gpu_mode == "require" and self.asked_gpu_mode == "off":
            raise SettingsError(
                "settings_gpu_contradiction",
                "gpu_mode = require is not allowed with use_gpu_phase5 = false or gpu_selector = CPU; allowed are "
                "auto and off",
                option="gpu_mode",
                value="require",
            )


def canonical_values(mapping: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Sort a mapping into known options under their own key, and the names that no option has.

    Of several names of one option the option's own key wins, then the aliases in the order of the catalogue.
    ``None``, and an empty text where a text is no value, count as not given.
    """
    given: dict[str, Any] = {}
    unknown = []
    for name, value in mapping.items():
        plain = _without_suffix(name)
        if plain is None:
            unknown.append(name)
        elif value is not None and plain not in given:
            given[plain] = value
    known = {}
    for option in OPTIONS:
        texts = option.type in ("text", "folder", "file", "secret")
        values = [given[name] for name in option.all_names if name in given]
        filled = [value for value in values if value != ""]
        if filled:
            known[option.key] = filled[0]
        elif values and texts:
            known[option.key] = ""
    return known, tuple(unknown)


def conflicting_names(mapping: Mapping[str, Any]) -> tuple[SettingsError, ...]:
    """Return the options that a mapping gives different values under several of their names.

    One value is used all the same (see `canonical_values`); nobody shall have to guess which.
    """
    given: dict[str, Any] = {}
    for name, value in mapping.items():
        plain = _without_suffix(name)
        if plain is not None and value is not None and value != "":
            given.setdefault(plain, value)
    found = []
    for option in OPTIONS:
        names = [name for name in option.all_names if name in given]
        try:
            parsed = [parse_value(option, given[name]) for name in names]
        except SettingsError:
            continue  # told where values are checked
        for name, value in zip(names[1:], parsed[1:], strict=True):
            if value != parsed[0]:
                found.append(
                    SettingsError(
                        "settings_names_differ",
                        f"{names[0]} = {parsed[0]} and {name} = {value} are one setting; the former is used",
                        option=names[0],
                        value=parsed[0],
                        other=name,
                        other_value=value,
                    )
                )
    return tuple(found)


def misspelt_names(names: Iterable[str]) -> tuple[SettingsError, ...]:
    """Return the names that are nearly those of options, and belong to no option of version 4 either.

    Keys that nobody knows may be those of another program; one letter off, somebody expects them to do something.
    """
    old = {key for family in OLD_OPTIONS for key in family.defaults}
    wanted = [name for name in names if name.removesuffix(_OLD_SUFFIX) not in old]
    return tuple(_unknown_option(name) for name in wanted if _nearest(name, OPTIONS_BY_KEY, cutoff=0.9))


def _without_suffix(name: str) -> str | None:
    for candidate in (name, name.removesuffix(_OLD_SUFFIX)):
        if candidate in OPTIONS_BY_KEY or candidate in ALIASES:
            return candidate
    return None


def _unknown_option(name: str) -> SettingsError:
    near = _nearest(name, (*OPTIONS_BY_KEY, *ALIASES))
    hint = f"; did you mean {near}?" if near else ""
    key = "settings_unknown_nearest" if near else "settings_unknown"
    return SettingsError(key, f"no option is called {name!r}{hint}", option=name, nearest=near)


def _nearest(name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=cutoff)
    return ALIASES.get(found[0], found[0]) if found else ""
