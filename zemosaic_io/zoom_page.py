"""A picture of any size for a browser without network: tiles at all scales, and a page that draws them.

The tiles lie as in a Deep Zoom Image, `tiles_files/LEVEL/COLUMN_ROW.jpg` with the description `tiles.dzi` beside them,
so that other viewers can show them, too. The page needs no server.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zemosaic_core.annotation import Mark
from zemosaic_io.atomic import atomic_path, save_failed
from zemosaic_io.picture_files import srgb_profile

__all__ = ["PAGE", "write_zoom_page"]

PAGE = "index.html"
"""The page in the folder that `write_zoom_page` makes."""

_TEMPLATE = Path(__file__).resolve().parent / "data" / "zoom.html"
_TILE_PX = 512
_QUALITY = 90
_TILES = "tiles"


def write_zoom_page(
    folder: Path | str,
    bands: Iterable[np.ndarray],
    shape_hw: tuple[int, int],
    title: str,
    marks: Sequence[Mark] = (),
) -> Path:
    """Write a folder of tiles with its page; return the page.

    Parameters
    ----------
    folder : Path or str
        Made anew; it may exist and be empty.
    bands : iterable of ndarray, shape (h, w, 4), uint8
        The picture from its last rows to its first, rows of each band in FITS order. What is transparent is black in
        the tiles. Memory: a band, and two rows of tiles of each level.
    shape_hw : tuple of int
    title : str
    marks : sequence of Mark
        What can be named in the picture, in its pixels; those that matter most first.

    Raises
    ------
    SaveFailed
        ``save_failed``.
    """
    folder = Path(folder)
    height, width = shape_hw
    # Levels count from a picture of one pixel, as in every Deep Zoom Image.
    levels = math.ceil(math.log2(max(height, width, 2)))
    try:
        finest = _TileLevel(folder / f"{_TILES}_files", levels, shape_hw)
        for band in bands:
            finest.add(np.ascontiguousarray(band[::-1, :, :3]))
    except OSError as error:
        raise save_failed(folder, error) from error
    _write(folder / f"{_TILES}.dzi", _description(width, height))
    facts = {
        "width": width,
        "height": height,
        "tile": _TILE_PX,
        "levels": levels,
        # The first level that is one tile, which a viewer begins with.
        "first": max(0, levels - max(0, math.ceil(math.log2(max(height, width) / _TILE_PX)))),
        "folder": f"{_TILES}_files",
    }
    page = _TEMPLATE.read_text(encoding="utf-8")
    for name, text in (
        ("TITLE", escape(title)),
        ("PICTURE", _json(facts)),
        ("MARKS", _json([_mark(mark, height) for mark in marks])),
    ):
        page = page.replace(f"@{name}@", text)
    return _write(folder / PAGE, page)


class _TileLevel:
    """One scale of a picture that arrives row by row from its top; it hands half of it to the next coarser one."""

    def __init__(self, folder: Path, level: int, shape_hw: tuple[int, int]) -> None:
        self._here = folder / str(level)
        self._here.mkdir(parents=True, exist_ok=True)
        self._rows_to_come = shape_hw[0]
        self._tile_row = 0
        self._waiting = np.empty((0, shape_hw[1], 3), np.uint8)
        # Sides are rounded up.
        half_hw = -(-shape_hw[0] // 2), -(-shape_hw[1] // 2)
        self._coarser = _TileLevel(folder, level - 1, half_hw) if level else None

    def add(self, rows: np.ndarray) -> None:
        """Take the next rows, (h, w, 3) uint8, and write the tiles that are complete with them."""
        self._waiting = np.concatenate([self._waiting, rows])
        self._rows_to_come -= len(rows)
        while len(self._waiting) >= _TILE_PX or (len(self._waiting) and not self._rows_to_come):
            self._write(np.ascontiguousarray(self._waiting[:_TILE_PX]))
            self._waiting = self._waiting[_TILE_PX:].copy()

    def _write(self, rows: np.ndarray) -> None:
        for column, x in enumerate(range(0, rows.shape[1], _TILE_PX)):
            tile = Image.fromarray(np.ascontiguousarray(rows[:, x : x + _TILE_PX]))
            tile.save(
                self._here / f"{column}_{self._tile_row}.jpg",
                quality=_QUALITY,
                subsampling=0,
                icc_profile=srgb_profile(),
            )
        self._tile_row += 1
        if self._coarser is not None:
            # A row of tiles has an even number of rows, but for the last one.
            self._coarser.add(np.asarray(Image.fromarray(rows).reduce(2)))


def _mark(mark: Mark, height: int) -> list[Any]:
    """Return a mark in pixels of the picture upright, its angle clockwise from the right in radians."""
    known = math.isfinite(mark.semi_major_px)
    axes = (round(mark.semi_major_px, 1), round(mark.semi_minor_px, 1)) if known else (0.0, 0.0)
    place = round(mark.x_px + 0.5, 1), round(height - 0.5 - mark.y_px, 1)
    angle = round(-math.radians(mark.angle_deg), 4)
    return [mark.label, *place, *axes, angle, mark.sky_object.kind == "star"]


def _json(value: Any) -> str:
    # Within a script element nothing but this ends it.
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")


def _description(width: int, height: int) -> str:
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<Image xmlns="http://schemas.microsoft.com/deepzoom/2008" TileSize="{_TILE_PX}" Overlap="0" Format="jpg">'
        f'<Size Width="{width}" Height="{height}"/></Image>\n'
    )


def _write(path: Path, text: str) -> Path:
    with atomic_path(path, durable=False) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return path
