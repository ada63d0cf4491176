"""One night through every route: residuals, levels, star fluxes, noise, memory and resuming, beside the route direct.

python -m benchmarks.route_table NIGHT OUTPUT [--batch 4]      # a folder of frames, never changed; where mosaics go

Every run is a process of its own. Mosaics that are there already are used again; a table in Markdown goes to standard
output and the numbers to OUTPUT/routes.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import sep
from astropy.io import fits
from astropy.wcs import WCS

from zemosaic_worker import run_hierarchical_mosaic_process

BLOCK_PX = 64
APERTURE_PX, SKY_PX = 6.0, (9.0, 14.0)
COLUMNS = (
    ("route", "route"), ("tiles", "tiles"), ("frames", "frames"), ("registration_px", "registration (px)"),
    ("overlap_adu", "overlaps (ADU)"), ("noise_adu", "noise (ADU)"), ("levels_adu", "levels against direct (ADU)"),
    ("flux_percent", "star fluxes against direct (%)"), ("flux_scatter_percent", "their scatter (%)"),
    ("peak_mb", "peak (MB)"), ("planned_mb", "planned (MB)"), ("seconds", "time (s)"),
    ("resumed_seconds", "again (s)"), ("same_again", "same bits again"),
)  # fmt: skip


def routes(night: Path, output: Path, batch: int, coverage: float) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Return what each route reads and asks for, in the order in which they run."""
    batches = {
        "sds_target_batch_size": batch,
        "sds_min_batch_size": max(1, batch - 1),
        "sds_coverage_threshold": coverage,
    }
    return {
        "direct": (night, {"route": "direct"}),
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


def run(source: Path, target: Path, settings: dict[str, Any]) -> float:
    """Run in a process of its own; return the seconds it took.

    Raises
    ------
    RuntimeError
        There is no mosaic, and why.
    """
    spawn = multiprocessing.get_context("spawn")
    queue = spawn.Queue()
    config = {"gpu_mode": "off", "save_variance": True, **settings}
    worker = spawn.Process(
        target=run_hierarchical_mosaic_process,
        args=(queue, str(source), str(target)),
        kwargs={"config": config},
    )
    start = time.perf_counter()
    worker.start()
    last: tuple[Any, ...] = ("",)
    while last[0] not in ("PROCESS_DONE", "PROCESS_ERROR"):
        last = queue.get(timeout=3600)
    worker.join()
    if worker.exitcode != 0:
        raise RuntimeError(f"{target.name}: {last}")
    return time.perf_counter() - start


class Mosaic:
    """A finished mosaic: its green or only plane, and what the report says."""

    def __init__(self, folder: Path) -> None:
        self.report = json.loads((folder / "run_report.json").read_text(encoding="utf-8"))
        with fits.open(self.report["outputs"]["science"]) as hdus:
            planes = hdus[0].data.astype(np.float32)
            self.wcs = WCS(hdus[0].header).celestial
        self.bits = planes.tobytes()
        self.image = np.ascontiguousarray(planes[len(planes) // 2] if planes.ndim == 3 else planes)
        variance = fits.getdata(self.report["outputs"]["variance"])
        self.noise = float(
            np.sqrt(np.nanmedian(variance[len(variance) // 2] if variance.ndim == 3 else variance))
        )

    def on(self, other: Mosaic) -> np.ndarray:
        """Return this picture on the pixels of another of the same lattice; NaN beside it."""
        dx, dy = np.rint(self.wcs.wcs.crpix - other.wcs.wcs.crpix).astype(int)
        height, width = other.image.shape
        out = np.full((height, width), np.nan, np.float32)
        y, x = np.arange(height) + dy, np.arange(width) + dx
        rows, columns = (y >= 0) & (y < self.image.shape[0]), (x >= 0) & (x < self.image.shape[1])
        out[np.ix_(rows, columns)] = self.image[np.ix_(y[rows], x[columns])]
        return out


def _fluxes(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    mask = ~np.isfinite(image)
    filled = np.ascontiguousarray(np.where(mask, 0, image), np.float32)
    flux, _, flag = sep.sum_circle(filled, x, y, APERTURE_PX, mask=mask, bkgann=SKY_PX)
    return np.where(flag == 0, flux, np.nan)


def compared(mosaic: Mosaic, direct: Mosaic) -> dict[str, float]:
    """Return how levels and fluxes of stars differ from those of the route direct."""
    image = mosaic.on(direct)
    difference = image - direct.image
    height, width = (side // BLOCK_PX * BLOCK_PX for side in difference.shape)
    cells = difference[:height, :width].reshape(height // BLOCK_PX, BLOCK_PX, width // BLOCK_PX, BLOCK_PX)
    whole = np.isfinite(cells).mean(axis=(1, 3)) > 0.9
    with np.errstate(all="ignore"):
        medians = np.nanmedian(cells, axis=(1, 3))[whole]
    sky = float(np.nanmedian(direct.image))
    found = sep.extract(np.nan_to_num(direct.image - sky), 30.0, err=direct.noise, minarea=5)
    bright = found[np.argsort(-found["flux"])][20:220]
    ratio = _fluxes(image, bright["x"], bright["y"]) / _fluxes(direct.image, bright["x"], bright["y"])
    ratio = ratio[np.isfinite(ratio)]
    spread = 1.4826 * np.median(np.abs(ratio - np.median(ratio))) if len(ratio) else np.nan
    return {
        "levels_adu": float(np.std(medians)) if len(medians) else np.nan,
        "flux_percent": 100 * (float(np.median(ratio)) - 1) if len(ratio) else np.nan,
        "flux_scatter_percent": 100 * float(spread),
    }


def facts(name: str, mosaic: Mosaic, direct: Mosaic, cost: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the table."""
    report = mosaic.report
    residuals = [frame["registration"]["rms_px"] for frame in report["frames"]]
    overlaps = [pair["rms_after_adu"] for pair in report["photometry"]["overlaps"]]
    return {
        "route": name,
        "tiles": len(report["tiles"]),
        "frames": report["frames_used"],
        "registration_px": float(np.median([r for r in residuals if r is not None])),
        "overlap_adu": float(np.median(overlaps)) if overlaps else None,
        "noise_adu": mosaic.noise,
        **compared(mosaic, direct),
        "peak_mb": report["peak_bytes"] / 1e6,
        "planned_mb": report["planned_peak_bytes"] / 1e6,
        **cost,
    }


def _text(value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2f}"
        case _:
            return str(value)


def main() -> None:
    """Run what is missing, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("night", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--batch", type=int, default=4, help="frames aimed at in a batch of SDS")
    parser.add_argument("--coverage", type=float, default=0.92, help="share of the field that a batch covers")
    parser.add_argument("--once", action="store_true", help="no second run into the same folder")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    direct: Mosaic | None = None
    for name, (source, settings) in routes(
        options.night, options.output, options.batch, options.coverage
    ).items():
        target = options.output / name.replace(",", "").replace(" ", "_")
        note = target / "cost.json"
        if note.is_file():
            cost = json.loads(note.read_text(encoding="utf-8"))
            mosaic = Mosaic(target)
        else:
            seconds = run(source, target, settings)
            mosaic = Mosaic(target)
            first = mosaic.report, mosaic.bits
            cost: dict[str, Any] = {"seconds": seconds, "resumed_seconds": None, "same_again": None}
            if not options.once:
                cost["resumed_seconds"] = run(source, target, settings)
                mosaic = Mosaic(target)
                cost["same_again"] = first[1] == mosaic.bits
            cost["first_peak"] = first[0]["peak_bytes"]
            note.write_text(json.dumps(cost), encoding="utf-8")
        mosaic.report["peak_bytes"] = max(mosaic.report["peak_bytes"], cost.pop("first_peak"))
        direct = direct or mosaic
        rows.append(facts(name, mosaic, direct, cost))
        print(json.dumps(rows[-1]), flush=True)
    (options.output / "routes.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    print("| " + " | ".join(title for _, title in COLUMNS) + " |")
    print("|" + "---|" * len(COLUMNS))
    for row in rows:
        print("| " + " | ".join(_text(row[key]) for key, _ in COLUMNS) + " |")


if __name__ == "__main__":
    main()
