from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import AltAz, EarthLocation, SkyCoord, get_body, get_sun
from astropy.time import Time

from zemosaic_core.night_sky import (
    Site,
    airmass,
    horizontal,
    julian_date,
    moon_place,
    moonlight_nl,
    parallactic_deg,
    sun_altitude_deg,
    transmission,
    van_rhijn,
)
from zemosaic_core.synthetic_sky import pixel_to_sky, tan_cards

BERN = Site(47.0, 7.4)
PARANAL = Site(-24.6, -70.4)
MOMENTS = [datetime(2025, 3, 4, 19, 0), datetime(2025, 10, 7, 3, 30), datetime(2024, 8, 19, 23, 15)]


def frame(site, moment):
    place = EarthLocation(lat=site.latitude_deg * u.deg, lon=site.longitude_deg * u.deg)
    return AltAz(obstime=Time(moment), location=place)


@pytest.mark.parametrize("site", [BERN, PARANAL])
@pytest.mark.parametrize("moment", MOMENTS)
def test_places_in_the_sky_agree_with_astropy(site, moment):
    jd = julian_date(moment)
    star = SkyCoord(83.8 * u.deg, -5.4 * u.deg).transform_to(frame(site, moment))
    altitude, azimuth = horizontal(83.8, -5.4, jd, site)
    # Precession since 2000 is left out: a third of a degree.
    assert altitude == pytest.approx(star.alt.deg, abs=0.4)
    assert (azimuth - star.az.deg + 180) % 360 - 180 == pytest.approx(
        0, abs=0.6 / np.cos(np.deg2rad(altitude))
    )
    sun = get_sun(Time(moment)).transform_to(frame(site, moment))
    assert sun_altitude_deg(jd, site) == pytest.approx(sun.alt.deg, abs=0.05)


@pytest.mark.parametrize("site", [BERN, PARANAL])
@pytest.mark.parametrize("moment", MOMENTS)
def test_moon_agrees_with_astropy_including_its_parallax(site, moment):
    there = frame(site, moment)
    moon = get_body("moon", Time(moment), there.location)
    altitude, azimuth, phase = moon_place(julian_date(moment), site)
    seen = moon.transform_to(there)
    assert altitude == pytest.approx(seen.alt.deg, abs=0.4)
    assert (azimuth - seen.az.deg + 180) % 360 - 180 == pytest.approx(
        0, abs=0.6 / np.cos(np.deg2rad(altitude))
    )
    elongation = moon.separation(get_sun(Time(moment)), origin_mismatch="ignore").deg
    assert phase == pytest.approx(180 - elongation, abs=1.5)


def test_julian_date_of_known_moments():
    assert julian_date(datetime(2000, 1, 1, 12)) == 2451545.0
    assert julian_date(datetime(2025, 10, 20, 0, tzinfo=UTC)) == 2460968.5


@pytest.mark.parametrize("hours", [-4.0, -0.5, 2.0, 5.0])
def test_parallactic_angle_points_at_the_zenith(hours):
    """A step in that direction goes straight up."""
    jd = julian_date(datetime(2025, 10, 20, 22)) + hours / 24.0
    cards = tan_cards(10.0, 35.0, rotation_deg=parallactic_deg(10.0, 35.0, jd, BERN), shape_hw=(101, 101))
    ra, dec = pixel_to_sky(cards, np.array([50.0, 50.0]), np.array([50.0, 0.0]))
    altitude, azimuth = horizontal(ra, dec, jd, BERN)
    assert altitude[1] - altitude[0] == pytest.approx(50 * 2.374 / 3600, rel=1e-3)
    assert azimuth[1] == pytest.approx(azimuth[0], abs=2e-4)


def test_laws_of_air_and_airglow_at_known_altitudes():
    np.testing.assert_allclose(airmass([90.0, 30.0, 10.0]), [1.0, 1.995, 5.59], rtol=2e-3)
    np.testing.assert_allclose(van_rhijn([90.0, 30.0]), [1.0, 1.919], rtol=2e-3)
    np.testing.assert_allclose(transmission(30.0, 0.25)[1], 10 ** (-0.1 * 0.995), rtol=2e-3)
    assert transmission(30.0, 0.25)[2] < transmission(30.0, 0.25)[1] < transmission(30.0, 0.25)[0]


def test_moonlight_is_that_of_the_published_law():
    """Krisciunas and Schaefer (1991): full Moon, both 60 degrees from the zenith on opposite sides of it."""
    scatter = 10**5.36 * (1.06 + np.cos(np.deg2rad(120.0)) ** 2) + 10 ** (6.15 - 120.0 / 40.0)
    path = (1 - 0.96 * np.sin(np.deg2rad(60.0)) ** 2) ** -0.5
    expected = scatter * 10 ** (-0.4 * (3.84 + 0.25 * path)) * (1 - 10 ** (-0.1 * path))
    found = moonlight_nl(30.0, 180.0, (30.0, 0.0, 0.0), 0.25)
    assert found == pytest.approx(expected, rel=1e-9)
    assert moonlight_nl(30.0, 10.0, (30.0, 0.0, 0.0), 0.25) > 2 * found
    assert moonlight_nl(30.0, 180.0, (30.0, 0.0, 90.0), 0.25) < 0.15 * found
    np.testing.assert_array_equal(moonlight_nl(np.full(3, 30.0), np.zeros(3), (-1.0, 0.0, 0.0), 0.25), 0.0)
