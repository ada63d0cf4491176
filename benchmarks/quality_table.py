"""The table of `benchmarks.quality`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["print_table"]


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


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print a line per mosaic."""
    lines = [[heading for heading, _, _ in COLUMNS]]
    for row in rows:
        line = []
        for _, shape, value in COLUMNS:
            found = value(row)
            unknown = isinstance(found, float) and math.isnan(found)
            line.append("-" if unknown else format(found, shape))
        lines.append(line)
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    for line in lines:
        print("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)))
