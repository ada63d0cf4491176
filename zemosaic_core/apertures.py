"""Light of stars in circles, the sky of a ring around each removed. Arrays only."""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["aperture_fluxes"]


def aperture_fluxes(
    planes: np.ndarray, x: np.ndarray, y: np.ndarray, radius_px: float, *, gap_px: float = 3.0
) -> np.ndarray:
    """Sum the light of stars in circles, the sky of a ring around each removed.

    The ring begins ``gap_px`` outside the circle and is 4 px wide; its sky is the mean of the central half
    of its pixels, so neighbours do little harm. Border pixels of the circle count by the fraction of their
    area inside (5 x 5 points).

    Parameters
    ----------
    planes : ndarray, shape (C, h, w)
        NaN means missing.
    x, y : ndarray, shape (n,)
        Centres in px of ``planes``, origin 0.
    radius_px : float
        Radius of the circle, > 0.
    gap_px : float
        Space between circle and ring.

    Returns
    -------
    ndarray, shape (C, n), float32
        NaN where the circle touches a missing pixel or leaves the image, or when less than a third of the
        ring is there.
    """
    if not radius_px > 0:
        raise ValueError(f"radius_px must be positive, got {radius_px}")
    planes = np.ascontiguousarray(planes, dtype=np.float32)
    x = np.ascontiguousarray(x, dtype=np.float64)
    y = np.ascontiguousarray(y, dtype=np.float64)
    fluxes = np.empty((planes.shape[0], x.size), dtype=np.float32)
    inner = radius_px + gap_px
    _sum_apertures(planes, x, y, float(radius_px), inner, inner + 4.0, fluxes)
    return fluxes


@njit(cache=True, nogil=True)
def _inside_fraction(dx, dy, radius):
    r2 = dx * dx + dy * dy
    if r2 <= (radius - 0.75) ** 2 and radius > 0.75:
        return 1.0
    if r2 >= (radius + 0.75) ** 2:
        return 0.0
    hits = 0
    for v in range(5):
        ey = dy + (v - 2) * 0.2
        for u in range(5):
            ex = dx + (u - 2) * 0.2
            if ex * ex + ey * ey <= radius * radius:
                hits += 1
    return hits / 25.0


@njit(cache=True, nogil=True)
def _sum_apertures(planes, xs, ys, radius, inner, outer, fluxes):
    channels, height, width = planes.shape
    reach = int(np.ceil(outer)) + 1
    ring = np.empty((2 * reach + 1) * (2 * reach + 1), dtype=np.float32)
    for k in range(xs.size):
        if not (np.isfinite(xs[k]) and np.isfinite(ys[k])):
            fluxes[:, k] = np.nan
            continue
        cx = int(np.floor(xs[k] + 0.5))
        cy = int(np.floor(ys[k] + 0.5))
        for c in range(channels):
            total = 0.0
            area = 0.0
            count = 0
            expected = 0
            valid = True
            for j in range(cy - reach, cy + reach + 1):
                dy = j - ys[k]
                for i in range(cx - reach, cx + reach + 1):
                    dx = i - xs[k]
                    r2 = dx * dx + dy * dy
                    if r2 > outer * outer:
                        continue
                    there = 0 <= j < height and 0 <= i < width
                    value = planes[c, j, i] if there else np.float32(np.nan)
                    inside = _inside_fraction(dx, dy, radius)
                    if inside > 0.0:
                        if not np.isfinite(value):
                            valid = False
                        total += inside * value
                        area += inside
                    if r2 >= inner * inner:
                        expected += 1
                        if np.isfinite(value):
                            ring[count] = value
                            count += 1
            if not valid or 3 * count < expected or count < 8:
                fluxes[c, k] = np.nan
                continue
            values = ring[:count]
            values.sort()
            quarter = count // 4
            sky = 0.0
            for n in range(quarter, count - quarter):
                sky += values[n]
            fluxes[c, k] = total - area * sky / (count - 2 * quarter)
