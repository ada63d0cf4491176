"""The co-add on the (simulated) card against the CPU's: weights, NaN, bent maps, odd sizes, 1 to 200 sources."""

from __future__ import annotations

import dataclasses
import itertools
import re
import threading
import time

import numpy as np
import pytest
from gpu_cases import FakePixels, assert_blocks_agree, make_sources, stitch
from simulated_device import COMPILER, CUDARuntimeError, SimulatedDevice

from zemosaic_core.cfa import CFA_PATTERNS, CfaColour, debayer
from zemosaic_core.clipped_light import BOUND_MARK
from zemosaic_core.coadd import _finish_sums, coadd_block, rows_per_pass
from zemosaic_core.errors import Cancelled
from zemosaic_core.gpu import coadd, combine, kernels, ladder, reader, windows
from zemosaic_core.gpu import device as seam
from zemosaic_core.gpu.coadd import GpuCoadd
from zemosaic_core.gpu.combine import IN_BLOCK, IN_SCRATCH, IN_SHARED, UNSORTED, storage_for
from zemosaic_core.gpu.device import DeviceInfo
from zemosaic_core.gpu.launch import Queue
from zemosaic_core.gpu.reader import ReadAhead, parts_of_block
from zemosaic_core.pixel_map import map_coordinates_at
from zemosaic_core.rejection import combine_stack
from zemosaic_core.sources import CombineRule, SampleNoise
from zemosaic_gpu_policy import GpuPolicy
from zemosaic_utils import coadd_on_grid

pytestmark = pytest.mark.skipif(COMPILER is None, reason="the simulated card needs a host C++ compiler")

RULES = {
    "mean": CombineRule("none"),
    "median": CombineRule("none", combine="median"),
    "kappa": CombineRule("kappa_sigma", 2.5, 2.0),
    "winsor": CombineRule("winsorized_sigma_clip", 3.0, 3.0, (0.1, 0.05)),
    "linear": CombineRule("linear_fit_clip", 4.0, 3.0),
    "winsor median": CombineRule("winsorized_sigma_clip", 2.0, 2.5, combine="median"),
    "known": CombineRule(noise=SampleNoise((1600.0, 1200.0, 2000.0), (1500.0, 1450.0, 1550.0))),
}
OUT = (53, 150)


def both(pixels, sources, rule, kernel="bilinear", rows=(0, OUT[0]), device=None, width=OUT[1]):
    device = device or SimulatedDevice(2 << 30)
    body = GpuCoadd(pixels, sources, width, pixels.n_channels, rule, kernel)
    try:
        gpu = body(device, *rows, None)
    finally:
        body.close()
    cpu = coadd_block(pixels, sources, *rows, width, pixels.n_channels, rule, kernel)
    assert device.pool.used == 0
    return gpu, cpu


@pytest.mark.parametrize("pattern", CFA_PATTERNS)
@pytest.mark.parametrize("shape", [(2, 2), (3, 5), (41, 60), (38, 61)])
@pytest.mark.parametrize(
    "colour", [None, CfaColour((900.0, 1000.0, 950.0), (11.0, 12.0, 13.0), (0.8, 1.0, 0.6))]
)
def test_debayering_is_that_of_the_cpu_bit_by_bit(pattern, shape, colour):
    raw = np.random.default_rng(0).integers(900, 1300, shape).astype(np.uint16)
    raw[0, 1] = 65535
    device = SimulatedDevice()
    queue = Queue(device)
    shares, planes = (device.empty((n * raw.size,), np.float32) for n in (2, 3))
    light = ((raw - np.float32(990.7)) * np.float32(1.0371)).astype(np.float32)
    for coded, stored in ((0, raw), (1, (raw ^ 0x8000).byteswap()), (2, light)):
        windows.debayer_on_card(
            queue, queue.upload(stored.view(np.uint16)), shape, pattern, colour, shares, planes, coded=coded
        )
        (found,) = queue.download(planes)
        samples = light if coded == 2 else raw
        np.testing.assert_array_equal(found.reshape(3, *shape), debayer(samples, pattern, colour=colour))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("raw", ["none", "all", "some", "calibrated"])
