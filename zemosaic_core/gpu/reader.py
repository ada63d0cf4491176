"""Read the sources of a block ahead of the card: while it works on one, the next ones are read and made ready."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace

import numpy as np

from zemosaic_core.cfa import DEBAYER_REACH
from zemosaic_core.pixel_map import source_window
from zemosaic_core.resample import HALO
from zemosaic_core.sources import CoaddSource, Kernel, PixelSource, RawRows

__all__ = ["MAX_SPANS", "Part", "ReadAhead", "Window", "parts_of_block"]

Box = tuple[int, int, int, int]
# Repairing a pixel needs neighbours at up to four rows, debayering as many more rows of repaired ones as it reaches.
RAW_MARGIN = 4 + DEBAYER_REACH
# Spans of missing pixels of one window that fit the card's list; a frame with more is decoded by its source.
MAX_SPANS = 1 << 14


@dataclass(frozen=True)
class Part:
    """A source on its part of a block: output box ``(y0, y1, x0, x1)`` and source window; None: nothing there."""

    source: CoaddSource
    box: Box
    window: Box | None


@dataclass(frozen=True)
class Window:
    """What was read of a source: raw rows, or decoded planes, and the weights if it has any.

    ``origin`` and ``shape_hw`` place the pixels that were read in the source image. ``turn`` counts the windows of
    the operation.
    """

    raw: RawRows | None
    planes: np.ndarray | None
    weights: np.ndarray | None
    origin: tuple[int, int]
    shape_hw: tuple[int, int]
    turn: int = 0


def parts_of_block(
    sources: Sequence[CoaddSource], y0: int, y1: int, width: int, kernel: Kernel
) -> list[Part]:
    """Return the parts of the sources that touch the rows, in the order of the sources."""
    parts = []
    for source in sources:
        top, bottom, left, right = source.bbox
        box = (max(top, y0), min(bottom, y1), max(left, 0), min(right, width))
        if box[1] <= box[0] or box[3] <= box[2] or not np.any(np.asarray(source.weight) > 0):
            continue
        window = source_window(source.pixel_map, *box, source.shape_hw, HALO[kernel])
        parts.append(Part(source, box, window))
    return parts


def read_part(pixels: PixelSource, part: Part, raw: bool, max_hot: int) -> Window | None:
    """Read the window of a part, undecoded if ``raw``; None when the part sees nothing of its source."""
    if part.window is None:
        return None
    source = part.source
    y0, y1, x0, x1 = part.window
    if raw:
        y0, y1 = max(0, y0 - RAW_MARGIN), min(source.shape_hw[0], y1 + RAW_MARGIN)
        rows = pixels.read_raw(source.key, y0, y1)
        if rows is not None and rows.hot_pixels.size <= max_hot and len(rows.masked) <= MAX_SPANS:
            width = source.shape_hw[1]
            weights = pixels.read_weight(source.key, y0, y1, 0, width) if source.has_weight_map else None
            return Window(rows, None, weights, (y0, 0), (y1 - y0, width))
        y0, y1 = part.window[:2]
    planes = np.ascontiguousarray(pixels.read(source.key, y0, y1, x0, x1), np.float32)
    weights = pixels.read_weight(source.key, y0, y1, x0, x1) if source.has_weight_map else None
    return Window(None, planes, weights, (y0, x0), (y1 - y0, x1 - x0))


class ReadAhead:
    """Reads parts in order, a few ahead of the one that is taken.

    Parameters
    ----------
    pixels : PixelSource
    raw : bool
        Whether the sources offer raw rows.
    max_hot : int
        Frames with more bad pixels than this in the window are decoded by their source.
    threads : int
        Reading threads; that many windows and one more are kept ready.
    stage : callable
        Called with every window in the thread that has read it; what it returns is handed out.
    """

    def __init__(
        self,
        pixels: PixelSource,
        *,
        raw: bool,
        max_hot: int,
        threads: int,
        stage: Callable[[Window], Window] = lambda window: window,
    ) -> None:
        self._pixels = pixels
        self._stage = stage
        self._turn = 0
        self._raw = raw
        self._max_hot = max_hot
        self._depth = threads + 1
        self._executor = ThreadPoolExecutor(max(1, threads), thread_name_prefix="read-ahead")
        self._ready: deque[tuple[tuple[int, Box], Future[Window | None]]] = deque()

    def take(self, parts: Sequence[Part], index: int, following: Sequence[Part]) -> Window | None:
        """Return the window of ``parts[index]`` and start reading what comes after it.

        ``following`` are the parts of the next block; they are read while the last ones of this block are
        worked on.
        """
        wanted = [*parts[index : index + self._depth + 1]]
        wanted += following[: self._depth + 1 - len(wanted)]
        marks = [(part.source.key, part.box) for part in wanted]
        # What was read for a plan that has changed (smaller chunks) is dropped, and not before it is finished: the
        # next windows are staged in its place.
        dropped = []
        while self._ready and self._ready[0][0] != marks[0]:
            dropped.append(self._ready.popleft()[1])
        wait([future for future in dropped if not future.cancel()])
        for part, mark in zip(wanted[len(self._ready) :], marks[len(self._ready) :], strict=True):
            self._ready.append((mark, self._executor.submit(self._read, part, self._turn)))
            self._turn += 1
        return self._ready.popleft()[1].result()

    def _read(self, part: Part, turn: int) -> Window | None:
        window = read_part(self._pixels, part, self._raw, self._max_hot)
        return None if window is None else self._stage(replace(window, turn=turn))

    def close(self) -> None:
        """Drop what was read and end the threads."""
        self._ready.clear()
        self._executor.shutdown(wait=True, cancel_futures=True)
