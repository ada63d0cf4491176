"""Debayering row by row: the compiled loops behind `cfa.debayer`, which says what is computed.

A row is taken apart into pairs of a coloured pixel and the green one right of it. Pair k of a row stands at index
``k + _PAD`` and holds the pixels ``2 k - late`` and ``2 k + 1 - late``; `late` is 1 in rows that begin with green.
Loops write one line each, over plain indices: compilers then make vectors of them.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from zemosaic_core.lent_arrays import njit_lent

__all__ = ["CLEAR", "columns_within", "debayer_rows"]

# A colour is taken to have more than the average star's share only where the colour measured has so many times the
# least light for each time: in the light of a single emission line the others hold noise, which would be carried.
CLEAR = 4.0
_PAD = 6
_C, _G = 0, 1
# Shares: of a coloured pixel for green and for the other colour, of a green pixel for the row's and the other colour.
_C_TO_G, _C_TO_D, _G_TO_C, _G_TO_D = 0, 1, 2, 3


@njit_lent()
def _mirrored(i, n):
    """Index of pixel i, beyond the border mirrored about the border pixel: the colour stays."""
    while i < 0 or i >= n:
        i = -i if i < 0 else 2 * (n - 1) - i
    return i


@njit_lent()
def _load_row(cfa, y, late, wanted, pairs):
    """Take a row apart: pairs that are wanted, and those at either end."""
    width = cfa.shape[1]
    row = cfa[_mirrored(y, cfa.shape[0])]
    whole = (width - late) // 2
    begin = _PAD + late
    own = slice(max(0, wanted.start - late), max(0, min(whole, wanted.stop - late)))
    inner, coloured, green = row[late + 2 * own.start :], pairs[_C][begin:][own], pairs[_G][begin:][own]
    for k in range(coloured.size):
        coloured[k] = np.float32(inner[2 * k])
        green[k] = np.float32(inner[2 * k + 1])
    for first, end in ((0, begin), (begin + whole, pairs.shape[1])):
        for i in range(first, end):
            x = 2 * (i - _PAD) - late
            pairs[_C, i] = np.float32(row[_mirrored(x, width)])
            pairs[_G, i] = np.float32(row[_mirrored(x + 1, width)])


@njit_lent()
def _sum_columns(ring, y, late, own, low):
    """Weigh the columns of seven rows: lines of the row's own colour and green, of the other colour and its green.

    Lines of the other rows are moved such that index i stands on, or left of, index i of this row. `own` says which
    indices are wanted.
    """
    f6, f15, f20 = np.float32(6), np.float32(15), np.float32(20)
    moved = slice(own.start - late, own.stop - late)
    for kind in range(2):
        above, here, below, out = (
            ring[(y - 2) % 8, kind][own],
            ring[y % 8, kind][own],
            ring[(y + 2) % 8, kind][own],
            low[kind][own],
        )
        for i in range(out.size):
            out[i] = f20 * here[i] + f6 * (above[i] + below[i])
        above, below, out = ring[(y - 1) % 8, kind][moved], ring[(y + 1) % 8, kind][moved], low[2 + kind][own]
        far_above, far_below = ring[(y - 3) % 8, kind][moved], ring[(y + 3) % 8, kind][moved]
        for i in range(out.size):
            out[i] = f15 * (above[i] + below[i]) + (far_above[i] + far_below[i])


@njit(cache=True, nogil=True, inline="always", error_model="numpy")
def _light(total, gain, zero):
    above = gain * total - zero
    return (np.float32(0) if above < np.float32(0) else above) + np.float32(1)


@njit(cache=True, nogil=True, inline="always", error_model="numpy")
def _share(wanted, here, pull):
    """Share of a difference in the colour measured that goes to the one wanted."""
    most = here * np.float32(1 / CLEAR)
    most = np.float32(1) if most < np.float32(1) else most
    ratio = wanted / here
    ratio = most if ratio > most else ratio
    return ratio * pull


@njit_lent(error_model="numpy")
def _fill_shares(low, terms, c, d, own_pairs, here, shares):
    """Fill the four lines of shares of a row; `c`, `d`: channels of the row's and of the other colour.

    `own_pairs` says which indices are wanted.
    """
    gain, zero, pull = terms[0], terms[1], terms[2]
    f6, f15, f20 = np.float32(6), np.float32(15), np.float32(20)
    wide = slice(own_pairs.start - 2, own_pairs.stop + 2)
    own, green, other, far_green = low[0][wide], low[1][wide], low[2][wide], low[3][wide]
    n = own.size - 4
    gain_of, zero_of = gain[c], zero[c]
    for k in range(n):
        here[k] = _light(f20 * own[k + 2] + f6 * (own[k + 1] + own[k + 3]), gain_of, zero_of)
    gain_of, zero_of, pull_of, out = gain[1], zero[1], pull[1, c], shares[_C_TO_G][own_pairs]
    for k in range(n):
        along = f15 * (green[k + 1] + green[k + 2]) + (green[k] + green[k + 3])
        across = f20 * far_green[k + 2] + f6 * (far_green[k + 1] + far_green[k + 3])
        out[k] = _share(_light(along + across, gain_of, zero_of), here[k], pull_of)
    gain_of, zero_of, pull_of, out = gain[d], zero[d], pull[d, c], shares[_C_TO_D][own_pairs]
    for k in range(n):
        total = f15 * (other[k + 2] + other[k + 3]) + (other[k + 1] + other[k + 4])
        out[k] = _share(_light(total, gain_of, zero_of), here[k], pull_of)
    gain_of, zero_of = gain[1], zero[1]
    for k in range(n):
        along = f20 * green[k + 2] + f6 * (green[k + 1] + green[k + 3])
        around = f15 * (far_green[k + 2] + far_green[k + 3]) + (far_green[k + 1] + far_green[k + 4])
        here[k] = _light(along + around, gain_of, zero_of)
    gain_of, zero_of, pull_of, out = gain[c], zero[c], pull[c, 1], shares[_G_TO_C][own_pairs]
    for k in range(n):
        total = f15 * (own[k + 2] + own[k + 3]) + (own[k + 1] + own[k + 4])
        out[k] = _share(_light(total, gain_of, zero_of), here[k], pull_of)
    gain_of, zero_of, pull_of, out = gain[d], zero[d], pull[d, 1], shares[_G_TO_D][own_pairs]
    for k in range(n):
        total = f20 * other[k + 3] + f6 * (other[k + 2] + other[k + 4])
        out[k] = _share(_light(total, gain_of, zero_of), here[k], pull_of)


@njit_lent()
def _differ_down(above, here, below, share_above, share, share_below, out):
    """Differences of the pixels of a line from those straight above and below, each with both pixels' shares."""
    for k in range(out.size):
        up = (share_above[k] + share[k]) * (here[k] - above[k])
        out[k] = up + (share_below[k] + share[k]) * (here[k] - below[k])


