"""The co-add on the CPU: read, sample and combine the sources of one block of output rows. No files, no decisions."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from typing import Protocol, TypeGuard

import numpy as np
from numba import njit

from zemosaic_core.chunks import Buffer, iter_row_chunks, lattice_unit
from zemosaic_core.clipped_light import BOUND_MARK, BOUND_SHIFT, FIRST_BOUND, LAST_BOUND
from zemosaic_core.errors import Cancelled, SettingsError
from zemosaic_core.lanes import MOST_COUNTED
from zemosaic_core.pixel_map import source_columns, source_window
from zemosaic_core.rejection import SamplePool, check_rule, combine_pool
from zemosaic_core.resample import HALO, sample_window
from zemosaic_core.scratch import Scratch
from zemosaic_core.sources import CoaddBlock, CoaddSource, CombineRule, Kernel, LendingSource, PixelSource

__all__ = [
    "CancelToken",
    "check_streaming",
    "coadd_block",
    "coadd_buffers",
    "cut_by_samples",
    "is_streaming",
    "row_blocks",
    "rows_per_pass",
    "samples_of_rows",
    "stack_columns_per_row",
]

# Window area per output area above which a source is read in strips of columns: a rotated frame crosses a few
# output rows with a tall window of which little is used. Each strip reads rows of its own, so windows of fewer pixels
# than a cache holds stay whole.
_WASTE = 2.0
_MIN_STRIP = 128
_SMALL_WINDOW_PX = 1 << 18
# float64 sums of w, w x, w^2, w^2 x, w^2 x^2 per channel of the streaming path, its count, the highest lower bound of
# clipped light and the number of such samples.
_STREAM_BYTES = 5 * 8 + 4 + 4 + 2
# Image, weight, variance, two counts, and the masks of clipped light while they are written.
_OUTPUT_BYTES = 4 + 4 + 4 + 2 + 2 + 3


class CancelToken(Protocol):
    """Anything that can say that the user asked to stop; `threading.Event` for one."""

    def is_set(self) -> bool:
        """Return True when the work is to stop."""


def is_streaming(rule: CombineRule) -> bool:
    """Return True when a rule needs no stack of samples: a mean without rejection."""
    return rule.rejection == "none" and rule.combine == "mean"


def check_streaming(rule: CombineRule) -> None:
    """Refuse a rule that running sums cannot follow.

    Raises
    ------
    SettingsError
        When the rule rejects samples or takes a median.
    """
    if not is_streaming(rule):
        raise SettingsError(
            "incremental_needs_mean",
            f"incremental assembly cannot reject samples or take a median (got rejection {rule.rejection}, "
            f"combine {rule.combine}); use rejection none and combine mean, or the reproject_coadd assembly",
            rejection=rule.rejection,
            combine=rule.combine,
        )


def stack_columns_per_row(sources: Sequence[CoaddSource]) -> int:
    """Return the largest number of samples per channel that any output row holds, summed over the sources."""
    first = min((source.bbox[0] for source in sources), default=0)
    last = max((source.bbox[1] for source in sources), default=0)
    return int(samples_of_rows(sources, last, first=first).max(initial=0))


def samples_of_rows(sources: Sequence[CoaddSource], height: int, *, first: int = 0) -> np.ndarray:
    """Return the samples per channel of output rows, summed over the sources.

    Parameters
    ----------
    height : int
        The row behind the last.
    first : int

    Returns
    -------
    ndarray, shape (height - first,), int64
    """
    change = np.zeros(max(0, height - first) + 1, np.int64)
    for source in sources:
        y0, y1 = (min(max(y, first), height) - first for y in source.bbox[:2])
        columns = source.bbox[3] - source.bbox[2]
        if y1 > y0 and columns > 0:
            change[y0] += columns
            change[y1] -= columns
    return np.cumsum(change)[:-1]


def cut_by_samples(
    samples: np.ndarray,
    y0: int,
    y1: int,
    most_samples: int,
    most_rows: int,
    *,
    lattice_rows: int = 1,
    origin: int = 0,
) -> list[tuple[int, int]]:
    """Cut rows into blocks that hold so many samples each: high ones where few sources lie over each other.

    A low block reads much around itself, so the rows where most sources meet do not decide about all others.

    Parameters
    ----------
    samples : ndarray, shape (height,)
        From `samples_of_rows`.
    y0, y1 : int
        Rows to cut.
    most_samples, most_rows : int
        Most samples and rows of a block. One row is a block whatever it holds.
    lattice_rows, origin : int
        Blocks begin at multiples of a power of two of rows, or a smaller one, counted from `origin`, where at most a
        quarter of a block is given away for it.

    Returns
    -------
    list of tuple of int
        ``(a, b)``, in order. A last block of less than half a block shares rows with the one before.
    """
    share = np.maximum(samples[y0:y1] / max(1, most_samples), 1 / max(1, most_rows))
    filled = np.concatenate([[0.0], np.cumsum(share)])

    def fitting(a: int, limit: float) -> int:
        b = y0 + int(np.searchsorted(filled, filled[a - y0] + limit + 1e-9, side="right")) - 1
        if b >= y1:
            return y1
        unit = lattice_unit(b - a, lattice_rows)
        return max(a + 1, b - (b - origin) % unit)

    edges = [y0] if y1 > y0 else []
    while edges and edges[-1] < y1:
        edges.append(fitting(edges[-1], 1.0))
    if len(edges) > 2 and filled[-1] - filled[edges[-2] - y0] < 0.5:
        left = filled[-1] - filled[edges[-3] - y0]
        middle = fitting(edges[-3], left / 2)
        if middle < y1 and filled[-1] - filled[middle - y0] <= 1:
            edges[-2] = middle
    return list(pairwise(edges))


def coadd_buffers(
    n_sources: int,
    n_channels: int,
    width: int,
    rule: CombineRule,
    has_maps: bool,
    *,
    columns: int | None = None,
) -> tuple[Buffer, ...]:
    """Declare the memory of `coadd_block` per output row.

    Parameters
    ----------
    n_sources : int
        Sources that may touch one row.
    n_channels, width : int
        Channels and columns of the output grid.
    rule : CombineRule
    has_maps : bool
        True when any source has a feather or a weight map.
    columns : int, optional
        Samples per channel and row summed over the sources, from `stack_columns_per_row`; when missing every
        source is assumed to span the whole width.

    Returns
    -------
    tuple of Buffer
    """
    columns = n_sources * width if columns is None else columns
    # Those of the block before are still being kept while the next ones are computed.
    outputs = Buffer("outputs", per_row=width * (n_channels * _OUTPUT_BYTES + 2), copies=2)
    # Windows in flight and the decoder's own copies: two threads, twice the row for slope and halo.
    windows = Buffer("windows", fixed=16 << 20, per_row=2 * width * n_channels * 4, copies=3)
    per_sample = 4 * n_channels + (4 if has_maps else 0)
    if is_streaming(rule):
        return (
            outputs,
            windows,
            Buffer("sums", per_row=width * n_channels * _STREAM_BYTES),
            Buffer("samples", per_row=width * per_sample, copies=4),
        )
    return (outputs, windows, Buffer("stack", per_row=columns * per_sample))


def row_blocks(
    sources: Sequence[CoaddSource],
    shape_hw: tuple[int, int],
    n_channels: int,
    rule: CombineRule,
    budget_bytes: int,
) -> list[tuple[int, int]]:
    """Cut the rows of an output grid into equal blocks whose `coadd_block` fits a budget, of one row at least."""
    height, width = shape_hw
    has_maps = any(source.feather_px > 0 or source.has_weight_map for source in sources)
    columns = stack_columns_per_row(sources)
    buffers = coadd_buffers(len(sources), n_channels, width, rule, has_maps, columns=columns)
    return list(iter_row_chunks(buffers, height, budget_bytes))


def rows_per_pass(sources: Sequence[CoaddSource], max_frames: int) -> int:
    """Return how many rows hold at most as many samples as so many whole sources have, the largest counting.

    One row at least; ``max_frames`` 0: no limit.
    """
    columns = stack_columns_per_row(sources)
    if not max_frames or not columns:
        return sys.maxsize
    largest = max((s.bbox[1] - s.bbox[0]) * (s.bbox[3] - s.bbox[2]) for s in sources)
    return max(1, max_frames * largest // columns)


def coadd_block(
    pixels: PixelSource,
    sources: Sequence[CoaddSource],
    y0: int,
    y1: int,
    width: int,
    n_channels: int,
    rule: CombineRule,
    kernel: Kernel,
    *,
    threads: int = 2,
    cancel: CancelToken | None = None,
    scratch: Scratch | None = None,
) -> CoaddBlock:
    """Co-add all sources on the output rows ``y0 <= y < y1``.

    The result of a row depends neither on the block it is computed in nor on the number of threads, bit by bit.

    Parameters
    ----------
    pixels : PixelSource
    sources : sequence of CoaddSource
        In the order in which samples are summed; those that do not touch the rows are skipped.
    y0, y1 : int
        Rows of the output grid, end exclusive.
    width : int
        Columns of the output grid.
    n_channels : int
        Channels of every source and of the result.
    rule : CombineRule
    kernel : {'bilinear', 'lanczos3'}
    threads : int
        Threads that read, sample and combine.
    cancel : CancelToken, optional
        Asked before every source.
    scratch : Scratch, optional
        Memory of earlier blocks to use again.

    Returns
    -------
    CoaddBlock
        ``h = y1 - y0`` rows, `width` columns. `coverage` counts, where channels differ, the channel with most.

    Raises
    ------
    Cancelled
        When `cancel` is set.
    SettingsError
        When the rule is invalid.
    """
    check_rule(rule)
    scratch = scratch or Scratch()
    parts = [(source, part) for source in sources if (part := _part_of(source, y0, y1, width)) is not None]
    with ThreadPoolExecutor(max(1, threads)) as executor:
        if is_streaming(rule) and len(parts) == 1:
            return _alone(
                pixels, *parts[0], (y0, y1, width, n_channels), kernel, executor, threads, cancel, scratch
            )
        if is_streaming(rule):
            return _stream(
                pixels, parts, (y0, y1, width, n_channels), kernel, executor, threads, cancel, scratch
            )
        sizes = _pool_sizes(parts, n_channels)
        with scratch.floats(sizes[0]) as values, scratch.floats(sizes[1]) as maps:
            pool = _fill_pool(
                pixels, parts, (y0, n_channels), kernel, executor, cancel, values, maps, scratch
            )
            shape = (n_channels, y1 - y0, width)
            _raise_if_cancelled(cancel)
            return combine_pool(pool, rule, shape, executor=executor, pieces=8 * threads)


Box = tuple[int, int, int, int]


def _part_of(source: CoaddSource, y0: int, y1: int, width: int) -> Box | None:
    top, bottom, left, right = source.bbox
    top, bottom, left, right = max(top, y0), min(bottom, y1), max(left, 0), min(right, width)
    if bottom <= top or right <= left or not source.takes_part:
        return None
    return top, bottom, left, right


def _raise_if_cancelled(cancel: CancelToken | None) -> None:
    if cancel is not None and cancel.is_set():
        raise Cancelled()


def _is_weighted(source: CoaddSource) -> bool:
    return source.feather_px > 0 or source.has_weight_map


def _strips(source: CoaddSource, part: Box, halo: int) -> Iterator[tuple[Box, Box | None]]:
    """Cut a part into strips of columns whose source windows waste little; yield both."""
    y0, y1, x0, x1 = part
    window = source_window(source.pixel_map, y0, y1, x0, x1, source.shape_hw, halo)
    if window is None:
        yield part, None
        return
    area = (window[1] - window[0]) * (window[3] - window[2])
    needed = max(y1 - y0, 1) * (x1 - x0)
    # A window's waste shrinks with the strip; halves until the strip is about as wide as the block is high.
    wasteful = area > max(_WASTE * needed, _SMALL_WINDOW_PX)
    count = min((x1 - x0) // _MIN_STRIP, int(area / needed)) if wasteful else 1
    if count <= 1:
        yield part, window
        return
    edges = np.linspace(x0, x1, count + 1).astype(int)
    for left, right in pairwise(edges.tolist()):
        box = (y0, y1, left, right)
        yield box, source_window(source.pixel_map, *box, source.shape_hw, halo)


def _sample_source(
    pixels: PixelSource,
    source: CoaddSource,
    part: Box,
    kernel: Kernel,
    out: np.ndarray,
    out_weight: np.ndarray | None,
    cancel: CancelToken | None,
    scratch: Scratch,
) -> None:
    """Read and sample one source on its part of the block into ``out`` and, if it is weighted, ``out_weight``."""
    for box, window in _strips(source, part, HALO[kernel]):
        _raise_if_cancelled(cancel)
        columns = slice(box[2] - part[2], box[3] - part[2])
        if window is None:
            out[:, :, columns] = np.nan
            if out_weight is not None:
                out_weight[:, columns] = 0
            continue
        with _window(pixels, source, box, window, len(out), HALO[kernel], scratch) as (data, origin):
            whole = (origin[0], origin[0] + data.shape[1], origin[1], origin[1] + data.shape[2])
            weights = pixels.read_weight(source.key, *whole) if source.has_weight_map else None
            sample_window(
                data, origin, source.shape_hw, source.pixel_map, box, kernel, source.photometry,
                radial=source.radial, surface=source.surface, feather_px=source.feather_px,
                feather_start=source.feather_start, weight_window=weights,
                out=out[:, :, columns], out_weight=None if out_weight is None else out_weight[:, columns],
            )  # fmt: skip


@lru_cache
def _kind_lends(kind: type) -> bool:
    # Looking up the methods of a protocol takes as long as reading a small window.
    return issubclass(kind, LendingSource)


def _lends(pixels: PixelSource) -> TypeGuard[LendingSource]:
    return _kind_lends(type(pixels))


@contextmanager
def _window(
    pixels: PixelSource,
    source: CoaddSource,
    box: Box,
    window: Box,
    n_channels: int,
    halo: int,
    scratch: Scratch,
) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
    """Lend pixels of a source that hold a window of a box at least, and the row and column of the first of them."""
    if _lends(pixels):
        columns = source_columns(source.pixel_map, box, window, halo)
        with pixels.lend(scratch, source.key, *window, columns=columns) as lent:
            yield lent
        return
    data = pixels.read(source.key, *window)
    expected = (n_channels, window[1] - window[0], window[3] - window[2])
    if data.shape != expected:
        raise ValueError(f"source {source.key} gave a window of shape {data.shape}, asked for {expected}")
    yield data, (window[0], window[2])


def _areas(parts: list[tuple[CoaddSource, Box]]) -> np.ndarray:
    return np.array([(b[1] - b[0]) * (b[3] - b[2]) for _, b in parts], dtype=np.int64)


def _pool_sizes(parts: list[tuple[CoaddSource, Box]], n_channels: int) -> tuple[int, int]:
    """Samples of all parts and channels, and weights of those that are weighted one by one; one at least of each."""
    areas = _areas(parts)
    weighted = np.array([_is_weighted(source) for source, _ in parts], dtype=bool)
    return max(1, n_channels * int(areas.sum())), max(1, int(areas[weighted].sum()))


def _fill_pool(
    pixels: PixelSource,
    parts: list[tuple[CoaddSource, Box]],
    place: tuple[int, int],
    kernel: Kernel,
    executor: ThreadPoolExecutor,
    cancel: CancelToken | None,
    values: np.ndarray,
    maps: np.ndarray,
    scratch: Scratch,
) -> SamplePool:
    """Sample all parts into one pool, whose samples lie in ``values`` and their weights in ``maps``."""
    y0, n_channels = place
    areas = _areas(parts)
    mapped = np.array([_is_weighted(source) for source, _ in parts], dtype=bool)
    starts = np.concatenate([[0], np.cumsum(areas * n_channels)]).astype(np.int64)
    map_starts = np.concatenate([[0], np.cumsum(np.where(mapped, areas, 0))]).astype(np.int64)

    def work(k: int) -> None:
        source, part = parts[k]
        shape = (n_channels, part[1] - part[0], part[3] - part[2])
        out = values[starts[k] : starts[k + 1]].reshape(shape)
        out_weight = maps[map_starts[k] : map_starts[k + 1]].reshape(shape[1:]) if mapped[k] else None
        _sample_source(pixels, source, part, kernel, out, out_weight, cancel, scratch)

    # The largest first: threads that come to their last parts then wait for small ones.
    list(executor.map(work, np.argsort(-areas, kind="stable").tolist()))
    return SamplePool(
        values=values,
        starts=starts[:-1],
        boxes=np.array([(b[0] - y0, b[1] - y0, b[2], b[3]) for _, b in parts], np.int64).reshape(-1, 4),
        weights=np.array([source.weight for source, _ in parts], np.float32).reshape(-1, n_channels),
        maps=maps,
        map_starts=np.where(mapped, map_starts[:-1], -1),
    )


@njit(cache=True, nogil=True, error_model="numpy")
def _add_to_sums(samples, maps, use_map, weights, sums, counts):
    """Add one source to float64 sums of w, w x, w^2, w^2 x, w^2 x^2 and to the counts."""
    for c in range(samples.shape[0]):
        if not weights[c] > np.float32(0):
            continue
        for y in range(samples.shape[1]):
            row = samples[c, y]
            for x in range(row.size):
                v = np.float64(row[x])  # float() would keep 32 bits here
                if v == v:
                    w = np.float64(weights[c])
                    if use_map:
                        w *= np.float64(maps[y, x])
                    q = w * w
                    sums[0, c, y, x] += w
                    sums[1, c, y, x] += w * v
                    sums[2, c, y, x] += q
                    sums[3, c, y, x] += q * v
                    sums[4, c, y, x] += q * v * v
                    counts[c, y, x] += 1


@njit(cache=True, nogil=True, error_model="numpy")
def _add_bounds(bits, weights, highest, clipped):
    """Keep the highest lower bound of clipped samples, as they hold it, and count them."""
    for c in range(bits.shape[0]):
        if not weights[c] > np.float32(0):
            continue
        for y in range(bits.shape[1]):
            row, most, n = bits[c, y], highest[c, y], clipped[c, y]
            for x in range(row.size):
                held = row[x]
                if (held >= FIRST_BOUND) & (held <= LAST_BOUND):
                    most[x] = max(most[x], held)
                    n[x] += 1


@njit(cache=True, nogil=True, error_model="numpy")
def _finish_sums(sums, counts, highest, clipped, image, weight, variance, coverage):
    bound = np.empty(1, np.float32)
    bound_bits = bound.view(np.int32)
    for c in range(image.shape[0]):
        for y in range(image.shape[1]):
            for x in range(image.shape[2]):
                n, total = int(counts[c, y, x]), sums[0, c, y, x]
                coverage[y, x] = max(coverage[y, x], min(n, MOST_COUNTED) if n > 0 else clipped[c, y, x])
                weight[c, y, x] = np.float32(total)
                image[c, y, x] = np.float32(np.nan)
                if n == 0 and clipped[c, y, x] > 0:
                    bound_bits[0] = (highest[c, y, x] - BOUND_MARK) << BOUND_SHIFT
                    image[c, y, x] = bound[0]
                variance[c, y, x] = np.float32(np.nan)
                if n > 0 and total > 0:
                    mean = sums[1, c, y, x] / total
                    image[c, y, x] = np.float32(mean)
                    if n > 1:
                        q1 = sums[3, c, y, x]
                        spread = sums[4, c, y, x] - mean * (2 * q1 - mean * sums[2, c, y, x])
                        variance[c, y, x] = np.float32(max(spread, 0.0) / (total * total) * n / (n - 1))


def _stream(
    pixels: PixelSource,
    parts: list[tuple[CoaddSource, Box]],
    place: tuple[int, int, int, int],
    kernel: Kernel,
    executor: ThreadPoolExecutor,
    threads: int,
    cancel: CancelToken | None,
    scratch: Scratch,
) -> CoaddBlock:
    """Mean without rejection: sample a few sources at a time and add them up in their order."""
    y0, y1, width, n_channels = place
    shape = (n_channels, y1 - y0, width)
    sums, counts = np.zeros((5, *shape), np.float64), np.zeros(shape, np.uint32)
    highest, clipped = np.full(shape, BOUND_MARK, np.int32), np.zeros(shape, np.uint16)
    no_map = np.zeros((1, 1), np.float32)

    def sample(source: CoaddSource, part: Box) -> tuple[np.ndarray, np.ndarray]:
        out = np.empty((n_channels, part[1] - part[0], part[3] - part[2]), np.float32)
        out_weight = np.empty(out.shape[1:], np.float32) if _is_weighted(source) else None
        _sample_source(pixels, source, part, kernel, out, out_weight, cancel, scratch)
        return out, no_map if out_weight is None else out_weight

    waiting: list[tuple[CoaddSource, Box, Future]] = []

    def add_oldest() -> None:
        source, part, future = waiting.pop(0)
        samples, maps = future.result()
        where = (slice(part[0] - y0, part[1] - y0), slice(part[2], part[3]))
        weights = np.ascontiguousarray(source.weight, np.float32)
        _add_to_sums(samples, maps, _is_weighted(source), weights, sums[:, :, *where], counts[:, *where])
        _add_bounds(samples.view(np.int32), weights, highest[:, *where], clipped[:, *where])

    for source, part in parts:
        waiting.append((source, part, executor.submit(sample, source, part)))
        if len(waiting) > threads + 1:
            add_oldest()
    while waiting:
        add_oldest()
    block = CoaddBlock.blank(shape)
    _finish_sums(sums, counts, highest, clipped, block.image, block.weight, block.variance, block.coverage)
    return block


@njit(cache=True, nogil=True, error_model="numpy")
def _take_samples(samples, bits, maps, use_map, weights, image, weight, coverage):
    """Fill what the sums of a single source come to; clipped samples give their lower bounds."""
    bound = np.empty(1, np.float32)
    bound_bits = bound.view(np.int32)
    for c in range(samples.shape[0]):
        if not weights[c] > np.float32(0):
            continue
        for y in range(samples.shape[1]):
            row, held = samples[c, y], bits[c, y]
            for x in range(row.size):
                v = row[x]
                if v == v:
                    image[c, y, x] = v
                    weight[c, y, x] = weights[c] * maps[y, x] if use_map else weights[c]
                    coverage[y, x] = 1
                elif (held[x] >= FIRST_BOUND) & (held[x] <= LAST_BOUND):
                    bound_bits[0] = (held[x] - BOUND_MARK) << BOUND_SHIFT
                    image[c, y, x] = bound[0]
                    coverage[y, x] = 1


def _alone(
    pixels: PixelSource,
    source: CoaddSource,
    part: Box,
    place: tuple[int, int, int, int],
    kernel: Kernel,
    executor: ThreadPoolExecutor,
    threads: int,
    cancel: CancelToken | None,
    scratch: Scratch,
) -> CoaddBlock:
    """Mean where one source is all there is, as in a mosaic of one tile: its samples, without sums of ten numbers."""
    y0, y1, width, n_channels = place
    block = CoaddBlock.blank((n_channels, y1 - y0, width))
    weights = np.ascontiguousarray(source.weight, np.float32)
    weighted = _is_weighted(source)
    no_map = np.zeros((1, 1), np.float32)
    edges = np.linspace(part[0], part[1], min(threads, part[1] - part[0]) + 1).astype(int).tolist()

    def work(rows: tuple[int, int]) -> None:
        box = (*rows, part[2], part[3])
        where = (slice(box[0] - y0, box[1] - y0), slice(box[2], box[3]))
        with scratch.floats(n_channels, box[1] - box[0], box[3] - box[2]) as samples:
            maps = np.empty(samples.shape[1:], np.float32) if weighted else None
            _sample_source(pixels, source, box, kernel, samples, maps, cancel, scratch)
            _take_samples(
                samples, samples.view(np.int32), no_map if maps is None else maps, weighted, weights,
                block.image[:, *where], block.weight[:, *where], block.coverage[where],
            )  # fmt: skip

    list(executor.map(work, pairwise(edges)))
    return block
