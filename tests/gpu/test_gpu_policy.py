"""The policy: pure decisions, the ladder under every fault, records."""

from __future__ import annotations

import json
import re
import sys
import threading

import numpy as np
import pytest
from fake_cupy import Card
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_cases import (
    DATA,
    OK,
    ROOT,
    ROWS,
    WIDTH,
    Collected,
    assert_rows_are_accounted_for,
    cpu_body,
    gpu_body,
    make_policy,
    run,
    workload,
)
from simulated_device import CUDARuntimeError, SimulatedDevice

import zemosaic_gpu_policy as policy_module
from zemosaic_core.chunks import Buffer, Workload
from zemosaic_core.errors import Cancelled, RunFailed
from zemosaic_core.gpu import device as seam
from zemosaic_core.gpu import ladder
from zemosaic_core.gpu.budget import card_seconds, is_overcommitted, worthwhile_bytes
from zemosaic_core.gpu.terms import Audit, Budget, GpuStatus, Overrides, Parity, Reason
from zemosaic_gpu_policy import decide, make_budget
from zemosaic_io.gpu_files import device_lease

# --- pure decisions -------------------------------------------------------------------------------------------


@given(
    st.integers(1, 5000),
    st.integers(0, 10**6),
    st.integers(0, 10**5),
    st.integers(0, 10**9),
    st.integers(1, 64),
    st.sampled_from([1, 2, 4]),
    st.integers(0, 3),
    st.integers(0, 10**8),
)
@settings(max_examples=300, deadline=None)
def test_a_decision_fits_the_budget_and_covers_the_rows(
    rows, fixed, per_row, usable, min_rows, align, halo, ceiling
):
    work = Workload("op", rows, (Buffer("a", fixed, per_row, 2),), min_rows=min_rows, align=align, halo=halo)
    budget = Budget(usable, usable, 0, 0, usable, usable)
    decision = decide(work, OK, budget, ceiling_bytes=ceiling)
    assert decision == decide(work, OK, budget, ceiling_bytes=ceiling)
    if decision.device == "cpu":
        assert decision.reason is Reason.INSUFFICIENT_MEMORY
        assert decision.estimated_bytes > min(usable, ceiling or usable) or min(
            decision.limits.values()
        ) < max(min(min_rows, rows), align)
        return
    assert decision.estimated_bytes <= min(usable, ceiling or usable)
    assert decision.estimated_bytes == work.peak(decision.chunk_rows)
    assert (decision.n_chunks - 1) * decision.chunk_rows < rows + decision.n_chunks * align
    assert decision.n_chunks * decision.chunk_rows >= rows
    wider = decide(work, OK, Budget(0, 0, 0, 0, 0, usable * 2 + 1))
    assert wider.device == "gpu"
    assert wider.n_chunks <= decision.n_chunks or ceiling


