"""Intention (settings) and reality (folder, machine) become one frozen plan that every phase reads."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, cast

from astropy.wcs import WCS

from zemosaic_core.compiled_code import is_compiled
from zemosaic_core.errors import RunFailed, SettingsError
from zemosaic_core.sources import CombineRule, Kernel
from zemosaic_gpu_policy import GpuPolicy
from zemosaic_io.headers import FrameInfo
from zemosaic_io.solvers.chain import SolverOptions
from zemosaic_pipeline.batches import batch_options, expected_batches
from zemosaic_pipeline.cost import (
    CostBasis,
    PlanRow,
    estimate_rows,
    frames_at_place,
    small_pointings,
    workload_on_card,
)
from zemosaic_pipeline.events import Reporter
from zemosaic_pipeline.filters import filter_names, split_text
from zemosaic_pipeline.listed_frames import listed_batches, listed_frames
from zemosaic_pipeline.machine import Machine, enough_file_handles
from zemosaic_pipeline.measure import MeasureOptions
from zemosaic_pipeline.outline import Layout, Outline, outline_of_headers, outline_of_wcs, spread_in_time
from zemosaic_pipeline.output_formats import COPIES, check_hips, filter_numbers, output_formats
from zemosaic_pipeline.phase_options import (
    AssemblyOptions,
    ColourOptions,
    GridOptions,
    GroupOptions,
    OutputOptions,
    SkyOptions,
    SolveOptions,
    StackOptions,
)
from zemosaic_pipeline.picture_look import stretch_move, stretch_options
from zemosaic_pipeline.plan_limits import fit_to_handles, fit_to_memory
from zemosaic_pipeline.refinement import RefineDecision, choose_refine
from zemosaic_pipeline.routes import RouteDecision, choose_route
from zemosaic_pipeline.sessions import mixture_text
from zemosaic_pipeline.tile_plan import (
    MergeOptions,
    TileCheckOptions,
    TileGateOptions,
    merge_options,
    tile_checks,
    tile_gate,
)
from zemosaic_settings import Settings

__all__ = [
    "AssemblyOptions",
    "GridOptions",
    "GroupOptions",
    "MeasureOptions",
    "OutputOptions",
    "Plan",
    "PlanRow",
    "RunPlan",
    "SolveOptions",
    "StackOptions",
    "cost_basis",
    "headers_outline",
    "make_plan",
    "make_policy",
    "resolve",
    "solver_options",
    "worker_count",
]

FEATHER_SHARE = 0.1


@dataclass(frozen=True)
class RunPlan:
    """Every number and every choice a phase needs; no phase looks at the settings."""

    input_dir: str
    output_dir: str
    n_channels: int
    workers: int
    threads: int
    block_budget_bytes: int
    resume: bool
    language: str
    measure: MeasureOptions
    solve: SolveOptions
    group: GroupOptions
    grid: GridOptions
    stack: StackOptions
    sky: SkyOptions
    route: RouteDecision
    refine: RefineDecision
    assembly: AssemblyOptions
    output: OutputOptions
    tile_gate: TileGateOptions
    tile_checks: TileCheckOptions
    merge: MergeOptions
    rows: tuple[PlanRow, ...]
    is_reduced: bool = False
    memory_limit_bytes: int = 0
    elsewhere: int = 0
    """Workers of a cluster on other machines."""
    compiles: bool = False
    """The program has to be compiled first: the first run after an installation."""

    @property
    def asks_for_one_sky(self) -> bool:
        """Whether one model of the sky is wanted behind all raw frames, and their skies may slope."""
        return self.sky.model == "full" and self.stack.normalise == "linear_fit"

    @property
    def peak_bytes(self) -> int:
        """Memory the run is planned to stay under."""
        return max((row.ram_bytes for row in self.rows), default=0)


@dataclass(frozen=True)
class Plan:
    """What `plan` shows: the run plan, what was found, and what it would make."""

    run: RunPlan
    n_frames: int
    left_out: tuple[dict[str, Any], ...]
    outline: Outline
    gpu: dict[str, Any]
    machine: Machine
    mixture: str = ""
    small_pointings: int = 0
    calibration: str = ""
    calibration_unused: str = ""
    split: str = ""
    cluster: tuple[dict[str, Any], ...] = ()

    @property
    def rows(self) -> tuple[PlanRow, ...]:
        """One row per phase."""
        return self.run.rows

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-serialisable facts."""
        facts = asdict(self)
        facts["run"]["solve"]["solver"].pop("api_key", None)
        facts["canvas_hw"] = self.outline.shape_hw
        facts["canvas_exact"] = self.outline.known_from == "wcs"
        facts["peak_bytes"] = self.run.peak_bytes
        facts["disk_bytes"] = max(accumulate(row.disk_bytes for row in self.rows), default=0)
        facts["seconds"] = sum(row.seconds for row in self.rows)
        return facts


