"""What the graphics card does: parity with the CPU, plan against peak, kernels against a copy, frames per second.

``python -m benchmarks.gpu [--quick]`` prints one table. Without a usable card it says why and ends. Kernel
rates count the bytes that must move at least once; the copy they are compared with is measured in the same run.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from zemosaic_core.cfa import debayer
from zemosaic_core.coadd import coadd_block
from zemosaic_core.gpu import kernels
from zemosaic_core.gpu.coadd import GpuCoadd
from zemosaic_core.gpu.combine import SampleTables, geometry, launches, near_lists, storage_for
from zemosaic_core.gpu.device import Device
from zemosaic_core.gpu.filters import GpuBlur, GpuOutliers
from zemosaic_core.gpu.launch import Queue
from zemosaic_core.gpu.parity import compare_blocks
from zemosaic_core.pixel_map import build_pixel_map
from zemosaic_core.rejection import REJECTION_CODES
from zemosaic_core.resample import LANCZOS_TABLE
from zemosaic_core.sources import CoaddSource, CombineRule, RawRows
from zemosaic_gpu_policy import GpuPolicy
from zemosaic_utils import coadd_on_grid

FRAME_HW = (1920, 1080)
SMALL_HW = (300, 260)
# Samples of the timed rejections: enough to fill any card, few enough for a small one.
MOST_PIXELS = 1 << 20
MOST_POOL_BYTES = 2 << 30
RULES = {
    "mean": CombineRule("none"),
    "kappa": CombineRule("kappa_sigma"),
    "winsorized": CombineRule(),
    "linear fit": CombineRule("linear_fit_clip"),
}


class RawFrames:
    """Raw frames in memory as a FITS file has them, so that no disk is measured."""

    def __init__(self, n: int, shape_hw: tuple[int, int], seed: int = 1) -> None:
        rng = np.random.default_rng(seed)
        self.shape_hw = shape_hw
        base = rng.normal(1500, 95, shape_hw).astype(np.float32)
        self.frames = []
        for _ in range(n):
            frame = np.roll(base, rng.integers(0, 1000)) + rng.normal(0, 30, shape_hw).astype(np.float32)
            hits = rng.integers(0, frame.size, frame.size // 2000)
            frame.ravel()[hits] += 5000
            self.frames.append((np.clip(frame, 0, 65535).astype(np.uint16) ^ 0x8000).byteswap())
        self.hot = np.unique(rng.integers(0, base.size, 500))

    def read_raw(self, key: int, y0: int, y1: int) -> RawRows:
        width = self.shape_hw[1]
        hot = self.hot[(self.hot >= y0 * width) & (self.hot < y1 * width)]
        return RawRows(self.frames[key][y0:y1], y0, True, "GRBG", hot)

    def read(self, key: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        from zemosaic_core.hot_pixels import repair_cfa

        height, width = self.shape_hw
        top, bottom = max(0, y0 - 6), min(height, y1 + 6)
        sensor = repair_cfa(self.frames[key][top:bottom].byteswap() ^ 0x8000, self.hot, top)
        left, right = max(0, x0 - 2), min(width, x1 + 2)
        colour = debayer(np.ascontiguousarray(sensor[:, left:right]), "GRBG", top, left)
        return np.ascontiguousarray(colour[:, y0 - top : y1 - top, x0 - left : x1 - left])

    def read_weight(self, key: int, y0: int, y1: int, x0: int, x1: int) -> None:
        return None


def place(n: int, shape_hw: tuple[int, int], turn: float) -> tuple[list[CoaddSource], tuple[int, int]]:
    """Turn and shift the frames a little, as a night on an alt-azimuth mount does."""
    rng = np.random.default_rng(2)
    height, width = shape_hw
    out_hw = (height + 120, width + 120)
    sources = []
    for key in range(n):
        angle = turn * (key / max(1, n - 1) - 0.5)
        cos, sin = np.cos(angle), np.sin(angle)
        dx, dy = rng.uniform(40, 80, 2)

        def to_source(x, y, cos=cos, sin=sin, dx=dx, dy=dy):
            u, v = x - dx - width / 2, y - dy - height / 2
            return cos * u + sin * v + width / 2, -sin * u + cos * v + height / 2

        box = (0, out_hw[0], 0, out_hw[1])
        photometry = np.tile(np.array([1.0, 0.0, 1.0, -1.0], np.float32), (3, 1))
        weight = np.full(3, rng.uniform(0.5, 1), np.float32)
        sources.append(CoaddSource(key, shape_hw, build_pixel_map(to_source, box), box, photometry, weight))
    return sources, out_hw


@dataclass
class Row:
    """One line of the table."""

    what: str
    result: str
    good: str = ""


def best_seconds(work: Callable[[], object], finish: Callable[[], object], repeats: int = 5) -> float:
    work()
    finish()
    best = np.inf
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        finish()
        best = min(best, time.perf_counter() - start)
    return best


def copy_rate(device: Device, n_bytes: int) -> float:
    """Bytes read and written per second by a plain copy on the card."""
    queue = Queue(device)
    n = n_bytes // 4
    source, target = device.empty((n,), np.float32), device.empty((n,), np.float32)
    queue.fill(source, 0)
    text = kernels.source("smoke")
    seconds = best_seconds(
        lambda: queue.launch(text, "copy_floats", (4096,), (256,), (source, target, np.int64(n))),
        queue.finish,
        10,
    )
    return 2 * n_bytes / seconds


def rate_row(name: str, n_bytes: float, seconds: float, copy: float) -> Row:
    rate = n_bytes / seconds
    return Row(
        name, f"{seconds * 1e3:8.3f} ms {rate / 1e9:8.1f} GB/s", f"{100 * rate / copy:5.1f} % of a copy"
    )


def frame_rows(device: Device, copy: float) -> list[Row]:
    """Time decoding, colours and sampling of one frame that already lies on the card."""
    queue = Queue(device)
    height, width = FRAME_HW
    n = height * width
    raw, mosaic = device.empty((n,), np.uint16), device.empty((n,), np.float32)
    planes, out = device.empty((3 * n,), np.float32), device.empty((3 * n,), np.float32)
    queue.fill(raw, 0x12)
    text = kernels.source("decode")

    def decode() -> None:
        queue.launch_1d(text, "decode_cfa", n, (raw, mosaic, np.int64(n), 1))

    def colour() -> None:
        queue.launch_2d(text, "debayer_cfa", width, height, (mosaic, height, width, 1, 0, planes))

    source = place(2, FRAME_HW, 0.05)[0][1]
    lattice = source.pixel_map
    node_x, node_y = queue.upload(lattice.src_x), queue.upload(lattice.src_y)
    terms, table = queue.upload(source.photometry), queue.upload(np.array(LANCZOS_TABLE))
    nothing = device.empty((1,), np.float32)

    def sample(lanczos: int) -> None:
        args = (
            planes, 3, height, width, 0, 0, height, width, node_x, node_y, np.int64(0), *lattice.src_x.shape,
            lattice.y0, lattice.x0, lattice.step, 60, 60, height, width, table, terms, 0, np.float32(0), nothing, 0,
            out, np.int64(0), np.int64(n), width, nothing, np.int64(0), 0,
        )  # fmt: skip
        option = (f"-DLANCZOS={lanczos}",)
        queue.launch_2d(kernels.source("sample"), "sample_source", width, height, args, options=option)

    return [
        rate_row("decode a raw frame", n * 6, best_seconds(decode, queue.finish, 10), copy),
        rate_row("debayer a frame", n * 16, best_seconds(colour, queue.finish, 10), copy),
        rate_row("sample a frame, bilinear", n * 24, best_seconds(lambda: sample(0), queue.finish, 10), copy),
        rate_row("sample a frame, lanczos3", n * 24, best_seconds(lambda: sample(1), queue.finish, 10), copy),
    ]


def kernel_rows(device: Device, copy: float, depths: tuple[int, ...]) -> list[Row]:
    """Time the rejections on samples that already lie on the card."""
    rows: list[Row] = []
    for depth in depths:
        rows += rejection_rows(device, copy, depth)
        device.release()
    return rows


def rejection_rows(device: Device, copy: float, depth: int) -> list[Row]:
    queue = Queue(device)
    lines = max(1, min(MOST_PIXELS, MOST_POOL_BYTES // (12 * depth)) // 1024)
    pixels = lines * 1024
    shape = (3, lines, 1024)
    tables = SampleTables(
        starts=np.arange(depth, dtype=np.int64) * 3 * pixels,
        boxes=np.tile(np.array([0, lines, 0, 1024], np.int32), (depth, 1)),
        weights=np.ones((depth, 3), np.float32),
        map_starts=np.full(depth, -1, np.int64),
    )
    values = device.empty((depth * 3 * pixels,), np.float32)
    rng = np.random.default_rng(3)
    for k in range(depth):
        block = rng.standard_normal(3 * pixels, dtype=np.float32) * 95 + 1500
        block[rng.integers(0, block.size, block.size // 500)] += 4000
        queue.copy_in(values, block, k * block.nbytes)
        queue.finish()
    maps = device.empty((1,), np.float32)
    where = ("registers", "shared memory", "scratch")[storage_for(depth, device.info).kind]
    rows = []
    for name in ("kappa", "winsorized", "linear fit"):
        seconds = combine_seconds(queue, values, maps, tables, RULES[name], shape)
        moved = pixels * (depth * 12 + 3 * 16 + 2)
        rows.append(rate_row(f"{name}, {depth} frames ({where})", moved, seconds, copy))
    return rows


def combine_seconds(queue: Queue, values, maps, tables: SampleTables, rule: CombineRule, shape) -> float:
    """Time the combination alone, without tables and downloads."""
    device = queue.device
    lists, items, tiles_x, depth = near_lists(tables.boxes, *shape[1:], 0)
    storage = storage_for(depth, device.info)
    small = [queue.upload(a) for a in (tables.starts, tables.boxes, tables.weights)]
    near = [queue.upload(a) for a in (tables.map_starts, lists, items)]
    floats = [device.empty(shape, np.float32) for _ in range(3)]
    counts = [device.empty(shape, np.uint16) for _ in range(2)]
    coverage = device.empty(shape[1:], np.uint16)
    scratch = device.empty((max(1, storage.scratch_bytes // 4),), np.float32)
    before = (values, *small, maps, *near, tiles_x, 0, *shape)
    after = (
        REJECTION_CODES[rule.rejection], np.float32(rule.kappa_low), np.float32(rule.kappa_high),
        np.float64(rule.winsor_limits[0]), np.float64(rule.winsor_limits[1]), 0, floats[0], floats[1], coverage,
        floats[2], *counts, scratch,
    )  # fmt: skip

    def work() -> None:
        for first, rows in launches(storage, depth, shape):
            grid, threads, shared = geometry(storage, rows, shape[2])
            queue.launch(
                kernels.source("combine"), "combine_pool", grid, (threads,), (*before, first, rows, *after),
                options=storage.options, shared_bytes=shared,
            )  # fmt: skip

    return best_seconds(work, queue.finish)


def parity_rows(device: Device, counts: tuple[int, ...]) -> list[Row]:
    """Compare the card with the CPU, and the plan with the peak, on small frames."""
    rows = []
    for n in counts:
        frames = RawFrames(n, SMALL_HW)
        sources, out_hw = place(n, SMALL_HW, 0.1)
        for name, rule in RULES.items():
            body = GpuCoadd(frames, sources, out_hw[1], 3, rule, "lanczos3")
            planned = body.workload("stack", out_hw[0], device.info).peak(out_hw[0])
            device.release()
            device.peak_bytes(reset=True)
            gpu = body(device, 0, out_hw[0], None)
            peak = device.peak_bytes()
            body.close()
            cpu = coadd_block(
                frames, sources, 0, out_hw[0], out_hw[1], 3, rule, "lanczos3", threads=os.cpu_count()
            )
            parity = compare_blocks(gpu, cpu, 0)
            verdict = "agrees" if parity.ok else "DIFFERS"
            used = (
                f"peak {peak / 2**20:.1f} of {planned / 2**20:.1f} MB planned ({100 * peak / planned:.0f} %)"
            )
            flipped = f"{parity.flipped}/{parity.compared} ties"
            rows.append(
                Row(
                    f"{name}, {n} frames",
                    f"{parity.max_difference:.1e} of the noise, {flipped}",
                    f"{verdict}; {used}",
                )
            )
    image = np.random.default_rng(4).normal(1000, 30, (400, 500, 3)).astype(np.float32)
    for name, body in (("hot pixels", GpuOutliers(image, 3.0, 5)), ("background", GpuBlur(image, 20.0))):
        gpu, cpu = body(device, 0, 400)[0], body.on_cpu(0, 400)[0]
        worst = float(np.abs(gpu - cpu).max() / 30.0)
        rows.append(Row(name, f"{worst:.1e} of the noise", "agrees" if worst < 1e-4 else "DIFFERS"))
    return rows


def night_rows(n: int) -> list[Row]:
    """Stack raw frames of 1080 x 1920 px from memory to one tile, on the card and on the CPU."""
    frames = RawFrames(n, FRAME_HW)
    sources, out_hw = place(n, FRAME_HW, 0.05)
    rows, seconds = [], {}
    for name in ("GPU", "CPU"):
        policy = GpuPolicy(mode="require") if name == "GPU" else None
        for attempt in range(2):  # the first one compiles
            start = time.perf_counter()
            coadd_on_grid(
                frames, sources, out_hw, 3, CombineRule(), "lanczos3", sink=lambda *block: None,
                budget_bytes=4 << 30, policy=policy, threads=min(16, os.cpu_count() or 1),
            )  # fmt: skip
            seconds[name] = time.perf_counter() - start
            if name == "GPU" and attempt == 0:
                rows.append(Row("first stack (compiles kernels)", f"{seconds[name]:.2f} s"))
        rows.append(
            Row(
                f"{n} raw frames to a tile, {name}",
                f"{seconds[name]:.2f} s",
                f"{n / seconds[name]:.1f} frames/s",
            )
        )
    rows.append(Row("GPU against CPU", f"{seconds['CPU'] / seconds['GPU']:.1f} x faster"))
    return rows


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer frames")
    options = parser.parse_args()
    policy = GpuPolicy()
    if not policy.status.ok or policy._device is None:
        print(
            f"No usable graphics card, nothing measured: {policy.status.reason.value} {policy.status.detail}"
        )
        return 0
    device, info = policy._device, policy.status.device
    start = time.perf_counter()
    copy = copy_rate(device, 1 << 30 if info.total_bytes > 6 << 30 else 128 << 20)
    rows = [
        Row(
            "card",
            f"{info.name}, {info.total_bytes / 2**30:.1f} GiB",
            f"capability {info.compute_capability / 10}",
        )
    ]
    rows.append(Row("library", info.library, f"driver {info.driver_version}, runtime {info.runtime_version}"))
    rows.append(Row("host", platform.processor() or platform.machine(), f"{os.cpu_count()} cores"))
    rows.append(Row("copy on the card", f"{copy / 1e9:8.1f} GB/s", "read and written"))
    rows += frame_rows(device, copy)
    rows += kernel_rows(device, copy, (12, 40) if options.quick else (12, 40, 90, 200, 1000))
    rows += parity_rows(device, (3, 40) if options.quick else (1, 2, 3, 40, 200))
    device.release()
    rows += night_rows(20 if options.quick else 60)
    for row in rows:
        print(f"{row.what:42s} {row.result:38s} {row.good}")
    print(f"all of it took {time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
