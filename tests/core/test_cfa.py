from __future__ import annotations

import numpy as np
import pytest
import twins_coadd as twins

from zemosaic_core.cfa import (
    CFA_PATTERNS,
    DEBAYER_REACH,
    CfaColour,
    average_star,
    debayer,
    flip_pattern,
    luminance,
    superpixel,
)

COLOUR = CfaColour((1010.0, 990.0, 1000.0), (40.0, 45.0, 50.0), (0.8, 1.0, 0.6))


@pytest.mark.parametrize("pattern", CFA_PATTERNS)
@pytest.mark.parametrize("shape", [(2, 2), (3, 4), (7, 9), (8, 6), (5, 16)])
@pytest.mark.parametrize("colour", [None, COLOUR])
@pytest.mark.parametrize("span", [(0, 65536), (900, 1300)])
def test_debayer_agrees_with_the_plain_twin(pattern, shape, colour, span):
    cfa = np.random.default_rng(0).integers(*span, shape).astype(np.uint16)
    for y0, x0 in ((0, 0), (1, 0), (0, 1), (3, 5)):
        ours = debayer(cfa, pattern, y0, x0, colour=colour)
        assert ours.dtype == np.float32
        plain = twins.debayer(cfa, pattern, y0, x0, colour)
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-6 * span[1])
        np.testing.assert_array_equal(debayer(cfa.astype(np.float32), pattern, y0, x0, colour=colour), ours)


@pytest.mark.parametrize("pattern", CFA_PATTERNS)
@pytest.mark.parametrize("window", [(9, 31, 4, 40), (8, 30, 5, 40), (0, 17, 3, 31), (13, 40, 20, 51)])
def test_a_window_with_margin_equals_the_whole(pattern, window):
    cfa = np.random.default_rng(1).integers(900, 1500, (40, 51)).astype(np.uint16)
    cfa[20, 25] = 60000
    y0, y1, x0, x1 = window
    whole = debayer(cfa, pattern, colour=COLOUR)
    part = debayer(cfa[y0:y1, x0:x1], pattern, y0, x0, colour=COLOUR)
    top, left = y0 and DEBAYER_REACH, x0 and DEBAYER_REACH
    bottom, right = (y1 - y0 - DEBAYER_REACH * (y1 < 40)), (x1 - x0 - DEBAYER_REACH * (x1 < 51))
    expected = whole[:, y0 + top : y0 + bottom, x0 + left : x0 + right]
    np.testing.assert_array_equal(part[:, top:bottom, left:right], expected)


@pytest.mark.parametrize("pattern", CFA_PATTERNS)
@pytest.mark.parametrize("seed", range(6))
def test_columns_that_are_wanted_are_those_of_the_whole(pattern, seed):
    rng = np.random.default_rng(seed)
    cfa = rng.integers(900, 1500, (33, 41)).astype(np.uint16)
    columns = np.sort(rng.integers(0, 42, (33, 2)), axis=1)
    columns[rng.random(33) < 0.3] = 0
    columns[: rng.integers(0, 12)] = 0
    columns[33 - rng.integers(0, 12) :] = 0
    whole = debayer(cfa, pattern, 1, 0, colour=COLOUR)
    out = np.full_like(whole, np.nan)
    debayer(cfa, pattern, 1, 0, colour=COLOUR, columns=columns, out=out)
    assert np.ptp(columns, axis=1).any()
    for y, (first, end) in enumerate(columns):
        np.testing.assert_array_equal(out[:, y, first:end], whole[:, y, first:end], err_msg=str(y))


@pytest.mark.parametrize(
    "columns", [np.zeros((4, 2), np.int64), np.array([[0, 5]] * 5), np.array([[-1, 2]] * 5)]
)
def test_columns_outside_the_plane_are_refused(columns):
    with pytest.raises(ValueError, match="columns"):
        debayer(np.zeros((5, 4), np.uint16), "RGGB", columns=columns)


@pytest.mark.parametrize("colour", [None, COLOUR])
def test_one_missing_sample_takes_only_what_it_is_next_to(colour):
    cfa = np.random.default_rng(1).integers(900, 1500, (30, 30)).astype(np.float32)
    cfa[14, 15] = np.nan
    found = debayer(cfa, "GRBG", colour=colour)
    plain = twins.debayer(cfa, "GRBG", colour=colour)
    np.testing.assert_allclose(found, plain, rtol=1e-5)
    missing = np.argwhere(np.isnan(found))
    # It was red: gone are its own place and the places whose red is a mean of it and others.
    assert (missing[:, 0] == 0).sum() == 9
    assert set(missing[:, 0]) == {0}
    assert np.abs(missing[:, 1:] - (14, 15)).max() == 1


def test_average_star_is_the_median_colour_of_those_with_light():
    flux = np.array(
        [[80.0, 8, 160, 40, 800, -3, 5], [100, 10, 200, 50, 1000, 4, np.nan], [60, 5, 150, 30, 600, 4, 5]]
    )
    assert average_star(flux) == pytest.approx((0.8, 1.0, 0.6))
    assert average_star(flux[:, :4]) is None


@pytest.mark.parametrize("wrong", [{"star": (1, 0, 1)}, {"noise_adu": (1, np.nan, 1)}, {"sky_adu": (1, 2)}])
def test_a_colour_without_usable_numbers_is_refused(wrong):
    numbers = {"sky_adu": (1, 1, 1), "noise_adu": (1, 1, 1), "star": (1, 1, 1)} | wrong
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CfaColour(**numbers)


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