def test_every_bound_is_recorded_and_the_smallest_wins():
    info = seam.DeviceInfo("card", "uuid", drives_display=True)
    work = workload(elements_per_row=2**31 // 10, min_rows=1)
    decision = decide(work, GpuStatus(True, Reason.GPU, "", info), Budget(0, 0, 0, 0, 0, 10**9), chunk_rows=8)
    assert decision.limits == {"rows": 40, "memory": 40, "index": 10, "asked": 8}
    assert (decision.chunk_rows, decision.n_chunks) == (8, 5)


def test_small_work_is_not_worth_the_transfer():
    budget = Budget(0, 0, 0, 0, 0, 10**9)
    assert decide(workload(cpu_seconds=0.001), OK, budget).reason is Reason.WORKLOAD_TOO_SMALL
    assert decide(workload(cpu_seconds=1.0), OK, budget).device == "gpu"
    assert (
        decide(workload(cpu_seconds=1.0, upload_bytes=10**11), OK, budget).reason is Reason.WORKLOAD_TOO_SMALL
    )


@pytest.mark.parametrize(
    ("total_mb", "overrides", "memory_mb", "usable_mb"),
    [
        (8192, Overrides(), 0, 8192 - 655 - 1),
        (1024, Overrides(), 0, 1024 - 256),
        (8192, Overrides(reserve_mb=100), 0, 8092),
        (8192, Overrides(reserve_mb=0), 1000, 1000),
        (8192, Overrides(reserve_mb=0, memory_mb=500), 1000, 500),
        (8192, Overrides(reserve_mb=0, simulate_mb=2048), 0, 2048),
        (100, Overrides(reserve_mb=200), 0, 0),
    ],
)
def test_budget_keeps_a_reserve_and_respects_the_cap(monkeypatch, total_mb, overrides, memory_mb, usable_mb):
    monkeypatch.setattr(sys, "platform", "linux")
    total = total_mb << 20
    budget = make_budget(
        seam.MemoryState(total, total, 0, 0),
        seam.DeviceInfo("", ""),
        memory_mb=memory_mb,
        overrides=overrides,
    )
    assert budget.usable >> 20 == usable_mb


def test_a_display_and_windows_make_the_reserve_larger(monkeypatch):
    total = 8 << 30
    state, info = seam.MemoryState(total, total, 0, 0), seam.DeviceInfo("", "", drives_display=True)
    monkeypatch.setattr(sys, "platform", "linux")
    linux = make_budget(state, info, memory_mb=0, overrides=Overrides())
    assert linux.reserve == total * 8 // 100 + (256 << 20)
    monkeypatch.setattr(sys, "platform", "win32")
    assert make_budget(state, info, memory_mb=0, overrides=Overrides()).reserve == linux.reserve + total // 10


# --- running --------------------------------------------------------------------------------------------------


def test_everything_on_the_gpu_with_the_planned_peak(install):
    device = install(SimulatedDevice(64 << 20))
    records = []
    policy = make_policy(records)
    report = run(policy)
    assert (report.gpu_rows, report.cpu_rows) == (ROWS, 0)
    assert report.peak_bytes == report.decision.estimated_bytes
    assert device.pool.total == 0
    assert [r["key"] for r in records if r["key"]] == ["gpu_info_summary", "gpu_op_using_gpu"]
    assert policy.summary()["operations"]["square"]["gpu_share"] == 1.0


def test_a_card_for_a_few_rows_only_gives_the_same_picture_in_more_chunks(install):
    install(SimulatedDevice(5000))
    report = run(make_policy())
    assert report.gpu_chunks == 5
    assert report.cpu_rows == 0


def test_chunk_rows_of_the_environment_are_used(install):
    install(SimulatedDevice(64 << 20))
    assert run(make_policy(environ={"ZEMOSAIC_GPU_CHUNK_ROWS": "7"})).gpu_chunks == 6


def test_memory_taken_by_another_process_splits_chunks_for_the_rest_of_the_run(install):
    device = install(SimulatedDevice(100_000))
    records = []
    policy = make_policy(records)
    assert policy.plan(workload()).n_chunks == 1

    def take(dev, kind, n_bytes):
        if kind == "pinned":
            dev.other = 100_000 - 8_000
            dev.hooks.clear()

    device.hooks.append(take)
    report = run(policy)
    assert report.splits == 1  # what is free is asked again: 20 rows would not fit either
    assert report.cpu_rows == 0
    assert policy.plan(workload()).chunk_rows <= 14
    assert [r["reason"] for r in records if r["kind"] == "split"] == ["out_of_memory"]
    assert run(policy).splits == 0


def test_memory_is_asked_again_before_every_operation(install):
    """What others take or leave between two operations needs no error to be noticed."""
    device = install(SimulatedDevice(100_000))
    policy = make_policy()
    assert run(policy).gpu_chunks == 1
    device.other = 100_000 - 8_000
    report = run(policy)
    assert (report.splits, report.cpu_rows) == (0, 0)
    assert report.gpu_chunks > 1
    device.other = 100_000
    assert run(policy).decision.reason is Reason.INSUFFICIENT_MEMORY
    device.other = 0
    assert run(policy).gpu_chunks == 1


def test_a_ceiling_learnt_from_one_shortage_recovers(install):
    device = install(SimulatedDevice(64 << 20))
    policy = make_policy()
    assert policy.status.ok
    device.faults = seam.FaultScript("oom@1")
    assert run(policy).splits == 1
    chunks = [run(policy).gpu_chunks for _ in range(3)]
    assert chunks[0] > 1
    assert chunks[-1] == 1
    assert policy.ceilings == {}


def test_a_card_that_is_full_when_the_run_begins_is_used_when_it_is_free(install):
    device = install(SimulatedDevice(64 << 20, other=64 << 20))
    policy = make_policy()
    assert run(policy).decision.reason is Reason.INSUFFICIENT_MEMORY
    device.other = 0
    assert run(policy).cpu_rows == 0


def test_a_card_without_room_for_a_context_is_asked_again(cupy_cards, monkeypatch):
    monkeypatch.setattr(policy_module, "RETRY_SECONDS", 0.0)
    cupy_cards(Card(broken=2))
    policy = make_policy()
    assert policy.status.reason is Reason.INSUFFICIENT_MEMORY
    cupy_cards(Card())
    assert policy.look() is not None
    assert policy.status.ok


def test_a_card_that_computes_wrongly_is_given_up_for_the_run(install):
    """Nothing of it is in the result, whatever had been handed on before."""
    install(SimulatedDevice(64 << 20))

    def wrong(device, y0, y1, next_rows):
        result = gpu_body(device, y0, y1, next_rows)
        if y0 >= 20:
            result[:, 3:9] *= 1.5
        return result

    def compare(gpu, cpu, first):
        difference = float(np.abs(gpu[first : first + len(cpu)] - cpu).max())
        return Parity(difference, cpu.size, 0)

    class Restarted(Collected):
        def restart(self):
            self.next = 0

    lot = list(range(ROWS))
    for mode, restarts in (("auto", True), ("auto", False), ("require", True)):
        records = []
        policy = make_policy(records, mode=mode, environ={"ZEMOSAIC_GPU_CHUNK_ROWS": "10"})
        out = Restarted()
        options = {"audit": Audit(1, compare), "restart": out.restart if restarts else None}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ladder, "draw_rows", lambda rows, chunk_rows: lot)
            if mode == "require":
                with pytest.raises(RunFailed, match="wrong_results"):
                    policy.run(workload(), wrong, cpu_body, emit=out, **options)
                continue
            report = policy.run(workload(), wrong, cpu_body, emit=out, **options)
        out.check()
        assert report.cpu_rows == (ROWS if restarts else 20)
        assert_rows_are_accounted_for(records)
        (fallback,) = policy.summary()["fallbacks"]
        assert (fallback["reason"], fallback["scope"]) == ("wrong_results", "run")
        assert policy.plan(workload(op="other")).reason is Reason.WRONG_RESULTS


