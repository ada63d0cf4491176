import numpy as np
import pytest
from astropy.wcs import WCS

from zemosaic_core.sphere import tan_wcs
from zemosaic_core.tan_fit import fit_tan


@pytest.mark.parametrize(
    ("ra", "dec", "rotation"), [(192.7, 41.1, 33.0), (0.001, -89.2, 180.0), (359.9995, 0.0, 5.0)]
)
def test_exact_positions_give_the_projection_back(ra, dec, rotation):
    shape = (1920, 1080)
    truth = tan_wcs((ra, dec), 2.374 / 3600, shape, rotation)
    rng = np.random.default_rng(1)
    x, y = rng.uniform(0, 1080, 60), rng.uniform(0, 1920, 60)
    sky_ra, sky_dec = truth.all_pix2world(x, y, 0)
    cards, rms = fit_tan(sky_ra, sky_dec, x, y, shape)
    assert rms < 1e-6
    px, py = WCS(cards).all_world2pix(sky_ra, sky_dec, 0)
    assert np.hypot(px - x, py - y).max() < 1e-6


def test_residual_is_in_pixels():
    shape = (400, 300)
    truth = tan_wcs((10.0, 20.0), 1 / 3600, shape)
    rng = np.random.default_rng(2)
    x, y = rng.uniform(0, 300, 400), rng.uniform(0, 400, 400)
    ra, dec = truth.all_pix2world(x, y, 0)
    _, rms = fit_tan(ra, dec, x + rng.normal(0, 0.2, 400), y + rng.normal(0, 0.2, 400), shape)
    assert rms == pytest.approx(0.2 * np.sqrt(2), rel=0.1)


def test_two_stars_are_not_enough():
    with pytest.raises(ValueError, match="2 stars"):
        fit_tan(np.zeros(2), np.zeros(2), np.zeros(2), np.zeros(2), (10, 10))
