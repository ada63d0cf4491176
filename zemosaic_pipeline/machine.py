"""What this computer gives a run: processors, memory, disk and file handles, with the limits set on this process."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from zemosaic_core.errors import RunFailed
from zemosaic_pipeline.child import is_process_limit

__all__ = ["Machine", "available_memory", "enough_file_handles", "free_disk", "no_more_processes"]

# What a group of processes without a limit has on cgroup v1: more than any memory.
_NO_LIMIT = 1 << 60
_WANTED_HANDLES = 1024


@dataclass(frozen=True)
class Machine:
    """Facts about this computer: cores, free memory (bytes), free disk (bytes) where the output goes."""

    cores: int
    memory_bytes: int
    disk_bytes: int

    @staticmethod
    def probe(output_dir: Path) -> Machine:
        """Look at the machine now."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return Machine(cores, available_memory(), free_disk(output_dir))


def free_disk(folder: Path) -> int:
    """Return the bytes free where a folder is, or will be."""
    while not os.path.exists(folder):
        folder = folder.parent
    return shutil.disk_usage(folder).free


def available_memory(root: Path = Path("/")) -> int:
    """Return the bytes a run may take: what is free, less where a limit is nearer.

    Limits are those of control groups (containers, batch systems), of the address space and of the data of a process
    (``ulimit -v`` and ``-d``). ``root`` is where the system's own file systems are.
    """
    free = int(psutil.virtual_memory().available)
    return max(0, min(free, _left_in_groups(root), _left_to_process()))


def no_more_processes(error: BaseException) -> RunFailed | None:
    """Return what to tell of an error that is a limit of processes or threads (``ulimit -u``); None of another one."""
    if not is_process_limit(error):
        return None
    return RunFailed("run_error_processes", f"the system allows no more processes or threads: {error}")


def enough_file_handles() -> int:
    """Let this process open as many files as it may, a thousand at most; return how many that is."""
    if os.name != "posix":
        return _WANTED_HANDLES
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft == unlimited or soft >= _WANTED_HANDLES:
        return _WANTED_HANDLES
    wanted = _WANTED_HANDLES if hard == unlimited else min(_WANTED_HANDLES, hard)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return int(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def _left_in_groups(root: Path) -> int:
    """Return what the control groups of this process leave; pages of files they hold can be given back."""
    left = [_NO_LIMIT]
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return _NO_LIMIT
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # Inside a container the path is often that of the host, and the group itself is at the top.
        group = top / path.strip("/")
        for folder in (group, *group.parents):
            if folder == top.parent:
                break
            left.append(_left_in_group(folder, *names))
    return min(left)


def _left_in_group(folder: Path, limit_name: str, usage_name: str, cache_name: str) -> int:
    try:
        limit = (folder / limit_name).read_text().strip()
        if limit == "max" or int(limit) >= _NO_LIMIT:
            return _NO_LIMIT
        used = int((folder / usage_name).read_text())
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return int(limit) - used + int(statistics.get(cache_name, 0))
    except (OSError, ValueError):
        return _NO_LIMIT


def _left_to_process() -> int:
    """Return what the limits of a process leave to this one."""
    if os.name != "posix":
        return _NO_LIMIT
    import resource

    info = psutil.Process().memory_info()
    left = [_NO_LIMIT]
    limits = [(resource.RLIMIT_AS, info.vms)]
    if sys.platform == "linux":
        # psutil's "data" counts the stack as well; that errs on the safe side.
        limits.append((resource.RLIMIT_DATA, info.data))
    for which, used in limits:
        soft, _ = resource.getrlimit(which)
        if soft != resource.RLIM_INFINITY:
            left.append(soft - used)
    return min(left)
