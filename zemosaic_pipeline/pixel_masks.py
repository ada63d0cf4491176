"""The end of phase 4: which pixels of the frames are no light of the sky, now that all frames lie on one plane.

Light that was cut off, by what all frames of a camera say; parts where something stands before the sky; trails.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from zemosaic_core.clipped_light import clip_levels
from zemosaic_core.covered_sky import cell_spans, covered_cells, sightings
from zemosaic_core.frame_views import FrameViews, frame_views
from zemosaic_core.sky_lattice import cell_centres
from zemosaic_core.star_merging import merge_positions
from zemosaic_core.streak_spans import (
    ends_within,
    joined_spans,
    points_given_up,
    share_beside,
    streak_points,
    streak_spans,
)
from zemosaic_core.streaks import chains_of_dots
from zemosaic_pipeline.context import RunContext
from zemosaic_pipeline.measure import MeasureOptions
from zemosaic_pipeline.records import PixelMasks, RegisteredFrame
from zemosaic_pipeline.sessions import sensor_labels

__all__ = ["run"]

# Detections of two frames are one star when they are so close, px of the mosaic.
_MATCH_PX = 3.0
_BRIGHTEST = 400
# Where more is covered, the cells beside it included, the rest is not worth the frame.
_MOST_COVERED = 0.7


def run(
    frames: Sequence[RegisteredFrame],
    options: MeasureOptions,
    context: RunContext,
    phase: str,
    *,
    with_trails: bool,
) -> tuple[tuple[RegisteredFrame, ...], PixelMasks]:
    """Return the frames to keep, with the cells that are covered, and the masks of their pixels.

    Frames that are mostly covered are left out. Trails are masked only where a user wants outliers rejected, and
    where other frames can take their place.
    """
    levels = _clip_levels(frames)
    covered = [np.zeros((0, 0), bool)] * len(frames)
    chains = [np.empty((0, 5), np.float32)] * len(frames)
    shapes = Counter(frame.solved.frame.info.shape_hw for frame in frames)
    for shape in sorted(shapes):
        # Meshes of frames of one size have the same cells.
        members = [i for i, frame in enumerate(frames) if frame.solved.frame.info.shape_hw == shape]
        cells, dots = _covered_and_chains([frames[i] for i in members], options.mesh_cell_px)
        for i, mask, found in zip(members, cells, dots, strict=True):
            covered[i], chains[i] = mask, found
    kept: list[RegisteredFrame] = []
    spans: dict[int, list[np.ndarray]] = {}
    still: list[int] = []
    partly: list[tuple[float, Path]] = []
    for i, frame in enumerate(frames):
        share = float(covered[i].mean())
        info = frame.solved.frame.info
        if share > _MOST_COVERED:
            context.leave_out(str(info.path), phase, "frame_covered", percent=round(100 * share))
            continue
        still.append(i)
        if covered[i].any():
            frame = _with_open_sky(frame, covered[i])
            spans[_index(frame)] = [cell_spans(covered[i], options.mesh_cell_px, info.shape_hw)]
            partly.append((share, info.path))
        kept.append(frame)
    if partly:
        share, path = max(partly)
        context.say(
            "run_info_covered", frames=len(partly), example=context.name_of(path), percent=round(100 * share)
        )
    trails = _trail_spans(kept, [chains[i] for i in still]) if with_trails and len(kept) > 2 else {}
    for index, found in trails.items():
        spans.setdefault(index, []).append(found)
    if trails:
        context.say("run_info_trails", frames=len(trails))
    context.detail(covered_frames=len(partly), frames_with_trails=len(trails))
    joined = {index: joined_spans(parts) for index, parts in spans.items()}
    cut = {_index(frames[i]): levels[i] for i in still if np.isfinite(levels[i]).any()}
    return tuple(kept), PixelMasks(cut, joined)


def _index(frame: RegisteredFrame) -> int:
    return frame.solved.frame.index


def _clip_levels(frames: Sequence[RegisteredFrame]) -> np.ndarray:
    evidence = [frame.solved.measure.columns("ceiling")["ceiling"] for frame in frames]
    labels = sensor_labels([frame.solved.frame.info for frame in frames])
    return clip_levels(np.array(evidence).reshape(len(frames), -1, 4), labels)


def _with_open_sky(frame: RegisteredFrame, covered: np.ndarray) -> RegisteredFrame:
    """Return the frame with its covered cells, and the sky of the others as its sky."""
    frame = replace(frame, covered=covered)
    mesh = frame.open_mesh()
    known = np.isfinite(mesh).any(axis=(1, 2))
    sky = tuple(
        float(np.nanmedian(plane)) if ok else before
        for plane, ok, before in zip(mesh, known, frame.solved.measure.sky_adu, strict=True)
    )
    return replace(frame, solved=replace(frame.solved, measure=replace(frame.solved.measure, sky_adu=sky)))


def _covered_and_chains(
    frames: Sequence[RegisteredFrame], cell_px: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the covered cells (N, ny, nx) of frames of one size, and the chains of dots of each."""
    shape_hw = frames[0].solved.frame.info.shape_hw
    n_channels, *sides = frames[0].solved.measure.columns("mesh")["mesh"].shape
    n_cells = (sides[0], sides[1])
    if len(frames) < 2:
        return np.zeros((len(frames), *n_cells), bool), [np.empty((0, 5), np.float32)] * len(frames)
    levels, errors = (np.empty((len(frames), n_channels, *n_cells), np.float32) for _ in range(2))
    places, owner, light, cells, pixels = [], [], [], [], []
    gains = np.array([frame.gain for frame in frames], float)
    gains = np.where(np.isfinite(gains) & (gains > 0), gains, 1.0)
    for i, frame in enumerate(frames):
        arrays = frame.solved.measure.columns("x", "y", "channel_flux", "mesh", "mesh_noise")
        levels[i], errors[i] = arrays["mesh"], arrays["mesh_noise"]
        x, y = arrays["x"][:_BRIGHTEST].astype(float), arrays["y"][:_BRIGHTEST].astype(float)
        places.append(np.stack(frame.to_plane.apply(x, y), axis=-1))
        owner.append(np.full(len(x), i, np.int32))
        light.append((gains[i][:, None] * arrays["channel_flux"][:, :_BRIGHTEST]).mean(axis=0))
        cells.append(_cells(x, y, shape_hw, n_cells, cell_px))
        pixels.append(np.stack([x, y], axis=-1).astype(np.float32))
    xy, owners = np.concatenate(places), np.concatenate(owner)
    del places, owner
    label, star_xy = merge_positions(xy, owners, _MATCH_PX)
    order = np.flatnonzero(label >= 0)

    def cell_of_star(i: int) -> np.ndarray:
        return _cells(*frames[i].to_frame.apply(star_xy[:, 0], star_xy[:, 1]), shape_hw, n_cells, cell_px)

    stars = sightings(
        owners[order],
        label[order],
        np.concatenate(light)[order],
        np.concatenate(cells)[order],
        cell_of_star,
        len(frames),
        n_cells,
    )
    x, y = cell_centres(shape_hw, n_cells, cell_px)

    def centres(i: int) -> np.ndarray:
        return np.stack(frames[i].to_plane.apply(x, y), axis=-1)

    del xy, order
    found = covered_cells(levels, errors, gains, centres, stars)
    del levels, errors, stars
    return found, _chains(frames, label, owners, np.concatenate(pixels), star_xy, shape_hw)


