from __future__ import annotations

import numpy as np
import pytest
import twins_coadd as twins

from zemosaic_core.lanczos_table import LANCZOS_TABLE
from zemosaic_core.pixel_map import build_pixel_map, map_coordinates_at, shift_pixel_map, source_window
from zemosaic_core.resample import HALO, sample_window
from zemosaic_core.sources import CoaddSource

RADIAL = np.array([[0.12, -0.05, 0, 0], [0.2, 0.03, -40, 15], [0, 0, 12, 0]], np.float32)
SURFACE = np.random.default_rng(8).normal(0, 6, (3, 21)).astype(np.float32)
TERMS = np.array([[1.0, 0, 0, 0], [0.9, 30, -4, 2], [1.1, -20, 0, 7]], np.float32)


def rotation(degrees, centre_out, centre_src, scale=1.0):
    c, s = scale * np.cos(np.radians(degrees)), scale * np.sin(np.radians(degrees))

    def transform(x, y):
        x, y = x - centre_out[0], y - centre_out[1]
        return c * x - s * y + centre_src[0], s * x + c * y + centre_src[1]

    return transform


def make_source(shape, pixel_map, bbox, **more):
    return CoaddSource(0, shape, pixel_map, bbox, TERMS, np.ones(3, np.float32), **more)


def make_image(shape=(31, 43), seed=0, holes=True):
    rng = np.random.default_rng(seed)
    image = rng.normal(1000, 100, (3, *shape)).astype(np.float32)
    if holes:
        image[:, 4, 5] = np.nan
        image[1, 20, 30] = np.inf
        image[:, -1, -1] = np.nan
    return image


@pytest.mark.parametrize("kernel", ["bilinear", "lanczos3"])
@pytest.mark.parametrize("degrees", [0.0, 3.0, 90.0, 137.0])
@pytest.mark.parametrize(
    "extras",
    [
        {},
        {"radial": RADIAL},
        {"surface": SURFACE},
        {"feather_px": 9.0},
        {"feather_px": 9.0, "feather_start": 0.3},
        {"feather_px": 5.0, "has_weight_map": True, "radial": RADIAL, "surface": SURFACE},
    ],
)
def test_agrees_with_the_plain_twin(kernel, degrees, extras):
    image = make_image()
    box = (2, 39, 1, 48)
    pixel_map = build_pixel_map(rotation(degrees, (24, 20), (21.3, 15.6), 1.02), box)
    source = make_source((31, 43), pixel_map, box, **extras)
    weight_map = None
    if source.has_weight_map:
        weight_map = np.random.default_rng(1).uniform(-0.2, 1, (31, 43)).astype(np.float32)
        weight_map[10, 10] = np.nan
    ours, weights = sample_window(
        image, (0, 0), (31, 43), pixel_map, box, kernel, TERMS,
        radial=source.radial, surface=source.surface, feather_px=source.feather_px,
        feather_start=source.feather_start, weight_window=weight_map,
    )  # fmt: skip
    twin, twin_weights = twins.sample(source, image, weight_map, box, kernel)
    assert np.array_equal(np.isnan(ours), np.isnan(twin))
    np.testing.assert_allclose(ours, twin, rtol=3e-6, atol=2e-3)
    assert np.isfinite(ours).any()
    assert np.isnan(ours).any()
    if source.feather_px > 0:
        np.testing.assert_allclose(weights, twin_weights, rtol=1e-5, atol=1e-6)
    else:
        assert weights is None


@pytest.mark.parametrize("kernel", ["bilinear", "lanczos3"])
def test_integer_shift_is_the_pixel_itself(kernel):
    image = make_image()
    box = (0, 60, 0, 70)
    terms = np.tile(np.array([1, 0, 0, 0], np.float32), (3, 1))
    ours, _ = sample_window(image, (0, 0), (31, 43), shift_pixel_map(10, 7, box), box, kernel, terms)
    expected = np.full((3, 60, 70), np.nan, np.float32)
    expected[:, 10:41, 7:50] = np.where(np.isfinite(image), image, np.nan)
    assert np.array_equal(ours, expected, equal_nan=True)


