"""The place of a telescope from the turning of its frames."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from zemosaic_core.night_sky import Site, julian_date, parallactic_deg
from zemosaic_core.site_of_frames import site_from_rotation

START = datetime(2025, 10, 20, 20, 0, tzinfo=UTC)


def frames(site: Site, hours: float, n: int = 40, *, seed: int = 0, centre=(10.7, 41.3), equatorial=False):
    rng = np.random.default_rng(seed)
    moments = [START + timedelta(hours=hours * k / (n - 1)) for k in range(n)]
    jd = np.array([julian_date(moment) for moment in moments])
    ra = centre[0] + rng.uniform(-1, 1, n)
    dec = centre[1] + rng.uniform(-1, 1, n)
    angle = np.zeros(n) if equatorial else parallactic_deg(ra, dec, jd, site)
    return ra, dec, angle + 37.0 + rng.normal(0, 0.02, n), jd, np.zeros(n, np.int64)


@pytest.mark.parametrize("site", [Site(48.0, 9.0), Site(47.0, -71.0), Site(28.3, -16.5)])
def test_the_place_is_found(site):
    fit = site_from_rotation(*frames(site, 2.0))
    assert fit.site is not None
    assert abs(fit.site.latitude_deg - site.latitude_deg) < 0.7
    assert abs(fit.site.longitude_deg - site.longitude_deg) < 0.7
    assert fit.rms_deg < 0.05


def test_a_southern_place():
    fit = site_from_rotation(*frames(Site(-30.0, -40.0), 2.0, centre=(350.0, -40.0)))
    assert fit.site is not None
    assert abs(fit.site.latitude_deg + 30.0) < 1.0
    assert abs(fit.site.longitude_deg + 40.0) < 1.0


def test_frames_that_follow_the_sky_tell_no_place():
    fit = site_from_rotation(*frames(Site(48.0, 9.0), 3.0, equatorial=True))
    assert fit.site is None
    assert fit.equatorial


def test_angles_that_no_place_explains_give_none():
    ra, dec, angle, jd, night = frames(Site(48.0, 9.0), 2.0)
    mixed = np.random.default_rng(1).permutation(len(angle))
    assert site_from_rotation(ra, dec, angle[mixed], jd, night).site is None


def test_few_frames_tell_nothing():
    ra, dec, angle, jd, night = frames(Site(48.0, 9.0), 2.0, n=5)
    fit = site_from_rotation(ra, dec, angle, jd, night)
    assert fit.site is None
    assert np.isnan(fit.rms_deg)
