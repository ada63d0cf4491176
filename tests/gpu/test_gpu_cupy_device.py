"""The lines between the engine and CuPy, run against a stand-in for CuPy on host memory."""

from __future__ import annotations

import functools
import inspect
import queue
import re
import threading

import numpy as np
import pytest
from fake_cupy import Card, Event, Pool, Stream, make_fake_cupy
from gpu_cases import FakePixels, assert_blocks_agree, make_sources
from simulated_device import COMPILER, CUDARuntimeError

import zemosaic_utils as utils
from zemosaic_core.coadd import coadd_block
from zemosaic_core.gpu import device as seam
from zemosaic_core.gpu import probe as probe_module
from zemosaic_core.gpu.terms import Reason
from zemosaic_core.sources import CombineRule
from zemosaic_gpu_policy import GpuPolicy, gpu_status
from zemosaic_io import gpu_probe
from zemosaic_pipeline import doctor
from zemosaic_settings import Settings
from zemosaic_ui import jobs
from zemosaic_utils import coadd_on_grid

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a host C++ compiler")


@pytest.fixture
def cupy(cupy_cards):
    return cupy_cards()


def test_a_card_is_described_and_found_good(cupy):
    finding, device = probe_module.probe()
    assert finding.stage == "ok"
    info = finding.device
    assert (info.name, info.compute_capability, info.drives_display) == ("Fake RTX", 89, True)
    assert info.uuid == bytes(range(1, 17)).hex()
    assert info.shared_bytes == 101376
    assert probe_module.Finding.from_json(finding.to_json()) == finding
    before = device.memory()
    array = device.empty((1000,), np.float32)
    assert device.memory().pool_used == before.pool_used + 4096
    assert device.peak_bytes(reset=True) >= 4096
    with pytest.raises(ValueError, match="contiguous"):
        device.copy_in(array, np.zeros((10, 10), np.float32).T[1:], device.stream())
    with pytest.raises(ValueError, match="do not fit"):
        device.copy_in(array, np.zeros(1000, np.float32), device.stream(), 4)
    with pytest.raises(MemoryError):
        device.empty((8 << 30,), np.uint8)
    del array
    device.release()
    assert device.memory().pool_total == 0


@pytest.mark.parametrize("rule", [CombineRule(), CombineRule("none")])
@pytest.mark.parametrize("fault", ["", "oom@9", "error1@50", "sticky700@60"])
def test_a_stack_through_the_real_device_class(cupy, rule, fault):
    environ = {"ZEMOSAIC_TESTING": "1", "ZEMOSAIC_GPU_FAULT": fault}
    policy = GpuPolicy(environ=environ)
    assert policy.status.ok, policy.status
    assert gpu_probe.Opened.pid != 0
    pixels = FakePixels(6, (41, 67), raw="some", hot=20, weights=True)
    sources = make_sources(pixels, 6, (53, 90), turn=0.02, feather=5.0)
    blocks = []
    coadd_on_grid(
        pixels, sources, (53, 90), 3, rule, "bilinear", budget_bytes=1 << 28, policy=policy,
        sink=lambda y0, y1, block: blocks.append((y0, y1, block)),
    )  # fmt: skip
    for y0, y1, block in blocks:
        cpu = coadd_block(pixels, sources, y0, y1, 90, 3, rule, "bilinear")
        assert_blocks_agree(block, cpu, ulps=16, flips=1e-3)
    operation = policy.summary()["operations"]["stack"]
    if fault:
        assert operation["splits"] + operation["fallbacks"] > 0
    else:
        assert operation["gpu_share"] == 1.0
        assert (
            0.8 * operation["planned_peak_bytes"]
            <= operation["peak_bytes"]
            <= operation["planned_peak_bytes"]
        )
    if not fault.startswith("sticky"):
        assert cupy.get_default_memory_pool().used == 0
    policy.close()


def test_a_card_that_was_asked_for_and_is_not_there(cupy):
    assert GpuPolicy(device="GTX 9999", environ={}).status.reason is Reason.NO_DEVICE
    assert GpuPolicy(device="1", environ={}).status.reason is Reason.NO_DEVICE


