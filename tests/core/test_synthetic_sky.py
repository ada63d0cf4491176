from __future__ import annotations

import numpy as np
import pytest
from astropy.wcs import WCS

from zemosaic_core.synthetic_galaxy import Galaxy, paint_galaxy
from zemosaic_core.synthetic_sky import (
    Camera,
    FrameSetup,
    HotPixels,
    Satellite,
    Sky,
    make_hot_pixels,
    make_sky,
    pixel_to_sky,
    render_frame,
    render_ideal,
    sky_to_pixel,
    star_pixels,
    tan_cards,
)

SHAPE = (300, 240)


def astropy_wcs(cards):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = [cards["CTYPE1"], cards["CTYPE2"]]
    wcs.wcs.crval = [cards["CRVAL1"], cards["CRVAL2"]]
    wcs.wcs.crpix = [cards["CRPIX1"], cards["CRPIX2"]]
    wcs.wcs.cd = [[cards["CD1_1"], cards["CD1_2"]], [cards["CD2_1"], cards["CD2_2"]]]
    wcs.wcs.set()
    return wcs


def one_star(flux=(4000.0, 8000.0, 2000.0), ra=10.0, dec=41.0) -> Sky:
    texture = np.zeros((3, 0, 0), dtype=np.float32)
    position = np.array([ra]), np.array([dec])
    return Sky(*position, np.array([12.0]), np.array([flux], dtype=float), texture, tan_cards(ra, dec))


def dark(**changes) -> FrameSetup:
    values = {"cards": tan_cards(10.0, 41.0, shape_hw=SHAPE), "shape_hw": SHAPE, "sky_adu": (0.0, 0.0, 0.0)}
    return FrameSetup(**{**values, **changes})


@pytest.mark.parametrize("center", [(10.0, 41.0), (359.98, -60.0), (120.0, 89.8)])
def test_projection_agrees_with_astropy_in_both_directions(center):
    cards = tan_cards(*center, rotation_deg=33.0, shape_hw=SHAPE)
    wcs = astropy_wcs(cards)
    x, y = np.array([0.0, 100.3, 239.0, -500.0]), np.array([0.0, 12.7, 299.0, 900.0])
    ra, dec = pixel_to_sky(cards, x, y)
    true_ra, true_dec = wcs.all_pix2world(x, y, 0)
    np.testing.assert_allclose(dec, true_dec, atol=1e-9)
    turn = (ra - true_ra + 180.0) % 360.0 - 180.0
    np.testing.assert_allclose(turn * np.cos(np.deg2rad(dec)), 0.0, atol=1e-9)
    np.testing.assert_allclose(sky_to_pixel(cards, true_ra, true_dec), (x, y), atol=1e-6)


def test_array_parity_is_that_of_the_telescope():
    cards = tan_cards(10.0, 41.0, rotation_deg=70.0)
    assert cards["CD1_1"] * cards["CD2_2"] - cards["CD1_2"] * cards["CD2_1"] > 0


def test_rotation_is_the_position_angle_of_row_zero():
    cards = tan_cards(10.0, 41.0, rotation_deg=90.0, shape_hw=SHAPE)
    ra, dec = pixel_to_sky(cards, 119.5, 0.0)
    assert ra > 10.05  # row 0 lies east of the centre
    assert dec == pytest.approx(41.0, abs=1e-3)


def test_star_lands_at_its_place_with_its_flux_in_every_channel():
    setup = dark(cards=tan_cards(10.01, 41.005, rotation_deg=20.0, shape_hw=SHAPE))
    sky = one_star()
    planes = render_ideal(sky, setup).astype(float)
    _, x, y = star_pixels(sky, setup)
    yy, xx = np.mgrid[: SHAPE[0], : SHAPE[1]]
    for plane, flux in zip(planes, sky.flux[0], strict=True):
        # The faint halo is cut where it is below a third of an ADU.
        assert plane.sum() == pytest.approx(flux, rel=0.02)
        assert (plane * xx).sum() / plane.sum() == pytest.approx(x[0], abs=0.01)
        assert (plane * yy).sum() / plane.sum() == pytest.approx(y[0], abs=0.01)


def test_frame_is_the_ideal_light_seen_through_the_filters():
    sky = make_sky((10.0, 41.0), 0.4, seed=1, stars_per_deg2=3000.0, galaxy=Galaxy(radius_deg=0.1))
    setup = dark(sky_adu=(300.0, 430.0, 270.0), transparency=(0.9, 0.8, 0.7))
    ideal = render_ideal(sky, setup)
    camera = Camera(adu_per_electron=0.01, read_noise_e=0.0, step_adu=1.0)  # next to no noise
    frame = render_frame(sky, setup, camera).astype(float) - camera.pedestal_adu
    for y, x, channel in ((0, 0, 1), (0, 1, 0), (1, 0, 2), (1, 1, 1)):
        expected = ideal[channel, y::2, x::2] + setup.sky_adu[channel]
        difference = frame[y::2, x::2] - expected
        ordinary = expected < 20000
        assert abs(difference[ordinary].mean()) < 0.5
        assert np.abs(difference[ordinary]).max() < 0.05 * 20000


