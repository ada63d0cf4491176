"""What goes into a tile: its window on the grid, its sources, and what is known of their samples beforehand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zemosaic_core.detector_surface import mean_of_surface, places_on_detector
from zemosaic_core.normalize import normalise_group
from zemosaic_core.pixel_map import build_pixel_map
from zemosaic_core.sky_lattice import cell_centres
from zemosaic_core.sources import CoaddSource, PixelMap, SampleNoise
from zemosaic_io.frame_store import FrameStore
from zemosaic_io.mapped_arrays import mapped_arrays, mapped_maps
from zemosaic_pipeline.context import RunContext
from zemosaic_pipeline.frame_colour import frame_colours
from zemosaic_pipeline.plan import RunPlan
from zemosaic_pipeline.records import FrameTerms, MosaicGrid, PixelMasks, RegisteredFrame
from zemosaic_pipeline.tile_cards import TileSetCards

__all__ = [
    "MAP_ERROR_PX",
    "SAMPLE_VARIANCE",
    "TileInputs",
    "flux_gain_of",
    "frame_store",
    "frame_terms",
    "lowest_ceiling",
    "sample_noise",
    "star_cores",
    "tile_sources",
    "tile_window",
]

# Stars of each frame, the brightest, on whose centres the rejection is watched.
WATCHED_STARS = 200
# Frames whose stars are listed before the places that are the same become one.
UNITED_FRAMES = 64
MAP_ERROR_PX = 0.005
# Where the ramp begins at the border of a frame that lies on one sky with all others: at half of the full weight. Ramps
# from nothing made the variance of mosaics 8 to 23 % larger than that of the best mean, in some pixels four times.
FEATHER_START = 0.5
# Variance of a sample of white noise, relative to that of a pixel, at all fractions of a pixel alike.
SAMPLE_VARIANCE = {"lanczos3": 0.80, "bilinear": 0.44}


@dataclass(frozen=True)
class TileInputs:
    """What all tiles of a run are made with, besides their frames.

    Attributes
    ----------
    hot_pixels : dict of int to ndarray
        Places to mend by the index of a frame; the frames of a session share them.
    sky : mapping of int to FrameTerms
        Terms of every frame from the model of the sky; empty: a group finds a common sky of its own.
    tile_set : TileSetCards
        What joins a tile to the others of its run.
    """

    hot_pixels: dict[int, np.ndarray]
    masks: PixelMasks
    sky: Mapping[int, FrameTerms]
    grid: MosaicGrid
    plan: RunPlan
    tile_set: TileSetCards


def _corners(shape_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return points along the border of a frame; corners alone miss the bulge of a distorted edge."""
    height, width = shape_hw
    along = np.linspace(-0.5, 0.5, 9)
    x = np.concatenate([along, along, np.full(9, -0.5), np.full(9, 0.5)]) * width + (width - 1) / 2
    y = np.concatenate([np.full(9, -0.5), np.full(9, 0.5), along, along]) * height + (height - 1) / 2
    return x, y


def tile_window(
    frames: Sequence[RegisteredFrame], grid_shape_hw: tuple[int, int]
) -> tuple[int, int, int, int] | None:
    """Return ``(y0, y1, x0, x1)`` on the grid that holds all frames; None when they miss the grid."""
    xs, ys = [], []
    for frame in frames:
        x, y = frame.to_plane.apply(*_corners(frame.solved.frame.info.shape_hw))
        xs.append(x)
        ys.append(y)
    x, y = np.concatenate(xs), np.concatenate(ys)
    y0, y1 = max(0, math.floor(y.min())), min(grid_shape_hw[0], math.ceil(y.max()) + 1)
    x0, x1 = max(0, math.floor(x.min())), min(grid_shape_hw[1], math.ceil(x.max()) + 1)
    return (y0, y1, x0, x1) if y0 < y1 and x0 < x1 else None


