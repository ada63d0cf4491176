"""Measures of the maxima of a raw frame: centre, width, light, light of each colour, sharpness. Arrays only.

A frame with a colour filter array is looked at through its luminance, the mean of every 2 x 2 window. Sums run down
the columns of a stamp and then across them, so that a body with one lane per column can add in the same order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit

from zemosaic_core.few_values import insert_sorted
from zemosaic_core.raw_defects import isolation
from zemosaic_core.raw_maxima import Maxima
from zemosaic_core.raw_sky import SkyCells

__all__ = ["Rows", "Sharpness", "aperture_radius_px", "measure_rows", "measure_sharpness", "phase_fluxes"]

SIGMA_TO_FWHM = 2.35482
_ROUNDS = 12
_MAX_REACH_PX = 23
_CLIP_SIGMA = 2.5
_CUT_CORRECTION = 1.0476


@dataclass(frozen=True)
class Rows:
    """Measures of maxima, each of shape (n,), float64.

    Attributes
    ----------
    x, y : ndarray
        Windowed centre, frame px, origin 0 at the centre of the first pixel.
    flux, peak : ndarray
        Light in the aperture and highest pixel of the luminance above the sky, ADU.
    fwhm_px, elongation : ndarray
        Full width at half maximum of the Gaussian with the same windowed moments; major over minor axis.
    valid : ndarray of bool
        The centre came to rest and there is light. Other measures of such a row mean nothing.
    """

    x: np.ndarray
    y: np.ndarray
    flux: np.ndarray
    peak: np.ndarray
    fwhm_px: np.ndarray
    elongation: np.ndarray
    valid: np.ndarray


@dataclass(frozen=True)
class Sharpness:
    """How much of a maximum is one single pixel, each of shape (n,).

    Attributes
    ----------
    share, share_error : ndarray, float32
        Light of the eight neighbours of the brightest pixel over its own, each above its kin, and the 1-sigma error:
        near 0 for a hot pixel.
    rest : ndarray, float32
        What is left of the maximum's height above the sky without that pixel, in units of the noise.
    saturated : ndarray of bool
        A pixel of the core reached the ceiling of its phase.
    """

    share: np.ndarray
    share_error: np.ndarray
    rest: np.ndarray
    saturated: np.ndarray

    def select(self, keep: np.ndarray) -> Sharpness:
        """Return those of the maxima chosen by a mask (n,)."""
        return Sharpness(self.share[keep], self.share_error[keep], self.rest[keep], self.saturated[keep])


def aperture_radius_px(sigma_px: float) -> float:
    """Return the radius of the aperture of `measure_rows` for stars of this width."""
    return max(3.0, 1.7 * SIGMA_TO_FWHM * sigma_px)


def measure_rows(
    plane: np.ndarray, is_cfa: bool, maxima: Maxima, chosen: np.ndarray, sigma_px: float, aperture_px: float
) -> Rows:
    """Measure maxima under a Gaussian window.

    Centre: ``x <- x + 2 sum(w I (x_i - x)) / sum(w I)`` until it rests. Width: second moments under a window 1.2 times
    as wide, and the window divided out again.

    Parameters
    ----------
    plane : ndarray, shape (H, W), uint16
    is_cfa : bool
    maxima : Maxima
    chosen : ndarray, int
        Which of them.
    sigma_px : float
        Width of the window.
    aperture_px : float
        Radius of the aperture.

    Returns
    -------
    Rows
        In the order of ``chosen``.
    """
    places = np.stack([maxima.y[chosen], maxima.x[chosen]], axis=1)
    sky = (maxima.sky[chosen] * maxima.per_pixel).astype(np.float32)
    out = np.zeros((len(places), 7))
    _measure(plane, is_cfa, places, sky, sigma_px, aperture_px, out)
    x, y, flux, peak, fwhm, elongation, valid = out.T.copy()
    shift = 0.5 if is_cfa else 0.0
    return Rows(x + shift, y + shift, flux, peak, fwhm, elongation, valid > 0)


def measure_sharpness(
    plane: np.ndarray, is_cfa: bool, maxima: Maxima, cells: SkyCells, saturation: np.ndarray
) -> Sharpness:
    """Look at the brightest pixel of each maximum.

    Parameters
    ----------
    plane : ndarray, shape (H, W), uint16
    is_cfa : bool
    maxima : Maxima
    cells : SkyCells
    saturation : ndarray, shape (4,), int64
        Ceiling of each phase, from `raw_defects.saturation_levels`.
    """
    n = len(maxima)
    share, share_error, own_light = np.empty((3, n), np.float32)
    saturated = np.zeros(n, np.bool_)
    places = np.stack([maxima.y, maxima.x], axis=1)
    _sharpness(
        plane,
        is_cfa,
        places,
        cells.noise,
        cells.cell_px,
        saturation,
        share,
        share_error,
        own_light,
        saturated,
    )
    rest = (maxima.snr - own_light / maxima.noise).astype(np.float32)
    return Sharpness(share, share_error, rest, saturated)


def phase_fluxes(
    plane: np.ndarray, is_cfa: bool, x: np.ndarray, y: np.ndarray, radius_px: float, cells: SkyCells
) -> np.ndarray:
    """Light of stars in circles, per phase of a colour filter array; the sky of a ring around each is removed.

    The ring begins 3 px outside the circle and is 4 px wide; its sky is a mean clipped about a rough median. A border
    pixel of the circle counts by how far the circle reaches into it. All of this on the half-size planes of the phases,
    or on the plane itself of a mono frame.

    Parameters
    ----------
    plane : ndarray, shape (H, W), uint16
    is_cfa : bool
    x, y : ndarray, shape (n,)
        Centres, frame px.
    radius_px : float
        Radius, px of the planes looked at.
    cells : SkyCells

    Returns
    -------
    ndarray, shape (4, n) or, mono, (1, n), float32
        NaN where the circle leaves the frame or less than a third of the ring is there.
    """
    out = np.empty((4 if is_cfa else 1, x.size), np.float32)
    _phase_fluxes(plane, x, y, radius_px, cells.noise, cells.cell_px, out)
    return out


@njit(cache=True, nogil=True)
def _window(centre, sigma, w):
    scale = 0.5 / (sigma * sigma)
    for i in range(w.size):
        d = i - centre
        w[i] = np.float32(math.exp(-d * d * scale))


@njit(cache=True, nogil=True)
def _without_window(variance, sigma):
    """Sigma of the Gaussian that, times the window, has this variance; between 0.3 px and 5 windows."""
    floor = 0.09
    limit = 25.0 * sigma * sigma
    inverse = 1.0 / max(variance, floor) - 1.0 / (sigma * sigma)
    if inverse <= 1.0 / limit:
        return math.sqrt(limit)
    return math.sqrt(max(1.0 / inverse, floor))


@njit(cache=True, nogil=True)
def _stamp(plane, is_cfa, y0, x0, sky, stamp):
    """Copy a square of the luminance above the sky; 0 outside the frame."""
    height, width = plane.shape
    n = stamp.shape[0]
    extra = 1 if is_cfa else 0
    quarter = np.float32(0.25)
    for j in range(n):
        y = y0 + j
        if y < 0 or y + extra >= height:
            stamp[j] = 0.0
            continue
        if x0 >= 0 and x0 + n + extra <= width:
            if is_cfa:
                upper, lower = plane[y, x0 : x0 + n + 1], plane[y + 1, x0 : x0 + n + 1]
                for i in range(n):
                    total = (np.int32(upper[i]) + np.int32(upper[i + 1])) + (
                        np.int32(lower[i]) + np.int32(lower[i + 1])
                    )
                    stamp[j, i] = quarter * np.float32(total) - sky
            else:
                line = plane[y, x0 : x0 + n]
                for i in range(n):
                    stamp[j, i] = np.float32(line[i]) - sky
            continue
        for i in range(n):
            x = x0 + i
            if x < 0 or x + extra >= width:
                stamp[j, i] = 0.0
            elif is_cfa:
                total = np.int32(plane[y, x]) + np.int32(plane[y, x + 1])
                total += np.int32(plane[y + 1, x]) + np.int32(plane[y + 1, x + 1])
                stamp[j, i] = quarter * np.float32(total) - sky
            else:
                stamp[j, i] = np.float32(plane[y, x]) - sky


@njit(cache=True, nogil=True)
def _centre(stamp, reach, sigma, wx, wy, c0, c1):
    """Windowed centre in stamp px, and whether it came to rest near the middle."""
    n = stamp.shape[0]
    x, y = float(reach), float(reach)
    for _ in range(_ROUNDS):
        _window(x, sigma, wx)
        _window(y, sigma, wy)
        c0[:] = 0
        c1[:] = 0
        for j in range(n):
            line = stamp[j]
            w = wy[j]
            wd = w * np.float32(j - y)
            for i in range(n):
                c0[i] += w * line[i]
                c1[i] += wd * line[i]
        total, mx, my = 0.0, 0.0, 0.0
        for i in range(n):
            total += wx[i] * c0[i]
            mx += wx[i] * (i - x) * c0[i]
            my += wx[i] * c1[i]
        if total <= 0.0:
            return x, y, False
        x += 2.0 * mx / total
        y += 2.0 * my / total
        # A centre that wanders off belongs to a brighter neighbour, or to nothing.
        if not ((x - reach) ** 2 + (y - reach) ** 2 < 6.25):
            return x, y, False
        if (mx * mx + my * my) * 4.0 < 1e-7 * total * total:
            break
    return x, y, True


@njit(cache=True, nogil=True)
def _axes(stamp, x, y, sigma, wx, wy, c0, c1, c2):
    """Sigma along the major and minor axis; 0 where there is no light."""
    n = stamp.shape[0]
    _window(x, sigma, wx)
    _window(y, sigma, wy)
    c0[:] = 0
    c1[:] = 0
    c2[:] = 0
    for j in range(n):
        line = stamp[j]
        d = np.float32(j - y)
        w = wy[j]
        w1 = w * d
        w2 = w1 * d
        for i in range(n):
            c0[i] += w * line[i]
            c1[i] += w1 * line[i]
            c2[i] += w2 * line[i]
    total, xx, yy, xy = 0.0, 0.0, 0.0, 0.0
    for i in range(n):
        d = i - x
        total += wx[i] * c0[i]
        xx += wx[i] * d * d * c0[i]
        yy += wx[i] * c2[i]
        xy += wx[i] * d * c1[i]
    if total <= 0.0:
        return 0.0, 0.0
    mean = 0.5 * (xx + yy) / total
    spread = math.sqrt(0.25 * ((xx - yy) / total) ** 2 + (xy / total) ** 2)
    return _without_window(mean + spread, sigma), _without_window(mean - spread, sigma)


@njit(cache=True, nogil=True)
def _aperture(stamp, x, y, radius, c0):
    """Light within a circle; a border pixel counts by how far the circle reaches into it."""
    n = stamp.shape[0]
    edge = np.float32(radius + 0.5)
    one, zero = np.float32(1), np.float32(0)
    c0[:] = 0
    for j in range(n):
        line = stamp[j]
        dy2 = np.float32((j - y) * (j - y))
        for i in range(n):
            d = np.float32(i - x)
            r = np.sqrt(d * d + dy2)
            c0[i] += min(one, max(zero, edge - r)) * line[i]
    flux = 0.0
    for i in range(n):
        flux += c0[i]
    return flux


@njit(cache=True, nogil=True)
def _peak(stamp, x, y):
    """Highest pixel within 2 px."""
    peak = np.float32(0)
    cy, cx = math.floor(y + 0.5), math.floor(x + 0.5)
    for j in range(cy - 2, cy + 3):
        for i in range(cx - 2, cx + 3):
            if (i - x) ** 2 + (j - y) ** 2 < 4.0:
                peak = max(peak, stamp[j, i])
    return peak


@njit(cache=True, nogil=True)
def _measure(plane, is_cfa, places, sky, sigma, aperture, out):
    """Per place: x, y (luminance px), flux, peak, fwhm, elongation, valid."""
    reach = min(math.ceil(max(4.0 * sigma, aperture + 1.0)) + 1, _MAX_REACH_PX)
    n = 2 * reach + 1
    stamp = np.zeros((n, n), np.float32)
    wx, wy = np.empty(n, np.float32), np.empty(n, np.float32)
    c0, c1, c2 = np.empty(n, np.float32), np.empty(n, np.float32), np.empty(n, np.float32)
    for k in range(places.shape[0]):
        y0, x0 = places[k, 0] - reach, places[k, 1] - reach
        _stamp(plane, is_cfa, y0, x0, sky[k], stamp)
        x, y, rests = _centre(stamp, reach, sigma, wx, wy, c0, c1)
        out[k, 0], out[k, 1] = x0 + x, y0 + y
        if not rests:
            continue
        major, minor = _axes(stamp, x, y, 1.2 * sigma, wx, wy, c0, c1, c2)
        peak = _peak(stamp, x, y)
        if minor <= 0.0 or peak <= 0.0:
            continue
        out[k, 2] = _aperture(stamp, x, y, aperture, c0)
        out[k, 3] = peak
        out[k, 4] = math.sqrt(major * minor) * SIGMA_TO_FWHM
        out[k, 5] = major / minor
        out[k, 6] = 1.0


@njit(cache=True, nogil=True)
def _sharpness(plane, is_cfa, places, noise, cell, saturation, share, share_error, own_light, saturated):
    patch = np.empty((7, 7), np.float32)
    values = np.empty(12, np.float32)
    taps = np.array([1, 4, 7, 7, 4, 1] if is_cfa else [1, 3, 4, 3, 1, 0], np.float32)
    height, width = plane.shape
    extra = 1 if is_cfa else 0
    # Sigma of the light of eight neighbours above their kin, in units of a pixel's noise.
    of_neighbours = np.float32(3.5)
    for k in range(places.shape[0]):
        y0, x0 = places[k, 0], places[k, 1]
        best, by, bx = np.float32(-1e9), y0, x0
        for y in range(max(y0 - 1, 2), min(y0 + 2 + extra, height - 2)):
            for x in range(max(x0 - 1, 2), min(x0 + 2 + extra, width - 2)):
                if plane[y, x] >= saturation[2 * (y % 2) + x % 2]:
                    saturated[k] = True
                # Over the lowest kin two pixels away, a cheap local sky of the same colour.
                kin = min(min(plane[y, x - 2], plane[y, x + 2]), min(plane[y - 2, x], plane[y + 2, x]))
                v = np.float32(plane[y, x]) - np.float32(kin)
                if v > best:
                    best, by, bx = v, y, x
        own, around, _kin, _scatter = isolation(plane, by, bx, patch, values)
        if own > 0:
            row, column = min(by // cell, noise.shape[1] - 1), min(bx // cell, noise.shape[2] - 1)
            share[k] = around / own
            share_error[k] = of_neighbours * noise[2 * (by % 2) + bx % 2, row, column] / own
        else:
            share[k] = share_error[k] = np.float32(9)
        own_light[k] = taps[by - y0 + 2] * taps[bx - x0 + 2] * own


@njit(cache=True, nogil=True)
def _ring_sky(values, rough, least_sigma):
    """Mean of values clipped about a rough median."""
    count = values.size
    for n in range(12):
        insert_sorted(rough, n, values[(n * count) // 12 + count // 24])
    centre = np.float32(0.5) * (rough[5] + rough[6])
    sigma = max(np.float32(0.5) * (rough[8] - rough[2]), least_sigma)
    for _ in range(4):
        # Relative to the centre, so that sums in float32 keep their digits.
        s0, s1, s2 = np.float32(0), np.float32(0), np.float32(0)
        bound = np.float32(_CLIP_SIGMA) * sigma
        for n in range(count):
            d = values[n] - centre
            use = np.float32(1) if abs(d) <= bound else np.float32(0)
            d *= use
            s0 += use
            s1 += d
            s2 += d * d
        if s0 < 4:
            break
        step = s1 / s0
        variance = max(s2 / s0 - step * step, np.float32(1e-6))
        sigma = np.float32(math.sqrt(variance) * _CUT_CORRECTION)
        centre += step
    return centre


@njit(cache=True, nogil=True)
def _phase_fluxes(plane, xs, ys, radius, noise, cell, out):
    phases = out.shape[0]
    step = 2 if phases == 4 else 1
    height, width = plane.shape[0] // step, plane.shape[1] // step
    shift = 0.5 * (step - 1)
    inner, outer = radius + 3.0, radius + 7.0
    reach = math.ceil(outer) + 1
    ring = np.empty((4, (2 * reach + 1) ** 2), np.float32)
    rough = np.empty(12, np.float32)
    total = np.empty(4, np.float64)
    edge = radius + 0.5
    for k in range(xs.size):
        px, py = (xs[k] - shift) / step, (ys[k] - shift) / step
        cy = math.floor(py + 0.5)
        total[:] = 0
        area = 0.0
        count, expected = 0, 0
        valid = True
        for j in range(cy - reach, cy + reach + 1):
            dy2 = (j - py) ** 2
            if dy2 >= outer * outer:
                continue
            span = math.sqrt(outer * outer - dy2)
            gap = math.sqrt(inner * inner - dy2) if inner * inner > dy2 else -1.0
            core = math.sqrt(edge * edge - dy2) if edge * edge > dy2 else -1.0
            for i in range(math.ceil(px - span), math.floor(px + span) + 1):
                d = abs(i - px)
                there = 0 <= j < height and 0 <= i < width
                if d < core:
                    if not there:
                        valid = False
                        continue
                    inside = min(1.0, edge - math.sqrt(d * d + dy2))
                    area += inside
                    for p in range(phases):
                        total[p] += inside * plane[step * j + p // 2, step * i + p % 2]
                elif d >= gap:
                    expected += 1
                    if there:
                        for p in range(phases):
                            ring[p, count] = plane[step * j + p // 2, step * i + p % 2]
                        count += 1
        if not valid or 3 * count < expected or count < 12:
            out[:, k] = np.nan
            continue
        row = min(max(int(ys[k]) // cell, 0), noise.shape[1] - 1)
        column = min(max(int(xs[k]) // cell, 0), noise.shape[2] - 1)
        for p in range(phases):
            out[p, k] = total[p] - area * _ring_sky(ring[p, :count], rough, noise[p, row, column])
