"""What is drawn over a picture lies where the WCS says."""

from __future__ import annotations

import math

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord

from zemosaic_core.annotation import SkyObject, annotate, marks_in_field
from zemosaic_core.annotation_lines import grid_lines
from zemosaic_core.sphere import separation_deg, tan_wcs


def thing(
    name, ra, dec, major=math.nan, minor=math.nan, angle=math.nan, *, kind="galaxy", title="", mag=math.nan
):
    return SkyObject(kind, name, "", title, ra, dec, major, minor, angle, mag)


# Across RA 0 h, near the pole, on it, turned and mirrored.
FIELDS = [
    pytest.param((192.7, 41.1), 0.0, 1, id="plain"),
    pytest.param((0.05, -30.0), 33.0, -1, id="meridian, mirrored"),
    pytest.param((120.0, 89.0), 200.0, 1, id="beside the pole"),
    pytest.param((10.0, 90.0), 0.0, 1, id="on the pole"),
    pytest.param((300.0, -89.99), 77.0, -1, id="south pole"),
]
SHAPE_HW = (600, 800)
SCALE_DEG = 10.0 / 3600.0


@pytest.mark.parametrize(("centre", "rotation", "parity"), FIELDS)
def test_marks_lie_where_the_wcs_says_and_turn_as_the_sky(centre, rotation, parity):
    wcs = tan_wcs(centre, SCALE_DEG, SHAPE_HW, rotation, parity)
    rng = np.random.default_rng(3)
    xy = rng.uniform((10, 10), (790, 590), (40, 2))
    ra, dec = wcs.all_pix2world(xy, 0).T
    angles = rng.uniform(0, 180, 40)
    objects = [thing(f"N {k}", ra[k], dec[k], 4.0, 2.0, angles[k]) for k in range(40)]
    marks = {mark.sky_object.name: mark for mark in marks_in_field(wcs, SHAPE_HW, objects)}
    assert len(marks) == 40
    for k in range(40):
        mark = marks[f"N {k}"]
        assert np.hypot(mark.x_px - xy[k, 0], mark.y_px - xy[k, 1]) < 0.01
        end = SkyCoord(ra[k], dec[k], unit="deg").directional_offset_by(angles[k] * u.deg, 2 * u.arcmin)
        tip = np.array(wcs.all_world2pix(end.ra.deg, end.dec.deg, 0))
        way = mark.semi_major_px * np.array([math.cos(t := math.radians(mark.angle_deg)), math.sin(t)])
        assert min(np.abs(xy[k] + way - tip).max(), np.abs(xy[k] - way - tip).max()) < 0.05
        assert mark.semi_minor_px == pytest.approx(mark.semi_major_px / 2, rel=0.01)


