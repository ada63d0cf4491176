"""Pixels of any kind as the 16-bit whole numbers that raw frames are measured in. Arrays only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Counts", "as_counts"]

_TOP = 65535
# A step of a sixteenth of the noise loses nothing; up to half the noise where bright stars need the room.
_FINEST_STEP = 1.0 / 16.0
_COARSEST_STEP = 0.5
_ROOM_BELOW_SIGMA = 64.0
_STEP_TO_SIGMA = 1.0483
_TAPS = np.array([1.0, 3.0, 4.0, 3.0, 1.0])
# What a full pixel has become where frames of 16 bits were stored as floats.
_FULL_SCALES = (1.0, 65535.0)
# Below this it may be chance.
_LEAST_FACTOR = 1.1


@dataclass(frozen=True)
class Counts:
    """A plane in whole numbers: value = ``zero + step * plane``.

    Attributes
    ----------
    plane : ndarray, shape (H, W), uint16
        0 where ``missing``.
    zero, step : float
        In the units of the values.
    missing : ndarray of bool, shape (H, W), or None
        Values that are not finite; None when all are.
    noise_factor : float
        By how much neighbours that are alike lift the noise of smoothed light; 1 for numbers of a camera.
    """

    plane: np.ndarray
    zero: float
    step: float
    missing: np.ndarray | None
    noise_factor: float


def as_counts(values: np.ndarray) -> Counts:
    """Turn a plane into 16-bit whole numbers; exact for whole numbers that span fewer than 65,535.

    Other values are rounded to a step of a sixteenth of their noise, or to a coarser one, up to half the noise, as
    far as the brightest pixels need it; what is brighter still is cut off.

    Parameters
    ----------
    values : ndarray, shape (H, W), uint16 or float
        Not finite means missing.

    Returns
    -------
    Counts

    Raises
    ------
    ValueError
        When the plane is not 2-D or no value is finite.
    """
    if values.ndim != 2:
        raise ValueError(f"a plane has two dimensions, got shape {values.shape}")
    if values.dtype == np.uint16:
        return Counts(np.ascontiguousarray(values), 0.0, 1.0, None, 1.0)
    finite = np.isfinite(values)
    whole = bool(finite.all())
    missing = None if whole else ~finite
    known = values if whole else values[finite]
    if not known.size:
        raise ValueError("no value is finite")
    low, high = float(known.min()), float(known.max())
    # 0 is kept for what is missing.
    reserved = 0 if whole else 1
    if high - low <= _TOP - reserved and bool((known == np.rint(known)).all()):
        zero = 0.0 if low >= reserved and high <= _TOP else low - reserved
        return Counts(_rounded(values, zero, 1.0, missing), zero, 1.0, missing, 1.0)
    if not high > low:
        return Counts(_rounded(values, low - reserved, 1.0, missing), low - reserved, 1.0, missing, 1.0)
    noise = _pixel_noise(values)
    if not noise > 0:
        noise = (high - low) / _TOP
    low = max(low, float(np.median(known[:: max(1, known.size // 100_000)])) - _ROOM_BELOW_SIGMA * noise)
    step = min(max((high - low) / (_TOP - 1), _FINEST_STEP * noise), _COARSEST_STEP * noise)
    # A full pixel stays the largest number there is.
    zero = high - _TOP * step if high in _FULL_SCALES else low - step
    return Counts(_rounded(values, zero, step, missing), zero, step, missing, _noise_factor(values))


def _rounded(values: np.ndarray, zero: float, step: float, missing: np.ndarray | None) -> np.ndarray:
    scaled = np.rint((values - zero) / step) if (zero, step) != (0.0, 1.0) else values
    if missing is not None:
        scaled = np.where(missing, 0.0, scaled)
    return np.clip(scaled, 0, _TOP).astype(np.uint16)


def _pixel_noise(values: np.ndarray) -> float:
    """Noise of one pixel from the steps to the next pixel but one, over evenly spread rows."""
    lines = values[values.shape[0] // 64 :: max(1, values.shape[0] // 48)].astype(np.float64)
    steps = np.abs(lines[:, 2:] - lines[:, :-2])
    steps = steps[np.isfinite(steps)]
    return float(np.median(steps)) * _STEP_TO_SIGMA if steps.size else 0.0


def _noise_factor(values: np.ndarray) -> float:
    """How much noisier light smoothed by (1 3 4 3 1) both ways is than the steps between single pixels make expect.

    Over strips of rows, of which the quietest quarter tells: nebulae and stars are not in it.
    """
    height = values.shape[0]
    ratios = []
    for y in range(height // 64, height - 5, max(5, height // 48)):
        strip = values[y : y + 5].astype(np.float64)
        smooth = np.convolve(_TAPS @ strip, _TAPS, mode="valid")
        # Beyond 6 px smoothed values share no pixel; a slope cancels.
        bends = np.abs(smooth[:-12] - 2 * smooth[6:-6] + smooth[12:]) / np.sqrt(3.0)
        steps = np.abs(strip[:, 2:] - strip[:, :-2])
        bends, steps = bends[np.isfinite(bends)], steps[np.isfinite(steps)]
        if bends.size > 20 and np.median(steps) > 0:
            ratios.append(np.median(bends) / np.median(steps))
    if not ratios:
        return 1.0
    factor = float(np.quantile(ratios, 0.25)) / float((_TAPS**2).sum())
    return factor if factor > _LEAST_FACTOR else 1.0
