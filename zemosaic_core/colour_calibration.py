"""What a camera makes of the colours of stars: white balance and zero points from catalogue stars. Arrays only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = [
    "MIN_STARS",
    "SPIRAL_B_V",
    "SUN_B_V",
    "ChannelColour",
    "ColourSolution",
    "lonely_stars",
    "solve_colours",
]

# Colour of a G2V star (Ramirez et al. 2012, ApJ 752, 5) and of the light of spiral galaxies from Sa to Sd
# (mean of the medians of Roberts and Haynes 1994, ARA&A 32, 115).
SUN_B_V = 0.653
SPIRAL_B_V = 0.63
# With fewer stars one wrong colour of the catalogue decides.
MIN_STARS = 5
# How magnitudes of a channel depend on B-V, compared with V, when only few stars tell: colour cameras behind an
# infrared blocking filter, and separate red, green and blue filters.
_USUAL_SLOPES = (-0.35, 0.0, 0.5)
_SLOPE_SPREAD = 0.3
# Error of a star beside its photon noise, mag: steps of V and B-V in the catalogue, and light that varies.
_CATALOGUE_ERROR = 0.05
_ROUNDS = 30
_TUKEY = 4.685


@dataclass(frozen=True)
class ChannelColour:
    """Straight line through ``V + 2.5 log10(flux)`` against ``B-V`` of one channel, or of the ratio of two.

    Attributes
    ----------
    at_white : float
        Value of the line at the colour that is to be white, mag.
    sigma : float
        Standard error of `at_white`, mag.
    slope : float
        Change per magnitude of B-V.
    scatter : float
        Robust scatter of single stars about the line, mag.
    used : numpy.ndarray
        bool (n,): stars that count; those far from the line do not.
    """

    at_white: float
    sigma: float
    slope: float
    scatter: float
    used: np.ndarray


@dataclass(frozen=True)
class ColourSolution:
    """White balance and zero points of an image.

    Attributes
    ----------
    gains : tuple of float
        Factors per channel that make a star of the white colour white; mean 1.
    gain_error : float
        Largest standard error of a ratio of two gains, relative.
    zero_points : tuple of ChannelColour
        V magnitude of a star of the white colour that gives one unit of flux, per channel.
    ratios : tuple of ChannelColour
        ``-2.5 log10(flux / flux of the middle channel)`` per channel but the middle one; empty for one channel.
    counted : numpy.ndarray
        bool (n,): stars that count in every ratio (in the zero point, for one channel).
    """

    gains: tuple[float, ...]
    gain_error: float
    zero_points: tuple[ChannelColour, ...]
    ratios: tuple[ChannelColour, ...]
    counted: np.ndarray

    @property
    def n_stars(self) -> int:
        """Number of stars that count."""
        return int(self.counted.sum())


def solve_colours(
    flux: np.ndarray, flux_error: np.ndarray, v_mag: np.ndarray, b_v: np.ndarray, white_b_v: float
) -> ColourSolution | None:
    """Find white balance and zero points.

    A line per channel pair is fitted with bisquare weights from a start at the median, so that the few wrong
    colours of the catalogue do not count; its slope is held near that of usual cameras as far as the stars leave
    it open. The line at the white colour is what the gains must undo.

    Parameters
    ----------
    flux, flux_error : numpy.ndarray, shape (C, n)
        Light of the stars and its standard error in any unit, C = 1 or 3; stars with a value that is NaN or not
        positive are left out.
    v_mag, b_v : numpy.ndarray, shape (n,)
        Their V magnitudes and colours.
    white_b_v : float
        Colour that is to be white.

    Returns
    -------
    ColourSolution or None
        None when fewer than `MIN_STARS` stars can be used.
    """
    flux, flux_error = np.asarray(flux, np.float64), np.asarray(flux_error, np.float64)
    channels = len(flux)
    with np.errstate(invalid="ignore"):
        good = ((flux > 0) & np.isfinite(flux) & (flux_error >= 0)).all(axis=0)
    good &= np.isfinite(v_mag) & np.isfinite(b_v)
    rows = np.flatnonzero(good)
    if len(rows) < MIN_STARS:
        return None
    log = 2.5 * np.log10(flux[:, rows])
    error2 = (1.0857 * flux_error[:, rows] / flux[:, rows]) ** 2
    colour = np.asarray(b_v, np.float64)[rows] - white_b_v
    middle = channels // 2

    def line(values: np.ndarray, variance: np.ndarray, usual_slope: float) -> ChannelColour:
        fitted = _robust_line(colour, values, variance + _CATALOGUE_ERROR**2, usual_slope)
        used = np.zeros(len(good), bool)
        used[rows[fitted.used]] = True
        return ChannelColour(fitted.at_white, fitted.sigma, fitted.slope, fitted.scatter, used)

    # A redder star is fainter in blue than its V says.
    usual = [-_USUAL_SLOPES[1]] if channels == 1 else [-slope for slope in _USUAL_SLOPES]
    zero_points = tuple(line(np.asarray(v_mag)[rows] + log[c], error2[c], usual[c]) for c in range(channels))
    ratios = tuple(
        line(log[middle] - log[c], error2[c] + error2[middle], usual[middle] - usual[c])
        for c in range(channels)
        if c != middle
    )
    counted = np.logical_and.reduce([ratio.used for ratio in ratios] or [zero_points[0].used])
    if counted.sum() < MIN_STARS:
        return None
    gains = np.ones(channels)
    for c, ratio in zip((c for c in range(channels) if c != middle), ratios, strict=True):
        gains[c] = 10.0 ** (0.4 * ratio.at_white)
    error = max((ratio.sigma for ratio in ratios), default=0.0) / 1.0857
    white = tuple(float(g) for g in gains / gains.mean())
    return ColourSolution(white, float(error), zero_points, ratios, counted)


def lonely_stars(
    xy: np.ndarray, mag: np.ndarray, all_xy: np.ndarray, all_mag: np.ndarray, radius_px: float
) -> np.ndarray:
    """Tell which stars have no neighbour within a radius that adds more than one per cent of their light.

    Parameters
    ----------
    xy, mag : numpy.ndarray, shape (n, 2) and (n,)
        The stars.
    all_xy, all_mag : numpy.ndarray, shape (m, 2) and (m,)
        Everything the catalogue lists there, the stars themselves too.
    radius_px : float
        Reach of an aperture.

    Returns
    -------
    numpy.ndarray
        bool (n,).
    """
    # Imported here: processes that measure do not need it.
    from scipy.spatial import cKDTree

    if not len(xy):
        return np.zeros(0, bool)
    tree = cKDTree(all_xy)
    alone = np.ones(len(xy), bool)
    for i, near in enumerate(tree.query_ball_point(xy, radius_px)):
        apart = np.hypot(*(all_xy[near] - xy[i]).T)
        # The nearest within a pixel is the star itself, listed with its own place.
        others = np.asarray(near)[apart > min(1.0, 0.5 * radius_px)]
        alone[i] = not (all_mag[others] < mag[i] + 5.0).any()
    return alone


def _robust_line(x: np.ndarray, y: np.ndarray, variance: np.ndarray, usual_slope: float) -> ChannelColour:
    weight = 1.0 / variance
    offset, slope = float(np.median(y - usual_slope * x)), usual_slope
    scatter = 0.0
    robust = np.ones(len(x))
    for _ in range(_ROUNDS):
        residual = y - offset - slope * x
        scatter = float(1.4826 * np.median(np.abs(residual - np.median(residual))))
        unit = np.maximum(scatter, np.sqrt(variance))
        robust = np.clip(1.0 - (residual / (_TUKEY * unit)) ** 2, 0.0, None) ** 2
        w = robust * weight / max(1.0, scatter**2 / float(np.median(variance)))
        normal = np.array([[w.sum(), (w * x).sum()], [(w * x).sum(), (w * x * x).sum() + _SLOPE_SPREAD**-2]])
        right = np.array([(w * y).sum(), (w * x * y).sum() + usual_slope * _SLOPE_SPREAD**-2])
        new_offset, new_slope = np.linalg.solve(normal, right)
        done = abs(new_offset - offset) < 1e-7 and abs(new_slope - slope) < 1e-7
        offset, slope = float(new_offset), float(new_slope)
        if done:
            break
    sigma = float(np.sqrt(np.linalg.inv(normal)[0, 0]))
    return ChannelColour(offset, sigma, slope, scatter, robust > 0.1)
