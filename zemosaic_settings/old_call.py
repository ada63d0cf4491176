"""How callers written for ZeMosaic 4 start a run: arguments by position, and keywords that are no options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any

from zemosaic_core.errors import SettingsError

__all__ = ["POSITIONS", "TILE_POSITIONS", "OldCall", "read_call", "read_tile_call", "with_callback_place"]

_CALLBACK = "progress_callback"
# The order of versions 4.1 and 4.5, in which names of options may end in `_config`.
POSITIONS = tuple(
    [
        "input_folder",
        "output_folder",
        "astap_exe_path",
        "astap_data_dir_param",
        "astap_search_radius",
        "astap_downsample",
        "astap_sensitivity",
        "cluster_threshold",
        "cluster_target_groups",
        "cluster_orientation_split_deg",
        "progress_callback",
        "stack_ram_budget_gb",
        "stack_norm_method",
        "stack_weight_method",
        "stack_reject_algo",
        "stack_kappa_low",
        "stack_kappa_high",
        "parsed_winsor_limits",
        "stack_final_combine",
        "poststack_equalize_rgb",
        "apply_radial_weight",
        "radial_feather_fraction",
        "radial_shape_power",
        "min_radial_weight_floor",
        "final_assembly_method",
        "inter_master_merge_enable",
        "inter_master_overlap_threshold",
        "inter_master_min_group_size",
        "inter_master_stack_method",
        "inter_master_memmap_policy",
        "inter_master_local_scale",
        "inter_master_max_group",
        "num_base_workers",
        "apply_master_tile_crop",
        "master_tile_crop_percent",
        "quality_crop_enabled",
        "quality_crop_band_px",
        "quality_crop_k_sigma",
        "quality_crop_margin_px",
        "quality_crop_min_run",
        "altaz_cleanup_enabled",
        "altaz_margin_percent",
        "altaz_decay",
        "altaz_nanize",
        "quality_gate_enabled",
        "quality_gate_threshold",
        "quality_gate_edge_band_px",
        "quality_gate_k_sigma",
        "quality_gate_erode_px",
        "quality_gate_move_rejects",
        "save_final_as_uint16",
        "legacy_rgb_cube",
        "coadd_use_memmap",
        "coadd_memmap_dir",
        "coadd_cleanup_memmap",
        "assembly_process_workers",
        "auto_limit_frames_per_master_tile",
        "winsor_max_frames_per_pass",
        "winsor_worker_limit",
        "max_raw_per_master_tile",
        "intertile_photometric_match",
        "intertile_preview_size",
        "intertile_overlap_min",
        "intertile_sky_percentile",
        "intertile_robust_clip_sigma",
        "intertile_global_recenter",
        "intertile_recenter_clip",
        "use_auto_intertile",
        "match_background_for_final",
        "incremental_feather_parity",
        "two_pass_coverage_renorm",
        "two_pass_cov_sigma_px",
        "two_pass_cov_gain_clip",
        "center_out_normalization_p3",
        "p3_center_sky_percentile",
        "p3_center_robust_clip_sigma",
        "p3_center_preview_size",
        "p3_center_min_overlap_fraction",
        "center_out_anchor_mode",
        "anchor_quality_probe_limit",
        "anchor_quality_span_range",
        "anchor_quality_median_clip_sigma",
        "enable_poststack_anchor_review",
        "poststack_anchor_probe_limit",
        "poststack_anchor_span_range",
        "poststack_anchor_median_clip_sigma",
        "poststack_anchor_min_improvement",
        "poststack_anchor_use_overlap_affine",
        "use_gpu_phase5",
        "gpu_id_phase5",
        "logging_level",
        "solver_settings",
        "skip_filter_ui",
        "filter_invoked",
        "filter_overrides",
        "filtered_header_items",
        "early_filter_enabled",
    ]
)


def _positions(first: str, last: str) -> tuple[str, ...]:
    """Return the names of `POSITIONS` from one to another."""
    return POSITIONS[POSITIONS.index(first) : POSITIONS.index(last) + 1]


# What follows the group, its number and its folder in `create_master_tile` of version 4.1.
TILE_POSITIONS = (
    *_positions("stack_norm_method", "min_radial_weight_floor"),
    *_positions("quality_crop_enabled", "quality_gate_move_rejects"),
    "astap_exe_path_global",
    "astap_data_dir_global",
    "astap_search_radius_global",
    "astap_downsample_global",
    "astap_sensitivity_global",
    "astap_timeout_seconds_global",
    "winsor_pool_workers",
    "winsor_max_frames_per_pass",
    _CALLBACK,
    "resource_strategy",
    "center_out_context",
    "center_out_settings",
    "center_out_rank",
)
# Version 4.0 had none of these.
_NEW_IN_4_1 = _positions("quality_crop_min_run", "quality_gate_move_rejects")
# Solving has a limit of its own; memory is planned; no tile is an anchor for others.
_TILE_WITHOUT_MEANING = (
    "astap_timeout_seconds_global",
    "resource_strategy",
    "center_out_context",
    "center_out_settings",
    "center_out_rank",
)
_SOLVER = ("solver_settings", "solver_settings_dict")
# The filter is asked for by whoever wants it, before a run.
_WITHOUT_MEANING = ("skip_filter_ui", "filter_invoked", "early_filter_enabled", "intertile_force_safe_mode")
# Names that calls had and settings files have otherwise.
_RENAMED = {
    "astap_sensitivity": "astap_default_sensitivity",
    "astap_sensitivity_config": "astap_default_sensitivity",
    "astap_exe_path_global": "astap_exe_path",
    "astap_data_dir_global": "astap_data_dir_param",
    "astap_search_radius_global": "astap_search_radius",
    "astap_downsample_global": "astap_downsample",
    "astap_sensitivity_global": "astap_default_sensitivity",
    "winsor_pool_workers": "winsor_worker_limit",
}
# What the filter dialog of version 4 said of options, under the names of these.
_OF_FILTER = (
    "cluster_panel_threshold", "cluster_orientation_split_deg", "astap_max_instances", "resume", "sds_mode",
)  # fmt: skip


@dataclass(frozen=True)
class OldCall:
    """What such a call says.

    Attributes
    ----------
    options : dict
        Options by name, with or without ``_config``; those of the solver settings come last.
    selection : dict
        ``frame_selection``, ``tile_selection`` and ``frame_groups`` as `run_hierarchical_mosaic` takes them.
    known_wcs : dict of str to object
        WCS objects by path, of frames whose files have none.
    cancelled : bool
        The user closed the filter and wants no run.
    progress_callback : callable or None
    """

    options: dict[str, Any]
    selection: dict[str, Any] = field(default_factory=dict)
    known_wcs: dict[str, Any] = field(default_factory=dict)
    cancelled: bool = False
    progress_callback: Callable[..., Any] | None = None


def read_call(positional: Sequence[Any], keywords: Mapping[str, Any]) -> OldCall:
    """Read the arguments that follow the two folders.

    Parameters
    ----------
    positional : sequence
        In the order of version 4, see `POSITIONS`.
    keywords : mapping

    Raises
    ------
    SettingsError
        There are more arguments than version 4 had, or one is given twice.
    """
    given = _named(POSITIONS[2:], positional, keywords, n_before=2)
    callback = given.pop(_CALLBACK, None)
    solver: dict[str, Any] = {}
    for name in _SOLVER:
        solver |= _as_mapping(given.pop(name, None))
    for name in _WITHOUT_MEANING:
        given.pop(name, None)
        given.pop(f"{name}_config", None)
    chosen = _as_mapping(given.pop("filter_overrides", None))
    items = given.pop("filtered_header_items", None)
    options = {name: chosen[name] for name in _OF_FILTER if chosen.get(name) is not None}
    plan = _as_mapping(chosen.get("global_wcs_plan_override"))
    if "sds_mode" not in options and plan.get("sds_mode") is not None:
        options["sds_mode"] = plan["sds_mode"]
    if options.get("sds_mode") is False:
        # The dialog says so of every run that is no SDS; it is no wish for another route.
        del options["sds_mode"]
    for name, now in _RENAMED.items():
        if name in given:
            given[now] = given.pop(name)
    selection, known = _selection(chosen, items)
    return OldCall(
        {**solver, **given, **options},
        selection,
        known,
        bool(chosen.get("filter_cancelled")),
        callback,
    )


def read_tile_call(group: Sequence[Any], positional: Sequence[Any], keywords: Mapping[str, Any]) -> OldCall:
    """Read the arguments of `create_master_tile`: the group, and what follows the folder.

    Parameters
    ----------
    group : sequence
        Paths, or mappings with ``path_raw`` (or ``path``) and perhaps ``wcs``.
    positional : sequence
        In the order of version 4.1, see `TILE_POSITIONS`, or of 4.0, which had its callback eleven places before.
    keywords : mapping

    Raises
    ------
    SettingsError
        As `read_call`.
    """
    names = TILE_POSITIONS
    before = tuple(name for name in names if name not in _NEW_IN_4_1)
    place = before.index(_CALLBACK)
    # In 4.1 a number stands here.
    if len(positional) > place and (positional[place] is None or callable(positional[place])):
        names = before
    given = _named(names, positional, keywords, n_before=3)
    for name in _TILE_WITHOUT_MEANING:
        given.pop(name, None)
    return read_call((), {**given, "filtered_header_items": list(group)})


def _named(
    names: Sequence[str], positional: Sequence[Any], keywords: Mapping[str, Any], *, n_before: int
) -> dict[str, Any]:
    """Return all arguments by name; ``n_before`` others were given before those that have a place here."""
    if len(positional) > len(names):
        raise SettingsError(
            "error_old_call_arguments",
            f"{len(positional) + n_before} arguments were given; there are {len(names) + n_before}",
            given=len(positional) + n_before,
            allowed=len(names) + n_before,
        )
    by_place = dict(zip(names, positional, strict=False))
    plain = {name.removesuffix("_config"): name for name in keywords}
    for name in by_place:
        if name in plain:
            raise SettingsError(
                "error_old_call_twice",
                f"{plain[name]} is given twice, by its place and by name",
                option=plain[name],
            )
    return {**by_place, **keywords}


def with_callback_place(positional: Sequence[Any]) -> list[Any]:
    """Return the arguments that follow the two folders with nothing where a callback stands, or is left out.

    A process of version 4 talks through a queue; its arguments have a callback that does not count, or none.
    """
    place = POSITIONS.index(_CALLBACK) - 2
    made = list(positional)
    if len(made) > place:
        if made[place] is None or callable(made[place]):
            made[place] = None
        else:
            made.insert(place, None)
    return made


def _as_mapping(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return dict(value)
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else dict(vars(value))


def _path(item: Any) -> str:
    """Return the path of what a filter or a caller calls a frame."""
    if isinstance(item, Mapping):
        item = item.get("path") or item.get("path_raw") or item.get("file_path") or ""
    return str(item) if item else ""


def _selection(chosen: Mapping[str, Any], items: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    frames = [path for path in map(_path, items or ()) if path]
    groups = [
        [path for path in map(_path, group) if path] for group in chosen.get("preplan_master_groups") or ()
    ]
    known = {
        path: item["wcs"]
        for item in items or ()
        if isinstance(item, Mapping) and item.get("wcs") is not None and (path := _path(item))
    }
    selection: dict[str, Any] = {}
    if frames:
        selection["frame_selection"] = frames
    if chosen.get("tile_selection") is not None:
        selection["tile_selection"] = [str(path) for path in chosen["tile_selection"]]
    if any(groups):
        selection["frame_groups"] = [group for group in groups if group]
    return selection, known