def test_a_radial_flat_and_pattern_reach_their_full_size_in_the_corners():
    image = np.full((3, 21, 41), 1000.0, np.float32)
    box = (0, 21, 0, 41)
    terms = np.tile(np.array([2, 5, 0, 0], np.float32), (3, 1))
    out, _ = sample_window(
        image, (0, 0), (21, 41), shift_pixel_map(0, 0, box), box, "lanczos3", terms, radial=RADIAL
    )
    np.testing.assert_allclose(out[:, 10, 20], 2005, rtol=1e-6)
    for y, x in ((0, 0), (0, 40), (20, 0), (20, 40)):
        np.testing.assert_allclose(out[:, y, x], [2 * 1070 + 5, 2 * 1230 - 20, 2017], rtol=1e-6)
    # At the middle of the left border only the width counts: q = 40^2 / (40^2 + 20^2).
    np.testing.assert_allclose(out[0, 10, 0], 2000 * (1 + 0.12 * 0.8 - 0.05 * 0.64) + 5, rtol=1e-6)


@pytest.mark.parametrize("kernel", ["bilinear", "lanczos3"])
@pytest.mark.parametrize(
    "terms", [TERMS, TERMS * np.array([1, 1, 0, 0], np.float32)], ids=["plane", "offset"]
)
def test_a_radial_pattern_of_zeros_changes_no_bit(kernel, terms):
    image, box = make_image(), (2, 39, 1, 48)
    pixel_map = build_pixel_map(rotation(17, (24, 20), (21.3, 15.6)), box)
    without, _ = sample_window(image, (0, 0), (31, 43), pixel_map, box, kernel, terms)
    zeros, _ = sample_window(
        image, (0, 0), (31, 43), pixel_map, box, kernel, terms, radial=np.zeros_like(RADIAL)
    )
    assert np.array_equal(without, zeros, equal_nan=True)


@pytest.mark.parametrize("kernel", ["bilinear", "lanczos3"])
@pytest.mark.parametrize("degrees", [0.0, 17.0])
def test_windows_of_the_source_and_boxes_of_the_output_change_no_bit(kernel, degrees):
    image = make_image((150, 170), holes=False)
    image[:, 40:43, 60] = np.nan
    box = (0, 160, 0, 180)
    pixel_map = build_pixel_map(rotation(degrees, (90, 80), (84.9, 75.2)), box)
    extras = {"radial": RADIAL, "feather_px": 20}
    whole, weights = sample_window(image, (0, 0), (150, 170), pixel_map, box, kernel, TERMS, **extras)
    for y0, y1, x0, x1 in ((0, 1, 0, 180), (37, 64, 0, 180), (64, 65, 64, 66), (99, 160, 13, 143)):
        window = source_window(pixel_map, y0, y1, x0, x1, (150, 170), HALO[kernel])
        if window is None:
            assert np.isnan(whole[:, y0:y1, x0:x1]).all()
            continue
        a, b, c, d = window
        part, part_weights = sample_window(
            image[:, a:b, c:d], (a, c), (150, 170), pixel_map, (y0, y1, x0, x1), kernel, TERMS, **extras
        )
        assert np.array_equal(part, whole[:, y0:y1, x0:x1], equal_nan=True)
        assert np.array_equal(part_weights, weights[y0:y1, x0:x1])


@pytest.mark.parametrize("degrees", [1.0, 100.0])
def test_one_channel_alone_is_that_channel_of_three(degrees):
    """Eight samples of three channels are summed together, of one channel as well; single ones at the borders."""
    image = make_image((60, 70), seed=4)
    pixel_map = build_pixel_map(rotation(degrees, (35, 30), (35.2, 29.7)), (0, 60, 0, 70))
    together, _ = sample_window(image, (0, 0), (60, 70), pixel_map, (0, 60, 0, 70), "lanczos3", TERMS)
    for c in range(3):
        alone, _ = sample_window(
            image[c : c + 1], (0, 0), (60, 70), pixel_map, (0, 60, 0, 70), "lanczos3", TERMS[c : c + 1]
        )
        np.testing.assert_array_equal(alone[0], together[c])
    two, _ = sample_window(image[1:], (0, 0), (60, 70), pixel_map, (0, 60, 0, 70), "lanczos3", TERMS[1:])
    np.testing.assert_array_equal(two, together[1:])


def test_lanczos_keeps_constants_and_beats_bilinear_on_stars():
    y, x = np.mgrid[0:60, 0:60]

    def star(cx, cy):
        return 1000 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * 1.2**2))

    image = np.stack([star(30.0, 30.0), np.full((60, 60), 500.0)]).astype(np.float32)
    box = (0, 60, 0, 60)
    pixel_map = build_pixel_map(lambda x, y: (x + 0.4, y - 0.3), box)
    terms = np.tile(np.array([1, 0, 0, 0], np.float32), (2, 1))
    inner = (slice(10, 50), slice(10, 50))
    errors = {}
    for kernel in ("bilinear", "lanczos3"):
        out, _ = sample_window(image, (0, 0), (60, 60), pixel_map, box, kernel, terms)
        errors[kernel] = np.abs(out[0][inner] - star(29.6, 30.3)[inner]).max()
        np.testing.assert_allclose(out[1][inner], 500.0, atol=1e-3)
    assert errors["lanczos3"] < 0.1 * errors["bilinear"]


