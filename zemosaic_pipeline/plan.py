"""Intention (settings) and reality (folder, machine) become one frozen plan that every phase reads."""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from zemosaic_core.chunks import Buffer, Workload, peak_bytes
from zemosaic_core.coadd import coadd_buffers
from zemosaic_core.errors import RunFailed, SettingsError
from zemosaic_core.gpu.coadd import expected_workload
from zemosaic_core.gpu.device import DeviceInfo
from zemosaic_core.refine import HALO_ROWS
from zemosaic_core.refine_rows import refine_buffers
from zemosaic_core.sources import CombineRule, SampleNoise
from zemosaic_gpu_policy import Decision, GpuPolicy
from zemosaic_io.headers import FrameInfo
from zemosaic_io.solvers.chain import SolverOptions
from zemosaic_pipeline.events import Reporter
from zemosaic_pipeline.measure import MeasureOptions
from zemosaic_pipeline.pointings import pointing_labels
from zemosaic_pipeline.refinement import RefineDecision, choose_refine
from zemosaic_pipeline.routes import RouteDecision, choose_route
from zemosaic_pipeline.sessions import mixture_text
from zemosaic_settings import Settings
from zemosaic_utils import MAX_BLOCK_ROWS

__all__ = [
    "AssemblyOptions",
    "GridOptions",
    "GroupOptions",
    "Machine",
    "MeasureOptions",
    "OutputOptions",
    "Plan",
    "PlanRow",
    "RunPlan",
    "SolveOptions",
    "StackOptions",
    "make_plan",
    "make_policy",
    "resolve",
    "solver_options",
    "worker_count",
]

# What one process costs before it holds a single frame: interpreter, libraries and compiled kernels. Private memory
# measured on Linux with Python 3.11: 240 MB at the end of a run, 110 MB in a process that only measures.
PARENT_BYTES = 260_000_000
CHILD_BYTES = 115_000_000
# Measured on 1080x1920 frames: a measuring process peaks at 160 to 176 MB.
MEASURE_BYTES_PER_PX = 32
# The preview's stretch, per pixel of the picture; measured at 3200x3200.
PREVIEW_BYTES_PER_PX = 48
FEATHER_SHARE = 0.1
# A tile is wider than its frames: they are dithered and turned against the grid by some degrees.
TURNED = 1.2
# Rates used for the expected time, measured on 2 cores with 1080x1920 frames; only the order of magnitude counts.
MEASURE_S_PER_MPX_CORE = 0.055
SOLVE_S_PER_FRAME = 0.06
STACK_S_PER_MPX_CORE = 0.085
# The second pass, with structure in a quarter of the pixels.
REFINE_S_PER_MPX_CORE = 0.03
ASSEMBLE_S_PER_MPX = 0.17
EXPORT_S_PER_MPX = 0.4


@dataclass(frozen=True)
class Machine:
    """Facts about this computer: cores, free memory (bytes), free disk (bytes) where the output goes."""

    cores: int
    memory_bytes: int
    disk_bytes: int

    @staticmethod
    def probe(output_dir: Path) -> Machine:
        """Look at the machine now."""
        folder = output_dir
        while not folder.exists():
            folder = folder.parent
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return Machine(cores, psutil.virtual_memory().available, shutil.disk_usage(folder).free)


@dataclass(frozen=True)
class SolveOptions:
    """How frames get their place in the sky."""

    solver: SolverOptions
    ignore_header_wcs: bool
    tolerance_px: float


@dataclass(frozen=True)
class GroupOptions:
    """How frames are put together into tiles."""

    threshold_deg: float
    orientation_split_deg: float
    target_groups: int
    max_per_group: int
    preplanned: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class GridOptions:
    """How the pixels of the mosaic are laid out."""

    pixelscale_mode: str
    orientation: str
    max_megapixels: float
    exclude_outliers: bool
    drizzle_scale: float = 1.0


@dataclass(frozen=True)
class StackOptions:
    """How the frames of a group are combined."""

    normalise: str
    weighting: str
    rule: CombineRule
    kernel: str
    equalise_rgb: bool
    radial: tuple[float, float, float] | None
    feather_px: float
    tile_ramp_px: int
    cfa_refine: str = "auto"


