"""One night through every route: what mosaics are like and cost, resuming, the card; beside the route direct.

python -m benchmarks.route_table NIGHT OUTPUT --batch 4    # a folder of frames, never changed; where mosaics go
python -m benchmarks.route_table --demo OUTPUT             # the night of `zemosaic demo`, beside its truth too
python -m benchmarks.route_table --demo OUTPUT --card      # each route on the simulated card, too

Every run is a process of its own. Mosaics that are there already are used again; a table in Markdown goes to standard
output and the numbers to OUTPUT/routes.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.demo_truth import truth_of_demo
from benchmarks.route_figures import Mosaic, against_truth, compared, difference_of_bodies
from zemosaic_io.glow_session import GlowNight
from zemosaic_ui.demo import prepare_demo
from zemosaic_worker import run_hierarchical_mosaic_process

DEMO_FRAMES_PER_PANEL = 12
CARD_BYTES = 8 << 30
SIMULATED_CARD = Path(__file__).resolve().parent.parent / "tests" / "gpu"
# Heading, and the value of a row; columns that no row has are left out.
COLUMNS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("route", lambda r: r["route"]),
    ("tiles", lambda r: str(r["tiles"])),
    ("registration (px)", lambda r: _number(r["registration_px"])),
    ("overlaps (ADU)", lambda r: _number(r["overlap_adu"])),
    ("noise (ADU)", lambda r: _number(r["noise_adu"])),
    ("levels (ADU)", lambda r: _number(r["levels_adu"])),
    ("star fluxes (%)", lambda r: _pair(r, "flux_percent", "flux_scatter_percent")),
    ("differ (ppm)", lambda r: _number(r["differing_ppm"])),
    ("sky (ADU)", lambda r: _number(r.get("sky_truth_adu"))),
    ("worst seam (ADU)", lambda r: _number(r.get("seam_worst_adu"))),
    ("fluxes (of noise)", lambda r: _number(r.get("flux_noise"))),
    ("noise (of best)", lambda r: _number(r.get("noise_of_best"))),
    ("outliers (ppm)", lambda r: _number(r.get("outliers_ppm"))),
    ("trails left", lambda r: r.get("trails", "-")),
    ("peak / planned (MB)", lambda r: f"{r['peak_mb']:.0f} / {r['planned_mb']:.0f}"),
    ("CPU, again (s)", lambda r: _whole(r["cpu_s"]) + ", " + _whole(r["again_cpu_s"])),
    ("same bits again", lambda r: _yes(r["same_again"])),
    ("on the card", lambda r: _card(r)),
)  # fmt: skip


def _number(value: float | None) -> str:
    if value is None or not np.isfinite(value):
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2f}"


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _yes(value: bool | None) -> str:
    return "-" if value is None else "yes" if value else "no"


def _pair(row: dict[str, Any], value: str, spread: str) -> str:
    return f"{row[value]:+.2f} ± {row[spread]:.2f}"


def _card(row: dict[str, Any]) -> str:
    if row.get("card_share") is None:
        return "-"
    same = "" if row["card_same_missing"] else ", other pixels missing"
    return f"{100 * row['card_share']:.0f} %, {row['card_difference']:.0e} of the noise{same}"


def routes(night: Path, output: Path, batch: int, coverage: float) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Return what each route reads and asks for, in the order in which they run."""
    batches = {
        "sds_target_batch_size": batch,
        "sds_min_batch_size": max(1, batch - 1),
        "sds_coverage_threshold": coverage,
    }
    return {
        "direct": (night, {"route": "direct"}),
        "mosaic-first": (night, {"route": "mosaic_first"}),
        "panels": (night, {"route": "panels"}),
        "sds": (night, {"route": "sds", **batches}),
        "sds, merged": (night, {"route": "sds", **batches, "inter_master_merge_enable": True}),
        "grid": (_listed(night, output / "list"), {}),
        "tiles": (output / "panels", {"use_existing_master_tiles": True}),
        "tiles of the list, merged": (
            output / "grid",
            {"use_existing_master_tiles": True, "inter_master_merge_enable": True},
        ),
    }


