"""What a run is expected to cost: memory, disk and time of every phase, from the headers and the size of the mosaic."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from zemosaic_core.block_facts import SAMPLE_STEP
from zemosaic_core.block_rows import (
    MAX_BLOCK_ROWS,
    MAX_REFINE_ROWS,
    most_block_rows,
    tallest_block_rows,
)
from zemosaic_core.chunks import Buffer, Workload, peak_bytes
from zemosaic_core.coadd import coadd_buffers
from zemosaic_core.gpu.coadd import expected_workload
from zemosaic_core.gpu.device import DeviceInfo
from zemosaic_core.picture_parts import MOST_PART_PX, largest_part
from zemosaic_core.refine_rows import refine_buffers
from zemosaic_core.refine_structure import HALO_ROWS
from zemosaic_core.sky_cost import MAX_JOINT_FRAMES, channels_at_once, lattice_nodes, solving_bytes
from zemosaic_core.sources import CombineRule, Kernel, SampleNoise
from zemosaic_gpu_policy import Decision
from zemosaic_io.headers import FrameInfo
from zemosaic_pipeline.frame_kinds import largest_frame
from zemosaic_pipeline.pointings import pointing_labels

__all__ = [
    "CostBasis",
    "PlanRow",
    "disk_bytes",
    "estimate_rows",
    "frame_bytes",
    "frames_at_place",
    "small_pointings",
    "workload_on_card",
]

# What one process costs before it holds a single frame: interpreter, libraries and compiled kernels. Private memory
# measured on Linux with Python 3.11: 240 MB at the end of a run, 110 MB in a process that only measures.
PARENT_BYTES = 260_000_000
CHILD_BYTES = 115_000_000
# Measured on 1080x1920 frames: a measuring process peaks at 160 to 176 MB.
MEASURE_BYTES_PER_PX = 32
# Offset and flat that a frame is calibrated with; and what reading them and making masters takes besides.
SET_BYTES_PER_PX = 8
MASTER_BYTES_PER_PX = 5 * SET_BYTES_PER_PX
# Solvers of others run one at a time; room for their star lists and for the picture as floats. Not measured.
SOLVER_BYTES = 100_000_000
SOLVER_BYTES_PER_PX = 16
# A picture while it is cut and its sky is found (54 measured at 3200x3200), the picture with what is painted of it, and
# the part of it that is being finished (67 to 86 measured, and 21 more where two planes are calmed at once); per pixel
# of each.
PICTURE_BYTES_PER_PX, PAINTED_BYTES_PER_PX, FINISHING_BYTES_PER_PX = 58, 26, 112
# A picture as it is handed to the library that lays it on the sphere, and the copy that this one reads.
SPHERE_BYTES_PER_PX = 12
# A tile is wider than its frames: they are dithered and turned against the grid by some degrees.
TURNED = 1.2
# Copies of the weights of a band while they are sealed.
BAND_COPIES = 5
# What a run keeps of every frame, measured with 40 and 3,000 small ones: header, measurements and solution while others
# are measured and solved (5 kB), then its place and sky too, and what lies unused between them (25 kB).
SOLVED_BYTES, FRAME_BYTES = 8_000, 28_000
# While all frames are registered: tables of 300 stars of each (55 kB measured with 188 of each); while their sky is
# compared: a few numbers for every cell of its mesh (see `covered_sky`), and stars (72 kB measured with 510 cells and
# 188 stars); while it is solved: its mesh and where that lies.
REGISTERED_BYTES, COMPARED_BYTES, CELL_BYTES, MESH_BYTES = 95_000, 45_000, 115, 45
# What compiling adds in the first run after an installation, in a process that measures and in the worker from a phase
# on; it keeps what compiling took. Measured: 117 MB in each process, 107, 271, 285 and 363 MB in the worker.
COMPILING_CHILD_BYTES = 120_000_000
COMPILING_BYTES = {
    "phase4_grid": 110_000_000,
    "phase3_master_tiles": 280_000_000,
    "phase5_assemble": 290_000_000,
    "phase6_export": 370_000_000,
    "phase7_cleanup": 370_000_000,
}
# Rates used for the expected time, measured on 2 cores with 1080x1920 frames; only the order of magnitude counts.
MEASURE_S_PER_MPX_CORE = 0.055
SOLVE_S_PER_FRAME = 0.06
REGISTER_S_PER_FRAME = 0.02
# Per channel.
SKY_S_PER_FRAME = 0.008
STACK_S_PER_MPX_CORE = 0.085
# The second pass, with structure in a quarter of the pixels.
REFINE_S_PER_MPX_CORE = 0.03
ASSEMBLE_S_PER_MPX = 0.17
EXPORT_S_PER_MPX = 0.4


@dataclass(frozen=True)
class CostBasis:
    """What the cost of a run follows from, beside its frames.

    Attributes
    ----------
    workers, threads : int
        Processes that measure, threads of the co-add.
    block_budget_bytes : int
        Memory for the blocks of a co-add.
    route : {'direct', 'panels', 'grid', 'sds', 'tiles'}
    max_per_group : int
        Most frames of a tile; 0: no limit.
    rule, kernel, feather_px, has_weight_map
        How frames are combined; see `zemosaic_core.sources`.
    variance, keep_state : bool
        A variance is written; tiles stay on the disk.
    preview_max_dim : int
        Longer side of the preview, px.
    foreign_solver : bool
        A solver that is another program may be asked.
    refine : bool
        There is a second pass over the raw samples.
    drizzle_scale : float
        Output pixels per pixel of a frame.
    cuts_tiles : bool
        Tiles are written once more, cut or masked.
    merge_rule : CombineRule or None
        How tiles of one place become one; None: they do not.
    most_merged : int
        Most tiles that do.
    batches : tuple of int
        Frames of each batch, on routes where each becomes a tile that may be as large as the mosaic.
    copies : int
        Copies of the science file in other forms.
    zoom, sphere : bool
        Every pixel of the picture as tiles with a page; on the sphere.
    elsewhere : int
        Workers of a cluster on other machines, which measure and stack instead; 0: none.
    solves_sky : bool
        One model of the sky is solved from all frames.
    mesh_cell_px : int
        Side of the cells in which the sky of frames is measured, px.
    compiles : bool
        No compiled code was found: this run makes it.
    """

    n_channels: int
    workers: int
    threads: int
    block_budget_bytes: int
    route: str
    max_per_group: int
    rule: CombineRule
    kernel: Kernel
    feather_px: float
    has_weight_map: bool
    variance: bool
    keep_state: bool
    preview_max_dim: int
    foreign_solver: bool = False
    refine: bool = False
    drizzle_scale: float = 1.0
    cuts_tiles: bool = False
    merge_rule: CombineRule | None = None
    most_merged: int = 0
    batches: tuple[int, ...] = ()
    copies: int = 0
    zoom: bool = False
    sphere: bool = False
    elsewhere: int = 0
    solves_sky: bool = False
    mesh_cell_px: int = 64
    compiles: bool = False

    @property
    def tiles_are_whole(self) -> bool:
        """Whether what is stacked in one go may cover the whole mosaic."""
        return self.route in ("direct", "grid", "sds")


@dataclass(frozen=True)
class PlanRow:
    """What a phase is expected to cost: memory and disk in bytes, time in seconds, and where it computes.

    What a phase removes from the disk is negative.
    """

    phase: str
    items: int
    ram_bytes: int
    disk_bytes: int
    seconds: float
    device: str = "cpu"
    reason_key: str = ""


def _largest_group(basis: CostBasis, infos: Sequence[FrameInfo]) -> int:
    """Return how many frames the fullest tile is likely to hold: those the mount says point alike."""
    fullest = Counter(pointing_labels(infos)).most_common(1)[0][1]
    cap = basis.max_per_group
    return min(fullest, cap) if cap > 0 else fullest


def _tile_hw(basis: CostBasis, info: FrameInfo) -> tuple[int, int]:
    """Guess height and width of a tile from those of its frames."""
    factor = TURNED * basis.drizzle_scale
    return round(factor * info.shape_hw[0]), round(factor * info.shape_hw[1])


def _frames_per_row(infos: Sequence[FrameInfo]) -> int:
    """Return how many frames a row of the mosaic may cross, by the headers' positions; all where there are none."""
    hints = [info.dec_deg for info in infos]
    scale = infos[0].scale_arcsec
    if scale is None or any(dec is None for dec in hints):
        return len(infos)
    dec = np.sort(np.array(hints, float))
    reach = TURNED * largest_frame(infos).shape_hw[0] * scale / 3600.0
    return int((np.searchsorted(dec, dec + reach, side="right") - np.arange(len(dec))).max())


