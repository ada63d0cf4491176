"""Is there a card, which one, for whom: probes, environment, leases, processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from fake_cupy import Card
from policy_cases import (
    ROOT,
    ROWS,
    Collected,
    cpu_body,
    gpu_body,
    held_by_another_run,
    make_policy,
    run,
    workload,
)
from simulated_device import CUDARuntimeError, SimulatedDevice

import zemosaic_gpu_policy as policy_module
import zemosaic_utils as utils
from locales.zemosaic_localization import ZeMosaicLocalization, available_languages
from zemosaic_core.chunks import Buffer
from zemosaic_core.errors import RunFailed, SettingsError
from zemosaic_core.gpu import device as seam
from zemosaic_core.gpu import probe as probe_module
from zemosaic_core.gpu import terms
from zemosaic_core.gpu.terms import GpuStatus, Overrides, Reason
from zemosaic_gpu_policy import gpu_status, make_budget
from zemosaic_io import gpu_files, gpu_probe
from zemosaic_io.gpu_files import LeaseTimeout, device_lease
from zemosaic_pipeline import doctor
from zemosaic_settings import Settings
from zemosaic_ui import jobs
from zemosaic_ui.compute_state import ComputeState

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


@pytest.mark.parametrize(
    ("cards", "error", "stage"),
    [
        ([], 35, "driver_too_old"),
        ([], 100, "no_device"),
        ([], 3, "smoke_failed"),
        ([Card(capability=(3, 7))], 0, "compute_capability"),
        ([Card(total=1 << 30)], 0, "vram_too_small"),
        ([Card(capability=(3, 7)), Card(total=1 << 30)], 0, "compute_capability"),  # the better one's reason
        ([Card(broken=1)], 0, "smoke_failed"),
    ],
)
def test_the_stages_stop_at_the_first_failure(cupy_cards, cards, error, stage):
    def count():
        raise CUDARuntimeError(error)

    fake = cupy_cards(*cards)
    if error:
        fake.cuda.runtime.getDeviceCount = count
    finding, device = probe_module.probe()
    assert (finding.stage, device) == (stage, None)
    fake.cuda.runtime.getDeviceCount = lambda: 0
    assert probe_module.probe()[0].stage == "no_device"


@pytest.mark.parametrize(
    ("error", "stage"),
    [
        (ModuleNotFoundError("No module named 'cupy'"), "cupy_missing"),
        (ImportError("libnvrtc"), "cupy_import_error"),
        (OSError(30, "Read-only file system"), "cupy_import_error"),
        (AttributeError("partially initialized module"), "cupy_import_error"),
        (ValueError("numpy.dtype size changed, may indicate binary incompatibility"), "cupy_import_error"),
        (TypeError("metaclass"), "cupy_import_error"),
        (KeyError("CUDA_PATH"), "cupy_import_error"),
        (SystemError("initialization failed"), "cupy_import_error"),
        (SyntaxError("invalid syntax"), "cupy_import_error"),
    ],
)
def test_cupy_that_does_not_import_is_told_apart(monkeypatch, error, stage):
    def fail():
        raise error

    monkeypatch.setattr(probe_module, "has_driver", lambda: (True, ""))
    monkeypatch.setattr(seam, "import_cupy", fail)
    assert probe_module.probe()[0].stage == stage


def test_an_answer_that_is_asked_for_again_is_not_a_memory(cupy_cards, install):
    """The card broke after a good answer was written down."""
    cupy_cards(Card())
    assert gpu_status().ok
    gpu_probe.remembered_status.cache_clear()
    cupy_cards(Card(broken=719))
    assert gpu_status().ok  # believed, as it is on disk
    assert not utils.gpu_is_available()
    assert gpu_status().reason is Reason.SMOKE_FAILED  # and forgotten
    cupy_cards(Card())
    assert gpu_status(refresh=True).ok
    assert utils.GPU_AVAILABLE
    device = install(SimulatedDevice(64 << 20))
    assert utils.gpu_is_available()
    device.faults = seam.FaultScript("sticky700@1")
    assert not utils.gpu_is_available()


def test_a_card_that_cannot_be_opened_is_forgotten(cupy_cards):
    cupy_cards(Card())
    assert gpu_status().ok
    cupy_cards(Card(broken=719))
    assert make_policy().status.reason is Reason.SMOKE_FAILED
    assert gpu_status().reason is Reason.SMOKE_FAILED


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_no_visible_device_is_not_an_unset_variable(cupy_cards, monkeypatch, hidden):
    def none():
        raise CUDARuntimeError(100)

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    cupy_cards(Card())
    assert gpu_status().ok
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    cupy_cards(Card()).cuda.runtime.getDeviceCount = none
    assert gpu_status().reason is Reason.NO_DEVICE


def test_versions_of_the_libraries_belong_to_what_is_remembered(monkeypatch):
    before = probe_module.driver_fingerprint()
    assert "numpy=" in before

    def newer():
        return [SimpleNamespace(metadata={"Name": "numpy"}, version="99.0")]

    monkeypatch.setattr(probe_module.metadata, "distributions", newer)
    assert probe_module.driver_fingerprint() != before


def test_enough_memory_is_said_of_now(install, monkeypatch):
    monkeypatch.setenv("ZEMOSAIC_GPU_RESERVE_MB", "0")
    device = install(SimulatedDevice(1 << 30))
    assert utils.gpu_memory_sufficient(512 << 20)
    device.other = 1000 << 20
    assert not utils.gpu_memory_sufficient(512 << 20)
    device.other = 0
    assert utils.gpu_memory_sufficient(512 << 20)
    monkeypatch.setenv("ZEMOSAIC_GPU", "off")
    assert not utils.gpu_memory_sufficient(1)


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


def test_require_against_off_is_an_error_before_anything_starts(install, tmp_path):
    install(SimulatedDevice())
    for mode, variable in (("require", "off"), ("off", "require")):
        with pytest.raises(SettingsError) as caught:
            make_policy(mode=mode, environ={"ZEMOSAIC_GPU": variable})
        assert caught.value.key == "settings_gpu_variable"
        assert caught.value.values["variable"] == "ZEMOSAIC_GPU"


@pytest.mark.parametrize(
    ("options", "by", "words"),
    [
        ({"environ": {"ZEMOSAIC_GPU": "off"}}, "gpu_by_variable", "ZEMOSAIC_GPU"),
        ({"mode": "off"}, "gpu_by_settings", "settings"),
        ({"mode": "off", "asked_by": "gpu_by_command"}, "gpu_by_command", "--gpu"),
        ({"mode": "off", "asked_by": "gpu_by_window"}, "gpu_by_window", "window"),
    ],
)
def test_who_switched_the_card_off_stands_in_the_text(install, options, by, words):
    install(SimulatedDevice())
    records = []
    policy = make_policy(records, **options)
    policy.check_required()
    assert records[0]["values"]["by_key"] == by
    for language in available_languages():
        said = ZeMosaicLocalization(language).get(records[0]["key"], **records[0]["values"])
        assert "{" not in said
    assert words in ZeMosaicLocalization("en").get(records[0]["key"], **records[0]["values"])
    key, values = policy.report_lines()[0]
    assert words in ZeMosaicLocalization("en").get(key, **values)


def test_require_fails_for_memory_with_what_is_planned(install):
    device = install(SimulatedDevice(64 << 20, other=64 << 20))
    policy = make_policy(mode="require")
    with pytest.raises(RunFailed) as caught:
        policy.check_fits(policy.plan(workload()))
    assert caught.value.key == "gpu_required_memory"
    assert caught.value.values["needed_mb"] == 1
    device.other = 0
    policy.check_fits(policy.plan(workload()))
    make_policy(mode="auto").check_fits(policy.plan(workload(op="x"), wanted=False))


def test_memory_that_card_and_processor_share_is_counted_once():
    """What the processor's part of the run takes is not free for the card as well."""
    state = seam.MemoryState(8 << 30, 6 << 30, 0, 0)
    own, shared = seam.DeviceInfo("", ""), seam.DeviceInfo("", "", integrated=True)
    usable = [
        make_budget(state, info, memory_mb=0, overrides=Overrides(reserve_mb=0), host_bytes=host).usable
        for info, host in ((own, 2 << 30), (shared, 2 << 30), (shared, 0))
    ]
    assert usable == [6 << 30, 4 << 30, 3 << 30]


