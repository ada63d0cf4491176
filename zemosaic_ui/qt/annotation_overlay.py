"""Draws names, outlines and lines of equal coordinates over the viewer's picture, as many as the zoom has room for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PySide6.QtCore import QPointF, QRectF, Qt
from PySide6.QtGui import QColor, QPainter, QPen, QPolygonF

from zemosaic_core.annotation import Annotation, Mark

__all__ = ["draw_annotation", "labelled_marks"]

_LINES, _MARKS, _WORDS = QColor(120, 150, 180, 110), QColor(226, 162, 74, 210), QColor(240, 225, 195)
_LEAST_PX = 5.0
_MOST_MARKS = 120
# Ellipses are drawn with so many corners.
_CORNERS = np.linspace(0.0, 2.0 * np.pi, 49)

ToScreen = Callable[[float, float], QPointF]


def labelled_marks(
    note: Annotation, view: QRectF, to_screen: ToScreen, size_of: Callable[[str], QRectF]
) -> list[tuple[Mark, QRectF]]:
    """Return the marks in a view whose labels have room, those first that deserve one most, with their places.

    Parameters
    ----------
    view : QRectF
        What is in sight, screen pixels.
    size_of : callable
        Box of a text, screen pixels.
    """
    placed: list[tuple[Mark, QRectF]] = []
    for mark in note.marks:
        at = to_screen(mark.x_px, mark.y_px)
        if not view.contains(at):
            continue
        box = size_of(mark.label)
        box.moveTopLeft(at + QPointF(9.0, 3.0))
        if not any(box.adjusted(-2, -2, 2, 2).intersects(other) for _, other in placed):
            placed.append((mark, box))
            if len(placed) == _MOST_MARKS:
                break
    return placed


def draw_annotation(
    painter: QPainter, note: Annotation, view: QRectF, to_screen: ToScreen, scale: float
) -> None:
    """Draw what there is to see; ``scale`` is screen pixels per pixel of the picture."""
    painter.save()
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    painter.setBrush(Qt.BrushStyle.NoBrush)
    metrics = painter.fontMetrics()
    for line in note.lines:
        painter.setPen(QPen(_LINES, 1.0))
        points = [to_screen(float(x), float(y)) for x, y in line.points_px]
        painter.drawPolyline(QPolygonF(points))
        inside = [point for point in points if view.adjusted(4, 16, -60, -4).contains(point)]
        if inside:
            painter.setPen(_LINES.lighter(140))
            painter.drawText(inside[0] + QPointF(4.0, -4.0), line.label)
    for mark, box in labelled_marks(note, view, to_screen, lambda text: QRectF(metrics.boundingRect(text))):
        painter.setPen(QPen(_MARKS, 1.3))
        painter.drawPolyline(_outline(mark, to_screen, scale))
        painter.setPen(QColor(0, 0, 0, 190))
        painter.drawText(box.translated(1.0, 1.0), Qt.TextFlag.TextDontClip, mark.label)
        painter.setPen(_WORDS)
        painter.drawText(box, Qt.TextFlag.TextDontClip, mark.label)
    _draw_scale_bar(painter, note, view, scale)
    painter.restore()


def _outline(mark: Mark, to_screen: ToScreen, scale: float) -> QPolygonF:
    """Ellipse of an object as large as it is; what is tiny on the screen, or of no known size, gets a small circle."""
    least = _LEAST_PX / scale
    major, minor = (
        max(size, least) if np.isfinite(size) else least for size in (mark.semi_major_px, mark.semi_minor_px)
    )
    angle = np.deg2rad(mark.angle_deg)
    along, across = major * np.cos(_CORNERS), minor * np.sin(_CORNERS)
    x = mark.x_px + along * np.cos(angle) - across * np.sin(angle)
    y = mark.y_px + along * np.sin(angle) + across * np.cos(angle)
    return QPolygonF([to_screen(float(a), float(b)) for a, b in zip(x, y, strict=True)])


def _draw_scale_bar(painter: QPainter, note: Annotation, view: QRectF, scale: float) -> None:
    length = note.scale_bar.length_px * scale
    left, y = view.left() + 14.0, view.bottom() - 14.0
    painter.setPen(QPen(_WORDS, 1.6))
    if length < view.width() - 28.0:
        painter.drawLine(QPointF(left, y), QPointF(left + length, y))
        painter.drawText(QPointF(left, y - 6.0), note.scale_bar.label)
    middle, reach = QPointF(view.right() - 34.0, view.bottom() - 34.0), 22.0
    for letter, (dx, dy) in (("N", note.compass.north_xy), ("E", note.compass.east_xy)):
        end = middle + QPointF(dx * reach, -dy * reach)
        painter.drawLine(middle, end)
        painter.drawText(
            QRectF(end.x() - 8 + 6 * dx, end.y() - 8 - 6 * dy, 16, 16), Qt.AlignmentFlag.AlignCenter, letter
        )
