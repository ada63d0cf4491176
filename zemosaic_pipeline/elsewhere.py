"""What runs on the other machines of a cluster: whether one is fit for a run, and one call at a time.

A worker writes no file and keeps nothing of a run but what was sent to it. It imports nothing heavy until it is asked.
"""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import platform
import shutil
import socket
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, cast

from zemosaic_core import __version__
from zemosaic_core.errors import Cancelled, SkipItem, ZeMosaicError
from zemosaic_io.calibration_sets import CalibrationSet, forget_received, receive_set
from zemosaic_pipeline.frame_boundary import portable_error
from zemosaic_pipeline.heap import keep_one_heap
from zemosaic_pipeline.patient_reads import reads_of_process

if TYPE_CHECKING:
    from zemosaic_io.headers import FrameInfo
    from zemosaic_settings.executor import PathMap

__all__ = [
    "Answer",
    "Call",
    "Elsewhere",
    "OwnWorker",
    "Requirements",
    "RunStop",
    "Unfit",
    "WorkerFacts",
    "admit",
    "dismiss",
    "frame_there",
    "keep_sets",
    "own_worker",
    "resource_of",
    "run_folder",
    "stop",
    "unfit_of_disk",
    "versions",
    "work",
    "work_packed",
]

# What the result of a run follows from, bit by bit.
_LIBRARIES = ("numpy", "scipy", "numba", "sep", "astropy")
_CODE = ("zemosaic_core", "zemosaic_io", "zemosaic_pipeline", "zemosaic_utils.py", "zemosaic_align_stack.py")
_NO_ROOM = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))

_FOLDER = "zemosaic_"
_OLD_S = 2 * 86400.0

_STOPPED: set[str] = set()


class Unfit(ZeMosaicError):
    """A worker cannot take part in the run, and why; its work is done by others."""


@dataclass(frozen=True)
class Elsewhere:
    """How items are worked on by machines that do not have this one's folders.

    Attributes
    ----------
    function : callable
        Runs there with one argument; can be imported.
    send : callable
        ``send(item, path_map)`` returns that argument.
    receive : callable
        ``receive(item, answer)`` returns what the function of this machine would have returned.
    """

    function: Callable[[Any], Any]
    send: Callable[[Any, PathMap], Any] = lambda item, _: item
    receive: Callable[[Any, Any], Any] = lambda _, answer: answer


@dataclass(frozen=True)
class Requirements:
    """What a worker must have to take part in a run.

    Attributes
    ----------
    run_id : str
    versions : mapping
        `versions` of the machine that asks.
    probes : tuple of (str, int)
        Files it must see, under the names it has for them, and their sizes in bytes.
    memory_bytes : int
        Least memory of a worker process.
    """

    run_id: str
    versions: Mapping[str, str]
    probes: tuple[tuple[str, int], ...] = ()
    memory_bytes: int = 0


@dataclass(frozen=True)
class WorkerFacts:
    """A worker process: who and where it is, what it has (memory in bytes, 0: no limit), and why it is unfit, if so."""

    name: str
    host: str
    pid: int
    threads: int
    memory_bytes: int
    has_card: bool
    unfit: Unfit | None = None


@dataclass(frozen=True)
class Call:
    """A function with its arguments, on its way to a worker."""

    run_id: str
    probes: tuple[tuple[str, int], ...]
    function: Callable[..., Any]
    args: tuple[Any, ...]


@dataclass(frozen=True)
class Answer:
    """What became of a call, and on which worker: a value, an error of the call, or the worker was unfit for it.

    ``seconds`` is how long it took there.
    """

    worker: str
    host: str
    value: Any = None
    error: BaseException | None = None
    unfit: Unfit | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class RunStop:
    """Tells a call at work whether its run was stopped, or the call alone, if it has a name; asked on the worker."""

    run_id: str
    call: str = ""

    @property
    def name(self) -> str:
        """What `stop` is told."""
        return f"{self.run_id}/{self.call}" if self.call else self.run_id

    def is_set(self) -> bool:
        """Whether it was stopped."""
        return self.run_id in _STOPPED or self.name in _STOPPED


def frame_there(info: FrameInfo, paths: PathMap) -> FrameInfo:
    """Return a frame under the name that the other machines have for it, whatever their system is."""
    there = paths.there(str(info.path))
    pure = PurePosixPath(there) if there.startswith("/") else PureWindowsPath(there)
    return replace(info, path=cast(Path, pure))


def resource_of(run_id: str) -> str:
    """Return the name of the Dask resource that fit workers have one of: so each has one call of the run at a time."""
    return f"zemosaic-{run_id}"


