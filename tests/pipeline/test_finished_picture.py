from __future__ import annotations

import numpy as np
import pytest

from zemosaic_core.errors import SettingsError
from zemosaic_core.sphere import tan_wcs
from zemosaic_pipeline import output_formats as formats
from zemosaic_pipeline.finished_picture import FinishedPicture, cut_and_fill


def covered_cross():
    """A picture that eight frames cover, with a rim that two cover and corners that none covers."""
    depth = np.full((60, 80), 8.0)
    depth[:10], depth[:, 70:] = 2.0, 2.0
    depth[:20, :15] = 0.0
    image = np.full((3, 60, 80), 100.0, np.float32)
    image[:, depth == 0] = np.nan
    return image, depth


def test_nothing_is_cut_unless_asked():
    image, depth = covered_cross()
    whole, box, holes = cut_and_fill(image, depth, "")
    np.testing.assert_array_equal(whole, image)
    assert box == (0, 60, 0, 80)
    assert holes == []
    assert whole is not image


def test_the_ragged_rim_is_cut():
    image, depth = covered_cross()
    cut, box, _ = cut_and_fill(image, depth, "coverage")
    assert box == (10, 60, 0, 70)
    assert cut.shape == (3, 50, 70)
    assert np.isnan(cut[:, :10, :15]).all()
    assert np.isfinite(cut[:, 10:]).all()


def test_thin_places_that_touch_the_box_are_missing_and_thin_ones_inside_are_kept():
    depth = np.full((50, 50), 8.0)
    depth[:5, :20] = 2.0
    depth[30:34, 30:34] = 1.0
    image = np.full((1, 50, 50), 5.0, np.float32)
    cut, box, _ = cut_and_fill(image, depth, "coverage")
    assert box == (0, 50, 0, 50)
    assert np.isnan(cut[0, :5, :20]).all()
    assert np.isfinite(cut[0, 30:34, 30:34]).all()


def test_the_largest_rectangle_has_no_gap():
    image, depth = covered_cross()
    cut, box, _ = cut_and_fill(image, depth, "rectangle")
    assert box in ((20, 60, 0, 70), (10, 60, 15, 70))
    assert np.isfinite(cut).all()


def test_small_holes_are_filled_and_listed_and_large_ones_are_not():
    image = np.full((3, 60, 80), 100.0, np.float32)
    image += np.arange(80, dtype=np.float32)
    untouched = image.copy()
    image[:, 20:23, 30:34] = np.nan
    image[1, 50, 60] = np.nan
    image[:, 35:50, 10:25] = np.nan
    filled, _, holes = cut_and_fill(image, np.full((60, 80), 4.0), "")
    assert sorted(holes) == [(30, 20), (60, 50)]
    np.testing.assert_allclose(filled[:, 20:23, 30:34], untouched[:, 20:23, 30:34], atol=2.0)
    assert np.isnan(filled[:, 35:50, 10:25]).all()
    assert np.isnan(image[:, 20:23, 30:34]).all()


def test_numbers_of_filters():
    assert formats.filter_numbers("") == {}
    assert formats.filter_numbers(" IRCUT = 4711; L=eXtreme=12,") == {"ircut": "4711", "l=extreme": "12"}
    for wrong in ("IRCUT", "=12", "LP=x", "LP=1.5", "LP="):
        with pytest.raises(SettingsError, match="4711") as refused:
            formats.filter_numbers(wrong)
        assert refused.value.key == "settings_not_filter_numbers"


def test_forms_are_read_in_any_spelling_and_wrong_ones_are_refused(monkeypatch):
    assert formats.output_formats("") == ()
    assert formats.output_formats("TIFF, jpg;png fits") == ("png", "jpeg", "tiff16")
    with pytest.raises(SettingsError, match="bmp") as refused:
        formats.output_formats("png, bmp")
    assert refused.value.key == "settings_not_a_choice"
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match="pip install") as refused:
        formats.output_formats("jxl")
    assert refused.value.key == "settings_format_library"


def test_the_wcs_of_a_picture_knows_what_was_cut_and_averaged():
    mosaic = tan_wcs((40.0, 20.0), 3.0 / 3600.0, (300, 400), rotation_deg=25.0)
    image = np.zeros((1, 60, 70), np.float32)
    picture = FinishedPicture(image, image[0] > 0, None, None, 3, (90, 270, 60, 270), [])
    wcs = picture.wcs(dict(mosaic.to_header()))
    for x, y in ((0, 0), (69, 10), (31.5, 44.25)):
        ra, dec = wcs.all_pix2world(x, y, 0)
        there = mosaic.all_world2pix(ra, dec, 0)
        # The middle of three pixels.
        np.testing.assert_allclose(there, (60 + 3 * x + 1, 90 + 3 * y + 1), atol=1e-6)


def test_copies_and_lists_are_forms_as_well():
    assert formats.output_formats("astrobin, XISF; fz fits.fz jpg") == ("jpeg", "fits.fz", "xisf", "astrobin")


@pytest.mark.parametrize("package_is_there", [False, True])
def test_a_missing_library_is_named_before_the_run(monkeypatch, package_is_there):
    def found(name):
        if not package_is_there:
            raise ModuleNotFoundError(name)

    assert formats.check_hips(False) is False
    monkeypatch.setattr(formats, "find_spec", found)
    with pytest.raises(SettingsError, match=r'save_hips = true.*pip install "zemosaic\[hips\]"'):
        formats.check_hips(True)
