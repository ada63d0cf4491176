"""Common photometric scale of frames from their shared stars. Arrays only.

`solve_tiles`, the matching of finished tiles over their overlaps, lives in `tile_photometry` and is offered
here as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .adjustment import frame_components, frame_information, solve_adjustment
from .tile_photometry import OverlapSamples, TileOptions, TilePhotometry, solve_tiles

__all__ = [
    "OverlapSamples",
    "TileOptions",
    "TilePhotometry",
    "Transparency",
    "scatter_by_brightness",
    "solve_tiles",
    "solve_transparency",
]

# Fixes the free zero point of each component while solving; far too weak to show next to one star.
_PRIOR_WEIGHT = 1e-6
# Bins of equal star numbers in which the scatter is measured, faint to bright.
_BRIGHTNESS_BINS = 8
# Median of the chi-square distribution with one degree of freedom: squared residuals to variance.
_CHI2_MEDIAN = 0.454936


@dataclass(frozen=True)
class Transparency:
    """Gains that bring all frames on one photometric scale.

    Attributes
    ----------
    gains : ndarray, shape (N, C), float64
        Multiply the (sky-subtracted) values of a frame by this. 1 where unsolved.
    sigma : ndarray, shape (N, C), float64
        Standard error of the gain; NaN where unsolved.
    n_stars : ndarray, shape (N, C), int64
        Stars used.
    component : ndarray, shape (N, C), int64
        Frames linked by common stars; 0 the largest, -1 unsolved. Gains of different components share no scale:
        each component has its own reference.
    ok : ndarray of bool, shape (N,)
        Solved in every channel and linked with the largest component.
    scatter : ndarray, shape (C,), float64
        Robust relative scatter of single star fluxes after correction.
    """

    gains: np.ndarray
    sigma: np.ndarray
    n_stars: np.ndarray
    component: np.ndarray
    ok: np.ndarray
    scatter: np.ndarray


def solve_transparency(
    frame_index: np.ndarray,
    star_index: np.ndarray,
    flux: np.ndarray,
    n_frames: int,
    n_stars: int,
    *,
    min_stars: int = 5,
    iterations: int = 6,
) -> Transparency:
    """Solve one gain per frame and channel from the fluxes of shared stars.

    Model ``ln flux = ln s_star - ln gain_frame + noise`` per channel, all frames jointly, with robust (bisquare)
    weights and with the scatter measured as a function of brightness, so that faint stars count less.

    Reference scale: in each component the good frames are the more transparent half (mean over channels of the
    log gain at most the median); their median gain is 1, the same frames in all channels, so that the colour of
    a clear sky is kept. Clear frames therefore have gains near 1 and hazy ones above.

    Parameters
    ----------
    frame_index, star_index : ndarray, shape (K,), int
    flux : ndarray, shape (K, C)
        NaN or <= 0 where unknown (for instance saturated).
    n_frames, n_stars : int
    min_stars : int
        Frames with fewer shared stars in a channel stay unsolved there (gain 1).
    iterations : int
        Rounds of robust reweighting.
    """
    frame, star = np.asarray(frame_index, dtype=np.int64), np.asarray(star_index, dtype=np.int64)
    flux = np.asarray(flux, dtype=np.float64)
    if flux.ndim != 2 or not (len(flux) == len(frame) == len(star)):
        raise ValueError(f"flux must be (K, C) with K = {len(frame)} indices, got {flux.shape}")
    n_channels = flux.shape[1]
    shape = (n_frames, n_channels)
    log_gain, sigma = np.full(shape, np.nan), np.full(shape, np.nan)
    count, component = np.zeros(shape, dtype=np.int64), np.full(shape, -1, dtype=np.int64)
    scatter = np.full(n_channels, np.nan)
    for c in range(n_channels):
        rows = _usable_rows(frame, star, flux[:, c], n_frames, n_stars, min_stars)
        if len(rows) == 0:
            continue
        f, s = frame[rows], star[rows]
        component[:, c] = frame_components(f, s, n_frames, n_stars)
        solved = component[:, c] >= 0
        p, error, scatter[c] = _solve_channel(f, s, np.log(flux[rows, c]), n_frames, n_stars, iterations)
        log_gain[solved, c], sigma[solved, c] = p[solved], error[solved]
        count[:, c] = np.bincount(f, minlength=n_frames)
    _set_reference(log_gain, component)
    gains = np.where(np.isfinite(log_gain), np.exp(np.nan_to_num(log_gain)), 1.0)
    ok = (component == 0).all(axis=1)
    return Transparency(gains, sigma * gains, count, component, ok, scatter)


def _usable_rows(frame, star, flux, n_frames, n_stars, min_stars) -> np.ndarray:
    """Drop stars seen once and frames with too few stars until neither is left."""
    with np.errstate(invalid="ignore"):
        use = np.isfinite(flux) & (flux > 0)
    while True:
        seen = np.bincount(star[use], minlength=n_stars)
        has = np.bincount(frame[use & (seen[star] >= 2)], minlength=n_frames)
        keep = use & (seen[star] >= 2) & (has[frame] >= min_stars)
        if np.array_equal(keep, use):
            return np.flatnonzero(use)
        use = keep


def _solve_channel(frame, star, log_flux, n_frames, n_stars, iterations):
    basis = np.ones((len(frame), 1))
    prior = np.full((n_frames, 1), _PRIOR_WEIGHT)
    weights = np.ones(len(frame))
    noise = np.ones(len(frame))
    p = np.zeros((n_frames, 1, 1))
    scatter = np.nan
    seen = np.bincount(star, minlength=n_stars)[star]
    inflate = seen / np.maximum(seen - 1.0, 1.0)
    for _ in range(iterations):
        solution = solve_adjustment(
            frame, star, basis, log_flux[:, None], weights, prior, n_stars, start=p, tolerance=1e-6
        )
        p = solution.parameters
        level = solution.star_values[star, 0]
        residual = log_flux + p[frame, 0, 0] - level
        # A star whose measurements all lost their weight has no level and says nothing.
        residual2 = np.where(np.isfinite(residual), residual**2 * inflate, np.inf)
        noise = scatter_by_brightness(level, residual2)
        scatter = float(np.sqrt(np.median(residual2) / _CHI2_MEDIAN))
        weights = np.maximum(1.0 - residual2 / (4.7 * noise) ** 2, 0.0) ** 2 / noise**2
    information = frame_information(frame, star, weights, n_frames, n_stars)
    error = 1.0 / np.sqrt(np.maximum(information, 1e-12))
    return p[:, 0, 0], error, scatter


def scatter_by_brightness(level: np.ndarray, residual2: np.ndarray) -> np.ndarray:
    """Robust scatter of the measurements of similarly bright stars, at least 0.2 % (flat field, PSF)."""
    finite = np.isfinite(level)
    n_bins = int(np.clip(finite.sum() // 200, 1, _BRIGHTNESS_BINS))
    edges = np.quantile(level[finite], np.linspace(0, 1, n_bins + 1)[1:-1]) if n_bins > 1 else np.empty(0)
    which = np.searchsorted(edges, np.where(finite, level, -np.inf))
    scatter = np.empty(n_bins)
    for b in range(n_bins):
        inside = residual2[which == b]
        scatter[b] = np.sqrt(np.median(inside) / _CHI2_MEDIAN) if len(inside) else np.nan
    scatter = np.where(np.isfinite(scatter), scatter, np.nanmax(np.where(np.isfinite(scatter), scatter, 0.0)))
    return np.maximum(scatter, 0.002)[which]


def _set_reference(log_gain: np.ndarray, component: np.ndarray) -> None:
    """Shift log gains, in place, so that the good half of each component has median 0 in every channel."""
    for c in range(log_gain.shape[1]):
        for k in range(int(component[:, c].max(initial=-1)) + 1):
            members = component[:, c] == k
            log_gain[members, c] -= np.median(log_gain[members, c])
    with np.errstate(invalid="ignore"):
        filled = np.where(np.isfinite(log_gain), log_gain, 0.0)
        known = np.isfinite(log_gain).sum(axis=1)
        mean = filled.sum(axis=1) / np.maximum(known, 1)
    for c in range(log_gain.shape[1]):
        for k in range(int(component[:, c].max(initial=-1)) + 1):
            members = np.flatnonzero(component[:, c] == k)
            good = members[mean[members] <= np.median(mean[members])]
            log_gain[members, c] -= np.median(log_gain[good, c])
