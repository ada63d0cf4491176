from __future__ import annotations

import io

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from zemosaic_core.errors import SaveFailed
from zemosaic_io.picture_files import ENDINGS, srgb_profile, write_picture

TEXTS = {"Software": "ZeMosaic 5", "Picture": '{"style": "deep"}'}


def picture(dtype=np.uint8):
    top = np.iinfo(dtype).max
    yy, xx = np.mgrid[:40, :60]
    rgba = np.stack([yy * 6, xx * 4, 255 - yy * 6, np.full_like(yy, 255)], axis=-1) * (top // 255)
    return rgba.astype(dtype)


def test_profile_is_srgb_and_the_same_each_time():
    assert srgb_profile() == srgb_profile()
    name = ImageCms.getProfileName(ImageCms.ImageCmsProfile(io.BytesIO(srgb_profile())))
    assert "sRGB" in name


@pytest.mark.parametrize("form", ["png", "jpeg"])
def test_pictures_hang_the_right_way_up_with_profile_and_recipe(tmp_path, form):
    rgba = picture()
    path = write_picture(tmp_path / f"x{ENDINGS[form]}", rgba, form, texts=TEXTS)
    with Image.open(path) as read:
        assert read.info["icc_profile"] == srgb_profile()
        pixels = np.asarray(read.convert("RGB")).astype(int)
        told = read.text["Picture"] if form == "png" else read.getexif()[0x010E]
    assert '"style": "deep"' in told
    assert np.abs(pixels - rgba[::-1, :, :3]).max() <= (0 if form == "png" else 12)


def test_tiff_has_sixteen_bits_profile_and_recipe(tmp_path):
    rgba = picture(np.uint16)
    rgba[:5, :5] = 0
    path = write_picture(tmp_path / "x.tif", rgba, "tiff16", texts=TEXTS)
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        np.testing.assert_array_equal(page.asarray(), rgba[::-1])
        assert page.iccprofile == srgb_profile()
        assert '"style": "deep"' in page.description
        assert page.photometric.name == "RGB"


def test_jpeg_xl_is_read_back(tmp_path):
    pytest.importorskip("pillow_jxl")
    path = write_picture(tmp_path / "x.jxl", picture(), "jxl", texts=TEXTS)
    with Image.open(path) as read:
        assert np.abs(np.asarray(read.convert("RGB")).astype(int) - picture()[::-1, :, :3]).mean() < 4


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(ValueError, match="bmp"):
        write_picture(tmp_path / "x.bmp", picture(), "bmp")
    with pytest.raises(ValueError, match="tiff16 of uint8"):
        write_picture(tmp_path / "x.tif", picture(), "tiff16")
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveFailed):
        write_picture(tmp_path / "file" / "x.png", picture(), "png")
