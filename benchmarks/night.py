"""A whole run on a made-up night: seconds and peak memory per phase, frames left out, growth with frames.

python -m benchmarks.night                      # 120 raw 1080x1920 frames with WCS in 2x2 panels
python -m benchmarks.night --frames 40 80 120   # growth
python -m benchmarks.night --frames 500 --keep FOLDER
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import psutil


def run_once(folder: Path, n_frames: int, with_wcs: bool, settings: dict[str, str]) -> dict:
    # Not at the top: processes that measure read this file again, and those of the program import less there.
    from zemosaic_io.demo_session import write_demo_night
    from zemosaic_pipeline.events import PhaseFinished
    from zemosaic_worker import run_hierarchical_mosaic

    night = folder / f"night_{n_frames}{'_wcs' if with_wcs else ''}"
    if not night.is_dir():
        write_demo_night(night, frames_per_panel=n_frames // 4, with_wcs=with_wcs)
    start = time.perf_counter()
    cpu: dict[str, float] = {}
    watched = psutil.Process()

    def report_event(event: object) -> None:
        # A busy machine stretches the clock; the CPU seconds of this process and its children stay what they are.
        if isinstance(event, PhaseFinished):
            times = watched.cpu_times()
            cpu[event.phase] = sum(times[:4]) if hasattr(times, "children_user") else sum(times[:2])

    result = run_hierarchical_mosaic(
        night, folder / f"out_{n_frames}", resume="off", reporter=report_event, **settings
    )
    seconds = time.perf_counter() - start
    report = result.report
    print(f"\n{n_frames} frames, {seconds:.1f} s in all, {report['frames_used']} used, {len(report['tiles'])} tiles, "
          f"{report['mosaic']['width']}x{report['mosaic']['height']} px")  # fmt: skip
    planned = {row["phase"]: row for row in report["plan"]}
    before = 0.0
    for phase in report["phases"]:
        row = planned[phase["phase"]]
        spent, before = cpu[phase["phase"]] - before, cpu[phase["phase"]]
        print(f"  {phase['phase']:22s} {phase['seconds']:7.2f} s (plan {row['seconds']:6.1f})  {spent:7.2f} CPU s   "
              f"{phase['peak_bytes'] / 1e6:7.0f} MB (plan {row['ram_bytes'] / 1e6:6.0f})")  # fmt: skip
    print(f"  peak {report['peak_bytes'] / 1e6:.0f} MB of planned {report['planned_peak_bytes'] / 1e6:.0f} MB = "
          f"{report['peak_bytes'] / report['planned_peak_bytes']:.2f}")  # fmt: skip
    return {"frames": n_frames, "seconds": seconds, "peak_bytes": report["peak_bytes"]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, nargs="+", default=[120])
    parser.add_argument(
        "--no-wcs", action="store_true", help="headers without WCS: solving is part of the run"
    )
    parser.add_argument("--keep", type=Path, help="folder to work in; frames already there are used again")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    settings = dict(item.split("=", 1) for item in arguments.set)
    print(f"{psutil.cpu_count()} cores, {psutil.virtual_memory().total / 1e9:.0f} GB")
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch)
        runs = [run_once(folder, n, not arguments.no_wcs, settings) for n in arguments.frames]
    for previous, current in itertools.pairwise(runs):
        extra = current["frames"] - previous["frames"]
        print(f"{previous['frames']} -> {current['frames']} frames: "
              f"{(current['seconds'] - previous['seconds']) / extra:.3f} s per added frame")  # fmt: skip


if __name__ == "__main__":
    main()
