"""What the graphics card does: parity with the CPU, plan against peak, kernels against a copy, frames per second.

``python -m benchmarks.gpu [--quick]`` prints one table. Without a usable card it says why and ends; what kernels
must move and compute is printed in any case (`benchmarks.gpu_model`). Kernel
rates count what the kernel reads and writes once; the copy they are compared with is measured in the same run. What
is aimed at stands beside what was reached.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from astropy.io import fits

from benchmarks.gpu_model import CARDS, model_lines
from zemosaic_core.cfa import CfaColour, debayer
from zemosaic_core.coadd import coadd_block
from zemosaic_core.gpu import kernels
from zemosaic_core.gpu.coadd import GpuCoadd
from zemosaic_core.gpu.combine import IN_BLOCK, IN_SCRATCH, Combiner, combine_buffers, storage_for
from zemosaic_core.gpu.device import Device
from zemosaic_core.gpu.launch import PlannedMemory, Queue
from zemosaic_core.gpu.measure import FRAMES_PER_CHUNK, GpuSweeps, RawFrame
from zemosaic_core.gpu.parity import compare_blocks
from zemosaic_core.gpu.reader import RAW_MARGIN
from zemosaic_core.gpu.tiles import TILE_H, TILE_W, tile_table
from zemosaic_core.gpu.windows import N_TERMS, SLOTS, Ring, debayer_on_card
from zemosaic_core.lanczos_table import LANCZOS_TABLE
from zemosaic_core.measure_pass import sweep_raw
from zemosaic_core.pixel_map import build_pixel_map, step_shift, whole_nodes
from zemosaic_core.raw_maxima import RING_PX
from zemosaic_core.sources import CoaddSource, CombineRule, RawRows, SampleNoise
from zemosaic_gpu_policy import GpuPolicy
from zemosaic_io.frame_store import FrameStore
from zemosaic_io.headers import read_frame_info
from zemosaic_utils import coadd_on_grid

FRAME_HW = (1920, 1080)
COLOUR = CfaColour((1500.0, 1500.0, 1500.0), (95.0, 95.0, 95.0), (0.8, 1.0, 0.7))
SMALL_HW = (300, 260)
# Samples of the timed rejections: enough to fill any card, few enough for a small one.
MOST_PIXELS = 1 << 20
MOST_POOL_BYTES = 2 << 30
# Numbers of frames whose rejection shall reach 60 % of a copy.
AIMED_AT = (30, 100)
RULES = {
    "mean": CombineRule("none"),
    "kappa": CombineRule("kappa_sigma"),
    "winsorized": CombineRule(),
    "known noise": CombineRule(noise=SampleNoise((95.0**2,) * 3, (1500.0,) * 3)),
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
        return RawRows(self.frames[key][y0:y1], y0, True, "GRBG", hot, COLOUR)

    def read(self, key: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        from zemosaic_core.hot_pixels import repair_cfa

        height, width = self.shape_hw
        top, bottom = max(0, y0 - RAW_MARGIN), min(height, y1 + RAW_MARGIN)
        sensor = repair_cfa(self.frames[key][top:bottom].byteswap() ^ 0x8000, self.hot, top)
        left, right = max(0, x0 - RAW_MARGIN), min(width, x1 + RAW_MARGIN)
        planes = debayer(np.ascontiguousarray(sensor[:, left:right]), "GRBG", top, left, colour=COLOUR)
        return np.ascontiguousarray(planes[:, y0 - top : y1 - top, x0 - left : x1 - left])

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


def aim(reached: float, wanted: float | None, unit: str) -> str:
    """Say whether what was aimed at was reached."""
    if wanted is None:
        return ""
    return f"; aim {wanted:g}{unit}: {'reached' if reached >= wanted else 'MISSED'}"


def rate_row(name: str, n_bytes: float, seconds: float, copy: float, wanted: float | None = None) -> Row:
    rate = n_bytes / seconds
    percent = 100 * rate / copy
    good = f"{percent:5.1f} % of a copy{aim(percent, wanted, ' %')}"
    return Row(name, f"{seconds * 1e3:8.3f} ms {rate / 1e9:8.1f} GB/s", good)


def measuring_rows(device: Device) -> list[Row]:
    """Sweep over frames with the card and with the processor: time, and whether every number is the same."""
    shape_hw = FRAME_HW
    raw = RawFrames(FRAMES_PER_CHUNK, shape_hw)
    planes = [frame.byteswap() ^ 0x8000 for frame in raw.frames]
    sweeps = GpuSweeps(shape_hw, True, detect_sigma=5.75)
    ring = Ring(device, SLOTS)
    frames = [RawFrame(plane) for plane in planes]
    seconds = best_seconds(lambda: sweeps(device, frames, ring), lambda: None) / len(planes)
    start = time.perf_counter()
    expected = [sweep_raw(plane, True) for plane in planes]
    on_processor = (time.perf_counter() - start) / len(planes)
    differing = 0
    for found, plane, other in zip(sweeps(device, frames, ring), planes, expected, strict=True):
        one = other if found is None else found.with_pixels(plane)
        same = np.array_equal(one.defects, other.defects) and np.array_equal(one.evidence, other.evidence)
        same &= np.array_equal(one.cells.level, other.cells.level, equal_nan=True)
        a, b = one.find(RING_PX), other.find(RING_PX)
        same &= np.array_equal(a.height, b.height) and np.array_equal(a.around, b.around)
        differing += not same
    verdict = f"{differing} frames DIFFER" if differing else "every number the processor's"
    result = f"{seconds * 1e3:8.3f} ms, processor {on_processor * 1e3:.1f} ms"
    return [Row("sweep over a raw frame, with the way there", result, verdict)]


def combiner_of(queue: Queue, depth: int, shape: tuple[int, int, int], name: str) -> Combiner:
    """Make room for samples of sources that all cover the block."""
    n_channels, height, width = shape
    boxes = [(0, height, 0, width)] * depth
    rule, info = RULES[name], queue.device.info
    buffers = combine_buffers(boxes, n_channels, width, rule, info, mapped=False)
    memory = PlannedMemory(queue.device, buffers, height)
    table = tile_table(np.array(boxes), height, width)
    return Combiner(queue, memory, table, np.ones((depth, n_channels)), rule, shape, mapped=False)


def frame_rows(device: Device, copy: float) -> list[Row]:
    """Time decoding, colours, sampling and averaging of frames that already lie on the card."""
    queue = Queue(device)
    height, width = FRAME_HW
    n, n_frames = height * width, 8
    raw, planes = device.empty((n,), np.uint16), device.empty((3 * n,), np.float32)
    shares = device.empty((2 * n,), np.float32)
    queue.fill(raw, 0x12)

    def decode() -> None:
        debayer_on_card(queue, raw, FRAME_HW, "GRBG", COLOUR, shares, planes, coded=1)

    source = place(2, FRAME_HW, 0.05)[0][1]
    lattice = source.pixel_map
    nodes = whole_nodes(lattice.src_x.ravel(), lattice.src_y.ravel())
    node_x, node_y = (queue.upload(part) for part in nodes)
    terms = queue.upload(np.pad(source.photometry, ((0, 0), (0, N_TERMS - source.photometry.shape[1]))))
    taps = queue.upload(np.array(LANCZOS_TABLE))
    nothing = device.empty((1,), np.float32)
    mean = combiner_of(queue, n_frames, (3, height, width), "mean")
    table = mean.table

    def sample(lanczos: int, slot: int = 0) -> None:
        args = (
            planes, 3, height, width, 0, 0, height, width, node_x, node_y, np.int64(0), *lattice.src_x.shape,
            lattice.y0, lattice.x0, step_shift(lattice), 60, 60, 60 + height, 0, width, taps, terms, 0, 0, 0,
            np.float32(0), np.float32(0), nothing, 0, mean.bases, mean.counts, mean.slots,
            np.int64(table.slot_starts[slot]), 0, 0, table.tiles_yx[1], mean.values, np.int64(table.n_samples),
            mean.maps, 0,
        )  # fmt: skip
        queue.launch(
            kernels.source("sample"), "sample_source", table.tiles_yx[::-1], (TILE_W, TILE_H), args,
            options=(f"-DLANCZOS={lanczos}",),
        )  # fmt: skip

    def average() -> None:
        for slot in range(n_frames):
            sample(0, slot)
        mean.launch()

    def timed(
        name: str, bytes_per_pixel: float, work: Callable[[], object], wanted: float | None = None
    ) -> Row:
        return rate_row(name, n * bytes_per_pixel, best_seconds(work, queue.finish, 10), copy, wanted)

    results = 3 * 16 + 2
    return [
        timed("decode and debayer a raw frame", 14, decode),
        timed("sample a frame, bilinear", 24, lambda: sample(0)),
        timed("sample a frame, lanczos3", 24, lambda: sample(1)),
        timed(f"average of {n_frames} frames", 12 * n_frames + results, mean.launch),
        timed(f"sample and average {n_frames} frames", 36 * n_frames + results, average, 50),
    ]


def kernel_rows(device: Device, copy: float, depths: tuple[int, ...]) -> list[Row]:
    """Time the rejections on samples that already lie on the card."""
    rows: list[Row] = []
    for depth in depths:
        for name in ("kappa", "winsorized", "known noise", "linear fit"):
            rows.append(rejection_row(device, copy, depth, name))
            device.release()
    return rows


def rejection_row(device: Device, copy: float, depth: int, name: str) -> Row:
    """Time one rejection: noise with one outlier in five hundred samples."""
    queue = Queue(device)
    lines = max(1, min(MOST_PIXELS, MOST_POOL_BYTES // (12 * depth)) // 1024)
    shape = (3, lines, 1024)
    combiner = combiner_of(queue, depth, shape, name)
    rng = np.random.default_rng(3)
    # The same noise again and again from other starts: no two pixels see the same samples.
    noise = rng.standard_normal(1 << 22, dtype=np.float32) * 95 + 1500
    noise[rng.integers(0, noise.size, noise.size // 500)] += 4000
    n_samples, piece = 3 * combiner.table.n_samples, noise.size // 2
    for start in range(0, n_samples, piece):
        first = int(rng.integers(0, piece))
        queue.copy_in(combiner.values, noise[first : first + min(piece, n_samples - start)], 4 * start)
    queue.finish()
    seconds = best_seconds(combiner.launch, queue.finish)
    merged = storage_for(depth, RULES[name], device.info).kind in (IN_BLOCK, IN_SCRATCH)
    where = "merged" if merged else "registers"
    moved = lines * 1024 * (depth * 12 + 3 * 16 + 2)
    return rate_row(
        f"{name}, {depth} frames ({where})", moved, seconds, copy, 60 if depth in AIMED_AT else None
    )


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
    return rows


def write_frames(folder: Path, frames: RawFrames) -> FrameStore:
    """Write the frames as a telescope does, so that reading them is part of what is timed."""
    paths = []
    for key, raw in enumerate(frames.frames):
        header = fits.Header({"BAYERPAT": "GRBG", "INSTRUME": "Seestar S50"})
        paths.append(folder / f"Light_{key:04d}.fit")
        fits.PrimaryHDU(raw.byteswap() ^ 0x8000, header).writeto(paths[-1])
    hot = dict.fromkeys(range(len(paths)), frames.hot)
    colours = dict.fromkeys(hot, COLOUR)
    return FrameStore({key: read_frame_info(path) for key, path in enumerate(paths)}, hot, colours=colours)


def upload_seconds(device: Device, frames: RawFrames) -> float:
    """Time the bare copies of all frames to the card from page-locked memory."""
    queue = Queue(device)
    locked = device.pinned(frames.frames[0].nbytes)
    target = device.empty((locked.nbytes,), np.uint8)

    def work() -> None:
        for _ in frames.frames:
            queue.copy_in(target, locked)

    return best_seconds(work, queue.finish, 3)


def night_rows(device: Device, n: int) -> list[Row]:
    """Stack raw frames of 1080 x 1920 px, in files that the system has in memory, to one tile."""
    frames = RawFrames(n, FRAME_HW)
    sources, out_hw = place(n, FRAME_HW, 0.05)
    threads = min(16, os.cpu_count() or 1)
    rows, seconds = [], {}
    copies = upload_seconds(device, frames)
    device.release()
    with tempfile.TemporaryDirectory() as folder:
        store = write_frames(Path(folder), frames)
        for name in ("GPU", "CPU"):
            policy = GpuPolicy(mode="require") if name == "GPU" else None
            for attempt in range(2):  # the first one compiles
                start = time.perf_counter()
                coadd_on_grid(
                    store, sources, out_hw, 3, CombineRule(), "lanczos3", sink=lambda *block: None,
                    budget_bytes=4 << 30, policy=policy, threads=threads,
                )  # fmt: skip
                seconds[name] = time.perf_counter() - start
                if name == "GPU" and attempt == 0:
                    rows.append(Row("first stack (compiles kernels)", f"{seconds[name]:.2f} s"))
            rate = f"{n / seconds[name]:.1f} frames/s"
            rows.append(Row(f"{n} raw frames to a tile, {name}", f"{seconds[name]:.2f} s", rate))
    rows.append(Row("copies of these frames alone", f"{copies:.2f} s", f"{n / copies:.1f} frames/s"))
    ratio = seconds["CPU"] / seconds["GPU"]
    good = f"{threads} CPU threads{aim(ratio, 10 if n >= 200 else None, ' x')}"
    rows.append(Row("GPU against CPU", f"{ratio:.1f} x faster", good))
    return rows


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer frames")
    options = parser.parse_args()
    counts = (30,) if options.quick else (30, 100, 200, 1000)
    for line in model_lines(FRAME_HW, counts):
        print(line)
    policy = GpuPolicy()
    if not policy.status.ok or policy._device is None:
        print(
            f"No usable graphics card, nothing measured: {policy.status.reason.value} {policy.status.detail}"
        )
        return 0
    device, info = policy._device, policy.status.device
    start = time.perf_counter()
    copy = copy_rate(device, 1 << 30 if info.total_bytes > 6 << 30 else 128 << 20)
    # The same for this card: what its memory really does, and its operations as if it were like the first one.
    here = replace(CARDS[0], name="this card", memory=copy)
    for line in model_lines(FRAME_HW, counts, (here,)):
        print(line)
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
    rows += measuring_rows(device)
    rows += kernel_rows(device, copy, (12, 30) if options.quick else (12, 30, 100, 200, 1000))
    rows += parity_rows(device, (3, 40) if options.quick else (1, 2, 3, 40, 200))
    device.release()
    rows += night_rows(device, 20 if options.quick else 200)
    for row in rows:
        print(f"{row.what:42s} {row.result:38s} {row.good}")
    print(f"all of it took {time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
