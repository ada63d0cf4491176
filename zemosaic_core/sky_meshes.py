"""What measuring leaves of the frames of a mosaic, and the cells of it that the sky model reads. Arrays only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .detector_surface import PRODUCT_ORDER, products
from .glow_prior import PROBE_UV
from .sky_joint import SkyCells
from .sky_lattice import bilinear_lattice
from .star_flat import StarFlat

__all__ = [
    "SkyMeshes",
    "cells_of",
    "detector_columns",
    "light_adu",
    "on_common_scale",
    "probe_places",
    "spread_rows",
    "usual_error_adu",
]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class SkyMeshes:
    """What measuring left of N frames with C channels, of S sizes.

    A frame with fewer cells than the largest repeats its last ones, without a level.

    Attributes
    ----------
    mesh : ndarray, shape (N, C, ny, nx), float32 or float64
        Sky per cell, ADU as in the file; NaN where unusable.
    error : ndarray, shape (N, C, ny, nx), float32 or float64
        Standard error of the level of each cell, ADU; NaN or 0 counts as the median of all.
    sky, pixel_noise : ndarray, shape (N, C), float64
        Level and noise of each frame, ADU.
    gains : ndarray, shape (N, C), float64
        Factors that bring the frames on one flux scale.
    xy : ndarray, shape (N, ny, nx, 2), float64
        Cell centres on the mosaic plane, px.
    uv : ndarray, shape (S, ny, nx, 2), float64
        Cell centres on a detector of each size, -1 .. 1.
    q : ndarray, shape (S, ny, nx), float64
        Squared distance from the image centre, 1 in the corners.
    frame_area_px : float
        Area of a usual frame on the mosaic plane.
    size : ndarray, shape (N,), int64
        Which of the sizes each frame has.
    """

    mesh: NDArray[np.floating]
    error: NDArray[np.floating]
    sky: Array
    pixel_noise: Array
    gains: Array
    xy: Array
    uv: Array
    q: Array
    frame_area_px: float
    size: NDArray[np.int64]

    def __post_init__(self) -> None:
        n, c, ny, nx = self.mesh.shape
        shapes = {
            "error": (self.error.shape, (n, c, ny, nx)),
            "sky": (self.sky.shape, (n, c)),
            "gains": (self.gains.shape, (n, c)),
            "xy": (self.xy.shape, (n, ny, nx, 2)),
            "uv": (self.uv.shape, (len(self.q), ny, nx, 2)),
            "q": (self.q.shape, (len(self.uv), ny, nx)),
            "size": (self.size.shape, (n,)),
        }
        wrong = {name: got for name, (got, needed) in shapes.items() if got != needed}
        if wrong:
            raise ValueError(f"meshes of shape {self.mesh.shape} do not fit {wrong}")


def usual_error_adu(meshes: SkyMeshes, c: int) -> float:
    """Return the median error of the cells of one channel of all frames, ADU; 1 where none is known."""
    whole = meshes.error[:, c]
    known = whole[np.isfinite(whole) & (whole > 0)]
    return float(np.median(known.astype(np.float64))) if len(known) else 1.0


def on_common_scale(
    meshes: SkyMeshes,
    gains: Array,
    c: int,
    flats: Sequence[StarFlat],
    pedestal: float,
    rows: NDArray[np.int64],
    usual_error: float,
) -> tuple[Array, Array]:
    """Return the cells of one channel of some frames, without pedestal and flat on the common flux scale.

    And their errors, where none is known the usual one (`usual_error_adu`); both (R, ny, nx), float64: tables of all
    frames would be the largest of all.
    """
    sizes = meshes.size.tolist()
    flatness = {
        (key, size): flat.values(meshes.q[size])
        for (key, size), flat in {(id(flats[i]), sizes[i]): flats[i] for i in rows}.items()
        if flat.usable
    }
    even = np.ones_like(meshes.q[0])
    factor = gains[rows, None, None] / np.stack([flatness.get((id(flats[i]), sizes[i]), even) for i in rows])
    error = meshes.error[rows, c].astype(np.float64)
    error = np.where(np.isfinite(error) & (error > 0), error, usual_error)
    return factor * (meshes.mesh[rows, c].astype(np.float64) - pedestal), factor * error


def light_adu(meshes: SkyMeshes, gains: Array, c: int, pedestal: float) -> Array:
    """Light of the sky above the pedestal in each frame on the common scale, at least a hundredth of the usual."""
    level = gains * (meshes.sky[:, c] - pedestal)
    known = np.isfinite(level)
    typical = float(np.median(level[known])) if known.any() else 1.0
    typical = typical if typical > 0 else 1.0
    return np.maximum(np.where(known, level, typical), 0.01 * typical)


def spread_rows(xy: Array, hours: Array, most: int) -> NDArray[np.int64]:
    """Choose frames evenly over places and times: all, or at most so many; ascending rows.

    The choice depends on where and when frames were taken, not on their order.
    """
    n = len(xy)
    if n <= most:
        return np.arange(n)
    flat = xy.reshape(n, -1, 2)
    centre = np.nanmean(flat, axis=1)
    extent = np.nanmax(flat, axis=(0, 1)) - np.nanmin(flat, axis=(0, 1))
    cells = max(1, round(np.sqrt(most / 4)))
    place = np.floor((centre - centre.min(axis=0)) / np.maximum(extent / cells, 1e-9)).astype(np.int64)
    label = np.unique(place, axis=0, return_inverse=True)[1].ravel()
    order = np.lexsort((centre[:, 1], centre[:, 0], hours))
    turns = []
    for k in range(label.max() + 1):
        members = order[label[order] == k]
        # Any beginning of this list is spread evenly over the times.
        turns.append(members[np.argsort(_bit_reversed(len(members)), kind="stable")])
    chosen: list[int] = []
    depth = 0
    while len(chosen) < most:
        layer = [int(members[depth]) for members in turns if depth < len(members)]
        chosen.extend(layer[: most - len(chosen)])
        depth += 1
    return np.sort(np.array(chosen))


def _bit_reversed(n: int) -> Array:
    """Van der Corput numbers of 0 .. n - 1: sorting by them spreads any beginning evenly."""
    bits = max(1, (n - 1).bit_length())
    numbers = np.arange(n)
    result = np.zeros(n)
    for b in range(bits):
        result += ((numbers >> b) & 1) / 2.0 ** (b + 1)
    return result


def detector_columns(meshes: SkyMeshes) -> tuple[Array, Array]:
    """Return 1, u, v (S K, 3) and the patterns q, q^2 less their means (S K, 2) of the K cells of each size."""
    q = meshes.q.ravel()
    patterns = np.column_stack([q - q.mean(), q**2 - (q**2).mean()])
    return np.column_stack([np.ones(len(q)), meshes.uv.reshape(-1, 2)]), patterns


def probe_places(meshes: SkyMeshes) -> Array:
    """Return where the places `PROBE_UV` of the frames lie in the mosaic, shape (N, 5, 2).

    Counted from the middle of all frames, in halves of a frame's side; the middle for a frame whose place is unknown.
    """
    bases = detector_columns(meshes)[0].reshape(len(meshes.uv), -1, 3)
    places = np.zeros((len(meshes.xy), len(PROBE_UV), 2))
    known = np.isfinite(meshes.xy).all(axis=(1, 2, 3))
    if not known.any():
        return places
    probes = np.column_stack([np.ones(len(PROBE_UV)), PROBE_UV])
    for size, basis in enumerate(bases):
        own = known & (meshes.size == size)
        places[own] = probes @ (np.linalg.pinv(basis) @ meshes.xy[own].reshape(-1, len(basis), 2))
    at = places[known]
    middle = (at.min(axis=(0, 1)) + at.max(axis=(0, 1))) / 2
    places[known] = (at - middle) / (0.5 * np.sqrt(meshes.frame_area_px))
    return places


def cells_of(
    rows: NDArray[np.int64],
    value: Array,
    sigma: Array,
    meshes: SkyMeshes,
    light: Array,
    spacing_px: float,
    session: NDArray[np.int64] | None = None,
) -> SkyCells:
    """Return the usable cells of some frames.

    Parameters
    ----------
    value, sigma : ndarray, shape (R, ny, nx)
        Of the frames in these ``rows``.
    session : ndarray, shape (N,), int64, optional
        Session of each of all frames, where sessions may have patterns of their own.
    """
    ny, nx = meshes.q.shape[1:]
    usable = np.isfinite(value) & np.isfinite(meshes.xy[rows]).all(axis=-1)
    frame, j, i = np.nonzero(usable)
    cell = (meshes.size[rows][frame] * ny + j) * nx + i
    basis, patterns = detector_columns(meshes)
    shapes = products(meshes.uv).reshape(len(basis), -1)
    own = np.zeros((len(basis), 0)) if session is None else shapes
    lattice = bilinear_lattice(meshes.xy[rows][usable], spacing_px)
    return SkyCells(
        frame=frame.astype(np.int64),
        value=value[usable],
        sigma=sigma[usable],
        cell=cell.astype(np.int64),
        on_detector=np.hstack([basis, patterns, own, shapes[:, PRODUCT_ORDER == 2]]),
        n_patterns=patterns.shape[1],
        n_products=own.shape[1],
        light=light[rows] / np.median(light[rows]),
        lattice=lattice,
        session=np.zeros(len(rows), np.int64) if session is None else session[rows],
    )
