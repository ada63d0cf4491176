"""The finished picture of a mosaic: cut, holes filled, flattened, stretched in a style; with what it was made with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.wcs import WCS
from scipy import ndimage

from zemosaic_core.coverage import LEAST_COVERAGE, covered_part
from zemosaic_core.picture_flatten import SkySurface, fit_sky_surface
from zemosaic_core.picture_noise import NoiseMap
from zemosaic_core.picture_parts import Box, bands
from zemosaic_core.picture_smoothing import fill_from_around
from zemosaic_core.stretch import StretchParams, auto_stretch_params, preview_rgba
from zemosaic_io.fits_read import read_window
from zemosaic_io.headers import read_frame_info
from zemosaic_io.preview import FitsRows, downscale, read_noise_map
from zemosaic_pipeline.phase_options import OutputOptions
from zemosaic_pipeline.records import Mosaic

__all__ = ["EveryPixel", "FinishedPicture", "cut_and_fill", "make_picture"]

# Larger holes are no faults but parts of the sky that nobody looked at.
_LARGEST_HOLE_PX = 64


@dataclass(frozen=True)
class FinishedPicture:
    """A picture before it becomes a file.

    Attributes
    ----------
    image : ndarray, shape (C, h, w), float32
        Linear, as it is shown.
    clipped : ndarray, shape (h, w), bool
    noise : NoiseMap or None
    params : StretchParams
    step : int
        Pixels of the mosaic per pixel of the picture, both ways.
    box : tuple of int
        Rows and columns ``(y0, y1, x0, x1)`` of the mosaic that are shown.
    holes : list of tuple of int
        (x, y) in pixels of the mosaic of the holes that were filled.
    surface : SkySurface or None
        What was taken out of the sky.
    threads : int
        How many work on it when it is made; the picture is the same.
    """

    image: np.ndarray
    clipped: np.ndarray
    noise: NoiseMap | None
    params: StretchParams
    step: int
    box: Box
    holes: list[tuple[int, int]]
    surface: SkySurface | None = None
    threads: int = 1

    def render(self, bits: int = 8) -> np.ndarray:
        """Return the picture, (h, w, 4) uint8 or uint16."""
        shape_hw = (self.image.shape[1], self.image.shape[2])

        def paint(box: Box) -> np.ndarray:
            y0, y1, x0, x1 = box
            return self.paint_part(
                self.image[:, y0:y1, x0:x1], self.clipped[y0:y1, x0:x1], self.noise, box, bits
            )

        rgba = np.empty((*shape_hw, 4), np.uint8 if bits == 8 else np.uint16)
        for y0, band in bands(shape_hw, paint):
            rgba[y0 : y0 + len(band)] = band
        return rgba

    def paint_part(
        self, image: np.ndarray, clipped: np.ndarray, noise: NoiseMap | None, box: Box, bits: int = 8
    ) -> np.ndarray:
        """Return a part of the picture, or of one like it; ``noise`` is that of the whole."""
        return preview_rgba(
            image,
            params=self.params,
            max_dim=None,
            calm_noise=True,
            noise=noise.part(box[0], box[2]) if noise is not None else None,
            clipped=clipped,
            bits=bits,
            threads=self.threads,
        )

    def wcs(self, mosaic_cards: dict[str, Any], step: int | None = None) -> WCS:
        """Return the WCS of the picture from that of the mosaic; whole blocks of its pixels become one.

        ``step``: of the picture with other blocks.
        """
        y0, y1, x0, x1 = self.box
        step = step or self.step
        return WCS(mosaic_cards).slice((slice(y0, y1, step), slice(x0, x1, step)))

    def recipe(self) -> str:
        """Return as JSON all numbers that make the picture out of the science file."""
        facts = {"params": asdict(self.params), "step": self.step, "box": self.box, "holes": self.holes}
        return json.dumps(facts, default=float)


class EveryPixel:
    """A finished picture in the pixels of its mosaic, however small it was made to decide how it looks.

    What was cut, filled and flattened in the picture is so here, too, and the stretch is the same.

    Attributes
    ----------
    shape_hw : tuple of int
    """

    def __init__(self, picture: FinishedPicture, mosaic: Mosaic) -> None:
        y0, y1, x0, x1 = picture.box
        self.shape_hw = (y1 - y0, x1 - x0)
        self._picture = picture
        self._science = read_frame_info(Path(mosaic.science_path))
        self._clipped = FitsRows(mosaic.coverage_path, "CLIPPED")
        noise = read_noise_map(mosaic.coverage_path)
        self._noise = noise.part(y0, x0) if noise is not None else None
        self._shown = np.isfinite(picture.image).all(axis=0)
        # At its outer border a pixel of the picture may be a mean of few pixels, the others being missing.
        self._inside = ndimage.binary_erosion(self._shown, np.ones((3, 3), bool), border_value=1)

    def wcs(self, mosaic_cards: dict[str, Any]) -> WCS:
        """Return its WCS from that of the mosaic."""
        return self._picture.wcs(mosaic_cards, 1)

    def bands(self, *, last_first: bool = False) -> Iterator[tuple[int, np.ndarray]]:
        """Yield bands of its full width with their first rows, (h, w, 4) uint8.

        Raises
        ------
        SkipItem
            A file of the mosaic cannot be read.
        """
        return bands(self.shape_hw, self._paint, last_first=last_first)

    def _paint(self, box: Box) -> np.ndarray:
        y0, y1, x0, x1 = box
        top, _, left, _ = self._picture.box
        image = read_window(self._science, top + y0, top + y1, left + x0, left + x1)
        image = (image[None] if image.ndim == 2 else image).astype(np.float32, copy=False)
        clipped = self._clipped.read_rows(top + y0, top + y1)[0, :, left + x0 : left + x1] > 0
        if self._picture.surface is not None:
            image = self._picture.surface.taken_from(image, self.shape_hw, (y0, x0))
        return self._picture.paint_part(self._as_shown(image, box), clipped, self._noise, box)

    def _as_shown(self, image: np.ndarray, box: Box) -> np.ndarray:
        """Fill, in place, what is missing inside the picture, and take away what the picture does not show."""
        step = self._picture.step
        y0, y1, x0, x1 = box
        rows, columns = np.arange(y0, y1) // step, np.arange(x0, x1) // step
        known = np.isfinite(image).all(axis=0)
        fill = ~known & self._inside[np.ix_(rows, columns)]
        hidden = ~(known | fill) | ~self._shown[np.ix_(rows, columns)]
        if fill.any():
            sky = self._picture.params.sky
            _fill(image, known, fill, sky, beyond=self._picture.image[:, rows][:, :, columns])
        image[:, hidden] = np.nan
        return image


def make_picture(mosaic: Mosaic, options: OutputOptions, threads: int = 1) -> FinishedPicture:
    """Read a mosaic at the size of the picture and decide how it is shown; ``threads`` make it when it is rendered.

    Raises
    ------
    SkipItem
        A file of the mosaic cannot be read.
    """
    how = dict(options.preview)
    longest = how.pop("max_dim")
    rows = FitsRows(mosaic.science_path)
    step = max(1, -(-max(rows.shape[1:]) // longest))
    image = downscale(rows, longest)
    depth = np.nan_to_num(downscale(FitsRows(mosaic.coverage_path), longest)[0])
    clipped = downscale(FitsRows(mosaic.coverage_path, "CLIPPED"), longest)[0] > 0
    noise = read_noise_map(mosaic.coverage_path)
    image, box, holes = cut_and_fill(image, depth, options.crop)
    y0, y1, x0, x1 = box
    surface = fit_sky_surface(image) if options.flatten else None
    if surface is not None:
        image = surface.taken_from(image)
    return FinishedPicture(
        image,
        clipped[y0:y1, x0:x1],
        noise.part(y0 * step, x0 * step).reduced(step) if noise is not None else None,
        auto_stretch_params(image, white_gains=mosaic.colour.gains, **how),
        step,
        (y0 * step, min(y1 * step, rows.shape[1]), x0 * step, min(x1 * step, rows.shape[2])),
        [((x0 + x) * step, (y0 + y) * step) for x, y in holes],
        surface,
        threads,
    )


def cut_and_fill(
    image: np.ndarray, depth: np.ndarray, crop: str
) -> tuple[np.ndarray, tuple[int, int, int, int], list[tuple[int, int]]]:
    """Cut a picture by its coverage and fill the small holes inside.

    Parameters
    ----------
    image : ndarray, shape (C, h, w), float32
        NaN means missing.
    depth : ndarray, shape (h, w)
        Frames per pixel.
    crop : {'', 'coverage', 'rectangle'}
        With ``coverage`` the rim with less than half of the usual frames is missing in the result.

    Returns
    -------
    image : ndarray, shape (C, h', w'), float32
    box : tuple of int
        ``(y0, y1, x0, x1)`` of what is left.
    holes : list of tuple of int
        (x, y) in the result of every hole that was filled.
    """
    box = (0, image.shape[1], 0, image.shape[2])
    if crop:
        found = covered_part(depth, inscribed=crop == "rectangle")
        box = found if found[1] > found[0] else box
    y0, y1, x0, x1 = box
    image, depth = image[:, y0:y1, x0:x1].copy(), depth[y0:y1, x0:x1]
    if crop == "coverage" and (depth > 0).any():
        thin = depth < LEAST_COVERAGE * float(np.median(depth[depth > 0]))
        parts, _ = ndimage.label(thin | ~np.isfinite(image).all(axis=0))
        rim = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
        image[:, np.isin(parts, rim[rim > 0])] = np.nan
    known = np.isfinite(image).all(axis=0)
    parts, count = ndimage.label(~known)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    at_border = np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])
    small = sizes <= _LARGEST_HOLE_PX
    small[0] = False
    small[at_border] = False
    holes = []
    if small.any():
        fill = small[parts]
        _fill(image, known, fill, tuple(float(np.median(plane[known])) for plane in image))
        boxes = ndimage.find_objects(parts)
        for label in np.flatnonzero(small):
            rows, columns = boxes[label - 1]
            x = columns.start + int(np.argmax(parts[rows.start, columns] == label))
            holes.append((x, rows.start))
    return image, box, holes


def _fill(
    image: np.ndarray,
    known: np.ndarray,
    fill: np.ndarray,
    sky: tuple[float, ...],
    *,
    beyond: np.ndarray | None = None,
) -> None:
    """Fill pixels, in place, with smooth means of those around; where none is near, with ``beyond``."""
    use = known.astype(np.float32)
    far = fill & (fill_from_around(use, use, fill) < 0.5) if beyond is not None else None
    for c, (plane, level) in enumerate(zip(image, sky, strict=True)):
        above = np.where(known, plane - np.float32(level), np.float32(0.0)).astype(np.float32)
        plane[fill] = fill_from_around(above, use, fill)[fill] + np.float32(level)
        if far is not None and beyond is not None:
            plane[far] = beyond[c][far]