def test_what_cuda_does_not_say_is_not_guessed(cupy_cards):
    """A card that does not answer a question about itself is not used as if it had answered no."""
    fake = cupy_cards()
    ask = fake.cuda.runtime.deviceGetAttribute
    fake.cuda.runtime.deviceGetAttribute = lambda attrib, device: ask(999 if attrib == 17 else attrib, device)
    finding, device = probe_module.probe()
    assert (finding.stage, device) == ("smoke_failed", None)
    assert "CUDARuntimeError" in finding.detail


@pytest.mark.parametrize(
    ("uuid", "identity"),
    [
        (bytes(range(1, 17)), bytes(range(1, 17)).hex()),
        (bytes(range(1, 25)), bytes(range(1, 17)).hex()),  # read on into what lies behind it
        (b"\1\2\0\4" * 4, "0102-0000:01:00.0"),  # ended at a zero byte
        (b"\0" * 16, "0000:01:00.0"),
    ],
)
def test_the_identity_of_a_card(cupy_cards, uuid, identity):
    cupy_cards(Card(uuid=uuid))
    assert seam.CupyDevice.describe(0).uuid == identity


TOO_OLD = Card("Tesla K80", total=12 << 30, capability=(3, 7))
SMALL = Card("NVIDIA GeForce GTX 1650", total=4 << 30, uuid=b"\x20" * 16)
BIG = Card("NVIDIA GeForce RTX 3060 Laptop GPU", total=6 << 30, uuid=b"\x30" * 16)
BROKEN = Card("Broken RTX", total=24 << 30, broken=1)


@pytest.mark.parametrize("better", [TOO_OLD, BROKEN, Card("Tiny", total=1 << 30)])
def test_a_card_that_works_is_used_although_a_better_one_does_not(cupy_cards, better):
    cupy_cards(better, SMALL)
    policy = GpuPolicy(environ={})
    assert policy.status.ok
    assert (policy.status.device.name, policy.status.device.index) == (SMALL.name, 1)
    assert not GpuPolicy(device="0", environ={}).status.ok  # asked for, so no other one


def test_a_card_that_does_not_answer_stands_in_nobodys_way(cupy_cards):
    fake = cupy_cards(BIG, SMALL)
    tell = fake.cuda.runtime.getDeviceProperties

    def silent(device):
        if device == 0:
            raise CUDARuntimeError(101)
        return tell(device)

    fake.cuda.runtime.getDeviceProperties = silent
    assert probe_module.probe()[0].device.name == SMALL.name
    finding, device = probe_module.probe("rtx 3060")
    assert (finding.stage, device) == ("smoke_failed", None)
    assert "101" in finding.detail


def test_what_is_remembered_belongs_to_the_cards_that_are_there(tmp_path, monkeypatch):
    """Another card under the same driver is asked anew."""
    real = probe_module.Path
    monkeypatch.setattr(
        probe_module, "Path", lambda *parts: tmp_path if parts == ("/proc/driver/nvidia",) else real(*parts)
    )
    monkeypatch.setattr(probe_module.sys, "platform", "linux")
    prints = [probe_module.driver_fingerprint()]
    (tmp_path / "version").write_text("NVRM version: 570")
    prints.append(probe_module.driver_fingerprint())
    for uuid in ("GPU-1", "GPU-2"):
        card = tmp_path / "gpus" / "0000:01:00.0" / "information"
        card.parent.mkdir(parents=True, exist_ok=True)
        card.write_text(f"Model: RTX\nGPU UUID: {uuid}\n")
        prints.append(probe_module.driver_fingerprint())
    assert len(set(prints)) == 4


def test_all_calls_go_to_the_chosen_card_from_any_thread(cupy_cards):
    fake = cupy_cards(SMALL, BIG)
    _, device = probe_module.probe("1")
    assert device.info.name == BIG.name
    fake.cuda.Device(0).use()
    said = []

    def work():  # a new thread starts on card 0
        array = device.empty((1 << 20,), np.uint8)
        said.append((device.memory().total, fake.pools[0].used, fake.pools[1].used))
        del array
        fake.cuda.Device(0).use()
        said.append(device.release())
        device.limit_pool(123)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert said == [(BIG.total, 0, 1 << 20), 1 << 20]
    assert [pool.limit for pool in fake.pools] == [0, 123]


