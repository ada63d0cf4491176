"""Colours of a finished mosaic from the stars of the built-in catalogue."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.wcs import WCS

from zemosaic_core.colour_calibration import SUN_B_V
from zemosaic_core.synthetic_sky import star_colour, tan_cards
from zemosaic_io.star_catalogue import open_built_in_catalogue
from zemosaic_pipeline.colour import calibrate
from zemosaic_pipeline.plan import ColourOptions
from zemosaic_pipeline.records import StarLight

CENTRE, SCALE, SIZE, EPOCH = (305.0, 40.0), 6.0, 900, 2026.0
RESPONSE, ZERO_MAG, EXPOSURE_S, NOISE = np.array([0.7, 1.0, 0.5]), 22.0, 10.0, 4.0
G2V = ColourOptions(True, "g2v", False)


@pytest.fixture(scope="module")
def mosaic():
    """A rich field as a camera of known response sees it in 2026, and its WCS."""
    cards = tan_cards(*CENTRE, scale_arcsec=SCALE, shape_hw=(SIZE, SIZE))
    cards |= {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN"}
    rng = np.random.default_rng(6)
    ra, dec, mag, b_v = open_built_in_catalogue().sky_near(*CENTRE, 1.2, EPOCH)
    b_v = np.where(np.isnan(b_v), 0.7, b_v)
    colour = star_colour(b_v) / star_colour(np.array([SUN_B_V])) * RESPONSE
    light = 10.0 ** (0.4 * (ZERO_MAG - mag))[:, None] * EXPOSURE_S * colour
    x, y = WCS(cards).all_world2pix(ra, dec, 0)
    image = rng.normal(300.0, NOISE, (3, SIZE, SIZE)).astype(np.float32)
    for star_x, star_y, flux in zip(x, y, light, strict=True):
        if 12 < star_x < SIZE - 12 and 12 < star_y < SIZE - 12:
            j, i = round(star_y), round(star_x)
            yy, xx = np.mgrid[j - 10 : j + 11, i - 10 : i + 11]
            spot = np.exp(-((xx - star_x) ** 2 + (yy - star_y) ** 2) / (2 * 1.1**2))
            image[:, j - 10 : j + 11, i - 10 : i + 11] += (flux[:, None, None] * spot / spot.sum()).astype(
                np.float32
            )
    return image, cards


def of(image, cards, light=None, options=G2V):
    light = light or StarLight(EPOCH, EXPOSURE_S, 2.6, np.empty((0, 2)), np.empty(0, bool))
    return calibrate(lambda y0, y1: image[:, y0:y1], image.shape, cards, light, (0, 0), options)


def test_white_and_zero_points_come_back(mosaic):
    found = of(*mosaic)
    assert found.key == "colour_calibrated"
    assert found.solution.n_stars >= 20
    ratio = np.array(found.gains) / found.gains[1] * RESPONSE
    np.testing.assert_allclose(ratio, 1.0, atol=0.02)
    np.testing.assert_allclose(found.zero_mag, ZERO_MAG + 2.5 * np.log10(RESPONSE), atol=0.05)
    # A star of five times the noise in its best aperture: 5 sigma sqrt(pi) 0.68 FWHM, of which 72 % are inside.
    faintest = 5 * NOISE * np.sqrt(np.pi) * 0.68 * 2.6 / 0.72
    expected = ZERO_MAG + 2.5 * np.log10(RESPONSE * EXPOSURE_S / faintest)
    np.testing.assert_allclose(found.limit_mag, expected, atol=0.1)


def test_cards_and_facts_tell_the_same(mosaic):
    found = of(*mosaic)
    cards, facts = found.cards(), found.facts()
    assert [cards[f"WBAL_{c}"][0] for c in "RGB"] == pytest.approx(found.gains, abs=1e-4)
    assert [cards[f"ZMAG_{c}"][0] for c in "RGB"] == pytest.approx(found.zero_mag, abs=1e-3)
    assert cards["COLWHITE"][0] == "g2v"
    assert facts["used"] == cards["COLNSTAR"][0] == int(np.sum(facts["counted"]))
    assert len(facts["stars"]) == found.n_stars


def test_stars_the_sensor_could_not_hold_are_not_measured(mosaic):
    image, cards = mosaic
    every = of(image, cards)
    known = open_built_in_catalogue().coloured_near(*CENTRE, 1.2, EPOCH)
    xy = np.column_stack(WCS(cards).all_world2pix(known.ra_deg, known.dec_deg, 0))[:10]
    # Seen by four frames each; the first five stars are cut in three of them, the others in one.
    seen = np.repeat(xy, 4, axis=0)
    cut = np.concatenate([np.tile([True, True, True, False], 5), np.tile([True, False, False, False], 5)])
    fewer = of(image, cards, StarLight(EPOCH, EXPOSURE_S, 2.6, seen, cut))
    gone = {tuple(star[:2]) for star in every.stars} - {tuple(star[:2]) for star in fewer.stars}
    assert 1 <= len(gone) <= 5
    assert max(mag for mag, _ in gone) <= known.v_mag[4] + 1e-6


def test_a_mosaic_may_begin_anywhere_on_its_grid(mosaic):
    image, cards = mosaic
    seen = np.array([[500.0, 500.0]])
    light = StarLight(EPOCH, EXPOSURE_S, 2.6, seen + np.array([40, 70]), np.array([True]))
    here = calibrate(lambda y0, y1: image[:, y0:y1], image.shape, cards, light, (70, 40), G2V)
    there = of(image, cards, StarLight(EPOCH, EXPOSURE_S, 2.6, seen, np.array([True])))
    assert here.gains == there.gains


def test_off_and_too_few_say_so(mosaic):
    image, cards = mosaic
    assert of(image, cards, options=ColourOptions(False, "g2v", False)).key == "colour_off"
    blind = np.full_like(image, np.nan)
    found = of(blind, cards)
    assert (found.key, found.solution, found.gains) == ("colour_too_few_stars", None, None)
    assert found.cards() == {}


def test_no_white_keeps_zero_points_only(mosaic):
    found = of(*mosaic, options=ColourOptions(True, "none", False))
    assert found.gains is None
    assert "WBAL_R" not in found.cards()
    assert "ZMAG_G" in found.cards()


def test_unknown_exposure_leaves_zero_points_unknown(mosaic):
    found = of(*mosaic, StarLight(EPOCH, float("nan"), 2.6, np.empty((0, 2)), np.empty(0, bool)))
    assert found.gains is not None
    assert np.isnan(found.zero_mag).all()
    assert np.isfinite(found.limit_mag).all()