def test_every_rule_agrees_with_the_cpu(rule, raw):
    pixels = FakePixels(12, (41, 67), raw=raw, hot=40, missing=0.02)
    sources = make_sources(pixels, 12, OUT, turn=0.01, weighted=True)
    assert_blocks_agree(*both(pixels, sources, RULES[rule]))


@pytest.mark.parametrize("rule", ["mean", "winsor", "known"])
@pytest.mark.parametrize("raw", ["none", "all", "some"])
@pytest.mark.parametrize("kernel", ["bilinear", "lanczos3"])
def test_clipped_light_and_missing_spans_agree_with_the_cpu(rule, raw, kernel):
    pixels = FakePixels(7, (41, 67), raw=raw, hot=20, missing=0.01, clipped=True)
    sources = make_sources(pixels, 7, OUT, turn=0.02, weighted=True, radial=True)
    gpu, cpu = both(pixels, sources, RULES[rule], kernel)
    # Beside clipped stars the variance of two bright samples that are alike has few digits.
    assert_blocks_agree(gpu, cpu, ulps=64, flips=1e-3)
    assert cpu.clipped.sum() > 20
    np.testing.assert_array_equal(gpu.clipped, cpu.clipped)


def test_a_frame_with_a_great_many_missing_spans_is_decoded_by_its_source(monkeypatch):
    monkeypatch.setattr(reader, "MAX_SPANS", 5)
    pixels = FakePixels(6, (41, 67), raw="all", clipped=True)
    sources = make_sources(pixels, 6, OUT, turn=0.02)
    assert_blocks_agree(*both(pixels, sources, RULES["winsor"]))


@pytest.mark.parametrize(
    ("n", "rule"), list(itertools.product((1, 2, 3, 40, 200), ("winsor", "linear", "kappa", "mean")))
)
def test_any_number_of_sources(n, rule):
    pixels = FakePixels(n, (21, 27), n_channels=1, missing=0.05)
    sources = make_sources(pixels, n, (24, 30), turn=0.002, weighted=True, feather=4.0)
    gpu, cpu = both(pixels, sources, RULES[rule], rows=(0, 24), width=30)
    assert_blocks_agree(gpu, cpu, ulps=16 if n > 100 else 4, flips=2e-3)


@pytest.mark.parametrize("depth", [100, 128, 129, 200, 300, 513])
@pytest.mark.parametrize("rule", ["winsor", "linear", "kappa", "winsor median"])
def test_long_runs_and_merged_runs_agree_with_the_cpu(depth, rule):
    pixels = FakePixels(depth, (9, 11), n_channels=1, missing=0.05)
    sources = make_sources(pixels, depth, (12, 14), turn=0.1 / depth, scatter=1.0, weighted=True)
    device = SimulatedDevice(1 << 30)
    assert storage_for(depth, RULES[rule], device.info).kind == (IN_SHARED if depth <= 128 else IN_BLOCK)
    gpu, cpu = both(pixels, sources, RULES[rule], rows=(0, 12), device=device, width=14)
    assert_blocks_agree(gpu, cpu, ulps=16, flips=5e-3)


@pytest.mark.parametrize("rule", ["winsor", "linear", "winsor median"])
@pytest.mark.parametrize("pixels_of_block", [(), (1,), (2,)])
def test_columns_too_deep_for_a_block_and_those_that_just_fit(rule, pixels_of_block, monkeypatch):
    """As with ten thousand frames; here the limits are lowered instead."""
    monkeypatch.setattr(combine, "BLOCK_PIXELS", pixels_of_block)
    device = SimulatedDevice(1 << 30)
    storage = storage_for(300, RULES[rule], device.info)
    assert storage.kind == (IN_BLOCK if pixels_of_block else IN_SCRATCH)
    pixels = FakePixels(300, (9, 11), n_channels=2, missing=0.05, clipped=True)
    sources = make_sources(pixels, 300, (12, 14), turn=0.1 / 300, scatter=1.0, weighted=True, feather=3.0)
    gpu, cpu = both(pixels, sources, RULES[rule], rows=(0, 12), device=device, width=14)
    assert_blocks_agree(gpu, cpu, ulps=16, flips=5e-3)


