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
from numba import njit

from zemosaic_core.errors import SettingsError
from zemosaic_core.sources import CombineRule

__all__ = [
    "LANES",
    "MAX_ROUNDS",
    "MAX_SCALE_STEPS",
    "REJECTION_CODES",
    "CombinedStack",
    "SamplePool",
    "check_rule",
    "combine_pool",
    "combine_stack",
]

REJECTION_CODES = {"none": 0, "kappa_sigma": 1, "winsorized_sigma_clip": 2, "linear_fit_clip": 3}
MAX_ROUNDS = 10
MAX_SCALE_STEPS = 10
# 30 samples of 256 pixels fill most of a first-level cache; more lanes spill, fewer waste the loop set-up.
LANES = 256


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


@dataclass(frozen=True)
class CombinedStack:
    """Combined samples; all arrays have shape (C, h, w) but `coverage`, which has (h, w).

    Attributes are those of `zemosaic_core.sources.CoaddBlock`.
    """

    image: np.ndarray
    weight: np.ndarray
    coverage: np.ndarray
    variance: np.ndarray
    rejected_low: np.ndarray
    rejected_high: np.ndarray


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


@njit(cache=True, nogil=True)
def _sort_rows(values, n, lanes):
    """Sort every lane over its first `n` rows: Batcher's merge-exchange network, each exchange on all lanes."""
    p = 1
    while p < n:
        k = p
        while k >= 1:
            j = k % p
            while j + k < n:
                for i in range(min(k, n - j - k)):
                    if (i + j) // (2 * p) == (i + j + k) // (2 * p):
                        upper, lower = values[i + j], values[i + j + k]
                        for lane in range(lanes):
                            a, b = upper[lane], lower[lane]
                            upper[lane] = a if a < b else b
                            lower[lane] = b if a < b else a
                j += 2 * k
            k //= 2
        p *= 2


@njit(cache=True, nogil=True)
def _sum_clipped(values, first, last, lanes, low, high, s1, s2):
    """Per lane: sums of clip(v, low, high) and of its square over the ranks ``first <= k < last``."""
    zero = np.float32(0)
    begin, full_begin, full_end, end = first[0], first[0], last[0], last[0]
    for lane in range(lanes):
        begin, full_begin = min(begin, first[lane]), max(full_begin, first[lane])
        full_end, end = min(full_end, last[lane]), max(end, last[lane])
        s1[lane] = zero
        s2[lane] = zero
    for k in range(begin, end):
        row = values[k]
        if full_begin <= k < full_end:
            for lane in range(lanes):
                x = row[lane]
                x = low[lane] if x < low[lane] else x
                x = high[lane] if x > high[lane] else x
                s1[lane] += x
                s2[lane] += x * x
        else:
            for lane in range(lanes):
                x = row[lane]
                x = low[lane] if x < low[lane] else x
                x = high[lane] if x > high[lane] else x
                x = x if (first[lane] <= k) & (k < last[lane]) else zero
                s1[lane] += x
                s2[lane] += x * x


@njit(cache=True, nogil=True)
def _deviation(s1, s2, first, last, lanes, factor, result):
    """Per lane: ``factor * sd`` from the sums of `_sum_clipped`."""
    zero = np.float32(0)
    for lane in range(lanes):
        n = np.float32(last[lane] - first[lane])
        spread = s2[lane] - s1[lane] * (s1[lane] / n)
        spread = spread if spread > zero else zero
        result[lane] = factor * np.sqrt(spread / (n - np.float32(1)))


