from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from zemosaic_core.synthetic_galaxy import Galaxy
from zemosaic_core.synthetic_glow import Glow, glow_adu
from zemosaic_core.synthetic_nebula import Cloud, paint_diffuse_light
from zemosaic_core.synthetic_sky import GLOW_STEP_PX, FrameSetup, Sky, render_frame, tan_cards, vignette

NO_MOON = (-10.0, 0.0, 90.0)
NONE = Glow(airglow_adu=0.0, air_adu=0.0, dome_adu=0.0)
SHAPE = (200, 140)


def dark_sky() -> Sky:
    none = np.zeros(0)
    return Sky(none, none, none, np.zeros((0, 3)), np.zeros((3, 0, 0), np.float32), tan_cards(10.0, 41.0))


def test_town_fades_with_altitude_azimuth_and_time():
    glow = replace(NONE, dome_adu=1000.0, dome_azimuth_deg=90.0)
    light = glow_adu(glow, np.array([20.0, 42.0, 20.0]), np.array([90.0, 90.0, 180.0]), 0.0, NO_MOON)[1]
    assert light[1] / light[0] == pytest.approx(np.exp(-1.0))
    assert light[2] / light[0] == pytest.approx(np.exp(-glow.dome_width))
    later = glow_adu(glow, np.array([20.0]), np.array([90.0]), 4.0, NO_MOON)[1]
    assert later[0] / light[0] == pytest.approx(0.8)


def test_airglow_drifts_and_the_moon_adds_light():
    glow = replace(NONE, airglow_adu=100.0, drift=0.1, drift_period_h=4.0)
    overhead = np.array([90.0]), np.array([0.0])
    assert glow_adu(glow, *overhead, 1.0, NO_MOON)[1] == pytest.approx(110.0, rel=1e-3)
    assert glow_adu(glow, *overhead, 3.0, NO_MOON)[1] == pytest.approx(90.0, rel=1e-3)
    moonlit = replace(NONE, moon_adu_per_nl=0.5)
    assert glow_adu(moonlit, *overhead, 0.0, (40.0, 120.0, 10.0))[1] > 100.0
    assert glow_adu(moonlit, *overhead, 0.0, NO_MOON)[1] == 0.0


def test_cloud_has_its_brightness_and_size_where_it_was_put():
    cloud = Cloud(peak_adu=100.0, radius_deg=0.5, east_deg=0.3, north_deg=-0.2, clumpiness=0.0)
    image = paint_diffuse_light((cloud,), None, size_deg=3.0, scale_deg=0.01, seed=3)[1]
    middle = image.shape[0] // 2
    assert image[middle - 20, middle - 30] == pytest.approx(100.0)
    assert image[middle - 20 + 50, middle - 30] == pytest.approx(50.0)


def test_galaxy_and_cloud_add_up_and_a_galaxy_that_does_not_fit_is_an_error():
    galaxy, cloud = Galaxy(radius_deg=0.3), Cloud(peak_adu=50.0)
    kw = {"size_deg": 2.0, "scale_deg": 0.02, "seed": 3}
    both = paint_diffuse_light((cloud,), galaxy, **kw)
    np.testing.assert_allclose(
        both, paint_diffuse_light((cloud,), None, **kw) + paint_diffuse_light((), galaxy, **kw), atol=1e-3
    )
    with pytest.raises(ValueError, match="does not fit"):
        paint_diffuse_light((), Galaxy(radius_deg=2.0), **kw)


def test_frame_shows_the_glow_of_its_nodes_under_its_vignetting():
    y, x = np.mgrid[0:6, 0:5] * float(GLOW_STEP_PX)
    nodes = np.stack([200.0 + 0.5 * x + 0.3 * y, 300.0 + 0.2 * y, 100.0 + 0.1 * x])
    setup = FrameSetup(
        cards=tan_cards(10.0, 41.0, shape_hw=SHAPE), shape_hw=SHAPE, glow_adu=nodes, vignetting=0.12
    )
    stack = np.mean(
        [render_frame(dark_sky(), replace(setup, seed=(i,))).astype(float) for i in range(60)], axis=0
    )
    flat = vignette(SHAPE, 0.12).astype(float)
    assert flat[0, 0] == pytest.approx(0.88, abs=1e-6)
    assert flat.max() == pytest.approx(1.0, abs=1e-4)
    yy, xx = np.mgrid[0 : SHAPE[0], 0 : SHAPE[1]]
    planes = np.stack([200.0 + 0.5 * xx + 0.3 * yy, 300.0 + 0.2 * yy, 100.0 + 0.1 * xx]) * flat
    channel = np.array([[1, 0], [2, 1]])[yy % 2, xx % 2]
    expected = 440.0 + np.take_along_axis(planes, channel[None], axis=0)[0]
    difference = stack - expected
    blocks = difference.reshape(10, 20, 7, 20).mean(axis=(1, 3))
    # The mean of 60 frames over 400 pixels of about 65 ADU noise.
    assert np.abs(blocks).max() < 5 * 65 / np.sqrt(60 * 400)
    assert np.abs(blocks.mean()) < 0.5


def test_air_dims_stars_but_not_the_sky():
    cards = tan_cards(10.0, 41.0, shape_hw=SHAPE)
    star = replace(
        dark_sky(),
        ra_deg=np.array([10.0]),
        dec_deg=np.array([41.0]),
        mag=np.array([9.0]),
        flux=np.full((1, 3), 2e5),
    )
    nodes = np.full((3, 6, 5), 100.0)
    clear = FrameSetup(cards=cards, shape_hw=SHAPE, glow_adu=nodes)
    dimmed = replace(clear, air=np.full((3, 6, 5), 0.5))
    bright, faint = (render_frame(star, setup).astype(float) - 540.0 for setup in (clear, dimmed))
    window = np.s_[85:116, 55:86]
    assert faint[window].sum() / bright[window].sum() == pytest.approx(0.5, abs=0.03)
    assert np.median(faint) == pytest.approx(np.median(bright), abs=4.0)
