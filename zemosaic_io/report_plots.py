"""Small plots of the report page, drawn as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

__all__ = ["figure", "plot"]

Point = tuple[float, float]
Series = tuple[Sequence[Point], str]

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _MARGIN = 560.0, 260.0, 58.0, 34.0, 12.0


def figure(picture: str, caption: str) -> str:
    """Return a picture with its caption as HTML; empty without a picture."""
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>" if picture else ""


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    # One value alone stands in the middle, counts of a sensor in a range that shows that nothing changes.
    pad = 0.06 * (high - low) or (0.05 * abs(high) if 0 < abs(high) < 1 else max(0.05 * abs(high), 0.5))
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


def plot(
    points: Sequence[Series] = (), lines: Sequence[Series] = (), written: Callable[[str], str] = str
) -> str:
    """Draw points and lines with axes as SVG; each series is a list of (x, y) and a colour. Empty without points.

    ``written`` turns a number that Python wrote into what stands at the axes.
    """
    places = [p for part, _ in (*points, *lines) for p in part]
    if not places:
        return ""
    (x0, x1), (y0, y1) = _range([p[0] for p in places]), _range([p[1] for p in places])

    def at(x: float, y: float) -> Point:
        wide, high = _WIDTH - _LEFT - _MARGIN, _HEIGHT - _BOTTOM - _MARGIN
        return _LEFT + wide * (x - x0) / (x1 - x0), _MARGIN + high * (1 - (y - y0) / (y1 - y0))

    parts = []
    for tick in _ticks(y0, y1):
        _, y = at(x0, tick)
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _MARGIN}" y1="{y:.1f}" y2="{y:.1f}" stroke="#2a313c"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{written(f"{tick:g}")}</text>'
        )
    for tick in _ticks(x0, x1):
        x, _ = at(tick, y0)
        parts.append(
            f'<text x="{x:.1f}" y="{_HEIGHT - 12}" text-anchor="middle">{written(f"{tick:g}")}</text>'
        )
    for part, colour in points:
        parts.extend(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{colour}"/>' for x, y in (at(*p) for p in part)
        )
    for part, colour in lines:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*p) for p in part))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
    return (
        f'<svg viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" font-size="12" fill="#9aa4b2" role="img">'
        f"{''.join(parts)}</svg>"
    )