def test_the_short_functions_reach_every_card_that_was_opened(cupy_cards):
    fake = cupy_cards(SMALL, BIG)
    utils.ensure_cupy_pool_initialized(0)
    utils.ensure_cupy_pool_initialized(1)
    for index, pool in enumerate(fake.pools):
        fake.cuda.Device(index).use()
        fake.empty((1000,))
        assert pool.total > 0
    utils.free_cupy_memory_pools()
    assert [pool.total for pool in fake.pools] == [0, 0]


# --- a card by its name -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "index", "unmet"),
    [
        ({}, 1, ""),  # the best one
        ({"gpu_selector": "NVIDIA GeForce GTX 1650"}, 0, ""),
        ({"gpu_selector": "gtx 1650 laptop gpu"}, 0, ""),
        ({"gpu_selector": "NVIDIA GeForce RTX 3060"}, 1, ""),  # as the desktop spells it
        ({"gpu_selector": "GTX 970"}, 1, "GTX 970"),
        ({"gpu_selector": "geforce"}, 1, ""),  # both: the better one
        ({"gpu_selector": "GTX 1650", "gpu_id_phase5": 1}, 1, ""),  # a number wins
        ({"gpu_selector": "GTX 970", "gpu_id_phase5": 0}, 0, ""),
    ],
)
def test_the_selector_of_older_settings_files(cupy_cards, settings, index, unmet):
    cupy_cards(SMALL, BIG)
    chosen = Settings.from_mapping(settings)
    records = []
    policy = GpuPolicy(device=chosen.gpu_choice, environ={}, on_record=records.append)
    assert policy.status.ok
    assert policy.status.device.index == index
    warnings = [r["values"]["wanted"] for r in records if r["key"] == "gpu_other_card"]
    assert warnings == ([unmet] if unmet else [])
    assert all(r["level"] == "WARN" for r in records if r["key"] == "gpu_other_card")
    assert [v["wanted"] for key, v in policy.report_lines() if key == "gpu_other_card"] == warnings
    assert gpu_status(choice=chosen.gpu_choice).unmet_wish == unmet
    # What the user is told before a run.
    finding = doctor._gpu(chosen)
    assert (finding.state, finding.key) == (("warn", "gpu_other_card") if unmet else ("ok", "doctor.gpu_ok"))
    answers = queue.Queue()
    jobs.gpu_facts(answers, settings, cancel_event=None)
    assert answers.get_nowait()[1]["wanted"] == unmet


def test_a_stale_name_without_any_card_is_no_second_problem(cupy_cards):
    cupy_cards(TOO_OLD)
    status = GpuPolicy(device="~GTX 970", environ={}).status
    assert (status.reason, status.unmet_wish) == (Reason.COMPUTE_CAPABILITY, "")


def test_exact_names_come_before_parts_of_names():
    infos = [
        seam.DeviceInfo("NVIDIA GeForce RTX 3060 Ti", "aaaa1111", 0, total_bytes=16 << 30),
        seam.DeviceInfo("NVIDIA GeForce RTX 3060", "bbbb2222", 1, total_bytes=12 << 30),
        seam.DeviceInfo("Board", "cccc3333", 2, total_bytes=64 << 30, integrated=True),
    ]

    def order(choice):
        return [info.index for info in seam.devices_in_order(infos, choice)]

    assert order("") == order("auto") == order("~") == [0, 1, 2]
    assert order("RTX 3060") == [1]
    assert order("~rtx 3060") == [1, 0, 2]
    assert order("geforce") == [0, 1]
    assert order("2") == [2]
    assert order("bbbb") == order("GPU-bbbb2222") == order("bbbb-2222") == [1]
    assert order("~2") == [2, 0, 1]
    assert order("nvidia") == order("~NVIDIA") == [0, 1, 2]
    assert order("~GTX 970") == [0, 1, 2]
    assert order("3060") == [1]
    for missing in ("7", "306", "4090", "99", "GTX 970", "bbb3"):
        with pytest.raises(LookupError):
            order(missing)
    with pytest.raises(LookupError):
        seam.devices_in_order([], "~RTX 3060")


# --- the real CuPy ----------------------------------------------------------------------------------------------


def parameters_of(documentation: str) -> list[str]:
    """Names in a signature as Cython writes it: ``name(self, size_t size, unsigned int flags=0) -> int``."""
    inside = re.match(r"[\w.]+\((.*?)\)(?: ->.*)?$", documentation.strip().splitlines()[0]).group(1)
    names = [part.split("=")[0].split()[-1] for part in inside.split(",") if part.strip(" */")]
    return [name for name in names if name != "self"]


