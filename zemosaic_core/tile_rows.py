"""Rows of a co-add as a tile keeps them: less than half of what a co-add knows of its pixels.

They are made where the rows are co-added, which may be another computer: what a tile does not keep need not travel.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from zemosaic_core.block_facts import BlockFacts, tile_weight
from zemosaic_core.sources import CoaddBlock

__all__ = ["TileRows", "TileRule"]


def _nowhere() -> np.ndarray:
    return np.empty((0, 2), np.int64)


@dataclass(frozen=True)
class TileRows:
    """Some rows of a tile.

    Attributes
    ----------
    image : ndarray, shape (C, h, w), float32
    coverage : ndarray, shape (h, w), uint16
    clipped : ndarray, shape (h, w), uint8
        A bit per channel where the image is a lower bound, see `CoaddBlock.clipped_bits`.
    variance : ndarray, shape (C, h, w), float32, or None
        None: the tile keeps none.
    weight : ndarray, shape (h, w), float32
        Mean weight of the channels.
    facts : BlockFacts
    """

    image: np.ndarray
    coverage: np.ndarray
    clipped: np.ndarray
    variance: np.ndarray | None
    weight: np.ndarray
    facts: BlockFacts


@dataclass(frozen=True)
class TileRule:
    """What a tile keeps of a co-add.

    Attributes
    ----------
    with_variance : bool
        Whether it has an extension VARIANCE.
    unseen : ndarray, shape (C,), or None
        Variance, ADU^2, that the scatter of the samples does not show: it is added to that of every pixel.
    cores_yx : ndarray, shape (K, 2), int64
        Pixels of the tile, row by row, on which stars have their centres: see `BlockFacts`.
    """

    with_variance: bool
    unseen: np.ndarray | None = None
    cores_yx: np.ndarray = field(default_factory=_nowhere)

    def of_rows(self, y0: int, y1: int) -> TileRule:
        """Return the rule for a block of these rows, which need not know of stars in others."""
        first, last = np.searchsorted(self.cores_yx[:, 0], [y0, y1])
        return replace(self, cores_yx=self.cores_yx[first:last])

    def __call__(self, y0: int, block: CoaddBlock) -> TileRows:
        """Return what a tile keeps of a block that begins in row ``y0``; it does not depend on how rows are cut."""
        if self.unseen is not None:
            unseen = self.unseen[:, None, None].astype(np.float32)
            block = replace(block, variance=block.variance + unseen)
        return TileRows(
            block.image,
            block.coverage,
            block.clipped_bits(),
            block.variance if self.with_variance else None,
            tile_weight(block),
            BlockFacts.of(y0, block, self.cores_yx),
        )
