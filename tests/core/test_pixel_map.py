from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from astropy.wcs import WCS, Sip

from zemosaic_core.errors import RunFailed
from zemosaic_core.pixel_map import (
    build_pixel_map,
    footprint_bbox,
    map_coordinates_at,
    shift_pixel_map,
    source_columns,
    source_window,
    wcs_transform,
)


def make_wcs(ra, dec, scale_arcsec, shape, rotation=0.0, sip=None):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"] if sip else ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [ra, dec]
    wcs.wcs.crpix = [shape[1] / 2 + 0.5, shape[0] / 2 + 0.5]
    c, s, d = np.cos(np.radians(rotation)), np.sin(np.radians(rotation)), scale_arcsec / 3600
    wcs.wcs.cd = [[-d * c, d * s], [d * s, d * c]]
    if sip:
        a, b = np.zeros((4, 4)), np.zeros((4, 4))
        a[3, 0] = a[1, 2] = b[0, 3] = b[2, 1] = sip
        wcs.sip = Sip(a, b, None, None, wcs.wcs.crpix)
    wcs.wcs.set()
    return wcs


@pytest.mark.parametrize("sip", [None, 2e-9])
def test_wcs_map_is_as_exact_as_it_says(sip):
    out = make_wcs(120, 60, 2.4, (3000, 3000))
    src = make_wcs(121.5, 60.4, 2.37, (1920, 1080), 25, sip)
    bbox = footprint_bbox(wcs_transform(src, out), (1920, 1080), (3000, 3000))
    transform = wcs_transform(out, src)
    pixel_map = build_pixel_map(transform, bbox, max_error_px=0.002)
    rng = np.random.default_rng(0)
    x = rng.integers(bbox[2], bbox[3], 300)
    y = rng.integers(bbox[0], bbox[1], 300)
    true_x, true_y = transform(x.astype(float), y.astype(float))
    sx, sy = map_coordinates_at(pixel_map, x, y)
    assert np.hypot(sx - true_x, sy - true_y).max() <= 0.002 * 1.05
    assert pixel_map.max_error_px <= 0.002


def test_stronger_distortion_gives_a_finer_lattice_and_too_strong_is_an_error():
    def warp(x, y, a=1.0):
        return x + a * np.sin(x / 60), y

    steps = [
        build_pixel_map(lambda x, y, a=a: warp(x, y, a), (0, 400, 0, 400)).step for a in (1e-3, 0.1, 0.6)
    ]
    assert steps == sorted(steps, reverse=True)
    assert steps[0] == 64
    with pytest.raises(RunFailed) as caught:
        build_pixel_map(lambda x, y: warp(x, y, 40.0), (0, 400, 0, 400))
    assert caught.value.key == "pixel_map_inaccurate"


def test_empty_box_and_undefined_transform_are_errors():
    with pytest.raises(RunFailed, match="no pixel"):
        build_pixel_map(lambda x, y: (x, y), (4, 4, 0, 9))
    with pytest.raises(RunFailed) as caught:
        build_pixel_map(lambda x, y: (x * np.nan, y * np.nan), (0, 5, 0, 9))
    assert caught.value.key == "pixel_map_undefined"


def test_lattice_covers_single_pixels_and_ragged_boxes():
    for bbox in ((0, 1, 0, 1), (3, 68, 5, 70), (0, 65, 0, 64), (0, 66, 0, 129)):
        pixel_map = shift_pixel_map(2, -3, bbox)
        ny, nx = pixel_map.src_x.shape
        assert min(ny, nx) >= 2
        assert pixel_map.y0 + (ny - 1) * pixel_map.step >= bbox[1] - 1
        assert pixel_map.x0 + (nx - 1) * pixel_map.step >= bbox[3] - 1
        assert pixel_map.max_error_px == 0
        assert pixel_map.src_x[0, 0] == bbox[2] + 3


def test_footprint_holds_the_image_and_misses_give_an_empty_box():
    out, src = make_wcs(10, 0, 2.4, (900, 800)), make_wcs(10.2, 0.1, 2.4, (300, 200), 30)
    forward = wcs_transform(src, out)
    y0, y1, x0, x1 = footprint_bbox(forward, (300, 200), (900, 800))
    y, x = np.mgrid[0:300:7, 0:200:7]
    ox, oy = forward(x.ravel().astype(float), y.ravel().astype(float))
    inside = (ox >= 0) & (ox <= 799) & (oy >= 0) & (oy <= 899)
    assert ((ox[inside] >= x0) & (ox[inside] < x1) & (oy[inside] >= y0) & (oy[inside] < y1)).all()
    assert footprint_bbox(forward, (300, 200), (5, 5)) == (0, 0, 0, 0)
    other_side = make_wcs(190, 0, 2.4, (300, 200))
    assert footprint_bbox(wcs_transform(other_side, out), (300, 200), (900, 800)) == (0, 0, 0, 0)


