"""Ask, stage by stage, whether a card here really runs a kernel; the first failure is the answer.

``python -m zemosaic_core.gpu.probe [choice]`` does it in a process of its own and writes one JSON line, so
that a driver that crashes or hangs takes nobody with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from zemosaic_core.gpu import device as seam
from zemosaic_core.gpu import kernels

__all__ = [
    "MIN_CAPABILITY",
    "MIN_TOTAL_BYTES",
    "Finding",
    "check_card",
    "driver_fingerprint",
    "has_driver",
    "probe",
    "smoke_test",
]

# Below 5.0 NVRTC 12 makes no code; 5.x works on a best-effort basis.
MIN_CAPABILITY = 50
# A "2 GB" card reports a little less than 2 GiB; with less nothing of ours fits beside the desktop.
MIN_TOTAL_BYTES = 1_500_000_000


@dataclass(frozen=True)
class Finding:
    """What a probe found: ``stage`` is ``ok`` or the name of the first stage that failed."""

    stage: str
    detail: str = ""
    device: seam.DeviceInfo | None = None

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Finding:
        """Return the finding of a JSON line.

        Raises
        ------
        ValueError, TypeError, KeyError
            The line is not one of ours.
        """
        values: dict[str, Any] = json.loads(text)
        info = values["device"]
        return Finding(values["stage"], values["detail"], None if info is None else seam.DeviceInfo(**info))


def has_driver() -> tuple[bool, str]:
    """Return whether an NVIDIA driver library can be opened, and its name. Creates no CUDA context."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        ctypes.CDLL(name)
    except OSError as error:
        return False, str(error)
    return True, name


def driver_fingerprint() -> str:
    """Return a text that changes when the driver, CuPy, NumPy, or the visible devices change."""
    driver = ""
    if sys.platform == "win32":
        with contextlib.suppress(OSError):
            stat = (Path(os.environ.get("SYSTEMROOT", "C:/Windows")) / "System32" / "nvcuda.dll").stat()
            driver = f"{stat.st_size}-{stat.st_mtime_ns}"
    else:
        folder = Path("/proc/driver/nvidia")
        with contextlib.suppress(OSError):
            driver = (folder / "version").read_text(encoding="utf-8")
        for card in sorted(folder.glob("gpus/*/information")):
            with contextlib.suppress(OSError):
                lines = card.read_text(encoding="utf-8", errors="replace").splitlines()
                driver += card.parent.name + "".join(line for line in lines if "UUID" in line)
    packages = sorted(
        f"{d.metadata['Name']}={d.version}"
        for d in metadata.distributions()
        if (d.metadata["Name"] or "").lower().startswith(("cupy", "numpy", "nvidia-cuda"))
    )
    # An empty list of devices hides all of them; only one that is not set shows all.
    visible = repr(os.environ.get("CUDA_VISIBLE_DEVICES"))
    return "|".join((driver.strip(), ",".join(packages), visible, sys.executable))


def smoke_test(device: seam.Device) -> None:
    """Compile, launch and check a small kernel.

    Raises
    ------
    ArithmeticError
        It ran and the numbers are wrong.
    Exception
        Whatever the card or its libraries raise; `zemosaic_core.gpu.device.classify` tells what it is.
    """
    n = 1000
    stream = device.stream()
    out = device.empty((n,), np.float32)
    launch = device.kernel(kernels.source("smoke"), "smoke")
    launch((4,), (256,), (out, np.int32(n), np.float32(0.5), np.float32(-3.0)), stream=stream)
    host = np.empty(n, np.float32)
    device.copy_out(host, out, stream)
    device.synchronize(stream)
    if not np.array_equal(host, np.arange(n, dtype=np.float32) * np.float32(0.5) - np.float32(3.0)):
        raise ArithmeticError("the test kernel gave wrong numbers")