def make_policy(
    settings: Settings,
    machine: Machine,
    output_dir: Path | None,
    on_record: Callable[[dict[str, Any]], None] | None = None,
    asked_by: str = "",
) -> GpuPolicy:
    """Return the GPU policy the settings ask for; its ledger goes into the output folder.

    ``asked_by`` is the text key of who chose the mode; empty: the settings.

    Raises
    ------
    SettingsError
        A variable of the environment is not understood, or contradicts the settings.
    """
    ledger = None if output_dir is None else output_dir / "gpu_ledger.jsonl"
    return GpuPolicy(
        mode=settings.asked_gpu_mode,
        device=settings.gpu_choice,
        memory_mb=settings.gpu_memory_mb,
        host_bytes=_block_budget(settings, usable_memory(settings, machine)),
        asked_by=asked_by,
        ledger_path=ledger,
        on_record=on_record,
    )


def worker_count(settings: Settings, machine: Machine) -> int:
    """Return how many processes measure and match: as asked, else three quarters of the cores, rounded up."""
    asked = settings.num_processing_workers
    return max(1, min(asked if asked > 0 else math.ceil(0.75 * machine.cores), machine.cores))


def usable_memory(settings: Settings, machine: Machine) -> int:
    """Return the bytes that all processes of a run may take together."""
    return min(machine.memory_bytes, _memory_limit(settings) or machine.memory_bytes)


def _memory_limit(settings: Settings) -> int:
    return settings.memory_limit_mb * 1_000_000


def _block_budget(settings: Settings, memory_bytes: int) -> int:
    if settings.stack_ram_budget_gb > 0:
        return int(settings.stack_ram_budget_gb * 1e9)
    # A third of what is free leaves room for the pages of the input files, which make the second read cheap.
    return int(min(max(0.33 * memory_bytes, 256e6), 4e9))


