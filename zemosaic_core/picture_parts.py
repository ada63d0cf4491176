"""A large picture finished part by part, so that the memory of it does not grow with the picture. Arrays only."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

__all__ = ["MARGIN_PX", "MOST_PART_PX", "Box", "bands", "largest_part", "part_edges", "with_margin"]

Box = tuple[int, int, int, int]
"""Rows and columns ``(y0, y1, x0, x1)``."""

MARGIN_PX = 128
"""Calming looks this far around a pixel for light; colours further away hardly matter."""
MOST_PART_PX = 2048
"""Side of the largest part that is finished at once, without its margin."""

# Cells of noise, of the local sky and squares that are filled begin in every part where they begin in the whole.
_RASTER_PX = 192
# A margin that ended between the cells would move them.
_PART_MARGIN_PX = MARGIN_PX + -MARGIN_PX % _RASTER_PX


def part_edges(size: int, most: int = MOST_PART_PX) -> list[tuple[int, int]]:
    """Return first and last + 1 of the parts of ``size`` pixels, about equal ones of at most ``most`` px or so."""
    count = max(1, -(-size // most))
    step = -(-size // count)
    step += -step % _RASTER_PX
    return [(start, min(size, start + step)) for start in range(0, size, step)]


def largest_part(size: int) -> int:
    """Return the length of the largest part of ``size`` pixels with its margins."""
    edges = part_edges(size)
    return max(min(size, stop + _PART_MARGIN_PX) - max(0, start - _PART_MARGIN_PX) for start, stop in edges)


def with_margin(box: Box, shape_hw: tuple[int, int], margin: int = MARGIN_PX) -> Box:
    """Return a part with what is around it, as far as the picture goes."""
    y0, y1, x0, x1 = box
    return (
        max(0, y0 - margin),
        min(shape_hw[0], y1 + margin),
        max(0, x0 - margin),
        min(shape_hw[1], x1 + margin),
    )


def bands(
    shape_hw: tuple[int, int],
    paint: Callable[[Box], np.ndarray],
    *,
    most: int = MOST_PART_PX,
    last_first: bool = False,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield a picture as bands of its full width.

    Parameters
    ----------
    shape_hw : tuple of int
        The picture.
    paint : callable
        Returns the part of the picture in a box, (h, w, C); it is asked for parts with their margins.
    most : int
        Side of a part.
    last_first : bool
        Begin with the last rows.

    Yields
    ------
    y0 : int
        First row of the band.
    band : ndarray, shape (h, w, C)
    """
    height, width = shape_hw
    rows, columns = part_edges(height, most), part_edges(width, most)
    for y0, y1 in reversed(rows) if last_first else rows:
        painted = []
        for x0, x1 in columns:
            box = with_margin((y0, y1, x0, x1), shape_hw, _PART_MARGIN_PX)
            part = paint(box)
            painted.append(part[y0 - box[0] : y1 - box[0], x0 - box[2] : x1 - box[2]])
        yield y0, np.concatenate(painted, axis=1)
