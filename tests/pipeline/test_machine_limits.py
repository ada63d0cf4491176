"""A run that does not fit the machine is made smaller or refused before it starts, or stopped before it is too late."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from made_frames import field_sky, pointings, run, write_all

from zemosaic_core.errors import Cancelled, RunFailed
from zemosaic_core.synthetic_sky import tan_cards
from zemosaic_io.headers import read_frame_info
from zemosaic_pipeline import machine, resource_watch, runner
from zemosaic_pipeline.context import CancelToken
from zemosaic_pipeline.heap import give_memory_back
from zemosaic_pipeline.known_outline import with_known_outline
from zemosaic_pipeline.machine import Machine, available_memory
from zemosaic_pipeline.outline import estimate_canvas
from zemosaic_pipeline.plan import resolve
from zemosaic_pipeline.plan_limits import fit_to_handles, refuse_small_disk
from zemosaic_settings import Settings

ROOT = Path(__file__).parents[2]
GB, MB = 1_000_000_000, 1_000_000
posix = pytest.mark.skipif(os.name == "nt", reason="limits of POSIX")


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("limits") / "raw"
    write_all(folder, field_sky(), pointings(n=6))
    return folder


@pytest.fixture(scope="module")
def infos(raw):
    """Full-size frames by their headers."""
    return [replace(read_frame_info(path), shape_hw=(4000, 6000)) for path in sorted(raw.iterdir())] * 20


def planned(infos, memory_bytes, **settings):
    computer = Machine(cores=8, memory_bytes=memory_bytes, disk_bytes=1000 * GB)
    return resolve(Settings(**settings), infos, computer, canvas_hw=estimate_canvas(infos))


def write(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def test_a_limit_of_processes_or_threads_is_one_sentence(raw, tmp_path, monkeypatch):
    def none_left(*_, **__):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(runner.solve_frames, "run", none_left)
        with pytest.raises(RunFailed) as error:
            run(raw, tmp_path / "out")
    assert error.value.key == "run_error_processes"
    assert machine.no_more_processes(BlockingIOError(11, "Resource temporarily unavailable")) is not None
    assert machine.no_more_processes(RuntimeError("another one")) is None
    assert run(raw, tmp_path / "out").left_out == {}


def test_limits_of_control_groups(tmp_path, monkeypatch):
    Memory = namedtuple("Memory", "available")
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: Memory(64 * GB))
    assert available_memory(tmp_path / "none") == 64 * GB
    two = tmp_path / "v2"
    write(two / "proc/self/cgroup", "0::/job/step")
    groups = two / "sys/fs/cgroup"
    write(groups / "job/step/memory.max", "max")
    assert available_memory(two) == 64 * GB
    # The limit may be set further up; pages of files count as used, yet can be given back.
    write(groups / "job/memory.max", 4 * GB)
    write(groups / "job/memory.current", 3 * GB)
    write(groups / "job/memory.stat", f"anon {GB}\ninactive_file {2 * GB}")
    assert available_memory(two) == 3 * GB
    one = tmp_path / "v1"
    write(one / "proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n1:name=systemd:/x")
    # A container sees its own group at the top.
    write(one / "sys/fs/cgroup/memory/memory.limit_in_bytes", 2 * GB)
    write(one / "sys/fs/cgroup/memory/memory.usage_in_bytes", GB)
    write(one / "sys/fs/cgroup/memory/memory.stat", f"total_inactive_file {GB // 2}")
    assert available_memory(one) == 3 * GB // 2
    write(one / "sys/fs/cgroup/memory/memory.limit_in_bytes", 9223372036854771712)
    assert available_memory(one) == 64 * GB


@posix
def test_limits_of_a_process():
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    taken = machine.psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (taken + 300 * MB, hard))
    try:
        assert 100 * MB < available_memory() <= 320 * MB
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize("limit_gb", [16, 8, 4, 3])
def test_a_plan_keeps_below_its_limit(infos, limit_gb):
    plan = planned(infos, limit_gb * GB)
    assert plan.peak_bytes <= limit_gb * GB
    assert plan.workers >= 1
    same = planned(infos, 64 * GB, memory_limit_mb=limit_gb * 1000)
    assert same.peak_bytes <= limit_gb * GB
    assert same.memory_limit_bytes == limit_gb * GB


def test_thousands_of_small_frames_fit_where_hundreds_do(raw):
    few = [read_frame_info(path) for path in sorted(raw.iterdir())]
    peaks = [
        planned(few * (n // len(few)), 900 * MB, num_processing_workers=2).peak_bytes for n in (402, 3000)
    ]
    assert peaks[0] < peaks[1] <= 900 * MB
    # What a run keeps of a frame is much less than the frame.
    assert planned(few * 1600, 2 * GB).peak_bytes <= 2 * GB


def test_the_first_run_is_planned_with_what_compiling_takes(raw):
    few = [read_frame_info(path) for path in sorted(raw.iterdir())]
    computer = Machine(cores=8, memory_bytes=64 * GB, disk_bytes=1000 * GB)
    settings = Settings(num_processing_workers=2)
    first, later = (
        resolve(settings, few, computer, canvas_hw=estimate_canvas(few), compiles=compiles)
        for compiles in (True, False)
    )
    # Measured for six small frames: 641 MB where a later run takes 325.
    assert later.peak_bytes < 641 * MB <= first.peak_bytes
    assert first.workers == later.workers
    # Who cannot spare that may run all the same.
    tight = replace(computer, memory_bytes=600 * MB)
    plan = resolve(settings, few, tight, canvas_hw=estimate_canvas(few), compiles=True)
    assert plan.peak_bytes <= 600 * MB


def test_processes_that_measure_stay_small():
    """They run side by side, and what they import each of them holds."""
    modules = ("header_batches", "measure", "star_matches", "worker_pool")
    code = "import sys\n" + "".join(f"import zemosaic_pipeline.{name}\n" for name in modules)
    heavy = {"astropy", "PIL", "pydantic", "matplotlib", "dask"}
    code += f"print({{name.partition('.')[0] for name in sys.modules}} & {heavy})"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "set()"


def test_processes_threads_and_blocks_give_way(infos):
    free, tight = planned(infos, 64 * GB), planned(infos, 2 * GB)
    assert not free.is_reduced
    assert tight.is_reduced
    assert tight.workers < free.workers
    assert tight.threads < free.threads
    assert tight.block_budget_bytes < free.block_budget_bytes


def solved_around(infos, reach_deg):
    """Frames that all name one target and lie around it."""
    rng = np.random.default_rng(3)
    named = [replace(info, ra_deg=80.0, dec_deg=10.0, scale_arcsec=2.4) for info in infos]
    cards = [
        tan_cards(80.0 + ra, 10.0 + dec, scale_arcsec=2.4, shape_hw=info.shape_hw)
        for info, (ra, dec) in zip(named, rng.uniform(-reach_deg, reach_deg, (len(infos), 2)), strict=True)
    ]
    return named, [
        SimpleNamespace(frame=SimpleNamespace(info=info), solution=SimpleNamespace(wcs_cards=own))
        for info, own in zip(named, cards, strict=True)
    ]


def test_the_plan_follows_the_outline_when_it_is_known(infos):
    named, solved = solved_around(infos[:12], 5.0)
    before = planned(named, 64 * GB)
    canvas = (4000 + 15_000, 6000 + 15_000)
    after = with_known_outline(before, solved, canvas, 64 * GB)
    first, second = ({row.phase: row for row in plan.rows} for plan in (before, after))
    assert second["phase3_master_tiles"].ram_bytes > first["phase3_master_tiles"].ram_bytes
    assert second["phase5_assemble"].disk_bytes > 5 * first["phase5_assemble"].disk_bytes
    assert not after.is_reduced
    assert replace(after, rows=before.rows) == before
    # Where all frames really show one target, nothing is new.
    same = with_known_outline(before, solved_around(named, 0.0)[1], estimate_canvas(named), 64 * GB)
    assert same == before
    # What is allowed stays allowed; what cannot be is refused.
    tight = with_known_outline(before, solved, canvas, after.peak_bytes - 200 * MB)
    assert tight.is_reduced
    assert tight.peak_bytes <= after.peak_bytes - 200 * MB
    with pytest.raises(RunFailed) as error:
        with_known_outline(before, solved, canvas, 400 * MB)
    assert error.value.key == "run_error_plan_memory"


def test_where_stacking_computes_stays_in_the_plan(infos):
    named, solved = solved_around(infos[:4], 1.0)
    before = planned(named, 64 * GB)
    rows = tuple(replace(row, device="gpu", reason_key="why") for row in before.rows)
    after = with_known_outline(replace(before, rows=rows), solved, (9000, 9000), 64 * GB)
    assert {(row.device, row.reason_key) for row in after.rows} == {("gpu", "why")}


def test_a_plan_that_grows_is_told(infos):
    said = []
    context = SimpleNamespace(say=lambda key, **values: said.append((key, values)), follow=lambda plan: None)
    before = planned(infos, 64 * GB)
    asked = SimpleNamespace(preview_png_max_dim=before.output.preview["max_dim"])
    told = SimpleNamespace(context=context, plan=None, settings=asked)
    follow = runner._ClassicRun._follow
    follow(told, before)
    told.plan = before
    follow(told, before)
    assert said == []
    larger = tuple(replace(row, ram_bytes=2 * row.ram_bytes) for row in before.rows)
    follow(told, replace(before, rows=larger))
    assert said == [("run_info_plan_grew", {"planned_mb": round(2 * before.peak_bytes / 1e6)})]
    said.clear()
    follow(told, replace(before, block_budget_bytes=20 * MB, is_reduced=True))
    assert [key for key, _ in said] == ["run_info_smaller_plan"]
    told.plan = None
    said.clear()
    picture = before.output.preview | {"max_dim": 1234}
    follow(told, replace(before, output=replace(before.output, preview=picture)))
    assert said == [("run_info_smaller_picture", {"longest": 1234})]


def test_what_cannot_fit_is_refused_with_both_numbers(infos):
    with pytest.raises(RunFailed) as error:
        planned(infos, 400 * MB)
    assert error.value.key == "run_error_plan_memory"
    assert error.value.values["needed_mb"] > error.value.values["free_mb"] == 400


def test_the_picture_gives_way_before_a_run_is_refused(raw):
    """A mosaic of small frames that is large: the picture is what needs most."""
    few = [read_frame_info(path) for path in sorted(raw.iterdir())]
    free, tight = (
        resolve(
            Settings(preview_png_max_dim=20_000),
            few,
            Machine(cores=1, memory_bytes=memory, disk_bytes=1000 * GB),
            canvas_hw=(9000, 9000),
        )
        for memory in (64 * GB, 1 * GB)
    )
    assert not free.is_reduced
    assert tight.is_reduced
    assert free.output.preview["max_dim"] == 20_000
    assert 1000 <= tight.output.preview["max_dim"] < 9000
    assert tight.peak_bytes <= 1 * GB


def test_open_files(infos):
    plan = planned(infos, 64 * GB)
    assert fit_to_handles(plan, 1024) is plan
    few = fit_to_handles(plan, 60)
    assert few.is_reduced
    assert (few.workers, few.threads) < (plan.workers, plan.threads)
    with pytest.raises(RunFailed, match="ulimit -n"):
        fit_to_handles(plan, 30)


def test_disk():
    refuse_small_disk(100 * MB, 200 * MB, "out")
    with pytest.raises(RunFailed) as error:
        refuse_small_disk(100 * MB, 100 * MB, "out")
    assert error.value.values == {"path": "out", "needed_mb": 120, "free_mb": 100}


def test_a_small_disk_is_told_before_anything_is_stacked(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "free_disk", lambda _: 21 * MB)
    with pytest.raises(RunFailed) as error:
        run(raw, tmp_path / "out")
    assert error.value.key == "run_error_plan_disk"
    assert error.value.values["needed_mb"] > error.value.values["free_mb"] == 21
    assert not list((tmp_path / "out").rglob("*.fits"))


def test_one_picture_no_memory_holds_costs_itself(tmp_path):
    """A file full of holes may declare any size; stacks and pictures may have any."""
    write_all(tmp_path / "raw", field_sky(), pointings(n=6), form="rgb")
    small = (tmp_path / "raw" / "light_000.fit").read_bytes()
    header = small[: (small.find(b"END     ") // 2880 + 1) * 2880]
    for axis, size in ((1, 400), (2, 300)):
        old = f"NAXIS{axis}  = {size:>20}".encode()
        assert old in header
        header = header.replace(old, f"NAXIS{axis}  = {400_000:>20}".encode())
    with (tmp_path / "raw" / "vast.fit").open("wb") as file:
        file.write(header)
        file.truncate(len(header) + 3 * 2 * 400_000**2 + 2880)
    result = run(tmp_path / "raw", tmp_path / "out", exclude_flagged_frames=False)
    assert result.left_out == {"vast.fit": "frame_no_memory"}
    assert result.report["frames_used"] == 6


def test_a_disk_that_runs_full_ends_the_run_early(raw, tmp_path, monkeypatch):
    real = machine.free_disk
    asked = []

    def less_and_less(folder):
        asked.append(folder)
        return real(folder) if len(asked) < 3 else 5 * MB

    monkeypatch.setattr(resource_watch, "free_disk", less_and_less)
    monkeypatch.setattr(resource_watch, "_LOOK_EVERY", 1)
    with pytest.raises(RunFailed) as error:
        run(raw, tmp_path / "out")
    assert error.value.key == "run_error_disk_nearly_full"
    report = json.loads((tmp_path / "out" / "run_report.json").read_text())
    assert "nearly_full" in json.dumps(report)
    assert list((tmp_path / "out").rglob("*.part")) == []
    monkeypatch.undo()
    assert run(raw, tmp_path / "out").report["frames_used"] == 6


def test_a_run_above_its_ceiling_is_stopped(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(resource_watch, "bytes_of", lambda _: 5 * GB)
    with pytest.raises(RunFailed) as error:
        run(raw, tmp_path / "out", memory_limit_mb=1500)
    assert error.value.key == "run_error_memory_limit"
    assert error.value.values == {"used_mb": 5000, "limit_mb": 1500}


def wait_for(something):
    until = time.monotonic() + 20.0
    while not something and time.monotonic() < until:
        time.sleep(0.02)


def test_a_disk_that_does_not_answer_is_told_once_and_the_memory_still_watched(tmp_path, monkeypatch):
    """Whoever writes to it stands still as well, and could tell nothing; a minute is 0.2 s here."""
    ours, theirs = os.pipe()
    monkeypatch.setattr(resource_watch, "free_disk", lambda _: len(os.read(ours, 1)) + GB)
    monkeypatch.setattr(resource_watch, "TOLD_AFTER_S", 0.2)
    told, stopped = [], []
    watch = resource_watch.ResourceWatch(
        (tmp_path,), stopped.append, lambda *what: told.append(what), interval_s=0.02
    )
    try:
        wait_for(told)
        watch.limit_bytes = 1
        wait_for(stopped)
        assert [folder for folder, _ in told] == [str(tmp_path)]
        assert told[0][1] > 0.2
        assert stopped[0].key == "run_error_memory_limit"
        began_s = time.monotonic()
        watch.close()
        assert time.monotonic() - began_s < 2.0
    finally:
        os.close(theirs)


def test_the_memory_of_a_process_that_was_started_later_counts(tmp_path):
    watch = resource_watch.ResourceWatch((tmp_path,), lambda _: None, interval_s=0.02)
    try:
        before = watch.take_peak()
        words = "import time; held = bytearray(b'x') * 300_000_000; time.sleep(1.0)"
        subprocess.run([sys.executable, "-c", words], check=True)
        assert watch.take_peak() > before + 250 * MB
        assert watch.take_peak() < before + 250 * MB
    finally:
        watch.close()


def test_want_of_memory_is_told_with_plan_and_free(raw, tmp_path, monkeypatch):
    def never(*_, **__):
        np.empty(1 << 60, np.uint8)

    monkeypatch.setattr(runner.phase4_grid, "run", never)
    with pytest.raises(RunFailed) as error:
        run(raw, tmp_path / "out")
    assert error.value.key == "run_error_memory"
    assert min(error.value.values["planned_mb"], error.value.values["free_mb"]) > 100


def test_the_first_reason_to_stop_counts():
    token = CancelToken()
    token.stop_because(RunFailed("one"))
    token.stop_because(RunFailed("two"))
    with pytest.raises(RunFailed, match="one"):
        token.check()
    asked = CancelToken()
    asked.set()
    with pytest.raises(Cancelled):
        asked.check()


def test_what_fails_because_of_a_stop_is_a_stop():
    failed = RunFailed("run_error_worker_died")
    token = CancelToken()
    run = SimpleNamespace(context=SimpleNamespace(cancel=token), plan=None)
    assert runner._ClassicRun.told(run, failed) is failed
    token.set()
    assert isinstance(runner._ClassicRun.told(run, failed), Cancelled)
    token.stop_because(RunFailed("the disk is full"))
    assert runner._ClassicRun.told(run, failed) is failed


@posix
@pytest.mark.parametrize(
    ("limit", "code", "word"),
    [
        ("ulimit -v 2000000 && ulimit -n 64", 0, ""),
        ("ulimit -v 900000", 1, "memory"),
    ],
)
def test_limits_of_the_shell(raw, tmp_path, limit, code, word):
    """Either there is a mosaic, or one sentence says what was short."""
    if sys.platform != "linux":
        pytest.skip("other systems do not keep these limits")
    done = subprocess.run(
        f'{limit} && exec "{sys.executable}" "{ROOT / "run_zemosaic.py"}" run "{raw}" "{tmp_path / "out"}" '
        "--gpu off --quiet --set num_processing_workers=2",
        shell=True,
        capture_output=True,
        text=True,
        env={**os.environ, "ZEMOSAIC_CONFIG_DIR": str(tmp_path), "OPENBLAS_NUM_THREADS": "1"},
    )
    said = done.stdout + done.stderr
    assert done.returncode == code, said
    assert word in said
    assert "Traceback" not in said


@pytest.mark.skipif(sys.platform != "linux", reason="other C libraries give back by themselves")
def test_memory_that_was_freed_goes_back_to_the_system():
    """A phase must not begin with what the one before has given up."""
    process = psutil.Process()
    parts = [np.ones(12_500) for _ in range(1_000)]  # 100 kB each: none of them a mapping of its own
    last = parts.pop()
    del parts
    held = process.memory_info().rss
    give_memory_back()
    assert process.memory_info().rss < held - 60_000_000
    assert last.sum() == 12_500
