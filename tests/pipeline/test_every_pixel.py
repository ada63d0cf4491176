"""The picture in all pixels of its mosaic."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from zemosaic_core.sphere import tan_wcs
from zemosaic_pipeline.finished_picture import EveryPixel, make_picture

SHAPE_HW = (620, 850)
HOLE = (slice(300, 303), slice(400, 404))


@pytest.fixture(scope="module")
def mosaic(tmp_path_factory):
    """Stars on a sloping sky; a corner without frames, a thin rim, and a hole that three frames of four do not fill."""
    folder = tmp_path_factory.mktemp("mosaic")
    rng = np.random.default_rng(5)
    image = rng.normal(300.0, 3.0, (3, *SHAPE_HW)).astype(np.float32)
    yy, xx = np.mgrid[: SHAPE_HW[0], : SHAPE_HW[1]]
    image += (xx * 0.05).astype(np.float32)
    for y, x in rng.uniform((0, 0), SHAPE_HW, (50, 2)):
        image += (800.0 * np.exp(-((yy - y) ** 2 + (xx - x) ** 2) / 5.0)).astype(np.float32)
    depth = np.full(SHAPE_HW, 20.0, np.float32)
    depth[:30] = 4.0
    depth[500:, 700:] = 0.0
    image[:, 500:, 700:] = np.nan
    image[(slice(None), *HOLE)] = np.nan
    clipped = np.zeros(SHAPE_HW, np.uint8)
    wcs = tan_wcs((187.5, 12.7), 4.0 / 3600.0, SHAPE_HW)
    fits.PrimaryHDU(image, wcs.to_header()).writeto(folder / "m.fits")
    sigma = np.full((3, -(-SHAPE_HW[0] // 32), -(-SHAPE_HW[1] // 32)), 3.0, np.float32)
    fits.HDUList(
        [
            fits.PrimaryHDU(depth),
            fits.ImageHDU(clipped, name="CLIPPED"),
            fits.ImageHDU(sigma, name="NOISE"),
        ]
    ).writeto(folder / "c.fits")
    return SimpleNamespace(
        science_path=str(folder / "m.fits"),
        coverage_path=str(folder / "c.fits"),
        grid=SimpleNamespace(wcs_cards=dict(wcs.to_header())),
        colour=SimpleNamespace(gains=None),
    )


def options(max_dim, crop="", *, flatten=False):
    preview = {"max_dim": max_dim, "p_low": 1.0, "p_high": 99.9, "asinh_a": 12.0}
    return SimpleNamespace(preview=preview, crop=crop, flatten=flatten)


def assembled(every):
    return np.concatenate([band for _, band in every.bands()])


def test_where_the_picture_has_every_pixel_it_is_the_same(mosaic):
    picture = make_picture(mosaic, options(2000))
    np.testing.assert_array_equal(assembled(EveryPixel(picture, mosaic)), picture.render())


@pytest.mark.parametrize("flatten", [False, True])
def test_a_reduced_picture_in_all_pixels(mosaic, flatten):
    small = make_picture(mosaic, options(300, "coverage", flatten=flatten))
    assert small.step == 3
    every = EveryPixel(small, mosaic)
    found = assembled(every).astype(int)
    # The thin rim was cut in whole pixels of the picture, the corner stays missing, the hole is filled.
    assert small.box[0] == 30
    assert found.shape[:2] == every.shape_hw == (SHAPE_HW[0] - 30, SHAPE_HW[1])
    assert not found[500 - 30 :, 700:, 3].any()
    assert found[: 500 - 33, :, 3].all()
    rows, columns = HOLE
    hole = found[rows.start - 30 : rows.stop - 30, columns, :3]
    around = found[rows.start - 40 : rows.stop - 20, columns.start - 10 : columns.stop + 10, :3]
    assert np.abs(hole.mean(axis=(0, 1)) - np.median(around, axis=(0, 1))).max() < 12
    # The same stretch: blocks of pixels are as bright as the pixels of the picture, within what a curve does to noise.
    shown = small.render()[..., :3].astype(int)
    blocks = found[: 450 // 3 * 3, : 690 // 3 * 3, :3].reshape(150, 3, 230, 3, 3).mean(axis=(1, 3))
    assert np.abs(np.median(blocks - shown[:150, :230], axis=(0, 1))).max() < 2
    levels = np.median(found[:460, :, 1], axis=0)
    slope = abs(np.median(levels[:200]) - np.median(levels[-200:]))
    assert (slope < 5) if flatten else (slope > 20)


def test_its_wcs_is_that_of_the_mosaic(mosaic):
    every = EveryPixel(make_picture(mosaic, options(300, "coverage")), mosaic)
    ours = every.wcs(mosaic.grid.wcs_cards).all_pix2world(100, 200, 0)
    np.testing.assert_allclose(ours, WCS(mosaic.grid.wcs_cards).all_pix2world(100, 230, 0), atol=1e-9)
