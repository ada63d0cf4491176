"""The filter's sky: footprints in colours, selection by click, rectangle or lasso; East is left, North is up."""

from __future__ import annotations

import numpy as np
import pyqtgraph as pg
from PySide6.QtCore import QPointF, Qt, Signal
from PySide6.QtGui import QColor

from zemosaic_ui.filter_model import FilterModel
from zemosaic_ui.qt.session import Session

__all__ = ["QualityHistogram", "SkyPlot"]


class _SelectingBox(pg.ViewBox):
    """A view box whose left drag pans or draws a selection."""

    drawn = Signal(object, object)
    clicked = Signal(object, object)

    def __init__(self) -> None:
        super().__init__(lockAspect=True, invertX=True, enableMenu=False)
        self.mode = "rectangle"
        self._path: list[QPointF] = []
        self._line = pg.PlotCurveItem(pen=pg.mkPen(width=1.5, style=Qt.PenStyle.DashLine))
        self.addItem(self._line, ignoreBounds=True)

    def set_line_colour(self, colour: QColor) -> None:
        self._line.setPen(pg.mkPen(colour, width=1.5, style=Qt.PenStyle.DashLine))

    def mouseDragEvent(self, event: object, axis: int | None = None) -> None:
        if event.button() != Qt.MouseButton.LeftButton or self.mode == "pan":
            super().mouseDragEvent(event, axis)
            return
        event.accept()
        here = self.mapToView(event.pos())
        if event.isStart():
            self._path = [self.mapToView(event.buttonDownPos())]
        self._path.append(here)
        polygon = self._polygon()
        closed = np.vstack([polygon, polygon[:1]])
        self._line.setData(closed[:, 0], closed[:, 1])
        if event.isFinish():
            self._line.setData([], [])
            self.drawn.emit(polygon, event.modifiers())

    def _polygon(self) -> np.ndarray:
        if self.mode == "rectangle":
            (x0, y0), (x1, y1) = ((p.x(), p.y()) for p in (self._path[0], self._path[-1]))
            return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
        return np.array([(p.x(), p.y()) for p in self._path])

    def mouseClickEvent(self, event: object) -> None:
        if event.button() == Qt.MouseButton.LeftButton:
            event.accept()
            self.clicked.emit(self.mapToView(event.pos()), event.modifiers())


class _Axis(pg.AxisItem):
    """An axis whose numbers have the language's decimal sign."""

    def __init__(self, side: str, session: Session) -> None:
        super().__init__(side)
        self._texts = session.texts

    def tickStrings(self, values: list[float], scale: float, spacing: float) -> list[str]:
        return [self._texts.written(shown) for shown in super().tickStrings(values, scale, spacing)]


class SkyPlot(pg.PlotWidget):
    """Draws the footprints of a `FilterModel`."""

    hovered = Signal(str)

    def __init__(self, session: Session, frames: FilterModel) -> None:
        self.box = _SelectingBox()
        axes = {side: _Axis(side, session) for side in ("bottom", "left")}
        super().__init__(viewBox=self.box, axisItems=axes)
        self.session = session
        self.frames = frames
        self.colour_by = "group"
        self._curves: list[pg.PlotCurveItem] = []
        self._selection = pg.PlotCurveItem(connect="finite")
        self._selection.setZValue(10)
        self._seen = 0
        self.addItem(self._selection)
        self.hideButtons()
        self.setMouseTracking(True)
        self.box.drawn.connect(self._on_drawn)
        self.box.clicked.connect(self._on_clicked)
        self.scene().sigMouseMoved.connect(self._on_moved)
        self.retheme()

    def set_mode(self, mode: str) -> None:
        """Choose what dragging does: ``pan``, ``rectangle`` or ``lasso``."""
        self.box.mode = mode

    def draw(self) -> None:
        """Draw all footprints anew."""
        outlines = self.frames.outlines(self.colour_by, dark=self.session.themes.theme.is_dark)
        while len(self._curves) < len(outlines):
            curve = pg.PlotCurveItem(connect="finite")
            self._curves.append(curve)
            self.addItem(curve)
        while len(self._curves) > len(outlines):
            self.removeItem(self._curves.pop())
        for curve, (rgb, line) in zip(self._curves, outlines, strict=True):
            curve.setPen(pg.mkPen(QColor(*rgb), width=1))
            curve.setData(line[:, 0], line[:, 1], connect="finite", skipFiniteCheck=False)
        self.draw_selection()
        if self._seen == 0 and outlines:
            self.show_all()
        self._seen = len(self.frames)

    def draw_selection(self) -> None:
        """Draw the selected footprints."""
        line = self.frames.selected_outline()
        self._selection.setData(line[:, 0], line[:, 1], connect="finite")

    def show_all(self) -> None:
        """Show all footprints."""
        self.box.autoRange(padding=0.04)

    def _mode_of(self, modifiers: Qt.KeyboardModifier) -> str:
        if modifiers & Qt.KeyboardModifier.ControlModifier:
            return "toggle"
        return "add" if modifiers & Qt.KeyboardModifier.ShiftModifier else "replace"

    def _on_drawn(self, polygon: np.ndarray, modifiers: Qt.KeyboardModifier) -> None:
        self.frames.select(self.frames.in_polygon(polygon), mode=self._mode_of(modifiers))

    def _on_clicked(self, point: QPointF, modifiers: Qt.KeyboardModifier) -> None:
        reach = 0.05 * float(np.ptp(self.box.viewRange()[0]))
        found = self.frames.nearest(point.x(), point.y(), reach)
        self.frames.select([] if found is None else [found], mode=self._mode_of(modifiers))

    def _on_moved(self, position: QPointF) -> None:
        point = self.box.mapSceneToView(position)
        ra, dec = self.frames.plane.unproject(point.x(), point.y())
        text = self.session.texts
        self.hovered.emit(
            text("filter_sky_position", ra=text.written(f"{ra:.3f}"), dec=text.written(f"{dec:+.3f}"))
        )

    def retheme(self) -> None:
        """Draw with the colours of the theme."""
        theme = self.session.themes.theme
        self.setBackground(theme.sunken)
        for side in ("left", "bottom"):
            axis = self.getAxis(side)
            axis.setPen(theme.colour("border"))
            axis.setTextPen(theme.colour("muted"))
            axis.enableAutoSIPrefix(False)
        self.showGrid(x=True, y=True, alpha=0.12)
        self._selection.setPen(pg.mkPen(theme.colour("accent"), width=2))
        self.box.set_line_colour(theme.colour("accent"))
        if len(self.frames):
            self.draw()

    def retranslate(self) -> None:
        """Write the names of the axes."""
        text = self.session.texts
        self.setLabel("bottom", text("filter_axis_east"))
        self.setLabel("left", text("filter_axis_north"))


