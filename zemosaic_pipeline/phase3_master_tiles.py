"""Phase 3: stack each group of frames into a master tile on a window of the mosaic's grid."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from astropy.wcs import WCS

from zemosaic_align_stack import refine_on_grid
from zemosaic_core.block_facts import summarise
from zemosaic_core.coverage import edge_ramp, enlarge_rows
from zemosaic_core.errors import SaveFailed, SkipItem
from zemosaic_core.sources import CoaddBlock
from zemosaic_core.tile_rows import TileRows, TileRule
from zemosaic_core.weights import frame_weights
from zemosaic_io.fits_write import ExtensionSpec, StreamingFits
from zemosaic_io.frame_identity import is_as_surveyed, locate_again
from zemosaic_io.manifest import Manifest, hash_key, make_folder
from zemosaic_io.tile_bands import TileBands
from zemosaic_pipeline.calibrated_noise import common_steps, shared_variance
from zemosaic_pipeline.cluster_blocks import ClusterBlocks
from zemosaic_pipeline.context import RunContext
from zemosaic_pipeline.frame_boundary import result_or_skip
from zemosaic_pipeline.growing_picture import GrowingPicture
from zemosaic_pipeline.patience import HOPELESS, SILENT, nothing_answers_for
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
from zemosaic_pipeline.tile_sources import (
    MAP_ERROR_PX,
    SAMPLE_VARIANCE,
    TileInputs,
    flux_gain_of,
    frame_store,
    frame_terms,
    lowest_ceiling,
    sample_noise,
    star_cores,
    tile_sources,
    tile_window,
)
from zemosaic_utils import coadd_on_grid

__all__ = ["PHASE", "create_tile", "run"]

PHASE = "phase3_master_tiles"
# The edge ramp is wide and smooth: a distance map on every fourth pixel is exact to a fraction of a percent.
RAMP_DECIMATION = 4
BANDS = "bands"


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


def create_tile(
    group: FrameGroup,
    frames: Sequence[RegisteredFrame],
    weights: np.ndarray,
    inputs: TileInputs,
    context: RunContext,
    path: Path,
    on_rows: Callable[[int, int], object],
    bands: TileBands,
    *,
    alone: bool = False,
) -> MasterTile:
    """Stack one group and write its tile.

    Parameters
    ----------
    weights : ndarray, shape (N, C)
        Weight of each frame, comparable between groups.
    inputs : TileInputs
    on_rows : callable
        ``on_rows(done, total)`` as rows of the tile are finished.
    bands : TileBands
        Rows of the same tile that are finished already; those that are made here outlive a run that ends early. They
        are still there when the tile is complete.
    alone : bool
        It is the only tile of the run, and shown while it grows.

    Raises
    ------
    SkipItem
        No frame of the group touches the grid; or rows that were read are not those that were measured.
    SaveFailed
        The tile cannot be written.
    """
    plan, grid = inputs.plan, inputs.grid
    window = tile_window(frames, grid.shape_hw)
    if window is None:
        raise SkipItem(
            "tile_outside_grid", f"group {group.group_id} does not touch the mosaic", group=group.group_id
        )
    terms = frame_terms(frames, inputs.sky, plan)
    sources = tile_sources(
        frames, window, terms, weights, plan, context.work_dir, on_one_sky=bool(inputs.sky)
    )
    y0, y1, x0, x1 = window
    shape = (y1 - y0, x1 - x0)
    wcs = WCS(grid.wcs_cards).deepcopy()
    wcs.wcs.crpix -= np.array([x0, y0], dtype=float)
    store = frame_store(frames, inputs, context)
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
    flux_gain = flux_gain_of(frames, weights, plan)
    own_set = replace(inputs.tile_set, flux_gain=flux_gain, origin_yx=(y0, x0))
    cards = tile_cards(group, frames, plan, header_cards(wcs), refinement.on, own_set)
    steps = common_steps(frames, store.calibration_of)
    if steps:
        cards["CALSTAT"] = (steps, "bias, dark, flat of all frames")
    unseen = shared_variance(frames, weights, terms, store.calibration_of, SAMPLE_VARIANCE[plan.stack.kernel])
    shape_chw = (plan.n_channels, *shape)
    picture = None
    if alone:
        picture = GrowingPicture(shape_chw, context.work_dir / "growing.png", context.preview_grown)

    def on_rows_seen(done: int, total: int) -> None:
        on_rows(done, total)
        if picture is not None:
            picture.show()

    progress = TwoPasses(on_rows_seen, refinement.on)
    threads = min(plan.threads, plan.stack.threads)
    elsewhere = None if context.cluster is None else ClusterBlocks(context.cluster, context.policy)
    kept = TileRule(plan.output.variance, unseen, star_cores(frames, window))
    bands.recover(path)
    with StreamingFits(path, shape_chw, cards, extensions=extensions, unfinished=bands.unfinished) as out:
        finished = bands.take_up(out)
        if finished:
            context.say("run_info_rows_reused", rows=finished, total=shape[0])

        def add(row0: int, row1: int, rows: TileRows) -> None:
            bands.add(out, row0, row1, rows)
            if picture is not None:
                picture.add(row0, rows.image)

        def sink(row0: int, row1: int, block: CoaddBlock) -> None:
            add(row0, row1, kept(row0, block))

        def restart() -> None:
            bands.restart(finished)

        if finished < shape[0]:
            coadd = (
                partial(coadd_on_grid, sink=sink)
                if elsewhere is None
                else partial(elsewhere.coadd, kept=kept, sink=add)
            )
            coadd(
                store,
                sources,
                shape,
                plan.n_channels,
                rule,
                plan.stack.kernel,
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
            with StreamingFits(path, shape_chw, cards, extensions=extensions) as final:
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
                        context.work_dir,
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
        saturate_adu=lowest_ceiling(frames, terms, inputs.masks),
        map_error_px=max((source.pixel_map.max_error_px for source in sources), default=0.0),
        refine=refinement.reason_key,
        refine_values=refinement.values,
    )


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
        if lost is not None and lost.key == SILENT and lost.values.get("path") == path:
            # A file that does not answer is not asked again.
            context.leave_out(path, PHASE, lost.key, **lost.values)
            continue
        now = result_or_skip(path, context.reads, path, 0, _as_measured, frame)
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
    inputs: TileInputs
    context: RunContext
    manifest: Manifest
    folder: Path
    alone: bool

    def tile(
        self, group: FrameGroup, frames: Sequence[RegisteredFrame], on_rows: Callable[[int, int], object]
    ) -> tuple[MasterTile | None, bool]:
        """Return the tile, or None when nothing of the group is left; and whether it was made before."""
        frames = _still_there(frames, self.context)
        tried_again: set[str] = set()
        silent = 0
        while frames:
            weights = np.stack([self.weights[frame.solved.frame.index] for frame in frames])
            key = tile_key(self.manifest, frames, weights, self.inputs)
            if self.inputs.plan.resume:
                tile = stored_tile(self.manifest, key, group, frames, self.folder)
                if tile is not None:
                    return tile, True
            path = self.folder / f"master_tile_{group.group_id:03d}_{key[:12]}.fits"
            bands = self._bands_of(key)
            try:
                tile = create_tile(
                    group, frames, weights, self.inputs, self.context, path, on_rows, bands, alone=self.alone
                )
            except SaveFailed:
                bands.remove()
                raise
            except SkipItem as skip:
                silent = silent + 1 if skip.key == SILENT else 0
                if silent >= HOPELESS:
                    raise nothing_answers_for(skip) from skip
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
            if other.name != key or not self.inputs.plan.resume:
                shutil.rmtree(other, ignore_errors=True)
        return TileBands(folder / key, key, with_variance=self.inputs.plan.output.variance)


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
    inputs = TileInputs(hot_pixels, masks, sky, grid, plan, tile_set)
    maker = _Maker(by_frame, inputs, context, manifest, folder, alone=len(groups) == 1)
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