def test_noise_is_that_of_the_real_camera():
    frame = render_frame(one_star(flux=(0, 0, 0)), dark(sky_adu=(402.0, 557.0, 354.0))).astype(float)
    # Real frames with sky 997 / 842 / 794 ADU have noise 90 / 77.5 / 73.4 ADU.
    assert frame[0::2, 0::2].std() == pytest.approx(90.2, rel=0.02)
    assert frame[0::2, 1::2].std() == pytest.approx(77.5, rel=0.02)
    assert frame[1::2, 0::2].std() == pytest.approx(73.4, rel=0.02)
    assert frame.dtype == float
    assert len(np.unique(frame)) < 300  # 12-bit steps


def test_accidents_show_where_they_were_ordered():
    sky = one_star(flux=(0, 0, 0))
    hot = HotPixels(np.array([50 * 240 + 60]), np.array([20000.0], dtype=np.float32))
    setup = dark(hot_pixels=hot, satellites=(Satellite(-5, 100, 250, 100, 1.2, 5000.0),))
    frame = render_frame(sky, setup).astype(float) - Camera().pedestal_adu
    assert frame[50, 60] > 15000
    assert frame[100].mean() == pytest.approx(5000, rel=0.05)
    assert abs(frame[110].mean()) < 20


def test_clouds_take_light_and_brighten_the_sky():
    sky = make_sky((10.0, 41.0), 0.3, seed=5, stars_per_deg2=3000.0)
    clear = render_frame(sky, dark(sky_adu=(300.0, 430.0, 270.0)))
    cloudy = render_frame(sky, dark(sky_adu=(300.0, 430.0, 270.0), cloud_depth=0.85))
    assert np.median(cloudy) > np.median(clear) + 100
    assert np.percentile(cloudy, 99.95) - np.median(cloudy) < np.percentile(clear, 99.95) - np.median(clear)


def test_trail_keeps_the_flux_and_the_centre():
    setup = dark(trail_px=9.0, trail_angle_deg=30.0)
    plane = render_ideal(one_star(), setup)[1].astype(float)
    xx = np.arange(SHAPE[1])
    assert plane.sum() == pytest.approx(8000.0, rel=0.04)
    assert (plane * xx).sum() / plane.sum() == pytest.approx(119.5, abs=0.02)
    assert plane.max() < 0.5 * render_ideal(one_star(), dark())[1].max()


def test_same_seed_same_bits_other_seed_other_noise():
    sky = make_sky((10.0, 41.0), 0.3, seed=5)
    setup = dark(sky_adu=(300.0, 430.0, 270.0), n_cosmics=5, cloud_depth=0.3, seed=(1, 2))
    first = render_frame(sky, setup)
    np.testing.assert_array_equal(first, render_frame(make_sky((10.0, 41.0), 0.3, seed=5), setup))
    other = dark(sky_adu=(300.0, 430.0, 270.0), n_cosmics=5, cloud_depth=0.3, seed=(1, 3))
    assert (first != render_frame(sky, other)).mean() > 0.9


def test_catalogue_stars_replace_the_bright_ones():
    rng = np.random.default_rng(0)
    ra, dec = 10.0 + rng.uniform(-0.3, 0.3, 60), 41.0 + rng.uniform(-0.3, 0.3, 60)
    mag = rng.uniform(7.0, 11.5, 60)
    sky = make_sky((10.0, 41.0), 1.0, catalogue=(ra, dec, mag))
    bright = sky.mag < np.percentile(mag, 70)
    assert set(np.round(sky.ra_deg[bright], 9)) <= set(np.round(ra, 9))
    assert sky.mag.size > 200  # and faint ones were added
    assert (np.diff(sky.mag) >= 0).all()
    with pytest.raises(ValueError, match="no star in the field"):
        make_sky((200.0, -41.0), 1.0, catalogue=(ra, dec, mag))


def test_galaxy_fades_to_nothing_at_the_border_of_its_texture():
    texture = paint_galaxy(Galaxy(radius_deg=0.2), 0.2 / 100, seed=3)
    assert texture.dtype == np.float32
    border = np.concatenate([texture[:, 0].ravel(), texture[:, -1].ravel(), texture[:, :, 0].ravel()])
    assert (border == 0).all()
    centre = texture.shape[1] // 2
    assert texture[1, centre, centre] > 0.5 * texture[1].max()


def test_hot_pixels_are_distinct_and_inside():
    hot = make_hot_pixels((100, 50), count=40, seed=3)
    assert len(set(hot.flat.tolist())) == 40
    assert hot.flat.min() >= 0
    assert hot.flat.max() < 5000
