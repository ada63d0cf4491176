"""The run report: everything a run found, decided, made and cost, as JSON and as a page to look at."""

from __future__ import annotations

import math
import os
import platform
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from locales.zemosaic_localization import ZeMosaicLocalization
from zemosaic_core import __version__
from zemosaic_core.errors import ZeMosaicError
from zemosaic_core.frame_wcs import wcs_of
from zemosaic_core.light_digits import rounded_light
from zemosaic_core.sphere import footprint
from zemosaic_io.manifest import load_json, save_json
from zemosaic_io.report_page import write_page
from zemosaic_pipeline.sky_brightness import brightness_facts

__all__ = [
    "PREVIOUS_REPORT",
    "REPORT",
    "REPORT_VERSION",
    "collect",
    "json_value",
    "sentences",
    "set_aside_report",
    "write_report",
]

REPORT_VERSION = 1
REPORT = ("run_report.json", "run_report.html")
# What belongs to the results in the folder while another run is at work, and after it failed.
PREVIOUS_REPORT = ("run_report_previous.json", "run_report_previous.html")
_MAX_REPORT_BYTES = 500_000_000
LIBRARIES = ("numpy", "scipy", "astropy", "numba", "sep", "cupy-cuda12x", "cupy-cuda13x")


@cache
def _versions() -> Mapping[str, str]:
    # The report is written at the beginning of each phase; these stay what they are.
    found = {"zemosaic": __version__, "python": platform.python_version(), "system": platform.platform()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def json_value(value: Any) -> Any:
    """Return the value with only JSON's own types; NaN becomes null, because JSON has no other word for it."""
    match value:
        case Mapping():
            return {str(k): json_value(v) for k, v in value.items()}
        case list() | tuple() | set():
            return [json_value(v) for v in value]
        case np.ndarray():
            return json_value(value.tolist())
        case np.generic():
            return json_value(value.item())
        case Path():
            return str(value)
        case float():
            return value if math.isfinite(value) else None
        case _:
            return value


def _footprint(cards: dict[str, Any], shape_hw: tuple[int, int]) -> list[list[float]]:
    return np.round(footprint(wcs_of(cards), shape_hw), 6).tolist()


def _frames(run: Any) -> list[dict[str, Any]]:
    placed = {frame.solved.frame.index: frame for frame in run.placed.frames} if run.placed else {}
    tiles = {index: tile.tile_id for tile in run.tiles for index in tile.frames}
    rows = []
    for item in run.solved:
        index = item.frame.index
        if index not in placed:
            continue
        fit = placed[index]
        rows.append(
            {
                "path": run.context.known_as.get(str(item.frame.info.path), str(item.frame.info.path)),
                "date_obs": item.frame.info.date_obs,
                "exposure_s": item.frame.info.exposure_s,
                "instrument": item.frame.info.instrument,
                "stars": item.measure.n_stars,
                "fwhm_px": round(item.measure.fwhm_px, 3),
                "elongation": round(item.measure.elongation, 3),
                "sky_adu": [rounded_light(v, 2, 4) for v in item.measure.sky_adu],
                "noise_adu": [rounded_light(v, 2, 4) for v in item.measure.noise_adu],
                "transparency": round(fit.solved.measure.transparency, 4),
                "solution": {
                    "method": item.solution.method,
                    "rms_px": item.solution.rms_px,
                    "stars": item.solution.n_matched,
                    "approximate": item.solution.approximate,
                    "confirmed": item.solution.confirmed,
                    "attempts": item.solution.attempts,
                    "seconds": round(item.solution.seconds, 3),
                },
                "registration": {
                    "kind": fit.kind,
                    "rms_px": fit.rms_px,
                    "stars": fit.n_matched,
                },
                "tile": tiles.get(index),
                "footprint": _footprint(item.solution.wcs_cards, item.frame.info.shape_hw),
            }
        )
    return rows


def _tiles(run: Any) -> list[dict[str, Any]]:
    rows = []
    for tile in run.tiles:
        row = asdict(tile)
        row["n_frames"] = len(tile.frames)
        if run.mosaic is not None:
            # On the mosaic as it was written, which a reader has, not on the grid before it was cropped.
            row["origin_yx"] = [a - b for a, b in zip(tile.origin_yx, run.mosaic.origin_yx, strict=True)]
        rows.append(row)
    return rows


def _sky(run: Any) -> dict[str, Any] | None:
    """Return what is known about the sky behind the frames, and where the mosaic lies on the plane it is given on."""
    if run.sky is None:
        return None
    origin_yx = (0, 0) if run.mosaic is None else run.mosaic.origin_yx
    return {**run.sky.facts(), "mosaic_origin_xy": [origin_yx[1], origin_yx[0]]}


def set_aside_report(output_dir: Path) -> dict[str, Any]:
    """Keep the report of finished results while another run is at work, under another name.

    Returns
    -------
    dict
        ``results``: run id, time and page of the results that lie in the folder. ``interrupted``: run id, start and
        phase of a run that never came to its end. Either may be missing.
    """
    report, page = (output_dir / name for name in REPORT)
    earlier: dict[str, Any] = {}
    facts = _read(report)
    if facts.get("outcome") == "success":
        for path, name in zip((report, page), PREVIOUS_REPORT, strict=True):
            if path.is_file():
                os.replace(path, output_dir / name)
    elif facts.get("outcome") == "running":
        earlier["interrupted"] = {
            "run_id": str(facts.get("run_id") or ""),
            "started": str(facts.get("started") or ""),
            "phase_key": f"phase.{facts.get('phase')}",
        }
    kept = _read(output_dir / PREVIOUS_REPORT[0])
    if kept:
        earlier["results"] = {
            "run_id": str(kept.get("run_id") or ""),
            "finished": str(kept.get("finished") or ""),
            "page": PREVIOUS_REPORT[1],
        }
    return earlier


def _read(path: Path) -> dict[str, Any]:
    """Return an earlier report; one that cannot be read does not exist."""
    try:
        facts = load_json(path, _MAX_REPORT_BYTES)
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def collect(run: Any, outputs: dict[str, str], outcome: str, error: BaseException | None) -> dict[str, Any]:
    """Return the report of a run, finished or not, with only JSON's own types."""
    context = run.context
    settings = run.settings.model_dump()
    settings.pop("astrometry_api_key", None)
    is_running = outcome == "running"
    failure = None
    if isinstance(error, ZeMosaicError):
        failure = {"key": error.key, "values": error.values, "text": str(error)}
    elif error is not None:
        failure = {
            "key": "run_error_unexpected",
            "values": {"error": repr(error)},
            "text": repr(error),
            "traceback": "".join(traceback.format_exception(error)),
        }
    seconds = sum(phase.seconds for phase in context.phases)
    return json_value(
        {
            "report_version": REPORT_VERSION,
            "run_id": context.run_id,
            "started": context.started.isoformat(timespec="seconds"),
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "finished": None if is_running else datetime.now(UTC).isoformat(timespec="seconds"),
            "outcome": outcome,
            "phase": run.phase if outcome != "success" else None,
            "failure": failure,
            "earlier_results": None if outcome == "success" else run.earlier.get("results"),
            "interrupted": run.earlier.get("interrupted"),
            "versions": _versions(),
            "machine": asdict(run.machine),
            "settings": settings,
            "input_dir": str(run.folder),
            "outputs": outputs,
            "seconds": seconds,
            "peak_bytes": max((phase.peak_bytes for phase in context.phases), default=0),
            "planned_peak_bytes": run.plan.peak_bytes if run.plan else None,
            "phases": [asdict(phase) for phase in context.phases],
            "plan": [asdict(row) for row in run.plan.rows] if run.plan else [],
            "frames_found": run.n_found,
            "frames_used": sum(len(tile.frames) for tile in run.tiles),
            "frames": [] if is_running else _frames(run),
            "left_out": [asdict(item) for item in context.left_out],
            "groups": [asdict(group) for group in run.groups],
            "tiles": _tiles(run),
            "mosaic": {
                "width": run.mosaic.grid.shape_hw[1],
                "height": run.mosaic.grid.shape_hw[0],
                "scale_arcsec": run.mosaic.grid.scale_arcsec,
                "wcs": run.mosaic.grid.wcs_cards,
                "approximate": any(item.solution.approximate for item in run.solved),
                "footprint": _footprint(run.mosaic.grid.wcs_cards, run.mosaic.grid.shape_hw),
            }
            if run.mosaic
            else None,
            "mosaics": [
                {"filter": name, "science": made.science_path, "wcs": made.grid.wcs_cards}
                for name, made in run.mosaics.items()
            ],
            "route": asdict(run.plan.route) if run.plan else None,
            "refine": asdict(run.plan.refine) if run.plan else None,
            "sky": _sky(run),
            "colour": run.mosaic.colour.facts() if run.mosaic else None,
            "sky_brightness": brightness_facts(run.brightness),
            "photometry": run.mosaic.photometry if run.mosaic else None,
            "messages": [asdict(message) for message in context.messages],
            "cluster": None if context.cluster is None else context.cluster.facts(),
            "gpu": {
                **context.policy.summary(),
                "lines": [{"key": key, "values": values} for key, values in context.policy.report_lines()],
            },
        }
    )


def sentences(language: str) -> Callable[[str, Mapping[str, Any]], str]:
    """Return what says a key with its values in a language, for a log that people read; empty without a text."""
    texts = ZeMosaicLocalization(language)

    def say(key: str, values: Mapping[str, Any]) -> str:
        return texts.get(key, **values) if texts.has(key) else ""

    return say


def write_report(
    output_dir: Path, facts: dict[str, Any], language: str, *, durable: bool = True
) -> dict[str, str]:
    """Write ``run_report.json`` and ``run_report.html``; return their paths by kind.

    ``durable``: wait for the disk; what a run at work says of itself need not outlive a loss of power.

    Raises
    ------
    SaveFailed
        A file cannot be written.
    """
    json_path, page_path = (output_dir / name for name in REPORT)
    save_json(json_path, facts, durable=durable)
    write_page(page_path, facts, ZeMosaicLocalization(language), durable=durable)
    return {"report": str(json_path), "report_page": str(page_path)}
