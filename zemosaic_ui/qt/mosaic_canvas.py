"""Draws a mosaic from parts, with zoom, pan and overlays; every pixel comes ready from `PartRenderer`."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
from PySide6.QtCore import QPoint, QPointF, QRectF, Qt, QTimer, Signal
from PySide6.QtGui import (
    QColor,
    QImage,
    QKeyEvent,
    QMouseEvent,
    QPainter,
    QPaintEvent,
    QPen,
    QPolygonF,
    QResizeEvent,
    QWheelEvent,
)
from PySide6.QtWidgets import QWidget

from zemosaic_core.annotation import Annotation
from zemosaic_pipeline.picture_look import stretch_options
from zemosaic_ui.look import Look
from zemosaic_ui.mosaic_image import PART_PX, MosaicImage
from zemosaic_ui.part_renderer import PartRenderer, Rendered, ViewToSave
from zemosaic_ui.qt.annotation_overlay import draw_annotation
from zemosaic_ui.qt.session import Session

__all__ = ["MosaicCanvas"]

MAX_IMAGES = 220
MAX_SCALE = 32.0
MAX_WANTED = 60
# Finishing takes a second: it begins when the view has been at rest for so long.
REST_MS = 350


def _to_qimage(rgba: np.ndarray) -> QImage:
    height, width = rgba.shape[:2]
    data = np.ascontiguousarray(rgba)
    return QImage(data.data, width, height, 4 * width, QImage.Format.Format_RGBA8888).copy()


def _keep(parts: OrderedDict[tuple[int, ...], QImage], ready: Rendered) -> None:
    assert ready.rgba is not None
    parts[(ready.look, *ready.key)] = _to_qimage(ready.rgba[::-1])
    while len(parts) > MAX_IMAGES:
        parts.popitem(last=False)


class MosaicCanvas(QWidget):
    """The picture. FITS rows grow upwards: the first row of the file is at the bottom.

    Signals
    -------
    hovered : (x, y) image pixel under the cursor, or (-1, -1)
    zoomed : screen pixels per image pixel
    view_changed : by the user; a linked canvas follows
    counted : the histogram of what is shown
    saved : path of a view that was written
    """

    hovered = Signal(float, float)
    zoomed = Signal(float)
    view_changed = Signal()
    auto_ready = Signal(object)
    counted = Signal(object)
    saved = Signal(str)
    failed = Signal(str)

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self.image: MosaicImage | None = None
        self.renderer: PartRenderer | None = None
        self.look: Look | None = None
        self.scale = 1.0
        self.centre = QPointF(0, 0)
        self.overlays: dict[str, tuple[list[np.ndarray], list[str]]] = {}
        self.shown_overlays: set[str] = set()
        self.caption = ""
        self.annotation: Annotation | None = None
        self._fitted = True
        self._seen_level = 0
        self._overview: QImage | None = None
        self._coverage: QImage | None = None
        self._fine: tuple[int, QImage] | None = None
        self._parts: OrderedDict[tuple[int, ...], QImage] = OrderedDict()
        self._finished: OrderedDict[tuple[int, ...], QImage] = OrderedDict()
        self._drag: QPointF | None = None
        self.setMouseTracking(True)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setMinimumSize(300, 200)
        self._timer = QTimer(self)
        self._timer.setInterval(30)
        self._timer.timeout.connect(self._on_tick)
        self._rest_timer = QTimer(self)
        self._rest_timer.setSingleShot(True)
        self._rest_timer.setInterval(REST_MS)
        self._rest_timer.timeout.connect(self._ask_finished)

    # ------------------------------------------------------------------ content

    def show_image(self, image: MosaicImage, *, shared: bool = False) -> None:
        """Show a mosaic; the automatic stretch arrives by `auto_ready`. A ``shared`` one is another canvas's."""
        self.close_image()
        self.image = image
        self.renderer = PartRenderer(image, stretch_options(self.session.form.to_mapping()), shared=shared)
        self._seen_level = image.ready_level
        self.renderer.ask_auto("rgb")
        self._timer.start()
        self.fit()

    def close_image(self) -> None:
        """Let go of the mosaic."""
        self._timer.stop()
        self._rest_timer.stop()
        if self.renderer is not None:
            self.renderer.close()
        self.image = self.renderer = self.look = None
        self._overview = self._coverage = self._fine = self.annotation = None
        self._parts.clear()
        self._finished.clear()
        self.overlays.clear()
        self.update()

    def set_look(self, look: Look) -> None:
        """Show with another stretch or other channels."""
        self.look = look
        self._parts.clear()
        self._finished.clear()
        if self.renderer is not None:
            self.renderer.ask_overview(look)
            self._ask_parts()

    def set_overlay(self, name: str, polygons: list[np.ndarray], names: list[str]) -> None:
        """Give the outlines (M, 2) in image pixels of an overlay."""
        self.overlays[name] = (polygons, names)
        self.update()

    def show_overlay(self, name: str, on: bool) -> None:
        """Show or hide an overlay."""
        (self.shown_overlays.add if on else self.shown_overlays.discard)(name)
        if name == "annotation" and on and self.annotation is None and self.renderer is not None:
            self.renderer.ask_annotation()
        self.update()

    # ------------------------------------------------------------------ zoom and pan

    def fit(self) -> None:
        """Show the whole mosaic."""
        if self.image is None:
            return
        height, width = self.image.shape_hw
        self.scale = min(self.width() / width, self.height() / height) * 0.97
        self.centre = QPointF((width - 1) / 2, (height - 1) / 2)
        self._fitted = True
        self._moved()

    def zoom(self, factor: float, at: QPointF | None = None) -> None:
        """Zoom by a factor, keeping the point ``at`` (screen) where it is."""
        if self.image is None:
            return
        at = at or QPointF(self.width() / 2, self.height() / 2)
        before = self.to_image(at)
        least = min(self.width() / self.image.shape_hw[1], self.height() / self.image.shape_hw[0]) * 0.3
        self.scale = min(MAX_SCALE, max(least, self.scale * factor))
        after = self.to_image(at)
        self.centre += before - after
        self._fitted = False
        self._moved()

    def zoom_to(self, scale: float) -> None:
        """Show one image pixel as ``scale`` screen pixels."""
        self.zoom(scale / self.scale)

    def to_image(self, point: QPointF) -> QPointF:
        """Return the image position of a screen position."""
        return QPointF(
            self.centre.x() + (point.x() - self.width() / 2) / self.scale,
            self.centre.y() - (point.y() - self.height() / 2) / self.scale,
        )

    def to_screen(self, x: float, y: float) -> QPointF:
        """Return the screen position of an image position."""
        return QPointF(
            self.width() / 2 + (x - self.centre.x()) * self.scale,
            self.height() / 2 - (y - self.centre.y()) * self.scale,
        )

    def look_at(self, x: float, y: float, scale: float) -> None:
        """Put an image position into the middle, at so many screen pixels per image pixel."""
        if self.image is not None and (x, y, scale) != (self.centre.x(), self.centre.y(), self.scale):
            self.centre, self.scale, self._fitted = QPointF(x, y), scale, False
            self._ask_parts()
            self.update()

    def _moved(self) -> None:
        self.zoomed.emit(self.scale)
        self._ask_parts()
        self.update()
        self.view_changed.emit()

    # ------------------------------------------------------------------ parts

    def _wanted_parts(self) -> tuple[int, list[tuple[int, int, int]]]:
        image = self.image
        level = image.level_for(self.scale * self.devicePixelRatioF())
        while level > 0 and not image.is_ready(level):
            level -= 1
        size = PART_PX * 2**level
        low, high = self.to_image(QPointF(0, self.height())), self.to_image(QPointF(self.width(), 0))
        height, width = image.level_shape(level)
        rows = range(max(0, int(low.y() // size)), min(-(-height // PART_PX), int(high.y() // size) + 1))
        columns = range(max(0, int(low.x() // size)), min(-(-width // PART_PX), int(high.x() // size) + 1))
        keys = [(level, row, column) for row in rows for column in columns]
        middle = ((low.y() + high.y()) / 2 / size - 0.5, (low.x() + high.x()) / 2 / size - 0.5)
        keys.sort(key=lambda key: (key[1] - middle[0]) ** 2 + (key[2] - middle[1]) ** 2)
        return level, keys

    def missing_parts(self) -> list[tuple[int, int, int]]:
        """Return the parts in sight that are not there yet, the middle first."""
        if self.image is None or self.look is None:
            return []
        _, keys = self._wanted_parts()
        # Before the reduced copies exist a far view would read the whole file part by part: the overview serves.
        if len(keys) > MAX_WANTED:
            return []
        return [key for key in keys if (self.look.number, *key) not in self._parts]

    def _ask_parts(self) -> None:
        if self.image is None or self.look is None or self.renderer is None:
            return
        self.renderer.ask_parts(self.look, self.missing_parts())

        self.renderer.forget_finished()
        self._rest_timer.start()

    def _ask_finished(self) -> None:
        image, look = self.image, self.look
        if image is None or look is None or self.renderer is None or not look.calm:
            return
        # An overview of single pixels has the noise of single pixels and not that of means.
        if image.n_levels > 1 and not image.ready_level:
            return
        whole = self._fine is None or self._fine[0] != look.number
        level, keys = self._wanted_parts()
        if level >= image.overview_level:
            keys = []
        missing = [key for key in keys if (look.number, *key) not in self._finished]
        if missing or whole:
            self.renderer.ask_finished(look, missing, whole=whole)

    @property
    def _fine_suffices(self) -> bool:
        """Whether the finished picture of the whole has pixels enough for this zoom."""
        if self._fine is None or self.look is None or self._fine[0] != self.look.number:
            return False
        return self._fine[1].width() >= 0.95 * self.image.shape_hw[1] * self.scale * self.devicePixelRatioF()

    def visible_box(self) -> tuple[int, tuple[int, int, int, int]]:
        """Return the level on show and its rows and columns ``(y0, y1, x0, x1)`` in sight."""
        image = self.image
        assert image is not None
        level = self._wanted_parts()[0]
        low, high = self.to_image(QPointF(0, self.height())), self.to_image(QPointF(self.width(), 0))
        height, width = image.level_shape(level)
        step = 2**level
        y0, x0 = max(0, int(low.y() // step)), max(0, int(low.x() // step))
        y1, x1 = min(height, int(high.y() // step) + 1), min(width, int(high.x() // step) + 1)
        return level, (y0, y1, x0, x1)

    def save_view(self, path: Path, form: str) -> None:
        """Write what is in sight, without overlays; `saved` or `failed` tells the end."""
        if self.renderer is not None and self.look is not None:
            level, box = self.visible_box()
            self.renderer.ask_save(self.look, ViewToSave(path, form, level, box))

    def _on_tick(self) -> None:
        changed = False
        if self.image is not None and self.image.ready_level != self._seen_level:
            self._on_copies()
        for ready in self.renderer.take() if self.renderer is not None else ():
            changed = True
            self._take(ready)
        if changed:
            self.update()

    def _take(self, ready: Rendered) -> None:
        match ready.kind:
            case "auto":
                self.auto_ready.emit(ready.extra)
            case "overview":
                self._overview = _to_qimage(ready.rgba[::-1])
                self.counted.emit(ready.extra)
            case "fine" if self.look is not None and ready.look == self.look.number:
                self._fine = (ready.look, _to_qimage(ready.rgba[::-1]))
                self.counted.emit(ready.extra)
            case "coverage":
                self._coverage = _to_qimage(ready.rgba[::-1])
            case "annotation":
                self.annotation = ready.extra
            case "failed":
                self.failed.emit(str(ready.extra))
            case "part" if self.look is not None and ready.look == self.look.number:
                _keep(self._parts, ready)
            case "finished_part" if self.look is not None and ready.look == self.look.number:
                _keep(self._finished, ready)
            case "saved":
                self.saved.emit(str(ready.extra))

    def _on_copies(self) -> None:
        """Averaged pixels are less noisy: the automatic stretch is chosen anew and shows more."""
        if self.image is not None and self.renderer is not None:
            self._seen_level = self.image.ready_level
            self.renderer.ask_auto(self.look.view if self.look is not None else "rgb")
            self._ask_parts()

    @property
    def n_finished(self) -> int:
        """Number of finished pictures ready to draw: parts, and the whole in small."""
        whole = self._fine is not None and self.look is not None and self._fine[0] == self.look.number
        return len(self._finished) + whole

    @property
    def n_parts(self) -> int:
        """Number of parts ready to draw."""
        return len(self._parts)

    @property
    def has_overview(self) -> bool:
        """Whether the whole picture is there in small."""
        return self._overview is not None

    # ------------------------------------------------------------------ drawing

    def paintEvent(self, event: QPaintEvent) -> None:
        """Draw overview, parts and overlays."""
        painter = QPainter(self)
        painter.fillRect(self.rect(), QColor("#0a0a0b"))
        if self.image is None:
            painter.setPen(QColor("#8f8c86"))
            words = self.session.texts("ui_viewer_empty")
            painter.drawText(
                self.rect().adjusted(40, 0, -40, 0),
                Qt.AlignmentFlag.AlignCenter | Qt.TextFlag.TextWordWrap,
                words,
            )
            return
        painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform, self.scale < 2.0)
        height, width = self.image.shape_hw
        whole = self._screen_rect(0, 0, width, height)
        if self._fine_suffices:
            painter.drawImage(whole, self._fine[1])
        else:
            if self._overview is not None:
                painter.drawImage(whole, self._overview)
            if self.look is not None:
                self._draw_parts(painter)
        if self._coverage is not None and "coverage" in self.shown_overlays:
            painter.drawImage(whole, self._coverage)
        for name in ("frames", "tiles"):
            if name in self.shown_overlays and name in self.overlays:
                self._draw_outlines(painter, name)
        if self.annotation is not None and "annotation" in self.shown_overlays:
            draw_annotation(painter, self.annotation, QRectF(self.rect()), self.to_screen, self.scale)
        if self.caption:
            self._draw_caption(painter)

    def _draw_caption(self, painter: QPainter) -> None:
        area = painter.fontMetrics().boundingRect(self.caption).adjusted(0, 0, 16, 8)
        area.moveTopLeft(self.rect().topLeft() + QPoint(8, 8))
        painter.fillRect(area, QColor(0, 0, 0, 150))
        painter.setPen(QColor("#e3e1dc"))
        painter.drawText(area, Qt.AlignmentFlag.AlignCenter, self.caption)

    def _screen_rect(self, x0: float, y0: float, x1: float, y1: float) -> QRectF:
        """Return the screen rectangle of image pixels x0..x1, y0..y1 (end exclusive)."""
        top_left = self.to_screen(x0 - 0.5, y1 - 0.5)
        bottom_right = self.to_screen(x1 - 0.5, y0 - 0.5)
        return QRectF(top_left, bottom_right)

    def _draw_parts(self, painter: QPainter) -> None:
        level, keys = self._wanted_parts()
        step = 2**level
        for key in keys:
            known = (self.look.number, *key)
            picture = self._finished.get(known) or self._parts.get(known)
            if picture is None:
                continue
            x0, y0 = key[2] * PART_PX * step, key[1] * PART_PX * step
            x1 = min(x0 + picture.width() * step, self.image.shape_hw[1])
            y1 = min(y0 + picture.height() * step, self.image.shape_hw[0])
            painter.drawImage(self._screen_rect(x0, y0, x1, y1), picture)

    def _draw_outlines(self, painter: QPainter, name: str) -> None:
        polygons, names = self.overlays[name]
        accent = self.session.themes.theme.colour("accent") if name == "tiles" else QColor(150, 190, 220, 110)
        pen = QPen(accent, 1.4 if name == "tiles" else 1.0)
        pen.setCosmetic(True)
        painter.setPen(pen)
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing, len(polygons) < 400)
        for polygon, title in zip(polygons, names, strict=True):
            shape = QPolygonF([self.to_screen(x, y) for x, y in polygon if np.isfinite(x)])
            painter.drawPolygon(shape)
            box = shape.boundingRect()
            if name == "tiles" and title and box.width() > 60:
                painter.drawText(box.adjusted(6, 4, 0, 0), Qt.AlignmentFlag.AlignLeft, title)

    # ------------------------------------------------------------------ mouse and keys

    def wheelEvent(self, event: QWheelEvent) -> None:
        """Zoom at the cursor."""
        self.zoom(1.0015 ** event.angleDelta().y(), event.position())

    def mousePressEvent(self, event: QMouseEvent) -> None:
        """Begin to pan."""
        self._drag = event.position()
        self.setCursor(Qt.CursorShape.ClosedHandCursor)

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        """Pan, and tell the position under the cursor."""
        if self._drag is not None and event.buttons():
            moved = event.position() - self._drag
            self._drag = event.position()
            self.centre += QPointF(-moved.x() / self.scale, moved.y() / self.scale)
            self._fitted = False
            self._moved()
        point = self.to_image(event.position())
        self.hovered.emit(point.x(), point.y())

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:
        """End panning."""
        self._drag = None
        self.unsetCursor()

    def mouseDoubleClickEvent(self, event: QMouseEvent) -> None:
        """Change between the whole mosaic and single pixels."""
        if self._fitted:
            self.zoom(1.0 / self.scale, event.position())
        else:
            self.fit()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Zoom with + and -, fit with 0, single pixels with 1, pan with the arrows."""
        step = 0.15 * min(self.width(), self.height()) / max(self.scale, 1e-9)
        moves = {
            Qt.Key.Key_Left: (-step, 0),
            Qt.Key.Key_Right: (step, 0),
            Qt.Key.Key_Up: (0, step),
            Qt.Key.Key_Down: (0, -step),
        }
        key = Qt.Key(event.key())
        if key in moves:
            self.centre += QPointF(*moves[key])
            self._fitted = False
            self._moved()
        elif key in (Qt.Key.Key_Plus, Qt.Key.Key_Equal):
            self.zoom(1.4)
        elif key == Qt.Key.Key_Minus:
            self.zoom(1 / 1.4)
        elif key == Qt.Key.Key_0:
            self.fit()
        elif key == Qt.Key.Key_1:
            self.zoom_to(1.0)
        else:
            super().keyPressEvent(event)

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Keep the whole mosaic fitted, or ask for the parts that came into sight."""
        super().resizeEvent(event)
        if self._fitted:
            self.fit()
        else:
            self._ask_parts()
