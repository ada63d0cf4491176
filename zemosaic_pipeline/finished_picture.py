"""The finished picture of a mosaic: cut, holes filled, flattened, stretched in a style; with what it was made with."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from astropy.wcs import WCS
from scipy import ndimage

from zemosaic_core.coverage import LEAST_COVERAGE, covered_part
from zemosaic_core.picture_flatten import flatten_sky
from zemosaic_core.picture_noise import NoiseMap
from zemosaic_core.picture_smoothing import fill_from_around
from zemosaic_core.stretch import StretchParams, auto_stretch_params, preview_rgba
from zemosaic_io.preview import FitsRows, downscale, read_noise_map
from zemosaic_pipeline.phase_options import OutputOptions
from zemosaic_pipeline.records import Mosaic

__all__ = ["FinishedPicture", "cut_and_fill", "make_picture"]

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
    """

    image: np.ndarray
    clipped: np.ndarray
    noise: NoiseMap | None
    params: StretchParams
    step: int
    box: tuple[int, int, int, int]
    holes: list[tuple[int, int]]

    def render(self, bits: int = 8) -> np.ndarray:
        """Return the picture, (h, w, 4) uint8 or uint16."""
        return preview_rgba(
            self.image,
            params=self.params,
            max_dim=None,
            calm_noise=True,
            noise=self.noise,
            clipped=self.clipped,
            bits=bits,
        )

    def wcs(self, mosaic_cards: dict[str, Any]) -> WCS:
        """Return the WCS of the picture from that of the mosaic; whole blocks of its pixels become one."""
        y0, y1, x0, x1 = self.box
        return WCS(mosaic_cards).slice((slice(y0, y1, self.step), slice(x0, x1, self.step)))

    def recipe(self) -> str:
        """Return as JSON all numbers that make the picture out of the science file."""
        facts = {"params": asdict(self.params), "step": self.step, "box": self.box, "holes": self.holes}
        return json.dumps(facts, default=float)


def make_picture(mosaic: Mosaic, options: OutputOptions) -> FinishedPicture:
    """Read a mosaic at the size of the picture and decide how it is shown.

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
    if options.flatten:
        image = flatten_sky(image)
    return FinishedPicture(
        image,
        clipped[y0:y1, x0:x1],
        noise.part(y0 * step, x0 * step).reduced(step) if noise is not None else None,
        auto_stretch_params(image, white_gains=mosaic.colour.gains, **how),
        step,
        (y0 * step, min(y1 * step, rows.shape[1]), x0 * step, min(x1 * step, rows.shape[2])),
        [((x0 + x) * step, (y0 + y) * step) for x, y in holes],
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
        level = [np.median(plane[known]) for plane in image]
        for plane, sky in zip(image, level, strict=True):
            above = np.where(known, plane - sky, np.float32(0.0)).astype(np.float32)
            plane[fill] = fill_from_around(above, known.astype(np.float32), fill)[fill] + sky
        boxes = ndimage.find_objects(parts)
        for label in np.flatnonzero(small):
            rows, columns = boxes[label - 1]
            x = columns.start + int(np.argmax(parts[rows.start, columns] == label))
            holes.append((x, rows.start))
    return image, box, holes
