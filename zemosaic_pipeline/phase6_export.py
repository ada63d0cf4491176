"""Phase 6: preview, coverage picture and the extra forms of the mosaic that were asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from zemosaic_core.coverage import coverage_rgba
from zemosaic_core.stretch import preview_rgba

from zemosaic_io.image_rows import ImageRows
from zemosaic_io.preview import write_png, write_tiff16_rows, write_viewer_rows
from zemosaic_pipeline.context import RunContext
from zemosaic_pipeline.plan import OutputOptions
from zemosaic_pipeline.records import Mosaic

__all__ = ["PHASE", "decimated", "run"]

PHASE = "phase6_export"
COVERAGE_PICTURE_PX = 1600


def decimated(path: str | Path, max_dim: int, *, rows: int = 256) -> np.ndarray:
    """Return the image (C, h, w) shrunk by whole pixels so that no side is longer than ``max_dim``.

    Means over the pixels that are there; NaN where there are none. The file is read in bands.
    """
    image = ImageRows(path)
    n_channels, height, width = image.shape
    step = max(1, -(-max(height, width) // max_dim))
    out = np.empty((n_channels, -(-height // step), -(-width // step)), np.float32)
    band = max(step, rows // step * step)
    for y0 in range(0, height, band):
        part = image.rows(y0, min(height, y0 + band))
        small = part if step == 1 else _shrink(part, step)
        out[:, y0 // step : y0 // step + small.shape[1]] = small
    return out


def _shrink(part: np.ndarray, step: int) -> np.ndarray:
    n_channels, height, width = part.shape
    ny, nx = -(-height // step), -(-width // step)
    padded = np.full((n_channels, ny * step, nx * step), np.nan, np.float32)
    padded[:, :height, :width] = part
    cells = padded.reshape(n_channels, ny, step, nx, step)
    valid = ~np.isnan(cells)
    count = valid.sum(axis=(2, 4))
    total = np.where(valid, cells, 0).sum(axis=(2, 4), dtype=np.float64)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def _bands(path: str, rows: int = 512) -> Iterator[tuple[int, np.ndarray]]:
    image = ImageRows(path)
    for y0 in range(0, image.shape[1], rows):
        yield y0, image.rows(y0, min(image.shape[1], y0 + rows))


def _display_range(small: np.ndarray) -> tuple[float, float]:
    """Return the values that 16-bit viewers get as 0 and 65535: a linear range that clips next to nothing."""
    values = small[np.isfinite(small)]
    low, high = np.percentile(values, [0.01, 99.99])
    margin = 0.02 * (high - low)
    return float(low - margin), float(high + margin)


def run(mosaic: Mosaic, options: OutputOptions, context: RunContext) -> dict[str, str]:
    """Write the files and return what they are called.

    Raises
    ------
    SaveFailed
        A file cannot be written.
    """
    base = Path(mosaic.science_path).with_suffix("")
    outputs = {"science": mosaic.science_path, "coverage": mosaic.coverage_path, **mosaic.outputs}
    steps = 2 + options.viewer_fits + options.viewer_tiff
    small = decimated(mosaic.science_path, options.preview["max_dim"])
    picture = preview_rgba(small, **options.preview)
    # FITS counts rows from the bottom, pictures from the top; without the flip south would be up.
    outputs["preview"] = str(write_png(Path(f"{base}_preview.png"), picture[::-1]))
    context.preview_grown(outputs["preview"])
    context.progress(1, steps, "preview")
    depth = decimated(mosaic.coverage_path, COVERAGE_PICTURE_PX)[0]
    outputs["coverage_preview"] = str(write_png(Path(f"{base}_coverage.png"), coverage_rgba(depth)[::-1]))
    context.progress(2, steps, "coverage")
    low, high = _display_range(small)
    shape = ImageRows(mosaic.science_path).shape
    if options.viewer_fits:
        path = Path(f"{base}_viewer.fits")
        write_viewer_rows(path, shape, _bands(mosaic.science_path), low, high, mosaic.grid.wcs_cards)
        outputs["viewer"] = str(path)
    if options.viewer_tiff:
        path = Path(f"{base}_viewer.tif")
        write_tiff16_rows(path, shape, _bands(mosaic.science_path), low, high)
        outputs["tiff"] = str(path)
    context.progress(steps, steps)
    return outputs
