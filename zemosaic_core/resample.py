"""Sample a window of an image through a `PixelMap`: the only resampling a pixel ever goes through.

The arithmetic is kept plain, because the CUDA body repeats it: coordinates from the lattice without rounding (in
float64 here, in whole numbers there), the fraction inside a pixel and everything after it in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from zemosaic_core.clipped_light import BOUND_MARK, BOUND_SHIFT, FIRST_BOUND, LAST_BOUND
from zemosaic_core.detector_surface import N_SURFACE
from zemosaic_core.lanczos_table import LANCZOS_ROWS, LANCZOS_TABLE
from zemosaic_core.lent_arrays import njit_lent
from zemosaic_core.pixel_map import map_row
from zemosaic_core.sample_terms import (
    border_weight,
    distance_row,
    photometry_row,
    radial_row,
    surface_row,
    unit_row,
)
from zemosaic_core.tap_sums import (
    LANES,
    dot36_exact,
    dot36_of_eight,
    dot36_of_eight_rgb,
    dot36_wide,
    lowest_bit,
    prefetch,
    range36,
)

if TYPE_CHECKING:
    from zemosaic_core.sources import Kernel, PixelMap

__all__ = ["HALO", "sample_window"]

# Source pixels a kernel reads beyond the one that contains the coordinate.
HALO = {"bilinear": 1, "lanczos3": 3}

# Beside an edge Lanczos goes below all of its taps, by up to 12 % of their range where the edge is a step (a clipped or
# bleeding star), by 0.3 % at most beside stars of FWHM 2.4 px. Below the first share of the range a sample stays
# as it is, from the second on it is put back to the lowest tap; only where the range is so many times the lowest tap.
UNDERSHOOT = (np.float32(0.005), np.float32(0.01))
CONTRAST = np.float32(4)
LOW = CONTRAST * UNDERSHOOT[0]
AHEAD_ROWS = 8
AHEAD_COLUMNS = 12
CHANNEL_BITS = 8
CHANNEL_MASK = (1 << CHANNEL_BITS) - 1


# Rows padded to eight so that one row is one vector load.
_TABLE8 = np.zeros((LANCZOS_ROWS + 1, 8), dtype=np.float32)
_TABLE8[:, :6] = LANCZOS_TABLE

_NO_MAP = np.zeros((1, 1), dtype=np.float32)
_NO_WEIGHT = np.zeros((1, 1), dtype=np.float32)
_NO_RADIAL = np.zeros((1, 4), dtype=np.float32)
_NO_SURFACE = np.zeros((1, N_SURFACE), dtype=np.float32)


@njit(cache=True, nogil=True, inline="always")
def _bilinear(plane, base, dx, dy, fx, fy):
    """Four taps; `dx`, `dy` are zero where the fraction is, so that a tap without weight is never used."""
    p = plane[base]
    q = plane[base + dy]
    top = p + fx * (plane[base + dx] - p)
    low = q + fx * (plane[base + dx + dy] - q)
    return top + fy * (low - top)


@njit_lent()
def _split_row(sx, sy, limits, base, fx, fy, gap):
    """Split coordinates into the window's flat pixel index and float32 fractions.

    `gap` becomes 0 inside and NaN outside: adding it marks a sample as missing without a branch.
    """
    origin_y, origin_x, win_h, win_w = limits
    x_low, x_high = float(origin_x), float(origin_x + win_w - 1)
    y_low, y_high = float(origin_y), float(origin_y + win_h - 1)
    zero, nan = np.float32(0), np.float32(np.nan)
    for k in range(sx.size):
        x, y = sx[k], sy[k]
        # The window ends where the image ends or beyond what this box can reach, so one test serves both; NaN
        # coordinates fail it too.
        ok = (x >= x_low) & (x <= x_high) & (y >= y_low) & (y <= y_high)
        x = x if ok else x_low
        y = y if ok else y_low
        ix, iy = np.int32(x), np.int32(y)
        fx[k] = np.float32(x - ix)
        fy[k] = np.float32(y - iy)
        base[k] = np.uint32((iy - origin_y) * win_w + (ix - origin_x))
        gap[k] = zero if ok else nan


@njit_lent()
def _fetch_row(flat, plane, sx, sy, shift_x, shift_y, limits):
    """Fetch the source pixels of a later row, which lie so far from those of this one, into the cache."""
    origin_y, origin_x, win_h, win_w = limits
    off_x, off_y = shift_x - origin_x, shift_y - origin_y
    for k in range(0, sx.size, AHEAD_COLUMNS):
        x, y = sx[k] + off_x, sy[k] + off_y
        if x >= 0 and y >= 0 and x < win_w and y < win_h:
            at = int(y) * win_w + int(x)
            for _ in range(flat.size // plane):
                prefetch(flat, at)
                at += plane


@njit_lent()
def _weigh_row(sx, sy, image_hw, feather, start, wmap, use_map, win_w, base, fx, fy, gap, weight):
    """Fill the weights of one row; where they are not positive the sample becomes missing."""
    height, width = image_hw
    zero, one, nan = np.float32(0), np.float32(1), np.float32(np.nan)
    right, bottom = float(width - 1), float(height - 1)
    if feather > zero:
        for k in range(sx.size):
            edge = np.float32(min(min(sx[k], right - sx[k]), min(sy[k], bottom - sy[k])))
            weight[k] = border_weight(edge, feather, start)
    else:
        weight[:] = one
    if use_map:
        for k in range(sx.size):
            dx = np.uint32(1) if fx[k] > zero else np.uint32(0)
            dy = np.uint32(win_w) if fy[k] > zero else np.uint32(0)
            weight[k] *= _bilinear(wmap, base[k], dx, dy, fx[k], fy[k])
    for k in range(sx.size):
        value = weight[k]
        good = (gap[k] == zero) & (value > zero) & (value - value == zero)
        weight[k] = value if good else zero
        gap[k] = zero if good else nan


@njit_lent()
def _bilinear_row(flat, plane, win_w, base, fx, fy, out):
    n_channels = out.shape[0]
    zero = np.float32(0)
    for k in range(base.size):
        a, b = fx[k], fy[k]
        dx = np.uint32(1) if a > zero else np.uint32(0)
        dy = np.uint32(win_w) if b > zero else np.uint32(0)
        here = base[k]
        for _ in range(n_channels):
            out[_, k] = _bilinear(flat, here, dx, dy, a, b)
            here += np.uint32(plane)


@njit_lent()
def _covered(gap):
    """First sample of a row that is there, and the one behind the last."""
    first, last, zero = 0, gap.size, np.float32(0)
    while first < last and gap[first] != zero:
        first += 1
    while last > first and gap[last - 1] != zero:
        last -= 1
    return first, last


@njit_lent()
def _any_between(fx, fy):
    """Whether a sample of a row falls between pixels."""
    zero = np.float32(0)
    found = False
    for k in range(fx.size):
        found |= (fx[k] != zero) | (fy[k] != zero)
    return found


@njit_lent()
def _copy_row(flat, plane, base, out):
    """Take the pixels themselves: what either kernel gives where no sample falls between pixels."""
    for c in range(out.shape[0]):
        for k in range(base.size):
            out[c, k] = flat[base[k] + np.uint32(c * plane)]


@njit_lent()
def _plan_taps(sx, sy, limits, fx, fy, gap, row_x, row_y, kind):
    """Decide per pixel how Lanczos reads: 0 not at all, 1 bilinear, 2 the exact taps, 3 vectors of eight."""
    origin_y, origin_x, win_h, win_w = limits
    zero, rows, half = np.float32(0), np.float32(LANCZOS_ROWS), np.float32(0.5)
    x_low, x_high = float(origin_x + 2), float(origin_x + win_w - 3)
    y_low, y_high = float(origin_y + 2), float(origin_y + win_h - 3)
    # In the last tap row of a plane eight floats may reach beyond the array; the row above is always safe.
    y_safe = float(origin_y + win_h - 4)
    for k in range(sx.size):
        row_x[k] = np.int32(fx[k] * rows + half)
        row_y[k] = np.int32(fy[k] * rows + half)
        inside = (sx[k] >= x_low) & (sx[k] < x_high) & (sy[k] >= y_low) & (sy[k] < y_high)
        taps = np.int32(3) if sy[k] < y_safe else np.int32(2)
        taps = taps if inside & ((fx[k] > zero) | (fy[k] > zero)) else np.int32(1)
        kind[k] = taps if gap[k] == zero else np.int32(0)


@njit_lent()
def _range36_exact(flat, corner, win_w):
    """As `range36`, reading no more than the taps."""
    lowest, highest = flat[corner], flat[corner]
    for q in range(6):
        for k in range(6):
            tap = flat[corner + q * win_w + k]
            lowest, highest = min(lowest, tap), max(highest, tap)
    return lowest, highest


@njit(cache=True, nogil=True, inline="always")
def _lift_undershoot(lowest, highest, value):
    """Put a sample that lies far below all of its taps back to the lowest of them; see `UNDERSHOOT`."""
    span, below = highest - lowest, lowest - value
    if not span > CONTRAST * abs(lowest):
        return value
    share = (below - UNDERSHOOT[0] * span) / ((UNDERSHOOT[1] - UNDERSHOOT[0]) * span)
    share = min(max(share, np.float32(0)), np.float32(1))
    return value + share * below


@njit_lent()
def _sample_one(flat, offset, win_w, table, base, fx, fy, row_x, row_y, kind, k):
    """One sample with whatever it needs beyond its sum; `kind` is not 0."""
    here, zero = int(base[k]) + offset, np.float32(0)
    value = np.float32(np.nan)
    if kind[k] >= 2:
        corner = here - 2 * win_w - 2
        # What is not well below the four nearest taps is not below all 36.
        if kind[k] == 3:
            value, near = dot36_wide(flat, corner, win_w, table, int(row_x[k]), int(row_y[k]))
            if value < near - LOW * abs(near):
                lowest, highest = range36(flat, corner, win_w)
                value = _lift_undershoot(lowest, highest, value)
        else:
            value, near = dot36_exact(flat, corner, win_w, table, int(row_x[k]), int(row_y[k]))
            if value < near - LOW * abs(near):
                lowest, highest = _range36_exact(flat, corner, win_w)
                value = _lift_undershoot(lowest, highest, value)
    # Any missing tap makes the sum NaN (0 * NaN too): one test instead of 36.
    if value - value != zero:
        value = _bilinear(flat, here, 1 if fx[k] > zero else 0, win_w if fy[k] > zero else 0, fx[k], fy[k])
    return value


@njit(cache=True, nogil=True, inline="always")
def _finish_odd(flat, plane, win_w, base, fx, fy, k, channel, odd, out):
    """Finish the samples of eight, from `k` and `channel` on, that are more than their sums, which `out` holds."""
    zero = np.float32(0)
    while odd != 0:
        bit = lowest_bit(odd)
        odd &= odd - np.uint32(1)
        c, i = channel + bit // LANES, k + bit % LANES
        here, value = int(base[i]) + c * plane, out[c, i]
        if value - value == zero:
            lowest, highest = range36(flat, here - 2 * win_w - 2, win_w)
            out[c, i] = _lift_undershoot(lowest, highest, value)
        else:
            dx, dy = 1 if fx[i] > zero else 0, win_w if fy[i] > zero else 0
            out[c, i] = _bilinear(flat, here, dx, dy, fx[i], fy[i])


@njit_lent()
def _lanczos_row(flat, plane, win_w, table, base, fx, fy, row_x, row_y, kind, odd_at, odd_of, out):
    """Sample a row of all channels into `out` (C, n); `odd_at`, `odd_of` have room for C numbers per sample."""
    k, n, n_channels, n_odd = 0, base.size, out.shape[0], 0
    corner = -2 * win_w - 2
    while k < n:
        end = k
        while end < n and kind[end] == 3:
            end += 1
        if end - k < LANES:
            end = max(end, k + 1)
            for i in range(k, end if kind[k] > 0 else k):
                for c in range(n_channels):
                    out[c, i] = _sample_one(
                        flat, c * plane, win_w, table, base, fx, fy, row_x, row_y, kind, i
                    )
            k = end
            continue
        while k < end:
            # The last eight may have been summed in part already, to no other result.
            summed = max(0, k - (end - LANES))
            k -= summed
            fresh = np.uint32(0x010101) * ((np.uint32(0xFF) << np.uint32(summed)) & np.uint32(0xFF))
            for c in range(0, n_channels, 3 if n_channels == 3 else 1):
                if n_channels == 3:
                    odd = dot36_of_eight_rgb(
                        flat, base, corner, plane, win_w, table, row_x, row_y, k, LOW, out, c
                    )
                else:
                    at = corner + c * plane
                    odd = dot36_of_eight(flat, base, at, plane, win_w, table, row_x, row_y, k, LOW, out, c)
                # Listed without a branch and finished later: a wrong guess here would wait for all of the sums.
                odd_at[n_odd] = (k << CHANNEL_BITS) + c
                odd_of[n_odd] = odd & fresh
                n_odd += 1 if odd & fresh != 0 else 0
            k += LANES
    for j in range(n_odd):
        first, c = odd_at[j] >> CHANNEL_BITS, odd_at[j] & CHANNEL_MASK
        _finish_odd(flat, plane, win_w, base, fx, fy, first, c, odd_of[j], out)


@njit(cache=True, nogil=True, inline="always")
def _at_least(flat, bits, at, shifted, shifted_bits):
    """A pixel, or the lower bound it holds where its light was cut off."""
    value, held = flat[at], bits[at]
    if FIRST_BOUND <= held <= LAST_BOUND:
        shifted_bits[0] = (held - BOUND_MARK) << BOUND_SHIFT
        value = shifted[0]
    return value


@njit_lent()
def _any_missing(line):
    """Whether a sample came out as no number."""
    zero = np.float32(0)
    found = False
    for k in range(line.size):
        value = line[k]
        found |= value - value != zero
    return found


@njit_lent()
def _bound_row(flat, bits, offset, win_w, base, fx, fy, line, gap, shifted, shifted_bits, bounds):
    """Fill the lower bounds of the samples that clipped taps decide; NaN for all others."""
    zero, nan = np.float32(0), np.float32(np.nan)
    for k in range(bounds.size):
        bounds[k] = nan
        if line[k] - line[k] != zero and gap[k] == zero:
            dx = 1 if fx[k] > zero else 0
            dy = win_w if fy[k] > zero else 0
            here = int(base[k]) + offset
            p = _at_least(flat, bits, here, shifted, shifted_bits)
            q = _at_least(flat, bits, here + dy, shifted, shifted_bits)
            top = p + fx[k] * (_at_least(flat, bits, here + dx, shifted, shifted_bits) - p)
            low = q + fx[k] * (_at_least(flat, bits, here + dx + dy, shifted, shifted_bits) - q)
            bounds[k] = top + fy[k] * (low - top)


@njit_lent()
def _mark_row(bounds, bound_bits, out, out_bits):
    """Write bounds, where there are any, as NaN that hold them; other NaN hold nothing that arithmetic left there."""
    zero, least = np.float32(0), np.float32(2.0**-100)
    for k in range(bounds.size):
        if bounds[k] - bounds[k] == zero:
            bounds[k] = max(bounds[k], least)
            out_bits[k] = BOUND_MARK + (bound_bits[k] >> BOUND_SHIFT)
        elif out[k] - out[k] != zero:
            out[k] = np.float32(np.nan)


@njit_lent()
def _sample_kernel(
    flat, bits, plane, win_hw, origin, image_hw, node_x, node_y, lattice, start, lanczos, table, terms, radial,
    use_radial, surface, use_surface, feather, feather_start, wmap, use_map, shape, out, out_bits, out_strides,
    out_weight, weight_stride, write_weight, places, ahead, parts, part_bits, base_of, taps, odd_at, odd_of, line,
    shifted, shifted_bits,
):  # fmt: skip
    """Sample a box of `shape`; channels and rows of `out` and rows of `out_weight` are so many elements apart.

    What comes behind `write_weight` is memory to work with: `_working_memory`.
    """
    limits = (origin[0], origin[1], win_hw[0], win_hw[1])
    win_w = win_hw[1]
    n_channels, n_rows, n_cols = shape
    nan = np.float32(np.nan)
    sx, sy, ahead_x, ahead_y = places[0], places[1], ahead[0], ahead[1]
    fx_of, fy_of, gap_of, u_of, t_of, q_of = parts[0], parts[1], parts[2], parts[3], parts[4], parts[5]
    bounds_of, scaled_of = parts[6], parts[7]
    row_x, row_y, kind = taps[0], taps[1], taps[2]
    for row in range(n_rows):
        map_row(node_x, node_y, lattice, start[0] + row, start[1], sx, sy)
        # Tilted rows cross many short pieces of source rows, which hardware does not foresee.
        map_row(node_x, node_y, lattice, start[0] + row + AHEAD_ROWS, start[1], ahead_x, ahead_y)
        _fetch_row(flat, plane, sx, sy, ahead_x[0] - sx[0], ahead_y[0] - sy[0], limits)
        _split_row(sx, sy, limits, base_of, fx_of, fy_of, gap_of)
        if write_weight:
            at = row * weight_stride
            _weigh_row(
                sx, sy, image_hw, feather, feather_start, wmap, use_map, win_w, base_of, fx_of, fy_of, gap_of,
                out_weight[at : at + n_cols],
            )  # fmt: skip
        # A tilted source covers a part of the row.
        first, last = _covered(gap_of)
        for c in range(n_channels):
            at = c * out_strides[0] + row * out_strides[1]
            out[at : at + first] = nan
            out[at + last : at + n_cols] = nan
        if first == last:
            continue
        own = slice(first, last)
        x, y, base, gap = sx[own], sy[own], base_of[own], gap_of[own]
        fx, fy, u, t, q = fx_of[own], fy_of[own], u_of[own], t_of[own], q_of[own]
        bounds, scaled, scaled_bits = bounds_of[own], scaled_of[own], part_bits[own]
        unit_row(x, y, image_hw, u, t)
        if not _any_between(fx, fy):
            _copy_row(flat, plane, base, line)
        elif lanczos:
            _plan_taps(x, y, limits, fx, fy, gap, row_x, row_y, kind)
            _lanczos_row(flat, plane, win_w, table, base, fx, fy, row_x, row_y, kind, odd_at, odd_of, line)
        else:
            _bilinear_row(flat, plane, win_w, base, fx, fy, line)
        if use_radial:
            distance_row(u, t, image_hw, q)
        for c in range(n_channels):
            at = c * out_strides[0] + row * out_strides[1]
            here, here_bits = out[at + first : at + last], out_bits[at + first : at + last]
            if use_radial:
                radial_row(line[c], u, t, q, terms[c], radial[c], gap, here)
            else:
                photometry_row(line[c], u, t, terms[c], gap, here)
            if use_surface:
                surface_row(u, t, surface[c], here)
            if _any_missing(line[c, : last - first]):
                _bound_row(
                    flat,
                    bits,
                    c * plane,
                    win_w,
                    base,
                    fx,
                    fy,
                    line[c],
                    gap,
                    shifted,
                    shifted_bits,
                    bounds,
                )
                if use_radial:
                    radial_row(bounds, u, t, q, terms[c], radial[c], gap, scaled)
                else:
                    photometry_row(bounds, u, t, terms[c], gap, scaled)
                if use_surface:
                    surface_row(u, t, surface[c], scaled)
                _mark_row(scaled, scaled_bits, here, here_bits)


def _working_memory(n_channels: int, n_columns: int) -> tuple[np.ndarray, ...]:
    """Make what `_sample_kernel` works with: lines of a row of samples."""
    # The last of the parts is the one whose bits are looked at.
    parts, one = np.empty((8, n_columns), np.float32), np.empty(1, np.float32)
    odd_at = np.empty(n_channels * n_columns, np.int64)
    # Sampled here first: planes of whole pages make stores to `out` collide with the loads of the taps.
    line = np.zeros((n_channels, n_columns), np.float32)
    return (
        np.empty((2, n_columns), np.float64),
        np.empty((2, 1), np.float64),
        parts,
        parts[7].view(np.int32),
        np.empty(n_columns, np.uint32),
        np.empty((3, n_columns), np.int32),
        odd_at,
        np.empty(odd_at.size, np.uint32),
        line,
        one,
        one.view(np.int32),
    )


def _flat(array: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return the memory of an array from its first to its last element, and how far its lines lie apart in it."""
    steps = tuple(step // array.itemsize for step in array.strides)
    if array.size == 0 or array.flags.c_contiguous:
        return array.reshape(-1), steps[:-1]
    if steps[-1] != 1 or min(steps) < 0:
        raise ValueError(f"elements of a row must lie side by side; got strides of {steps} elements")
    span = 1 + sum((n - 1) * step for n, step in zip(array.shape, steps, strict=True))
    return np.lib.stride_tricks.as_strided(array, (span,), (array.itemsize,)), steps[:-1]


def sample_window(
    window: np.ndarray,
    origin_yx: tuple[int, int],
    shape_hw: tuple[int, int],
    pixel_map: PixelMap,
    box: tuple[int, int, int, int],
    kernel: Kernel,
    photometry: np.ndarray,
    *,
    radial: np.ndarray | None = None,
    surface: np.ndarray | None = None,
    feather_px: float = 0.0,
    feather_start: float = 0.0,
    weight_window: np.ndarray | None = None,
    out: np.ndarray | None = None,
    out_weight: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Sample one source at every pixel of an output box.

    With ``(sx, sy)`` the mapped coordinate, ``ix = floor(sx)`` and ``fx = float32(sx - ix)`` (same in y):

    - ``fx == fy == 0``: the pixel itself, whatever the kernel;
    - bilinear: four taps, all inside and finite; a tap with weight exactly 0 need not exist;
    - lanczos3: ``LANCZOS_TABLE[int(fx * 4096 + 0.5)]`` in x and y over the 6 x 6 taps from ``ix - 2``, all inside
      the image and finite, else bilinear for this pixel and channel. Where the range of the taps is more than
      four times their lowest, what lies below that by more than 0.5 % of the range is lifted, from 1 % on to the
      lowest tap: clipped and bleeding stars get no holes beside them.

    Where the bilinear taps are all there but some were cut off (`clipped_light`), the sample is a NaN that holds the
    lower bound that they give together.

    The result ``v`` becomes ``gain v + (c0 + cx u + cy t)``, with the radial terms and the surface if there are any, as
    described in `CoaddSource`.

    Parameters
    ----------
    window : ndarray, shape (C, h, w), float32, C-contiguous
        Part of the source; must hold everything `source_window` names for this box. NaN: missing, or clipped light.
    origin_yx : tuple of int
        Source row and column of the window's first pixel.
    shape_hw : tuple of int
        Height and width of the whole source.
    pixel_map : PixelMap
    box : tuple of int
        ``(y0, y1, x0, x1)`` in output pixels.
    kernel : {'bilinear', 'lanczos3'}
    photometry : ndarray, shape (C, 4), float32
    radial : ndarray, shape (C, 4), float32, optional
    surface : ndarray, shape (C, 21), float32, optional
    feather_px, feather_start : float
        See `CoaddSource`.
    weight_window : ndarray, shape (h, w), float32, optional
        Weight map of the same window, sampled bilinearly; not positive or not finite: weight 0.
    out : ndarray, shape (C, y1 - y0, x1 - x0), float32, optional
        Receives the samples. Those of a row lie side by side; rows may be part of longer ones.
    out_weight : ndarray, shape (y1 - y0, x1 - x0), float32, optional
        Receives the weights; as `out`.

    Returns
    -------
    tuple
        Samples (NaN: missing or weight 0) and weights; weights are None when there is neither feather nor map
        (every sample then weighs 1).

    Raises
    ------
    ValueError
        When the kernel is unknown or array shapes disagree.
    """
    y0, y1, x0, x1 = box
    if kernel not in HALO:
        raise ValueError(f"unknown kernel {kernel!r}; use one of {sorted(HALO)}")
    window = np.ascontiguousarray(window, dtype=np.float32)
    if window.ndim != 3 or np.shape(photometry) != (window.shape[0], 4):
        raise ValueError(
            f"window must be (C, h, w) and photometry (C, 4); got {window.shape} and {np.shape(photometry)}"
        )
    if radial is not None and np.shape(radial) != (window.shape[0], 4):
        raise ValueError(f"radial must be ({window.shape[0]}, 4) like photometry; got {np.shape(radial)}")
    if surface is not None and np.shape(surface) != (window.shape[0], N_SURFACE):
        raise ValueError(f"surface must be ({window.shape[0]}, {N_SURFACE}); got {np.shape(surface)}")
    if weight_window is not None and weight_window.shape != window.shape[1:]:
        raise ValueError(f"weight window {weight_window.shape} does not match window {window.shape}")
    shape = (window.shape[0], y1 - y0, x1 - x0)
    if out is None:
        out = np.empty(shape, dtype=np.float32)
    elif out.shape != shape:
        raise ValueError(f"out has shape {out.shape}, the box needs {shape}")
    weighted = feather_px > 0 or weight_window is not None
    if weighted and out_weight is None:
        out_weight = np.empty(shape[1:], dtype=np.float32)
    use_map = weight_window is not None
    # One form for whole arrays and columns of larger ones: kernels see that rows are lines of memory.
    flat, strides = _flat(out)
    flat_weight, weight_strides = _flat(out_weight) if out_weight is not None else (_NO_WEIGHT[0], (0,))
    pixels = window.reshape(-1)
    _sample_kernel(
        pixels,
        pixels.view(np.int32),
        window.shape[1] * window.shape[2],
        window.shape[1:],
        (int(origin_yx[0]), int(origin_yx[1])),
        (int(shape_hw[0]), int(shape_hw[1])),
        pixel_map.src_x,
        pixel_map.src_y,
        (int(pixel_map.y0), int(pixel_map.x0), int(pixel_map.step)),
        (int(y0), int(x0)),
        kernel == "lanczos3",
        _TABLE8,
        np.ascontiguousarray(photometry, dtype=np.float32),
        _NO_RADIAL if radial is None else np.ascontiguousarray(radial, dtype=np.float32),
        radial is not None,
        _NO_SURFACE if surface is None else np.ascontiguousarray(surface, dtype=np.float32),
        surface is not None,
        np.float32(feather_px),
        np.float32(feather_start),
        np.ascontiguousarray(weight_window, dtype=np.float32).reshape(-1) if use_map else _NO_MAP.reshape(-1),
        use_map,
        shape,
        flat,
        flat.view(np.int32),
        strides,
        flat_weight,
        weight_strides[0],
        weighted,
        *_working_memory(shape[0], shape[2]),
    )
    return out, out_weight if weighted else None