def test_rows_are_drawn_by_lot_one_in_a_thousand_and_one_of_the_first_chunk():
    draws = [ladder.draw_rows(20_000, 50) for _ in range(50)]
    assert all(18 <= len(rows) <= 20 and min(rows) < 50 and max(rows) < 20_000 for rows in draws)
    assert len({tuple(rows) for rows in draws}) == 50
    assert all(len(ladder.draw_rows(900, 900)) == 1 for _ in range(5))
    assert ladder.draw_rows(1, 1) == [0]


def test_every_operation_is_compared(install):
    install(SimulatedDevice(64 << 20))
    policy = make_policy()
    audit = Audit(1, lambda gpu, cpu, first: Parity(0.0, cpu.size, 0))
    for _ in range(3):
        assert run(policy, audit=audit).parity is not None
    assert policy.summary()["operations"]["square"]["parity_checks"] == 3


def test_memory_of_the_host_that_runs_out_makes_chunks_smaller_and_then_the_cpu_does_it(install):
    install(SimulatedDevice(64 << 20))
    records = []
    policy = make_policy(records)

    def hungry(device, y0, y1, next_rows):
        if y1 - y0 > 12:
            raise MemoryError("Unable to allocate 2.00 GiB")
        return gpu_body(device, y0, y1, next_rows)

    out = Collected()
    report = policy.run(workload(), hungry, cpu_body, emit=out)
    out.check()
    assert (report.splits, report.cpu_rows) == (2, 0)
    assert policy.ceilings == {}
    assert {r["reason"] for r in records if r["kind"] == "split"} == {"host_memory"}

    def starving(device, y0, y1, next_rows):
        raise MemoryError

    out = Collected()
    report = policy.run(workload(), starving, cpu_body, emit=out)
    out.check()
    assert report.cpu_rows == ROWS


