"""Fast smoothing, filling and largest values against plain twins."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from zemosaic_core.picture_calm import _largest_in_disc
from zemosaic_core.picture_noise import _largest_in_square, _largest_near
from zemosaic_core.picture_smoothing import fill_from_around, smooth_known

TAPS = {-2: 1 / 16, -1: 4 / 16, 0: 6 / 16, 1: 4 / 16, 2: 1 / 16}
SHAPES = [(1, 1), (1, 30), (3, 2), (17, 5), (5, 90), (90, 70)]


def slow_blur(plane, spacing):
    height, width = plane.shape
    padded = np.pad(plane.astype(float), 2 * spacing, mode="reflect")
    places = ((j, i) for j in TAPS for i in TAPS)
    return sum(
        TAPS[j] * TAPS[i] * padded[(2 + j) * spacing :, (2 + i) * spacing :][:height, :width]
        for j, i in places
    )


def slow_fill(plane, use):
    filled, left = plane.astype(float) * use, 1.0 - use.astype(float)
    value, weight = filled.copy(), use.astype(float)
    for scale in range(6):
        value, weight = slow_blur(value, 1 << scale), slow_blur(weight, 1 << scale)
        enough = np.clip(8.0 * weight, 0.0, 1.0) * left
        filled += enough * value / np.maximum(weight, 1e-3)
        left -= enough
    return filled


def footprint(kind, shape):
    rng = np.random.default_rng(5)
    known = np.ones(shape, np.float32)
    if kind == "holes":
        known[rng.random(shape) < 0.1] = 0
    elif kind == "corners":
        known[: shape[0] // 3, : shape[1] // 4] = 0
        known[shape[0] // 2 :, -(shape[1] // 3) - 1 :] = 0
    elif kind == "nothing":
        known[:] = 0
    return known


@pytest.mark.parametrize("kind", ["all", "holes", "corners", "nothing"])
@pytest.mark.parametrize("shape", SHAPES)
def test_smoothing_and_filling_agree_with_slow_twins(shape, kind):
    known = footprint(kind, shape)
    rng = np.random.default_rng(6)
    plane = (rng.normal(5.0, 2.0, shape) * known).astype(np.float32)
    for spacing in (1, 2, 4, 16):
        mean = slow_blur(plane, spacing) / np.maximum(slow_blur(known, spacing), 1e-3)
        np.testing.assert_allclose(smooth_known(plane, known, spacing), mean * known, rtol=3e-5, atol=2e-5)
    use = known * np.clip(2.0 * rng.random(shape), 0.0, 1.0).astype(np.float32)
    np.testing.assert_allclose(fill_from_around(plane, use), slow_fill(plane, use), rtol=3e-4, atol=3e-4)


# Some in a margin, one at a corner; one too deep for the finest scales; so many that the whole plane is cheaper.
@pytest.mark.parametrize(
    "places",
    [[(63, 64, 3), (0, 0, 2), (599, 640, 4)], [(300, 317, 30)], [(y, 9, 2) for y in range(20, 600, 40)], []],
)
def test_filling_only_what_is_wanted_gives_the_bits_of_filling_all(places):
    rng = np.random.default_rng(7)
    plane = rng.normal(100.0, 9.0, (600, 641)).astype(np.float32)
    use, wanted = np.ones(plane.shape, np.float32), np.zeros(plane.shape, bool)
    for y, x, radius in places:
        wanted[max(0, y - radius) : y + radius, max(0, x - radius) : x + radius] = True
    use[wanted] = 0.0
    use[500:520, 100:500] = 0.0  # missing, and not wanted
    before = plane.copy()
    some = fill_from_around(plane, use, wanted)
    np.testing.assert_array_equal(some[wanted], fill_from_around(plane, use)[wanted])
    np.testing.assert_array_equal(some[use == 1], plane[use == 1])
    np.testing.assert_array_equal(plane, before)


@pytest.mark.parametrize("shape", SHAPES)
def test_largest_values_near_a_pixel_are_those_of_plain_filters(shape):
    plane = np.random.default_rng(8).normal(0.0, 3.0, shape).astype(np.float32)
    result = np.empty_like(plane)
    for reach in (1, 2, 4):
        _largest_in_square(plane, reach, result)
        np.testing.assert_array_equal(result, ndimage.maximum_filter(plane, 2 * reach + 1, mode="nearest"))
    y, x = np.mgrid[-6:7, -6:7]
    _largest_in_disc(plane, 6, result)
    disc = ndimage.maximum_filter(plane, footprint=np.hypot(y, x) <= 6, mode="nearest")
    np.testing.assert_array_equal(result, disc)
    for spacing in (1, 4):
        _largest_near(plane, spacing, result)
        taps = np.zeros((4 * spacing + 1, 4 * spacing + 1), bool)
        taps[::spacing, ::spacing] = True
        size = np.abs(plane)
        near = ndimage.maximum_filter(size, footprint=taps, mode="constant", cval=0.0)
        np.testing.assert_array_equal(result, np.maximum(size, np.float32(0.3) * near))
