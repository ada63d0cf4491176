"""The sky of a lattice eliminated from normal equations: sums over cells, and one factorisation. Arrays only.

Nodes pull on their neighbours alone, so in the order of their distance from one end of the lattice the matrix of the
sky is block tridiagonal: its Cholesky factor is made and applied block by block, each of them dense and as large as the
lattice is narrow. Where several pieces of sky have nothing in common, their blocks have neither.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular
from scipy.linalg.blas import dsyrk, dtrsm
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components, dijkstra

from .sky_lattice import SkyLattice

__all__ = ["NodeOrder", "SkyFactor", "add_products", "left_of_cells", "less_square", "mirror", "node_order"]

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
Cells = tuple[NDArray[np.int32], NDArray[np.int32], Array]

# Keeps a node that no pull reaches from making the matrix singular, relative to the largest of its diagonal.
_TINY = 1e-13


@dataclass(frozen=True)
class NodeOrder:
    """The nodes of a lattice in blocks, of which each has to do with the one before and the one behind alone.

    Attributes
    ----------
    nodes : ndarray, shape (M,), int64
        Nodes in the order of the blocks.
    place : ndarray, shape (M,), int64
        Place of each node in that order.
    starts : ndarray, shape (B + 1,), int64
        First place of each block.
    """

    nodes: Indices
    place: Indices
    starts: Indices


def node_order(lattice: SkyLattice) -> NodeOrder:
    """Sort the nodes of a lattice by their distance from its end, each connected piece from its own."""
    at = np.rint(lattice.node_xy / lattice.spacing_px).astype(np.int64)
    at -= at.min(axis=0, initial=0)
    stride = int(at[:, 0].max(initial=0)) + 2
    key = at[:, 1] * stride + at[:, 0]
    by_key = np.argsort(key)
    pairs = []
    # A cell touches the four corners of a square.
    for step in (1, stride - 1, stride, stride + 1):
        found = np.minimum(np.searchsorted(key, key + step, sorter=by_key), len(key) - 1)
        there = by_key[found]
        here = np.flatnonzero(key[there] == key + step)
        pairs.append(np.column_stack([here, there[here]]))
    links = np.concatenate(pairs)
    graph = coo_matrix((np.ones(len(links)), links.T), shape=(len(at),) * 2).tocsr()
    n_pieces, piece = connected_components(graph, directed=False)
    ends = []
    for k in range(n_pieces):
        own = np.flatnonzero(piece == k)
        along = at[own, int(np.argmax(np.ptp(at[own], axis=0)))]
        ends.append(own[along == along.min()])
    depth = dijkstra(graph, directed=False, indices=np.concatenate(ends), unweighted=True, min_only=True)
    nodes = np.lexsort((by_key.argsort(), depth, piece))
    block = piece[nodes] * (int(depth.max(initial=0)) + 1) + depth[nodes].astype(np.int64)
    starts = np.append(np.flatnonzero(np.diff(block, prepend=-1)), len(nodes))
    place = np.empty(len(nodes), np.int64)
    place[nodes] = np.arange(len(nodes))
    return NodeOrder(nodes.astype(np.int64), place, starts.astype(np.int64))


class SkyFactor:
    """Cholesky factor ``L`` of the matrix of the sky, nodes in the order of its blocks.

    Parameters
    ----------
    order : NodeOrder
    cells : tuple
        Starts, nodes and shares of the lattice weights of K cells, as in a CSR matrix.
    weight : ndarray, shape (K,)
        Of each cell.
    pairs : ndarray, shape (P, 2), int
        Nodes that pull on each other.
    pull : float
        How strongly.
    """

    def __init__(
        self,
        order: NodeOrder,
        cells: Cells,
        weight: Array,
        pairs: NDArray[np.int32],
        pull: float,
    ) -> None:
        self._starts = order.starts
        sizes = np.diff(order.starts)
        block = np.repeat(np.arange(len(sizes)), sizes)
        # Of each block its own square, and the rectangle that it has in common with the block before.
        before = np.concatenate([[0], sizes[:-1]])
        own_at = np.concatenate([[0], np.cumsum(sizes * sizes)])
        across_at = np.concatenate([[0], np.cumsum(sizes * before)])
        own, across = np.zeros(own_at[-1]), np.zeros(across_at[-1])
        row = np.arange(len(block)) - order.starts[block]
        own_row = own_at[block] + row * sizes[block] - order.starts[block]
        across_row = across_at[block] + row * before[block] - (order.starts[block] - before[block])
        _add_squares(cells, weight, pairs, pull, order.place, block, own_row, across_row, own, across)
        self._own, self._across = [], []
        diagonals = [own[own_at[b] : own_at[b + 1]].reshape(sizes[b], sizes[b]) for b in range(len(sizes))]
        least = _TINY * (max((float(d.diagonal().max()) for d in diagonals), default=0.0) or 1.0)
        last: Array | None = None
        for b, square in enumerate(diagonals):
            joint = across[across_at[b] : across_at[b + 1]].reshape(sizes[b], before[b])
            square[np.diag_indices_from(square)] += least
            if last is not None:
                joint = solve_triangular(last, joint.T, lower=True, check_finite=False).T
                square -= joint @ joint.T
            last = cholesky(square, lower=True, check_finite=False)
            self._own.append(np.asfortranarray(last))
            self._across.append(np.ascontiguousarray(joint))

    def whiten(self, values: Array) -> Array:
        """Return ``L^-1 values``, where they are; (M, R), nodes in the order of the blocks."""
        for b, own in enumerate(self._own):
            rows = values[self._starts[b] : self._starts[b + 1]]
            if b:
                rows -= self._across[b] @ values[self._starts[b - 1] : self._starts[b]]
            rows[:] = dtrsm(1.0, own, rows.T, side=1, lower=1, trans_a=1, overwrite_b=1).T
        return values

    def unwhiten(self, values: Array) -> Array:
        """Return ``L^-T values``, where they are; (M, R), nodes in the order of the blocks."""
        for b in range(len(self._own) - 1, -1, -1):
            rows = values[self._starts[b] : self._starts[b + 1]]
            if b + 1 < len(self._own):
                rows -= self._across[b + 1].T @ values[self._starts[b + 1] : self._starts[b + 2]]
            rows[:] = dtrsm(1.0, self._own[b], rows.T, side=1, lower=1, trans_a=0, overwrite_b=1).T
        return values


def less_square(normal: Array, whitened: Array) -> Array:
    """Return ``normal - whitened^T whitened`` of the lower half of ``normal`` (U, U), which it overwrites."""
    half = dsyrk(-1.0, whitened.T, beta=1.0, c=normal.T, trans=0, lower=0, overwrite_c=1).T
    mirror(half)
    return np.asarray(half)


@njit(cache=True, nogil=True)
def mirror(half):
    """Copy the lower half of a matrix to its upper one."""
    for i in range(len(half)):
        for j in range(i):
            half[j, i] = half[i, j]


@njit(cache=True, nogil=True, error_model="numpy")
def _add_squares(cells, weight, pairs, pull, place, block, own_row, across_row, own, across):
    """Add what cells and pulls say of nodes together: the lower half of the block of each, and what lies before it.

    ``own_row[i] + j`` is where row ``i`` and column ``j`` lie in ``own``.
    """
    node_starts, nodes, shares = cells
    for k in range(len(weight)):
        for i in range(node_starts[k], node_starts[k + 1]):
            a, share = place[nodes[i]], weight[k] * shares[i]
            for j in range(node_starts[k], node_starts[k + 1]):
                b = place[nodes[j]]
                if b <= a:
                    if block[a] == block[b]:
                        own[own_row[a] + b] += share * shares[j]
                    else:
                        across[across_row[a] + b] += share * shares[j]
    for k in range(len(pairs)):
        a, b = place[pairs[k, 0]], place[pairs[k, 1]]
        own[own_row[a] + a] += pull
        own[own_row[b] + b] += pull
        a, b = max(a, b), min(a, b)
        if block[a] == block[b]:
            own[own_row[a] + b] -= pull
        else:
            across[across_row[a] + b] -= pull


@njit(cache=True, nogil=True, error_model="numpy")
def add_products(starts, columns, terms, cells, place, weight, cross, normal):
    """Add the weighted products of the terms of all cells with each other, and with the lattice.

    The cells of a frame have the same few terms: their products are one small table.

    Parameters
    ----------
    starts : ndarray, shape (N + 1,), int64
        First cell of each frame.
    columns : ndarray, shape (N, T), int64
        Unknowns that the cells of each frame depend on, ascending; the last column is that of their values.
    terms : tuple
        ``table`` (Q, T - 1): how much, at each place of the detector; ``scale`` (N, T - 1): times this, in each frame;
        ``cell`` (K,) int64: the place of each cell; ``value`` (K,): its value.
    cells, weight : as in `SkyFactor`
    place : ndarray, shape (M,), int64
        Row of each node in ``cross``.
    cross, normal : ndarray, shape (M, U) and (U, U)
        What is added to.
    """
    node_starts, nodes, shares = cells
    table, scale, cell, value = terms
    n = columns.shape[1]
    for f in range(len(columns)):
        here, first, size = columns[f], starts[f], starts[f + 1] - starts[f]
        own, weighted = np.empty((size, n)), np.empty((size, n))
        for k in range(size):
            at, w = cell[first + k], weight[first + k]
            for j in range(n - 1):
                own[k, j] = scale[f, j] * table[at, j]
                weighted[k, j] = w * own[k, j]
            own[k, n - 1] = value[first + k]
            weighted[k, n - 1] = w * own[k, n - 1]
        part = np.dot(weighted.T, own)
        for i in range(n):
            for j in range(n):
                normal[here[i], here[j]] += part[i, j]
        for k in range(size):
            for i in range(node_starts[first + k], node_starts[first + k + 1]):
                row, share = cross[place[nodes[i]]], shares[i]
                for j in range(n):
                    row[here[j]] += share * weighted[k, j]


@njit(cache=True, nogil=True, error_model="numpy")
def left_of_cells(starts, columns, terms, cells, sky, unknowns):
    """Return what sky and unknowns leave of the value of each cell, (K,).

    Parameters
    ----------
    starts, columns, terms, cells : as in `add_products`
    sky : ndarray, shape (M,)
    unknowns : ndarray, shape (U - 1,)
    """
    node_starts, nodes, shares = cells
    table, scale, cell, value = terms
    n = table.shape[1]
    out, own = np.empty(len(value)), np.empty(n)
    for f in range(len(columns)):
        for j in range(n):
            own[j] = scale[f, j] * unknowns[columns[f, j]]
        for k in range(starts[f], starts[f + 1]):
            left = value[k]
            for i in range(node_starts[k], node_starts[k + 1]):
                left -= shares[i] * sky[nodes[i]]
            for j in range(n):
                left -= table[cell[k], j] * own[j]
            out[k] = left
    return out
