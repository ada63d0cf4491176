"""One gain, offset, plane and surface per tile that make all tiles agree where they overlap. Arrays only.

All overlaps of all tiles are solved together (sparse, robust least squares), so that no error runs along a chain
of tiles and the result does not depend on any order.

Gauge, i.e. what overlaps cannot tell. (1) Level and scale of the whole mosaic: one anchor tile per connected part
keeps gain 1 and offset 0. (2) A plane over the whole mosaic: the same slope added to every tile, with offsets that
follow, changes no overlap. Weak priors decide: slopes are pulled to zero and offsets to their median, each in
proportion to how large they turn out to be, so that neither true differences of level tilt all tiles together nor
tilted tiles (a shared gradient of the instrument) make the levels climb like a staircase. (3) Gains in blank sky: gain
and offset cannot be told apart, and noise would imitate a gain; a gain is freed only where the overlaps hold real
signal contrast, and even then it is pulled to 1. (4) Surfaces: what was said of planes holds for curvature over the
whole mosaic, and a single strip of overlap knows the curvature along it but hardly that across it. Surfaces are pulled
to zero five times as strongly as planes: a term moves only where cells spread far enough to tell it from a plane,
what two neighbours differ by is shared between them, and light that all tiles see alike, such as a galaxy's, asks for
nothing. Their mean over the tiles is held much harder still. Otherwise slopes that happen to point outwards would be
saved by a bowl over the whole mosaic, which no overlap would contradict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import block_array, coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import splu

__all__ = ["OverlapSamples", "TileOptions", "TilePhotometry", "solve_tiles"]

# Parameters of a tile: gain - 1, offset, two slopes, three terms of second order.
_PLANE, _SURFACE = slice(2, 4), slice(4, 7)


@dataclass(frozen=True)
class OverlapSamples:
    """Block medians of two tiles at the same places of the sky.

    Attributes
    ----------
    i, j : int
        Tile numbers, different.
    uv_i, uv_j : ndarray, shape (n, 2)
        Block centres in each tile's normalised coordinates ``(u, t)`` in [-1, 1], as in
        `sources.CoaddSource.photometry`.
    values_i, values_j : ndarray, shape (C, n)
        Block medians; a block with NaN in either tile is ignored in that channel.
    weight : ndarray, shape (n,)
        Relative weight, in proportion to the inverse variance of the difference; 1 for an ordinary block.
    """

    i: int
    j: int
    uv_i: np.ndarray
    uv_j: np.ndarray
    values_i: np.ndarray
    values_j: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True)
class TileOptions:
    """What is solved and how strongly it is held.

    Attributes
    ----------
    fit_gain, fit_plane : bool
        Free gains (where there is contrast) and planes; offsets are always solved.
    fit_surface : bool
        Free terms of second order too, where the overlaps of a tile can tell them; needs `fit_plane`.
    gain_limits : tuple of float
        A gain outside is set to the limit and the rest solved again.
    gain_sigma : float
        Expected scatter of true gains around 1.
    gain_precision : float
        A gain is freed only if its tile's overlaps can measure it better than this.
    plane_prior : float
        Weight of the pull of slopes to 0 relative to the tile's data weight. Offsets are pulled to the median of
        their part of the mosaic with this weight times the ratio of the variances of slopes and offsets.
    surface_prior : float
        Weight of the pull of terms of second order to 0 relative to the tile's data weight: the mean square lever,
        in the units of the terms, from which on the data rule.
    shared_prior : float
        The same for the mean of each term of second order over the tiles of a part of the mosaic.
    surface_cells : float
        Sum of the weights of a tile's blocks from which on it may have a surface. The pull never gets weaker than
        for four times as many, so that few blocks cannot bend a tile by their noise.
    huber_sigma, bisquare_sigma : float
        In the first half of the rounds, residuals beyond this many robust sigmas count linearly; in the second
        half, weights fall to zero at `bisquare_sigma`.
    iterations : int
        Rounds of reweighting.
    """

    fit_gain: bool = True
    fit_plane: bool = True
    fit_surface: bool = False
    gain_limits: tuple[float, float] = (0.75, 1.25)
    gain_sigma: float = 0.05
    gain_precision: float = 0.02
    plane_prior: float = 1e-3
    surface_prior: float = 5e-3
    shared_prior: float = 1e-1
    surface_cells: float = 60.0
    huber_sigma: float = 1.5
    bisquare_sigma: float = 6.0
    iterations: int = 12


@dataclass(frozen=True)
class TilePhotometry:
    """The solution.

    Attributes
    ----------
    terms : ndarray, shape (T, C, 4), float64
        ``(gain, c0, cx, cy)`` in the form of `sources.CoaddSource.photometry`.
    surface : ndarray, shape (T, C, 3), float64
        ``(cuu, cut, ctt)``: what is added to a tile besides is ``cuu (u^2 - 1/3) + cut u t + ctt (t^2 - 1/3)``, ADU.
        Its mean over the square of u and t is 0, so that the level stays with ``c0``.
    pair_rms_before, pair_rms_after : ndarray, shape (P, C), float64
        Weighted rms difference of each overlap, without and with the terms; NaN without usable blocks.
    n_used : ndarray, shape (P, C), int64
        Usable blocks of each overlap.
    component : ndarray, shape (T,), int64
        Connected parts of the mosaic, 0 the largest; levels of different parts are not comparable.
    anchors : ndarray, shape (n_components,), int64
        The tile of each part whose gain is 1 and offset 0: the one with the largest total overlap weight.
    gain_freed, gain_limited : ndarray of bool, shape (T, C)
        Where a gain was solved, and where it ran into its limits.
    surface_freed : ndarray of bool, shape (T, C)
        Where terms of second order were solved; the rest have none.
    sigma : ndarray, shape (C,), float64
        Robust scatter of the differences of single blocks of weight 1 after correction.
    """

    terms: np.ndarray
    surface: np.ndarray
    pair_rms_before: np.ndarray
    pair_rms_after: np.ndarray
    n_used: np.ndarray
    component: np.ndarray
    anchors: np.ndarray
    gain_freed: np.ndarray
    gain_limited: np.ndarray
    surface_freed: np.ndarray
    sigma: np.ndarray


@dataclass(frozen=True)
class _Samples:
    """All overlaps of one channel, flat and sorted by pair; ``a`` is tile i, ``b`` tile j.

    ``basis`` holds the values of offset, slopes and, where they are solved, terms of second order.
    """

    pair: np.ndarray
    tile_a: np.ndarray
    tile_b: np.ndarray
    basis_a: np.ndarray
    basis_b: np.ndarray
    value_a: np.ndarray
    value_b: np.ndarray
    weight: np.ndarray
    n_pairs: int
    n_tiles: int


def solve_tiles(
    n_tiles: int,
    overlaps: Sequence[OverlapSamples],
    n_channels: int,
    *,
    options: TileOptions | None = None,
    anchor: int | None = None,
) -> TilePhotometry:
    """Solve the photometric terms of all tiles from all overlaps.

    Minimises, per channel, ``sum w rho(a_i(m_i) - a_j(m_j)) + priors`` with
    ``a(m) = m + (gain - 1) (m - sky) + c + cx u + cy t + surface(u, t)`` and Huber's ``rho``; see the module for the
    priors. The regressor of a gain is the mean of both tiles' corrected signal rather than the tile's own noisy
    value, because noise in the regressor would pull every gain down.

    Parameters
    ----------
    n_tiles, n_channels : int
    overlaps : sequence of OverlapSamples
    options : TileOptions, optional
    anchor : int, optional
        Anchor of the part of the mosaic this tile belongs to.

    Returns
    -------
    TilePhotometry
        Tiles without overlaps keep ``(1, 0, 0, 0)`` and are parts of their own.
    """
    options = options or TileOptions()
    order = 2 if options.fit_plane and options.fit_surface else 1
    channels = [_flatten(overlaps, c, n_tiles, order) for c in range(n_channels)]
    component, anchors = _parts(channels, overlaps, n_tiles, anchor)
    shape = (n_tiles, n_channels)
    terms = np.zeros((*shape, 4))
    terms[..., 0] = 1.0
    surface = np.zeros((*shape, 3))
    freed, limited, curved = (np.zeros(shape, dtype=bool) for _ in range(3))
    per_pair = (len(overlaps), n_channels)
    before, after, used = (
        np.full(per_pair, np.nan),
        np.full(per_pair, np.nan),
        np.zeros(per_pair, dtype=np.int64),
    )
    sigma = np.full(n_channels, np.nan)
    for c, samples in enumerate(channels):
        if len(samples.pair) == 0:
            continue
        theta, sky, freed[:, c], limited[:, c], sigma[c] = _solve_channel(
            samples, component, anchors, options
        )
        curved[:, c] = theta[:, _SURFACE].any(axis=1)
        surface[:, c, : theta.shape[1] - 4] = theta[:, _SURFACE]
        terms[:, c, 0] = 1.0 + theta[:, 0]
        terms[:, c, 1] = theta[:, 1] - theta[:, 0] * sky
        terms[:, c, 2:] = theta[:, _PLANE]
        before[:, c] = _pair_rms(samples, samples.value_a - samples.value_b)
        a, b = _corrected(samples, theta, sky)
        after[:, c] = _pair_rms(samples, a - b)
        used[:, c] = np.bincount(samples.pair, minlength=len(overlaps))
    return TilePhotometry(
        terms, surface, before, after, used, component, anchors, freed, limited, curved, sigma
    )


def _basis(uv: np.ndarray, order: int) -> np.ndarray:
    """Offset, slopes and terms of second order at (n, 2) places, (n, 3) or (n, 6)."""
    u, t = uv[:, 0], uv[:, 1]
    columns = [np.ones(len(uv)), u, t]
    if order == 2:
        columns += [u * u - 1 / 3, u * t, t * t - 1 / 3]
    return np.column_stack(columns)


def _flatten(overlaps: Sequence[OverlapSamples], channel: int, n_tiles: int, order: int) -> _Samples:
    columns: list[list[np.ndarray]] = [[] for _ in range(8)]
    for number, o in enumerate(overlaps):
        if o.i == o.j or not (0 <= o.i < n_tiles and 0 <= o.j < n_tiles):
            raise ValueError(f"overlap {number} joins tiles {o.i} and {o.j} of {n_tiles}")
        a, b = (np.asarray(v, dtype=np.float64)[channel] for v in (o.values_i, o.values_j))
        weight = np.asarray(o.weight, dtype=np.float64)
        ok = np.isfinite(a) & np.isfinite(b) & (weight > 0)
        n = int(ok.sum())
        parts = (
            np.full(n, number),
            np.full(n, o.i),
            np.full(n, o.j),
            _basis(np.asarray(o.uv_i, dtype=np.float64)[ok], order),
            _basis(np.asarray(o.uv_j, dtype=np.float64)[ok], order),
            a[ok],
            b[ok],
            weight[ok],
        )
        for column, part in zip(columns, parts, strict=True):
            column.append(part)
    if not overlaps:
        none = np.empty(0, dtype=np.int64)
        flat, basis = np.empty(0), np.empty((0, 3))
        return _Samples(none, none, none, basis, basis, flat, flat, flat, 0, n_tiles)
    return _Samples(*(np.concatenate(c) for c in columns), len(overlaps), n_tiles)


def _parts(channels, overlaps, n_tiles, anchor) -> tuple[np.ndarray, np.ndarray]:
    """Connected parts (largest first) and the best connected tile of each."""
    strength = np.zeros(n_tiles)
    linked = np.zeros(len(overlaps), dtype=bool)
    for samples in channels:
        strength += np.bincount(samples.tile_a, samples.weight, minlength=n_tiles)
        strength += np.bincount(samples.tile_b, samples.weight, minlength=n_tiles)
        linked[np.unique(samples.pair)] = True
    i = np.array([o.i for o in overlaps], dtype=np.int64)[linked]
    j = np.array([o.j for o in overlaps], dtype=np.int64)[linked]
    graph = coo_matrix((np.ones(len(i)), (i, j)), shape=(n_tiles, n_tiles))
    labels = connected_components(graph, directed=False)[1]
    found, first, counts = np.unique(labels, return_index=True, return_counts=True)
    rank = np.empty(len(found), dtype=np.int64)
    rank[np.lexsort((first, -counts))] = np.arange(len(found))
    component = rank[labels]
    anchors = np.zeros(len(found), dtype=np.int64)
    for k in range(len(found)):
        members = np.flatnonzero(component == k)
        anchors[k] = members[int(np.argmax(strength[members]))]
    if anchor is not None:
        anchors[component[anchor]] = anchor
    return component, anchors


def _solve_channel(samples: _Samples, component: np.ndarray, anchors: np.ndarray, options: TileOptions):
    sky = _tile_levels(samples)
    theta = np.zeros((samples.n_tiles, 1 + samples.basis_a.shape[1]))
    free = np.zeros(theta.shape, dtype=bool)
    free[:, 1] = True
    free[:, _PLANE] = options.fit_plane
    free[anchors, 1] = False
    limited = np.zeros(samples.n_tiles, dtype=bool)
    scatter = 1.0
    for iteration in range(options.iterations):
        if iteration == options.iterations // 3 and options.fit_gain:
            free[:, 0] = _has_contrast(samples, theta, sky, options)
            free[anchors, 0] = False
        # Planes first: while levels are far off, robust weights know nothing about curvature.
        if iteration == options.iterations // 3 and theta.shape[1] > 4:
            free[:, _SURFACE] = _has_lever(samples, options)[:, None]
        residual = np.sqrt(samples.weight) * np.subtract(*_corrected(samples, theta, sky))
        scatter = _robust_scatter(residual)
        size = np.abs(residual) / scatter
        if iteration < options.iterations // 2:
            robust = np.minimum(1.0, options.huber_sigma / np.maximum(size, 1e-12))
        else:
            robust = np.maximum(1.0 - (size / options.bisquare_sigma) ** 2, 0.0) ** 2
        theta = _step(samples, samples.weight * robust / scatter**2, theta, sky, free, component, options)
        low, high = options.gain_limits[0] - 1.0, options.gain_limits[1] - 1.0
        # Limits bind only once the solution has settled; a first step may overshoot.
        if iteration >= (2 * options.iterations) // 3:
            outside = free[:, 0] & ((theta[:, 0] < low) | (theta[:, 0] > high))
            theta[:, 0] = np.clip(theta[:, 0], low, high)
            free[outside, 0] = False
            limited |= outside
    return theta, sky, free[:, 0] | limited, limited, scatter


def _tile_levels(samples: _Samples) -> np.ndarray:
    """Median of all overlap blocks of each tile: the pivot that keeps gain and offset apart."""
    tile = np.concatenate([samples.tile_a, samples.tile_b])
    value = np.concatenate([samples.value_a, samples.value_b])
    order = np.lexsort((value, tile))
    start = np.searchsorted(tile[order], np.arange(samples.n_tiles))
    stop = np.searchsorted(tile[order], np.arange(samples.n_tiles), side="right")
    level = np.zeros(samples.n_tiles)
    has = stop > start
    low, high = (start + (stop - start - 1) // 2)[has], (start + (stop - start) // 2)[has]
    level[has] = 0.5 * (value[order][low] + value[order][high])
    return level


def _corrected(samples: _Samples, theta: np.ndarray, sky: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    def side(tile: np.ndarray, basis: np.ndarray, value: np.ndarray) -> np.ndarray:
        p = theta[tile]
        return value + p[:, 0] * (value - sky[tile]) + np.einsum("np,np->n", p[:, 1:], basis)

    return (
        side(samples.tile_a, samples.basis_a, samples.value_a),
        side(samples.tile_b, samples.basis_b, samples.value_b),
    )


def _robust_scatter(residual: np.ndarray) -> float:
    # The floor only prevents a division by zero on noiseless input.
    return max(1.4826 * float(np.median(np.abs(residual))), 1e-6 * float(np.abs(residual).max()), 1e-9)


def _step(samples: _Samples, weight, theta, sky, free, component, options) -> np.ndarray:
    """One Gauss-Newton step with given weights; returns the new parameters."""
    a, b = _corrected(samples, theta, sky)
    common = 0.5 * (a + b)
    design = np.concatenate(
        [
            _design_side(common, samples.tile_a, samples.basis_a, theta, sky),
            -_design_side(common, samples.tile_b, samples.basis_b, theta, sky),
        ],
        axis=1,
    )
    matrix, right = _normal_equations(samples, design, weight, a - b)
    information = np.bincount(samples.tile_a, weight, minlength=samples.n_tiles)
    information += np.bincount(samples.tile_b, weight, minlength=samples.n_tiles)
    least = 4.0 * options.surface_cells * float(np.max(weight / samples.weight))
    prior, target = _priors(theta, information, least, component, options)
    right -= (prior * (theta - target)).ravel()
    unknown = np.flatnonzero(free.ravel())
    delta = np.zeros(theta.size)
    if len(unknown):
        system = matrix.tocsc()[unknown][:, unknown] + _diagonal(prior.ravel()[unknown])
        members, strength = _shared_terms(theta, free, np.maximum(information, least), component, options)
        right -= members @ (strength * (members.T @ theta.ravel()))
        # A border stands for the dense matrix ``members strength members^T``.
        members = members[unknown]
        system = block_array([[system, members], [members.T, _diagonal(-1.0 / strength)]])
        border = np.zeros(len(strength))
        delta[unknown] = splu(system.tocsc()).solve(np.concatenate([right[unknown], border]))[: len(unknown)]
    return theta + delta.reshape(theta.shape)


def _shared_terms(theta, free, information, component, options):
    """Membership (parameters x K) of the sums that are held at zero, and how strongly (K,).

    One sum per part of the mosaic and term of second order.
    """
    tiles, terms = np.nonzero(free[:, _SURFACE])
    sums, column, count = np.unique(3 * component[tiles] + terms, return_inverse=True, return_counts=True)
    mean = np.bincount(column, information[tiles], minlength=len(sums)) / count
    row = theta.shape[1] * tiles + _SURFACE.start + terms
    members = coo_matrix((np.ones(len(row)), (row, column)), shape=(theta.size, len(sums))).tocsc()
    return members, options.shared_prior * mean / count


def _priors(theta, information, least, component, options) -> tuple[np.ndarray, np.ndarray]:
    """Weights and targets of the pull on every parameter, (T, 4) each; see the module for why."""
    # A tile almost without data still needs a prior of the usual size.
    information = np.maximum(information, information[information > 0].mean())
    target = np.zeros_like(theta)
    for k in range(int(component.max()) + 1):
        target[component == k, 1] = np.median(theta[component == k, 1])
    slopes, offsets = np.mean(theta[:, _PLANE] ** 2), np.mean((theta[:, 1] - target[:, 1]) ** 2)
    # Equal at the start; the lower bound only keeps the system regular.
    ratio = 1.0 if not theta.any() else float(np.clip(slopes / max(offsets, 1e-300), 1e-8, 1.0))
    prior = np.empty_like(theta)
    prior[:, 0] = 1.0 / options.gain_sigma**2
    prior[:, 1] = ratio * options.plane_prior * information if options.fit_plane else 1e-12 * information
    prior[:, _PLANE] = options.plane_prior * information[:, None]
    prior[:, _SURFACE] = options.surface_prior * np.maximum(information, least)[:, None]
    return prior, target


def _design_side(common, tile, basis, theta, sky) -> np.ndarray:
    p = theta[tile]
    signal = (common - sky[tile] - np.einsum("np,np->n", p[:, 1:], basis)) / (1.0 + p[:, 0])
    return np.column_stack([signal, basis])


def _normal_equations(samples: _Samples, design, weight, residual):
    """Sum one block per pair, then scatter them to a sparse matrix over all tiles and a right-hand side."""
    present, start, count = np.unique(samples.pair, return_index=True, return_counts=True)
    width = design.shape[1]
    blocks, gradient = np.empty((len(present), width, width)), np.empty((len(present), width))
    for k, (first, n) in enumerate(zip(start, count, strict=True)):
        rows = slice(first, first + n)
        weighted = design[rows] * weight[rows, None]
        blocks[k] = weighted.T @ design[rows]
        gradient[k] = weighted.T @ residual[rows]
    number = np.arange(width // 2)
    index = np.concatenate(
        [len(number) * tile[start][:, None] + number for tile in (samples.tile_a, samples.tile_b)], axis=1
    )
    rows = np.repeat(index, width, axis=1).ravel()
    cols = np.tile(index, (1, width)).ravel()
    size = len(number) * samples.n_tiles
    matrix = coo_matrix((blocks.ravel(), (rows, cols)), shape=(size, size))
    return matrix, -np.bincount(index.ravel(), gradient.ravel(), minlength=size)


def _diagonal(values: np.ndarray):
    n = np.arange(len(values))
    return coo_matrix((values, (n, n)), shape=(len(values),) * 2).tocsc()


def _has_contrast(samples: _Samples, theta, sky, options) -> np.ndarray:
    """Which tiles' overlaps hold enough signal, beyond planes and noise, to measure a gain."""
    a, b = _corrected(samples, theta, sky)
    residual, common = a - b, 0.5 * (a + b)
    scatter = _robust_scatter(np.sqrt(samples.weight) * residual)
    _, start, count = np.unique(samples.pair, return_index=True, return_counts=True)
    information = np.zeros(samples.n_tiles)
    for first, n in zip(start, count, strict=True):
        if n < 8:
            continue
        rows = slice(first, first + n)
        root = np.sqrt(samples.weight[rows])
        # Weights apply on both sides, so a smooth sky inside the overlap is not mistaken for signal.
        smooth = np.linalg.qr(root[:, None] * samples.basis_a[rows])[0]
        signal = root * common[rows]
        signal = signal - smooth @ (smooth.T @ signal)
        noise = 0.25 * scatter**2 * n
        power = float(signal @ signal) - noise
        if power > 2.0 * noise:
            information[samples.tile_a[first]] += power / scatter**2
            information[samples.tile_b[first]] += power / scatter**2
    return information >= 1.0 / options.gain_precision**2


