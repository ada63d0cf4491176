"""Straight streaks of light in one raw frame: satellites and aeroplanes. Arrays only.

The eye sees a trail long before any of its pixels stands out, and so can averages along it. Maxima of the smoothed
light that are no stars vote for lines (Hough). Along each line the pixels are looked at in units of their noise, in
pieces of 32 px, across the line to both sides: pieces that are bright in the middle against their sides say where the
trail runs, how far it goes and how wide it is, down to a quarter of the noise of a pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numba import njit

from zemosaic_core.raw_sky import SkyCells
from zemosaic_core.star_choice import best_line

__all__ = ["STREAK_COLUMNS", "chains_of_dots", "find_streaks", "on_streaks"]

# Of a streak: its ends, px, and how far to either side of the line it reaches.
STREAK_COLUMNS = ("x0", "y0", "x1", "y1", "half_width_px")

_STRIP_PX = 4.0
_ANGLES = 360
_MIN_VOTES = 8
# Votes above what an average strip has, in units of their scatter: the best of all strips has five by chance.
_EXCESS = 5.5
_MOST_VOTERS = 400
# Lines without a trail after which no further one is looked at; satellites come in trains of twenty and more.
_VAIN = 3
_MOST_STREAKS = 40
_PIECE_PX = 32
# Pixels to either side that are looked at; the outer ones are the level beside the trail.
_REACH_PX = 20
_BESIDE_PX = 14
_CORE_PX = 1.6
_PIECE_SIGMA = 4.0
_MIN_PIECES = 5
_LEAST_SHARE = 0.6
_MOST_GAP = 4
# Wider than this it is a nebula: the light that reaches so far, and the core where it is known, of less than so many
# sigma (pixels count six at most). A satellite is a point to a telescope, so its trail is as wide as a star, and where
# its core is as faint as that its wings end sooner.
_WIDEST_PX = 15.0
_WIDEST_CORE_PX = 10
_WIDEST_FAINT_PX = 10.5
_KNOWN_SIGMA = 4.0
# A trail lifts all pixels of its core, stars in a row some of them: of what their mean rises by, this quantile rises by
# so much at least. Of trails it was 0.72 to 1.3, of rows of stars in fields of 4,700 stars per million pixels 0.23 to
# 0.55.
_EVEN_QUANTILE = 0.2
_LEAST_EVEN = 0.65
# Standard error of that quantile of normal noise, times the root of the number of pixels.
_QUANTILE_ERROR = 1.43
# The trail ends sideways where its mean profile falls below this many sigma of a pixel.
_FAINT = 0.25
# Debayering and sampling carry a trail's light this much further.
_SPILL_PX = 2.0
# A chain of dots: so many on one line, within so many px of it, where chance alone gives less than one in a thousand.
_MIN_DOTS = 5
_DOT_PX = 2.0
_MOST_DOTS = 80
_BY_CHANCE = 1e-3


def find_streaks(
    plane: np.ndarray,
    cells: SkyCells,
    x: np.ndarray,
    y: np.ndarray,
    snr: np.ndarray,
    *,
    least_votes: int = _MIN_VOTES,
) -> np.ndarray:
    """Find the streaks of a frame.

    Parameters
    ----------
    plane : ndarray, shape (H, W), uint16
        Raw pixels, defects mended.
    cells : SkyCells
        Its sky and noise.
    x, y, snr : ndarray, shape (n,)
        Maxima of the smoothed light that are no stars, frame px, and their heights over the noise.
    least_votes : int
        So many of them at least have to lie on a line.

    Returns
    -------
    ndarray, shape (k, 5), float32
        `STREAK_COLUMNS`; at most forty.
    """
    shape_hw = plane.shape
    nothing = np.empty((0, len(STREAK_COLUMNS)), np.float32)
    if len(x) < least_votes or not np.isfinite(cells.noise).all():
        return nothing
    strongest = np.argsort(-snr, kind="stable")
    x, y = np.asarray(x, np.float64)[strongest], np.asarray(y, np.float64)[strongest]
    votes = np.zeros(2 * int(math.hypot(*shape_hw) / _STRIP_PX) + 8, np.int32)
    found: list[tuple[float, ...]] = []
    vain = 0
    # Bright trails leave the faint ones no voters before their own have gone.
    while len(x) >= least_votes and vain < _VAIN and len(found) < _MOST_STREAKS:
        voters_x, voters_y = x[:_MOST_VOTERS], y[:_MOST_VOTERS]
        most, angle, distance = best_line(voters_x, voters_y, _ANGLES, _STRIP_PX, votes)
        by_chance = 2.0 * len(voters_x) * _STRIP_PX / min(shape_hw)
        if most < max(least_votes, by_chance + _EXCESS * math.sqrt(by_chance)):
            break
        line = _refined(voters_x, voters_y, angle, distance, shape_hw)
        streak = _followed(plane, cells, line) if _is_bright(plane, cells, line) else None
        reach = 1.5 * _STRIP_PX if streak is None else max(1.5 * _STRIP_PX, streak[4] + 2.0)
        left = np.abs(x * math.cos(angle) + y * math.sin(angle) - distance) >= reach
        x, y = x[left], y[left]
        if streak is None:
            vain += 1
        else:
            found.append(streak)
    return np.array(found, np.float32) if found else nothing


def on_streaks(streaks: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return which places (n,), frame px, lie on streaks (k, 5), boolean (n,)."""
    on = np.zeros(len(x), bool)
    for x0, y0, x1, y1, half_width in np.asarray(streaks, np.float64):
        length = max(math.hypot(x1 - x0, y1 - y0), 1e-9)
        ux, uy = (x1 - x0) / length, (y1 - y0) / length
        along, across = (x - x0) * ux + (y - y0) * uy, (x - x0) * uy - (y - y0) * ux
        on |= (np.abs(across) <= half_width) & (along >= -half_width) & (along <= length + half_width)
    return on


