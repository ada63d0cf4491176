"""Phase 6: preview, coverage picture and the extra forms of the mosaic that were asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from zemosaic_core.colour_maps import coverage_rgba
from zemosaic_core.stretch import preview_rgba
from zemosaic_io.preview import (
    FitsRows,
    display_range,
    downscale,
    write_png,
    write_tiff16,
    write_viewer_fits_uint16,
)
from zemosaic_pipeline.context import RunContext
from zemosaic_pipeline.plan import OutputOptions
from zemosaic_pipeline.records import Mosaic

__all__ = ["PHASE", "run"]

PHASE = "phase6_export"
COVERAGE_PICTURE_PX = 1600
OPTIONAL_ENDINGS = ("_viewer.fits", "_viewer.tif", "_variance.fits")


def run(mosaic: Mosaic, options: OutputOptions, context: RunContext) -> dict[str, str]:
    """Write the files and return what they are called.

    Raises
    ------
    SaveFailed
        A file cannot be written.
    """
    base = Path(mosaic.science_path.removesuffix(".fits"))
    outputs = {"science": mosaic.science_path, "coverage": mosaic.coverage_path, **mosaic.outputs}
    steps = 2 + options.viewer_fits + options.viewer_tiff
    rows = FitsRows(mosaic.science_path)
    small = downscale(rows, options.preview["max_dim"])
    picture = preview_rgba(small, **options.preview)
    outputs["preview"] = str(write_png(Path(f"{base}_preview.png"), picture))
    context.preview_grown(outputs["preview"])
    context.progress(1, steps, "preview")
    depth = np.nan_to_num(downscale(FitsRows(mosaic.coverage_path), COVERAGE_PICTURE_PX)[0])
    outputs["coverage_preview"] = str(write_png(Path(f"{base}_coverage.png"), coverage_rgba(depth)))
    context.progress(2, steps, "coverage")
    limits = display_range(rows) if options.viewer_fits or options.viewer_tiff else None
    if options.viewer_fits:
        path = Path(f"{base}_viewer.fits")
        outputs["viewer"] = str(write_viewer_fits_uint16(path, rows, mosaic.grid.wcs_cards, limits=limits))
    if options.viewer_tiff:
        outputs["tiff"] = str(write_tiff16(Path(f"{base}_viewer.tif"), rows, limits=limits))
    _remove_old(base, outputs, context)
    context.progress(steps, steps)
    return outputs


def _remove_old(base: Path, outputs: dict[str, str], context: RunContext) -> None:
    """Remove what an earlier mosaic of this name left and this run did not make anew: it would not fit any more."""
    current = {Path(path).name for path in outputs.values()}
    old = [base.with_name(base.name + ending) for ending in OPTIONAL_ENDINGS]
    old = [path for path in old if path.name not in current and path.is_file()]
    for path in old:
        path.unlink()
    if old:
        context.say("run_info_old_outputs_removed", files=[path.name for path in old])
