"""Tiles with their surface of second order added as they are read, the same pixels for every engine."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numba import njit

from zemosaic_core.sources import PixelSource, RawRows

__all__ = ["TileSurfaces", "add_surface"]


class TileSurfaces:
    """A `PixelSource` that adds ``cuu (u^2 - 1/3) + cut u t + ctt (t^2 - 1/3)`` to the images of another.

    The photometry of the co-add, on processor and graphics card alike, ends with the plane. What bends is added
    before, so that both sample the same pixels.

    Parameters
    ----------
    pixels : PixelSource
        Where images and weights come from.
    shapes_hw : mapping of int to tuple of int
        Height and width of each image with a surface, px.
    surfaces : mapping of int to ndarray, shape (C, 3)
        ``(cuu, cut, ctt)`` by key, in units of the image as `pixels` returns it: what
        `tile_photometry.TilePhotometry.surface` holds, divided by the gain that is still to come. Images without
        an entry, or with zeros only, pass unchanged.
    """

    def __init__(
        self,
        pixels: PixelSource,
        shapes_hw: Mapping[int, tuple[int, int]],
        surfaces: Mapping[int, np.ndarray],
    ) -> None:
        self._pixels = pixels
        self._shapes = {key: tuple(shapes_hw[key]) for key in surfaces}
        self._surfaces = {
            key: np.ascontiguousarray(value, dtype=np.float64)
            for key, value in surfaces.items()
            if np.any(value)
        }

    def read(self, key: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """Return the window as (C, y1-y0, x1-x0) float32; missing pixels are NaN."""
        window = self._pixels.read(key, y0, y1, x0, x1)
        surface = self._surfaces.get(key)
        return window if surface is None else add_surface(window, surface, self._shapes[key], y0, x0)

    def read_weight(self, key: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray | None:
        """Return the window of the weight map as it is."""
        return self._pixels.read_weight(key, y0, y1, x0, x1)

    def read_raw(self, key: int, y0: int, y1: int) -> RawRows | None:
        """Return undecoded rows of an image without a surface; None for the others, which need `read`."""
        return None if key in self._surfaces else self._pixels.read_raw(key, y0, y1)


def add_surface(
    window: np.ndarray, surface: np.ndarray, shape_hw: tuple[int, int], y0: int, x0: int
) -> np.ndarray:
    """Add a surface of second order to a window of an image.

    Parameters
    ----------
    window : ndarray, shape (C, h, w), float32
    surface : ndarray, shape (C, 3), float64
        ``(cuu, cut, ctt)`` for ``u = 2 x / (W - 1) - 1`` and ``t = 2 y / (H - 1) - 1``.
    shape_hw : tuple of int
        Height and width of the whole image, px.
    y0, x0 : int
        Pixel of the image the window begins with.

    Returns
    -------
    ndarray, shape (C, h, w), float32
        A new array. A pixel has the same value whatever window it is read with.
    """
    t = 2.0 * (y0 + np.arange(window.shape[1])) / max(1, shape_hw[0] - 1) - 1.0
    u = 2.0 * (x0 + np.arange(window.shape[2])) / max(1, shape_hw[1] - 1) - 1.0
    out = np.empty(window.shape, np.float32)
    _add(window, surface, u, t, out)
    return out


@njit(cache=True, nogil=True)
def _add(window, surface, u, t, out):
    channels, height, width = window.shape
    for c in range(channels):
        uu, ut, tt = surface[c, 0], surface[c, 1], surface[c, 2]
        for y in range(height):
            level = tt * (t[y] * t[y] - 1.0 / 3.0) - uu / 3.0
            slope = ut * t[y]
            for x in range(width):
                out[c, y, x] = window[c, y, x] + np.float32(level + (slope + uu * u[x]) * u[x])
