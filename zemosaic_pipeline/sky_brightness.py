"""How bright the sky of each frame was, where stars and the noise of the sky tell it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from zemosaic_core.sky_brightness import sky_magnitude
from zemosaic_pipeline.records import Mosaic, RegisteredFrame
from zemosaic_pipeline.sky import SkySolution

__all__ = ["brightness_facts", "sky_brightness"]

_GREEN = {1: 0, 3: 1}
"""Channel that is nearest to V, by the number of channels."""


def sky_brightness(
    frames: Sequence[RegisteredFrame], behind: SkySolution | None, mosaic: Mosaic
) -> dict[int, tuple[float, float]]:
    """Return V in mag per square arcsecond and its error by the index of a frame.

    Empty where the zero point of the mosaic is not known, or the pedestal of the camera was not measured: the sky of a
    raw frame is light and pedestal together.
    """
    solution = mosaic.colour.solution
    if solution is None or behind is None or behind.model is None or not behind.model.pedestal.measured:
        return {}
    # Finished stacks are on skies of their own.
    modelled = set(behind.frames)
    frames = [frame for frame in frames if frame.solved.frame.index in modelled]
    pedestal = behind.model.pedestal
    c = _GREEN[len(solution.zero_points)]
    zero = solution.zero_points[c]
    if not frames:
        return {}
    gains = np.array([frame.gain[c] for frame in frames], float)
    sky = np.array([frame.solved.measure.sky_adu[c] for frame in frames], float)
    mag, sigma = sky_magnitude(
        gains * (sky - pedestal.level_adu[c]),
        gains * float(pedestal.sigma_adu[c]),
        zero.at_white,
        mosaic.grid.scale_arcsec,
    )
    return {
        frame.solved.frame.index: (float(m), float(np.hypot(s, zero.sigma)))
        for frame, m, s in zip(frames, mag, sigma, strict=True)
        if np.isfinite(m)
    }


def brightness_facts(brightness: Mapping[int, tuple[float, float]]) -> dict[str, float] | None:
    """Return what the report says: the middle of the night, its darkest and brightest frame, and the error."""
    if not brightness:
        return None
    mag, sigma = np.array(list(brightness.values())).T
    return {
        "median": round(float(np.median(mag)), 2),
        "darkest": round(float(mag.max()), 2),
        "brightest": round(float(mag.min()), 2),
        "sigma": round(float(np.median(sigma)), 2),
    }
