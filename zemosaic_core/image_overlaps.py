"""Measure how images that lie in memory differ where they overlap, on small pictures of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from zemosaic_core.errors import RunFailed
from zemosaic_core.pixel_map import build_pixel_map, footprint_bbox, wcs_transform
from zemosaic_core.resample import sample_window
from zemosaic_core.tile_photometry import OverlapSamples, TileOptions, solve_tiles

if TYPE_CHECKING:
    from astropy.wcs import WCS

__all__ = ["block_means", "overlap_samples", "solve_overlaps"]


def solve_overlaps(
    images: Sequence[np.ndarray],
    wcs_list: Sequence[WCS],
    out_wcs: WCS,
    out_shape_hw: tuple[int, int],
    wanted: TileOptions,
    *,
    preview_size: int = 512,
    min_overlap_fraction: float = 0.05,
) -> np.ndarray:
    """Solve the photometric terms that make images agree where they overlap.

    Parameters
    ----------
    images : sequence of ndarray, shape (C, h, w), float32
        At least one.
    wanted : TileOptions
        Which terms are free.
    wcs_list, out_wcs, out_shape_hw, preview_size, min_overlap_fraction
        See `overlap_samples`.

    Returns
    -------
    ndarray, shape (N, C, 4), float64
        ``(gain, c0, cx, cy)``, see `zemosaic_core.tile_photometry.solve_tiles`.
    """
    pairs = overlap_samples(
        images, wcs_list, out_wcs, out_shape_hw,
        preview_size=preview_size, min_overlap_fraction=min_overlap_fraction,
    )  # fmt: skip
    return solve_tiles(len(images), pairs, images[0].shape[0], options=wanted).terms


def block_means(image: np.ndarray, factor: int) -> np.ndarray:
    """Average blocks of ``factor x factor`` px; an incomplete or partly missing block is missing.

    Parameters
    ----------
    image : ndarray, shape (C, h, w), float32
    factor : int

    Returns
    -------
    ndarray, shape (C, h // factor, w // factor), float32
        Block (y, x) is centred at ``factor * y + (factor - 1) / 2``.
    """
    n_channels, height, width = image.shape
    rows, columns = height // factor, width // factor
    blocks = image[:, : rows * factor, : columns * factor].reshape(n_channels, rows, factor, columns, factor)
    return blocks.mean(axis=(2, 4), dtype=np.float64).astype(np.float32)


def overlap_samples(
    images: Sequence[np.ndarray],
    wcs_list: Sequence[WCS],
    out_wcs: WCS,
    out_shape_hw: tuple[int, int],
    *,
    preview_size: int = 512,
    min_overlap_fraction: float = 0.05,
    min_samples: int = 16,
) -> list[OverlapSamples]:
    """Measure all pairs of images on a common coarse lattice of the output grid.

    Every image is averaged in blocks so that its longer side has at most `preview_size` of them, and each output
    lattice point takes the value of the blocks around it: one read per image, however many overlaps it has.

    Parameters
    ----------
    images : sequence of ndarray, shape (C, h, w), float32
    wcs_list, out_wcs, out_shape_hw
        Where the images and the output grid lie.
    preview_size : int
        Blocks along the longer side of the largest image, >= 8.
    min_overlap_fraction : float
        Smallest overlap as a fraction of the smaller image's area.
    min_samples : int
        Smallest number of common lattice points.

    Returns
    -------
    list of OverlapSamples
    """
    if preview_size < 8:
        raise ValueError(f"preview_size must be at least 8, got {preview_size}")
    if not images:
        return []
    factor = max(1, max(-(-max(image.shape[1:]) // preview_size) for image in images))
    lattice_hw = (-(-out_shape_hw[0] // factor), -(-out_shape_hw[1] // factor))
    views = [
        _view(image, wcs, out_wcs, factor, lattice_hw) for image, wcs in zip(images, wcs_list, strict=True)
    ]
    pairs = []
    for i in range(len(views)):
        for j in range(i + 1, len(views)):
            pair = _compare(i, j, views, min_overlap_fraction, min_samples)
            if pair is not None:
                pairs.append(pair)
    return pairs


@dataclass(frozen=True)
class _View:
    """An image on the coarse lattice: values (C, h, w) inside a box and the image's own coordinates there."""

    box: tuple[int, int, int, int]
    values: np.ndarray
    u: np.ndarray
    t: np.ndarray

    @cached_property
    def valid(self) -> np.ndarray:
        return np.isfinite(self.values).all(axis=0)


def _view(
    image: np.ndarray, wcs: WCS, out_wcs: WCS, factor: int, lattice_hw: tuple[int, int]
) -> _View | None:
    """Lay an image on the lattice; None when it does not touch it."""
    half = (factor - 1) / 2
    to_image = wcs_transform(out_wcs, wcs)
    to_out = wcs_transform(wcs, out_wcs)

    def to_blocks(x, y):
        sx, sy = to_image(x * factor + half, y * factor + half)
        return (sx - half) / factor, (sy - half) / factor

    def from_image(x, y):
        ox, oy = to_out(x, y)
        return (ox - half) / factor, (oy - half) / factor

    box = footprint_bbox(from_image, image.shape[1:], lattice_hw)
    if box[1] <= box[0]:
        return None
    blocks = block_means(image, factor)
    if min(blocks.shape[1:]) < 2:
        return None
    try:
        pixel_map = build_pixel_map(to_blocks, box, max_error_px=0.05)
    except RunFailed as error:
        if error.key == "pixel_map_undefined":
            return None
        raise
    terms = np.tile(np.array([1, 0, 0, 0], np.float32), (blocks.shape[0], 1))
    values, _ = sample_window(blocks, (0, 0), blocks.shape[1:], pixel_map, box, "bilinear", terms)
    y, x = np.mgrid[box[0] : box[1], box[2] : box[3]]
    sx, sy = to_image(x * factor + half, y * factor + half)
    height, width = image.shape[1:]
    return _View(box, values, 2 * sx / max(1, width - 1) - 1, 2 * sy / max(1, height - 1) - 1)


def _compare(
    i: int, j: int, views: Sequence[_View | None], min_overlap_fraction: float, min_samples: int
) -> OverlapSamples | None:
    """Take the lattice points that two images share; None when there are too few."""
    a, b = views[i], views[j]
    if a is None or b is None:
        return None
    y0, y1 = max(a.box[0], b.box[0]), min(a.box[1], b.box[1])
    x0, x1 = max(a.box[2], b.box[2]), min(a.box[3], b.box[3])
    if y1 <= y0 or x1 <= x0:
        return None
    cut_a = (slice(y0 - a.box[0], y1 - a.box[0]), slice(x0 - a.box[2], x1 - a.box[2]))
    cut_b = (slice(y0 - b.box[0], y1 - b.box[0]), slice(x0 - b.box[2], x1 - b.box[2]))
    both = a.valid[cut_a] & b.valid[cut_b]
    count = int(both.sum())
    smaller = min(int(a.valid.sum()), int(b.valid.sum()))
    if count < min_samples or count < min_overlap_fraction * smaller:
        return None
    return OverlapSamples(
        i, j,
        np.stack([a.u[cut_a][both], a.t[cut_a][both]], axis=1),
        np.stack([b.u[cut_b][both], b.t[cut_b][both]], axis=1),
        a.values[:, *cut_a][:, both].astype(np.float64),
        b.values[:, *cut_b][:, both].astype(np.float64),
        np.ones(count),
    )  # fmt: skip
