"""Robust numbers of arrays in which NaN means missing: centres, spreads, percentiles."""

from __future__ import annotations

from math import erf, exp, pi, sqrt

import numpy as np

__all__ = [
    "central_mean",
    "clipped_central_mean_sigma",
    "clipped_median_sigma",
    "mad_sigma",
    "nan_percentile",
    "strided_sample",
    "weighted_median",
]

# Standard deviation of a normal distribution over its median absolute deviation.
MAD_TO_SIGMA = 1.4826


def strided_sample(values: np.ndarray, max_samples: int) -> np.ndarray:
    """Take at most ``max_samples`` finite values, evenly spread over the array and always the same ones.

    The stride is odd and coprime to a row length that is a power of two or any even number, so a CFA or
    tile pattern does not alias with it.

    Parameters
    ----------
    values : ndarray, any shape
        NaN and infinite values are left out.
    max_samples : int
        Upper limit, at least 1.

    Returns
    -------
    ndarray, shape (k,), dtype of ``values``
        May be empty.
    """
    flat = np.asarray(values).reshape(-1)
    stride = max(1, -(-flat.size // max_samples))
    if stride > 1 and stride % 2 == 0:
        stride += 1
    sample = flat[::stride]
    return sample[np.isfinite(sample)]


def mad_sigma(values: np.ndarray) -> float:
    """Standard deviation from the median absolute deviation of the finite values.

    Returns
    -------
    float
        ``1.4826 * median(|v - median(v)|)``; NaN without finite values.
    """
    finite = np.sort(_finite(values))
    if finite.size == 0:
        return float("nan")
    return MAD_TO_SIGMA * _median_distance(finite, _middle(finite))


def clipped_median_sigma(
    values: np.ndarray, *, clip_sigma: float = 3.0, max_iterations: int = 8
) -> tuple[float, float]:
    """Median and standard deviation of the finite values after removing outliers.

    Starts from median and MAD, then repeats median and standard deviation of what lies within
    ``clip_sigma`` until nothing changes. The standard deviation of a normal distribution cut at
    ``clip_sigma`` is too small by a known factor; it is corrected.

    Parameters
    ----------
    values : ndarray, any shape
        NaN means missing.
    clip_sigma : float
        Half width of the accepted interval in sigma, > 1.
    max_iterations : int
        Upper limit of repetitions.

    Returns
    -------
    median, sigma : float
        NaN, NaN without finite values; sigma 0 for constant data.
    """
    centre, sigma, _ = _clip(np.sort(_finite(values)), clip_sigma, max_iterations)
    return centre, sigma


def clipped_central_mean_sigma(
    values: np.ndarray, *, clip_sigma: float = 3.0, max_iterations: int = 8
) -> tuple[float, float]:
    """Mean of the central half and standard deviation of the finite values after removing outliers.

    As `clipped_median_sigma`, with `central_mean` of the accepted values for the centre.

    Returns
    -------
    centre, sigma : float
        NaN, NaN without finite values; sigma 0 for constant data.
    """
    finite = np.sort(_finite(values))
    centre, sigma, _ = _clip(finite, clip_sigma, max_iterations)
    low = int(np.searchsorted(finite, centre - clip_sigma * sigma, side="left"))
    high = int(np.searchsorted(finite, centre + clip_sigma * sigma, side="right"))
    return _central_mean_of_sorted(finite[low:high]), sigma


def central_mean(values: np.ndarray) -> float:
    """Mean of the central half of the finite values (between the quartiles).

    As robust against a quarter of bad values on either side, and, unlike the median, not stuck on the
    steps of a 12-bit camera.

    Returns
    -------
    float
        NaN without finite values.
    """
    return _central_mean_of_sorted(np.sort(_finite(values)))


def nan_percentile(values: np.ndarray, percent: float | tuple[float, ...]) -> float | tuple[float, ...]:
    """Percentiles of the finite values (linear interpolation, as `numpy.percentile`).

    Returns
    -------
    float or tuple of float
        NaN without finite values.
    """
    finite = _finite(values)
    several = isinstance(percent, tuple)
    wanted = percent if several else (percent,)
    if finite.size == 0:
        result = tuple(float("nan") for _ in wanted)
    else:
        result = tuple(float(p) for p in np.percentile(finite, wanted))
    return result if several else result[0]


def weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    """Value at which half of the total weight is reached.

    Entries that are not finite or have no positive weight are left out; when the half falls exactly between
    two values their mean is returned.

    Returns
    -------
    float
        NaN when nothing is left.
    """
    values = np.asarray(values, dtype=np.float64).reshape(-1)
    weights = np.asarray(weights, dtype=np.float64).reshape(-1)
    use = np.isfinite(values) & np.isfinite(weights) & (weights > 0)
    if not use.any():
        return float("nan")
    order = np.argsort(values[use], kind="stable")
    values, weights = values[use][order], weights[use][order]
    reached = np.cumsum(weights)
    half = 0.5 * reached[-1]
    index = int(np.searchsorted(reached, half, side="left"))
    if reached[index] == half and index + 1 < values.size:
        return float(0.5 * (values[index] + values[index + 1]))
    return float(values[index])


def _finite(values: np.ndarray) -> np.ndarray:
    flat = np.asarray(values).reshape(-1)
    return flat[np.isfinite(flat)]


def _clip(ordered: np.ndarray, clip_sigma: float, max_iterations: int) -> tuple[float, float, slice]:
    """Clip ascending values; return median and sigma of what is left, and where it lies."""
    if ordered.size == 0:
        return float("nan"), float("nan"), slice(0, 0)
    if ordered.dtype.kind in "iu":
        ordered = ordered.astype(np.float64)
    centre = _middle(ordered)
    sigma = MAD_TO_SIGMA * _median_distance(ordered, centre)
    correction = _cut_normal_correction(clip_sigma)
    low, high = 0, ordered.size
    for _ in range(max_iterations):
        new_low = int(np.searchsorted(ordered, centre - clip_sigma * sigma, side="left"))
        new_high = int(np.searchsorted(ordered, centre + clip_sigma * sigma, side="right"))
        if (new_low, new_high) == (low, high) or new_high - new_low < 2:
            break
        low, high = new_low, new_high
        kept = ordered[low:high]
        centre = _middle(kept)
        # About the median, so that float32 squares keep their digits.
        delta = kept - ordered.dtype.type(centre)
        mean = delta.mean(dtype=np.float64)
        delta *= delta
        variance = (delta.sum(dtype=np.float64) - kept.size * mean * mean) / (kept.size - 1)
        sigma = sqrt(max(float(variance), 0.0)) * correction
    return centre, sigma, slice(low, high)


def _middle(ordered: np.ndarray) -> float:
    """Median of ascending values."""
    n = ordered.size
    return 0.5 * (float(ordered[(n - 1) // 2]) + float(ordered[n // 2]))


def _median_distance(ordered: np.ndarray, centre: float) -> float:
    """Median of ``|v - centre|`` of ascending values.

    The k values closest to the centre stand side by side, so the k-th distance is the smallest over all runs of k
    of the larger distance of a run's ends.
    """
    n = ordered.size

    def kth(k: int) -> float:
        return float(np.maximum(centre - ordered[: n - k + 1], ordered[k - 1 :] - centre).min())

    upper = kth(n // 2 + 1)
    return upper if n % 2 else 0.5 * (kth(n // 2) + upper)


def _central_mean_of_sorted(ordered: np.ndarray) -> float:
    if ordered.size == 0:
        return float("nan")
    cut = ordered.size // 4
    return float(ordered[cut : ordered.size - cut].mean(dtype=np.float64))


def _cut_normal_correction(k: float) -> float:
    """1 / standard deviation of a normal distribution cut at +-k: var = 1 - 2 k phi(k) / (2 Phi(k) - 1)."""
    inside = erf(k / sqrt(2.0))
    density = exp(-0.5 * k * k) / sqrt(2.0 * pi)
    return 1.0 / sqrt(1.0 - 2.0 * k * density / inside)