def _direct_buffers(
    basis: CostBasis, infos: Sequence[FrameInfo], canvas_hw: tuple[int, int]
) -> tuple[int, tuple[Buffer, ...]]:
    """Return samples per channel and row, and the memory of a row, when all frames are combined at once."""
    n = _frames_per_row(infos)
    if basis.route == "grid":
        # Those of a list are known; others end where the field is covered, which headers tell only roughly.
        n = min(n, max(basis.batches, default=n))
    columns = n * min(canvas_hw[1], _tile_hw(basis, largest_frame(infos))[1])
    buffers = coadd_buffers(
        n, basis.n_channels, canvas_hw[1], basis.rule, basis.feather_px > 0, columns=columns
    )
    return columns, buffers


def frames_at_place(basis: CostBasis, infos: Sequence[FrameInfo]) -> int:
    """Return how many frames are combined where most of them overlap."""
    if basis.route == "tiles":
        return 1
    if basis.route == "panels":
        return _largest_group(basis, infos)
    fullest = Counter(pointing_labels(infos)).most_common(1)[0][1]
    return -(-fullest // max(1, len(basis.batches)))


def _stacked_hw(basis: CostBasis, infos: Sequence[FrameInfo], canvas_hw: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of what is stacked in one go: the fullest tile, or the whole mosaic."""
    return canvas_hw if basis.tiles_are_whole else _tile_hw(basis, largest_frame(infos))


def workload_on_card(
    basis: CostBasis,
    infos: Sequence[FrameInfo],
    canvas_hw: tuple[int, int],
    device: DeviceInfo | None,
    calibrated: bool = False,
) -> Workload:
    """Declare what stacking will need on a graphics card; `calibrated` frames bring their masters along."""
    # A run knows the noise of its samples; how much it is does not change what is needed.
    noise = SampleNoise((1.0,) * basis.n_channels, (0.0,) * basis.n_channels)
    rule = replace(basis.rule, noise=noise)
    return expected_workload(
        "stack", _stacked_hw(basis, infos, canvas_hw), basis.n_channels, rule, basis.kernel, device,
        n_sources=frames_at_place(basis, infos), source_hw=largest_frame(infos).shape_hw, raw=infos[0].kind == "cfa",
        calibrated=calibrated, feather_px=basis.feather_px, has_weight_map=basis.has_weight_map,
        threads=basis.threads,
    )  # fmt: skip


def _stack_workload(basis: CostBasis, infos: Sequence[FrameInfo], canvas_hw: tuple[int, int]) -> Workload:
    if basis.tiles_are_whole:
        in_row, direct = _direct_buffers(basis, infos, canvas_hw)
        return Workload("stack", canvas_hw[0], direct, elements_per_row=in_row * basis.n_channels)
    n = frames_at_place(basis, infos)
    rows, columns = _tile_hw(basis, largest_frame(infos))
    buffers = coadd_buffers(
        n, basis.n_channels, columns, basis.rule, basis.feather_px > 0, columns=n * columns
    )
    return Workload("stack", rows, buffers, elements_per_row=n * basis.n_channels * columns)


def _merge_workload(basis: CostBasis, canvas_hw: tuple[int, int]) -> Workload:
    """Return what merging tiles needs when as many as may be lie in one place."""
    assert basis.merge_rule is not None
    n = min(basis.most_merged, max(4, len(basis.batches)))
    noise = SampleNoise((1.0,) * basis.n_channels, (0.0,) * basis.n_channels)
    rule = replace(basis.merge_rule, noise=noise)
    buffers = coadd_buffers(n, basis.n_channels, canvas_hw[1], rule, True)
    return Workload("assemble", canvas_hw[0], buffers, elements_per_row=n * basis.n_channels * canvas_hw[1])


def frame_bytes(info: FrameInfo) -> int:
    """Return the memory it takes to look at one frame, of which some may declare any size."""
    return PARENT_BYTES + math.prod(info.shape_hw) * MEASURE_BYTES_PER_PX


def disk_bytes(n_channels: int, variance: bool, shape_hw: tuple[int, int]) -> int:
    """Return what tiles and results of a mosaic of this size take on disk at least."""
    planes = n_channels + (n_channels if variance else 0)
    return shape_hw[0] * shape_hw[1] * 4 * (planes + 2 + planes + 1)


def _solver_bytes(basis: CostBasis, frame_px: int) -> int:
    """Memory of a solver that is another program, while the processes that measured wait."""
    return SOLVER_BYTES + frame_px * SOLVER_BYTES_PER_PX if basis.foreign_solver else 0


def estimate_rows(
    basis: CostBasis,
    infos: Sequence[FrameInfo],
    canvas_hw: tuple[int, int],
    decision: Decision | None,
    n_calibrations: int = 0,
) -> tuple[PlanRow, ...]:
    """Return what every phase is expected to cost.

    Parameters
    ----------
    infos : sequence of FrameInfo
        At least one.
    canvas_hw : tuple of int
        Height and width of the mosaic, px.
    decision : Decision or None
        Where frames are stacked; None: on the processor.
    n_calibrations : int
        Different sets of masters that frames are calibrated with.
    """
    n = len(infos)
    height, width = largest_frame(infos).shape_hw
    frame_px = height * width
    mpx = frame_px / 1e6
    canvas_px = canvas_hw[0] * canvas_hw[1]
    workload = _stack_workload(basis, infos, canvas_hw)
    columns = workload.elements_per_row // basis.n_channels
    dense_rows = most_block_rows(columns, basis.threads)
    block_rows = min(workload.rows, tallest_block_rows(dense_rows))
    # High blocks hold no more samples than those of the densest rows.
    wanted_bytes = sum(
        buffer.n_bytes(min(workload.rows, dense_rows) if buffer.name == "stack" else block_rows)
        for buffer in workload.buffers
    )
    # A single row is worked on whatever it takes.
    stack_bytes = max(min(basis.block_budget_bytes, wanted_bytes), workload.peak(1))
    # Per thread: one decoded window and its three colour planes, and the pages of a tile being written.
    window_bytes = basis.threads * frame_px * (2 + 4 * 2 * basis.n_channels) + 2 * frame_px * 4
    children = basis.workers if basis.workers > 1 and n > 1 and not basis.elsewhere else 0
    survey = PARENT_BYTES
    cores, threads = max(1, basis.elsewhere or basis.workers), basis.elsewhere or basis.threads
    calibrating = 0
    if n_calibrations:
        # A measuring process keeps two sets and reads a third; masters are made before, in blocks.
        calibrating = frame_px * MASTER_BYTES_PER_PX
        window_bytes += n_calibrations * frame_px * SET_BYTES_PER_PX + basis.threads * frame_px * 4
    at_work = max(1, children) * (frame_px * MEASURE_BYTES_PER_PX + calibrating)
    measure = (
        PARENT_BYTES
        + children * CHILD_BYTES
        + max(at_work, _solver_bytes(basis, frame_px))
        + n * SOLVED_BYTES
    )
    stacked_hw = _stacked_hw(basis, infos, canvas_hw)
    second_s, second_disk = 0.0, 0
    if basis.refine:
        second = refine_buffers(basis.n_channels, stacked_hw[1], 4 * frame_px, basis.threads)
        second_bytes = peak_bytes(second, min(stacked_hw[0], MAX_REFINE_ROWS), HALO_ROWS)
        # A block of one row may need more than the budget: windows are read as a whole.
        least = max(basis.block_budget_bytes, peak_bytes(second, 1, HALO_ROWS))
        stack_bytes = max(stack_bytes, min(least, second_bytes))
        second_s = n * mpx * REFINE_S_PER_MPX_CORE * basis.drizzle_scale**2 / threads
        # The co-add stays until the second pass over it is complete.
        planes = basis.n_channels * (2 if basis.variance else 1) + 1
        second_disk = stacked_hw[0] * stacked_hw[1] * (4 * planes + 2)
    sealing_bytes = BAND_COPIES * 4 * block_rows * stacked_hw[1]
    stack = PARENT_BYTES + n * FRAME_BYTES + stack_bytes + window_bytes + sealing_bytes
    streaming = coadd_buffers(4, basis.n_channels, canvas_hw[1], CombineRule("none"), True)
    assemble_rows = min(canvas_hw[0], MAX_BLOCK_ROWS)
    assemble = min(basis.block_budget_bytes, peak_bytes(streaming, assemble_rows))
    if basis.merge_rule is not None:
        of_tiles = _merge_workload(basis, canvas_hw)
        most = min(basis.block_budget_bytes, of_tiles.peak(assemble_rows))
        assemble = max(assemble, most, of_tiles.peak(1))
    assemble += PARENT_BYTES
    variance_planes = basis.n_channels if basis.variance else 0
    export = PARENT_BYTES + _picture_bytes(basis, canvas_hw) + 100_000_000
    # Packing saves less where a mosaic has no empty corners; tiles on the sphere are RGBA, packed.
    export_disk = canvas_px // 4 + canvas_px * 4 * basis.n_channels * basis.copies
    export_disk += canvas_px * 4 * (basis.zoom + basis.sphere)
    # Workers on other machines unpack there.
    unpacked = 0 if basis.elsewhere else sum(info.stored_bytes for info in infos if info.packed)
    tiles_disk = (
        round(max(1.4, len(basis.batches)) * canvas_px) * 4 * (basis.n_channels + 2 + variance_planes)
    )
    # Cut and merged tiles are temporary files.
    cut_disk = tiles_disk * (basis.cuts_tiles + (basis.merge_rule is not None))
    # Beside the tile in work: its weights, and facts of some of its pixels, until it is complete.
    bands_disk = second_disk + round(
        stacked_hw[0] * stacked_hw[1] * (4 + (2 + 4 * basis.n_channels) / SAMPLE_STEP**2)
    )
    science_disk = canvas_px * 4 * (basis.n_channels + 1 + variance_planes)
    device = "cpu" if decision is None else decision.device
    reason = "" if decision is None else decision.reason_key
    solves = n * SOLVE_S_PER_FRAME / cores
    cells = math.prod(-(-side // basis.mesh_cell_px) for side in (height, width))
    sky_bytes, sky_s = 0, 0.0
    if basis.solves_sky:
        nodes = lattice_nodes(n, canvas_px, basis.mesh_cell_px * basis.drizzle_scale, cells)
        one_bytes = solving_bytes(n, nodes, cells)
        at_once = channels_at_once(one_bytes, basis.block_budget_bytes, basis.threads, basis.n_channels)
        sky_bytes = one_bytes * at_once + n * cells * MESH_BYTES
        sky_s = min(n, MAX_JOINT_FRAMES) * basis.n_channels * SKY_S_PER_FRAME / at_once
    placing = max(n * max(REGISTERED_BYTES, COMPARED_BYTES + cells * CELL_BYTES), n * FRAME_BYTES + sky_bytes)
    rows = (
        PlanRow("phase0_survey", n, survey, 0, 0.2 + n * 0.003 / cores),
        PlanRow(
            "phase1_prepare", n, measure, n * 60_000, 3 + n * mpx * MEASURE_S_PER_MPX_CORE / cores + solves
        ),
        PlanRow("phase2_group", n, survey, 0, 0.1 + n * 2e-4),
        PlanRow("phase4_grid", n, survey + placing, 0, 0.3 + n * REGISTER_S_PER_FRAME + sky_s),
        PlanRow(
            "phase3_master_tiles",
            n,
            stack,
            tiles_disk + bands_disk + unpacked + cut_disk,
            n * mpx * STACK_S_PER_MPX_CORE * basis.drizzle_scale**2 / threads + second_s,
            device,
            reason,
        ),
        PlanRow(
            "phase5_assemble", 1, assemble, science_disk, canvas_px / 1e6 * ASSEMBLE_S_PER_MPX, device, reason
        ),
        PlanRow("phase6_export", 1, export, export_disk, 1 + canvas_px / 1e6 * EXPORT_S_PER_MPX),
        # Tiles that a later run may use again stay; the cost of the run is then theirs too.
        PlanRow(
            "phase7_cleanup",
            1,
            PARENT_BYTES,
            -bands_disk - unpacked - cut_disk - (0 if basis.keep_state else tiles_disk),
            0.1,
        ),
    )
    if not basis.compiles:
        return rows
    compiling = COMPILING_BYTES | {"phase1_prepare": COMPILING_CHILD_BYTES * max(1, children)}
    return tuple(replace(row, ram_bytes=row.ram_bytes + compiling.get(row.phase, 0)) for row in rows)


def _picture_bytes(basis: CostBasis, canvas_hw: tuple[int, int]) -> int:
    """Memory of making the pictures."""
    step = -(-max(canvas_hw) // basis.preview_max_dim)
    picture_hw = tuple(-(-side // step) for side in canvas_hw)
    picture_px = math.prod(picture_hw)

    def finishing(shape_hw: tuple[int, ...]) -> int:
        return math.prod(largest_part(side) for side in shape_hw) * FINISHING_BYTES_PER_PX

    most = max(picture_px * PICTURE_BYTES_PER_PX, picture_px * PAINTED_BYTES_PER_PX + finishing(picture_hw))
    # Where the picture is as large as the mosaic, its parts are these.
    if basis.zoom or basis.sphere:
        held = math.prod(canvas_hw) * SPHERE_BYTES_PER_PX if basis.sphere else 0
        band = canvas_hw[1] * MOST_PART_PX * 8
        most = max(most, picture_px * PAINTED_BYTES_PER_PX + finishing(canvas_hw) + held + band)
    return most


def small_pointings(infos: Sequence[FrameInfo], min_frames: int) -> int:
    """Return how many pointings have fewer frames than this, by the headers' positions."""
    return sum(n < min_frames for n in Counter(pointing_labels(infos)).values())
