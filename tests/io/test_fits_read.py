from __future__ import annotations

import shutil

import numpy as np
import pytest
from astropy.io import fits

from zemosaic_core.errors import SkipItem
from zemosaic_io import fits_read, pixel_digest
from zemosaic_io.fits_cards import iter_hdus
from zemosaic_io.fits_read import (
    content_key,
    read_identified,
    read_image,
    read_plane_rows,
    read_raw_rows,
    read_window,
)
from zemosaic_io.headers import read_frame_info


def by_astropy(path, hdu=0):
    with fits.open(path) as hdus:
        return np.array(hdus[hdu].data)


def test_unsigned_frames_stay_integers(write_cfa):
    path, data = write_cfa()
    info = read_frame_info(path)
    window = read_window(info, 3, 11, 5, 17)
    assert window.dtype == np.uint16
    assert window.dtype.isnative
    np.testing.assert_array_equal(window, data[3:11, 5:17])
    np.testing.assert_array_equal(read_image(info), data)


def test_real_frame_equals_astropy(real_frames):
    info = read_frame_info(real_frames[3])
    np.testing.assert_array_equal(read_image(info), by_astropy(info.path))


def test_raw_rows_keep_the_bits_of_the_file(write_cfa):
    path, data = write_cfa()
    info = read_frame_info(path)
    raw = read_raw_rows(info, 4, 9)
    assert (raw.y0, raw.big_endian_signed, raw.pattern) == (4, True, "GRBG")
    assert raw.data.dtype == np.uint16
    assert raw.data.tobytes() == path.read_bytes()[info.data_offset + 4 * 60 : info.data_offset + 9 * 60]
    np.testing.assert_array_equal(raw.data.byteswap() ^ 0x8000, data[4:9])


def test_frames_without_raw_form(tmp_path, write_cfa):
    mono, _ = write_cfa("mono.fit", BAYERPAT=None, INSTRUME="x")
    floating = tmp_path / "f.fit"
    fits.PrimaryHDU(np.zeros((4, 6), np.float32), fits.Header([("BAYERPAT", "GRBG")])).writeto(floating)
    assert read_raw_rows(read_frame_info(mono), 0, 2) is None
    assert read_raw_rows(read_frame_info(floating), 0, 2) is None


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("order", ["hw", "chw", "hwc"])
def test_types_and_plane_orders(tmp_path, dtype, order):
    rng = np.random.default_rng(1)
    chw = (rng.random((3, 9, 7)) * 200).astype(dtype)
    stored = {"hw": chw[0], "chw": chw, "hwc": np.moveaxis(chw, 0, -1)}[order]
    path = tmp_path / "x.fits"
    fits.PrimaryHDU(np.ascontiguousarray(stored)).writeto(path)
    window = read_window(read_frame_info(path), 2, 8, 1, 6)
    expected = (chw[0] if order == "hw" else chw)[..., 2:8, 1:6]
    assert window.dtype == (np.uint16 if dtype == "uint8" else np.float32)
    np.testing.assert_array_equal(window, expected.astype(window.dtype))


def test_scaled_integers_and_blank(tmp_path):
    path = tmp_path / "scaled.fits"
    hdu = fits.PrimaryHDU(np.array([[1, 2, -99], [4, 5, 6]], np.int16))
    hdu.header["BSCALE"], hdu.header["BZERO"], hdu.header["BLANK"] = 0.5, 10.0, -99
    hdu.writeto(path)
    window = read_image(read_frame_info(path))
    np.testing.assert_array_equal(window, np.array([[10.5, 11.0, np.nan], [12.0, 12.5, 13.0]], np.float32))


@pytest.mark.parametrize("codec", ["RICE_1", "GZIP_2", "HCOMPRESS_1"])
def test_compressed_frames(tmp_path, codec):
    rng = np.random.default_rng(2)
    data = rng.integers(0, 65536, (40, 30), dtype=np.uint16)
    path = tmp_path / "p.fits.fz"
    compressed = fits.CompImageHDU(
        data, fits.Header([("BAYERPAT", "GRBG")]), compression_type=codec, tile_shape=(20, 30)
    )
    fits.HDUList([fits.PrimaryHDU(), compressed]).writeto(path)
    info = read_frame_info(path)
    window = read_window(info, 7, 31, 2, 29)
    assert window.dtype == np.uint16
    np.testing.assert_array_equal(window, data[7:31, 2:29])
    assert read_raw_rows(info, 0, 4) is None


def test_compressed_colour_planes(tmp_path):
    data = np.random.default_rng(3).normal(100, 5, (3, 24, 20)).astype(np.float32)
    path = tmp_path / "rgb.fits.fz"
    unit = fits.CompImageHDU(data, compression_type="GZIP_2", quantize_level=0)
    fits.HDUList([fits.PrimaryHDU(), unit]).writeto(path)
    np.testing.assert_array_equal(read_window(read_frame_info(path), 3, 20, 4, 9), data[:, 3:20, 4:9])


def test_content_key_sees_pixels_only(tmp_path, write_cfa):
    path, data = write_cfa("a.fit", OBJECT="one")
    other, _ = write_cfa("b.fit", OBJECT="a different header " * 3)
    changed = tmp_path / "c.fit"
    shutil.copy(path, changed)
    offset = read_frame_info(changed).data_offset
    with open(changed, "r+b") as file:
        file.seek(offset + 100)
        file.write(b"\x12\x34")
    keys = [content_key(read_frame_info(p)) for p in (path, other, changed)]
    assert keys[0] == keys[1] != keys[2]
    packed = [tmp_path / "g.fits.fz", tmp_path / "r.fits.fz"]
    for target, codec in zip(packed, ("GZIP_1", "RICE_1"), strict=True):
        fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(data, compression_type=codec)]).writeto(target)
    assert content_key(read_frame_info(packed[0])) == content_key(read_frame_info(packed[1]))


