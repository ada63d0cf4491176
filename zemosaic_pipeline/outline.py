"""How large a mosaic becomes: from what the headers say of positions, or from frames that were solved.

A telescope that writes the place of its target into every frame says nothing about where each frame points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from astropy.wcs import WCS

from zemosaic_core.frame_wcs import UnusableWcs, build_frame_wcs
from zemosaic_core.grid import (
    Orientation,
    PixelScaleMode,
    canvas_outliers,
    edge_step,
    far_frames,
    finer_grid,
    make_grid,
)
from zemosaic_io.headers import FrameInfo
from zemosaic_pipeline.frame_kinds import largest_frame

__all__ = [
    "Layout",
    "Outline",
    "estimate_canvas",
    "far_positions",
    "outline_of_headers",
    "outline_of_wcs",
    "spread_in_time",
]

# Positions closer together than this share of a frame are the same one: readings of a mount differ by more.
SAME_POSITION = 0.001
# With fewer positions per frame than this, the headers give those of targets or of planned panels.
POSITIONS_PER_FRAME = 1 / 3
# Frames whose WCS is laid out for a plan; of more frames their positions must do.
MAX_LAID_OUT = 1000


@dataclass(frozen=True)
class Outline:
    """Size of a mosaic, and what that rests on.

    Attributes
    ----------
    shape_hw : tuple of int
        Height and width, px.
    known_from : {'wcs', 'solved', 'positions', 'targets'}
        The WCS of every frame; the places of some frames; positions in the headers; positions that are not those of
        single frames, or none at all: then the mosaic is at least as large.
    n_solved, n_asked : int
        Frames that were solved for it, of how many.
    n_far : int
        Frames far from the others that a run leaves out; the mosaic is that of the rest.
    """

    shape_hw: tuple[int, int]
    known_from: Literal["wcs", "solved", "positions", "targets"]
    n_solved: int = 0
    n_asked: int = 0
    n_far: int = 0


@dataclass(frozen=True)
class Layout:
    """What the settings say about the grid: see `zemosaic_core.grid.make_grid`; whether strays are left out, and how
    many pixels it has for each of a frame.
    """

    pixelscale_mode: PixelScaleMode
    orientation: Orientation
    exclude_outliers: bool
    factor: float = 1.0


def outline_of_headers(infos: Sequence[FrameInfo], layout: Layout) -> Outline:
    """Return what the headers tell; at least one frame."""
    if len(infos) <= MAX_LAID_OUT and all(info.wcs_cards for info in infos):
        try:
            frames = [build_frame_wcs(info.wcs_cards or {}, info.shape_hw) for info in infos]
        except UnusableWcs:
            frames = []
        if frames:
            shapes = [info.shape_hw for info in infos]
            return outline_of_wcs(frames, shapes, layout)
    known_from: Literal["positions", "targets"] = "positions" if _tell_pointings(infos) else "targets"
    near = _without_far_ones(infos) if layout.exclude_outliers else infos
    shape_hw = estimate_canvas(near, layout.factor, exclude_outliers=False)
    return Outline(shape_hw, known_from, n_far=len(infos) - len(near))


def outline_of_wcs(frames: Sequence[WCS], shapes_hw: Sequence[tuple[int, int]], layout: Layout) -> Outline:
    """Return the outline of the grid that holds frames with a WCS, laid out as a run does it."""
    strays: set[int] = set()
    if layout.exclude_outliers:
        strays = {int(i) for outlier in far_frames(frames, shapes_hw) for i in outlier.frames}
    kept = [i for i in range(len(frames)) if i not in strays]
    spec = make_grid(
        [frames[i] for i in kept],
        [shapes_hw[i] for i in kept],
        pixelscale_mode=layout.pixelscale_mode,
        orientation=layout.orientation,
        edge_step_px=edge_step(layout.factor),
    )
    shape_hw = spec.shape_hw if layout.factor == 1 else finer_grid(spec, layout.factor).shape_hw
    return Outline(shape_hw, "wcs", n_far=len(strays))


def spread_in_time(infos: Sequence[FrameInfo], n: int) -> list[FrameInfo]:
    """Return ``n`` frames spread evenly over the exposures, the first and the last among them."""
    order = sorted(infos, key=lambda info: (info.date_obs, str(info.path)))
    if n >= len(order):
        return order
    return [order[i] for i in np.unique(np.linspace(0, len(order) - 1, n).round().astype(int)).tolist()]


def _tell_pointings(infos: Sequence[FrameInfo]) -> bool:
    """Return whether the positions in the headers are those of single frames."""
    hints = {
        (
            round(info.ra_deg * math.cos(math.radians(info.dec_deg)) / _position_step_deg(info)),
            round(info.dec_deg / _position_step_deg(info)),
        )
        for info in infos
        if info.ra_deg is not None and info.dec_deg is not None
    }
    return len(infos) == 1 or len(hints) > POSITIONS_PER_FRAME * len(infos)


def _position_step_deg(info: FrameInfo) -> float:
    return SAME_POSITION * min(info.shape_hw) * (info.scale_arcsec or 2.0) / 3600


def far_positions(ra_deg: np.ndarray, dec_deg: np.ndarray, infos: Sequence[FrameInfo]) -> np.ndarray:
    """Return which places a run would leave out because they are far from the others, sorted indices.

    Parameters
    ----------
    ra_deg, dec_deg : ndarray, shape (N,)
        Centres of frames.
    infos : sequence of FrameInfo
        Headers from which field and scale are taken; where no scale is told nothing is far.
    """
    none = np.empty(0, np.intp)
    scales = [info.scale_arcsec / 3600 for info in infos if info.scale_arcsec]
    if not len(ra_deg) or not scales:
        return none
    scale_deg = float(np.median(scales))
    field_deg = scale_deg * float(np.median([math.hypot(*info.shape_hw) for info in infos]))
    found = canvas_outliers(ra_deg, dec_deg, field_deg=field_deg, scale_deg=scale_deg)
    return np.sort(np.concatenate([none, *(outlier.frames for outlier in found)]))


def _without_far_ones(infos: Sequence[FrameInfo]) -> list[FrameInfo]:
    """Return the frames that a run would not leave out, as their headers tell it."""
    told = [i for i, f in enumerate(infos) if f.ra_deg is not None and f.dec_deg is not None]
    ra_deg = np.array([infos[i].ra_deg for i in told], float)
    dec_deg = np.array([infos[i].dec_deg for i in told], float)
    far = {told[i] for i in far_positions(ra_deg, dec_deg, infos)}
    return [info for i, info in enumerate(infos) if i not in far]


def estimate_canvas(
    infos: Sequence[FrameInfo], factor: float = 1.0, *, exclude_outliers: bool = True
) -> tuple[int, int]:
    """Guess height and width (px) of the mosaic from the headers' positions.

    Parameters
    ----------
    infos : sequence of FrameInfo
        Headers; at least one.
    factor : float
        Pixels per frame pixel.
    exclude_outliers : bool
        Whether frames far from the others are left out, as `zemosaic_core.grid.canvas_outliers` finds them.
    """
    if exclude_outliers:
        infos = _without_far_ones(infos)
    height, width = largest_frame(infos).shape_hw
    hints = [(i.ra_deg, i.dec_deg) for i in infos if i.ra_deg is not None and i.dec_deg is not None]
    scale = infos[0].scale_arcsec
    if not hints or scale is None:
        return round(factor * height), round(factor * width)
    ra, dec = np.radians(np.array(hints, dtype=float)).T
    mean = np.array(
        [np.mean(np.cos(dec) * np.cos(ra)), np.mean(np.cos(dec) * np.sin(ra)), np.mean(np.sin(dec))]
    )
    ra0 = math.atan2(mean[1], mean[0])
    east = (np.mod(ra - ra0 + np.pi, 2 * np.pi) - np.pi) * np.cos(dec)
    px = 3600 / scale
    height += round(float(np.degrees(np.ptp(dec))) * px)
    width += round(float(np.degrees(np.ptp(east))) * px)
    return round(factor * height), round(factor * width)