def _cells(
    x: np.ndarray, y: np.ndarray, shape_hw: tuple[int, int], n_cells: tuple[int, int], cell_px: int
) -> np.ndarray:
    """Return flat indices of the cells at places of a frame; -1 beside it."""
    inside = (x >= 0) & (x <= shape_hw[1] - 1) & (y >= 0) & (y <= shape_hw[0] - 1)
    column = np.where(inside, np.nan_to_num(x), 0).astype(np.int64) // cell_px
    row = np.where(inside, np.nan_to_num(y), 0).astype(np.int64) // cell_px
    return np.where(inside, row * n_cells[1] + column, -1)


def _chains(
    frames: Sequence[RegisteredFrame],
    label: np.ndarray,
    owners: np.ndarray,
    pixels: np.ndarray,
    star_xy: np.ndarray,
    shape_hw: tuple[int, int],
) -> list[np.ndarray]:
    """Return chains of dots among what only one frame shows although others look there."""
    times = np.bincount(label[label >= 0], minlength=len(star_xy))
    alone = (label < 0) | (times[np.maximum(label, 0)] == 1)
    found = []
    views = _views(frames)
    for i, frame in enumerate(frames):
        own = pixels[(owners == i) & alone]
        if len(own):
            plane_xy = np.stack(frame.to_plane.apply(own[:, 0], own[:, 1]), axis=-1)
            own = own[views.others_at(i, plane_xy, most=1) > 0]
        found.append(chains_of_dots(own[:, 0], own[:, 1], frame.solved.measure.fwhm_px, shape_hw))
    return found


def _views(frames: Sequence[RegisteredFrame]) -> FrameViews:
    return frame_views(
        [frame.to_frame for frame in frames],
        [frame.solved.frame.info.shape_hw for frame in frames],
        [frame.covered for frame in frames],
    )


def _trail_spans(frames: Sequence[RegisteredFrame], chains: Sequence[np.ndarray]) -> dict[int, np.ndarray]:
    """Return the pixels of trails, by the index of the frame; a streak that no other frame looks at stays."""
    own = [frame.solved.measure.columns("streaks")["streaks"] for frame in frames]
    lines = [
        [np.stack(frame.to_plane.apply(*streak_points(streak).T), axis=-1) for streak in streaks]
        for frame, streaks in zip(frames, own, strict=True)
    ]
    found: dict[int, np.ndarray] = {}
    views = _views(frames)
    for i, frame in enumerate(frames):
        parts = []
        for streak, points in zip(own[i], lines[i], strict=True):
            looked_at, shown = views.others_at(i, points), np.zeros(len(points), np.int64)
            for j in range(len(frames)):
                if j == i:
                    continue
                beside = [share_beside(points, line, 2 * float(streak[4])) for line in lines[j]]
                if beside:
                    shown += np.any(beside, axis=0)
            is_short = ends_within(streak, frame.solved.frame.info.shape_hw)
            parts.append(_pieces(frame, streak, points_given_up(looked_at, shown, is_short=is_short)))
        for chain in chains[i]:
            points = np.stack(frame.to_plane.apply(*streak_points(chain).T), axis=-1)
            looks = views.others_at(i, points, most=1)
            parts.append(_pieces(frame, chain, points_given_up(looks, np.zeros_like(looks))))
        spans = joined_spans(parts)
        if len(spans):
            found[_index(frame)] = spans
    return found


def _pieces(frame: RegisteredFrame, streak: np.ndarray, given_up: np.ndarray) -> np.ndarray:
    """Return the spans of the pieces of a streak both ends of which are given up."""
    return streak_spans(
        streak_points(streak),
        given_up[:-1] & given_up[1:],
        float(streak[4]),
        frame.solved.frame.info.shape_hw,
    )