class QualityHistogram(pg.PlotWidget):
    """The distribution of a quality metric with two lines that can be dragged to cut."""

    cut = Signal(str, object)

    def __init__(self, session: Session, frames: FilterModel, metric: str) -> None:
        box = pg.ViewBox(enableMenu=False, enableMouse=False)
        super().__init__(viewBox=box, axisItems={"bottom": _Axis("bottom", session)})
        self.session = session
        self.frames = frames
        self.metric = metric
        self._limits = (0.0, 1.0)
        self.bars = pg.BarGraphItem(x0=[], x1=[], height=[])
        self.addItem(self.bars)
        self.lines = [pg.InfiniteLine(movable=True, angle=90) for _ in range(2)]
        for line in self.lines:
            self.addItem(line)
            line.sigPositionChangeFinished.connect(self._on_moved)
        self.hideButtons()
        self.setMinimumHeight(90)
        self.retheme()

    def draw(self) -> None:
        """Draw the histogram and the lines where the model's limits are."""
        edges, counts = self.frames.histogram(self.metric)
        known = len(edges) > 0
        for line in self.lines:
            line.setVisible(known)
        if not known:
            self.bars.setOpts(x0=[], x1=[], height=[])
            return
        self.bars.setOpts(x0=edges[:-1], x1=edges[1:], height=counts)
        step = edges[1] - edges[0]
        self._limits = (edges[0] - step, edges[-1] + step)
        self.setXRange(*self._limits, padding=0.02)
        self.setYRange(0, max(1, counts.max()), padding=0.05)
        cut = self.frames.rules.cuts.get(self.metric, (-np.inf, np.inf))
        for line, value, rest in zip(self.lines, cut, self._limits, strict=True):
            line.blockSignals(True)
            line.setValue(value if np.isfinite(value) else rest)
            line.setBounds(self._limits)
            line.blockSignals(False)

    def _on_moved(self) -> None:
        low, high = sorted(line.value() for line in self.lines)
        tolerance = 1e-6 * (self._limits[1] - self._limits[0])
        low = -np.inf if low <= self._limits[0] + tolerance else low
        high = np.inf if high >= self._limits[1] - tolerance else high
        self.cut.emit(self.metric, None if np.isinf(low) and np.isinf(high) else (low, high))

    def retheme(self) -> None:
        """Draw with the colours of the theme."""
        theme = self.session.themes.theme
        self.setBackground(theme.sunken)
        self.bars.setOpts(brush=theme.colour("muted"), pen=pg.mkPen(None))
        for line in self.lines:
            line.setPen(pg.mkPen(theme.colour("accent"), width=2))
            line.setHoverPen(pg.mkPen(theme.colour("text"), width=3))
        self.getAxis("left").setStyle(showValues=False)
        self.getAxis("left").setWidth(8)
        for side in ("left", "bottom"):
            self.getAxis(side).setPen(theme.colour("border"))
            self.getAxis(side).setTextPen(theme.colour("muted"))
            self.getAxis(side).enableAutoSIPrefix(False)

    def retranslate(self) -> None:
        """Write the name of the metric."""
        self.setTitle(self.session.texts(f"filter_column_{self.metric}"), size="9pt")
