"""The picture of a tile while its rows are finished: where all frames are one co-add nothing else is seen for hours."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from zemosaic_core.stretch import preview_rgba
from zemosaic_io.preview import write_png

__all__ = ["GrowingPicture"]

# Longest side, px: what a window shows of it.
_SIDE_PX = 700
# To make and write one takes 0.1 s.
_EVERY_S = 5.0


class GrowingPicture:
    """Takes finished rows and writes what there is of them as PNG, every now and then.

    Parameters
    ----------
    shape_chw : tuple of int
        Shape of the tile.
    path : Path
        Of the PNG; each one takes the place of the one before.
    tell : callable
        Told the path when a newer picture is there.
    clock : callable
        Seconds.
    """

    def __init__(
        self,
        shape_chw: tuple[int, int, int],
        path: Path,
        tell: Callable[[str], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        channels, height, width = shape_chw
        self._step = -(-max(height, width) // _SIDE_PX)
        shape = (channels, -(-height // self._step), -(-width // self._step))
        self._picture = np.full(shape, np.nan, np.float32)
        self._path, self._tell, self._clock = path, tell, clock
        self._shown_s, self._is_new = clock(), False

    def add(self, row0: int, image: np.ndarray) -> None:
        """Take rows ``row0 ...`` of the tile, (C, h, w) float32; NaN where nothing was seen.

        One row of several stands for those around it: this is looked at, not measured.
        """
        first = -(-row0 // self._step)
        rows = image[:, first * self._step - row0 :: self._step]
        if not rows.shape[1]:
            return
        starts = np.arange(0, image.shape[2], self._step)
        seen = np.isfinite(rows)
        total = np.add.reduceat(np.where(seen, rows, np.float32(0.0)), starts, axis=2)
        count = np.add.reduceat(seen, starts, axis=2, dtype=np.float32)
        with np.errstate(invalid="ignore"):
            self._picture[:, first : first + rows.shape[1]] = total / count
        self._is_new = True

    def show(self) -> None:
        """Write the picture if it is new and the one before has been there for a while.

        Raises
        ------
        SaveFailed
            As for `write_png`.
        """
        now = self._clock()
        if not self._is_new or now - self._shown_s < _EVERY_S:
            return
        self._is_new = False
        rgba = preview_rgba(self._picture, max_dim=None, calm_noise=False)
        write_png(self._path, rgba, compress_level=1, durable=False)
        self._tell(str(self._path))
        # What it took on a slow machine is not taken again at once.
        self._shown_s = self._clock()
