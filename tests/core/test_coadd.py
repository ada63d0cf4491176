from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import twins_coadd as twins

from zemosaic_core.clipped_light import with_bounds
from zemosaic_core.coadd import (
    coadd_block,
    coadd_buffers,
    cut_by_samples,
    samples_of_rows,
    stack_columns_per_row,
)
from zemosaic_core.errors import Cancelled, SettingsError
from zemosaic_core.pixel_map import build_pixel_map, footprint_bbox, shift_pixel_map
from zemosaic_core.scratch import Scratch
from zemosaic_core.sources import CoaddSource, CombineRule, SampleNoise

FIELDS = ("image", "weight", "coverage", "variance", "rejected_low", "rejected_high")
RULES = [
    CombineRule("none"),
    CombineRule("none", combine="median"),
    CombineRule("kappa_sigma", 2.0, 2.0),
    CombineRule("winsorized_sigma_clip"),
    CombineRule("linear_fit_clip", combine="median"),
    CombineRule(noise=SampleNoise((800.0, 900.0, 1000.0), (1000.0, 990.0, 1010.0))),
]


def name_of(rule):
    return f"{rule.rejection}-{rule.combine}" + ("-known" if rule.noise else "")


class Images:
    """Images in memory that note what is read."""

    def __init__(self, images, maps=None):
        self.images, self.maps, self.pixels_read = images, maps or {}, 0

    def read(self, key, y0, y1, x0, x1):
        self.pixels_read += (y1 - y0) * (x1 - x0)
        return np.ascontiguousarray(self.images[key][:, y0:y1, x0:x1])

    def read_weight(self, key, y0, y1, x0, x1):
        return self.maps[key][y0:y1, x0:x1]

    def read_raw(self, key, y0, y1):
        return None


def make_scene(n=7, shape=(40, 34), out=(61, 75), seed=0, *, feather=True, maps=True):
    """Rotated images of a flat sky with outliers; some hang over the edge of the grid."""
    rng = np.random.default_rng(seed)
    images, sources, weight_maps = {}, [], {}
    height, width = shape
    for k in range(n):
        image = rng.normal(1000, 40, (3, *shape)).astype(np.float32)
        image[:, rng.integers(height), rng.integers(width)] = np.nan
        image[:, rng.integers(height)] += 3000
        angle = np.radians(rng.uniform(0, 360) if k % 3 else 0.0)
        c, s = np.cos(angle), np.sin(angle)
        ox, oy = rng.uniform(5, out[1] - 5), rng.uniform(5, out[0] - 5)

        def to_source(x, y, c=c, s=s, ox=ox, oy=oy):
            x, y = x - ox, y - oy
            return c * x - s * y + (width - 1) / 2, s * x + c * y + (height - 1) / 2

        def to_out(x, y, c=c, s=s, ox=ox, oy=oy):
            x, y = x - (width - 1) / 2, y - (height - 1) / 2
            return c * x + s * y + ox, -s * x + c * y + oy

        bbox = footprint_bbox(to_out, shape, out)
        images[k] = image
        has_map = maps and k % 4 == 1
        if has_map:
            weight_maps[k] = rng.uniform(0, 1, shape).astype(np.float32)
        terms = np.array([[rng.uniform(0.9, 1.1), rng.normal(0, 20), 3, -2] for _ in range(3)], np.float32)
        radial = np.array([[0.1, -0.04, 6, 5]] * 3, np.float32) if k % 3 == 2 else None
        weight = rng.uniform(0.2, 1, 3).astype(np.float32)
        sources.append(
            CoaddSource(
                k, shape, build_pixel_map(to_source, bbox), bbox, terms, weight,
                feather_px=8.0 if feather and k % 2 else 0.0, feather_start=0.1 * k, has_weight_map=has_map,
                radial=radial,
                surface=rng.normal(0, 4, (3, 21)).astype(np.float32) if k % 4 == 2 else None,
            )
        )  # fmt: skip
    return Images(images, weight_maps), sources, out


