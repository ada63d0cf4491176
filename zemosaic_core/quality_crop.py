"""Which part of a stacked picture is worth keeping: edges judged by noise, coverage, gradient and colour. Arrays only.

The picture is cut into cells. What a good cell is, the cells of its middle say. Strips of cells are taken off the four
sides, the worst first, as long as most of a strip is bad.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from zemosaic_core.statistics import mad_sigma

__all__ = ["CropOptions", "QualityCrop", "quality_box", "quality_box_of_rows"]

Rows = Callable[[int, int], np.ndarray]

# Cells of the middle half of each side are what the others are compared with.
_MIDDLE = 0.5
# A cell with less of a picture than this is no picture.
_LEAST_VALID = 0.9
_LEAST_COVERAGE = 0.5
# Smallest scatters that count: of the logarithm of the noise, and of levels and colours in units of the noise.
_LEAST_LOG_NOISE, _LEAST_LEVEL = 0.08, 0.15
# Levels and colours change with what is in the sky; they are bad only further away than noise is.
_SKY_TIMES = 2.0
# A side is not cut by more than this share of the picture: then it is the picture that is so.
_MOST_CUT = 0.35
_BAD_STRIP = 0.5


@dataclass(frozen=True)
class CropOptions:
    """How a picture is judged.

    Attributes
    ----------
    band_px : int
        Side of a cell, px.
    k_sigma : float
        Cells further from those of the middle than so many scatters are bad.
    margin_px : int
        Cut off beside what is bad, on sides where something is cut.
    min_run : int
        So many good strips in a row end the cutting of a side.
    """

    band_px: int = 32
    k_sigma: float = 2.0
    margin_px: int = 8
    min_run: int = 2


@dataclass(frozen=True)
class QualityCrop:
    """The box to keep and why.

    Attributes
    ----------
    box : tuple of int
        ``(y0, y1, x0, x1)``, end exclusive.
    reason_key : str
        ``crop_edges``: edges are cut; ``crop_nothing``: all are good; ``crop_refused``: too much is bad.
    bad : dict of str to float
        Share of the cells that are bad by ``valid``, ``noise``, ``coverage``, ``level`` and ``colour``.
    """

    box: tuple[int, int, int, int]
    reason_key: str
    bad: dict[str, float]


def quality_box(
    planes: np.ndarray, coverage: np.ndarray | None = None, options: CropOptions | None = None
) -> QualityCrop:
    """Return the part of a picture whose edges are as good as its middle.

    Parameters
    ----------
    planes : ndarray, shape (C, h, w)
        Real; NaN: missing.
    coverage : ndarray, shape (h, w), optional
        Frames per pixel.
    options : CropOptions, optional

    Raises
    ------
    ValueError
        Shapes or numbers make no sense.
    """
    if planes.ndim != 3 or (coverage is not None and coverage.shape != planes.shape[1:]):
        raise ValueError(
            f"planes must be (C, h, w) and coverage (h, w); got {planes.shape}, {np.shape(coverage)}"
        )
    depth = None if coverage is None else (lambda y0, y1: coverage[y0:y1])
    return quality_box_of_rows(lambda y0, y1: planes[:, y0:y1], planes.shape, depth, options)


def quality_box_of_rows(
    read: Rows,
    shape: tuple[int, int, int],
    read_coverage: Rows | None = None,
    options: CropOptions | None = None,
) -> QualityCrop:
    """Return what `quality_box` does for a picture that is read in bands of rows.

    Parameters
    ----------
    read : callable
        ``read(y0, y1)`` gives rows (C, y1 - y0, w).
    shape : tuple of int
        (C, h, w).
    read_coverage : callable, optional
        ``read_coverage(y0, y1)`` gives rows (y1 - y0, w) of frames per pixel.
    options : CropOptions, optional
    """
    options = options or CropOptions()
    if options.band_px < 4 or options.k_sigma <= 0 or options.margin_px < 0 or options.min_run < 1:
        raise ValueError(f"band_px >= 4, k_sigma > 0, margin_px >= 0, min_run >= 1; got {options}")
    height, width = shape[1:]
    whole = (0, height, 0, width)
    found = _Cells(read, shape, read_coverage, options.band_px).bad(options.k_sigma)
    shares = {name: round(float(mask.mean()), 4) for name, mask in found.items()}
    bad = np.any(list(found.values()), axis=0)
    strips = _peel(bad, options.min_run)
    if strips is None:
        return QualityCrop(whole, "crop_refused", shares)
    if strips == (0, bad.shape[0], 0, bad.shape[1]):
        return QualityCrop(whole, "crop_nothing", shares)
    top, bottom, left, right = strips
    band, margin = options.band_px, options.margin_px
    y0, x0 = (0 if top == 0 else top * band + margin), (0 if left == 0 else left * band + margin)
    y1 = height if bottom == bad.shape[0] else bottom * band - margin
    x1 = width if right == bad.shape[1] else right * band - margin
    if y1 - y0 < 1 or x1 - x0 < 1:
        return QualityCrop(whole, "crop_refused", shares)
    return QualityCrop((y0, y1, x0, x1), "crop_edges", shares)


class _Cells:
    """Statistics of the cells of a picture; what is left over at the right and bottom belongs to the last cells."""

    def __init__(
        self, read: Rows, shape: tuple[int, int, int], read_coverage: Rows | None, band: int
    ) -> None:
        channels, height, width = shape
        self.shape = (max(1, height // band), max(1, width // band))
        ny, nx = self.shape
        rows = np.append(np.arange(ny) * band, height)
        columns = np.append(np.arange(nx) * band, width)
        self.level = np.full((channels, ny, nx), np.nan)
        self.noise = np.full((ny, nx), np.nan)
        self.valid = np.zeros((ny, nx))
        self.coverage = None if read_coverage is None else np.zeros((ny, nx))
        for j in range(ny):
            strip = np.asarray(read(int(rows[j]), int(rows[j + 1])), float)
            depth = None if read_coverage is None else read_coverage(int(rows[j]), int(rows[j + 1]))
            for i in range(nx):
                block = strip[:, :, columns[i] : columns[i + 1]]
                known = np.isfinite(block).all(axis=0)
                self.valid[j, i] = known.mean()
                if depth is not None and self.coverage is not None:
                    self.coverage[j, i] = float(np.mean(np.nan_to_num(depth[:, columns[i] : columns[i + 1]])))
                if known.sum() < 16:
                    continue
                self.level[:, j, i] = np.median(block[:, known], axis=1)
                light = block.mean(axis=0)
                # Differences of second neighbours know no gradient, and little of how alike neighbours are.
                steps = (light[:, 2:] - light[:, :-2])[known[:, 2:] & known[:, :-2]]
                self.noise[j, i] = mad_sigma(steps) / np.sqrt(2.0) if steps.size else np.nan

    def _reference(self, values: np.ndarray, least: float) -> tuple[float, float]:
        ny, nx = self.shape
        y = slice(int(ny * (1 - _MIDDLE) / 2), max(1, int(np.ceil(ny * (1 + _MIDDLE) / 2))))
        x = slice(int(nx * (1 - _MIDDLE) / 2), max(1, int(np.ceil(nx * (1 + _MIDDLE) / 2))))
        middle = values[y, x]
        middle = middle[np.isfinite(middle)]
        if not middle.size:
            return np.nan, np.nan
        return float(np.median(middle)), max(float(mad_sigma(middle)), least)

    def bad(self, k_sigma: float) -> dict[str, np.ndarray]:
        """Return the masks (ny, nx) of cells that are bad, by what is wrong."""
        with np.errstate(divide="ignore", invalid="ignore"):
            log_noise = np.log(np.where(self.noise > 0, self.noise, np.nan))
            usual, scatter = self._reference(log_noise, _LEAST_LOG_NOISE)
            unit = float(np.exp(usual)) if np.isfinite(usual) else 1.0
            found = {
                "valid": self.valid < _LEAST_VALID,
                "noise": log_noise - usual > k_sigma * scatter,
                "level": self._far(self.level.mean(axis=0) / unit, k_sigma),
            }
            if len(self.level) == 3:
                red, green, blue = self.level / unit
                found["colour"] = self._far(red - green, k_sigma) | self._far(blue - green, k_sigma)
        if self.coverage is not None:
            deep, _ = self._reference(self.coverage, 0.0)
            found["coverage"] = self.coverage < _LEAST_COVERAGE * deep
        return found

    def _far(self, values: np.ndarray, k_sigma: float) -> np.ndarray:
        usual, scatter = self._reference(values, _LEAST_LEVEL)
        return np.abs(values - usual) > _SKY_TIMES * k_sigma * scatter


def _peel(bad: np.ndarray, min_run: int) -> tuple[int, int, int, int] | None:
    """Return the strips to keep ``(y0, y1, x0, x1)``; None when more would be cut off a side than may be."""
    ny, nx = bad.shape
    y0, y1, x0, x1 = 0, ny, 0, nx
    while True:
        sides = {
            "top": [bad[y, x0:x1].mean() for y in range(y0, min(y1, y0 + min_run))],
            "bottom": [bad[y, x0:x1].mean() for y in range(y1 - 1, max(y0, y1 - min_run) - 1, -1)],
            "left": [bad[y0:y1, x].mean() for x in range(x0, min(x1, x0 + min_run))],
            "right": [bad[y0:y1, x].mean() for x in range(x1 - 1, max(x0, x1 - min_run) - 1, -1)],
        }
        # A bad strip behind a good one takes the good one along.
        worst = {name: max(shares) for name, shares in sides.items()}
        side = max(worst, key=lambda name: worst[name])
        if worst[side] <= _BAD_STRIP:
            return y0, y1, x0, x1
        step = 1 + max(n for n, share in enumerate(sides[side]) if share > _BAD_STRIP)
        y0, y1 = y0 + step * (side == "top"), y1 - step * (side == "bottom")
        x0, x1 = x0 + step * (side == "left"), x1 - step * (side == "right")
        if max(y0, ny - y1) > _MOST_CUT * ny or max(x0, nx - x1) > _MOST_CUT * nx or y0 >= y1 or x0 >= x1:
            return None