@njit(cache=True, nogil=True)
def _run_median(values, first, last, lane):
    count = last - first
    return np.float32(0.5) * (values[first + (count - 1) // 2, lane] + values[first + count // 2, lane])


@njit(cache=True, nogil=True)
def _run_quantile(values, first, last, lane, position):
    """Value at a fractional rank of the kept run, linear between ranks."""
    k = int(position)
    fraction = np.float32(position - k)
    lower = values[first + k, lane]
    upper = values[min(first + k + 1, last - 1), lane]
    return lower + fraction * (upper - lower)


@njit(cache=True, nogil=True)
def _winsorized_scale(values, first, last, lanes, q_low, q_high, work):
    """Fill ``work[0]`` with the winsorized scale around the medians in ``work[1]``."""
    scale, centre, low, high, s1, s2, new, done = (
        work[0], work[1], work[2], work[3], work[4], work[5], work[6], work[7],
    )  # fmt: skip
    for lane in range(lanes):
        top = last[lane] - first[lane] - 1
        low[lane] = _run_quantile(values, first[lane], last[lane], lane, q_low * top)
        high[lane] = _run_quantile(values, first[lane], last[lane], lane, (1.0 - q_high) * top)
        done[lane] = np.float32(0)
    _sum_clipped(values, first, last, lanes, low, high, s1, s2)
    _deviation(s1, s2, first, last, lanes, np.float32(1), scale)
    for _ in range(MAX_SCALE_STEPS):
        for lane in range(lanes):
            reach = np.float32(1.5) * scale[lane]
            low[lane] = centre[lane] - reach
            high[lane] = centre[lane] + reach
        _sum_clipped(values, first, last, lanes, low, high, s1, s2)
        _deviation(s1, s2, first, last, lanes, np.float32(1.134), new)
        open_lanes = 0
        for lane in range(lanes):
            settled = np.abs(new[lane] - scale[lane]) <= np.float32(0.0005) * scale[lane]
            frozen = done[lane] != np.float32(0)
            scale[lane] = scale[lane] if frozen else new[lane]
            stop = settled | frozen
            done[lane] = np.float32(1) if stop else np.float32(0)
            open_lanes += 0 if stop else 1
        if open_lanes == 0:
            break


@njit(cache=True, nogil=True)
def _cut_by_scale(values, first, last, lanes, kappa_low, kappa_high, work, changed):
    """Narrow every run to ``centre - kl s <= v <= centre + kh s``; note which lanes changed."""
    scale, centre = work[0], work[1]
    for lane in range(lanes):
        a, b, s = first[lane], last[lane], scale[lane]
        if s > np.float32(0):
            low = centre[lane] - kappa_low * s
            high = centre[lane] + kappa_high * s
            while a < b and values[a, lane] < low:
                a += 1
            while b > a and values[b - 1, lane] > high:
                b -= 1
        changed[lane] = b > a and (a != first[lane] or b != last[lane])
        if changed[lane]:
            first[lane], last[lane] = a, b


@njit(cache=True, nogil=True)
def _cut_by_line(values, first, last, lanes, kappa_low, kappa_high, work, changed):
    """One round of the linear fit clip on every lane."""
    mean, slope, centre, scale = work[0], work[1], work[2], work[3]
    zero = np.float32(0)
    begin, end = first[0], last[0]
    for lane in range(lanes):
        begin, end = min(begin, first[lane]), max(end, last[lane])
        centre[lane] = np.float32(first[lane]) + np.float32(0.5) * np.float32(last[lane] - first[lane] - 1)
        mean[lane], slope[lane], scale[lane] = zero, zero, zero
    for k in range(begin, end):
        row, rank = values[k], np.float32(k)
        for lane in range(lanes):
            v = row[lane] if (first[lane] <= k) & (k < last[lane]) else zero
            mean[lane] += v
            slope[lane] += (rank - centre[lane]) * v
    for lane in range(lanes):
        n = np.float32(last[lane] - first[lane])
        mean[lane] /= n
        slope[lane] /= n * (n * n - np.float32(1)) / np.float32(12)
    for k in range(begin, end):
        row, rank = values[k], np.float32(k)
        for lane in range(lanes):
            residual = np.abs(row[lane] - (mean[lane] + slope[lane] * (rank - centre[lane])))
            scale[lane] += residual if (first[lane] <= k) & (k < last[lane]) else zero
    for lane in range(lanes):
        a, b = first[lane], last[lane]
        s = scale[lane] / np.float32(b - a)
        if s > zero:
            low, high, origin, step = -kappa_low * s, kappa_high * s, mean[lane], slope[lane]
            middle = centre[lane]
            while a < b and values[a, lane] - (origin + step * (np.float32(a) - middle)) < low:
                a += 1
            while b > a and values[b - 1, lane] - (origin + step * (np.float32(b - 1) - middle)) > high:
                b -= 1
        changed[lane] = b > a and (a != first[lane] or b != last[lane])
        if changed[lane]:
            first[lane], last[lane] = a, b


@njit(cache=True, nogil=True)
def _store_run(values, a, b, count, lane, home, runs, bounds):
    """Write the final run of one lane, widened to values equal to its ends."""
    if count == 0:
        runs[0, home] = 0
        runs[1, home] = 0
        bounds[0, home] = np.float32(np.inf)
        bounds[1, home] = np.float32(-np.inf)
        bounds[2, home] = np.float32(np.nan)
        return
    while a > 0 and values[a - 1, lane] == values[a, lane]:
        a -= 1
    while b < count and values[b, lane] == values[b - 1, lane]:
        b += 1
    runs[0, home] = a
    runs[1, home] = b
    bounds[0, home] = values[a, lane]
    bounds[1, home] = values[b - 1, lane]
    bounds[2, home] = _run_median(values, a, b, lane)


@njit(cache=True, nogil=True)
def _reject_lanes(values, n_rows, count, lanes, code, kappas, quantiles, runs, bounds, scratch):
    """Find the kept run of every lane of a sorted block; `values` is used up.

    Fills ``runs`` (first, last rank) and ``bounds`` (lowest kept, highest kept, median of the kept). Lanes that
    are finished are squeezed out of the block, so later rounds cost only what still changes.
    """
    index, first, last, changed, work = scratch
    active = 0
    for lane in range(lanes):
        index[active] = lane
        first[active], last[active] = 0, count[lane]
        active += 1
    for rounds in range(MAX_ROUNDS + 1):
        keep = 0
        for lane in range(active):
            a, b = first[lane], last[lane]
            home = index[lane]
            if b - a <= 3 or code == 0 or rounds == MAX_ROUNDS or (rounds > 0 and not changed[lane]):
                _store_run(values, a, b, count[home], lane, home, runs, bounds)
                continue
            if keep != lane:
                for k in range(n_rows):
                    values[k, keep] = values[k, lane]
                index[keep], first[keep], last[keep] = home, a, b
            keep += 1
        active = keep
        if active == 0:
            return
        if code == 3:
            _cut_by_line(values, first, last, active, kappas[0], kappas[1], work, changed)
            continue
        for lane in range(active):
            work[1, lane] = _run_median(values, first[lane], last[lane], lane)
        if code == 2:
            _winsorized_scale(values, first, last, active, quantiles[0], quantiles[1], work)
        else:
            work[2, :active] = np.float32(-np.inf)
            work[3, :active] = np.float32(np.inf)
            _sum_clipped(values, first, last, active, work[2], work[3], work[4], work[5])
            _deviation(work[4], work[5], first, last, active, np.float32(1), work[0])
        _cut_by_scale(values, first, last, active, kappas[0], kappas[1], work, changed)


@njit(cache=True, nogil=True)
def _load_lanes(values, starts, boxes, maps, map_starts, members, n, channel, y, x0, lanes, block, count):
    """Copy the samples of one row of lanes, missing ones as +inf, and count the valid ones."""
    inf = np.float32(np.inf)
    count[:lanes] = 0
    for m in range(n):
        source = members[m]
        top, bottom, left, right = boxes[source]
        width = right - left
        row = block[m]
        begin, end = max(left, x0), min(right, x0 + lanes)
        row[: begin - x0] = inf
        row[end - x0 : lanes] = inf
        at = starts[source] + (channel * (bottom - top) + y - top) * width + begin - left
        samples = values[at : at + end - begin]
        target = row[begin - x0 : end - x0]
        for i in range(end - begin):
            v = samples[i]
            target[i] = v if v - v == np.float32(0) else inf
        if map_starts[source] >= 0:
            at = map_starts[source] + (y - top) * width + begin - left
            weights = maps[at : at + end - begin]
            for i in range(end - begin):
                target[i] = target[i] if weights[i] > np.float32(0) else inf
        for i in range(lanes):
            count[i] += 1 if row[i] < inf else 0


@njit(cache=True, nogil=True)
def _accumulate(samples, mapped, weights, weight, unit, pivot, low, high, sums, part):
    """Add one source to the sums of the lanes where its sample is kept."""
    zero = np.float32(0)
    delta, share = part[0], part[1]
    n = samples.size
    for i in range(n):
        d = samples[i] - pivot[i]
        kept = (d >= low[i]) & (d <= high[i])
        delta[i] = d if kept else zero
        share[i] = weight if kept else zero
    if mapped:
        # A sample without weight is missing, not kept.
        for i in range(n):
            share[i] *= weights[i] if weights[i] > zero else zero
    total = sums[0]
    for i in range(n):
        total[i] += share[i]
    if unit:
        for i in range(n):
            share[i] = np.float32(1) if share[i] > zero else zero
    s0, s1 = sums[1], sums[2]
    for i in range(n):
        w = share[i]
        s0[i] += w
        s1[i] += w * delta[i]
    q0, q1, q2 = sums[3], sums[4], sums[5]
    for i in range(n):
        w = share[i] * share[i]
        d = delta[i]
        q0[i] += w
        q1[i] += w * d
        q2[i] += w * d * d


@njit(cache=True, nogil=True)
def _write_lanes(sums, pivot, bounds, runs, count, lanes, median, image, weight, variance, low, high):
    """Turn sums into the combined value, its weight and variance and the numbers of rejected samples."""
    nan = np.float32(np.nan)
    for i in range(lanes):
        kept = runs[1, i] - runs[0, i]
        low[i] = runs[0, i]
        high[i] = count[i] - runs[1, i]
        if kept == 0 or not sums[1, i] > np.float32(0):
            image[i], weight[i], variance[i] = nan, np.float32(0), nan
            continue
        shift = sums[2, i] / sums[1, i]
        image[i] = pivot[i] + (bounds[2, i] if median else shift)
        weight[i] = sums[0, i]
        if kept < 2:
            variance[i] = nan
            continue
        spread = sums[5, i] - shift * (np.float32(2) * sums[4, i] - shift * sums[3, i])
        spread = max(spread, np.float32(0)) / (sums[1, i] * sums[1, i])
        spread *= np.float32(kept) / np.float32(kept - 1)
        variance[i] = np.float32(np.pi / 2) * spread if median else spread


@njit(cache=True, nogil=True)
def _combine_rows(
    values, starts, boxes, weights, maps, map_starts, code, kappas, quantiles, median, r0, r1,
    image, weight, coverage, variance, rejected_low, rejected_high,
):  # fmt: skip
    """Combine the rows ``r0 <= y < r1`` of a pool into the output arrays."""
    n_channels, _, n_cols = image.shape
    n_sources = starts.size
    width = max(1, -(-n_cols // max(1, -(-n_cols // LANES))))
    block = np.empty((max(1, n_sources), width), np.float32)
    count, pivot = np.empty(width, np.int32), np.empty(width, np.float32)
    runs, bounds = np.empty((2, width), np.int32), np.empty((3, width), np.float32)
    scratch = (
        np.empty(width, np.int32), np.empty(width, np.int32), np.empty(width, np.int32),
        np.empty(width, np.bool_), np.empty((8, width), np.float32),
    )  # fmt: skip
    sums, part = np.empty((6, width), np.float32), np.empty((2, width), np.float32)
    near, members = np.empty(n_sources, np.int64), np.empty(n_sources, np.int64)
    coverage[r0:r1] = 0
    for x0 in range(0, n_cols, width):
        lanes = min(width, n_cols - x0)
        x1 = x0 + lanes
        n_near = 0
        for source in range(n_sources):
            if boxes[source, 2] < x1 and boxes[source, 3] > x0:
                near[n_near] = source
                n_near += 1
        for channel in range(n_channels):
            for y in range(r0, r1):
                n = 0
                for k in range(n_near):
                    source = near[k]
                    if boxes[source, 0] <= y < boxes[source, 1] and weights[source, channel] > np.float32(0):
                        members[n] = source
                        n += 1
                if n == 0:
                    image[channel, y, x0:x1] = np.float32(np.nan)
                    variance[channel, y, x0:x1] = np.float32(np.nan)
                    weight[channel, y, x0:x1] = np.float32(0)
                    rejected_low[channel, y, x0:x1] = 0
                    rejected_high[channel, y, x0:x1] = 0
                    continue
                _load_lanes(
                    values, starts, boxes, maps, map_starts, members, n, channel, y, x0, lanes, block, count
                )
                seen = coverage[y, x0:x1]
                for i in range(lanes):
                    seen[i] = max(seen[i], np.uint16(count[i]))
                _sort_rows(block, n, lanes)
                for i in range(lanes):
                    pivot[i] = block[(count[i] - 1) // 2, i] if count[i] > 0 else np.float32(0)
                for k in range(n):
                    row = block[k]
                    for i in range(lanes):
                        row[i] -= pivot[i]
                _reject_lanes(block, n, count, lanes, code, kappas, quantiles, runs, bounds, scratch)
                sums[:, :lanes] = np.float32(0)
                for m in range(n):
                    source = members[m]
                    top, bottom, left, right = boxes[source]
                    begin, end = max(left, x0), min(right, x0 + lanes)
                    offset = (y - top) * (right - left) + begin - left
                    at = starts[source] + channel * (bottom - top) * (right - left) + offset
                    mapped = map_starts[source] >= 0
                    at_map = map_starts[source] + offset if mapped else 0
                    reach = end - begin if mapped else 0
                    i0, i1 = begin - x0, end - x0
                    _accumulate(
                        values[at : at + end - begin], mapped, maps[at_map : at_map + reach],
                        weights[source, channel], median, pivot[i0:i1], bounds[0, i0:i1], bounds[1, i0:i1],
                        sums[:, i0:i1], part,
                    )  # fmt: skip
                _write_lanes(
                    sums, pivot, bounds, runs, count, lanes, median, image[channel, y, x0:x1],
                    weight[channel, y, x0:x1], variance[channel, y, x0:x1],
                    rejected_low[channel, y, x0:x1], rejected_high[channel, y, x0:x1],
                )  # fmt: skip


def combine_pool(
    pool: SamplePool,
    rule: CombineRule,
    shape: tuple[int, int, int],
    *,
    executor: ThreadPoolExecutor,
    pieces: int,
) -> CombinedStack:
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
    CombinedStack

    Raises
    ------
    SettingsError
        When the rule is invalid.
    """
    check_rule(rule)
    height, width = shape[1:]
    out = CombinedStack(
        image=np.empty(shape, np.float32),
        weight=np.empty(shape, np.float32),
        coverage=np.empty((height, width), np.uint16),
        variance=np.empty(shape, np.float32),
        rejected_low=np.empty(shape, np.uint16),
        rejected_high=np.empty(shape, np.uint16),
    )
    edges = np.linspace(0, height, max(1, min(pieces, height)) + 1).astype(int)

    def work(piece: int) -> None:
        _combine_rows(
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
) -> CombinedStack:
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
    CombinedStack

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
