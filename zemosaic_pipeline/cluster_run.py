"""Whether a run has a cluster, and what its workers must have."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zemosaic_core.errors import RunFailed
from zemosaic_io.headers import FrameInfo
from zemosaic_pipeline.cost import frame_bytes
from zemosaic_pipeline.elsewhere import Requirements, frame_there, versions
from zemosaic_pipeline.frame_kinds import largest_frame
from zemosaic_settings.executor import PathMap

if TYPE_CHECKING:
    from zemosaic_pipeline.cluster import Cluster
    from zemosaic_pipeline.context import RunContext
    from zemosaic_settings import Settings

__all__ = ["cluster_of", "look_at_cluster", "require_workers"]

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


def require_workers(context: RunContext, infos: Sequence[FrameInfo]) -> int:
    """Find the workers that are fit for these frames; return how many there are on other machines.

    Raises
    ------
    RunFailed
        ``cluster_no_worker``
    """
    cluster = context.cluster
    if cluster is None or not infos:
        return 0
    cluster.require(_requirements(infos, context.run_id, cluster.paths))
    return 0 if cluster.is_on_this_machine else cluster.workers


def look_at_cluster(
    settings: Settings, infos: Sequence[FrameInfo], workers: int
) -> tuple[int, tuple[dict[str, Any], ...]]:
    """Return how many workers of a cluster would take part in a run, and what there is to say of them.

    Parameters
    ----------
    workers : int
        Processes of a cluster that a run would start on this machine.

    Returns
    -------
    tuple of int and tuple of dict
        Workers on other machines; text keys with their values.

    Raises
    ------
    SettingsError
        As `cluster_of`.
    """
    choice = settings.executor_choice
    if choice.kind == "local":
        return 0, ()
    from zemosaic_pipeline.cluster import Cluster

    if choice.kind == "dask":
        return 0, ({"key": "cluster_workers", "values": {"workers": workers, "hosts": socket.gethostname()}},)
    said: list[dict[str, Any]] = []

    def say(key: str, _level: str = "INFO", /, **values: Any) -> None:
        said.append({"key": key, "values": values})

    run_id = f"plan-{uuid.uuid4().hex[:8]}"
    with Cluster(choice, settings.path_map, run_id, say=say) as cluster:
        try:
            cluster.require(_requirements(infos, run_id, cluster.paths))
        except RunFailed as none:
            say(none.key, **none.values)
        return cluster.workers, tuple(said)


def _requirements(infos: Sequence[FrameInfo], run_id: str, paths: PathMap) -> Requirements:
    """Return what a worker must have for these frames: the same program, their folders, room for the largest."""
    one_of_each = {info.path.parent: info for info in reversed(infos)}
    probes = [
        (str(frame_there(info, paths).path), info.size_bytes)
        for info in sorted(one_of_each.values(), key=lambda info: str(info.path))[:_MOST_PROBES]
    ]
    return Requirements(run_id, versions(), tuple(probes), frame_bytes(largest_frame(infos)))
