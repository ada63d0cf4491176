"""What the header of a master tile says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zemosaic_core import __version__
from zemosaic_pipeline.plan import RunPlan
from zemosaic_pipeline.records import FrameGroup, RegisteredFrame

__all__ = ["TileSetCards", "frame_cards", "tile_cards"]


@dataclass(frozen=True)
class TileSetCards:
    """What makes the tiles of a run a set that can be joined again without measuring anything.

    Attributes
    ----------
    key : str
        The same for the tiles of one run: what their levels and fluxes follow from.
    one_sky : bool
        One model of the sky stands behind all frames.
    linked : bool
        Common stars link the fluxes of all frames.
    flux_gain : tuple of float
        Factor per channel that brings this tile to the common scale.
    origin_yx : tuple of int or None
        Pixel of the run's grid that is the first of this tile. Cells in which tiles are compared begin there.
    """

    key: str
    one_sky: bool
    linked: bool
    flux_gain: tuple[float, ...] = ()
    origin_yx: tuple[int, int] | None = None

    def cards(self) -> dict[str, Any]:
        """Return the header cards."""
        cards: dict[str, Any] = {
            "ZMT_SET": (self.key, "tiles with this belong together"),
            "ZMT_SKY": ("full" if self.one_sky else "none", "model of the sky behind all frames"),
            "ZMT_LINK": (self.linked, "stars link the fluxes of all frames"),
        }
        for channel, gain in enumerate(self.flux_gain, 1):
            cards[f"ZMT_FLX{channel}"] = (gain, "factor to the common flux scale")
        if self.origin_yx is not None:
            cards["ZMT_Y0"] = (self.origin_yx[0], "row of the grid of the run")
            cards["ZMT_X0"] = (self.origin_yx[1], "column of the grid of the run")
        return cards


def tile_cards(
    group: FrameGroup,
    frames: Sequence[RegisteredFrame],
    plan: RunPlan,
    wcs_cards: dict[str, Any],
    refined: bool,
    tile_set: TileSetCards | None = None,
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
    if tile_set is not None:
        cards |= tile_set.cards()
    return cards | frame_cards(frames)


def frame_cards(frames: Sequence[RegisteredFrame]) -> dict[str, Any]:
    """Return what the headers of the frames say about the tile."""
    first = frames[0].solved.frame.info
    exposure = sum(frame.solved.frame.info.total_exposure_s or 0.0 for frame in frames)
    cards: dict[str, Any] = {"EXPTOTAL": (exposure, "[s] exposure of all frames")}
    dates = [frame.solved.frame.info.date_obs for frame in frames]
    for name, value in (
        ("DATE-OBS", min((date for date in dates if date), default="")),
        ("EXPTIME", first.exposure_s),
        ("OBJECT", first.object_name),
        ("FILTER", first.filter_name),
        ("INSTRUME", first.instrument),
        ("GAIN", first.gain),
    ):
        if value not in (None, ""):
            cards[name] = value
    return cards
