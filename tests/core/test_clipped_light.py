"""Light that was cut off: found over a camera's frames, carried as NaN, used only where there is nothing else."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import twins_coadd as twins
from scipy import ndimage

from zemosaic_core.cfa import CFA_PATTERNS, debayer, shift_pattern
from zemosaic_core.clipped_light import (
    bounds_of,
    clip_levels,
    mark_clipped_cfa,
    mark_clipped_planes,
    samples_below,
    with_bounds,
)
from zemosaic_core.coadd import coadd_block
from zemosaic_core.pixel_map import build_pixel_map
from zemosaic_core.raw_defects import ceilings, joined_ceiling
from zemosaic_core.sources import CoaddSource, CombineRule, SampleNoise

RULES = [
    CombineRule("none"),
    CombineRule("winsorized_sigma_clip"),
    CombineRule("kappa_sigma", combine="median", noise=SampleNoise((900.0,), (1000.0,))),
]


def test_a_bound_comes_back_rounded_down():
    values = np.array([1e-30, 0.5, 1.0, 440.0, 65535.0, 3.1e5, 3e38], np.float32)
    held = with_bounds(values)
    assert np.isnan(held).all()
    found = bounds_of(held)
    assert (found <= np.maximum(values, 2.0**-100)).all()
    np.testing.assert_allclose(found, np.maximum(values, 2.0**-100), rtol=7e-5)
    assert (bounds_of(with_bounds(np.array([0.0, -5.0], np.float32))) > 0).all()


def test_other_values_hold_no_bound():
    words = np.array([0x7FC00000, 0xFFC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800000, 0xFF800000], np.uint32)
    others = np.concatenate([words.view(np.float32), np.array([0, -1, 65535, -1e30], np.float32)])
    assert np.isnan(bounds_of(others)).all()
    assert np.isnan(bounds_of(with_bounds(np.array([np.nan], np.float32)))).all()


def evidence(*rows):
    return np.array(rows, float)[:, None, :]


def test_the_ceiling_of_a_camera_is_what_its_frames_say_together():
    cut, few, none = (50000, 40, 30, 2), (49900, 2, 2, 0), (30000, 2, 2, 1)
    levels = clip_levels(evidence(cut, few, none, none), ["a", "a", "a", "b"])
    assert levels.shape == (4, 1)
    # All frames of the camera get it, also those that reach it with one pixel, or never.
    assert (levels[:3] < 49900).all()
    assert (levels[:3] > 49000).all()
    assert np.isinf(levels[3])


@pytest.mark.parametrize(
    "rows",
    [
        [(20000, 60, 50, 0), (52000, 2, 2, 1)],  # a plateau far below what another frame reaches
        [(60000, 2, 2, 3)],  # the peak of a star
        [(60000, 30, 20, 200)],  # noise on diffuse light
        [(np.nan,) * 4],  # an empty plane of a picture
    ],
)
def test_what_is_no_ceiling(rows):
    assert np.isinf(clip_levels(evidence(*rows), ["a"] * len(rows))).all()


def test_levels_follow_the_sensor_whatever_its_range():
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:64, :80]
    for top in (4095, 15800, 61000):
        star = 3.0 * top * np.exp(-((y - 30) ** 2 + (x - 40) ** 2) / 18.0)
        rows = []
        for k in range(3):
            frame = np.minimum(rng.normal(300, 9, y.shape) + star * 0.4**k, top).astype(np.uint16)
            rows.append(joined_ceiling(ceilings(frame)))
        levels = clip_levels(np.array(rows, float)[:, None], ["a"] * 3)
        assert (levels <= top).all()
        assert (levels > 0.98 * top).all()


def marked_by_hand(planes, sensor, pattern, levels):
    """What `mark_clipped_cfa` defines, pixel by pixel: (bound or NaN, whether it replaces the value)."""
    height, width = sensor.shape
    found = np.full(planes.shape, np.nan)

    def colour(y, x):
        return "RGB".index(pattern[2 * (y % 2) + x % 2])

    def over(y, x):
        inside = 0 <= y < height and 0 <= x < width
        return inside and sensor[y, x] >= levels[colour(y, x)]

    for y in range(height):
        for x in range(width):
            for c in range(3):
                around = [(y + j, x + i) for j in (-1, 0, 1) for i in (-1, 0, 1)]
                taps = [(y, x)] if colour(y, x) == c else [p for p in around if colour(*p) == c]
                if any(over(*p) for p in taps):
                    found[c, y, x] = levels[c]
                elif over(y, x):
                    found[c, y, x] = planes[c, y, x]
    return found


@pytest.mark.parametrize("pattern", CFA_PATTERNS)
def test_marking_agrees_with_its_definition(pattern):
    rng = np.random.default_rng(5)
    sensor = rng.integers(900, 1100, (25, 33)).astype(np.uint16)
    sensor[rng.uniform(size=sensor.shape) < 0.03] = 60000
    sensor[10:14, 20:25] = 60000
    levels = (59000.0, 60000.0, np.inf)
    for y0, x0 in ((0, 0), (1, 0), (0, 1)):
        window, name = np.ascontiguousarray(sensor[y0:, x0:]), shift_pattern(pattern, y0, x0)
        planes = debayer(window, name)
        expected = marked_by_hand(planes, window, name, levels)
        marked = planes.copy()
        mark_clipped_cfa(marked, window, name, levels)
        held = np.isfinite(expected)
        np.testing.assert_array_equal(np.isnan(marked), held)
        np.testing.assert_allclose(bounds_of(marked)[held], expected[held], rtol=7e-5)
        np.testing.assert_array_equal(marked[~held], planes[~held])
    mono = np.array([[[1.0, 60000.0, np.nan]]], np.float32)
    mark_clipped_planes(mono, np.array([50000.0]))
    assert mono[0, 0, 0] == 1.0
    np.testing.assert_allclose(bounds_of(mono)[0, 0], [np.nan, 50000.0, np.nan], rtol=7e-5)


class Images:
    def __init__(self, images):
        self.images = images

    def read(self, key, y0, y1, x0, x1):
        return np.ascontiguousarray(self.images[key][:, y0:y1, x0:x1])

    def read_weight(self, key, y0, y1, x0, x1):
        return None

    def read_raw(self, key, y0, y1):
        return None


def placed(key, shape, gain, *, radial=None, offset=0.0, angle=0.0):
    """A source of the grid's own size, shifted by fractions of a pixel."""
    dx, dy = np.random.default_rng(key).uniform(-1.5, 1.5, 2)
    c, s = np.cos(angle), np.sin(angle)
    box = (0, shape[0], 0, shape[1])
    return CoaddSource(
        key, shape, build_pixel_map(lambda x, y: (c * x - s * y + dx, s * x + c * y + dy), box), box,
        np.array([[gain, offset, 3.0, -2.0]], np.float32), np.array([1.0 + 0.2 * key], np.float32), radial=radial,
    )  # fmt: skip


