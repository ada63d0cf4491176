"""The linear problem behind the sky model: all frames of a mosaic at once, the sky itself eliminated. Arrays only.

For one channel, frame ``i``, mesh cell at detector place ``(u, v)`` that looks at plane position ``p``::

    y_i = S(p) + x_i0 + x_i1 u + x_i2 v + l_i sum_k D_k pattern_k(u, v) + sum_k E_k pattern_k(u, v)
          + l_i sum_k F_sk product_k(u, v) + sum_k c_ik product_k(u, v) + noise

``S`` is the astronomical sky on a lattice, ``x`` the glow of the frames with a prior covariance between all of them
(`glow_prior`), ``D`` what flat fielding left (in proportion to the light ``l`` of the frame), ``E`` what does not
depend on the light (pedestal, amplifier), ``F`` what session ``s`` of the frame has of its own, ``c`` how the glow of
a frame bends (thin cloud, second order only). ``S`` enters linearly and without a prior worth the name, so it is
eliminated exactly with one sparse factorisation; ``c`` has a simple prior and is eliminated for given sizes of it. What
is left is dense and small.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from scipy.linalg import LinAlgError, cho_factor, cho_solve, cholesky, solve_triangular
from scipy.sparse import coo_matrix, csc_matrix, csr_matrix
from scipy.sparse.linalg import splu

from .glow_prior import BENDS, GlowPrior
from .sky_lattice import SkyLattice

__all__ = [
    "Equations",
    "JointProblem",
    "Posterior",
    "Reduced",
    "SkyCells",
    "averaged_posterior",
    "evidence_loss",
    "posterior_of",
    "tuned_sizes",
]

# Pull between neighbouring nodes, relative to the median weight of a cell: fills nodes that hardly any cell touches.
_SMOOTHNESS = 1e-5
# Scatter that a cell has beyond its noise, in units of the robust scatter: meshes of neighbouring cells share stars.
_SCATTER_FACTOR = 2.0
_HUBER_SIGMA = 2.0
# Where the sky has structure, a bilinear lattice and a clipped cell are off by about this share of the local range.
# Without it bright galaxies pretend to know the tilt of the sky.
_STRUCTURE_SHARE = 0.1
# Logarithmic widths of what is believed about the sizes of the prior, and steps of their search.
_SIZE_WIDTH = 1.5
_SIZE_STEPS = (0.8, 0.35)
_WORTH = 0.05
# Steps of the average over sizes, and how likely a size has to be, relative to the likeliest, to take part.
_AVERAGED_STEPS, _LEAST_WEIGHT = (-2.0, -1.0, 1.0, 2.0), 0.02


@dataclass(frozen=True)
class SkyCells:
    """Usable mesh cells of one channel, flat.

    Attributes
    ----------
    frame : ndarray, shape (K,), int64
        Row of the frame among ``n_frames``.
    value : ndarray, shape (K,), float64
        Sky of the cell on the common flux scale, ADU.
    sigma : ndarray, shape (K,), float64
        Its noise, ADU; only ratios matter.
    basis : ndarray, shape (K, 3), float64
        1, u and v.
    patterns : ndarray, shape (K, P), float64
        Detector patterns.
    light : ndarray, shape (N,), float64
        Light of each frame over the median of all.
    lattice : SkyLattice
        Of the positions of all cells.
    session : ndarray, shape (N,), int64
        Session of each frame.
    products : ndarray, shape (K, S), float64
        What the frames of a session may have in common on the detector (`detector_surface.products`); S may be 0.
    curvature : ndarray, shape (K, 3), float64
        The products of second order, for single frames.
    """

    frame: np.ndarray
    value: np.ndarray
    sigma: np.ndarray
    basis: np.ndarray
    patterns: np.ndarray
    light: np.ndarray
    lattice: SkyLattice
    session: np.ndarray
    products: np.ndarray
    curvature: np.ndarray

    @property
    def n_frames(self) -> int:
        """Number of frames."""
        return len(self.light)

    @property
    def n_patterns(self) -> int:
        """Detector patterns, each proportional to the light and constant."""
        return int(self.patterns.shape[1])


@dataclass(frozen=True)
class Reduced:
    """Normal equations ``normal x = right`` of glow and patterns, and how sky and curvature follow from ``x``.

    ``sky = sky_0 - response x - open_sky z`` and ``curvature = bend_0 - bend_response x + open_bend z``, where ``z``
    holds as many standard normal numbers as there are curvatures: what is open of these once ``x`` is known.

    Attributes
    ----------
    loss : float
        Minus the logarithm of the marginal likelihood of the curvatures, up to a constant.
    """

    normal: np.ndarray
    right: np.ndarray
    sky_0: np.ndarray
    response: np.ndarray
    open_sky: np.ndarray
    bend_0: np.ndarray
    bend_response: np.ndarray
    open_bend: np.ndarray
    loss: float

    def sky(self, unknowns: np.ndarray, open_: np.ndarray | None = None) -> np.ndarray:
        """Return the sky on the nodes, shape (M,); ``open_`` is ``z``, zeros unless given."""
        sky = self.sky_0 - self.response @ unknowns
        return np.asarray(sky if open_ is None else sky - self.open_sky @ open_)

    def curvature(self, unknowns: np.ndarray, open_: np.ndarray | None = None) -> np.ndarray:
        """Return the curvatures of the frames, ADU, shape (N, 3)."""
        bend = self.bend_0 - self.bend_response @ unknowns
        if open_ is not None:
            bend = bend + self.open_bend @ open_
        return np.asarray(bend.reshape(-1, 3))


@dataclass(frozen=True)
class Equations:
    """Normal equations after the sky is eliminated; the last ``n_bends`` unknowns are curvatures.

    ``sky = sky_0 - response x``.
    """

    normal: np.ndarray
    right: np.ndarray
    sky_0: np.ndarray
    response: np.ndarray
    n_bends: int

    def reduced(self, root: np.ndarray) -> Reduced:
        """Eliminate the curvatures.

        Parameters
        ----------
        root : ndarray, shape (N, N), float64
            Square root of the prior covariance of the curvatures between frames, ADU (``root root^T``).
        """
        n = len(self.right) - self.n_bends
        full = np.kron(root, np.eye(3))
        across, bends = self.normal[:n, n:] @ full, full.T @ self.normal[n:, n:] @ full
        bends[np.diag_indices_from(bends)] += 1.0
        factor = cholesky(bends, lower=True, check_finite=False)
        # With z of unit covariance, open = L^-T z: L^-1 whitens what the frames and the prior say.
        whitened = solve_triangular(factor, across.T, lower=True, check_finite=False)
        right = solve_triangular(factor, full.T @ self.right[n:], lower=True, check_finite=False)
        open_bend = solve_triangular(factor, full.T, lower=True, check_finite=False).T
        on_sky = self.response[:, n:] @ open_bend
        return Reduced(
            normal=self.normal[:n, :n] - whitened.T @ whitened,
            right=self.right[:n] - whitened.T @ right,
            sky_0=self.sky_0 - on_sky @ right,
            response=self.response[:, :n] - on_sky @ whitened,
            open_sky=on_sky,
            bend_0=open_bend @ right,
            bend_response=open_bend @ whitened,
            open_bend=open_bend,
            loss=float(np.log(np.diag(factor)).sum() - 0.5 * right @ right),
        )


@dataclass(frozen=True)
class Posterior:
    """Unknowns and their covariance: level and plane per frame, the patterns, products session by session."""

    unknowns: np.ndarray
    covariance: np.ndarray


class JointProblem:
    """Cells, their weights, and the reduced equations of the moment.

    Parameters
    ----------
    cells : SkyCells
    """

    def __init__(self, cells: SkyCells) -> None:
        self.cells = cells
        self._noise_weight = 1.0 / cells.sigma**2
        # Until residuals are known, cells count little beside the prior.
        self.weight = 0.1 * self._noise_weight
        self._columns, n_unknowns = _unknowns_of_frames(cells)
        self._entries = _design_entries(cells)
        k, n = self._entries.shape
        of_cells = (self._entries.ravel(), self._columns[cells.frame].ravel(), np.arange(0, k * n + 1, n))
        self._design = csr_matrix(of_cells, shape=(k, n_unknowns))
        differences = cells.lattice.differences
        self._smooth = _SMOOTHNESS * float(np.median(self._noise_weight)) * (differences.T @ differences)
        self.hits = np.asarray(cells.lattice.weights.sum(axis=0)).ravel()

    def equations(self) -> Equations:
        """Eliminate the sky with the weights of now."""
        lattice = self.cells.lattice.weights
        weighted = lattice.copy()
        weighted.data *= np.repeat(self.weight, np.diff(lattice.indptr))
        normal_sky = (lattice.T @ weighted + self._smooth).tocsc()
        normal_sky += _tiny_diagonal(normal_sky)
        factor = splu(normal_sky)
        n_unknowns = self._design.shape[1]
        cross, normal = np.zeros((lattice.shape[1], n_unknowns)), np.zeros((n_unknowns, n_unknowns))
        right = np.zeros(n_unknowns)
        _add_products(
            self.cells.frame, self._columns, self._entries, (weighted.indptr, weighted.indices, weighted.data),
            self.weight, self.cells.value, cross, normal, right,
        )  # fmt: skip
        cross = np.asfortranarray(cross)
        response = factor.solve(cross)
        sky_0 = factor.solve(weighted.T @ self.cells.value)
        normal -= cross.T @ response
        right -= cross.T @ sky_0
        del cross
        symmetric = normal + normal.T
        del normal
        symmetric /= 2
        return Equations(symmetric, right, sky_0, response, 3 * self.cells.n_frames)

    def residual(self, sky: np.ndarray, unknowns: np.ndarray, curvature: np.ndarray) -> np.ndarray:
        """Return what the model leaves of each cell, ADU, shape (K,)."""
        everything = np.concatenate([unknowns, curvature.ravel()])
        return np.asarray(self.cells.value - self.cells.lattice.weights @ sky - self._design @ everything)

    def reweigh(self, sky: np.ndarray, unknowns: np.ndarray, curvature: np.ndarray) -> np.ndarray:
        """Set robust weights from the residuals of a solution; return the residuals."""
        residual = self.residual(sky, unknowns, curvature)
        in_noise = np.abs(residual) * np.sqrt(self._noise_weight)
        scatter = max(1.4826 * float(np.median(in_noise)), 1e-9)
        structure = _STRUCTURE_SHARE * (self.cells.lattice.weights @ self.cells.lattice.roughness(sky))
        variance = (_SCATTER_FACTOR * scatter) ** 2 / self._noise_weight + structure**2
        self.weight = np.minimum(1.0, _HUBER_SIGMA * scatter / np.maximum(in_noise, 1e-12)) / variance
        return residual


@njit(cache=True, nogil=True, error_model="numpy")
def _add_products(frame, columns, entries, lattice, weight, value, cross, normal, right):
    """Add the weighted products of all cells: lattice with design, design with itself and with the values.

    The cells of a frame, which follow each other, touch the same few unknowns: their products are added up on a small
    table, cell after cell, that begins with what is there already.
    """
    node_starts, nodes, shares = lattice
    n = columns.shape[1]
    part, weighted = np.zeros((n, n)), np.empty(n)
    for k in range(len(weight)):
        here, own = columns[frame[k]], entries[k]
        if k == 0 or frame[k] != frame[k - 1]:
            for i in range(n):
                for j in range(n):
                    part[i, j] = normal[here[i], here[j]]
        for i in range(n):
            weighted[i] = weight[k] * own[i]
            right[here[i]] += weighted[i] * value[k]
        for i in range(n):
            line, times = part[i], own[i]
            for j in range(n):
                line[j] += times * weighted[j]
        for i in range(node_starts[k], node_starts[k + 1]):
            row, share = cross[nodes[i]], shares[i]
            for j in range(n):
                row[here[j]] += share * own[j]
        if k + 1 == len(weight) or frame[k + 1] != frame[k]:
            for i in range(n):
                for j in range(n):
                    normal[here[i], here[j]] = part[i, j]


def _tiny_diagonal(matrix: csc_matrix) -> csc_matrix:
    """Keep a node that no pull reaches from making the matrix singular."""
    diagonal = matrix.diagonal()
    n = len(diagonal)
    least = 1e-13 * (float(diagonal.max(initial=0.0)) or 1.0)
    return coo_matrix((np.full(n, least), (np.arange(n), np.arange(n))), shape=(n, n)).tocsc()


def _unknowns_of_frames(cells: SkyCells) -> tuple[np.ndarray, int]:
    """Return the unknowns that the cells of each frame depend on, ascending, (N, U) int64, and how many there are.

    Of all of them, 3 N + 2 P + sessions S + 3 N.
    """
    n, n_patterns, n_products = cells.n_frames, cells.n_patterns, cells.products.shape[1]
    three = 3 * np.arange(n)[:, None] + np.arange(3)
    patterns = np.broadcast_to(3 * n + np.arange(2 * n_patterns), (n, 2 * n_patterns))
    start = 3 * n + 2 * n_patterns
    own = start + n_products * cells.session[:, None] + np.arange(n_products)
    start += (int(cells.session.max(initial=-1)) + 1) * n_products
    return np.hstack([three, patterns, own, start + three]), start + 3 * n


def _design_entries(cells: SkyCells) -> np.ndarray:
    """Return what each of the unknowns of its frame adds to each cell, (K, U)."""
    light = cells.light[cells.frame][:, None]
    lit = cells.patterns * light
    return np.hstack([cells.basis, lit, cells.patterns, cells.products * light, cells.curvature])


def full_covariance(prior: GlowPrior, log_sizes: np.ndarray, pattern_covariance: np.ndarray) -> np.ndarray:
    """Return the prior covariance of all unknowns: glow of the frames, the patterns, products of the sessions."""
    n, n_patterns = 3 * prior.n_frames, len(pattern_covariance)
    of_sessions = prior.session_variance(log_sizes)
    total = np.zeros((n + n_patterns + len(of_sessions),) * 2, order="F")
    total[:n, :n] = prior.covariance(log_sizes)
    total[n : n + n_patterns, n : n + n_patterns] = pattern_covariance
    where = np.arange(n + n_patterns, len(total))
    total[where, where] = of_sessions
    return total


def evidence_loss(
    reduced: Reduced, prior: GlowPrior, log_sizes: np.ndarray, pattern_covariance: np.ndarray
) -> float:
    """Return minus the logarithm of the marginal likelihood, up to a constant, plus what is believed of the sizes."""
    try:
        root = cholesky(full_covariance(prior, log_sizes, pattern_covariance), lower=True, check_finite=False)
        inner = root.T @ reduced.normal @ root
        inner[np.diag_indices_from(inner)] += 1.0
        factor = cholesky(inner, lower=True, check_finite=False)
    except LinAlgError:
        return float("inf")
    fit = solve_triangular(factor, root.T @ reduced.right, lower=True, check_finite=False)
    believed = 0.5 * float((((log_sizes - prior.usual) / _SIZE_WIDTH) ** 2).sum())
    return float(np.log(np.diag(factor)).sum() - 0.5 * fit @ fit + believed + reduced.loss)


def tuned_sizes(
    equations: Equations,
    prior: GlowPrior,
    pattern_covariance: np.ndarray,
    start: np.ndarray | None = None,
    *,
    thorough: bool = True,
) -> np.ndarray:
    """Find the sizes of the prior under which the frames are most likely: a search coordinate by coordinate.

    Parameters
    ----------
    start : ndarray, shape (10,), optional
        Logarithms to start from; default the usual ones.
    thorough : bool
        Two rounds of steps instead of one.

    Returns
    -------
    ndarray, shape (10,), float64
        Logarithms of shares of the level.
    """
    best = prior.usual if start is None else start.copy()
    reduced = equations.reduced(prior.bend_root(best))
    loss = evidence_loss(reduced, prior, best, pattern_covariance)
    for step in _SIZE_STEPS if thorough else _SIZE_STEPS[:1]:
        for k in prior.free:
            for sign in (1.0, -1.0):
                moved = False
                for _ in range(4):
                    trial = best.copy()
                    trial[k] += sign * step
                    trial = prior.clipped(trial)
                    if trial[k] == best[k]:
                        break
                    bent = equations.reduced(prior.bend_root(trial)) if k in BENDS else reduced
                    value = evidence_loss(bent, prior, trial, pattern_covariance)
                    if value >= loss - _WORTH:
                        break
                    best, loss, reduced, moved = trial, value, bent, True
                if moved:
                    break
    return best


def posterior_of(
    reduced: Reduced, prior: GlowPrior, log_sizes: np.ndarray, pattern_covariance: np.ndarray
) -> Posterior:
    """Return unknowns and covariance that follow from frames and prior."""
    # The tables are large: each becomes the next where it is.
    covariance = full_covariance(prior, log_sizes, pattern_covariance)
    n = len(covariance)
    factor = cho_factor(covariance, lower=True, overwrite_a=True, check_finite=False)
    precision = cho_solve(factor, np.eye(n, order="F"), overwrite_b=True, check_finite=False)
    del covariance, factor
    precision += reduced.normal
    symmetric = np.asfortranarray(precision + precision.T)
    del precision
    symmetric /= 2
    factor = cho_factor(symmetric, lower=True, overwrite_a=True, check_finite=False)
    posterior = cho_solve(factor, np.eye(n, order="F"), overwrite_b=True, check_finite=False)
    return Posterior(posterior @ reduced.right, posterior)


def averaged_posterior(
    reduced: Reduced, prior: GlowPrior, log_sizes: np.ndarray, pattern_covariance: np.ndarray
) -> Posterior:
    """Return unknowns and covariance averaged over the sizes that the frames do not tell apart.

    Few frames hardly know how large the parts of the glow are, and the likeliest sizes alone would claim too much. The
    average is over a star of sizes about them, each counting as much as it is likely.
    """
    least = evidence_loss(reduced, prior, log_sizes, pattern_covariance)
    central = posterior_of(reduced, prior, log_sizes, pattern_covariance)
    weights, found = [1.0], [central]
    for k in prior.free[~np.isin(prior.free, BENDS)]:
        for step in _AVERAGED_STEPS:
            sizes = log_sizes.copy()
            sizes[k] += step
            sizes = prior.clipped(sizes)
            if sizes[k] == log_sizes[k]:
                continue
            weight = float(np.exp(least - evidence_loss(reduced, prior, sizes, pattern_covariance)))
            if weight >= _LEAST_WEIGHT:
                weights.append(weight)
                found.append(posterior_of(reduced, prior, sizes, pattern_covariance))
    share = np.array(weights) / np.sum(weights)
    mean = np.zeros_like(central.unknowns)
    for w, posterior in zip(share, found, strict=True):
        mean += w * posterior.unknowns
    covariance = np.zeros_like(central.covariance)
    for w, posterior in zip(share, found, strict=True):
        away = posterior.unknowns - mean
        covariance += w * (posterior.covariance + np.outer(away, away))
    return Posterior(mean, covariance)