def test_a_card_that_lends_what_it_does_not_have_gets_smaller_chunks(install):
    """As under Windows: allocations succeed, and the desktop crawls."""
    device = install(SimulatedDevice(64 << 20))
    device.driver_malloc = lambda size: True
    records = []
    policy = make_policy(records, environ={"ZEMOSAIC_GPU_CHUNK_ROWS": "10"})
    assert policy.status.ok

    def take(dev, kind, n_bytes):
        if kind == "launch":
            dev.other = 64 << 20

    device.hooks.append(take)
    report = run(policy)
    assert report.cpu_rows == 0
    assert report.splits >= 1
    (split, *_) = [r for r in records if r["kind"] == "split"]
    assert (split["reason"], split["key"], split["chunk_rows"]) == ("overcommitted", "gpu_overcommitted", 5)


@pytest.mark.parametrize(
    ("free", "grown", "slower", "expected"),
    [
        (900, 100, 1.0, False),  # as planned
        (0, 100, 1.0, True),  # nothing is left
        (30, 100, 1.0, False),  # less than planned, and all is well
        (30, 100, 3.5, True),  # and chunks crawl
        (900, 100, 3.5, False),  # a slow disk
        (30, 2000, 1.0, True),  # the pool has grown by what was not there
    ],
)
def test_what_counts_as_overcommitted(free, grown, slower, expected):
    mib = 1 << 20
    budget = Budget(4000 * mib, 1000 * mib, 0, 100 * mib, 4000 * mib, 900 * mib)
    before = seam.MemoryState(4000 * mib, 1000 * mib, 0, 0)
    now = seam.MemoryState(4000 * mib, free * mib, 0, grown * mib)
    assert is_overcommitted(before, now, budget, slower, 1.0) is expected


def test_many_tiny_chunks_are_not_a_use_of_the_card(install):
    """The way to the card costs more than the processor needs; with larger chunks it would not."""
    work = {"cpu_seconds": 0.02, "min_rows": 1}
    device = install(SimulatedDevice(3000))
    policy = make_policy()
    decision = run(policy, work=work).decision
    assert (decision.device, decision.reason) == ("cpu", Reason.INSUFFICIENT_MEMORY)
    assert decision.limits["memory"] < 6
    assert decision.estimated_bytes == worthwhile_bytes(workload(**work)) > 3000
    assert run(make_policy(mode="require"), work=work).gpu_rows == ROWS
    device.total = 64 << 20
    assert run(make_policy(), work=work).gpu_rows == ROWS


def test_what_is_read_again_counts():
    work = workload(cpu_seconds=1.0, reread_bytes=30 * 10**9)
    assert card_seconds(work, ROWS) < 0.02
    assert card_seconds(work, 2) > 10
    assert decide(work, OK, Budget(0, 0, 0, 0, 0, 2500)).reason is Reason.INSUFFICIENT_MEMORY
    assert decide(work, OK, Budget(0, 0, 0, 0, 0, 10**6)).device == "gpu"


def test_the_speed_of_the_processor_is_that_of_this_run(install):
    """A constant says nothing of this computer; what the run has done on the processor does."""
    install(SimulatedDevice(64 << 20))
    policy = make_policy()
    work = {"cpu_seconds": 100.0}
    run(policy, work=work, wanted=False)
    decision = run(policy, work=work).decision
    assert decision.reason is Reason.WORKLOAD_TOO_SMALL


def test_out_of_memory_at_the_floor_gives_the_chunk_to_the_cpu_and_the_gpu_another_try(install):
    device = install(SimulatedDevice(64 << 20))
    policy = make_policy(environ={"ZEMOSAIC_GPU_CHUNK_ROWS": "4"})
    assert policy.status.ok
    device.faults = seam.FaultScript("oom@2,oom@8")
    report = run(policy)
    assert report.cpu_rows == 8
    assert report.gpu_rows == 32
    fallbacks = policy.summary()["fallbacks"]
    assert [(f["reason"], f["scope"], f["count"]) for f in fallbacks] == [("out_of_memory", "chunk", 2)]


