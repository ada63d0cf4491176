"""Each reason for which work is not done on the card: produced for real, recorded, and told in every language."""

from __future__ import annotations

import json
import multiprocessing
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fake_cupy import Card
from policy_cases import Collected, cpu_body, gpu_body, held_by_another_run, make_policy, workload
from simulated_device import COMPILER, CUDARuntimeError, SimulatedDevice

import zemosaic_gpu_policy as policy_module
from locales.zemosaic_localization import ZeMosaicLocalization, available_languages
from zemosaic_align_stack import gpu_stack_winsorized, stack_winsorized_sigma_clip
from zemosaic_core.gpu import device as seam
from zemosaic_core.gpu import probe
from zemosaic_core.gpu.terms import CALM_REASONS, Audit, Parity, Reason
from zemosaic_io import gpu_probe

pytestmark = pytest.mark.skipif(COMPILER is None, reason="the simulated card needs a host C++ compiler")


class Bench:
    """What a scenario works with."""

    def __init__(self, install, cupy_cards, monkeypatch):
        self.install, self.cupy_cards, self.monkeypatch = install, cupy_cards, monkeypatch
        self.records = []

    def run(self, *, faults="", rows="40", options=None, run_options=None, **work):
        """Run the small operation; its result must be right whatever happens."""
        environ = {"ZEMOSAIC_GPU_CHUNK_ROWS": rows, **(options or {}).pop("environ", {})}
        policy = make_policy(self.records, environ=environ, **(options or {}))
        policy.status  # noqa: B018 - the card is opened before the faults begin
        if faults:
            seam.installed().faults = seam.FaultScript(faults)
        out = Collected()
        policy.run(workload(**work), gpu_body, cpu_body, emit=out, **(run_options or {}))
        out.check()
        return policy

    def card(self, **options):
        return self.install(SimulatedDevice(64 << 20, **options))

    def real_child(self):
        """Let the probe start its process, although there is no driver."""
        self.monkeypatch.setattr(gpu_probe, "has_driver", lambda: (True, "pretended"))
        gpu_probe.remembered_status.cache_clear()


def on_the_card(bench):
    bench.card()
    bench.run()


def off(bench):
    bench.card()
    bench.run(options={"mode": "off"})


def forced_cpu(bench):
    bench.card()
    bench.run(run_options={"wanted": False})


def forked_child(bench):
    bench.card()
    policy = make_policy(bench.records)
    assert policy.status.ok
    bench.records.clear()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()

    def child():
        out = Collected()
        policy.run(workload(), gpu_body, cpu_body, emit=out)
        out.check()
        queue.put(bench.records)

    process = context.Process(target=child)
    process.start()
    bench.records = queue.get(timeout=30)
    process.join()


def no_driver(bench):
    bench.monkeypatch.setattr(gpu_probe, "has_driver", lambda: (False, "libcuda.so.1: not found"))
    gpu_probe.remembered_status.cache_clear()
    bench.run()


def _import_fails(bench, error):
    def fail():
        raise error

    bench.cupy_cards()
    bench.monkeypatch.setattr(seam, "import_cupy", fail)
    bench.run()


def cupy_missing(bench):
    _import_fails(bench, ModuleNotFoundError("No module named 'cupy'"))


def cupy_import_error(bench):
    _import_fails(bench, OSError(30, "Read-only file system"))


def _counting_fails(bench, status):
    def fail():
        raise CUDARuntimeError(status)

    bench.cupy_cards().cuda.runtime.getDeviceCount = fail
    bench.run()


def driver_too_old(bench):
    _counting_fails(bench, 35)


def no_device(bench):
    _counting_fails(bench, 100)


def compute_capability(bench):
    bench.cupy_cards(Card("Tesla K80", capability=(3, 7)))
    bench.run()


def vram_too_small(bench):
    bench.cupy_cards(Card("GT 710", total=1 << 30))
    bench.run()


def compiler_missing(bench):
    def fail(**options):
        raise RuntimeError("Failed to find CUDA headers. Please install CUDA toolkit headers")

    bench.cupy_cards().RawModule = fail
    bench.run()


def smoke_failed(bench):
    bench.cupy_cards(Card(broken=719))
    bench.run()


def probe_timeout(bench):
    bench.real_child()
    bench.monkeypatch.setattr(gpu_probe, "PROBE_TIMEOUT_SECONDS", 0.001)
    bench.run()


def probe_crashed(bench):
    bench.real_child()
    dead = SimpleNamespace(executable="/bin/false" if sys.platform != "win32" else "no_such_program")
    bench.monkeypatch.setattr(gpu_probe, "sys", dead)
    bench.run()


def lease_timeout(bench):
    device = bench.card()
    bench.monkeypatch.setattr(policy_module, "LEASE_TIMEOUT_SECONDS", 0.1)
    with held_by_another_run(device.info.uuid):
        bench.run()


def insufficient_memory(bench):
    bench.install(SimulatedDevice(1000))
    bench.run()


def workload_too_small(bench):
    bench.card()
    bench.run(cpu_seconds=1e-9)


def out_of_memory(bench):
    bench.card()
    bench.run(rows="4", faults="oom@2")


def runtime_error(bench):
    bench.card()
    bench.run(faults="error1@4")


def compile_failed(bench):
    bench.card(no_compiler=True)
    policy = bench.run()
    policy.run(workload(), gpu_body, cpu_body, emit=Collected())  # and it stays so, with what was said


