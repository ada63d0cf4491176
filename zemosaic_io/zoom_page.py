"""A picture of any size for a browser without network: tiles at all scales, and a page that draws them.

The tiles lie as in a Deep Zoom Image, `tiles_files/LEVEL/COLUMN_ROW.jpg` with the description `tiles.dzi` beside them,
so that other viewers can show them, too. The page needs no server.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
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


def write_zoom_page(folder: Path | str, rgba: np.ndarray, title: str, marks: Sequence[Mark] = ()) -> Path:
    """Write a folder of tiles with its page; return the page.

    Parameters
    ----------
    folder : Path or str
        Made anew; it may exist and be empty.
    rgba : ndarray, shape (h, w, 4), uint8
        Rows in FITS order. What is transparent is black in the tiles.
    title : str
    marks : sequence of Mark
        What can be named in the picture, in its pixels; those that matter most first.

    Raises
    ------
    SaveFailed
        ``save_failed``.
    """
    folder = Path(folder)
    height, width = rgba.shape[:2]
    # Levels count from a picture of one pixel, as in every Deep Zoom Image.
    levels = math.ceil(math.log2(max(height, width, 2)))
    try:
        first = _write_levels(folder / f"{_TILES}_files", rgba, levels)
    except OSError as error:
        raise save_failed(folder, error) from error
    _write(folder / f"{_TILES}.dzi", _description(width, height))
    facts = {
        "width": width,
        "height": height,
        "tile": _TILE_PX,
        "levels": levels,
        "first": first,
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


def _write_levels(folder: Path, rgba: np.ndarray, levels: int) -> int:
    """Write the tiles of all levels; return the first that is one tile, which a viewer begins with."""
    picture = np.ascontiguousarray(rgba[::-1, :, :3])
    first = -1
    profile = srgb_profile()
    for level in range(levels, -1, -1):
        here = folder / str(level)
        here.mkdir(parents=True, exist_ok=True)
        height, width = picture.shape[:2]
        for row in range(-(-height // _TILE_PX)):
            for column in range(-(-width // _TILE_PX)):
                y, x = row * _TILE_PX, column * _TILE_PX
                part = Image.fromarray(np.ascontiguousarray(picture[y : y + _TILE_PX, x : x + _TILE_PX]))
                part.save(here / f"{column}_{row}.jpg", quality=_QUALITY, subsampling=0, icc_profile=profile)
        if first < 0 and max(height, width) <= _TILE_PX:
            first = level
        # Sides are rounded up.
        picture = np.asarray(Image.fromarray(picture).reduce(2))
    return first


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
