"""The second pass: what the untouched samples of the frames still say against the co-add.

A co-add of debayered frames knows two of three colours of each pixel by interpolation. The samples themselves were
never interpolated: each is compared with the co-add at its own place, and what it differs by is averaged into the
output pixels around, colour by colour. Debayering is a model of the light, this is the light. What is left of a good
model has no flanks, so the places of the samples need not be spread evenly, as they must be for plain drizzle
(Fruchter and Hook 2002), which this is without the model.

Arrays in, arrays out. `gather_block` is the body for the processor, `zemosaic_core.gpu.refine` the one for the card;
what both need beforehand and what is made of their sums is in `zemosaic_core.refine_structure`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import numpy as np
from numba import njit

from zemosaic_core.detector_surface import N_SURFACE
from zemosaic_core.errors import Cancelled
from zemosaic_core.lent_arrays import njit_lent
from zemosaic_core.pixel_map import map_row, source_window
from zemosaic_core.refine_structure import NEED_REACH, Gathered, kernel_numbers, needed_places
from zemosaic_core.sample_terms import border_weight, surface_at
from zemosaic_core.scratch import Scratch
from zemosaic_core.sources import CoaddSource, PixelMap, RawRows

__all__ = [
    "RefineSource",
    "SampleSource",
    "channels_of",
    "gather_block",
    "largest_source_px",
    "rows_with",
    "source_terms",
    "turn_of",
]

# A sample is left out when it differs from the co-add by more than so many of its noises and what frames differ by
# where there is light, through seeing and registration: a share of the range of the 4 x 4 pixels around its place, but
# on the flank of a bright star no more than a multiple of the light right there and what the co-add itself may be off.
LIMIT_SIGMA = 5.0
RANGE_SHARE, LIGHT_SHARE, FLANK_SHARE = np.float32(0.7), np.float32(2), np.float32(0.1)
# The cubic of Keys (1981) through the co-add. Of stars of FWHM 1.9 to 3.2 px his a = -1/2 makes the result 1 % sharper
# than they are, -0.7 takes half a percent of their light from apertures of 3 px.
KEYS = np.float32(-0.6)
# Rows that one call adds the samples of a source to.
LEAST_STRIP_ROWS = 16
# Samples whose places are asked for together whether something is needed there.
RUN_BITS = 4
RUN = 1 << RUN_BITS


class SampleSource(Protocol):
    """Where the untouched samples come from. Calls may come from several threads at once."""

    def read_samples(self, key: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """Return the window as (y1-y0, x1-x0) float32 as the sensor gave it; bad and missing pixels are NaN."""

    def read_weight(self, key: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray | None:
        """Return the window of the weight map as (h, w) float32 >= 0, or None when there is none."""

    def read_raw(self, key: int, y0: int, y1: int) -> RawRows | None:
        """Return undecoded rows, or None when this source has no such form."""


class CancelToken(Protocol):
    """Anything that can say that the user asked to stop."""

    def is_set(self) -> bool:
        """Return True when the work is to stop."""


@dataclass(frozen=True)
class RefineSource:
    """A source of the co-add as the second pass needs it.

    Attributes
    ----------
    source : CoaddSource
        As it went into the co-add.
    to_output : PixelMap
        Source pixel -> output pixel: where each sample falls on the grid.
    pattern : str
        CFA pattern at source pixel (0, 0); empty for an image of one colour.
    limit : ndarray, shape (C,), float32
        Difference from the co-add in ADU that noise alone may make.
    background : ndarray, shape (C,), float32
        Level of the empty sky in the co-add, ADU.
    blur_px2 : float
        Half of what the variance of this frame's star profile along an axis exceeds that of the co-add's, in square
        output px. To first order the frame shows the co-add plus so many times its Laplacian; where the samples of
        a star happen to come from sharp frames on one side, this keeps them from moving it.
    """

    source: CoaddSource
    to_output: PixelMap
    pattern: str
    limit: np.ndarray
    background: np.ndarray
    blur_px2: float = 0.0

    @cached_property
    def numbers(self) -> SourceNumbers:
        """What the loops of the processor need, made once: finding it takes longer than a low window of a block."""
        source = self.source
        return SourceNumbers(
            channels_of(self.pattern),
            source_terms(source),
            np.asarray(self.limit, np.float32),
            np.asarray(self.background, np.float32),
            np.asarray(source.weight, np.float32),
            _mean_steps(self.to_output),
        )


@dataclass(frozen=True)
class SourceNumbers:
    """Of a source: channels of its 2 x 2 cell, its terms, `RefineSource.limit` and background, its weight, its turn."""

    channels: np.ndarray
    terms: np.ndarray
    limit: np.ndarray
    background: np.ndarray
    weight: np.ndarray
    turn: np.ndarray


# -------------------------------------------------------------------------------------- what the bodies have in common


def channels_of(pattern: str) -> np.ndarray:
    """Return the channel of the pixels (0, 0), (0, 1), (1, 0), (1, 1) of an image; all 0 without a pattern."""
    return np.array(["RGB".index(letter) for letter in pattern] if pattern else [0] * 4, np.int32)


def source_terms(source: CoaddSource) -> np.ndarray:
    """Return photometry, radial terms and surface of a source, (C, 29) float32; NaN for a channel without weight."""
    radial = np.zeros_like(source.photometry) if source.radial is None else source.radial
    surface = np.zeros((len(radial), N_SURFACE)) if source.surface is None else source.surface
    terms = np.concatenate([source.photometry, radial, surface], axis=1, dtype=np.float32)
    terms[~(np.asarray(source.weight) > 0)] = np.nan
    return terms


def turn_of(to_output: PixelMap, scale: float) -> np.ndarray:
    """Return how a step in source px lies in output px: x by x, x by y, y by x, y by y; (4,) float32.

    One for a whole frame: over the pixel or two of a step no distortion counts.
    """
    return _turn(_mean_steps(to_output), scale)


def _turn(steps: np.ndarray, scale: float) -> np.ndarray:
    return steps if np.isfinite(steps).all() else np.array([scale, 0, 0, scale], np.float32)


def _mean_steps(to_output: PixelMap) -> np.ndarray:
    """Return `turn_of`, NaN where the map does not tell."""
    columns = [
        [
            np.nanmean(np.diff(nodes, axis=axis)) / to_output.step if nodes.shape[axis] > 1 else np.nan
            for axis in (1, 0)
        ]
        for nodes in (to_output.src_x, to_output.src_y)
    ]
    return np.array(columns, np.float32).ravel()


# ----------------------------------------------------------------------------------------------- on the processor


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _cubic(f):
    """Weights of the taps -1, 0, 1, 2 for a fraction."""
    a, one, two, three = KEYS, np.float32(1), np.float32(2), np.float32(3)
    before = ((a * f - two * a) * f + a) * f
    here = ((a + two) * f - (a + three)) * f * f + one
    after = (((two * a + three) - (a + two) * f) * f - a) * f
    beyond = (a - a * f) * f * f
    return before, here, after, beyond


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _curvature(plane, top, left, fx, fy):
    """Laplacian of 4 x 4 pixels between the four in the middle."""
    four = np.float32(4)
    a, b, c, d = plane[top], plane[top + 1], plane[top + 2], plane[top + 3]
    k0, k1, k2, k3 = left, left + 1, left + 2, left + 3
    upper_left = ((a[k1] + c[k1]) + (b[k0] + b[k2])) - four * b[k1]
    upper_right = ((a[k2] + c[k2]) + (b[k1] + b[k3])) - four * b[k2]
    lower_left = ((b[k1] + d[k1]) + (c[k0] + c[k2])) - four * c[k1]
    lower_right = ((b[k2] + d[k2]) + (c[k1] + c[k3])) - four * c[k2]
    upper = upper_left + fx * (upper_right - upper_left)
    lower = lower_left + fx * (lower_right - lower_left)
    return upper + fy * (lower - upper)


@njit_lent(error_model="numpy")
def _wants_some(ox, oy, first, last, run_need, need_y0):
    """Whether a sample of a straight run, from `first` to `last`, may fall on a pixel where something is needed."""
    low_x, high_x = min(ox[first], ox[last]), max(ox[first], ox[last])
    low_y, high_y = min(oy[first], oy[last]), max(oy[first], oy[last])
    # What is no number is left to the samples themselves.
    if not ((high_x - low_x < 1 << 20) & (high_y - low_y < 1 << 20)):
        return True
    n_rows, n_runs = run_need.shape
    if not ((high_x >= 0) & (high_y >= need_y0) & (low_x < n_runs * RUN) & (low_y < need_y0 + n_rows)):
        return False
    top, bottom = max(0, int(low_y) - need_y0), min(n_rows - 1, int(high_y) - need_y0)
    left, right = max(0, int(low_x)) >> RUN_BITS, min(n_runs - 1, int(high_x) >> RUN_BITS)
    for row in range(top, bottom + 1):
        for run in range(left, right + 1):
            if run_need[row, run]:
                return True
    return False


@njit_lent(error_model="numpy")
def _differences(
    samples,
    origin_yx,
    image_hw,
    node_x,
    node_y,
    lattice,
    channels,
    terms,
    use_surface,
    limit,
    background,
    blur,
    model,
    model_y0,
    need,
    run_need,
    need_y0,
    ox,
    oy,
    out,
):
    """Fill `out` with sample minus co-add for each sample of a window; NaN where it takes no part.

    Samples are looked at in runs that lie within a cell of the lattice: their places are on a straight line. `ox`, `oy`
    (float64) have room for those of a row.
    """
    height, width = image_hw
    rows, columns = samples.shape
    nan, zero, one, two = np.float32(np.nan), np.float32(0), np.float32(1), np.float32(2)
    per_u = two / np.float32(width - 1) if width > 1 else zero
    per_t = two / np.float32(height - 1) if height > 1 else zero
    less_u, less_t = one if width > 1 else zero, one if height > 1 else zero
    across = np.float32(width - 1) * np.float32(width - 1)
    down = np.float32(height - 1) * np.float32(height - 1)
    diagonal = max(across + down, one)
    of_u, of_t = across / diagonal, down / diagonal
    last_row, last_column = model_y0 + model.shape[1] - 3, model.shape[2] - 3
    run_px = min(RUN, lattice[2])
    first_run = run_px - (origin_yx[1] - lattice[1]) % run_px
    for j in range(rows):
        y = origin_yx[0] + j
        map_row(node_x, node_y, lattice, y, origin_yx[1], ox, oy)
        t = np.float32(y) * per_t - less_t
        out[j] = nan
        end = 0
        while end < columns:
            begin, end = end, min(columns, end + (run_px if end else first_run))
            if not _wants_some(ox, oy, begin, end - 1, run_need, need_y0):
                continue
            for i in range(begin, end):
                # NaN coordinates fail too.
                if not (
                    (ox[i] >= 1)
                    & (oy[i] >= model_y0 + 1)
                    & (ox[i] < last_column + 1)
                    & (oy[i] < last_row + 1)
                ):
                    continue
                ix, iy = int(ox[i]), int(oy[i])
                at = iy - need_y0
                if at < 0 or at >= need.shape[0] or need[at, ix] == 0:
                    continue
                x = origin_yx[1] + i
                c = channels[2 * (y & 1) + (x & 1)]
                wx = _cubic(np.float32(ox[i] - ix))
                wy = _cubic(np.float32(oy[i] - iy))
                top, left = iy - 1 - model_y0, ix - 1
                value = zero
                low = high = model[c, top, left]
                for q in range(4):
                    row = model[c, top + q]
                    p0, p1, p2, p3 = row[left], row[left + 1], row[left + 2], row[left + 3]
                    value += wy[q] * ((wx[0] * p0 + wx[1] * p1) + (wx[2] * p2 + wx[3] * p3))
                    low = min(low, min(min(p0, p1), min(p2, p3)))
                    high = max(high, max(max(p0, p1), max(p2, p3)))
                if blur != zero:
                    value += blur * _curvature(
                        model[c], top, left, np.float32(ox[i] - ix), np.float32(oy[i] - iy)
                    )
                u = np.float32(x) * per_u - less_u
                q2 = of_u * (u * u) + of_t * (t * t)
                term = terms[c]
                scaled = term[0] * samples[j, i] * (one + q2 * (term[4] + q2 * term[5]))
                sky = term[1] + term[2] * u + term[3] * t + q2 * (term[6] + q2 * term[7])
                if use_surface:
                    sky += surface_at(term[8:], u, t)
                difference = scaled + sky - value
                span, light = high - low, max(value - background[c], zero)
                allowed = min(RANGE_SHARE * span, LIGHT_SHARE * light + FLANK_SHARE * span)
                # A missing tap, sample or channel makes it NaN, which fails.
                if abs(difference) <= limit[c] + allowed:
                    out[j, i] = difference


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _overlap(distance, kernel):
    return kernel[2] * min(max(kernel[0] - distance, np.float32(0)), kernel[1])


@njit_lent(error_model="numpy")
def _gather(
    differences, origin_yx, image_hw, node_x, node_y, lattice, channels, weight, feather, feather_start, wmap,
    use_map, kernel, box, spans, span_of, block_y0, turn, sx, sy, total, sums, square, sums_square, weight_x,
    weight_y, total_x, total_y,
):  # fmt: skip
    """Add the differences of one source to the sums of the output pixels of a box; those within spans of a row.

    `sx`, `sy` (float64) have room for the places of a row of the box.
    """
    height, width = image_hw
    rows, columns = differences.shape
    y0, y1, x0, x1 = box
    right, bottom = float(width - 1), float(height - 1)
    zero, one = np.float32(0), np.float32(1)
    for y in range(y0, y1):
        for span in range(span_of[y - block_y0], span_of[y - block_y0 + 1]):
            first, last = max(x0, spans[span, 0]), min(x1, spans[span, 1])
            if first >= last:
                continue
            map_row(node_x, node_y, lattice, y, first, sx[: last - first], sy[: last - first])
            for k in range(last - first):
                x, v = sx[k], sy[k]
                if not ((x >= 0) & (x <= right) & (v >= 0) & (v <= bottom)):
                    continue
                share = one
                if feather > zero:
                    edge = np.float32(min(min(x, right - x), min(v, bottom - v)))
                    share = border_weight(edge, feather, feather_start)
                ix, iy = int(x), int(v)
                fx, fy = np.float32(x - ix), np.float32(v - iy)
                for q in range(2):
                    j = iy + q - origin_yx[0]
                    dy = -fy if q == 0 else one - fy
                    ky = _overlap(abs(dy), kernel)
                    if j < 0 or j >= rows or not ky > zero:
                        continue
                    for p in range(2):
                        i = ix + p - origin_yx[1]
                        dx = -fx if p == 0 else one - fx
                        kx = _overlap(abs(dx), kernel)
                        if i < 0 or i >= columns or not kx > zero:
                            continue
                        difference = differences[j, i]
                        if difference != difference:
                            continue
                        c = channels[2 * ((iy + q) & 1) + ((ix + p) & 1)]
                        w = weight[c] * share * (ky * kx)
                        if use_map:
                            w *= wmap[j, i]
                        if not w > zero:
                            continue
                        part = w * difference
                        total[c, y - block_y0, first + k] += part
                        sums[c, y - block_y0, first + k] += w
                        square[c, y - block_y0, first + k] += part * part
                        sums_square[c, y - block_y0, first + k] += w * w
                        right_of, below = turn[0] * dx + turn[1] * dy, turn[2] * dx + turn[3] * dy
                        weight_x[c, y - block_y0, first + k] += w * right_of
                        weight_y[c, y - block_y0, first + k] += w * below
                        total_x[c, y - block_y0, first + k] += part * right_of
                        total_y[c, y - block_y0, first + k] += part * below


_NO_MAP = np.zeros((1, 1), np.float32)
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class _Part:
    """A source's box of a block, and the window of the source that holds its samples."""

    source: RefineSource
    box: Box
    window: Box

    @property
    def window_px(self) -> int:
        y0, y1, x0, x1 = self.window
        return (y1 - y0) * (x1 - x0)


