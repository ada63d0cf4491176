"""How large a mosaic becomes, from the positions in the headers alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from zemosaic_io.headers import FrameInfo
from zemosaic_pipeline.frame_kinds import largest_frame

__all__ = ["estimate_canvas"]


def estimate_canvas(infos: Sequence[FrameInfo]) -> tuple[int, int]:
    """Guess height and width (px) of the mosaic from the headers' positions alone."""
    height, width = largest_frame(infos).shape_hw
    hints = [(i.ra_deg, i.dec_deg) for i in infos if i.ra_deg is not None and i.dec_deg is not None]
    scale = infos[0].scale_arcsec
    if not hints or scale is None:
        return height, width
    ra, dec = np.radians(np.array(hints, dtype=float)).T
    mean = np.array(
        [np.mean(np.cos(dec) * np.cos(ra)), np.mean(np.cos(dec) * np.sin(ra)), np.mean(np.sin(dec))]
    )
    ra0 = math.atan2(mean[1], mean[0])
    east = (np.mod(ra - ra0 + np.pi, 2 * np.pi) - np.pi) * np.cos(dec)
    px = 3600 / scale
    return height + round(float(np.degrees(np.ptp(dec))) * px), width + round(
        float(np.degrees(np.ptp(east))) * px
    )
