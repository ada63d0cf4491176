from __future__ import annotations

import numpy as np
import pytest
import tifffile
from astropy.io import fits
from PIL import Image

from zemosaic_core.errors import SaveFailed, SkipItem
from zemosaic_io.fits_write import write_image
from zemosaic_io.preview import (
    ArrayRows,
    FitsRows,
    display_range,
    downscale,
    write_png,
    write_tiff16,
    write_viewer_fits_uint16,
)


@pytest.fixture
def mosaic():
    image = np.random.default_rng(0).normal(1000, 100, (3, 150, 90)).astype(np.float32)
    image[:, :10, :20] = np.nan
    image[1] += 500
    return image


def expected_uint16(image, limits):
    scaled = np.rint((image.astype(np.float64) - limits[0]) * 65535 / (limits[1] - limits[0]))
    return np.where(np.isfinite(image), np.clip(scaled, 0, 65535), 0).astype(np.uint16)


def test_png_hangs_the_right_way_up(tmp_path):
    rgba = np.random.default_rng(1).integers(0, 256, (12, 7, 4), dtype=np.uint8)
    write_png(tmp_path / "a.png", rgba, texts={"Software": "ZeMosaic"})
    write_png(tmp_path / "b.png", rgba, flip=False)
    with Image.open(tmp_path / "a.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), rgba[::-1])
        assert picture.text["Software"] == "ZeMosaic"
    with Image.open(tmp_path / "b.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), rgba)


def test_png_into_nowhere_is_save_failed(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveFailed):
        write_png(tmp_path / "file" / "x.png", np.zeros((2, 2), np.uint8))


@pytest.mark.parametrize("flip", [True, False])
def test_tiff_by_strips_equals_the_whole_image(tmp_path, mosaic, flip):
    limits = (700.0, 2000.0)
    write_tiff16(tmp_path / "x.tif", mosaic, limits=limits, flip=flip, description="a mosaic")
    expected = np.moveaxis(expected_uint16(mosaic, limits), 0, -1)
    with tifffile.TiffFile(tmp_path / "x.tif") as tiff:
        assert tiff.pages[0].photometric.name == "RGB"
        assert len(tiff.pages) == 1
        np.testing.assert_array_equal(tiff.asarray(), expected[::-1] if flip else expected)
    with Image.open(tmp_path / "x.tif") as picture:
        assert picture.size == (90, 150)


def test_grey_tiff(tmp_path, mosaic):
    write_tiff16(tmp_path / "x.tif", mosaic[:1], limits=(700.0, 2000.0))
    expected = expected_uint16(mosaic[0], (700.0, 2000.0))[::-1]
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "x.tif"), expected)


def test_viewer_fits_can_be_turned_back_into_adu(tmp_path, mosaic):
    write_viewer_fits_uint16(tmp_path / "v.fits", mosaic, {"OBJECT": "M 94"})
    with fits.open(tmp_path / "v.fits") as hdus:
        header, data = hdus[0].header, hdus[0].data
    assert (header["BITPIX"], header["BZERO"], header["OBJECT"]) == (16, 32768, "M 94")
    assert (data[:, :10, :20] == 0).all()
    adu = data * header["ZMVSCALE"] + header["ZMVZERO"]
    inside = np.isfinite(mosaic) & (data > 0) & (data < 65535)
    assert inside.mean() > 0.95
    assert np.abs(adu - mosaic)[inside].max() <= 0.51 * header["ZMVSCALE"]


def test_rows_from_a_file_and_from_memory_are_the_same(tmp_path, mosaic):
    write_image(tmp_path / "m.fits", mosaic)
    rows = FitsRows(tmp_path / "m.fits")
    assert rows.shape == mosaic.shape
    np.testing.assert_array_equal(rows.read_rows(5, 40), mosaic[:, 5:40])
    assert display_range(rows) == display_range(mosaic)
    (tmp_path / "none.fits").write_bytes(fits.PrimaryHDU().header.tostring().encode())
    with pytest.raises(SkipItem):
        FitsRows(tmp_path / "none.fits")


def test_display_range_ignores_missing_pixels_and_flat_images(mosaic):
    low, high = display_range(mosaic)
    finite = mosaic[np.isfinite(mosaic)].astype(np.float64)
    p_low, p_high = np.percentile(finite, (0.1, 99.9))
    assert low == pytest.approx(p_low - 0.02 * (p_high - p_low))
    assert high == pytest.approx(p_high + 0.02 * (p_high - p_low))
    assert display_range(np.full((1, 4, 4), 7.0, np.float32)) == (6.5, 7.5)
    assert display_range(np.full((1, 4, 4), np.nan, np.float32)) == (0.0, 1.0)


@pytest.mark.parametrize("max_dim", [150, 60, 7])
def test_downscale_equals_block_means(mosaic, max_dim):
    small = downscale(ArrayRows(mosaic), max_dim)
    step = -(-150 // max_dim)
    assert max(small.shape[1:]) <= max_dim
    assert small.dtype == np.float32
    for y in range(small.shape[1]):
        for x in range(small.shape[2]):
            block = mosaic[:, y * step : (y + 1) * step, x * step : (x + 1) * step].reshape(3, -1)
            if np.isnan(block).all():
                assert np.isnan(small[:, y, x]).all()
            else:
                np.testing.assert_allclose(
                    small[:, y, x], np.nanmean(block.astype(np.float64), axis=1), rtol=1e-6
                )
