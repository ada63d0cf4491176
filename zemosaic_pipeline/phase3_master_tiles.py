"""Phase 3: stack each group of frames into a master tile on a window of the mosaic's grid."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from astropy.wcs import WCS

from zemosaic_align_stack import refine_on_grid
from zemosaic_core.block_facts import summarise
from zemosaic_core.coverage import edge_ramp, enlarge_rows
from zemosaic_core.detector_surface import mean_of_surface
from zemosaic_core.errors import SaveFailed, SkipItem
from zemosaic_core.normalize import normalise_group
from zemosaic_core.pixel_map import build_pixel_map
from zemosaic_core.sky_lattice import cell_centres
from zemosaic_core.sources import CoaddBlock, CoaddSource, SampleNoise
from zemosaic_core.weights import frame_weights
from zemosaic_io.fits_write import ExtensionSpec, StreamingFits
from zemosaic_io.frame_identity import is_as_surveyed, locate_again
from zemosaic_io.frame_store import FrameStore
from zemosaic_io.manifest import Manifest, hash_key, make_folder
from zemosaic_io.tile_bands import TileBands
from zemosaic_pipeline.calibrated_noise import common_steps, shared_variance
from zemosaic_pipeline.cluster_blocks import ClusterBlocks
from zemosaic_pipeline.context import RunContext
from zemosaic_pipeline.frame_boundary import result_or_skip
from zemosaic_pipeline.frame_colour import frame_colours
from zemosaic_pipeline.phase4_grid import header_cards
from zemosaic_pipeline.plan import RunPlan
from zemosaic_pipeline.records import (
    FrameGroup,
    FrameTerms,
    MasterTile,
    MosaicGrid,
    PixelMasks,
    RegisteredFrame,
)
from zemosaic_pipeline.refinement import TwoPasses, refine_sources, refine_tile, refinement_of
from zemosaic_pipeline.tile_cards import TileSetCards, tile_cards
from zemosaic_pipeline.tile_memory import store_tile, stored_tile, tile_key
from zemosaic_utils import coadd_on_grid

__all__ = ["PHASE", "create_tile", "run"]

PHASE = "phase3_master_tiles"
# Stars of each frame, the brightest, on whose centres the rejection is watched.
WATCHED_STARS = 200
MAP_ERROR_PX = 0.005
# Variance of a sample of white noise, relative to that of a pixel, at all fractions of a pixel alike.
SAMPLE_VARIANCE = {"lanczos3": 0.80, "bilinear": 0.44}
# The edge ramp is wide and smooth: a distance map on every fourth pixel is exact to a fraction of a percent.
RAMP_DECIMATION = 4
BANDS = "bands"


def _corners(shape_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return points along the border of a frame; corners alone miss the bulge of a distorted edge."""
    height, width = shape_hw
    along = np.linspace(-0.5, 0.5, 9)
    x = np.concatenate([along, along, np.full(9, -0.5), np.full(9, 0.5)]) * width + (width - 1) / 2
    y = np.concatenate([np.full(9, -0.5), np.full(9, 0.5), along, along]) * height + (height - 1) / 2
    return x, y


def tile_window(
    frames: Sequence[RegisteredFrame], grid_shape_hw: tuple[int, int]
) -> tuple[int, int, int, int] | None:
    """Return ``(y0, y1, x0, x1)`` on the grid that holds all frames; None when they miss the grid."""
    xs, ys = [], []
    for frame in frames:
        x, y = frame.to_plane.apply(*_corners(frame.solved.frame.info.shape_hw))
        xs.append(x)
        ys.append(y)
    x, y = np.concatenate(xs), np.concatenate(ys)
    y0, y1 = max(0, math.floor(y.min())), min(grid_shape_hw[0], math.ceil(y.max()) + 1)
    x0, x1 = max(0, math.floor(x.min())), min(grid_shape_hw[1], math.ceil(x.max()) + 1)
    return (y0, y1, x0, x1) if y0 < y1 and x0 < x1 else None


