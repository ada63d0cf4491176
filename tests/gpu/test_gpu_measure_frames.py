"""Measuring frames as an operation of the policy: what is stored is the processor's; a wrong card leaves nothing."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from policy_cases import assert_rows_are_accounted_for, make_policy
from simulated_device import COMPILER, SimulatedDevice

import zemosaic_gpu_policy
from zemosaic_core.errors import RunFailed, SkipItem
from zemosaic_core.gpu import ladder
from zemosaic_core.gpu import measure as card
from zemosaic_core.gpu.device import FaultScript
from zemosaic_io.demo_session import write_demo_night
from zemosaic_io.headers import read_frame_info
from zemosaic_pipeline import measure_on_card, patient_reads
from zemosaic_pipeline.context import CancelToken
from zemosaic_pipeline.measure import ARRAY_NAMES, Look, MeasureOptions, measure_frame
from zemosaic_pipeline.measure_on_card import compare_looks, frames_for_card, measure_frames
from zemosaic_pipeline.patience import Overdue
from zemosaic_pipeline.patient_reads import reads_of_process

pytestmark = pytest.mark.skipif(COMPILER is None, reason="the simulated card needs a host C++ compiler")
OPTIONS = MeasureOptions(quality_sigma=3.0, exclude_flagged=False, find_hot_pixels=True)


@pytest.fixture(scope="module")
def infos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("night")
    night = write_demo_night(
        folder, panels=(1, 1), frames_per_panel=3, shape_hw=(200, 240), with_wcs=True, bad_frames=False
    )
    return [read_frame_info(path) for path in sorted(Path(night.folder).glob("*.fit*"))]


@pytest.fixture(scope="module")
def expected(infos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("expected")
    return [measure_frame((info, OPTIONS, str(folder / f"{k}.npz"))) for k, info in enumerate(infos)]


class Context:
    """What measuring needs of a run; counts the frames that are measured without the card."""

    def __init__(self, policy):
        self.policy, self.cancel = policy, CancelToken()
        self.workers, self.threads = 1, 2
        self.reads = reads_of_process()
        self.on_processor = 0

    def map(self, function, items, *, name_of, size_of):
        for position, item in enumerate(items):
            self.on_processor += 1
            yield position, function(item)


def measure(infos, folder, policy):
    tasks = [(info, OPTIONS, str(folder / f"{k}.npz"), "") for k, info in enumerate(infos)]
    assert frames_for_card(tasks) == list(range(len(tasks)))
    told = {}
    context = Context(policy)
    results = measure_frames(tasks, context, told.__setitem__)
    assert sorted(told) == list(range(len(tasks)))
    return results, context


def assert_stored(results, expected):
    for result, other in zip(results, expected, strict=True):
        assert not result.was_stored
        a, b = result.arrays(), other.arrays()
        for name in ARRAY_NAMES:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name, strict=True)


def test_a_read_that_never_comes_back_costs_the_card_that_frame_alone(
    infos, expected, tmp_path, install, monkeypatch
):
    """Of the threads that feed the card one waits for the frame; half an hour is a second here."""
    install(SimulatedDevice(64 << 20))
    never, ends = os.pipe()
    stuck = infos[1].path
    begin = measure_on_card._begin
    monkeypatch.setattr(
        measure_on_card,
        "_begin",
        lambda info, *args: os.read(never, 1) if info.path == stuck else begin(info, *args),
    )
    monkeypatch.setattr(
        patient_reads,
        "overdue",
        lambda work, _pace: Overdue("still", work.still_s) if work.still_s > 0.5 else None,
    )
    monkeypatch.setattr(patient_reads, "_LOOK_S", 0.1)
    try:
        policy = make_policy([], mode="require", environ={"ZEMOSAIC_GPU_CHUNK_ROWS": "1"})
        results, _ = measure(infos, tmp_path, policy)
    finally:
        os.close(ends)
    silent = results.pop(1)
    assert isinstance(silent, SkipItem)
    assert (silent.key, silent.values["path"]) == ("frame_silent", str(stuck))
    assert_stored(results, [expected[0], *expected[2:]])


def test_what_is_stored_is_what_the_processor_stores(infos, expected, tmp_path, install):
    device = install(SimulatedDevice(64 << 20))
    records = []
    policy = make_policy(records, mode="require", environ={"ZEMOSAIC_GPU_CHUNK_ROWS": "2"})
    results, context = measure(infos, tmp_path, policy)
    assert_stored(results, expected)
    assert context.on_processor == 1  # the one that was drawn by lot to be compared
    assert policy.summary()["operations"]["measure"]["parity_ok"]
    assert policy.summary()["gpu_share"] == 1.0
    assert_rows_are_accounted_for(records)
    assert "list_maxima" in device.launches
    assert device.pool.used == 0
    # A second look finds the same pixels and keeps what is stored.
    again, _ = measure(infos, tmp_path, policy)
    assert all(result.was_stored for result in again)


def test_what_a_wrong_card_has_stored_is_removed_and_done_again(
    infos, expected, tmp_path, install, monkeypatch
):
    device = install(SimulatedDevice(64 << 20))
    monkeypatch.setattr(ladder, "draw_rows", lambda rows, chunk_rows: [1])
    monkeypatch.setattr(card, "CPU_PIXELS_PER_SECOND", 1.0)  # so few frames are not worth the way to the card
    copy_out, calls = device.copy_out, []

    def wrong(host, source, stream):
        copy_out(host, source, stream)
        if host.ndim == 4 and host.dtype == np.float32:
            calls.append(None)
            # The first frame already, which is not compared.
            stream.push(lambda: host.__imul__(np.float32(1.01)))

    device.copy_out = wrong
    environ = {"ZEMOSAIC_GPU_CHUNK_ROWS": "1"}
    for mode in ("auto", "require"):
        folder = tmp_path / mode
        folder.mkdir()
        records = []
        policy = make_policy(records, mode=mode, environ=environ)
        if mode == "require":
            with pytest.raises(RunFailed, match="measure cannot use it: wrong_results"):
                measure(infos, folder, policy)
            assert not list(folder.glob("0.npz"))
            continue
        results, _ = measure(infos, folder, policy)
        assert_stored(results, expected)
        (fallback,) = policy.summary()["fallbacks"]
        assert (fallback["reason"], fallback["scope"]) == ("wrong_results", "run")
        assert_rows_are_accounted_for(records)
    assert calls


def test_whatever_fails_the_frames_are_measured(infos, expected, tmp_path, install, monkeypatch):
    """Calls of the card fail in turn, in several ways: what is stored is the same, and nothing stays on the card."""
    monkeypatch.setattr(card, "CPU_PIXELS_PER_SECOND", 1.0)
    monkeypatch.setattr(zemosaic_gpu_policy.gc, "collect", lambda: 0)  # slow, and nothing may hang in a cycle
    device = install(SimulatedDevice(64 << 20))
    environ = {"ZEMOSAIC_GPU_CHUNK_ROWS": "1"}
    policy = make_policy(environ=environ)
    assert policy.status.ok
    device.faults = FaultScript()
    measure(infos[:2], tmp_path, policy)
    calls, allocations = device.faults.calls, device.faults.allocations
    assert calls > 150
    scripts = [f"oom@{k}" for k in range(1, allocations, 9)]
    scripts += [f"error1@{k}" for k in range(2, calls, 23)] + [f"sticky700@{k}" for k in range(3, calls, 41)]
    for script in scripts:
        folder = tmp_path / script
        folder.mkdir()
        records = []
        device.faults = FaultScript()
        policy = make_policy(records, environ=environ)
        assert policy.status.ok
        device.faults = FaultScript(script)
        results, _ = measure(infos[:2], folder, policy)
        assert_stored(results, expected[:2])
        assert device.pool.used == 0, script
        assert_rows_are_accounted_for(records)
        told = {r["reason"] for r in records if r["kind"] == "fallback"}
        assert told <= {"out_of_memory", "runtime_error", "device_lost"}, script
        assert told or not script.startswith("sticky"), script


def test_every_kind_of_difference_is_noticed(expected):
    (cpu, *_) = expected
    arrays = cpu.arrays()

    def verdict(**changes):
        return compare_looks([Look("", False, arrays | changes, np.zeros(0))], [cpu], 0)

    assert verdict().ok
    assert verdict(x=arrays["x"] + 5e-4).ok
    assert not verdict(x=arrays["x"] + 2e-3).ok
    noise = arrays["noise"][:, None, None]
    assert verdict(mesh=arrays["mesh"] + 5e-5 * noise).ok
    assert not verdict(mesh=arrays["mesh"] + 1e-3 * noise).ok
    assert not verdict(x=arrays["x"][:-1], y=arrays["y"][:-1]).ok
    assert not verdict(ceiling=arrays["ceiling"] + 1).ok
    assert not compare_looks([SkipItem("frame_too_few_stars", "")], [cpu], 0).ok
    assert compare_looks([SkipItem("frame_empty", "")], [SkipItem("frame_empty", "")], 0).ok


def test_only_frames_of_one_size_and_one_plane_that_are_not_packed_go_to_the_card():
    def task(kind, shape, offset=2880):
        return SimpleNamespace(kind=kind, shape_hw=shape, data_offset=offset), OPTIONS, "", ""

    tasks = [
        task("cfa", (100, 90)),
        task("rgb", (100, 90)),
        task("cfa", (90, 100)),
        task("cfa", (100, 90), -1),
        task("cfa", (100, 90)),
    ]
    assert frames_for_card(tasks) == [0, 4]
    assert frames_for_card(tasks[1:2]) == []