def tile_sources(
    frames: Sequence[RegisteredFrame],
    window: tuple[int, int, int, int],
    terms: Sequence[FrameTerms],
    weights: np.ndarray,
    plan: RunPlan,
    folder: Path,
    *,
    on_one_sky: bool,
) -> list[CoaddSource]:
    """Return the sources of a tile, without the frames that miss its window; ``weights`` (N, C) are theirs.

    The nodes of their maps lie in a temporary file in ``folder``. Only ``on_one_sky``, that of all frames, they differ
    by noise alone where one of them ends; else its weight falls to nothing there.
    """
    boxes = [_box(frame, window) for frame in frames]
    touching = [i for i, box in enumerate(boxes) if box[0] < box[1] and box[2] < box[3]]
    maps = mapped_maps((_map_of(frames[i], window, boxes[i]) for i in touching), folder)
    return [
        CoaddSource(
            key=frames[i].solved.frame.index,
            shape_hw=frames[i].solved.frame.info.shape_hw,
            pixel_map=pixel_map,
            bbox=boxes[i],
            photometry=terms[i].photometry,
            weight=weights[i].astype(np.float32),
            feather_px=plan.stack.feather_px,
            feather_start=FEATHER_START if on_one_sky else 0.0,
            has_weight_map=plan.stack.radial is not None,
            radial=terms[i].radial if terms[i].radial.any() else None,
            surface=terms[i].surface,
        )
        for i, pixel_map in zip(touching, maps, strict=True)
    ]