def twin_block(pixels, sources, out, rule, kernel):
    n, (height, width) = len(sources), out
    stack, maps = np.full((n, 3, height, width), np.nan), np.zeros((n, height, width))
    for k, source in enumerate(sources):
        y0, y1, x0, x1 = source.bbox
        weight_map = pixels.maps.get(source.key) if source.has_weight_map else None
        values, weights = twins.sample(source, pixels.images[source.key], weight_map, source.bbox, kernel)
        stack[k, :, y0:y1, x0:x1], maps[k, y0:y1, x0:x1] = values, weights
    return twins.combine(stack, np.array([source.weight for source in sources], float), maps, rule)


@pytest.mark.parametrize("kernel", ["bilinear", "lanczos3"])
@pytest.mark.parametrize("rule", RULES, ids=name_of)
def test_agrees_with_the_plain_twin(rule, kernel):
    pixels, sources, out = make_scene(n=8, shape=(30, 26), out=(33, 41))
    block = coadd_block(pixels, sources, 0, out[0], out[1], 3, rule, kernel)
    twin = twin_block(pixels, sources, out, rule, kernel)
    agree = (block.rejected_low == twin["rejected_low"]) & (block.rejected_high == twin["rejected_high"])
    assert agree.mean() > 0.999
    for name in ("image", "weight", "variance"):
        a, b = getattr(block, name)[agree], twin[name][agree]
        assert np.array_equal(np.isnan(a), np.isnan(b)), name
        # The variance of two samples that agree by chance has few digits left in float32.
        atol = {"image": 0.02, "weight": 1e-5, "variance": 2e-4}[name]
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=atol, err_msg=name)
    np.testing.assert_array_equal(block.coverage, twin["count"].max(axis=0))
    assert block.coverage.max() >= 4
    assert (block.coverage == 0).any()


@pytest.mark.parametrize("kernel", ["bilinear", "lanczos3"])
@pytest.mark.parametrize("rule", RULES, ids=name_of)
def test_blocks_and_threads_change_no_bit(rule, kernel):
    pixels, sources, out = make_scene(n=14, shape=(120, 90), out=(150, 400))
    whole = coadd_block(pixels, sources, 0, out[0], out[1], 3, rule, kernel, threads=2)
    y0 = 0
    for rows, threads in ((1, 1), (5, 3), (64, 1), (33, 2), (47, 5)):
        part = coadd_block(pixels, sources, y0, y0 + rows, out[1], 3, rule, kernel, threads=threads)
        for name in FIELDS:
            expected = getattr(whole, name)[..., y0 : y0 + rows, :]
            got = getattr(part, name)
            assert got.dtype == expected.dtype
            assert np.array_equal(got, expected, equal_nan=got.dtype.kind == "f"), (name, y0)
        y0 += rows
    assert y0 == out[0]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("k", [0, 1, 2])
def test_one_source_alone_gives_what_its_sums_give(k, threads):
    pixels, sources, out = make_scene()
    clipped = np.isfinite(pixels.images[k][:, ::5, ::7])
    pixels.images[k][:, ::5, ::7] = np.where(clipped, with_bounds(np.full(clipped.shape, 900.0)), np.nan)
    one = replace(sources[k], weight=np.array([0.7, 0, 0.3], np.float32))
    # Another one that touches the block, but has nothing there, sends the first one through the sums.
    corner = (0, 1, 0, 1)
    beside = replace(sources[3], pixel_map=shift_pixel_map(10_000, 10_000, corner), bbox=corner)
    alone = coadd_block(pixels, [one], 0, *out, 3, RULES[0], "lanczos3", threads=threads)
    summed = coadd_block(pixels, [one, beside], 0, *out, 3, RULES[0], "lanczos3")
    assert alone.clipped.any()
    assert np.isfinite(alone.image[0]).any()
    assert np.isnan(alone.image[1]).all()
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(alone, field), getattr(summed, field), err_msg=field)


class LentImages(Images):
    """The same images in larger windows, in memory that is overwritten afterwards."""

    @contextmanager
    def lend(self, scratch, key, y0, y1, x0, x1, columns=None):
        image = self.images[key]
        top, left, bottom, right = max(0, y0 - 3), max(0, x0 - 2), min(image.shape[1], y1 + 4), x1
        with scratch.floats(3, bottom - top, right - left) as window:
            window[:] = 1e9
            for y, (first, end) in enumerate(columns, start=y0):
                window[:, y - top, x0 + first - left : x0 + end - left] = image[:, y, x0 + first : x0 + end]
            yield window, (top, left)
            window[:] = -1e9


