"""Is there a card, which one, for whom: probes, environment, leases, processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time

import pytest
from policy_cases import (
    ROOT,
    ROWS,
    make_policy,
    run,
    workload,
)
from simulated_device import CUDARuntimeError, SimulatedDevice

import zemosaic_gpu_policy as policy_module
from zemosaic_core.chunks import Buffer
from zemosaic_core.errors import SettingsError
from zemosaic_core.gpu import device as seam
from zemosaic_core.gpu import probe as probe_module
from zemosaic_core.gpu import terms
from zemosaic_core.gpu.terms import GpuStatus, Overrides, Reason
from zemosaic_gpu_policy import gpu_status
from zemosaic_io import gpu_probe
from zemosaic_io.gpu_files import device_lease

# --- availability ---------------------------------------------------------------------------------------------


def statuses_of(monkeypatch, finding: probe_module.Finding) -> GpuStatus:
    monkeypatch.setattr(gpu_probe, "has_driver", lambda: (True, "driver"))
    line = finding.to_json()
    done = subprocess.CompletedProcess([], 0, stdout=f"noise\n{line}\n", stderr="")
    monkeypatch.setattr(gpu_probe.subprocess, "run", lambda *a, **k: done)
    gpu_probe.remembered_status.cache_clear()
    return gpu_status(refresh=True)


@pytest.mark.parametrize(
    "stage",
    [
        "cupy_missing",
        "cupy_import_error",
        "driver_too_old",
        "no_device",
        "compute_capability",
        "vram_too_small",
        "compiler_missing",
        "smoke_failed",
    ],
)
def test_each_stage_of_the_probe_becomes_its_own_reason(monkeypatch, stage):
    status = statuses_of(monkeypatch, probe_module.Finding(stage, "why"))
    gpu_probe.remembered_status.cache_clear()
    assert (status.ok, status.reason.value, status.detail) == (False, stage, "why")
    assert status.reason.fallback_key == "gpu_fallback_unavailable"


def test_a_probe_that_hangs_or_crashes_is_a_reason(monkeypatch):
    monkeypatch.setattr(gpu_probe, "has_driver", lambda: (True, "driver"))

    def hang(*args, **options):
        raise subprocess.TimeoutExpired("probe", 1)

    monkeypatch.setattr(gpu_probe.subprocess, "run", hang)
    assert gpu_status(refresh=True).reason is Reason.PROBE_TIMEOUT
    done = subprocess.CompletedProcess([], -11, stdout="", stderr="segmentation fault")
    monkeypatch.setattr(gpu_probe.subprocess, "run", lambda *a, **k: done)
    assert gpu_status(refresh=True).reason is Reason.PROBE_CRASHED
    gpu_probe.remembered_status.cache_clear()


def test_a_good_probe_is_remembered_on_disk(monkeypatch):
    info = seam.DeviceInfo("card", "GPU-1234")
    assert statuses_of(monkeypatch, probe_module.Finding("ok", "card", info)).device == info

    def never(*args, **options):
        raise AssertionError("asked again")

    monkeypatch.setattr(gpu_probe.subprocess, "run", never)
    gpu_probe.remembered_status.cache_clear()
    assert gpu_status().device == info
    gpu_probe.remembered_status.cache_clear()


class FakeRuntime:
    """As much of CuPy as the stages before the first kernel need."""

    CUDARuntimeError = CUDARuntimeError

    def __init__(self, count=1, error=0, major=8, memory=8 << 30):
        self.count, self.error, self.major, self.memory = count, error, major, memory

    def getDeviceCount(self):
        if self.error:
            raise CUDARuntimeError(self.error)
        return self.count

    def getDeviceProperties(self, index):
        return {
            "name": b"Card",
            "uuid": b"\1" * 16,
            "major": self.major,
            "minor": 0,
            "totalGlobalMem": self.memory,
            "sharedMemPerBlock": 48 << 10,
        }

    def driverGetVersion(self):
        return 12090

    runtimeGetVersion = driverGetVersion


@pytest.mark.parametrize(
    ("runtime", "stage"),
    [
        (FakeRuntime(error=35), "driver_too_old"),
        (FakeRuntime(error=100), "no_device"),
        (FakeRuntime(count=0), "no_device"),
        (FakeRuntime(major=3), "compute_capability"),
        (FakeRuntime(memory=1 << 30), "vram_too_small"),
        (FakeRuntime(error=3), "smoke_failed"),
    ],
)
def test_the_stages_stop_at_the_first_failure(monkeypatch, runtime, stage):
    class FakeCupy:
        __version__ = "0"

        class cuda:
            pass

    FakeCupy.cuda.runtime = runtime
    monkeypatch.setattr(probe_module, "has_driver", lambda: (True, ""))
    monkeypatch.setattr(seam, "import_cupy", lambda: FakeCupy)
    finding, device = probe_module.probe()
    assert (finding.stage, device) == (stage, None)


@pytest.mark.parametrize(
    ("error", "stage"),
    [
        (ModuleNotFoundError("No module named 'cupy'"), "cupy_missing"),
        (ImportError("libnvrtc"), "cupy_import_error"),
        (OSError(30, "Read-only file system"), "cupy_import_error"),
    ],
)
def test_cupy_that_does_not_import_is_told_apart(monkeypatch, error, stage):
    def fail():
        raise error

    monkeypatch.setattr(probe_module, "has_driver", lambda: (True, ""))
    monkeypatch.setattr(seam, "import_cupy", fail)
    assert probe_module.probe()[0].stage == stage


def test_the_smoke_test_notices_wrong_numbers_and_a_missing_compiler():
    probe_module.smoke_test(SimulatedDevice())
    with pytest.raises(RuntimeError, match="headers") as caught:
        probe_module.smoke_test(SimulatedDevice(no_compiler=True))
    assert seam.classify(caught.value).kind == "compile"


def test_a_forked_child_does_not_touch_the_card(install, monkeypatch):
    install(SimulatedDevice())
    policy = make_policy()
    assert policy.status.ok
    monkeypatch.setattr(policy_module.os, "getpid", lambda: 1)
    assert policy.status.reason is Reason.FORKED_CHILD
    assert policy.plan(workload()).reason is Reason.FORKED_CHILD
    assert gpu_probe.Opened.pid == 0
    monkeypatch.setattr(gpu_probe.Opened, "pid", 12345)
    assert gpu_probe.remembered_status.__wrapped__("", 1).reason is Reason.FORKED_CHILD


def test_device_choice():
    infos = [
        seam.DeviceInfo("Small RTX", "aaaa1111", 0, total_bytes=4 << 30),
        seam.DeviceInfo("Big RTX", "bbbb2222", 1, total_bytes=8 << 30),
        seam.DeviceInfo("Board", "cccc3333", 2, total_bytes=64 << 30, integrated=True),
    ]
    choose = seam.choose_device_index
    assert [choose(infos, c) for c in ("", "auto", "0", "2", "bbbb", "small")] == [1, 1, 0, 2, 1, 0]
    with pytest.raises(LookupError):
        choose(infos, "7")


# --- environment ----------------------------------------------------------------------------------------------


def test_environment_wins_over_settings(install):
    install(SimulatedDevice())
    assert make_policy(mode="auto", environ={"ZEMOSAIC_GPU": "off"}).status.reason is Reason.OFF
    assert make_policy(mode="off", environ={"ZEMOSAIC_GPU": "auto"}).status.ok
    overrides = Overrides.from_environment(
        {
            "ZEMOSAIC_GPU_DEVICE": "1",
            "ZEMOSAIC_GPU_MEMORY_MB": "900",
            "ZEMOSAIC_GPU_SIMULATE": "notebook",
            "ZEMOSAIC_GPU_FAULT": "oom@1",
            "ZEMOSAIC_FORCE_CPU_INTERTILE": "1",
        }
    )
    assert overrides == Overrides(
        device="1", memory_mb=900, simulate_mb=terms.SIMULATED_SIZES_MB["notebook"], force_cpu_intertile=True
    )
    assert (
        Overrides.from_environment({"ZEMOSAIC_GPU_FAULT": "oom@1", "ZEMOSAIC_TESTING": "1"}).fault == "oom@1"
    )
    for name, value in (
        ("ZEMOSAIC_GPU", "maybe"),
        ("ZEMOSAIC_GPU_MEMORY_MB", "-3"),
        ("ZEMOSAIC_GPU_SIMULATE", "x"),
    ):
        with pytest.raises(SettingsError, match=name):
            Overrides.from_environment({name: value})


def test_forced_cpu_for_intertile_work_and_on_request(install):
    install(SimulatedDevice())
    policy = make_policy(environ={"ZEMOSAIC_FORCE_CPU_INTERTILE": "1"})
    assert policy.plan(workload(op="intertile")).reason is Reason.FORCED_CPU
    assert policy.plan(workload()).device == "gpu"
    assert run(policy, wanted=False).decision.reason is Reason.FORCED_CPU


def test_a_simulated_size_makes_chunks_smaller(install):
    install(SimulatedDevice(8 << 30))
    big = {"buffers": (Buffer("a", per_row=64 << 20),)}
    assert make_policy().plan(workload(**big)).n_chunks == 1
    assert make_policy(environ={"ZEMOSAIC_GPU_SIMULATE": "1000"}).plan(workload(**big)).n_chunks == 3


# --- two runs at once -----------------------------------------------------------------------------------------


def hold_lease(uuid, seconds, ready):
    with device_lease(uuid, timeout_s=5):
        ready.set()
        time.sleep(seconds)


def test_a_second_run_waits_its_turn_and_a_killed_holder_frees_the_card(install, monkeypatch):
    device = install(SimulatedDevice())
    monkeypatch.setattr(policy_module, "LEASE_TIMEOUT_SECONDS", 0.2)
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=hold_lease, args=(device.info.uuid, 60, ready))
    holder.start()
    try:
        assert ready.wait(30)
        report = run(make_policy())
        assert (report.cpu_rows, report.fallbacks) == (ROWS, 1)
    finally:
        holder.kill()
        holder.join()
    assert run(make_policy()).gpu_rows == ROWS


def test_the_budget_is_measured_while_no_other_run_works(install):
    """What another run holds during its turn comes back when ours begins."""
    device = install(SimulatedDevice(64 << 20))
    device.other = 60 << 20
    taken = threading.Event()

    def other_run():
        with device_lease(device.info.uuid, timeout_s=5):
            taken.set()
            time.sleep(0.3)
            device.other = 0

    thread = threading.Thread(target=other_run)
    thread.start()
    assert taken.wait(5)
    assert make_policy().budget.usable == 64 << 20
    thread.join()


# --- real CuPy on a machine without a driver --------------------------------------------------------------------

SCRIPT = """
import json, sys
from zemosaic_core.gpu.probe import has_driver, probe
import zemosaic_gpu_policy as p
from zemosaic_core.chunks import Buffer, Workload
records = []
policy = p.GpuPolicy(on_record=records.append)
done = []
policy.run(Workload("stack", 4, (Buffer("a", per_row=8),)), None, lambda a, b: 1, emit=lambda *x: done.append(x))
import zemosaic_core.gpu.probe as probes
probes.has_driver = lambda: (True, "pretended")
finding, device = probes.probe()
print(json.dumps({"keys": [r["key"] for r in records], "reason": policy.status.reason.value,
                  "really": finding.stage, "detail": finding.detail, "done": done}))