def resolve(
    settings: Settings,
    infos: Sequence[FrameInfo],
    machine: Machine,
    *,
    canvas_hw: tuple[int, int],
    policy: GpuPolicy | None = None,
    preplanned: Sequence[Sequence[str]] = (),
    batches: Sequence[Sequence[str]] = (),
    n_calibrations: int = 0,
    n_tiles: int = 0,
    elsewhere: int = 0,
    compiles: bool = False,
) -> RunPlan:
    """Return the plan that follows from settings, frames and machine; pure but for the policy's decision.

    Parameters
    ----------
    infos : sequence of FrameInfo
        Raw frames first, then the ``n_tiles`` stacks that are given.
    elsewhere : int
        Workers of a cluster on other machines; 0: all is done here.
    compiles : bool
        This run has to compile the program first (`compiled_code.is_compiled`).
    preplanned, batches : sequence of sequences of str
        Paths of frames that become a tile together: chosen by hand, and those of a list.

    Raises
    ------
    RunFailed
        There is nothing to plan for, or the machine is too small for the smallest plan.
    """
    if not infos:
        raise RunFailed(
            "run_error_no_frames", "no usable FITS frame in the input folder", folder=settings.input_dir
        )
    n_channels = 1 if infos[0].kind == "mono" else 3
    raw = infos[: len(infos) - n_tiles]
    workers, threads = worker_count(settings, machine), machine.cores
    memory = usable_memory(settings, machine)
    budget = _block_budget(settings, memory)
    rule = CombineRule(
        settings.stacking_rejection_algorithm,
        settings.stacking_kappa_low,
        settings.stacking_kappa_high,
        settings.winsor_limits,
        settings.stacking_final_combine_method,
    )
    radial = None
    if settings.apply_radial_weight:
        radial = (
            settings.radial_feather_fraction,
            settings.radial_shape_power,
            settings.min_radial_weight_floor,
        )
    run = RunPlan(
        input_dir=settings.input_dir,
        output_dir=settings.output_dir,
        n_channels=n_channels,
        workers=workers,
        threads=threads,
        block_budget_bytes=budget,
        resume=settings.resume == "auto",
        language=settings.language,
        measure=MeasureOptions(
            settings.frame_quality_sigma, settings.exclude_flagged_frames, settings.hot_pixel_correction
        ),
        solve=SolveOptions(
            solver_options(settings), settings.force_resolve_existing_wcs, settings.solve_tolerance_px
        ),
        group=GroupOptions(
            settings.cluster_panel_threshold,
            settings.cluster_orientation_split_deg,
            settings.cluster_target_groups,
            settings.max_raw_per_master_tile,
            split_by_filter=settings.split_by_filter,
            preplanned=tuple(tuple(group) for group in preplanned),
        ),
        grid=GridOptions(
            settings.global_wcs_pixelscale_mode,
            settings.global_wcs_orientation,
            settings.canvas_max_megapixels,
            settings.canvas_exclude_outliers,
            float(settings.drizzle_scale),
        ),
        stack=StackOptions(
            settings.stacking_normalize_method,
            settings.stacking_weighting_method,
            rule,
            cast(Kernel, settings.resample_kernel),
            settings.poststack_equalize_rgb,
            radial,
            # A wide ramp hides where the frames of one night end inside a tile. Frames of one pointing end nearly
            # alike, so their weights fall together and the depth of the stack stays what it is.
            feather_px=FEATHER_SHARE * min(min(info.shape_hw) for info in raw or infos)
            if rule.combine == "mean"
            else 0.0,
            tile_ramp_px=settings.tile_feather_px,
            max_frames_per_pass=settings.winsor_max_frames_per_pass,
            threads=min(threads, settings.winsor_worker_limit or threads),
            cfa_refine=settings.cfa_refine,
        ),
        sky=SkyOptions(settings.sky_model, site_of(settings.observer_site), settings.remove_gradient),
        route=RouteDecision("panels", "route_asked"),
        refine=RefineDecision(False, "refine_off"),
        assembly=AssemblyOptions(
            settings.final_assembly_method,
            settings.intertile_photometric_match,
            settings.match_background_for_final,
            settings.intertile_gradient,
            settings.intertile_gradient_order,
            settings.crop,
            settings.crop_science,
        ),
        output=OutputOptions(
            settings.save_final_as_uint16,
            settings.save_viewer_tiff,
            settings.save_variance,
            settings.altaz_cleanup_enabled and settings.altaz_export_alpha_fits,
            settings.cache_retention == "keep",
            ColourOptions(
                settings.colour_calibration == "auto", settings.white_reference, settings.save_calibrated
            ),
            {
                **stretch_options(settings.to_mapping()),
                "move": stretch_move(settings.to_mapping()),
                "max_dim": settings.preview_png_max_dim,
            },
            settings.picture_flatten,
            settings.crop if settings.crop in ("coverage", "rectangle") and not settings.crop_science else "",
            output_formats(settings.save_formats),
            settings.save_annotation,
            settings.save_zoom,
            check_hips(settings.save_hips),
            filter_numbers(settings.astrobin_filters),
        ),
        tile_gate=tile_gate(settings),
        tile_checks=tile_checks(settings),
        merge=merge_options(settings),
        rows=(),
        memory_limit_bytes=_memory_limit(settings),
        elsewhere=elsewhere,
        compiles=compiles,
    )
    wants_batches = settings.route == "sds" and bool(raw)
    expected = (
        expected_batches(raw, batch_options(settings), split_by_filter=settings.split_by_filter)
        if wants_batches
        else ()
    )
    run = replace(
        run,
        route=choose_route(
            settings.route,
            n_chosen_groups=len(preplanned),
            n_sizes=1 if run.asks_for_one_sky else len({info.shape_hw for info in raw}),
            n_tiles=n_tiles,
            n_frames=len(raw),
            n_listed_batches=len(batches),
            n_expected_batches=len(expected),
        ),
    )
    if run.route.route == "grid":
        listed = tuple(map(tuple, batches))
        run = replace(run, group=replace(run.group, preplanned=listed, batch_sizes=tuple(map(len, listed))))
    if run.route.route == "sds":
        run = replace(run, group=replace(run.group, batches=batch_options(settings), batch_sizes=expected))
    else:
        run = replace(run, tile_checks=replace(run.tile_checks, keep_share=0.0))
    if run.route.route == "panels" and not preplanned:
        run = replace(run, group=replace(run.group, min_frames=settings.cluster_min_frames))
    run = replace(
        run,
        refine=choose_refine(
            run.stack.cfa_refine,
            kind=infos[0].kind,
            n_frames=frames_at_place(cost_basis(run), raw or infos),
            combine=rule.combine,
            kernel=run.stack.kernel,
            scale=run.grid.drizzle_scale,
        ),
    )
    basis, decision = cost_basis(run), None
    if policy is not None:
        decision = policy.plan(
            workload_on_card(basis, infos, canvas_hw, policy.status.device, n_calibrations > 0)
        )
        policy.check_fits(decision)
    return fit_to_memory(
        fit_to_handles(run, enough_file_handles()),
        memory,
        lambda smaller: estimate_rows(cost_basis(smaller), infos, canvas_hw, decision, n_calibrations),
    )


