"""What the kernels of the card must move and compute per frame, and the time that this means on a card.

Counted, not measured: bytes that must come from or go to the memory of the card when every cache works as meant,
operations of 32 bits as they stand in the CUDA sources, to about a tenth. A kernel takes at least the longer of the
two times. Beside a measurement it says how far a kernel is from what the card could do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from zemosaic_core.gpu.combine import IN_BLOCK, IN_SCRATCH, storage_for
from zemosaic_core.sources import CombineRule

__all__ = ["CARDS", "Card", "Cost", "costs_per_frame", "measuring_costs", "model_lines"]

# Taps of Lanczos-3, and what one costs per channel; the coordinates, weights and photometry of a pixel beside them.
_TAPS, _TAP_OPS, _PIXEL_OPS = 36, 2, 90
_PHOTOMETRY_OPS = 14
# Per raw pixel: estimates of the ratio of the colours, then the missing colours.
_SHARE_OPS, _DEBAYER_OPS = 40, 70
# Per sample besides sorting: counting, expected noise, a few bounds of the rejection, five running sums.
_REJECT_OPS, _SUM_OPS = 12, 14
# Measuring: bins of a histogram, pixels of one, and operations per pixel of each kernel; per bin for the numbers of a
# cell, whose float64 is left out: there is a thousandth of it.
_BINS, _PIXELS_PER_HISTOGRAM = 512, 1024
_COUNT_OPS, _DEFECT_OPS, _CEILING_OPS, _ALONG_OPS, _ACROSS_OPS, _MAXIMUM_OPS, _BIN_OPS = (
    12,
    14,
    5,
    18,
    9,
    8,
    12,
)
# Per sample of a pass that merges runs: comparing, and the search for where a piece begins.
_MERGE_OPS = 8.0
# Bytes of a pixel and channel in the result: image, weight, variance, two counts.
_RESULT_BYTES = 16


@dataclass(frozen=True)
class Card:
    """Bytes per second of its memory and of the way to it, 32-bit operations per second."""

    name: str
    memory: float
    operations: float
    upload: float


CARDS = (
    Card("360 GB/s", 360e9, 12.7e12, 12e9),  # as a GeForce RTX 3060 has it
    Card("4.8 TB/s", 4.8e12, 67e12, 50e9),  # as an H200 has it
)


@dataclass(frozen=True)
class Cost:
    """What one kernel does for one frame; ``travels``: the bytes come from the host."""

    kernel: str
    n_bytes: float
    operations: float
    travels: bool = False

    def seconds(self, card: Card) -> float:
        """Return the least time on a card."""
        if self.travels:
            return self.n_bytes / card.upload
        return max(self.n_bytes / card.memory, self.operations / card.operations)


def costs_per_frame(
    frame_hw: tuple[int, int], out_hw: tuple[int, int], n_frames: int, rule: CombineRule
) -> tuple[Cost, ...]:
    """Return what each kernel does for one of ``n_frames`` raw frames that cover the same output.

    Parameters
    ----------
    frame_hw, out_hw : tuple of int
        Pixels of a raw frame, and of the block they are stacked to.
    n_frames : int
        Samples of each output pixel.
    rule : CombineRule
    """
    raw, out = math.prod(frame_hw), math.prod(out_hw)
    per_sample = 3 * out  # three colours
    columns_read = 4 * per_sample * (1 + _passes(n_frames, rule))
    result = (3 * _RESULT_BYTES + 2) * out / n_frames
    return (
        Cost("upload", 2 * raw, 0, travels=True),
        Cost("mend_hot", 0, 0),  # some hundred pixels
        Cost("colour_shares", (2 + 8) * raw, _SHARE_OPS * raw),
        Cost("debayer_raw", (2 + 8 + 12) * raw, _DEBAYER_OPS * raw),
        Cost(
            "sample_source",
            12 * raw + 12 * out,
            (3 * (_TAPS * _TAP_OPS + _PHOTOMETRY_OPS) + _PIXEL_OPS) * out,
        ),
        Cost(
            "combine_pool",
            columns_read + result,
            per_sample * (_sort_operations(n_frames, rule) + _REJECT_OPS + _SUM_OPS),
        ),
    )


def measuring_costs(frame_hw: tuple[int, int]) -> tuple[Cost, ...]:
    """Return what each kernel of measuring does for one raw frame; its pixels travel once more to be stacked.

    Parameters
    ----------
    frame_hw : tuple of int
        Pixels of a raw frame.
    """
    raw = math.prod(frame_hw)
    histograms = 4 * _BINS * raw / _PIXELS_PER_HISTOGRAM
    bins = _BINS * raw / _PIXELS_PER_HISTOGRAM
    return (
        Cost("upload to measure", 2 * raw, 0, travels=True),
        # All pixels, then steps of every second pair of rows; the histograms are emptied twice.
        Cost("count_values", (2 + 1) * raw + 2 * histograms, 1.5 * _COUNT_OPS * raw),
        Cost("cell_centres", histograms, _BIN_OPS * bins),
        Cost("cell_steps", histograms, bins),
        Cost("find_defects", 2 * raw, _DEFECT_OPS * raw),
        Cost("ceiling_tops", 2 * raw, _CEILING_OPS * raw),
        Cost("ceiling_counts", 2 * raw, _CEILING_OPS * raw),
        Cost("smooth_along", (2 + 4) * raw, _ALONG_OPS * raw),
        Cost("smooth_across", (4 + 4) * raw, _ACROSS_OPS * raw),
        Cost("list_maxima", 4 * raw, _MAXIMUM_OPS * raw),
        # Tables of the cells and lists: a twentieth of a byte per pixel on an ordinary night.
        Cost("download of lists", 0.05 * raw, 0, travels=True),
    )


def _passes(n: int, rule: CombineRule) -> int:
    """Return how often the samples travel besides the first reading: for the sums, and for merging runs."""
    storage = storage_for(n, rule, None)
    if storage.kind != IN_SCRATCH:
        return 1 if rule.rejection != "none" or rule.combine == "median" else 0
    levels = max(1, math.ceil(math.log2(-(-n // storage.run))))
    return 1 + 2 * (1 + levels)


def _sort_operations(n: int, rule: CombineRule) -> float:
    """Return operations per sample of a network that sorts a run, and of merging runs."""
    if rule.rejection == "none" and rule.combine != "median":
        return 0.0
    storage = storage_for(n, rule, None)
    steps = math.ceil(math.log2(max(2, storage.run)))
    network = steps * (steps + 1) / 2  # comparators of a bitonic network: half a sample each, a min and a max
    is_merged = storage.kind in (IN_BLOCK, IN_SCRATCH)
    merged = max(0, math.ceil(math.log2(-(-n // storage.run)))) if is_merged else 0
    return network + _MERGE_OPS * merged


def model_lines(
    frame_hw: tuple[int, int], counts: Sequence[int], cards: Sequence[Card] = CARDS
) -> Iterator[str]:
    """Yield the lines of a table: bytes, operations and milliseconds per kernel and frame.

    First of measuring, then of stacking for some numbers of frames.
    """
    rule = CombineRule()
    size = f"{frame_hw[1]}x{frame_hw[0]}"
    yield from _table(f"model, measuring a frame of {size}", measuring_costs(frame_hw), cards)
    for n in counts:
        title = f"model, {n} frames of {size}"
        yield from _table(title, costs_per_frame(frame_hw, frame_hw, n, rule), cards)


def _table(title: str, costs: Sequence[Cost], cards: Sequence[Card]) -> Iterator[str]:
    head = "".join(f"{card.name:>12s}" for card in cards)
    yield f"{title:33s} MB/frame  Mop/frame {head}  (ms/frame)"
    for cost in costs:
        times = "".join(f"{1e3 * cost.seconds(card):12.3f}" for card in cards)
        yield f"  {cost.kernel:28s} {cost.n_bytes / 1e6:12.1f} {cost.operations / 1e6:10.0f} {times}"
    # Copies run beside the kernels: the longer of the two is what a frame takes.
    kernels = [sum(cost.seconds(card) for cost in costs if not cost.travels) for card in cards]
    copies = [sum(cost.seconds(card) for cost in costs if cost.travels) for card in cards]
    both = "".join(f"{1e3 * max(pair):12.3f}" for pair in zip(kernels, copies, strict=True))
    yield f"  {'all, copies beside kernels':28s} {'':12s} {'':10s} {both}"
