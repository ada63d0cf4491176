"""A finished mosaic as the viewer needs it: any part at any zoom without holding all of it in memory.

The file stays on disk. Reduced copies (each half the size of the one before) are built once, strip by strip,
in a temporary folder; a part is read from the copy that fits the zoom. Rendering to 8 bits is `preview_rgba`
of `zemosaic_core.stretch` with one set of numbers for the whole picture, so that parts fit together.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from astropy.wcs import WCS

from zemosaic_core.stretch import StretchParams, auto_stretch_params, preview_rgba
from zemosaic_io.fits_cards import iter_hdus
from zemosaic_io.fits_read import read_window
from zemosaic_io.headers import FrameInfo, read_frame_info

__all__ = ["CHANNEL_VIEWS", "PART_PX", "MosaicImage", "adjusted", "coverage_rgba", "sexagesimal"]

PART_PX = 512
OVERVIEW_PX = 900
# Parts kept as floating point numbers: 64 parts of three channels are 200 MB.
MAX_PARTS = 64
CHANNEL_VIEWS = ("rgb", "red", "green", "blue", "light")


def half_size(image: np.ndarray) -> np.ndarray:
    """Average blocks of 2 x 2 finite pixels of (C, h, w); an odd last row or column counts alone."""
    channels, height, width = image.shape
    padded = np.full((channels, height + height % 2, width + width % 2), np.nan, dtype=np.float32)
    padded[:, :height, :width] = image
    total = np.zeros((channels, padded.shape[1] // 2, padded.shape[2] // 2), dtype=np.float32)
    count = np.zeros_like(total)
    for dy in (0, 1):
        for dx in (0, 1):
            part = padded[:, dy::2, dx::2]
            seen = np.isfinite(part)
            total += np.where(seen, part, np.float32(0.0))
            count += seen
    return np.where(count > 0, total / np.maximum(count, 1.0), np.float32(np.nan)).astype(np.float32)


class MosaicImage:
    """A FITS image open for viewing.

    Parameters
    ----------
    path : Path
        A FITS file with one, three or four planes.

    Raises
    ------
    SkipItem
        The file is no image that can be shown.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
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
        for level in range(1, self.ready_level + 1):
            if max(self.level_shape(level)) <= 2 * OVERVIEW_PX:
                return np.array(self._copies[level])
        step = max(1, -(-max(self.shape_hw) // OVERVIEW_PX))
        strips = [
            self.rows(y, y + 1)[:, :, step // 2 :: step] for y in range(step // 2, self.shape_hw[0], step)
        ]
        return np.concatenate(strips, axis=1) if strips else self.rows(0, self.shape_hw[0])

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
        height, width = self.level_shape(level)
        y0, x0 = row * PART_PX, column * PART_PX
        y1, x1 = min(y0 + PART_PX, height), min(x0 + PART_PX, width)
        data = self.rows(y0, y1, x0, x1) if level == 0 else np.array(self._copies[level][:, y0:y1, x0:x1])
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
                data = half_size(data)
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

    def pixel_of(self, ra_deg: np.ndarray, dec_deg: np.ndarray) -> np.ndarray:
        """Return pixel positions (..., 2) of sky positions; NaN without a WCS."""
        if self.wcs is None:
            return np.full((*np.shape(ra_deg), 2), np.nan)
        x, y = self.wcs.wcs_world2pix(np.ravel(ra_deg), np.ravel(dec_deg), 0)
        return np.stack([x, y], axis=-1).reshape(*np.shape(ra_deg), 2)


def select_channels(image: np.ndarray, view: str) -> np.ndarray:
    """Return the planes to show: all, one colour, or their mean."""
    if image.shape[0] == 1 or view == "rgb":
        return image
    if view == "light":
        return image.mean(axis=0, keepdims=True)
    index = CHANNEL_VIEWS.index(view) - 1
    return image[index : index + 1]


def base_params(overview: np.ndarray, view: str, options: Mapping[str, Any] | None = None) -> StretchParams:
    """Return the automatic stretch of a channel view; ``options`` are those of `auto_stretch_params`."""
    return auto_stretch_params(select_channels(overview, view), **(options or {}))


def adjusted(
    params: StretchParams, brightness: float, black: float, saturation: float = 0.0
) -> StretchParams:
    """Return a stretch moved by three sliders.

    Parameters
    ----------
    brightness : float
        -1 (dark) .. 1 (bright); 0 keeps the automatic choice.
    black : float
        -1 (lift the shadows) .. 1 (deepen them); 0 keeps the automatic choice.
    saturation : float
        -1 (grey) .. 1 (twice the colour); 0 keeps the style's.
    """
    softness = params.asinh_a * 10.0 ** (-1.5 * brightness)
    return replace(
        params,
        asinh_a=softness,
        pedestal=params.pedestal * 2.0 ** (-2.0 * black),
        saturation=params.saturation * (1.0 + saturation),
    )


def render(image: np.ndarray, view: str, params: StretchParams, *, calm_noise: bool = False) -> np.ndarray:
    """Return a part as (h, w, 4) uint8; missing pixels are transparent.

    ``calm_noise`` is for the whole picture in small; parts of a picture would no longer fit together.
    """
    return preview_rgba(select_channels(image, view), params=params, max_dim=None, calm_noise=calm_noise)


def coverage_rgba(coverage: np.ndarray) -> np.ndarray:
    """Return a translucent colour map (h, w, 4) uint8 of a coverage plane: blue few, green some, yellow many."""
    valid = np.isfinite(coverage) & (coverage > 0)
    top = float(np.percentile(coverage[valid], 99.5)) if valid.any() else 1.0
    t = np.clip(np.where(valid, coverage, 0.0) / max(top, 1e-9), 0.0, 1.0)
    stops = np.array([(40, 60, 140), (30, 130, 130), (90, 170, 80), (235, 205, 70)], dtype=float)
    rgba = np.zeros((*coverage.shape, 4), dtype=np.uint8)
    for channel in range(3):
        rgba[..., channel] = np.interp(t, np.linspace(0, 1, 4), stops[:, channel])
    rgba[..., 3] = np.where(valid, 120, 0)
    return rgba


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
