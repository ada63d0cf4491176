"""Between phases 3 and 5, where it is wished: bad edges of tiles are cut off, thin corners masked, poor tiles left out.

The tiles on disk stay as they are, a later run may want them so; what is cut is written among the temporary files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from zemosaic_core.altaz_mask import AltAzOptions, altaz_mask
from zemosaic_core.coverage import enlarge_rows, without_thin_rim
from zemosaic_core.errors import RunFailed, SkipItem
from zemosaic_core.quality_crop import CropOptions, QualityCrop, quality_box_of_rows
from zemosaic_core.stack_planes import block_means
from zemosaic_core.tile_quality import QualityOptions, TileQuality, accepts, tile_quality
from zemosaic_io.fits_write import ExtensionSpec, StreamingFits
from zemosaic_io.frame_store import TileStore
from zemosaic_pipeline.context import RunContext
from zemosaic_pipeline.place_tiles import fade_weights
from zemosaic_pipeline.plan import RunPlan
from zemosaic_pipeline.records import MasterTile

__all__ = ["run"]

PHASE = "phase3_master_tiles"
READ_ROWS = 512
# Larger tiles are judged and masked by means of blocks.
JUDGED_PX = 4_000_000
MASKED = 1e-3


@dataclass(frozen=True)
class _Mask:
    """A mask known on every n-th pixel."""

    small: np.ndarray
    step: int
    width: int

    def rows(self, y0: int, y1: int) -> np.ndarray:
        """Return rows (y1 - y0, width), 0 to 1."""
        if self.step == 1:
            return self.small[y0:y1]
        return enlarge_rows(self.small, self.step, y0, y1, self.width)


def _step(shape_hw: tuple[int, int]) -> int:
    return max(1, math.ceil(math.sqrt(shape_hw[0] * shape_hw[1] / JUDGED_PX)))


def _quality(store: TileStore, tile: MasterTile, options: QualityOptions) -> TileQuality:
    height, width = tile.shape_hw
    step = _step(tile.shape_hw)
    rows = step * max(1, READ_ROWS // step)
    parts = [
        block_means(store.read(tile.tile_id, y0, min(height, y0 + rows), 0, width), step)
        for y0 in range(0, height, rows)
    ]
    band = max(4, options.edge_band_px // step)
    return tile_quality(np.concatenate(parts, axis=1), replace(options, edge_band_px=band))


def _depth(store: TileStore, tile: MasterTile) -> tuple[np.ndarray, int]:
    """Return the frames per pixel on every n-th pixel, and n."""
    height = tile.shape_hw[0]
    step = _step(tile.shape_hw)
    depth: np.ndarray = np.concatenate(
        [
            store.read_coverage(tile.tile_id, y0, min(height, y0 + READ_ROWS * step))[::step, ::step]
            for y0 in range(0, height, READ_ROWS * step)
        ]
    )
    return depth, step


def _mask(store: TileStore, tile: MasterTile, options: AltAzOptions) -> _Mask:
    depth, step = _depth(store, tile)
    thinner = replace(options, morph_open_px=math.ceil(options.morph_open_px / step))
    return _Mask(altaz_mask((depth.shape[0], depth.shape[1]), depth, thinner), step, tile.shape_hw[1])


def _rim(store: TileStore, tile: MasterTile, share: float) -> _Mask:
    depth, step = _depth(store, tile)
    return _Mask(without_thin_rim(depth, share).astype(np.float32), step, tile.shape_hw[1])


def _box(store: TileStore, tile: MasterTile, options: CropOptions) -> QualityCrop:
    width, key = tile.shape_hw[1], tile.tile_id
    return quality_box_of_rows(
        lambda y0, y1: store.read(key, y0, y1, 0, width),
        (store.n_channels(key), *tile.shape_hw),
        lambda y0, y1: store.read_coverage(key, y0, y1),
        options,
    )


def _written(
    store: TileStore,
    tile: MasterTile,
    box: tuple[int, int, int, int],
    mask: _Mask | None,
    ramp_px: int,
    path: Path,
) -> MasterTile:
    """Write the part of a tile that is kept."""
    top, bottom, left, right = box
    shape, key = (bottom - top, right - left), tile.tile_id
    n_channels = store.n_channels(key)
    has_variance = store.read_variance(key, 0, 1, 0, 1) is not None
    extensions = [
        ExtensionSpec("COVERAGE", shape, np.uint16),
        ExtensionSpec("WEIGHT", shape, np.float32),
        ExtensionSpec("CLIPPED", shape, np.uint8),
    ]
    if has_variance:
        extensions.append(ExtensionSpec("VARIANCE", (n_channels, *shape), np.float32))
    rows_seen, columns_seen = np.zeros(shape[0], bool), np.zeros(shape[1], bool)
    with StreamingFits(path, (n_channels, *shape), {}, extensions=extensions, durable=False) as out:
        for y0 in range(top, bottom, READ_ROWS):
            y1 = min(bottom, y0 + READ_ROWS)
            window = (y0, y1, left, right)
            image = np.array(store.read(key, *window))
            coverage, weight = store.read_coverage(key, *window), store.read_weight(key, *window)
            weight = coverage.astype(np.float32) if weight is None else np.array(weight)
            clipped = store.read_clipped(key, *window)
            if mask is not None:
                keep = mask.rows(y0, y1)[:, left:right]
                gone = keep < MASKED
                image[:, gone] = np.nan
                weight = weight * keep
                coverage, clipped = np.where(gone, 0, coverage), np.where(gone, 0, clipped)
            seen = coverage > 0
            rows_seen[y0 - top : y1 - top] = seen.any(axis=1)
            columns_seen |= seen.any(axis=0)
            out.write_rows(y0 - top, image)
            out.write_rows(y0 - top, coverage.astype(np.uint16), ext="COVERAGE")
            out.write_rows(y0 - top, weight.astype(np.float32), ext="WEIGHT")
            out.write_rows(y0 - top, clipped.astype(np.uint8), ext="CLIPPED")
            if has_variance:
                variance = store.read_variance(key, *window)
                assert variance is not None
                out.write_rows(y0 - top, variance, ext="VARIANCE")
        fade_weights(out, shape, ramp_px)
        out.commit()
    y, x = np.flatnonzero(rows_seen), np.flatnonzero(columns_seen)
    covered = (int(y[0]), int(y[-1]) + 1, int(x[0]), int(x[-1]) + 1) if len(y) and len(x) else (0, 0, 0, 0)
    origin = (tile.origin_yx[0] + top, tile.origin_yx[1] + left)
    return replace(tile, path=str(path), origin_yx=origin, shape_hw=shape, covered_bbox=covered)


def _trimmed(tile: MasterTile, plan: RunPlan, context: RunContext) -> MasterTile:
    checks = plan.tile_checks
    store = TileStore({tile.tile_id: Path(tile.path)})
    box = (0, tile.shape_hw[0], 0, tile.shape_hw[1])
    if checks.crop is not None:
        found = _box(store, tile, checks.crop)
        box = found.box
        context.say(f"tile_{found.reason_key}", tile=tile.tile_id, kept=_kept_percent(box, tile.shape_hw))
    mask = None if checks.altaz is None else _mask(store, tile, checks.altaz)
    if mask is not None:
        context.say("tile_altaz_masked", tile=tile.tile_id, percent=_masked_percent(mask))
    if checks.keep_share > 0:
        thin = _rim(store, tile, checks.keep_share)
        context.say("tile_thin_masked", tile=tile.tile_id, percent=_masked_percent(thin))
        mask = thin if mask is None else replace(mask, small=mask.small * thin.small)
    if mask is None and box == (0, tile.shape_hw[0], 0, tile.shape_hw[1]):
        return tile
    path = context.work_dir / f"cut_tile_{tile.tile_id:03d}.fits"
    return _written(store, tile, box, mask, plan.stack.tile_ramp_px, path)


def _masked_percent(mask: _Mask) -> float:
    return round(100 * float((mask.small < MASKED).mean()), 1)


def _kept_percent(box: tuple[int, int, int, int], shape_hw: tuple[int, int]) -> float:
    return round(100 * (box[1] - box[0]) * (box[3] - box[2]) / (shape_hw[0] * shape_hw[1]), 1)


def _passed(tiles: Sequence[MasterTile], plan: RunPlan, context: RunContext) -> list[MasterTile]:
    """Return the tiles that the gate lets through; what it would not is told, with its score."""
    gate = plan.tile_checks.gate
    if gate is None:
        return list(tiles)
    kept = []
    for tile in tiles:
        context.cancel.check()
        try:
            found = _quality(TileStore({tile.tile_id: Path(tile.path)}), tile, gate.options)
        except (SkipItem, ValueError) as error:
            context.say("tile_not_judged", "WARN", tile=tile.tile_id, reason=str(error))
            kept.append(tile)
            continue
        if accepts(found, gate.threshold):
            kept.append(tile)
            continue
        key = "tile_gate_left_out" if gate.leave_out else "tile_gate_reported"
        context.say(key, "WARN", tile=tile.tile_id, score=round(found.score, 3), limit=gate.threshold)
        if not gate.leave_out:
            kept.append(tile)
    if tiles and not kept:
        context.say("tile_gate_all", "WARN", tiles=len(tiles))
        return list(tiles)
    return kept


def _wanted(tiles: Sequence[MasterTile], leave_out: tuple[int, ...], context: RunContext) -> list[MasterTile]:
    """Return the tiles without those that the user does not want.

    Raises
    ------
    RunFailed
        Nothing is left.
    """
    known = {tile.tile_id for tile in tiles}
    for number in leave_out:
        key = "tile_left_out_as_asked" if number in known else "tile_left_out_unknown"
        context.say(key, "INFO" if number in known else "WARN", tile=number, tiles=len(tiles))
    wanted = [tile for tile in tiles if tile.tile_id not in leave_out]
    if tiles and not wanted:
        raise RunFailed("run_error_all_left_out", "leave_out_tiles leaves out every tile", tiles=len(tiles))
    return wanted


def run(tiles: Sequence[MasterTile], plan: RunPlan, context: RunContext) -> list[MasterTile]:
    """Return the tiles that are joined; without a wish the very same."""
    checks = plan.tile_checks
    kept = _passed(_wanted(tiles, checks.leave_out, context), plan, context)
    if not checks.rewrites:
        return kept
    made = []
    for tile in kept:
        context.cancel.check()
        made.append(_trimmed(tile, plan, context))
    return made
