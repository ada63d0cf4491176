"""Phase 1: look at the pixels of every frame once: background, stars, hot pixels; judge it within its night."""

from __future__ import annotations

import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from zemosaic_core.errors import RunFailed, SkipItem
from zemosaic_core.hot_pixels import DefectEvidence
from zemosaic_io.atomic import make_durable
from zemosaic_io.calibration_sets import load_set
from zemosaic_io.fits_read import frame_changed
from zemosaic_io.headers import read_frame_info
from zemosaic_io.manifest import hash_key, make_folder
from zemosaic_pipeline import calibrate
from zemosaic_pipeline.context import RunContext
from zemosaic_pipeline.frame_boundary import result_or_skip
from zemosaic_pipeline.judge_frames import count_stars_alike, judge_shapes
from zemosaic_pipeline.measure import MEASURE_ELSEWHERE, MeasureOptions, measure_frame, stored_measure
from zemosaic_pipeline.measure_on_card import MeasureTask, frames_for_card, measure_frames
from zemosaic_pipeline.records import Frame, FrameMeasure
from zemosaic_pipeline.sessions import night_labels

__all__ = ["MEASURE_VERSION", "PHASE", "Prepared", "forget", "run"]

PHASE = "phase1_prepare"
# Part of the key of stored measurements: raise it when their meaning changes.
MEASURE_VERSION = 12
FOLDER = "frames"
SYNC_EVERY_S = 4.0
KEPT_UNUSED_S = 30 * 86400.0
# A few pixels are dead; more zeros than that are a sky that was cut off.
_MOST_ZEROS = 0.01
_NOT_FROM_THE_HEADER = ("path", "size_bytes", "mtime_ns", "ctime_ns", "inode", "data_offset", "hdu")


@dataclass(frozen=True)
class Prepared:
    """Frames with their measurements, and the persistent hot pixels of each camera and night."""

    frames: tuple[tuple[Frame, FrameMeasure], ...]
    hot_pixels: dict[int, np.ndarray]


def _arrays_path(folder: Path, frame: Frame, raw_folder: Path, options: MeasureOptions) -> str:
    """Name by what the measurements follow from: copies of a frame are measured at the same time.

    Other options of a later run do not find these arrays under the same name; a folder that was moved does, with all
    that is in it.
    """
    info = frame.info
    path = Path(info.path)
    relative = path.relative_to(raw_folder) if path.is_relative_to(raw_folder) else path
    key = hash_key(
        "measure",
        MEASURE_VERSION,
        relative.as_posix(),
        info.size_bytes,
        info.mtime_ns,
        (info.kind, info.cfa_pattern, info.shape_hw),
        options.detect_sigma,
        options.max_stars,
        options.mesh_cell_px,
        options.find_hot_pixels,
        *([frame.calibration_key] if frame.calibration else []),
        *(["stack"] if info.is_stack else []),
    )
    return str(folder / f"{key}.npz")


def _forget_old(folder: Path, used: set[str]) -> None:
    """Drop measurements that no run has used for a month: of frames that are gone, or made by older versions."""
    oldest = time.time() - KEPT_UNUSED_S
    for path in folder.glob("*.npz"):
        with suppress(OSError):
            if str(path) in used:
                os.utime(path)
            elif path.stat().st_mtime < oldest:
                path.unlink()


def forget(context: RunContext) -> None:
    """Drop the measurements of earlier runs."""
    for name in (FOLDER, calibrate.FOLDER):
        shutil.rmtree(context.state_dir / name, ignore_errors=True)


class _Stored:
    """What was written since the last time, brought to the disk itself now and then, for many files at once."""

    def __init__(self) -> None:
        self._paths: list[Path] = []
        self._since = time.monotonic()

    def add(self, path: str) -> None:
        """Note a file that has its final name."""
        self._paths.append(Path(path))
        if time.monotonic() - self._since > SYNC_EVERY_S:
            self.sync()

    def sync(self) -> None:
        """Wait for the disk."""
        make_durable(self._paths)
        self._paths, self._since = [], time.monotonic()