def check_card(device: seam.Device) -> Finding:
    """Run the smoke test on an open card and say what came of it."""
    try:
        smoke_test(device)
    except Exception as error:  # noqa: BLE001 - a broken driver raises anything; the type goes into the finding
        return _failed(error, device.info)
    return Finding("ok", device.info.name, device.info)


def probe(choice: str = "", faults: seam.FaultScript | None = None) -> tuple[Finding, seam.Device | None]:
    """Go through all stages in this process; return the finding and, when it is ``ok``, the open card.

    Parameters
    ----------
    choice : str
        Card asked for, see `devices_in_order`; empty for the best one that works.
    faults : FaultScript, optional
        Failures on order, counted from after the smoke test.
    """
    found, detail = has_driver()
    if not found:
        return Finding("no_driver", detail), None
    try:
        cupy = seam.import_cupy()
    except ModuleNotFoundError as error:
        return Finding("cupy_missing", str(error)), None
    except Exception as error:  # noqa: BLE001 - a library that does not fit NumPy or itself raises anything
        return Finding("cupy_import_error", f"{type(error).__name__}: {error}"), None
    try:
        return _probe_devices(cupy, choice, faults)
    except Exception as error:  # noqa: BLE001 - a broken driver raises anything; the type goes into the finding
        return _failed(error), None


def _probe_devices(
    cupy: Any, choice: str, faults: seam.FaultScript | None
) -> tuple[Finding, seam.Device | None]:
    runtime = cupy.cuda.runtime
    try:
        count = int(runtime.getDeviceCount())
    except runtime.CUDARuntimeError as error:
        # 35: the driver is older than the runtime (or there is none). 100: the driver sees no card.
        stage = {35: "driver_too_old", 100: "no_device"}.get(error.status, "smoke_failed")
        return Finding(stage, str(error)), None
    if count == 0:
        return Finding("no_device", "0 devices"), None
    # The best card may be too old, broken, or silent, beside one that works.
    infos, failures = [], []
    for i in range(count):
        try:
            infos.append(seam.CupyDevice.describe(i))
        except Exception as error:  # noqa: BLE001 - a broken driver raises anything; the type goes into the finding
            failures.append(_failed(error))
    try:
        candidates = seam.devices_in_order(infos, choice)
    except LookupError as error:
        return (failures or [Finding("no_device", str(error))])[0], None
    for info in candidates:
        finding, device = _probe_device(info, faults)
        if device is not None:
            return finding, device
        failures.append(finding)
    return next((failure for failure in failures if failure.device is not None), failures[0]), None


def _probe_device(
    info: seam.DeviceInfo, faults: seam.FaultScript | None
) -> tuple[Finding, seam.Device | None]:
    if info.compute_capability < MIN_CAPABILITY:
        return Finding("compute_capability", f"{info.name}: {info.compute_capability / 10}", info), None
    if info.total_bytes < MIN_TOTAL_BYTES:
        return Finding("vram_too_small", f"{info.name}: {info.total_bytes / 2**20:.0f} MB", info), None
    try:
        smoke_test(seam.CupyDevice(info.index))
        device = seam.CupyDevice(info.index, faults=faults)
        device.release()
    except Exception as error:  # noqa: BLE001 - a broken driver raises anything; the type goes into the finding
        return _failed(error, info), None
    return Finding("ok", info.name, info), device


def _failed(error: Exception, info: seam.DeviceInfo | None = None) -> Finding:
    fault = seam.classify(error)
    # A card that others fill to the brim has not even room for a context; that may pass.
    stages = {"compile": "compiler_missing", "oom": "insufficient_memory"}
    stage = stages.get(fault.kind, "smoke_failed") if fault else "smoke_failed"
    return Finding(stage, f"{type(error).__name__}: {error}"[:500], info)


def main(arguments: list[str]) -> int:
    """Probe and write the finding as one JSON line on standard output."""
    finding, _ = probe(arguments[0] if arguments else "")
    sys.stdout.write(finding.to_json() + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
