"""The mosaic as it grows: finished master tiles, made small and put where they belong.

All tiles of a run lie on the pixels of one grid, so the reference pixel in their headers says how they lie to
each other. Sky levels are taken off tile by tile; the real correction is the run's, later.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import numpy as np

from zemosaic_core.binning import bin_down
from zemosaic_core.errors import SkipItem
from zemosaic_core.stretch import preview_rgba
from zemosaic_io.fits_read import read_window
from zemosaic_io.headers import read_frame_info
from zemosaic_ui.picture_loader import Picture
from zemosaic_ui.work_thread import WorkThread

__all__ = ["GrowingMosaic"]

_log = logging.getLogger(__name__)

TILE_PX = 420
CANVAS_PX = 1500


class GrowingMosaic:
    """One thread that puts tiles together; pictures are collected with `take`."""

    def __init__(self) -> None:
        self._thread: WorkThread[tuple[int, str]] = WorkThread("growing-mosaic", self._put_in)
        self._lock = threading.Lock()
        self._ready: Picture | None = None
        self._tiles: list[tuple[float, float, np.ndarray]] = []
        self._step = 0
        self._run = 0

    def reset(self) -> None:
        """Begin with nothing: another run has started."""
        with self._lock:
            self._thread.clear()
            self._tiles, self._step, self._ready = [], 0, None
            self._run += 1

    def add(self, path: str) -> None:
        """Add a finished tile."""
        self._thread.put((self._run, path))

    def take(self) -> Picture | None:
        """Return the newest picture once."""
        with self._lock:
            ready, self._ready = self._ready, None
            return ready

    def close(self) -> None:
        """End the thread."""
        self._thread.close()

    def _put_in(self, wanted: tuple[int, str]) -> None:
        run, path = wanted
        try:
            tile = self._small_tile(Path(path))
        except (OSError, SkipItem, ValueError) as error:
            _log.info("%s cannot be shown: %s", path, error)
            tile = None
        with self._lock:
            if run != self._run:
                return
            if tile is not None:
                self._tiles.append(tile)
            # Several tiles at once (a resumed run) make one picture.
            if self._thread.waiting or not self._tiles:
                return
            tiles = list(self._tiles)
        rgba = _compose(tiles)
        picture = Picture("growing", path, rgba.shape[1], rgba.shape[0], rgba.tobytes())
        with self._lock:
            if run == self._run:
                self._ready = picture

    def _small_tile(self, path: Path) -> tuple[float, float, np.ndarray]:
        """Return place (of the first pixel, in steps from the reference pixel) and pixels of a tile."""
        info = read_frame_info(path)
        cards = info.wcs_cards or {}
        height, width = info.shape_hw
        if not self._step:
            self._step = max(1, max(height, width) // TILE_PX)
        step = self._step
        rows = [read_window(info, y, y + 1)[..., ::step] for y in range(0, height, step)]
        image = np.concatenate(rows, axis=-2).astype(np.float32)
        image = image[None] if image.ndim == 2 else image[:3]
        with np.errstate(invalid="ignore"):
            image = (
                image - np.nanmedian(image, axis=(1, 2), keepdims=True) if np.isfinite(image).any() else image
            )
        x0 = -(float(cards.get("CRPIX1", 1.0)) - 1.0) / step
        y0 = -(float(cards.get("CRPIX2", 1.0)) - 1.0) / step
        return x0, y0, image


def _compose(tiles: list[tuple[float, float, np.ndarray]]) -> np.ndarray:
    """Return the picture of tiles, (h, w, 4) uint8, first row at the top of the sky."""
    x_low = min(x for x, _, _ in tiles)
    y_low = min(y for _, y, _ in tiles)
    width = max(round(x - x_low) + image.shape[2] for x, _, image in tiles)
    height = max(round(y - y_low) + image.shape[1] for _, y, image in tiles)
    channels = tiles[0][2].shape[0]
    total = np.zeros((channels, height, width), dtype=np.float32)
    count = np.zeros((height, width), dtype=np.float32)
    for x, y, image in tiles:
        top, left = round(y - y_low), round(x - x_low)
        area = np.s_[top : top + image.shape[1], left : left + image.shape[2]]
        seen = np.isfinite(image).all(axis=0)
        total[(slice(None), *area)] += np.where(seen, image, np.float32(0.0))
        count[area] += seen
    mean = np.where(count > 0, total / np.maximum(count, 1.0), np.float32(np.nan)).astype(np.float32)
    while max(mean.shape[1:]) > CANVAS_PX:
        mean = bin_down(mean, 2)
    return np.ascontiguousarray(preview_rgba(mean, max_dim=None)[::-1])
