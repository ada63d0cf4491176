from __future__ import annotations

import numpy as np
import pytest

from zemosaic_core.picture_flatten import fit_sky_surface
from zemosaic_core.picture_style import STYLES, curve, paint, pedestal_for_sky
from zemosaic_core.stretch import auto_stretch_params, preview_rgba

RED, WHITE, BLUE = (1.6, 1.0, 0.55), (1.0, 1.0, 1.0), (0.5, 1.0, 1.7)


def field(colours=(RED, WHITE, BLUE), peak=8000.0):
    """Three stars, each of one colour, and the faint outskirts of a nebula on a tinted sky."""
    rng = np.random.default_rng(8)
    yy, xx = np.mgrid[:160, :240]
    image = np.array([400.0, 560.0, 350.0])[:, None, None] + rng.normal(0, 6.0, (3, 160, 240))
    image += 12.0 * np.exp(-((yy - 120) ** 2 + (xx - 120) ** 2) / 800.0)
    for x, colour in zip((40, 120, 200), colours, strict=True):
        star = peak * np.exp(-((yy - 50) ** 2 + (xx - x) ** 2) / 6.0)
        image += np.array(colour)[:, None, None] * star
    return image.astype(np.float32)


@pytest.mark.parametrize("style", STYLES)
def test_stars_have_their_colours_in_every_style_and_cores_are_not_white(style):
    picture = preview_rgba(field(), white_gains=(1.0, 1.0, 1.0), style=style)[..., :3].astype(int)
    red, white, blue = (picture[50, x] for x in (40, 120, 200))
    assert red[0] > red[1] > red[2]
    assert red[2] < 0.85 * red[0]
    assert np.ptp(white) < 14
    assert blue[2] > blue[1] > blue[0]
    # Not bluer than the hottest stars are, (155, 176, 255), and not royal blue.
    assert 0.5 < blue[0] / blue[2] < 0.9
    assert max(red.max(), white.max(), blue.max()) > 225


@pytest.mark.parametrize(("style", "low", "high"), [("deep", 40, 60), ("print", 32, 48)])
def test_the_sky_is_as_bright_as_the_style_says_and_neutral(style, low, high):
    picture = preview_rgba(field(), white_gains=(1.0, 1.0, 1.0), style=style)[..., :3]
    sky = np.median(picture[100:, :60].reshape(-1, 3), axis=0)
    assert (sky >= low).all()
    assert (sky <= high).all()
    assert np.ptp(sky) <= 2


def test_deep_shows_the_outskirts_best():
    def rise(style):
        picture = preview_rgba(field(), white_gains=(1.0, 1.0, 1.0), style=style)[..., 1].astype(float)
        return picture[110:130, 110:130].mean() - np.median(picture[100:, :60])

    assert rise("deep") > 1.4 * rise("natural") > 0
    assert rise("print") > 1.1 * rise("natural")


def test_paper_gets_no_black_and_no_blank_white():
    seen = preview_rgba(field(), style="print")[..., :3]
    assert seen.min() >= 10
    assert seen.max() <= 250


def test_pedestal_puts_the_sky_where_the_style_wants_it():
    for name in ("deep", "print"):
        style = STYLES[name]
        pedestal = pedestal_for_sky(2.0, 5000.0, style)
        sky = style.darkest + (style.brightest - style.darkest) * float(
            curve(np.zeros(1, np.float32), 2.0, pedestal, 5000.0)[0]
        )
        assert sky == pytest.approx(style.sky, abs=1e-4)


def test_black_point_and_saturation_move_every_style():
    image = field()
    for style in STYLES:
        usual, darker = (auto_stretch_params(image, style=style, p_low=p) for p in (1.0, 20.0))
        assert darker.pedestal < usual.pedestal
    light = np.full((1, 1), 100.0, np.float32)
    colours = [np.full((1, 1), 30.0, np.float32), np.full((1, 1), -30.0, np.float32)]
    pale, strong = (
        paint(light, colours, 3.0, 5.0, 5000.0, STYLES["natural"], s)[:, 0, 0] for s in (0.0, 1.5)
    )
    assert np.ptp(pale) < 1e-6
    assert np.ptp(strong) > 0.1


def test_clipped_cores_take_the_colour_around_them():
    image = field(colours=(RED, RED, RED), peak=40000.0)
    clipped = (image > 9000.0).any(axis=0)
    image[:, clipped] = 9000.0
    plain, mended = (
        preview_rgba(image, white_gains=(1.0, 1.0, 1.0), clipped=c)[50, 120, :3].astype(int)
        for c in (None, clipped)
    )
    assert np.ptp(plain) < 12
    assert mended[0] > mended[2] + 25


def test_sixteen_bits_are_the_same_picture():
    image = field()
    params = auto_stretch_params(image)
    fine = preview_rgba(image, params=params, bits=16)
    coarse = preview_rgba(image, params=params)
    assert fine.dtype == np.uint16
    assert np.abs(fine / 257.0 - coarse).max() <= 0.51


def test_a_slope_is_flattened_and_a_galaxy_stays():
    rng = np.random.default_rng(3)
    yy, xx = np.mgrid[:300, :400]
    slope = 0.05 * xx + 2e-4 * (yy - 100.0) ** 2
    galaxy = 300.0 * np.exp(-np.hypot(yy - 150, xx - 200) / 30.0)
    image = np.stack([c * slope + galaxy + 500.0 + rng.normal(0, 2, slope.shape) for c in (1.0, 0.5, -0.5)])
    image = image.astype(np.float32)
    image[:, :40, :60] = np.nan
    surface = fit_sky_surface(image)
    flat = surface.taken_from(image)
    part = surface.taken_from(image[:, 50:90, 130:300], image.shape[1:], (50, 130))
    np.testing.assert_array_equal(part, flat[:, 50:90, 130:300])
    np.testing.assert_array_equal(np.isnan(flat), np.isnan(image))
    corners = [
        flat[:, a, b].reshape(3, -1)
        for a in (slice(40, 70), slice(270, 300))
        for b in (slice(60, 90), slice(370, 400))
    ]
    levels = np.array([np.nanmedian(corner, axis=1) for corner in corners])
    assert np.ptp(levels, axis=0).max() < 2.5
    assert np.nanmax(flat[:, 145:155, 195:205]) - levels.mean() > 250
    few = np.full((1, 20, 20), 3.0, np.float32)
    assert fit_sky_surface(few) is None
