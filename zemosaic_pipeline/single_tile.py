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
from zemosaic_pipeline.events import Reporter
from zemosaic_pipeline.runner import Selection, run_classic
from zemosaic_settings import Settings

__all__ = ["make_single_tile"]


def make_single_tile(
    paths: Sequence[Path],
    target: Path,
    settings: Settings,
    report: Reporter,
    known_wcs: Mapping[str, Mapping[str, Any]],
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
            {"input_dir": str(there[0].parent), "output_dir": work, "route": "direct", "resume": "off"}
        )
        result = run_classic(asked, report, selection=Selection(known_wcs=known_wcs, listed=listed))
        tile = max(result.report["tiles"], key=lambda row: len(row["frames"]))
        os.replace(tile["path"], target)
    return WCS(fits.getheader(target), naxis=2)