def _box(frame: RegisteredFrame, window: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Return rows and columns of a window that a frame covers; an empty box where it misses it."""
    y0, y1, x0, x1 = window
    px, py = frame.to_plane.apply(*_corners(frame.solved.frame.info.shape_hw))
    return (
        max(0, math.floor(py.min()) - y0),
        min(y1 - y0, math.ceil(py.max()) + 1 - y0),
        max(0, math.floor(px.min()) - x0),
        min(x1 - x0, math.ceil(px.max()) + 1 - x0),
    )


def _map_of(
    frame: RegisteredFrame, window: tuple[int, int, int, int], box: tuple[int, int, int, int]
) -> PixelMap:
    y0, _, x0, _ = window

    def to_source(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return frame.to_frame.apply(x + x0, y + y0)

    return build_pixel_map(to_source, box, max_error_px=MAP_ERROR_PX)


def frame_terms(
    frames: Sequence[RegisteredFrame], sky: Mapping[int, FrameTerms], plan: RunPlan
) -> list[FrameTerms]:
    """Return the terms of each frame: those of the model of the whole sky, or what brings this group onto one sky."""
    if sky:
        return [sky[frame.solved.frame.index] for frame in frames]
    method = plan.stack.normalise
    if method == "linear_fit" and plan.sky.model == "none":
        method = "levels"
    of_group = normalisation(frames, method, plan.measure.mesh_cell_px).astype(np.float32)
    return [FrameTerms(terms, np.zeros_like(terms)) for terms in of_group]


def normalisation(frames: Sequence[RegisteredFrame], method: str, cell_px: int) -> np.ndarray:
    """Return the photometric terms (N, C, 4) that bring the frames of a group onto one sky."""
    meshes = np.stack([frame.open_mesh() for frame in frames])
    shape_hw = frames[0].solved.frame.info.shape_hw
    x, y = cell_centres(shape_hw, meshes.shape[2:], cell_px)
    return normalise_group(
        np.array([frame.gain for frame in frames]),
        np.array([frame.solved.measure.sky_adu for frame in frames]),
        meshes,
        np.stack([np.stack(frame.to_plane.apply(x, y), axis=-1) for frame in frames]),
        np.array([frame.solved.measure.noise_adu for frame in frames]),
        method,
        uv=places_on_detector(x, y, shape_hw),
    )


def sample_noise(
    frames: Sequence[RegisteredFrame], weights: np.ndarray, terms: Sequence[FrameTerms], kernel: str
) -> SampleNoise | None:
    """Return what is known beforehand about the samples of a co-add; None where a channel's noise is not known.

    Parameters
    ----------
    weights : ndarray, shape (N, C)
    terms : sequence of FrameTerms
    """
    photometry = np.array([term.photometry for term in terms], float)
    f1, f2, d1, d2 = np.moveaxis(np.array([term.radial for term in terms], float), -1, 0)
    # Means of q and q^2 over the detector.
    gain = photometry[..., 0] * (1 + f1 / 3 + f2 / 6)
    offset = photometry[..., 1] + d1 / 3 + d2 / 6
    for own, term in zip(offset, terms, strict=True):
        if term.surface is not None:
            own += mean_of_surface(term.surface)
    noise = np.array([frame.solved.measure.noise_adu for frame in frames], float)
    sky = np.array([frame.solved.measure.sky_adu for frame in frames], float)
    known = (noise > 0) & (weights > 0)
    variance = np.where(known, SAMPLE_VARIANCE[kernel] * (gain * noise) ** 2 * weights, np.nan)
    level = gain * sky + offset
    if not (np.isfinite(variance).any(axis=0) & np.isfinite(level).any(axis=0)).all():
        return None
    return SampleNoise(
        tuple(map(float, np.nanmedian(variance, axis=0))), tuple(map(float, np.nanmedian(level, axis=0)))
    )


def frame_store(frames: Sequence[RegisteredFrame], inputs: TileInputs, context: RunContext) -> FrameStore:
    """Return what reads the pixels of frames as they are stacked."""
    solved = {frame.solved.frame.index: frame.solved for frame in frames}
    row_sums = mapped_arrays(
        (one.measure.columns("row_sums")["row_sums"] for one in solved.values()), context.work_dir
    )
    return FrameStore(
        {index: one.frame.info for index, one in solved.items()},
        inputs.hot_pixels,
        colours=frame_colours(frames),
        radial=inputs.plan.stack.radial,
        row_sums=dict(zip(solved, row_sums, strict=True)),
        zero_is_missing={index for index, one in solved.items() if one.measure.zero_is_missing},
        calibrations={index: one.frame.calibration for index, one in solved.items() if one.frame.calibration},
        unpack_dir=context.work_dir,
        clip_levels=inputs.masks.clip_levels,
        masked=inputs.masks.spans,
        reads=context.reads,
    )


def star_cores(frames: Sequence[RegisteredFrame], window: tuple[int, int, int, int]) -> np.ndarray:
    """Return the pixels (K, 2), y and x within a window of the grid, on which stars have their centres; row by row."""
    y0, y1, x0, x1 = window
    found, fresh = np.empty(0, np.int64), [np.empty(0, np.int64)]
    for number, frame in enumerate(frames, 1):
        stars = frame.solved.measure.columns("x", "y")
        x, y = frame.to_plane.apply(stars["x"][:WATCHED_STARS], stars["y"][:WATCHED_STARS])
        row, column = (np.rint(y) - y0).astype(np.int64), (np.rint(x) - x0).astype(np.int64)
        inside = (row >= 0) & (row < y1 - y0) & (column >= 0) & (column < x1 - x0)
        fresh.append(row[inside] * (x1 - x0) + column[inside])
        if number % UNITED_FRAMES == 0 or number == len(frames):
            # Frames of one field have their stars in the same places.
            found, fresh = np.unique(np.concatenate([found, *fresh])), []
    return np.column_stack(np.divmod(found, x1 - x0))


def flux_gain_of(frames: Sequence[RegisteredFrame], weights: np.ndarray, plan: RunPlan) -> tuple[float, ...]:
    """Return what brings the stack of frames to the flux scale of the clear ones; 1 when they were brought there."""
    gains = np.array([frame.gain for frame in frames], dtype=float)
    if plan.stack.normalise == "linear_fit":  # the model of the sky brings them there too
        return (1.0,) * plan.n_channels
    transparency = np.where(np.isfinite(gains) & (gains > 0), 1 / np.where(gains > 0, gains, 1.0), 1.0)
    if plan.stack.rule.combine == "median":
        return tuple(map(float, 1 / np.median(transparency, axis=0)))
    return tuple(map(float, 1 / np.average(transparency, axis=0, weights=np.maximum(weights, 1e-12))))


def lowest_ceiling(
    frames: Sequence[RegisteredFrame], terms: Sequence[FrameTerms], masks: PixelMasks
) -> float:
    """Return the lowest level at which the light of a frame was cut off, on the common scale; NaN: nowhere."""
    ceilings = [
        term.photometry[:, 0] * masks.clip_levels[frame.solved.frame.index] + term.photometry[:, 1]
        for frame, term in zip(frames, terms, strict=True)
        if frame.solved.frame.index in masks.clip_levels
    ]
    finite = np.array([value for levels in ceilings for value in levels if np.isfinite(value)])
    return float(finite.min()) if finite.size else float("nan")