def _measure_all(
    frames: list[Frame], raw_folder: Path, options: MeasureOptions, context: RunContext
) -> tuple[list[Frame], dict[int, FrameMeasure]]:
    """Return the frames as they are now, and their measurements by index; what could not be measured is missing."""
    folder = context.state_dir / FOLDER
    make_folder(folder)
    current = {frame.index: frame for frame in frames}
    measures: dict[int, FrameMeasure] = {}
    for frame in frames:
        stored = stored_measure(frame.info, _arrays_path(folder, frame, raw_folder, options))
        if stored is not None:
            measures[frame.index] = stored
    made = _Stored()
    done = len(measures)
    todo = [frame for frame in frames if frame.index not in measures]
    for is_last in (False, True):
        changed: list[Frame] = []
        left_out: set[int] = set()
        tasks = [
            (frame.info, options, _arrays_path(folder, frame, raw_folder, options), frame.calibration)
            for frame in todo
        ]

        def is_changed(result: FrameMeasure | SkipItem, is_last: bool = is_last) -> bool:
            return isinstance(result, SkipItem) and result.key == "frame_changed" and not is_last

        def told(
            position: int,
            result: FrameMeasure | SkipItem,
            todo: list[Frame] = todo,
            left_out: set[int] = left_out,
        ) -> None:
            nonlocal done
            if is_changed(result):
                return
            done += 1
            context.progress(done, len(frames), todo[position].name)
            if isinstance(result, FrameMeasure):
                made.add(result.arrays_path)
            else:
                left_out.add(position)
                context.leave_out(str(todo[position].info.path), PHASE, result.key, **result.values)

        for position, result in _results(tasks, context, told):
            if is_changed(result):
                changed.append(todo[position])
            elif isinstance(result, FrameMeasure):
                measures[todo[position].index] = result
            elif position not in left_out:
                context.leave_out(str(todo[position].info.path), PHASE, result.key, **result.values)
        todo = _read_anew(changed, context)
        current.update({frame.index: frame for frame in todo})
    made.sync()
    _forget_old(folder, {measure.arrays_path for measure in measures.values()})
    if reused := sum(measure.was_stored for measure in measures.values()):
        context.say("run_info_measures_reused", frames=reused)
    return list(current.values()), measures


def _results(
    tasks: list[MeasureTask], context: RunContext, told: Callable[[int, FrameMeasure | SkipItem], None]
) -> Iterator[tuple[int, FrameMeasure | SkipItem]]:
    """Measure frames, those that a card can do by the policy's decision; ``told`` of each when it is done."""
    on_card = frames_for_card(tasks) if context.cluster is None else []
    if on_card:
        chosen = [tasks[position] for position in on_card]
        results = measure_frames(chosen, context, lambda k, result: told(on_card[k], result))
        yield from zip(on_card, results, strict=True)
    others = sorted(set(range(len(tasks))) - set(on_card))
    for k, result in context.map(
        measure_frame,
        [tasks[position] for position in others],
        name_of=lambda task: str(task[0].path),
        size_of=lambda task: task[0].size_bytes,
        # Decoders are code of others in C: what they do with damaged bytes may end the process.
        apart=lambda task: task[0].data_offset < 0,
        elsewhere=MEASURE_ELSEWHERE,
    ):
        told(others[k], result)
        yield others[k], result


def _read_anew(changed: list[Frame], context: RunContext) -> list[Frame]:
    """Return frames whose headers were rewritten since the survey with what these say now."""
    again = []
    for frame in changed:
        info = result_or_skip(frame.info.path, read_frame_info, frame.info.path)
        if not isinstance(info, SkipItem) and (info.kind, info.shape_hw) != (
            frame.info.kind,
            frame.info.shape_hw,
        ):
            info = frame_changed(frame.info.path)
        if isinstance(info, SkipItem):
            context.leave_out(str(frame.info.path), PHASE, info.key, **info.values)
        else:
            again.append(replace(frame, info=info))
    return again


def _one_of_each(frames: list[Frame], measures: dict[int, FrameMeasure], context: RunContext) -> list[Frame]:
    """Leave out all but the best of frames with the same pixels: a copy would count twice."""
    copies: dict[str, list[Frame]] = defaultdict(list)
    for frame in frames:
        if frame.index in measures:
            copies[measures[frame.index].content_key].append(frame)
    kept = []
    for same in copies.values():
        best, *others = sorted(same, key=_worth, reverse=True) if len(same) > 1 else same
        kept.append(best)
        for frame in others:
            context.leave_out(str(frame.info.path), PHASE, "frame_duplicate", other=str(best.info.path))
    return kept


