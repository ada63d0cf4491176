"""What the routes cost: CPU seconds from the stack to the pictures, all frames at once against panel by panel.

python -m benchmarks.routes                    # a made-up night of four panels, 40 frames
python -m benchmarks.routes --folder FRAMES    # any frames
python -m benchmarks.routes --frames 80 --times 3

Frames are measured and solved once. The routes then take turns, for a busy machine makes every CPU second longer.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import psutil

from zemosaic_io.demo_session import write_demo_night
from zemosaic_pipeline.events import Event, PhaseFinished
from zemosaic_worker import run_hierarchical_mosaic

ROUTES = ("panels", "direct")
COUNTED = ("phase3_master_tiles", "phase5_assemble", "phase6_export")


def stack_cpu_seconds(night: Path, output: Path, route: str) -> float:
    """Make the mosaic from stored measurements, its tiles anew; return CPU seconds of `COUNTED` phases."""
    for tile in (output / ".zemosaic_state" / "tiles").glob("*.fits"):
        tile.unlink()
    process = psutil.Process()
    spent: dict[str, float] = {}
    last = sum(process.cpu_times()[:4])

    def note(event: Event) -> None:
        nonlocal last
        if isinstance(event, PhaseFinished):
            now = sum(process.cpu_times()[:4])
            spent[event.phase], last = now - last, now

    result = run_hierarchical_mosaic(
        night, output, reporter=note, route=route, gpu_mode="off", num_processing_workers=1
    )
    report = result.report
    total = sum(spent[phase] for phase in COUNTED)
    print(
        f"{route:7s} {total:7.2f} CPU s  ("
        + ", ".join(f"{phase.split('_', 1)[1]} {spent[phase]:.2f}" for phase in COUNTED)
        + f")  {len(report['tiles'])} tiles of {report['frames_used']} frames, "
        f"{report['mosaic']['width']}x{report['mosaic']['height']} px",
        flush=True,
    )
    return total


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="frames; default: a made-up night of four panels")
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--times", type=int, default=3, help="runs of each route")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        night, output = arguments.folder, Path(scratch) / "out"
        if night is None:
            night = Path(scratch) / "night"
            write_demo_night(night, frames_per_panel=arguments.frames // 4, with_wcs=True)
        # The first run measures, and loads what is compiled.
        stack_cpu_seconds(night, output, ROUTES[0])
        seconds: dict[str, list[float]] = {route: [] for route in ROUTES}
        for _ in range(arguments.times):
            for route in ROUTES:
                seconds[route].append(stack_cpu_seconds(night, output, route))
    middle = {route: statistics.median(values) for route, values in seconds.items()}
    print(f"direct / panels, medians: {middle['direct'] / middle['panels']:.2f}")


if __name__ == "__main__":
    main()