def test_source_window_holds_every_coordinate_and_is_tight():
    def transform(x, y):
        return 0.9 * x - 0.3 * y + 20 + 0.3 * np.sin(x / 200), 0.3 * x + 0.9 * y - 15

    pixel_map = build_pixel_map(transform, (0, 300, 0, 400))
    for box in ((0, 300, 0, 400), (17, 18, 0, 400), (63, 70, 100, 230), (299, 300, 399, 400)):
        window = source_window(pixel_map, *box, (300, 380), 3)
        y, x = np.mgrid[box[0] : box[1], box[2] : box[3]]
        sx, sy = map_coordinates_at(pixel_map, x, y)
        ok = (sx >= 0) & (sx <= 379) & (sy >= 0) & (sy <= 299)
        if window is None:
            assert not ok.any()
            continue
        a, b, c, d = window
        assert 0 <= a < b <= 300
        assert 0 <= c < d <= 380
        if ok.any():
            assert a <= max(0, np.floor(sy[ok].min()) - 2)
            assert b >= min(300, np.floor(sy[ok].max()) + 4)
            assert c <= max(0, np.floor(sx[ok].min()) - 2)
            assert d >= min(380, np.floor(sx[ok].max()) + 4)
        assert b - a <= np.ceil(sy.max() - sy.min()) + 11
    assert source_window(pixel_map, 0, 0, 0, 5, (300, 380), 3) is None
    assert source_window(shift_pixel_map(50, 50, (0, 9, 0, 9)), 0, 9, 0, 9, (30, 30), 3) is None


@pytest.mark.parametrize("degrees", [0, 4, 30, 90, 137, 180, 265])
def test_source_columns_hold_every_tap_and_leave_out_what_no_sample_needs(degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))

    def transform(x, y):
        x, y = x - 200, y - 150
        bent = 0.4 * np.sin(y / 90)
        return c * x - s * y + 190 + bent, s * x + c * y + 140

    shape, halo = (290, 380), 3
    pixel_map = build_pixel_map(transform, (0, 300, 0, 400))
    spared = 0
    for box in (
        (0, 300, 0, 400),
        (120, 160, 30, 370),
        (17, 18, 0, 400),
        (63, 70, 100, 230),
        (150, 151, 200, 201),
    ):
        window = source_window(pixel_map, *box, shape, halo)
        assert window is not None
        columns = source_columns(pixel_map, box, window, halo)
        a, b, left, right = window
        assert columns.shape == (b - a, 2)
        assert (columns >= 0).all()
        assert (columns <= right - left).all()
        wanted = np.zeros((b - a, right - left), bool)
        for y, (first, end) in enumerate(columns):
            wanted[y, first:end] = True
        y, x = np.mgrid[box[0] : box[1], box[2] : box[3]]
        sx, sy = (np.floor(v).astype(int) for v in map_coordinates_at(pixel_map, x, y))
        ok = (sx >= 0) & (sx < shape[1]) & (sy >= 0) & (sy < shape[0])
        for dy in range(1 - halo, halo + 1):
            for dx in range(1 - halo, halo + 1):
                ty, tx = sy[ok] + dy, sx[ok] + dx
                inside = (ty >= a) & (ty < b) & (tx >= left) & (tx < right)
                assert wanted[ty[inside] - a, tx[inside] - left].all()
        spared += (~wanted).sum()
    assert spared > 1000 or degrees % 90 == 0


def test_source_columns_are_all_where_a_map_is_undefined_in_part():
    def transform(x, y):
        return np.where(x > 150, np.nan, x), y

    pixel_map = build_pixel_map(transform, (0, 100, 0, 200))
    window = source_window(pixel_map, 10, 30, 0, 200, (100, 200), 3)
    assert window is not None
    columns = source_columns(pixel_map, (10, 30, 0, 200), window, 3)
    np.testing.assert_array_equal(columns, np.tile([0, window[3] - window[2]], (window[1] - window[0], 1)))


def test_slopes_of_rows_are_those_of_the_lattice_and_unknown_without_one():
    turned = build_pixel_map(lambda x, y: (x, 0.25 * x + 1.5 * y), (0, 64, 0, 64))
    assert turned.row_slopes == pytest.approx((0.25, 1.5))
    nowhere = dataclasses.replace(turned, src_y=np.full_like(turned.src_y, np.nan))
    assert np.isnan(nowhere.row_slopes).all()
