"""Phase 1: look at the pixels of every frame once: background, stars, hot pixels; judge it within its night."""

from __future__ import annotations

import logging
import zipfile
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from zemosaic_core.errors import RunFailed, SkipItem
from zemosaic_core.hot_pixels import DefectEvidence
from zemosaic_io.headers import FrameInfo
from zemosaic_io.manifest import Manifest, make_folder
from zemosaic_pipeline.context import RunContext
from zemosaic_pipeline.judge_frames import count_stars_alike, judge_shapes
from zemosaic_pipeline.measure import ARRAY_NAMES, MeasureOptions, measure_frame
from zemosaic_pipeline.records import Frame, FrameMeasure
from zemosaic_pipeline.sessions import night_labels

__all__ = ["MEASURE_VERSION", "PHASE", "Prepared", "measure_frame", "run"]

PHASE = "phase1_prepare"
# Part of the key of stored measurements: raise it when their meaning changes.
MEASURE_VERSION = 5

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """Frames with their measurements, and the persistent hot pixels of each camera and night."""

    frames: tuple[tuple[Frame, FrameMeasure], ...]
    hot_pixels: dict[int, np.ndarray]


def _stored(manifest: Manifest, info: FrameInfo, options: MeasureOptions) -> tuple[str, FrameMeasure | None]:
    key = manifest.key(
        "measure",
        MEASURE_VERSION,
        str(info.path),
        info.size_bytes,
        info.mtime_ns,
        (info.kind, info.cfa_pattern, info.shape_hw),
        options.detect_sigma,
        options.max_stars,
        options.mesh_cell_px,
        options.find_hot_pixels,
    )
    record = manifest.get(key)
    if record is None:
        return key, None
    try:
        measure = FrameMeasure(
            **{**record, "sky_adu": tuple(record["sky_adu"]), "noise_adu": tuple(record["noise_adu"])}
        )
        # A file cut short by a power cut must not end a later run; its table of contents is at its end.
        with np.load(measure.arrays_path) as arrays:
            intact = ARRAY_NAMES.issubset(arrays.files)
    except (KeyError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        log.warning("stored measurements of %s cannot be used: %r", info.path, error)
        return key, None
    return key, measure if intact else None


def _measure_all(
    frames: list[Frame], options: MeasureOptions, context: RunContext, manifest: Manifest
) -> dict[int, FrameMeasure]:
    folder = context.state_dir / "frames"
    make_folder(folder)
    measures: dict[int, FrameMeasure] = {}
    keys: dict[int, str] = {}
    todo: list[Frame] = []
    for frame in frames:
        keys[frame.index], stored = _stored(manifest, frame.info, options)
        if stored is None:
            todo.append(frame)
        else:
            measures[frame.index] = stored
    if measures:
        context.say("run_info_measures_reused", frames=len(measures))
    # Named by what they follow from: copies of a frame are measured at the same time, and other options of a later
    # run must not find these arrays under the same name.
    tasks = [(frame.info, options, str(folder / f"{keys[frame.index]}.npz")) for frame in todo]
    done = len(measures)
    try:
        for position, result in context.map(measure_frame, tasks):
            frame = todo[position]
            done += 1
            context.progress(done, len(frames), frame.name)
            if isinstance(result, SkipItem):
                context.leave_out(str(frame.info.path), PHASE, result.key, **result.values)
                continue
            measures[frame.index] = result
            manifest.put(keys[frame.index], result.__dict__)
    finally:
        # A stopped run keeps what it measured.
        manifest.save()
    return measures


def _same_pixels(frames: list[Frame], measures: dict[int, FrameMeasure], context: RunContext) -> list[Frame]:
    """Leave out frames whose pixels were seen before: a copy would count twice."""
    seen: dict[str, Frame] = {}
    kept: list[Frame] = []
    for frame in frames:
        if frame.index not in measures:
            continue
        key = measures[frame.index].content_key
        if key in seen:
            context.leave_out(str(frame.info.path), PHASE, "frame_duplicate", other=str(seen[key].info.path))
            continue
        seen[key] = frame
        kept.append(frame)
    return kept


def _persistent(
    frames: list[Frame], measures: dict[int, FrameMeasure], context: RunContext
) -> dict[int, np.ndarray]:
    """Return per frame the hot pixels that stay put on its camera through its night."""
    with_filters = [frame for frame in frames if frame.info.kind == "cfa"]
    cameras: dict[int, list[Frame]] = defaultdict(list)
    for frame, label in zip(with_filters, night_labels([f.info for f in with_filters]), strict=True):
        cameras[label].append(frame)
    found: dict[int, np.ndarray] = {}
    total = 0
    for members in cameras.values():
        evidence = DefectEvidence(members[0].info.shape_hw)
        for frame in members:
            listed = measures[frame.index].columns("hot", "hot_sigma")
            evidence.add(listed["hot"], listed["hot_sigma"])
        flat = evidence.persistent()
        total += len(flat)
        found.update({frame.index: flat for frame in members})
    if total:
        context.say("run_info_hot_pixels", pixels=total, cameras=len(cameras))
    context.detail(hot_pixels=total)
    return found


def run(frames: list[Frame], options: MeasureOptions, context: RunContext, manifest: Manifest) -> Prepared:
    """Measure all frames, leave out what cannot be used, find persistent hot pixels.

    Raises
    ------
    RunFailed
        No frame is usable.
    """
    measures = _measure_all(frames, options, context, manifest)
    usable = _same_pixels(frames, measures, context)
    measures = count_stars_alike(usable, measures)
    kept = judge_shapes(usable, measures, options, context, PHASE)
    if not kept:
        raise RunFailed(
            "run_error_no_usable_frames", "every frame was left out; see the report for the reasons"
        )
    hot = _persistent(usable, measures, context) if options.find_hot_pixels else {}
    return Prepared(
        tuple((frame, measures[frame.index]) for frame in kept),
        {frame.index: hot[frame.index] for frame in kept if frame.index in hot},
    )