@dataclass(frozen=True)
class _Line:
    """Pixel ``start + slope t`` across at pixel ``t`` along; ``steep``: along is y."""

    steep: bool
    start: float
    slope: float


def _refined(x: np.ndarray, y: np.ndarray, angle: float, distance: float, shape_hw: tuple[int, int]) -> _Line:
    """Return the straight line through the points near ``x cos + y sin = distance``."""
    steep = abs(math.cos(angle)) > abs(math.sin(angle))
    along, across = (math.sin(angle), math.cos(angle)) if steep else (math.cos(angle), math.sin(angle))
    slope, start = -along / across, distance / across
    t, c = (y, x) if steep else (x, y)
    off = c - start - slope * t
    # The direction of a strip is known to half a step of the angle.
    near = np.abs(off) <= _STRIP_PX + 0.25 * math.pi / _ANGLES * max(shape_hw)
    if np.count_nonzero(near) >= _MIN_VOTES:
        tilt, move = _straight(t[near], off[near], np.ones(np.count_nonzero(near)))
        slope, start = slope + tilt, start + move
    return _Line(steep, start, slope)


def _is_bright(plane: np.ndarray, cells: SkyCells, line: _Line) -> bool:
    """Have a quick look at every other pixel along a line, in the middle and at the sides: most lines are none."""
    columns = np.array([-15, -14, -13, -12, -3, -2, -1, 0, 1, 2, 3, 12, 13, 14, 15])
    profile, rows = _looked_at(plane, cells, line, columns, 2)
    side = np.abs(columns) >= 12
    counted = np.maximum(rows, 1)
    middle = profile[:, ~side]
    # The brightest three side by side: the line is not yet known well.
    best = np.max([middle[:, k : k + 3].mean(axis=1) for k in range(middle.shape[1] - 2)], axis=0)
    signal = best - np.median(profile[:, side], axis=1)
    noise = np.sqrt(1.0 / (3 * counted) + 1.6 / (8 * counted))
    bright = (signal > 3.5 * noise) & (rows >= _PIECE_PX // 4)
    return np.count_nonzero(bright) >= _MIN_PIECES


def _looked_at(
    plane: np.ndarray, cells: SkyCells, line: _Line, columns: np.ndarray, every: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return means across the line per piece along it (pieces, columns), in sigma, and how many pixels each is of."""
    length = plane.shape[0] if line.steep else plane.shape[1]
    profile = np.empty((length // _PIECE_PX, len(columns)), np.float64)
    rows = np.zeros(len(profile), np.int64)
    _profiles(
        plane, cells.cell_px, cells.sky, 1.0 / np.maximum(cells.noise, 1e-3),
        (line.steep, line.start, line.slope), columns, every, profile, rows,
    )  # fmt: skip
    return profile, rows


def _followed(
    plane: np.ndarray, cells: SkyCells, line: _Line
) -> tuple[float, float, float, float, float] | None:
    """Look along a line from end to end; None when no trail runs there."""
    height, width = plane.shape
    length, breadth = (height, width) if line.steep else (width, height)
    n_pieces = length // _PIECE_PX
    columns = np.arange(-_REACH_PX, _REACH_PX + 1)
    squeeze = 1.0 / math.hypot(1.0, line.slope)
    offset = columns * squeeze
    middle = (np.arange(n_pieces) + 0.5) * _PIECE_PX - 0.5
    for turn in range(2):
        profile, rows = _looked_at(plane, cells, line, columns, 1)
        signal, noise, height_of_peak = _signals(profile, rows, offset)
        good = signal > _PIECE_SIGMA * noise
        if np.count_nonzero(good) < _MIN_PIECES:
            return None
        if turn == 1:
            break
        # Where the light lies across, piece by piece; a straight line through these places.
        near = np.abs(offset) <= 6.0
        light = np.maximum(profile[:, near] - height_of_peak[:, None], 0.0)
        shift = (light * offset[near]).sum(axis=1) / np.maximum(light.sum(axis=1), 1e-9)
        tilt, move = _straight(middle[good], shift[good] / squeeze, np.minimum(signal[good], 3.0))
        line = replace(line, start=line.start + move, slope=line.slope + tilt)
    first, last = _extent(good)
    inside = good[first : last + 1]
    if np.count_nonzero(inside) < _MIN_PIECES or inside.mean() < _LEAST_SHARE:
        return None
    typical = _typical_profile(profile[first : last + 1][inside], offset)
    half_width = _half_width(typical, int(rows[first : last + 1][inside].sum()), offset)
    is_faint = typical.max() < _KNOWN_SIGMA
    if half_width >= (_WIDEST_FAINT_PX if is_faint else _WIDEST_PX):
        return None
    if is_faint and _core_width(typical) > _WIDEST_CORE_PX * math.hypot(1.0, line.slope):
        return None
    pieces = first + np.flatnonzero(inside)
    if not _is_even(plane, cells, line, pieces, float(np.mean(signal[pieces]))):
        return None
    # To the border where the trail comes near it, else one piece on: its ends are faint.
    t0 = 0.0 if first <= 2 else (first - 1) * _PIECE_PX
    t1 = length - 1.0 if last >= n_pieces - 3 else (last + 2) * _PIECE_PX - 1.0
    c0, c1 = line.start + line.slope * t0, line.start + line.slope * t1
    ends = (c0, t0, c1, t1) if line.steep else (t0, c0, t1, c1)
    if not any(-_REACH_PX < c < breadth + _REACH_PX for c in (c0, c1, 0.5 * (c0 + c1))):
        return None
    return (*ends, half_width)


def _signals(
    profile: np.ndarray, rows: np.ndarray, offset: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return brightness of the middle of each piece over its sides, its error, and the level beside it; in sigma."""
    core, beside = np.abs(offset) <= _CORE_PX, np.abs(offset) >= _BESIDE_PX
    beside = beside if beside.any() else np.abs(offset) >= 0.7 * np.abs(offset).max()
    level = np.median(profile[:, beside], axis=1)
    signal = profile[:, core].mean(axis=1) - level
    counted = np.maximum(rows, 1)
    noise = np.sqrt(1.0 / (counted * core.sum()) + 1.6 / (counted * beside.sum()))
    return np.where(rows >= _PIECE_PX // 2, signal, -np.inf), noise, level


def _is_even(plane: np.ndarray, cells: SkyCells, line: _Line, pieces: np.ndarray, signal: float) -> bool:
    """Whether low values along the core of some pieces rise with their mean, `signal` above the level beside it."""
    columns = np.array([-19, -17, -15, -1, 0, 1, 15, 17, 19])
    is_core = np.abs(columns) <= 1
    values = np.full((len(pieces) * _PIECE_PX, len(columns)), np.nan)
    _samples(
        plane, cells.cell_px, cells.sky, 1.0 / np.maximum(cells.noise, 1e-3),
        (line.steep, line.start, line.slope), columns, pieces, values,
    )  # fmt: skip
    values = values[np.isfinite(values[:, 0])]
    core, beside = values[:, is_core], values[:, ~is_core]
    rise = np.quantile(core, _EVEN_QUANTILE) - np.quantile(beside, _EVEN_QUANTILE)
    error = _QUANTILE_ERROR * math.sqrt(1.0 / core.size + 1.0 / beside.size)
    return bool(rise + error >= _LEAST_EVEN * signal)


def _straight(t: np.ndarray, value: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """Slope and value at 0 of a straight line, robust against a few wrong places."""
    keep = np.ones(len(t), bool)
    slope, start = 0.0, float(np.median(value))
    for _ in range(3):
        w = weight[keep]
        mean = np.average(t[keep], weights=w)
        spread = float((w * (t[keep] - mean) ** 2).sum())
        if spread <= 0 or np.count_nonzero(keep) < 4:
            break
        level = np.average(value[keep], weights=w)
        slope = float((w * (t[keep] - mean) * (value[keep] - level)).sum() / spread)
        start = float(level - slope * mean)
        residual = np.abs(value - start - slope * t)
        keep = residual <= max(1.0, 3.0 * float(np.median(residual)))
    return slope, start


def _extent(good: np.ndarray) -> tuple[int, int]:
    """First and last piece of the part with most good ones; gaps of a few pieces do not end a part."""
    at = np.flatnonzero(good)
    parts = np.split(at, np.flatnonzero(np.diff(at) > _MOST_GAP) + 1)
    longest = max(parts, key=len)
    return int(longest[0]), int(longest[-1])


def _typical_profile(profile: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Return the median of pieces across a trail, above the level beside it, in sigma."""
    far = min(_BESIDE_PX, 0.7 * np.abs(offset).max())
    left, right = offset <= -far, offset >= far
    # Diffuse light may slope across the trail, and peak on it in some of the pieces.
    slope = (profile[:, right].mean(axis=1) - profile[:, left].mean(axis=1)) / (2.0 * offset[right].mean())
    level = 0.5 * (profile[:, right].mean(axis=1) + profile[:, left].mean(axis=1))
    return np.median(profile - level[:, None] - slope[:, None] * offset, axis=0)


def _core_width(typical: np.ndarray) -> int:
    """Return how many pixels side by side have half the brightness of a trail's core."""
    peak = int(np.argmax(typical))
    below = np.flatnonzero(typical < 0.5 * typical[peak])
    left, right = below[below < peak], below[below > peak]
    return int(right[0] if len(right) else len(typical)) - int(left[-1] if len(left) else -1) - 1


def _half_width(typical: np.ndarray, n_rows: int, offset: np.ndarray) -> float:
    """Return how far to the side the light of a trail reaches, and its spill."""
    error = 1.25 / math.sqrt(max(1.0, float(n_rows)))
    inner = np.sort(np.abs(offset[typical > max(_FAINT, 4.0 * error)]))
    # Outwards as long as there are no gaps: another trail beside it is another one.
    gaps = np.flatnonzero(np.diff(inner) > 2.5)
    reach = float(inner[gaps[0]] if len(gaps) else inner[-1]) if len(inner) else _CORE_PX
    return reach + 0.5 + _SPILL_PX


@njit(cache=True, nogil=True)
def _in_sigma(plane, sky, scale, y, x, row, column):
    """A pixel in units of its noise above the sky of a cell.

    It counts at most so many sigma: a star on the line must not speak for a piece.
    """
    phase = 2 * (y & 1) + (x & 1)
    value = (np.float64(plane[y, x]) - sky[phase, row, column]) * scale[phase, row, column]
    return min(max(value, -np.float64(6.0)), np.float64(6.0))


@njit(cache=True, nogil=True)
def _profiles(plane, cell, sky, scale, line, columns, every, profile, rows):
    """Mean of the pixels across the line, in units of their noise above the sky, for each piece along it."""
    steep, start, slope = line
    length = plane.shape[0] if steep else plane.shape[1]
    breadth = plane.shape[1] if steep else plane.shape[0]
    n_pieces, n_across = profile.shape
    for piece in range(n_pieces):
        profile[piece] = 0.0
        n = 0
        for t in range(piece * _PIECE_PX, min(length, (piece + 1) * _PIECE_PX), every):
            # Nearest pixel; what that moves the profile by averages out along the line.
            c = math.floor(start + slope * t + 0.5)
            if c + columns[0] < 0 or c + columns[-1] >= breadth:
                continue
            n += 1
            # The sky of the middle for all of them: it changes little over these few pixels.
            row, column = (t // cell, c // cell) if steep else (c // cell, t // cell)
            for k in range(n_across):
                y, x = (t, c + columns[k]) if steep else (c + columns[k], t)
                profile[piece, k] += _in_sigma(plane, sky, scale, y, x, row, column)
        rows[piece] = n
        if n > 0:
            for k in range(n_across):
                profile[piece, k] /= n


@njit(cache=True, nogil=True)
def _samples(plane, cell, sky, scale, line, columns, pieces, values):
    """The pixels of each row of some pieces, as `_profiles` counts them; rows near a border stay as they are."""
    steep, start, slope = line
    breadth = plane.shape[1] if steep else plane.shape[0]
    for i in range(len(pieces)):
        for j in range(_PIECE_PX):
            t = pieces[i] * _PIECE_PX + j
            c = math.floor(start + slope * t + 0.5)
            if c + columns[0] < 0 or c + columns[-1] >= breadth:
                continue
            row, column = (t // cell, c // cell) if steep else (c // cell, t // cell)
            for k in range(len(columns)):
                y, x = (t, c + columns[k]) if steep else (c + columns[k], t)
                values[i * _PIECE_PX + j, k] = _in_sigma(plane, sky, scale, y, x, row, column)


def chains_of_dots(x: np.ndarray, y: np.ndarray, fwhm_px: float, shape_hw: tuple[int, int]) -> np.ndarray:
    """Find chains of dots, such as the lamps of an aeroplane leave, among stars that no other frame shows.

    Parameters
    ----------
    x, y : ndarray, shape (n,)
        Detections that only this frame has, brightest first, frame px.
    fwhm_px : float
        Width of the stars.
    shape_hw : tuple of int
        Size of the frame.

    Returns
    -------
    ndarray, shape (k, 5), float32
        `STREAK_COLUMNS`, from one dot before the first to one after the last.
    """
    x, y = np.asarray(x, np.float64)[:_MOST_DOTS], np.asarray(y, np.float64)[:_MOST_DOTS]
    found = []
    left = np.ones(len(x), bool)
    while np.count_nonzero(left) >= _MIN_DOTS:
        index = np.flatnonzero(left)
        best = _longest_chain(x[index], y[index], shape_hw)
        if best is None:
            break
        members = index[best]
        found.append(_around_dots(x[members], y[members], fwhm_px))
        left[members] = False
    return np.array(found, np.float32).reshape(-1, len(STREAK_COLUMNS))


def _longest_chain(x: np.ndarray, y: np.ndarray, shape_hw: tuple[int, int]) -> np.ndarray | None:
    """Return the dots on the line with most of them, when chance would hardly put as many on any line."""
    n = len(x)
    first, second = np.triu_indices(n, 1)
    dx, dy = x[second] - x[first], y[second] - y[first]
    length = np.hypot(dx, dy)
    apart = length > 10.0 * _DOT_PX
    if not apart.any():
        return None
    first, dx, dy, length = first[apart], dx[apart] / length[apart], dy[apart] / length[apart], length[apart]
    off = np.abs(dx[:, None] * (y[None] - y[first][:, None]) - dy[:, None] * (x[None] - x[first][:, None]))
    on = off <= _DOT_PX
    counts = on.sum(axis=1)
    best = int(counts.argmax())
    by_chance = n * 2.0 * _DOT_PX * math.hypot(*shape_hw) / (shape_hw[0] * shape_hw[1])
    others = int(counts[best]) - 2
    # Poisson tail, times the number of lines that were tried.
    tail, term = 0.0, math.exp(-by_chance)
    for k in range(1, others + 40):
        term *= by_chance / k
        tail += term if k >= others else 0.0
    if counts[best] < _MIN_DOTS or tail * len(first) > _BY_CHANCE:
        return None
    return np.flatnonzero(on[best])


def _around_dots(x: np.ndarray, y: np.ndarray, fwhm_px: float) -> tuple[float, ...]:
    centre_x, centre_y = x.mean(), y.mean()
    _, _, axes = np.linalg.svd(np.column_stack([x - centre_x, y - centre_y]), full_matrices=False)
    along = (x - centre_x) * axes[0, 0] + (y - centre_y) * axes[0, 1]
    across = (x - centre_x) * axes[1, 0] + (y - centre_y) * axes[1, 1]
    step = float(np.median(np.diff(np.sort(along))))
    ends = np.array([along.min() - step, along.max() + step])
    half_width = float(np.abs(across).max()) + 2.0 * fwhm_px + _SPILL_PX
    return (
        centre_x + ends[0] * axes[0, 0], centre_y + ends[0] * axes[0, 1],
        centre_x + ends[1] * axes[0, 0], centre_y + ends[1] * axes[0, 1], half_width,
    )  # fmt: skip