def cost_basis(run: RunPlan) -> CostBasis:
    """Return what of a plan decides what it costs."""
    return CostBasis(
        n_channels=run.n_channels,
        workers=run.workers,
        threads=run.threads,
        block_budget_bytes=run.block_budget_bytes,
        route=run.route.route,
        max_per_group=run.group.max_per_group,
        rule=run.stack.rule,
        kernel=run.stack.kernel,
        feather_px=run.stack.feather_px,
        has_weight_map=run.stack.radial is not None,
        variance=run.output.variance,
        keep_state=run.output.keep_state,
        preview_max_dim=run.output.preview["max_dim"],
        refine=run.refine.on,
        drizzle_scale=run.grid.drizzle_scale,
        cuts_tiles=run.tile_checks.rewrites,
        merge_rule=run.merge.rule if run.merge.enabled else None,
        most_merged=run.merge.max_group,
        foreign_solver=run.solve.solver.method != "EMBEDDED",
        copies=len(set(run.output.formats) & set(COPIES)),
        zoom=run.output.zoom,
        sphere=run.output.hips,
        batches=run.group.batch_sizes,
        elsewhere=run.elsewhere,
        solves_sky=run.sky.model == "full" and run.stack.normalise == "linear_fit",
        mesh_cell_px=run.measure.mesh_cell_px,
        compiles=run.compiles,
    )


def site_of(text: str) -> tuple[float, float] | None:
    """Return latitude and longitude from a setting such as ``48.1, 9.2``; None when it is empty.

    Raises
    ------
    SettingsError
        The text is no place on the Earth.
    """
    if not text.strip():
        return None
    try:
        latitude, longitude = (float(part) for part in text.replace(";", ",").split(","))
    except ValueError:
        latitude = longitude = math.nan
    if not (abs(latitude) <= 90.0 and abs(longitude) <= 180.0):
        raise SettingsError(
            "settings_no_site",
            f"observer_site = {text!r} is not allowed; allowed are latitude and longitude in degrees, "
            "north and east positive, such as 48.1, 9.2",
            option="observer_site",
            value=text,
        )
    return latitude, longitude


def solver_options(settings: Settings) -> SolverOptions:
    """Return what the settings say about plate solving."""
    return SolverOptions(
        method=settings.solver_method,
        astap_path=settings.astap_executable_path,
        astap_data=settings.astap_data_directory_path,
        search_radius_deg=settings.astap_default_search_radius,
        downsample=settings.astap_default_downsample,
        max_instances=settings.astap_max_instances,
        local_path=settings.astrometry_local_path,
        api_key=settings.astrometry_api_key,
        timeout_s=settings.astrometry_timeout,
    )


def _layout(settings: Settings) -> Layout:
    modes: tuple[Any, Any] = (settings.global_wcs_pixelscale_mode, settings.global_wcs_orientation)
    return Layout(
        *modes, exclude_outliers=settings.canvas_exclude_outliers, factor=float(settings.drizzle_scale)
    )


