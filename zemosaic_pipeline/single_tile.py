"""One master tile of given frames, for callers that make tiles one by one: a run that ends with its only tile."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from astropy.io import fits
from astropy.wcs import WCS

from zemosaic_core.errors import RunFailed
from zemosaic_io.stack_plan import PlannedFrame, StackPlan
from zemosaic_io.tile_tools import AltAzWish, crop_file, cropped_name
from zemosaic_pipeline.events import Message, Reporter
from zemosaic_pipeline.runner import Selection, run_classic
from zemosaic_pipeline.tile_plan import tile_checks
from zemosaic_settings import Settings

__all__ = ["make_single_tile"]


def make_single_tile(
    paths: Sequence[Path],
    target: Path,
    settings: Settings,
    report: Reporter,
    known_wcs: Mapping[str, Mapping[str, Any]],
    tile_id: int,
) -> WCS:
    """Stack frames into one tile.

    Parameters
    ----------
    paths : sequence of Path
        Frames, wherever they are.
    target : Path
        The tile; its folder is made where it is missing.
    known_wcs : mapping
        FITS cards of a WCS by path, of frames whose files have none.
    tile_id : int
        What messages call it.

    Returns
    -------
    astropy.wcs.WCS
        That of the tile.

    Raises
    ------
    RunFailed, SaveFailed, SettingsError, Cancelled
        There is no tile, and why.
    """
    there = tuple(path for path in paths if path.is_file())
    if not there:
        raise RunFailed(
            "run_error_no_frames", "none of the frames is there", folder=", ".join(map(str, paths[:3]))
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    listed = StackPlan(
        there[0].with_name("frames"),
        tuple(map(PlannedFrame, there)),
        tuple(str(path) for path in paths if path not in there),
    )
    with tempfile.TemporaryDirectory(prefix=".zemosaic_tile_", dir=target.parent) as work:
        asked = settings.updated(
            {
                "input_dir": str(there[0].parent),
                "output_dir": work,
                "route": "direct",
                "resume": "off",
                # A run keeps its tiles whole and cuts what it joins; here the tile itself is what is asked for.
                "quality_crop_enabled": False,
                "altaz_cleanup_enabled": False,
            }
        )
        result = run_classic(asked, report, selection=Selection(known_wcs=known_wcs, listed=listed))
        tile = max(result.report["tiles"], key=lambda row: len(row["frames"]))
        os.replace(_trimmed(Path(tile["path"]), tile_id, settings, report), target)
    return WCS(fits.getheader(target), naxis=2)


def _trimmed(tile: Path, tile_id: int, settings: Settings, report: Reporter) -> Path:
    """Return the tile, or a copy beside it without bad edges and thin corners where that is wished."""
    wished = tile_checks(settings)
    if wished.crop is None and wished.altaz is None:
        return tile
    altaz = None if wished.altaz is None else AltAzWish(wished.altaz, alpha=settings.altaz_export_alpha_fits)
    cut = cropped_name(tile)
    facts = crop_file(tile, cut, wished.crop, altaz)
    y0, y1, x0, x1 = facts["box"]
    if wished.crop is not None:
        kept = round(100 * (y1 - y0) * (x1 - x0) / facts["pixels"], 1)
        report(Message(f"tile_{facts['reason']}", "INFO", {"tile": tile_id, "kept": kept}))
    if altaz is not None:
        report(
            Message(
                "tile_altaz_masked", "INFO", {"tile": tile_id, "percent": round(100 * facts["masked"], 1)}
            )
        )
    return cut
