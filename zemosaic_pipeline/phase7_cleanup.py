"""Phase 7: remove what this run made for itself; keep what a next run can use, when asked to."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from zemosaic_pipeline.context import RunContext
from zemosaic_pipeline.records import MasterTile

__all__ = ["PHASE", "run"]

PHASE = "phase7_cleanup"


def run(tiles: Sequence[MasterTile], keep_state: bool, context: RunContext) -> None:
    """Delete temporaries; tiles of earlier runs that nothing refers to go too."""
    shutil.rmtree(context.work_dir, ignore_errors=True)
    if keep_state:
        current = {Path(tile.path).name for tile in tiles}
        for path in (context.state_dir / "tiles").glob("master_tile_*.fits"):
            if path.name not in current:
                path.unlink()
        return
    shutil.rmtree(context.state_dir, ignore_errors=True)