def test_three_failures_in_a_row_end_the_operation_on_the_cpu(install):
    device = install(SimulatedDevice(64 << 20))
    policy = make_policy(environ={"ZEMOSAIC_GPU_CHUNK_ROWS": "4"})
    assert policy.status.ok
    device.faults = seam.FaultScript("oom>1")
    report = run(policy)
    assert (report.gpu_rows, report.cpu_rows) == (0, ROWS)
    assert [f["reason"] for f in policy.summary()["fallbacks"]] == ["out_of_memory", "too_many_failures"]


def test_a_lost_device_ends_the_run_on_the_cpu(install):
    device = install(SimulatedDevice(64 << 20))
    policy = make_policy()
    assert policy.status.ok
    device.faults = seam.FaultScript("sticky700@6")
    assert run(policy).cpu_rows == ROWS
    second = run(policy, work={"op": "other"})
    assert second.decision.reason is Reason.DEVICE_LOST
    assert policy.release("end") is not None


def test_a_missing_compiler_ends_this_operation_only(install):
    device = install(SimulatedDevice(64 << 20, no_compiler=True))
    policy = make_policy()
    report = run(policy)
    assert report.cpu_rows == ROWS
    assert policy.given_up == {"square": Reason.COMPILE_FAILED}
    device.no_compiler = False
    assert run(policy, work={"op": "other"}).gpu_rows == ROWS


def test_a_late_error_is_the_chunks_own(install):
    device = install(SimulatedDevice(64 << 20))
    policy = make_policy(environ={"ZEMOSAIC_GPU_CHUNK_ROWS": "20"})
    assert policy.status.ok

    def late(dev, kind, n_bytes):
        if kind == "copy_out" and not dev.hooks[1:]:
            dev.late_status = 1
            dev.hooks.append(lambda *a: None)

    device.hooks.append(late)
    report = run(policy)
    assert (report.gpu_rows, report.cpu_rows) == (20, 20)


def test_a_bug_is_not_a_fallback(install):
    install(SimulatedDevice(64 << 20))

    def broken(device, y0, y1, next_rows):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        make_policy().run(workload(), broken, cpu_body, emit=Collected())


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, Cancelled])
@pytest.mark.parametrize("where", ["gpu body", "cpu body", "emit", "emit of the cpu", "audit"])
def test_an_error_in_the_middle_leaves_nothing_behind(install, where, error):
    """Nothing on the card, nobody holds it, and the ledger has what was done until then."""
    device = install(SimulatedDevice(64 << 20))
    records = []
    policy = make_policy(records, environ={"ZEMOSAIC_GPU_CHUNK_ROWS": "10"})
    assert policy.status.ok
    calls = []

    def perhaps(place):
        calls.append(place)
        if place == where and calls.count(place) == 2:
            raise error

    def on_gpu(dev, y0, y1, next_rows):
        held = dev.empty((y1 - y0, WIDTH), np.float32)
        perhaps("gpu body")
        if y0 and "cpu" in where:
            raise CUDARuntimeError(1)
        assert held.nbytes
        return gpu_body(dev, y0, y1, next_rows)

    def on_cpu(y0, y1):
        perhaps("cpu body")
        return cpu_body(y0, y1)

    def emit(y0, y1, result):
        perhaps("emit")
        if "cpu body" in calls:
            perhaps("emit of the cpu")

    def compare(gpu, cpu, first):
        raise error

    audit = Audit(2, compare) if where == "audit" else None
    with pytest.raises(error) as caught:
        policy.run(workload(), on_gpu, on_cpu, emit=emit, audit=audit)
    assert caught.tb is not None  # alive while the card is looked at, as in a debugger or a report
    assert (device.pool.used, device.pool.total) == (0, 0)
    operation = records[-1]
    assert operation["kind"] == "operation"
    assert not operation["complete"]
    assert operation["gpu_rows"] + operation["cpu_rows"] in ((0,) if where == "audit" else (10, 20))
    assert sum(b - a for a, b, _ in operation["pieces"]) == operation["gpu_rows"] + operation["cpu_rows"]
    with device_lease(device.info.uuid, timeout_s=0):
        pass
    thread_ran = []
    thread = threading.Thread(target=lambda: thread_ran.append(run(make_policy()).gpu_rows))
    thread.start()
    thread.join()
    assert thread_ran == [ROWS]
    report = run(policy)
    assert report.gpu_rows == ROWS


