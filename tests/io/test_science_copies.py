"""Copies of the science file in other forms: the same pixels for this program and for others."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits

from zemosaic_core.errors import SaveFailed
from zemosaic_io.fits_compress import write_compressed_copy
from zemosaic_io.fits_read import read_image
from zemosaic_io.fits_write import write_image
from zemosaic_io.headers import read_frame_info
from zemosaic_io.stack_pictures import read_stack
from zemosaic_io.xisf_read import read_xisf
from zemosaic_io.xisf_write import write_xisf_copy

CARDS = [
    ("CTYPE1", "RA---TAN"),
    ("CRPIX2", 17.25),
    ("OBSERVER", "O'Neill & <sons>"),
    ("NRAWPROC", 16),
    ("WCSAPPRX", False, "a comment"),
    ("HISTORY", "made up"),
]


def science(folder, shape=(3, 150, 70), dtype="float32"):
    rng = np.random.default_rng(4)
    image = rng.normal(1000.0, 30.0, shape).astype(dtype)
    if dtype == "float32":
        image[..., :20, :9] = np.nan
        image[..., -1, -1] = -1.5e-8
    path = write_image(folder / "science.fits", image, CARDS)
    return path, image


@pytest.mark.parametrize(
    ("shape", "dtype"), [((3, 150, 70), "float32"), ((64, 33), "float32"), ((3, 65, 20), "uint16")]
)
def test_the_compressed_copy_has_the_same_bits_and_cards(tmp_path, shape, dtype):
    path, image = science(tmp_path, shape, dtype)
    copy = write_compressed_copy(tmp_path / "science.fits.fz", path)
    with fits.open(copy) as hdus:
        np.testing.assert_array_equal(np.asarray(hdus[1].data, dtype), image)
        for key, value, *_ in CARDS[:-1]:
            assert hdus[1].header[key] == value
        assert list(hdus[1].header["HISTORY"]) == ["made up"]
    with fits.open(copy, disable_image_compression=True) as hdus:
        assert hdus[1].header["ZCMPTYPE"] == "GZIP_2"
        assert hdus[1].header["PCOUNT"] == sum(len(row) for row in hdus[1].data["COMPRESSED_DATA"])
    assert copy.stat().st_size % 2880 == 0
    assert not [p for p in tmp_path.iterdir() if p not in (path, copy)]


def test_the_compressed_copy_is_read_by_this_program(tmp_path):
    path, image = science(tmp_path)
    copy = write_compressed_copy(tmp_path / "science.fits.fz", path)
    np.testing.assert_array_equal(read_image(read_frame_info(copy)), image)
    np.testing.assert_array_equal(read_stack(copy).planes, read_stack(path).planes)


def test_large_tables_have_wide_places(tmp_path, monkeypatch):
    monkeypatch.setattr("zemosaic_io.fits_compress._LARGEST_SMALL_HEAP", 1000)
    path, image = science(tmp_path)
    copy = write_compressed_copy(tmp_path / "science.fits.fz", path)
    np.testing.assert_array_equal(fits.getdata(copy, 1), image)
    with fits.open(copy, disable_image_compression=True) as hdus:
        assert hdus[1].header["TFORM1"].startswith("1QB(")


def test_a_source_that_is_cut_short_leaves_no_copy(tmp_path):
    path, _ = science(tmp_path)
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(SaveFailed, match="cut short"):
        write_compressed_copy(tmp_path / "science.fits.fz", path)
    assert [p.name for p in tmp_path.iterdir()] == ["science.fits"]


@pytest.mark.parametrize(("shape", "dtype"), [((3, 150, 70), "float32"), ((3, 65, 20), "uint16")])
def test_xisf_comes_back_as_it_was(tmp_path, shape, dtype):
    path, image = science(tmp_path, shape, dtype)
    copy = write_xisf_copy(tmp_path / "science.xisf", path)
    found = read_xisf(copy)
    assert found.planes.dtype == dtype
    np.testing.assert_array_equal(found.planes, image)
    assert {key: found.cards[key] for key, *_ in CARDS[:-1]} == {key: value for key, value, *_ in CARDS[:-1]}


def test_xisf_of_one_plane_is_grey(tmp_path):
    path, image = science(tmp_path, (40, 30))
    found = read_xisf(write_xisf_copy(tmp_path / "science.xisf", path))
    np.testing.assert_array_equal(found.planes[0], image)
    assert b'colorSpace="Gray"' in (tmp_path / "science.xisf").read_bytes()[:2000]


def test_another_reader_of_xisf_agrees(tmp_path):
    """Reads with a library of others, which is the only witness for what we believe of the format."""
    other = pytest.importorskip("xisf")
    path, image = science(tmp_path)
    file = other.XISF(str(write_xisf_copy(tmp_path / "science.xisf", path)))
    # Rows from the top, channels last.
    np.testing.assert_array_equal(np.moveaxis(file.read_image(0), -1, 0)[:, ::-1], image)
    words = file.get_images_metadata()[0]["FITSKeywords"]
    assert words["CRPIX2"][0]["value"] == "17.25"
    assert words["HISTORY"][0]["comment"] == "made up"
