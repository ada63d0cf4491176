"""Debayered stars, edges and skies against the truth they were made from."""

from __future__ import annotations

import numpy as np
import pytest
import twins_colour as truth

from zemosaic_core.cfa import CFA_PATTERNS, CfaColour, debayer

NOISE = 14.0
COLOUR = CfaColour(tuple(truth.SKY), (NOISE,) * 3, tuple(truth.STAR))
BRIGHT = 20000.0
# Against the average star: as red as an M dwarf, as blue as a B star.
KINDS = {"white": (1, 1, 1), "red": (1.5, 0.8, 0.4), "blue": (0.7, 1.0, 1.45)}


def decoded(field, pattern="GRBG", noise=NOISE, seed=0):
    return debayer(
        truth.through_filters(field.truth, pattern, noise=noise, seed=seed), pattern, colour=COLOUR
    )


def widths(field, planes, pattern="GRBG"):
    """FWHM of each channel over that of its own untouched samples."""
    shape = field.truth.shape[1:]
    return [
        truth.fitted_fwhm(field, planes, c)
        / truth.fitted_fwhm(field, field.truth, c, mask=truth.own_samples(shape, pattern, c))
        for c in range(3)
    ]


@pytest.mark.parametrize("pattern", CFA_PATTERNS)
@pytest.mark.parametrize("kind", KINDS)
def test_stars_are_as_sharp_as_their_own_samples_and_have_no_rings(kind, pattern):
    field = truth.star_field([BRIGHT * truth.STAR * KINDS[kind]], seed=1)
    planes = decoded(field, pattern)
    assert widths(field, planes, pattern) == pytest.approx([1, 1, 1], abs=0.02)
    for channel in (0, 2):
        assert truth.ring_percent(field, planes, channel) < 1.0


def test_faint_stars_are_as_sharp_as_bright_ones():
    field = truth.star_field([5 * NOISE * truth.STAR], across=24, seed=2)
    planes = np.mean([decoded(field, seed=k) for k in range(6)], axis=0)
    assert widths(field, planes) == pytest.approx([1, 1, 1], abs=0.04)


@pytest.mark.parametrize(("peak", "limit_percent"), [(BRIGHT, 0.5), (1500.0, 0.8)])
@pytest.mark.parametrize("kind", KINDS)
def test_apertures_lose_and_win_nothing(kind, peak, limit_percent):
    field = truth.star_field([peak * truth.STAR * KINDS[kind]], across=18, seed=3)
    planes = decoded(field, noise=1.0)
    for channel in range(3):
        assert abs(truth.flux_bias_percent(field, planes, channel)) < limit_percent


def test_a_colour_that_the_optics_blur_is_not_sharpened_away():
    """Green leads: a red three quarters wider comes out narrower than it is, but keeps its light."""
    field = truth.star_field([BRIGHT * truth.STAR], fwhm=(4.2, 2.4, 2.4), seed=4)
    planes = decoded(field)
    assert 0.8 < widths(field, planes)[0] < 1.0
    assert abs(truth.flux_bias_percent(field, planes, 0)) < 1.0


def test_the_sky_stays_where_it_is_and_blocks_of_it_get_no_noisier():
    flat = np.ones((3, 400, 400)) * truth.SKY[:, None, None]
    raw = truth.through_filters(flat, "GRBG", noise=NOISE)
    planes, plain = debayer(raw, "GRBG", colour=COLOUR), truth.means_of_neighbours(raw, "GRBG")
    for channel in range(3):
        own = raw[truth.own_samples(raw.shape, "GRBG", channel)].mean()
        assert planes[channel].mean() == pytest.approx(own, abs=0.1)
        assert truth.block_noise(planes[channel]) < 1.04 * truth.block_noise(plain[channel])
        assert planes[channel].std() < 1.05 * NOISE


def test_the_light_of_one_line_gets_no_noise_from_the_other_colours():
    flat = np.ones((3, 300, 300)) * (truth.SKY + np.array([1500, 60, 60]))[:, None, None]
    raw = truth.through_filters(flat, "GRBG", noise=NOISE)
    red = debayer(raw, "GRBG", colour=COLOUR)[0]
    assert red.std() < 1.3 * NOISE
    assert truth.block_noise(red) < 1.07 * truth.block_noise(truth.means_of_neighbours(raw, "GRBG")[0])


@pytest.mark.parametrize(
    ("colour", "limit_percent"),
    [((2400, 3000, 2100), 0.5), ((3000, 1200, 900), 1.0), ((3000, 300, 300), 6.0)],
)
def test_edges_of_nebulae_are_of_the_colour_of_the_inside(colour, limit_percent):
    """The light of one line has no other colour to follow; means of neighbours show 2 % whatever the colour."""
    bar, inside = truth.slanted_bar(colour)
    planes = debayer(truth.through_filters(bar, "GRBG"), "GRBG", colour=COLOUR)
    for channel in (0, 2):
        chroma = truth.chroma_percent(planes, colour, channel, inside)
        assert np.abs(chroma).max() < limit_percent


@pytest.mark.parametrize("pattern", CFA_PATTERNS)
def test_a_bleeding_star_makes_no_holes_in_the_sky(pattern):
    sky = np.ones((3, 60, 60)) * truth.SKY[:, None, None]
    sky[:, 10:50, 30:32] = 65535
    planes = debayer(truth.through_filters(sky, pattern), pattern, colour=COLOUR)
    assert np.all(planes >= truth.SKY[:, None, None] - 4 * NOISE - 1)


def test_without_a_word_of_its_light_a_frame_is_still_sharper_than_means():
    field = truth.star_field([BRIGHT * truth.STAR], seed=5)
    planes = debayer(truth.through_filters(field.truth, "GRBG", noise=NOISE), "GRBG")
    assert widths(field, planes) == pytest.approx([1, 1, 1], abs=0.06)


def test_the_judges_find_means_of_neighbours_wanting():
    field = truth.star_field([BRIGHT * truth.STAR], seed=1)
    planes = truth.means_of_neighbours(truth.through_filters(field.truth, "GRBG", noise=NOISE), "GRBG")
    red, green, blue = widths(field, planes)
    assert min(red, blue) > 1.2
    assert green > 1.1
    assert truth.ring_percent(field, planes, 0) > 8
    assert truth.ring_percent(field, planes, 2) > 8
    assert abs(truth.flux_bias_percent(field, planes, 0, radius=4.0)) > 1.5
    colour = (2400, 3000, 2100)
    bar, inside = truth.slanted_bar(colour)
    planes = truth.means_of_neighbours(truth.through_filters(bar, "GRBG"), "GRBG")
    assert np.abs(truth.chroma_percent(planes, colour, 0, inside)).max() > 1.5