@pytest.mark.parametrize("kernel", ["bilinear", "lanczos3"])
@pytest.mark.parametrize("rule", ["mean", "winsor"])
def test_kernels_feather_and_weight_maps(kernel, rule):
    pixels = FakePixels(6, (44, 71), weights=True, missing=0.01, raw="some")
    sources = make_sources(pixels, 6, OUT, turn=0.05, bend=2e-6, feather=12.0, weighted=True, radial=True)
    gpu, cpu = both(pixels, sources, RULES[rule], kernel)
    assert_blocks_agree(gpu, cpu, ulps=16 if kernel == "lanczos3" else 4, flips=1e-3)


@pytest.mark.parametrize(("size", "key", "turn"), [((41, 67), 2, 0.05), ((1, 60), 0, 0.0), ((30, 1), 0, 0.0)])
def test_a_radial_pattern_is_sampled_bit_by_bit_alike(size, key, turn):
    """One source and no rejection: what is compared are the samples themselves."""
    pixels = FakePixels(3, size)
    source = make_sources(pixels, 3, OUT, turn=turn, radial=True)[key]
    gpu, cpu = both(pixels, [source], RULES["mean"])
    sx, sy = map_coordinates_at(source.pixel_map, *np.meshgrid(np.arange(OUT[1]), np.arange(OUT[0])))
    inner = ((sx >= 2) | (sx == np.round(sx))) & ((sy >= 2) | (sy == np.round(sy)))
    assert np.isfinite(gpu.image[:, inner]).sum() > 80
    np.testing.assert_array_equal(gpu.image[:, inner], cpu.image[:, inner])
    # A coordinate below two is rounded twice on the card.
    np.testing.assert_allclose(gpu.image, cpu.image, rtol=2e-7)
    source = dataclasses.replace(source, surface=None)
    gpu, _ = both(pixels, [source], RULES["mean"])
    plain, _ = both(pixels, [dataclasses.replace(source, radial=None)], RULES["mean"])
    assert np.nanmax(np.abs(gpu.image - plain.image)) > 10
    zeros, _ = both(pixels, [dataclasses.replace(source, radial=0 * source.radial)], RULES["mean"])
    np.testing.assert_array_equal(zeros.image, plain.image)


def test_tiles_of_a_mosaic_at_whole_pixels_come_through_unchanged():
    pixels = FakePixels(30, (17, 40), seed=5)
    sources = make_sources(pixels, 30, (90, 300), spread=True)
    gpu, cpu = both(pixels, sources, RULES["kappa"], rows=(0, 90), width=300)
    assert_blocks_agree(gpu, cpu)
    assert (cpu.coverage == 0).any()


def test_rows_without_sources_are_empty():
    pixels = FakePixels(2, (20, 30))
    sources = make_sources(pixels, 2, (90, 40))
    gpu, cpu = both(pixels, sources, RULES["winsor"], rows=(60, 80), width=40)
    for name in ("image", "weight", "coverage", "variance", "rejected_low", "rejected_high"):
        np.testing.assert_array_equal(getattr(gpu, name), getattr(cpu, name))
        assert getattr(gpu, name).dtype == getattr(cpu, name).dtype


@pytest.mark.parametrize("rule", ["winsor", "linear", "mean", "known"])
def test_the_result_does_not_depend_on_the_chunks_bit_by_bit(rule):
    pixels = FakePixels(9, (41, 67), raw="some", hot=30)
    sources = make_sources(pixels, 9, OUT, turn=0.02, feather=6.0, weighted=True)
    device = SimulatedDevice(1 << 30)
    body = GpuCoadd(pixels, sources, OUT[1], 3, RULES[rule], "lanczos3")
    whole = body(device, 0, OUT[0], None)
    for edges in ((0, 17, 53), (0, 1, 2, 33, 40, 53)):
        ranges = list(itertools.pairwise(edges))
        pieces = [body(device, *r, n) for r, n in zip(ranges, [*ranges[1:], None], strict=True)]
        parts = stitch(pieces)
        for name in ("image", "weight", "coverage", "variance", "rejected_low", "rejected_high"):
            np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name), err_msg=name)
    body.close()