@pytest.mark.parametrize("kernel", ["bilinear", "lanczos3"])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.rejection}-{rule.combine}")
def test_the_engine_agrees_with_the_plain_twin(rule, kernel):
    rng = np.random.default_rng(1)
    shape, images, sources, free, held = (30, 36), {}, [], [], []
    for key in range(4):
        image = rng.normal(1000, 30, (1, *shape)).astype(np.float32)
        at_least = image.copy()
        clipped = np.zeros(shape, bool)
        clipped[8:14, 9:15] = True
        clipped[20:24, 5 * key : 5 * key + 6] = True
        at_least[0, clipped] = 5000 + 10 * key
        image[0, clipped] = with_bounds(at_least[0, clipped])
        image[:, 11, 12] = at_least[:, 11, 12] = np.nan
        images[key] = image
        radial = np.array([[0.1, 0.02, 5, 3]], np.float32) if key == 2 else None
        sources.append(placed(key, shape, 0.9 + 0.1 * key, radial=radial, angle=0.1 * key))
        box = sources[-1].bbox
        free.append(twins.sample(sources[-1], image, None, box, kernel)[0])
        held.append(twins.sample(sources[-1], at_least, None, box, "bilinear")[0])
    weights = np.array([source.weight for source in sources], float)
    free, held = np.array(free), np.array(held)
    expected = twins.combine(free, weights, None, rule)
    bound = np.where(np.isfinite(free), np.nan, held)
    highest = np.nanmax(np.where(np.isfinite(bound), bound, -np.inf), axis=0)
    only = (expected["count"] == 0) & np.isfinite(highest)
    assert only.sum() > 15
    assert (np.isfinite(bound).any(axis=0) & (expected["count"] > 0)).sum() > 15
    block = coadd_block(Images(images), sources, 0, shape[0], shape[1], 1, rule, kernel)
    np.testing.assert_array_equal(block.clipped, only)
    np.testing.assert_allclose(block.image[only], highest[only], rtol=1e-4)
    np.testing.assert_allclose(block.image[~only], expected["image"][~only], rtol=1e-4)
    clipped_count = np.where(only, np.isfinite(bound).sum(axis=0), 0).max(axis=0)
    np.testing.assert_array_equal(block.coverage, np.maximum(expected["count"].max(axis=0), clipped_count))
    for rows in ((0, 7), (7, 8), (8, 30)):
        part = coadd_block(Images(images), sources, *rows, shape[1], 1, rule, kernel, threads=3)
        np.testing.assert_array_equal(part.image, block.image[:, slice(*rows)])


