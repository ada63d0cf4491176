"""On a real card: the same contract as on the simulated one, which keeps the simulation honest."""

from __future__ import annotations

import numpy as np
import pytest
from gpu_cases import FakePixels, assert_blocks_agree, make_sources
from simulated_device import SimulatedDevice

from zemosaic_core.coadd import coadd_block
from zemosaic_core.gpu.coadd import GpuCoadd
from zemosaic_core.gpu.device import FaultScript, classify
from zemosaic_core.gpu.probe import probe, smoke_test
from zemosaic_core.sources import CombineRule
from zemosaic_gpu_policy import GpuPolicy
from zemosaic_utils import coadd_on_grid

pytestmark = pytest.mark.gpu
RULES = [
    CombineRule("none"),
    CombineRule("none", combine="median"),
    CombineRule("kappa_sigma", 2.5, 2.0),
    CombineRule(),
    CombineRule("linear_fit_clip", 4.0, 3.0),
]


@pytest.fixture(scope="module")
def card():
    finding, device = probe()
    if device is None:
        pytest.skip(f"no usable card: {finding.stage} {finding.detail}")
    yield device
    device.release()


def test_smoke_and_memory_numbers(card):
    smoke_test(card)
    card.release()
    before = card.memory()
    array = card.empty((1 << 20,), np.uint8)
    during = card.memory()
    assert during.pool_used == before.pool_used + (1 << 20)
    assert before.free - during.free >= 1 << 20
    del array
    card.release()
    assert card.memory().pool_used == before.pool_used


def test_out_of_memory_is_classified(card):
    with pytest.raises(MemoryError) as caught:
        card.empty((card.info.total_bytes * 2,), np.uint8)
    assert classify(caught.value).kind == "oom"


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("n", [1, 3, 12, 60, 120, 700])
def test_card_simulation_and_cpu_agree(card, rule, n):
    pixels = FakePixels(n, (41, 67), raw="some", hot=30, missing=0.02)
    sources = make_sources(pixels, n, (53, 150), turn=0.01 / n, weighted=True, feather=6.0)
    body = GpuCoadd(pixels, sources, 150, 3, rule, "lanczos3")
    try:
        real = body(card, 0, 53, None)
        simulated = body(SimulatedDevice(4 << 30), 0, 53, None)
    finally:
        body.close()
    cpu = coadd_block(pixels, sources, 0, 53, 150, 3, rule, "lanczos3")
    assert_blocks_agree(real, cpu, ulps=16, flips=2e-3)
    assert_blocks_agree(real, simulated, ulps=16, flips=2e-3)


def test_peak_is_the_plan(card):
    pixels = FakePixels(10, (400, 300), raw="all")
    sources = make_sources(pixels, 10, (410, 310), turn=0.004)
    body = GpuCoadd(pixels, sources, 310, 3, CombineRule(), "bilinear")
    planned = body.workload("stack", 410, card.info).peak(410)
    card.release()
    card.peak_bytes(reset=True)
    body(card, 0, 410, None)
    body.close()
    assert 0.8 * planned <= card.peak_bytes() <= planned


@pytest.mark.parametrize("rule", RULES)
def test_two_blocks_in_flight_give_the_same_bits_as_one(card, rule):
    pixels = FakePixels(30, (300, 400), raw="some", hot=30, missing=0.02)
    sources = make_sources(pixels, 30, (310, 410), turn=0.001, weighted=True)
    images = []
    for environ in ({}, {"ZEMOSAIC_GPU_CHUNK_ROWS": "80"}):
        policy, rows = GpuPolicy(mode="require", environ=environ), []
        coadd_on_grid(
            pixels, sources, (310, 410), 3, rule, "lanczos3", budget_bytes=1 << 28, policy=policy,
            sink=lambda y0, y1, block, rows=rows: rows.append(block.image),
        )  # fmt: skip
        images.append(np.concatenate(rows, axis=1))
        assert policy.summary()["operations"]["stack"]["gpu_chunks"] == (4 if environ else 1)
    np.testing.assert_array_equal(*images)


@pytest.mark.parametrize("fault", ["oom@5", "oom@9,oom@12", "error1@40", "error4@60"])
def test_failures_on_order_give_the_same_picture(card, monkeypatch, fault):
    pixels = FakePixels(6, (60, 80), raw="all")
    sources = make_sources(pixels, 6, (64, 84))
    policy = GpuPolicy(environ={"ZEMOSAIC_TESTING": "1", "ZEMOSAIC_GPU_FAULT": ""})
    if not policy.status.ok:
        pytest.skip(policy.status.detail)
    policy._device._faults = FaultScript(fault)
    rows = []
    coadd_on_grid(
        pixels, sources, (64, 84), 3, CombineRule(), "bilinear", budget_bytes=1 << 28, policy=policy,
        sink=lambda y0, y1, block: rows.append(block.image),
    )  # fmt: skip
    cpu = coadd_block(pixels, sources, 0, 64, 84, 3, CombineRule(), "bilinear")
    np.testing.assert_allclose(np.concatenate(rows, axis=1), cpu.image, rtol=2e-6)
    assert policy.summary()["fallbacks"] or policy.summary()["operations"]["stack"]["splits"]
