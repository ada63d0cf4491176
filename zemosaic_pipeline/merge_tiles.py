"""Phase 4.5, where it is wished: master tiles of one place become one, and what disagrees between them is rejected.

The tiles lie on the pixels of the mosaic, so this is one more co-add; of their frames nothing is read again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from zemosaic_core.sources import CoaddBlock, CombineRule, PixelSource, RawRows, SampleNoise
from zemosaic_core.tile_places import CoveredCells, kept_variance, tiles_of_one_place
from zemosaic_io.fits_write import ExtensionSpec, StreamingFits
from zemosaic_io.frame_store import TileStore
from zemosaic_pipeline.context import RunContext
from zemosaic_pipeline.phase5_assemble import tile_photometry
from zemosaic_pipeline.plan import RunPlan
from zemosaic_pipeline.records import MasterTile, MosaicGrid
from zemosaic_pipeline.tile_canvas import TileDepth, canvas_of, tile_sources, with_surfaces
from zemosaic_utils import coadd_on_grid

__all__ = ["run"]

CELL_PX = 32
# Rims of a tile have fewer frames than its middle; so thin, or thinner, is a tenth of it.
THIN_PERCENTILE = 10.0
DEPTH_STEP = 8
# Every so many rows of an overlap tell how much tiles scatter.
SCATTER_STEP = 16
# Tiles of different hours have seeing of their own, all their frames alike: the flanks of a star differ by its light.
# What is to be rejected among tiles stands in the sky.
MISMATCH = 1.0


def _covered(tile: MasterTile, store: TileStore) -> CoveredCells:
    """Look at the middle pixel of every cell of the mosaic that a tile touches."""
    (height, width), (top, left) = tile.shape_hw, tile.origin_yx
    first = (-(-(top - CELL_PX // 2) // CELL_PX), -(-(left - CELL_PX // 2) // CELL_PX))
    ys = np.arange(first[0] * CELL_PX + CELL_PX // 2 - top, height, CELL_PX)
    x0 = first[1] * CELL_PX + CELL_PX // 2 - left
    rows = [store.read_coverage(tile.tile_id, int(y), int(y) + 1)[0, x0::CELL_PX] > 0 for y in ys]
    return CoveredCells(first, np.array(rows, bool).reshape(len(ys), len(range(x0, width, CELL_PX))))


def _thinness(tile: MasterTile, store: TileStore) -> float:
    """Return by how much the variance of a tile is larger where it is thin than where it is usual."""
    height = tile.shape_hw[0]
    depth = np.concatenate(
        [store.read_coverage(tile.tile_id, y, y + 1)[0, ::DEPTH_STEP] for y in range(0, height, DEPTH_STEP)]
    )
    depth = depth[depth > 0]
    if not len(depth):
        return 1.0
    return float(np.median(depth) / np.percentile(depth, THIN_PERCENTILE))


def _scatter(
    tiles: Sequence[MasterTile], store: TileStore, terms: np.ndarray, noise: np.ndarray
) -> np.ndarray:
    """Return by how much (C,) tiles that follow each other differ more than their noise, as a ratio of variances.

    The noise of a stack of few frames comes from the scatter of few samples, whose median is low: by a quarter at four.
    Stars do not count, the middle of the differences decides. At least 1.

    Parameters
    ----------
    terms : ndarray, shape (T, C, 4)
    noise : ndarray, shape (T, C)
        With the gain of the terms.
    """
    ratios = []
    for i, (one, other) in enumerate(pairwise(tiles)):
        y0, x0 = (max(a, b) for a, b in zip(one.origin_yx, other.origin_yx, strict=True))
        y1, x1 = (
            min(a + n, b + m)
            for a, n, b, m in zip(one.origin_yx, one.shape_hw, other.origin_yx, other.shape_hw, strict=True)
        )
        apart = []
        for y in range(y0, y1, SCATTER_STEP):
            rows = [
                store.read(
                    tile.tile_id,
                    y - tile.origin_yx[0],
                    y - tile.origin_yx[0] + 1,
                    x0 - tile.origin_yx[1],
                    x1 - tile.origin_yx[1],
                )[:, 0, ::2]
                for tile in (one, other)
            ]
            gains = terms[i : i + 2, :, 0, None]
            apart.append(gains[0] * rows[0] - gains[1] * rows[1])
        found = np.concatenate(apart, axis=1) if apart else np.empty((terms.shape[1], 0))
        if np.isfinite(found).sum(axis=1).min() < 1000:
            continue
        middle = np.nanmedian(found, axis=1, keepdims=True)
        spread = 1.4826 * np.nanmedian(np.abs(found - middle), axis=1)
        ratios.append(spread**2 / (noise[i] ** 2 + noise[i + 1] ** 2))
    if not ratios:
        return np.ones(terms.shape[1])
    return np.asarray(np.maximum(np.median(ratios, axis=0), 1.0))


class _Weighed:
    """Tiles whose maps are divided by the weights that their sources carry, so that the products stay."""

    def __init__(self, pixels: PixelSource, weights: dict[int, float]) -> None:
        self._pixels = pixels
        self._weights = weights

    def read(self, key: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """Return the window (C, h, w); see `PixelSource`."""
        return self._pixels.read(key, y0, y1, x0, x1)

    def read_weight(self, key: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray | None:
        """Return the window of the weight map (h, w)."""
        weight = self._pixels.read_weight(key, y0, y1, x0, x1)
        return None if weight is None else weight / np.float32(self._weights[key])

    def read_raw(self, key: int, y0: int, y1: int) -> RawRows | None:
        """Return None: tiles are decoded images."""
        return None


@dataclass(frozen=True)
class _Joint:
    """What a group of tiles becomes one with.

    Attributes
    ----------
    terms : ndarray, shape (T, C, 4)
        Photometric terms of the tiles.
    pixels : PixelSource
    rule : CombineRule
    weights : dict of int to float
        Weight of the source of each tile: inverse to the variance it is expected to have.
    """

    terms: np.ndarray
    pixels: PixelSource
    rule: CombineRule
    weights: dict[int, float]


def _joint(
    tiles: Sequence[MasterTile],
    store: TileStore,
    plan: RunPlan,
    context: RunContext,
    *,
    one_flux_scale: bool,
    one_sky: bool,
) -> _Joint:
    """Bring the tiles of a group to one level, and say what scatter is expected of them."""
    solution, thumbs, _ = tile_photometry(tiles, store, one_flux_scale, plan, context, one_sky=one_sky)
    terms, pixels = solution.terms, with_surfaces(store, tiles, solution)
    if not plan.merge.match_levels:
        terms = np.zeros_like(terms)
        terms[..., 0] = 1.0
        pixels = with_surfaces(store, tiles, replace(solution, terms=terms, surface=0 * solution.surface))
    noise = np.array([tile.noise_adu for tile in tiles], float) * np.abs(terms[..., 0])
    variance = noise**2 * _scatter(tiles, store, terms, noise)
    variance *= np.array([_thinness(tile, store) for tile in tiles])[:, None]
    variance = np.where(np.isfinite(variance) & (variance > 0), variance, np.nan)
    weights, noise_known = np.ones(len(tiles)), None
    levels = np.array(
        [
            np.nanmedian(thumb.medians, axis=(1, 2)) * term[:, 0] + term[:, 1]
            for thumb, term in zip(thumbs, terms, strict=True)
        ]
    )
    if np.isfinite(variance).all() and np.isfinite(levels).all():
        weights = 1 / variance.mean(axis=1)
        expected = tuple(map(float, np.median(variance * weights[:, None], axis=0)))
        background = tuple(map(float, np.median(levels, axis=0)))
        noise_known = SampleNoise(expected, background, mismatch=MISMATCH)
    rule = replace(plan.merge.rule, noise=noise_known)
    by_tile = {tile.tile_id: float(weight) for tile, weight in zip(tiles, weights, strict=True)}
    return _Joint(terms, _Weighed(pixels, by_tile), rule, by_tile)


def _merged(
    tiles: Sequence[MasterTile],
    grid: MosaicGrid,
    plan: RunPlan,
    context: RunContext,
    *,
    one_flux_scale: bool,
    one_sky: bool,
) -> tuple[MasterTile, float]:
    """Write the tile of a group; return it, and which share of the samples did not agree."""
    store = TileStore({tile.tile_id: Path(tile.path) for tile in tiles})
    joint = _joint(tiles, store, plan, context, one_flux_scale=one_flux_scale, one_sky=one_sky)
    canvas = canvas_of(tiles, grid, True)
    shape, planes = canvas.shape_hw, (plan.n_channels, *canvas.shape_hw)
    depth = TileDepth(tiles, store, canvas)
    sources = [
        replace(source, weight=np.full(plan.n_channels, joint.weights[source.key], np.float32))
        for source in tile_sources(tiles, joint.terms, canvas)
    ]
    first = tiles[0]
    path = context.work_dir / f"super_tile_{first.tile_id:03d}.fits"
    extensions = [
        ExtensionSpec("COVERAGE", shape, np.uint16),
        ExtensionSpec("WEIGHT", shape, np.float32),
        ExtensionSpec("CLIPPED", shape, np.uint8),
    ]
    if plan.output.variance:
        extensions.append(ExtensionSpec("VARIANCE", planes, np.float32))
    cards: dict[str, Any] = {
        **canvas.wcs_cards(grid),
        "ZMT_TYPE": ("Master Tile", "ZeMosaic product"),
        "ZMT_ID": (first.tile_id, "first of the tiles that were merged"),
        "NEXP_SUM": (sum(tile.n_exposures for tile in tiles), "number of exposures"),
        "EXPTOTAL": (sum(tile.exposure_s for tile in tiles), "[s] exposure of all frames"),
    }
    samples = rejected = 0
    depths: list[np.ndarray] = []
    with StreamingFits(path, planes, cards, extensions=extensions, durable=False) as out:

        def sink(y0: int, y1: int, block: CoaddBlock) -> None:
            nonlocal samples, rejected
            coverage = depth.rows(y0, y1)
            coverage[~np.isfinite(block.image).any(axis=0)] = 0
            depths.append(coverage[::DEPTH_STEP, ::DEPTH_STEP].ravel())
            samples += int(block.coverage.sum(dtype=np.int64)) * plan.n_channels
            rejected += int(block.rejected_low.sum(dtype=np.int64) + block.rejected_high.sum(dtype=np.int64))
            out.write_rows(y0, block.image)
            out.write_rows(y0, np.minimum(coverage, 65535).astype(np.uint16), ext="COVERAGE")
            out.write_rows(y0, block.weight.mean(axis=0), ext="WEIGHT")
            out.write_rows(y0, block.clipped_bits(), ext="CLIPPED")
            if plan.output.variance:
                everything = np.repeat(depth.weight_rows(y0, y1)[np.newaxis], plan.n_channels, axis=0)
                of_all = depth.variance_rows(y0, y1, joint.terms, everything)
                out.write_rows(y0, _variance(of_all, everything, block, joint.rule), ext="VARIANCE")

        def forget() -> None:
            # Every row is written to its place once more; what was counted of it is counted anew.
            nonlocal samples, rejected
            samples = rejected = 0
            depths.clear()

        coadd_on_grid(
            joint.pixels,
            sources,
            shape,
            plan.n_channels,
            joint.rule,
            plan.stack.kernel,
            sink=sink,
            budget_bytes=plan.block_budget_bytes,
            policy=context.policy,
            op="assemble",
            threads=plan.threads,
            cancel=context.cancel,
            restart=forget,
        )
        out.commit()
    found = np.concatenate(depths)
    found = found[found > 0]
    noise = np.array([tile.noise_adu for tile in tiles]) * np.abs(joint.terms[..., 0])
    ceilings = (
        joint.terms[..., 0] * np.array([tile.saturate_adu for tile in tiles])[:, None] + joint.terms[..., 1]
    )
    known = ceilings[np.isfinite(ceilings)]
    cores = [tile.core_rejected_fraction for tile in tiles if tile.core_rejected_fraction is not None]
    scaled = plan.merge.match_levels and one_flux_scale
    merged = MasterTile(
        tile_id=first.tile_id,
        path=str(path),
        origin_yx=canvas.origin_yx,
        shape_hw=shape,
        frames=tuple(index for tile in tiles for index in tile.frames),
        exposure_s=sum(tile.exposure_s for tile in tiles),
        n_exposures=sum(tile.n_exposures for tile in tiles),
        noise_adu=tuple(map(float, 1 / np.sqrt((1 / np.maximum(noise, 1e-9) ** 2).sum(axis=0)))),
        rejected_fraction=float(np.mean([tile.rejected_fraction for tile in tiles])),
        core_rejected_fraction=float(np.mean(cores)) if cores else None,
        median_coverage=float(np.median(found)) if len(found) else 0.0,
        map_error_px=max(tile.map_error_px for tile in tiles),
        covered_bbox=(0, shape[0], 0, shape[1]),
        flux_gain=(1.0,) * plan.n_channels
        if scaled
        else tuple(map(float, np.mean([tile.flux_gain for tile in tiles], axis=0))),
        saturate_adu=float(known.min()) if len(known) else float("nan"),
        calibrated="".join(sorted(set.intersection(*(set(tile.calibrated) for tile in tiles)))),
        refine=first.refine,
        refine_values=first.refine_values,
    )
    return merged, rejected / max(1, samples)


def _variance(of_all: np.ndarray, weights: np.ndarray, block: CoaddBlock, rule: CombineRule) -> np.ndarray:
    """Return the variance (C, h, w) of the rows of a merged tile."""
    if rule.combine == "median":
        # That of the mean, which is the best there is, times what a median loses of many samples with normal noise.
        return np.where(block.weight > 0, of_all * (np.pi / 2), np.nan).astype(np.float32)
    return kept_variance(of_all, weights, block.weight)


def run(
    tiles: Sequence[MasterTile],
    grid: MosaicGrid,
    plan: RunPlan,
    context: RunContext,
    *,
    one_flux_scale: bool,
    one_sky: bool,
) -> list[MasterTile]:
    """Return the tiles with those of one place merged; without the wish the very same.

    Parameters
    ----------
    tiles : sequence of MasterTile
        Of one filter.
    one_flux_scale, one_sky : bool
        Stars link the fluxes of all frames; one model of the sky stands behind them.
    """
    options = plan.merge
    if not options.enabled or len(tiles) < 2:
        return list(tiles)
    cells = [_covered(tile, TileStore({tile.tile_id: Path(tile.path)})) for tile in tiles]
    groups = tiles_of_one_place(
        cells, threshold=options.overlap, min_group=options.min_group, max_group=options.max_group
    )
    if not groups:
        context.say("run_info_nothing_merged", tiles=len(tiles), percent=round(100 * options.overlap))
        return list(tiles)
    made: dict[int, MasterTile] = {}
    shares: list[float] = []
    for group in groups:
        context.cancel.check()
        members = [tiles[position] for position in group]
        made[group[0]], share = _merged(
            members, grid, plan, context, one_flux_scale=one_flux_scale, one_sky=one_sky
        )
        shares.append(share)
    gone = {position for group in groups for position in group}
    merged = [made.get(i, tile) for i, tile in enumerate(tiles) if i in made or i not in gone]
    context.say(
        "run_info_tiles_merged",
        before=len(tiles),
        after=len(merged),
        percent=round(100 * float(np.mean(shares)), 3),
    )
    return merged
