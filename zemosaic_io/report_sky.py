"""The part of the report page about the sky behind the frames: glow, flat, what was removed and what is left.

Pictures are drawn as SVG from the report's facts; every word comes from the ``text`` function.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from statistics import median
from typing import Any

from zemosaic_core.light_digits import decimals_of_light
from zemosaic_io.report_plots import figure, plot
from zemosaic_io.report_words import Words

__all__ = ["sky_section"]

Facts = dict[str, Any]

_COLOURS = {1: ("#e6e9ef",), 3: ("#ff7b88", "#8be28b", "#7fb4ff")}
_CELLS = 28


def sky_section(facts: Facts, text: Words) -> str:
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
        figure(_glow(sky, colours, text), text("report.sky_glow")),
        figure(_residuals(sky, colours, text), text("report.sky_residuals")),
        figure(_overlaps(sky, colours, text), text("report.sky_overlaps")),
        figure(_flat(sky, text), _flat_caption(sky, text)),
        figure(_removed(sky, facts.get("mosaic"), text), text("report.sky_removed")),
        figure(_uncertainty(sky, colours, text), text("report.sky_uncertainty")),
    ]
    return (
        f"{title}<p>{_e(_sentence(sky, text))} {_e(text('report.sky_site', site=text(sky['site'])))} "
        f"{_e(_pedestal(sky, text))}</p>"
        f'<div class="two">{"".join(figures)}</div>{_table(sky, text, colours)}'
    )


def _e(value: Any) -> str:
    return escape(str(value))


def _short(value: float | None, text: Words) -> str:
    return "–" if value is None else text.number(value, decimals_of_light(value, 1))


def _worst(sky: Facts) -> Facts:
    def size(channel: Facts) -> float:
        known = [v for v in channel["sigma_tilt_adu"] if v is not None]
        return max(known) if known else math.inf

    return max(sky["channels"], key=size)


def _sentence(sky: Facts, text: Words) -> str:
    worst = _worst(sky)
    # As the run said it: over all channels, with its two digits.
    known = ([v for v in channel["residual_adu"] if v is not None] for channel in sky["channels"])
    medians = [median(residuals) for residuals in known if residuals]
    residual = median(medians) if medians else None
    return text(
        f"sky_assurance_{worst['assurance']}",
        tilt_adu=_short(_largest(worst["sigma_tilt_adu"]), text),
        bowl_adu=_short(_largest(worst["sigma_bowl_adu"]), text),
        residual_adu="–" if residual is None else text.number(residual, decimals_of_light(residual, 2)),
    )


def _largest(values: Sequence[float | None]) -> float | None:
    return None if any(v is None for v in values) else max(v for v in values if v is not None)


def _glow(sky: Facts, colours: Sequence[str], text: Words) -> str:
    series = []
    for channel, colour in zip(sky["channels"], colours, strict=True):
        level = [channel["background_adu"] + row[0] for row in channel["glow"]]
        series.append((list(zip(sky["hours"], level, strict=True)), colour))
    return plot(series, written=text.written)


def _residuals(sky: Facts, colours: Sequence[str], text: Words) -> str:
    series = []
    for channel, colour in zip(sky["channels"], colours, strict=True):
        known = [(h, r) for h, r in zip(sky["hours"], channel["residual_adu"], strict=True) if r is not None]
        series.append((known, colour))
    return plot(series, written=text.written)


def _overlaps(sky: Facts, colours: Sequence[str], text: Words) -> str:
    """Draw how far visits differ where both see the sky, over the number of cells they have in common."""
    series = [
        ([(row[2], row[3]) for row in channel["overlaps"]], colour)
        for channel, colour in zip(sky["channels"], colours, strict=True)
    ]
    return plot(series, written=text.written)


def _uncertainty(sky: Facts, colours: Sequence[str], text: Words) -> str:
    """Draw by how much the sky may be off from the middle to the edges of the mosaic, along its longer side."""
    series: list[tuple[list[tuple[float, float]], str]] = []
    for channel, colour in zip(sky["channels"], colours, strict=True):
        tilts, bowls = channel["sigma_tilt_adu"], channel["sigma_bowl_adu"]
        if any(v is None for v in (*tilts, *bowls)):
            continue
        tilt, bowl = max(tilts), max(bowls)
        places = [k / 20 - 1 for k in range(41)]
        for sign in (1, -1):
            series.append(([(x, sign * math.hypot(tilt * x, bowl * x * x)) for x in places], colour))
    return plot(lines=series, written=text.written)


def _pedestal(sky: Facts, text: Words) -> str:
    pedestal = sky["pedestal"]
    key = "report.sky_pedestal_measured" if pedestal["measured"] else "report.sky_pedestal_guessed"
    middle = len(pedestal["adu"]) // 2
    return text(
        key, level=_whole(pedestal["adu"][middle], text), error=_whole(pedestal["sigma_adu"][middle], text)
    )


def _whole(level: float, text: Words) -> str:
    return text.number(level, decimals_of_light(level, 0))


def _flat(sky: Facts, text: Words) -> str:
    nu_1, nu_2 = sky["flat"]["nu"]
    radii = [k / 40 for k in range(41)]
    curve = [(r, 100 * math.exp(nu_1 * r**2 + nu_2 * r**4)) for r in radii]
    return (
        plot(lines=[(curve, "#ffe27a")], written=text.written)
        if sky["flat"]["stars"] or sky["flat"].get("cells")
        else ""
    )


def _flat_caption(sky: Facts, text: Words) -> str:
    flat = sky["flat"]
    if flat.get("cells"):
        key = "report.sky_flat_of_sky" if flat["applied"] else "report.sky_flat_of_sky_not_applied"
    else:
        key = "report.sky_flat_applied" if flat["applied"] else "report.sky_flat_not_applied"
    return text(
        key,
        corner=text.number(100 * (1 - flat["corner"]), 2),
        error=text.number(100 * flat["corner_sigma"], 2),
        stars=flat["stars"],
    )


def _removed(sky: Facts, mosaic: Facts | None, text: Words) -> str:
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
    digits = decimals_of_light(high - low, 1)
    label = (
        f'<text x="{0.02 * columns:.2f}" y="{1.1 * size:.2f}" font-size="{size:.2f}" fill="#ffe27a">'
        f"{text.written(f'{low:+.{digits}f} … {high:+.{digits}f}')} ADU</text>"
    )
    return f'<svg viewBox="0 0 {columns} {rows}" role="img">{"".join(cells)}{label}</svg>'


def _table(sky: Facts, text: Words, colours: Sequence[str]) -> str:
    heads = ("background", "empty", "tilt", "bowl", "flat_assumed", "conflict")
    head = "<th></th>" + "".join(f'<th class="n">{_e(text(f"report.sky_{name}"))}</th>' for name in heads)
    body = []
    for channel, colour in zip(sky["channels"], colours, strict=True):
        cells = (
            _short(channel["background_adu"], text),
            f"{100 * channel['empty_share']:.0f} %",
            " / ".join(_short(v, text) for v in channel["sigma_tilt_adu"]),
            " / ".join(_short(v, text) for v in channel["sigma_bowl_adu"]),
            _e(text("report.sky_yes" if channel["gauge_used"] else "report.sky_no")),
            _e(text("report.sky_yes" if channel["conflict"] else "report.sky_no")),
        )
        row = "".join(f'<td class="n">{cell}</td>' for cell in cells)
        body.append(
            f'<tr><td><span class="bar" style="width:14px;background:{colour}"></span></td>{row}</tr>'
        )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
