"""Polynomials over the detector, against NumPy's."""

from __future__ import annotations

import numpy as np
from numpy.polynomial import legendre

from zemosaic_core.detector_surface import (
    EXPONENTS,
    N_SURFACE,
    PRODUCT_ORDER,
    mean_of_surface,
    products,
    surface_of,
    surface_values,
)


def test_products_as_powers_have_the_same_values():
    rng = np.random.default_rng(1)
    uv, coefficients = rng.uniform(-1, 1, (40, 2)), rng.normal(size=(3, len(PRODUCT_ORDER)))
    surfaces = surface_of(coefficients)
    assert surfaces.shape == (3, N_SURFACE)
    for own, surface in zip(coefficients, surfaces, strict=True):
        np.testing.assert_allclose(surface_values(surface, uv), products(uv) @ own, atol=1e-12)


def test_products_hold_no_level_and_no_plane():
    x, weight = legendre.leggauss(8)
    uv = np.stack(np.meshgrid(x, x, indexing="ij"), axis=-1).reshape(-1, 2)
    weights = np.outer(weight, weight).ravel()
    low = np.column_stack([np.ones(len(uv)), uv])
    np.testing.assert_allclose((products(uv) * weights[:, None]).T @ low, 0.0, atol=1e-12)


def test_the_mean_is_that_of_the_values():
    surface = np.random.default_rng(2).normal(size=N_SURFACE)
    x, weight = legendre.leggauss(8)
    uv = np.stack(np.meshgrid(x, x, indexing="ij"), axis=-1)
    mean = (surface_values(surface, uv) * np.outer(weight, weight)).sum() / 4
    np.testing.assert_allclose(mean_of_surface(surface), mean, atol=1e-12)
    assert EXPONENTS.sum(axis=1).max() == 5
