"""Reject outliers among the samples of a pixel and combine the rest: lanes are pixels, arrays only.

Definitions, per output pixel and channel. The valid samples are sorted; the kept set is always a contiguous run of
the sorted values. Median: mean of the two middle values when their number is even. ``sd`` divides by ``n - 1``.
Fewer than four kept samples end the rejection, so do a step that changes nothing, a scale of zero, a step that
would leave nothing (it is not taken) and `MAX_ROUNDS` rounds.

kappa_sigma
    ``m`` = median, ``s`` = sd of the kept; keep ``m - kl s <= x <= m + kh s``.
winsorized_sigma_clip
    ``m`` = median of the kept; ``s_0`` = sd of the kept, pulled in to their quantiles ``q_lo`` and ``1 - q_hi``
    (linear between ranks); then ``s_{k+1} = 1.134 sd(clip(kept, m - 1.5 s_k, m + 1.5 s_k))`` until
    ``|s_{k+1} - s_k| <= 0.0005 s_k`` or `MAX_SCALE_STEPS`; keep ``m - kl s <= x <= m + kh s``.
linear_fit_clip
    Least squares ``y = a i + b`` of the kept sorted values on their rank; ``s`` = mean absolute residual; drop
    values from the low end while their residual is below ``-kl s``, from the high end while above ``kh s``.
    After the last round values equal to the outermost kept ones are kept as well.

Weighted mean: ``p + sum(w (x - p)) / sum(w)`` over the kept with a pivot ``p`` among the samples; its variance is
estimated as ``n / (n - 1) * sum(w^2 (x - mean)^2) / sum(w)^2``. The median ignores weights; its variance is
``pi / 2 * sum((x - mean)^2) / (n (n - 1))``. Everything is float32 relative to the pivot, and every lane does the
same arithmetic whatever its neighbours do, so that results do not depend on how pixels are cut into blocks.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from zemosaic_core.errors import SettingsError
from zemosaic_core.lanes import LANES, MAX_ROUNDS, MAX_SCALE_STEPS, REJECTION_CODES, combine_rows
from zemosaic_core.sources import CoaddBlock, CombineRule

__all__ = [
    "LANES",
    "MAX_ROUNDS",
    "MAX_SCALE_STEPS",
    "REJECTION_CODES",
    "SamplePool",
    "check_rule",
    "combine_pool",
    "combine_stack",
]


@dataclass(frozen=True)
class SamplePool:
    """Samples of several sources on one block of output rows, each stored on its own columns only.

    Attributes
    ----------
    values : ndarray, 1-D, float32
        Source ``k`` holds its ``(C, y1 - y0, x1 - x0)`` samples from ``starts[k]``; NaN: missing.
    starts : ndarray, shape (N,), int64
    boxes : ndarray, shape (N, 4), int64
        ``(y0, y1, x0, x1)`` of every source within the block.
    weights : ndarray, shape (N, C), float32
        Weight of all samples of a source and channel; 0 leaves them out.
    maps : ndarray, 1-D, float32
        Sample weights ``(y1 - y0, x1 - x0)`` of source ``k`` from ``map_starts[k]``.
    map_starts : ndarray, shape (N,), int64
        -1: all sample weights are 1.
    """

    values: np.ndarray
    starts: np.ndarray
    boxes: np.ndarray
    weights: np.ndarray
    maps: np.ndarray
    map_starts: np.ndarray


def check_rule(rule: CombineRule) -> None:
    """Check the values of a rule.

    Raises
    ------
    SettingsError
        Naming the field, its value and what is allowed.
    """
    low, high = rule.winsor_limits
    for field, value, allowed, good in (
        ("rejection", rule.rejection, sorted(REJECTION_CODES), rule.rejection in REJECTION_CODES),
        ("combine", rule.combine, ["mean", "median"], rule.combine in ("mean", "median")),
        ("kappa_low", rule.kappa_low, "> 0", rule.kappa_low > 0),
        ("kappa_high", rule.kappa_high, "> 0", rule.kappa_high > 0),
        (
            "winsor_limits",
            rule.winsor_limits,
            "0 <= low, high and low + high < 1",
            min(low, high) >= 0 and low + high < 1,
        ),
    ):
        if not good:
            raise SettingsError(
                "combine_rule_invalid", f"{field} is {value!r}; allowed: {allowed}",
                field=field, value=str(value), allowed=str(allowed),
            )  # fmt: skip


def combine_pool(
    pool: SamplePool,
    rule: CombineRule,
    shape: tuple[int, int, int],
    *,
    executor: ThreadPoolExecutor,
    pieces: int,
) -> CoaddBlock:
    """Combine a pool of samples pixel by pixel.

    Parameters
    ----------
    pool : SamplePool
    rule : CombineRule
    shape : tuple of int
        ``(C, h, w)`` of the block.
    executor : ThreadPoolExecutor
        Runs the pieces; the kernels release the interpreter lock.
    pieces : int
        Number of row ranges to hand out. The result does not depend on it.

    Returns
    -------
    CoaddBlock

    Raises
    ------
    SettingsError
        When the rule is invalid.
    """
    check_rule(rule)
    height = shape[1]
    out = CoaddBlock.blank(shape)
    edges = np.linspace(0, height, max(1, min(pieces, height)) + 1).astype(int)

    def work(piece: int) -> None:
        combine_rows(
            pool.values, pool.starts, pool.boxes, pool.weights, pool.maps, pool.map_starts,
            REJECTION_CODES[rule.rejection], (np.float32(rule.kappa_low), np.float32(rule.kappa_high)),
            (float(rule.winsor_limits[0]), float(rule.winsor_limits[1])), rule.combine == "median",
            int(edges[piece]), int(edges[piece + 1]),
            out.image, out.weight, out.coverage, out.variance, out.rejected_low, out.rejected_high,
        )  # fmt: skip

    list(executor.map(work, range(len(edges) - 1)))
    return out


def combine_stack(
    stack: np.ndarray,
    rule: CombineRule,
    *,
    weights: np.ndarray | None = None,
    weight_maps: np.ndarray | None = None,
    threads: int = 2,
) -> CoaddBlock:
    """Reject and combine a stack of registered images.

    Parameters
    ----------
    stack : ndarray, shape (N, C, h, w), float32
        NaN or infinite: missing.
    rule : CombineRule
    weights : ndarray, shape (N,) or (N, C), optional
        Weight per image and channel; 0 leaves an image out. None: all 1.
    weight_maps : ndarray, shape (N, h, w), optional
        Weight per sample, multiplied with `weights`; not positive: missing.
    threads : int
        Threads to use; the result does not depend on it.

    Returns
    -------
    CoaddBlock

    Raises
    ------
    SettingsError
        When the rule is invalid.
    ValueError
        When shapes disagree.
    """
    stack = np.ascontiguousarray(stack, dtype=np.float32)
    if stack.ndim != 4:
        raise ValueError(f"stack must be (N, C, h, w), got {stack.shape}")
    n, n_channels, height, width = stack.shape
    weights = np.ones((n, n_channels)) if weights is None else np.asarray(weights, dtype=np.float64)
    if weights.shape not in ((n,), (n, n_channels)):
        raise ValueError(f"weights must be ({n},) or ({n}, {n_channels}), got {weights.shape}")
    if weight_maps is not None and weight_maps.shape != (n, height, width):
        raise ValueError(f"weight_maps must be {(n, height, width)}, got {weight_maps.shape}")
    columns = weights[:, None] if weights.ndim == 1 else weights
    has_maps = weight_maps is not None
    pool = SamplePool(
        values=stack.reshape(-1),
        starts=np.arange(n, dtype=np.int64) * (n_channels * height * width),
        boxes=np.tile(np.array([0, height, 0, width], dtype=np.int64), (n, 1)),
        weights=np.ascontiguousarray(np.broadcast_to(columns, (n, n_channels)), dtype=np.float32),
        maps=np.ascontiguousarray(weight_maps, np.float32).reshape(-1)
        if has_maps
        else np.zeros(1, np.float32),
        map_starts=np.arange(n, dtype=np.int64) * (height * width) if has_maps else np.full(n, -1, np.int64),
    )
    with ThreadPoolExecutor(threads) as executor:
        return combine_pool(pool, rule, (n_channels, height, width), executor=executor, pieces=4 * threads)
