"""A finished mosaic as the viewer needs it: any part at any zoom without holding all of it in memory.

The file stays on disk. Reduced copies (each half the size of the one before) are built once, strip by strip,
in a temporary folder; a part is read from the copy that fits the zoom. `zemosaic_ui.look` makes pictures of parts.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_scales

from zemosaic_core.binning import bin_down
from zemosaic_core.errors import Cancelled
from zemosaic_core.picture_noise import NoiseMap
from zemosaic_io.fits_cards import iter_hdus
from zemosaic_io.fits_read import read_window
from zemosaic_io.headers import FrameInfo, read_frame_info
from zemosaic_io.preview import read_clipped_pixels, read_noise_map

__all__ = ["PART_PX", "MosaicImage", "sexagesimal"]

PART_PX = 512
OVERVIEW_PX = 900
# Parts kept as floating point numbers: 64 parts of three channels are 200 MB.
MAX_PARTS = 64


class MosaicImage:
    """A FITS image open for viewing.

    Parameters
    ----------
    path : Path
        A FITS file with one, three or four planes.
    outputs : mapping of str to str, optional
        Files that belong to it by kind: ``coverage`` and ``variance`` tell its noise where it does not itself,
        ``coverage`` also where light was cut off.

    Raises
    ------
    SkipItem
        The file is no image that can be shown.
    """

    def __init__(self, path: Path, outputs: Mapping[str, str] | None = None) -> None:
        self.path = path
        self._beside = [
            Path(found) for kind in ("coverage", "variance") if (found := (outputs or {}).get(kind))
        ]
        self.noise: NoiseMap | None = None
        self._clipped_yx = np.empty((0, 2), np.int32)
        self.info: FrameInfo = read_frame_info(path)
        self.shape_hw = self.info.shape_hw
        self.n_channels = 3 if self.info.kind == "rgb" else 1
        self.wcs = WCS(self.info.wcs_cards) if self.info.wcs_cards else None
        self.white_gains = self._known_white()
        self.n_levels = max(1, math.ceil(math.log2(max(*self.shape_hw, PART_PX) / PART_PX)) + 1)
        self.ready_level = 0
        self._folder: Path | None = None
        self._copies: dict[int, np.ndarray] = {}
        self._parts: OrderedDict[tuple[int, int, int], np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def _known_white(self) -> tuple[float, ...] | None:
        """White balance that the run found from the stars of the catalogue and wrote into the header."""
        cards = next(iter(iter_hdus(self.path))).cards
        gains = tuple(cards.get(f"WBAL_{letter}") for letter in "RGB")
        good = self.n_channels == 3 and all(isinstance(gain, float) and 0.05 < gain < 20.0 for gain in gains)
        return gains if good else None

    # ------------------------------------------------------------------ what is known of the pixels

    def read_facts(self) -> None:
        """Read what the file, or one beside it, knows of its noise and of light that was cut off.

        Raises
        ------
        SkipItem
            A file cannot be read.
        """
        there = [path for path in (self.path, *self._beside) if path.is_file()]
        maps = (read_noise_map(path) for path in there)
        self.noise = next((m for m in maps if m is not None and len(m.sigma) == self.n_channels), None)
        places = (read_clipped_pixels(path) for path in there)
        self._clipped_yx = next((found for found in places if len(found)), self._clipped_yx)

    def noise_of(self, level: int, y0: int = 0, x0: int = 0) -> NoiseMap | None:
        """Return the noise of a level from its pixel (y0, x0) on."""
        return self.noise.reduced(2**level).part(y0, x0) if self.noise is not None else None

    def clipped_of(self, level: int, y0: int, x0: int, shape_hw: tuple[int, int]) -> np.ndarray | None:
        """Return where light was cut off in a window of a level, (h, w) bool; None when nowhere."""
        places = (self._clipped_yx >> level) - np.array([y0, x0], np.int32)
        inside = places[((places >= 0) & (places < shape_hw)).all(axis=1)]
        if not len(inside):
            return None
        mask = np.zeros(shape_hw, bool)
        mask[inside[:, 0], inside[:, 1]] = True
        return mask

    # ------------------------------------------------------------------ pixels

    def rows(self, y0: int, y1: int, x0: int = 0, x1: int | None = None) -> np.ndarray:
        """Return a window of the file as (C, h, w) float32; a fourth plane (alpha) is left out."""
        data = read_window(self.info, y0, y1, x0, self.shape_hw[1] if x1 is None else x1)
        planes = data[None] if data.ndim == 2 else data[: self.n_channels]
        return planes.astype(np.float32, copy=False)

    def overview(self) -> np.ndarray:
        """Return a small version (C, h, w), for the first look and for statistics.

        Averaged when the reduced copies exist; before that every n-th pixel, which is quick and noisier.
        """
        level = self.overview_level
        if self.ready_level or level == 0:
            height, width = self.level_shape(level)
            return self.window(level, 0, height, 0, width)
        step = max(1, -(-max(self.shape_hw) // OVERVIEW_PX))
        strips = [
            self.rows(y, y + 1)[:, :, step // 2 :: step] for y in range(step // 2, self.shape_hw[0], step)
        ]
        return np.concatenate(strips, axis=1) if strips else self.rows(0, self.shape_hw[0])

    @property
    def overview_level(self) -> int:
        """Level of the averaged overview."""
        return next(
            level for level in range(self.n_levels) if max(self.level_shape(level)) <= 2 * OVERVIEW_PX
        )

    def window(self, level: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """Return a window of a level, (C, h, w) float32; what lies outside the image is left away."""
        height, width = self.level_shape(level)
        y0, y1, x0, x1 = max(0, y0), min(height, y1), max(0, x0), min(width, x1)
        if level == 0:
            return self.rows(y0, y1, x0, x1)
        copy = self._copies.get(level)
        if copy is None:
            raise Cancelled  # the picture was closed
        return np.array(copy[:, y0:y1, x0:x1])

    def level_for(self, scale: float) -> int:
        """Return the level to draw from when one image pixel covers ``scale`` screen pixels."""
        wanted = 0 if scale >= 1.0 else math.floor(math.log2(1.0 / scale) + 0.25)
        return min(max(0, wanted), self.n_levels - 1)

    def level_shape(self, level: int) -> tuple[int, int]:
        """Return height and width of a level, px."""
        height, width = self.shape_hw
        for _ in range(level):
            height, width = -(-height // 2), -(-width // 2)
        return height, width

    def is_ready(self, level: int) -> bool:
        """Whether a level can be read without building it."""
        return level == 0 or level <= self.ready_level

    def part(self, level: int, row: int, column: int) -> np.ndarray:
        """Return part (row, column) of a level, (C, h, w) float32 with at most `PART_PX` pixels a side."""
        key = (level, row, column)
        with self._lock:
            if key in self._parts:
                self._parts.move_to_end(key)
                return self._parts[key]
        y0, x0 = row * PART_PX, column * PART_PX
        data = self.window(level, y0, y0 + PART_PX, x0, x0 + PART_PX)
        with self._lock:
            self._parts[key] = data
            while len(self._parts) > MAX_PARTS:
                self._parts.popitem(last=False)
        return data

    def build_copies(self, cancel: threading.Event) -> bool:
        """Build the reduced copies strip by strip; return False when cancelled."""
        if self.n_levels == 1:
            return True
        self._folder = Path(tempfile.mkdtemp(prefix="zemosaic_view_"))
        copies = {}
        for level in range(1, self.n_levels):
            shape = (self.n_channels, *self.level_shape(level))
            path = self._folder / f"level{level}.f32"
            copies[level] = np.memmap(path, dtype=np.float32, mode="w+", shape=shape)
        strip = 2 ** (self.n_levels - 1)
        rows_at_once = max(strip, 256 // strip * strip)
        for y0 in range(0, self.shape_hw[0], rows_at_once):
            if cancel.is_set():
                return False
            data = self.rows(y0, min(y0 + rows_at_once, self.shape_hw[0]))
            for level in range(1, self.n_levels):
                data = bin_down(data, 2)
                top = y0 >> level
                copies[level][:, top : top + data.shape[1]] = data
        self._copies = copies
        self.ready_level = self.n_levels - 1
        return True

    def close(self) -> None:
        """Remove the reduced copies."""
        self._copies.clear()
        self._parts.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    # ------------------------------------------------------------------ under the cursor

    def values_at(self, x: int, y: int) -> tuple[float, ...] | None:
        """Return the values of one pixel, or None outside the image."""
        if not (0 <= x < self.shape_hw[1] and 0 <= y < self.shape_hw[0]):
            return None
        with self._lock:
            kept = self._parts.get((0, y // PART_PX, x // PART_PX))
        if kept is not None:
            return tuple(float(v) for v in kept[:, y % PART_PX, x % PART_PX])
        return tuple(float(v) for v in self.rows(y, y + 1, x, x + 1)[:, 0, 0])

    def sky_at(self, x: float, y: float) -> tuple[float, float] | None:
        """Return (RA, Dec) in degrees of a pixel position, or None without a WCS."""
        if self.wcs is None:
            return None
        ra, dec = self.wcs.all_pix2world([x], [y], 0)
        return (float(ra[0]) % 360.0, float(dec[0])) if np.isfinite(ra[0]) else None

    @property
    def pixel_scale_deg(self) -> float:
        """Side of a pixel on the sky; NaN without a WCS."""
        return (
            float(np.sqrt(np.prod(proj_plane_pixel_scales(self.wcs)))) if self.wcs is not None else math.nan
        )

    def pixel_of(self, ra_deg: np.ndarray, dec_deg: np.ndarray) -> np.ndarray:
        """Return pixel positions (..., 2) of sky positions; NaN without a WCS."""
        if self.wcs is None:
            return np.full((*np.shape(ra_deg), 2), np.nan)
        x, y = self.wcs.wcs_world2pix(np.ravel(ra_deg), np.ravel(dec_deg), 0)
        return np.stack([x, y], axis=-1).reshape(*np.shape(ra_deg), 2)


def sexagesimal(ra_deg: float, dec_deg: float) -> str:
    """Return ``hh:mm:ss.ss +dd:mm:ss.s``."""
    centi = round(ra_deg / 15.0 * 360_000.0) % 8_640_000
    hours, rest = divmod(centi, 360_000)
    minutes, rest = divmod(rest, 6_000)
    tenths = round(abs(dec_deg) * 36_000.0)
    degrees, left = divmod(tenths, 36_000)
    arcmin, left = divmod(left, 600)
    sign = "-" if dec_deg < 0 else "+"
    return f"{hours:02d}:{minutes:02d}:{rest / 100:05.2f}  {sign}{degrees:02d}:{arcmin:02d}:{left / 10:04.1f}"