def _listed(night: Path, folder: Path) -> Path:
    """Write a list of the frames of a night, every second one in the other batch."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["order,batch_id,file_path"]
    frames = sorted(path for path in night.iterdir() if path.suffix.lower() in (".fit", ".fits"))
    lines += [f"{i},{i % 2 + 1},{path.resolve()}" for i, path in enumerate(frames)]
    (folder / "stack_plan.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def on_simulated_card(queue: Any, source: str, target: str, config: dict[str, Any]) -> None:
    """Run with the card of the tests, in this process."""
    sys.path.insert(0, str(SIMULATED_CARD))
    from simulated_device import SimulatedDevice

    from zemosaic_core.gpu import device

    with device.install(SimulatedDevice(CARD_BYTES)):
        run_hierarchical_mosaic_process(queue, source, target, config=config)


def run(source: Path, target: Path, settings: dict[str, Any], *, card: bool = False) -> float:
    """Run in a process of its own; return the CPU seconds it and its processes took.

    Raises
    ------
    RuntimeError
        There is no mosaic, and why.
    """
    spawn = multiprocessing.get_context("spawn")
    queue = spawn.Queue()
    config = {"gpu_mode": "require" if card else "off", "save_variance": True, **settings}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    arguments = (queue, str(source), str(target))
    worker = (
        spawn.Process(target=on_simulated_card, args=(*arguments, config))
        if card
        else spawn.Process(target=run_hierarchical_mosaic_process, args=arguments, kwargs={"config": config})
    )
    worker.start()
    last: tuple[Any, ...] = ("",)
    while last[0] not in ("PROCESS_DONE", "PROCESS_ERROR"):
        last = queue.get(timeout=3600)
    worker.join()
    if worker.exitcode != 0:
        raise RuntimeError(f"{target.name}: {last}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def made(source: Path, target: Path, settings: dict[str, Any], once: bool) -> tuple[Mosaic, dict[str, Any]]:
    """Return the mosaic of a route and what it cost; made, and unless ``once`` made again, where it is not yet."""
    note = target / "cost.json"
    if note.is_file():
        cost: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
    else:
        cpu_s = run(source, target, settings)
        report = Mosaic(target).report
        cost = {
            "cpu_s": cpu_s,
            "again_cpu_s": None,
            "same_again": None,
            "peak_mb": report["peak_bytes"] / 1e6,
            "planned_mb": report["planned_peak_bytes"] / 1e6,
        }
        note.write_text(json.dumps(cost), encoding="utf-8")
    mosaic = Mosaic(target)
    if not once and cost["again_cpu_s"] is None:
        cost["again_cpu_s"] = run(source, target, settings)
        again = Mosaic(target)
        cost["same_again"] = again.bits == mosaic.bits
        cost["peak_mb"] = max(cost["peak_mb"], again.report["peak_bytes"] / 1e6)
        note.write_text(json.dumps(cost), encoding="utf-8")
        mosaic = again
    return mosaic, cost


def on_card(source: Path, target: Path, settings: dict[str, Any]) -> Mosaic:
    """Return the mosaic of a route by the simulated card, made unless it is there already."""
    if not (target / "cost.json").is_file():
        cpu_s = run(source, target, settings, card=True)
        (target / "cost.json").write_text(json.dumps({"cpu_s": cpu_s}), encoding="utf-8")
    return Mosaic(target)


def facts(name: str, mosaic: Mosaic, direct: Mosaic, truth: GlowNight | None) -> dict[str, Any]:
    """Return what a row of the table says of a mosaic."""
    report = mosaic.report
    residuals = [frame["registration"]["rms_px"] for frame in report["frames"]]
    known = [r for r in residuals if r is not None]
    overlaps = [pair["rms_after_adu"] for pair in report["photometry"]["overlaps"]]
    return {
        "route": name,
        "tiles": len(report["tiles"]),
        "frames": report["frames_used"],
        "registration_px": float(np.median(known)) if known else None,
        "overlap_adu": float(np.median(overlaps)) if overlaps else None,
        "noise_adu": mosaic.noise,
        **compared(mosaic, direct),
        **({} if truth is None else against_truth(mosaic, truth)),
    }


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    cells = [[text(row) for _, text in COLUMNS] for row in rows]
    shown = [i for i in range(len(COLUMNS)) if any(line[i] != "-" for line in cells)]
    lines = ["| " + " | ".join(COLUMNS[i][0] for i in shown) + " |", "|" + "---|" * len(shown)]
    return lines + ["| " + " | ".join(line[i] for i in shown) + " |" for line in cells]


def main() -> None:
    """Run what is missing, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="[NIGHT] OUTPUT")
    parser.add_argument("--demo", action="store_true", help="the night of the demo, written into OUTPUT/demo")
    parser.add_argument("--batch", type=int, default=4, help="frames aimed at in a batch of SDS")
    parser.add_argument("--coverage", type=float, default=0.92, help="share of the field that a batch covers")
    parser.add_argument("--once", action="store_true", help="no second run into the same folder")
    parser.add_argument("--card", action="store_true", help="each route on the simulated card, too")
    parser.add_argument("--routes", nargs="+", help="these of the table alone, beside direct")
    options = parser.parse_args()
    if len(options.folders) != (1 if options.demo else 2):
        parser.error("OUTPUT with --demo, else NIGHT and OUTPUT")
    output, truth = options.folders[-1], None
    if options.demo:
        night = prepare_demo(output / "demo", DEMO_FRAMES_PER_PANEL, lambda *_, **__: None)
        truth = truth_of_demo(night, DEMO_FRAMES_PER_PANEL)
    else:
        night = options.folders[0]
    rows: list[dict[str, Any]] = []
    direct: Mosaic | None = None
    for name, (source, settings) in routes(night, output, options.batch, options.coverage).items():
        if options.routes and name not in ("direct", *options.routes):
            continue
        folder = name.replace(",", "").replace(" ", "_")
        mosaic, cost = made(source, output / folder, settings, options.once)
        direct = direct or mosaic
        row = {**facts(name, mosaic, direct, truth), **cost}
        if options.card:
            row |= difference_of_bodies(on_card(source, output / f"{folder}_card", settings), mosaic)
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    (output / "routes.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
