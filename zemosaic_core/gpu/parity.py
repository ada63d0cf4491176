"""Compare what the card computed with what the CPU computes for the same rows. Arrays and numbers only."""

from __future__ import annotations

import numpy as np

from zemosaic_core.gpu.terms import Parity
from zemosaic_core.sources import CoaddBlock

__all__ = ["compare_blocks"]

# Values are float32: the last places of a bright star are no disagreement, nor are those of sums of many weights.
_WEIGHT_ERROR = 1e-3
_ROUNDING = 8 * float(np.finfo(np.float32).eps)
# Of so many samples of a pixel one may be rejected by one side only: sums of very many round differently.
_SAMPLES_PER_TIE = 10_000


def compare_blocks(gpu: CoaddBlock, cpu: CoaddBlock, first_row: int) -> Parity:
    """Compare rows of a block of the card with a block of the CPU.

    Parameters
    ----------
    gpu, cpu : CoaddBlock
        The CPU's rows are rows ``first_row ...`` of the card's block.
    first_row : int

    Returns
    -------
    Parity
        Largest difference of the image in units of the noise, beyond the rounding of float32, where both
        rejected the same number of samples; pixels where they did not are counted, beyond one in ten thousand of their
        samples, and those with other weights or another number of samples. The noise is the square root of the median
        variance of the combined values; where there is none (a single source), the scatter of differences between
        neighbours.
    """
    rows = slice(first_row, first_row + cpu.image.shape[1])
    image = gpu.image[:, rows]
    same = (gpu.rejected_low[:, rows] == cpu.rejected_low) & (gpu.rejected_high[:, rows] == cpu.rejected_high)
    flips = np.abs(gpu.rejected_low[:, rows].astype(np.int64) - cpu.rejected_low)
    flips += np.abs(gpu.rejected_high[:, rows].astype(np.int64) - cpu.rejected_high)
    n_flipped = int((flips > cpu.coverage // _SAMPLES_PER_TIE).sum())
    both = same & np.isfinite(image) & np.isfinite(cpu.image)
    lost = same & (np.isfinite(image) != np.isfinite(cpu.image))
    lost |= same & (np.abs(gpu.weight[:, rows] - cpu.weight) > _WEIGHT_ERROR * np.abs(cpu.weight))
    lost |= gpu.coverage[rows] != cpu.coverage
    if not both.any():
        return Parity(0.0, int(same.size), n_flipped + int(lost.sum()))
    difference = np.abs(image[both].astype(np.float64) - cpu.image[both]) - _ROUNDING * np.abs(
        cpu.image[both]
    )
    worst = max(0.0, float(difference.max())) / _noise(cpu)
    return Parity(worst, int(same.size), n_flipped + int(lost.sum()))


def _noise(block: CoaddBlock) -> float:
    variance = block.variance[np.isfinite(block.variance)]
    if variance.size:
        sigma = float(np.sqrt(np.median(variance)))
    else:
        steps = np.abs(np.diff(block.image, axis=-1))
        steps = steps[np.isfinite(steps)]
        sigma = float(np.median(steps)) if steps.size else 0.0
    return sigma if sigma > 0 else 1.0