def test_what_is_outside_behind_or_not_covered_has_no_mark():
    wcs = tan_wcs((100.0, 20.0), SCALE_DEG, SHAPE_HW)
    places = {
        "inside": (100.2, 20.1),
        "outside": (102.0, 20.0),
        "behind": (280.0, -20.0),
        "hole": (99.5, 20.5),
    }
    objects = [thing(name, *place) for name, place in places.items()]
    seen = np.ones((6, 8), bool)
    x, y = wcs.all_world2pix(*places["hole"], 0)
    seen[int(y // 100), int(x // 100)] = False
    assert {m.sky_object.name for m in marks_in_field(wcs, SHAPE_HW, objects)} == {"inside", "hole"}
    assert [m.sky_object.name for m in marks_in_field(wcs, SHAPE_HW, objects, seen=seen)] == ["inside"]
    assert marks_in_field(wcs, SHAPE_HW, ()) == ()


def test_a_distortion_that_diverges_puts_nothing_into_the_picture():
    wcs = tan_wcs((100.0, 20.0), SCALE_DEG, SHAPE_HW)
    header = wcs.to_header()
    header.update(
        {"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "A_ORDER": 2, "A_2_0": -1e-3, "B_ORDER": 2}
    )
    from astropy.wcs import WCS

    bent = WCS(header)
    ring = [thing(f"N {k}", 100.0 + 1.3 * math.cos(k), 20.0 + 1.2 * math.sin(k)) for k in range(60)]
    for mark in marks_in_field(bent, SHAPE_HW, ring):
        ra, dec = bent.all_pix2world(mark.x_px, mark.y_px, 0)
        assert separation_deg(ra, dec, mark.sky_object.ra_deg, mark.sky_object.dec_deg) < SCALE_DEG


def test_stars_are_where_they_were_when_the_picture_was_taken():
    wcs = tan_wcs((269.45, 4.75), 1.0 / 3600.0, SHAPE_HW)
    star = SkyObject("star", "Barnard's Star", "", "", 269.45207, 4.69328, *(math.nan,) * 3, 9.5, -799, 10277)
    (early,) = marks_in_field(wcs, SHAPE_HW, [star])
    (late,) = marks_in_field(wcs, SHAPE_HW, [star], epoch=2026.0)
    assert late.y_px - early.y_px == pytest.approx(26 * 10.277, abs=0.3)
    assert late.x_px - early.x_px == pytest.approx(26 * 0.799, abs=0.3)


def test_names_that_people_know_come_first():
    wcs = tan_wcs((100.0, 20.0), SCALE_DEG, SHAPE_HW)
    objects = [
        thing("NGC 1", 100.1, 20.0, 9.0, 9.0),
        thing("NGC 2", 100.2, 20.0, 3.0, 3.0, kind="nebula"),
        thing("NGC 3", 100.3, 20.0, 1.0, 1.0, title="Little Thing"),
        thing("γ Gem", 100.4, 20.0, kind="star", mag=1.9),
        thing("M 1", 100.5, 20.0, 2.0, 2.0),
        thing("33 Gem", 99.7, 20.0, kind="star", mag=5.8),
    ]
    marks = marks_in_field(wcs, SHAPE_HW, objects)
    assert [m.label for m in marks] == ["M 1", "NGC 3 Little Thing", "γ Gem", "NGC 2", "33 Gem", "NGC 1"]


def test_an_ellipse_of_unknown_direction_is_a_circle():
    (mark,) = marks_in_field(
        tan_wcs((100.0, 20.0), SCALE_DEG, SHAPE_HW), SHAPE_HW, [thing("N", 100, 20, 6.0, 1.0)]
    )
    assert (mark.semi_major_px, mark.semi_minor_px, mark.angle_deg) == (
        pytest.approx(18, 1e-3),
        mark.semi_major_px,
        0,
    )


@pytest.mark.parametrize(("centre", "rotation", "parity"), FIELDS)
def test_grid_lines_keep_their_value_and_reach_the_border(centre, rotation, parity):
    wcs = tan_wcs(centre, SCALE_DEG, SHAPE_HW, rotation, parity)
    lines = grid_lines(wcs, SHAPE_HW)
    assert {line.kind for line in lines} == {"ra", "dec"}
    h, w = SHAPE_HW
    for line in lines:
        x, y = line.points_px.T
        assert x.min() >= -0.5 - 1e-6
        assert x.max() <= w - 0.5 + 1e-6
        assert y.min() >= -0.5 - 1e-6
        assert y.max() <= h - 0.5 + 1e-6
        ra, dec = wcs.all_pix2world(line.points_px, 0).T
        if line.kind == "dec":
            assert np.abs(dec - line.value_deg).max() < SCALE_DEG
        else:
            off = (ra - line.value_deg + 180.0) % 360.0 - 180.0
            assert np.abs(off * np.cos(np.deg2rad(dec))).max() < SCALE_DEG
        gap = np.hypot(*np.diff(line.points_px, axis=0).T)
        assert gap.max() < 40
        closed = np.allclose(line.points_px[0], line.points_px[-1], atol=1e-3)
        ends = line.points_px[[0, -1]]
        at_border = np.minimum(ends + 0.5, (w - 0.5, h - 0.5) - ends).min(axis=1) < 1e-6
        assert closed or at_border.all() or (line.kind == "ra" and at_border.any())
    assert 4 <= len({(line.kind, line.value_deg) for line in lines}) <= 20


@pytest.mark.parametrize(
    ("centre", "scale_arcsec", "labels"),
    [
        ((192.7, 41.1), 10.0, {"12h 48m", "12h 50m", "+41° 00'", "+41° 20'"}),
        ((0.0, -0.1), 10.0, {"0h 00m", "23h 58m", "+0° 00'", "-0° 20'"}),
        ((83.0, -5.5), 0.5, {"5h 32m 00s", "-5° 30'"}),
    ],
)
def test_values_of_lines_are_round_and_written_as_usual(centre, scale_arcsec, labels):
    lines = grid_lines(tan_wcs(centre, scale_arcsec / 3600.0, SHAPE_HW), SHAPE_HW)
    assert labels <= {line.label for line in lines}


def test_scale_and_directions():
    note = annotate(tan_wcs((50.0, 30.0), 2.0 / 3600.0, SHAPE_HW, rotation_deg=90.0), SHAPE_HW, ())
    assert note.scale_bar.label == "2'"
    assert note.scale_bar.length_px == pytest.approx(60.0, rel=1e-4)
    # +y points to the east; on the sky north is then to the right.
    assert note.compass.east_xy == pytest.approx((0.0, 1.0), abs=1e-3)
    assert note.compass.north_xy == pytest.approx((1.0, 0.0), abs=1e-3)
    assert note.shape_hw == SHAPE_HW