def test_the_environment_is_heard_by_every_answer(cupy_cards, monkeypatch):
    """The short answers, the window and doctor say what a run would do."""
    cupy_cards(Card("Big", total=8 << 30), Card("Small", uuid=b"\x20" * 16))
    settings = Settings()
    assert gpu_status().device.name == "Big"
    monkeypatch.setenv("ZEMOSAIC_GPU_DEVICE", "small")
    assert gpu_status(choice="0").device.name == "Small"
    assert doctor._gpu(settings).values["name"] == "Small"
    monkeypatch.setenv("ZEMOSAIC_GPU", "off")
    assert gpu_status().reason is Reason.OFF
    assert not utils.gpu_is_available()
    assert doctor._gpu(settings).key == "gpu_reason_off"
    monkeypatch.setenv("ZEMOSAIC_GPU", "maybe")
    with pytest.raises(SettingsError):
        gpu_status()
    assert (doctor._gpu(settings).state, doctor._gpu(settings).key) == ("fail", "settings_bad_environment")
    answers = queue.Queue()
    jobs.gpu_facts(answers, {}, cancel_event=None)
    assert answers.get_nowait()[1]["reason_key"] == "settings_bad_environment"


def test_forced_cpu_for_intertile_work_and_on_request(install):
    install(SimulatedDevice())
    policy = make_policy(environ={"ZEMOSAIC_FORCE_CPU_INTERTILE": "1"})
    assert policy.plan(workload(op="intertile")).reason is Reason.FORCED_CPU
    assert policy.plan(workload()).device == "gpu"
    assert run(policy, wanted=False).decision.reason is Reason.FORCED_CPU


