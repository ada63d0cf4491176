"""The second pass against a plain twin, and a dithered night of known stars through it."""

from __future__ import annotations

from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import refine_cases as cases
import twins_colour as truth
from scipy import ndimage
from twins_coadd import coordinate

from zemosaic_align_stack import refine_on_grid
from zemosaic_core.cfa import CFA_PATTERNS
from zemosaic_core.errors import Cancelled
from zemosaic_core.refine import gather_block
from zemosaic_core.refine_rows import CoaddRows, RowsApart, RowsInTurn
from zemosaic_core.refine_structure import (
    HALO_ROWS,
    NEED_REACH,
    kernel_numbers,
    needed_places,
    read_places,
    refined,
    share_of_channels,
    structure_mask,
)

BRIGHT = 20000.0
WHITE, RED = BRIGHT * truth.STAR, BRIGHT * truth.STAR * (1.5, 0.8, 0.4)


# ------------------------------------------------------------------------------------------------ a plain twin


def keys(z, a=-0.6):
    z = abs(z)
    if z < 1:
        return (a + 2) * z**3 - (a + 3) * z**2 + 1
    return a * z**3 - 5 * a * z**2 + 8 * a * z - 4 * a if z < 2 else 0.0


def twin_difference(item, samples, image, y, x):
    """What the sample (y, x) differs from the co-add at its own place, or None."""
    source = item.source
    height, width = source.shape_hw
    ox, oy = coordinate(item.to_output, x, y)
    ix, iy = int(np.floor(ox)), int(np.floor(oy))
    if ix < 1 or iy < 1 or ix + 2 >= image.shape[2] or iy + 2 >= image.shape[1]:
        return None, None
    c = "RGB".index(item.pattern[2 * (y % 2) + x % 2]) if item.pattern else 0
    taps = image[c, iy - 1 : iy + 3, ix - 1 : ix + 3].astype(float)
    wy = np.array([keys(oy - (iy + k)) for k in range(-1, 3)])
    wx = np.array([keys(ox - (ix + k)) for k in range(-1, 3)])
    model = wy @ taps @ wx
    if item.blur_px2:
        inner = [
            [
                taps[j - 1, i] + taps[j + 1, i] + taps[j, i - 1] + taps[j, i + 1] - 4 * taps[j, i]
                for i in (1, 2)
            ]
            for j in (1, 2)
        ]
        model += item.blur_px2 * (np.array([1 - oy + iy, oy - iy]) @ inner @ np.array([1 - ox + ix, ox - ix]))
    u, t = 2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1
    q = (u**2 * (width - 1) ** 2 + t**2 * (height - 1) ** 2) / ((width - 1) ** 2 + (height - 1) ** 2)
    gain, c0, cx, cy = source.photometry[c].astype(float)
    f1, f2, d1, d2 = (0,) * 4 if source.radial is None else source.radial[c].astype(float)
    value = gain * samples[y, x] * (1 + f1 * q + f2 * q**2) + c0 + cx * u + cy * t + d1 * q + d2 * q**2
    r = value - model
    light = max(model - item.background[c], 0)
    allowed = min(0.7 * np.ptp(taps), 2 * light + 0.1 * np.ptp(taps))
    return (r, c) if abs(r) <= item.limit[c] + allowed else (None, None)


def twin_sums(made, image, mask, scale):
    out = np.zeros((8, *image.shape))
    for item in made.sources:
        source = item.source
        height, width = source.shape_hw
        samples = made.frames.read_samples(source.key, 0, height, 0, width).astype(float)
        wmap = made.frames.weights if source.has_weight_map else np.ones((height, width))
        known = {}
        for y, x in zip(*np.nonzero(mask), strict=True):
            if not (source.bbox[0] <= y < source.bbox[1] and source.bbox[2] <= x < source.bbox[3]):
                continue
            sx, sy = coordinate(source.pixel_map, x, y)
            edge = min(sx, sy, width - 1 - sx, height - 1 - sy)
            if not edge >= 0:
                continue
            start = source.feather_start
            way = (edge + 1) / source.feather_px if source.feather_px else 1.0
            ramp = min(start + (1 - start) * way, 1)
            for j in range(max(0, int(sy) - 1), min(height, int(sy) + 3)):
                for i in range(max(0, int(sx) - 1), min(width, int(sx) + 3)):
                    # Overlap of a sample of one pixel with an output pixel of 1 / scale.
                    ky, kx = (
                        scale * np.clip((1 + 1 / scale) / 2 - abs(d), 0, 1 / scale) for d in (j - sy, i - sx)
                    )
                    if ky * kx <= 0:
                        continue
                    if (j, i) not in known:
                        known[j, i] = twin_difference(item, samples, image, j, i)
                    r, c = known[j, i]
                    if r is None or not np.isfinite(r):
                        continue
                    w = source.weight[c] * ramp**2 * (3 - 2 * ramp) * wmap[j, i] * ky * kx
                    ox, oy = (a - b for a, b in zip(coordinate(item.to_output, i, j), (x, y), strict=True))
                    out[:, c, y, x] += w * r, w, (w * r) ** 2, w * w, w * ox, w * oy, w * r * ox, w * r * oy
    return out


