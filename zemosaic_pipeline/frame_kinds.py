"""What the frames of one run have in common, and which of them is the largest; from headers alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from zemosaic_io.headers import FrameInfo

__all__ = ["geometry", "largest_frame", "majority_geometry"]


def geometry(info: FrameInfo) -> tuple[str, tuple[int, int] | None]:
    """Return what frames of one run have in common: their kind, and the size of the sensor when they come from it.

    Pictures of three planes and stacks were made by a program that cuts them as it likes.
    """
    return info.kind, None if info.kind == "rgb" or info.is_stack else info.shape_hw


def majority_geometry(infos: Sequence[FrameInfo]) -> tuple[str, tuple[int, int] | None]:
    """Return the geometry that most frames have; ties go to the larger frames, whatever the files are called."""
    counts = Counter(map(geometry, infos))
    return max(
        counts, key=lambda found: (counts[found], math.prod(found[1] or (0,)), found[0], found[1] or ())
    )


def largest_frame(infos: Sequence[FrameInfo]) -> FrameInfo:
    """Return the frame with the most pixels, which says how much memory one frame can take."""
    return max(infos, key=lambda info: math.prod(info.shape_hw))
