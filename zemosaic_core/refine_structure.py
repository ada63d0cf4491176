"""Where the second pass adds something, and what it makes of its sums; `zemosaic_core.refine` gathers them.

Only where the co-add shows structure there is something to gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numba import njit

__all__ = [
    "HALO_ROWS",
    "NEED_REACH",
    "Gathered",
    "kernel_numbers",
    "needed_places",
    "read_places",
    "refined",
    "sample_spread",
    "share_of_channels",
    "structure_mask",
]

# The co-add is off by some percent of what it shows, the second pass adds noise about as large as the co-add's: at a
# range of 3 x 3 pixels of so many noises of the co-add both are alike, and half is added. Less than the least share
# is not worth it.
STRUCTURE_HALF, LEAST_SHARE = 30.0, 0.1
GROWN_PX = 3
# Binomial taps, a Gaussian of 1.4 px.
_BLUR = np.array([1, 8, 28, 56, 70, 56, 28, 8, 1], np.float64) / 256
# Output pixels from the one that a sample falls on to the furthest that it takes part in, on a grid of half pixels.
NEED_REACH = 3
# Rows of the co-add above and below a block that decide about it: the mask, which reaches further than the taps.
HALO_ROWS = 1 + GROWN_PX + len(_BLUR) // 2
# Sum of weights in shares of its mean: below the first nothing is added, from the second on everything.
TRUST_FROM, TRUST_FULL = 0.1, 0.3
# Variance of a refined pixel over that of the mean of its own samples, by the share of pixels that have its colour, on
# grids 1, 1.5 and 2 times as fine: the co-add at the pixel and at the samples around it have not all of their noise in
# common. Measured on white noise.
_NOISIER = {0.25: (1.12, 0.9, 0.75), 0.5: (1.52, 1.26, 1.15), 1.0: (1.6, 1.75, 1.6)}
# Frames over a pixel: fewer say less than their noise adds.
FRAMES_FROM, FRAMES_FULL = 4.0, 8.0


@dataclass(frozen=True)
class Gathered:
    """Sums over the samples around each pixel of a block; all (C, h, w) float32.

    Attributes
    ----------
    total : ndarray
        Weight times difference.
    weight : ndarray
        Weight.
    square, weight_square : ndarray
        Squares of both, for the variance.
    weight_x, weight_y : ndarray
        Weight times how far the sample lies from the pixel, output px.
    total_x, total_y : ndarray
        Weight times difference times that.
    """

    total: np.ndarray
    weight: np.ndarray
    square: np.ndarray
    weight_square: np.ndarray
    weight_x: np.ndarray
    weight_y: np.ndarray
    total_x: np.ndarray
    total_y: np.ndarray

    @staticmethod
    def blank(shape: tuple[int, int, int]) -> Gathered:
        """Return sums of nothing."""
        return Gathered(*(np.zeros(shape, np.float32) for _ in fields(Gathered)))


def structure_mask(
    image: np.ndarray, weight: np.ndarray, variance: Sequence[float], coverage: np.ndarray, inner: slice
) -> np.ndarray:
    """Return how much of the differences shall be added at each pixel, from what the co-add shows there.

    In empty sky there is nothing to gain, and the noise of few own samples to lose.

    Parameters
    ----------
    image : ndarray, shape (C, h, w), float32
        Rows of the co-add with `HALO_ROWS` more on either side, fewer only where the grid ends; NaN: missing.
    weight : ndarray, shape (C, h, w)
        Sum of the weights of each pixel.
    variance : sequence of float
        Variance (ADU^2) of a sample of weight 1 per channel.
    coverage : ndarray, shape (h, w)
        Number of frames.
    inner : slice
        The rows wanted.

    Returns
    -------
    ndarray, shape (rows of `inner`, w), float32
        0: nothing, 1: everything.
    """
    # Workers of a cluster know the mask; they do without an import that takes as long as half a block.
    from scipy import ndimage

    share = np.zeros(image.shape[1:], np.float32)
    for plane, total, of_one in zip(image, weight, variance, strict=True):
        _raise_to_structure(plane, np.ascontiguousarray(total, np.float32), np.float32(of_one), share)
    share = ndimage.maximum_filter(share, 2 * GROWN_PX + 1, mode="nearest")
    for axis in (0, 1):
        share = ndimage.correlate1d(share, _BLUR, axis=axis, mode="nearest")
    frames = np.clip((coverage - FRAMES_FROM) / (FRAMES_FULL - FRAMES_FROM), 0.0, 1.0)
    mask = share[inner] * frames[inner]
    # What is left of the blur far away is no reason to read samples.
    return np.where(mask > 1e-3, mask, 0.0).astype(np.float32)


@njit(cache=True, nogil=True, error_model="numpy")
def _raise_to_structure(plane, weight, variance, share):
    """Raise `share` to what the range of 3 x 3 pixels of one channel, in noises of the co-add, says of structure."""
    height, width = plane.shape
    half, least_share, one = np.float32(STRUCTURE_HALF**2), np.float32(LEAST_SHARE), np.float32(1)
    low, high = np.empty(width, np.float32), np.empty(width, np.float32)
    for y in range(height):
        above, here, below = plane[max(y - 1, 0)], plane[y], plane[min(y + 1, height - 1)]
        for x in range(width):
            # Comparisons with missing pixels are false: they are passed over.
            least, most = np.float32(np.inf), np.float32(-np.inf)
            for line in (above, here, below):
                value = line[x]
                least = value if value < least else least
                most = value if value > most else most
            low[x], high[x] = least, most
        for x in range(width):
            left, right = max(x - 1, 0), min(x + 1, width - 1)
            most = max(high[x], max(high[left], high[right]))
            least = min(low[x], min(low[left], low[right]))
            total = weight[y, x]
            if here[x] == here[x] and total > 0:
                power = (most - least) * (most - least) * total / variance
                found = (power / (power + half) - least_share) / (one - least_share)
                share[y, x] = max(share[y, x], found)


def needed_places(mask: np.ndarray, scale: float) -> np.ndarray:
    """Return on which pixels a sample may fall that takes part in a block.

    Parameters
    ----------
    mask : ndarray, shape (h, w), float32
        From `structure_mask`.
    scale : float
        Output pixels per source pixel.

    Returns
    -------
    ndarray, shape (h + 2 NEED_REACH, w), uint8
        With so many more rows above and below.
    """
    # Along a diagonal of the source a sample reaches furthest. It falls on the pixel left of and above its place.
    reach = int(np.ceil(np.sqrt(2.0) * scale * kernel_numbers(scale)[0]))
    found = np.pad(mask > 0, ((NEED_REACH, NEED_REACH), (0, 0)))
    for axis in (0, 1):
        found = _reached(found, reach, axis)
    return found.view(np.uint8)


def read_places(mask: np.ndarray, scale: float) -> np.ndarray:
    """Return which pixels of the co-add are looked at for a block: those around every sample that takes part in it.

    Parameters
    ----------
    mask, scale
        As in `needed_places`.

    Returns
    -------
    ndarray, shape (h + 2 HALO_ROWS, w), bool
        With so many more rows above and below.
    """
    needed = needed_places(mask, scale).view(bool)
    found = np.pad(needed, ((HALO_ROWS - NEED_REACH, HALO_ROWS - NEED_REACH), (0, 0)))
    for axis in (0, 1):
        # The taps of a cubic: one before the pixel a sample falls on, two behind it.
        found = np.flip(_reached(np.flip(found, axis), 2, axis), axis)
    return found


def _reached(marked: np.ndarray, reach: int, axis: int) -> np.ndarray:
    """Return whether one of the pixels ``i - reach + 1 ... i + reach`` along an axis is marked, for each ``i``."""
    found = marked.copy()
    here, there = np.moveaxis(found, axis, 0), np.moveaxis(marked, axis, 0)
    for step in range(1, min(reach + 1, len(here))):
        here[:-step] |= there[step:]
        if step < reach:
            here[step:] |= there[:-step]
    return found


def refined(
    image: np.ndarray,
    variance: np.ndarray | None,
    gathered: Gathered,
    mask: np.ndarray,
    weight: np.ndarray,
    shares: Sequence[float],
    scale: float = 1.0,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Add the mean differences to the co-add, as they are at the pixels.

    A colour of few frames has few samples around a pixel, and their middle lies beside it. What they differ by changes
    from pixel to pixel around stars: how it changes, their differences and places say together, and from their middle
    to the pixel that is taken along.

    Parameters
    ----------
    image, variance : ndarray, shape (C, h, w), float32
        Rows of the co-add, and the variance of their pixels where that is kept.
    gathered : Gathered
    mask : ndarray, shape (h, w), float32
    weight : ndarray, shape (C, h, w)
        Sum of the weights of the co-add.
    shares : sequence of float
        Share of the pixels of a frame that have each channel's colour: what the sums of weights are expected to be.
    scale : float
        Output pixels per source pixel.

    Returns
    -------
    image, variance : ndarray
        Where everything is added, the variance is that of the mean of the own samples, from their scatter: larger
        than that of interpolated ones, because neighbours have less in common. Where a share is, the two are mixed
        for a covariance as large as the variance of the co-add, as is found of white noise.
    """
    result = np.array(image, np.float32)
    spread = np.empty_like(result) if variance is None else np.array(variance, np.float32)
    _add_means(
        gathered.total, gathered.weight, gathered.square, gathered.weight_square,
        (gathered.weight_x, gathered.weight_y, gathered.total_x, gathered.total_y), sample_spread(scale), mask,
        np.ascontiguousarray(weight, np.float32), np.asarray(shares, np.float32),
        np.array([np.interp(scale, (1.0, 1.5, 2.0), _NOISIER[share]) for share in shares], np.float32), result, spread,
    )  # fmt: skip
    return result, None if variance is None else spread