def awkward(made, rng):
    """Give the frames of a night tilts, patterns of the detector, weights, a missing channel and missing pixels."""
    shape = made.sources[0].source.shape_hw
    made.frames.weights = rng.uniform(0, 1, shape).astype(np.float32)
    made.frames.missing = {key: rng.integers(0, shape[0] * shape[1], 40) for key in made.frames.raws}
    sources = []
    for k, item in enumerate(made.sources):
        channels = len(item.limit)
        terms = item.source.photometry.copy()
        terms[:, 2:] = rng.normal(0, 20, (channels, 2))
        weight = rng.uniform(0.3, 1, channels).astype(np.float32)
        weight[0] = 0 if k == 1 else weight[0]
        radial = rng.normal(0, [0.01, 0.01, 10, 5], (channels, 4)).astype(np.float32) if k else None
        source = replace(item.source, photometry=terms, weight=weight, radial=radial, has_weight_map=k != 2)
        sources.append(replace(item, source=source, blur_px2=0.1 * (k - 1)))
    return replace(made, sources=sources)


@pytest.mark.parametrize(("pattern", "scale"), [(p, 1.0) for p in CFA_PATTERNS] + [("GBRG", 1.5), ("", 2.0)])
def test_sums_are_those_of_a_plain_version(pattern, scale):
    rng = np.random.default_rng(3)
    plain = cases.night(
        3, [WHITE], pattern=pattern, across=1, seed=4, dither=6, turn=0.3, feather=5.0, scale=scale
    )
    image = cases.coadd(plain).image
    made = awkward(plain, rng)
    image[:, 10, 12] = np.nan
    mask = (rng.uniform(size=image.shape[1:]) < 0.5).astype(np.float32)
    got = gather_block(made.frames, made.sources, image, 0, mask, 0, scale=scale)
    expected = twin_sums(made, image, mask, scale)
    assert (expected[1] > 0).mean() > 0.1
    for item, want in zip(fields(got), expected, strict=True):
        np.testing.assert_allclose(getattr(got, item.name), want, rtol=2e-4, atol=2e-4 * np.abs(want).max())


# ------------------------------------------------------------------------------------------- blocks and windows


class Stored:
    """A co-add in memory that is replaced row by row."""

    def __init__(self, block):
        self.image, self.variance = block.image.copy(), block.variance.copy()
        self.weight, self.coverage = block.weight.mean(axis=0), block.coverage

    def read(self, y0, y1):
        rows = slice(y0, y1)
        return CoaddRows(self.image[:, rows], self.weight[rows], self.coverage[rows], self.variance[:, rows])

    def write(self, y0, image, variance):
        self.image[:, y0 : y0 + image.shape[1]] = image
        self.variance[:, y0 : y0 + image.shape[1]] = variance


@pytest.fixture(scope="module")
def deep():
    made = cases.night(30, [WHITE, RED], across=4, seed=2)
    return made, cases.coadd(made)


def through_the_door(made, block, **options):
    stored = Stored(block)
    shape = made.field.truth.shape[1:]
    options = {"budget_bytes": 1 << 30, "scale": made.scale, **options}
    refine_on_grid(made.frames, made.sources, shape, stored, made.rule.noise, **options)
    return stored


def test_neither_blocks_nor_threads_change_a_bit(deep):
    made, block = deep
    whole = through_the_door(made, block, threads=1)
    assert (whole.image != block.image).any(axis=0).mean() > 0.2
    for budget, threads in ((1, 3), (1_800_000, 2)):
        parts = through_the_door(made, block, budget_bytes=budget, threads=threads)
        np.testing.assert_array_equal(parts.image, whole.image)
        np.testing.assert_array_equal(parts.variance, whole.variance)


