"""How good the mosaics of made-up nights are: each route of ZeMosaic, and other programs that are installed.

python -m benchmarks.quality                              # the quick nights, every route
python -m benchmarks.quality --nights all --routes panels direct
python -m benchmarks.quality --nights dome random-17 --keep FOLDER --set stack_reject_algo=kappa_sigma
python -m benchmarks.quality --join a.json b.json --results benchmarks/results
python -m benchmarks.quality --judge MOSAIC.fits --nights dome

Nights and finished mosaics in FOLDER are used again (delete a mosaic's folder, or give --again, to make it anew). For
each night a table line per route, ``quality.json`` with every number, and a picture of before, after and truth.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.quality_judge import judge_scene
from benchmarks.quality_nights import NIGHTS, QUICK, night_spec
from benchmarks.quality_peers import PEERS, not_installed, run_peer
from benchmarks.quality_picture import side_by_side
from benchmarks.quality_report import claims_of_report, large_scale_deviations
from benchmarks.quality_scene import load_scene
from benchmarks.quality_table import print_table, write_results
from zemosaic_io.glow_session import GlowNight, plan_glow_night, write_glow_night
from zemosaic_settings.catalogue import ALIASES, OPTIONS_BY_KEY
from zemosaic_worker import run_hierarchical_mosaic_process

# What each route asks for; a route whose options this program does not know is left out.
ROUTES: dict[str, dict[str, str]] = {
    "panels": {},
    "panels+sky": {"route": "panels", "sky_model": "full"},
    "direct-sky": {"route": "direct", "sky_model": "none"},
    "direct": {"route": "direct", "sky_model": "full"},
}
PLAIN = {"panels": {"route": "panels", "sky_model": "none"}}


def route_settings(route: str) -> dict[str, str] | None:
    """Return the options of a route, or None when the program has no such options."""

    def known(key: str) -> bool:
        return key in OPTIONS_BY_KEY or key in ALIASES

    wanted = ROUTES[route]
    if not all(known(key) for key in wanted):
        return None
    return {**wanted, **{k: v for k, v in PLAIN.get(route, {}).items() if known(k)}}


def run_zemosaic(night: GlowNight, output: Path, settings: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Run in a process of its own; return the mosaic, and seconds, CPU seconds, peak bytes and the run's claims.

    Raises
    ------
    RuntimeError
        When the run fails.
    """
    spawn = multiprocessing.get_context("spawn")
    queue = spawn.Queue()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    config = {"gpu_mode": "off", "resume": "off", **settings}
    worker = spawn.Process(
        target=run_hierarchical_mosaic_process,
        args=(queue, str(night.folder), str(output)),
        kwargs={"config": config},
    )
    worker.start()
    last: tuple[Any, ...] = ("",)
    while last[0] not in ("PROCESS_DONE", "PROCESS_ERROR"):
        last = queue.get(timeout=3600)
    worker.join()
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if worker.exitcode != 0:
        raise RuntimeError(f"the run on {night.folder} failed: {last}")
    report = json.loads((output / "run_report.json").read_text(encoding="utf-8"))
    cost = {
        "seconds": seconds,
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_bytes": report["peak_bytes"],
        "frames_used": report["frames_used"],
        "tiles": len(report["tiles"]),
        "claims": claims_of_report(report, night),
    }
    return Path(report["outputs"]["science"]), cost


def night_of(name: str, folder: Path) -> GlowNight:
    """Return a night; it is rendered when its folder is not there yet, or holds an older night of that name.

    Raises
    ------
    FileExistsError
        When a folder of that name was not made by this benchmark.
    """
    raw, note = folder / name / "raw", folder / name / "raw.fingerprint"
    night = plan_glow_night(raw, night_spec(name))
    if note.is_file():
        if note.read_text(encoding="utf-8") == night.fingerprint():
            return night
        shutil.rmtree(folder / name)
    elif raw.exists():
        raise FileExistsError(
            f"{raw} is not of this benchmark: no {note.name} beside it; choose another folder"
        )
    part = raw.with_name("raw.part")
    shutil.rmtree(part, ignore_errors=True)
    write_glow_night(part, night.spec)
    part.rename(raw)
    note.write_text(night.fingerprint(), encoding="utf-8")
    return night


