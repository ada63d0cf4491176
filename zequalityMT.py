"""Score stacked pictures: public functions on arrays and files, and `python zequalityMT.py FILES`.

Names and call forms are those of ZeMosaic 4. Images are (h, w, C) or (h, w), float, NaN missing; a fourth channel is
alpha, and pixels that are mostly transparent do not count.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

from zemosaic_core.axes import to_chw
from zemosaic_core.tile_quality import QualityOptions, accepts, tile_quality
from zemosaic_io.tile_tools import move_rejected, score_file

__all__ = ["ACCEPT_THRESHOLD", "accept", "move_rejected", "quality_metrics", "score_file"]

ACCEPT_THRESHOLD = 0.48
_OPAQUE = 0.85


def quality_metrics(
    arr: np.ndarray, edge_band: int = 64, k_sigma: float = 2.5, erode_px: int = 3, galaxy_protect: bool = True
) -> dict[str, float]:
    """Return the parts CC ED SC NBR BU SDED CEC EOC TRL CER and ``score`` of a picture; 0 is good.

    Raises
    ------
    SkipItem
        There is no picture in it.
    """
    planes = to_chw(arr)
    if len(planes) == 4:
        alpha = planes[3]
        planes = np.where(alpha >= _OPAQUE * max(float(np.nanmax(alpha)), 1e-9), planes[:3], np.nan)
    return tile_quality(planes, QualityOptions(edge_band, k_sigma, erode_px, galaxy_protect)).to_dict()


def accept(metrics: dict[str, Any], threshold: float = ACCEPT_THRESHOLD, override: bool = True) -> bool:
    """Tell whether what `quality_metrics` gave passes."""
    return accepts(metrics, threshold, override=override)


def score_files(paths: list[Path | str], threshold: float = ACCEPT_THRESHOLD) -> list[dict[str, Any]]:
    """Return what `score_file` gives for each file."""
    return [score_file(Path(path), threshold) for path in paths]


if __name__ == "__main__":
    sys.exit(importlib.import_module("run_zemosaic").main(["quality", *sys.argv[1:]]))