def _source(
    frame: RegisteredFrame,
    window: tuple[int, int, int, int],
    terms: FrameTerms,
    weight: np.ndarray,
    feather_px: float,
    has_weight_map: bool,
) -> CoaddSource | None:
    y0, y1, x0, x1 = window
    shape = frame.solved.frame.info.shape_hw
    px, py = frame.to_plane.apply(*_corners(shape))
    bbox = (
        max(0, math.floor(py.min()) - y0),
        min(y1 - y0, math.ceil(py.max()) + 1 - y0),
        max(0, math.floor(px.min()) - x0),
        min(x1 - x0, math.ceil(px.max()) + 1 - x0),
    )
    if bbox[0] >= bbox[1] or bbox[2] >= bbox[3]:
        return None

    def to_source(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return frame.to_frame.apply(x + x0, y + y0)

    return CoaddSource(
        key=frame.solved.frame.index,
        shape_hw=shape,
        pixel_map=build_pixel_map(to_source, bbox, max_error_px=MAP_ERROR_PX),
        bbox=bbox,
        photometry=terms.photometry,
        weight=weight,
        feather_px=feather_px,
        has_weight_map=has_weight_map,
        radial=terms.radial if terms.radial.any() else None,
        surface=terms.surface,
    )


def frame_terms(
    frames: Sequence[RegisteredFrame], sky: Mapping[int, FrameTerms], plan: RunPlan
) -> list[FrameTerms]:
    """Return the terms of each frame: those of the model of the whole sky, or what brings this group onto one sky."""
    if sky:
        return [sky[frame.solved.frame.index] for frame in frames]
    method = plan.stack.normalise
    if method == "linear_fit" and plan.sky.model == "none":
        method = "levels"
    of_group = normalisation(frames, method, plan.measure.mesh_cell_px).astype(np.float32)
    return [FrameTerms(terms, np.zeros_like(terms)) for terms in of_group]


def normalisation(frames: Sequence[RegisteredFrame], method: str, cell_px: int) -> np.ndarray:
    """Return the photometric terms (N, C, 4) that bring the frames of a group onto one sky."""
    meshes = np.stack([frame.open_mesh() for frame in frames])
    height, width = frames[0].solved.frame.info.shape_hw
    x, y = cell_centres((height, width), meshes.shape[2:], cell_px)
    return normalise_group(
        np.array([frame.gain for frame in frames]),
        np.array([frame.solved.measure.sky_adu for frame in frames]),
        meshes,
        np.stack([np.stack(frame.to_plane.apply(x, y), axis=-1) for frame in frames]),
        np.array([frame.solved.measure.noise_adu for frame in frames]),
        method,
        uv=np.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], axis=-1),
    )


def sample_noise(
    frames: Sequence[RegisteredFrame], weights: np.ndarray, terms: Sequence[FrameTerms], kernel: str
) -> SampleNoise | None:
    """Return what is known beforehand about the samples of a co-add; None where a channel's noise is not known.

    Parameters
    ----------
    weights : ndarray, shape (N, C)
    terms : sequence of FrameTerms
    """
    photometry = np.array([term.photometry for term in terms], float)
    f1, f2, d1, d2 = np.moveaxis(np.array([term.radial for term in terms], float), -1, 0)
    # Means of q and q^2 over the detector.
    gain = photometry[..., 0] * (1 + f1 / 3 + f2 / 6)
    offset = photometry[..., 1] + d1 / 3 + d2 / 6
    for own, term in zip(offset, terms, strict=True):
        if term.surface is not None:
            own += mean_of_surface(term.surface)
    noise = np.array([frame.solved.measure.noise_adu for frame in frames], float)
    sky = np.array([frame.solved.measure.sky_adu for frame in frames], float)
    known = (noise > 0) & (weights > 0)
    variance = np.where(known, SAMPLE_VARIANCE[kernel] * (gain * noise) ** 2 * weights, np.nan)
    level = gain * sky + offset
    if not (np.isfinite(variance).any(axis=0) & np.isfinite(level).any(axis=0)).all():
        return None
    return SampleNoise(
        tuple(map(float, np.nanmedian(variance, axis=0))), tuple(map(float, np.nanmedian(level, axis=0)))
    )