@pytest.mark.parametrize("mode", ["auto", "off"])
def test_forced_cpu_is_told_once_at_the_start(install, tmp_path, mode):
    """Whoever has set a variable of old learns that it was heard."""
    install(SimulatedDevice())
    records = []
    environ = {"ZEMOSAIC_FORCE_CPU_INTERTILE": "yes"}
    policy = make_policy(records, mode=mode, environ=environ, ledger_path=tmp_path / "ledger.jsonl")
    policy.check_required()
    assert [record["kind"] for record in records] == ["probe", "override"]
    run(policy)
    run(policy)
    said = [record for record in records if record["key"] == "gpu_info_intertile_forced"]
    assert len(said) == 1
    assert (said[0]["op"], said[0]["reason"], said[0]["level"]) == ("intertile", "forced_cpu", "INFO")
    assert said[0]["values"] == {"variable": "ZEMOSAIC_FORCE_CPU_INTERTILE"}
    ledger = (tmp_path / "ledger.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in ledger if "intertile" in line] == said
    assert [key for key, _ in policy.report_lines()].count("gpu_info_intertile_forced") == 1
    panel = ComputeState()
    for record in records:
        panel.add(record)
    assert [line.key for line in panel.fallbacks].count("gpu_info_intertile_forced") == 1


@pytest.mark.parametrize("value", ["", "0", "no", "off"])
def test_variable_that_asks_for_nothing_is_not_mentioned(install, value):
    install(SimulatedDevice())
    records = []
    policy = make_policy(records, environ={"ZEMOSAIC_FORCE_CPU_INTERTILE": value})
    policy.check_required()
    assert [record["kind"] for record in records] == ["probe"]
    assert "gpu_info_intertile_forced" not in [key for key, _ in policy.report_lines()]


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


def test_a_forked_child_that_lives_on_does_not_keep_the_card(tmp_path):
    """A lock belongs to the open file, and a forked child inherits it."""
    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork")
    script = (
        "import os, time\nfrom zemosaic_io.gpu_files import device_lease\n"
        "with device_lease('card', timeout_s=5):\n"
        "    child = os.fork()\n"
        "    if child: print(child, flush=True)\n"
        "    time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment)
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(LeaseTimeout), device_lease("card", timeout_s=0):
            pass
        holder.kill()
        holder.wait()
        os.kill(child, 0)  # still alive
        with device_lease("card", timeout_s=5) as waited_s:
            assert waited_s < 5
    finally:
        holder.kill()
        holder.stdout.close()
        os.kill(child, signal.SIGKILL)


def test_another_runs_card_is_waited_for_once(install, monkeypatch):
    """Not once per tile: the run goes on, and takes the card when it is free."""
    device = install(SimulatedDevice(64 << 20))
    waits = []
    real = gpu_files.device_lease

    def counted(uuid, *, timeout_s, **options):
        waits.append(timeout_s)
        return real(uuid, timeout_s=timeout_s, **options)

    monkeypatch.setattr(policy_module, "LEASE_TIMEOUT_SECONDS", 0.2)
    policy = make_policy()
    assert policy.status.ok
    monkeypatch.setattr(policy_module, "device_lease", counted)
    with held_by_another_run(device.info.uuid):
        assert [run(policy).decision.reason for _ in range(3)] == [Reason.LEASE_TIMEOUT] * 3
    assert waits == [0.2, 0.0, 0.0]
    assert run(policy).gpu_rows == ROWS


def test_two_policies_of_one_thread_share_the_card(install):
    """Work inside other work does not wait for itself."""
    device = install(SimulatedDevice(64 << 20))
    outer, inner = make_policy(), make_policy()
    reports = []

    def emit(y0, y1, result):
        reports.append(run(inner))

    outer.run(workload(), gpu_body, cpu_body, emit=emit)
    assert [(r.gpu_rows, r.fallbacks) for r in reports] == [(ROWS, 0)]
    assert device.pool.total == 0
    inner.close()
    outer.run(workload(), gpu_body, cpu_body, emit=Collected())
    assert device.pool.limit == outer.budget.usable  # its own limit again, although the other one removed it


def test_two_policies_in_two_threads_take_turns(install):
    device = install(SimulatedDevice(64 << 20))
    inside, most, errors = [], [], []

    def body(dev, y0, y1, next_rows):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.02)
        result = gpu_body(dev, y0, y1, next_rows)
        inside.pop()
        return result

    def work():
        try:
            policy = make_policy(environ={"ZEMOSAIC_GPU_CHUNK_ROWS": "20"})
            out = Collected()
            assert policy.run(workload(), body, cpu_body, emit=out).gpu_rows == ROWS
            out.check()
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert max(most) == 1
    assert device.pool.total == 0


@pytest.mark.parametrize("trouble", ["no folder", "no locks"])
def test_without_a_place_for_locks_a_run_goes_on(install, monkeypatch, tmp_path, trouble):
    install(SimulatedDevice(64 << 20))
    if trouble == "no folder":
        (tmp_path / "file").write_text("")
        monkeypatch.setattr(gpu_files, "cache_folder", lambda: tmp_path / "file" / "below")
    elif sys.platform == "win32":
        pytest.skip("there is no flock")
    else:

        def refuse(file, what):
            raise OSError(37, "No locks available")

        monkeypatch.setattr(gpu_files.fcntl, "flock", refuse)
    report = run(make_policy())
    assert (report.gpu_rows, report.fallbacks) == (ROWS, 0)


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


def test_asking_creates_no_context_and_works_from_threads():
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(gpu_status().reason)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(answers)) == 1
