"""The run report as one HTML page: pictures, footprints, overlaps, frames; no text of its own.

Every word comes from the ``text`` function, every number from the report's facts. The page links the pictures
beside it and needs no network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from zemosaic_core.light_digits import decimals_of_light
from zemosaic_io.fits_write import atomic_path
from zemosaic_io.report_colour import colour_section
from zemosaic_io.report_sky import sky_section
from zemosaic_io.report_words import Words

__all__ = ["render_page", "write_page"]

Facts = dict[str, Any]

_TILE_COLOURS = ("#7fb4ff", "#ffb86b", "#8be28b", "#ff8fa3", "#c9a0ff", "#6fe0d8", "#ffe27a", "#b0bec5")
_STYLE = """
:root{color-scheme:dark;--bg:#0e1116;--panel:#171c24;--line:#2a313c;--ink:#e6e9ef;--dim:#9aa4b2;--accent:#7fb4ff;
--warn:#ffb86b;--bad:#ff7b88}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1180px;margin:0 auto;padding:32px 24px 80px}h1{font-size:26px;margin:0 0 4px;font-weight:650}
h2{font-size:18px;margin:40px 0 12px;font-weight:600}p.dim,.dim{color:var(--dim)}
.hero{width:100%;max-height:75vh;object-fit:contain;background:#000;border-radius:10px;margin:20px 0 8px;display:block}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:10px;margin:18px 0}
.card{background:var(--panel);border:1px solid var(--line);border-radius:10px;padding:12px 14px}
.card b{display:block;font-size:20px;font-variant-numeric:tabular-nums}.card span{color:var(--dim);font-size:13px}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(420px,1fr));gap:20px;align-items:start}
figure{margin:0;background:var(--panel);border:1px solid var(--line);border-radius:10px;padding:12px}
figure img,figure svg{width:100%;height:auto;max-height:520px;object-fit:contain;display:block}
figcaption{color:var(--dim);font-size:13px;margin-top:8px}.scroll{overflow:auto;max-height:520px;
border:1px solid var(--line);border-radius:10px}table{border-collapse:collapse;width:100%;font-size:13.5px;
font-variant-numeric:tabular-nums}th,td{padding:6px 10px;text-align:left;border-bottom:1px solid var(--line);
white-space:nowrap}th{position:sticky;top:0;background:var(--panel);color:var(--dim);font-weight:500}
td.n,th.n{text-align:right}tr:last-child td{border-bottom:0}.bar{display:inline-block;height:8px;border-radius:4px;
background:var(--accent);vertical-align:middle;min-width:2px}.banner{padding:12px 16px;border-radius:10px;
border:1px solid var(--warn);color:var(--warn);margin:16px 0}.banner.bad{border-color:var(--bad);color:var(--bad)}
details{background:var(--panel);border:1px solid var(--line);border-radius:10px;padding:10px 14px;margin-top:12px}
summary{cursor:pointer}td.wrap{white-space:normal;min-width:260px}
@media(max-width:520px){.two{grid-template-columns:1fr}}
"""


def write_page(path: Path, facts: Facts, text: Words, *, durable: bool = True) -> Path:
    """Write the page beside the pictures it shows; return its path.

    Raises
    ------
    SaveFailed
        The file cannot be written.
    """
    with atomic_path(path, durable=durable) as temporary:
        # File names may hold bytes that are no text.
        temporary.write_text(render_page(facts, text), encoding="utf-8", errors="backslashreplace")
    return path


def render_page(facts: Facts, text: Words) -> str:
    """Return the page as HTML.

    Parameters
    ----------
    facts : dict
        The report (`zemosaic_pipeline.report`).
    text : Words
        ``text(key, **values)`` gives the text in the reader's language; numbers and dates come from it, too.
    """
    parts = [
        _head(facts, text),
        _hero(facts, text),
        _cards(facts, text),
        _pictures(facts, text),
        sky_section(facts, text),
        colour_section(facts, text),
        _overlaps(facts, text),
        _phases(facts, text),
        _tiles(facts, text),
        _left_out(facts, text),
        _frames(facts, text),
        _gpu(facts, text),
        _cluster(facts, text),
        _messages(facts, text),
        _settings(facts, text),
    ]
    return (
        f'<!doctype html><html lang="{escape(text.language_code)}"><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><title>{escape(text("report.title"))}'
        f"</title><style>{_STYLE}</style><main>{''.join(parts)}</main></html>\n"
    )


def _e(value: Any) -> str:
    return escape(str(value))


def _number(text: Words, value: float | None, digits: int = 2) -> str:
    return "–" if value is None else text.number(value, digits)


def _light(text: Words, level: float | None, digits: int) -> str:
    return "–" if level is None else text.number(level, decimals_of_light(level, digits, 3))


def _bytes(text: Words, value: float | None) -> str:
    return "–" if value is None else text.size(value)


def _seconds(text: Words, value: float) -> str:
    if value < 120:
        return f"{text.number(value, 1)} s"
    return f"{int(value // 60)} min {int(value % 60):02d} s"


def _table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    numeric: frozenset[int],
    wrap: frozenset[int] = frozenset(),
) -> str:
    def cell(tag: str, i: int, value: str) -> str:
        kind = ' class="n"' if i in numeric else ' class="wrap"' if i in wrap else ""
        return f"<{tag}{kind}>{value}</{tag}>"

    head = "".join(cell("th", i, _e(value)) for i, value in enumerate(heads))
    body = "".join("<tr>" + "".join(cell("td", i, v) for i, v in enumerate(row)) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _reason(text: Words, key: str, values: dict[str, Any]) -> str:
    shown = {k: ("–" if v is None else v) for k, v in values.items() if not isinstance(v, dict | list)}
    line = text(key, **shown)
    attempts = values.get("attempts") or []
    tried = "; ".join(f"{a['solver']}: {_reason(text, a['key'], a.get('values') or {})}" for a in attempts)
    return f"{line} ({tried})" if tried else line


def _head(facts: Facts, text: Words) -> str:
    banner = ""
    if facts.get("failure"):
        failure = facts["failure"]
        banner = f'<div class="banner bad">{_e(_reason(text, failure["key"], failure["values"]))}</div>'
    elif facts["outcome"] == "running":
        phase = text(f"phase.{facts['phase']}")
        running = text("report.running", started=facts["started"], phase=phase, written=facts["written"])
        banner = f'<div class="banner">{_e(running)}</div>'
    elif (facts.get("mosaic") or {}).get("approximate"):
        banner = f'<div class="banner">{_e(text("report.approximate"))}</div>'
    if interrupted := facts.get("interrupted"):
        banner += f'<div class="banner">{_e(text("run_info_interrupted", **interrupted))}</div>'
    if earlier := facts.get("earlier_results"):
        said = text("report.earlier_results", run_id=earlier["run_id"], finished=earlier["finished"])
        banner += f'<div class="banner"><a href="{_e(earlier["page"])}">{_e(said)}</a></div>'
    return (
        f"<h1>{_e(text('report.title'))}</h1><p class='dim'>{_e(facts['input_dir'])} · "
        f"{_e(text.moment(facts['finished'] or facts['written']))} · {_e(facts['run_id'])} · "
        f"ZeMosaic {_e(facts['versions']['zemosaic'])}</p>{banner}"
    )


def _picture(facts: Facts, kind: str) -> str:
    path = facts["outputs"].get(kind)
    return Path(path).name if path else ""


def _hero(facts: Facts, text: Words) -> str:
    name = _picture(facts, "preview")
    if not name:
        return ""
    picture = f'<img class="hero" src="{_e(name)}" alt="{_e(text("report.mosaic"))}">'
    zoom = facts["outputs"].get("zoom")
    if not zoom:
        return picture
    # The page lies in a folder beside the report.
    link = "/".join(Path(zoom).parts[-2:])
    return f'<a href="{_e(link)}">{picture}</a><p class="dim"><a href="{_e(link)}">{_e(text("report.zoom"))}</a></p>'


def _cards(facts: Facts, text: Words) -> str:
    mosaic = facts.get("mosaic")
    cards = [
        (f"{facts['frames_used']} / {facts['frames_found']}", "report.frames_used"),
        (str(len(facts["tiles"])), "report.tiles"),
        (_seconds(text, facts["seconds"]), "report.time"),
        (
            f"{_bytes(text, facts['peak_bytes'])} / {_bytes(text, facts['planned_peak_bytes'])}",
            "report.memory",
        ),
    ]
    if mosaic:
        cards.insert(2, (f"{mosaic['width']} × {mosaic['height']} px", "report.size"))
        cards.insert(3, (f"{text.number(mosaic['scale_arcsec'], 3)}″/px", "report.scale"))
    body = "".join(f'<div class="card"><b>{_e(v)}</b><span>{_e(text(k))}</span></div>' for v, k in cards)
    return f'<div class="cards">{body}</div>'


def _plane(points: Sequence[Sequence[float]], ra0: float, dec0: float) -> list[tuple[float, float]]:
    """Project positions on the plane tangent at the centre; east to the left, degrees."""
    placed = []
    for ra, dec in points:
        d_ra, dec_r, dec0_r = math.radians(ra - ra0), math.radians(dec), math.radians(dec0)
        cosine = math.sin(dec0_r) * math.sin(dec_r) + math.cos(dec0_r) * math.cos(dec_r) * math.cos(d_ra)
        east = math.cos(dec_r) * math.sin(d_ra) / cosine
        north = (
            math.cos(dec0_r) * math.sin(dec_r) - math.sin(dec0_r) * math.cos(dec_r) * math.cos(d_ra)
        ) / cosine
        placed.append((-math.degrees(east), -math.degrees(north)))
    return placed


def _footprints(facts: Facts, text: Words) -> str:
    frames = [frame for frame in facts["frames"] if frame.get("footprint")]
    if not frames:
        return ""
    ra0, dec0 = frames[0]["footprint"][0]
    outlines = [(_plane(frame["footprint"], ra0, dec0), frame["tile"]) for frame in frames]
    xs = [x for outline, _ in outlines for x, _ in outline]
    ys = [y for outline, _ in outlines for _, y in outline]
    width, height = max(xs) - min(xs), max(ys) - min(ys)
    margin, stroke = 0.04 * max(width, height), 0.0025 * max(width, height)
    opacity = max(0.08, min(0.6, 12 / len(outlines)))
    shapes = []
    for outline, tile in outlines:
        points = " ".join(f"{x:.5f},{y:.5f}" for x, y in outline)
        colour = _TILE_COLOURS[(tile or 0) % len(_TILE_COLOURS)]
        shapes.append(
            f'<polygon points="{points}" fill="{colour}" fill-opacity="{opacity / 6:.3f}" stroke="{colour}"/>'
        )
    box = f"{min(xs) - margin:.5f} {min(ys) - margin:.5f} {width + 2 * margin:.5f} {height + 2 * margin:.5f}"
    return (
        f'<figure><svg viewBox="{box}" stroke-width="{stroke:.5f}" stroke-opacity="{opacity:.2f}" role="img">'
        f"{''.join(shapes)}</svg><figcaption>{_e(text('report.footprints'))}</figcaption></figure>"
    )


def _pictures(facts: Facts, text: Words) -> str:
    name = _picture(facts, "coverage_preview")
    depth = ""
    if name:
        depth = (
            f'<figure><img src="{_e(name)}" alt="{_e(text("report.coverage"))}">'
            f"<figcaption>{_e(text('report.coverage'))}</figcaption></figure>"
        )
    return f'<div class="two">{depth}{_footprints(facts, text)}</div>'


def _overlaps(facts: Facts, text: Words) -> str:
    overlaps = (facts.get("photometry") or {}).get("overlaps") or []
    if not overlaps:
        return ""
    worst = max(o["rms_before_adu"] for o in overlaps) or 1.0
    rows = [
        (
            f"{o['tiles'][0]} – {o['tiles'][1]}",
            str(o["cells"]),
            _light(text, o["rms_before_adu"], 2),
            _light(text, o["rms_after_adu"], 2),
            f'<span class="bar" style="width:{120 * o["rms_before_adu"] / worst:.0f}px;opacity:.35"></span><br>'
            f'<span class="bar" style="width:{120 * o["rms_after_adu"] / worst:.0f}px"></span>',
        )
        for o in sorted(overlaps, key=lambda o: -o["rms_after_adu"])
    ]
    heads = [text(f"report.overlap_{k}") for k in ("tiles", "cells", "before", "after", "bars")]
    return f"<h2>{_e(text('report.overlaps'))}</h2>{_table(heads, rows, frozenset({1, 2, 3}))}"


def _phases(facts: Facts, text: Words) -> str:
    planned = {row["phase"]: row for row in facts["plan"]}
    longest = max((phase["seconds"] for phase in facts["phases"]), default=1.0) or 1.0
    rows = [
        (
            _e(text(f"phase.{phase['phase']}")),
            _seconds(text, phase["seconds"]),
            f'<span class="bar" style="width:{160 * phase["seconds"] / longest:.0f}px"></span>',
            _bytes(text, phase["peak_bytes"]),
            _bytes(text, (planned.get(phase["phase"]) or {}).get("ram_bytes")),
        )
        for phase in facts["phases"]
    ]
    heads = [text(f"report.phase_{k}") for k in ("name", "seconds", "bars", "memory", "planned")]
    return f"<h2>{_e(text('report.phases'))}</h2>{_table(heads, rows, frozenset({1, 3, 4}))}"


def _tiles(facts: Facts, text: Words) -> str:
    rows = [
        (
            str(tile["tile_id"]),
            str(tile["n_frames"]),
            _number(text, tile["exposure_s"], 0),
            f"{tile['shape_hw'][1]} × {tile['shape_hw'][0]}",
            " ".join(_light(text, v, 2) for v in tile["noise_adu"]),
            _percent(text, tile["rejected_fraction"]),
            _percent(text, tile.get("core_rejected_fraction")),
        )
        for tile in facts["tiles"]
    ]
    if not rows:
        return ""
    columns = ("id", "frames", "exposure", "size", "noise", "rejected", "rejected_cores")
    heads = [text(f"report.tile_{k}") for k in columns]
    return f"<h2>{_e(text('report.tile_table'))}</h2>{_table(heads, rows, frozenset({0, 1, 2, 4, 5, 6}))}"


def _percent(text: Words, share: float | None) -> str:
    return "–" if share is None else f"{text.number(100 * share, 2)} %"


def _left_out(facts: Facts, text: Words) -> str:
    if not facts["left_out"]:
        return ""
    rows = [
        (
            _e(Path(item["path"]).name),
            _e(text(f"phase.{item['phase']}")),
            _e(_reason(text, item["key"], item["values"])),
        )
        for item in facts["left_out"]
    ]
    heads = [text(f"report.left_{k}") for k in ("file", "phase", "reason")]
    title = text("report.left_out", frames=len(rows))
    return f"<h2>{_e(title)}</h2>{_table(heads, rows, frozenset(), frozenset({2}))}"


def _frames(facts: Facts, text: Words) -> str:
    rows = []
    for frame in facts["frames"]:
        solution, fit = frame["solution"], frame["registration"]
        rows.append(
            (
                _e(Path(frame["path"]).name),
                _e(text.moment(str(frame["date_obs"]))),
                _e(frame["tile"]),
                str(frame["stars"]),
                _number(text, frame["fwhm_px"]),
                _number(text, frame["elongation"]),
                _light(text, sum(frame["sky_adu"]) / len(frame["sky_adu"]), 0),
                _number(text, frame["transparency"], 3),
                _e(text(f"method.{solution['method']}")) + (" ≈" if solution["approximate"] else ""),
                _number(text, fit["rms_px"], 3),
            )
        )
    if not rows:
        return ""
    names = ("file", "date", "tile", "stars", "fwhm", "elongation", "sky", "transparency", "solved", "rms")
    heads = [text(f"report.frame_{k}") for k in names]
    return f"<h2>{_e(text('report.frame_table'))}</h2>{_table(heads, rows, frozenset({2, 3, 4, 5, 6, 7, 9}))}"


def _gpu(facts: Facts, text: Words) -> str:
    gpu = facts.get("gpu") or {}
    lines = [_e(_reason(text, line["key"], line.get("values") or {})) for line in gpu.get("lines", [])]
    if not lines:
        return ""
    return f"<h2>{_e(text('report.gpu'))}</h2><p>{'<br>'.join(lines)}</p>"


def _cluster(facts: Facts, text: Words) -> str:
    workers = (facts.get("cluster") or {}).get("workers") or []
    lines = [
        _e(text("report.cluster_worker", host=worker["host"], name=worker["name"], calls=worker["calls"]))
        for worker in workers
        if worker["refused"] is None or worker["calls"]
    ]
    return f"<h2>{_e(text('report.cluster'))}</h2><p>{'<br>'.join(lines)}</p>" if lines else ""


def _messages(facts: Facts, text: Words) -> str:
    rows = [
        (_e(m["level"]), _e(_reason(text, m["key"], m["values"])))
        for m in facts["messages"]
        if m["level"] in ("WARN", "ERROR")
    ]
    if not rows:
        return ""
    heads = [text("report.message_level"), text("report.message_text")]
    return f"<h2>{_e(text('report.messages'))}</h2>{_table(heads, rows, frozenset(), frozenset({1}))}"


def _settings(facts: Facts, text: Words) -> str:
    rows = [(_e(key), _e(value)) for key, value in sorted(facts["settings"].items())]
    versions = [(_e(key), _e(value)) for key, value in facts["versions"].items()]
    heads = [text("report.setting_key"), text("report.setting_value")]
    return (
        f"<details><summary>{_e(text('report.settings'))}</summary>{_table(heads, rows, frozenset())}</details>"
        f"<details><summary>{_e(text('report.versions'))}</summary>{_table(heads, versions, frozenset())}</details>"
    )
