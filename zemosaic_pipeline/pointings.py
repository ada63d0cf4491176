"""Which frames point alike, judged by what the mount wrote into the headers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from zemosaic_core.sphere import separation_deg
from zemosaic_io.headers import FrameInfo

__all__ = ["field_deg", "pointing_labels"]

# Frames hinted closer together than this share of their field are taken for one pointing.
SAME_POINTING_FIELDS = 0.25
# A Seestar's field, for headers that do not tell the scale.
USUAL_FIELD_DEG = 1.5


def field_deg(info: FrameInfo) -> float:
    """Diagonal of the frame's field, degrees."""
    if info.scale_arcsec is None:
        return USUAL_FIELD_DEG
    return math.hypot(*info.shape_hw) * info.scale_arcsec / 3600


def pointing_labels(infos: Sequence[FrameInfo]) -> list[int]:
    """Return one number per frame; the same for frames of one night and instrument that point alike.

    Frames without a position form one pointing per night. Compared with the first frame of each pointing, so
    the answer depends on the order of the frames but not on how many there are.
    """
    first: list[tuple[FrameInfo, tuple[float, float] | None]] = []
    labels: list[int] = []
    for info in infos:
        hint = None if info.ra_deg is None or info.dec_deg is None else (info.ra_deg, info.dec_deg)
        for label, (other, centre) in enumerate(first):
            if (other.night, other.instrument, other.shape_hw) != (
                info.night,
                info.instrument,
                info.shape_hw,
            ):
                continue
            if hint is None or centre is None:
                if hint is centre:
                    labels.append(label)
                    break
                continue
            if float(separation_deg(*hint, *centre)) < SAME_POINTING_FIELDS * field_deg(info):
                labels.append(label)
                break
        else:
            labels.append(len(first))
            first.append((info, hint))
    return labels