def test_file_cut_after_the_survey_is_skipped_not_fatal(write_cfa):
    path, _ = write_cfa()
    info = read_frame_info(path)
    with open(path, "r+b") as file:
        file.truncate(info.data_offset + 100)
    for action in (lambda: read_image(info), lambda: content_key(info)):
        with pytest.raises(SkipItem) as caught:
            action()
        assert caught.value.key == "frame_truncated"
    path.unlink()
    with pytest.raises(SkipItem) as caught:
        read_image(info)
    assert caught.value.key == "frame_unreadable"


def test_window_outside_is_a_mistake_of_the_caller(write_cfa):
    path, _ = write_cfa()
    with pytest.raises(ValueError, match="not inside"):
        read_window(read_frame_info(path), 0, 21)


def test_plane_rows_of_an_extension(tmp_path):
    data = np.arange(60, dtype=np.uint16).reshape(6, 10)
    path = tmp_path / "e.fits"
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(data, name="COVERAGE")]).writeto(path)
    hdu = next(h for h in iter_hdus(path) if h.name == "COVERAGE")
    rows = read_plane_rows(path, hdu, 2, 5)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, data[None, 2:5])


@pytest.mark.parametrize("planes", [0, 3, 4])
@pytest.mark.parametrize("interleaved", [False, True])
def test_image_and_key_in_one_read_are_those_of_two(tmp_path, planes, interleaved):
    rng = np.random.default_rng(planes)
    shape = (20, 30) if planes == 0 else (20, 30, planes) if interleaved else (planes, 20, 30)
    path = tmp_path / "frame.fit"
    fits.writeto(path, rng.integers(0, 65535, shape).astype(np.uint16))
    info = read_frame_info(path)
    read = read_identified(info)
    np.testing.assert_array_equal(read.data, read_image(info))
    assert read.content_key == content_key(info)


def _as_cube(form):
    rng = np.random.default_rng(4)
    shape = {"hw": (20, 31), "chw": (3, 20, 31), "hwc": (20, 31, 3), "chw4": (4, 20, 31)}[form.split(".")[0]]
    return rng.integers(0, 65535, shape).astype(np.uint16)


@pytest.mark.parametrize("form", ["hw", "chw", "hwc", "chw4", "hw.fz", "chw.fz", "hw.raw"])
def test_every_row_that_changed_is_noticed_in_every_window_that_reads_it(tmp_path, form):
    data = _as_cube(form)
    names = [tmp_path / name for name in ("before.fits", "after.fits")]
    header = fits.Header([("BAYERPAT", "GRBG")] if form == "hw.raw" else [])
    changed = data.copy()
    # One pixel by one count, on row 11.
    changed[(11, 5, 0) if form == "hwc" else (..., 11, 5)] ^= 1
    for path, pixels in zip(names, (data, changed), strict=True):
        unit = fits.CompImageHDU(pixels, header) if form.endswith(".fz") else fits.PrimaryHDU(pixels, header)
        unit.writeto(path)
    info, other = map(read_frame_info, names)
    sums = read_identified(info).row_sums
    for y0 in range(19):
        for y1 in (y0 + 1, 20):
            window = read_window(info, y0, y1, 3, 9, sums=sums)
            np.testing.assert_array_equal(window, read_window(info, y0, y1, 3, 9))
            readers = [lambda y0=y0, y1=y1: read_window(other, y0, y1, 3, 9, sums=sums)]
            if form == "hw.raw":
                readers.append(lambda y0=y0, y1=y1: read_raw_rows(other, y0, y1, sums=sums))
                raw = read_raw_rows(info, y0, y1, sums=sums)
                np.testing.assert_array_equal(raw.data, read_raw_rows(info, y0, y1).data)
            for read in readers:
                if not y0 <= 11 < y1:
                    read()
                    continue
                with pytest.raises(SkipItem) as caught:
                    read()
                assert caught.value.key == "frame_changed"


@pytest.mark.parametrize("installed", [True, False])
def test_pixels_are_known_by_the_method_and_its_digits(write_cfa, monkeypatch, installed):
    """In pieces or at once; and a key of one method never equals one of the other."""
    info = read_frame_info(write_cfa("a.fit")[0])
    if not installed:
        monkeypatch.setattr(pixel_digest, "xxhash", None)
    elif pixel_digest.xxhash is None:
        pytest.skip("xxhash is not installed")
    key = content_key(info)
    name, digits = key.split("-")
    assert (name, len(digits)) == ("xxh3" if installed else "blake2b", 32)
    assert read_identified(info).content_key == key
    monkeypatch.setattr(fits_read, "_HASH_CHUNK", 777)
    assert content_key(info) == key


@pytest.mark.parametrize("order", ["hw", "chw", "hwc"])
def test_a_narrow_window_is_that_of_the_whole_rows(tmp_path, order, monkeypatch):
    shape = {"hw": (40, 90), "chw": (3, 40, 90), "hwc": (40, 90, 3)}[order]
    path = tmp_path / "a.fits"
    fits.writeto(path, np.random.default_rng(2).normal(100.0, 9.0, shape).astype(np.float32))
    info = read_frame_info(path)
    whole = read_window(info, 5, 31)
    monkeypatch.setattr(fits_read, "_read_stored_rows", None)
    np.testing.assert_array_equal(read_window(info, 5, 31, 60, 80), whole[..., 60:80])
