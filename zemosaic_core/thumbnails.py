"""Small pictures of large ones: medians over cells of a lattice that all tiles share."""

from __future__ import annotations

import numpy as np

__all__ = ["cell_medians", "lattice_range"]


def lattice_range(origin: int, length: int, cell_px: int) -> tuple[int, int]:
    """Return first and one-past-last lattice cell touched by ``[origin, origin + length)``."""
    return origin // cell_px, -(-(origin + length) // cell_px)


def cell_medians(
    image: np.ndarray, origin_yx: tuple[int, int], cell_px: int, *, min_fraction: float = 0.5
) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the median of every lattice cell.

    The lattice starts at pixel (0, 0) of the common grid, so that the cells of different images coincide.

    Parameters
    ----------
    image : ndarray, shape (C, h, w), float32
        NaN where there is nothing.
    origin_yx : tuple of int
        Grid pixel of the image's first pixel.
    cell_px : int
        Side of a cell, px.
    min_fraction : float
        Share of a cell's pixels that must be there.

    Returns
    -------
    medians : ndarray, shape (C, ny, nx), float32
        NaN for cells with too few pixels. Even counts give the lower of the two middle values.
    first_cell : tuple of int
        Lattice indices ``(row, column)`` of the first cell.
    """
    n_channels, height, width = image.shape
    cy0, cy1 = lattice_range(origin_yx[0], height, cell_px)
    cx0, cx1 = lattice_range(origin_yx[1], width, cell_px)
    top, left = origin_yx[0] - cy0 * cell_px, origin_yx[1] - cx0 * cell_px
    ny, nx = cy1 - cy0, cx1 - cx0
    medians = np.full((n_channels, ny, nx), np.nan, dtype=np.float32)
    needed = min_fraction * cell_px * cell_px
    row = np.full((cell_px, nx * cell_px), np.nan, dtype=np.float32)
    for channel in range(n_channels):
        for j in range(ny):
            y0 = j * cell_px - top
            part = image[channel, max(0, y0) : min(height, y0 + cell_px)]
            row.fill(np.nan)
            start = max(0, -y0)
            row[start : start + len(part), left : left + width] = part
            cells = np.sort(row.reshape(cell_px, nx, cell_px).transpose(1, 0, 2).reshape(nx, -1), axis=1)
            count = np.count_nonzero(~np.isnan(cells), axis=1)
            good = count >= max(1.0, needed)
            middle = np.maximum(count - 1, 0) // 2
            medians[channel, j, good] = cells[np.arange(nx), middle][good]
    return medians, (cy0, cx0)
