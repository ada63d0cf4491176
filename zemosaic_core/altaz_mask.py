"""Corners that a turning field leaves thin: a soft mask from the coverage, or from the shape alone. Arrays only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

__all__ = ["AltAzOptions", "altaz_mask"]


@dataclass(frozen=True)
class AltAzOptions:
    """How corners are masked.

    Attributes
    ----------
    margin_percent : float
        Width of the rim that may be masked, in percent of the half diagonal (without coverage) or, times `decay`, of
        the soft edge in percent of the shorter side (with it). 0 to 50.
    decay : float
        Width of the soft edge over that of the rim.
    min_coverage_abs, min_coverage_frac : float
        Pixels of fewer frames, or of a smaller share of what is usual in the middle, are masked.
    morph_open_px : int
        Peninsulas narrower than twice this are masked, too.
    """

    margin_percent: float = 5.0
    decay: float = 0.15
    min_coverage_abs: float = 3.0
    min_coverage_frac: float = 0.5
    morph_open_px: int = 3


def altaz_mask(
    shape_hw: tuple[int, int], coverage: np.ndarray | None = None, options: AltAzOptions | None = None
) -> np.ndarray:
    """Return what is left of each pixel, 0 to 1.

    Parameters
    ----------
    shape_hw : tuple of int
    coverage : ndarray, shape (h, w), optional
        Frames per pixel. Without it only the distance from the centre tells.
    options : AltAzOptions, optional

    Returns
    -------
    ndarray, shape (h, w), float32

    Raises
    ------
    ValueError
        A number is out of range, or the coverage has another shape.
    """
    options = options or AltAzOptions()
    if not 0 <= options.margin_percent <= 50 or options.decay < 0 or options.morph_open_px < 0:
        raise ValueError(f"margin_percent in [0, 50], decay and morph_open_px >= 0; got {options}")
    height, width = shape_hw
    margin = options.margin_percent / 100.0
    if coverage is None:
        y = (np.arange(height, dtype=np.float32) - np.float32((height - 1) / 2))[:, None]
        x = (np.arange(width, dtype=np.float32) - np.float32((width - 1) / 2))[None, :]
        radius = np.hypot(y, x) / np.float32(max(np.hypot(height - 1, width - 1) / 2, 1e-6))
        if margin == 0:
            return np.ones(shape_hw, np.float32)
        return 1 - _smoothstep((radius - (1 - margin)) / max(margin * options.decay, 1e-6))
    coverage = np.nan_to_num(np.asarray(coverage, np.float32))
    if coverage.shape != tuple(shape_hw):
        raise ValueError(f"the coverage has the shape {coverage.shape}, the picture {tuple(shape_hw)}")
    middle = coverage[height // 4 : max(1, height - height // 4), width // 4 : max(1, width - width // 4)]
    usual = float(np.median(middle[middle > 0])) if (middle > 0).any() else 0.0
    # A stack of two frames has no pixel of three.
    least = max(min(options.min_coverage_abs, usual), options.min_coverage_frac * usual)
    deep = (coverage >= least) & (coverage > 0)
    if options.morph_open_px > 0:
        reach = 2 * options.morph_open_px + 1
        # The border of the picture is no border of the coverage.
        padded = np.pad(deep, reach, mode="edge")
        opened = ndimage.binary_opening(padded, np.ones((reach, reach), bool))
        deep = opened[reach:-reach, reach:-reach]
    soft = margin * options.decay * min(shape_hw)
    if soft < 1 or not deep.any() or deep.all():
        return deep.astype(np.float32)
    return _smoothstep(ndimage.distance_transform_edt(deep) / soft)


def _smoothstep(r: np.ndarray) -> np.ndarray:
    r = np.clip(r, 0, 1).astype(np.float32)
    return np.asarray(r * r * (3 - 2 * r), np.float32)
