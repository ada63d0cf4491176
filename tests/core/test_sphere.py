from __future__ import annotations

import numpy as np
import pytest

from zemosaic_core import sphere
from zemosaic_core.errors import RunFailed, SettingsError


def test_unit_vectors_and_back_everywhere():
    rng = np.random.default_rng(1)
    ra = np.concatenate([rng.uniform(0, 360, 200), [0.0, 359.999999, 10.0]])
    dec = np.concatenate([rng.uniform(-90, 90, 200), [0.0, 89.999, -89.999]])
    back_ra, back_dec = sphere.ra_dec(sphere.unit_vectors(ra, dec))
    np.testing.assert_allclose(back_ra, ra, atol=1e-9)
    np.testing.assert_allclose(back_dec, dec, atol=1e-12)
    assert (back_ra < 360).all()


def test_ra_is_below_360_even_when_rounding_says_otherwise():
    ra, _ = sphere.ra_dec(np.array([1.0, -1e-18, 0.0]))
    assert 0 <= float(ra) < 360


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((359.9, 0), (0.1, 0), 0.2),
        ((0, 89.9), (180, 89.9), 0.2),
        ((10, 60), (11, 60), 0.5 / 60 * 59.998857),
        ((0, 0), (180, 0), 180.0),
        ((5, 5), (5, 5 + 1e-7), 1e-7),
    ],
)
def test_separation(a, b, expected):
    assert float(sphere.separation_deg(*a, *b)) == pytest.approx(expected, rel=1e-4)


def test_position_angle_is_east_of_north():
    assert float(sphere.position_angle_deg(10, 20, 10, 21)) == pytest.approx(0)
    assert float(sphere.position_angle_deg(359.9, 0, 0.1, 0)) == pytest.approx(90)
    assert float(sphere.position_angle_deg(10, 20, 10, 19)) == pytest.approx(180)


def test_mean_direction_across_ra_zero_and_at_the_pole():
    ra, dec = sphere.mean_direction([359, 1], [10, 10])
    assert min(ra, 360 - ra) < 1e-9
    assert dec == pytest.approx(10, abs=0.01)
    _, dec = sphere.mean_direction([0, 90, 180, 270], [89, 89, 89, 89])
    assert dec == pytest.approx(90)


def test_mean_direction_ignores_nan_and_refuses_antipodes():
    assert sphere.mean_direction([10, np.nan], [20, 5]) == pytest.approx((10, 20))
    with pytest.raises(RunFailed):
        sphere.mean_direction([0, 180], [0, 0])
    with pytest.raises(RunFailed):
        sphere.mean_direction([np.nan], [np.nan])


@pytest.mark.parametrize("center", [(0.0, 0.0), (359.95, 60.0), (120.0, 90.0), (40.0, -89.9)])
@pytest.mark.parametrize("parity", [1, -1])
@pytest.mark.parametrize("rotation", [0.0, 33.0, 250.0])
def test_image_geometry_measures_what_tan_wcs_was_told(center, parity, rotation):
    wcs = sphere.tan_wcs(center, 2.4 / 3600, (192, 108), rotation, parity)
    g = sphere.image_geometry(wcs, (192, 108))
    assert float(sphere.separation_deg(g.ra_deg, g.dec_deg, *center)) < 1e-9
    assert g.scale_deg == pytest.approx(2.4 / 3600, rel=1e-6)
    assert g.parity == parity
    # At the pole itself north is defined by the RA of the tangent point.
    assert abs(float(sphere.angle_difference_deg(g.rotation_deg, rotation))) < 1e-6
    assert g.size_deg == pytest.approx((108 * 2.4 / 3600, 192 * 2.4 / 3600), rel=1e-5)


def test_north_up_has_east_on_the_left():
    wcs = sphere.tan_wcs((100, 20), 0.01, (101, 101))
    ra, dec = wcs.all_pix2world([0, 50], [50, 100], 0)
    assert ra[0] > 100
    assert dec[1] > 20


def test_gnomonic_agrees_with_tan_wcs():
    rng = np.random.default_rng(3)
    wcs = sphere.tan_wcs((10, 70), 1.0, (1, 1))
    ra, dec = rng.uniform(0, 30, 50), rng.uniform(65, 80, 50)
    x, y = wcs.all_world2pix(ra, dec, 0)
    xi, eta = sphere.gnomonic(ra, dec, 10, 70)
    np.testing.assert_allclose(xi, -x, atol=1e-10)
    np.testing.assert_allclose(eta, y, atol=1e-10)


def test_gnomonic_beyond_the_horizon_is_nan():
    xi, _ = sphere.gnomonic([190.0], [-70.0], 10, 70)
    assert np.isnan(xi).all()


def test_footprint_goes_around_the_pixel_edges():
    wcs = sphere.tan_wcs((0.0, 0.0), 0.01, (20, 10))
    outline = sphere.footprint(wcs, (20, 10), per_edge=1)
    x, y = wcs.all_world2pix(outline[:, 0], outline[:, 1], 0)
    np.testing.assert_allclose(x, [-0.5, 9.5, 9.5, -0.5], atol=1e-8)
    np.testing.assert_allclose(y, [-0.5, -0.5, 19.5, 19.5], atol=1e-8)


def test_bad_scale_is_refused():
    with pytest.raises(SettingsError):
        sphere.tan_wcs((0, 0), 0.0, (10, 10))
