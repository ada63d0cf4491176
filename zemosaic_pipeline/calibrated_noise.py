"""What calibration means for a stack of frames: which steps all of them went through, and the noise they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from zemosaic_core.calibration import shared_sensor_places
from zemosaic_io.calibration_sets import CalibrationSet
from zemosaic_pipeline.records import FrameTerms, RegisteredFrame

__all__ = ["common_steps", "shared_variance"]

# Closer than this, frames see a star through the same pixels of the sensor.
SAME_PIXELS_PX = 1.0
SetOf = Callable[[int], CalibrationSet | None]


def common_steps(frames: Sequence[RegisteredFrame], set_of: SetOf) -> str:
    """Return the letters of CALSTAT that hold for every frame, done here or before; '' when there are none."""

    def done(frame: RegisteredFrame) -> set[str]:
        used = set_of(frame.solved.frame.index)
        return set(frame.solved.frame.info.calibrated) | set("" if used is None else used.steps)

    steps = set.intersection(*(done(frame) for frame in frames))
    return "".join(letter for letter in "BDF" if letter in steps)


def shared_variance(
    frames: Sequence[RegisteredFrame],
    weights: np.ndarray,
    terms: Sequence[FrameTerms],
    set_of: SetOf,
    sample_variance: float,
) -> np.ndarray | None:
    """Return the variance of the stack that the masters' noise causes and the scatter of the frames does not show.

    Frames that were moved against each other see the masters' noise as their own. Of those that were not, it is the
    same in all: with variance ``s^2`` and a share ``r`` of pairs that see through the same pixels, the scatter lacks
    ``r s^2`` of the variance of the mean.

    Parameters
    ----------
    frames : sequence of RegisteredFrame
    weights : ndarray, shape (N, C)
    terms : sequence of FrameTerms
    set_of : callable
        What the frame of an index is calibrated with.
    sample_variance : float
        Variance of a sample relative to that of a pixel.

    Returns
    -------
    ndarray, shape (C,), or None
        ADU^2 on the scale of the stack; None when no frame is calibrated.
    """
    used = [set_of(frame.solved.frame.index) for frame in frames]
    chosen = [i for i, found in enumerate(used) if found is not None]
    if not chosen:
        return None
    height, width = frames[0].solved.frame.info.shape_hw
    corners = [(0.1 * width, 0.1 * height), (0.9 * width, 0.6 * height)]
    places = [
        np.array([np.ravel(frames[i].to_plane.apply(np.array([x]), np.array([y]))) for i in chosen])
        for x, y in corners
    ]
    n_channels = weights.shape[1]
    found = np.zeros(n_channels)
    for c in range(n_channels):
        total = float(weights[:, c].sum())
        if not total > 0:
            continue
        own = np.array([weights[i, c] for i in chosen], float)
        shared = shared_sensor_places(places, own, SAME_PIXELS_PX) * (own.sum() / total) ** 2
        variance = [
            (float(terms[i].photometry[c, 0]) ** 2) * used[i].variance_at(frames[i].solved.measure.sky_adu[c])  # type: ignore[union-attr]
            for i in chosen
        ]
        found[c] = shared * sample_variance * float(np.average(variance, weights=np.maximum(own, 1e-30)))
    return found
