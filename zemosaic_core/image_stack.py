"""Align and stack images that are already in memory: measuring and matching, arrays only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zemosaic_core.background import sky_statistics
from zemosaic_core.errors import SkipItem
from zemosaic_core.image_overlaps import block_means
from zemosaic_core.pixel_map import build_pixel_map
from zemosaic_core.resample import sample_window
from zemosaic_core.star_patterns import find_similarity
from zemosaic_core.stars import StarList, detect_stars
from zemosaic_core.transforms import Transform, fit_transform
from zemosaic_core.weights import frame_weights

__all__ = ["align_to", "common_stack", "find_stars", "measure_weights", "normalise_stack"]

_BLOCK = 4
_MIN_BRIGHT_BLOCKS = 16


def find_stars(image: np.ndarray, threshold_sigma: float = 3.0) -> StarList:
    """Detect the stars of an image (C, h, w) in the mean of its channels."""
    with np.errstate(invalid="ignore"):
        return detect_stars(image.mean(axis=0), threshold_sigma=threshold_sigma)


def align_to(
    reference: StarList, image: np.ndarray, shape_hw: tuple[int, int], stars: StarList
) -> np.ndarray:
    """Resample an image onto the pixels of a reference by their common stars.

    Parameters
    ----------
    reference, stars : StarList
        Stars of the reference and of the image.
    image : ndarray, shape (C, h, w), float32
    shape_hw : tuple of int
        Height and width of the reference.

    Returns
    -------
    ndarray, shape (C, H, W), float32
        NaN where the image has no pixel.

    Raises
    ------
    SkipItem
        ``align_no_match`` when the star patterns do not agree beyond chance.
    """
    ref_xy = np.column_stack([reference.x, reference.y]).astype(np.float64)
    src_xy = np.column_stack([stars.x, stars.y]).astype(np.float64)
    match = find_similarity(ref_xy, src_xy) if min(len(ref_xy), len(src_xy)) >= 3 else None
    if match is None:
        raise SkipItem(
            "align_no_match",
            f"no common star pattern ({len(stars)} stars against {len(reference)} of the reference)",
            stars=len(stars),
            reference_stars=len(reference),
        )
    to_source: Transform = fit_transform(
        ref_xy[match.ref_index], src_xy[match.src_index], "similarity"
    ).transform
    height, width = shape_hw
    pixel_map = build_pixel_map(to_source.apply, (0, height, 0, width))
    terms = np.tile(np.array([1, 0, 0, 0], np.float32), (image.shape[0], 1))
    samples, _ = sample_window(
        image, (0, 0), image.shape[1:], pixel_map, (0, height, 0, width), "lanczos3", terms
    )
    return samples


def common_stack(images: Sequence[np.ndarray]) -> tuple[np.ndarray, bool]:
    """Stack (h, w) or (h, w, C) images as (N, C, h, w) float32; also tell whether they had no channel axis.

    Raises
    ------
    ValueError
        When there is none or their shapes differ.
    """
    arrays = [np.asarray(image) for image in images]
    shapes = {array.shape for array in arrays}
    if len(shapes) != 1 or arrays[0].ndim not in (2, 3):
        raise ValueError(
            f"images must all have one shape, (h, w) or (h, w, C); got {sorted(map(str, shapes))}"
        )
    flat = arrays[0].ndim == 2
    height, width = arrays[0].shape[:2]
    stack = np.empty((len(arrays), 1 if flat else arrays[0].shape[2], height, width), np.float32)
    for target, array in zip(stack, arrays, strict=True):
        target[...] = array[None] if flat else np.moveaxis(array, -1, 0)
    return stack, flat


def normalise_stack(stack: np.ndarray, method: str) -> np.ndarray:
    """Find gain and offset that bring every image of a stack to its first one.

    ``sky_mean``: the sky levels agree. ``linear_fit``: also the light above the sky does, measured as the median
    ratio over the bright blocks both images share; without enough of them the gain stays 1.

    Parameters
    ----------
    stack : ndarray, shape (N, C, h, w), float32
    method : {'none', 'sky_mean', 'linear_fit'}

    Returns
    -------
    ndarray, shape (N, C, 2), float64
        Gain and offset.

    Raises
    ------
    ValueError
        When the method is unknown.
    """
    if method not in ("none", "sky_mean", "linear_fit"):
        raise ValueError(f"normalisation is {method!r}; allowed: none, sky_mean, linear_fit")
    n, n_channels = stack.shape[:2]
    terms = np.zeros((n, n_channels, 2))
    terms[..., 0] = 1.0
    if method == "none":
        return terms
    for c in range(n_channels):
        skies = [sky_statistics(plane) for plane in stack[:, c]]
        reference = (
            block_means(stack[0, c][None], _BLOCK)[0] - skies[0][0] if method == "linear_fit" else None
        )
        for i in range(1, n):
            if reference is not None:
                terms[i, c, 0] = _gain(reference, stack[i, c], skies[0][1], *skies[i])
            offset = skies[0][0] - terms[i, c, 0] * skies[i][0]
            terms[i, c, 1] = offset if np.isfinite(offset) else 0.0
    return terms


def _gain(reference: np.ndarray, plane: np.ndarray, ref_sigma: float, sky: float, sigma: float) -> float:
    blocks = block_means(plane[None], _BLOCK)[0] - sky
    # Chosen by both images, so that neither one's noise favours itself.
    limit = 5.0 * max(ref_sigma, sigma) / _BLOCK
    bright = (reference + blocks > 2 * limit) & (blocks > limit)
    if np.count_nonzero(bright) < _MIN_BRIGHT_BLOCKS:
        return 1.0
    return float(np.median(reference[bright] / blocks[bright]))


def measure_weights(stack: np.ndarray, gain: np.ndarray, method: str) -> np.ndarray:
    """Measure noise and star width of every image and weigh them; see `frame_weights`.

    Parameters
    ----------
    stack : ndarray, shape (N, C, h, w), float32
    gain : ndarray, shape (N, C)
    method : {'none', 'noise_variance', 'noise_fwhm'}

    Returns
    -------
    ndarray, shape (N, C), float32
    """
    n, n_channels = stack.shape[:2]
    noise, fwhm = np.ones((n, n_channels)), np.ones(n)
    if method != "none":
        noise = np.array([[sky_statistics(plane)[1] for plane in image] for image in stack])
    if method == "noise_fwhm":
        fwhm = np.array(
            [np.median(stars.fwhm_px) if len(stars := find_stars(image, 5.0)) else np.nan for image in stack]
        )
    return frame_weights(noise, fwhm, gain, method)
