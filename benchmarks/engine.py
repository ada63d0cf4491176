"""What the CPU engine costs, side by side with NumPy, SciPy and astropy: ratios of times on the same work.

Times are processor seconds of one thread, best of several runs, so that a busy machine does not blur them.
``python benchmarks/engine.py [--quick]``
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.stats import sigma_clip
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from zemosaic_core.cfa import CfaColour, debayer
from zemosaic_core.coadd import coadd_block
from zemosaic_core.image_coadd import ArrayPixels
from zemosaic_core.pixel_map import build_pixel_map
from zemosaic_core.refine import RefineSource, gather_block
from zemosaic_core.refine_structure import refined, share_of_channels, structure_mask
from zemosaic_core.rejection import combine_stack
from zemosaic_core.resample import sample_window
from zemosaic_core.scratch import Scratch
from zemosaic_core.sources import CoaddBlock, CoaddSource, CombineRule, SampleNoise
from zemosaic_io.frame_store import FrameStore
from zemosaic_io.headers import read_frame_info

IDENTITY = np.tile(np.array([1, 0, 0, 0], np.float32), (3, 1))


def seconds(work, repeats=3):
    work()
    best = np.inf
    for _ in range(repeats):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best


def show(name, ours, peer_name, peer, unit_count, unit):
    rate = f"{unit_count / ours / 1e6:8.1f} M{unit}/s"
    print(
        f"{name:34s} {ours * 1e3:9.1f} ms {rate}   {peer / ours:6.1f} x faster than {peer_name}", flush=True
    )


def rotation(degrees, shape):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    cy, cx = shape[0] / 2, shape[1] / 2
    return lambda x, y: (c * (x - cx) - s * (y - cy) + cx, s * (x - cx) + c * (y - cy) + cy)


def bench_debayer(shape, rng):
    cfa = rng.integers(0, 65535, shape).astype(np.uint16)

    def peer():
        out = np.zeros((3, *shape), np.float32)
        kernel = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]], np.float32) / 4
        green = np.array([[0, 1, 0], [1, 4, 1], [0, 1, 0]], np.float32) / 4
        for plane, mask, k in ((0, (0, 1), kernel), (2, (1, 0), kernel)):
            sparse = np.zeros(shape, np.float32)
            sparse[mask[0] :: 2, mask[1] :: 2] = cfa[mask[0] :: 2, mask[1] :: 2]
            out[plane] = ndimage.convolve(sparse, k, mode="mirror")
        sparse = cfa.astype(np.float32)
        sparse[0::2, 1::2] = 0
        sparse[1::2, 0::2] = 0
        out[1] = ndimage.convolve(sparse, green, mode="mirror")
        return out

    n = shape[0] * shape[1]
    colour = CfaColour((1000.0, 1000.0, 1000.0), (10.0, 10.0, 10.0), (0.8, 1.0, 0.7))
    show(
        "debayer with local colour, RGB",
        seconds(lambda: debayer(cfa, "GRBG", colour=colour)),
        "bilinear with SciPy convolve",
        seconds(peer, 1),
        n,
        "px",
    )


def bench_sampling(shape, rng):
    image = rng.random((3, *shape), dtype=np.float32)
    transform = rotation(3.0, shape)
    box = (0, shape[0], 0, shape[1])
    pixel_map = build_pixel_map(transform, box)
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]].astype(float)
    sx, sy = transform(x, y)
    out = np.empty_like(image)
    n = shape[0] * shape[1]
    for kernel, order in (("bilinear", 1), ("lanczos3", 3)):
        ours = seconds(
            lambda k=kernel: sample_window(image, (0, 0), shape, pixel_map, box, k, IDENTITY, out=out)
        )
        peer = seconds(
            lambda o=order: [ndimage.map_coordinates(p, [sy, sx], order=o, prefilter=o > 1) for p in image], 1
        )
        show(f"sample {kernel}, RGB, 3 degrees", ours, f"SciPy map_coordinates order {order}", peer, n, "px")


def bench_rejection(n, rows, width, rng):
    stack = 1000 + 90 * rng.standard_normal((n, 3, rows, width), dtype=np.float32)
    stack.ravel()[rng.integers(0, stack.size, stack.size // 450)] += 5000

    def numpy_kappa():
        kept = stack.copy()
        for _ in range(10):
            centre, scale = np.nanmedian(kept, axis=0), np.nanstd(kept, axis=0, ddof=1)
            bad = np.abs(kept - centre) > 3 * scale
            if not bad.any():
                break
            kept[bad] = np.nan
        return np.nanmean(kept, axis=0)

    def astropy_kappa():
        clipped = sigma_clip(
            stack, sigma=3, maxiters=10, axis=0, cenfunc="median", stdfunc="std", masked=False, copy=True
        )
        return np.nanmean(clipped, axis=0)

    peers = {"NumPy kappa-sigma": seconds(numpy_kappa, 1), "astropy sigma_clip": seconds(astropy_kappa, 1)}
    rules = {name: CombineRule(name) for name in ("kappa_sigma", "winsorized_sigma_clip", "linear_fit_clip")}
    rules["winsorized, known noise"] = CombineRule(noise=SampleNoise((90.0**2,) * 3, (1000.0,) * 3))
    for rejection, rule in rules.items():
        ours = seconds(lambda r=rule: combine_stack(stack, r, threads=1))
        for name, peer in peers.items():
            show(f"N={n} {rejection}", ours, name, peer, stack.size, "samples")


def bench_coadd(n, shape, rng):
    images = [1000 + 90 * rng.standard_normal((3, *shape), dtype=np.float32) for _ in range(n)]
    box = (0, shape[0], 0, shape[1])
    sources = [
        CoaddSource(
            k, shape, build_pixel_map(rotation(k * 0.5, shape), box), box, IDENTITY, np.ones(3, np.float32)
        )
        for k in range(n)
    ]
    pixels, rule = ArrayPixels(images), CombineRule()

    def work():
        for y0 in range(0, shape[0], 256):
            y1 = min(shape[0], y0 + 256)
            coadd_block(pixels, sources, y0, y1, shape[1], 3, rule, "lanczos3", threads=2)

    work()
    start, start_cpu = time.perf_counter(), time.process_time()
    work()
    wall, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    rate = n * shape[0] * shape[1] / wall / 1e6
    print(
        f"co-add of {n} frames, lanczos3 + winsorized, two threads: {wall:.2f} s wall, {cpu:.2f} s processor, "
        f"{rate:.0f} Mpx/s (RGB)"
    )


def bench_low_blocks(n, rng):
    """Raw frames from files in blocks of few rows: what a window takes whatever its height."""
    shape, colour = (160, 200), CfaColour((1000.0,) * 3, (30.0,) * 3, (0.8, 1.0, 0.7))
    box, rule = (0, shape[0], 0, shape[1]), CombineRule(noise=SampleNoise((720.0,) * 3, (1000.0,) * 3))
    with tempfile.TemporaryDirectory() as folder:
        infos = {}
        for k in range(n):
            path = Path(folder) / f"{k}.fit"
            data = rng.normal(1000, 30, shape).astype(np.uint16)
            fits.PrimaryHDU(data, fits.Header({"BAYERPAT": "GRBG"})).writeto(path)
            infos[k] = read_frame_info(path)
        store = FrameStore(infos, colours=dict.fromkeys(infos, colour))
        sources = [
            CoaddSource(
                k, shape, build_pixel_map(rotation(0.5, shape), box), box, IDENTITY, np.ones(3, np.float32)
            )
            for k in infos
        ]
        for rows in (160, 16, 8):
            scratch = Scratch()

            def work(rows=rows, scratch=scratch):
                for y0 in range(0, shape[0], rows):
                    coadd_block(
                        store,
                        sources,
                        y0,
                        y0 + rows,
                        shape[1],
                        3,
                        rule,
                        "lanczos3",
                        threads=1,
                        scratch=scratch,
                    )

            spent, n_windows = seconds(work), n * shape[0] // rows
            print(f"{n} raw frames {shape[0]}x{shape[1]} in blocks of {rows:3d} rows: {spent:.2f} s processor, "
                  f"{spent * 1e3 / n_windows:.2f} ms a window")  # fmt: skip


def bench_second_pass(n, shape, rng):
    """Second pass over frames of stars, beside what the first costs: decoding, sampling and rejection."""
    step = 24
    y, x = np.mgrid[: shape[0], : shape[1]]
    stars = (
        4000 * np.exp(-((y % step - step / 2) ** 2 + (x % step - step / 2) ** 2) / 2.5) * ((y // step) % 2)
    )
    cfa = (1000 + stars + rng.normal(0, 30, shape)).astype(np.uint16)
    colour = CfaColour((1000.0,) * 3, (30.0,) * 3, (1.0,) * 3)
    box = (0, shape[0], 0, shape[1])
    limit, sources = np.full(3, 150, np.float32), []
    for k in range(n):
        there, back = rotation(k * 0.5, shape), rotation(-k * 0.5, shape)
        source = CoaddSource(k, shape, build_pixel_map(there, box), box, IDENTITY, np.ones(3, np.float32))
        sources.append(
            RefineSource(source, build_pixel_map(back, box), "GRBG", limit, np.full(3, 1000, np.float32))
        )

    class Frames:
        def read(self, key, y0, y1, x0, x1):
            top, left = max(0, y0 - 3), max(0, x0 - 3)
            window = np.ascontiguousarray(cfa[top : y1 + 3, left : x1 + 3])
            planes = debayer(window, "GRBG", top, left, colour=colour)
            return np.ascontiguousarray(planes[:, y0 - top : y1 - top, x0 - left : x1 - left])

        def read_samples(self, key, y0, y1, x0, x1):
            return cfa[y0:y1, x0:x1].astype(np.float32)

        def read_weight(self, key, y0, y1, x0, x1):
            return None

        def read_raw(self, key, y0, y1):
            return None

    frames, rule = Frames(), CombineRule(noise=SampleNoise((720.0,) * 3, (1000.0,) * 3))
    plain = [item.source for item in sources]
    blocks = [(a, min(shape[0], a + 256)) for a in range(0, shape[0], 256)]

    def first_pass():
        return [coadd_block(frames, plain, a, b, shape[1], 3, rule, "lanczos3", threads=1) for a, b in blocks]

    block = CoaddBlock.joined(first_pass())
    whole = slice(0, shape[0])
    mask = structure_mask(block.image, block.weight, rule.noise.variance, block.coverage, whole)

    def second_pass():
        own = structure_mask(block.image, block.weight, rule.noise.variance, block.coverage, whole)
        sums = gather_block(frames, sources, block.image, 0, own, 0, threads=1)
        refined(block.image, block.variance, sums, own, block.weight, share_of_channels("GRBG"))

    first, second = seconds(first_pass, 1), seconds(second_pass, 1)
    per_frame = second * 1e3 / n
    print(
        f"second pass over {n} frames, {(mask > 0).mean():.0%} with structure: {second:.2f} s processor, "
        f"{per_frame:.1f} ms a frame, {second / first:.0%} of the first pass"
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a sixteenth of the pixels")
    quick = parser.parse_args().quick
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    shape = (480, 270) if quick else (1920, 1080)
    bench_debayer(shape, rng)
    bench_sampling(shape, rng)
    for n in (10, 30, 100):
        bench_rejection(n, 16 if quick else 64, 1080, rng)
    bench_coadd(6 if quick else 20, shape, rng)
    bench_low_blocks(20 if quick else 100, rng)
    bench_second_pass(10 if quick else 20, shape, rng)


if __name__ == "__main__":
    main()