@pytest.mark.parametrize("kernel", ["bilinear", "lanczos3"])
@pytest.mark.parametrize("rule", [RULES[0], RULES[3]], ids=name_of)
def test_lent_windows_and_memory_used_again_change_no_bit(rule, kernel):
    pixels, sources, out = make_scene()
    lent, scratch = LentImages(pixels.images, pixels.maps), Scratch()
    for y0, y1 in ((0, 40), (40, 50), (50, out[0])):
        plain = coadd_block(pixels, sources, y0, y1, out[1], 3, rule, kernel)
        again = coadd_block(lent, sources, y0, y1, out[1], 3, rule, kernel, scratch=scratch)
        for field in FIELDS:
            np.testing.assert_array_equal(getattr(again, field), getattr(plain, field), err_msg=field)


def test_no_source_and_sources_elsewhere_give_an_empty_block():
    pixels, sources, out = make_scene(n=3)
    for rule in RULES:
        for chosen in ([], [s for s in sources if s.bbox[0] > 1]):
            block = coadd_block(pixels, chosen, 0, 1, out[1], 3, rule, "bilinear")
            assert np.isnan(block.image).all()
            assert block.coverage.sum() == 0
            assert block.weight.sum() == 0
            assert block.image.shape == (3, 1, out[1])


@pytest.mark.parametrize("rule", RULES, ids=name_of)
def test_integer_shift_of_one_image_is_a_copy(rule):
    image = np.random.default_rng(0).normal(1000, 50, (3, 20, 30)).astype(np.float32)
    image[:, 3, 4] = np.nan
    source = CoaddSource(
        0, (20, 30), shift_pixel_map(5, 8, (5, 25, 8, 38)), (5, 25, 8, 38),
        np.tile(np.array([1, 0, 0, 0], np.float32), (3, 1)), np.full(3, 0.3, np.float32),
    )  # fmt: skip
    block = coadd_block(Images({0: image}), [source], 0, 30, 40, 3, rule, "lanczos3")
    expected = np.full((3, 30, 40), np.nan, np.float32)
    expected[:, 5:25, 8:38] = image
    assert np.array_equal(block.image, expected, equal_nan=True)
    np.testing.assert_allclose(block.weight[0, 6, 9], 0.3, rtol=1e-6)


def test_a_source_without_weight_is_left_out_and_a_channel_without_weight_is_not_counted():
    pixels, sources, out = make_scene(n=2, feather=False, maps=False)
    silent = CoaddSource(**{**vars(sources[0]), "weight": np.zeros(3, np.float32)})
    one = CoaddSource(**{**vars(sources[1]), "weight": np.array([1, 0, 1], np.float32)})
    for rule in RULES[:3]:
        block = coadd_block(pixels, [silent, one], 0, out[0], out[1], 3, rule, "bilinear")
        assert np.isnan(block.image[1]).all()
        assert np.isfinite(block.image[0]).any()
        assert block.coverage.max() == 1


def test_a_rotated_frame_is_not_read_whole_for_a_few_rows():
    image = np.zeros((1, 1500, 1500), np.float32)
    c, s = np.cos(0.5), np.sin(0.5)
    pixel_map = build_pixel_map(lambda x, y: (c * x - s * y + 300, s * x + c * y), (0, 1200, 0, 1200))
    terms = np.array([[1, 0, 0, 0]], np.float32)
    source = CoaddSource(0, (1500, 1500), pixel_map, (0, 1200, 0, 1200), terms, np.ones(1, np.float32))
    pixels = Images({0: image})
    coadd_block(pixels, [source], 600, 616, 1200, 1, CombineRule("none"), "bilinear")
    whole_window = 1200 * c * 1200 * s
    assert pixels.pixels_read < whole_window / 3


def test_a_stop_is_honoured():
    pixels, sources, out = make_scene(n=3)
    stop = threading.Event()
    stop.set()
    for rule in RULES[:3]:
        with pytest.raises(Cancelled):
            coadd_block(pixels, sources, 0, out[0], out[1], 3, rule, "bilinear", cancel=stop)


