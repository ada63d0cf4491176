"""Bring the frames of one group on a common sky: gain, offset and plane per frame. Arrays only.

The sky of a group is modelled on a coarse lattice of the tile plane, together with one offset and plane per
frame. Only differences between frames are removed: level and gradient that all frames share, above all nebulae
and galaxies, stay, and so do the typical level and gradient of the best frames (the half with the least noise
on the common scale).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import LinearOperator, cg

from .errors import SettingsError
from .sky_lattice import bilinear_lattice, cell_spacing_px

__all__ = [
    "METHODS",
    "GroupNormalisation",
    "Method",
    "best_frames",
    "mesh_uv",
    "normalise_group",
    "solve_group",
]

Method = Literal["none", "linear_fit", "sky_mean", "levels"]
METHODS: tuple[Method, ...] = ("none", "linear_fit", "sky_mean", "levels")

# A plane needs three cells; this many leave room for robust weights.
_MIN_CELLS = 6
_HUBER_SIGMA = 1.5
# Weight, relative to the median cell, of the pull between neighbouring lattice nodes: it only fills nodes that
# hardly any cell touches.
_SMOOTHNESS = 1e-4
# Relative weight of the pull of frame planes to zero: decides only what the overlaps leave open.
_PLANE_PRIOR = 1e-5


@dataclass(frozen=True)
class GroupNormalisation:
    """Photometric terms of a group and how well they work.

    Attributes
    ----------
    terms : ndarray, shape (N, C, 4), float32
        ``(gain, c0, cx, cy)`` in the form of `sources.CoaddSource.photometry`.
    rms_before, rms_after : ndarray, shape (N, C), float64
        Rms difference between the frame's mesh and the common sky, with its gain only and with all terms;
        NaN where the frame had no usable cell or the method needs no mesh.
    solved : ndarray of bool, shape (N, C)
        Offset and plane come from the mesh. Otherwise the offset comes from the sky level alone.
    best : ndarray of bool, shape (N,)
        Frames whose mean level and gradient are preserved.
    """

    terms: np.ndarray
    rms_before: np.ndarray
    rms_after: np.ndarray
    solved: np.ndarray
    best: np.ndarray


@dataclass(frozen=True)
class _Cells:
    """Usable mesh cells of one channel, flat, with bilinear weights on the lattice of the common sky."""

    frame: np.ndarray
    basis: np.ndarray
    value: np.ndarray
    weight: np.ndarray
    lattice: csr_matrix
    node_xy: np.ndarray
    smooth: csr_matrix
    n_frames: int


def normalise_group(
    gains: np.ndarray,
    sky_adu: np.ndarray,
    meshes: np.ndarray,
    nodes_xy: np.ndarray,
    noise: np.ndarray,
    method: Method,
    *,
    uv: np.ndarray | None = None,
) -> np.ndarray:
    """Return the terms of `solve_group`, shape (N, C, 4), float32."""
    return solve_group(gains, sky_adu, meshes, nodes_xy, noise, method, uv=uv).terms


def solve_group(
    gains: np.ndarray,
    sky_adu: np.ndarray,
    meshes: np.ndarray,
    nodes_xy: np.ndarray,
    noise: np.ndarray,
    method: Method,
    *,
    uv: np.ndarray | None = None,
) -> GroupNormalisation:
    """Find gain, offset and plane of each frame of a group.

    Parameters
    ----------
    gains : ndarray, shape (N, C)
        From `photometry.solve_transparency`; NaN or <= 0 counts as 1.
    sky_adu : ndarray, shape (N, C)
        Sky level of each frame, ADU.
    meshes : ndarray, shape (N, C, ny, nx)
        Sky per cell, ADU; NaN where unusable.
    nodes_xy : ndarray, shape (N, ny, nx, 2)
        Position (x, y) of each cell centre on the tile plane, px.
    noise : ndarray, shape (N, C)
        Pixel noise, ADU.
    method : {'none', 'linear_fit', 'sky_mean', 'levels'}
        'none': identity. 'sky_mean': gain 1 and an offset that brings every sky level to the median level of the
        best frames. 'linear_fit': the gain, and offset and plane from a joint robust fit in which
        ``gain * mesh + c0 + cx u + cy t`` equals one common sky wherever frames overlap on the plane. 'levels': the
        gain, and an offset from the sky level alone.
    uv : ndarray, shape (ny, nx, 2), optional
        Cell centres in the frame's normalised coordinates; default `mesh_uv` (cells divide the frame evenly).

    Returns
    -------
    GroupNormalisation

    Raises
    ------
    SettingsError
        Unknown method.
    """
    if method not in METHODS:
        raise SettingsError(
            "normalise_unknown_method",
            f"unknown normalisation {method!r}; use one of {', '.join(METHODS)}",
            method=str(method),
        )
    gains, sky, noise, meshes = (np.asarray(v, dtype=np.float64) for v in (gains, sky_adu, noise, meshes))
    n, n_channels = gains.shape
    with np.errstate(invalid="ignore"):
        gains = np.where(np.isfinite(gains) & (gains > 0), gains, 1.0)
    terms = np.zeros((n, n_channels, 4))
    terms[..., 0] = 1.0
    nothing = np.full((n, n_channels), np.nan)
    best = best_frames(gains, sky, noise)
    solved = np.zeros((n, n_channels), dtype=bool)
    if method == "none" or n == 0:
        return GroupNormalisation(terms.astype(np.float32), nothing, nothing.copy(), solved, best)
    if method == "sky_mean":
        terms[..., 1] = _level_offsets(sky, best)
        return GroupNormalisation(terms.astype(np.float32), nothing, nothing.copy(), solved, best)
    terms[..., 0] = gains
    if method == "levels":
        terms[..., 1] = _level_offsets(gains * sky, best)
        return GroupNormalisation(terms.astype(np.float32), nothing, nothing.copy(), solved, best)
    uv = mesh_uv(*meshes.shape[2:]) if uv is None else np.asarray(uv, dtype=np.float64)
    before, after = nothing.copy(), nothing.copy()
    fallback = _level_offsets(gains * sky, best)
    for c in range(n_channels):
        values = gains[:, c, None, None] * meshes[:, c]
        planes, before[:, c], after[:, c], solved[:, c] = _solve_channel(
            values,
            np.asarray(nodes_xy, dtype=np.float64),
            uv,
            _frame_weights(gains[:, c] * noise[:, c]),
            best,
        )
        terms[:, c, 1:] = np.where(solved[:, c, None], planes, 0.0)
        terms[:, c, 1] += np.where(solved[:, c], 0.0, fallback[:, c])
    return GroupNormalisation(terms.astype(np.float32), before, after, solved, best)


def mesh_uv(ny: int, nx: int) -> np.ndarray:
    """Cell centres of an even ``ny x nx`` mesh in normalised frame coordinates, shape (ny, nx, 2)."""
    u = (2.0 * np.arange(nx) + 1.0) / nx - 1.0
    t = (2.0 * np.arange(ny) + 1.0) / ny - 1.0
    return np.stack(np.meshgrid(u, t), axis=-1)


def best_frames(gains: np.ndarray, sky_adu: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Mark the half of the frames with the least noise on the common scale, shape (N,), bool.

    ``gain * noise`` is low for a dark and clear sky; where it is unknown in all channels, ``gain * sky`` ranks
    the frame within the rest. At least one frame is marked when there is any.
    """
    for quantity in (gains * noise, gains * sky_adu):
        known = np.isfinite(quantity)
        total = np.where(known, quantity, 0.0).sum(axis=1)
        score = np.where(known.any(axis=1), total / np.maximum(known.sum(axis=1), 1), np.inf)
        if np.isfinite(score).any():
            return score <= np.median(score[np.isfinite(score)])
    return np.ones(len(gains), dtype=bool)


