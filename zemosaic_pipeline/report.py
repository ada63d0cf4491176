"""The run report: everything a run found, decided, made and cost, as JSON and as a page to look at."""

from __future__ import annotations

import math
import platform
import traceback
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from astropy.wcs import WCS

from locales.zemosaic_localization import ZeMosaicLocalization
from zemosaic_core import __version__
from zemosaic_core.errors import ZeMosaicError
from zemosaic_core.sphere import footprint
from zemosaic_io.manifest import save_json
from zemosaic_io.report_page import write_page

__all__ = ["REPORT_VERSION", "collect", "json_value", "write_report"]

REPORT_VERSION = 1
LIBRARIES = ("numpy", "scipy", "astropy", "numba", "sep", "cupy-cuda12x", "cupy-cuda13x")


def _versions() -> dict[str, str]:
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
        case dict():
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
    return np.round(footprint(WCS(cards), shape_hw), 6).tolist()


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
                "path": str(item.frame.info.path),
                "date_obs": item.frame.info.date_obs,
                "exposure_s": item.frame.info.exposure_s,
                "instrument": item.frame.info.instrument,
                "stars": item.measure.n_stars,
                "fwhm_px": round(item.measure.fwhm_px, 3),
                "elongation": round(item.measure.elongation, 3),
                "sky_adu": [round(v, 2) for v in item.measure.sky_adu],
                "noise_adu": [round(v, 2) for v in item.measure.noise_adu],
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


def collect(run: Any, outputs: dict[str, str], outcome: str, error: BaseException | None) -> dict[str, Any]:
    """Return the report of a run, finished or not, with only JSON's own types."""
    context = run.context
    settings = run.settings.model_dump()
    settings.pop("astrometry_api_key", None)
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
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "outcome": outcome,
            "failure": failure,
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
            "frames": _frames(run),
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
            "route": asdict(run.plan.route) if run.plan else None,
            "refine": asdict(run.plan.refine) if run.plan else None,
            "sky": _sky(run),
            "photometry": run.mosaic.photometry if run.mosaic else None,
            "messages": [asdict(message) for message in context.messages],
            "gpu": {
                **context.policy.summary(),
                "lines": [{"key": key, "values": values} for key, values in context.policy.report_lines()],
            },
        }
    )


def write_report(output_dir: Path, facts: dict[str, Any], language: str) -> dict[str, str]:
    """Write ``run_report.json`` and ``run_report.html``; return their paths by kind.

    Raises
    ------
    SaveFailed
        A file cannot be written.
    """
    json_path, page_path = output_dir / "run_report.json", output_dir / "run_report.html"
    save_json(json_path, facts)
    write_page(page_path, facts, ZeMosaicLocalization(language).get, language)
    return {"report": str(json_path), "report_page": str(page_path)}
