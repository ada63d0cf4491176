from __future__ import annotations

import pickle

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from zemosaic_core.errors import SkipItem
from zemosaic_io.fits_cards import iter_hdus
from zemosaic_io.headers import frame_from_json, frame_to_json, read_frame_info
from zemosaic_io.wcs_read import linear_scale_arcsec


def card_block(*cards, end=True):
    """A header of literal 80-character cards, padded to whole blocks."""
    text = "".join(c.ljust(80) for c in cards) + ("END".ljust(80) if end else "")
    return text.ljust(-(-len(text) // 2880) * 2880).encode("latin-1")


BASE = (
    "SIMPLE  =                    T",
    "BITPIX  =                   16",
    "NAXIS   =                    2",
    "NAXIS1  =                    4",
    "NAXIS2  =                    6",
)


def write_literal(path, *cards, data=48):
    path.write_bytes(card_block(*BASE, *cards) + bytes(-(-data // 2880) * 2880))
    return path


def reason(path):
    with pytest.raises(SkipItem) as caught:
        read_frame_info(path)
    assert caught.value.values["path"] == str(path)
    return caught.value.key


def test_real_frame_header(real_frames):
    info = read_frame_info(real_frames[0])
    assert info.shape_hw == (1920, 1080)
    assert (info.kind, info.cfa_pattern, info.bitpix, info.bzero) == ("cfa", "GRBG", 16, 32768.0)
    assert info.data_offset == 5760
    assert (info.instrument, info.object_name, info.filter_name) == ("Seestar S50", "M 94", "IRCUT")
    assert (info.ra_deg, info.dec_deg) == (193.04166, 40.970556)
    assert info.scale_arcsec == pytest.approx(2.3927, abs=1e-3)
    assert info.exposure_s == 10.0
    assert info.gain == 80.0
    # 01:20 UTC of the 27th in America belongs to the evening of the 26th, as the file name says.
    assert info.night == "2025-03-26"
    assert info.wcs_cards is None


def test_geometry_agrees_with_astropy_on_real_frames(real_frames):
    for path in real_frames:
        info = read_frame_info(path)
        with fits.open(path) as hdus:
            assert info.shape_hw == hdus[0].data.shape
            assert info.data_offset == hdus[0].fileinfo()["datLoc"]


def test_info_survives_pickle_and_json(write_cfa):
    path, _ = write_cfa(RA=10.0, DEC=20.0)
    info = read_frame_info(path)
    assert pickle.loads(pickle.dumps(info)) == info
    assert frame_from_json(frame_to_json(info)) == info
    assert hash(info) == hash(read_frame_info(path))


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (b"", "frame_empty"),
        (b"\xff\xd8\xff not a FITS file" * 500, "frame_not_fits"),
        (card_block(*BASE, end=False), "frame_truncated"),
        (card_block(*BASE) + bytes(20), "frame_truncated"),
        (card_block("SIMPLE  =                    T", "BITPIX  = 8", "NAXIS   = 0"), "frame_no_image"),
        (card_block(*BASE[:2], "NAXIS   = 1", "NAXIS1  = 4") + bytes(2880), "frame_no_image"),
        (
            card_block(*BASE[:2], "NAXIS   = 3", "NAXIS1  = 5", "NAXIS2  = 6", "NAXIS3  = 7") + bytes(2880),
            "frame_wrong_shape",
        ),
        (card_block(*BASE, "BAYERPAT= 'CYYM'") + bytes(2880), "frame_unknown_pattern"),
        (card_block(BASE[0], "BITPIX  =                   13", *BASE[2:]) + bytes(2880), "frame_bad_header"),
        (card_block(BASE[0], "BITPIX  = sixteen", *BASE[2:]) + bytes(2880), "frame_bad_header"),
    ],
)
def test_unusable_files_say_why(tmp_path, content, key):
    path = tmp_path / "bad.fit"
    path.write_bytes(content)
    assert reason(path) == key


def test_missing_file_is_unreadable(tmp_path):
    assert reason(tmp_path / "gone.fit") == "frame_unreadable"


def test_header_longer_than_the_first_read(tmp_path):
    path = tmp_path / "long.fit"
    header = fits.Header([("BAYERPAT", "RGGB")])
    for i in range(900):
        header.add_comment(f"line {i} END     =")
    header["EXPTIME"] = 7.5
    data = np.arange(24, dtype=np.uint16).reshape(4, 6)
    fits.PrimaryHDU(data, header).writeto(path)
    info = read_frame_info(path)
    assert (info.exposure_s, info.cfa_pattern) == (7.5, "RGGB")
    assert info.data_offset == fits.open(path)[0].fileinfo()["datLoc"]


def test_string_values(tmp_path):
    path = write_literal(
        tmp_path / "s.fit",
        "OBJECT  = 'Barnard''s / star &'   / a comment",
        "CONTINUE  'and &'",
        "CONTINUE  'more'",
        "FILTER  = ''",
        "INSTRUME= 'ZWO     '",
        "GAIN    = 1.2D2",
        "EXPTIME =",
        "EXPOSURE= 20 / s",
        "CREATOR = 'no closing quote",
    )
    info = read_frame_info(path)
    assert info.object_name == "Barnard's / star and more"
    assert info.filter_name == ""
    assert info.instrument == "ZWO"
    assert info.gain == 120.0
    assert info.exposure_s == 20.0


def test_unquoted_sexagesimal_angle_does_not_lose_the_frame(tmp_path):
    path = write_literal(tmp_path / "s.fit", "RA      = 12:30:00", "DEC     = -10:30:00", "EXPTIME = 5")
    info = read_frame_info(path)
    assert info.exposure_s == 5.0
    assert info.ra_deg == pytest.approx(187.5)
    assert info.dec_deg == pytest.approx(-10.5)


@pytest.mark.parametrize(
    ("cards", "expected"),
    [
        ({"RA": 193.5, "DEC": 41.0}, (193.5, 41.0)),
        ({"OBJCTRA": "12 50 53.1", "OBJCTDEC": "-41 07 13"}, (192.72125, -41.1202777)),
        ({"TELRA": 12.5, "TELDEC": 3.0, "RAUNIT": "hours"}, (187.5, 3.0)),
        ({"RA": "193.5", "DEC": "41"}, (193.5, 41.0)),
        ({"RA": "00:00:00", "DEC": "-00:30:00"}, (0.0, -0.5)),
        ({"RA": 0.0, "DEC": 0.0}, (None, None)),
        ({"RA": 10.0, "DEC": 95.0}, (None, None)),
        ({}, (None, None)),
    ],
)
def test_pointing_hint(write_cfa, cards, expected):
    path, _ = write_cfa(**cards)
    info = read_frame_info(path)
    assert (info.ra_deg, info.dec_deg) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("cards", "expected"),
    [
        ({"FOCALLEN": 250, "XPIXSZ": 2.9}, 2.39267),
        ({"FOCALLEN": 0, "XPIXSZ": 2.9}, None),
        ({"SCALE": 1.5}, 1.5),
        ({"FOCALLEN": 1, "XPIXSZ": 2.9, "PIXSCAL1": 0.7}, 0.7),
    ],
)
def test_scale_hint(write_cfa, cards, expected):
    path, _ = write_cfa(INSTRUME="camera", **cards)
    assert read_frame_info(path).scale_arcsec == (
        None if expected is None else pytest.approx(expected, rel=1e-4)
    )


@pytest.mark.parametrize("pattern", ["GRBG", "RGGB", "GBRG", "BGGR"])
@pytest.mark.parametrize("height", [20, 21])
@pytest.mark.parametrize(("xoff", "yoff"), [(0, 0), (1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("order", ["TOP-DOWN", "BOTTOM-UP"])
def test_pattern_at_the_first_array_pixel(write_cfa, pattern, height, xoff, yoff, order):
    """Build the displayed image by hand, flip it as the card says, and read the colours back."""
    path, _ = write_cfa(
        shape=(height, 12), BAYERPAT=pattern, ROWORDER=order, XBAYROFF=xoff, YBAYROFF=yoff, INSTRUME="camera"
    )
    colours = np.array(
        [[pattern[2 * ((y + yoff) % 2) + (x + xoff) % 2] for x in range(12)] for y in range(height)]
    )
    stored = colours[::-1] if order == "BOTTOM-UP" else colours
    info = read_frame_info(path)
    assert info.cfa_pattern == "".join(stored[:2, :2].ravel())


def test_two_dimensional_frame_without_pattern(write_cfa):
    mono, _ = write_cfa("mono.fit", BAYERPAT=None, INSTRUME="ASI1600MM")
    seestar, _ = write_cfa("old.fit", BAYERPAT=None, INSTRUME="Seestar S50")
    assert (read_frame_info(mono).kind, read_frame_info(mono).n_channels) == ("mono", 1)
    assert (read_frame_info(seestar).kind, read_frame_info(seestar).cfa_pattern) == ("cfa", "GRBG")


@pytest.mark.parametrize(
    ("shape", "axes", "hw"),
    [
        ((3, 20, 30), "chw", (20, 30)),
        ((20, 30, 3), "hwc", (20, 30)),
        ((4, 20, 30), "chw", (20, 30)),
        ((1, 20, 30), "hw", (20, 30)),
    ],
)
def test_planes(tmp_path, shape, axes, hw):
    path = tmp_path / "rgb.fits"
    fits.PrimaryHDU(np.zeros(shape, np.float32)).writeto(path)
    info = read_frame_info(path)
    assert (info.axes, info.shape_hw) == (axes, hw)
    assert info.kind == ("mono" if axes == "hw" else "rgb")


def test_image_in_an_extension_and_compressed_image(tmp_path):
    data = np.arange(600, dtype=np.uint16).reshape(20, 30)
    plain, packed = tmp_path / "ext.fits", tmp_path / "packed.fits.fz"
    table = fits.BinTableHDU.from_columns([fits.Column("A", "J", array=np.arange(5))])
    fits.HDUList([fits.PrimaryHDU(), table, fits.ImageHDU(data, name="SCI")]).writeto(plain)
    compressed = fits.CompImageHDU(data, fits.Header([("BAYERPAT", "BGGR")]), compression_type="RICE_1")
    fits.HDUList([fits.PrimaryHDU(), compressed]).writeto(packed)
    first, second = read_frame_info(plain), read_frame_info(packed)
    assert (first.hdu, first.shape_hw) == (2, (20, 30))
    assert first.data_offset == fits.open(plain)[2].fileinfo()["datLoc"]
    assert (second.hdu, second.shape_hw, second.data_offset) == (1, (20, 30), -1)
    assert (second.cfa_pattern, second.bitpix, second.bzero) == ("BGGR", 16, 32768.0)
    assert [h.name for h in iter_hdus(plain)] == ["", "", "SCI"]


def tan_header(**changes):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [350.0, 60.0]
    wcs.wcs.crpix = [3.0, 4.0]
    angle = np.radians(30)
    scale = 2.4 / 3600
    wcs.wcs.cd = scale * np.array([[-np.cos(angle), np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    header = wcs.to_header()
    header.update(changes)
    return header, wcs


def test_existing_wcs_is_kept_and_gives_the_hints(tmp_path):
    header, wcs = tan_header()
    header["BAYERPAT"] = "GRBG"
    header["OBJECT"] = "x"
    path = tmp_path / "solved.fit"
    fits.PrimaryHDU(np.zeros((200, 100), np.uint16), header).writeto(path)
    info = read_frame_info(path)
    assert "OBJECT" not in info.wcs_cards
    assert "NAXIS1" not in info.wcs_cards
    again = WCS(fits.Header(dict(info.wcs_cards)))
    np.testing.assert_allclose(
        again.pixel_to_world_values(50, 70), wcs.pixel_to_world_values(50, 70), rtol=1e-12
    )
    centre = wcs.pixel_to_world_values(49.5, 99.5)
    assert (info.ra_deg, info.dec_deg) == pytest.approx([float(c) for c in centre], abs=1e-9)
    assert info.scale_arcsec == pytest.approx(2.4, rel=1e-9)


@pytest.mark.parametrize(
    "changes",
    [{"CTYPE1": "LINEAR"}, {"CDELT1": 0.0}, {"CRVAL2": 95.0}, {"PC1_1": 0.0, "PC1_2": 0.0}],
)
def test_placeholder_wcs_is_no_wcs(tmp_path, changes):
    header, _ = tan_header(**changes)
    path = tmp_path / "placeholder.fit"
    fits.PrimaryHDU(np.zeros((20, 10), np.uint16), header).writeto(path)
    assert read_frame_info(path).wcs_cards is None


def test_linear_scale_of_the_three_notations():
    turn = {"CDELT1": -0.001, "CDELT2": 0.001, "CROTA2": 30.0}
    assert linear_scale_arcsec(turn) == pytest.approx(3.6)
    assert linear_scale_arcsec({"CDELT1": 0.001, "CDELT2": 0.002, "PC1_2": 0.5}) == pytest.approx(
        3.6 * 2**0.5
    )
    assert linear_scale_arcsec({"CD1_1": 0.001, "CD2_2": 0.001}) == pytest.approx(3.6)
    assert linear_scale_arcsec({"CD1_1": 0.001}) is None
    assert linear_scale_arcsec({}) is None


@pytest.mark.parametrize(
    ("date", "cards", "night"),
    [
        ("2025-03-26T23:30:00", {}, "2025-03-26"),
        ("2025-03-27T02:30:00.1234567", {}, "2025-03-26"),
        ("2025-03-27T05:00:00", {"SITELONG": -120.0}, "2025-03-26"),
        ("2025-03-27T20:30:00", {"SITELONG": "+150 00 00"}, "2025-03-27"),
        ("not a date", {}, ""),
    ],
)
def test_night(write_cfa, date, cards, night):
    path, _ = write_cfa(DATE_OBS=date, **cards)
    assert read_frame_info(path).night == night


WCS_CARDS = (
    "CTYPE1  = 'RA---TAN-SIP'", "CTYPE2  = 'DEC--TAN-SIP'", "CRVAL1  = 150.0", "CRVAL2  = 20.0", "CRPIX1  = 2.0",
    "CRPIX2  = 3.0", "CD1_1   = -6.6E-4", "CD1_2   = 0.0", "CD2_1   = 0.0", "CD2_2   = 6.6E-4",
)  # fmt: skip


@pytest.mark.parametrize(
    ("cards", "usable"),
    [
        ((), True),
        (("A_ORDER = 2", "B_ORDER = 2", "A_2_0   = 1E-6"), True),
        (("A_ORDER = 2", "B_ORDER = 2", "A_2_0   = NaN"), False),
        (("A_ORDER = 2",), False),
        (("A_ORDER = 'x'", "B_ORDER = 2"), False),
        (("A_ORDER = 99", "B_ORDER = 99"), False),
        (("CUNIT1  = 'd\xe9g'",), False),
        (("CROTA2  = Inf",), False),
        # These only refine it.
        (("LONPOLE = NaN", "EQUINOX = 'J2000'", "RADESYS = Inf"), True),
    ],
)
def test_wcs_with_odd_numbers_is_none(tmp_path, cards, usable):
    info = read_frame_info(write_literal(tmp_path / "f.fit", *WCS_CARDS, *cards))
    assert (info.wcs_cards is not None) is usable
    if usable:
        WCS(info.wcs_cards)


@pytest.mark.parametrize(
    "date", ["0001-01-01T00:00:00", "9999-12-31T23:59:59", "0000-00-00T00:00:00", "1899-12-30"]
)
def test_dates_of_clocks_never_set_are_no_night(tmp_path, date):
    path = write_literal(tmp_path / "f.fit", f"DATE-OBS= '{date}'", "SITELONG= 179.9")
    assert read_frame_info(path).night == ""


@pytest.mark.parametrize(
    ("date", "years"),
    [
        ("2026-07-02T12:00:00", 2026.5),
        # Stars of a frame without a date, or with that of a clock never set, stand where they do these years.
        ("not a date", 2025.0),
        ("1970-01-01T00:00:10", 2025.0),
        ("9999-12-31T23:59:59", 2025.0),
    ],
)
def test_epoch_is_that_of_the_exposure_or_of_these_years(tmp_path, date, years):
    info = read_frame_info(write_literal(tmp_path / "f.fit", f"DATE-OBS= '{date}'"))
    assert info.epoch == pytest.approx(years, abs=0.01)


@pytest.mark.parametrize("card", ["NAXIS1  = -2880", "NAXIS   = -1", "PCOUNT  = -5", "GCOUNT  = -1"])
def test_lengths_below_zero_are_a_wrong_header(tmp_path, card):
    path = tmp_path / "f.fit"
    table = ("XTENSION= 'BINTABLE'", "BITPIX  = 8", "NAXIS   = 1", "NAXIS1  = 2880", "PCOUNT  = 0")
    changed = [line for line in table if line[:8] != card[:8]]
    path.write_bytes(
        card_block("SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 0") + card_block(*changed, card) + bytes(2880)
    )
    assert reason(path) == "frame_bad_header"


def test_a_file_packed_in_two_ways_is_named(tmp_path):
    path = tmp_path / "frame.fits.gz"
    hdus = fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(np.zeros((40, 60), np.uint16))])
    hdus.writeto(path)
    assert reason(path) == "frame_gzip"