def test_errors_of_the_pixel_source_and_of_the_rule_come_through():
    pixels, sources, out = make_scene(n=3)

    def fail(*_):
        raise OSError("gone")

    pixels.read = fail
    for rule in RULES[:3]:
        with pytest.raises(OSError, match="gone"):
            coadd_block(pixels, sources, 0, out[0], out[1], 3, rule, "bilinear")
    with pytest.raises(SettingsError):
        coadd_block(pixels, sources, 0, out[0], out[1], 3, CombineRule("magic"), "bilinear")
    pixels.read = lambda key, y0, y1, x0, x1: np.zeros((3, 1, 1), np.float32)
    with pytest.raises(ValueError, match="shape"):
        coadd_block(pixels, sources, 0, out[0], out[1], 3, RULES[0], "bilinear")


def test_memory_is_declared_by_columns_that_overlap():
    _, sources, out = make_scene(n=20, shape=(40, 34), out=(200, 300))
    columns = stack_columns_per_row(sources)
    true = max(
        sum(s.bbox[3] - s.bbox[2] for s in sources if s.bbox[0] <= y < s.bbox[1]) for y in range(out[0])
    )
    assert columns == true
    assert stack_columns_per_row([]) == 0
    by_name = {b.name: b for b in coadd_buffers(20, 3, 300, CombineRule(), True, columns=columns)}
    assert by_name["stack"].per_row == columns * 16
    assert "stack" not in {b.name for b in coadd_buffers(20, 3, 300, CombineRule("none"), True)}


def test_blocks_hold_equal_samples_and_begin_on_the_lattice():
    samples = np.concatenate([np.full(400, 10), np.full(100, 40), np.full(500, 20), np.zeros(300, int)])
    blocks = cut_by_samples(samples, 7, 1290, 4000, 350, lattice_rows=64, origin=3)
    assert blocks[0][0] == 7
    assert blocks[-1][1] == 1290
    assert all(a[1] == b[0] for a, b in pairwise(blocks))
    for a, b in blocks:
        assert samples[a:b].sum() <= 4000
        assert b - a <= 350
        assert b == 1290 or (b - 3) % 16 == 0
    # 20,000 samples and 300 empty rows.
    assert len(blocks) <= 8
    assert cut_by_samples(samples, 400, 403, 1, 100) == [(400, 401), (401, 402), (402, 403)]
    assert cut_by_samples(samples, 5, 5, 1, 100) == []
    # The rest of a block and a bit is shared.
    assert cut_by_samples(np.ones(110, int), 0, 110, 100, 100) == [(0, 55), (55, 110)]


def test_samples_of_rows_are_the_columns_of_the_sources_there():
    pixel_map = build_pixel_map(lambda x, y: (x, y), (0, 9, 0, 9))

    def source(*bbox):
        return CoaddSource(0, (9, 9), pixel_map, bbox, np.zeros((1, 4), np.float32), np.ones(1, np.float32))

    found = samples_of_rows([source(-2, 3, 0, 5), source(2, 20, 1, 4), source(4, 4, 0, 9)], 6)
    assert found.tolist() == [5, 5, 8, 3, 3, 3]


@pytest.mark.parametrize("start", [0.0, 0.5])
def test_noise_where_many_frames_end(start):
    """Variance over that of the best mean: weights that fall to nothing at every border cost a third of the light."""
    rng = np.random.default_rng(3)
    size, out = (90, 90), (150, 150)
    images, sources = [], []
    for k in range(16):
        images.append(rng.normal(0, 1, (3, *size)).astype(np.float32))
        dy, dx = rng.integers(0, 60, 2).tolist()
        bbox = (dy, dy + size[0], dx, dx + size[1])
        terms = np.tile(np.array([1, 0, 0, 0], np.float32), (3, 1))
        sources.append(
            CoaddSource(
                k, size, shift_pixel_map(dy, dx, bbox), bbox, terms, np.ones(3, np.float32),
                feather_px=30.0, feather_start=start,
            )
        )  # fmt: skip
    block = coadd_block(Images(images), sources, 0, out[0], out[1], 3, CombineRule("none"), "lanczos3")
    deep = block.coverage >= 4
    lost = float(((block.image**2).mean(axis=0) * block.coverage)[deep].mean())
    assert abs(lost - (1.03 if start else 1.53)) < 0.03
