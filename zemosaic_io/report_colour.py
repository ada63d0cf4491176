"""The part of the report page about colours: what the stars of the catalogue say of them."""

from __future__ import annotations

from html import escape
from typing import Any

from zemosaic_io.report_plots import figure, plot
from zemosaic_io.report_words import Words

__all__ = ["colour_section"]

Facts = dict[str, Any]

_RATIO_COLOURS = ("#ff7b88", "#7fb4ff")
_LEFT_OUT = "#5b6472"
_LETTERS = {1: ("L",), 3: ("R", "G", "B")}


def colour_section(facts: Facts, text: Words) -> str:
    """Return the section as HTML; empty for a run without a mosaic or with the calibration off."""
    colour = facts.get("colour")
    if not colour or colour["key"] == "colour_off":
        return ""
    title = f"<h2>{escape(text('report.colour'))}</h2>"
    if "used" not in colour:
        sentence = text(colour["key"], stars=colour["n_stars"], needed=5)
        return f"{title}<p class='dim'>{escape(sentence)}</p>"
    known = [limit for limit in colour["limit_mag"] if limit is not None]
    sentence = text(
        colour["key"],
        stars=colour["used"],
        error_percent=round(100.0 * colour["gain_error"], 1),
        limit_mag=round(max(known), 1) if known else "–",
    )
    sky = facts.get("sky_brightness")
    dark = f"<p>{escape(text('report.sky_brightness', **sky))}</p>" if sky else ""
    return f"{title}<p>{escape(sentence)}</p>{_ratios(colour, text)}{_table(colour, text)}{dark}"


def _ratios(colour: Facts, text: Words) -> str:
    """Draw colour ratios of the stars over B-V with the fitted lines; stars that do not count are grey."""
    stars, channels = colour["stars"], len(colour["zero_mag"])
    if channels != 3:
        return ""
    white = min(stars, key=lambda star: star[1])[1], max(stars, key=lambda star: star[1])[1]
    series, lines = [], []
    for k, (channel, shade) in enumerate(zip((0, 2), _RATIO_COLOURS, strict=True)):
        of_star = [(star[1], star[2 + channel] - star[3]) for star in stars]
        counted = colour["counted"]
        series.append(([p for p, use in zip(of_star, counted, strict=True) if use], shade))
        series.append(([p for p, use in zip(of_star, counted, strict=True) if not use], _LEFT_OUT))
        line = colour["lines"][k]
        at = [(b_v, line["at_white"] + line["slope"] * (b_v - colour["white_b_v"])) for b_v in white]
        lines.append((at, shade))
    return f'<div class="two">{figure(plot(series, lines, text.written), text("report.colour_ratios"))}</div>'


def _table(colour: Facts, text: Words) -> str:
    heads = ("report.colour_channel", "report.colour_gain", "report.colour_zero", "report.colour_limit")
    letters = _LETTERS[len(colour["zero_mag"])]
    gains = colour["gains"] or [None] * len(letters)
    rows = "".join(
        f"<tr><td>{letter}</td><td class='n'>{_number(gain, 3, text)}</td><td class='n'>{_number(zero, 2, text)}</td>"
        f"<td class='n'>{_number(limit, 1, text)}</td></tr>"
        for letter, gain, zero, limit in zip(
            letters, gains, colour["zero_mag"], colour["limit_mag"], strict=True
        )
    )
    head = "".join(f"<th>{escape(text(key))}</th>" for key in heads)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _number(value: float | None, digits: int, text: Words) -> str:
    return "–" if value is None else text.number(value, digits)
