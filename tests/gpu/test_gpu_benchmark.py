"""The benchmark itself, on the simulated card with tiny frames, so that it works where it is needed."""

from __future__ import annotations

import sys

import pytest
from simulated_device import COMPILER, SimulatedDevice

from benchmarks import gpu as benchmark
from zemosaic_core.gpu import device as seam


def test_without_a_card_it_says_so_and_ends(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu"])
    monkeypatch.setenv("ZEMOSAIC_GPU", "off")
    assert benchmark.main() == 0
    assert "nothing measured: off" in capsys.readouterr().out


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
    assert "DIFFERS" not in table
    for line in (
        "copy on the card",
        "decode and debayer a raw frame",
        "sample and average 8 frames",
        "winsorized, 30 frames",
        "aim 60 %",
        "hot pixels",
        "frames to a tile, CPU",
    ):
        assert line in table
