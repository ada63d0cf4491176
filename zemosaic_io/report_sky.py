"""The part of the report page about the sky behind the frames: glow, flat, what was removed and what is left.

Pictures are drawn as SVG from the report's facts; every word comes from the ``text`` function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

__all__ = ["sky_section"]

Text = Callable[..., str]
Facts = dict[str, Any]
Point = tuple[float, float]

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _MARGIN = 560.0, 260.0, 58.0, 34.0, 12.0
_COLOURS = {1: ("#e6e9ef",), 3: ("#ff7b88", "#8be28b", "#7fb4ff")}
_CELLS = 28


def sky_section(facts: Facts, text: Text) -> str:
    """Return the section as HTML; empty for a run that did not get to its sky."""
    sky = facts.get("sky")
    if not sky:
        return ""
    title = f"<h2>{_e(text('report.sky'))}</h2>"
    if not sky["model"]:
        return f"{title}<p class='dim'>{_e(text(sky['reason']))}</p>" if sky["reason"] else ""
    channels = sky["channels"]
    colours = _COLOURS.get(len(channels), tuple("#e6e9ef" for _ in channels))
    figures = [
        _figure(_glow(sky, colours), text("report.sky_glow")),
        _figure(_residuals(sky, colours), text("report.sky_residuals")),
        _figure(_overlaps(sky, colours), text("report.sky_overlaps")),
        _figure(_flat(sky), _flat_caption(sky, text)),
        _figure(_removed(sky, facts.get("mosaic")), text("report.sky_removed")),
        _figure(_uncertainty(sky, colours), text("report.sky_uncertainty")),
    ]
    return (
        f"{title}<p>{_e(_sentence(sky, text))} {_e(text('report.sky_site', site=text(sky['site'])))} "
        f"{_e(_pedestal(sky, text))}</p>"
        f'<div class="two">{"".join(figures)}</div>{_table(sky, text, colours)}'
    )


def _e(value: Any) -> str:
    return escape(str(value))


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _worst(sky: Facts) -> Facts:
    def size(channel: Facts) -> float:
        known = [v for v in channel["sigma_tilt_adu"] if v is not None]
        return max(known) if known else math.inf

    return max(sky["channels"], key=size)


def _sentence(sky: Facts, text: Text) -> str:
    worst = _worst(sky)
    residual = sorted(v for v in worst["residual_adu"] if v is not None)
    return text(
        f"sky_assurance_{worst['assurance']}",
        tilt_adu=_short(_largest(worst["sigma_tilt_adu"])),
        bowl_adu=_short(_largest(worst["sigma_bowl_adu"])),
        residual_adu=_short(residual[len(residual) // 2] if residual else None),
    )


def _largest(values: Sequence[float | None]) -> float | None:
    return None if any(v is None for v in values) else max(v for v in values if v is not None)


def _figure(picture: str, caption: str) -> str:
    return f"<figure>{picture}<figcaption>{_e(caption)}</figcaption></figure>" if picture else ""


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or max(0.05 * abs(high), 0.5)
    return low - pad, high + pad


def _ticks(low: float, high: float) -> list[float]:
    """Return three to six round numbers within a range."""
    step = 10.0 ** math.floor(math.log10(max(high - low, 1e-12)))
    for factor in (2.0, 1.0, 0.5, 0.25, 0.2):
        first = math.ceil(low / (step * factor))
        count = math.floor(high / (step * factor)) - first + 1
        if count >= 3:
            return [(first + k) * step * factor for k in range(count)]
    return [low, high]


def _plot(series: Sequence[tuple[Sequence[Point], str]], *, lines: bool = False) -> str:
    """Draw points or lines with axes; one colour per series."""
    points = [p for part, _ in series for p in part]
    if not points:
        return ""
    (x0, x1), (y0, y1) = _range([p[0] for p in points]), _range([p[1] for p in points])

    def at(x: float, y: float) -> Point:
        wide, high = _WIDTH - _LEFT - _MARGIN, _HEIGHT - _BOTTOM - _MARGIN
        return _LEFT + wide * (x - x0) / (x1 - x0), _MARGIN + high * (1 - (y - y0) / (y1 - y0))

    parts = []
    for tick in _ticks(y0, y1):
        _, y = at(x0, tick)
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _MARGIN}" y1="{y:.1f}" y2="{y:.1f}" stroke="#2a313c"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
        )
    for tick in _ticks(x0, x1):
        x, _ = at(tick, y0)
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - 12}" text-anchor="middle">{tick:g}</text>')
    for part, colour in series:
        places = [at(*p) for p in part]
        if lines:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        else:
            parts.extend(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{colour}"/>' for x, y in places)
    return (
        f'<svg viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" font-size="12" fill="#9aa4b2" role="img">'
        f"{''.join(parts)}</svg>"
    )


def _glow(sky: Facts, colours: Sequence[str]) -> str:
    series = []
    for channel, colour in zip(sky["channels"], colours, strict=True):
        level = [channel["background_adu"] + row[0] for row in channel["glow"]]
        series.append((list(zip(sky["hours"], level, strict=True)), colour))
    return _plot(series)


def _residuals(sky: Facts, colours: Sequence[str]) -> str:
    series = []
    for channel, colour in zip(sky["channels"], colours, strict=True):
        known = [(h, r) for h, r in zip(sky["hours"], channel["residual_adu"], strict=True) if r is not None]
        series.append((known, colour))
    return _plot(series)


def _overlaps(sky: Facts, colours: Sequence[str]) -> str:
    """Draw how far visits differ where both see the sky, over the number of cells they have in common."""
    series = [
        ([(row[2], row[3]) for row in channel["overlaps"]], colour)
        for channel, colour in zip(sky["channels"], colours, strict=True)
    ]
    return _plot(series)


def _uncertainty(sky: Facts, colours: Sequence[str]) -> str:
    """Draw by how much the sky may be off from the middle to the edges of the mosaic, along its longer side."""
    series: list[tuple[Sequence[Point], str]] = []
    for channel, colour in zip(sky["channels"], colours, strict=True):
        tilts, bowls = channel["sigma_tilt_adu"], channel["sigma_bowl_adu"]
        if any(v is None for v in (*tilts, *bowls)):
            continue
        tilt, bowl = max(tilts), max(bowls)
        places = [k / 20 - 1 for k in range(41)]
        for sign in (1, -1):
            series.append(([(x, sign * math.hypot(tilt * x, bowl * x * x)) for x in places], colour))
    return _plot(series, lines=True)


def _pedestal(sky: Facts, text: Text) -> str:
    pedestal = sky["pedestal"]
    key = "report.sky_pedestal_measured" if pedestal["measured"] else "report.sky_pedestal_guessed"
    middle = len(pedestal["adu"]) // 2
    return text(key, level=f"{pedestal['adu'][middle]:.0f}", error=f"{pedestal['sigma_adu'][middle]:.0f}")


def _flat(sky: Facts) -> str:
    nu_1, nu_2 = sky["flat"]["nu"]
    radii = [k / 40 for k in range(41)]
    curve = [(r, 100 * math.exp(nu_1 * r**2 + nu_2 * r**4)) for r in radii]
    return _plot([(curve, "#ffe27a")], lines=True) if sky["flat"]["stars"] else ""


def _flat_caption(sky: Facts, text: Text) -> str:
    flat = sky["flat"]
    key = "report.sky_flat_applied" if flat["applied"] else "report.sky_flat_not_applied"
    return text(
        key,
        corner=f"{100 * (1 - flat['corner']):.2f}",
        error=f"{100 * flat['corner_sigma']:.2f}",
        stars=flat["stars"],
    )


def _removed(sky: Facts, mosaic: Facts | None) -> str:
    """Draw the glow that was removed, over the mosaic, as a map of grey levels with its range written on it."""
    if not mosaic:
        return ""
    channel = sky["channels"][len(sky["channels"]) // 2]
    left, top = sky["mosaic_origin_xy"]
    width, height = mosaic["width"], mosaic["height"]
    step = max(width, height) / _CELLS
    columns, rows = max(1, math.ceil(width / step)), max(1, math.ceil(height / step))
    c, (centre_x, centre_y) = channel["removed_quadric"], channel["quadric_centre_xy"]

    def value(column: int, row: int) -> float:
        x = (left + (column + 0.5) * step - centre_x) / 1000.0
        y = (top + (row + 0.5) * step - centre_y) / 1000.0
        return float(c[0] + c[1] * x + c[2] * y + c[3] * x * x + c[4] * x * y + c[5] * y * y)

    values = [[value(i, j) for i in range(columns)] for j in range(rows)]
    flat = [v for row in values for v in row]
    low, high = min(flat), max(flat)
    cells = []
    for j, row in enumerate(values):
        for i, v in enumerate(row):
            grey = round(40 + 190 * (v - low) / max(high - low, 1e-9))
            # Row 0 of the mosaic lies at the bottom, as pictures show it.
            cells.append(
                f'<rect x="{i}" y="{rows - 1 - j}" width="1.03" height="1.03" fill="rgb({grey},{grey},{grey})"/>'
            )
    size = 0.045 * max(columns, rows)
    label = (
        f'<text x="{0.02 * columns:.2f}" y="{1.1 * size:.2f}" font-size="{size:.2f}" fill="#ffe27a">'
        f"{low:+.1f} … {high:+.1f} ADU</text>"
    )
    return f'<svg viewBox="0 0 {columns} {rows}" role="img">{"".join(cells)}{label}</svg>'


def _table(sky: Facts, text: Text, colours: Sequence[str]) -> str:
    heads = ("background", "empty", "tilt", "bowl", "flat_assumed", "conflict")
    head = "<th></th>" + "".join(f'<th class="n">{_e(text(f"report.sky_{name}"))}</th>' for name in heads)
    body = []
    for channel, colour in zip(sky["channels"], colours, strict=True):
        cells = (
            f"{channel['background_adu']:.1f}",
            f"{100 * channel['empty_share']:.0f} %",
            " / ".join(_short(v) for v in channel["sigma_tilt_adu"]),
            " / ".join(_short(v) for v in channel["sigma_bowl_adu"]),
            _e(text("report.sky_yes" if channel["gauge_used"] else "report.sky_no")),
            _e(text("report.sky_yes" if channel["conflict"] else "report.sky_no")),
        )
        row = "".join(f'<td class="n">{cell}</td>' for cell in cells)
        body.append(
            f'<tr><td><span class="bar" style="width:14px;background:{colour}"></span></td>{row}</tr>'
        )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
