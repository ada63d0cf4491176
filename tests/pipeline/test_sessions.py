"""Which frames are compared with which."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from zemosaic_io.headers import FrameInfo
from zemosaic_pipeline.sessions import mixture_text, night_labels, session_labels, setup_labels

PLAIN = FrameInfo(
    path=Path("light.fit"), size_bytes=0, mtime_ns=0, shape_hw=(1920, 1080), kind="cfa", cfa_pattern="GRBG",
    bitpix=16, bzero=32768.0, bscale=1.0, blank=None, hdu=0, data_offset=5760, axes="hw", n_stored_planes=1,
    instrument="Seestar S50", exposure_s=10.0, date_obs="2025-10-18T22:00:00", filter_name="IRCUT", gain=80.0,
    object_name="M 31", image_type="Light", stack_count=1, ra_deg=10.7, dec_deg=41.3, scale_arcsec=2.39,
    wcs_cards=None, night="2025-10-18",
)  # fmt: skip


def test_one_camera_one_night_one_way_is_one_session():
    infos = [replace(PLAIN, path=Path(f"{i}.fit"), ra_deg=10.0 + i) for i in range(5)]
    assert session_labels(infos) == night_labels(infos) == setup_labels(infos) == [0] * 5
    assert session_labels([]) == night_labels([]) == []


@pytest.mark.parametrize(
    ("change", "same_night", "same_setup"),
    [
        ({"exposure_s": 30.0}, True, False),
        ({"exposure_s": None}, True, False),
        ({"gain": 120.0}, True, False),
        ({"filter_name": "LP"}, True, False),
        ({"stack_count": 40}, True, False),
        ({"binning": 2}, False, False),
        ({"instrument": "Seestar S30"}, False, False),
        ({"telescope": "the other one"}, False, False),
        ({"scale_arcsec": 3.99}, False, False),
        ({"night": "2025-10-19"}, False, True),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_makes_another_session(change, same_night, same_setup):
    infos = [PLAIN, replace(PLAIN, **change), PLAIN]
    assert session_labels(infos) == [0, 1, 0]
    assert night_labels(infos) == [0, 0 if same_night else 1, 0]
    assert setup_labels(infos) == [0, 0 if same_setup else 1, 0]


def test_timers_solvers_and_spelling_make_no_session():
    infos = [
        replace(PLAIN, exposure_s=10.02, scale_arcsec=2.371),
        replace(PLAIN, exposure_s=9.98, filter_name="ircut"),
        replace(PLAIN, scale_arcsec=None),
        replace(PLAIN, scale_arcsec=2.43),
    ]
    assert session_labels(infos) == [0] * 4
    # A chain of small steps is one telescope only as long as no gap is wide.
    other = replace(PLAIN, scale_arcsec=2.43 * 1.1)
    assert session_labels([*infos, other])[-1] == 1


def test_what_differs_is_said_in_words_of_the_header():
    assert mixture_text([PLAIN, PLAIN]) == ""
    assert mixture_text([]) == ""
    # Another place, night or object is no other way of taking frames.
    assert mixture_text([PLAIN, replace(PLAIN, night="2025-10-20", ra_deg=90.0, object_name="M 42")]) == ""
    mixed = [replace(PLAIN, filter_name="LP", exposure_s=30.0), PLAIN, PLAIN, replace(PLAIN, gain=None)]
    assert mixture_text(mixed) == "FILTER IRCUT (3), LP (1); EXPTIME 10 (3), 30 (1); GAIN 80 (3), - (1)"