@dataclass(frozen=True)
class _Read:
    """A source's window of a block: differences of its samples and weights of them."""

    source: RefineSource
    box: Box
    origin_yx: tuple[int, int]
    differences: np.ndarray
    weights: np.ndarray | None


def _in_runs(need: np.ndarray) -> np.ndarray:
    """Return which runs of `RUN` pixels of a row hold one that is needed, (h, runs) bool."""
    padded = np.pad(need, ((0, 0), (0, -need.shape[1] % RUN)))
    return padded.reshape(len(need), -1, RUN).any(axis=2)


def _spans_of(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the spans of columns (n, 2), end exclusive, where a mask is positive, and the first span of each row."""
    wanted = np.pad((mask > 0).view(np.int8), ((0, 0), (1, 1)))
    change = np.diff(wanted, axis=1)
    y, first = np.nonzero(change > 0)
    last = np.nonzero(change < 0)[1]
    return np.column_stack([first, last]), np.searchsorted(y, np.arange(len(mask) + 1))


def _lattice(pixel_map: PixelMap) -> tuple[int, int, int]:
    return int(pixel_map.y0), int(pixel_map.x0), int(pixel_map.step)


def largest_source_px(sources: Sequence[RefineSource]) -> int:
    """Return how many samples the largest source has, as many as there can be in a window; 0 without sources."""
    return max((item.source.shape_hw[0] * item.source.shape_hw[1] for item in sources), default=0)


def rows_with(mask: np.ndarray, y0: int) -> tuple[int, int]:
    """Return the first row in which something is wanted of a block that starts at `y0`, and the one behind the last."""
    rows = np.flatnonzero(mask.any(axis=1))
    return (y0, y0) if not len(rows) else (y0 + int(rows[0]), y0 + int(rows[-1]) + 1)


def gather_block(
    pixels: SampleSource,
    sources: Sequence[RefineSource],
    image: np.ndarray,
    image_y0: int,
    mask: np.ndarray,
    y0: int,
    *,
    scale: float = 1.0,
    threads: int = 2,
    cancel: CancelToken | None = None,
    scratch: Scratch | None = None,
) -> Gathered:
    """Sum up, over all sources, what the samples around each output pixel differ from the co-add.

    Parameters
    ----------
    pixels : SampleSource
    sources : sequence of RefineSource
        In the order in which they are summed.
    image : ndarray, shape (C, h, w), float32
        Rows of the co-add from `image_y0` on: those of the block and `HALO_ROWS` more where the grid has them.
    image_y0 : int
    mask : ndarray, shape (rows, w), float32
        From `structure_mask`; where it is 0 nothing is summed.
    y0 : int
        First row of the block.
    scale : float
        Output pixels per source pixel.
    threads : int
    cancel : CancelToken, optional
        Asked before every source.
    scratch : Scratch, optional
        Memory of earlier blocks to use again.

    Returns
    -------
    Gathered
        Of the rows of `mask`. It depends neither on the block a row is computed in nor on the number of threads.

    Raises
    ------
    Cancelled
        When `cancel` is set.
    """
    scratch = scratch or Scratch()
    sums = Gathered.blank((len(image), *mask.shape))
    top, bottom = rows_with(mask, y0)
    parts = []
    for item in sources:
        a, b, left, right = item.source.bbox
        box = (max(a, top), min(b, bottom), max(left, 0), min(right, mask.shape[1]))
        if box[0] < box[1] and box[2] < box[3] and item.source.takes_part:
            window = source_window(item.source.pixel_map, *box, item.source.shape_hw, 1)
            if window is not None:
                parts.append(_Part(item, box, window))
    need = needed_places(mask, scale)
    run_need = _in_runs(need)
    spans, span_of = _spans_of(mask)
    model = np.ascontiguousarray(image, np.float32)

    def read(part: _Part, lent: ExitStack) -> _Read:
        if cancel is not None and cancel.is_set():
            raise Cancelled()
        item, window = part.source, part.window
        source = item.source
        samples = np.ascontiguousarray(pixels.read_samples(source.key, *window), np.float32)
        weights = pixels.read_weight(source.key, *window) if source.has_weight_map else None
        differences = lent.enter_context(scratch.floats(*samples.shape))
        origin = (window[0], window[2])
        numbers = item.numbers
        _differences(
            samples, origin, source.shape_hw, item.to_output.src_x, item.to_output.src_y, _lattice(item.to_output),
            numbers.channels, numbers.terms, source.surface is not None,
            numbers.limit, numbers.background, np.float32(item.blur_px2),
            model, image_y0, need, run_need, y0 - NEED_REACH, *np.empty((2, samples.shape[1])), differences,
        )  # fmt: skip
        return _Read(item, part.box, origin, differences, weights)

    def add(strip: tuple[int, int], batch: Sequence[Future[_Read]]) -> None:
        for reading in batch:
            found = reading.result()
            source, weights = found.source.source, found.weights
            a, b, left, right = found.box
            box = (max(a, strip[0]), min(b, strip[1]), left, right)
            if box[0] < box[1]:
                numbers = found.source.numbers
                _gather(
                    found.differences, found.origin_yx, source.shape_hw,
                    source.pixel_map.src_x, source.pixel_map.src_y, _lattice(source.pixel_map),
                    numbers.channels, numbers.weight, np.float32(source.feather_px), np.float32(source.feather_start),
                    _NO_MAP if weights is None else np.ascontiguousarray(weights, np.float32), weights is not None,
                    kernel_numbers(scale), box, spans, span_of, y0, _turn(numbers.turn, scale),
                    *np.empty((2, right - left)), sums.total, sums.weight, sums.square, sums.weight_square,
                    sums.weight_x, sums.weight_y, sums.total_x, sums.total_y,
                )  # fmt: skip

    threads = max(1, threads)
    # More strips than threads: some have more to do than others. Calls for a few rows each cost more than that.
    n_strips = min(2 * threads, max(1, (bottom - top) // LEAST_STRIP_ROWS))
    edges = np.linspace(top, bottom, n_strips + 1).astype(int)
    strips = [(a, b) for a, b in pairwise(edges.tolist()) if a < b]
    # Lent memory is given back when no thread is at work on it any more, whatever went wrong.
    with ExitStack() as open_batches, ThreadPoolExecutor(threads) as executor:
        adding: list[Future[None]] = []
        of_adding = ExitStack()
        # Half of the windows are added while the other half is read.
        for some in _batches(parts, threads * largest_source_px(sources) // 2):
            lent = open_batches.enter_context(ExitStack())
            batch = [executor.submit(read, part, lent) for part in some]
            _wait_for(adding)
            of_adding.close()
            adding, of_adding = [executor.submit(add, strip, batch) for strip in strips], lent
        _wait_for(adding)
    return sums


def _wait_for(tasks: Sequence[Future[None]]) -> None:
    for task in tasks:
        task.result()


def _batches(parts: Sequence[_Part], most_px: int) -> Iterator[list[_Part]]:
    """Cut into batches whose windows hold at most so many px together, or one window that holds more."""
    batch: list[_Part] = []
    held = 0
    for part in parts:
        if batch and held + part.window_px > most_px:
            yield batch
            batch, held = [], 0
        batch.append(part)
        held += part.window_px
    if batch:
        yield batch
