"""Smooth surfaces over a detector: polynomials of fifth order in its two directions. Arrays only.

They hold what one session's frames have in common beside a level, a plane and vignetting: light of the Moon scattered
in a tube, a glow in a corner, a flat of another telescope. Kernels evaluate them per pixel with `EXPONENTS`.
"""

from __future__ import annotations

import numpy as np
from numpy.polynomial import legendre
from numpy.typing import NDArray

__all__ = [
    "EXPONENTS",
    "N_SURFACE",
    "PRODUCT_ORDER",
    "mean_of_surface",
    "places_on_detector",
    "products",
    "surface_of",
    "surface_values",
]

ORDER = 5
EXPONENTS = np.array([(i, j) for i in range(ORDER + 1) for j in range(ORDER + 1 - i)])
"""Powers of u and t of each coefficient: those of t run fastest."""
N_SURFACE = len(EXPONENTS)
# Level and plane belong to single frames.
_PRODUCTS = np.array([(i, total - i) for total in range(2, ORDER + 1) for i in range(total + 1)])
PRODUCT_ORDER = _PRODUCTS.sum(axis=1)
"""Order of each of `products`: 2 to 5."""

Array = NDArray[np.float64]


def places_on_detector(x: np.ndarray, y: np.ndarray, shape_hw: tuple[int, int]) -> np.ndarray:
    """Return pixel positions of a frame as -1 .. 1 across each side, shape (..., 2); -1 where a side is one pixel."""
    height, width = shape_hw
    return np.stack([2 * x / max(1, width - 1) - 1, 2 * y / max(1, height - 1) - 1], axis=-1)


def products(uv: Array) -> Array:
    """Return the products of Legendre polynomials of the orders `PRODUCT_ORDER`, shape (..., 18).

    Parameters
    ----------
    uv : ndarray, shape (..., 2)
        Place on the detector, -1 .. 1 across each side.
    """
    u, t = (legendre.legvander(uv[..., axis], ORDER) for axis in (0, 1))
    return np.asarray(u[..., _PRODUCTS[:, 0]] * t[..., _PRODUCTS[:, 1]])


def surface_of(coefficients: Array) -> Array:
    """Return the coefficients of powers, (..., 21) in the order of `EXPONENTS`, of a sum of `products` (..., 18)."""
    powers = np.zeros((len(_PRODUCTS), ORDER + 1, ORDER + 1))
    single = [legendre.leg2poly(np.eye(ORDER + 1)[n]) for n in range(ORDER + 1)]
    for k, (i, j) in enumerate(_PRODUCTS):
        powers[k, : i + 1, : j + 1] = np.outer(single[i], single[j])
    return np.asarray(coefficients @ powers[:, EXPONENTS[:, 0], EXPONENTS[:, 1]])


def surface_values(surface: Array, uv: Array) -> Array:
    """Return the values of a surface (21,) at places (..., 2)."""
    return np.asarray((uv[..., :1] ** EXPONENTS[:, 0] * uv[..., 1:] ** EXPONENTS[:, 1]) @ surface)


def mean_of_surface(surface: Array) -> Array:
    """Return the means over the detector of surfaces (..., 21)."""
    even = (EXPONENTS % 2 == 0).all(axis=1)
    return np.asarray(surface @ (even / (EXPONENTS + 1.0).prod(axis=1)))
