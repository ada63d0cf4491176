"""What the frames of one run have in common, and which of them is the largest; from headers alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from zemosaic_io.headers import FrameInfo

__all__ = ["largest_frame", "majority_kind"]


def majority_kind(infos: Sequence[FrameInfo]) -> str:
    """Return the kind that most frames have; ties go to the larger frames, whatever the files are called.

    Samples of a sensor, one plane and three planes are not mixed: in a folder of frames the others are what somebody
    made of them.
    """
    counts = Counter(info.kind for info in infos)
    largest = {
        kind: math.prod(largest_frame([i for i in infos if i.kind == kind]).shape_hw) for kind in counts
    }
    return max(counts, key=lambda kind: (counts[kind], largest[kind], kind))


def largest_frame(infos: Sequence[FrameInfo]) -> FrameInfo:
    """Return the frame with the most pixels, which says how much memory one frame can take."""
    return max(infos, key=lambda info: math.prod(info.shape_hw))
