from __future__ import annotations

import pytest
from astropy.io import fits

from zemosaic_io.header_values import angle_deg, known_telescope, stated_pattern
from zemosaic_io.headers import read_frame_info

RA = 15 * (12 + 50 / 60 + 53.1 / 3600)
DEC = 41 + 7 / 60 + 13 / 3600


@pytest.mark.parametrize(
    "text",
    [
        "12 50 53.1",
        "12:50:53.1",
        "12h50m53.1s",
        "12h 50m 53.1s",
        "12 h 50 min 53,1 s",
        "12h50'53.1\"",
        "+12 50 53.10",
        "192d43m16.5s",
        "192°43'16.5\"",
        "192.72125",
        "192,72125",
        "192.72125 deg",
        "12.848083333h",
        192.72125,
    ],
)
def test_right_ascension_in_every_spelling(text):
    assert angle_deg(text, hours_if_text=True) == pytest.approx(RA, abs=1e-4)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    "text",
    [
        "41 07 13",
        "41:07:13",
        "41d07m13s",
        "41°07'13\"",
        "41°07′13″",
        "41Â°07'13\"",
        "41.120277778",
        "41 7.21667",
    ],
)
def test_declination_in_every_spelling(text, sign):
    text = ("-" if sign < 0 else "") + text
    assert angle_deg(text, hours_if_text=False) == pytest.approx(sign * DEC, abs=1e-4)
    assert angle_deg(text.replace("-", "−"), hours_if_text=False) == pytest.approx(sign * DEC, abs=1e-4)


@pytest.mark.parametrize(
    "value", [None, True, "", "N/A", "2024-01-01", "12:99:00", "nan", float("nan"), "M 31", "1 2 3 4"]
)
def test_what_is_no_angle(value):
    assert angle_deg(value, hours_if_text=True) is None


def test_zero_degrees_south_stays_south():
    assert angle_deg("-00:30:00", hours_if_text=False) == -0.5


@pytest.mark.parametrize(
    ("cards", "pattern"),
    [
        ({"BAYERPAT": "GRBG"}, "GRBG"),
        ({"BAYERPAT": "GRBG16"}, "GRBG"),
        ({"BAYERPAT": "bayer_rggb"}, "RGGB"),
        ({"BAYERPAT": "TRUE", "COLORTYP": "BGGR"}, "BGGR"),
        ({"BAYERPAT": True, "COLORTYP": "BGGR"}, "BGGR"),
        ({"BAYERPAT": 1, "COLORTYP": "RGGB"}, "RGGB"),
        ({"CFAIMAGE": "GBRG"}, "GBRG"),
        ({"CFAIMAGE": 1, "COLORTYP": "GBRG"}, "GBRG"),
        ({"BAYERPAT": "1"}, None),
        ({"BAYERPAT": "0"}, ""),
        ({"BAYERPAT": 0}, ""),
        ({"BAYERPAT": False}, ""),
        ({"BAYERPAT": "NONE"}, ""),
        ({}, ""),
        ({"BAYERPAT": "XYZW"}, "XYZW"),
    ],
)
def test_pattern_in_every_spelling(cards, pattern):
    assert stated_pattern(cards) == pattern


@pytest.mark.parametrize(
    ("cards", "scale"),
    [
        ({"INSTRUME": "Seestar S50"}, 2.393),
        ({"INSTRUME": "Seestar S30 Pro"}, 3.7385),
        ({"INSTRUME": "Seestar S30"}, 3.988),
        ({"CREATOR": "ZWO Seestar S50"}, 2.393),
        ({"TELESCOP": "DWARFIII"}, 2.750),
        ({"TELESCOP": "DWARF 3"}, 2.750),
        ({"TELESCOP": "DWARF mini"}, 3.988),
        ({"TELESCOP": "DWARFII"}, 2.991),
        ({"TELESCOP": "Vespera Pro"}, 1.650),
        ({"TELESCOP": "Vespera"}, 2.991),
        ({"INSTRUME": "Stellina"}, 1.238),
        ({"TELESCOP": "Origin"}, 1.478),
        ({"ORIGIN": "Unistellar", "INSTRUME": "IMX224"}, 1.719),
        ({"ORIGIN": "Unistellar", "INSTRUME": "IMX347"}, 1.329),
    ],
)
def test_telescopes_sold_as_a_whole(cards, scale):
    telescope = known_telescope(cards)
    assert telescope is not None
    assert telescope.scale_arcsec == pytest.approx(scale, abs=2e-3)


@pytest.mark.parametrize(
    "cards", [{}, {"INSTRUME": "ZWO ASI2600MC Pro"}, {"INSTRUME": "IMX224"}, {"TELESCOP": "C8"}]
)
def test_other_telescopes(cards):
    assert known_telescope(cards) is None


BARE = {"INSTRUME": None, "BAYERPAT": None}


def test_header_of_a_dwarf_ii(write_cfa, tmp_path):
    """Right ascension is a number of hours, as only its comment says; EXP; no optics, no IMAGETYP."""
    from astropy.io import fits

    path, _ = write_cfa(
        **BARE | {"TELESCOP": "DWARFII", "EXP": 15.0, "BAYERPAT": "GRBG", "RA": 12.848, "DEC": 41.12}
    )
    with fits.open(path, mode="update") as hdus:
        hdus[0].header.comments["RA"] = "[h] Observe object RA coordinate (J2000)"
    info = read_frame_info(path)
    assert (info.ra_deg, info.dec_deg) == pytest.approx((192.72, 41.12))
    assert info.exposure_s == 15.0
    assert info.scale_arcsec == pytest.approx(2.991, abs=1e-3)
    assert info.kind == "cfa"