@pytest.mark.parametrize("rule", ["winsor", "mean", "known"])
@pytest.mark.parametrize("raw", ["none", "all", "calibrated"])
def test_the_plan_is_the_peak(rule, raw, monkeypatch):
    pixels = FakePixels(10, (200, 120), raw=raw, weights=raw == "none")
    plain = raw != "none"
    sources = make_sources(
        pixels, 10, (210, 130), turn=0.004, feather=0.0 if plain else 3.0, radial=not plain
    )
    device = SimulatedDevice(2 << 30)
    body = GpuCoadd(pixels, sources, 130, 3, RULES[rule], "bilinear")
    result = combine.Combiner.result

    def when_the_next_is_filled(self):
        if body._begun is not None:
            body._begun.filled.result()
        return result(self)

    monkeypatch.setattr(combine.Combiner, "result", when_the_next_is_filled)
    for rows in (210, 70):
        planned = body.workload("stack", 210, device.info).peak(rows)
        body.expect(rows)
        device.peak_bytes(reset=True)
        for y0 in range(0, 210, rows):
            body(device, y0, y0 + rows, None if y0 + rows == 210 else (y0 + rows, y0 + 2 * rows))
        assert 0.85 * planned <= device.peak_bytes() <= planned
    body.close()
    assert device.pool.used == 0


def test_the_next_block_comes_to_the_card_while_this_one_is_finished(monkeypatch):
    """Two blocks in flight: this one is not handed out before a thread has begun to sample the next one."""
    pixels = FakePixels(3, (110, 60))
    sources = make_sources(pixels, 3, (120, 64))
    device = SimulatedDevice()
    two_blocks = threading.Event()

    def hook(card, kind, n_bytes):
        if card.launches.count("combine_pool") == 1 and card.launches.count("sample_source") == 4:
            two_blocks.set()

    device.hooks.append(hook)
    result = combine.Combiner.result
    waited = []

    def when_the_next_is_there(self):
        if not waited:
            waited.append(two_blocks.wait(30))
        return result(self)

    monkeypatch.setattr(combine.Combiner, "result", when_the_next_is_there)
    body = GpuCoadd(pixels, sources, 64, 3, RULES["winsor"], "bilinear")
    blocks = [body(device, 0, 60, (60, 120)), body(device, 60, 120, None)]
    assert waited == [True]
    body.close()
    cpu = coadd_block(pixels, sources, 0, 120, 64, 3, RULES["winsor"], "bilinear")
    assert_blocks_agree(stitch(blocks), cpu)
    assert device.pool.used == 0


def test_a_block_that_was_begun_in_vain_leaves_nothing():
    pixels = FakePixels(4, (150, 40), raw="some", hot=20)
    sources = make_sources(pixels, 4, (150, 40))
    device = SimulatedDevice()
    body = GpuCoadd(pixels, sources, 40, 3, RULES["winsor"], "lanczos3")
    body(device, 0, 60, (60, 120))
    assert body._begun is not None
    body.discard()
    assert device.pool.used == 0
    first = body(device, 0, 60, (60, 120))
    other = body(device, 60, 80, None)  # the plan changed: the block that was begun is of no use
    cpu = coadd_block(pixels, sources, 0, 80, 40, 3, RULES["winsor"], "lanczos3")
    assert_blocks_agree(stitch([first, other]), cpu, ulps=16)
    body.close()
    assert device.pool.used == 0


def test_low_blocks_are_alone():
    """A few rows of a turned frame need many rows of it: two low blocks would load nearly everything twice."""
    pixels = FakePixels(4, (200, 300))
    sources = make_sources(pixels, 4, (220, 320), turn=0.1)
    device = SimulatedDevice()
    body = GpuCoadd(pixels, sources, 320, 3, RULES["winsor"], "bilinear")
    workload = body.workload("stack", 220, device.info)
    assert 100 < workload.in_flight_rows < 220
    assert workload.peak(50) < workload.peak(workload.in_flight_rows) / 2
    body.expect(50)
    body(device, 0, 50, (50, 100))
    assert body._begun is None
    body.close()