def device_lost(bench):
    bench.card()
    policy = bench.run(faults="sticky700@6")
    policy.run(workload(), gpu_body, cpu_body, emit=Collected())


def overcommitted(bench):
    device = bench.card()
    device.driver_malloc = lambda size: True

    def take(dev, kind, n_bytes):
        if kind == "launch":
            dev.other = 64 << 20

    device.hooks.append(take)
    bench.run(rows="20")


def host_memory(bench):
    device = bench.card()

    def refuse(dev, kind, n_bytes):
        if kind == "copy_out":
            raise MemoryError("Unable to allocate 2.00 GiB for an array")

    device.hooks.append(refuse)
    bench.run(rows="4")


def pageable(bench):
    device = bench.card()
    rng = np.random.default_rng(5)
    images = [rng.normal(100, 5, (20, 40)).astype(np.float32) for _ in range(5)]

    def refuse(dev, kind, n_bytes):
        if kind == "pinned":
            raise CUDARuntimeError(2)

    device.hooks.append(refuse)
    policy = make_policy(bench.records, mode="require")
    ours, _ = gpu_stack_winsorized(images, policy=policy)
    np.testing.assert_array_equal(ours, stack_winsorized_sigma_clip(images)[0])
    assert policy.ceilings == {}
    assert policy.summary()["operations"]["stack"]["splits"] == 0


def wrong_results(bench):
    bench.card()
    wrong = Audit(1, lambda gpu, cpu, first: Parity(26.0, cpu.size, 0))
    policy = bench.run(run_options={"audit": wrong})
    policy.run(workload(), gpu_body, cpu_body, emit=Collected())  # and it stays so


def too_many_failures(bench):
    bench.card()
    bench.run(rows="4", faults="oom>1")


SCENARIOS = {
    Reason.GPU: on_the_card,
    Reason.OFF: off,
    Reason.FORCED_CPU: forced_cpu,
    Reason.FORKED_CHILD: forked_child,
    Reason.NO_DRIVER: no_driver,
    Reason.CUPY_MISSING: cupy_missing,
    Reason.CUPY_IMPORT_ERROR: cupy_import_error,
    Reason.DRIVER_TOO_OLD: driver_too_old,
    Reason.NO_DEVICE: no_device,
    Reason.COMPUTE_CAPABILITY: compute_capability,
    Reason.VRAM_TOO_SMALL: vram_too_small,
    Reason.COMPILER_MISSING: compiler_missing,
    Reason.SMOKE_FAILED: smoke_failed,
    Reason.PROBE_TIMEOUT: probe_timeout,
    Reason.PROBE_CRASHED: probe_crashed,
    Reason.LEASE_TIMEOUT: lease_timeout,
    Reason.INSUFFICIENT_MEMORY: insufficient_memory,
    Reason.WORKLOAD_TOO_SMALL: workload_too_small,
    Reason.OUT_OF_MEMORY: out_of_memory,
    Reason.RUNTIME_ERROR: runtime_error,
    Reason.COMPILE_FAILED: compile_failed,
    Reason.DEVICE_LOST: device_lost,
    Reason.OVERCOMMITTED: overcommitted,
    Reason.HOST_MEMORY: host_memory,
    Reason.PAGEABLE: pageable,
    Reason.WRONG_RESULTS: wrong_results,
    Reason.TOO_MANY_FAILURES: too_many_failures,
}
# Steps that leave the work on the card.
KINDS = {Reason.GPU: "decision", Reason.OVERCOMMITTED: "split", Reason.PAGEABLE: "staging"}


def test_every_reason_has_a_scenario():
    assert set(SCENARIOS) == set(Reason)


@pytest.mark.parametrize("reason", list(Reason))
def test_a_reason_happens_is_recorded_and_is_told(reason, install, cupy_cards, monkeypatch):
    if reason is Reason.FORKED_CHILD and "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system cannot fork")
    bench = Bench(install, cupy_cards, monkeypatch)
    SCENARIOS[reason](bench)
    gpu_probe.remembered_status.cache_clear()
    records = bench.records
    assert json.loads(json.dumps(records)) == records
    kind = KINDS.get(reason, "fallback")
    named = [r for r in records if r["kind"] == kind and r["reason"] == reason.value]
    assert named, [(r["kind"], r["reason"]) for r in records]
    if kind == "fallback":
        assert {r["level"] for r in named} == {"INFO" if reason in CALM_REASONS else "WARN"}
        assert all(r["rows"][1] > r["rows"][0] for r in named)
    for record in records:
        if not record["key"]:
            continue
        for language in available_languages():
            said = ZeMosaicLocalization(language).get(record["key"], **record["values"])
            # No key without a text, no place that nothing was put into, no empty brackets.
            assert not said.startswith("_"), said
            assert "{" not in said
            assert "()" not in said


def test_every_stage_of_the_probe_is_a_reason():
    """The stages are the only reasons that are not spelled as `Reason`."""
    text = Path(probe.__file__).read_text(encoding="utf-8")
    stages = set(re.findall(r'Finding\(\s*"(\w+)"', text)) | set(re.findall(r'\d+: "(\w+)"', text))
    assert len(stages) >= 7
    for stage in stages - {"ok"}:
        assert Reason(stage) in SCENARIOS