def judge_night(name: str, options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Make and judge every mosaic of a night; return a row for each."""
    night = night_of(name, folder)
    rows, scenes = [], {}
    extra = dict(item.split("=", 1) for item in options.set)
    for route in options.routes:
        if route in PEERS:
            made = run_peer(route, night, folder / name / route)
        else:
            settings = route_settings(route)
            made = None
            if settings is not None:
                made = _made_or_known(night, folder / name / route, {**settings, **extra}, options.again)
        if made is None:
            print(f"{name}: no {route} here", file=sys.stderr)
            continue
        mosaic, cost = made
        scene = load_scene(mosaic, night)
        verdict = judge_scene(scene, night).as_dict()
        # Other programs claim nothing.
        claims = cost.get("claims") or {"sigmas_adu": []}
        deviations = large_scale_deviations(claims, verdict["large_scales_adu"])
        rows.append({"night": name, "route": route, **cost, **verdict, "large_scale_deviations": deviations})
        scenes[route] = scene
    if scenes:
        picture = side_by_side(scenes, options.pictures / f"{name}.png")
        print(f"{name}: {picture}", file=sys.stderr)
    return rows


def _made_or_known(
    night: GlowNight, output: Path, settings: dict[str, Any], again: bool
) -> tuple[Path, dict[str, Any]]:
    note = output / "quality_run.json"
    if note.is_file() and not again:
        known = json.loads(note.read_text(encoding="utf-8"))
        if known["settings"] == settings:
            return Path(known["mosaic"]), known["cost"]
    shutil.rmtree(output, ignore_errors=True)
    mosaic, cost = run_zemosaic(night, output, settings)
    note.write_text(json.dumps({"settings": settings, "mosaic": str(mosaic), "cost": cost}), encoding="utf-8")
    return mosaic, cost


def main() -> None:
    """Make, judge, print, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nights", nargs="+", default=list(QUICK), help="names, random-SEED, or all")
    parser.add_argument("--routes", nargs="+", default=[*ROUTES, *PEERS], choices=[*ROUTES, *PEERS])
    parser.add_argument("--keep", type=Path, help="folder to work in; what is there already is used again")
    parser.add_argument("--again", action="store_true", help="make mosaics anew")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="options of every run")
    parser.add_argument("--pictures", type=Path, default=Path("quality_pictures"))
    parser.add_argument("--json", type=Path, default=Path("quality.json"))
    parser.add_argument("--judge", type=Path, help="judge this mosaic of the one night instead of making any")
    parser.add_argument("--join", nargs="+", type=Path, help="rows of earlier runs instead of making any")
    parser.add_argument("--results", type=Path, help="folder for the table as a file")
    options = parser.parse_args()
    names = list(NIGHTS) if options.nights == ["all"] else options.nights
    if options.join:
        rows = [row for path in options.join for row in json.loads(path.read_text(encoding="utf-8"))]
    elif options.judge is not None:
        night = plan_glow_night("", night_spec(names[0]))
        scene = load_scene(options.judge, night)
        rows = [{"night": names[0], "route": options.judge.stem, **judge_scene(scene, night).as_dict()}]
        side_by_side({options.judge.stem: scene}, options.pictures / f"{names[0]}_judged.png")
    else:
        with tempfile.TemporaryDirectory(prefix="zemosaic_quality_") as scratch:
            rows = []
            for name in names:
                rows += judge_night(name, options, options.keep or Path(scratch))
                options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    print_table(rows)
    if options.results is not None:
        write_results(rows, options.results, not_installed())


if __name__ == "__main__":
    main()