@dataclass(frozen=True)
class SkyOptions:
    """How the sky behind the frames is modelled.

    Attributes
    ----------
    model : {'full', 'planes', 'none'}
    site_deg : tuple of float or None
        Latitude and longitude the user gave; None: those of the headers.
    remove_gradient : bool
        The glow of the mosaic as a whole is taken out of the science file.
    """

    model: str
    site_deg: tuple[float, float] | None
    remove_gradient: bool


@dataclass(frozen=True)
class AssemblyOptions:
    """How the tiles become the mosaic."""

    method: str
    photometric_match: bool
    match_background: bool
    gradient: bool
    gradient_order: int
    crop: bool


@dataclass(frozen=True)
class OutputOptions:
    """Which files are written and how the preview looks."""

    viewer_fits: bool
    viewer_tiff: bool
    variance: bool
    keep_state: bool
    preview: dict[str, Any]


@dataclass(frozen=True)
class PlanRow:
    """What a phase is expected to cost: memory and disk in bytes, time in seconds, and where it computes."""

    phase: str
    items: int
    ram_bytes: int
    disk_bytes: int
    seconds: float
    device: str = "cpu"
    reason_key: str = ""


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
    rows: tuple[PlanRow, ...]

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
    canvas_hw: tuple[int, int]
    canvas_exact: bool
    gpu: dict[str, Any]
    machine: Machine
    mixture: str = ""

    @property
    def rows(self) -> tuple[PlanRow, ...]:
        """One row per phase."""
        return self.run.rows

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-serialisable facts."""
        facts = asdict(self)
        facts["run"]["solve"]["solver"].pop("api_key", None)
        facts["peak_bytes"] = self.run.peak_bytes
        facts["disk_bytes"] = sum(row.disk_bytes for row in self.rows)
        facts["seconds"] = sum(row.seconds for row in self.rows)
        return facts


def make_policy(settings: Settings, output_dir: Path | None, on_record: Any = None) -> GpuPolicy:
    """Return the GPU policy the settings ask for; its ledger goes into the output folder."""
    ledger = None if output_dir is None else output_dir / "gpu_ledger.jsonl"
    return GpuPolicy(
        mode=settings.asked_gpu_mode,
        device=settings.gpu_choice,
        memory_mb=settings.gpu_memory_mb,
        ledger_path=ledger,
        on_record=on_record,
    )


def worker_count(settings: Settings, machine: Machine) -> int:
    """Return how many processes measure and match: as asked, else three quarters of the cores, rounded up."""
    asked = settings.num_processing_workers
    return max(1, min(asked if asked > 0 else math.ceil(0.75 * machine.cores), machine.cores))


def _block_budget(settings: Settings, machine: Machine) -> int:
    if settings.stack_ram_budget_gb > 0:
        return int(settings.stack_ram_budget_gb * 1e9)
    # A third of what is free leaves room for the pages of the input files, which make the second read cheap.
    return int(min(max(0.33 * machine.memory_bytes, 256e6), 4e9))


def estimate_canvas(infos: Sequence[FrameInfo], factor: float = 1.0) -> tuple[int, int]:
    """Guess height and width (px) of the mosaic from the headers' positions alone; `factor`: pixels per frame pixel."""
    height, width = _largest(infos).shape_hw
    hints = [(i.ra_deg, i.dec_deg) for i in infos if i.ra_deg is not None and i.dec_deg is not None]
    scale = infos[0].scale_arcsec
    if not hints or scale is None:
        return round(factor * height), round(factor * width)
    ra, dec = np.radians(np.array(hints, dtype=float)).T
    mean = np.array(
        [np.mean(np.cos(dec) * np.cos(ra)), np.mean(np.cos(dec) * np.sin(ra)), np.mean(np.sin(dec))]
    )
    ra0 = math.atan2(mean[1], mean[0])
    east = (np.mod(ra - ra0 + np.pi, 2 * np.pi) - np.pi) * np.cos(dec)
    px = 3600 / scale
    height += round(float(np.degrees(np.ptp(dec))) * px)
    width += round(float(np.degrees(np.ptp(east))) * px)
    return round(factor * height), round(factor * width)