def test_a_frame_with_a_great_many_hot_pixels_is_decoded_by_its_source(monkeypatch):
    monkeypatch.setattr(coadd, "MAX_HOT", 3)
    monkeypatch.setattr(windows, "MAX_HOT", 3)
    pixels = FakePixels(4, (40, 60), raw="all", hot=20)
    sources = make_sources(pixels, 4, OUT)
    assert_blocks_agree(*both(pixels, sources, RULES["mean"]))


def test_cancel_stops_between_sources_and_leaves_nothing():
    class After:
        def __init__(self, n):
            self.n = n

        def is_set(self):
            self.n -= 1
            return self.n < 0

    pixels = FakePixels(5, (20, 30))
    device = SimulatedDevice()
    body = GpuCoadd(
        pixels, make_sources(pixels, 5, OUT), OUT[1], 3, RULES["winsor"], "bilinear", cancel=After(3)
    )
    with pytest.raises(Cancelled):
        body(device, 0, OUT[0], None)
    body.close()
    assert device.pool.used == 0


def test_storage_follows_the_depth_and_the_card():
    pascal = DeviceInfo("", "", compute_capability=61, shared_bytes=48 << 10, total_bytes=2 << 30)
    ada = DeviceInfo("", "", compute_capability=89, shared_bytes=99 << 10, total_bytes=8 << 30)
    rule = RULES["winsor"]
    for info in (pascal, ada):
        for depth in (1, 8, 9, 33, 60, 64, 65, 100, 128):
            storage = storage_for(depth, rule, info)
            assert storage.kind == IN_SHARED
            assert depth <= storage.run < depth + 16
            grid, shared = storage.geometry(10, 1000)
            assert shared <= 16 << 10
            assert grid[0] * storage.threads >= 128
        for depth in (129, 700, 1500, 5000):
            storage = storage_for(depth, rule, info)
            assert storage.kind == IN_BLOCK
            assert depth <= storage.rows < depth + storage.run
            grid, shared = storage.geometry(10, 1000)
            # Two blocks beside each other on any card, and neighbours that share lines of memory where there is room.
            assert shared <= 48 << 10
            assert storage.columns == {129: 4, 700: 4, 1500: 2, 5000: 1}[depth]
            assert grid == (1000 // storage.columns, 10)
        for depth in (20_000, 100_000):
            storage = storage_for(depth, rule, info)
            assert storage.kind == IN_SCRATCH
            assert storage.rows >= depth
            assert storage.rows % storage.run == 0
            assert storage.columns % storage.threads == 0
            assert storage.scratch_bytes <= max(info.total_bytes // 64, 8 * 128 * storage.rows)
        assert storage_for(500, RULES["mean"], info).kind == UNSORTED
        assert storage_for(5, RULES["median"], info).kind == IN_SHARED


@pytest.mark.parametrize("depth", [12, 100, 300])
def test_many_small_launches_give_the_same_block(monkeypatch, depth):
    """A launch is bounded, so that no system kills it; where it is cut changes nothing."""
    pixels = FakePixels(depth, (13, 15), n_channels=1)
    sources = make_sources(pixels, depth, (16, 18), turn=0.002)
    device = SimulatedDevice(1 << 30, drives_display=True)
    body = GpuCoadd(pixels, sources, 18, 1, RULES["winsor"], "bilinear")
    whole = body(device, 0, 16, None)
    before = device.launches.count("combine_pool")
    monkeypatch.setattr(combine, "LAUNCH_SAMPLES", (5 * 18 * depth,) * 4)
    cut = body(device, 0, 16, None)
    body.close()
    assert (before, device.launches.count("combine_pool")) == (1, 5)
    for name in ("image", "weight", "coverage", "variance", "rejected_low", "rejected_high"):
        np.testing.assert_array_equal(getattr(cut, name), getattr(whole, name))


def test_large_windows_are_read_by_fewer_threads():
    pixels = FakePixels(2, (40, 50))
    sources = make_sources(pixels, 2, OUT)
    window = 40 * 50 * 12
    for share, expected in ((0, 8), (7 * window, 1), (10 * window, 3), (100 * window, 8), (1, 1)):
        body = GpuCoadd(pixels, sources, OUT[1], 3, RULES["mean"], "bilinear", threads=8, host_bytes=share)
        assert body._readers() == expected


class SlowPixels(FakePixels):
    """Notes which windows are asked for."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.asked = []

    def read(self, key, y0, y1, x0, x1):
        self.asked.append((key, y0))
        return super().read(key, y0, y1, x0, x1)


def test_the_next_block_is_read_while_the_card_works_on_this_one():
    pixels = SlowPixels(4, (40, 40))
    sources = make_sources(pixels, 4, (40, 40), scatter=0.0)
    ahead = ReadAhead(pixels, raw=False, max_hot=10, threads=2)
    this, following = (parts_of_block(sources, a, b, 40, "bilinear") for a, b in ((0, 20), (20, 40)))
    for index in range(4):
        assert ahead.take(this, index, following).planes.shape[0] == 3
    deadline = time.monotonic() + 10
    while len(pixels.asked) < 7 and time.monotonic() < deadline:
        time.sleep(0.01)
    # Three windows are ready before anybody takes them; the first four were taken.
    wanted = [(part.source.key, part.window[0]) for part in (*this, *following[:3])]
    assert sorted(pixels.asked) == sorted(wanted)
    assert ahead.take(following, 0, []).planes is not None
    smaller = parts_of_block(sources, 20, 30, 40, "bilinear")  # the plan changed: what was read is of no use
    window = ahead.take(smaller, 0, [])
    np.testing.assert_array_equal(window.planes, pixels.read(0, *smaller[0].window))
    ahead.close()


def co_added(device, pixels, sources, sink, **options):
    records = []
    with seam.install(device):
        environ = {"ZEMOSAIC_GPU_RESERVE_MB": "0", "ZEMOSAIC_GPU_CHUNK_ROWS": "20"}
        policy = GpuPolicy(mode="auto", environ=environ, on_record=records.append)
        coadd_on_grid(
            pixels, sources, OUT, 3, RULES["winsor"], "bilinear",
            sink=sink, budget_bytes=1 << 28, policy=policy, **options,
        )  # fmt: skip
        policy.close()
    return records


def test_pages_that_cannot_be_locked_cost_time_and_nothing_else():
    pixels = FakePixels(6, (60, 150), raw="some")
    sources = make_sources(pixels, 6, OUT)
    device = SimulatedDevice(64 << 20)
    tries = []

    def refuse(dev, kind, n_bytes):
        if kind == "pinned":
            tries.append(n_bytes)
            raise CUDARuntimeError(2)

    device.hooks.append(refuse)
    blocks = []
    records = co_added(device, pixels, sources, lambda y0, y1, block: blocks.append(block))
    cpu = coadd_block(pixels, sources, 0, OUT[0], OUT[1], 3, RULES["winsor"], "bilinear")
    assert_blocks_agree(stitch(blocks), cpu)
    assert len(tries) < 4  # threads may ask at the same time; nobody asks again
    (said,) = [record for record in records if record["kind"] == "staging"]
    assert (said["reason"], said["key"], said["level"]) == ("pageable", "gpu_pageable", "INFO")
    assert not [record for record in records if record["kind"] in ("split", "fallback")]


@pytest.mark.parametrize("restarts", [True, False])
def test_wrong_columns_of_a_card_are_not_in_the_result(restarts, monkeypatch):
    """As a card with bad memory does: six columns, from the second block on."""
    pixels = FakePixels(8, (60, 150))
    sources = make_sources(pixels, 8, OUT)
    device = SimulatedDevice(64 << 20)
    right, images = device.copy_out, []

    def wrong(host, source, stream):
        right(host, source, stream)
        if host.dtype == np.float32 and host.ndim == 3:
            images.append(host)
            if len(images) > 3:  # image, weight and variance of a block
                stream.push(lambda: host.__setitem__((0, slice(None), slice(3, 9)), host[0, :, 3:9] * 1.5))

    device.copy_out = wrong
    monkeypatch.setattr(ladder, "draw_rows", lambda rows, chunk_rows: [5, 30])
    blocks = []
    records = co_added(
        device, pixels, sources, lambda y0, y1, block: blocks.append(block),
        restart=blocks.clear if restarts else None,
    )  # fmt: skip
    cpu = coadd_block(pixels, sources, 0, OUT[0], OUT[1], 3, RULES["winsor"], "bilinear")
    assert_blocks_agree(stitch(blocks), cpu)
    (fallback,) = [record for record in records if record["kind"] == "fallback"]
    assert (fallback["reason"], fallback["scope"], fallback["level"]) == ("wrong_results", "run", "WARN")
    assert fallback["rows"][0] == (0 if restarts else blocks[0].image.shape[1])


@pytest.mark.parametrize("most", [1, 3])
def test_bounded_passes_give_the_same_result(most):
    pixels = FakePixels(9, (60, 150), raw="all")
    sources = make_sources(pixels, 9, OUT)
    cpu = coadd_block(pixels, sources, 0, OUT[0], OUT[1], 3, RULES["winsor"], "bilinear")
    rows = rows_per_pass(sources, most)
    assert most <= rows < OUT[0]
    blocks = []
    coadd_on_grid(
        pixels, sources, OUT, 3, RULES["winsor"], "bilinear", sink=lambda y0, y1, block: blocks.append(block),
        budget_bytes=1 << 28, max_frames_per_pass=most, threads=1,
    )  # fmt: skip
    assert max(block.image.shape[1] for block in blocks) <= rows
    for name in ("image", "weight", "coverage"):
        np.testing.assert_array_equal(getattr(stitch(blocks), name), getattr(cpu, name))
    blocks.clear()
    co_added(
        SimulatedDevice(64 << 20), pixels, sources, lambda y0, y1, block: blocks.append(block),
        max_frames_per_pass=most,
    )  # fmt: skip
    assert max(block.image.shape[1] for block in blocks) <= rows
    assert_blocks_agree(stitch(blocks), cpu)


@pytest.mark.parametrize("rule", ["mean", "kappa"])
def test_counts_do_not_wrap(rule):
    """More than sixteen bits of samples: the counts stay at their largest value, and the mean is right."""
    n = 65_540
    stack = np.random.default_rng(1).normal(1000, 10, (n, 1, 1, 3)).astype(np.float32)
    cpu = combine_stack(stack, RULES[rule], threads=1)
    assert cpu.coverage.max() == 65_535
    assert np.isfinite(cpu.image).all()
    counts = np.full((1, 1, 3), 70_000, np.uint32)
    sums = np.full((5, 1, 1, 3), 70_000.0)
    image, weight, variance = (np.empty((1, 1, 3), np.float32) for _ in range(3))
    coverage = np.zeros((1, 3), np.uint16)
    bounds, clipped = np.full((1, 1, 3), BOUND_MARK, np.int32), np.zeros((1, 1, 3), np.uint16)
    _finish_sums(sums, counts, bounds, clipped, image, weight, variance, coverage)
    assert (coverage == 65_535).all()
    assert (image == 1).all()


def test_the_card_counts_no_further_than_the_processor():
    text = kernels.source("combine")
    assert len(re.findall(r"\(unsigned short\)min\([^;]*, 65535\);", text)) == 4


def test_holes_beside_clipped_stars_are_closed_alike():
    pixels = FakePixels(4, (41, 67))
    for image in pixels.images.values():
        image[:] = np.clip(image / 4, 340, 380)
        image[:, 8:33, 30:32] = 65535
    sources = make_sources(pixels, 4, OUT, turn=0.05)
    gpu, cpu = both(pixels, sources, RULES["mean"], "lanczos3")
    assert_blocks_agree(gpu, cpu, ulps=16)
    raised = FakePixels(4, (41, 67))
    for key, image in pixels.images.items():
        raised.images[key] = image + np.float32(40000)
    before = coadd_block(raised, sources, 0, OUT[0], OUT[1], 3, RULES["mean"], "lanczos3")
    assert np.nanmin(before.image - cpu.image) < 35000
