"""Ask for the graphics card in a process of its own, and remember a good answer on disk."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

from zemosaic_core.gpu.probe import Finding, driver_fingerprint, has_driver
from zemosaic_core.gpu.probe import probe as probe_here
from zemosaic_core.gpu.terms import GpuStatus, Reason
from zemosaic_io.gpu_files import cache_folder, load_json, save_json

__all__ = ["Opened", "forget", "remembered_status", "status_of"]

log = logging.getLogger(__name__)

PROBE_TIMEOUT_SECONDS = 90.0


def status_of(finding: Finding) -> GpuStatus:
    """Return the status that a finding means."""
    if finding.stage == "ok":
        return GpuStatus(True, Reason.GPU, finding.detail, finding.device)
    return GpuStatus(False, Reason(finding.stage), finding.detail, finding.device)


def _probe_in_child(choice: str) -> GpuStatus:
    """Probe in a process of its own; a driver that crashes or hangs takes only that process with it."""
    command = [sys.executable, "-m", "zemosaic_core.gpu.probe", choice]
    root = str(Path(__file__).resolve().parent.parent)
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",  # a driver may say anything in any encoding
            timeout=PROBE_TIMEOUT_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": paths},
        )
    except subprocess.TimeoutExpired:
        return GpuStatus(False, Reason.PROBE_TIMEOUT, f"no answer within {PROBE_TIMEOUT_SECONDS:.0f} s")
    except OSError as error:
        return GpuStatus(False, Reason.PROBE_CRASHED, str(error))
    lines = done.stdout.strip().splitlines()
    try:
        return status_of(Finding.from_json(lines[-1] if lines else ""))
    except (ValueError, TypeError, KeyError):
        return GpuStatus(
            False, Reason.PROBE_CRASHED, f"exit code {done.returncode}: {done.stderr.strip()[-300:]}"
        )


class Opened:
    """The process that holds a CUDA context, or tried to; a forked child of it must not touch CUDA."""

    pid = 0


def _memory_key(choice: str) -> str:
    return hashlib.blake2b(f"{driver_fingerprint()}|{choice}".encode(), digest_size=12).hexdigest()


def forget(choice: str) -> None:
    """Forget what is remembered of a card, in this process and on disk: the next question is put to the card."""
    remembered_status.cache_clear()
    memory = cache_folder() / "probe.json"
    remembered = load_json(memory)
    if remembered.pop(_memory_key(choice), None) is not None:
        save_json(memory, remembered)


@lru_cache(maxsize=8)
def remembered_status(choice: str, pid: int, visible: str = "") -> GpuStatus:
    """Return the status of the best card, asked once per process and remembered on disk when it is good.

    Parameters
    ----------
    choice : str
        Card asked for, see `zemosaic_core.gpu.device.devices_in_order`.
    pid : int
        This process.
    visible : str
        Cards that the environment shows; another list is another question.
    """
    if Opened.pid not in (0, pid):
        return GpuStatus(False, Reason.FORKED_CHILD, f"process {pid} was forked from {Opened.pid}")
    found, detail = has_driver()
    if not found:
        return GpuStatus(False, Reason.NO_DRIVER, detail)
    key = _memory_key(choice)
    memory = cache_folder() / "probe.json"
    remembered = load_json(memory)
    if key in remembered:
        try:
            return status_of(Finding.from_json(remembered[key]))
        except (ValueError, TypeError, KeyError):
            log.info("the remembered probe of the GPU is unreadable, asking again")
    if getattr(sys, "frozen", False):  # an application without an interpreter to start a module with
        Opened.pid = pid
        status = status_of(probe_here(choice)[0])
    else:
        status = _probe_in_child(choice)
    if status.ok:
        save_json(memory, {**remembered, key: Finding("ok", status.detail, status.device).to_json()})
    return status
