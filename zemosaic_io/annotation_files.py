"""An annotation as files: drawn into a picture, as a layer in SVG, and as a list of the objects in the field."""

from __future__ import annotations

import csv
import io
import math
import unicodedata
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from zemosaic_core.annotation import Annotation, Mark
from zemosaic_core.annotation_layout import Layout, lay_out
from zemosaic_io.fits_write import atomic_path

__all__ = ["LIST_COLUMNS", "draw_annotation", "layout_for", "write_annotation_svg", "write_object_list"]

LIST_COLUMNS = (
    *("kind", "name", "other_names", "title", "ra_deg", "dec_deg", "x_fits", "y_fits"),
    *("major_arcmin", "minor_arcmin", "position_angle_deg", "mag"),
)
"""Columns of the list of objects; ``x_fits`` and ``y_fits`` count from 1 in the science file."""

_COLOURS = {
    "grid": (150, 168, 196),
    "object": (255, 205, 96),
    "star": (150, 205, 255),
    "scale": (255, 255, 255),
}
_OPACITY = {"grid": 0.5, "object": 0.9, "star": 0.9, "scale": 1.0}
# Letters as a share of the shorter side, so that they are read when the whole picture fills a screen.
_LETTER_SHARE, _SMALLEST_LETTER, _LARGEST_LETTER = 1 / 48, 11.0, 160.0
_LINE_SHARE, _THINNEST_LINE = 1 / 11, 1.2
_OVERSAMPLING = 4
# Longest side of what is drawn at once, px of the picture.
_PART_PX = 256.0


def layout_for(note: Annotation) -> Layout:
    """Lay an annotation out with letters that fit the size of the picture."""
    letter = float(np.clip(min(note.shape_hw) * _LETTER_SHARE, _SMALLEST_LETTER, _LARGEST_LETTER))
    font = _font(letter)
    return lay_out(note, letter, lambda text: float(font.getlength(_plain(text))))


def draw_annotation(rgba: np.ndarray, layout: Layout) -> np.ndarray:
    """Return a picture with an annotation drawn into it.

    Parameters
    ----------
    rgba : ndarray, shape (h, w, 4), uint8
        Rows in FITS order, the last one to the top.
    layout : Layout

    Returns
    -------
    ndarray, shape (h, w, 4), uint8
        Rows in FITS order; what was transparent is opaque where something is drawn.
    """
    height = rgba.shape[0]
    upright = np.ascontiguousarray(rgba[::-1])
    width = max(_THINNEST_LINE, layout.letter_px * _LINE_SHARE)
    for role, colour in _COLOURS.items():
        cover = np.zeros(rgba.shape[:2], np.uint8)
        for stroke in layout.strokes:
            if stroke.role == role:
                _add_line(cover, _upright(stroke.points_px, height), width)
        _paint(upright, cover, colour, _OPACITY[role])
    picture = Image.fromarray(upright)
    draw = ImageDraw.Draw(picture)
    font = _font(layout.letter_px)
    outline = max(1, round(layout.letter_px / 12))
    for label in layout.labels:
        ((x, y),) = _upright(np.array([(label.x_px, label.y_px)]), height)
        text, fill = _plain(label.text), (*_COLOURS[label.role], 255)
        draw.text(
            (x, y), text, fill=fill, font=font, anchor="mm", stroke_width=outline, stroke_fill=(0, 0, 0, 255)
        )
    return np.asarray(picture)[::-1]


def write_annotation_svg(
    path: Path | str, layout: Layout, shape_hw: tuple[int, int], *, durable: bool = True
) -> Path:
    """Write the annotation alone, as large as its picture and transparent, to be laid over it.

    Raises
    ------
    SaveFailed
        ``save_failed``.
    """
    height, width = shape_hw
    line = max(_THINNEST_LINE, layout.letter_px * _LINE_SHARE)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    ]
    for role, colour in _COLOURS.items():
        paths = (_path(_upright(s.points_px, height) + 0.5) for s in layout.strokes if s.role == role)
        parts.append(
            f'<g id="{role}" fill="none" stroke="rgb{colour}" stroke-opacity="{_OPACITY[role]}" '
            f'stroke-width="{line:.2f}" stroke-linecap="round">{"".join(paths)}</g>'
        )
    parts.append(
        f'<g font-family="sans-serif" font-size="{layout.letter_px:.2f}" text-anchor="middle" '
        f'dominant-baseline="central" paint-order="stroke" stroke="black" stroke-width="{layout.letter_px / 6:.2f}" '
        'stroke-linejoin="round">'
    )
    for label in layout.labels:
        ((x, y),) = _upright(np.array([(label.x_px, label.y_px)]), height) + 0.5
        parts.append(
            f'<text x="{x:.2f}" y="{y:.2f}" fill="rgb{_COLOURS[label.role]}">{escape(label.text)}</text>'
        )
    parts.append("</g></svg>")
    return _write_text(path, "\n".join(parts) + "\n", durable)