def headers_outline(infos: Sequence[FrameInfo], settings: Settings) -> Outline:
    """Return the size of the mosaic as the headers tell it."""
    return outline_of_headers(infos, _layout(settings))


def _outline(infos: Sequence[FrameInfo], settings: Settings, solve_some: int) -> Outline:
    """Return the size of the mosaic: from some frames that are solved now, or from the headers."""
    from zemosaic_pipeline.solve_files import iter_solutions

    told, layout = headers_outline(infos, settings), _layout(settings)
    if solve_some <= 0:
        return told
    with tempfile.TemporaryDirectory(prefix="zemosaic_plan_") as work:
        some = [Path(info.path) for info in spread_in_time(infos, solve_some)]
        found = [f for f in iter_solutions(some, settings, Path(work)) if f.ok and f.info is not None]
    if not found:
        return replace(told, n_asked=len(some))
    frames = [WCS(solution.outcomes[-1].wcs_cards, relax=True) for solution in found]
    shapes = [solution.info.shape_hw for solution in found if solution.info is not None]
    seen = outline_of_wcs(frames, shapes, layout)
    known_from: Literal["wcs", "solved"] = "wcs" if len(found) == len(infos) else "solved"
    return replace(seen, known_from=known_from, n_solved=len(found), n_asked=len(some))


def make_plan(
    input_dir: str | Path,
    output_dir: str | Path,
    settings: Settings,
    reporter: Reporter | None = None,
    *,
    solve_some: int = 0,
) -> Plan:
    """Survey the folder and say what a run would do and cost; nothing is written.

    Parameters
    ----------
    solve_some : int
        Frames, spread over the exposures, that are solved to learn the outline of the mosaic; 0: what headers say.

    Raises
    ------
    SettingsError
        The input folder does not exist.
    RunFailed
        There is no usable frame.
    """
    from zemosaic_pipeline import calibrate, tile_intake
    from zemosaic_pipeline.cluster_run import look_at_cluster
    from zemosaic_pipeline.phase0_survey import survey
    from zemosaic_pipeline.records import LeftOut

    folder, output = Path(input_dir), Path(output_dir)
    if not os.path.isdir(folder):
        raise SettingsError(
            "error_input_not_folder", f"input folder {folder} does not exist", path=str(folder)
        )
    settings = settings.model_copy(update={"input_dir": str(folder), "output_dir": str(output)})
    machine = Machine.probe(output)
    calibration = calibrate.options_from(settings)
    stacks_from = tile_intake.tile_folders(settings)
    infos: list[FrameInfo] = []
    refused: list[LeftOut] = []
    listed = None
    if stacks_from.with_frames or not stacks_from:
        listed = listed_frames(settings)
        infos, refused = survey(
            folder,
            output,
            recursive=settings.scan_recursive,
            memory_bytes=usable_memory(settings, machine),
            other_places=[*calibrate.given_places(calibration), *stacks_from.folders],
            listed=listed,
        )
    chosen = calibrate.choose(infos, refused, folder, calibration)
    stacks, unusable = tile_intake.survey(stacks_from, recursive=settings.scan_recursive, exclude=output)
    infos, refused = [*infos, *stacks], [*refused, *unusable]
    policy = make_policy(settings, machine, None)
    if not infos:
        raise RunFailed("run_error_no_frames", f"no usable FITS frame in {folder}", folder=str(folder))
    elsewhere, cluster = look_at_cluster(settings, infos, worker_count(settings, machine))
    outline = _outline(infos, settings, solve_some)
    run = resolve(
        settings,
        infos,
        machine,
        canvas_hw=outline.shape_hw,
        policy=policy,
        batches=listed_batches(listed),
        n_calibrations=chosen.n_sets,
        n_tiles=len(stacks),
        elsewhere=elsewhere,
        compiles=not is_compiled(),
    )
    split = split_text(filter_names(infos, split=settings.split_by_filter))
    return Plan(
        run=run,
        n_frames=len(infos),
        left_out=tuple(asdict(item) for item in refused),
        outline=outline,
        gpu=policy.summary(),
        machine=machine,
        mixture=mixture_text(infos, except_filter=bool(split)),
        small_pointings=small_pointings(infos, run.group.min_frames),
        split=split,
        calibration=chosen.used,
        calibration_unused=chosen.unused,
        cluster=cluster,
    )
