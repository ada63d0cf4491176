"""The policy: pure decisions, the ladder under every fault, records, leases, environment, probes."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_device import CUDARuntimeError, SimulatedDevice

import zemosaic_gpu_policy as policy_module
from zemosaic_core.chunks import Buffer, Workload
from zemosaic_core.errors import Cancelled, RunFailed, SettingsError
from zemosaic_core.gpu import device as seam
from zemosaic_core.gpu import kernels, terms
from zemosaic_core.gpu import probe as probe_module
from zemosaic_core.gpu.terms import Audit, Budget, GpuStatus, Overrides, Parity, Reason
from zemosaic_gpu_policy import GpuPolicy, decide, gpu_status, make_budget
from zemosaic_io import gpu_probe
from zemosaic_io.gpu_files import device_lease

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 64
ROWS = 40
DATA = np.random.default_rng(3).normal(size=(ROWS, WIDTH)).astype(np.float32)
OK = GpuStatus(True, Reason.GPU, "card", seam.DeviceInfo("card", "uuid"))


def workload(op="square", **changes) -> Workload:
    row = WIDTH * 4
    fields = {"rows": ROWS, "buffers": (Buffer("in", per_row=row), Buffer("out", per_row=row)), "min_rows": 4}
    return Workload(op, **(fields | changes))


def gpu_body(device, y0, y1, next_rows):
    """Three times the rows plus one, through the smoke kernel's arithmetic: copies, a kernel, a copy back."""
    stream = device.stream()
    source = device.empty((y1 - y0, WIDTH), np.float32)
    host = device.pinned((y1 - y0) * WIDTH * 4)[:].view(np.float32)
    host[:] = DATA[y0:y1].reshape(-1)
    device.copy_in(source, host, stream)
    out = device.empty((y1 - y0, WIDTH), np.float32)
    device.kernel(kernels.source("smoke"), "smoke")(
        (1,), (1,), (out, np.int32(1), np.float32(0), np.float32(0)), stream=stream
    )
    result = np.empty((y1 - y0, WIDTH), np.float32)
    device.copy_out(result, source, stream)
    device.synchronize(stream)
    return result


def cpu_body(y0, y1):
    return DATA[y0:y1].copy()


class Collected:
    """Puts the pieces together and insists on their order."""

    def __init__(self):
        self.image = np.full((ROWS, WIDTH), np.nan, np.float32)
        self.next = 0

    def __call__(self, y0, y1, result):
        assert y0 == self.next
        self.image[y0:y1] = result
        self.next = y1

    def check(self):
        assert self.next == ROWS
        np.testing.assert_array_equal(self.image, DATA)


def make_policy(records=None, **options) -> GpuPolicy:
    on_record = None if records is None else records.append
    environ = {"ZEMOSAIC_GPU_RESERVE_MB": "0", **options.pop("environ", {})}
    return GpuPolicy(on_record=on_record, environ=environ, **options)


def run(policy, **options):
    out = Collected()
    report = policy.run(workload(**options.pop("work", {})), gpu_body, cpu_body, emit=out, **options)
    out.check()
    return report


# --- pure decisions -------------------------------------------------------------------------------------------


@given(
    st.integers(1, 5000),
    st.integers(0, 10**6),
    st.integers(0, 10**5),
    st.integers(0, 10**9),
    st.integers(1, 64),
    st.sampled_from([1, 2, 4]),
    st.integers(0, 3),
    st.integers(0, 10**8),
)
@settings(max_examples=300, deadline=None)
def test_a_decision_fits_the_budget_and_covers_the_rows(
    rows, fixed, per_row, usable, min_rows, align, halo, ceiling
):
    work = Workload("op", rows, (Buffer("a", fixed, per_row, 2),), min_rows=min_rows, align=align, halo=halo)
    budget = Budget(usable, usable, 0, 0, usable, usable)
    decision = decide(work, OK, budget, ceiling_bytes=ceiling)
    assert decision == decide(work, OK, budget, ceiling_bytes=ceiling)
    if decision.device == "cpu":
        assert decision.reason is Reason.INSUFFICIENT_MEMORY
        assert decision.estimated_bytes > min(usable, ceiling or usable) or min(
            decision.limits.values()
        ) < max(min(min_rows, rows), align)
        return
    assert decision.estimated_bytes <= min(usable, ceiling or usable)
    assert decision.estimated_bytes == work.peak(decision.chunk_rows)
    assert (decision.n_chunks - 1) * decision.chunk_rows < rows + decision.n_chunks * align
    assert decision.n_chunks * decision.chunk_rows >= rows
    wider = decide(work, OK, Budget(0, 0, 0, 0, 0, usable * 2 + 1))
    assert wider.device == "gpu"
    assert wider.n_chunks <= decision.n_chunks or ceiling


