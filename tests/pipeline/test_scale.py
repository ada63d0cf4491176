"""Memory does not grow with the number of frames, and ten thousand headers are a matter of seconds."""

from __future__ import annotations

import json
import multiprocessing
import time
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from made_frames import base_cards, expose, field_sky, pointings, write

from zemosaic_pipeline.plan import make_plan
from zemosaic_settings import Settings
from zemosaic_worker import run_hierarchical_mosaic_process


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


def report_of_run(raw: Path, out: Path) -> dict:
    """Run in a process of its own, as the applications do; a test process has a past in its memory."""
    spawn = multiprocessing.get_context("spawn")
    queue = spawn.Queue()
    config = {
        "gpu_mode": "off",
        "exclude_flagged_frames": False,
        "cluster_panel_threshold": 0.06,
        # Left to itself the stack takes more rows at once where more memory is free.
        "stack_ram_budget_gb": 0.15,
    }
    process = spawn.Process(
        target=run_hierarchical_mosaic_process, args=(queue, raw, out), kwargs={"config": config}
    )
    process.start()
    while not queue.get(timeout=120)[0].startswith("PROCESS_"):
        pass
    process.join()
    assert process.exitcode == 0
    return json.loads((out / "run_report.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_memory_of_a_long_night(tmp_path):
    reports = {}
    for n in (100, 500):
        write_long_night(tmp_path / f"raw{n}", n)
        reports[n] = report_of_run(tmp_path / f"raw{n}", tmp_path / f"out{n}")
        assert reports[n]["frames_used"] == n
        assert reports[n]["peak_bytes"] <= 1.2 * reports[n]["planned_peak_bytes"]
    assert reports[500]["peak_bytes"] < 1.2 * reports[100]["peak_bytes"]


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
def test_plan_of_ten_thousand_files(tmp_path):
    write_survey(tmp_path / "raw", 10_000)
    start = time.monotonic()
    plan = make_plan(tmp_path / "raw", tmp_path / "out", Settings())
    assert time.monotonic() - start < 60
    assert plan.n_frames == 10_000
    assert plan.run.peak_bytes > 0
    assert not (tmp_path / "out").exists()
