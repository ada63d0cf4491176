"""One gain, offset and plane per tile that make all tiles agree where they overlap. Arrays only.

All overlaps of all tiles are solved together (sparse, robust least squares), so that no error runs along a chain
of tiles and the result does not depend on any order.

Gauge, i.e. what overlaps cannot tell. (1) Level and scale of the whole mosaic: one anchor tile per connected part
keeps gain 1 and offset 0. (2) A plane over the whole mosaic: the same slope added to every tile, with offsets that
follow, changes no overlap. Weak priors decide: slopes are pulled to zero and offsets to their median, each in
proportion to how large they turn out to be, so that neither true differences of level tilt all tiles together nor
tilted tiles (a shared gradient of the instrument) make the levels climb like a staircase. (3) Gains in blank sky: gain
and offset cannot be told apart, and noise would imitate a gain; a gain is freed only where the overlaps hold real
signal contrast, and even then it is pulled to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import splu

__all__ = ["OverlapSamples", "TileOptions", "TilePhotometry", "solve_tiles"]


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
        Relative weight, for instance the number of pixels in the block over its largest possible number.
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
    gain_limits : tuple of float
        A gain outside is set to the limit and the rest solved again.
    gain_sigma : float
        Expected scatter of true gains around 1.
    gain_precision : float
        A gain is freed only if its tile's overlaps can measure it better than this.
    plane_prior : float
        Weight of the pull of slopes to 0 relative to the tile's data weight. Offsets are pulled to the median of
        their part of the mosaic with this weight times the ratio of the variances of slopes and offsets.
    huber_sigma, bisquare_sigma : float
        In the first half of the rounds, residuals beyond this many robust sigmas count linearly; in the second
        half, weights fall to zero at `bisquare_sigma`.
    iterations : int
        Rounds of reweighting.
    """

    fit_gain: bool = True
    fit_plane: bool = True
    gain_limits: tuple[float, float] = (0.75, 1.25)
    gain_sigma: float = 0.05
    gain_precision: float = 0.02
    plane_prior: float = 1e-3
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
    sigma : ndarray, shape (C,), float64
        Robust scatter of the differences of single blocks after correction.
    """

    terms: np.ndarray
    pair_rms_before: np.ndarray
    pair_rms_after: np.ndarray
    n_used: np.ndarray
    component: np.ndarray
    anchors: np.ndarray
    gain_freed: np.ndarray
    gain_limited: np.ndarray
    sigma: np.ndarray


@dataclass(frozen=True)
class _Samples:
    """All overlaps of one channel, flat and sorted by pair; ``a`` is tile i, ``b`` tile j."""

    pair: np.ndarray
    tile_a: np.ndarray
    tile_b: np.ndarray
    uv_a: np.ndarray
    uv_b: np.ndarray
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
    ``a(m) = m + (gain - 1) (m - sky) + c + cx u + cy t`` and Huber's ``rho``; see the module for the priors. The
    regressor of a gain is the mean of both tiles' corrected signal rather than the tile's own noisy value, because
    noise in the regressor would pull every gain down.

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
    channels = [_flatten(overlaps, c, n_tiles) for c in range(n_channels)]
    component, anchors = _parts(channels, overlaps, n_tiles, anchor)
    shape = (n_tiles, n_channels)
    terms = np.zeros((*shape, 4))
    terms[..., 0] = 1.0
    freed, limited = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
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
        terms[:, c, 0] = 1.0 + theta[:, 0]
        terms[:, c, 1] = theta[:, 1] - theta[:, 0] * sky
        terms[:, c, 2:] = theta[:, 2:]
        before[:, c] = _pair_rms(samples, samples.value_a - samples.value_b)
        a, b = _corrected(samples, theta, sky)
        after[:, c] = _pair_rms(samples, a - b)
        used[:, c] = np.bincount(samples.pair, minlength=len(overlaps))
    return TilePhotometry(terms, before, after, used, component, anchors, freed, limited, sigma)


def _flatten(overlaps: Sequence[OverlapSamples], channel: int, n_tiles: int) -> _Samples:
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
            np.asarray(o.uv_i, dtype=np.float64)[ok],
            np.asarray(o.uv_j, dtype=np.float64)[ok],
            a[ok],
            b[ok],
            weight[ok],
        )
        for column, part in zip(columns, parts, strict=True):
            column.append(part)
    if not overlaps:
        none = np.empty(0, dtype=np.int64)
        flat, pairs = np.empty(0), np.empty((0, 2))
        return _Samples(none, none, none, pairs, pairs, flat, flat, flat, 0, n_tiles)
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
    theta = np.zeros((samples.n_tiles, 4))
    free = np.zeros((samples.n_tiles, 4), dtype=bool)
    free[:, 1] = True
    free[:, 2:] = options.fit_plane
    free[anchors, 1] = False
    limited = np.zeros(samples.n_tiles, dtype=bool)
    scatter = 1.0
    for iteration in range(options.iterations):
        if iteration == options.iterations // 3 and options.fit_gain:
            free[:, 0] = _has_contrast(samples, theta, sky, options)
            free[anchors, 0] = False
        residual = np.subtract(*_corrected(samples, theta, sky))
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
    def side(tile: np.ndarray, uv: np.ndarray, value: np.ndarray) -> np.ndarray:
        p = theta[tile]
        return value + p[:, 0] * (value - sky[tile]) + p[:, 1] + p[:, 2] * uv[:, 0] + p[:, 3] * uv[:, 1]

    return (
        side(samples.tile_a, samples.uv_a, samples.value_a),
        side(samples.tile_b, samples.uv_b, samples.value_b),
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
            _design_side(common, samples.tile_a, samples.uv_a, theta, sky),
            -_design_side(common, samples.tile_b, samples.uv_b, theta, sky),
        ],
        axis=1,
    )
    matrix, right = _normal_equations(samples, design, weight, a - b)
    information = np.bincount(samples.tile_a, weight, minlength=samples.n_tiles)
    information += np.bincount(samples.tile_b, weight, minlength=samples.n_tiles)
    prior, target = _priors(theta, information, component, options)
    right -= (prior * (theta - target)).ravel()
    unknown = np.flatnonzero(free.ravel())
    delta = np.zeros(theta.size)
    if len(unknown):
        system = matrix.tocsc()[unknown][:, unknown] + _diagonal(prior.ravel()[unknown])
        delta[unknown] = splu(system.tocsc()).solve(right[unknown])
    return theta + delta.reshape(theta.shape)


def _priors(theta, information, component, options) -> tuple[np.ndarray, np.ndarray]:
    """Weights and targets of the pull on every parameter, (T, 4) each; see the module for why."""
    # A tile almost without data still needs a prior of the usual size.
    information = np.maximum(information, information[information > 0].mean())
    target = np.zeros_like(theta)
    for k in range(int(component.max()) + 1):
        target[component == k, 1] = np.median(theta[component == k, 1])
    slopes, offsets = np.mean(theta[:, 2:] ** 2), np.mean((theta[:, 1] - target[:, 1]) ** 2)
    # Equal at the start; the lower bound only keeps the system regular.
    ratio = 1.0 if not theta.any() else float(np.clip(slopes / max(offsets, 1e-300), 1e-8, 1.0))
    prior = np.empty_like(theta)
    prior[:, 0] = 1.0 / options.gain_sigma**2
    prior[:, 1] = ratio * options.plane_prior * information if options.fit_plane else 1e-12 * information
    prior[:, 2:] = options.plane_prior * information[:, None]
    return prior, target


def _design_side(common, tile, uv, theta, sky) -> np.ndarray:
    p = theta[tile]
    signal = (common - sky[tile] - p[:, 1] - p[:, 2] * uv[:, 0] - p[:, 3] * uv[:, 1]) / (1.0 + p[:, 0])
    return np.column_stack([signal, np.ones(len(tile)), uv])


def _normal_equations(samples: _Samples, design, weight, residual):
    """Sum 8 x 8 blocks per pair, then scatter them to a sparse (4 T, 4 T) matrix and a right-hand side."""
    present, start = np.unique(samples.pair, return_index=True)
    blocks = np.empty((len(present), 8, 8))
    for p in range(8):
        weighted = weight * design[:, p]
        for q in range(p, 8):
            blocks[:, p, q] = blocks[:, q, p] = np.add.reduceat(weighted * design[:, q], start)
    gradient = np.stack([np.add.reduceat(weight * design[:, p] * residual, start) for p in range(8)], axis=1)
    number = np.arange(4)
    index = np.concatenate(
        [4 * samples.tile_a[start][:, None] + number, 4 * samples.tile_b[start][:, None] + number], axis=1
    )
    rows = np.repeat(index, 8, axis=1).ravel()
    cols = np.tile(index, (1, 8)).ravel()
    size = 4 * samples.n_tiles
    matrix = coo_matrix((blocks.ravel(), (rows, cols)), shape=(size, size))
    return matrix, -np.bincount(index.ravel(), gradient.ravel(), minlength=size)


def _diagonal(values: np.ndarray):
    n = np.arange(len(values))
    return coo_matrix((values, (n, n)), shape=(len(values),) * 2).tocsc()


def _has_contrast(samples: _Samples, theta, sky, options) -> np.ndarray:
    """Which tiles' overlaps hold enough signal, beyond planes and noise, to measure a gain."""
    a, b = _corrected(samples, theta, sky)
    residual, common = a - b, 0.5 * (a + b)
    scatter = _robust_scatter(residual)
    _, start, count = np.unique(samples.pair, return_index=True, return_counts=True)
    information = np.zeros(samples.n_tiles)
    for first, n in zip(start, count, strict=True):
        if n < 8:
            continue
        rows = slice(first, first + n)
        root = np.sqrt(samples.weight[rows])
        # Weights apply on both sides, so a plane of the sky inside the overlap is not mistaken for signal.
        plane = np.linalg.qr(root[:, None] * np.column_stack([np.ones(n), samples.uv_a[rows]]))[0]
        signal = root * common[rows]
        signal = signal - plane @ (plane.T @ signal)
        noise = 0.25 * scatter**2 * samples.weight[rows].sum()
        power = float(signal @ signal) - noise
        if power > 2.0 * noise:
            information[samples.tile_a[first]] += power / scatter**2
            information[samples.tile_b[first]] += power / scatter**2
    return information >= 1.0 / options.gain_precision**2


def _pair_rms(samples: _Samples, residual: np.ndarray) -> np.ndarray:
    weight = np.bincount(samples.pair, samples.weight, minlength=samples.n_pairs)
    square = np.bincount(samples.pair, samples.weight * residual**2, minlength=samples.n_pairs)
    return np.sqrt(np.divide(square, weight, out=np.full(samples.n_pairs, np.nan), where=weight > 0))
