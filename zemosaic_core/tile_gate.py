"""Whether a stack that is given to a mosaic is poor among the others: one decision, with its reason. Numbers only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from zemosaic_core.statistics import mad_sigma

__all__ = ["TileVerdict", "judge_tiles"]

# Stacks differ in depth: scatter of the logarithm of the noise below which none stands out.
_LEAST_SCATTER = 0.1


@dataclass(frozen=True)
class TileVerdict:
    """What is wrong with a stack: a text key with its values; '' for nothing."""

    key: str = ""
    values: dict[str, Any] = field(default_factory=dict)


def judge_tiles(
    noise: Sequence[float],
    valid_share: Sequence[float],
    *,
    sigma: float,
    ratio: float,
    min_valid: float,
) -> list[TileVerdict]:
    """Judge stacks against each other.

    Parameters
    ----------
    noise : sequence of float, length N
        Noise of a pixel of each, on one flux scale and of one size; NaN where unknown.
    valid_share : sequence of float, length N
        Share of the pixels of each that hold a picture.
    sigma : float
        Noise above that of the others by more than so many of their scatters (of the logarithm) is poor. From four
        stacks on.
    ratio : float
        Noise of more than so many times the median is poor, whatever the scatter.
    min_valid : float
        Least share of valid pixels.
    """
    known = np.array(noise, float)
    log = np.log(np.where(known > 0, known, np.nan))
    finite = log[np.isfinite(log)]
    middle = float(np.median(finite)) if finite.size else np.nan
    scatter = max(float(mad_sigma(finite)), _LEAST_SCATTER) if finite.size else np.nan
    verdicts = []
    for own, share in zip(log, valid_share, strict=True):
        away = own - middle
        if share < min_valid:
            values = {"percent": round(100 * share, 1), "least": round(100 * min_valid, 1)}
            verdicts.append(TileVerdict("tile_mostly_empty", values))
        elif np.isfinite(away) and away > min(np.log(ratio), sigma * scatter if len(finite) >= 4 else np.inf):
            verdicts.append(TileVerdict("tile_noisy", {"times": round(float(np.exp(away)), 1)}))
        else:
            verdicts.append(TileVerdict())
    return verdicts
