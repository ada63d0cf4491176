"""What the header of a master tile says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zemosaic_core import __version__
from zemosaic_pipeline.plan import RunPlan
from zemosaic_pipeline.records import FrameGroup, RegisteredFrame

__all__ = ["frame_cards", "tile_cards"]


def tile_cards(
    group: FrameGroup,
    frames: Sequence[RegisteredFrame],
    plan: RunPlan,
    wcs_cards: dict[str, Any],
    refined: bool,
) -> dict[str, Any]:
    """Return the header cards of a tile: its place, how it was stacked, and what its frames say."""
    stack = plan.stack
    cards: dict[str, Any] = {
        **wcs_cards,
        "ZMT_TYPE": ("Master Tile", "ZeMosaic product"),
        "ZMT_ID": (group.group_id, "tile number"),
        "ZMT_NRAW": (len(group.members), "frames in the group"),
        "HIERARCH ZMT_NALGN": (len(frames), "frames stacked"),
        "ZMT_NORM": (stack.normalise, "normalisation applied"),
        "ZMT_WGHT": (stack.weighting, "weights applied"),
        "ZMT_RADW": (stack.radial is not None, "radial weight applied"),
        "ZMT_REJ": (stack.rule.rejection, "rejection applied"),
        "HIERARCH ZMT_KAPLO": (stack.rule.kappa_low, "sigma below the centre"),
        "HIERARCH ZMT_KAPHI": (stack.rule.kappa_high, "sigma above the centre"),
        "HIERARCH ZMT_WINLO": (stack.rule.winsor_limits[0], "winsorised fraction, low"),
        "HIERARCH ZMT_WINHI": (stack.rule.winsor_limits[1], "winsorised fraction, high"),
        "ZMT_COMB": (stack.rule.combine, "combination"),
        "ZMT_KERN": (stack.kernel, "resampling kernel"),
        "HIERARCH ZMT_REFINE": (refined, "second pass over the raw samples"),
        "NEXP_SUM": (len(frames), "number of exposures"),
        "BUNIT": ("adu", "counts of the reference frames"),
        "SOFTWARE": (f"ZeMosaic {__version__}", "made by"),
    }
    return cards | frame_cards(frames)


def frame_cards(frames: Sequence[RegisteredFrame]) -> dict[str, Any]:
    """Return what the headers of the frames say about the tile."""
    first = frames[0].solved.frame.info
    exposure = sum(frame.solved.frame.info.total_exposure_s or 0.0 for frame in frames)
    cards: dict[str, Any] = {"EXPTOTAL": (exposure, "[s] exposure of all frames")}
    for name, value in (
        ("OBJECT", first.object_name),
        ("FILTER", first.filter_name),
        ("INSTRUME", first.instrument),
        ("GAIN", first.gain),
    ):
        if value not in (None, ""):
            cards[name] = value
    return cards
