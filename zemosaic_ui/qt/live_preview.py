"""The picture of a run that grows: finished tiles side by side, then the mosaic itself."""

from __future__ import annotations

import math

from PySide6.QtCore import QRectF, Qt
from PySide6.QtGui import QColor, QImage, QPainter, QPaintEvent
from PySide6.QtWidgets import QWidget

from zemosaic_ui.growing_mosaic import GrowingMosaic
from zemosaic_ui.picture_loader import Picture, PictureLoader
from zemosaic_ui.qt.session import Session
from zemosaic_ui.run_state import RunState

__all__ = ["LivePreview"]

MOSAIC_PX = 1600
TILE_PX = 320


class LivePreview(QWidget):
    """Draws what is there; call `refresh` from the window's timer."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self._loader = PictureLoader()
        self._growing = GrowingMosaic()
        self._state: RunState | None = None
        self._asked_tiles = 0
        self._asked_version = -1
        self._tiles: dict[int, QImage] = {}
        self._mosaic: QImage | None = None
        self.setMinimumSize(240, 160)
        self.setAccessibleName(session.texts("ui_preview"))

    @property
    def has_picture(self) -> bool:
        """Whether a tile or the mosaic is on show."""
        return self._mosaic is not None or bool(self._tiles)

    def refresh(self, state: RunState) -> None:
        """Ask for pictures that are new and draw those that are ready."""
        if state is not self._state:
            self._state = state
            self._asked_tiles, self._asked_version = 0, -1
            self._tiles.clear()
            self._mosaic = None
            self._growing.reset()
            self.update()
        while self._asked_tiles < len(state.tiles):
            tile = state.tiles[self._asked_tiles]
            self._asked_tiles += 1
            if tile.preview_path:
                self._loader.ask(("tile", tile.tile_id), tile.preview_path, TILE_PX)
            elif not state.preview_path:
                self._growing.add(tile.path)
        if state.preview_path and state.preview_version != self._asked_version:
            self._asked_version = state.preview_version
            self._loader.ask("mosaic", state.preview_path, MOSAIC_PX)
        grown = self._growing.take()
        for picture in (*self._loader.take(), *(() if grown is None or state.preview_path else (grown,))):
            self._take(picture)

    def _take(self, picture: Picture) -> None:
        image = QImage(
            picture.rgba, picture.width, picture.height, 4 * picture.width, QImage.Format.Format_RGBA8888
        ).copy()
        if picture.key in ("mosaic", "growing"):
            self._mosaic = image
        else:
            self._tiles[picture.key[1]] = image
        self.update()

    def close_loader(self) -> None:
        """End the thread that decodes."""
        self._loader.close()
        self._growing.close()

    def paintEvent(self, event: QPaintEvent) -> None:
        """Draw the mosaic, or the tiles, or a word of patience."""
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        theme = self.session.themes.theme
        painter.setPen(theme.colour("border"))
        painter.setBrush(QColor("#0b0b0c") if theme.is_dark else QColor("#1a1a1c"))
        painter.drawRoundedRect(QRectF(self.rect()).adjusted(0.5, 0.5, -0.5, -0.5), 8, 8)
        inner = QRectF(self.rect()).adjusted(8, 8, -8, -8)
        if self._mosaic is not None:
            _draw_fitted(painter, self._mosaic, inner)
        elif self._tiles:
            self._draw_sheet(painter, inner)
        else:
            painter.setPen(QColor("#8f8c86"))
            how = Qt.AlignmentFlag.AlignCenter | Qt.TextFlag.TextWordWrap
            painter.drawText(inner, how, self.session.texts("ui_preview_waiting"))

    def _draw_sheet(self, painter: QPainter, area: QRectF) -> None:
        images = [self._tiles[number] for number in sorted(self._tiles)]
        aspect = images[0].width() / max(1, images[0].height())
        columns = max(1, math.ceil(math.sqrt(len(images) * area.width() / max(1.0, area.height()) / aspect)))
        rows = math.ceil(len(images) / columns)
        width = min(area.width() / columns, area.height() / rows * aspect)
        height = width / aspect
        left = area.left() + (area.width() - columns * width) / 2
        top = area.top() + (area.height() - rows * height) / 2
        for i, image in enumerate(images):
            cell = QRectF(left + i % columns * width, top + i // columns * height, width, height)
            _draw_fitted(painter, image, cell.adjusted(2, 2, -2, -2))


def _draw_fitted(painter: QPainter, image: QImage, area: QRectF) -> None:
    scale = min(area.width() / max(1, image.width()), area.height() / max(1, image.height()))
    width, height = image.width() * scale, image.height() * scale
    target = QRectF(
        area.left() + (area.width() - width) / 2, area.top() + (area.height() - height) / 2, width, height
    )
    painter.drawImage(target, image)
