from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from solver_fakes import make_request, star_list, true_wcs

from zemosaic_io.solvers.images import prepare_image, wcs_to_full_frame, write_star_table


@pytest.mark.parametrize("step", [1, 2, 3])
def test_picture_geometry(tmp_path, step):
    """A single bright pixel tells where the centre of a picture pixel lies in the full frame."""
    luminance = np.full((25, 20), 100.0, np.float32)
    luminance[step * 4 : step * 5, step * 2 : step * 3] = 5000.0
    image = prepare_image(make_request(tmp_path, image=luminance, offset=(0.5, 0.5)), step)
    assert image.data.dtype == np.uint16
    assert image.data.shape == (25 // step, 20 // step)
    y, x = np.argwhere(image.data == 5000)[0]
    centre = step * 2 + (step - 1) / 2 + 0.5, step * 4 + (step - 1) / 2 + 0.5
    assert (image.x0 + image.step * x, image.y0 + image.step * y) == centre


def test_picture_of_frames_that_are_not_16_bit(tmp_path):
    small = np.array([[0.0, 0.5], [1.0, np.nan]], np.float32)
    image = prepare_image(make_request(tmp_path, image=small), 1)
    np.testing.assert_array_equal(image.data, [[0, 32768], [65535, 0]])
    big = np.array([[0.0, 100000.0]], np.float32)
    assert prepare_image(make_request(tmp_path, image=big), 1).data.tolist() == [[0, 65535]]


def small_wcs_of(wcs, step, x0, y0):
    """WCS of the picture from the one of the full frame, by astropy's own slicing rules."""
    small = wcs.deepcopy()
    small.wcs.crpix = [(wcs.wcs.crpix[0] - 1 - x0) / step + 1, (wcs.wcs.crpix[1] - 1 - y0) / step + 1]
    small.wcs.cd = wcs.wcs.cd * step
    return small


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("notation", ["CD", "PC"])
def test_wcs_of_the_picture_becomes_the_wcs_of_the_frame(step, notation):
    wcs = true_wcs((400, 300))
    x0, y0 = 0.5 + (step - 1) / 2, 0.5 + (step - 1) / 2
    small = small_wcs_of(wcs, step, x0, y0)
    cards = dict(small.to_header().items())
    if notation == "CD":
        cards = {k: v for k, v in cards.items() if not k.startswith(("PC", "CDELT"))}
        cards |= {f"CD{i + 1}_{j + 1}": small.wcs.cd[i, j] for i in (0, 1) for j in (0, 1)}
    full = WCS(fits.Header(wcs_to_full_frame(cards, step, x0, y0)))
    x, y = np.meshgrid([0.0, 150, 299], [0.0, 200, 399])
    np.testing.assert_allclose(full.all_pix2world(x, y, 0), wcs.all_pix2world(x, y, 0), atol=1e-11)


@pytest.mark.parametrize("step", [2, 3])
def test_sip_terms_follow(step):
    x0, y0 = 0.5, 1.5
    header = true_wcs((100, 80)).to_header(relax=True)
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN-SIP", "DEC--TAN-SIP"
    for name in ("A", "B"):
        header[f"{name}_ORDER"] = 2
    header["A_2_0"], header["A_1_1"], header["B_0_2"], header["B_1_1"] = 2e-4, -1e-4, 3e-4, 1e-4
    full = WCS(fits.Header(wcs_to_full_frame(dict(header.items()), step, x0, y0)))
    x, y = np.meshgrid([0.0, 40, 79], [0.0, 50, 99])
    np.testing.assert_allclose(
        full.all_pix2world(x0 + step * x, y0 + step * y, 0), WCS(header).all_pix2world(x, y, 0), atol=1e-10
    )


def test_star_table_is_sorted_and_counts_from_one(tmp_path):
    stars = star_list([0.0, 5.5, 9.0], [1.0, 2.0, 3.0], flux=[1.0, 30.0, 20.0])
    assert write_star_table(tmp_path / "s.xyls", stars, 2) == 2
    with fits.open(tmp_path / "s.xyls") as hdus:
        assert hdus[1].data["X"].tolist() == [6.5, 10.0]
        assert hdus[1].data["Y"].tolist() == [3.0, 4.0]
        assert hdus[1].data["FLUX"].tolist() == [30.0, 20.0]