@cache
def versions() -> dict[str, str]:
    """Return the versions that results follow from; of the program also a digest of its source."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for name in _CODE:
        place = root / name
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.suffix in (".py", ".cu", ".cuh"):
                # Systems end lines differently.
                digest.update(path.read_bytes().replace(b"\r\n", b"\n"))
    found = {"zemosaic": f"{__version__} ({digest.hexdigest()[:8]})"}
    found["python"] = ".".join(platform.python_version_tuple()[:2])
    return found | {name: metadata.version(name) for name in _LIBRARIES}


def run_folder(worker_folder: str, run_id: str) -> Path:
    """Return the folder that the workers of a computer share for a run, beside those that Dask has for them."""
    return Path(worker_folder).parent / f"{_FOLDER}{run_id}"


def _remove_old_folders(place: Path) -> None:
    """Remove what workers left that were killed; nobody misses what a run of days ago unpacked."""
    for folder in place.glob(f"{_FOLDER}*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > _OLD_S:
                shutil.rmtree(folder, ignore_errors=True)


async def admit(requirements: Requirements, dask_worker: Any = None) -> WorkerFacts:
    """Look at the worker this runs on; it gets the resource of the run when it is fit."""
    limit = int(getattr(dask_worker.memory_manager, "memory_limit", None) or 0)
    facts = WorkerFacts(
        name=str(dask_worker.name),
        host=socket.gethostname(),
        pid=os.getpid(),
        threads=int(dask_worker.state.nthreads),
        memory_bytes=limit,
        has_card=dask_worker.state.total_resources.get("GPU", 0) > 0,
        unfit=_unfit(requirements, versions(), limit),
    )
    _remove_old_folders(Path(dask_worker.local_directory).parent)
    if facts.unfit is None:
        _STOPPED.discard(requirements.run_id)
        keep_one_heap()
        await dask_worker.set_resources(**{resource_of(requirements.run_id): 1})
    return facts


async def dismiss(run_id: str, dask_worker: Any = None) -> None:
    """Take the resources of a run back and forget what was sent for it."""
    forget_received()
    shutil.rmtree(run_folder(str(dask_worker.local_directory), run_id), ignore_errors=True)
    of_run = [name for name in dask_worker.state.total_resources if name.startswith(resource_of(run_id))]
    await dask_worker.set_resources(**dict.fromkeys(of_run, 0))


def stop(name: str) -> None:
    """Tell the calls of a run that are at work here, or one of them, that nobody waits any more; see `RunStop.name`."""
    _STOPPED.add(name)


def keep_sets(sets: Mapping[str, CalibrationSet]) -> None:
    """Keep what frames are calibrated with, by the names of its files, in memory."""
    for name, made in sets.items():
        receive_set(name, made)


def _unfit(requirements: Requirements, own: Mapping[str, str], memory_bytes: int) -> Unfit | None:
    for name, wanted in requirements.versions.items():
        if own.get(name) != wanted:
            there = own.get(name, "-")
            return Unfit(
                "cluster_version",
                f"{name} {there} there, {wanted} here",
                library=name,
                there=there,
                here=wanted,
            )
    if 0 < memory_bytes < requirements.memory_bytes:
        needed_mb, has_mb = round(requirements.memory_bytes / 1e6), round(memory_bytes / 1e6)
        return Unfit(
            "cluster_memory", f"{needed_mb} MB needed, {has_mb} MB there", needed_mb=needed_mb, has_mb=has_mb
        )
    return _unseen(requirements.probes)


def _unseen(probes: tuple[tuple[str, int], ...]) -> Unfit | None:
    """Return which file cannot be seen from here as it is seen from the machine of the run."""
    for probe in probes:
        try:
            unfit = reads_of_process()(probe[0], 0, _unseen_of, *probe)
        except SkipItem as silent:
            reason = str(silent)
            return Unfit("cluster_not_mounted", f"{probe[0]}: {reason}", file=probe[0], reason=reason)
        if unfit is not None:
            return unfit
    return None


def _unseen_of(path: str, size_bytes: int) -> Unfit | None:
    try:
        seen = os.stat(path).st_size
    except OSError as error:
        reason = str(error.strerror or error)
        return Unfit("cluster_not_mounted", f"{path} cannot be read: {reason}", file=path, reason=reason)
    if seen != size_bytes:
        return Unfit("cluster_other_file", f"{path} is another file there", file=path)
    return None


def unfit_of_disk(error: OSError) -> Unfit | None:
    """Return that this worker's disk is full, when that is what the error says: it is no fault of a frame."""
    if error.errno not in _NO_ROOM:
        return None
    return Unfit("cluster_disk_full", f"no room on the disk: {error}", reason=str(error))


@dataclass(frozen=True)
class OwnWorker:
    """The worker that this process is: its name and host, threads it may use, whether it was given a card, its folder.

    The folder, for files that do not outlive a call, is the one that Dask has for the worker.
    """

    name: str
    host: str
    threads: int = 1
    has_card: bool = False
    folder: str = ""


def own_worker() -> OwnWorker:
    """Return what worker this process is; without a name where there is no cluster."""
    from distributed import get_worker

    try:
        worker = get_worker()
    except ValueError:
        return OwnWorker("", socket.gethostname())
    state = worker.state
    return OwnWorker(
        str(worker.name),
        socket.gethostname(),
        int(state.nthreads),
        state.total_resources.get("GPU", 0) > 0,
        str(worker.local_directory),
    )


def work_packed(packed: bytes) -> Answer:
    """Do one call, from `pickle.dumps`: Dask's scheduler would make the call anew from its parts only to send it on."""
    return work(pickle.loads(packed))


def work(call: Call) -> Answer:
    """Do one call on the worker this runs on."""
    here = own_worker()
    name, host = here.name, here.host
    if call.run_id in _STOPPED:
        return Answer(name, host, error=Cancelled())
    begun_s = time.perf_counter()
    try:
        value = call.function(*call.args)
    except Unfit as reason:
        return Answer(name, host, unfit=reason)
    except BaseException as error:  # noqa: BLE001 - it belongs to the machine that asked
        unfit = _unseen(call.probes) if isinstance(error, SkipItem | OSError) else None
        return Answer(name, host, error=portable_error(error, traceback.format_exc()), unfit=unfit)
    # A frame that cannot be read where others cannot either is not to blame.
    unfit = _unseen(call.probes) if isinstance(value, SkipItem) else None
    return Answer(name, host, value, unfit=unfit, seconds=time.perf_counter() - begun_s)