def _has_lever(samples: _Samples, options) -> np.ndarray:
    """Which tiles have enough blocks, spread far enough, that terms of second order differ from a plane, (T,)."""
    width = samples.basis_a.shape[1]
    moments = np.zeros((samples.n_tiles, width, width))
    _, start, count = np.unique(samples.pair, return_index=True, return_counts=True)
    for first, n in zip(start, count, strict=True):
        rows = slice(first, first + n)
        for tile, basis in ((samples.tile_a, samples.basis_a), (samples.tile_b, samples.basis_b)):
            moments[tile[first]] += basis[rows].T @ (samples.weight[rows, None] * basis[rows])
    cells = moments[:, 0, 0]
    plane = moments[:, :3, :3] + 1e-9 * np.maximum(cells, 1e-9)[:, None, None] * np.eye(3)
    mixed = moments[:, :3, 3:]
    own = moments[:, 3:, 3:] - mixed.transpose(0, 2, 1) @ np.linalg.solve(plane, mixed)
    strongest = np.linalg.eigvalsh(own)[:, -1]
    pull = options.surface_prior * np.maximum(cells, 4.0 * options.surface_cells)
    return (cells >= options.surface_cells) & (strongest >= pull)


def _pair_rms(samples: _Samples, residual: np.ndarray) -> np.ndarray:
    weight = np.bincount(samples.pair, samples.weight, minlength=samples.n_pairs)
    square = np.bincount(samples.pair, samples.weight * residual**2, minlength=samples.n_pairs)
    return np.sqrt(np.divide(square, weight, out=np.full(samples.n_pairs, np.nan), where=weight > 0))