def test_one_missing_pixel_costs_no_more_than_its_bilinear_neighbours():
    image = np.ones((1, 20, 20), np.float32)
    image[0, 10, 10] = np.nan
    box = (0, 20, 0, 20)
    pixel_map = build_pixel_map(lambda x, y: (x + 0.5, y + 0.5), box)
    terms = np.array([[1, 0, 0, 0]], np.float32)
    out, _ = sample_window(image, (0, 0), (20, 20), pixel_map, box, "lanczos3", terms)
    assert np.argwhere(np.isnan(out[0, :19, :19])).tolist() == [[9, 9], [9, 10], [10, 9], [10, 10]]


def test_coordinates_that_are_not_numbers_are_missing():
    nodes = np.tile(np.arange(3.0)[None] * 8, (3, 1))
    broken = nodes.copy()
    broken[0, 0] = np.nan
    from zemosaic_core.sources import PixelMap

    pixel_map = PixelMap(0, 0, 8, broken, nodes.T.copy(), 0.0)
    image = np.ones((1, 20, 20), np.float32)
    out, _ = sample_window(
        image, (0, 0), (20, 20), pixel_map, (0, 16, 0, 16), "bilinear", np.array([[1, 0, 0, 0]], np.float32)
    )
    assert np.isnan(out[0, :8, :8]).all()
    assert np.isfinite(out[0, 8:, 8:]).all()


def test_one_pixel_images_and_odd_sizes():
    for shape in ((1, 1), (1, 9), (7, 1), (3, 5)):
        image = np.full((3, *shape), 5.0, np.float32)
        box = (0, shape[0] + 2, 0, shape[1] + 2)
        for kernel in ("bilinear", "lanczos3"):
            out, _ = sample_window(
                image, (0, 0), shape, shift_pixel_map(1, 1, box), box, kernel, TERMS, radial=RADIAL
            )
            assert np.isfinite(out[0]).sum() == shape[0] * shape[1]
            corner = 5.0 if shape == (1, 1) else 5.0 * 1.07
            assert out[0, 1, 1] == pytest.approx(corner, rel=1e-6)


def test_table_rows_are_normalised_and_start_at_the_pixel():
    assert LANCZOS_TABLE.shape == (4097, 6)
    assert LANCZOS_TABLE.dtype == np.float32
    np.testing.assert_allclose(LANCZOS_TABLE.sum(axis=1), 1, atol=2e-7)
    assert LANCZOS_TABLE[0].tolist() == [0, 0, 1, 0, 0, 0]
    assert LANCZOS_TABLE[-1].tolist() == [0, 0, 0, 1, 0, 0]
    np.testing.assert_allclose(LANCZOS_TABLE, LANCZOS_TABLE[::-1, ::-1], atol=1e-7)


def test_coordinates_are_those_of_the_map():
    pixel_map = build_pixel_map(rotation(33, (50, 50), (10, 20)), (3, 200, 5, 90))
    x, y = np.array([5, 40, 89]), np.array([3, 77, 199])
    sx, sy = map_coordinates_at(pixel_map, x, y)
    tx, ty = rotation(33, (50, 50), (10, 20))(x.astype(float), y.astype(float))
    np.testing.assert_allclose(sx, tx, atol=1e-9)
    np.testing.assert_allclose(sy, ty, atol=1e-9)


def test_wrong_arguments_are_named():
    image, box = np.ones((1, 5, 5), np.float32), (0, 5, 0, 5)
    terms = np.array([[1, 0, 0, 0]], np.float32)
    with pytest.raises(ValueError, match="nearest"):
        sample_window(image, (0, 0), (5, 5), shift_pixel_map(0, 0, box), box, "nearest", terms)
    with pytest.raises(ValueError, match="photometry"):
        sample_window(image, (0, 0), (5, 5), shift_pixel_map(0, 0, box), box, "bilinear", TERMS)
    with pytest.raises(ValueError, match="radial"):
        sample_window(
            image, (0, 0), (5, 5), shift_pixel_map(0, 0, box), box, "bilinear", terms, radial=RADIAL
        )


