"""Weights of frames in a stack and of pixels within a frame. Arrays only."""

from __future__ import annotations

import numpy as np

from zemosaic_core.errors import SettingsError

__all__ = ["WEIGHT_METHODS", "frame_weights", "make_radial_weight_map"]

WEIGHT_METHODS = ("none", "noise_variance", "noise_fwhm")


def frame_weights(noise: np.ndarray, fwhm: np.ndarray, gain: np.ndarray, method: str) -> np.ndarray:
    """Weigh the frames of a group by the noise they carry into the result.

    ``none``: 1. ``noise_variance``: ``1 / (gain noise)^2``, the inverse variance after the frame is scaled by its
    gain. ``noise_fwhm``: ``1 / (gain noise fwhm)^2``, which is best for point sources limited by the sky.
    Weights are divided by the largest of their channel.

    Parameters
    ----------
    noise : ndarray, shape (N, C)
        Standard deviation of the sky of every frame and channel, ADU as in the file.
    fwhm : ndarray, shape (N,)
        Width of the stars, px.
    gain : ndarray, shape (N, C)
        Factor the frame is multiplied with before it is combined.
    method : {'none', 'noise_variance', 'noise_fwhm'}

    Returns
    -------
    ndarray, shape (N, C), float32
        In (0, 1]. A frame whose noise or width is not known (not finite or not positive) gets the median weight
        of its channel: unknown is not bad.

    Raises
    ------
    SettingsError
        When the method is unknown.
    ValueError
        When shapes disagree.
    """
    if method not in WEIGHT_METHODS:
        raise SettingsError(
            "weight_method_invalid",
            f"weighting method is {method!r}; allowed: {', '.join(WEIGHT_METHODS)}",
            value=str(method),
            allowed=", ".join(WEIGHT_METHODS),
        )
    noise, gain = np.asarray(noise, np.float64), np.asarray(gain, np.float64)
    fwhm = np.asarray(fwhm, np.float64)
    if noise.ndim != 2 or gain.shape != noise.shape or fwhm.shape != noise.shape[:1]:
        raise ValueError(
            f"noise and gain must be (N, C) and fwhm (N,); got {noise.shape}, {gain.shape}, {fwhm.shape}"
        )
    if method == "none" or noise.size == 0:
        return np.ones(noise.shape, np.float32)
    width = fwhm[:, None] if method == "noise_fwhm" else np.ones((len(fwhm), 1))
    spread = gain * noise * width
    known = np.isfinite(spread) & (spread > 0)
    weights = np.full(noise.shape, np.nan)
    weights[known] = 1.0 / spread[known] ** 2
    for channel in weights.T:
        good = np.isfinite(channel)
        channel[~good] = np.median(channel[good]) if good.any() else 1.0
        channel /= channel.max()
    return weights.astype(np.float32)


def make_radial_weight_map(
    height: int,
    width: int,
    feather_fraction: float = 0.8,
    shape_power: float = 2.0,
    min_weight_floor: float = 0.05,
) -> np.ndarray:
    """Make a weight map that falls off from the centre of a frame.

    ``w = max(cos(pi / 2 * min(r / feather_fraction, 1)) ** shape_power, min_weight_floor)`` with ``r`` the
    distance from the centre in units of the half diagonal.

    Parameters
    ----------
    height, width : int
        Size of the frame, px.
    feather_fraction : float
        Radius at which the cosine reaches zero; > 0.
    shape_power : float
        Exponent of the cosine; >= 0.
    min_weight_floor : float
        Smallest weight, in [0, 1].

    Returns
    -------
    ndarray, shape (height, width), float32

    Raises
    ------
    ValueError
        When a number is out of range.
    """
    if height < 1 or width < 1:
        raise ValueError(f"the map needs at least one pixel, got {height} x {width}")
    if not feather_fraction > 0 or shape_power < 0 or not 0 <= min_weight_floor <= 1:
        raise ValueError(
            "feather_fraction must be > 0, shape_power >= 0 and min_weight_floor in [0, 1]; got "
            f"{feather_fraction}, {shape_power}, {min_weight_floor}"
        )
    centre_y, centre_x = (height - 1) / 2, (width - 1) / 2
    half_diagonal = max(np.hypot(centre_y, centre_x), 1e-9)
    y = (np.arange(height, dtype=np.float32)[:, None] - np.float32(centre_y)) / np.float32(half_diagonal)
    x = (np.arange(width, dtype=np.float32)[None, :] - np.float32(centre_x)) / np.float32(half_diagonal)
    radius = np.minimum(np.hypot(y, x) / np.float32(feather_fraction), np.float32(1))
    weights = np.cos(np.float32(np.pi / 2) * radius)
    # The cosine of float32 pi / 2 is a little below zero.
    weights = np.maximum(weights, np.float32(0)) ** np.float32(shape_power)
    return np.maximum(weights, np.float32(min_weight_floor))
