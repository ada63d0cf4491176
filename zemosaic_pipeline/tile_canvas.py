"""Tiles on the part of the grid that is written: where they lie, how they enter a co-add, what they know besides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from astropy.wcs import WCS

from zemosaic_core.pixel_map import build_pixel_map
from zemosaic_core.sources import CoaddSource
from zemosaic_core.tile_photometry import TilePhotometry
from zemosaic_core.tile_surfaces import TileSurfaces
from zemosaic_io.frame_store import TileStore
from zemosaic_pipeline.phase4_grid import header_cards
from zemosaic_pipeline.records import MasterTile, MosaicGrid

__all__ = ["Canvas", "TileDepth", "canvas_of", "tile_sources", "with_surfaces"]


@dataclass(frozen=True)
class Canvas:
    """The part of the grid that is written: first pixel and shape."""

    origin_yx: tuple[int, int]
    shape_hw: tuple[int, int]

    def wcs_cards(self, grid: MosaicGrid) -> dict[str, Any]:
        """Return the WCS of this part of the grid."""
        wcs = WCS(grid.wcs_cards).deepcopy()
        wcs.wcs.crpix -= np.array([self.origin_yx[1], self.origin_yx[0]], dtype=float)
        return header_cards(wcs)


def canvas_of(tiles: Sequence[MasterTile], grid: MosaicGrid, crop: bool) -> Canvas:
    """Return the box around all covered pixels, or the whole grid."""
    boxes = [
        (tile.origin_yx[0] + y0, tile.origin_yx[0] + y1, tile.origin_yx[1] + x0, tile.origin_yx[1] + x1)
        for tile in tiles
        for y0, y1, x0, x1 in (tile.covered_bbox,)
        if y0 < y1
    ]
    if not crop or not boxes:
        return Canvas((0, 0), grid.shape_hw)
    tops, bottoms, lefts, rights = zip(*boxes, strict=True)
    y0, x0 = min(tops), min(lefts)
    return Canvas((y0, x0), (max(bottoms) - y0, max(rights) - x0))


def tile_sources(tiles: Sequence[MasterTile], terms: np.ndarray, canvas: Canvas) -> list[CoaddSource]:
    """Return the tiles as sources on a canvas, with their photometric terms (T, C, 4); weights come from their maps."""
    sources = []
    for i, tile in enumerate(tiles):
        dy, dx = tile.origin_yx[0] - canvas.origin_yx[0], tile.origin_yx[1] - canvas.origin_yx[1]
        height, width = tile.shape_hw
        bbox = (
            max(0, dy),
            min(canvas.shape_hw[0], dy + height),
            max(0, dx),
            min(canvas.shape_hw[1], dx + width),
        )

        def shift(x: np.ndarray, y: np.ndarray, dy: int = dy, dx: int = dx) -> tuple[np.ndarray, np.ndarray]:
            return x - dx, y - dy

        sources.append(
            CoaddSource(
                key=tile.tile_id,
                shape_hw=tile.shape_hw,
                pixel_map=build_pixel_map(shift, bbox),
                bbox=bbox,
                photometry=terms[i].astype(np.float32),
                weight=np.ones(terms.shape[1], np.float32),
                has_weight_map=True,
            )
        )
    return sources


def with_surfaces(store: TileStore, tiles: Sequence[MasterTile], solution: TilePhotometry) -> TileSurfaces:
    """Return the tiles with their surfaces; the gain, which comes later, is taken out of these."""
    shapes = {tile.tile_id: tile.shape_hw for tile in tiles}
    bends = solution.surface / solution.terms[..., :1]
    return TileSurfaces(store, shapes, {tile.tile_id: bends[i] for i, tile in enumerate(tiles)})


class TileDepth:
    """What the tiles know beside their image, brought onto the mosaic: frames per pixel, and variance."""

    def __init__(self, tiles: Sequence[MasterTile], store: TileStore, canvas: Canvas) -> None:
        self._tiles = tiles
        self._store = store
        self._canvas = canvas

    def _parts(
        self, y0: int, y1: int
    ) -> Iterator[tuple[int, MasterTile, tuple[int, int, int, int], tuple[slice, slice]]]:
        """Yield number, tile, its window, and where that lies in canvas rows ``y0..y1``."""
        width = self._canvas.shape_hw[1]
        for i, tile in enumerate(self._tiles):
            top = tile.origin_yx[0] - self._canvas.origin_yx[0]
            left = tile.origin_yx[1] - self._canvas.origin_yx[1]
            a, b = max(y0, top), min(y1, top + tile.shape_hw[0])
            c, d = max(0, left), min(width, left + tile.shape_hw[1])
            if a < b and c < d:
                window = (a - top, b - top, c - left, d - left)
                yield i, tile, window, (slice(a - y0, b - y0), slice(c, d))

    def rows(self, y0: int, y1: int) -> np.ndarray:
        """Return the counts of canvas rows ``y0..y1`` as float32."""
        total = np.zeros((y1 - y0, self._canvas.shape_hw[1]), np.float32)
        for _, tile, window, place in self._parts(y0, y1):
            total[place] += self._store.read_coverage(tile.tile_id, *window)
        return total

    def weight_rows(self, y0: int, y1: int) -> np.ndarray:
        """Return the sums of the weights of all tiles in canvas rows ``y0..y1``, float64."""
        total = np.zeros((y1 - y0, self._canvas.shape_hw[1]))
        for _, tile, window, place in self._parts(y0, y1):
            total[place] += self._weight(tile, window)
        return total

    def _weight(self, tile: MasterTile, window: tuple[int, int, int, int]) -> np.ndarray:
        weight = self._store.read_weight(tile.tile_id, *window)
        assert weight is not None, f"{tile.path} has no weights"
        return weight.astype(np.float64)

    def variance_rows(self, y0: int, y1: int, terms: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Return the variance of canvas rows ``y0..y1``: sum (w g)^2 v / (sum w)^2 over the tiles.

        Tiles share no frame, so their errors are independent. Where a single frame of a tile is left, which cannot
        tell its own scatter, the typical noise of the tile stands in, scaled to one frame.

        Parameters
        ----------
        terms : ndarray, shape (T, C, 4)
            Photometric terms of the tiles; the first is the gain g.
        weight : ndarray, shape (C, y1 - y0, W)
            Sum of the tiles' weights w.

        Returns
        -------
        ndarray, shape (C, y1 - y0, W), float32
            ADU^2; NaN where nothing is known: no pixel, or a tile of a single frame.
        """
        total = np.zeros(weight.shape, np.float64)
        for i, tile, window, place in self._parts(y0, y1):
            weights = self._weight(tile, window)
            stored = self._store.read_variance(tile.tile_id, *window)
            unknown = np.full((1, *weights.shape), np.nan)
            variance = unknown if stored is None else stored.astype(np.float64)
            frames = self._store.read_coverage(tile.tile_id, *window)
            of_one_frame = np.array(tile.noise_adu)[:, None, None] ** 2 * tile.median_coverage
            variance = np.where(np.isfinite(variance), variance, of_one_frame / np.maximum(frames, 1))
            factor = (weights * terms[i, :, 0, None, None]) ** 2
            total[:, *place] += np.where(weights > 0, factor * variance, 0.0)
        known = weight > 0
        return np.where(known, total / np.where(known, weight, 1.0) ** 2, np.nan).astype(np.float32)
