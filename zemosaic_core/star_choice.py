"""Which maxima of a raw frame are stars, and how wide its stars are. Arrays only, no pixels.

A frame says itself what a star looks like: its bright stars are alike and the sharpest things a telescope shows.
Single pixels are sharper than they, knots of nebulae and galaxies wider, tracks and trails longer.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from zemosaic_core.raw_stars import SIGMA_TO_FWHM, Rows, Sharpness

__all__ = [
    "MOST_TRAILS_AMONG_STARS",
    "TRAIL_STRETCH",
    "best_line",
    "choose_stars",
    "common_width",
    "not_single_pixels",
    "on_trails",
    "star_sigma",
]

_BORDER_PX = 4
# A star in a frame that is not trailed is elongated less than this.
_ROUND = 1.8
_MIN_SURE = 8
# Widest star in units of the typical one: blends are that wide. Of faint maxima that wide most are knots of nebulae;
# of faint stars on made-up skies 1 % are.
_WIDEST = 1.7
_WIDEST_FAINT = 1.5
_FAINT_SNR = 14.0
# A trail: this many stretched maxima on one line, and this many times more than chance puts there. Trails that are too
# many for it are left to `streaks`, which looks at pixels.
_TRAIL_MAXIMA = 10
_TRAIL_EXCESS = 8.0
TRAIL_STRETCH = 1.5
_TRAIL_WIDTH_PX = 4.0
_TRAIL_ANGLES = 720
MOST_TRAILS_AMONG_STARS = 3


def not_single_pixels(sharpness: Sharpness, snr: np.ndarray) -> np.ndarray:
    """Mask of maxima that cannot be one bright pixel alone, whatever the sampling."""
    return (sharpness.share + 2.0 * sharpness.share_error > 1.0) & (sharpness.rest > 0.3 * snr)


def common_width(values: np.ndarray) -> float:
    """The narrowest of the common widths.

    Of the windows of +-10 % that hold at least half as many values as the fullest one, the first is taken and shifted
    to where values are densest.

    Parameters
    ----------
    values : ndarray, shape (n,), n >= 1
        Positive numbers.
    """
    values = np.sort(values)
    held = np.searchsorted(values, 1.2 * values, side="right") - np.arange(values.size)
    first = int(np.argmax(held >= max(0.5 * held.max(), min(5, values.size))))
    middle = _middle_of_sorted(values[first : first + max(int(held[first]), 1)])
    for _ in range(6):
        low, high = np.searchsorted(values, (middle / 1.12, middle * 1.12))
        if high - low < 2:
            break
        middle = _middle_of_sorted(values[low:high])
    return middle


def _middle_of_sorted(values: np.ndarray) -> float:
    """Return the median of at least one sorted value."""
    half = len(values) // 2
    return float(values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2)


def star_sigma(
    rows: Rows, snr: np.ndarray, window_sigma_px: float, shape_hw: tuple[int, int]
) -> float | None:
    """How wide the stars are, from measures of the brightest maxima.

    Parameters
    ----------
    rows : Rows
        Bright maxima, single pixels and saturated ones left out.
    snr : ndarray, shape (n,)
    window_sigma_px : float
        Window they were measured with: a width near five windows is none but diffuse light.
    shape_hw : tuple of int
        Size of the frame.

    Returns
    -------
    float or None
        Sigma of the typical star, 0.6 to 6 px; None when fewer than three can say.
    """
    good = rows.valid & (rows.fwhm_px < 4.0 * 1.2 * window_sigma_px * SIGMA_TO_FWHM)
    if np.count_nonzero(good) < 3:
        return None
    nobody = np.zeros(good.size, np.bool_)
    good &= ~on_trails(rows.x, rows.y, snr, good & (rows.elongation > TRAIL_STRETCH), nobody, shape_hw)
    if np.count_nonzero(good) < 3:
        return None
    good = _alike(good, rows.elongation, snr)
    fwhm = _of_brighter(rows.fwhm_px[good], rows.flux[good])
    return min(max(fwhm / SIGMA_TO_FWHM, 0.6), 6.0)


def _of_brighter(values: np.ndarray, flux: np.ndarray) -> float:
    """`common_width` of the brighter two thirds, whose values are not noise."""
    return common_width(values[flux >= np.partition(flux, flux.size // 3)[flux.size // 3]])


def choose_stars(rows: Rows, snr: np.ndarray, sharpness: Sharpness, shape_hw: tuple[int, int]) -> np.ndarray:
    """Tell stars from single pixels, tracks, trails, diffuse light, doubles and what touches the border.

    When the whole frame is trailed its stars are all elongated alike and stay, so that the frame can be judged.

    Parameters
    ----------
    rows : Rows
        Measures of all maxima.
    snr : ndarray, shape (n,)
        Their heights over the noise.
    sharpness : Sharpness
        Theirs.
    shape_hw : tuple of int
        Size of the frame.

    Returns
    -------
    ndarray, shape (k,), int64
        Which maxima are stars, the most significant first.
    """
    height, width = shape_hw
    x, y, fwhm, elongation = rows.x, rows.y, rows.fwhm_px, rows.elongation
    saturated = sharpness.saturated
    good = rows.valid & (rows.flux > 0) & not_single_pixels(sharpness, snr)
    good &= (x >= _BORDER_PX) & (x <= width - 1 - _BORDER_PX)
    good &= (y >= _BORDER_PX) & (y <= height - 1 - _BORDER_PX)
    if not good.any():
        return np.zeros(0, np.int64)
    sure = _sure_stars(rows, snr, good & ~saturated, shape_hw)
    if np.count_nonzero(sure) >= 3:
        star_fwhm = _of_brighter(fwhm[sure], rows.flux[sure])
        star_elongation = _of_brighter(elongation[sure], rows.flux[sure])
        brightest = min(60, np.count_nonzero(sure))
        bright = sure & (snr >= np.partition(snr[sure], -brightest)[-brightest])
        star_share = float(np.median(sharpness.share[bright]))
        star_rest = float(np.median(sharpness.rest[bright] / snr[bright]))
    else:
        star_fwhm, star_elongation = float(np.median(fwhm[good])), 1.0
        star_share, star_rest = 2.0, 0.6
    # A single pixel under a star is one; compared with this frame's own stars the sampling does not matter.
    like_stars = sharpness.share + 2.0 * sharpness.share_error > 0.5 * star_share
    like_stars &= sharpness.rest > 0.5 * star_rest * snr
    good &= like_stars | saturated
    # A saturated core is flat: wider than it should be. Elongations of faint stars scatter more; allow them that.
    faint = 1.0 / np.maximum(snr, 5.0)
    widest = np.where(snr < _FAINT_SNR, _WIDEST_FAINT, _WIDEST) * np.where(saturated, 2.0, 1.0) * star_fwhm
    good &= (fwhm > 0.52 * star_fwhm) & (fwhm < widest)
    good &= elongation < max(2.0, 1.8 * star_elongation) * (1.0 + 1.5 * faint)
    if star_elongation < _ROUND:
        like_a_star = np.abs(fwhm / star_fwhm - 1.0) < 0.15
        stretched = rows.valid & (elongation > 1.3 * star_elongation)
        good &= ~on_trails(x, y, snr, stretched, like_a_star, shape_hw)
    index = np.flatnonzero(good)
    index = index[np.argsort(-snr[index], kind="stable")]
    kept = _without_doubles(x[index], y[index], max(1.5, 0.5 * star_fwhm))
    return index[kept]


def _sure_stars(rows: Rows, snr: np.ndarray, good: np.ndarray, shape_hw: tuple[int, int]) -> np.ndarray:
    """Those that may say what a star is: a satellite leaves a hundred maxima that are alike, none of them may."""
    nobody = np.zeros(good.size, np.bool_)
    off_trails = good & ~on_trails(
        rows.x, rows.y, snr, good & (rows.elongation > TRAIL_STRETCH), nobody, shape_hw
    )
    sure = off_trails if np.count_nonzero(off_trails) >= _MIN_SURE else good
    return _alike(sure, rows.elongation, snr)


def _alike(good: np.ndarray, elongation: np.ndarray, snr: np.ndarray) -> np.ndarray:
    """Those that are round, or those that are long where most of the brightest third are: a trailed frame.

    Only the brightest are asked: of the fainter ones most may be knots of a galaxy, which no tracking error makes long.
    """
    if np.count_nonzero(good) < _MIN_SURE:
        return good
    brightest = max(_MIN_SURE, np.count_nonzero(good) // 3)
    asked = good & (snr >= np.partition(snr[good], -brightest)[-brightest])
    is_round = elongation < _ROUND
    trailed = 2 * np.count_nonzero(asked & ~is_round) > np.count_nonzero(asked)
    chosen = good & (~is_round if trailed else is_round)
    return chosen if np.count_nonzero(chosen) >= _MIN_SURE else good


def on_trails(
    x: np.ndarray,
    y: np.ndarray,
    snr: np.ndarray,
    stretched: np.ndarray,
    like_a_star: np.ndarray,
    shape_hw: tuple[int, int],
) -> np.ndarray:
    """Mask of maxima on straight lines of many stretched ones: satellites, aeroplanes (Hough transform).

    Parameters
    ----------
    x, y : ndarray, shape (n,)
        Positions, frame px.
    snr : ndarray, shape (n,)
    stretched : ndarray of bool, shape (n,)
        Those that vote for lines.
    like_a_star : ndarray of bool, shape (n,)
        Those that stay although they lie on a line, when they stand well above it.
    shape_hw : tuple of int
        Size of the frame.
    """
    hit = np.zeros(x.size, np.bool_)
    left = stretched.copy()
    votes = np.zeros(2 * int(math.hypot(*shape_hw) / _TRAIL_WIDTH_PX) + 8, np.int32)
    for _ in range(MOST_TRAILS_AMONG_STARS):
        n = int(np.count_nonzero(left))
        if n < _TRAIL_MAXIMA:
            break
        most, angle, distance = best_line(x[left], y[left], _TRAIL_ANGLES, _TRAIL_WIDTH_PX, votes)
        by_chance = 2.0 * n * _TRAIL_WIDTH_PX / min(shape_hw)
        if most < max(_TRAIL_MAXIMA, _TRAIL_EXCESS * by_chance):
            break
        on = np.abs(x * math.cos(angle) + y * math.sin(angle) - distance) < 1.5 * _TRAIL_WIDTH_PX
        hit |= on & ~((snr > 3.0 * np.median(snr[on & left])) & like_a_star)
        left &= ~on
    return hit


@njit(cache=True, nogil=True)
def best_line(x, y, angles, width, votes):
    """The line most points lie on: (points, angle of its normal, distance from the origin).

    Parameters
    ----------
    x, y : ndarray, shape (n,), float64
    angles : int
        How many directions are tried.
    width : float
        Of a strip; two neighbouring ones are counted together.
    votes : ndarray, int32
        Room to work in: twice the largest distance from the origin in strips, and some more.
    """
    most, angle, distance = 0, 0.0, 0.0
    middle = votes.size // 2
    strip = np.empty(x.size, np.int32)
    for a in range(angles):
        t = math.pi * a / angles
        c, s = math.cos(t), math.sin(t)
        for k in range(x.size):
            strip[k] = math.floor((x[k] * c + y[k] * s) / width) + middle
        # Two strips together, so that a line between them loses nothing.
        votes[:] = 0
        peak = 0
        for k in range(x.size):
            r = strip[k]
            own = votes[r] + 1
            votes[r] = own
            peak = max(peak, own + max(votes[r - 1], votes[r + 1]))
        if peak > most:
            # Of equals the first.
            most, angle, distance = peak, t, math.inf
            for k in range(x.size):
                for r in range(strip[k] - 1, strip[k] + 1):
                    if votes[r] + votes[r + 1] == most:
                        distance = min(distance, (r + 1 - middle) * width)
    return most, angle, distance


@njit(cache=True, nogil=True)
def _without_doubles(x, y, radius):
    """Mask of those that are not within ``radius`` of an earlier one that stays."""
    keep = np.ones(x.size, np.bool_)
    by_row = np.argsort(y)
    place = np.empty(x.size, np.int64)
    for n in range(x.size):
        place[by_row[n]] = n
    for k in range(x.size):
        if not keep[k]:
            continue
        for way in (-1, 1):
            n = place[k] + way
            while 0 <= n < x.size and abs(y[by_row[n]] - y[k]) < radius:
                m = by_row[n]
                if m > k and (x[m] - x[k]) ** 2 + (y[m] - y[k]) ** 2 < radius * radius:
                    keep[m] = False
                n += way
    return keep
