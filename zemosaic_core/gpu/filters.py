"""Filters of single images on the card: local outliers, blur, stretch, percentiles.

Each class is one operation: it declares its memory, does rows on the card when called, and `on_cpu` does the
same rows with the CPU's own function, which it runs once for the whole image when it is first asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from zemosaic_core import background, hot_pixels
from zemosaic_core.axes import to_chw, to_hwc
from zemosaic_core.chunks import Buffer, Workload
from zemosaic_core.gpu import kernels
from zemosaic_core.gpu.device import Device
from zemosaic_core.gpu.launch import Queue, drained

__all__ = ["GpuBlur", "GpuCounts", "GpuOutliers", "GpuStretch", "percentiles_from_counts"]

# Pixels per second of the CPU functions on one core; only orders of magnitude.
_CPU_OUTLIERS_PER_SECOND = 3e6
_CPU_BLUR_TAPS_PER_SECOND = 4e8
_CPU_STRETCH_PER_SECOND = 3e7
_CPU_COUNT_PER_SECOND = 5e7
_COUNTS = 1 << 16


class _ImageFilter:
    """What the filters share: planes, a halo of rows, and rows of the result of the CPU."""

    op = ""
    halo = 0

    def __init__(self, image: np.ndarray) -> None:
        self.image = np.asarray(image)
        self.planes = to_chw(image)

    def _rows(self, y0: int, y1: int) -> tuple[int, int]:
        """Rows to load for a chunk. A mirrored border needs no more than the rows inside it."""
        height = self.planes.shape[1]
        reach = self.halo + 1
        return max(0, min(y0 - reach, height - reach - 1)), min(height, max(y1 + reach, reach + 1))

    def _workload(self, per_row: dict[str, int], fixed: dict[str, int], cpu_seconds: float) -> Workload:
        channels, height, width = self.planes.shape
        # The halo belongs to the input alone, so it is part of its bytes and not of the chunk.
        halo_bytes = 4 * width * 2 * (self.halo + 1)
        buffers = [Buffer("image", halo_bytes, per_row=4 * width, limit=4 * width * height)]
        buffers += [Buffer(name, fixed=n) for name, n in fixed.items()]
        buffers += [Buffer(name, per_row=n) for name, n in per_row.items()]
        return Workload(
            self.op,
            height,
            tuple(buffers),
            elements_per_row=width,
            upload_bytes=self.planes.nbytes,
            download_bytes=self.planes.nbytes,
            cpu_seconds=cpu_seconds,
            detail={"channels": channels, "width": width},
        )

    def join(self, pieces: Sequence[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
        """Put the rows of all pieces together, each result with the axes of the image: (h, w, C) or (h, w)."""
        flat = self.image.ndim == 2
        joined = (np.concatenate(parts, axis=1) for parts in zip(*pieces, strict=True))
        return tuple(to_hwc(planes, flat=flat) for planes in joined)

    def _each_plane(
        self, device: Device, y0: int, y1: int, work: Callable[[Queue, int, Any, int], tuple[np.ndarray, ...]]
    ) -> tuple[np.ndarray, ...]:
        """Run ``work(queue, channel, rows_on_card, first_row)`` per plane and stack what it returns."""
        first, last = self._rows(y0, y1)
        results = []
        for channel, plane in enumerate(self.planes):
            queue = Queue(device)
            with drained(device):
                loaded = queue.upload(plane[first:last])
                results.append(work(queue, channel, loaded, first))
                del loaded
        return tuple(np.stack(parts) for parts in zip(*results, strict=True))


class GpuOutliers(_ImageFilter):
    """Replace pixels that stick out of their neighbourhood; the twin of `hot_pixels.detect_and_correct`."""

    op = "hot_pixels"

    def __init__(self, image: np.ndarray, threshold: float, neighborhood_size: int) -> None:
        super().__init__(image)
        self._side = int(neighborhood_size) | 1
        self._threshold = float(threshold)
        self.halo = self._side // 2
        self._fill = [
            float(np.median(plane[np.isfinite(plane)])) if np.isfinite(plane).any() else 0.0
            for plane in self.planes
        ]

    def workload(self) -> Workload:
        """Declare the memory of the whole image."""
        width = self.planes.shape[2]
        seconds = self.planes.size / _CPU_OUTLIERS_PER_SECOND
        return self._workload({"corrected": 4 * width, "mask": width}, {}, seconds)

    def __call__(
        self, device: Device, y0: int, y1: int, next_rows: Any = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return corrected rows (C, h, w) float32 and their mask, bool."""
        height, width = self.planes.shape[1:]

        def work(queue: Queue, channel: int, loaded: Any, first: int) -> tuple[np.ndarray, ...]:
            corrected = device.empty((y1 - y0, width), np.float32)
            mask = device.empty((y1 - y0, width), np.uint8)
            args = (
                loaded, first, loaded.shape[0], height, width, y0, y1 - y0, np.float64(self._threshold),
                np.float64(hot_pixels._MIN_FLOOR), np.float32(self._fill[channel]), corrected, mask,
            )  # fmt: skip
            options = (f"-DSIDE={self._side}",)
            queue.launch_2d(
                kernels.source("filters"), "replace_outliers", width, y1 - y0, args, options=options
            )
            return tuple(queue.download(corrected, mask))

        corrected, mask = self._each_plane(device, y0, y1, work)
        return corrected, mask.astype(bool)

    def join(self, pieces: Sequence[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, np.ndarray]:
        """Return the corrected image with the dtype it came with, and the mask of what was replaced."""
        corrected, mask = super().join(pieces)
        return np.where(mask, corrected, self.image).astype(self.image.dtype), mask

    @cached_property
    def _by_cpu(self) -> tuple[np.ndarray, np.ndarray]:
        corrected, mask = hot_pixels.detect_and_correct(
            np.asarray(self.image, np.float32), self._threshold, self._side
        )
        return to_chw(corrected), mask[None] if mask.ndim == 2 else np.moveaxis(mask, -1, 0)

    def on_cpu(self, y0: int, y1: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the same rows from the CPU."""
        corrected, mask = self._by_cpu
        return corrected[:, y0:y1], mask[:, y0:y1]


class GpuBlur(_ImageFilter):
    """Gaussian blur that leaves missing pixels out; the twin of `estimate_background_map`, method gaussian."""

    op = "background"

    def __init__(self, image: np.ndarray, sigma: float) -> None:
        if not sigma > 0:
            raise ValueError(f"sigma must be positive, got {sigma}")
        super().__init__(image)
        self._sigma = float(sigma)
        self.halo = int(3.0 * self._sigma + 0.5)
        taps = np.exp(-0.5 * (np.arange(self.halo + 1) / self._sigma) ** 2)
        self._taps = taps / (taps[0] + 2 * taps[1:].sum())

    def workload(self) -> Workload:
        """Declare the memory of the whole image."""
        width = self.planes.shape[2]
        rows = dict.fromkeys(("light", "seen", "out"), 4 * width)
        seconds = self.planes.size * 4 * self.halo / _CPU_BLUR_TAPS_PER_SECOND
        return self._workload(rows, {"taps": self._taps.nbytes}, seconds)

    def __call__(self, device: Device, y0: int, y1: int, next_rows: Any = None) -> tuple[np.ndarray]:
        """Return blurred rows (C, h, w) float32."""
        height, width = self.planes.shape[1:]
        rows = y1 - y0
        source = kernels.source("filters")

        def work(queue: Queue, channel: int, loaded: Any, first: int) -> tuple[np.ndarray, ...]:
            light, seen, out = (device.empty((rows, width), np.float32) for _ in range(3))
            taps = queue.upload(self._taps)
            vertical = (loaded, first, height, width, y0, rows, taps, self.halo, light, seen)
            queue.launch_2d(source, "blur_vertical", width, rows, vertical)
            valid = int(np.isfinite(self.planes[channel]).all())
            queue.launch_2d(
                source,
                "blur_horizontal",
                width,
                rows,
                (light, seen, width, rows, taps, self.halo, valid, out),
            )
            return tuple(queue.download(out))

        (blurred,) = self._each_plane(device, y0, y1, work)
        return (blurred,)

    @cached_property
    def _by_cpu(self) -> np.ndarray:
        return to_chw(background.estimate_background_map(self.image, method="gaussian", sigma=self._sigma))

    def on_cpu(self, y0: int, y1: int) -> tuple[np.ndarray]:
        """Return the same rows from the CPU."""
        return (self._by_cpu[:, y0:y1],)


class GpuStretch(_ImageFilter):
    """The curve of `stretch_auto_asifits_like` between given limits, before white balance.

    Parameters
    ----------
    image : ndarray, shape (h, w) or (h, w, C)
    limits : sequence of (low, high)
        Black and white per channel; a channel whose limits agree is flat and becomes 0.
    asinh_a : float
    """

    op = "stretch"

    def __init__(self, image: np.ndarray, limits: list[tuple[float, float]], asinh_a: float) -> None:
        super().__init__(image)
        self._limits = limits
        self._softness = asinh_a

    def workload(self) -> Workload:
        """Declare the memory of the whole image."""
        width = self.planes.shape[2]
        return self._workload({"out": 4 * width}, {}, self.planes.size / _CPU_STRETCH_PER_SECOND)

    def _numbers(self, channel: int) -> tuple[np.float32, np.float32, np.float32, np.float32, bool]:
        low, high = self._limits[channel]
        flat = not high - low > 1e-6 * max(abs(low), abs(high))
        span = np.float32(1.0 if flat else high - low)
        top = np.float32(np.arcsinh(1.0 / self._softness))
        return np.float32(low), span, np.float32(self._softness), top, flat

    def __call__(self, device: Device, y0: int, y1: int, next_rows: Any = None) -> tuple[np.ndarray]:
        """Return stretched rows (C, h, w) float32."""

        def work(queue: Queue, channel: int, loaded: Any, first: int) -> tuple[np.ndarray, ...]:
            out = device.empty(loaded.shape, np.float32)
            n = int(np.prod(loaded.shape))
            *numbers, flat = self._numbers(channel)
            queue.launch_1d(
                kernels.source("filters"), "stretch_plane", n, (loaded, np.int64(n), *numbers, int(flat), out)
            )
            return tuple(queue.download(out))

        (rows,) = self._each_plane(device, y0, y1, work)
        return (rows,)

    def _rows(self, y0: int, y1: int) -> tuple[int, int]:
        return y0, y1

    def on_cpu(self, y0: int, y1: int) -> tuple[np.ndarray]:
        """Return the same rows from the CPU."""
        out = np.empty((len(self.planes), y1 - y0, self.planes.shape[2]), np.float32)
        for channel, plane in enumerate(self.planes[:, y0:y1]):
            low, span, softness, top, flat = self._numbers(channel)
            if flat:
                out[channel] = np.where(np.isfinite(plane), np.float32(0), np.float32(np.nan))
            else:
                out[channel] = np.arcsinh(np.clip((plane - low) / span, 0.0, 1.0) / softness) / top
        return (out,)


class GpuCounts:
    """Counts of the finite values by one half of their ordered bits: two passes give any percentile exactly.

    Parameters
    ----------
    values : ndarray, float32
    prefix : int or None
        None: by the upper half. Else by the lower half, among the values with this upper half.
    """

    op = "percentiles"

    def __init__(self, values: np.ndarray, prefix: int | None = None) -> None:
        self._values = np.ascontiguousarray(values, np.float32).reshape(-1)
        self._prefix = prefix
        self._row = 1 << 16

    def workload(self) -> Workload:
        """Declare the memory of all values, in rows of 65536."""
        n = self._values.size
        buffers = (
            Buffer("values", per_row=4 * self._row, limit=max(4, 4 * n)),
            Buffer("counts", fixed=4 * _COUNTS),
        )
        rows = -(-n // self._row)
        seconds = n / _CPU_COUNT_PER_SECOND
        return Workload(
            self.op, rows, buffers, upload_bytes=4 * n, elements_per_row=self._row, cpu_seconds=seconds
        )

    def __call__(self, device: Device, y0: int, y1: int, next_rows: Any = None) -> np.ndarray:
        """Return counts, shape (65536,) int64, of the values of some rows."""
        part = self._values[y0 * self._row : y1 * self._row]
        queue = Queue(device)
        with drained(device):
            values = queue.upload(part)
            counts = device.empty((_COUNTS,), np.uint32)
            queue.fill(counts, 0)
            level, prefix = (0, 0) if self._prefix is None else (1, self._prefix)
            args = (values, np.int64(part.size), level, prefix, counts)
            # A few values per thread: the counters are what the threads wait for.
            grid = (max(1, min(4096, -(-part.size // 1024))),)
            queue.launch(kernels.source("filters"), "count_halves", grid, (256,), args)
            return queue.download(counts)[0].astype(np.int64)

    def join(self, pieces: Sequence[np.ndarray]) -> np.ndarray:
        """Return the counts of all values."""
        return sum(pieces, np.zeros(_COUNTS, np.int64))

    def on_cpu(self, y0: int, y1: int) -> np.ndarray:
        """Return the same counts from the CPU."""
        part = self._values[y0 * self._row : y1 * self._row]
        bits = part[np.isfinite(part)].view(np.uint32)
        bits = np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000))
        if self._prefix is None:
            return np.bincount(bits >> 16, minlength=_COUNTS)
        return np.bincount(bits[(bits >> 16) == self._prefix] & 0xFFFF, minlength=_COUNTS)


def percentiles_from_counts(count: Callable[[int | None], np.ndarray], percents: np.ndarray) -> np.ndarray:
    """Return exact percentiles (linear between ranks, as `numpy.percentile`) from counts of ordered bits.

    Parameters
    ----------
    count : callable
        ``count(None)`` counts by the upper half, ``count(prefix)`` by the lower half; see `GpuCounts`.
    percents : ndarray, float64
        0 to 100.

    Returns
    -------
    ndarray, float64
        NaN when nothing was counted.
    """
    upper = np.cumsum(count(None))
    n = int(upper[-1])
    if n == 0:
        return np.full(percents.shape, np.nan)
    lower: dict[int, np.ndarray] = {}

    def value_at(rank: int) -> float:
        prefix = int(np.searchsorted(upper, rank, side="right"))
        if prefix not in lower:
            lower[prefix] = np.cumsum(count(prefix))
        before = int(upper[prefix - 1]) if prefix else 0
        suffix = int(np.searchsorted(lower[prefix], rank - before, side="right"))
        bits = np.uint32(prefix << 16 | suffix)
        bits = bits & np.uint32(0x7FFFFFFF) if bits >> 31 else ~bits
        return float(bits.view(np.float32))

    results = []
    for percent in np.ravel(percents):
        position = (n - 1) * float(percent) / 100.0
        rank = min(int(position), n - 1)
        below, above = value_at(rank), value_at(min(rank + 1, n - 1))
        results.append(below + (above - below) * (position - rank))
    return np.array(results).reshape(percents.shape)
