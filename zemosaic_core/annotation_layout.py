"""Where the strokes and letters of an annotation go, so that no words lie on each other.

The same layout is drawn as pixels, as SVG and by windows. Places are pixels of the picture as in `annotation`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from zemosaic_core.annotation import Annotation, GridLine, Mark

__all__ = ["Label", "Layout", "Stroke", "lay_out"]

# Sizes in heights of a letter.
_SMALLEST_RADIUS = 0.45
_STAR_GAP, _STAR_TICK = 0.45, 0.55
_MARGIN = 0.6
_COMPASS_ARM, _ARROW = 1.8, 0.35
_BAR_TICK = 0.25
_HEIGHT = 1.25
_GAP = 0.35


@dataclass(frozen=True, slots=True)
class Stroke:
    """A line to be drawn.

    Attributes
    ----------
    role : {'grid', 'object', 'star', 'scale'}
        ``scale`` are scale bar and compass.
    points_px : ndarray, shape (n, 2), float64
    """

    role: str
    points_px: np.ndarray


@dataclass(frozen=True, slots=True)
class Label:
    """Words to be written round their middle.

    Attributes
    ----------
    role : {'grid', 'object', 'star', 'scale'}
    text : str
    x_px, y_px : float
        Middle of the words.
    """

    role: str
    text: str
    x_px: float
    y_px: float


@dataclass(frozen=True, slots=True)
class Layout:
    """All strokes and words over a picture, and how large letters are, px."""

    strokes: tuple[Stroke, ...]
    labels: tuple[Label, ...]
    letter_px: float


@dataclass
class _Page:
    """The rectangles that are taken: x0, y0, x1, y1."""

    shape_hw: tuple[int, int]
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)

    def is_free(self, box: tuple[float, float, float, float]) -> bool:
        h, w = self.shape_hw
        if box[0] < 0 or box[1] < 0 or box[2] > w - 1 or box[3] > h - 1:
            return False
        return not any(
            box[0] < t[2] and t[0] < box[2] and box[1] < t[3] and t[1] < box[3] for t in self.taken
        )

    def take(self, x: float, y: float, width: float, height: float, *, forced: bool = False) -> bool:
        """Take the room round a middle if it is free."""
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        if not forced and not self.is_free(box):
            return False
        self.taken.append(box)
        return True


def lay_out(note: Annotation, letter_px: float, width_px: Callable[[str], float]) -> Layout:
    """Find a place for every stroke and for as many words as have room.

    Scale bar and compass come first, then the objects those first that are well known, each beside its mark
    where that is free, then the values of lines at the borders. Words without room are left out; marks never are.

    Parameters
    ----------
    letter_px : float
        Height of the letters.
    width_px : callable
        Width of a text written with them.
    """
    page = _Page(note.shape_hw)
    strokes = [Stroke("grid", line.points_px) for line in note.lines]
    labels: list[Label] = []
    for more_strokes, more_labels in (
        _scale_bar(note, page, letter_px, width_px),
        _compass(note, page, letter_px),
    ):
        strokes += more_strokes
        labels += more_labels
    # Words of what is well known may lie upon the many small marks of the others.
    for well_known in (True, False):
        marks = [mark for mark in note.marks if mark.is_well_known == well_known]
        for mark in marks:
            strokes += [Stroke(_role(mark), points) for points in _mark_lines(mark, letter_px)]
            reach = _small_radius(mark, letter_px)
            if reach is not None:
                page.take(mark.x_px, mark.y_px, 2 * reach, 2 * reach, forced=True)
        for mark in marks:
            place = _place_beside(mark, page, letter_px, width_px(mark.label))
            if place is not None:
                labels.append(Label(_role(mark), mark.label, *place))
    labels += _line_labels(note.lines, page, letter_px, width_px)
    return Layout(tuple(strokes), tuple(labels), letter_px)


def _role(mark: Mark) -> str:
    return "star" if mark.sky_object.kind == "star" else "object"


def _small_radius(mark: Mark, letter_px: float) -> float | None:
    """Radius of a mark that words should keep clear of; None for large ellipses, which hold words inside."""
    if mark.sky_object.kind == "star":
        return (_STAR_GAP + _STAR_TICK) * letter_px
    radius = max(mark.semi_major_px, _SMALLEST_RADIUS * letter_px)
    if math.isnan(radius):
        return _SMALLEST_RADIUS * letter_px
    return radius if radius < 2 * letter_px else None


def _mark_lines(mark: Mark, letter_px: float) -> list[np.ndarray]:
    """Four ticks round a star; an ellipse of the size of an object, never too small to be seen."""
    middle = np.array([mark.x_px, mark.y_px])
    if mark.sky_object.kind == "star":
        near, far = _STAR_GAP * letter_px, (_STAR_GAP + _STAR_TICK) * letter_px
        ways = np.array([(1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)])
        return [middle + np.outer((near, far), way) for way in ways]
    least = _SMALLEST_RADIUS * letter_px
    a, b = (max(v, least) if np.isfinite(v) else least for v in (mark.semi_major_px, mark.semi_minor_px))
    turn = np.deg2rad(mark.angle_deg)
    t = np.linspace(0.0, 2 * np.pi, int(np.clip(a / 3, 32, 720)) + 1)
    along, across = a * np.cos(t), b * np.sin(t)
    x = along * np.cos(turn) - across * np.sin(turn)
    y = along * np.sin(turn) + across * np.cos(turn)
    return [middle + np.column_stack([x, y])]


def _extent(mark: Mark, letter_px: float) -> tuple[float, float]:
    """Half width and half height of a mark."""
    if mark.sky_object.kind == "star":
        return (_STAR_GAP + _STAR_TICK) * letter_px, (_STAR_GAP + _STAR_TICK) * letter_px
    points = _mark_lines(mark, letter_px)[0] - (mark.x_px, mark.y_px)
    x, y = np.abs(points).max(axis=0)
    return float(x), float(y)


def _place_beside(mark: Mark, page: _Page, letter_px: float, width: float) -> tuple[float, float] | None:
    x_reach, y_reach = _extent(mark, letter_px)
    height, gap = _HEIGHT * letter_px, _GAP * letter_px
    right, up = x_reach + gap + width / 2, y_reach + gap + height / 2
    ways = [(right, 0.0), (-right, 0.0), (0.0, up), (0.0, -up)]
    ways += [(0.75 * right, 0.75 * up), (-0.75 * right, 0.75 * up), (0.75 * right, -0.75 * up)]
    ways += [(-0.75 * right, -0.75 * up)]
    if x_reach > 0.6 * width and y_reach > height:
        # Within a large ellipse, when there is no room round it.
        ways += [(0.0, height), (0.0, -height), (0.0, 0.6 * y_reach), (0.0, -0.6 * y_reach)]
    for dx, dy in ways:
        if page.take(mark.x_px + dx, mark.y_px + dy, width, height):
            return mark.x_px + dx, mark.y_px + dy
    return None


def _scale_bar(
    note: Annotation, page: _Page, letter_px: float, width_px: Callable[[str], float]
) -> tuple[list[Stroke], list[Label]]:
    x, y, length = _MARGIN * letter_px, _MARGIN * letter_px, note.scale_bar.length_px
    tick = _BAR_TICK * letter_px
    bar = np.array([(x, y + tick), (x, y), (x + length, y), (x + length, y + tick)])
    text, middle = note.scale_bar.label, y + 0.8 * letter_px
    width = max(length, width_px(text)) + letter_px
    page.take(x + length / 2, y + 0.6 * letter_px, width, 2.2 * letter_px, forced=True)
    return [Stroke("scale", bar)], [Label("scale", text, x + length / 2, middle)]


def _compass(note: Annotation, page: _Page, letter_px: float) -> tuple[list[Stroke], list[Label]]:
    """Two arrows from a point near the lower right corner."""
    arm = _COMPASS_ARM * letter_px
    room = arm + (1.0 + _MARGIN) * letter_px
    foot = np.array([note.shape_hw[1] - 1 - room, room])
    strokes, labels = [], []
    for text, way in (("N", note.compass.north_xy), ("E", note.compass.east_xy)):
        along, across = np.array(way), np.array([-way[1], way[0]])
        tip = foot + arm * along
        back = tip - _ARROW * letter_px * along
        side = 0.5 * _ARROW * letter_px * across
        strokes += [
            Stroke("scale", np.array([foot, tip])),
            Stroke("scale", np.array([back + side, tip, back - side])),
        ]
        x, y = tip + 0.6 * letter_px * along
        labels.append(Label("scale", text, float(x), float(y)))
    page.take(float(foot[0]), float(foot[1]), 2 * room, 2 * room, forced=True)
    return strokes, labels


def _line_labels(
    lines: tuple[GridLine, ...], page: _Page, letter_px: float, width_px: Callable[[str], float]
) -> list[Label]:
    """Values at one end of each line, just inside the border it meets."""
    h, w = page.shape_hw
    labels, named = [], set()
    for line in lines:
        if (line.kind, line.value_deg) in named:
            continue
        width, height = width_px(line.label), _HEIGHT * letter_px
        inner = np.array([width / 2 + 0.3 * letter_px, height / 2 + 0.2 * letter_px])
        ends = (line.points_px[0], line.points_px[-1])
        # Declinations to the left, right ascensions at the lower border, where the grid is upright.
        for end in sorted(ends, key=lambda p: (p[0], p[1]) if line.kind == "dec" else (p[1], p[0])):
            x, y = np.clip(end, inner, (w - 1, h - 1) - inner)
            if page.take(float(x), float(y), width, height):
                labels.append(Label("grid", line.label, float(x), float(y)))
                named.add((line.kind, line.value_deg))
                break
    return labels
