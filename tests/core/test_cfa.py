from __future__ import annotations

import numpy as np
import pytest
import twins_coadd as twins

from zemosaic_core.cfa import CFA_PATTERNS, debayer, flip_pattern, luminance, superpixel


@pytest.mark.parametrize("pattern", CFA_PATTERNS)
@pytest.mark.parametrize("shape", [(2, 2), (7, 9), (8, 6), (5, 16)])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_debayer_agrees_with_the_plain_twin(pattern, shape, dtype):
    cfa = np.random.default_rng(0).integers(0, 65535, shape).astype(dtype)
    for y0, x0 in ((0, 0), (1, 0), (0, 1), (3, 5)):
        ours = debayer(cfa, pattern, y0, x0)
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, twins.debayer(cfa, pattern, y0, x0), rtol=1e-6)


def test_a_window_with_margin_equals_the_whole():
    cfa = np.random.default_rng(1).integers(0, 65535, (40, 50)).astype(np.uint16)
    whole = debayer(cfa, "GRBG")
    window = debayer(cfa[9:31, 4:40], "GRBG", 9, 4)
    assert np.array_equal(window[:, 2:-2, 2:-2], whole[:, 11:29, 6:38])


def test_colours_stand_where_the_pattern_says():
    cfa = np.zeros((8, 8), np.uint16)
    cfa[0::2, 1::2] = 100  # red in GRBG
    cfa[1::2, 0::2] = 10  # blue
    cfa[0::2, 0::2] = cfa[1::2, 1::2] = 50
    colour = debayer(cfa, "GRBG")
    for plane, value in zip(colour, (100, 50, 10), strict=True):
        np.testing.assert_array_equal(plane, value)
    cells = superpixel(cfa, "GRBG")
    for plane, value in zip(cells, (100, 50, 10), strict=True):
        np.testing.assert_array_equal(plane, value)


def test_superpixel_drops_an_odd_last_row():
    cfa = np.arange(35, dtype=np.float32).reshape(5, 7)
    for pattern in CFA_PATTERNS:
        cells = superpixel(cfa, pattern)
        assert cells.shape == (3, 2, 3)
        np.testing.assert_allclose(cells[0] + 2 * cells[1] + cells[2], 4 * luminance(cfa)[::2, ::2])


def test_luminance_is_the_mean_of_each_window():
    cfa = np.random.default_rng(2).integers(0, 65535, (11, 14)).astype(np.uint16)
    expected = sum(cfa[dy : dy + 10, dx : dx + 13].astype(float) for dy in (0, 1) for dx in (0, 1)) / 4
    np.testing.assert_allclose(luminance(cfa), expected, rtol=1e-6)


@pytest.mark.parametrize("height", [6, 7])
@pytest.mark.parametrize("pattern", CFA_PATTERNS)
def test_flipped_pattern_describes_the_flipped_image(pattern, height):
    colours = np.array([[pattern[2 * (y % 2) + x % 2] for x in range(4)] for y in range(height)])
    flipped = flip_pattern(pattern, height)
    assert "".join(colours[::-1][:2, :2].ravel()) == flipped


def test_unusable_input_is_refused():
    with pytest.raises(ValueError, match="RGGX"):
        debayer(np.zeros((4, 4), np.uint16), "RGGX")
    with pytest.raises(ValueError, match="2 px"):
        luminance(np.zeros((1, 4), np.uint16))
    with pytest.raises(ValueError, match="shape"):
        superpixel(np.zeros((2, 4, 4), np.uint16), "RGGB")
