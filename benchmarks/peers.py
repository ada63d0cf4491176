"""The same raw frames through ZeMosaic and through other programs, alternately: CPU seconds, seconds, ratios.

Run with ``python -m benchmarks.peers [--frames 120] [--rounds 3] [--peers siril swarp reproject] [--output FOLDER]``.

What each does with the frames of four panels, which know their place:

* ZeMosaic: everything, from the raw frames to the mosaic in three colours with its weights, pictures and report.
* Siril: debayers, registers and stacks each panel with Winsorized rejection; no mosaic, no sky.
* SWarp: the median of all frames on one grid, sky by its meshes; green alone, of frames debayered beforehand.
* reproject: the mean of all frames on one grid, sky matched; green alone, of frames debayered beforehand.

CPU seconds are those of the program and its children: what else the machine does changes them little. A table, a plot
and a JSON file with machine and date are written.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits

from benchmarks.quality_peers import bilinear_planes
from zemosaic_io.demo_session import write_demo_night

PANELS = (2, 2)
# Some releases of Siril die now and then while they convert frames.
TRIES = 4
SIRIL_SCRIPT = """requires 1.0.0
setcpu 2
cd {folder}
convert light -debayer -out=process
cd process
register light
stack r_light rej 3 3 -norm=addscale -out=panel
"""
SWARP_OPTIONS = (
    "-COMBINE_TYPE", "MEDIAN", "-WEIGHT_TYPE", "NONE", "-SUBTRACT_BACK", "Y", "-BACK_SIZE", "256",
    "-RESAMPLING_TYPE", "LANCZOS3", "-NTHREADS", "2", "-VERBOSE_TYPE", "QUIET", "-WRITE_XML", "N",
)  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """What one run of a program took."""

    cpu_s: float
    seconds: float
    tries: int = 1


@dataclass(frozen=True)
class Night:
    """Raw frames, sorted into panels, and their green light debayered for programs that know no raw frames."""

    raw: Path
    panels: tuple[Path, ...]
    green: tuple[Path, ...]


class PeerFailed(RuntimeError):
    """A program ended with an error; the text holds the end of what it said."""


def make_night(folder: Path, n_frames: int, *, with_green: bool) -> Night:
    """Write a made-up night of four panels, and what the other programs want of it."""
    made = write_demo_night(
        folder / "raw", panels=PANELS, frames_per_panel=n_frames // 4, with_wcs=True, bad_frames=False
    )
    panels: dict[int, Path] = {}
    green = []
    for frame in made.frames:
        panel = panels.setdefault(frame.panel, folder / f"panel_{frame.panel}")
        panel.mkdir(exist_ok=True)
        os.link(made.folder / frame.name, panel / frame.name)
        if with_green:
            green.append(_write_green(made.folder / frame.name, folder / "green"))
    return Night(made.folder, tuple(panels.values()), tuple(green))


def _write_green(path: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    with fits.open(path) as hdus:
        header = hdus[0].header.copy()
        image = bilinear_planes(hdus[0].data.astype(np.float32))[1]
    for card in ("BZERO", "BSCALE", "BAYERPAT"):
        header.remove(card, ignore_missing=True)
    target = folder / path.name
    fits.writeto(target, image, header, overwrite=True)
    return target


def run_words(words: list[str], folder: Path, log: Path) -> Cost:
    """Run a program to its end, as a user has it: Python may keep what it made of the source.

    Raises
    ------
    PeerFailed
        It ended with an error.
    """
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    before, start = os.times(), time.perf_counter()
    with log.open("w", encoding="utf-8") as stream:
        code = subprocess.run(
            words,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    after = os.times()
    if code != 0:
        raise PeerFailed(f"{words[0]} ended with code {code}: {log.read_text(encoding='utf-8')[-800:]}")
    spent = (after.children_user - before.children_user) + (after.children_system - before.children_system)
    return Cost(spent, time.perf_counter() - start)


def run_zemosaic(night: Night, output: Path) -> Cost:
    """Run everything, raw frames to finished mosaic, without a card and without what was stored."""
    root = Path(__file__).resolve().parent.parent
    words = [
        sys.executable,
        str(root / "run_zemosaic.py"),
        "run",
        str(night.raw),
        str(output),
        "--gpu",
        "off",
    ]
    return run_words([*words, "--quiet"], root, output.with_suffix(".log"))


def run_siril(night: Night, output: Path) -> Cost:
    """Stack each panel; what a try costs that dies is not counted."""
    output.mkdir()
    cpu_s, seconds, tries = 0.0, 0.0, 0
    for panel in night.panels:
        script = output / f"{panel.name}.ssf"
        script.write_text(SIRIL_SCRIPT.format(folder=panel), encoding="utf-8")
        for left in reversed(range(TRIES)):
            shutil.rmtree(panel / "process", ignore_errors=True)
            tries += 1
            try:
                words = ["siril-cli", "-d", str(panel), "-s", str(script)]
                cost = run_words(words, panel, output / f"{panel.name}.log")
            except PeerFailed:
                if left == 0:
                    raise
                continue
            if not (panel / "process" / "panel.fit").is_file():
                raise PeerFailed(f"siril-cli wrote no stack of {panel}")
            cpu_s, seconds = cpu_s + cost.cpu_s, seconds + cost.seconds
            break
        shutil.rmtree(panel / "process", ignore_errors=True)
    return Cost(cpu_s, seconds, tries)


def run_swarp(night: Night, output: Path) -> Cost:
    """Co-add the green light of all frames with SWarp."""
    output.mkdir()
    names = output / "frames.txt"
    names.write_text("\n".join(str(path) for path in night.green), encoding="utf-8")
    return run_words(["SWarp", f"@{names}", *SWARP_OPTIONS], output, output / "swarp.log")


def run_reproject(night: Night, output: Path) -> Cost:
    """Co-add the green light of all frames with reproject."""
    output.mkdir()
    names = output / "frames.json"
    names.write_text(json.dumps([str(path) for path in night.green]), encoding="utf-8")
    return run_words(
        [sys.executable, "-c", REPROJECT, str(names), "mosaic.fits"], output, output / "reproject.log"
    )


REPROJECT = """
import json, sys
from astropy.io import fits
from reproject import reproject_interp
from reproject.mosaicking import find_optimal_celestial_wcs, reproject_and_coadd
frames = json.load(open(sys.argv[1]))
wcs, shape = find_optimal_celestial_wcs(frames)
image, _ = reproject_and_coadd(frames, wcs, shape_out=shape, reproject_function=reproject_interp, match_background=True)
fits.writeto(sys.argv[2], image, wcs.to_header(), overwrite=True)
"""

PEERS: dict[str, tuple[str, Callable[[Night, Path], Cost]]] = {
    "siril": ("siril-cli", run_siril),
    "swarp": ("SWarp", run_swarp),
    "reproject": (sys.executable, run_reproject),
}


def compare(night: Night, peers: list[str], rounds: int, work: Path) -> dict[str, list[Cost]]:
    """Run ZeMosaic and each peer in turn, round by round, so that a change of the machine meets all of them."""
    runs = {"zemosaic": run_zemosaic} | {name: PEERS[name][1] for name in peers}
    costs: dict[str, list[Cost]] = {name: [] for name in runs}
    for number in range(rounds):
        for name, run in runs.items():
            output = work / f"{name}_{number}"
            costs[name].append(run(night, output))
            print(f"round {number + 1}: {name:10s} {costs[name][-1].cpu_s:7.1f} CPU s", flush=True)
            shutil.rmtree(output, ignore_errors=True)
    return costs


def bars(medians: dict[str, float]) -> str:
    """Return the medians as a drawing of bars, SVG."""
    left, row, width, most = 110, 34, 560, max(medians.values())
    parts = []
    for i, (name, median) in enumerate(medians.items()):
        y, length = 14 + i * row, (width - left - 90) * median / most
        colour = "#4c72b0" if i else "#dd8452"
        parts += [
            f'<text x="{left - 8}" y="{y + 16}" text-anchor="end">{name}</text>',
            f'<rect x="{left}" y="{y}" width="{length:.1f}" height="22" fill="{colour}"/>',
            f'<text x="{left + length + 6:.1f}" y="{y + 16}">{median:.1f} CPU s</text>',
        ]
    size = f'width="{width}" height="{20 + row * len(medians)}"'
    style = 'font-family="sans-serif" font-size="14"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{"".join(parts)}</svg>\n'


def main() -> None:
    """Compare, print and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", nargs="*", choices=sorted(PEERS), default=list(PEERS))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    peers = [name for name in options.peers if shutil.which(PEERS[name][0])]
    if missing := sorted(set(options.peers) - set(peers)):
        print(f"not installed: {', '.join(missing)}")
    with tempfile.TemporaryDirectory() as folder:
        night = make_night(Path(folder), options.frames, with_green=bool({"swarp", "reproject"} & set(peers)))
        costs = compare(night, peers, options.rounds, Path(folder))
    medians = {name: statistics.median(cost.cpu_s for cost in made) for name, made in costs.items()}
    ratios = {name: medians["zemosaic"] / medians[name] for name in peers}
    print(f"zemosaic   {medians['zemosaic']:7.1f} CPU s")
    for name, ratio in ratios.items():
        print(f"{name:10s} {medians[name]:7.1f} CPU s   ZeMosaic / {name}: {ratio:.2f}")
    options.output.mkdir(parents=True, exist_ok=True)
    facts = {
        "date": datetime.date.today().isoformat(),
        "machine": {"system": platform.platform(), "processors": os.cpu_count()},
        "frames": options.frames,
        "runs": {name: [asdict(cost) for cost in made] for name, made in costs.items()},
        "median_cpu_s": medians,
        "zemosaic_over_peer": ratios,
    }
    (options.output / "peers.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    (options.output / "peers.svg").write_text(bars(medians), encoding="utf-8")


if __name__ == "__main__":
    main()