def star_image(fwhm, peak, ceiling=np.inf, *, sky=350.0, noise=9.0, shape=(60, 64), centre=(30.3, 31.6)):
    y, x = np.mgrid[: shape[0], : shape[1]]
    r2 = (y - centre[0]) ** 2 + (x - centre[1]) ** 2
    image = sky + peak * np.exp(-4 * np.log(2) * r2 / fwhm**2)
    image += np.random.default_rng(3).normal(0, noise, shape)
    return np.minimum(image, ceiling).astype(np.float32)[None]


def sampled(image, degrees=3.0):
    """Lanczos at every place of a turned grid, and the smallest of the 6 x 6 taps there."""
    height, width = image.shape[1:]
    box = (14, height - 14, 14, width - 14)
    pixel_map = build_pixel_map(rotation(degrees, (32, 30), (32.4, 30.3)), box)
    terms = np.array([[1, 0, 0, 0]], np.float32)
    found, _ = sample_window(image, (0, 0), image.shape[1:], pixel_map, box, "lanczos3", terms)
    y, x = np.mgrid[box[0] : box[1], box[2] : box[3]]
    sx, sy = map_coordinates_at(pixel_map, x, y)
    iy, ix = np.floor(sy).astype(int), np.floor(sx).astype(int)
    taps = [image[0][iy + q, ix + k] for q in range(-2, 4) for k in range(-2, 4)]
    return found[0], np.min(taps, axis=0)


@pytest.mark.parametrize("case", ["clipped", "bleeding"])
def test_no_holes_beside_clipped_and_bleeding_stars(case):
    image = star_image(2.4, 4e6, 65535.0) if case == "clipped" else star_image(3.0, 3000.0)
    if case == "bleeding":
        image[0, 5:55, 30:32] = 65535
    for degrees in (0.0, 3.0, 20.0):
        found, lowest = sampled(image, degrees)
        raised, _ = sampled(
            image + np.float32(40000), degrees
        )  # as much light, but no contrast: left as it is
        holes, before = found - lowest, raised - 40000 - lowest
        assert before.min() < -1500
        # What is left is no deeper than where lifting begins.
        assert holes.min() > -0.0063 * 65535
        assert np.minimum(holes, 0).mean() > 0.2 * np.minimum(before, 0).mean()


@pytest.mark.parametrize("fwhm", [2.3, 2.6, 3.5])
@pytest.mark.parametrize("peak", [500.0, 60000.0])
def test_ordinary_stars_keep_their_lanczos(fwhm, peak):
    for k in range(4):
        image = star_image(fwhm, peak, centre=(30 + k / 4, 31.6 - k / 3))
        found, _ = sampled(image)
        raised, _ = sampled(image + np.float32(40000))
        np.testing.assert_allclose(found, raised - 40000, atol=0.05)


def test_sharp_stars_keep_their_flux():
    for k in range(4):
        image = star_image(1.9, 60000.0, centre=(30 + k / 4, 31.6 - k / 3))
        found, _ = sampled(image)
        raised, _ = sampled(image + np.float32(40000))
        light = float((image - 350).sum())
        assert abs(float((found - (raised - 40000)).sum())) < 0.005 * light


def test_columns_of_a_larger_array_get_the_same_bits():
    image = make_image((60, 70), seed=5)
    box = (3, 50, 5, 61)
    pixel_map = build_pixel_map(rotation(20.0, (35, 30), (35.2, 29.7)), box)
    alone, weights = sample_window(image, (0, 0), (60, 70), pixel_map, box, "lanczos3", TERMS, feather_px=4.0)
    wide, wide_weights = np.full((3, 47, 80), 7, np.float32), np.full((47, 80), 7, np.float32)
    sample_window(
        image, (0, 0), (60, 70), pixel_map, box, "lanczos3", TERMS, feather_px=4.0,
        out=wide[:, :, 11:67], out_weight=wide_weights[:, 11:67],
    )  # fmt: skip
    np.testing.assert_array_equal(wide[:, :, 11:67], alone)
    np.testing.assert_array_equal(wide_weights[:, 11:67], weights)
    assert (np.delete(wide, slice(11, 67), axis=2) == 7).all()
    assert (np.delete(wide_weights, slice(11, 67), axis=1) == 7).all()
    with pytest.raises(ValueError, match="side by side"):
        sample_window(
            image,
            (0, 0),
            (60, 70),
            pixel_map,
            box,
            "lanczos3",
            TERMS,
            out=np.empty((3, 47, 112), np.float32)[:, :, ::2],
        )