def resolve(
    settings: Settings,
    infos: Sequence[FrameInfo],
    machine: Machine,
    *,
    canvas_hw: tuple[int, int],
    policy: GpuPolicy | None = None,
    preplanned: Sequence[Sequence[str]] = (),
) -> RunPlan:
    """Return the plan that follows from settings, frames and machine; pure but for the policy's decision.

    Raises
    ------
    RunFailed
        There is nothing to plan for.
    """
    if not infos:
        raise RunFailed(
            "run_error_no_frames", "no usable FITS frame in the input folder", folder=settings.input_dir
        )
    n_channels = 1 if infos[0].kind == "mono" else 3
    workers, threads = worker_count(settings, machine), machine.cores
    budget = _block_budget(settings, machine)
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
            tuple(tuple(group) for group in preplanned),
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
            settings.resample_kernel,
            settings.poststack_equalize_rgb,
            radial,
            # A wide ramp hides where the frames of one night end inside a tile. Frames of one pointing end nearly
            # alike, so their weights fall together and the depth of the stack stays what it is.
            feather_px=FEATHER_SHARE * min(min(info.shape_hw) for info in infos)
            if rule.combine == "mean"
            else 0.0,
            tile_ramp_px=settings.tile_feather_px,
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
            settings.crop_follow_signal,
        ),
        output=OutputOptions(
            settings.save_final_as_uint16,
            settings.save_viewer_tiff,
            settings.save_variance,
            settings.cache_retention == "keep",
            {
                "p_low": settings.preview_png_p_low,
                "p_high": settings.preview_png_p_high,
                "asinh_a": settings.preview_png_asinh_a,
                "max_dim": settings.preview_png_max_dim,
                "apply_wb": settings.preview_png_apply_wb,
            },
        ),
        rows=(),
    )
    run = replace(
        run,
        route=choose_route(
            settings.route,
            n_chosen_groups=len(preplanned),
            n_sizes=len({info.shape_hw for info in infos}),
        ),
    )
    run = replace(
        run,
        refine=choose_refine(
            run.stack.cfa_refine,
            kind=infos[0].kind,
            n_frames=_frames_at_place(run, infos),
            combine=rule.combine,
            kernel=run.stack.kernel,
            scale=run.grid.drizzle_scale,
        ),
    )
    decision = None
    if policy is not None:
        decision = policy.plan(_workload_on_card(run, infos, canvas_hw, policy.status.device))
    return replace(run, rows=_estimate(run, infos, canvas_hw, decision))


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


def _largest_group(run: RunPlan, infos: Sequence[FrameInfo]) -> int:
    """Return how many frames the fullest tile is likely to hold: those the mount says point alike."""
    fullest = Counter(pointing_labels(infos)).most_common(1)[0][1]
    cap = run.group.max_per_group
    return min(fullest, cap) if cap > 0 else fullest


def _tile_hw(run: RunPlan, info: FrameInfo) -> tuple[int, int]:
    """Guess height and width of a tile from those of its frames."""
    factor = TURNED * run.grid.drizzle_scale
    return round(factor * info.shape_hw[0]), round(factor * info.shape_hw[1])


def _frames_per_row(infos: Sequence[FrameInfo]) -> int:
    """Return how many frames a row of the mosaic may cross, by the headers' positions; all where there are none."""
    hints = [info.dec_deg for info in infos]
    scale = infos[0].scale_arcsec
    if scale is None or any(dec is None for dec in hints):
        return len(infos)
    dec = np.sort(np.array(hints, float))
    reach = TURNED * _largest(infos).shape_hw[0] * scale / 3600.0
    return int((np.searchsorted(dec, dec + reach, side="right") - np.arange(len(dec))).max())


def _direct_buffers(
    run: RunPlan, infos: Sequence[FrameInfo], canvas_hw: tuple[int, int]
) -> tuple[int, tuple[Buffer, ...]]:
    """Return samples per channel and row, and the memory of a row, when all frames are combined at once."""
    n = _frames_per_row(infos)
    columns = n * min(canvas_hw[1], _tile_hw(run, _largest(infos))[1])
    buffers = coadd_buffers(
        n, run.n_channels, canvas_hw[1], run.stack.rule, run.stack.feather_px > 0, columns=columns
    )
    return columns, buffers


