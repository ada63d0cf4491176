"""A coarse lattice of sky nodes on the mosaic plane: bilinear weights of points, and who is next to whom."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix

__all__ = ["SkyLattice", "bilinear_lattice", "cell_centres", "cell_spacing_px"]


@dataclass(frozen=True)
class SkyLattice:
    """Nodes that at least one point touches.

    Attributes
    ----------
    weights : csr_matrix, shape (K, M)
        Bilinear weights of the K points on the M nodes; rows sum to 1.
    node_xy : ndarray, shape (M, 2), float64
        Position of the nodes, plane px.
    differences : csr_matrix, shape (P, M)
        One row per pair of neighbouring nodes: +1 and -1.
    spacing_px : float
        Distance of neighbouring nodes.
    """

    weights: csr_matrix
    node_xy: np.ndarray
    differences: csr_matrix
    spacing_px: float

    def roughness(self, values: np.ndarray) -> np.ndarray:
        """Return, per node, the range of the values on it and its neighbours, shape (M,)."""
        high, low = values.copy(), values.copy()
        pairs = self.differences.indices.reshape(-1, 2)
        for here, there in ((0, 1), (1, 0)):
            np.maximum.at(high, pairs[:, here], values[pairs[:, there]])
            np.minimum.at(low, pairs[:, here], values[pairs[:, there]])
        return np.asarray(high - low)

    def smoothed(self, values: np.ndarray, use: np.ndarray) -> np.ndarray:
        """Return means over nodes and their neighbours, twice, of the nodes in ``use`` alone, shape (M,).

        White noise of an inner node falls to a third by it.
        """
        pairs = self.differences.indices.reshape(-1, 2)
        pairs = pairs[use[pairs].all(axis=1)]
        for _ in range(2):
            total, count = values.copy(), np.ones(len(values))
            for here, there in ((0, 1), (1, 0)):
                np.add.at(total, pairs[:, here], values[pairs[:, there]])
                np.add.at(count, pairs[:, here], 1.0)
            values = total / count
        return np.asarray(values)

    def nearest(self) -> np.ndarray:
        """Return the node that each point weighs on most, the first of equal ones, shape (K,)."""
        starts, nodes, weights = self.weights.indptr[:-1], self.weights.indices, self.weights.data
        most = np.repeat(np.maximum.reduceat(weights, starts), np.diff(self.weights.indptr))
        return np.asarray(np.minimum.reduceat(np.where(weights == most, nodes, len(self.node_xy)), starts))

    def interpolated(self, values: np.ndarray, known: np.ndarray, xy: np.ndarray) -> np.ndarray:
        """Return the bilinear values at other points.

        Parameters
        ----------
        values : ndarray, shape (M,), float64
            On the nodes.
        known : ndarray of bool, shape (M,)
            Nodes that may be used.
        xy : ndarray, shape (..., 2), float64
            Plane px; NaN allowed.

        Returns
        -------
        ndarray, shape (...), float64
            NaN where a node of the point's square does not exist or is not known.
        """
        node = np.rint(self.node_xy / self.spacing_px).astype(np.int64)
        corner = node.min(axis=0)
        width, height = node.max(axis=0) - corner + 1
        grid = np.full((height, width), np.nan)
        grid[node[:, 1] - corner[1], node[:, 0] - corner[0]] = np.where(known, values, np.nan)
        position = xy / self.spacing_px - corner
        with np.errstate(invalid="ignore"):
            inside = (position >= 0).all(axis=-1) & (position < np.array([width - 1, height - 1])).all(
                axis=-1
            )
        position = np.where(inside[..., None], position, 0.0)
        base = np.floor(position).astype(np.int64)
        fx, fy = np.moveaxis(position - base, -1, 0)
        x, y = np.moveaxis(np.minimum(base, np.array([max(width - 2, 0), max(height - 2, 0)])), -1, 0)
        right, below = np.minimum(x + 1, width - 1), np.minimum(y + 1, height - 1)
        upper = (1 - fx) * grid[y, x] + fx * grid[y, right]
        lower = (1 - fx) * grid[below, x] + fx * grid[below, right]
        return np.where(inside, (1 - fy) * upper + fy * lower, np.nan)


def cell_centres(
    shape_hw: tuple[int, int], n_cells: tuple[int, int], cell_px: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return frame positions x and y (ny, nx) of the centres of mesh cells; the last ones may be cut short."""

    def centres(length: int, n: int) -> np.ndarray:
        start = np.arange(n) * cell_px
        return (start + np.minimum(start + cell_px, length) - 1) / 2

    x, y = np.meshgrid(centres(shape_hw[1], n_cells[1]), centres(shape_hw[0], n_cells[0]))
    return x, y


def cell_spacing_px(nodes_xy: np.ndarray) -> float:
    """Median distance of neighbouring cells of meshes (N, ny, nx, 2) on the plane; 1 when there is none."""
    steps = (np.diff(nodes_xy, axis=axis) for axis in (1, 2))
    joined = np.concatenate([np.hypot(step[..., 0], step[..., 1]).ravel() for step in steps])
    joined = joined[np.isfinite(joined) & (joined > 0)]
    return float(np.median(joined)) if len(joined) else 1.0


def bilinear_lattice(xy: np.ndarray, spacing_px: float) -> SkyLattice:
    """Lay a square lattice under points.

    Parameters
    ----------
    xy : ndarray, shape (K, 2), float64
        Plane px, finite.
    spacing_px : float
        Distance of the nodes. The lattice is anchored to the plane's origin, so that more points only add nodes.

    Returns
    -------
    SkyLattice
    """
    position = np.asarray(xy, dtype=np.float64) / spacing_px
    base = np.floor(position).astype(np.int64)
    fraction = position - base
    corner = base.min(axis=0) if len(base) else np.zeros(2, np.int64)
    local = base - corner
    stride = int(local[:, 0].max(initial=0)) + 3
    rows, keys, weights = [], [], []
    for dy in (0, 1):
        for dx in (0, 1):
            wx = fraction[:, 0] if dx else 1.0 - fraction[:, 0]
            wy = fraction[:, 1] if dy else 1.0 - fraction[:, 1]
            rows.append(np.arange(len(position)))
            keys.append((local[:, 1] + dy) * stride + local[:, 0] + dx)
            weights.append(wx * wy)
    # Many points lie in one square: its corners are sorted once.
    squares = np.unique(keys[0])
    existing = np.unique(np.concatenate([squares + dy * stride + dx for dy in (0, 1) for dx in (0, 1)]))
    column = np.searchsorted(existing, np.concatenate(keys))
    matrix = coo_matrix(
        (np.concatenate(weights), (np.concatenate(rows), column)), shape=(len(position), len(existing))
    ).tocsr()
    pairs = []
    for step in (1, stride):
        at = np.minimum(np.searchsorted(existing, existing + step), max(len(existing) - 1, 0))
        first = np.flatnonzero(existing[at] == existing + step)
        pairs.append(np.column_stack([first, at[first]]))
    pair = np.concatenate(pairs)
    sign = np.tile([1.0, -1.0], len(pair))
    differences = csr_matrix(
        (sign, pair.ravel(), np.arange(0, 2 * len(pair) + 1, 2)), shape=(len(pair), len(existing))
    )
    node_xy = spacing_px * np.column_stack([existing % stride + corner[0], existing // stride + corner[1]])
    return SkyLattice(matrix, node_xy, differences, spacing_px)
