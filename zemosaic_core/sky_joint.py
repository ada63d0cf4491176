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
from functools import cached_property

import numpy as np
from scipy.linalg import LinAlgError, cholesky, solve_triangular
from scipy.linalg.blas import dtrmm
from scipy.linalg.lapack import dpotri

from .glow_prior import BENDS, GlowPrior
from .sky_elimination import (
    NodeOrder,
    SkyFactor,
    add_products,
    left_of_cells,
    less_square,
    mirror,
    node_order,
)
from .sky_lattice import SkyLattice

__all__ = [
    "Equations",
    "JointProblem",
    "Posterior",
    "Reduced",
    "SkyCells",
    "averaged_posterior",
    "evidence_loss",
    "full_covariance",
    "inverse_of_lower",
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
    frame : ndarray, shape (K,), int64, ascending
        Row of the frame among ``n_frames``.
    value : ndarray, shape (K,), float64
        Sky of the cell on the common flux scale, ADU.
    sigma : ndarray, shape (K,), float64
        Its noise, ADU; only ratios matter.
    cell : ndarray, shape (K,), int64
        Its place among the Q of the detector.
    on_detector : ndarray, shape (Q, 3 + P + S + 3), float64
        At each of them ``basis``, ``patterns``, ``products`` and ``curvature``.
    n_patterns, n_products : int
        P and S; S may be 0.
    light : ndarray, shape (N,), float64
        Light of each frame over the median of all.
    lattice : SkyLattice
        Of the positions of all cells.
    session : ndarray, shape (N,), int64
        Session of each frame.
    """

    frame: np.ndarray
    value: np.ndarray
    sigma: np.ndarray
    cell: np.ndarray
    on_detector: np.ndarray
    n_patterns: int
    n_products: int
    light: np.ndarray
    lattice: SkyLattice
    session: np.ndarray

    @property
    def n_frames(self) -> int:
        """Number of frames."""
        return len(self.light)

    @property
    def basis(self) -> np.ndarray:
        """1, u and v of each cell, shape (K, 3)."""
        return self._columns(0, 3)

    @property
    def patterns(self) -> np.ndarray:
        """Detector patterns, each proportional to the light and constant, shape (K, P)."""
        return self._columns(3, self.n_patterns)

    @property
    def products(self) -> np.ndarray:
        """What the frames of a session may have in common on the detector (`detector_surface.products`), (K, S)."""
        return self._columns(3 + self.n_patterns, self.n_products)

    @property
    def curvature(self) -> np.ndarray:
        """The products of second order, for single frames, shape (K, 3)."""
        return self._columns(3 + self.n_patterns + self.n_products, 3)

    def _columns(self, first: int, n: int) -> np.ndarray:
        return np.asarray(self.on_detector[self.cell, first : first + n])


@dataclass(frozen=True)
class Equations:
    """Normal equations ``normal x = right`` after the sky is eliminated; the last 3 N unknowns are curvatures.

    These come order by order: of the first product of second order the N of all frames, then of the next.

    Attributes
    ----------
    normal : ndarray, shape (U, U)
    right : ndarray, shape (U,)
    n_bends : int
        How many unknowns are curvatures.
    order : NodeOrder
    factor : SkyFactor
        ``L`` of the matrix of the sky.
    whitened : ndarray, shape (M, U + 1)
        Products of the lattice with all unknowns and, last, with the values of the cells; ``L^-1`` of them. So
        ``sky = L^-T (whitened[:, -1] - whitened[:, :-1] x)``.
    """

    normal: np.ndarray
    right: np.ndarray
    n_bends: int
    order: NodeOrder
    factor: SkyFactor
    whitened: np.ndarray

    def sky(self, unknowns: np.ndarray) -> np.ndarray:
        """Return the sky on the nodes, shape (M,), for values of all unknowns (U,)."""
        left = self.whitened[:, -1] - self.whitened[:, :-1] @ unknowns
        sky = np.empty(len(left))
        sky[self.order.nodes] = self.factor.unwhiten(left[:, None])[:, 0]
        return sky

    def of_sky(self, functionals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return how linear functionals of the sky follow from the unknowns: ``c - d x``.

        Parameters
        ----------
        functionals : ndarray, shape (F, M), float64

        Returns
        -------
        c, d : ndarray, shape (F,) and (F, U)
        """
        whitened = self.factor.whiten(np.ascontiguousarray(functionals[:, self.order.nodes].T))
        found = whitened.T @ self.whitened
        return found[:, -1], found[:, :-1]

    def sky_noise(self, functionals: np.ndarray) -> np.ndarray:
        """Return the covariance (F, F) of linear functionals (F, M) of the sky once all unknowns are known."""
        whitened = self.factor.whiten(np.ascontiguousarray(functionals[:, self.order.nodes].T))
        return np.asarray(whitened.T @ whitened)

    def reduced(self, root: np.ndarray) -> Reduced:
        """Eliminate the curvatures.

        Parameters
        ----------
        root : ndarray, shape (N, N), float64
            Square root of the prior covariance of the curvatures between frames, ADU (``root root^T``).
        """
        n, size = len(self.right) - self.n_bends, len(root)
        parts = [slice(n + k * size, n + (k + 1) * size) for k in range(self.n_bends // size)]
        across, bends = np.empty((self.n_bends, n)), np.empty((self.n_bends, self.n_bends))
        for k, part in enumerate(parts):
            np.matmul(root.T, self.normal[part, :n], out=across[k * size : (k + 1) * size])
            for j, other in enumerate(parts):
                bends[k * size : (k + 1) * size, j * size : (j + 1) * size] = (
                    root.T @ self.normal[part, other] @ root
                )
        bends[np.diag_indices_from(bends)] += 1.0
        factor = cholesky(bends, lower=True, check_finite=False)
        # With z of unit covariance, open = L^-T z: L^-1 whitens what the frames and the prior say.
        whitened = solve_triangular(factor, across, lower=True, check_finite=False)
        pulled = np.concatenate([root.T @ self.right[part] for part in parts])
        right = solve_triangular(factor, pulled, lower=True, check_finite=False)
        return Reduced(
            normal=self.normal[:n, :n] - whitened.T @ whitened,
            right=self.right[:n] - whitened.T @ right,
            loss=float(np.log(np.diag(factor)).sum() - 0.5 * right @ right),
            equations=self,
            root=root,
            factor=factor,
            whitened=whitened,
            whitened_right=right,
        )


@dataclass(frozen=True)
class Reduced:
    """Normal equations ``normal x = right`` of glow and patterns, and how sky and curvature follow from ``x``.

    Both follow from ``x`` and ``z``, which holds as many standard normal numbers as there are curvatures: what is open
    of these once ``x`` is known.

    Attributes
    ----------
    loss : float
        Minus the logarithm of the marginal likelihood of the curvatures, up to a constant.
    equations : Equations
        From which the curvatures were eliminated.
    root, factor, whitened, whitened_right : ndarray
        Their prior and how they were (`Equations.reduced`).
    """

    normal: np.ndarray
    right: np.ndarray
    loss: float
    equations: Equations
    root: np.ndarray
    factor: np.ndarray
    whitened: np.ndarray
    whitened_right: np.ndarray

    @cached_property
    def open_bend(self) -> np.ndarray:
        """What ``z`` adds to the curvatures, (3 N, 3 N)."""
        full = np.kron(np.eye(len(self.factor) // len(self.root)), self.root)
        return np.asarray(solve_triangular(self.factor, full.T, lower=True, check_finite=False).T)

    def curvature(self, unknowns: np.ndarray, open_: np.ndarray | None = None) -> np.ndarray:
        """Return the curvatures of the frames, ADU, shape (N, 3); ``open_`` is ``z``, zeros unless given."""
        return np.asarray(self._bends(unknowns, open_).reshape(-1, len(self.root)).T)

    def sky(self, unknowns: np.ndarray, open_: np.ndarray | None = None) -> np.ndarray:
        """Return the sky on the nodes, shape (M,); ``open_`` is ``z``, zeros unless given."""
        return self.equations.sky(np.concatenate([unknowns, self._bends(unknowns, open_)]))

    def of_sky(self, functionals: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return how linear functionals (F, M) of the sky follow: ``c - d x - e z``.

        Returns
        -------
        c, d, e : ndarray, shape (F,), (F, X) and (F, Z)
        """
        n = len(self.right)
        constant, onto = self.equations.of_sky(functionals)
        open_ = onto[:, n:] @ self.open_bend
        return constant - open_ @ self.whitened_right, onto[:, :n] - open_ @ self.whitened, open_

    def _bends(self, unknowns: np.ndarray, open_: np.ndarray | None) -> np.ndarray:
        whitened = self.whitened_right - self.whitened @ unknowns
        return np.asarray(self.open_bend @ (whitened if open_ is None else whitened + open_))


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
        self._columns, self._n_unknowns = _unknowns_of_frames(cells)
        self._terms = (*_terms_on_detector(cells), cells.cell, cells.value)
        self._starts = np.searchsorted(cells.frame, np.arange(cells.n_frames + 1))
        weights = cells.lattice.weights
        self._cells = weights.indptr, weights.indices, weights.data
        self._order = node_order(cells.lattice)
        self._pairs = cells.lattice.differences.indices.reshape(-1, 2)
        self._pull = _SMOOTHNESS * float(np.median(self._noise_weight))
        self.hits = np.asarray(weights.sum(axis=0)).ravel()

    def equations(self) -> Equations:
        """Eliminate the sky with the weights of now."""
        factor = SkyFactor(self._order, self._cells, self.weight, self._pairs, self._pull)
        n = self._n_unknowns
        cross, normal = np.zeros((len(self.hits), n + 1)), np.zeros((n + 1, n + 1))
        add_products(
            self._starts, self._columns, self._terms, self._cells, self._order.place, self.weight, cross, normal
        )  # fmt: skip
        whitened = factor.whiten(cross)
        normal = less_square(normal, whitened)
        return Equations(
            normal[:n, :n], normal[n, :n].copy(), 3 * self.cells.n_frames, self._order, factor, whitened
        )

    def residual(self, sky: np.ndarray, unknowns: np.ndarray, curvature: np.ndarray) -> np.ndarray:
        """Return what the model leaves of each cell, ADU, shape (K,)."""
        everything = np.concatenate([unknowns, curvature.T.ravel()])
        return np.asarray(
            left_of_cells(self._starts, self._columns, self._terms, self._cells, sky, everything)
        )

    def robust_weight(self, sky: np.ndarray, residual: np.ndarray) -> np.ndarray:
        """Return how much each cell counts by what a sky (M,) leaves of it (K,), shape (K,)."""
        in_noise = np.abs(residual) * np.sqrt(self._noise_weight)
        scatter = max(1.4826 * float(np.median(in_noise)), 1e-9)
        structure = _STRUCTURE_SHARE * (self.cells.lattice.weights @ self.cells.lattice.roughness(sky))
        variance = (_SCATTER_FACTOR * scatter) ** 2 / self._noise_weight + structure**2
        return np.asarray(np.minimum(1.0, _HUBER_SIGMA * scatter / np.maximum(in_noise, 1e-12)) / variance)

    def reweigh(self, sky: np.ndarray, unknowns: np.ndarray, curvature: np.ndarray) -> np.ndarray:
        """Set robust weights from the residuals of a solution; return the residuals."""
        residual = self.residual(sky, unknowns, curvature)
        self.weight = self.robust_weight(sky, residual)
        return residual


def _unknowns_of_frames(cells: SkyCells) -> tuple[np.ndarray, int]:
    """Return the terms that the cells of each frame have, ascending, (N, T) int64, and how many unknowns there are.

    The terms are unknowns, 3 N + 2 P + sessions S + 3 N in all, and the last one is the value of the cell.
    """
    n, n_patterns, n_products = cells.n_frames, cells.n_patterns, cells.n_products
    three = 3 * np.arange(n)[:, None] + np.arange(3)
    patterns = np.broadcast_to(3 * n + np.arange(2 * n_patterns), (n, 2 * n_patterns))
    start = 3 * n + 2 * n_patterns
    own = start + n_products * cells.session[:, None] + np.arange(n_products)
    start += (int(cells.session.max(initial=-1)) + 1) * n_products
    bends = start + np.arange(n)[:, None] + n * np.arange(3)
    value = np.full((n, 1), start + 3 * n)
    return np.hstack([three, patterns, own, bends, value]), start + 3 * n


def _terms_on_detector(cells: SkyCells) -> tuple[np.ndarray, np.ndarray]:
    """Return what each unknown of a frame adds at each place of the detector, and times what in each frame."""
    sides = np.cumsum([3, cells.n_patterns, cells.n_products])
    basis, patterns, products, curvature = np.hsplit(cells.on_detector, sides)
    table = np.hstack([basis, patterns, patterns, products, curvature])
    is_lit = np.repeat(
        [False, True, False, True, False], [3, cells.n_patterns, cells.n_patterns, cells.n_products, 3]
    )
    return np.ascontiguousarray(table), np.where(is_lit, cells.light[:, None], 1.0)


def full_covariance(
    prior: GlowPrior, log_sizes: np.ndarray, pattern_covariance: np.ndarray, fixed: np.ndarray | None = None
) -> np.ndarray:
    """Return the prior covariance of all unknowns: glow of the frames, the patterns, products of the sessions."""
    n, n_patterns = 3 * prior.n_frames, len(pattern_covariance)
    of_sessions = prior.session_variance(log_sizes)
    total = np.zeros((n + n_patterns + len(of_sessions),) * 2, order="F")
    total[:n, :n] = prior.covariance(log_sizes, fixed)
    total[n : n + n_patterns, n : n + n_patterns] = pattern_covariance
    where = np.arange(n + n_patterns, len(total))
    total[where, where] = of_sessions
    return total


def evidence_loss(
    reduced: Reduced,
    prior: GlowPrior,
    log_sizes: np.ndarray,
    pattern_covariance: np.ndarray,
    fixed: np.ndarray | None = None,
) -> float:
    """Return minus the logarithm of the marginal likelihood, up to a constant, plus what is believed of the sizes."""
    try:
        covariance = full_covariance(prior, log_sizes, pattern_covariance, fixed)
        root = cholesky(covariance, lower=True, check_finite=False)
        # root^T normal root, of triangles.
        inner = dtrmm(
            1.0, root, dtrmm(1.0, root, reduced.normal, side=1, lower=1), side=0, trans_a=1, lower=1
        )
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
    # The tables are large: each becomes the next where it is, by its lower half.
    table = full_covariance(prior, log_sizes, pattern_covariance)
    table = inverse_of_lower(table)
    table += reduced.normal
    table = inverse_of_lower(table)
    mirror(table)
    return Posterior(table @ reduced.right, table)


def inverse_of_lower(table: np.ndarray) -> np.ndarray:
    """Return the inverse of a positive matrix; of both the lower half counts, and the place may be the same."""
    factor = cholesky(table, lower=True, overwrite_a=True, check_finite=False)
    return np.asarray(dpotri(factor, lower=1, overwrite_c=1)[0])


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