def _level_offsets(level: np.ndarray, best: np.ndarray) -> np.ndarray:
    """Offsets (N, C) that bring each level to the median of the best frames; 0 where the level is unknown."""
    out = np.zeros_like(level)
    for c in range(level.shape[1]):
        known = np.isfinite(level[:, c])
        chosen = known & best if (known & best).any() else known
        if chosen.any():
            out[known, c] = np.median(level[chosen, c]) - level[known, c]
    return out


def _frame_weights(scaled_noise: np.ndarray) -> np.ndarray:
    """Inverse-variance weights with median 1, held within a factor 10 so that no frame rules alone."""
    known = np.isfinite(scaled_noise) & (scaled_noise > 0)
    if not known.any():
        return np.ones(len(scaled_noise))
    relative = np.where(known, scaled_noise, 1.0) / np.median(scaled_noise[known])
    return np.where(known, np.clip(relative**-2.0, 0.1, 10.0), 1.0)


def _solve_channel(values, nodes_xy, uv, frame_weight, best):
    """Offsets and planes (N, 3), rms before and after (N,), solved (N,) of one channel."""
    n = len(values)
    cells = _make_cells(values, nodes_xy, uv, frame_weight)
    count = np.bincount(cells.frame, minlength=n)
    planes = np.zeros((n, 3))
    if len(cells.frame) == 0:
        empty = np.full(n, np.nan)
        return planes, empty, empty.copy(), np.zeros(n, dtype=bool)
    # Per-frame medians remove most of the offsets, so that the first robust weights are meaningful.
    planes[:, 0] = _start_offsets(cells)
    sky = np.zeros(cells.lattice.shape[1])
    weight = cells.weight
    only_offset = count < _MIN_CELLS
    for _ in range(5):
        sky, planes = _solve_joint(cells, weight, planes, sky, only_offset)
        residual = cells.value + _plane_values(cells, planes) - cells.lattice @ sky
        scatter = max(1.4826 * float(np.median(np.abs(residual))), 1e-9)
        weight = cells.weight * np.minimum(1.0, _HUBER_SIGMA * scatter / np.maximum(np.abs(residual), 1e-300))
    planes, sky = _preserve_best(cells, planes, sky, nodes_xy, uv, best)
    solved = count > 0
    common = cells.lattice @ sky
    # "No slope of its own" has a meaning only now that the shared slope is settled.
    few = only_offset & solved
    planes[few, 1:] = 0.0
    planes[few, 0] = _frame_means(cells, common - cells.value, n)[few]
    after = _frame_rms(cells, cells.value + _plane_values(cells, planes) - common, n)
    return planes, _frame_rms(cells, cells.value - common, n), after, solved


