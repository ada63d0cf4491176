"""The noise of the mosaic in coarse cells, from what the stacks of frames say about themselves and their weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zemosaic_core.picture_noise import NoiseMap
from zemosaic_io.frame_store import TileStore
from zemosaic_io.preview import NOISE_CELL_PX as CELL_PX
from zemosaic_pipeline.records import MasterTile

__all__ = ["mosaic_noise"]


def mosaic_noise(
    tiles: Sequence[MasterTile],
    store: TileStore,
    gains: np.ndarray,
    origin_yx: tuple[int, int],
    shape_hw: tuple[int, int],
) -> NoiseMap:
    """Return the noise at the middle of each cell of a mosaic.

    A sample of weight ``w`` has the variance ``V / w``; ``V`` follows from the typical noise of a tile and its typical
    weight. A mean of samples ``f_i w_i`` that are faded by factors ``f_i <= 1`` has at most the variance ``V / sum(f_i
    w_i)``. So towards rims this is a bound, and elsewhere the noise itself.

    Parameters
    ----------
    gains : ndarray, shape (T, C)
        Factors that bring the tiles to the mosaic's scale.
    origin_yx, shape_hw : tuple of int
        First pixel of the mosaic on the grid of the tiles, and its size.

    Returns
    -------
    NoiseMap
        NaN where no tile is, or one of a single frame, which cannot tell its noise.
    """
    height, width = shape_hw
    at_y, at_x = (np.arange(CELL_PX // 2, size, CELL_PX) for size in (height, width))
    rows, columns = max(len(at_y), 1), max(len(at_x), 1)
    total = np.zeros((gains.shape[1], rows, columns))
    weight = np.zeros((rows, columns))
    for tile, gain in zip(tiles, gains, strict=True):
        top, left = tile.origin_yx[0] - origin_yx[0], tile.origin_yx[1] - origin_yx[1]
        j = np.flatnonzero((at_y >= top) & (at_y < top + tile.shape_hw[0]))
        i = np.flatnonzero((at_x >= left) & (at_x < left + tile.shape_hw[1]))
        if not (j.size and i.size):
            continue
        found = np.stack([_weights(store, tile, int(y) - top, at_x[i] - left) for y in at_y[j]])
        if not (found > 0).any():
            continue
        of_one = (np.array(tile.noise_adu) * gain) ** 2 * float(np.median(found[found > 0]))
        cells = np.ix_(j, i)
        weight[cells] += found
        for c, variance in enumerate(of_one):
            total[c][cells] += np.where(found > 0, found * variance, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        sigma = np.sqrt(total) / weight
    return NoiseMap(np.where(weight > 0, sigma, np.nan).astype(np.float32), float(CELL_PX))


def _weights(store: TileStore, tile: MasterTile, y: int, x: np.ndarray) -> np.ndarray:
    first, last = int(x[0]), int(x[-1]) + 1
    row = store.read_weight(tile.tile_id, y, y + 1, first, last)
    if row is None:
        row = store.read_coverage(tile.tile_id, y, y + 1, first, last)
    return np.asarray(np.asarray(row, np.float64).reshape(-1, last - first)[0][x - first])
