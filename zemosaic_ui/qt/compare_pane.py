"""Two canvases that show the same part of the sky, beside each other or in turn."""

from __future__ import annotations

import numpy as np
from PySide6.QtCore import QTimer, Signal
from PySide6.QtWidgets import QHBoxLayout, QWidget

from zemosaic_ui.mosaic_image import MosaicImage
from zemosaic_ui.qt.mosaic_canvas import MosaicCanvas
from zemosaic_ui.qt.session import Session

__all__ = ["WAYS", "ComparePane", "same_place"]

WAYS = ("side", "blink")
BLINK_MS = 700


class ComparePane(QWidget):
    """The viewer's canvas, and another one while something is compared.

    Signals
    -------
    other_auto : automatic stretch of the other picture, see `MosaicCanvas.auto_ready`
    """

    other_auto = Signal(object)

    def __init__(self, session: Session, main: MosaicCanvas) -> None:
        super().__init__()
        self.main, self.other = main, MosaicCanvas(session)
        self.way = "side"
        self._following = False
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(4)
        layout.addWidget(self.main, 1)
        layout.addWidget(self.other, 1)
        self.other.hide()
        self.other.auto_ready.connect(self.other_auto)
        self.main.view_changed.connect(lambda: self._follow(self.main, self.other))
        self.other.view_changed.connect(lambda: self._follow(self.other, self.main))
        self._blink_timer = QTimer(self)
        self._blink_timer.setInterval(BLINK_MS)
        self._blink_timer.timeout.connect(self.blink)

    @property
    def is_comparing(self) -> bool:
        """Whether there is another picture."""
        return self.other.image is not None

    def compare(self, image: MosaicImage, captions: tuple[str, str], *, shared: bool) -> None:
        """Show another picture; ``shared`` when it is that of the main canvas."""
        self.other.show_image(image, shared=shared)
        self.main.caption, self.other.caption = captions
        self.set_way(self.way)

    def stop(self) -> None:
        """Show one picture again."""
        self._blink_timer.stop()
        self.other.close_image()
        self.main.caption = self.other.caption = ""
        self.other.hide()
        self.main.show()
        self.main.update()

    def set_way(self, way: str) -> None:
        """Show the two ``side`` by side, or ``blink`` between them."""
        self.way = way
        if not self.is_comparing:
            return
        self.main.show()
        self.other.setVisible(way == "side")
        if way == "blink":
            self._blink_timer.start()
        else:
            self._blink_timer.stop()
        self._follow(self.main, self.other)

    def blink(self) -> None:
        """Show the one that is hidden."""
        first = self.main.isVisibleTo(self)
        shown, hidden = (self.other, self.main) if first else (self.main, self.other)
        self._follow(hidden, shown)
        hidden.hide()
        shown.show()

    def _follow(self, leader: MosaicCanvas, follower: MosaicCanvas) -> None:
        if self._following or leader.image is None or follower.image is None:
            return
        self._following = True
        centre = leader.centre
        x, y, zoom = same_place(leader.image, follower.image, centre.x(), centre.y())
        follower.look_at(x, y, leader.scale * zoom)
        self._following = False


def same_place(one: MosaicImage, other: MosaicImage, x: float, y: float) -> tuple[float, float, float]:
    """Return the same place in another picture, and how much larger its pixels are; by the sky where both know it."""
    sky = one.sky_at(x, y)
    if one is other or sky is None or other.wcs is None or one.wcs is None:
        return x, y, 1.0
    place = other.pixel_of(np.array(sky[0]), np.array(sky[1]))
    if not np.isfinite(place).all():
        return x, y, 1.0
    return float(place[0]), float(place[1]), other.pixel_scale_deg / one.pixel_scale_deg