def _make_cells(values, nodes_xy, uv, frame_weight) -> _Cells:
    n, ny, nx = values.shape
    usable = np.isfinite(values) & np.isfinite(nodes_xy).all(axis=-1)
    frame = np.nonzero(usable)[0]
    basis = np.column_stack([np.ones(ny * nx), uv.reshape(-1, 2)])
    basis = np.broadcast_to(basis.reshape(1, ny, nx, 3), (n, ny, nx, 3))[usable]
    lattice = bilinear_lattice(nodes_xy[usable], cell_spacing_px(nodes_xy))
    return _Cells(
        frame,
        basis,
        values[usable],
        frame_weight[frame],
        lattice.weights,
        lattice.node_xy,
        lattice.differences,
        n,
    )


def _start_offsets(cells: _Cells) -> np.ndarray:
    order = np.lexsort((cells.value, cells.frame))
    start = np.searchsorted(cells.frame[order], np.arange(cells.n_frames + 1))
    offset = np.zeros(cells.n_frames)
    value = cells.value[order]
    for i in np.flatnonzero(np.diff(start)):
        offset[i] = -np.median(value[start[i] : start[i + 1]])
    return offset - np.median(offset)


def _solve_joint(cells: _Cells, weight, planes, sky, only_offset) -> tuple[np.ndarray, np.ndarray]:
    """Weighted least squares of lattice and planes together; the planes are eliminated frame by frame."""
    basis = np.where(only_offset[cells.frame, None] & (np.arange(3) > 0), 0.0, cells.basis)
    blocks = np.empty((cells.n_frames, 3, 3))
    for p in range(3):
        for q in range(3):
            blocks[:, p, q] = np.bincount(
                cells.frame, weight * basis[:, p] * basis[:, q], minlength=cells.n_frames
            )
    total = blocks[:, 0, 0].copy()
    blocks += (_PLANE_PRIOR * np.maximum(total, 1e-3))[:, None, None] * np.eye(3)
    inverse = np.linalg.inv(blocks)

    def project(values: np.ndarray) -> np.ndarray:
        """Planes that fit given cell values best, (N, 3)."""
        right = [
            np.bincount(cells.frame, weight * values * basis[:, p], minlength=cells.n_frames)
            for p in range(3)
        ]
        return np.einsum("npq,nq->np", inverse, np.stack(right, axis=1))

    def spread(p: np.ndarray) -> np.ndarray:
        return np.einsum("kp,kp->k", basis, p[cells.frame])

    lattice_t = cells.lattice.T.tocsr()
    smooth = _SMOOTHNESS * np.median(weight) * (cells.smooth.T @ cells.smooth)
    diagonal = lattice_t.multiply(lattice_t) @ weight + smooth.diagonal()

    def product(v: np.ndarray) -> np.ndarray:
        at = cells.lattice @ v
        return lattice_t @ (weight * (at - spread(project(at)))) + smooth @ v

    right = lattice_t @ (weight * (cells.value - spread(project(cells.value))))
    n = len(sky)
    operator = LinearOperator((n, n), matvec=product, dtype=np.float64)
    scale = LinearOperator((n, n), matvec=lambda v: v / diagonal, dtype=np.float64)
    start = sky if sky.any() else lattice_t @ (weight * (cells.value + spread(planes))) / diagonal
    # A few hundred steps settle every direction the data know; what is left is the gauge, fixed afterwards.
    sky, _ = cg(operator, right, x0=start, rtol=1e-6, atol=0.0, maxiter=300, M=scale)
    return sky, project(cells.lattice @ sky - cells.value)


