"""Rows of a co-add that the second pass reads with their surroundings and replaces, block by block from the top."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np

from zemosaic_core.chunks import Buffer
from zemosaic_core.handing_on import HandingOn
from zemosaic_core.refine import RefineSource
from zemosaic_core.refine_structure import HALO_ROWS, Gathered, refined, share_of_channels, structure_mask
from zemosaic_core.sources import SampleNoise

__all__ = [
    "BlockRows",
    "BlocksInTurn",
    "CoaddRows",
    "CoaddStore",
    "RowsApart",
    "RowsBeside",
    "RowsInTurn",
    "refine_buffers",
]


@dataclass(frozen=True)
class CoaddRows:
    """Rows of a co-add: image and variance (C, h, w), weight (h, w) as the mean of the channels, coverage (h, w)."""

    image: np.ndarray
    weight: np.ndarray
    coverage: np.ndarray
    variance: np.ndarray | None


class CoaddStore(Protocol):
    """Where a co-add lies."""

    def read(self, y0: int, y1: int) -> CoaddRows:
        """Return the rows ``y0 <= y < y1``."""

    def write(self, y0: int, image: np.ndarray, variance: np.ndarray | None) -> None:
        """Replace image and variance of rows from `y0` on."""


@dataclass(frozen=True)
class BlockRows:
    """What decides about a block.

    Attributes
    ----------
    y0 : int
        First row of the block.
    image_y0 : int
        First row of `image`, which has `HALO_ROWS` more on either side where the grid has them.
    image, weight : ndarray, shape (C, h, w), float32
    variance : ndarray or None
        Of the rows of the block only.
    mask : ndarray, shape (rows, w), float32
    """

    y0: int
    image_y0: int
    image: np.ndarray
    weight: np.ndarray
    variance: np.ndarray | None
    mask: np.ndarray


class BlocksInTurn(Protocol):
    """What gives blocks of a co-add as it was."""

    def block(self, y0: int, y1: int) -> BlockRows:
        """Return the rows of a block as they were before anything was replaced."""


class RowsInTurn:
    """Gives blocks of a co-add as it was, while the rows above are being replaced.

    Parameters
    ----------
    store : CoaddStore
    sources : sequence of RefineSource
    height : int
        Rows of the co-add.
    noise : SampleNoise
    scale : float
        Output pixels per source pixel.
    """

    def __init__(
        self,
        store: CoaddStore,
        sources: Sequence[RefineSource],
        height: int,
        noise: SampleNoise,
        scale: float = 1.0,
    ) -> None:
        self._store = store
        self._height = height
        self._noise = noise
        self._scale = scale
        self._of_mean = _of_mean(sources)
        self._shares = share_of_channels(sources[0].pattern)
        self._kept_y0 = 0
        self._kept: CoaddRows | None = None
        self._open: dict[tuple[int, int], BlockRows] = {}

    def block(self, y0: int, y1: int) -> BlockRows:
        """Return the rows of a block as they were before anything was replaced.

        Rows above the block that was replaced last are no longer known. A block is kept until it is replaced: several
        may be in work.
        """
        if (y0, y1) in self._open:
            return self._open[y0, y1]
        top, bottom = max(0, y0 - HALO_ROWS), min(self._height, y1 + HALO_ROWS)
        rows = self._store.read(top, bottom)
        image = np.array(rows.image, np.float32)
        variance = None if rows.variance is None else np.array(rows.variance, np.float32)
        if self._kept is not None:
            first, last = max(top, self._kept_y0), min(bottom, self._kept_y0 + self._kept.image.shape[1])
            if first < last:
                here, there = (
                    slice(first - top, last - top),
                    slice(first - self._kept_y0, last - self._kept_y0),
                )
                image[:, here] = self._kept.image[:, there]
                if variance is not None and self._kept.variance is not None:
                    variance[:, here] = self._kept.variance[:, there]
        as_was = CoaddRows(image, rows.weight, rows.coverage, variance)
        found = _block_of(as_was, top, (y0, y1), self._of_mean, self._noise)
        self._open[y0, y1] = found
        return found

    def replace(self, y0: int, y1: int, gathered: Gathered) -> None:
        """Replace the rows of a block; blocks come in order."""
        block = self.block(y0, y1)
        self._open = {rows: kept for rows, kept in self._open.items() if rows[0] >= y1}
        inner = slice(y0 - block.image_y0, y1 - block.image_y0)
        image, variance = refined(
            block.image[:, inner],
            block.variance,
            gathered,
            block.mask,
            block.weight,
            self._shares,
            self._scale,
        )
        first = block.image_y0
        whole = self._store.read(first, y1)
        kept_variance = None
        if block.variance is not None and whole.variance is not None:
            kept_variance = np.array(whole.variance, np.float32)
            kept_variance[:, y0 - first :] = block.variance
        # Those above were kept until now or are as they are.
        self._kept = CoaddRows(block.image[:, : y1 - first], whole.weight, whole.coverage, kept_variance)
        self._kept_y0 = first
        self._store.write(y0, image, variance)


class RowsApart:
    """Gives blocks of a co-add whose rows are replaced in another place: as long as it lasts they can be read again.

    So nothing of a block is kept until its turn comes, however many there are in work.

    Parameters
    ----------
    store : CoaddStore
        What it writes is not what it reads.
    sources, height, noise
        As of `RowsInTurn`.
    """

    def __init__(
        self, store: CoaddStore, sources: Sequence[RefineSource], height: int, noise: SampleNoise
    ) -> None:
        self._store = store
        self._height = height
        self._noise = noise
        self._of_mean = _of_mean(sources)

    def block(self, y0: int, y1: int) -> BlockRows:
        """Return the rows of a block."""
        top, bottom = max(0, y0 - HALO_ROWS), min(self._height, y1 + HALO_ROWS)
        return _block_of(self._store.read(top, bottom), top, (y0, y1), self._of_mean, self._noise)

    def replace(
        self, y0: int, y1: int, at: np.ndarray, image: np.ndarray, variance: np.ndarray | None
    ) -> None:
        """Write the rows of a block with other values (C, n) at some pixels, flat indices (n,); blocks come in order.

        ``variance`` is not looked at where none is kept.
        """
        rows = self._store.read(y0, y1)
        spread = None if rows.variance is None else _with(rows.variance, at, variance)
        self._store.write(y0, _with(rows.image, at, image), spread)


def _of_mean(sources: Sequence[RefineSource]) -> np.ndarray:
    """Return what each channel has of the mean weight, (C,) float32: the same everywhere to some percent.

    A store keeps one weight for all channels.
    """
    weights = np.array([item.source.weight for item in sources], np.float64)
    mean = weights.mean(axis=1).sum()
    return (weights.sum(axis=0) / mean if mean > 0 else np.ones(weights.shape[1])).astype(np.float32)


def _block_of(
    rows: CoaddRows, top: int, block: tuple[int, int], of_mean: np.ndarray, noise: SampleNoise
) -> BlockRows:
    """Return a block of rows that begin at ``top`` and reach `HALO_ROWS` beyond it."""
    y0, y1 = block
    image = np.asarray(rows.image, np.float32)
    weight = rows.weight * of_mean[:, None, None]
    inner = slice(y0 - top, y1 - top)
    mask = structure_mask(image, weight, noise.variance, rows.coverage, inner)
    variance = None if rows.variance is None else np.asarray(rows.variance, np.float32)[:, inner]
    return BlockRows(y0, top, image, weight[:, inner], variance, mask)


def _with(planes: np.ndarray, at: np.ndarray, values: np.ndarray | None) -> np.ndarray:
    """Return planes (C, h, w) with other values (C, n) at some pixels."""
    found = np.array(planes, np.float32)
    found.reshape(len(found), -1)[:, at] = values
    return found


class RowsBeside(HandingOn):
    """`RowsInTurn` in a thread of its own, one thing after the other: files and one core would be waited for.

    A block is made ready, and the one before replaced, while differences are gathered. Used in one thread.
    """

    def __init__(self, rows: RowsInTurn) -> None:
        super().__init__(rows.replace)
        self._rows = rows

    def prepare(self, y0: int, y1: int) -> None:
        """Begin to make a block ready; what goes wrong is found out by who asks for it."""
        self.after(self._rows.block, y0, y1)

    def block(self, y0: int, y1: int) -> BlockRows:
        """As `RowsInTurn.block`."""
        return self.after(self._rows.block, y0, y1).result()

    def replace(self, y0: int, y1: int, gathered: Gathered) -> None:
        """Begin to replace the rows of a block; blocks come in order."""
        self(y0, y1, gathered)


def refine_buffers(n_channels: int, width: int, window_bytes: int, threads: int) -> tuple[Buffer, ...]:
    """Declare the memory of the second pass on the processor per output row.

    Parameters
    ----------
    n_channels, width : int
    window_bytes : int
        Float32 samples of the largest source.
    threads : int
        Windows read at a time.
    """
    plane = 4 * n_channels * width
    # One block is made ready or replaced while another one is gathered.
    return (
        Buffer("rows", per_row=plane, copies=9),
        Buffer("sums", per_row=plane, copies=2 * len(fields(Gathered))),
        Buffer("mask", per_row=8 * width, copies=5),
        # Of a window there are samples and differences; one thread, too, may keep the differences of the one before.
        Buffer("samples", fixed=window_bytes, copies=max(3, 2 * threads)),
    )
