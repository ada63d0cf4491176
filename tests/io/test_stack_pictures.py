"""Stacks of other programs are read: FITS with planes of its own, XISF, TIFF with a header beside it."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
import tifffile
from astropy.io import fits

from zemosaic_core.errors import SkipItem
from zemosaic_io.stack_pictures import depth_of_cards, is_own_tile, is_stack_name, read_stack


def xisf(path, planes, compression="", keywords=""):
    data = planes.tobytes()
    if compression == "zlib":
        packed, attribute = zlib.compress(data), f' compression="zlib:{len(data)}"'
    elif compression == "zlib+sh":
        size = planes.itemsize
        shuffled = np.frombuffer(data, np.uint8).reshape(-1, size).T.tobytes()
        packed, attribute = zlib.compress(shuffled), f' compression="zlib+sh:{len(data)}:{size}"'
    else:
        packed, attribute = data, f' compression="{compression}:9"' if compression else ""
    c, h, w = planes.shape
    kind = {"f": "Float32", "u": "UInt16"}[planes.dtype.kind]

    def header(at):
        return (
            '<?xml version="1.0"?><xisf version="1.0" xmlns="http://www.pixinsight.com/xisf">'
            f'<Image geometry="{w}:{h}:{c}" sampleFormat="{kind}" colorSpace="RGB"'
            f' location="attachment:{at}:{len(packed)}"{attribute}>{keywords}</Image></xisf>'
        ).encode()

    at = 16 + len(header(99999)) + 64
    text = header(at)
    path.write_bytes(
        b"XISF0100" + struct.pack("<II", len(text), 0) + text + b"\0" * (at - 16 - len(text)) + packed
    )
    return path


@pytest.mark.parametrize("compression", ["", "zlib", "zlib+sh"])
def test_xisf_is_read_as_it_was_written(tmp_path, compression):
    planes = np.random.default_rng(1).uniform(0, 0.5, (3, 20, 30)).astype(np.float32)
    words = '<FITSKeyword name="STACKCNT" value="12" comment=""/><FITSKeyword name="EXPTIME" value="10." comment=""/>'
    found = read_stack(xisf(tmp_path / "a.xisf", planes, compression, words))
    # The first row of an XISF file is the top one.
    np.testing.assert_allclose(found.planes[:, ::-1], planes * 65535, rtol=1e-6)
    assert (found.n_frames, found.seconds, found.factor) == (12, 120.0, 65535.0)


def test_xisf_packed_otherwise_says_what_to_do(tmp_path):
    path = xisf(tmp_path / "a.xisf", np.zeros((3, 20, 30), np.float32), "lz4")
    with pytest.raises(SkipItem, match="lz4; save it with zlib"):
        read_stack(path)
    (tmp_path / "b.xisf").write_bytes(b"XISF0100" + b"\xff" * 40)
    with pytest.raises(SkipItem):
        read_stack(tmp_path / "b.xisf")


def test_tiff_takes_its_header_from_the_file_beside_it(tmp_path):
    pixels = np.random.default_rng(2).integers(100, 60000, (20, 30, 3)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "m.tif", pixels, photometric="rgb")
    header = fits.Header()
    header["CRVAL1"], header["STACKCNT"] = 12.5, 7
    (tmp_path / "m.wcs").write_text(header.tostring(sep="\n"), encoding="ascii")
    found = read_stack(tmp_path / "m.tif")
    np.testing.assert_array_equal(found.planes, np.moveaxis(pixels, -1, 0))
    assert found.cards["CRVAL1"] == 12.5
    assert (found.n_frames, found.factor) == (7, 1.0)
    for rest in (b"", b"\0\0", b"\xff" * 40):
        (tmp_path / "m.tif").write_bytes(b"II*\0" + rest)
        with pytest.raises(SkipItem) as caught:
            read_stack(tmp_path / "m.tif")
        assert caught.value.key == "frame_unreadable"


def test_alpha_of_version_4_makes_pixels_missing(tmp_path):
    planes = np.random.default_rng(3).normal(500, 5, (3, 20, 30)).astype(np.float32)
    alpha = np.full((20, 30), 255, np.uint8)
    alpha[:, :5] = 0
    hdus = fits.HDUList([fits.PrimaryHDU(planes), fits.ImageHDU(alpha, name="ALPHA")])
    hdus[0].header["ZMT_TYPE"], hdus[0].header["NEXP_SUM"], hdus[0].header["EXPTOTAL"] = (
        "Master Tile",
        30,
        300.0,
    )
    hdus.writeto(tmp_path / "master_tile_001.fits")
    found = read_stack(tmp_path / "master_tile_001.fits")
    assert np.isnan(found.planes[:, :, :5]).all()
    assert np.isfinite(found.planes[:, :, 5:]).all()
    assert (found.n_frames, found.seconds) == (30, 300.0)
    assert not is_own_tile(tmp_path / "master_tile_001.fits")


def test_weight_coverage_and_colour_extensions_are_found(tmp_path):
    rng = np.random.default_rng(4)
    colours = {name: rng.uniform(100, 200, (20, 30)).astype(np.float32) for name in "RGB"}
    weight = np.ones((20, 30), np.float32)
    weight[3] = 0
    units = [fits.PrimaryHDU(colours["G"])]
    units += [fits.ImageHDU(plane, name=name) for name, plane in colours.items()]
    units += [
        fits.ImageHDU(weight, name="WHT"),
        fits.ImageHDU(np.full((20, 30), 9, np.int16), name="COVERAGE"),
    ]
    fits.HDUList(units).writeto(tmp_path / "m.fits")
    found = read_stack(tmp_path / "m.fits")
    np.testing.assert_array_equal(found.planes[0][4:], colours["R"][4:])
    assert np.isnan(found.planes[:, 3]).all()
    assert found.depth is not None
    assert found.depth.max() == 9


def test_a_raw_frame_is_no_stack(tmp_path):
    hdu = fits.PrimaryHDU(np.zeros((20, 30), np.int16))
    hdu.header["BAYERPAT"] = "GRBG"
    hdu.writeto(tmp_path / "Light_1.fit")
    with pytest.raises(SkipItem) as error:
        read_stack(tmp_path / "Light_1.fit")
    assert error.value.key == "stack_is_raw"


@pytest.mark.parametrize(
    ("name", "is_stack"),
    [
        ("Stacked_30_M 31.fit", True),
        ("result.XISF", True),
        ("m.tiff", True),
        ("zemosaic_MT1_R9_coverage.fits", False),
        ("zemosaic_MT1_R9_viewer.tiff", False),
        ("._m.fits", False),
        ("m.png", False),
    ],
)
def test_which_names_are_those_of_stacks(name, is_stack):
    assert is_stack_name(name) is is_stack


@pytest.mark.parametrize(
    ("cards", "depth"),
    [
        ({}, (None, None)),
        ({"STACKCNT": 5, "EXPTIME": 10.0}, (5, 50.0)),
        ({"LIVETIME": 600.0, "EXPTIME": 20.0}, (30, 600.0)),
        ({"NEXP_SUM": 4, "EXPTOTAL": 44.0, "STACKCNT": 9}, (4, 44.0)),
        ({"NCOMBINE": True, "EXPTIME": "x"}, (None, None)),
    ],
)
def test_depth_is_what_the_header_says(cards, depth):
    assert depth_of_cards(cards) == depth
