"""The second pass on the (simulated) card against the CPU's."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from gpu_cases import FakePixels
from simulated_device import COMPILER, SimulatedDevice

from zemosaic_align_stack import refine_on_grid
from zemosaic_core.errors import Cancelled
from zemosaic_core.gpu.refine import GpuRefine, compare_gathered
from zemosaic_core.pixel_map import build_pixel_map, footprint_bbox
from zemosaic_core.refine import RefineSource, gather_block
from zemosaic_core.refine_rows import CoaddRows, RowsInTurn
from zemosaic_core.refine_structure import Gathered
from zemosaic_core.sources import CoaddSource, SampleNoise
from zemosaic_gpu_policy import GpuPolicy

pytestmark = pytest.mark.skipif(COMPILER is None, reason="the simulated card needs a host C++ compiler")

OUT = (83, 71)
NOISE = SampleNoise((1600.0, 1200.0, 2000.0), (1500.0, 1450.0, 1550.0))


class Samples(FakePixels):
    """Raw frames; those without raw rows give plain samples."""

    def read_samples(self, key, y0, y1, x0, x1):
        plane = self.sensor[key] if key in self.sensor else self.images[key][0]
        samples = plane.astype(np.float32)
        samples.ravel()[self.hot.get(key, [])] = np.nan
        return np.ascontiguousarray(samples[y0:y1, x0:x1])


class Stored:
    """A co-add with some bright spots, in memory."""

    def __init__(self, channels, seed=0):
        rng = np.random.default_rng(seed)
        self.image = (1500 + rng.normal(0, 10, (channels, *OUT))).astype(np.float32)
        y, x = np.mgrid[: OUT[0], : OUT[1]]
        for cy, cx in ((20, 20), (21, 50), (60, 33)):
            self.image += (2000 * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 6)).astype(np.float32)
        self.image[:, 40, 11] = np.nan
        self.weight, self.coverage = np.full(OUT, 9.0, np.float32), np.full(OUT, 9, np.uint16)
        self.variance = np.full((channels, *OUT), 100, np.float32)

    def read(self, y0, y1):
        rows = slice(y0, y1)
        return CoaddRows(self.image[:, rows], self.weight[rows], self.coverage[rows], self.variance[:, rows])

    def write(self, y0, image, variance):
        self.image[:, y0 : y0 + image.shape[1]] = image
        self.variance[:, y0 : y0 + image.shape[1]] = variance


def make(pixels, n, *, scale=1.0, feather=0.0):
    height, width = pixels.shape_hw
    rng = np.random.default_rng(8)
    sources = []
    for key in range(n):
        angle, (dx, dy) = 0.2 * (key - n / 2), rng.uniform(-4, 4, 2)
        cos, sin = np.cos(angle), np.sin(angle)

        def to_source(x, y, cos=cos, sin=sin, dx=dx, dy=dy):
            u, v = x / scale - width / 2, y / scale - height / 2
            return cos * u + sin * v + width / 2 + dx, -sin * u + cos * v + height / 2 + dy

        def to_output(x, y, cos=cos, sin=sin, dx=dx, dy=dy):
            u, v = x - width / 2 - dx, y - height / 2 - dy
            return scale * (cos * u - sin * v + width / 2), scale * (sin * u + cos * v + height / 2)

        bbox = footprint_bbox(to_output, pixels.shape_hw, OUT, margin=4)
        terms = np.tile(np.array([1.02, -20, 3 * key, -5], np.float32), (pixels.n_channels, 1))
        radial = rng.normal(0, [0.01, 0.01, 10, 5], (pixels.n_channels, 4)).astype(np.float32)
        weight = rng.uniform(0.3, 1, pixels.n_channels).astype(np.float32)
        source = CoaddSource(
            key, pixels.shape_hw, build_pixel_map(to_source, bbox), bbox, terms, weight, feather,
            pixels.weights is not None, radial if key % 2 else None, feather_start=0.1 * (key % 5),
        )  # fmt: skip
        to_grid = build_pixel_map(to_output, (0, height, 0, width))
        pattern = pixels.patterns.get(key, "GRBG") if pixels.n_channels == 3 else ""
        limit = np.full(pixels.n_channels, 400, np.float32)
        background = np.array(NOISE.background[: pixels.n_channels], np.float32)
        sources.append(RefineSource(source, to_grid, pattern, limit, background))
    return sources


def both(pixels, sources, *, scale=1.0, rows=(0, OUT[0]), device=None):
    store = Stored(pixels.n_channels)
    noise = SampleNoise(NOISE.variance[: pixels.n_channels], NOISE.background[: pixels.n_channels])
    turn = RowsInTurn(store, sources, OUT[0], noise)
    device = device or SimulatedDevice(1 << 30)
    body = GpuRefine(pixels, sources, turn, OUT[1], pixels.n_channels, scale=scale)
    try:
        gpu = body(device, *rows, None)
    finally:
        body.close()
    block = turn.block(*rows)
    cpu = gather_block(pixels, sources, block.image, block.image_y0, block.mask, rows[0], scale=scale)
    assert device.pool.used == 0
    return gpu, cpu


@pytest.mark.parametrize("rows", [(0, OUT[0]), (13, 44)])
@pytest.mark.parametrize(
    ("raw", "channels", "scale", "weights", "feather"),
    [("all", 3, 1.0, False, 0.0), ("some", 3, 1.0, True, 6.0), ("none", 1, 2.0, False, 4.0)],
)
def test_sums_are_those_of_the_cpu(raw, channels, scale, weights, feather, rows):
    size = (round(OUT[0] / scale), round(OUT[1] / scale))
    pixels = Samples(9, size, n_channels=channels, raw=raw, hot=20 if raw != "none" else 0, weights=weights)
    gpu, cpu = both(pixels, make(pixels, 9, scale=scale, feather=feather), scale=scale, rows=rows)
    assert (cpu.weight > 0).mean() > 0.05
    other = np.abs(gpu.weight - cpu.weight) > 1e-4 * cpu.weight.max()
    assert other.mean() < 1e-3
    for name in (item.name for item in fields(Gathered)):
        a, b = getattr(gpu, name), getattr(cpu, name)
        np.testing.assert_allclose(a[~other], b[~other], rtol=1e-5, atol=1e-5 * np.abs(b).max(), err_msg=name)
    parity = compare_gathered(gpu, cpu, 0)
    assert parity.max_difference < 1e-3


def test_the_peak_is_within_the_plan():
    pixels = Samples(6, OUT, raw="all", hot=10)
    sources = make(pixels, 6)
    device = SimulatedDevice(1 << 30)
    body = GpuRefine(pixels, sources, RowsInTurn(Stored(3), sources, OUT[0], NOISE), OUT[1], 3)
    for rows in (OUT[0], 30):
        device.peak_bytes(reset=True)
        planned = body.workload("refine", OUT[0], device.info).peak(rows)
        body(device, 0, rows, None)
        assert 0.8 * planned <= device.peak_bytes() <= planned
    body.close()
    assert device.pool.used == 0


@pytest.mark.parametrize("megabytes", [64, 12])
def test_through_the_policy_it_is_the_picture_of_the_cpu(megabytes, install):
    pixels = Samples(9, OUT, raw="all", hot=20)
    sources = make(pixels, 9)
    plain, on_card = Stored(3), Stored(3)
    refine_on_grid(pixels, sources, OUT, plain, NOISE, budget_bytes=1 << 30)
    device = install(SimulatedDevice(megabytes << 20))
    policy = GpuPolicy(mode="auto", environ={"ZEMOSAIC_GPU_RESERVE_MB": "0", "ZEMOSAIC_GPU_CHUNK_ROWS": "20"})
    refine_on_grid(pixels, sources, OUT, on_card, NOISE, budget_bytes=1 << 30, policy=policy)
    policy.close()
    assert "gather_differences" in device.launches
    assert (plain.image != Stored(3).image).any()
    np.testing.assert_allclose(on_card.image, plain.image, rtol=1e-5, atol=0.02)
    np.testing.assert_allclose(on_card.variance, plain.variance, rtol=1e-3)


def test_a_stop_leaves_nothing_on_the_card():
    class Stop:
        def is_set(self):
            return True

    pixels = Samples(3, OUT, raw="all")
    sources = make(pixels, 3)
    device = SimulatedDevice(1 << 30)
    body = GpuRefine(pixels, sources, RowsInTurn(Stored(3), sources, OUT[0], NOISE), OUT[1], 3, cancel=Stop())
    with pytest.raises(Cancelled):
        body(device, 0, OUT[0], None)
    body.close()
    assert device.pool.used == 0
