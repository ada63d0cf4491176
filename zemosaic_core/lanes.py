"""The inner loops of rejection: sort, reject and sum many pixels at once, one pixel per lane of a vector.

Called by `zemosaic_core.rejection`, which defines what is computed. Every lane does the same arithmetic whatever
its neighbours do: a lane that is finished early is frozen or taken out, and a mask adds zeros, which change no sum.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from zemosaic_core.clipped_light import BOUND_MARK, BOUND_SHIFT, FIRST_BOUND, LAST_BOUND
from zemosaic_core.lane_vectors import (
    HIGH,
    LOW,
    SQUARES,
    SUM,
    VECTOR,
    load_row,
    sort_rows,
    sum_clipped,
    sum_kept,
)
from zemosaic_core.lent_arrays import njit_lent

__all__ = ["LANES", "MAX_ROUNDS", "MAX_SCALE_STEPS", "MOST_COUNTED", "REJECTION_CODES", "combine_rows"]

REJECTION_CODES = {"none": 0, "kappa_sigma": 1, "winsorized_sigma_clip": 2, "linear_fit_clip": 3}
MAX_ROUNDS = 10
MAX_SCALE_STEPS = 10
# Counts of samples are kept in 16 bits: so many or more.
MOST_COUNTED = 65535
# 30 samples of 256 pixels fill most of a first-level cache; more lanes spill, fewer waste the loop set-up.
LANES = 256


# Rows of the scratch array `work`, one value per lane.
_SCALE, _CENTRE, _DONE, _VARIANCE, _LIGHT = range(SQUARES + 1, SQUARES + 6)
_LEVEL, _SLOPE = LOW, HIGH  # of the fitted line


@njit_lent(error_model="numpy")
def _bounds_of(first, last, lanes):
    """Smallest first and largest last rank of all lanes."""
    begin, end = first[0], last[0]
    for lane in range(lanes):
        begin, end = min(begin, first[lane]), max(end, last[lane])
    return begin, end


@njit_lent(error_model="numpy")
def _deviation(first, last, lane, work):
    """Standard deviation of one lane from the sums of `sum_clipped`."""
    n = np.float32(last[lane] - first[lane])
    total = work[SUM, lane]
    spread = work[SQUARES, lane] - total * (total / n)
    spread = spread if spread > np.float32(0) else np.float32(0)
    return np.sqrt(spread / (n - np.float32(1)))


@njit_lent(error_model="numpy")
def _run_median(values, first, last, lane):
    count = last - first
    return np.float32(0.5) * (values[first + (count - 1) // 2, lane] + values[first + count // 2, lane])


@njit_lent(error_model="numpy")
def _run_quantile(values, first, last, lane, position):
    """Value at a fractional rank of the kept run, linear between ranks."""
    k = int(position)
    fraction = np.float32(position - k)
    lower = values[first + k, lane]
    upper = values[min(first + k + 1, last - 1), lane]
    return lower + fraction * (upper - lower)


@njit_lent(error_model="numpy")
def _winsorized_scale(values, first, last, lanes, quantiles, work):
    """Fill the scales of `work` from its centres, the medians of the kept."""
    for lane in range(lanes):
        top = last[lane] - first[lane] - 1
        work[LOW, lane] = _run_quantile(values, first[lane], last[lane], lane, quantiles[0] * top)
        work[HIGH, lane] = _run_quantile(values, first[lane], last[lane], lane, (1.0 - quantiles[1]) * top)
        work[_DONE, lane] = np.float32(0)
    begin, end = _bounds_of(first, last, lanes)
    sum_clipped(values, first, last, begin, end, lanes, work)
    for lane in range(lanes):
        work[_SCALE, lane] = _deviation(first, last, lane, work)
    for _ in range(MAX_SCALE_STEPS):
        for lane in range(lanes):
            reach = np.float32(1.5) * work[_SCALE, lane]
            work[LOW, lane] = work[_CENTRE, lane] - reach
            work[HIGH, lane] = work[_CENTRE, lane] + reach
        sum_clipped(values, first, last, begin, end, lanes, work)
        n_open = 0
        for lane in range(lanes):
            scale = work[_SCALE, lane]
            new = np.float32(1.134) * _deviation(first, last, lane, work)
            frozen = work[_DONE, lane] > np.float32(0)
            stop = (np.abs(new - scale) <= np.float32(0.0005) * scale) | frozen
            work[_SCALE, lane] = scale if frozen else new
            work[_DONE, lane] = np.float32(1) if stop else np.float32(0)
            n_open += 0 if stop else 1
        if n_open == 0:
            break


@njit_lent(error_model="numpy")
def _cut_by_scale(values, first, last, lanes, kappas, work, changed):
    """Narrow every run to ``centre - kl s <= v <= centre + kh s``; note which lanes changed."""
    kappa_low, kappa_high = kappas
    for lane in range(lanes):
        a, b, s = first[lane], last[lane], work[_SCALE, lane]
        if s > np.float32(0):
            low = work[_CENTRE, lane] - kappa_low * s
            high = work[_CENTRE, lane] + kappa_high * s
            while a < b and values[a, lane] < low:
                a += 1
            while b > a and values[b - 1, lane] > high:
                b -= 1
        changed[lane] = b > a and (a != first[lane] or b != last[lane])
        if changed[lane]:
            first[lane], last[lane] = a, b


@njit_lent(error_model="numpy")
def _cut_by_line(values, first, last, lanes, kappa_low, kappa_high, work, changed):
    """One round of the linear fit clip on every lane."""
    zero = np.float32(0)
    begin, end = first[0], last[0]
    for lane in range(lanes):
        begin, end = min(begin, first[lane]), max(end, last[lane])
        work[_CENTRE, lane] = np.float32(first[lane]) + np.float32(0.5) * np.float32(
            last[lane] - first[lane] - 1
        )
        work[_LEVEL, lane], work[_SLOPE, lane], work[_SCALE, lane] = zero, zero, zero
    for k in range(begin, end):
        rank = np.float32(k)
        for lane in range(lanes):
            v = values[k, lane] if (first[lane] <= k) & (k < last[lane]) else zero
            work[_LEVEL, lane] += v
            work[_SLOPE, lane] += (rank - work[_CENTRE, lane]) * v
    for lane in range(lanes):
        n = np.float32(last[lane] - first[lane])
        work[_LEVEL, lane] /= n
        work[_SLOPE, lane] /= n * (n * n - np.float32(1)) / np.float32(12)
    for k in range(begin, end):
        rank = np.float32(k)
        for lane in range(lanes):
            residual = np.abs(
                values[k, lane] - (work[_LEVEL, lane] + work[_SLOPE, lane] * (rank - work[_CENTRE, lane]))
            )
            work[_SCALE, lane] += residual if (first[lane] <= k) & (k < last[lane]) else zero
    for lane in range(lanes):
        a, b = first[lane], last[lane]
        s = work[_SCALE, lane] / np.float32(b - a)
        if s > zero:
            low, high, origin, step = -kappa_low * s, kappa_high * s, work[_LEVEL, lane], work[_SLOPE, lane]
            middle = work[_CENTRE, lane]
            while a < b and values[a, lane] - (origin + step * (np.float32(a) - middle)) < low:
                a += 1
            while b > a and values[b - 1, lane] - (origin + step * (np.float32(b - 1) - middle)) > high:
                b -= 1
        changed[lane] = b > a and (a != first[lane] or b != last[lane])
        if changed[lane]:
            first[lane], last[lane] = a, b


@njit_lent(error_model="numpy")
def _expect_noise(raw, count, pivot, lanes, members, n, channel, noise, work):
    """Fill the mean variance of the samples and the light of the pivot above the background."""
    expected, light = work[_VARIANCE], work[_LIGHT]
    zero, inf = np.float32(0), np.float32(np.inf)
    variances, background = noise[1], noise[2][channel]
    expected[:lanes] = zero
    for m in range(n):
        variance = variances[members[m], channel]
        for i in range(lanes):
            expected[i] += variance if raw[m, i] < inf else zero
    for i in range(lanes):
        # Lanes without samples divide by zero, to no effect.
        expected[i] /= np.float32(count[i])
        light[i] = pivot[i] - background


@njit_lent(error_model="numpy")
def _noise_scale(work, lane, centre, mismatch):
    """Expected standard deviation of the samples of a lane around a centre."""
    light = work[_LIGHT, lane] + centre
    extra = mismatch * light if light > np.float32(0) else np.float32(0)
    return np.sqrt(work[_VARIANCE, lane] + extra * extra)


@njit_lent(error_model="numpy")
def _is_calm(values, first, last, lane, kappas, noise, work):
    """Whether the expected noise alone, below which no scale goes, allows all that is kept: nothing will be cut."""
    centre = _run_median(values, first, last, lane)
    least = _noise_scale(work, lane, centre, noise[3])
    lowest, highest = values[first, lane], values[last - 1, lane]
    return lowest >= centre - kappas[0] * least and highest <= centre + kappas[1] * least


@njit_lent(error_model="numpy")
def _take_calm(sorted_values, count, pivot, lanes, kappas, noise, work, runs, bounds, index):
    """Fill runs and bounds of the lanes that lose nothing, as `_is_calm`; list the others and return their number."""
    half, least_count = np.float32(0.5), max(3, noise[0])
    variance, light, mismatch = work[_VARIANCE], work[_LIGHT], noise[3]
    first, last, lowest, highest, middle = runs[0], runs[1], bounds[0], bounds[1], bounds[2]
    for i in range(lanes):
        n = max(count[i], 1)
        lowest[i] = sorted_values[0, i] - pivot[i]
        highest[i] = sorted_values[n - 1, i] - pivot[i]
        middle[i] = half * (
            (sorted_values[(n - 1) // 2, i] - pivot[i]) + (sorted_values[n // 2, i] - pivot[i])
        )
    for i in range(lanes):
        above = light[i] + middle[i]
        extra = mismatch * above if above > np.float32(0) else np.float32(0)
        least = np.sqrt(variance[i] + extra * extra)
        calm = (lowest[i] >= middle[i] - kappas[0] * least) & (highest[i] <= middle[i] + kappas[1] * least)
        first[i] = 0
        last[i] = count[i] if calm & (count[i] > least_count) else 0
    n_open = 0
    for i in range(lanes):
        index[n_open] = i
        n_open += 1 if last[i] == 0 else 0
    return n_open


@njit_lent(error_model="numpy")
def _cut_by_noise(values, first, last, lanes, kappas, noise, work):
    """Narrow the runs of few samples to what their expected noise allows, until nothing changes."""
    for lane in range(lanes):
        a, b = first[lane], last[lane]
        for _ in range(MAX_ROUNDS if 2 <= b <= noise[0] else 0):
            n = b - a
            # A sample against the others, whose mean has noise as well.
            spare = np.sqrt(np.float32(n) / np.float32(n - 1))
            centre, above = values[a + (n - 1) // 2, lane], values[a + n // 2, lane]
            reach = spare * _noise_scale(work, lane, centre, noise[3])
            if above - centre <= kappas[1] * reach:
                centre = np.float32(0.5) * (centre + above)
                reach = spare * _noise_scale(work, lane, centre, noise[3])
            low, high = centre - kappas[0] * reach, centre + kappas[1] * reach
            while a < b and values[a, lane] < low:
                a += 1
            while b > a and values[b - 1, lane] > high:
                b -= 1
            if b - a == n:
                break
        first[lane], last[lane] = a, b


@njit_lent(error_model="numpy")
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


@njit_lent(error_model="numpy")
def _reject_lanes(values, n_rows, count, pivot, lanes, code, kappas, quantiles, noise, runs, bounds, scratch):
    """Find the kept run of every lane of a sorted block; `values` is used up.

    Fills ``runs`` (first, last rank) and ``bounds`` (lowest kept, highest kept, median of the kept), relative to the
    pivots. Lanes that are finished are squeezed out of the block, so later rounds cost only what still changes.
    """
    index, first, last, changed, work = scratch
    watched = noise[0] > 0 and code in (1, 2)
    if watched:
        active = _take_calm(values, count, pivot, lanes, kappas, noise, work, runs, bounds, index)
    else:
        active = lanes
        for lane in range(lanes):
            index[lane] = lane
    for k in range(n_rows):
        for lane in range(active):
            values[k, lane] = values[k, index[lane]] - pivot[index[lane]]
    for lane in range(active):
        home = index[lane]
        first[lane], last[lane] = 0, count[home]
        work[_VARIANCE, lane], work[_LIGHT, lane] = work[_VARIANCE, home], work[_LIGHT, home]
    if noise[0] > 0:
        _cut_by_noise(values, first, last, active, kappas, noise, work)
    for rounds in range(MAX_ROUNDS + 1):
        keep = 0
        for lane in range(active):
            a, b = first[lane], last[lane]
            home = index[lane]
            done = b - a <= 3 or code == 0 or count[home] <= noise[0]
            done = done or rounds == MAX_ROUNDS or (rounds > 0 and not changed[lane])
            if done or (rounds > 0 and watched and _is_calm(values, a, b, lane, kappas, noise, work)):
                _store_run(values, a, b, count[home], lane, home, runs, bounds)
                continue
            if keep != lane:
                for k in range(n_rows):
                    values[k, keep] = values[k, lane]
                index[keep], first[keep], last[keep] = home, a, b
                work[_VARIANCE, keep], work[_LIGHT, keep] = work[_VARIANCE, lane], work[_LIGHT, lane]
            keep += 1
        active = keep
        if active == 0:
            return
        if code == 3:
            _cut_by_line(values, first, last, active, kappas[0], kappas[1], work, changed)
            continue
        for lane in range(active):
            work[_CENTRE, lane] = _run_median(values, first[lane], last[lane], lane)
        if code == 2:
            _winsorized_scale(values, first, last, active, quantiles, work)
        else:
            for lane in range(active):
                work[LOW, lane] = np.float32(-np.inf)
                work[HIGH, lane] = np.float32(np.inf)
            begin, end = _bounds_of(first, last, active)
            sum_clipped(values, first, last, begin, end, active, work)
            for lane in range(active):
                work[_SCALE, lane] = _deviation(first, last, lane, work)
        if noise[0] > 0:
            for lane in range(active):
                least = _noise_scale(work, lane, work[_CENTRE, lane], noise[3])
                work[_SCALE, lane] = max(work[_SCALE, lane], least)
        _cut_by_scale(values, first, last, active, kappas, work, changed)


@njit_lent(error_model="numpy")
def _load_lanes(
    values, starts, boxes, maps, map_starts, members, n, place, lanes, raw, block, share, count, present
):
    """Copy the samples of one row of lanes twice, missing ones as +inf, and count the valid ones.

    A tilted source covers its box in part only. Those without a valid sample here are passed over; `present` becomes
    the others, as many as the number returned.
    """
    channel, y, x0 = place
    count[:] = 0
    m = 0
    for k in range(n):
        source = members[k]
        top, left, right = boxes[source, 0], boxes[source, 2], boxes[source, 3]
        width = right - left
        begin, end = max(left, x0), min(right, x0 + lanes)
        at = starts[source] + (channel * (boxes[source, 1] - top) + y - top) * width + begin - left
        mapped = map_starts[source] >= 0
        map_at = map_starts[source] + (y - top) * width + begin - left if mapped else 0
        if load_row(
            values,
            at,
            maps,
            map_at,
            mapped,
            begin - x0,
            end - x0,
            raw,
            block,
            share,
            len(share) > 1,
            m,
            count,
        ):
            present[m] = source
            m += 1
    return m


@njit_lent(error_model="numpy")
def _write_lanes(sums, pivot, bounds, runs, count, lanes, median, image, weight, variance, low, high):
    """Turn sums into the combined value, its weight and variance and the numbers of rejected samples."""
    # One line each, without branches: compilers then make vectors of them.
    nan, zero, of_median = np.float32(np.nan), np.float32(0), np.float32(np.pi / 2)
    first, last, total, middle = runs[0], runs[1], sums[1], bounds[2]
    for i in range(lanes):
        low[i] = min(first[i], MOST_COUNTED)
    for i in range(lanes):
        high[i] = min(count[i] - last[i], MOST_COUNTED)
    own, shift, q0, q1, q2 = sums[0], sums[2], sums[3], sums[4], sums[5]
    for i in range(lanes):
        known = (last[i] > first[i]) & (total[i] > zero)
        weight[i] = own[i] if known else zero
    for i in range(lanes):
        shift[i] = shift[i] / total[i]
    for i in range(lanes):
        spread = q2[i] - shift[i] * (np.float32(2) * q1[i] - shift[i] * q0[i])
        spread = (spread if spread > zero else zero) / (total[i] * total[i])
        kept = last[i] - first[i]
        spread *= np.float32(kept) / np.float32(kept - 1)
        spread = of_median * spread if median else spread
        variance[i] = spread if (kept >= 2) & (total[i] > zero) else nan
    for i in range(lanes):
        value = pivot[i] + (middle[i] if median else shift[i])
        image[i] = value if (last[i] > first[i]) & (total[i] > zero) else nan


@njit_lent(error_model="numpy")
def _any_without(count, lanes):
    """Whether a lane has no valid sample."""
    found = False
    for i in range(lanes):
        found |= count[i] == 0
    return found


@njit(cache=True, nogil=True, error_model="numpy")
def _take_bounds(bits, starts, boxes, members, n, place, lanes, count, highest, clipped, image, seen):
    """Give lanes without a valid sample the highest lower bound of those whose light was cut off, if any."""
    channel, y, x0 = place
    highest[:lanes], clipped[:lanes] = BOUND_MARK, 0
    for m in range(n):
        source = members[m]
        top, left, right = boxes[source, 0], boxes[source, 2], boxes[source, 3]
        begin, end = max(left, x0), min(right, x0 + lanes)
        at = starts[source] + (channel * (boxes[source, 1] - top) + y - top) * (right - left) + begin - left
        held, most, found = bits[at : at + end - begin], highest[begin - x0 :], clipped[begin - x0 :]
        # Positive floats are in the order of their bits.
        for i in range(held.size):
            is_bound = (held[i] >= FIRST_BOUND) & (held[i] <= LAST_BOUND)
            most[i] = max(most[i], held[i] if is_bound else np.int32(BOUND_MARK))
            found[i] += np.int32(1) if is_bound else np.int32(0)
    bound = np.empty(1, np.float32)
    bound_bits = bound.view(np.int32)
    for i in range(lanes):
        if count[i] == 0 and clipped[i] > 0:
            bound_bits[0] = (highest[i] - BOUND_MARK) << BOUND_SHIFT
            image[i] = bound[0]
            seen[i] = max(seen[i], np.uint16(clipped[i]))


@njit(cache=True, nogil=True, error_model="numpy")
def combine_rows(
    values, bits, starts, boxes, weights, maps, map_starts, code, kappas, quantiles, median, noise, r0, r1,
    image, weight, coverage, variance, rejected_low, rejected_high,
):  # fmt: skip
    """Combine the rows ``r0 <= y < r1`` of a pool into the output arrays; ``bits``: the values as int32."""
    n_channels, _, n_cols = image.shape
    n_sources = starts.size
    width = max(1, -(-n_cols // max(1, -(-n_cols // LANES))))
    padded = -(-width // VECTOR) * VECTOR
    # Lanes beyond the width are sorted along with the rest; they only must hold numbers.
    block = np.zeros((max(1, n_sources), padded), np.float32)
    raw = np.empty_like(block)
    mapped = bool((map_starts >= 0).any())
    share = np.empty((max(2, n_sources) if mapped else 1, padded), np.float32)
    count, pivot = np.empty(padded, np.int32), np.zeros(padded, np.float32)
    runs, bounds = np.empty((2, width), np.int32), np.zeros((3, padded), np.float32)
    scratch = (
        np.empty(width, np.int32), np.zeros(padded, np.int32), np.zeros(padded, np.int32),
        np.empty(width, np.bool_), np.zeros((9, padded), np.float32),
    )  # fmt: skip
    sums, own = np.empty((6, padded), np.float32), np.empty(n_sources, np.float32)
    members, present = np.empty(n_sources, np.int64), np.empty(n_sources, np.int64)
    highest, clipped = np.empty(width, np.int32), np.empty(width, np.int32)
    n_blocks = -(-n_cols // width)
    near, n_near = np.empty((n_blocks, n_sources), np.int64), np.zeros(n_blocks, np.int64)
    for part_x in range(n_blocks):
        for source in range(n_sources):
            if boxes[source, 2] < (part_x + 1) * width and boxes[source, 3] > part_x * width:
                near[part_x, n_near[part_x]] = source
                n_near[part_x] += 1
    coverage[r0:r1] = 0
    for channel in range(n_channels):
        # Rows outside, columns inside: every source is then read along its rows, as memory likes it.
        for y in range(r0, r1):
            for part_x in range(n_blocks):
                x0 = part_x * width
                lanes = min(width, n_cols - x0)
                x1 = x0 + lanes
                n = 0
                for k in range(n_near[part_x]):
                    source = near[part_x, k]
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
                place = (channel, y, x0)
                seen_by = _load_lanes(
                    values,
                    starts,
                    boxes,
                    maps,
                    map_starts,
                    members,
                    n,
                    place,
                    lanes,
                    raw,
                    block,
                    share,
                    count,
                    present,
                )
                seen = coverage[y, x0:x1]
                for i in range(lanes):
                    seen[i] = max(seen[i], np.uint16(min(count[i], MOST_COUNTED)))
                sort_rows(block, seen_by)
                for i in range(lanes):
                    pivot[i] = block[(count[i] - 1) // 2, i] if count[i] > 0 else np.float32(0)
                if noise[0] > 0:
                    _expect_noise(raw, count, pivot, lanes, present, seen_by, channel, noise, scratch[4])
                _reject_lanes(
                    block, seen_by, count, pivot, lanes, code, kappas, quantiles, noise, runs, bounds, scratch
                )
                for k in range(seen_by):
                    own[k] = weights[present[k], channel]
                sum_kept(raw, share, mapped, own, seen_by, median, pivot, bounds, lanes, sums)
                _write_lanes(
                    sums, pivot, bounds, runs, count, lanes, median, image[channel, y, x0:x1],
                    weight[channel, y, x0:x1], variance[channel, y, x0:x1],
                    rejected_low[channel, y, x0:x1], rejected_high[channel, y, x0:x1],
                )  # fmt: skip
                if _any_without(count, lanes):
                    _take_bounds(
                        bits, starts, boxes, members, n, place, lanes, count, highest, clipped,
                        image[channel, y, x0:x1], seen,
                    )  # fmt: skip