def test_header_of_a_unistellar(write_cfa):
    path, _ = write_cfa(
        **BARE
        | {
            "INSTRUME": "IMX347",
            "ORIGIN": "Unistellar",
            "FOVRA": 192.72,
            "FOVDEC": -41.12,
            "BAYERPAT": "RGGB",
        }
    )
    info = read_frame_info(path)
    assert (info.ra_deg, info.dec_deg) == pytest.approx((192.72, -41.12))
    assert info.scale_arcsec == pytest.approx(1.329, abs=1e-3)


def test_header_of_ekos_with_binning(write_cfa):
    path, _ = write_cfa(
        **BARE
        | {
            "FRAME": "Light",
            "OBJCTRA": " 12 50 53.10",
            "OBJCTDEC": "-41 07 13.00",
            "FOCALLEN": "400,0",
            "PIXSIZE1": 3.76,
        }
        | {"XBINNING": 2, "ROWORDER": "TOP-DOWN"}
    )
    info = read_frame_info(path)
    assert (info.ra_deg, info.dec_deg) == pytest.approx((RA, -DEC), abs=1e-4)
    assert info.scale_arcsec == pytest.approx(2 * 1.9389, abs=1e-3)
    assert (info.binning, info.image_type, info.kind) == (2, "Light", "mono")


def test_a_pattern_that_nobody_tells_is_refused_but_known_telescopes_have_theirs(write_cfa):
    from zemosaic_core.errors import SkipItem

    path, _ = write_cfa("a.fit", **BARE | {"BAYERPAT": "TRUE"})
    with pytest.raises(SkipItem, match="pattern"):
        read_frame_info(path)
    path, _ = write_cfa("b.fit", **BARE | {"BAYERPAT": "TRUE", "INSTRUME": "Seestar S30"})
    assert read_frame_info(path).cfa_pattern == "GRBG"


def test_stack_counts_and_seconds(tmp_path):
    import numpy as np
    from astropy.io import fits

    def read(shape=(3, 20, 30), **cards):
        path = tmp_path / "x.fit"
        fits.PrimaryHDU(np.zeros(shape, np.uint16), fits.Header(cards)).writeto(path, overwrite=True)
        return read_frame_info(path)

    telescope = read(STACKCNT=60, EXPTIME=10.0, TOTALEXP=590.0)
    assert (telescope.stack_count, telescope.total_exposure_s) == (60, 590.0)
    siril = read(STACKCNT=60, EXPTIME=10.0, LIVETIME=600.0)
    assert (siril.stack_count, siril.total_exposure_s) == (60, 600.0)
    untold = read(EXPTIME=10.0, TOTALEXP=600.0)
    assert (untold.stack_count, untold.total_exposure_s) == (60, 600.0)
    plain = read(EXPTIME=10.0, STACKCNT=7)
    assert plain.total_exposure_s == 70.0
    # A raw frame is one exposure, whatever its session has gathered so far.
    raw = read((20, 30), EXPTIME=10.0, TOTALEXP=600.0, STACKCNT=60, BAYERPAT="GRBG")
    assert (raw.stack_count, raw.total_exposure_s) == (1, 10.0)
    unknown = read()
    assert (unknown.stack_count, unknown.total_exposure_s) == (1, None)


@pytest.mark.parametrize(
    ("cards", "celsius", "gain", "offset"),
    [
        ({"CCD-TEMP": 18.5, "GAIN": 80}, 18.5, 80.0, None),  # Seestar, ASIAir, Siril
        (
            {"CCD-TEMP": -9.9, "SET-TEMP": -10.0, "GAIN": 100, "OFFSET": 50},
            -9.9,
            100.0,
            50.0,
        ),  # N.I.N.A., Ekos
        ({"SET-TEMP": -10.0, "GAIN": "120", "BLKLEVEL": 25}, -10.0, 120.0, 25.0),
        ({"DET-TEMP": 21, "GAIN": 60}, 21.0, 60.0, None),  # DWARF
        ({"SENSTEMP": "12,5", "ISOSPEED": 800}, 12.5, 800.0, None),
        ({}, None, None, None),
    ],
)
def test_what_calibration_frames_must_agree_in(write_cfa, cards, celsius, gain, offset):
    path, _ = write_cfa()
    with fits.open(path, mode="update") as hdus:
        for key, value in cards.items():
            hdus[0].header[key] = value
    info = read_frame_info(path)
    assert (info.sensor_celsius, info.gain, info.offset) == (celsius, gain, offset)
    assert info.calibrated == ""


@pytest.mark.parametrize(
    ("text", "letters"), [("BDF", "BDF"), ("D", "D"), ("fd", "DF"), ("", ""), ("BDFM", "BDF"), ("FALSE", "")]
)
def test_what_was_done_to_a_frame(write_cfa, text, letters):
    path, _ = write_cfa(CALSTAT=text, ROWORDER="Bottom-Up")
    info = read_frame_info(path)
    assert info.calibrated == letters
    assert info.row_order == "BOTTOM-UP"
