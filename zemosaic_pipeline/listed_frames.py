"""Which frames a list in the input folder names, and in which batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zemosaic_io.stack_plan import StackPlan, find_stack_plan, read_stack_plan
from zemosaic_settings import Settings

__all__ = ["listed_batches", "listed_frames"]


def listed_frames(settings: Settings) -> StackPlan | None:
    """Return the list of frames in the input folder; None when there is none, or it shall not count.

    Raises
    ------
    RunFailed
        The list cannot be used; one sentence says why.
    """
    if settings.grid_mode == "off":
        return None
    path = find_stack_plan(Path(settings.input_dir))
    if path is None:
        return None
    return read_stack_plan(path, recursive=settings.scan_recursive, exclude=[Path(settings.output_dir)])


def listed_batches(listed: StackPlan | None) -> Sequence[Sequence[str]]:
    """Return the paths of each batch; nothing without a list."""
    return () if listed is None else listed.batches