def test_a_block_is_the_crop_of_the_whole(deep):
    made, block = deep
    height = block.image.shape[1]
    variance = made.rule.noise.variance
    mask = structure_mask(block.image, block.weight, variance, block.coverage, slice(0, height))
    whole = gather_block(made.frames, made.sources, block.image, 0, mask, 0)
    for y0, y1 in ((0, 31), (37, 90), (101, height)):
        top, bottom = max(0, y0 - 8), min(height, y1 + 8)
        rows = slice(top, bottom)
        own = structure_mask(
            block.image[:, rows],
            block.weight[:, rows],
            variance,
            block.coverage[rows],
            slice(y0 - top, y1 - top),
        )
        np.testing.assert_array_equal(own, mask[y0:y1])
        part = gather_block(made.frames, made.sources, block.image[:, rows], top, own, y0)
        np.testing.assert_array_equal(part.total, whole.total[:, y0:y1])
        np.testing.assert_array_equal(part.weight_square, whole.weight_square[:, y0:y1])


@pytest.mark.parametrize("scale", [1.0, 1.5, 2.0])
def test_every_sample_that_reaches_a_pixel_is_needed(scale):
    rng = np.random.default_rng(0)
    mask = np.zeros((20, 20), np.float32)
    mask[9, 11] = 1
    need = needed_places(mask, scale)
    reach = (1 + 1 / scale) / 2
    for angle in rng.uniform(0, 2 * np.pi, 400):
        u, v = rng.choice([-reach, reach], 2) * rng.uniform(0.9, 1, 2)
        x = 11 + scale * (np.cos(angle) * u - np.sin(angle) * v)
        y = 9 + scale * (np.sin(angle) * u + np.cos(angle) * v)
        assert need[int(np.floor(y)) + (len(need) - 20) // 2, int(np.floor(x))]


@pytest.mark.parametrize(("scale", "shape"), [(1.0, (40, 30)), (1.5, (3, 50)), (2.0, (25, 2))])
def test_needed_places_are_those_of_a_maximum_filter(scale, shape):
    mask = np.where(np.random.default_rng(1).random(shape) > 0.95, 0.3, 0.0).astype(np.float32)
    reach = int(np.ceil(np.sqrt(2.0) * scale * kernel_numbers(scale)[0]))
    rows = np.pad(mask > 0, ((NEED_REACH, NEED_REACH), (0, 0))).view(np.uint8)
    expected = ndimage.maximum_filter(rows, 2 * reach, origin=-1, mode="constant")
    found = needed_places(mask, scale)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("pattern", "scale", "turn"), [("GRBG", 1.0, 0.01), ("GBRG", 1.5, 0.7), ("", 2.0, 0.4)]
)
def test_no_other_pixel_is_looked_at(pattern, scale, turn):
    """Those that are not among them may hold anything, even what spoils all it touches."""
    made = cases.night(
        4, [WHITE], pattern=pattern, across=1, seed=4, dither=6, turn=turn, scale=scale, seeing=0.1
    )
    made = awkward(made, np.random.default_rng(3))
    image = cases.coadd(made).image
    mask = (np.random.default_rng(5).random(image.shape[1:]) < 0.01).astype(np.float32)
    wanted = gather_block(made.frames, made.sources, image, 0, mask, 0, scale=scale)
    places = read_places(mask, scale)[HALO_ROWS:-HALO_ROWS]
    assert 0.1 < places.mean() < 0.8
    fewer = gather_block(made.frames, made.sources, np.where(places, image, np.nan), 0, mask, 0, scale=scale)
    assert (wanted.weight > 0).any()
    for item in fields(wanted):
        np.testing.assert_array_equal(getattr(fewer, item.name), getattr(wanted, item.name))
    # Each of them is: a border of three less is too little.
    edge = places & ~ndimage.binary_erosion(places, np.ones((7, 7)), border_value=1)
    spoiled = gather_block(
        made.frames, made.sources, np.where(places & ~edge, image, np.nan), 0, mask, 0, scale=scale
    )
    assert (spoiled.weight != wanted.weight).any()