def _frames_at_place(run: RunPlan, infos: Sequence[FrameInfo]) -> int:
    """Return how many frames are combined where most of them overlap."""
    if run.route.route == "panels":
        return _largest_group(run, infos)
    return Counter(pointing_labels(infos)).most_common(1)[0][1]


def _stacked_hw(run: RunPlan, infos: Sequence[FrameInfo], canvas_hw: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of what is stacked in one go: the fullest tile, or the whole mosaic."""
    return _tile_hw(run, _largest(infos)) if run.route.route == "panels" else canvas_hw


def _workload_on_card(
    run: RunPlan, infos: Sequence[FrameInfo], canvas_hw: tuple[int, int], device: DeviceInfo | None
) -> Workload:
    """Declare what stacking will need on a graphics card."""
    # A run knows the noise of its samples; how much it is does not change what is needed.
    noise = SampleNoise((1.0,) * run.n_channels, (0.0,) * run.n_channels)
    rule = replace(run.stack.rule, noise=noise)
    return expected_workload(
        "stack", _stacked_hw(run, infos, canvas_hw), run.n_channels, rule, run.stack.kernel, device,
        n_sources=_frames_at_place(run, infos), source_hw=_largest(infos).shape_hw, raw=infos[0].kind == "cfa",
        feather_px=run.stack.feather_px, has_weight_map=run.stack.radial is not None,
    )  # fmt: skip


def _stack_workload(run: RunPlan, infos: Sequence[FrameInfo], canvas_hw: tuple[int, int]) -> Workload:
    if run.route.route == "direct":
        in_row, direct = _direct_buffers(run, infos, canvas_hw)
        return Workload("stack", canvas_hw[0], direct, elements_per_row=in_row * run.n_channels)
    n = _largest_group(run, infos)
    rows, columns = _tile_hw(run, _largest(infos))
    buffers = coadd_buffers(
        n, run.n_channels, columns, run.stack.rule, run.stack.feather_px > 0, columns=n * columns
    )
    return Workload("stack", rows, buffers, elements_per_row=n * run.n_channels * columns)


def _estimate(
    run: RunPlan, infos: Sequence[FrameInfo], canvas_hw: tuple[int, int], decision: Decision | None
) -> tuple[PlanRow, ...]:
    n = len(infos)
    height, width = _largest(infos).shape_hw
    frame_px = height * width
    mpx = frame_px / 1e6
    canvas_px = canvas_hw[0] * canvas_hw[1]
    workload = _stack_workload(run, infos, canvas_hw)
    block_rows = min(workload.rows, MAX_BLOCK_ROWS)
    stack_bytes = min(run.block_budget_bytes, workload.peak(block_rows))
    # Per thread: one decoded window and its three colour planes, and the pages of a tile being written.
    window_bytes = run.threads * frame_px * (2 + 4 * 2 * run.n_channels) + 2 * frame_px * 4
    children = run.workers if run.workers > 1 and n > 1 else 0
    survey = PARENT_BYTES
    measure = (
        PARENT_BYTES
        + children * CHILD_BYTES
        + max(1, children) * frame_px * MEASURE_BYTES_PER_PX
        + n * 60_000
    )
    second_s = 0.0
    if run.refine.on:
        second = refine_buffers(
            run.n_channels, _stacked_hw(run, infos, canvas_hw)[1], 4 * frame_px, run.threads
        )
        second_bytes = peak_bytes(
            second, min(_stacked_hw(run, infos, canvas_hw)[0], MAX_BLOCK_ROWS), HALO_ROWS
        )
        # A block of one row may need more than the budget: windows are read as a whole.
        stack_bytes = max(
            stack_bytes, min(max(run.block_budget_bytes, peak_bytes(second, 1, HALO_ROWS)), second_bytes)
        )
        second_s = n * mpx * REFINE_S_PER_MPX_CORE * run.grid.drizzle_scale**2 / run.threads
    stack = PARENT_BYTES + n * 60_000 + stack_bytes + window_bytes
    streaming = coadd_buffers(4, run.n_channels, canvas_hw[1], CombineRule("none"), True)
    assemble_rows = min(canvas_hw[0], MAX_BLOCK_ROWS)
    assemble = PARENT_BYTES + min(run.block_budget_bytes, peak_bytes(streaming, assemble_rows))
    variance_planes = run.n_channels if run.output.variance else 0
    step = -(-max(canvas_hw) // run.output.preview["max_dim"])
    export = PARENT_BYTES + canvas_px // step**2 * PREVIEW_BYTES_PER_PX + 100_000_000
    tiles_disk = round(1.4 * canvas_px) * 4 * (run.n_channels + 2 + variance_planes)
    science_disk = canvas_px * 4 * (run.n_channels + 1 + variance_planes)
    cores = max(1, run.workers)
    device = "cpu" if decision is None else decision.device
    reason = "" if decision is None else decision.reason_key
    solves = n * SOLVE_S_PER_FRAME / cores
    return (
        PlanRow("phase0_survey", n, survey, 0, 0.2 + n * 0.003 / cores),
        PlanRow(
            "phase1_prepare", n, measure, n * 60_000, 3 + n * mpx * MEASURE_S_PER_MPX_CORE / cores + solves
        ),
        PlanRow("phase2_group", n, survey, 0, 0.1 + n * 2e-4),
        PlanRow("phase4_grid", n, survey + n * 200_000, 0, 0.3 + n * 0.01),
        PlanRow(
            "phase3_master_tiles",
            n,
            stack,
            tiles_disk,
            n * mpx * STACK_S_PER_MPX_CORE * run.grid.drizzle_scale**2 / run.threads + second_s,
            device,
            reason,
        ),
        PlanRow(
            "phase5_assemble", 1, assemble, science_disk, canvas_px / 1e6 * ASSEMBLE_S_PER_MPX, device, reason
        ),
        PlanRow("phase6_export", 1, export, canvas_px // 4, 1 + canvas_px / 1e6 * EXPORT_S_PER_MPX),
        # Tiles that a later run may use again stay; the cost of the run is then theirs too.
        PlanRow("phase7_cleanup", 1, PARENT_BYTES, 0 if run.output.keep_state else -tiles_disk, 0.1),
    )


def geometry(info: FrameInfo) -> tuple[str, tuple[int, int] | None]:
    """Return what frames of one run have in common: their kind, and the size of the sensor when they come from it.

    Pictures of three planes and stacks were made by a program that cuts them as it likes.
    """
    return info.kind, None if info.kind == "rgb" or info.stack_count > 1 else info.shape_hw


def _largest(infos: Sequence[FrameInfo]) -> FrameInfo:
    """Return the frame with the most pixels, which says how much memory one frame can take."""
    return max(infos, key=lambda info: math.prod(info.shape_hw))


def majority_geometry(infos: Sequence[FrameInfo]) -> tuple[str, tuple[int, int] | None]:
    """Return the geometry that most frames have; ties go to the larger frames, whatever the files are called."""
    counts = Counter(map(geometry, infos))
    return max(
        counts, key=lambda found: (counts[found], math.prod(found[1] or (0,)), found[0], found[1] or ())
    )


def make_plan(
    input_dir: str | Path, output_dir: str | Path, settings: Settings, reporter: Reporter | None = None
) -> Plan:
    """Survey the folder and say what a run would do and cost; nothing is written.

    Raises
    ------
    SettingsError
        The input folder does not exist.
    RunFailed
        There is no usable frame.
    """
    from zemosaic_pipeline.phase0_survey import survey

    folder, output = Path(input_dir), Path(output_dir)
    if not folder.is_dir():
        raise SettingsError(
            "error_input_not_folder", f"input folder {folder} does not exist", path=str(folder)
        )
    settings = settings.model_copy(update={"input_dir": str(folder), "output_dir": str(output)})
    machine = Machine.probe(output)
    infos, refused = survey(folder, output, recursive=settings.scan_recursive)
    policy = make_policy(settings, None)
    if not infos:
        raise RunFailed("run_error_no_frames", f"no usable FITS frame in {folder}", folder=str(folder))
    canvas = estimate_canvas(infos, float(settings.drizzle_scale))
    run = resolve(settings, infos, machine, canvas_hw=canvas, policy=policy)
    return Plan(
        run=run,
        n_frames=len(infos),
        left_out=tuple(asdict(item) for item in refused),
        canvas_hw=canvas,
        canvas_exact=all(info.wcs_cards for info in infos),
        gpu=policy.summary(),
        machine=machine,
        mixture=mixture_text(infos),
    )
