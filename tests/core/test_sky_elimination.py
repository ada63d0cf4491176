"""The factor of a lattice's matrix, block by block, equals plain dense algebra; whatever the shape of the lattice."""

from __future__ import annotations

import numpy as np
import pytest

from zemosaic_core.sky_elimination import SkyFactor, add_products, left_of_cells, less_square, node_order
from zemosaic_core.sky_lattice import SkyLattice, bilinear_lattice

PULL = 1e-3


def strip(width: float, height: float, x0: float = 0.0, y0: float = 0.0) -> np.ndarray:
    area = int(8 * width * height)
    return np.random.default_rng(area).uniform((x0, y0), (x0 + width, y0 + height), (area, 2))


SHAPES = {
    "rectangle": strip(4.0, 7.0),
    "wide": strip(9.0, 2.0),
    "cross": np.vstack([strip(12.0, 2.0, 0.0, 5.0), strip(2.0, 12.0, 5.0, 0.0)]),
    "two pieces": np.vstack([strip(4.0, 3.0), strip(3.0, 4.0, 20.0, -11.0)]),
    "corners touch": np.vstack([strip(2.0, 2.0, 0.1, 0.1), strip(2.0, 2.0, 2.1, 2.1)]),
    "one square": strip(0.5, 0.5, 0.2, 0.2),
}


def cells_and_matrix(lattice: SkyLattice, weight: np.ndarray) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    shares = lattice.weights.toarray()
    differences = lattice.differences.toarray()
    plain = shares.T @ (weight[:, None] * shares) + PULL * differences.T @ differences
    return (lattice.weights.indptr, lattice.weights.indices, lattice.weights.data), plain


def factor_of(lattice: SkyLattice, cells: tuple[np.ndarray, ...], weight: np.ndarray) -> SkyFactor:
    pairs = lattice.differences.indices.reshape(-1, 2)
    return SkyFactor(node_order(lattice), cells, weight, pairs, PULL)


@pytest.mark.parametrize("name", SHAPES)
def test_the_factor_solves_as_a_dense_matrix_does(name):
    lattice = bilinear_lattice(SHAPES[name], 1.0)
    rng = np.random.default_rng(1)
    weight = rng.uniform(0.2, 3.0, len(SHAPES[name]))
    cells, plain = cells_and_matrix(lattice, weight)
    order, factor = node_order(lattice), factor_of(lattice, cells, weight)
    assert sorted(order.nodes) == list(range(len(plain)))
    right = rng.normal(size=(len(plain), 3))
    found = np.empty_like(right)
    found[order.nodes] = factor.unwhiten(factor.whiten(right[order.nodes]))
    np.testing.assert_allclose(plain @ found, right, atol=1e-8)


def test_blocks_are_as_large_as_a_strip_is_narrow():
    for shape in (strip(30.0, 2.0), strip(2.0, 30.0), SHAPES["cross"]):
        assert np.diff(node_order(bilinear_lattice(shape, 1.0)).starts).max() <= 16


def test_sums_over_cells_and_what_is_left_of_them():
    rng = np.random.default_rng(2)
    xy = SHAPES["rectangle"]
    lattice = bilinear_lattice(xy, 1.0)
    weight = rng.uniform(0.2, 3.0, len(xy))
    cells, plain = cells_and_matrix(lattice, weight)
    order, factor = node_order(lattice), factor_of(lattice, cells, weight)
    # Three frames, the middle one without a cell; two terms of their own, one of all, and the value of the cell.
    starts = np.array([0, 50, 50, len(xy)])
    columns = np.array([[0, 1, 6, 7], [2, 3, 6, 7], [4, 5, 6, 7]])
    frame = np.repeat(np.arange(3), np.diff(starts))
    table, cell, scale = rng.normal(size=(20, 3)), rng.integers(0, 20, len(xy)), rng.uniform(0.5, 2, (3, 3))
    value = rng.normal(size=len(xy))
    terms = table, scale, cell, value
    design = np.zeros((len(xy), 8))
    entries = np.column_stack([table[cell] * scale[frame], value])
    np.put_along_axis(design, columns[frame], entries, axis=1)
    shares = lattice.weights.toarray()
    cross, normal = np.zeros((len(plain), 8)), np.zeros((8, 8))
    add_products(starts, columns, terms, cells, order.place, weight, cross, normal)
    np.testing.assert_allclose(cross, (shares.T @ (weight[:, None] * design))[order.nodes], atol=1e-12)
    expected = design.T @ (weight[:, None] * design)
    np.testing.assert_allclose(np.tril(normal), np.tril(expected), atol=1e-12)
    left = less_square(normal, factor.whiten(cross))
    onto_sky = shares.T @ (weight[:, None] * design)
    np.testing.assert_allclose(left, expected - onto_sky.T @ np.linalg.solve(plain, onto_sky), atol=1e-8)
    sky, unknowns = rng.normal(size=len(plain)), rng.normal(size=7)
    np.testing.assert_allclose(
        left_of_cells(starts, columns, terms, cells, sky, unknowns),
        design[:, 7] - design[:, :7] @ unknowns - shares @ sky,
        atol=1e-12,
    )