def test_pixels_replaced_in_another_place_are_those_of_their_rows(deep):
    made, block = deep
    height = block.image.shape[1]
    whole, read, written = Stored(block), Stored(block), Stored(block)
    in_turn = RowsInTurn(whole, made.sources, height, made.rule.noise)
    apart = RowsApart(
        SimpleNamespace(read=read.read, write=written.write), made.sources, height, made.rule.noise
    )
    for y0, y1 in ((0, 31), (31, 90), (90, height)):
        known, same = in_turn.block(y0, y1), apart.block(y0, y1)
        for item in fields(known):
            np.testing.assert_array_equal(getattr(same, item.name), getattr(known, item.name))
        sums = gather_block(made.frames, made.sources, known.image, known.image_y0, known.mask, y0)
        in_turn.replace(y0, y1, sums)
        wanted = known.mask > 0
        assert 0.1 < wanted.mean() < 0.9
        of_rows = (whole.image[:, y0:y1][:, wanted], whole.variance[:, y0:y1][:, wanted])
        apart.replace(y0, y1, np.flatnonzero(wanted), *of_rows)
    np.testing.assert_array_equal(written.image, whole.image)
    np.testing.assert_array_equal(written.variance, whole.variance)


def test_a_stop_is_heard(deep):
    made, block = deep

    class Stop:
        def is_set(self):
            return True

    with pytest.raises(Cancelled):
        through_the_door(made, block, cancel=Stop())


# -------------------------------------------------------------------------------------------------- known stars


def errors(made, image):
    inner = (slice(None), slice(16, -16), slice(16, -16))
    return np.sqrt(np.mean((image - made.field.truth)[inner] ** 2, axis=(1, 2)))


def widths(made, image):
    field, reach = made.field, 4 * made.scale
    return np.array(
        [
            truth.fitted_fwhm(field, image, c, reach=reach)
            / truth.fitted_fwhm(field, field.truth, c, reach=reach)
            for c in range(len(image))
        ]
    )


def test_the_error_of_the_picture_halves(deep):
    made, block = deep
    image, _, mask = cases.refine(made, block)
    assert (errors(made, image) < 0.5 * errors(made, block.image)).all()
    assert widths(made, image) == pytest.approx([1, 1, 1], abs=0.02)
    for channel in range(3):
        assert abs(truth.flux_bias_percent(made.field, image, channel)) < 0.5
        assert abs(truth.flux_bias_percent(made.field, image, channel, radius=3.0)) < 1.0
        assert truth.flux_bias_percent(made.field, block.image, channel, radius=3.0) > 2.0
    for channel in (0, 2):
        for kind in (slice(0, None, 2), slice(1, None, 2)):
            assert truth.ring_percent(made.field, image, channel, which=kind) < 1.5
    np.testing.assert_array_equal(image[:, mask == 0], block.image[:, mask == 0])
    assert (mask == 0).mean() > 0.2


def test_eight_frames_are_better_with_it_too():
    made = cases.night(8, [WHITE, RED], across=4, seed=5)
    block = cases.coadd(made)
    image, _, _ = cases.refine(made, block)
    assert (errors(made, image) < 0.75 * errors(made, block.image)).all()
    assert widths(made, image) == pytest.approx([1, 1, 1], abs=0.02)


def test_a_colour_that_the_optics_blur_keeps_its_width():
    """Debayering makes it narrower than it is, because green leads; its own samples know better."""
    made = cases.night(20, [WHITE], fwhm=(4.2, 2.4, 2.4), across=4, seed=6)
    block = cases.coadd(made)
    image, _, _ = cases.refine(made, block)
    assert widths(made, block.image)[0] < 0.92
    assert widths(made, image) == pytest.approx([1, 1, 1], abs=0.04)


def test_stars_that_are_too_sharp_for_debayering_come_out_right():
    made = cases.night(20, [WHITE], fwhm=1.9, across=4, seed=7)
    block = cases.coadd(made)
    image, _, _ = cases.refine(made, block)
    assert widths(made, block.image).min() > 1.04
    assert widths(made, image) == pytest.approx([1, 1, 1], abs=0.03)


def test_the_light_of_stars_that_are_too_sharp_is_kept():
    """How twenty frames happen to lie makes half a percent in red and blue."""
    found = []
    for seed in (81, 82, 83):
        made = cases.night(20, [WHITE], fwhm=1.9, across=4, seed=seed, field_seed=seed)
        image, _, _ = cases.refine(made, cases.coadd(made))
        found.append([truth.flux_bias_percent(made.field, image, channel) for channel in range(3)])
    assert (np.abs(np.mean(found, axis=0)) < 0.5).all()
    assert np.abs(found).max() < 1.0