@pytest.mark.parametrize("frames", [1, 3, 8])
@pytest.mark.parametrize("exposures", [(1.0,), (1.0, 3.0), (0.2, 1.0)])
def test_no_star_gets_a_spike_or_a_hole(frames, exposures):
    """Stars of 0.5 to 60 times the ceiling in frames of two exposures through air of 0.4 to 1."""
    rng = np.random.default_rng(frames)
    shape, top = (60, 240), 60000.0
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    images, sources = {}, []
    for key in range(frames * len(exposures)):
        air, exposure = rng.uniform(0.4, 1.0), exposures[key % len(exposures)]
        sources.append(placed(key, shape, 1 / (air * exposure), offset=-300 / air))
        dx, dy = np.random.default_rng(key).uniform(-1.5, 1.5, 2)
        sigma = rng.uniform(1.0, 1.25)
        light = np.full(shape, 300.0 * exposure)
        for n, height in enumerate((0.5, 1.3, 2.5, 6.0, 20.0, 60.0)):
            r2 = (y - 30 - dy) ** 2 + (x - 20 - 40 * n - dx) ** 2
            light += air * exposure * height * top * (1 + r2 / (4 * sigma**2)) ** -2.5
        frame = np.minimum(light + rng.normal(0, 12, shape), top).astype(np.float32)[None]
        mark_clipped_planes(frame, np.array([top - 1]))
        images[key] = frame
    rule = CombineRule(noise=SampleNoise((150.0,), (0.0,)))
    block = coadd_block(Images(images), sources, 0, *shape, 1, rule, "lanczos3")
    image = block.image[0]
    assert np.isfinite(image[4:-4, 4:-4]).all()
    lowest = top * min(float(s.photometry[0, 0]) for s in sources) - 800
    for n in range(6):
        cut = image[20:41, 10 + 40 * n : 31 + 40 * n]
        flagged = block.clipped[0, 20:41, 10 + 40 * n : 31 + 40 * n]
        peak = cut.max()
        if flagged.any():
            # Nothing that was cut off lies below what the clearest frame could hold but for the rim of the core ...
            core = ndimage.binary_erosion(flagged, iterations=2)
            assert (cut[core] > 0.98 * lowest).all()
            # ... and the rim nowhere rises above the core.
            assert peak <= 1.02 * cut[flagged].max()
        # Towards the centre it gets brighter everywhere.
        profile = [np.mean(cut[10, [10 - r, 10 + r]] + cut[[10 - r, 10 + r], 10]) for r in range(9)]
        assert all(b <= 1.03 * a for a, b in pairwise(profile)), (n, profile)


@pytest.mark.parametrize("pattern", CFA_PATTERNS)
@pytest.mark.parametrize("shape", [(7, 9), (1, 4), (6, 1)])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_samples_below_the_level_of_their_colour_stay(pattern, shape, dtype):
    sensor = np.random.default_rng(3).integers(0, 100, shape).astype(dtype)
    if dtype is np.float32:
        sensor[0, 0] = np.nan
    levels = np.array([60.0, 50.0, np.inf], np.float32)
    plain = sensor.astype(np.float32)
    for y in range(shape[0]):
        for x in range(shape[1]):
            if plain[y, x] >= levels["RGB".index(pattern[2 * (y % 2) + x % 2])]:
                plain[y, x] = np.nan
    found = samples_below(sensor, pattern, levels)
    assert np.isnan(plain).any() or shape != (7, 9)
    np.testing.assert_array_equal(found, plain)
    np.testing.assert_array_equal(samples_below(sensor, pattern, None), sensor.astype(np.float32))
