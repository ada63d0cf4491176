"""Rejection on the card against the CPU's on samples that are hard: outliers in masses, ties, extreme bounds."""

from __future__ import annotations

import numpy as np
import pytest
from gpu_cases import assert_blocks_agree
from simulated_device import COMPILER, SimulatedDevice

from zemosaic_core.gpu.parity import compare_blocks
from zemosaic_core.gpu.stack import GpuStack
from zemosaic_core.rejection import combine_stack
from zemosaic_core.sources import CoaddBlock, CombineRule, SampleNoise

pytestmark = pytest.mark.skipif(COMPILER is None, reason="the simulated card needs a host C++ compiler")

SIZE = (40, 70)
RULES = {
    "winsor": CombineRule(),
    "narrow winsor": CombineRule("winsorized_sigma_clip", 0.4, 0.7, (0.0, 0.45)),
    "wide winsor": CombineRule("winsorized_sigma_clip", 6.0, 1.0, (0.3, 0.3), "median"),
    "kappa": CombineRule("kappa_sigma", 1.2, 3.0),
    "linear": CombineRule("linear_fit_clip", 1.5, 1.0),
    "known winsor": CombineRule(noise=SampleNoise((900.0, 700.0), (1500.0, 1490.0))),
    "known kappa": CombineRule(
        "kappa_sigma", 1.5, 2.5, noise=SampleNoise((300.0, 900.0), (1400.0, 0.0), 0.1)
    ),
    "known linear": CombineRule(
        "linear_fit_clip", 4.0, 4.0, combine="median", noise=SampleNoise((900.0,) * 2, (1500.0,) * 2)
    ),
}


def samples(kind: str, n: int, rng: np.random.Generator) -> np.ndarray:
    stack = rng.normal(1500, 30, (n, 2, *SIZE)).astype(np.float32)
    if kind == "outliers":  # satellites over a third of the frames, burnt out and dead pixels
        stack[rng.uniform(size=stack.shape) < 0.3] += 60_000
        stack[rng.uniform(size=stack.shape) < 0.1] = 0
    elif kind == "missing":
        stack[rng.uniform(size=stack.shape) < 0.6] = np.nan
        stack[rng.uniform(size=stack.shape) < 0.02] = np.inf
    elif kind == "far apart":
        stack = 1500 + np.exp(rng.normal(0, 2, stack.shape)).astype(np.float32)
    elif kind == "ties":
        stack = np.round(rng.normal(5, 1.5, stack.shape)).astype(np.float32)
    elif kind == "equal":
        stack[:] = stack[:1]
    return stack


def both(stack, rule, **options):
    device = SimulatedDevice(2 << 30)
    gpu = GpuStack(stack, rule, **options)(device, 0, stack.shape[2], None)
    assert device.pool.used == 0
    return gpu, combine_stack(stack, rule, **options)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["noise", "outliers", "missing", "far apart", "equal"])
@pytest.mark.parametrize("n", [2, 5, 12, 24, 70, 150])
def test_hard_samples_are_rejected_alike(kind, rule, n):
    rng = np.random.default_rng(n)
    gpu, cpu = both(samples(kind, n, rng), RULES[rule])
    # Values over many powers of ten leave few digits for those that are kept; both sides then differ as much from
    # what float64 says.
    assert_blocks_agree(gpu, cpu, ulps=16, flips=1e-2 if kind == "far apart" else 1e-3)


@pytest.mark.parametrize("rule", RULES)
def test_ties_fall_alike_but_for_a_few(rule):
    """Whole numbers lie on the bounds more often than any measurement; there the last bit may decide."""
    gpu, cpu = both(samples("ties", 30, np.random.default_rng(1)), RULES[rule])
    assert_blocks_agree(gpu, cpu, ulps=16, flips=0.02)


@pytest.mark.parametrize("n", [8, 20, 140])
@pytest.mark.parametrize("rule", ["winsor", "kappa", "known winsor", "known kappa"])
def test_weights_and_weight_maps(rule, n):
    rng = np.random.default_rng(8)
    stack = samples("outliers", n, rng)
    weights = rng.uniform(0.1, 2, (n, 2))
    weights[3, 0], weights[5] = 0, 0
    maps = rng.uniform(-0.2, 1, (n, *SIZE)).astype(np.float32)
    maps[7, 3] = np.nan
    gpu, cpu = both(stack, RULES[rule], weights=weights, weight_maps=maps)
    assert_blocks_agree(gpu, cpu, ulps=16, flips=1e-3)
    # Of up to six samples none lies three standard deviations off.
    assert (cpu.rejected_high > 0).any() == (n > 8 or rule != "kappa")


def test_of_ten_thousand_samples_one_may_fall_otherwise_and_no_more():
    def block(low, coverage):
        shape = (1, 4, 5)
        rejected = np.full(shape, 7, np.uint16)
        rejected[0, :, 2] = low
        return CoaddBlock(
            np.full(shape, 9, np.float32),
            np.ones(shape, np.float32),
            np.full(shape[1:], coverage, np.uint16),
            np.ones(shape, np.float32),
            rejected,
            np.zeros(shape, np.uint16),
        )

    for coverage, flips, right in ((20_000, 2, True), (20_000, 3, False), (9000, 1, False), (9000, 0, True)):
        parity = compare_blocks(block(7 + flips, coverage), block(7, coverage), 0)
        assert parity.ok == right, (coverage, flips)
