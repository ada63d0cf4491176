"""The table of `benchmarks.quality`, printed and as a file."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["print_table", "write_results"]


def _worst(values: Sequence[float]) -> float:
    known = [v for v in values if v is not None and math.isfinite(v)]
    return max(known, default=math.nan)


def _farthest_from_one(values: Sequence[float]) -> float:
    known = [v for v in values if v is not None and math.isfinite(v)]
    return max(known, key=lambda v: abs(v - 1.0), default=math.nan)


def _claims(row: dict[str, Any]) -> dict[str, Any]:
    return row.get("claims") or {}


# Heading, format, value of a row; of three channels the worst one.
COLUMNS: tuple[tuple[str, str, Callable[[dict[str, Any]], Any]], ...] = (
    ("night", "", lambda r: r["night"]),
    ("route", "", lambda r: r["route"]),
    ("sky ADU", ".1f", lambda r: _worst(r["bg_rms_adu"])),
    ("-plane", ".1f", lambda r: _worst(r["bg_rms_after_plane_adu"])),
    ("p5-p95", ".0f", lambda r: _worst(r["bg_p5_p95_adu"])),
    ("slope", ".3f", lambda r: _farthest_from_one(r["slope"])),
    ("seam", ".2f", lambda r: r["seam_rms_adu"]),
    ("(noise)", ".2f", lambda r: r["seam_noise_adu"]),
    ("worst side", ".2f", lambda r: r["seam_worst_adu"]),
    ("flux %", ".2f", lambda r: r["panel_spread_pct"]),
    ("(noise)", ".2f", lambda r: r["panel_spread_noise_pct"]),
    ("stars/noise", ".2f", lambda r: r["flux_scatter"][1]),
    ("V %", ".2f", lambda r: (_claims(r).get("vignetting") or {}).get("rms_pct", math.nan)),
    ("err/claim", ".1f", lambda r: _worst([z for c in r.get("large_scale_deviations", []) for z in c])),
    ("out/M", ".1f", lambda r: r["outliers_ppm"]),
    ("worst", ".0f", lambda r: r["outliers_ppm_worst"]),
    ("at", "", lambda r: r["outliers_worst_coverage"]),
    ("trails", "", lambda r: f"{r['satellites_left']}/{r['satellites']}"),
    ("noise", ".3f", lambda r: r["noise_ratio"][1]),
    ("CPU s", ".0f", lambda r: r.get("cpu_seconds", math.nan)),
    ("MB", ".0f", lambda r: r.get("peak_bytes", math.nan) / 1e6),
)


def _lines(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    lines = [[heading for heading, _, _ in COLUMNS]]
    for row in rows:
        line = []
        for _, shape, value in COLUMNS:
            found = value(row)
            unknown = isinstance(found, float) and math.isnan(found)
            line.append("-" if unknown else format(found, shape))
        lines.append(line)
    return lines


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print a line per mosaic."""
    lines = _lines(rows)
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    for line in lines:
        print("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)))


_LEGEND = """\
Of three channels the worst one. *sky*: what is left of the sky in cells of 64 px, rms, without anything removed;
*-plane*: the same after a plane; *slope* of diffuse light against the truth; *seam*: steps along outlines in G per
64 px, and what noise alone makes them; *flux %*: spread of star fluxes from panel to panel; *stars/noise*: scatter of
fluxes over that of photons and sky; *V*: error of the vignetting found, rms; *err/claim*: the largest error of tilt or
bowl over its stated standard error; *out/M*: outliers per million pixels, then the worst at any number of frames;
*trails*: satellites left of those that cross ground with four frames; *noise*: of a pixel over that of the best mean.
"""


def write_results(
    rows: Sequence[dict[str, Any]], folder: Path, not_installed: Sequence[str], made: str | None = None
) -> None:
    """Write ``quality.md`` and ``quality.json`` with date and machine.

    Parameters
    ----------
    rows : sequence of dict
        Of `benchmarks.quality`.
    folder : Path
    not_installed : sequence of str
        Programs that were asked for and are not on this machine.
    made : str, optional
        When the mosaics were made; default now.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = made or time.strftime("%Y-%m-%d")
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    lines = _lines(rows)
    table = ["| " + " | ".join(line) + " |" for line in lines]
    table.insert(1, "|---" * len(COLUMNS) + "|")
    missing = ", ".join(not_installed) or "none"
    text = (
        f"# Mosaics of made-up nights\n\nMeasured on {made}: {machine}.\n"
        f"Not installed here, so not compared: {missing}.\n"
        f"`python -m benchmarks.quality --results benchmarks/results` makes this table.\n\n"
        + "\n".join(table)
        + f"\n\n{_LEGEND}"
    )
    (folder / "quality.md").write_text(text, encoding="utf-8")
    facts = {"date": made, "machine": machine, "not_installed": list(not_installed), "rows": list(rows)}
    (folder / "quality.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