def _worth(frame: Frame) -> tuple[Any, ...]:
    """Order copies by what their headers know; between equals anything will do that is not their name."""
    info = frame.info
    facts = (
        info.date_obs,
        info.exposure_s,
        info.ra_deg,
        info.scale_arcsec,
        info.instrument,
        info.filter_name,
    )
    known = sum(fact not in (None, "") for fact in facts)
    header = {k: v for k, v in asdict(info).items() if k not in _NOT_FROM_THE_HEADER}
    return info.wcs_cards is not None, known, len(info.wcs_cards or ()), hash_key(header), str(info.path)


def _numbered(
    frames: list[Frame], measures: dict[int, FrameMeasure]
) -> tuple[list[Frame], dict[int, FrameMeasure]]:
    """Number frames by time; the result of a run must not depend on what files are called."""
    order = sorted(frames, key=lambda f: (f.info.date_obs, measures[f.index].content_key))
    by_number = {number: measures[frame.index] for number, frame in enumerate(order)}
    return [replace(frame, index=number) for number, frame in enumerate(order)], by_number


def _warn_of_zeros(frames: list[Frame], measures: dict[int, FrameMeasure], context: RunContext) -> None:
    """Say when the dark side of the sky was cut off at 0: no stack brings it back."""
    shares = {
        context.name_of(frame.info.path): float(measures[frame.index].columns("zero_share")["zero_share"][0])
        for frame in frames
    }
    cut = [name for name, share in shares.items() if share > _MOST_ZEROS]
    if cut:
        worst = max(cut, key=lambda name: shares[name])
        context.say(
            "run_warn_zero_sky", "WARN", frames=len(cut), example=worst, percent=round(100 * shares[worst])
        )


def _persistent(
    frames: list[Frame], measures: dict[int, FrameMeasure], context: RunContext
) -> dict[int, np.ndarray]:
    """Return per frame the hot pixels that stay put on its camera through its night, and those its masters tell."""
    of_sensors = [frame for frame in frames if frame.info.kind in ("cfa", "mono") and not frame.is_tile]
    cameras: dict[int, list[Frame]] = defaultdict(list)
    for frame, label in zip(of_sensors, night_labels([f.info for f in of_sensors]), strict=True):
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
    none = np.empty(0, np.int64)
    with_masters: dict[tuple[int, str], np.ndarray] = {}
    for frame in frames:
        if frame.calibration:
            of_night = found.get(frame.index, none)
            # One list for all frames of a night that are calibrated alike, as above; of_night lives as long as this.
            shared = id(of_night), frame.calibration
            if shared not in with_masters:
                with_masters[shared] = np.union1d(of_night, load_set(frame.calibration).bad)
            found[frame.index] = with_masters[shared]
    if total:
        context.say("run_info_hot_pixels", pixels=total, cameras=len(cameras))
    context.detail(hot_pixels=total)
    return found


def run(frames: list[Frame], raw_folder: Path, options: MeasureOptions, context: RunContext) -> Prepared:
    """Measure all frames, leave out what cannot be used, find persistent hot pixels.

    Measurements are stored under the names that the frames have in ``raw_folder``.

    The frames that are returned are numbered anew, by time.

    Raises
    ------
    RunFailed
        No frame is usable.
    """
    current, measured = _measure_all(frames, raw_folder, options, context)
    usable, measures = _numbered(_one_of_each(current, measured, context), measured)
    _warn_of_zeros(usable, measures, context)
    measures = count_stars_alike(usable, measures)
    raw = [frame for frame in usable if not frame.is_tile]
    shapely = judge_shapes(raw, measures, options, context, PHASE) if raw else []
    # Stacks are judged as what they are, not as frames of a session.
    kept = sorted([*shapely, *(f for f in usable if f.is_tile)], key=lambda frame: frame.index)
    if not kept:
        raise RunFailed(
            "run_error_no_usable_frames", "every frame was left out; see the report for the reasons"
        )
    hot = _persistent(usable, measures, context) if options.find_hot_pixels else {}
    return Prepared(
        tuple((frame, measures[frame.index]) for frame in kept),
        {frame.index: hot[frame.index] for frame in kept if frame.index in hot},
    )
