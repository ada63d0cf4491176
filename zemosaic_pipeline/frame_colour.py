"""What is known of the light of each raw frame: its sky, its noise and the colour of its camera's average star."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zemosaic_core.cfa import CfaColour, average_star
from zemosaic_pipeline.records import RegisteredFrame

__all__ = ["frame_colours"]

# Fainter stars have colours of noise.
MIN_SNR = 10.0


def frame_colours(frames: Sequence[RegisteredFrame]) -> dict[int, CfaColour]:
    """Return what debayering wants to know of each frame, by frame index.

    The average star is that of all frames with the same camera and filter. A frame whose sky, noise or stars say
    nothing of one of the colours has no entry: it is debayered as grey.
    """
    fluxes: dict[tuple[str, str], list[np.ndarray]] = {}
    for frame in frames:
        if frame.solved.frame.info.kind == "cfa":
            arrays = frame.solved.measure.columns("snr", "channel_flux")
            bright = arrays["snr"] >= MIN_SNR
            fluxes.setdefault(_light_path(frame), []).append(arrays["channel_flux"][:, bright])
    stars = {path: average_star(np.concatenate(found, axis=1)) for path, found in fluxes.items()}
    colours = {}
    for frame in frames:
        star = stars.get(_light_path(frame))
        sky, noise = frame.solved.measure.sky_adu, frame.solved.measure.noise_adu
        usable = np.isfinite(sky).all() and np.isfinite(noise).all() and min(noise) > 0
        if frame.solved.frame.info.kind == "cfa" and star is not None and usable:
            colours[frame.solved.frame.index] = CfaColour(sky, noise, star)
    return colours


def _light_path(frame: RegisteredFrame) -> tuple[str, str]:
    info = frame.solved.frame.info
    return info.instrument, info.filter_name
