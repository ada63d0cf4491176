"""A whole run with the simulated card: the same mosaic as without, all heavy work on the card, and it says so."""

from __future__ import annotations

import json

import numpy as np
import pytest
from astropy.io import fits
from simulated_device import COMPILER, SimulatedDevice

from zemosaic_core.gpu import device as seam
from zemosaic_io.demo_session import write_demo_night
from zemosaic_worker import run_hierarchical_mosaic

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMPILER is None, reason="the simulated card needs a host C++ compiler"),
]


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu_night")
    return write_demo_night(
        folder / "raw", panels=(1, 2), frames_per_panel=7, shape_hw=(540, 420), with_wcs=True, n_satellites=2
    )


@pytest.fixture(scope="module")
def on_cpu(night, tmp_path_factory):
    return run_hierarchical_mosaic(night.folder, tmp_path_factory.mktemp("cpu"), gpu_mode="off")


def science(result) -> np.ndarray:
    with fits.open(result.outputs["science"]) as hdus:
        return hdus[0].data.astype(np.float32)


def assert_same_mosaic(gpu, cpu):
    a, b = science(gpu), science(cpu)
    np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
    noise = np.nanmedian(np.abs(np.diff(b, axis=-1))) / 0.954
    difference = np.abs(a - b)[np.isfinite(b)]
    assert np.percentile(difference, 99.9) < 1e-4 * noise
    assert (difference > 1e-2 * noise).mean() < 1e-4  # pixels where a tie of the rejection went the other way


def test_a_run_on_the_card(night, on_cpu, tmp_path):
    with seam.install(SimulatedDevice(2 << 30)) as device:
        result = run_hierarchical_mosaic(
            night.folder, tmp_path / "out", gpu_mode="require", use_gpu_phase5=True
        )
    assert_same_mosaic(result, on_cpu)
    told = result.report["gpu"]
    assert told["gpu_share"] == 1.0
    assert set(told["operations"]) == {"stack", "assemble"}
    for operation in told["operations"].values():
        assert operation["parity_ok"]
        assert operation["parity_checks"] >= 1
        assert operation["peak_bytes"] <= operation["planned_peak_bytes"]
    assert told["operations"]["stack"]["peak_bytes"] > 0.8 * told["operations"]["stack"]["planned_peak_bytes"]
    assert {"gpu_info_summary", "gpu_report_share", "gpu_report_peak"} <= {
        line["key"] for line in told["lines"]
    }
    assert device.pool.total == 0
    ledger = (tmp_path / "out" / "gpu_ledger.jsonl").read_text().splitlines()
    assert {json.loads(line)["kind"] for line in ledger} >= {
        "probe",
        "decision",
        "operation",
        "parity",
        "summary",
    }


def test_a_run_on_a_small_card_that_fails_now_and_then(night, on_cpu, tmp_path, monkeypatch):
    monkeypatch.setenv("ZEMOSAIC_GPU_RESERVE_MB", "0")
    with seam.install(SimulatedDevice(24 << 20)) as device:
        device.faults = seam.FaultScript("oom@30,error1@200,oom@90,error4@700")
        result = run_hierarchical_mosaic(night.folder, tmp_path / "out", gpu_mode="auto", use_gpu_phase5=True)
    assert_same_mosaic(result, on_cpu)
    told = result.report["gpu"]
    assert 0.3 < told["gpu_share"] <= 1.0
    assert told["operations"]["stack"]["splits"] + told["operations"]["stack"]["fallbacks"] >= 1
    assert device.pool.used == 0
