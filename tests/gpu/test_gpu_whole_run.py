"""Whole runs with the simulated card: the same mosaic as without, and a ledger that accounts for every row.

The night is small, so a card of a named size holds it at once; where chunks are the point, another program leaves
only a part of what the night needs.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from astropy.io import fits
from policy_cases import assert_rows_are_accounted_for
from simulated_device import COMPILER, SimulatedDevice

from zemosaic_core.gpu import device as seam
from zemosaic_io.demo_session import write_demo_night
from zemosaic_worker import run_hierarchical_mosaic

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMPILER is None, reason="the simulated card needs a host C++ compiler"),
]
GIB, MIB = 1 << 30, 1 << 20


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu_night")
    return write_demo_night(
        folder / "raw", panels=(1, 2), frames_per_panel=5, shape_hw=(400, 360), with_wcs=True, n_satellites=1
    )


@pytest.fixture(scope="module")
def on_cpu(night, tmp_path_factory):
    return run_hierarchical_mosaic(
        night.folder, tmp_path_factory.mktemp("cpu"), gpu_mode="off", cfa_refine="off"
    )


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


def run_on(device, night, output, mode, *, refine="off"):
    with seam.install(device):
        result = run_hierarchical_mosaic(
            night.folder, output, gpu_mode=mode, use_gpu_phase5=True, cfa_refine=refine
        )
    names = {"measure", "stack", "assemble"} | ({"refine"} if refine != "off" else set())
    return result, check_ledger(output, result.report["gpu"], names)


def check_ledger(output, told, names):
    """Check that the ledger accounts for every row once, and says what the report says; return its records."""
    lines = (output / "gpu_ledger.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    shares = {}
    assert_rows_are_accounted_for(records, shares=shares)
    kinds = [record["kind"] for record in records]
    assert kinds[0] == "probe"
    assert kinds[-1] == "summary"
    assert kinds.count("decision") >= kinds.count("operation")
    assert set(shares) == set(told["operations"]) == names
    operations = [record for record in records if record["kind"] == "operation"]
    for op, share in shares.items():
        operation = told["operations"][op]
        own = [record for record in operations if record["op"] == op]
        assert share["runs"] == operation["runs"]
        assert (operation["gpu_share"] == 1) == (share["cpu"] == 0)
        assert (operation["gpu_share"] == 0) == (share["gpu"] == 0)
        for name in ("gpu_chunks", "cpu_chunks", "splits", "fallbacks"):
            assert sum(record[name] for record in own) == operation[name], (op, name)
    assert sum(group["count"] for group in told["fallbacks"]) == kinds.count("fallback")
    return records


def assert_nothing_left(device):
    assert device.pool.used == 0
    assert device.faults.dead_status or device.pool.total == 0


@pytest.fixture(scope="module")
def on_card(night, tmp_path_factory):
    """The run on a large card without any trouble: ``(device, result, records)``; others put theirs by its numbers."""
    device = SimulatedDevice(8 * GIB)
    return device, *run_on(device, night, tmp_path_factory.mktemp("gpu"), "require")


def script(device, *faults):
    """Return faults at fractions of the calls, or of the allocations, of the run without trouble."""
    counted = {"oom": device.faults.allocations}
    return ",".join(f"{kind}@{int(at * counted.get(kind, device.faults.calls))}" for kind, at in faults)


def check_all_on_card(device, result, cpu):
    assert_same_mosaic(result, cpu)
    assert_nothing_left(device)
    told = result.report["gpu"]
    assert told["gpu_share"] == 1.0
    assert told["fallbacks"] == []
    assert told["budget"]["total"] == device.total
    for operation in told["operations"].values():
        assert operation["parity_ok"]
        assert operation["parity_checks"] >= 1
        assert operation["peak_bytes"] <= operation["planned_peak_bytes"] <= told["budget"]["usable"]
    return told["operations"]


def test_a_run_on_a_card_of_8_gb(on_card, on_cpu):
    device, result, records = on_card
    operations = check_all_on_card(device, result, on_cpu)
    assert operations["stack"]["peak_bytes"] > 0.8 * operations["stack"]["planned_peak_bytes"]
    assert {operation["splits"] for operation in operations.values()} == {0}
    assert {"gpu_info_summary", "gpu_report_share", "gpu_report_peak"} <= {
        line["key"] for line in result.report["gpu"]["lines"]
    }
    assert {"probe", "decision", "operation", "parity", "summary"} <= {r["kind"] for r in records}


def test_the_second_pass_runs_on_the_card_too(tmp_path):
    night = write_demo_night(
        tmp_path / "raw",
        panels=(1, 1),
        frames_per_panel=9,
        shape_hw=(300, 280),
        with_wcs=True,
        bad_frames=False,
    )
    cpu = run_hierarchical_mosaic(night.folder, tmp_path / "cpu", gpu_mode="off")
    device = SimulatedDevice(8 * GIB)
    result, _ = run_on(device, night, tmp_path / "gpu", "require", refine="auto")
    check_all_on_card(device, result, cpu)
    assert [tile["refine"] for tile in result.report["tiles"]] == ["refine_on"]


def test_batches_are_stacked_and_merged_on_the_card(tmp_path):
    night = write_demo_night(
        tmp_path / "raw",
        panels=(1, 1),
        frames_per_panel=8,
        shape_hw=(200, 240),
        with_wcs=True,
        bad_frames=False,
    )
    wanted = {
        "route": "sds", "sds_target_batch_size": 3, "sds_min_batch_size": 3, "sds_coverage_threshold": 0.7,
        "inter_master_merge_enable": True, "cfa_refine": "off",
    }  # fmt: skip
    cpu = run_hierarchical_mosaic(night.folder, tmp_path / "cpu", gpu_mode="off", **wanted)
    device = SimulatedDevice(8 * GIB)
    with seam.install(device):
        result = run_hierarchical_mosaic(night.folder, tmp_path / "gpu", gpu_mode="require", **wanted)
    operations = check_all_on_card(device, result, cpu)
    # Two batches; then the tiles become one, and the one becomes the mosaic.
    assert (operations["stack"]["runs"], operations["assemble"]["runs"]) == (2, 2)
    keys = {message["key"] for message in result.report["messages"]}
    assert {"run_info_batches", "run_info_tiles_merged"} <= keys


def test_a_run_on_a_card_of_1_gb_with_memory_running_out(night, on_card, on_cpu, tmp_path):
    """In ``require`` mode, where any row on the processor would be an error: smaller chunks are none."""
    # Once while frames are measured, which then go on in smaller chunks with more allocations, then while rows are
    # stacked: one frame alone could not be cut any further.
    faults = script(on_card[0], ("oom", 0.14), ("oom", 1.31), ("oom", 1.57))
    device = SimulatedDevice(1 * GIB, faults=faults)
    result, records = run_on(device, night, tmp_path, "require")
    operations = check_all_on_card(device, result, on_cpu)
    # The last fault may come after the last allocation: smaller chunks allocate at other moments.
    splits = [record["kind"] for record in records].count("split")
    assert sum(operation["splits"] for operation in operations.values()) == splits
    assert splits >= 2


def test_a_run_on_a_card_of_300_mb_that_is_nearly_full(night, on_card, on_cpu, tmp_path, monkeypatch):
    monkeypatch.setenv("ZEMOSAIC_GPU_RESERVE_MB", "0")
    alone = on_card[1].report["gpu"]["operations"]
    free = max(operation["planned_peak_bytes"] for operation in alone.values()) * 35 // 100
    device = SimulatedDevice(300 * MIB, other=300 * MIB - free)
    result, _ = run_on(device, night, tmp_path, "require")
    operations = check_all_on_card(device, result, on_cpu)
    assert {operation["splits"] for operation in operations.values()} == {0}
    assert operations["assemble"]["gpu_chunks"] > 2 * alone["assemble"]["gpu_chunks"]


def test_a_run_on_a_small_card_that_fails_now_and_then(night, on_card, on_cpu, tmp_path, monkeypatch):
    monkeypatch.setenv("ZEMOSAIC_GPU_RESERVE_MB", "0")
    faults = script(on_card[0], ("oom", 0.2), ("error1", 0.4), ("oom", 0.7), ("error4", 0.9))
    device = SimulatedDevice(16 * MIB, faults=faults)
    result, records = run_on(device, night, tmp_path, "auto")
    assert_same_mosaic(result, on_cpu)
    assert_nothing_left(device)
    assert 0.3 < result.report["gpu"]["gpu_share"] < 1.0
    assert {"split", "fallback"} <= {r["kind"] for r in records}


def test_a_run_that_loses_the_card_half_way(night, on_card, on_cpu, tmp_path, monkeypatch):
    """Lost while a tile is on the card: a part was done there, all else on the processor, and each time why."""
    monkeypatch.setenv("ZEMOSAIC_GPU_CHUNK_ROWS", "100")
    device = SimulatedDevice(8 * GIB, faults=script(on_card[0], ("sticky700", 0.9)))
    result, records = run_on(device, night, tmp_path, "auto")
    assert_same_mosaic(result, on_cpu)
    assert_nothing_left(device)
    told = result.report["gpu"]
    assert 0 < told["gpu_share"] < 1
    # So few frames are measured faster than they reach the card.
    assert {(group["op"] == "measure", group["reason"]) for group in told["fallbacks"]} == {
        (True, "workload_too_small"),
        (False, "device_lost"),
    }
    assert told["operations"]["assemble"]["gpu_share"] == 0
    fallbacks = [record for record in records if record["kind"] == "fallback" and record["op"] != "measure"]
    assert [record["scope"] for record in fallbacks].count("run") == 1
    assert fallbacks[0]["status"] == 700
    assert all(record["values"]["detail"] for record in fallbacks)
    assert records[-1]["values"]["fallbacks"] == len(told["fallbacks"])