@njit_lent()
def _differ_diagonally(above, here, below, share_above, share, share_below, out):
    """As `_differ_down` for the four pixels at the corners: k and k + 1 of the lines above and below."""
    for k in range(out.size):
        left = (share_above[k] + share[k]) * (here[k] - above[k])
        up = left + (share_above[k + 1] + share[k]) * (here[k] - above[k + 1])
        left = (share_below[k] + share[k]) * (here[k] - below[k])
        out[k] = up + (left + (share_below[k + 1] + share[k]) * (here[k] - below[k + 1]))


@njit(cache=True, nogil=True, inline="always")
def _found(mean, change, sky, depth):
    """Mean of the neighbours plus what the measured colour tells, unless that is not a number; bounded below."""
    value = mean + (change if change - change == np.float32(0) else np.float32(0))
    bound = (sky if mean > sky else mean) - depth
    return bound if value < bound else value


@njit(cache=True, nogil=True, inline="always")
def _differ_along(line, share, k):
    """Differences from the two pixels left and right of index k + 1."""
    left = (share[k] + share[k + 1]) * (line[k + 1] - line[k])
    return left + (share[k + 2] + share[k + 1]) * (line[k + 1] - line[k + 2])


@njit_lent()
def _green_at_coloured(coloured, share, down, green, above, below, sky, depth, out):
    quarter = np.float32(0.25)
    for k in range(out.size):
        mean = quarter * ((green[k] + green[k + 1]) + (above[k + 1] + below[k + 1]))
        out[k] = _found(mean, _differ_along(coloured, share, k) + down[k], sky, depth)