def test_frames_of_different_seeing_do_not_move_stars():
    """Around each star the samples of a colour come from some of the frames only, by chance from the sharp ones."""
    made = cases.night(20, [WHITE], across=5, seed=11, seeing=0.12)
    block = cases.coadd(made)
    plain, _, _ = cases.refine(
        replace(made, sources=[replace(item, blur_px2=0.0) for item in made.sources]), block
    )
    image, _, _ = cases.refine(made, block)
    gained = errors(made, image) / errors(made, plain)
    assert (gained < 0.95).all()
    assert (gained[[0, 2]] < 0.8).all()
    assert (errors(made, image) < 0.7 * errors(made, block.image)).all()


def test_a_finer_grid_of_a_mono_camera_gets_the_stars_it_undersamples():
    made = cases.night(30, [WHITE], fwhm=1.7, pattern="", across=4, seed=8, scale=2.0)
    block = cases.coadd(made)
    image, _, _ = cases.refine(made, block)
    assert errors(made, image)[0] < 0.7 * errors(made, block.image)[0]
    assert abs(widths(made, image)[0] - 1) < 0.04
    assert abs(truth.flux_bias_percent(made.field, image, 0, radius=12.0)) < 0.5


def test_what_one_frame_alone_shows_does_not_come_in(deep):
    """A trail over stars in one frame: the co-add has rejected it, the second pass leaves it out."""
    made, block = deep
    clean, _, _ = cases.refine(made, block)
    frames = cases.Frames({key: raw.copy() for key, raw in made.frames.raws.items()}, made.frames.pattern)
    rows = np.arange(5, 135)
    for width in range(3):
        frames.raws[4][rows, rows // 2 + 40 + width] += 4000
    image, _, _ = cases.refine(replace(made, frames=frames), block)
    noise = cases.NOISE / np.sqrt(30 / 4)
    # In the core of a star what a frame may differ by grows with the star: seeing does that.
    bright = (made.field.truth - truth.SKY[:, None, None]).max(axis=0) > 500
    assert np.abs(image - clean)[:, ~bright].max() < 12 * noise
    assert np.abs(image - clean).max() < 0.03 * RED.max()


@pytest.mark.parametrize(("pattern", "scale"), [("GRBG", 1.0), ("GRBG", 2.0), ("", 2.0)])
def test_the_variance_is_the_scatter_of_nights(pattern, scale):
    """Of nights that differ by noise only: where everything is added, where nothing is, and half-way."""
    wanted = (0.0, 0.5, 1.0)
    images, variances = ([[] for _ in wanted] for _ in range(2))
    for seed in range(24):
        made = cases.night(
            16, [0.0 * WHITE], pattern=pattern, across=2, seed=9, noise_seed=seed, gains=False, scale=scale
        )
        block = cases.coadd(made)
        for k, share in enumerate(wanted):
            mask = np.full(block.coverage.shape, share, np.float32)
            sums = gather_block(made.frames, made.sources, block.image, 0, mask, 0, scale=scale)
            shares = share_of_channels(pattern)
            image, variance = refined(block.image, block.variance, sums, mask, block.weight, shares, scale)
            images[k].append(image)
            variances[k].append(variance)
    inner = (slice(None), slice(14, -14), slice(14, -14))
    for of_share, expected in zip(images, variances, strict=True):
        scatter = np.var(of_share, axis=0, ddof=1)[inner].mean(axis=(1, 2))
        ratio = np.sqrt(scatter / np.mean(expected, axis=0)[inner].mean(axis=(1, 2)))
        assert ratio == pytest.approx(np.ones(len(ratio)), abs=0.1)


def test_where_no_sample_is_left_nothing_changes(deep):
    made, block = deep
    everywhere = np.ones(block.coverage.shape, np.float32)
    nothing = gather_block(made.frames, [], block.image, 0, everywhere, 0)
    image, variance = refined(
        block.image, block.variance, nothing, everywhere, block.weight, (0.25, 0.5, 0.25)
    )
    np.testing.assert_array_equal(image, block.image)
    np.testing.assert_array_equal(variance, block.variance)
