"""Line icons drawn from short path texts, tinted with the theme's colours; no image files."""

from __future__ import annotations

from PySide6.QtCore import QByteArray, QRectF, QSize, Qt
from PySide6.QtGui import QIcon, QPainter, QPixmap
from PySide6.QtSvg import QSvgRenderer

from zemosaic_ui.qt.theme import Theme

__all__ = ["ICON_NAMES", "make_icon", "make_pixmap"]

# Bodies of 24 x 24 drawings with round line ends; "." stands for a filled dot.
_SHAPES = {
    "main": '<rect x="4" y="4" width="7" height="7" rx="1.5"/><rect x="13.5" y="4" width="6.5" height="7" rx="1.5"/>'
    '<rect x="4" y="13.5" width="7" height="6.5" rx="1.5"/><rect x="13.5" y="13.5" width="6.5" height="6.5" rx="1.5"/>',
    "run": '<circle cx="12" cy="12" r="8.2"/><path d="M12 7.2v5.1l3.3 2"/>',
    "mosaic": '<rect x="3.5" y="5" width="17" height="14" rx="2"/><path d="M3.8 16.2l4.6-4.3 3.6 3.2 3.2-2.6 5 4.2"/>'
    '<circle cx="15.6" cy="9" r="1.4"/>',
    "solver": '<circle cx="12" cy="12" r="6.2"/><path d="M12 2.8v4.4M12 16.8v4.4M2.8 12h4.4M16.8 12h4.4"/>',
    "system": '<rect x="6.5" y="6.5" width="11" height="11" rx="2"/><path d="M9.5 3.5v3M14.5 3.5v3M9.5 17.5v3'
    "M14.5 17.5v3"
    'M3.5 9.5h3M3.5 14.5h3M17.5 9.5h3M17.5 14.5h3"/>',
    "advanced": '<path d="M4 7h9M18 7h2M4 12h3M12 12h8M4 17h7M16 17h4"/><circle cx="15.5" cy="7" r="2.2"/>'
    '<circle cx="9.5" cy="12" r="2.2"/><circle cx="13.5" cy="17" r="2.2"/>',
    "tools": '<path d="M7 3.5V17h13.5M3.5 7H17v13.5"/>',
    "skin": '<circle cx="12" cy="12" r="8.2"/><path d="M12 3.8a8.2 8.2 0 0 1 0 16.4z" fill="COLOUR"/>',
    "language": '<circle cx="12" cy="12" r="8.2"/><path d="M3.8 12h16.4'
    'M12 3.8c5 4.6 5 11.8 0 16.4M12 3.8c-5 4.6-5 11.8 0 16.4"/>',
    "folder": '<path d="M3.5 18V6.5a1.5 1.5 0 0 1 1.5-1.5h4.2l2 2.4H19a1.5 1.5 0 0 1 1.5 1.5V18a1.5 1.5 0 0 1-1.5 1.5H5'
    'A1.5 1.5 0 0 1 3.5 18z"/>',
    "filter": '<path d="M4 5.5h16l-6.2 7.2v6l-3.6-1.9v-4.1z"/>',
    "play": '<path d="M8 5.2l10.4 6.8L8 18.8z" fill="COLOUR"/>',
    "stop": '<rect x="6.2" y="6.2" width="11.6" height="11.6" rx="1.5" fill="COLOUR"/>',
    "search": '<circle cx="10.6" cy="10.6" r="5.8"/><path d="M15 15l5 5"/>',
    "reset": '<path d="M5.2 5v4.4h4.4"/><path d="M5.6 9.2a7.3 7.3 0 1 1-.6 5.2"/>',
    "recent": '<path d="M6.5 9.5l5.5 5.5 5.5-5.5"/>',
    "fit": '<path d="M4.5 9V4.5H9M15 4.5h4.5V9M19.5 15v4.5H15M9 19.5H4.5V15"/>',
    "plus": '<path d="M12 5v14M5 12h14"/>',
    "minus": '<path d="M5 12h14"/>',
    "good": '<path d="M4.8 12.6l4.7 4.7L19.2 7.2"/>',
    "warn": '<path d="M12 4.2l8.6 15.2H3.4z"/><path d="M12 10v4.4M12 16.6v.2"/>',
    "bad": '<path d="M6 6l12 12M18 6L6 18"/>',
    "pending": '<circle cx="12" cy="12" r="2" fill="COLOUR"/>',
    "busy": '<path d="M12 3.8a8.2 8.2 0 1 1-7.1 4.1"/>',
    "report": '<path d="M6 3.8h8.2l3.8 3.9v12.5H6z"/><path d="M9 12h6M9 15.6h6M9 8.4h2.4"/>',
    "save": '<path d="M12 4v10.2M7.8 10.4l4.2 4.2 4.2-4.2M4.8 19.4h14.4"/>',
    "open": '<path d="M12 15V4.6M7.8 8.4L12 4.2l4.2 4.2M4.8 19.4h14.4"/>',
    "clear": '<path d="M7 7l10 10M17 7L7 17"/>',
    "lasso": '<path d="M12 5c4.8 0 8.2 2.2 8.2 5.2s-3.4 5.2-8.2 5.2-8.2-2.2-8.2-5.2S7.2 5 12 5z"/>'
    '<path d="M6.6 14.2c-2 1.6-.9 4.8 1.7 4.6"/>',
    "rectangle": '<rect x="4.5" y="6.5" width="15" height="11" stroke-dasharray="3 2.4"/>',
    "hand": '<path d="M12 3.6v16.8M3.6 12h16.8M9.4 6.2L12 3.6l2.6 2.6M9.4 17.8l2.6 2.6 2.6-2.6M6.2 9.4L3.6 12l2.6 2.6'
    'M17.8 9.4l2.6 2.6-2.6 2.6"/>',
}
ICON_NAMES = tuple(_SHAPES)


def make_pixmap(name: str, colour: str, size: int, ratio: float = 1.0) -> QPixmap:
    """Return an icon as a pixmap of ``size`` logical pixels."""
    body = _SHAPES[name].replace("COLOUR", colour)
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" fill="none" stroke="{colour}" '
        f'stroke-width="1.7" stroke-linecap="round" stroke-linejoin="round">{body}</svg>'
    )
    pixmap = QPixmap(QSize(round(size * ratio), round(size * ratio)))
    pixmap.fill(Qt.GlobalColor.transparent)
    painter = QPainter(pixmap)
    QSvgRenderer(QByteArray(svg.encode())).render(painter, QRectF(pixmap.rect()))
    painter.end()
    pixmap.setDevicePixelRatio(ratio)
    return pixmap


def make_icon(name: str, theme: Theme, *, role: str = "text", size: int = 20) -> QIcon:
    """Return an icon in a theme colour, faint when disabled, in one and two pixels per point."""
    icon = QIcon()
    for ratio in (1.0, 2.0):
        icon.addPixmap(make_pixmap(name, getattr(theme, role), size, ratio))
        icon.addPixmap(make_pixmap(name, theme.faint, size, ratio), QIcon.Mode.Disabled)
    return icon
