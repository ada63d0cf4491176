"""Frames that stand out badly in their session are flagged, and left out where that is wished.

The shape of stars is judged in phase 1. The air is judged when the frames share one flux scale: a frame through clouds
shows the stars of the others, but dimmer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from zemosaic_core.frame_verdicts import (
    air_verdicts,
    counts_at_common_limit,
    relative_transparency,
    shape_verdicts,
)
from zemosaic_core.light_digits import rounded_light
from zemosaic_pipeline.context import RunContext
from zemosaic_pipeline.measure import MeasureOptions
from zemosaic_pipeline.pointings import pointing_labels
from zemosaic_pipeline.records import Frame, FrameMeasure, RegisteredFrame
from zemosaic_pipeline.sessions import night_labels, session_labels, setup_labels

__all__ = ["count_stars_alike", "judge_air", "judge_shapes"]


def count_stars_alike(
    frames: Sequence[Frame], measures: Mapping[int, FrameMeasure]
) -> dict[int, FrameMeasure]:
    """Return the measures with the stars of each frame counted down to the same flux as in its whole session."""
    tables = [measures[frame.index].columns("flux", "snr") for frame in frames]
    counts = counts_at_common_limit(
        [table["flux"] for table in tables],
        [table["snr"] for table in tables],
        session_labels([frame.info for frame in frames]),
    )
    return {
        frame.index: replace(measures[frame.index], n_stars=int(count))
        for frame, count in zip(frames, counts, strict=True)
    }


def judge_shapes(
    frames: Sequence[Frame],
    measures: Mapping[int, FrameMeasure],
    options: MeasureOptions,
    context: RunContext,
    phase: str,
) -> list[Frame]:
    """Return the frames to keep; trailed and defocused ones are flagged."""
    infos = [frame.info for frame in frames]
    rows = [measures[frame.index] for frame in frames]
    verdicts = shape_verdicts(
        [_sharp_fwhm_px(row) for row in rows],
        [row.elongation for row in rows],
        sessions=session_labels(infos),
        nights=night_labels(infos),
        sigma=options.quality_sigma,
    )
    return [
        frame
        for frame, row, key in zip(frames, rows, verdicts, strict=True)
        if not key or not _flag(frame, key, _shown(row), options, context, phase)
    ]


def _sharp_fwhm_px(measure: FrameMeasure) -> float:
    """Return the width that the sharper quarter of a frame's stars stays below.

    Out of focus all stars are wide. Where a tree hides most of them, blobs at its edge are half of what is left.
    """
    widths = measure.columns("fwhm_px")["fwhm_px"]
    return float(np.nanpercentile(widths, 25.0)) if len(widths) else math.nan


def judge_air(
    frames: Sequence[RegisteredFrame], options: MeasureOptions, context: RunContext, phase: str
) -> tuple[RegisteredFrame, ...]:
    """Return the frames to keep, with their transparency relative to clear air; bad air is flagged.

    Frames of another exposure, gain, filter or telescope have their own clear air: what their stars lack against
    those of the others is no haze.
    """
    infos = [frame.solved.frame.info for frame in frames]
    measures = [frame.solved.measure for frame in frames]
    given = [measure.transparency for measure in measures]
    skies = [np.mean(measure.sky_adu) for measure in measures]
    verdicts = air_verdicts(
        given,
        [sky / (info.exposure_s or 1.0) for sky, info in zip(skies, infos, strict=True)],
        sessions=session_labels(infos),
        pointings=pointing_labels(infos),
        sigma=options.quality_sigma,
    )
    shown = relative_transparency(given, setup_labels(infos))
    kept = []
    for frame, key, value in zip(frames, verdicts, shown, strict=True):
        measure = replace(frame.solved.measure, transparency=float(value))
        values = {**_shown(measure), "transparency": round(float(value), 2)}
        if key and _flag(frame.solved.frame, key, values, options, context, phase):
            continue
        kept.append(replace(frame, solved=replace(frame.solved, measure=measure)))
    return tuple(kept)


def _shown(measure: FrameMeasure) -> dict[str, Any]:
    return {
        "stars": measure.n_stars,
        "fwhm_px": round(measure.fwhm_px, 2),
        "elongation": round(measure.elongation, 2),
        "sky_adu": rounded_light(float(np.mean(measure.sky_adu)), 0, 3),
    }


def _flag(
    frame: Frame,
    key: str,
    values: Mapping[str, Any],
    options: MeasureOptions,
    context: RunContext,
    phase: str,
) -> bool:
    """Leave a frame out, or only say so; return whether it is left out."""
    path = str(frame.info.path)
    if options.exclude_flagged:
        context.leave_out(path, phase, key, **values)
    else:
        context.say("frame_flagged_kept", "WARN", path=path, reason_key=key, **values)
    return options.exclude_flagged
