"""What of a frame is no measurement: empty borders of stacks become missing, frames that were damaged are refused."""

from __future__ import annotations

import numpy as np

from zemosaic_core.errors import SkipItem
from zemosaic_core.missing_data import constant_share, has_empty_border, zeros_to_nan
from zemosaic_io.headers import FrameInfo

__all__ = ["without_missing"]

# A block or two may be a blemish; more is a copy that was cut off, or memory that was not read out.
_MOST_CONSTANT = 0.005


def without_missing(info: FrameInfo, data: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return the pixels of a whole frame with missing ones as NaN, and whether zeros are the missing ones.

    Parameters
    ----------
    data : ndarray, shape (h, w) or (3, h, w)
        As read. Returned as it is unless a picture (not a CFA frame) has an empty border; then as float32.

    Raises
    ------
    SkipItem
        ``frame_damaged``: much of a raw frame has one exact value.
    """
    if info.kind != "cfa" and has_empty_border(data):
        planes = np.asarray(data, np.float32).reshape(-1, *info.shape_hw)
        everything = (slice(0, info.shape_hw[0]), slice(0, info.shape_hw[1]))
        return zeros_to_nan(planes, everything).reshape(data.shape), True
    if data.ndim == 2:
        share = constant_share(data, zero_bytes=info.bzero)
        if share > _MOST_CONSTANT:
            raise SkipItem(
                "frame_damaged",
                f"{info.path}: {100 * share:.0f} % of its pixels have one exact value",
                path=str(info.path),
                percent=round(100 * share),
            )
    return data, False
