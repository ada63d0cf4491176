"""Frames measured with the graphics card: an operation of the policy whose rows are frames.

Threads of this process read and decode frames while the card sweeps over those before; they measure the listed places,
too. No process is started. What the card cannot do, the processes of the run do as ever.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from zemosaic_core.errors import SkipItem
from zemosaic_core.gpu.device import Device, GpuFault
from zemosaic_core.gpu.measure import FRAMES_PER_CHUNK, CardSweeps, GpuSweeps, RawFrame
from zemosaic_core.gpu.terms import Audit, Parity
from zemosaic_core.gpu.windows import Ring
from zemosaic_io.headers import FrameInfo
from zemosaic_pipeline.context import RunContext
from zemosaic_pipeline.frame_boundary import result_or_skip
from zemosaic_pipeline.measure import (
    BegunLook,
    Look,
    MeasureOptions,
    begin_look,
    end_look,
    known_content,
    measure_frame,
    store_look,
)
from zemosaic_pipeline.records import FrameMeasure

__all__ = ["OP", "MeasureTask", "compare_looks", "frames_for_card", "measure_frames"]

OP = "measure"
MeasureTask = tuple[FrameInfo, MeasureOptions, str, str]
Result = FrameMeasure | SkipItem
Found = Look | FrameMeasure | SkipItem
# Frames of a chunk, and of the one read ahead, lie in memory with their decoded and their mended pixels.
_HOST_BYTES = 384 << 20
_HOST_BYTES_PER_PIXEL = 16
# Stars of card and processor are the same within this; in Parity 1e-4 is what is allowed.
_PLACE_PX = 1e-3
_ALLOWED = 1e-4
_COUNTED = ("hot", "hot_sigma", "ceiling", "zero_share", "saturated")

log = logging.getLogger(__name__)


def frames_for_card(tasks: Sequence[MeasureTask]) -> list[int]:
    """Return which frames a card can sweep over together: of one plane and the most common size, not compressed.

    Decoders of compressed frames are code of others in C, which is better kept in a process of its own.
    """
    kinds = [
        (info.shape_hw, info.kind) if info.kind in ("cfa", "mono") and info.data_offset >= 0 else None
        for info, *_ in tasks
    ]
    common = Counter(kind for kind in kinds if kind is not None).most_common(1)
    return [k for k, kind in enumerate(kinds) if common and kind == common[0][0]]


def measure_frames(
    tasks: Sequence[MeasureTask], context: RunContext, told: Callable[[int, Result], object]
) -> list[Result]:
    """Measure frames of one size and kind, on the card where the policy decides so.

    Parameters
    ----------
    tasks : sequence of MeasureTask
        As `measure.measure_frame` takes them.
    context : RunContext
    told : callable
        ``told(position, result)``, once per frame, when it is measured.

    Returns
    -------
    list of FrameMeasure or SkipItem
    """
    work = _Work(tasks, context, told)
    try:
        n_pixels = int(np.prod(tasks[0][0].shape_hw))
        rows = max(1, min(FRAMES_PER_CHUNK, _HOST_BYTES // (_HOST_BYTES_PER_PIXEL * n_pixels)))
        threads = max(context.workers, context.threads)
        workload = replace(work.sweeps.workload(OP, len(tasks), threads), host_rows=rows)
        context.policy.run(
            workload, work, work.on_processor, emit=work.keep, cancel=context.cancel,
            audit=Audit(1, compare_looks), staging=work, restart=work.forget,
        )  # fmt: skip
        work.tell_rest()
    finally:
        work.close()
    if work.swept_here:
        log.info("%d frames have more defects than the card lists; the processor swept them", work.swept_here)
    return [work.results[position] for position in range(len(tasks))]


class _Work:
    """Both bodies of the operation, and what has come of each frame."""

    def __init__(
        self, tasks: Sequence[MeasureTask], context: RunContext, told: Callable[[int, Result], object]
    ) -> None:
        info, options, *_ = tasks[0]
        self._tasks, self._context, self._told = tasks, context, told
        self._known: set[int] = set()
        self._made_here: set[int] = set()
        self.results: dict[int, Result] = {}
        self.swept_here = 0
        self.unpinned: GpuFault | None = None
        self.sweeps = GpuSweeps(
            info.shape_hw,
            info.kind == "cfa",
            detect_sigma=options.detect_sigma,
            cell_px=options.mesh_cell_px,
        )
        self._ring: Ring | None = None
        self._pool = ThreadPoolExecutor(context.threads, thread_name_prefix="measure")
        self._begun: dict[int, Future[Any]] = {}

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _begin(self, position: int) -> Future[Any]:
        if position not in self._begun:
            info, options, path, calibration = self._tasks[position]
            self._begun[position] = self._pool.submit(
                result_or_skip,
                info.path,
                self._context.reads,
                info.path,
                info.size_bytes,
                _begin,
                info,
                options,
                calibration,
                path,
            )
        return self._begun[position]

    def __call__(self, device: Device, y0: int, y1: int, next_rows: tuple[int, int] | None) -> list[Found]:
        """Measure the frames ``y0 <= k < y1`` with the card."""
        if self._ring is None or self._ring.device is not device:
            self._ring = Ring(device, 2)
        waiting = [self._begin(position) for position in range(y0, y1)]
        for position in range(*next_rows) if next_rows else ():
            self._begin(position)
        begun = [one.result() for one in waiting]
        swept = [k for k, one in enumerate(begun) if self._is_for_card(one)]
        found: dict[int, CardSweeps | None] = {}
        if swept:
            frames = [RawFrame(begun[k].raw.counts.plane, begun[k].raw.noise_factor) for k in swept]
            sweeps = self.sweeps(device, frames, self._ring, each=self._pool.map)
            found = dict(zip(swept, sweeps, strict=True))
            self.swept_here += sum(one is None for one in sweeps)
        self.unpinned = self.unpinned or self._ring.unpinned
        ended: list[Found] = list(
            self._pool.map(lambda k: self._end(y0 + k, begun[k], found.get(k)), range(len(begun)))
        )
        for position in range(y0, y1):
            del self._begun[position]
        return ended

    def _is_for_card(self, begun: Look | BegunLook | SkipItem) -> bool:
        # Of frames with missing pixels the processor fills the gaps between its sweeps.
        return isinstance(begun, BegunLook) and begun.raw.counts.missing is None

    def _end(
        self, position: int, begun: Look | BegunLook | SkipItem, found: CardSweeps | None
    ) -> Look | SkipItem:
        if not isinstance(begun, BegunLook):
            return begun
        info, options, *_ = self._tasks[position]
        return result_or_skip(info.path, _end, info, options, begun, found)

    def on_processor(self, y0: int, y1: int) -> list[Found]:
        """Measure the frames ``y0 <= k < y1`` in the processes of the run."""
        results: dict[int, Result] = {}
        for k, result in self._context.map(
            measure_frame,
            self._tasks[y0:y1],
            name_of=lambda task: str(task[0].path),
            size_of=lambda task: task[0].size_bytes,
        ):
            position = y0 + k
            if isinstance(result, FrameMeasure):
                # A frame that was compared before is found stored by this run, not by an earlier one.
                result = replace(result, was_stored=result.was_stored and position not in self._made_here)
                self._made_here |= set() if result.was_stored else {position}
            results[position] = result
            self._tell(position, result)
        return [results[position] for position in range(y0, y1)]

    def keep(self, y0: int, y1: int, found: Sequence[Found]) -> None:
        """Store what is new of the frames ``y0 <= k < y1``."""
        for position, one in zip(range(y0, y1), found, strict=True):
            info, _, path, _ = self._tasks[position]
            result = result_or_skip(info.path, store_look, info, path, one) if isinstance(one, Look) else one
            self.results[position] = result
            # What a card says against a frame counts when the card has been found to compute rightly.
            if isinstance(result, FrameMeasure):
                self._tell(position, result)

    def tell_rest(self) -> None:
        """Tell of the frames nobody was told of."""
        for position, result in sorted(self.results.items()):
            self._tell(position, result)

    def _tell(self, position: int, result: Result) -> None:
        if position not in self._known:
            self._known.add(position)
            self._told(position, result)

    def forget(self) -> None:
        """Remove what a card that computes wrongly has measured: it would be taken for the truth."""
        for result in self.results.values():
            if isinstance(result, FrameMeasure) and not result.was_stored:
                Path(result.arrays_path).unlink(missing_ok=True)
        self.results.clear()


def _begin(info: FrameInfo, options: MeasureOptions, calibration: str, path: str) -> Look | BegunLook:
    return begin_look(info, options, calibration, known_content(path))


def _end(info: FrameInfo, options: MeasureOptions, begun: BegunLook, found: CardSweeps | None) -> Look:
    sweeps = None if found is None else found.with_pixels(begun.raw.counts.plane)
    return end_look(info, options, begun, sweeps)


def compare_looks(card: Sequence[Found], processor: Sequence[Found], first: int) -> Parity:
    """Compare frames that were measured with the card with the same frames of the processor.

    Levels in units of the noise of their channel, places of stars in units of ten pixels: 1e-4 is allowed of both. What
    is counted must be the same.
    """
    worst, compared, differing = 0.0, 0, 0
    for one, other in zip(card[first : first + len(processor)], processor, strict=True):
        compared += 1
        if not (isinstance(one, Look) and isinstance(other, FrameMeasure)):
            differing += getattr(one, "key", "") != getattr(other, "key", "")
        elif one.arrays is not None:
            difference, same = _difference(one.arrays, other.arrays())
            worst, differing = max(worst, difference), differing + (not same)
    # Of the few frames that are compared not one may differ.
    return Parity(worst, compared, 10_000 * differing)


def _difference(card: dict[str, np.ndarray], processor: dict[str, np.ndarray]) -> tuple[float, bool]:
    noise = np.asarray(processor["noise"], np.float64)
    worst = max(
        _largest((card[name] - processor[name]) / noise.reshape(-1, *[1] * (card[name].ndim - 1)))
        for name in ("sky", "noise", "mesh", "mesh_noise")
    )
    same = all(np.array_equal(card[name], processor[name]) for name in _COUNTED)
    same &= all(np.array_equal(np.isnan(card[n]), np.isnan(processor[n])) for n in ("mesh", "mesh_noise"))
    if card["x"].shape != processor["x"].shape:
        return worst, False
    places = max(_largest(card[name] - processor[name]) for name in ("x", "y"))
    return max(worst, places * _ALLOWED / _PLACE_PX), same


def _largest(values: np.ndarray) -> float:
    finite = np.abs(values[np.isfinite(values)])
    return float(finite.max()) if finite.size else 0.0
