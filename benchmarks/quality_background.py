"""What is left of the sky in a mosaic, in cells of 64 px."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from benchmarks.quality_scene import Scene

__all__ = ["CELL_PX", "Cells", "measure_cells", "upsampled"]

CELL_PX = 64


@dataclass(frozen=True)
class Cells:
    """Medians of residual and truth in cells of 64 px; NaN where a cell holds too few clean pixels.

    ``frames`` is how much of a cell frames cover, all of them together: 2 where two cover it whole or four its half.
    """

    residual: np.ndarray
    truth: np.ndarray
    frames: np.ndarray

    def _centred(self) -> np.ndarray:
        return np.asarray(self.residual - np.nanmedian(self.residual))

    def rms(self) -> float:
        return float(np.sqrt(np.nanmean(self._centred() ** 2)))

    def rms_after_plane(self) -> float:
        use = np.isfinite(self.residual)
        y, x = np.nonzero(use)
        design = np.c_[np.ones(x.size), x, y]
        values = self.residual[use]
        left = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
        return float(np.sqrt((left**2).mean()))

    def spread(self) -> float:
        low, high = np.nanpercentile(self.residual, [5.0, 95.0])
        return float(high - low)

    def large_scales(self) -> list[float]:
        """Return x, y, x^2, xy, y^2 of a quadric through the residual, ADU at the edge of the longer side.

        Each cell counts as much as frames cover it, as in the error that a run states: else the corners, of which one
        frame shows a bit, decide about the bowl of all.
        """
        use = np.isfinite(self.residual)
        place = np.argwhere(use)[:, ::-1].astype(np.float64)
        low, high = place.min(axis=0), place.max(axis=0)
        x, y = ((place - (low + high) / 2.0) / max(0.5 * float((high - low).max()), 0.5)).T
        design = np.column_stack([np.ones(x.size), x, y, x * x, x * y, y * y])
        root = np.sqrt(self.frames[use])
        fit = np.linalg.lstsq(design * root[:, None], self.residual[use] * root, rcond=None)[0]
        return [float(v) for v in fit[1:]]

    def slope(self) -> float:
        use = np.isfinite(self.residual)
        truth = self.truth[use]
        if np.ptp(np.percentile(truth, [2.0, 98.0])) < 20.0:
            return float("nan")
        centred = truth - truth.mean()
        return float(1.0 + (centred * self.residual[use]).sum() / (centred**2).sum())


def measure_cells(scene: Scene, channel: int) -> Cells:
    ok = scene.clean & np.isfinite(scene.image[channel])
    residual = np.where(ok, scene.residual[channel], np.nan)
    truth = np.where(ok, scene.diffuse[channel], np.nan)
    return Cells(_cell_medians(residual), _cell_medians(truth), _in_cells(scene.coverage, 0.0).mean(axis=2))


def _in_cells(image: np.ndarray, beyond: float) -> np.ndarray:
    """Pixels cell by cell, (ny, nx, 64 * 64), with a value for those beyond the border."""
    height, width = image.shape
    ny, nx = -(-height // CELL_PX), -(-width // CELL_PX)
    padded = np.full((ny * CELL_PX, nx * CELL_PX), beyond, dtype=np.float32)
    padded[:height, :width] = image
    return padded.reshape(ny, CELL_PX, nx, CELL_PX).swapaxes(1, 2).reshape(ny, nx, -1)


def _cell_medians(image: np.ndarray, enough: float = 0.15) -> np.ndarray:
    cells = _in_cells(image, np.nan)
    filled = np.isfinite(cells).mean(axis=2) >= enough
    found = np.full(filled.shape, np.nan)
    found[filled] = np.nanmedian(cells[filled], axis=1)
    return found


def upsampled(cells: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Cells between their centres, holes filled from the nearest cell."""
    holes = ~np.isfinite(cells)
    nearest = ndimage.distance_transform_edt(holes, return_distances=False, return_indices=True)
    filled = cells[tuple(nearest)]
    grid = np.meshgrid(*((np.arange(n) + 0.5) / CELL_PX - 0.5 for n in shape), indexing="ij")
    return np.asarray(ndimage.map_coordinates(filled, grid, order=1, mode="nearest"))