def test_memory_of_the_failed_attempt_is_free_at_the_retry(install):
    """The trap: an exception that is still alive keeps the arrays of the attempt that failed."""
    install(SimulatedDevice(6 * 5120))
    attempts = []

    def greedy(device, y0, y1, next_rows):
        attempts.append(device.pool.used)
        held = [device.empty((y1 - y0, WIDTH), np.float32) for _ in range(4)]
        return DATA[y0:y1][: len(held) * 1000].copy()

    out = Collected()
    make_policy().run(workload(), greedy, cpu_body, emit=out)
    out.check()
    assert attempts[:2] == [0, 0]


def test_require_makes_every_fallback_an_error(install):
    with pytest.raises(RunFailed) as caught:
        run(make_policy(mode="require"))
    assert caught.value.key == "gpu_required"
    device = install(SimulatedDevice(64 << 20))
    policy = make_policy(mode="require")
    assert run(policy, work={"cpu_seconds": 1e-9}).gpu_rows == ROWS
    device.faults = seam.FaultScript("error1@6")
    with pytest.raises(RunFailed, match="runtime_error"):
        run(policy)


def test_require_is_checked_before_any_work(install):
    with pytest.raises(RunFailed) as caught:
        make_policy(mode="require").check_required()
    assert caught.value.key == "gpu_required"
    assert caught.value.values["reason"] != "gpu"
    make_policy(mode="auto").check_required()
    install(SimulatedDevice(64 << 20))
    make_policy(mode="require").check_required()


@pytest.mark.parametrize("lie", [3.0, 0.0])
def test_a_driver_that_lies_about_free_memory(install, lie):
    """Too much promised: chunks shrink when they do not fit. Nothing promised: the CPU, and the reason."""
    device = install(SimulatedDevice(30_000, other=20_000))
    device.free_lie = lie
    policy = make_policy()
    report = run(policy)
    assert device.pool.used == 0
    if lie:
        assert (report.splits, report.cpu_rows) == (2, 0)
    else:
        assert report.decision.reason is Reason.INSUFFICIENT_MEMORY
        (fallback,) = policy.summary()["fallbacks"]
        assert fallback["key"] == "gpu_fallback_insufficient_memory"
        assert fallback["needed_bytes"] > fallback["usable_bytes"] == 0


def test_the_pool_cannot_grow_beyond_the_budget(install):
    device = install(SimulatedDevice(64 << 20))
    policy = make_policy(memory_mb=10)
    assert policy.status.ok
    with pytest.raises(MemoryError):
        device.empty((11 << 20,), np.uint8)
    policy.close()
    device.empty((11 << 20,), np.uint8)


def test_closing_asks_nothing_and_survives_a_dead_card(install):
    records = []
    make_policy(records).close()
    assert records == []
    device = install(SimulatedDevice(64 << 20))
    policy = make_policy(records)
    assert policy.status.ok
    device.faults = seam.FaultScript("sticky700@1")
    policy.close()
    assert records[-1]["key"] == "gpu_summary_end"


def test_cancel_between_chunks(install):
    install(SimulatedDevice(64 << 20))
    flag = threading.Event()
    policy = make_policy(environ={"ZEMOSAIC_GPU_CHUNK_ROWS": "4"})

    def emit(y0, y1, result):
        if y1 > 10:
            flag.set()

    with pytest.raises(Cancelled):
        policy.run(workload(), gpu_body, cpu_body, emit=emit, cancel=flag)


def test_parity_is_checked_on_some_rows_and_reported(install):
    install(SimulatedDevice(64 << 20))
    records = []
    policy = make_policy(records)

    def compare(gpu, cpu, first):
        return Parity(float(np.abs(gpu[first : first + len(cpu)] - cpu).max()), cpu.size, 0)

    report = run(policy, audit=Audit(3, compare))
    assert report.parity == Parity(0.0, 3 * WIDTH, 0)
    assert [(r["level"], r["kind"]) for r in records if r["key"] == "gpu_parity_ok"] == [("DEBUG", "parity")]
    assert not Parity(1e-3, 100, 0).ok
    assert "gpu_parity_ok" in [key for key, _ in policy.report_lines()]


