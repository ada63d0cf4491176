"""Whether a run has a cluster, and what its workers must have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from zemosaic_io.headers import FrameInfo
from zemosaic_pipeline.cost import frame_bytes
from zemosaic_pipeline.elsewhere import Requirements, frame_there, versions
from zemosaic_pipeline.frame_kinds import largest_frame
from zemosaic_settings.executor import PathMap

if TYPE_CHECKING:
    from zemosaic_pipeline.cluster import Cluster
    from zemosaic_pipeline.context import RunContext
    from zemosaic_settings import Settings

__all__ = ["cluster_of", "requirements_of"]

# Folders of which one file is looked at by every worker.
_MOST_PROBES = 16


def cluster_of(settings: Settings, context: RunContext, memory_bytes: int) -> Cluster | None:
    """Return the cluster that the settings ask for; None for a run on this machine alone.

    Raises
    ------
    SettingsError
        ``cluster_no_library``, ``cluster_unreachable``.
    """
    choice = settings.executor_choice
    if choice.kind == "local":
        return None
    from zemosaic_pipeline.cluster import Cluster

    return Cluster(
        choice,
        settings.path_map if choice.kind == "scheduler" else PathMap(),
        context.run_id,
        workers=context.workers,
        memory_bytes=memory_bytes,
        folder=context.work_dir,
        check=context.cancel.check,
        say=context.say,
    )


def requirements_of(infos: Sequence[FrameInfo], run_id: str, paths: PathMap) -> Requirements:
    """Return what a worker must have for these frames: the same program, their folders, room for the largest."""
    one_of_each = {info.path.parent: info for info in reversed(infos)}
    probes = [
        (str(frame_there(info, paths).path), info.size_bytes)
        for info in sorted(one_of_each.values(), key=lambda info: str(info.path))[:_MOST_PROBES]
    ]
    return Requirements(run_id, versions(), tuple(probes), frame_bytes(largest_frame(infos)))
