"""What a row of samples becomes: gain, level and plane, radial terms, a surface over the detector; and its weight.

Arrays only.

`CoaddSource` says what the terms are; the CUDA body repeats this arithmetic.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from zemosaic_core.detector_surface import EXPONENTS
from zemosaic_core.lent_arrays import njit_lent

__all__ = [
    "border_weight",
    "distance_row",
    "photometry_row",
    "radial_row",
    "surface_at",
    "surface_row",
    "unit_row",
]

_SURFACE_ORDER = int(EXPONENTS.max())


@njit(cache=True, nogil=True, inline="always")
def border_weight(edge, feather, start):
    """Weight of a sample so many px from the nearest border, all float32; see `CoaddSource.feather_px`."""
    one = np.float32(1)
    ramp = start + (one - start) * ((edge + one) / feather)
    ramp = one if ramp > one else ramp
    return ramp * ramp * (np.float32(3) - np.float32(2) * ramp)


@njit_lent()
def photometry_row(line, u, t, terms, gap, out):
    """Apply ``gain v + (c0 + cx u + cy t)``; what is missing or not finite becomes NaN."""
    gain, c0, cx, cy = terms[0], terms[1], terms[2], terms[3]
    if cx == np.float32(0) and cy == np.float32(0):
        for k in range(out.size):
            value = line[k]
            out[k] = gain * value + c0 + (value - value) + gap[k]
        return
    for k in range(out.size):
        value = line[k]
        out[k] = gain * value + (c0 + cx * u[k] + cy * t[k]) + (value - value) + gap[k]


@njit_lent()
def radial_row(line, u, t, q, terms, radial, gap, out):
    """Apply ``gain v (1 + f1 q + f2 q^2) + (c0 + cx u + cy t + d1 q + d2 q^2)``; as `photometry_row`."""
    gain, c0, cx, cy = terms[0], terms[1], terms[2], terms[3]
    f1, f2, d1, d2 = radial[0], radial[1], radial[2], radial[3]
    one = np.float32(1)
    for k in range(out.size):
        value = line[k]
        flat = one + q[k] * (f1 + q[k] * f2)
        sky = c0 + cx * u[k] + cy * t[k] + q[k] * (d1 + q[k] * d2)
        out[k] = gain * value * flat + sky + (value - value) + gap[k]


@njit(cache=True, nogil=True, inline="always")
def surface_at(surface, u, t):
    """Value of a polynomial of `EXPONENTS` at a place of the detector, by Horner's scheme in both directions."""
    total = np.float32(0)
    place = surface.size
    for i in range(_SURFACE_ORDER, -1, -1):
        inner = np.float32(0)
        for _ in range(_SURFACE_ORDER + 1 - i):
            place -= 1
            inner = inner * t + surface[place]
        total = total * u + inner
    return total


@njit_lent()
def surface_row(u, t, surface, out):
    """Add a polynomial of `EXPONENTS` to a row."""
    for k in range(out.size):
        out[k] += surface_at(surface, u[k], t[k])


@njit_lent()
def distance_row(u, t, image_hw, q):
    """Squared distance from the image centre, 1 in the corners; 0 where the image is one pixel."""
    width, height = np.float32(image_hw[1] - 1), np.float32(image_hw[0] - 1)
    across, down = width * width, height * height
    diagonal = max(across + down, np.float32(1))
    across, down = across / diagonal, down / diagonal
    for k in range(q.size):
        q[k] = across * (u[k] * u[k]) + down * (t[k] * t[k])


@njit_lent()
def unit_row(sx, sy, image_hw, u, t):
    """Source position as -1 .. 1 across the image; 0 where the image is one pixel wide or high."""
    height, width = image_hw
    zero, one = np.float32(0), np.float32(1)
    scale_u = np.float32(2.0 / (width - 1)) if width > 1 else zero
    scale_t = np.float32(2.0 / (height - 1)) if height > 1 else zero
    shift_u = one if width > 1 else zero
    shift_t = one if height > 1 else zero
    for k in range(u.size):
        u[k] = np.float32(sx[k]) * scale_u - shift_u
        t[k] = np.float32(sy[k]) * scale_t - shift_t