def write_object_list(
    path: Path | str, marks: Sequence[Mark], step: int, first_xy: tuple[int, int], *, durable: bool = True
) -> Path:
    """Write the objects in the field as CSV, see `LIST_COLUMNS`; empty cells are not known.

    Parameters
    ----------
    marks : sequence of Mark
        In pixels of a picture whose pixels are ``step`` of the science file wide and begin at its pixel ``first_xy``.

    Raises
    ------
    SaveFailed
        ``save_failed``.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(LIST_COLUMNS)
    for mark in marks:
        thing = mark.sky_object
        x, y = (
            (v + 0.5) * step + first + 0.5 for v, first in zip((mark.x_px, mark.y_px), first_xy, strict=True)
        )
        place = (f"{thing.ra_deg:.5f}", f"{thing.dec_deg:.5f}", f"{x:.1f}", f"{y:.1f}")
        sizes = (_cell(v) for v in (thing.major_arcmin, thing.minor_arcmin, thing.angle_deg, thing.mag))
        rows.writerow((thing.kind, thing.name, thing.other_names, thing.title, *place, *sizes))
    return _write_text(path, text.getvalue(), durable)


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:g}"


def _write_text(path: Path | str, text: str, durable: bool) -> Path:
    with atomic_path(path, durable=durable) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return Path(path)


def _upright(points: np.ndarray, height: int) -> np.ndarray:
    return np.column_stack([points[:, 0], height - 1 - points[:, 1]])


def _path(points: np.ndarray) -> str:
    return f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def _add_line(cover: np.ndarray, points: np.ndarray, width: float) -> None:
    """Draw a smooth line into a plane of coverage, part by part."""
    way = np.abs(np.diff(points, axis=0)).max(axis=1)
    pieces = [
        np.linspace(a, b, int(length // _PART_PX) + 2)[:-1] if length > _PART_PX else a[None]
        for a, b, length in zip(points[:-1], points[1:], way, strict=True)
    ]
    points = np.concatenate([*pieces, points[-1:]])
    first = 0
    while first < len(points) - 1:
        last = first + 1
        while last + 1 < len(points) and np.ptp(points[first : last + 2], axis=0).max() <= _PART_PX:
            last += 1
        # One segment more on either side, so that parts meet without a notch.
        _add_part(cover, points[max(first - 1, 0) : last + 1], width)
        first = last


def _add_part(cover: np.ndarray, points: np.ndarray, width: float) -> None:
    height, full_width = cover.shape
    margin = width + 2
    x0, y0 = np.maximum(np.floor(points.min(axis=0) - margin), 0).astype(int)
    x1, y1 = np.minimum(np.ceil(points.max(axis=0) + margin), (full_width, height)).astype(int)
    if x1 <= x0 or y1 <= y0:
        return
    fine = Image.new("L", (int(x1 - x0) * _OVERSAMPLING, int(y1 - y0) * _OVERSAMPLING))
    place = (points - (x0, y0) + 0.5) * _OVERSAMPLING - 0.5
    # Pillow draws lines a pixel narrower than it is told.
    ImageDraw.Draw(fine).line(
        [(float(x), float(y)) for x, y in place],
        fill=255,
        width=round(width * _OVERSAMPLING) + 1,
        joint="curve",
    )
    part = cover[y0:y1, x0:x1]
    np.maximum(part, np.asarray(fine.reduce(_OVERSAMPLING)), out=part)


def _paint(rgba: np.ndarray, cover: np.ndarray, colour: tuple[int, int, int], opacity: float) -> None:
    rows, columns = np.nonzero(cover)
    share = cover[rows, columns, None].astype(np.float32) * (opacity / 255.0)
    below = rgba[rows, columns]
    rgb = below[:, :3] * (1.0 - share) + np.array(colour, np.float32) * share
    rgba[rows, columns, :3] = np.rint(rgb)
    rgba[rows, columns, 3] = np.maximum(below[:, 3], np.rint(255.0 * share[:, 0]))


def _font(letter_px: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(letter_px)


def _plain(text: str) -> str:
    """Write with letters that the font of Pillow has: names of Greek letters, no accents."""
    out = []
    for letter in unicodedata.normalize("NFD", text):
        if "α" <= letter <= "ω":
            # Unicode spells lambda as the Greeks do.
            name = unicodedata.name(letter).rpartition(" ")[2].capitalize()
            out.append("Lambda" if letter == "λ" else name)
        elif not unicodedata.combining(letter):
            out.append(letter)
    return "".join(out)
