from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from zemosaic_core.night_sky import horizontal, julian_date, moon_place, sun_altitude_deg
from zemosaic_core.synthetic_glow import glow_adu
from zemosaic_core.synthetic_sky import pixel_to_sky, sky_to_pixel
from zemosaic_io.glow_session import NightSpec, plan_glow_night, random_night, write_glow_night
from zemosaic_io.headers import read_frame_info

SMALL = NightSpec(seed=3, panels=(1, 2), frames_per_panel=2, shape_hw=(240, 180), galaxy=None, n_satellites=1)


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    return write_glow_night(tmp_path_factory.mktemp("glow") / "raw", SMALL)


def position_angle(frame):
    cards = frame.setup.cards
    return np.rad2deg(np.arctan2(cards["CD2_1"], -cards["CD2_2"]))


def test_files_are_read_as_frames_of_a_telescope_with_a_site(night):
    assert sorted(night.folder.iterdir()) == sorted(night.paths)
    for path, frame in zip(night.paths, night.frames, strict=True):
        info = read_frame_info(path)
        assert info.shape_hw == SMALL.shape_hw
        header = fits.getheader(path)
        assert (header["SITELAT"], header["SITELONG"], header["EQMODE"]) == (48.0, 9.0, 0)
        assert datetime.fromisoformat(header["DATE-OBS"]) == frame.taken
        assert header["XPIXSZ"] / header["FOCALLEN"] * 206.2648 == pytest.approx(SMALL.scale_arcsec, rel=0.01)
        x, y = WCS(header).all_world2pix(frame.setup.cards["CRVAL1"], frame.setup.cards["CRVAL2"], 0)
        assert (x, y) == (pytest.approx(89.5), pytest.approx(119.5))


def test_header_says_only_what_it_was_allowed_to(tmp_path):
    spec = replace(SMALL, with_site=False, with_wcs=False, hint_is_target=True, frames_per_panel=1)
    for path in write_glow_night(tmp_path, spec).paths:
        header = fits.getheader(path)
        assert "SITELAT" not in header
        assert "CTYPE1" not in header
        assert (header["RA"], header["DEC"]) == (10.6847, 41.269)


def test_the_plan_is_the_truth_of_the_files_and_every_call_writes_the_same(night, tmp_path):
    planned = plan_glow_night(night.folder, SMALL)
    assert [f.name for f in planned.frames] == [f.name for f in night.frames]
    again = write_glow_night(tmp_path, SMALL)
    for index, (first, second) in enumerate(zip(night.paths, again.paths, strict=True)):
        np.testing.assert_array_equal(fits.getdata(first), fits.getdata(second))
        np.testing.assert_array_equal(
            planned.frames[index].setup.glow_adu, again.frames[index].setup.glow_adu
        )


def test_pixels_hold_the_glow_of_altitude_azimuth_and_time_under_vignetting():
    spec = replace(SMALL, level_jitter=0.0, plane_jitter=0.0)
    night = plan_glow_night("", spec)
    frame = night.frames[1]
    x, y = np.array([0.0, 90.0, 179.0]), np.array([10.0, 120.0, 239.0])
    jd = julian_date(frame.taken)
    altitude, azimuth = horizontal(*pixel_to_sky(frame.setup.cards, x, y), jd, spec.site)
    hours = (frame.taken - spec.starts[0]).total_seconds() / 3600.0
    expected = glow_adu(spec.glow, altitude, azimuth, hours, moon_place(jd, spec.site))
    np.testing.assert_allclose(night.glow_at(1, x, y), expected, rtol=1e-4)
    assert night.flat()[0, 0] == pytest.approx(0.96, abs=1e-6)


def test_alt_az_turns_the_field_and_an_equatorial_mount_does_not():
    spec = replace(SMALL, layout="field", frames_per_panel=6, cadence_s=1800.0)
    turning = [position_angle(f) for f in plan_glow_night("", spec).frames]
    assert np.ptp(np.unwrap(turning, period=360)) > 20.0
    # Row 0 is up: it lies higher than the last row.
    frame = plan_glow_night("", spec).frames[3]
    ra, dec = pixel_to_sky(frame.setup.cards, np.array([89.5, 89.5]), np.array([0.0, 239.0]))
    altitude, _ = horizontal(ra, dec, julian_date(frame.taken), spec.site)
    assert altitude[0] - altitude[1] == pytest.approx(239 * spec.scale_arcsec / 3600, rel=0.01)
    still = [position_angle(f) for f in plan_glow_night("", replace(spec, equatorial=True)).frames]
    assert np.ptp(still) < 0.2


def test_panels_overlap_and_a_walk_is_everywhere_once():
    spec = replace(SMALL, panels=(2, 2), frames_per_panel=3, cadence_s=10.0)
    cards = {f.panel: f.setup.cards for f in plan_glow_night("", spec).frames}
    x, y = sky_to_pixel(cards[0], cards[1]["CRVAL1"], cards[1]["CRVAL2"])
    assert (x - 89.5, y - 119.5) == (pytest.approx(0.8 * 180, abs=15), pytest.approx(0.0, abs=15))
    x, y = sky_to_pixel(cards[0], cards[2]["CRVAL1"], cards[2]["CRVAL2"])
    assert (x - 89.5, y - 119.5) == (pytest.approx(0.0, abs=15), pytest.approx(0.8 * 240, abs=15))
    assert plan_glow_night("", spec).fingerprint() == plan_glow_night("elsewhere", spec).fingerprint()
    assert (
        plan_glow_night("", spec).fingerprint() != plan_glow_night("", replace(spec, haze=0.0)).fingerprint()
    )
    walk = plan_glow_night("", replace(spec, layout="walk")).frames
    assert len({(f.setup.cards["CRVAL1"], f.setup.cards["CRVAL2"]) for f in walk}) == len(walk) == 12
    assert [f.visit for f in walk] == list(range(12))


def test_satellites_nights_and_cycles_are_as_asked():
    spec = replace(
        SMALL, starts=(SMALL.starts[0], SMALL.starts[0] + timedelta(days=2)), cycles=2, n_satellites=3
    )
    frames = plan_glow_night("", spec).frames
    assert len(frames) == 2 * 2 * 2 * 2
    assert sum(bool(f.setup.satellites) for f in frames) == 3
    assert [f.night for f in frames] == [0] * 8 + [1] * 8
    assert len({f.visit for f in frames}) == 8
    assert [f.panel for f in frames[:8]] == [0, 0, 1, 1, 0, 0, 1, 1]


def test_impossible_nights_are_refused():
    with pytest.raises(ValueError, match="choose another time"):
        plan_glow_night("", replace(SMALL, starts=(datetime(2025, 10, 20, 11, 0),)))
    with pytest.raises(ValueError, match="layout 'spiral'"):
        plan_glow_night("", replace(SMALL, layout="spiral"))


def test_random_nights_are_possible_dark_and_different():
    specs = [random_night(seed) for seed in range(40)]
    assert random_night(5) == specs[5]
    assert {spec.layout for spec in specs} == {"panels", "field", "walk"}
    assert {spec.equatorial for spec in specs} == {True, False}
    assert {len(spec.starts) for spec in specs} == {1, 2}
    assert min(spec.vignetting for spec in specs) < 0.02
    assert max(spec.vignetting for spec in specs) > 0.10
    moonlit = 0
    for spec in specs:
        jd = julian_date(spec.starts[0])
        assert sun_altitude_deg(jd, spec.site) < -12
        assert horizontal(*spec.center_deg, jd, spec.site)[0] > 27
        moonlit += moon_place(jd, spec.site)[0] > 0
    assert 5 < moonlit < 35
