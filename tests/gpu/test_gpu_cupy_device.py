"""The lines between the engine and CuPy, run against a stand-in for CuPy on host memory."""

from __future__ import annotations

import numpy as np
import pytest
from fake_cupy import make_fake_cupy
from gpu_cases import FakePixels, assert_blocks_agree, make_sources
from simulated_device import COMPILER

from zemosaic_core.coadd import coadd_block
from zemosaic_core.gpu import device as seam
from zemosaic_core.gpu import probe as probe_module
from zemosaic_core.gpu.terms import Reason
from zemosaic_core.sources import CombineRule
from zemosaic_gpu_policy import GpuPolicy
from zemosaic_io import gpu_probe
from zemosaic_utils import coadd_on_grid

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a host C++ compiler")


@pytest.fixture
def cupy(monkeypatch):
    fake = make_fake_cupy()
    monkeypatch.setattr(seam, "import_cupy", lambda: fake)
    monkeypatch.setattr(probe_module, "has_driver", lambda: (True, "pretended"))
    monkeypatch.setattr(gpu_probe, "has_driver", lambda: (True, "pretended"))
    monkeypatch.setattr(
        gpu_probe, "_probe_in_child", lambda choice: gpu_probe.status_of(probe_module.probe(choice)[0])
    )
    monkeypatch.setattr(gpu_probe.Opened, "pid", 0)
    gpu_probe.remembered_status.cache_clear()
    yield fake
    gpu_probe.remembered_status.cache_clear()


def test_a_card_is_described_and_found_good(cupy):
    finding, device = probe_module.probe()
    assert finding.stage == "ok"
    info = finding.device
    assert (info.name, info.compute_capability, info.drives_display) == ("Fake RTX", 89, True)
    assert info.uuid == bytes(range(16)).hex()
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


def test_where_the_cache_goes_when_the_home_folder_is_read_only(monkeypatch, tmp_path):
    """CuPy makes its folder while it is imported; it must not find a place that refuses."""
    monkeypatch.delenv("CUPY_CACHE_DIR", raising=False)
    monkeypatch.setattr(seam, "_can_create", lambda folder: False)
    monkeypatch.setattr(seam.importlib, "import_module", lambda name: name)
    assert seam.import_cupy() == "cupy"
    assert "zemosaic_cupy_cache" in seam.os.environ["CUPY_CACHE_DIR"]
