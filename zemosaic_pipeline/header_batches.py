"""Reading the headers of many files in a process that does nothing else: it imports little and stays small."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zemosaic_core.errors import SkipItem
from zemosaic_io.headers import FrameInfo, read_frame_info
from zemosaic_io.light_frames import refuse_other_than_light
from zemosaic_pipeline.frame_boundary import result_or_skip
from zemosaic_pipeline.records import LeftOut

__all__ = ["PHASE", "read_batch"]

PHASE = "phase0_survey"


def read_batch(paths: Sequence[str], root: Path | None = None) -> list[FrameInfo | LeftOut]:
    """Read headers; a file below ``root`` that cannot be used becomes a `LeftOut`."""
    found: list[FrameInfo | LeftOut] = []
    for path in paths:
        result = result_or_skip(path, _read_light, path, root)
        if isinstance(result, SkipItem):
            values = {key: value for key, value in result.values.items() if key != "path"}
            result = LeftOut(path, PHASE, result.key, values)
        found.append(result)
    return found


def _read_light(path: str, root: Path | None) -> FrameInfo:
    info = read_frame_info(Path(path))
    refuse_other_than_light(info, root)
    return info