def test_the_stand_in_has_the_names_and_parameters_of_the_real_one():
    real = pytest.importorskip("cupy")
    fake = make_fake_cupy()
    callables = {
        f"cuda.runtime.{name}": getattr(real.cuda.runtime, name)
        for name in vars(fake.cuda.runtime)
        if name != "CUDARuntimeError"
    }
    callables |= {
        "cuda.Stream": real.cuda.Stream.__init__,
        "cuda.Event": real.cuda.Event.__init__,
        "cuda.PinnedMemory": real.cuda.PinnedMemory.__init__,
        "cuda.memory.OutOfMemoryError": real.cuda.memory.OutOfMemoryError.__init__,
    }
    for path, function in callables.items():
        own = functools.reduce(getattr, path.split("."), fake)
        expected = parameters_of(function.__doc__)
        assert list(inspect.signature(own).parameters) == expected, path
    methods = {
        (real.cuda.Stream, Stream): ("record", "wait_event", "synchronize"),
        (real.cuda.Event, Event): ("synchronize",),
        (real.cuda.MemoryPool, Pool): ("used_bytes", "total_bytes", "free_all_blocks", "set_limit"),
        (real.cuda.Device, fake.cuda.Device): ("use",),
    }
    for (real_class, own_class), names in methods.items():
        for name in names:
            expected = parameters_of(getattr(real_class, name).__doc__)
            own = list(inspect.signature(getattr(own_class, name)).parameters)[1:]
            assert own == expected[: len(own)], (real_class, name)
    assert real.cuda.PinnedMemoryPointer.__doc__.startswith("PinnedMemoryPointer(mem, ptrdiff_t offset)")
    assert list(inspect.signature(real.empty).parameters) == list(inspect.signature(fake.empty).parameters)
    assert {"max_dynamic_shared_size_bytes", "__call__"} <= set(dir(real.RawKernel))
    assert "shared_mem=0" in real.RawKernel.__call__.__doc__
    assert "str code=None" in real.RawModule.__doc__
    assert "options=()" in real.RawModule.__doc__


def test_the_numbers_of_the_attributes_are_cudas():
    runtime = pytest.importorskip("cupy").cuda.runtime
    assert runtime.cudaDevAttrKernelExecTimeout == seam._KERNEL_TIMEOUT
    assert runtime.cudaDevAttrIntegrated == seam._INTEGRATED
    assert runtime.cudaDevAttrMaxSharedMemoryPerBlockOptin == seam._SHARED_BYTES_OPT_IN
    assert runtime.cudaDevAttrMaxSharedMemoryPerBlock == seam._SHARED_BYTES
    assert (runtime.memcpyHostToDevice, runtime.memcpyDeviceToHost) == (1, 2)


def test_errors_of_the_real_one_are_recognised():
    real = pytest.importorskip("cupy")
    kinds = {2: "oom", 208: "oom", 1: "error", 35: "error", 700: "device_lost", 719: "device_lost"}
    for status, kind in kinds.items():
        assert seam.classify(real.cuda.runtime.CUDARuntimeError(status)).kind == kind
    assert seam.classify(real.cuda.memory.OutOfMemoryError(1, 2, 3)).kind == "oom"
    assert seam.classify(real.cuda.compiler.CompileException("no", "source", "name", ())).kind == "compile"
    if not probe_module.has_driver()[0]:
        with pytest.raises(real.cuda.runtime.CUDARuntimeError) as caught:
            seam.CupyDevice(0)
        assert seam.classify(caught.value).status == 35


def test_where_the_cache_goes_when_the_home_folder_is_read_only(monkeypatch):
    """CuPy makes its folder while it is imported; it must not find a place that refuses."""
    monkeypatch.delenv("CUPY_CACHE_DIR", raising=False)
    monkeypatch.setattr(seam, "_can_create", lambda folder: False)
    monkeypatch.setattr(seam.importlib, "import_module", lambda name: name)
    assert seam.import_cupy() == "cupy"
    assert "zemosaic-cupy-" in seam.os.environ["CUPY_CACHE_DIR"]
