"""Colour filter arrays: from one plane of mosaicked pixels to luminance, super-pixels or colour. Arrays only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

__all__ = [
    "CFA_PATTERNS",
    "DEBAYER_REACH",
    "CfaColour",
    "DebayerTerms",
    "average_star",
    "debayer",
    "debayer_terms",
    "flip_pattern",
    "luminance",
    "shift_pattern",
    "superpixel",
]

CFA_PATTERNS = ("GRBG", "RGGB", "GBRG", "BGGR")
# Pixels on each side that a debayered pixel depends on: two of the filter, three of the light around each of these.
DEBAYER_REACH = 5

# Light that weighs as much as the word of the average star, in noises of a pixel's sky.
_TRUST = 1.0
# A colour is taken to have more than the average star's share only where the colour measured has so many times the
# light of `_TRUST` for each time: in the light of a single emission line the others hold noise, which would be carried.
_CLEAR = 4.0
# A value is not taken below the sky, or below the mean of its neighbours where they are darker, by more than this many
# noises of its sky: the curvature beside clipped or bleeding stars is not that of any star.
_DEPTH = 4.0
_MIN_STARS = 5


def _check_pattern(pattern: str) -> str:
    name = str(pattern).strip().upper()
    if name not in CFA_PATTERNS:
        raise ValueError(f"unknown CFA pattern {pattern!r}; use one of {', '.join(CFA_PATTERNS)}")
    return name


def _check_plane(cfa: np.ndarray) -> np.ndarray:
    cfa = np.asarray(cfa)
    if cfa.ndim != 2 or min(cfa.shape) < 2:
        raise ValueError(f"a CFA plane needs two dimensions of at least 2 px, got shape {cfa.shape}")
    if cfa.dtype not in (np.uint16, np.float32):
        cfa = cfa.astype(np.float32)
    return np.ascontiguousarray(cfa)


def flip_pattern(pattern: str, height: int) -> str:
    """Return the pattern of the image turned upside down.

    Parameters
    ----------
    pattern : str
        Pattern at pixel (0, 0).
    height : int
        Rows of the image; with an even number the row pair changes places, with an odd one it does not.
    """
    name = _check_pattern(pattern)
    return name[2:] + name[:2] if height % 2 == 0 else name


def shift_pattern(pattern: str, y0: int, x0: int) -> str:
    """Return the pattern at pixel (y0, x0) of a sensor whose pattern at (0, 0) is given."""
    name = pattern[2:] + pattern[:2] if y0 % 2 else pattern
    return name[1] + name[0] + name[3] + name[2] if x0 % 2 else name


@njit(cache=True, nogil=True)
def _sum_windows(cfa, out):
    quarter = np.float32(0.25)
    for y in range(out.shape[0]):
        upper, lower, row = cfa[y], cfa[y + 1], out[y]
        for x in range(out.shape[1]):
            total = np.float32(upper[x]) + np.float32(upper[x + 1])
            row[x] = quarter * (total + (np.float32(lower[x]) + np.float32(lower[x + 1])))


def luminance(cfa: np.ndarray) -> np.ndarray:
    """Average every 2 x 2 window: each holds one red, two green and one blue pixel, whatever its phase.

    Parameters
    ----------
    cfa : ndarray, shape (H, W), uint16 or float32

    Returns
    -------
    ndarray, shape (H - 1, W - 1), float32
        Pixel (y, x) is centred at (y + 0.5, x + 0.5) of the input.

    Raises
    ------
    ValueError
        When the plane is not 2-D or smaller than 2 x 2.
    """
    cfa = _check_plane(cfa)
    out = np.empty((cfa.shape[0] - 1, cfa.shape[1] - 1), np.float32)
    _sum_windows(cfa, out)
    return out


def superpixel(cfa: np.ndarray, pattern: str) -> np.ndarray:
    """Turn every 2 x 2 cell into one RGB pixel, green being the mean of two.

    Parameters
    ----------
    cfa : ndarray, shape (H, W), uint16 or float32
        An odd last row or column is left out.
    pattern : str
        One of `CFA_PATTERNS`, at pixel (0, 0).

    Returns
    -------
    ndarray, shape (3, H // 2, W // 2), float32
        Plane pixel (y, x) is centred at (2 y + 0.5, 2 x + 0.5) of the input.

    Raises
    ------
    ValueError
        When the plane or the pattern is not usable.
    """
    cfa, name = _check_plane(cfa), _check_pattern(pattern)
    height, width = cfa.shape[0] // 2, cfa.shape[1] // 2
    cells = [cfa[k // 2 : 2 * height : 2, k % 2 : 2 * width : 2].astype(np.float32) for k in range(4)]
    out = np.empty((3, height, width), np.float32)
    out[0] = cells[name.index("R")]
    first, second = (k for k in range(4) if name[k] == "G")
    out[1] = np.float32(0.5) * (cells[first] + cells[second])
    out[2] = cells[name.index("B")]
    return out


@dataclass(frozen=True)
class CfaColour:
    """What the light of a frame looks like: its empty sky and the average star.

    Attributes
    ----------
    sky_adu, noise_adu : tuple of float
        Level of the sky and scatter of one pixel of it; red, green, blue; ADU.
    star : tuple of float
        Light of the average star in red, green and blue, in any unit.

    Raises
    ------
    ValueError
        When a number is missing or not finite, or noise or light is not positive.
    """

    sky_adu: tuple[float, float, float]
    noise_adu: tuple[float, float, float]
    star: tuple[float, float, float]

    def __post_init__(self) -> None:
        for name in ("sky_adu", "noise_adu", "star"):
            numbers = np.asarray(getattr(self, name), dtype=float)
            positive = name == "sky_adu" or bool((numbers > 0).all())
            if numbers.shape != (3,) or not np.isfinite(numbers).all() or not positive:
                raise ValueError(
                    f"{name} of a frame's colour is {getattr(self, name)!r}; three usable numbers needed"
                )


@dataclass(frozen=True)
class DebayerTerms:
    """The numbers of a `CfaColour` as processor and card use them: float32, channels red, green, blue.

    Attributes
    ----------
    gain, zero : ndarray, shape (3,)
        From the weighted sum of a colour's samples to its light: ``max(gain * sum - zero, 0) + 1``.
    pull : ndarray, shape (3, 3)
        ``pull[wanted, here]``: the share of a difference in the colour measured that goes to the one wanted, for light
        of the average star, and half of it, because the shares of two pixels are added.
    sky, depth : ndarray, shape (3,)
        What is found is at least ``min(mean of the neighbours, sky) - depth``.
    """

    gain: np.ndarray
    zero: np.ndarray
    pull: np.ndarray
    sky: np.ndarray
    depth: np.ndarray


def average_star(channel_flux: np.ndarray) -> tuple[float, float, float] | None:
    """Return the light of the average star in red, green and blue; green is 1.

    Parameters
    ----------
    channel_flux : ndarray, shape (3, n)
        Fluxes of stars; what is not positive or not finite does not count.

    Returns
    -------
    tuple of float or None
        Medians of the ratios to green; None when fewer than five stars have light in every colour.
    """
    flux = np.asarray(channel_flux, dtype=float)
    with np.errstate(invalid="ignore"):
        flux = flux[:, (flux > 0).all(axis=0) & np.isfinite(flux).all(axis=0)]
    if flux.shape[1] < _MIN_STARS:
        return None
    red, blue = np.median(flux[[0, 2]] / flux[1], axis=1)
    return float(red), 1.0, float(blue)


# Sums of the weights of a colour's taps: half of the samples are green.
_TAP_SUMS = (1024.0, 2048.0, 1024.0)
_GREY = 1 / 16


def debayer_terms(colour: CfaColour | None) -> DebayerTerms:
    """Return the terms for a colour; None: all light is grey, and nothing that is found is bounded."""
    pull = np.full((3, 3), _GREY)
    if colour is None:
        none, endless = np.zeros(3, np.float32), np.full(3, np.inf, np.float32)
        return DebayerTerms(none, none, _from_coloured(pull), none, endless)
    sky, noise, star = (np.asarray(v, dtype=float) for v in (colour.sky_adu, colour.noise_adu, colour.star))
    trust = _TRUST * noise[1] * star / star[1]
    return DebayerTerms(
        (1 / (trust * _TAP_SUMS)).astype(np.float32),
        (sky / trust).astype(np.float32),
        _from_coloured(pull * star[:, None] / star[None, :]),
        sky.astype(np.float32),
        (_DEPTH * noise).astype(np.float32),
    )


def _from_coloured(pull: np.ndarray) -> np.ndarray:
    """Give red in blue pixels, and blue in red ones, the larger weight of their filter."""
    pull[0, 2] *= 1.5
    pull[2, 0] *= 1.5
    return pull.astype(np.float32)


# A row is taken apart into pairs of a coloured pixel and the green one right of it. Pair k of a row stands at index
# k + _PAD and holds the pixels ``2 k - late`` and ``2 k + 1 - late``; `late` is 1 in rows that begin with green. Loops
# write one line each, over plain indices: compilers then make vectors of them.
_PAD = 6
_C, _G = 0, 1
# Shares: of a coloured pixel for green and for the other colour, of a green pixel for the row's and the other colour.
_C_TO_G, _C_TO_D, _G_TO_C, _G_TO_D = 0, 1, 2, 3


@njit(cache=True, nogil=True)
def _mirrored(i, n):
    """Index of pixel i, beyond the border mirrored about the border pixel: the colour stays."""
    while i < 0 or i >= n:
        i = -i if i < 0 else 2 * (n - 1) - i
    return i


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
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
    most = here * np.float32(1 / _CLEAR)
    most = np.float32(1) if most < np.float32(1) else most
    ratio = wanted / here
    ratio = most if ratio > most else ratio
    return ratio * pull


@njit(cache=True, nogil=True, error_model="numpy")
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


@njit(cache=True, nogil=True)
def _differ_down(above, here, below, share_above, share, share_below, out):
    """Differences of the pixels of a line from those straight above and below, each with both pixels' shares."""
    for k in range(out.size):
        up = (share_above[k] + share[k]) * (here[k] - above[k])
        out[k] = up + (share_below[k] + share[k]) * (here[k] - below[k])


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def _green_at_coloured(coloured, share, down, green, above, below, sky, depth, out):
    quarter = np.float32(0.25)
    for k in range(out.size):
        mean = quarter * ((green[k] + green[k + 1]) + (above[k + 1] + below[k + 1]))
        out[k] = _found(mean, _differ_along(coloured, share, k) + down[k], sky, depth)


@njit(cache=True, nogil=True)
def _other_at_coloured(coloured, share, down, above, below, sky, depth, out):
    quarter = np.float32(0.25)
    for k in range(out.size):
        mean = quarter * ((above[k + 1] + above[k + 2]) + (below[k + 1] + below[k + 2]))
        out[k] = _found(mean, _differ_along(coloured, share, k) + down[k], sky, depth)


@njit(cache=True, nogil=True)
def _own_at_green(green, share, down, corners, coloured, sky, depth, out):
    half = np.float32(0.5)
    for k in range(out.size):
        mean = half * (coloured[k + 1] + coloured[k + 2])
        change = (corners[k] + _differ_along(green, share, k)) - half * down[k]
        out[k] = _found(mean, change, sky, depth)


@njit(cache=True, nogil=True)
def _other_at_green(green, share, down, corners, above, below, sky, depth, out):
    half = np.float32(0.5)
    for k in range(out.size):
        mean = half * (above[k + 2] + below[k + 2])
        change = (corners[k] + down[k]) - half * _differ_along(green, share, k)
        out[k] = _found(mean, change, sky, depth)


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def _pairs_of(columns, y, late):
    """Pairs of a row that hold the columns wanted."""
    first, last = columns[y, 0], columns[y, 1]
    return slice((first + late) // 2, (last - 1 + late) // 2 + 1 if last > first else (first + late) // 2)


@njit(cache=True, nogil=True)
def _pairs_around(columns, y, reach, more, late):
    """Pairs of a row that hold what is wanted in it and in so many rows above and below, and more at either end."""
    first, last = np.int64(1 << 40), np.int64(0)
    for row in range(max(0, y - reach), min(len(columns), y + reach + 1)):
        if columns[row, 0] < columns[row, 1]:
            first, last = min(first, columns[row, 0]), max(last, columns[row, 1])
    if first >= last:
        return slice(0, 0)
    return slice((first + late) // 2 - more, (last - 1 + late) // 2 + 1 + more)


@njit(cache=True, nogil=True, error_model="numpy")
def _debayer_rows(cfa, green_first, red_row, terms, columns, out):
    """`green_first` says whether pixel (0, 0) is green, `red_row` which row parity holds red."""
    height, width = cfa.shape
    sky, depth = terms[3], terms[4]
    m = (width + 2) // 2 + 2 * _PAD
    ring, shares = np.empty((8, 2, m), np.float32), np.zeros((5, 4, m), np.float32)
    low, lights = np.zeros((4, m), np.float32), np.empty(m, np.float32)
    down, corners, found_c, found_g = (
        np.empty(m, np.float32), np.empty(m, np.float32), np.empty(m, np.float32), np.empty(m, np.float32),
    )  # fmt: skip
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


def debayer(
    cfa: np.ndarray,
    pattern: str,
    y0: int = 0,
    x0: int = 0,
    *,
    colour: CfaColour | None = None,
    columns: np.ndarray | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Find the missing colours of every pixel, as sharp as its own samples and for light of any colour.

    After the gradient correction of Malvar, He and Cutler (2004): a missing colour is the mean of its two or four
    nearest neighbours plus the curvature of the colour measured here, with their 5 x 5 weights. That curvature is one
    of another colour. It is a sum of differences between pixels, and each difference is multiplied by the mean of what
    the two pixels say of the ratio of the colours. So what one pixel gains another one loses: sky and fluxes stay as
    they are however the ratio changes over a star.

    A pixel's ratio comes from the light around it: of each colour what its samples within 7 x 7 px show above the sky,
    weighted with the binomial 1 6 15 20 15 6 1 in x and y (wide enough that nothing of the lattice is left in it).
    Where there is little light the ratio is that of the average star. With ``s`` the weighted sums and the numbers of
    `debayer_terms`::

        light = max(gain s - zero, 0) + 1
        share = min(light[wanted] / light[here], max(1, light[here] / 4)) pull[wanted, here]
        found = mean + sum of weight (share + share at neighbour) (value - value at neighbour)
        found = max(found, min(mean, sky[wanted]) - depth[wanted])

    The last line keeps clipped or bleeding stars from making holes in the sky beside them.

    Parameters
    ----------
    cfa : ndarray, shape (h, w), uint16 or float32
        Window of a sensor. NaN: missing.
    pattern : str
        One of `CFA_PATTERNS`, at pixel (0, 0) of the sensor.
    y0, x0 : int
        Sensor pixel of the window's first pixel.
    colour : CfaColour, optional
        Without it all light is taken to be grey; this needs no scale of the numbers.
    columns : ndarray, shape (h, 2), int64, optional
        First column of each row that is wanted, and the one behind the last; other pixels of `out` hold anything.
    out : ndarray, shape (3, h, w), float32, C-contiguous, optional
        Receives the result.

    Returns
    -------
    ndarray, shape (3, h, w), float32
        Red, green, blue; measured values are kept as they are. NaN where one of the nearest neighbours is missing; the
        mean of these where only a pixel further away is. At the border missing neighbours are mirrored about the
        border pixel, which keeps the phase; read `DEBAYER_REACH` more pixels on each inner side of a window to have
        true neighbours.

    Raises
    ------
    ValueError
        When the plane, the pattern or `out` is not usable.
    """
    cfa = _check_plane(cfa)
    name = shift_pattern(_check_pattern(pattern), y0, x0)
    terms = debayer_terms(colour)
    if out is None:
        out = np.empty((3, *cfa.shape), np.float32)
    elif out.shape != (3, *cfa.shape) or out.dtype != np.float32 or not out.flags.c_contiguous:
        raise ValueError(f"out is {out.dtype} {out.shape}; float32 {(3, *cfa.shape)} in C order needed")
    if columns is None:
        columns = np.tile(np.array([0, cfa.shape[1]], np.int64), (len(cfa), 1))
    elif columns.shape != (len(cfa), 2) or columns.min() < 0 or columns.max() > cfa.shape[1]:
        raise ValueError(f"columns {columns.shape} do not lie in a plane of {cfa.shape}")
    numbers = (terms.gain, terms.zero, terms.pull, terms.sky, terms.depth)
    _debayer_rows(cfa, name[0] == "G", name.index("R") // 2, numbers, columns, out)
    return out
