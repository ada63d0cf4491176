"""The Dask cluster under a run: one that the run starts on this machine and ends with it, or one that it joins."""

from __future__ import annotations

import logging
import os
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError, wait
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from zemosaic_core.errors import SettingsError
from zemosaic_settings.executor import ExecutorChoice

__all__ = ["CLOSE_S", "GONE", "OWN_DASK", "POLL_S", "Engine", "connect", "distributed", "fetch"]

log = logging.getLogger(__name__)

POLL_S = 0.1
CLOSE_S = 1.0
_CONNECT_S = 4.0
_MOST_S = 15.0
_ANOTHER = "what answers there is no Dask scheduler"
# A result that does not come in this time is asked for anew.
_FETCH_S = 60.0
# What Dask says when the other side is gone or does not answer in time.
GONE = (OSError, RuntimeError, ValueError)
# How Dask is set up where the run starts it itself.
OWN_DASK: dict[str, Any] = {
    # What dies over one call is tried again with nothing else at work; then it is known whose fault it was.
    "distributed.scheduler.allowed-failures": 0,
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    # Statistics for Dask's page cost some percent of a processor for every worker; the watch over memory stays.
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "2s",
    "distributed.admin.system-monitor.disk": False,
}


@dataclass(frozen=True)
class Engine:
    """A client of Dask, and the cluster where the run started it itself.

    Attributes
    ----------
    client : distributed.Client
    local : distributed.LocalCluster or None
    """

    client: Any
    local: Any = None

    @property
    def dashboard(self) -> str:
        """Address of Dask's page about the cluster; empty when it has none."""
        # Without bokeh there is only a page that says so.
        with suppress(*GONE):
            if self.client.run_on_scheduler(find_spec, "bokeh") is not None:
                return str(self.client.dashboard_link)
        return ""

    def end(self) -> None:
        """Leave the cluster; one that the run started ends, whatever its workers are at."""
        ours = [] if self.local is None else [nanny.pid for nanny in self.local.workers.values()]
        with suppress(*GONE):
            self.client.close(timeout=CLOSE_S)
        if self.local is None:
            return
        with suppress(*GONE):
            self.local.close(timeout=CLOSE_S)
        for pid in filter(None, ours):
            # Those that were too busy to leave in time.
            with suppress(psutil.Error):
                process = psutil.Process(pid)
                if process.ppid() == os.getpid():
                    process.kill()


def distributed() -> Any:
    """Return Dask's package.

    Raises
    ------
    SettingsError
        ``cluster_no_library``
    """
    try:
        return import_module("distributed")
    except ImportError as error:
        raise SettingsError(
            "cluster_no_library", f'Dask is not installed; pip install "zemosaic[cluster]": {error}'
        ) from error


def connect(
    choice: ExecutorChoice,
    *,
    workers: int,
    memory_bytes: int,
    folder: Path | None,
    check: Callable[[], None],
) -> Engine:
    """Start a cluster on this machine, or join one.

    Parameters
    ----------
    choice, workers, memory_bytes, folder, check
        As in `zemosaic_pipeline.cluster.Cluster`.

    Raises
    ------
    SettingsError
        ``cluster_no_library``, ``cluster_unreachable``.
    """
    dask_distributed = distributed()
    import dask

    client_type = dask_distributed.Client
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    # A block of a co-add may bring along what is known of a thousand frames.
    dask.config.set({"distributed.admin.large-graph-warning-threshold": "1GB"})
    if choice.kind == "dask":
        with dask.config.set(OWN_DASK), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            local = dask_distributed.LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                memory_limit=memory_bytes // workers or None,
                dashboard_address="127.0.0.1:0",
                worker_dashboard_address=None,
                local_directory=None if folder is None else str(folder),
                silence_logs=logging.CRITICAL,
            )
        return Engine(client_type(local, set_as_default=False, direct_to_workers=True), local)
    address = choice.address
    opening: Future[Any] = Future()

    def join() -> None:
        try:
            client = client_type(
                address,
                timeout=_CONNECT_S,
                set_as_default=False,
                # Blocks are large: they come straight from the worker, by the scheduler only where that cannot be.
                direct_to_workers=True,
                name="zemosaic",
            )
        except Exception as error:  # noqa: BLE001 - it belongs to who waits for the client
            opening.set_exception(error)
        else:
            opening.set_result(client)

    # Dask waits for good where another program answers; such a thread is left behind.
    threading.Thread(target=join, name="cluster-join", daemon=True).start()
    until_s = time.monotonic() + _MOST_S
    try:
        while not opening.done():
            check()
            if time.monotonic() > until_s:
                raise TimeoutError(_ANOTHER)
            wait([opening], POLL_S)
        try:
            return Engine(opening.result())
        except (MemoryError, OverflowError) as error:
            # Dask takes the first letters of a web server's answer for its length.
            raise ConnectionError(_ANOTHER) from error
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise SettingsError(
            "cluster_unreachable",
            f"no Dask scheduler answers at {address}: {error}",
            address=address,
            reason=str(error) or type(error).__name__,
        ) from error


def fetch(inner: Future[Any], remote: Any) -> None:
    """Bring what became of a call here; runs in a thread of its own.

    The futures of Dask's own executor are never done when a result is lost twice before it was fetched.
    """
    try:
        try:
            inner.set_result(remote.result(timeout=_FETCH_S))
        except InvalidStateError:
            raise
        except (CancelledError, OSError):  # among the latter those that say that it took too long
            inner.cancel()
        except Exception as error:  # noqa: BLE001 - it belongs to who waits for the call
            inner.set_exception(error)
    except InvalidStateError:
        log.debug("an answer came after nobody waited for it any more")
