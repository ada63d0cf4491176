"""Whether pictures lie on one lattice of pixels, by the cards of their WCS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from astropy.wcs import WCS

__all__ = ["Lattice", "shared_lattice"]

# Pixels are the same when they lie this near each other; headers hold twelve digits.
_SAME_PX = 1e-3


@dataclass(frozen=True)
class Lattice:
    """A grid that holds pictures on one lattice.

    Attributes
    ----------
    crpix_xy : ndarray, shape (2,)
        CRPIX of the grid.
    shape_hw : tuple of int
        Height and width of the grid, px.
    origins_yx : tuple of tuple of int
        Pixel of the grid that is the first of each picture.
    """

    crpix_xy: np.ndarray
    shape_hw: tuple[int, int]
    origins_yx: tuple[tuple[int, int], ...]


def shared_lattice(
    cards: Sequence[Mapping[str, Any]], shapes_hw: Sequence[tuple[int, int]]
) -> Lattice | None:
    """Return the smallest grid that holds all pictures when they differ by whole pixels only; None when not.

    Parameters
    ----------
    cards : sequence of mapping
        Celestial WCS of each picture.
    shapes_hw : sequence of tuple of int
        Height and width of each, px.
    """
    systems = [WCS(dict(own)) for own in cards]
    first = systems[0]
    reach = max(max(shape) for shape in shapes_hw) * len(shapes_hw)
    for system in systems:
        if list(system.wcs.ctype) != list(first.wcs.ctype) or system.sip is not None:
            return None
        # Over the whole reach the difference of the matrices must not move a pixel.
        step = np.abs(system.pixel_scale_matrix - first.pixel_scale_matrix).max()
        scale = np.sqrt(abs(np.linalg.det(first.pixel_scale_matrix)))
        away = np.abs(system.wcs.crval - first.wcs.crval).max()
        if step * reach > _SAME_PX * scale or away > _SAME_PX * scale:
            return None
    crpix = np.array([system.wcs.crpix for system in systems])
    offsets = crpix[0] - crpix
    whole = np.rint(offsets)
    if np.abs(offsets - whole).max() > _SAME_PX:
        return None
    low = whole.min(axis=0)
    ends = whole + np.array([(width, height) for height, width in shapes_hw])
    size = (ends.max(axis=0) - low).astype(int)
    origins = tuple((int(y), int(x)) for x, y in whole - low)
    return Lattice(crpix[0] - low, (int(size[1]), int(size[0])), origins)
