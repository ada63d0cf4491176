"""Memory does not grow with the number of frames, and of ten thousand files each header is read once."""

from __future__ import annotations

import gc
import multiprocessing
from pathlib import Path
from queue import Empty
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from made_frames import base_cards, expose, field_sky, pointings, write

from zemosaic_io.headers import read_frame_info
from zemosaic_pipeline import header_batches
from zemosaic_pipeline.events import PHASES, Event, PhaseFinished, PhaseProgress
from zemosaic_pipeline.heap import give_memory_back
from zemosaic_pipeline.plan import make_plan
from zemosaic_pipeline.resource_watch import private_bytes
from zemosaic_settings import Settings
from zemosaic_worker import run_hierarchical_mosaic

BYTES_PER_FRAME = 100_000


def write_long_night(folder: Path, n: int) -> None:
    """Two panels; a few exposures shown again and again with fresh noise, dithered by their pointing alone."""
    sky = field_sky()
    setups = [*pointings(n=5, step_px=(-120, 0), seed=1), *pointings(n=5, step_px=(120, 0), seed=2)]
    pictures = [expose(sky, setup) for setup in setups]
    rng = np.random.default_rng(3)
    for i in range(n):
        which = i % len(setups)
        noise = rng.integers(-20, 21, pictures[which].shape, dtype=np.int16)
        data = np.clip(pictures[which].astype(np.int32) + noise, 0, 65535).astype(np.uint16)
        write(folder / f"light_{i:05d}.fit", data, base_cards(setups[which], i % 200))


def settled_bytes() -> int:
    """Memory that is this process's own and in use: what was freed is given back to the system first."""
    gc.collect()
    give_memory_back()
    return private_bytes()


def run_and_note_memory(answers: Any, raw: Path, out: Path) -> None:
    """Run in this process alone and answer with the memory at fixed points: after each frame and each phase.

    The peak between them depends on when it is sampled and on what else the machine does; these points do not.
    """
    noted: dict[str, int] = {}

    def note(event: Event) -> None:
        # Stacking and assembling tell of their progress while other threads are at work.
        between_frames = isinstance(event, PhaseProgress) and event.phase == "phase1_prepare"
        if between_frames or isinstance(event, PhaseFinished):
            noted[event.phase] = max(noted.get(event.phase, 0), settled_bytes())

    config = {
        "gpu_mode": "off",
        "num_processing_workers": 1,
        "exclude_flagged_frames": False,
        "cluster_panel_threshold": 0.06,
        # Left to itself the stack takes more rows at once where more memory is free.
        "stack_ram_budget_gb": 0.15,
    }
    result = run_hierarchical_mosaic(raw, out, config=config, reporter=note)
    answers.put((noted, result.report))


def memory_of_run(raw: Path, out: Path) -> tuple[dict[str, int], dict[str, Any]]:
    """Run in a process of its own, as the applications do; a test process has a past in its memory."""
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    process = spawn.Process(target=run_and_note_memory, args=(answers, raw, out))
    process.start()
    while True:
        try:
            answer = answers.get(timeout=1)
            break
        except Empty:
            assert process.is_alive() or process.exitcode == 0, process.exitcode
    process.join()
    return answer


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_of_a_long_night(tmp_path, monkeypatch):
    few, many = 40, 160
    # glibc raises this threshold as large arrays come and go and then keeps them in heaps whose holes it cannot give
    # back: several MB more or less from run to run, which here would count as memory of frames.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "262144")
    noted, reports = {}, {}
    for n in (few, many):
        write_long_night(tmp_path / f"raw{n}", n)
        noted[n], reports[n] = memory_of_run(tmp_path / f"raw{n}", tmp_path / f"out{n}")
        assert reports[n]["frames_used"] == n
        # Sampling can miss a peak, never invent one.
        assert reports[n]["peak_bytes"] <= 1.2 * reports[n]["planned_peak_bytes"]
    assert reports[many]["planned_peak_bytes"] <= 1.2 * reports[few]["planned_peak_bytes"]
    assert set(noted[few]) == set(noted[many]) == set(PHASES)
    for phase in PHASES:
        grown = (noted[many][phase] - noted[few][phase]) / (many - few)
        # A decoded frame of this size has 1.4 MB; what stays of one is its place in the sky and its measures.
        assert grown < BYTES_PER_FRAME, (phase, noted)


def write_survey(folder: Path, n: int) -> None:
    """Header-sized files of many nights and pointings."""
    folder.mkdir()
    pixels = np.zeros((30, 40), np.uint16)
    setup = pointings(n=1)[0]
    for k in range(200):
        header = fits.Header()
        for key, value in base_cards(setup, 0, with_wcs=False).items():
            header[key] = value
        header["RA"], header["DEC"] = 20.0 + 0.9 * (k % 20), 10.0 + 1.1 * (k // 20)
        header["DATE-OBS"] = f"2025-{1 + k // 28:02d}-{1 + k % 28:02d}T22:00:00"
        path = folder / f"pointing_{k}.fit"
        fits.PrimaryHDU(pixels, header).writeto(path)
        content = path.read_bytes()
        for i in range(1, n // 200):
            (folder / f"pointing_{k}_{i:03d}.fit").write_bytes(content)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_plan_of_ten_thousand_files(tmp_path, monkeypatch):
    write_survey(tmp_path / "raw", 10_000)
    read = []

    def counted(path):
        read.append(path)
        return read_frame_info(path)

    monkeypatch.setattr(header_batches, "read_frame_info", counted)
    plan = make_plan(tmp_path / "raw", tmp_path / "out", Settings())
    assert len(read) == len(set(read)) == 10_000
    assert plan.n_frames == 10_000
    assert plan.run.peak_bytes > 0
    assert not (tmp_path / "out").exists()