def _plane_values(cells: _Cells, planes: np.ndarray) -> np.ndarray:
    return np.einsum("kp,kp->k", cells.basis, planes[cells.frame])


def _preserve_best(cells: _Cells, planes, sky, nodes_xy, uv, best):
    """Add one plane of the sky to everything so that the best frames are changed least.

    A plane over the tile changes no difference between frames: the common sky and each frame's terms (through
    the frame's affine map) take it up. It is chosen so that the median slope and the median level of the best
    frames' corrections vanish. Slopes are compared with slopes only; a fit through all corrections would take
    the offsets of frames that happen to lie side by side for a slope.
    """
    present = np.unique(cells.frame)
    chosen = present[best[present]] if best[present].any() else present
    flat = nodes_xy.reshape(len(nodes_xy), -1, 2)
    origin = np.nanmean(flat[present].reshape(-1, 2), axis=0)
    grid = np.column_stack([np.ones(uv.shape[0] * uv.shape[1]), uv.reshape(-1, 2)])
    # Affine map of each frame: normalised frame coordinates -> plane px from the origin.
    maps = np.zeros((len(nodes_xy), 3, 2))
    for i in present:
        good = np.isfinite(flat[i]).all(axis=1)
        maps[i] = np.linalg.lstsq(grid[good], flat[i][good] - origin, rcond=None)[0]
    own_slope = np.linalg.solve(maps[chosen, 1:], planes[chosen, 1:, None])[..., 0]
    slope = np.median(own_slope, axis=0)
    level = float(np.median(planes[chosen, 0] - maps[chosen, 0] @ slope))
    planes = planes.copy()
    planes[present] -= maps[present] @ slope
    planes[present, 0] -= level
    return planes, sky - level - (cells.node_xy - origin) @ slope


def _frame_means(cells: _Cells, values: np.ndarray, n: int) -> np.ndarray:
    count = np.bincount(cells.frame, minlength=n)
    total = np.bincount(cells.frame, values, minlength=n)
    return np.divide(total, count, out=np.full(n, np.nan), where=count > 0)


def _frame_rms(cells: _Cells, residual: np.ndarray, n: int) -> np.ndarray:
    return np.sqrt(_frame_means(cells, residual**2, n))