def test_exhaustive_fault_sweep(install, monkeypatch):
    """Fail each call in turn with each kind of error: same picture, nothing left allocated, no exception."""
    # Slow, and without it this also shows that nothing hangs in a cycle.
    monkeypatch.setattr(policy_module.gc, "collect", lambda: 0)
    device = install(SimulatedDevice(64 << 20))
    policy = make_policy(environ={"ZEMOSAIC_GPU_CHUNK_ROWS": "14"})
    assert policy.status.ok
    device.faults = seam.FaultScript()
    run(policy)
    calls, allocations = device.faults.calls, device.faults.allocations
    assert calls > 20
    scripts = [f"oom@{k}" for k in range(1, allocations + 1)]
    scripts += [
        f"{kind}@{k}" for kind in ("error1", "sticky700", "sticky719", "error2") for k in range(1, calls + 1)
    ]
    for script in scripts:
        device.faults = seam.FaultScript()
        records = []
        policy = make_policy(records, environ={"ZEMOSAIC_GPU_CHUNK_ROWS": "14"})
        assert policy.status.ok
        device.faults = seam.FaultScript(script)
        report = run(policy)
        assert report.gpu_rows + report.cpu_rows == ROWS
        assert device.pool.used == 0, script
        assert device.faults.dead_status or device.pool.total == 0, script
        assert {r["reason"] for r in records} <= {reason.value for reason in Reason}
        assert_rows_are_accounted_for(records)
        assert len(records) < 30


# --- records --------------------------------------------------------------------------------------------------


def test_the_ledger_is_json_lines_and_survives_a_read_only_place(tmp_path, install):
    install(SimulatedDevice(64 << 20))
    policy = make_policy(ledger_path=tmp_path / "out" / "gpu_ledger.jsonl")
    run(policy)
    policy.close()
    lines = [json.loads(line) for line in (tmp_path / "out" / "gpu_ledger.jsonl").read_text().splitlines()]
    assert lines[0]["kind"] == "probe"
    assert {"time", "pid", "op", "reason", "key", "values", "level", "repeat"} <= set(lines[0])
    assert lines[-1]["key"] == "gpu_summary_end"
    blocked = tmp_path / "file"
    blocked.write_text("")
    run(make_policy(ledger_path=blocked / "ledger.jsonl"))


EVENT_KEYS = {
    "gpu_info_summary",
    "gpu_info_intertile_forced",
    "stack_using_gpu",
    "stack_using_cpu",
    "phase5_using_gpu",
    "phase5_using_cpu",
    "gpu_op_using_gpu",
    "gpu_op_using_cpu",
    "gpu_chunking_rows",
    "gpu_chunk_split",
    "gpu_overcommitted",
    "gpu_host_memory",
    "gpu_pageable",
    "gpu_by_settings",
    "gpu_by_variable",
    "gpu_by_command",
    "gpu_by_window",
    "gpu_required_memory",
    "gpu_parity_ok",
    "gpu_parity_differs",
    "gpu_lease_waited",
    "gpu_other_card",
    "gpu_report_share",
    "gpu_report_peak",
    "gpu_report_repeated",
    "gpu_summary_end",
    "gpu_required",
    "settings_bad_environment",
    *(
        f"gpu_op_{op}"
        for op in ("stack", "assemble", "hot_pixels", "background", "stretch", "percentiles", "run")
    ),
}


@pytest.mark.parametrize("language", ["en", "fr"])
def test_each_reason_and_event_has_a_text(language):
    texts = json.loads((ROOT / "locales" / f"{language}.json").read_text(encoding="utf-8"))
    wanted = (
        EVENT_KEYS | {r.text_key for r in Reason} | {r.fallback_key for r in Reason if r is not Reason.GPU}
    )
    assert sorted(wanted - set(texts)) == []


def test_each_key_the_recorder_uses_is_in_that_list():
    source = (ROOT / "zemosaic_core" / "gpu" / "recorder.py").read_text(encoding="utf-8")
    source += (ROOT / "zemosaic_gpu_policy.py").read_text(encoding="utf-8")
    used = set(re.findall(r'"(gpu_[a-z_]+)"', source))
    functions = {"gpu_phase", "gpu_status", "gpu_chunks", "gpu_share", "gpu_rows", "gpu_op"}
    functions |= {"gpu_is_available", "gpu_memory_sufficient"}
    assert used - functions <= EVENT_KEYS, used - functions - EVENT_KEYS