def _write_weights(out: StreamingFits, bands: TileBands, shape_hw: tuple[int, int], ramp_px: int) -> None:
    """Write the weights, times a ramp that falls to zero at the border of the covered area."""
    step = RAMP_DECIMATION
    small = None
    if ramp_px > 0:
        valid = np.asarray(out.read_rows(0, shape_hw[0], ext="COVERAGE")[::step, ::step]) > 0
        small = edge_ramp(valid, max(1, ramp_px // step))
    for y0, y1, weights in bands.weights():
        if small is not None:
            # A covered pixel at the very edge keeps a trace of weight: where it is alone it must still show.
            weights = weights * np.maximum(enlarge_rows(small, step, y0, y1, shape_hw[1]), 1e-3)
        out.write_rows(y0, weights, ext="WEIGHT")


def star_cores(frames: Sequence[RegisteredFrame], window: tuple[int, int, int, int]) -> np.ndarray:
    """Return the pixels (K, 2), y and x within a window of the grid, on which stars have their centres; row by row."""
    y0, y1, x0, x1 = window
    places = []
    for frame in frames:
        stars = frame.solved.measure.columns("x", "y")
        x, y = frame.to_plane.apply(stars["x"][:WATCHED_STARS], stars["y"][:WATCHED_STARS])
        places.append(np.column_stack([np.rint(y) - y0, np.rint(x) - x0]).astype(np.int64))
    yx = np.unique(np.concatenate(places), axis=0)
    return yx[((yx >= 0) & (yx < [y1 - y0, x1 - x0])).all(axis=1)]


def _flux_gain(frames: Sequence[RegisteredFrame], weights: np.ndarray, plan: RunPlan) -> tuple[float, ...]:
    """Return what brings the stack of frames to the flux scale of the clear ones; 1 when they were brought there."""
    gains = np.array([frame.gain for frame in frames], dtype=float)
    if plan.stack.normalise == "linear_fit":  # the model of the sky brings them there too
        return (1.0,) * plan.n_channels
    transparency = np.where(np.isfinite(gains) & (gains > 0), 1 / np.where(gains > 0, gains, 1.0), 1.0)
    if plan.stack.rule.combine == "median":
        return tuple(map(float, 1 / np.median(transparency, axis=0)))
    return tuple(map(float, 1 / np.average(transparency, axis=0, weights=np.maximum(weights, 1e-12))))


def lowest_ceiling(
    frames: Sequence[RegisteredFrame], terms: Sequence[FrameTerms], masks: PixelMasks
) -> float:
    """Return the lowest level at which the light of a frame was cut off, on the common scale; NaN: nowhere."""
    ceilings = [
        term.photometry[:, 0] * masks.clip_levels[frame.solved.frame.index] + term.photometry[:, 1]
        for frame, term in zip(frames, terms, strict=True)
        if frame.solved.frame.index in masks.clip_levels
    ]
    finite = np.array([value for levels in ceilings for value in levels if np.isfinite(value)])
    return float(finite.min()) if finite.size else float("nan")


def create_tile(
    group: FrameGroup,
    frames: Sequence[RegisteredFrame],
    weights: np.ndarray,
    hot_pixels: dict[int, np.ndarray],
    masks: PixelMasks,
    sky: Mapping[int, FrameTerms],
    grid: MosaicGrid,
    plan: RunPlan,
    context: RunContext,
    path: Path,
    on_rows: Callable[[int, int], object] | None = None,
    bands: TileBands | None = None,
    tile_set: TileSetCards | None = None,
) -> MasterTile:
    """Stack one group and write its tile.

    Parameters
    ----------
    weights : ndarray, shape (N, C)
        Weight of each frame, comparable between groups.
    masks : PixelMasks
    sky : mapping of int to FrameTerms
        Terms of every frame from the model of the sky; empty: the group finds a common sky of its own.
    on_rows : callable, optional
        ``on_rows(done, total)`` as rows of the tile are finished.
    tile_set : TileSetCards, optional
        What joins this tile to the others of its run.
    bands : TileBands, optional
        Rows of the same tile that are finished already; those that are made here outlive a run that ends early. They
        are still there when the tile is complete.

    Raises
    ------
    SkipItem
        No frame of the group touches the grid; or rows that were read are not those that were measured.
    SaveFailed
        The tile cannot be written.
    """
    window = tile_window(frames, grid.shape_hw)
    if window is None:
        raise SkipItem(
            "tile_outside_grid", f"group {group.group_id} does not touch the mosaic", group=group.group_id
        )
    terms = frame_terms(frames, sky, plan)
    candidates = [
        _source(
            frame,
            window,
            terms[i],
            weights[i].astype(np.float32),
            plan.stack.feather_px,
            plan.stack.radial is not None,
        )
        for i, frame in enumerate(frames)
    ]
    sources = [source for source in candidates if source is not None]
    y0, y1, x0, x1 = window
    shape = (y1 - y0, x1 - x0)
    wcs = WCS(grid.wcs_cards).deepcopy()
    wcs.wcs.crpix -= np.array([x0, y0], dtype=float)
    store = FrameStore(
        {frame.solved.frame.index: frame.solved.frame.info for frame in frames},
        hot_pixels,
        colours=frame_colours(frames),
        radial=plan.stack.radial,
        row_sums={
            frame.solved.frame.index: frame.solved.measure.columns("row_sums")["row_sums"] for frame in frames
        },
        zero_is_missing={f.solved.frame.index for f in frames if f.solved.measure.zero_is_missing},
        calibrations={
            f.solved.frame.index: f.solved.frame.calibration for f in frames if f.solved.frame.calibration
        },
        unpack_dir=context.work_dir,
        clip_levels=masks.clip_levels,
        masked=masks.spans,
    )
    extensions = [
        ExtensionSpec("COVERAGE", shape, np.uint16),
        ExtensionSpec("WEIGHT", shape, np.float32),
        ExtensionSpec("CLIPPED", shape, np.uint8),
    ]
    if plan.output.variance:
        extensions.append(ExtensionSpec("VARIANCE", (plan.n_channels, *shape), np.float32))
    rule = replace(plan.stack.rule, noise=sample_noise(frames, weights, terms, plan.stack.kernel))
    refinement = refinement_of(
        sources,
        rule,
        plan.stack.kernel,
        wanted=plan.stack.cfa_refine,
        kind=frames[0].solved.frame.info.kind,
        scale=plan.grid.drizzle_scale,
    )
    flux_gain = _flux_gain(frames, weights, plan)
    own_set = None if tile_set is None else replace(tile_set, flux_gain=flux_gain, origin_yx=(y0, x0))
    cards = tile_cards(group, frames, plan, header_cards(wcs), refinement.on, own_set)
    steps = common_steps(frames, store.calibration_of)
    if steps:
        cards["CALSTAT"] = (steps, "bias, dark, flat of all frames")
    unseen = shared_variance(frames, weights, terms, store.calibration_of, SAMPLE_VARIANCE[plan.stack.kernel])
    progress = TwoPasses(on_rows, refinement.on)
    threads = min(plan.threads, plan.stack.threads)
    elsewhere = _on_cluster(store, context)
    kept = bands is not None
    bands = bands or TileBands(path.with_name(f".{path.stem}.rows"), "", with_variance=plan.output.variance)
    bands.watch(star_cores(frames, window))
    bands.recover(path)
    with StreamingFits(
        path, (plan.n_channels, *shape), cards, extensions=extensions, unfinished=bands.unfinished
    ) as out:
        finished = bands.take_up(out)
        if finished:
            context.say("run_info_rows_reused", rows=finished, total=shape[0])

        def sink(row0: int, row1: int, block: CoaddBlock) -> None:
            if unseen is not None:
                block = replace(block, variance=block.variance + unseen[:, None, None].astype(np.float32))
            bands.add(out, row0, row1, block)

        def restart() -> None:
            bands.restart(finished)

        if finished < shape[0]:
            (coadd_on_grid if elsewhere is None else elsewhere.coadd)(
                store,
                sources,
                shape,
                plan.n_channels,
                rule,
                plan.stack.kernel,
                sink=sink,
                budget_bytes=plan.block_budget_bytes,
                policy=context.policy,
                threads=threads,
                max_frames_per_pass=plan.stack.max_frames_per_pass,
                on_rows=progress.first,
                restart=restart,
                cancel=context.cancel,
                first_row=finished,
                # Rows of the sky, whatever part of it this tile covers.
                lattice_row=-grid.first_pixel_yx[0] - y0,
            )
        bands.record(out)
        if refinement.on and rule.noise is not None:
            # Into a file of its own: the co-add is still there when the run ends before the second pass does.
            _write_weights(out, bands, shape, 0)
            with StreamingFits(path, (plan.n_channels, *shape), cards, extensions=extensions) as final:
                refine_tile(
                    out,
                    final,
                    store,
                    refine_sources(
                        frames,
                        sources,
                        terms,
                        (y0, x0),
                        rule.noise,
                        MAP_ERROR_PX,
                        weights=weights,
                        scale=plan.grid.drizzle_scale,
                    ),
                    shape,
                    rule.noise,
                    scale=plan.grid.drizzle_scale,
                    with_variance=plan.output.variance,
                    budget_bytes=plan.block_budget_bytes,
                    policy=context.policy,
                    threads=threads,
                    on_rows=progress.second,
                    cancel=context.cancel,
                    refine=refine_on_grid if elsewhere is None else elsewhere.refine,
                )
                _write_weights(final, bands, shape, plan.stack.tile_ramp_px)
                final.commit()
        else:
            _write_weights(out, bands, shape, plan.stack.tile_ramp_px)
            out.commit()
    facts = summarise(bands.facts)
    if not kept:
        bands.remove()
    return MasterTile(
        tile_id=group.group_id,
        path=str(path),
        origin_yx=(y0, x0),
        shape_hw=shape,
        frames=tuple(frame.solved.frame.index for frame in frames),
        exposure_s=float(sum(frame.solved.frame.info.total_exposure_s or 0.0 for frame in frames)),
        n_exposures=sum(frame.solved.frame.info.stack_count for frame in frames),
        noise_adu=facts.noise_adu,
        rejected_fraction=facts.rejected_fraction,
        core_rejected_fraction=facts.core_rejected_fraction,
        median_coverage=facts.median_coverage,
        covered_bbox=facts.covered_bbox,
        flux_gain=flux_gain,
        calibrated=steps,
        saturate_adu=lowest_ceiling(frames, terms, masks),
        map_error_px=max((source.pixel_map.max_error_px for source in sources), default=0.0),
        refine=refinement.reason_key,
        refine_values=refinement.values,
    )


def _on_cluster(store: FrameStore, context: RunContext) -> ClusterBlocks | None:
    """Return what has blocks worked on by a cluster; None where this machine does it."""
    if context.cluster is None:
        return None
    if store.has_packed:
        context.say("cluster_packed_here")
        return None
    return ClusterBlocks(context.cluster, context.policy)


def _as_measured(frame: RegisteredFrame) -> RegisteredFrame:
    """Return the frame as its file is now.

    Raises
    ------
    SkipItem
        The file holds other pixels than those measured, or cannot be read any more.
    """
    info = frame.solved.frame.info
    if is_as_surveyed(info):
        return frame
    now = locate_again(info, frame.solved.measure.content_key)
    return replace(frame, solved=replace(frame.solved, frame=replace(frame.solved.frame, info=now)))


def _still_there(
    frames: Sequence[RegisteredFrame],
    context: RunContext,
    lost: SkipItem | None = None,
    tried_again: Collection[str] = (),
) -> list[RegisteredFrame]:
    """Return the frames whose pixels are those measured; the others are left out with their reason.

    Parameters
    ----------
    lost : SkipItem, optional
        Why a frame, named in its values, could not be stacked. It is kept when its pixels are found in another
        place of the file, as after another program wrote into its header.
    tried_again : collection of str
        Paths of frames that were kept for that reason before.
    """
    kept = []
    for frame in frames:
        path = str(frame.solved.frame.info.path)
        now = result_or_skip(path, _as_measured, frame)
        if lost is not None and lost.values.get("path") == path and (now is frame or path in tried_again):
            now = lost
        if isinstance(now, SkipItem):
            context.leave_out(path, PHASE, now.key, **now.values)
        else:
            kept.append(now)
    return kept


@dataclass(frozen=True)
class _Maker:
    """Makes the tile of one group, or takes the one made before."""

    weights: Mapping[int, np.ndarray]
    hot_pixels: dict[int, np.ndarray]
    masks: PixelMasks
    sky: Mapping[int, FrameTerms]
    grid: MosaicGrid
    plan: RunPlan
    context: RunContext
    manifest: Manifest
    folder: Path
    tile_set: TileSetCards

    def tile(
        self, group: FrameGroup, frames: Sequence[RegisteredFrame], on_rows: Callable[[int, int], object]
    ) -> tuple[MasterTile | None, bool]:
        """Return the tile, or None when nothing of the group is left; and whether it was made before."""
        frames = _still_there(frames, self.context)
        tried_again: set[str] = set()
        while frames:
            weights = np.stack([self.weights[frame.solved.frame.index] for frame in frames])
            key = tile_key(
                self.manifest,
                frames,
                weights,
                self.hot_pixels,
                self.masks,
                self.sky,
                self.grid,
                self.plan,
                self.tile_set,
            )
            if self.plan.resume:
                tile = stored_tile(self.manifest, key, group, frames, self.folder)
                if tile is not None:
                    return tile, True
            path = self.folder / f"master_tile_{group.group_id:03d}_{key[:12]}.fits"
            bands = self._bands_of(key)
            try:
                tile = create_tile(
                    group,
                    frames,
                    weights,
                    self.hot_pixels,
                    self.masks,
                    self.sky,
                    self.grid,
                    self.plan,
                    self.context,
                    path,
                    on_rows,
                    bands,
                    self.tile_set,
                )
            except SaveFailed:
                bands.remove()
                raise
            except SkipItem as skip:
                left = _still_there(frames, self.context, skip, tried_again)
                if len(left) == len(frames) and all(a is b for a, b in zip(left, frames, strict=True)):
                    self.context.say(skip.key, "WARN", **skip.values)
                    return None, False
                tried_again.add(str(skip.values.get("path")))
                frames = left
                continue
            store_tile(self.manifest, key, tile)
            bands.remove()
            return tile, False
        return None, False

    def _bands_of(self, key: str) -> TileBands:
        """Return the finished rows of this tile; those of any other one are removed, for room on the disk."""
        folder = self.folder.with_name(BANDS)
        for other in folder.glob("*"):
            if other.name != key or not self.plan.resume:
                shutil.rmtree(other, ignore_errors=True)
        return TileBands(folder / key, key, with_variance=self.plan.output.variance)


def _tell_refinement(tiles: Sequence[MasterTile], plan: RunPlan, context: RunContext) -> None:
    """Say how many tiles got the second pass, or why none did, where one was wanted."""
    n = sum(tile.refine == "refine_on" for tile in tiles)
    context.detail(refined_tiles=n)
    if n:
        context.say("run_info_refined", n=n, of=len(tiles))
    elif tiles and plan.refine.on:
        context.say(tiles[0].refine, **tiles[0].refine_values)


def _set_key(placed: Sequence[RegisteredFrame], sky: Mapping[int, FrameTerms]) -> str:
    """Return what levels and fluxes of all tiles follow from, in short."""
    gains = [(frame.solved.measure.content_key, frame.gain) for frame in placed]
    terms = [sky[index].photometry.tolist() for index in sorted(sky)]
    return hash_key("tile set", gains, terms)[:16]


def run(
    groups: Sequence[FrameGroup],
    placed: Sequence[RegisteredFrame],
    hot_pixels: dict[int, np.ndarray],
    masks: PixelMasks,
    sky: Mapping[int, FrameTerms],
    grid: MosaicGrid,
    plan: RunPlan,
    context: RunContext,
    manifest: Manifest,
    *,
    linked: bool = False,
) -> list[MasterTile]:
    """Return the master tiles; a tile made before from the same frames and numbers is used again.

    A frame that can no longer be read, or whose pixels are not those that were measured, is left out, and its
    group stacked without it.
    """
    folder = context.state_dir / "tiles"
    make_folder(folder)
    by_index = {frame.solved.frame.index: i for i, frame in enumerate(placed)}
    weights = frame_weights(
        np.array([frame.solved.measure.noise_adu for frame in placed]),
        np.array([frame.solved.measure.fwhm_px for frame in placed]),
        np.array([frame.gain for frame in placed]),
        plan.stack.weighting,
    )
    wanted = np.array([frame.solved.frame.wanted_weight for frame in placed], np.float32)
    weights = weights * wanted[:, None]
    by_frame = {index: weights[i] for index, i in by_index.items()}
    tile_set = TileSetCards(_set_key(placed, sky), bool(sky), linked)
    maker = _Maker(by_frame, hot_pixels, masks, sky, grid, plan, context, manifest, folder, tile_set)
    tiles: list[MasterTile] = []
    n_reused = 0
    for done, group in enumerate(groups):
        context.cancel.check()

        def on_rows(rows: int, of: int, done: int = done) -> None:
            context.progress(done, len(groups), within=rows / of)

        members = [placed[by_index[i]] for i in group.members if i in by_index]
        tile, reused = maker.tile(group, members, on_rows)
        if tile is None:
            continue
        n_reused += reused
        tiles.append(tile)
        context.tile_finished(tile)
        context.progress(done + 1, len(groups), Path(tile.path).name)
    shutil.rmtree(folder.with_name(BANDS), ignore_errors=True)
    _tell_refinement(tiles, plan, context)
    if n_reused:
        context.say("run_info_tiles_reused", tiles=n_reused)
    return tiles
