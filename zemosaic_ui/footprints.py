"""What belongs to a mosaic on disk: its coverage, its report, and the outlines of its tiles and frames."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zemosaic_io.manifest import load_json
from zemosaic_ui.mosaic_image import MosaicImage

__all__ = ["find_outputs", "read_footprints", "report_of"]

# While another run is at work, or after it failed, the pictures are those of the report before.
REPORT_NAMES = ("run_report.json", "run_report_previous.json")


def find_outputs(place: Path) -> dict[str, str]:
    """Return the outputs of a run (kind -> path) from its report beside a file or in a folder.

    Without a report only the coverage map of the same name is looked for.
    """
    folder = place if place.is_dir() else place.parent
    for path in (folder / name for name in REPORT_NAMES):
        report = _read_json(path)
        if report.get("outputs") and isinstance(report["outputs"], dict):
            outputs = {str(kind): _beside(folder, str(found)) for kind, found in report["outputs"].items()}
            outputs["facts"] = str(path)
            if place.is_dir() or str(place) in (outputs.get("science"), outputs.get("mosaic")):
                return outputs
    if place.is_dir():
        return {}
    outputs = {"science": str(place)}
    coverage = place.with_name(f"{place.stem}_coverage{place.suffix}")
    if coverage.is_file():
        outputs["coverage"] = str(coverage)
    return outputs


def report_of(outputs: Mapping[str, str]) -> str:
    """Return the report to show a person: the page, else the data, else an empty text."""
    return outputs.get("report_page") or outputs.get("report", "")


def read_footprints(
    outputs: Mapping[str, str], image: MosaicImage
) -> dict[str, tuple[list[np.ndarray], list[str]]]:
    """Return the outlines (M, 2) in mosaic pixels with their names, for ``tiles`` and ``frames``."""
    facts = _read_json(Path(outputs["facts"])) if outputs.get("facts") else _report_beside(outputs)
    found = {}
    for kind in ("tiles", "frames"):
        entries = facts.get(kind) if facts else None
        if isinstance(entries, list):
            outlines = [
                (outline, _name(entry))
                for entry in entries
                if (outline := _outline(entry, image)) is not None
            ]
            if outlines:
                found[kind] = ([outline for outline, _ in outlines], [name for _, name in outlines])
    return found


def _report_beside(outputs: Mapping[str, str]) -> dict[str, Any]:
    science = outputs.get("science") or outputs.get("mosaic")
    if not science:
        return {}
    for name in REPORT_NAMES:
        facts = _read_json(Path(science).parent / name)
        if facts.get("outputs"):
            return facts
    return {}


def _outline(entry: Any, image: MosaicImage) -> np.ndarray | None:
    """Return the outline of a tile or frame: ``outline_px``, ``origin_yx`` + ``shape_hw``, or ``footprint`` (sky)."""
    if not isinstance(entry, dict):
        return None
    if entry.get("outline_px"):
        return np.asarray(entry["outline_px"], dtype=float)
    if entry.get("origin_yx") and entry.get("shape_hw"):
        (y, x), (height, width) = entry["origin_yx"], entry["shape_hw"]
        x0, y0, x1, y1 = x - 0.5, y - 0.5, x + width - 0.5, y + height - 0.5
        return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    corners = entry.get("footprint") or entry.get("corners")
    if corners and image.wcs is not None:
        sky = np.asarray(corners, dtype=float)
        return image.pixel_of(sky[:, 0], sky[:, 1])
    return None


def _name(entry: Mapping[str, Any]) -> str:
    for key in ("tile_id", "name", "id"):
        if key in entry:
            return str(entry[key])
    return Path(str(entry.get("path", ""))).name


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = load_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _beside(folder: Path, found: str) -> str:
    """Return a path of a report; a result folder that was moved is found by the file's name."""
    path = Path(found)
    return found if path.is_file() else str(folder / path.name)
