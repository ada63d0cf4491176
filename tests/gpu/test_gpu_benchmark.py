"""The benchmark itself, on the simulated card with tiny frames, so that it works where it is needed."""

from __future__ import annotations

import sys

import pytest
from simulated_device import COMPILER, SimulatedDevice, signatures

from benchmarks import gpu as benchmark
from benchmarks.gpu_model import CARDS, costs_per_frame, measuring_costs
from zemosaic_core.gpu import device as seam
from zemosaic_core.gpu import kernels
from zemosaic_core.sources import CombineRule


def test_without_a_card_it_says_so_and_ends(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu"])
    monkeypatch.setenv("ZEMOSAIC_GPU", "off")
    assert benchmark.main() == 0
    shown = capsys.readouterr().out
    assert "nothing measured: off" in shown
    assert "sample_source" in shown
    assert "4.8 TB/s" in shown


def test_the_model_counts_bytes_and_operations():
    """By hand for one frame: what is read and written once, and what the slower of the two resources takes."""
    hw = (1920, 1080)
    pixels = hw[0] * hw[1]
    costs = {cost.kernel: cost for cost in costs_per_frame(hw, hw, 30, CombineRule())}
    assert costs["upload"].n_bytes == 2 * pixels
    assert costs["debayer_raw"].n_bytes == 22 * pixels
    assert costs["sample_source"].n_bytes == 24 * pixels
    slow, fast = CARDS
    assert costs["upload"].seconds(slow) == pytest.approx(2 * pixels / 12e9)
    assert costs["debayer_raw"].seconds(slow) == pytest.approx(22 * pixels / 360e9)
    assert costs["debayer_raw"].seconds(fast) < costs["debayer_raw"].seconds(slow) / 5
    deep = {cost.kernel: cost for cost in costs_per_frame(hw, hw, 1000, CombineRule())}
    # Runs are merged where they are: no more bytes, but more to do.
    assert deep["combine_pool"].n_bytes == pytest.approx(costs["combine_pool"].n_bytes, rel=0.1)
    assert deep["combine_pool"].operations > 1.5 * costs["combine_pool"].operations
    huge = {cost.kernel: cost for cost in costs_per_frame(hw, hw, 20_000, CombineRule())}
    assert huge["combine_pool"].n_bytes > 5 * deep["combine_pool"].n_bytes
    measuring = {cost.kernel: cost for cost in measuring_costs(hw)}
    assert set(measuring) - {"upload to measure", "download of lists"} <= set(
        signatures(kernels.source("measure"))
    )
    # Pixels and, emptied and filled, four histograms of 512 bins for 4096 pixels, twice.
    assert measuring["count_values"].n_bytes == 3 * pixels + 4 * pixels
    work = sum(cost.seconds(slow) for cost in measuring.values() if not cost.travels)
    assert work < measuring["upload to measure"].seconds(slow)
    plain = {cost.kernel: cost for cost in costs_per_frame(hw, hw, 30, CombineRule("none"))}
    assert plain["combine_pool"].operations < costs["combine_pool"].operations


@pytest.mark.skipif(COMPILER is None, reason="the simulated card needs a host C++ compiler")
def test_every_line_of_the_table_can_be_made(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu", "--quick"])
    monkeypatch.setattr(benchmark, "FRAME_HW", (60, 48))
    monkeypatch.setattr(benchmark, "SMALL_HW", (40, 36))
    monkeypatch.setattr(benchmark, "MOST_PIXELS", 1024)
    monkeypatch.setattr(
        benchmark, "best_seconds", lambda work, finish, repeats=5: (work(), finish(), 0.001)[2]
    )
    with seam.install(SimulatedDevice(4 << 30)):
        assert benchmark.main() == 0
    table = capsys.readouterr().out
    assert "DIFFER" not in table
    for line in (
        "copy on the card",
        "decode and debayer a raw frame",
        "sweep over a raw frame",
        "every number the processor's",
        "sample and average 8 frames",
        "winsorized, 30 frames",
        "aim 60 %",
        "frames to a tile, CPU",
    ):
        assert line in table
