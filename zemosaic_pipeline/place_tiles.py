"""Stacks that are given take the place of master tiles: where they lie, what they are worth, on the mosaic's pixels.

A set of tiles that one run made lies on one lattice already and is used as it is. Other stacks are resampled once, each
by a co-add of one source.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from zemosaic_core.coverage import edge_ramp, enlarge_rows
from zemosaic_core.errors import RunFailed
from zemosaic_core.pixel_map import build_pixel_map, footprint_bbox, map_coordinates_at
from zemosaic_core.sources import CoaddBlock, CoaddSource, CombineRule, RawRows
from zemosaic_core.stack_planes import block_factor, block_means, weights_of_stacks
from zemosaic_core.tile_gate import judge_tiles
from zemosaic_core.tile_lattice import shared_lattice
from zemosaic_core.transforms import Transform
from zemosaic_io.fits_write import ExtensionSpec, StreamingFits
from zemosaic_io.frame_store import TileStore
from zemosaic_io.manifest import Manifest, make_folder
from zemosaic_io.stack_pictures import is_own_tile
from zemosaic_pipeline import sky
from zemosaic_pipeline.context import RunContext
from zemosaic_pipeline.phase4_grid import Placed, header_cards
from zemosaic_pipeline.plan import RunPlan
from zemosaic_pipeline.records import FrameGroup, MasterTile, MosaicGrid, RegisteredFrame, SolvedFrame
from zemosaic_pipeline.sky import SkySolution
from zemosaic_pipeline.tile_memory import store_tile, stored_tile
from zemosaic_utils import coadd_on_grid

__all__ = [
    "TileSet",
    "fade_weights",
    "given_tiles",
    "judged",
    "placed_tile_set",
    "raw_frames",
    "run",
    "sky_behind",
]

PLACE_VERSION = 1
ALONE = CombineRule(rejection="none", combine="mean")
RAMP_DECIMATION = 4
READ_ROWS = 512


@dataclass(frozen=True)
class TileSet:
    """Tiles that one run made, where they are on their grid.

    Attributes
    ----------
    placed : Placed
        The grid of the set, and its tiles as frames on it.
    one_sky : bool
        One model of the sky stands behind all their frames.
    flux_gain : dict of int to tuple
        What brings each to the common scale of fluxes, by index.
    """

    placed: Placed
    one_sky: bool
    flux_gain: dict[int, tuple[float, ...]]


def _header(path: Path) -> fits.Header:
    return fits.getheader(path, 0)


def placed_tile_set(solved: Sequence[SolvedFrame]) -> TileSet | None:
    """Return the set that tiles are, all of one run and on one lattice of pixels; None when they are not.

    Nothing is measured anew then: a set that is fed back gives the mosaic it gave before.
    """
    paths = [Path(item.frame.info.path) for item in solved]
    if not all(item.frame.is_tile for item in solved) or not all(map(is_own_tile, paths)):
        return None
    headers = [_header(path) for path in paths]
    names = {str(header.get("ZMT_SET") or "") for header in headers}
    cards = [item.frame.info.wcs_cards for item in solved]
    if len(names) != 1 or "" in names or any(card is None for card in cards):
        return None
    shapes = [item.frame.info.shape_hw for item in solved]
    lattice = shared_lattice([card for card in cards if card is not None], shapes)
    if lattice is None:
        return None
    # The grid begins where that of the run began: cells in which tiles are compared are then the same.
    first_y, first_x = lattice.origins_yx[0]
    down = max(0, int(headers[0].get("ZMT_Y0", first_y)) - first_y)
    right = max(0, int(headers[0].get("ZMT_X0", first_x)) - first_x)
    wcs = WCS(cards[0]).deepcopy()
    wcs.wcs.crpix = lattice.crpix_xy + np.array([right, down])
    scale = float(np.sqrt(abs(np.linalg.det(wcs.pixel_scale_matrix)))) * 3600.0
    frames, gains = [], {}
    for item, header, (top, left) in zip(solved, headers, lattice.origins_yx, strict=True):
        y0, x0 = top + down, left + right
        n_channels = item.frame.info.n_channels
        gains[item.frame.index] = tuple(float(header.get(f"ZMT_FLX{c + 1}", 1.0)) for c in range(n_channels))
        frames.append(
            RegisteredFrame(
                solved=item,
                to_plane=Transform.from_matrix(np.array([[1.0, 0.0, x0], [0.0, 1.0, y0]])),
                to_frame=Transform.from_matrix(np.array([[1.0, 0.0, -x0], [0.0, 1.0, -y0]])),
                rms_px=0.0,
                n_matched=0,
                gain=(1.0,) * n_channels,
                kind="",
            )
        )
    linked = all(bool(header.get("ZMT_LINK")) for header in headers)
    grid = MosaicGrid(header_cards(wcs), (lattice.shape_hw[0] + down, lattice.shape_hw[1] + right), scale)
    indices = frozenset(item.frame.index for item in solved) if linked else frozenset[int]()
    one_sky = all(str(header.get("ZMT_SKY")) == "full" for header in headers)
    return TileSet(Placed(grid, tuple(frames), indices, {}), one_sky, gains)


def raw_frames(placed: Placed) -> tuple[RegisteredFrame, ...]:
    """Return the frames that are no stacks."""
    return tuple(frame for frame in placed.frames if not frame.solved.frame.is_tile)


def given_tiles(placed: Placed) -> tuple[RegisteredFrame, ...]:
    """Return the stacks that were given."""
    return tuple(frame for frame in placed.frames if frame.solved.frame.is_tile)


def sky_behind(
    frames: Sequence[RegisteredFrame],
    tile_set: TileSet | None,
    placed: Placed,
    plan: RunPlan,
    context: RunContext,
) -> SkySolution:
    """Return the model of the sky behind the raw frames; stacks were freed of theirs, or not, when they were made."""
    raw = [frame for frame in frames if not frame.solved.frame.is_tile]
    if len(raw) == len(frames):
        return sky.run(raw, placed, plan, context)
    if raw:
        # Tiles of a model and others of their own skies: all are compared by planes where they overlap.
        found = sky.run(raw, placed, plan, context)
        return replace(found, with_tiles=True)
    indices = tuple(frame.solved.frame.index for frame in frames)
    before = tile_set is not None and tile_set.one_sky
    return SkySolution(
        None, {}, indices, np.zeros(len(indices)), reason_key="sky_of_tiles", shared_before=before
    )


def judged(placed: Placed, plan: RunPlan, context: RunContext) -> tuple[RegisteredFrame, ...]:
    """Return the stacks; poor ones are told, or end the run where that is wished.

    Raises
    ------
    RunFailed
        A stack is poor, and the gate is set to fail.
    """
    tiles = given_tiles(placed)
    gate = plan.tile_gate
    if not gate.enabled or not tiles:
        return tiles
    noise = [
        float(np.mean(np.array(tile.gain) * tile.solved.measure.noise_adu)) * np.sqrt(_area(tile))
        for tile in tiles
    ]
    shares = [_valid_share(tile) for tile in tiles]
    verdicts = judge_tiles(noise, shares, sigma=gate.sigma, ratio=gate.ratio, min_valid=gate.min_valid)
    for tile, verdict in zip(tiles, verdicts, strict=True):
        if not verdict.key:
            continue
        name = context.name_of(tile.solved.frame.info.path)
        context.say(verdict.key, "WARN", name=name, **verdict.values)
        if gate.fail:
            raise RunFailed("run_error_tile_gate", f"{name} is poor; the gate ends the run", name=name)
    return tiles


def _valid_share(tile: RegisteredFrame) -> float:
    """Return the share of the cells of the sky mesh that hold a picture."""
    mesh = tile.solved.measure.columns("mesh")["mesh"]
    return float(np.isfinite(mesh).any(axis=0).mean())


class _Coarser:
    """Tiles as a `PixelSource` with pixels that are means of blocks, where the mosaic is coarser than they are."""

    def __init__(self, store: TileStore, factor: int) -> None:
        self._store = store
        self._factor = factor

    def _window(
        self, read: Callable[..., np.ndarray], key: int, y0: int, y1: int, x0: int, x1: int
    ) -> np.ndarray:
        n, (height, width) = self._factor, self._store.shape_hw(key)
        return block_means(read(key, y0 * n, min(y1 * n, height), x0 * n, min(x1 * n, width)), n)

    def read(self, key: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """Return the window (C, h, w); see `PixelSource`."""
        return self._window(self._store.read, key, y0, y1, x0, x1)

    def read_weight(self, key: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray | None:
        """Return the window of the weight map (h, w)."""

        def planes(*window: int) -> np.ndarray:
            weight = self._store.read_weight(*window)
            assert weight is not None
            return weight[np.newaxis]

        window: np.ndarray = self._window(planes, key, y0, y1, x0, x1)[0]
        return window

    def read_raw(self, key: int, y0: int, y1: int) -> RawRows | None:
        """Return None: tiles are decoded images."""
        return None


def _area(frame: RegisteredFrame) -> float:
    """Return how many pixels of the mosaic a pixel of the stack covers, in its middle."""
    height, width = frame.solved.frame.info.shape_hw
    x, y = (width - 1) / 2, (height - 1) / 2
    px, py = frame.to_plane.apply(np.array([x, x + 1.0, x]), np.array([y, y, y + 1.0]))
    return float(abs((px[1] - px[0]) * (py[2] - py[0]) - (px[2] - px[0]) * (py[1] - py[0])))


def tile_weights(
    tiles: Sequence[RegisteredFrame], frames: Sequence[RegisteredFrame], plan: RunPlan, context: RunContext
) -> np.ndarray:
    """Return the weight (N,) of each stack where it is as deep as in its middle, in the unit of those of frames."""
    counts = np.array([tile.solved.frame.info.stack_count for tile in tiles], float)
    if plan.stack.weighting == "none":
        return counts
    everything = [*frames, *tiles]
    spread = np.array([frame.gain for frame in everything]) * np.array(
        [frame.solved.measure.noise_adu for frame in everything]
    )
    spread = np.where(np.isfinite(spread) & (spread > 0), spread, np.nan)
    with np.errstate(invalid="ignore"):
        unit = np.nanmin(spread[: len(frames)] if frames else spread, axis=0)
        by_noise = np.nanmean((unit / spread[len(frames) :]) ** 2, axis=1)
    by_noise /= np.array([_area(tile) for tile in tiles])
    exposure = np.array([tile.solved.frame.info.total_exposure_s or np.nan for tile in tiles], float)
    found = weights_of_stacks(by_noise, exposure)
    for tile, held in zip(tiles, found.held, strict=True):
        if held:
            context.say("tile_noise_not_believed", "WARN", name=context.name_of(tile.solved.frame.info.path))
    return found.weights


def _covered_bbox(store: TileStore, key: int) -> tuple[int, int, int, int]:
    height, width = store.shape_hw(key)
    rows, columns = np.zeros(height, bool), np.zeros(width, bool)
    for y0 in range(0, height, READ_ROWS):
        y1 = min(height, y0 + READ_ROWS)
        covered = store.read_coverage(key, y0, y1) > 0
        rows[y0:y1] = covered.any(axis=1)
        columns |= covered.any(axis=0)
    if not rows.any():
        return (0, 0, 0, 0)
    y, x = np.flatnonzero(rows), np.flatnonzero(columns)
    return int(y[0]), int(y[-1]) + 1, int(x[0]), int(x[-1]) + 1


def _record(
    tile_id: int, path: Path, frame: RegisteredFrame, origin_yx: tuple[int, int], store: TileStore, key: int
) -> MasterTile:
    info, measure = frame.solved.frame.info, frame.solved.measure
    return MasterTile(
        tile_id=tile_id,
        path=str(path),
        origin_yx=origin_yx,
        shape_hw=store.shape_hw(key),
        frames=(frame.solved.frame.index,),
        exposure_s=float(info.total_exposure_s or 0.0),
        n_exposures=info.stack_count,
        noise_adu=tuple(float(a * b) for a, b in zip(measure.noise_adu, frame.gain, strict=True)),
        rejected_fraction=0.0,
        core_rejected_fraction=None,
        median_coverage=float(info.stack_count),
        map_error_px=0.0,
        covered_bbox=_covered_bbox(store, key),
        flux_gain=(1.0,) * info.n_channels,
        calibrated=info.calibrated,
        refine="refine_of_tiles",
    )


def _source(
    frame: RegisteredFrame, window: tuple[int, int, int, int], factor: int, has_weight: bool
) -> CoaddSource:
    y0, y1, x0, x1 = window
    height, width = frame.solved.frame.info.shape_hw

    def to_source(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        u, v = frame.to_frame.apply(x + x0, y + y0)
        return (u + 0.5) / factor - 0.5, (v + 0.5) / factor - 0.5

    bbox = (0, y1 - y0, 0, x1 - x0)
    gain = np.array(frame.gain, np.float32)
    return CoaddSource(
        key=frame.solved.frame.index,
        shape_hw=(-(-height // factor), -(-width // factor)),
        pixel_map=build_pixel_map(to_source, bbox, max_error_px=0.005),
        bbox=bbox,
        photometry=np.column_stack([gain, np.zeros((len(gain), 3), np.float32)]),
        weight=np.ones(len(gain), np.float32),
        has_weight_map=has_weight,
    )


def _nearest(plane: np.ndarray, source: CoaddSource, y0: int, y1: int, factor: int) -> np.ndarray:
    """Return rows of a plane (h, w) of the stack at the places of the mosaic; 0 beside it."""
    x1 = source.bbox[3]
    x, y = np.meshgrid(np.arange(x1, dtype=float), np.arange(y0, y1, dtype=float))
    u, v = map_coordinates_at(source.pixel_map, x.ravel(), y.ravel())
    ix = np.rint((u + 0.5) * factor - 0.5)
    iy = np.rint((v + 0.5) * factor - 0.5)
    inside = (ix >= 0) & (iy >= 0) & (ix < plane.shape[1]) & (iy < plane.shape[0])
    found = np.zeros(x.size, plane.dtype)
    found[inside] = plane[iy[inside].astype(np.int64), ix[inside].astype(np.int64)]
    return found.reshape(y1 - y0, x1)


def _resampled(
    frame: RegisteredFrame,
    weight: float,
    window: tuple[int, int, int, int],
    grid: MosaicGrid,
    plan: RunPlan,
    context: RunContext,
    path: Path,
) -> None:
    """Write a stack as a tile of the grid."""
    index, original = frame.solved.frame.index, Path(frame.solved.frame.info.path)
    store = TileStore({index: original})
    height, width = store.shape_hw(index)
    factor = block_factor(np.sqrt(_area(frame)), 1.0)
    y0, y1, x0, x1 = window
    shape = (y1 - y0, x1 - x0)
    source = _source(frame, window, factor, True)
    own = is_own_tile(original)
    depth = store.read_coverage(index, 0, height)
    known = store.read_weight(index, 0, height, 0, width)
    assert known is not None
    middle = float(np.median(known[known > 0])) if (known > 0).any() else 1.0
    wcs = WCS(grid.wcs_cards).deepcopy()
    wcs.wcs.crpix -= np.array([x0, y0], dtype=float)
    cards: dict[str, Any] = {
        **header_cards(wcs),
        "ZMT_TYPE": ("Master Tile", "ZeMosaic product"),
        "NEXP_SUM": (frame.solved.frame.info.stack_count, "number of exposures"),
        "EXPTOTAL": (float(frame.solved.frame.info.total_exposure_s or 0.0), "[s] exposure of all frames"),
        "ZMSOURCE": (context.name_of(original)[-60:], "stack it was made of"),
    }
    planes = (plan.n_channels, *shape)
    extensions = [
        ExtensionSpec("COVERAGE", shape, np.uint16),
        ExtensionSpec("WEIGHT", shape, np.float32),
        ExtensionSpec("CLIPPED", shape, np.uint8),
    ]
    if plan.output.variance:
        extensions.append(ExtensionSpec("VARIANCE", planes, np.float32))
    with StreamingFits(path, planes, cards, extensions=extensions) as out:

        def sink(row0: int, row1: int, block: CoaddBlock) -> None:
            out.write_rows(row0, block.image)
            seen = np.isfinite(block.image).any(axis=0)
            frames = np.where(seen, np.maximum(_nearest(depth, source, row0, row1, factor), 1), 0)
            out.write_rows(row0, frames.astype(np.uint16), ext="COVERAGE")
            out.write_rows(row0, block.weight.mean(axis=0) * np.float32(weight / middle), ext="WEIGHT")
            out.write_rows(row0, block.clipped_bits(), ext="CLIPPED")
            if plan.output.variance:
                out.write_rows(row0, np.full_like(block.image, np.nan), ext="VARIANCE")

        coadd_on_grid(
            store if factor == 1 else _Coarser(store, factor),
            [source],
            shape,
            plan.n_channels,
            ALONE,
            plan.stack.kernel,
            sink=sink,
            budget_bytes=plan.block_budget_bytes,
            policy=context.policy,
            threads=plan.threads,
            cancel=context.cancel,
            restart=lambda: None,  # every row is written to its place
        )
        if not own:
            fade_weights(out, shape, plan.stack.tile_ramp_px)
        out.commit()


def fade_weights(out: StreamingFits, shape: tuple[int, int], ramp_px: int) -> None:
    """Let the weights fall to zero at the border of the picture."""
    if ramp_px <= 0:
        return
    step = RAMP_DECIMATION
    valid = np.asarray(out.read_rows(0, shape[0], ext="COVERAGE")[::step, ::step]) > 0
    small = edge_ramp(valid, max(1, ramp_px // step))
    for y0 in range(0, shape[0], READ_ROWS):
        y1 = min(shape[0], y0 + READ_ROWS)
        weights = np.asarray(out.read_rows(y0, y1, ext="WEIGHT"))
        ramp = np.maximum(enlarge_rows(small, step, y0, y1, shape[1]), 1e-3)
        out.write_rows(y0, (weights * ramp).astype(np.float32), ext="WEIGHT")


def _tile_key(
    frame: RegisteredFrame, weight: float, grid: MosaicGrid, plan: RunPlan, manifest: Manifest
) -> str:
    return manifest.key(
        "placed_tile",
        PLACE_VERSION,
        frame.solved.measure.content_key,
        frame.to_frame.to_dict(),
        frame.gain,
        weight,
        frame.solved.frame.info.stack_count,
        frame.solved.frame.info.total_exposure_s,
        grid.wcs_cards,
        grid.shape_hw,
        plan.stack.kernel,
        plan.stack.tile_ramp_px,
        plan.output.variance,
    )


def run(
    tiles: Sequence[RegisteredFrame],
    frames: Sequence[RegisteredFrame],
    tile_set: TileSet | None,
    grid: MosaicGrid,
    plan: RunPlan,
    context: RunContext,
    manifest: Manifest,
    first_id: int,
) -> list[MasterTile]:
    """Return the stacks as master tiles.

    Parameters
    ----------
    frames : sequence of RegisteredFrame
        Raw frames of the same run, whose weights they are compared with.
    tile_set : TileSet or None
        Where the stacks are one already.
    first_id : int
        Number of the first tile.
    """
    made: list[MasterTile] = []
    if tile_set is not None:
        for number, frame in enumerate(tiles):
            index, path = frame.solved.frame.index, Path(frame.solved.frame.info.path)
            x, y = frame.to_plane.apply(0.0, 0.0)
            record = _record(
                first_id + number,
                path,
                frame,
                (round(float(y)), round(float(x))),
                TileStore({index: path}),
                index,
            )
            made.append(replace(record, flux_gain=tile_set.flux_gain[index]))
            context.tile_finished(made[-1])
        context.say("run_info_tile_set", n=len(made))
        return made
    folder = context.state_dir / "tiles"
    make_folder(folder)
    weights = tile_weights(tiles, frames, plan, context)
    for number, (frame, weight) in enumerate(zip(tiles, weights, strict=True)):
        context.cancel.check()
        info = frame.solved.frame.info
        window = footprint_bbox(frame.to_plane.apply, info.shape_hw, grid.shape_hw)
        if window[0] >= window[1]:
            context.leave_out(
                str(info.path), "phase3_master_tiles", "tile_outside_grid", group=first_id + number
            )
            continue
        group = FrameGroup(first_id + number, (frame.solved.frame.index,), 0.0, 0.0)
        key = _tile_key(frame, float(weight), grid, plan, manifest)
        tile = stored_tile(manifest, key, group, [frame], folder) if plan.resume else None
        if tile is None:
            path = folder / f"master_tile_{group.group_id:03d}_{key[:12]}.fits"
            _resampled(frame, float(weight), window, grid, plan, context, path)
            tile = _record(group.group_id, path, frame, (window[0], window[2]), TileStore({0: path}), 0)
            store_tile(manifest, key, tile)
        made.append(tile)
        context.tile_finished(tile)
        context.progress(number + 1, len(tiles), context.name_of(info.path))
    return made