@njit_lent()
def _other_at_coloured(coloured, share, down, above, below, sky, depth, out):
    quarter = np.float32(0.25)
    for k in range(out.size):
        mean = quarter * ((above[k + 1] + above[k + 2]) + (below[k + 1] + below[k + 2]))
        out[k] = _found(mean, _differ_along(coloured, share, k) + down[k], sky, depth)


@njit_lent()
def _own_at_green(green, share, down, corners, coloured, sky, depth, out):
    half = np.float32(0.5)
    for k in range(out.size):
        mean = half * (coloured[k + 1] + coloured[k + 2])
        change = (corners[k] + _differ_along(green, share, k)) - half * down[k]
        out[k] = _found(mean, change, sky, depth)


@njit_lent()
def _other_at_green(green, share, down, corners, above, below, sky, depth, out):
    half = np.float32(0.5)
    for k in range(out.size):
        mean = half * (above[k + 2] + below[k + 2])
        change = (corners[k] + down[k]) - half * _differ_along(green, share, k)
        out[k] = _found(mean, change, sky, depth)


@njit_lent()
def _write_row(coloured, green, late, pairs, row):
    """Put some pairs of a row together again."""
    x, begin, n = 2 * pairs.start - late, 0, pairs.stop - pairs.start
    if x < 0:
        row[0] = green[0]
        x, begin, n = x + 2, 1, n - 1
    whole = min(n, (row.size - x) // 2)
    left, right, target = coloured[begin:], green[begin:], row[x:]
    for k in range(whole):
        target[2 * k] = left[k]
        target[2 * k + 1] = right[k]
    if whole < n:
        target[2 * whole] = left[whole]


@njit_lent()
def _pairs_of(columns, y, late):
    """Pairs of a row that hold the columns wanted."""
    first, last = columns[y, 0], columns[y, 1]
    return slice((first + late) // 2, (last - 1 + late) // 2 + 1 if last > first else (first + late) // 2)


@njit_lent()
def _pairs_around(columns, y, reach, more, late):
    """Pairs of a row that hold what is wanted in it and in so many rows above and below, and more at either end."""
    first, last = np.int64(1 << 40), np.int64(0)
    for row in range(max(0, y - reach), min(len(columns), y + reach + 1)):
        if columns[row, 0] < columns[row, 1]:
            first, last = min(first, columns[row, 0]), max(last, columns[row, 1])
    if first >= last:
        return slice(0, 0)
    return slice((first + late) // 2 - more, (last - 1 + late) // 2 + 1 + more)


@njit(cache=True, nogil=True)
def columns_within(columns, n_rows, top, left):
    """Return the columns wanted of a window of so many rows from those of a smaller one that begins at (top, left)."""
    found = np.zeros((n_rows, 2), np.int64)
    for y in range(columns.shape[0]):
        if columns[y, 0] < columns[y, 1]:
            found[top + y, 0], found[top + y, 1] = columns[y, 0] + left, columns[y, 1] + left
    return found


def debayer_rows(
    cfa: np.ndarray,
    green_first: bool,
    red_row: int,
    terms: tuple[np.ndarray, ...],
    columns: np.ndarray,
    out: np.ndarray,
) -> None:
    """Fill `out` (3, h, w) with the colours of a window; see `cfa.debayer`.

    Parameters
    ----------
    cfa : ndarray, shape (h, w)
    green_first : bool
        Whether pixel (0, 0) is green.
    red_row : int
        Which row parity holds red.
    terms : tuple of ndarray
        Gain, zero, pull, sky and depth of `cfa.DebayerTerms`.
    columns, out : ndarray
        As for `cfa.debayer`.
    """
    m = (cfa.shape[1] + 2) // 2 + 2 * _PAD
    lines = np.zeros((45, m), np.float32)
    ring, shares = lines[:16].reshape(8, 2, m), lines[16:36].reshape(5, 4, m)
    _debayer_rows(cfa, green_first, red_row, terms, columns, ring, shares, lines[36:40], lines[40:], out)


@njit_lent(error_model="numpy")
def _debayer_rows(cfa, green_first, red_row, terms, columns, ring, shares, low, lines, out):
    """`ring` (8, 2, m) of pairs of rows, `shares` (5, 4, m), `low` (4, m), and five more lines to work with."""
    lights, down, corners, found_c, found_g = lines[0], lines[1], lines[2], lines[3], lines[4]
    height = cfa.shape[0]
    sky, depth = terms[3], terms[4]
    begin, end = height, 0
    for y in range(height):
        if columns[y, 0] < columns[y, 1]:
            begin, end = min(begin, y), y + 1
    for y in range(begin - 5, begin + 2):
        late = 1 if green_first == (y % 2 == 0) else 0
        _load_row(cfa, y, late, _pairs_around(columns, y, 5, 7, late), ring[y % 8])
    for ahead in range(begin - 2, end + 2):
        late = 1 if green_first == (ahead % 2 == 0) else 0
        _load_row(
            cfa, ahead + 3, 1 - late, _pairs_around(columns, ahead + 3, 5, 7, 1 - late), ring[(ahead + 3) % 8]
        )
        c, d = (0, 2) if ahead % 2 == red_row else (2, 0)
        around = _pairs_around(columns, ahead, 2, 2, late)
        if around.start < around.stop:
            wide = slice(around.start + _PAD - 2, around.stop + _PAD + 2)
            _sum_columns(ring, ahead, late, wide, low)
            narrow = slice(around.start + _PAD, around.stop + _PAD)
            _fill_shares(low, terms, c, d, narrow, lights, shares[ahead % 5])
        y = ahead - 2
        pairs = _pairs_of(columns, y, late) if begin <= y else slice(0, 0)
        if pairs.start >= pairs.stop:
            continue
        # The row two above is of the same kind, so are `late`, `c` and `d`.
        n = pairs.stop - pairs.start
        own, others = _PAD - 1 + pairs.start, _PAD - 1 - late + pairs.start
        coloured, green = ring[y % 8, _C][own:], ring[y % 8, _G][own:]
        above, below = ring[(y - 1) % 8], ring[(y + 1) % 8]
        here, far_above, far_below = shares[y % 5], shares[(y - 2) % 5], shares[(y + 2) % 5]
        near_above, near_below = shares[(y - 1) % 5], shares[(y + 1) % 5]
        first = slice(own + 1, own + 1 + n)
        for way in range(4):
            kind = _C if way < 2 else _G
            _differ_down(
                ring[(y - 2) % 8, kind][first], ring[y % 8, kind][first], ring[(y + 2) % 8, kind][first],
                far_above[way][first], here[way][first], far_below[way][first], down[:n],
            )  # fmt: skip
            share = here[way][own:]
            if way == _C_TO_G:
                _green_at_coloured(
                    coloured,
                    share,
                    down,
                    green,
                    above[_G][others:],
                    below[_G][others:],
                    sky[1],
                    depth[1],
                    found_c[:n],
                )
                _write_row(found_c, green[1:], late, pairs, out[1, y])
            elif way == _C_TO_D:
                _other_at_coloured(
                    coloured,
                    share,
                    down,
                    above[_C][others:],
                    below[_C][others:],
                    sky[d],
                    depth[d],
                    found_c[:n],
                )
            else:
                # In the rows above and below the colours have changed places.
                turned = _G_TO_D if way == _G_TO_C else _G_TO_C
                _differ_diagonally(
                    above[_G][others + 1 :], green[1:], below[_G][others + 1 :], near_above[turned][others + 1 :],
                    share[1:], near_below[turned][others + 1 :], corners[:n],
                )  # fmt: skip
            if way == _G_TO_C:
                _own_at_green(green, share, down, corners, coloured, sky[c], depth[c], found_g[:n])
                _write_row(coloured[1:], found_g, late, pairs, out[c, y])
            elif way == _G_TO_D:
                _other_at_green(
                    green,
                    share,
                    down,
                    corners,
                    above[_C][others:],
                    below[_C][others:],
                    sky[d],
                    depth[d],
                    found_g[:n],
                )
                _write_row(found_c, found_g, late, pairs, out[d, y])