@njit(cache=True, nogil=True, error_model="numpy")
def _add_means(
    total, sums, square, sums_square, moments, spread, mask, weight, shares, noisier, image, variance
):
    weight_x, weight_y, total_x, total_y = moments
    one = np.float32(1)
    start, ramp = np.float32(TRUST_FROM), np.float32(TRUST_FULL - TRUST_FROM)
    for c in range(image.shape[0]):
        for y in range(image.shape[1]):
            for x in range(image.shape[2]):
                w, expected = sums[c, y, x], weight[c, y, x] * shares[c]
                if not (mask[y, x] > 0 and w > 0 and expected > 0):
                    continue
                share = min((w / expected - start) / ramp, one) * mask[y, x]
                if not share > 0:
                    continue
                mean = total[c, y, x] / w
                beside_x, beside_y = weight_x[c, y, x] / w, weight_y[c, y, x] / w
                along_x = total_x[c, y, x] / w - beside_x * mean
                along_y = total_y[c, y, x] / w - beside_y * mean
                image[c, y, x] += share * (mean - (beside_x * along_x + beside_y * along_y) / spread)
                lone = min(sums_square[c, y, x] / (w * w), np.float32(0.9))
                leaned = one + (beside_x * beside_x + beside_y * beside_y) / spread
                of_mean = noisier[c] * leaned * square[c, y, x] / (w * w) / (one - lone)
                variance[c, y, x] = (one - share * share) * variance[c, y, x] + share * share * of_mean


def share_of_channels(pattern: str) -> tuple[float, ...]:
    """Return which share of the pixels has each channel's colour."""
    return (0.25, 0.5, 0.25) if pattern else (1.0,)


def kernel_numbers(scale: float) -> tuple[np.float32, np.float32, np.float32]:
    """Return ``(reach, most, times)`` of the weight ``times * clip(reach - |d|, 0, most)`` of a distance in source px.

    It is the overlap of a sample of one source pixel with an output pixel of ``1 / scale`` (the square kernel of
    drizzle), in shares of the latter.
    """
    return np.float32(0.5 + 0.5 / scale), np.float32(1 / scale), np.float32(scale)


def sample_spread(scale: float) -> np.float32:
    """Return the mean square of the distance along an axis, output px, of samples under the kernel anywhere.

    Of so few samples it stands for their own: the way they happen to lie is known worse.
    """
    return np.float32((scale * scale + 1.0) / 12.0)
