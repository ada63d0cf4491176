"""Memory of all processes of a run, measured from outside, under `memory_limit_mb` and for growing nights.

python -m benchmarks.memory_ceiling --frames 40 400 3000 --limit-mb 900

For each phase the peak that the run itself counted is told as well.

The frames are small and a few are shown again and again with fresh noise, so that what grows is what a run keeps of
each frame. Counted is what belongs to the command, its worker and the processes that measure alone, without pages
of files (as in the plan), ten times a second.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from astropy.io import fits

from zemosaic_io.demo_session import write_demo_night
from zemosaic_pipeline.resource_watch import private_bytes

ROOT = Path(__file__).parent.parent
SHAPE_HW = (300, 400)


def write_night(folder: Path, n: int, shape_hw: tuple[int, int]) -> None:
    """Write ``n`` frames of two panels, made of ten exposures and noise of their own."""
    night = write_demo_night(
        folder / "of",
        panels=(1, 2),
        frames_per_panel=5,
        shape_hw=shape_hw,
        with_wcs=True,
        bad_frames=False,
        n_satellites=0,
    )
    rng = np.random.default_rng(3)
    exposures = [fits.getdata(path, header=True) for path in night.paths]
    (folder / "raw").mkdir()
    for number in range(n):
        data, header = exposures[number % len(exposures)]
        noise = rng.integers(-20, 21, data.shape, dtype=np.int16)
        noisy = np.clip(data.astype(np.int32) + noise, 0, 65535).astype(np.uint16)
        fits.PrimaryHDU(noisy, header).writeto(folder / "raw" / f"light_{number:05d}.fit")


def peak_of_run(raw: Path, out: Path, limit_mb: int, processes: int) -> tuple[int, int, float, str]:
    """Return exit code, peak in bytes, seconds and the last words of a run."""
    settings = {
        "memory_limit_mb": limit_mb,
        "num_processing_workers": processes,
        "exclude_flagged_frames": "false",
        "solver_method": "EMBEDDED",
    }
    line = [sys.executable, str(ROOT / "run_zemosaic.py"), "run", str(raw), str(out), "--gpu", "off"]
    line += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    start = time.monotonic()
    peak = 0
    with tempfile.TemporaryFile() as output:
        run = subprocess.Popen(line, stdout=output, stderr=subprocess.STDOUT)
        watched = psutil.Process(run.pid)
        while run.poll() is None:
            peak = max(peak, private_bytes(watched))
            time.sleep(0.1)
        output.seek(0)
        said = output.read().decode("utf-8", "replace")
    return run.returncode, peak, time.monotonic() - start, said


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, nargs="+", default=[40, 400])
    parser.add_argument("--limit-mb", type=int, default=900)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--shape", type=int, nargs=2, default=SHAPE_HW, help="height and width of a frame, px"
    )
    options = parser.parse_args()
    for n in options.frames:
        with tempfile.TemporaryDirectory(prefix="zemosaic_ceiling_") as name:
            folder = Path(name)
            write_night(folder, n, tuple(options.shape))
            code, peak, seconds, said = peak_of_run(
                folder / "raw", folder / "out", options.limit_mb, options.processes
            )
            print(
                f"{n:5} frames: exit code {code}, peak {peak / 1e6:.0f} MB of {options.limit_mb} MB, {seconds:.0f} s",
                flush=True,
            )
            if code:
                print(said[-600:])
                continue
            report = json.loads((folder / "out" / "run_report.json").read_text())
            peaks = {phase["phase"]: round(phase["peak_bytes"] / 1e6) for phase in report["phases"]}
            print(
                f"      planned {report['planned_peak_bytes'] / 1e6:.0f} MB; MB by phase: {peaks}", flush=True
            )


if __name__ == "__main__":
    main()