def test_every_bound_is_recorded_and_the_smallest_wins():
    info = seam.DeviceInfo("card", "uuid", drives_display=True)
    work = workload(elements_per_row=2**31 // 10, gpu_seconds_per_row=0.02, min_rows=1)
    decision = decide(work, GpuStatus(True, Reason.GPU, "", info), Budget(0, 0, 0, 0, 0, 10**9), chunk_rows=8)
    assert decision.limits == {"rows": 40, "memory": 40, "index": 10, "display": 10, "asked": 8}
    assert (decision.chunk_rows, decision.n_chunks) == (8, 5)


def test_small_work_is_not_worth_the_transfer():
    budget = Budget(0, 0, 0, 0, 0, 10**9)
    assert decide(workload(cpu_seconds=0.001), OK, budget).reason is Reason.WORKLOAD_TOO_SMALL
    assert decide(workload(cpu_seconds=1.0), OK, budget).device == "gpu"
    assert (
        decide(workload(cpu_seconds=1.0, upload_bytes=10**11), OK, budget).reason is Reason.WORKLOAD_TOO_SMALL
    )


@pytest.mark.parametrize(
    ("total_mb", "overrides", "memory_mb", "usable_mb"),
    [
        (8192, Overrides(), 0, 8192 - 655 - 1),
        (1024, Overrides(), 0, 1024 - 256),
        (8192, Overrides(reserve_mb=100), 0, 8092),
        (8192, Overrides(reserve_mb=0), 1000, 1000),
        (8192, Overrides(reserve_mb=0, memory_mb=500), 1000, 500),
        (8192, Overrides(reserve_mb=0, simulate_mb=2048), 0, 2048),
        (100, Overrides(reserve_mb=200), 0, 0),
    ],
)
def test_budget_keeps_a_reserve_and_respects_the_cap(monkeypatch, total_mb, overrides, memory_mb, usable_mb):
    monkeypatch.setattr(policy_module.sys, "platform", "linux")
    total = total_mb << 20
    budget = make_budget(
        seam.MemoryState(total, total, 0, 0),
        seam.DeviceInfo("", ""),
        memory_mb=memory_mb,
        overrides=overrides,
    )
    assert budget.usable >> 20 == usable_mb


def test_a_display_and_windows_make_the_reserve_larger(monkeypatch):
    total = 8 << 30
    state, info = seam.MemoryState(total, total, 0, 0), seam.DeviceInfo("", "", drives_display=True)
    monkeypatch.setattr(policy_module.sys, "platform", "linux")
    linux = make_budget(state, info, memory_mb=0, overrides=Overrides())
    assert linux.reserve == total * 8 // 100 + (256 << 20)
    monkeypatch.setattr(policy_module.sys, "platform", "win32")
    assert make_budget(state, info, memory_mb=0, overrides=Overrides()).reserve == linux.reserve + total // 10


# --- running --------------------------------------------------------------------------------------------------


def test_everything_on_the_gpu_with_the_planned_peak(install):
    device = install(SimulatedDevice(64 << 20))
    records = []
    policy = make_policy(records)
    report = run(policy)
    assert (report.gpu_rows, report.cpu_rows) == (ROWS, 0)
    assert report.peak_bytes == report.decision.estimated_bytes
    assert device.pool.total == 0
    assert [r["key"] for r in records if r["key"]] == ["gpu_info_summary", "gpu_op_using_gpu"]
    assert policy.summary()["operations"]["square"]["gpu_share"] == 1.0


def test_a_card_for_a_few_rows_only_gives_the_same_picture_in_more_chunks(install):
    install(SimulatedDevice(5000))
    report = run(make_policy())
    assert report.gpu_chunks == 5
    assert report.cpu_rows == 0


def test_chunk_rows_of_the_environment_are_used(install):
    install(SimulatedDevice(64 << 20))
    assert run(make_policy(environ={"ZEMOSAIC_GPU_CHUNK_ROWS": "7"})).gpu_chunks == 6


def test_memory_taken_by_another_process_splits_chunks_for_the_rest_of_the_run(install):
    device = install(SimulatedDevice(100_000))
    records = []
    policy = make_policy(records)
    assert policy.plan(workload()).n_chunks == 1
    device.other = 100_000 - 8_000
    report = run(policy)
    assert report.splits == 2  # 20 rows do not fit either, 10 do
    assert report.cpu_rows == 0
    assert policy.plan(workload()).chunk_rows == 10
    assert [r["kind"] for r in records].count("split") == 2
    assert run(policy).splits == 0


def test_out_of_memory_at_the_floor_gives_the_chunk_to_the_cpu_and_the_gpu_another_try(install):
    device = install(SimulatedDevice(64 << 20))
    policy = make_policy(environ={"ZEMOSAIC_GPU_CHUNK_ROWS": "4"})
    assert policy.status.ok
    device.faults = seam.FaultScript("oom@2,oom@8")
    report = run(policy)
    assert report.cpu_rows == 8
    assert report.gpu_rows == 32
    fallbacks = policy.summary()["fallbacks"]
    assert [(f["reason"], f["scope"], f["count"]) for f in fallbacks] == [("out_of_memory", "chunk", 2)]


def test_three_failures_in_a_row_end_the_operation_on_the_cpu(install):
    device = install(SimulatedDevice(64 << 20))
    policy = make_policy(environ={"ZEMOSAIC_GPU_CHUNK_ROWS": "4"})
    assert policy.status.ok
    device.faults = seam.FaultScript("oom>1")
    report = run(policy)
    assert (report.gpu_rows, report.cpu_rows) == (0, ROWS)
    assert [f["reason"] for f in policy.summary()["fallbacks"]] == ["out_of_memory", "too_many_failures"]


def test_a_lost_device_ends_the_run_on_the_cpu(install):
    device = install(SimulatedDevice(64 << 20))
    policy = make_policy()
    assert policy.status.ok
    device.faults = seam.FaultScript("sticky700@6")
    assert run(policy).cpu_rows == ROWS
    second = run(policy, work={"op": "other"})
    assert second.decision.reason is Reason.DEVICE_LOST
    assert policy.release("end") is not None


def test_a_missing_compiler_ends_this_operation_only(install):
    device = install(SimulatedDevice(64 << 20, no_compiler=True))
    policy = make_policy()
    report = run(policy)
    assert report.cpu_rows == ROWS
    assert policy.given_up == {"square": Reason.COMPILE_FAILED}
    device.no_compiler = False
    assert run(policy, work={"op": "other"}).gpu_rows == ROWS


def test_a_late_error_is_the_chunks_own(install):
    device = install(SimulatedDevice(64 << 20))
    policy = make_policy(environ={"ZEMOSAIC_GPU_CHUNK_ROWS": "20"})
    assert policy.status.ok

    def late(dev, kind, n_bytes):
        if kind == "copy_out" and not dev.hooks[1:]:
            dev.late_status = 1
            dev.hooks.append(lambda *a: None)

    device.hooks.append(late)
    report = run(policy)
    assert (report.gpu_rows, report.cpu_rows) == (20, 20)


def test_a_bug_is_not_a_fallback(install):
    install(SimulatedDevice(64 << 20))

    def broken(device, y0, y1, next_rows):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        make_policy().run(workload(), broken, cpu_body, emit=Collected())


def test_memory_of_the_failed_attempt_is_free_at_the_retry(install):
    """The trap: an exception that is still alive keeps the arrays of the attempt that failed."""
    install(SimulatedDevice(6 * 5120))
    attempts = []

    def greedy(device, y0, y1, next_rows):
        attempts.append(device.pool.used)
        held = [device.empty((y1 - y0, WIDTH), np.float32) for _ in range(4)]
        return DATA[y0:y1][: len(held) * 1000].copy()

    out = Collected()
    make_policy().run(workload(), greedy, cpu_body, emit=out)
    out.check()
    assert attempts[:2] == [0, 0]


def test_require_makes_every_fallback_an_error(install):
    with pytest.raises(RunFailed) as caught:
        run(make_policy(mode="require"))
    assert caught.value.key == "gpu_required"
    device = install(SimulatedDevice(64 << 20))
    policy = make_policy(mode="require")
    assert run(policy, work={"cpu_seconds": 1e-9}).gpu_rows == ROWS
    device.faults = seam.FaultScript("error1@3")
    with pytest.raises(RunFailed, match="runtime_error"):
        run(policy)


def test_require_is_checked_before_any_work(install):
    with pytest.raises(RunFailed) as caught:
        make_policy(mode="require").check_required()
    assert caught.value.key == "gpu_required"
    assert caught.value.values["reason"] != "gpu"
    make_policy(mode="auto").check_required()
    install(SimulatedDevice(64 << 20))
    make_policy(mode="require").check_required()


@pytest.mark.parametrize("lie", [3.0, 0.0])
def test_a_driver_that_lies_about_free_memory(install, lie):
    """Too much promised: chunks shrink when they do not fit. Nothing promised: the CPU, and the reason."""
    device = install(SimulatedDevice(30_000, other=20_000))
    device.free_lie = lie
    policy = make_policy()
    report = run(policy)
    assert device.pool.used == 0
    if lie:
        assert (report.splits, report.cpu_rows) == (2, 0)
    else:
        assert report.decision.reason is Reason.INSUFFICIENT_MEMORY
        (fallback,) = policy.summary()["fallbacks"]
        assert fallback["key"] == "gpu_fallback_insufficient_memory"
        assert fallback["needed_bytes"] > fallback["usable_bytes"] == 0


def test_the_pool_cannot_grow_beyond_the_budget(install):
    device = install(SimulatedDevice(64 << 20))
    policy = make_policy(memory_mb=10)
    assert policy.status.ok
    with pytest.raises(MemoryError):
        device.empty((11 << 20,), np.uint8)
    policy.close()
    device.empty((11 << 20,), np.uint8)


def test_closing_asks_nothing_and_survives_a_dead_card(install):
    records = []
    make_policy(records).close()
    assert records == []
    device = install(SimulatedDevice(64 << 20))
    policy = make_policy(records)
    assert policy.status.ok
    device.faults = seam.FaultScript("sticky700@1")
    policy.close()
    assert records[-1]["key"] == "gpu_summary_end"


def test_cancel_between_chunks(install):
    install(SimulatedDevice(64 << 20))
    flag = threading.Event()
    policy = make_policy(environ={"ZEMOSAIC_GPU_CHUNK_ROWS": "4"})

    def emit(y0, y1, result):
        if y1 > 10:
            flag.set()

    with pytest.raises(Cancelled):
        policy.run(workload(), gpu_body, cpu_body, emit=emit, cancel=flag)


def test_parity_is_checked_on_some_rows_and_reported(install):
    install(SimulatedDevice(64 << 20))
    records = []
    policy = make_policy(records)

    def compare(gpu, cpu, first):
        return Parity(float(np.abs(gpu[first : first + len(cpu)] - cpu).max()), cpu.size, 0)

    report = run(policy, audit=Audit(3, compare))
    assert report.parity == Parity(0.0, 3 * WIDTH, 0)
    assert run(policy, audit=Audit(3, compare)).parity is None
    assert [r["key"] for r in records].count("gpu_parity_ok") == 1
    assert not Parity(1e-3, 100, 0).ok
    assert "gpu_parity_ok" in [key for key, _ in policy.report_lines()]


def test_exhaustive_fault_sweep(install, monkeypatch):
    """Fail each call in turn with each kind of error: same picture, nothing left allocated, no exception."""
    # Slow, and without it this also shows that nothing hangs in a cycle.
    monkeypatch.setattr(policy_module.gc, "collect", lambda: 0)
    device = install(SimulatedDevice(64 << 20))
    policy = make_policy(environ={"ZEMOSAIC_GPU_CHUNK_ROWS": "14"})
    assert policy.status.ok
    device.faults = seam.FaultScript()
    run(policy)
    calls, allocations = device.faults.calls, device.faults.allocations
    assert calls > 20
    scripts = [f"oom@{k}" for k in range(1, allocations + 1)]
    scripts += [
        f"{kind}@{k}" for kind in ("error1", "sticky700", "sticky719", "error2") for k in range(1, calls + 1)
    ]
    for script in scripts:
        device.faults = seam.FaultScript()
        records = []
        policy = make_policy(records, environ={"ZEMOSAIC_GPU_CHUNK_ROWS": "14"})
        assert policy.status.ok
        device.faults = seam.FaultScript(script)
        report = run(policy)
        assert report.gpu_rows + report.cpu_rows == ROWS
        assert device.pool.used == 0, script
        assert device.faults.dead_status or device.pool.total == 0, script
        assert {r["reason"] for r in records} <= {reason.value for reason in Reason}
        assert [r["kind"] for r in records].count("operation") == 1
        assert len(records) < 30


# --- records --------------------------------------------------------------------------------------------------


def test_the_ledger_is_json_lines_and_survives_a_read_only_place(tmp_path, install):
    install(SimulatedDevice(64 << 20))
    policy = make_policy(ledger_path=tmp_path / "out" / "gpu_ledger.jsonl")
    run(policy)
    policy.close()
    lines = [json.loads(line) for line in (tmp_path / "out" / "gpu_ledger.jsonl").read_text().splitlines()]
    assert lines[0]["kind"] == "probe"
    assert {"time", "pid", "op", "reason", "key", "values", "level", "repeat"} <= set(lines[0])
    assert lines[-1]["key"] == "gpu_summary_end"
    blocked = tmp_path / "file"
    blocked.write_text("")
    run(make_policy(ledger_path=blocked / "ledger.jsonl"))


EVENT_KEYS = {
    "gpu_info_summary",
    "stack_using_gpu",
    "stack_using_cpu",
    "phase5_using_gpu",
    "phase5_using_cpu",
    "gpu_op_using_gpu",
    "gpu_op_using_cpu",
    "gpu_chunking_rows",
    "gpu_chunk_split",
    "gpu_parity_ok",
    "gpu_parity_differs",
    "gpu_lease_waited",
    "gpu_report_share",
    "gpu_report_peak",
    "gpu_report_repeated",
    "gpu_summary_end",
    "gpu_required",
    "settings_bad_environment",
    *(
        f"gpu_op_{op}"
        for op in ("stack", "assemble", "hot_pixels", "background", "stretch", "percentiles", "run")
    ),
}


@pytest.mark.parametrize("language", ["en", "fr"])
def test_each_reason_and_event_has_a_text(language):
    texts = json.loads((ROOT / "locales" / f"{language}.json").read_text(encoding="utf-8"))
    wanted = (
        EVENT_KEYS | {r.text_key for r in Reason} | {r.fallback_key for r in Reason if r is not Reason.GPU}
    )
    assert sorted(wanted - set(texts)) == []


def test_each_key_the_recorder_uses_is_in_that_list():
    source = (ROOT / "zemosaic_core" / "gpu" / "recorder.py").read_text(encoding="utf-8")
    source += (ROOT / "zemosaic_gpu_policy.py").read_text(encoding="utf-8")
    used = set(re.findall(r'"(gpu_[a-z_]+)"', source))
    functions = {"gpu_phase", "gpu_status", "gpu_chunks", "gpu_share", "gpu_rows", "gpu_op"}
    assert used - functions <= EVENT_KEYS, used - functions - EVENT_KEYS


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