"""


@pytest.mark.skipif(probe_module.has_driver()[0], reason="this machine has an NVIDIA driver")
@pytest.mark.parametrize("home", ["writable", "read-only"])
def test_real_cupy_without_a_driver_tells_the_true_reason(tmp_path, home):
    folder = tmp_path / "home"
    folder.mkdir()
    environment = {**os.environ, "HOME": str(folder), "PYTHONPATH": str(ROOT)}
    environment.pop("XDG_CACHE_HOME", None)
    if home == "read-only":
        environment["HOME"] = "/proc"  # nobody can create a folder there, not even an administrator
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["reason"] == "no_driver"
    assert "gpu_fallback_unavailable" in told["keys"]
    assert told["done"] == [[0, 4, 1]]
    # With the driver file pretended, CuPy itself must say what is wrong (or be missing).
    assert told["really"] in ("driver_too_old", "no_device", "cupy_missing"), told


def answer_from_a_process(queue):
    status = gpu_status()
    queue.put((status.reason.value, status.reason.fallback_key, "cupy" in sys.modules))


@pytest.mark.skipif(probe_module.has_driver()[0], reason="this machine has an NVIDIA driver")
def test_a_window_process_gets_the_reason_without_loading_cupy():
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=answer_from_a_process, args=(queue,))
    process.start()
    assert queue.get(timeout=60) == ("no_driver", "gpu_fallback_unavailable", False)
    process.join()


def test_asking_creates_no_context_and_works_from_threads():
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(gpu_status().reason)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(answers)) == 1
