"""What is worth knowing about a co-add beside its pixels, gathered block by block of its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from zemosaic_core.sources import CoaddBlock

__all__ = ["SAMPLE_STEP", "BlockFacts", "CoaddFacts", "summarise", "tile_weight"]

# Noise and depth are medians over every seventh pixel of every seventh row.
SAMPLE_STEP = 7


@dataclass(frozen=True)
class BlockFacts:
    """Facts of some rows of a co-add.

    Attributes
    ----------
    counts : ndarray, shape (4,), int64
        Samples over all channels, and how many of them were rejected; the same of the centres of stars.
    rows, columns : ndarray, shape (h,) and (W,), bool
        Rows and columns that hold a covered pixel.
    coverage : ndarray, shape (k,), uint16
        Sources per pixel, of some covered pixels.
    variance : tuple of ndarray, shape (k,), float32
        Variance of some pixels, for each channel; ADU^2.
    """

    counts: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    coverage: np.ndarray
    variance: tuple[np.ndarray, ...]

    @staticmethod
    def of(row0: int, block: CoaddBlock, cores_yx: np.ndarray | None = None) -> BlockFacts:
        """Return the facts of the block that begins in row ``row0``; they do not depend on how rows are cut.

        ``cores_yx``, (K, 2) in the order of rows, are pixels of the co-add on which stars have their centres.
        """
        touched: np.ndarray = block.coverage > 0
        rows, columns = np.asarray(touched.any(axis=1)), np.asarray(touched.any(axis=0))
        samples = int(block.coverage.sum(dtype=np.int64)) * len(block.image)
        rejected = int(block.rejected_low.sum(dtype=np.int64) + block.rejected_high.sum(dtype=np.int64))
        some = slice(-row0 % SAMPLE_STEP, None, SAMPLE_STEP), slice(None, None, SAMPLE_STEP)
        covered = block.coverage[some]
        variance = [channel[some] for channel in block.variance]
        return BlockFacts(
            np.array([samples, rejected, *_counts_at(row0, block, cores_yx)], np.int64),
            rows,
            columns,
            covered[covered > 0],
            tuple(values[np.isfinite(values)] for values in variance),
        )

    @staticmethod
    def joined(parts: Sequence[BlockFacts]) -> BlockFacts:
        """Return the facts of blocks that follow each other; at least one."""
        return BlockFacts(
            np.sum([part.counts for part in parts], axis=0),
            np.concatenate([part.rows for part in parts]),
            np.any([part.columns for part in parts], axis=0),
            np.concatenate([part.coverage for part in parts]),
            tuple(np.concatenate(of_one) for of_one in zip(*(p.variance for p in parts), strict=True)),
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the facts as arrays by name."""
        by_channel = {f"variance_{c}": values for c, values in enumerate(self.variance)}
        return {
            "counts": self.counts,
            "rows": self.rows,
            "columns": self.columns,
            "coverage": self.coverage,
            **by_channel,
        }

    @staticmethod
    def from_arrays(arrays: Mapping[str, np.ndarray]) -> BlockFacts:
        """Return what `arrays` gave."""
        n_channels = sum(name.startswith("variance_") for name in arrays)
        return BlockFacts(
            arrays["counts"],
            arrays["rows"],
            arrays["columns"],
            arrays["coverage"],
            tuple(arrays[f"variance_{c}"] for c in range(n_channels)),
        )


@dataclass(frozen=True)
class CoaddFacts:
    """Facts of a whole co-add.

    Attributes
    ----------
    noise_adu : tuple of float
        Typical noise of a pixel per channel, ADU; NaN where no pixel has two samples.
    rejected_fraction : float
        Share of the samples that were rejected.
    core_rejected_fraction : float or None
        The same of the samples on the centres of stars; None where there are none.
    covered_bbox : tuple of int
        Rows y0, y1 and columns x0, x1, end exclusive, around all covered pixels; empty at 0 when there are none.
    median_coverage : float
        Sources per covered pixel.
    """

    noise_adu: tuple[float, ...]
    rejected_fraction: float
    core_rejected_fraction: float | None
    covered_bbox: tuple[int, int, int, int]
    median_coverage: float


def _counts_at(row0: int, block: CoaddBlock, cores_yx: np.ndarray | None) -> tuple[int, int]:
    """Return samples and rejected samples of the pixels of a block that are listed."""
    if cores_yx is None or not len(cores_yx):
        return 0, 0
    first, last = np.searchsorted(cores_yx[:, 0], [row0, row0 + len(block.coverage)])
    y, x = cores_yx[first:last, 0] - row0, cores_yx[first:last, 1]
    samples = int(block.coverage[y, x].sum(dtype=np.int64)) * len(block.image)
    rejected = sum(
        int(counts[:, y, x].sum(dtype=np.int64)) for counts in (block.rejected_low, block.rejected_high)
    )
    return samples, rejected


def summarise(parts: Sequence[BlockFacts]) -> CoaddFacts:
    """Return the facts of a co-add from those of its blocks, in the order of rows."""
    whole = BlockFacts.joined(parts)
    samples, rejected, core_samples, core_rejected = map(int, whole.counts)
    rows, columns = np.flatnonzero(whole.rows), np.flatnonzero(whole.columns)
    bbox = (0, 0, 0, 0)
    if len(rows):
        bbox = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    return CoaddFacts(
        tuple(float(np.sqrt(np.median(v))) if len(v) else float("nan") for v in whole.variance),
        rejected / samples if samples else 0.0,
        core_rejected / core_samples if core_samples else None,
        bbox,
        float(np.median(whole.coverage)) if len(whole.coverage) else 0.0,
    )


def tile_weight(block: CoaddBlock) -> np.ndarray:
    """Return the mean weight of the channels that were measured, (h, w) float32; 1 where all hold lower bounds only."""
    total, n_known = np.zeros(block.coverage.shape, np.float32), np.zeros(block.coverage.shape, np.uint8)
    for weight in block.weight:
        known = weight > 0
        total += np.where(known, weight, np.float32(0))
        n_known += known
    total /= np.maximum(n_known, 1)
    bare = n_known == 0
    if bare.any():
        np.copyto(total, np.isfinite(block.image).any(axis=0), where=bare)
    return total
