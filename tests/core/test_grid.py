from __future__ import annotations

import numpy as np
import pytest

from zemosaic_core.errors import RunFailed, SettingsError
from zemosaic_core.grid import (
    BYTES_PER_PIXEL,
    canvas_outliers,
    edge_step,
    finer_grid,
    footprint_boxes,
    make_grid,
)
from zemosaic_core.sphere import footprint, image_geometry, separation_deg, tan_wcs

SHAPE = (192, 108)
SCALE = 24.0 / 3600


def _frames(dec, ra0=0.0, rotations=(0.0, 0.0, 0.0, 0.0)):
    offsets = [(-0.3, -0.5), (0.3, -0.5), (-0.3, 0.5), (0.3, 0.5)]
    plane = tan_wcs((ra0, dec), 1.0, (1, 1))
    out = []
    for (dx, dy), rotation in zip(offsets, rotations, strict=True):
        ra, de = plane.all_pix2world(dx, dy, 0)
        out.append(tan_wcs((float(ra), float(de)), SCALE, SHAPE, rotation))
    return out


@pytest.mark.parametrize("dec", [0.0, 60.0, 80.0, 90.0])
@pytest.mark.parametrize("orientation", ["north_up", "median_pc", "min_area"])
def test_every_pixel_of_every_frame_is_on_the_canvas(dec, orientation):
    wcs_list = _frames(dec, 359.9, (20, 25, 200, 22))
    grid = make_grid(wcs_list, [SHAPE] * 4, orientation=orientation)
    height, width = grid.shape_hw
    for wcs, box in zip(wcs_list, grid.boxes, strict=True):
        yy, xx = np.mgrid[0 : SHAPE[0] : 5, 0 : SHAPE[1] : 5]
        x, y = grid.wcs.all_world2pix(*wcs.all_pix2world(xx.ravel(), yy.ravel(), 0), 0)
        assert x.min() > 0
        assert x.max() < width - 1
        assert y.min() > 0
        assert y.max() < height - 1
        assert box[0] <= y.min()
        assert y.max() <= box[1] - 1
        assert box[2] <= x.min()
        assert x.max() <= box[3] - 1


@pytest.mark.parametrize("dec", [0.0, 60.0, 85.0])
def test_canvas_has_true_angular_size_at_any_declination(dec):
    grid = make_grid(_frames(dec), [SHAPE] * 4)
    expected_width = 0.6 / SCALE + SHAPE[1]
    # Near the pole frames that point north are turned against each other, which costs a little width.
    assert grid.shape_hw[1] == pytest.approx(expected_width, rel=0.1)
    g = image_geometry(grid.wcs, grid.shape_hw)
    assert g.scale_deg == pytest.approx(SCALE, rel=1e-3)
    assert grid.scale_arcsec == pytest.approx(24.0, rel=1e-4)
    assert g.parity == 1


def test_canvas_is_tight_and_padding_is_kept():
    grid = make_grid(_frames(30.0), [SHAPE] * 4, padding_px=0)
    outline = np.concatenate([footprint(w, SHAPE) for w in _frames(30.0)])
    x, y = grid.wcs.all_world2pix(outline[:, 0], outline[:, 1], 0)
    assert -0.5 <= x.min() < 0.6
    assert grid.shape_hw[1] - 1.6 < x.max() <= grid.shape_hw[1] - 0.5
    assert -0.5 <= y.min() < 0.6
    wider = make_grid(_frames(30.0), [SHAPE] * 4, padding_px=10)
    assert wider.shape_hw == (grid.shape_hw[0] + 20, grid.shape_hw[1] + 20)


def test_centre_is_the_middle_of_an_uneven_set():
    # Many frames in one corner must not pull it there.
    wcs_list = _frames(40.0) + [_frames(40.0)[0]] * 50
    grid = make_grid(wcs_list, [SHAPE] * len(wcs_list))
    x, y = grid.wcs.all_world2pix(*grid.center_deg, 0)
    assert float(x) == pytest.approx((grid.shape_hw[1] - 1) / 2, abs=3)
    assert float(y) == pytest.approx((grid.shape_hw[0] - 1) / 2, abs=3)


def _night(ra, dec, n, seed, step_deg=(0.0, 0.0)):
    """Frames of a panel: dithered, turning, of a scale that is known to 1e-4 only."""
    rng = np.random.default_rng(seed)
    plane = tan_wcs((ra, dec), 1.0, (1, 1))
    made = []
    for i in range(n):
        x, y = np.array(step_deg) + rng.normal(0, 0.02, 2)
        at_ra, at_dec = plane.all_pix2world(x, y, 0)
        place = (float(at_ra), float(at_dec))
        made.append(tan_wcs(place, SCALE * (1 + rng.normal(0, 1e-4)), SHAPE, 12 + 0.2 * i))
    return made


@pytest.mark.parametrize("orientation", ["north_up", "median_pc"])
@pytest.mark.parametrize("mode", ["median", "mean", "min"])
@pytest.mark.parametrize(("ra", "dec"), [(83.8, -5.4), (359.9, 41.3), (10.7, 68.0), (120.0, 89.2)])
def test_more_frames_do_not_move_the_pixels(ra, dec, mode, orientation):
    """Whatever is added later, at the same place or beside it: whole pixels are added at the borders."""
    if orientation == "median_pc" and dec > 60:
        pytest.skip("north turns so fast there that frames of another panel lie another way")
    first = _night(ra, dec, 30, 1)
    options = {"pixelscale_mode": mode, "orientation": orientation}
    before = make_grid(first, [SHAPE] * 30, **options)
    for seed, step in ((2, (0.0, 0.0)), (3, (0.55, 0.0)), (4, (0.0, -1.1)), (5, (0.6, 1.2))):
        after = make_grid(first + _night(ra, dec, 30, seed, step), [SHAPE] * 60, **options)
        assert tuple(after.wcs.wcs.crval) == tuple(before.wcs.wcs.crval)
        np.testing.assert_array_equal(after.wcs.wcs.cdelt, before.wcs.wcs.cdelt)
        np.testing.assert_array_equal(after.wcs.wcs.pc, before.wcs.wcs.pc)
        moved = after.wcs.wcs.crpix - before.wcs.wcs.crpix
        np.testing.assert_array_equal(moved, np.round(moved))
        assert np.all(moved >= 0)
        assert np.all(np.array(after.shape_hw) >= before.shape_hw)


@pytest.mark.parametrize("factor", [1.5, 2.0])
def test_more_frames_do_not_move_finer_pixels(factor):
    first = _night(83.8, -5.4, 10, 1)
    options = {"edge_step_px": edge_step(factor)}
    before = finer_grid(make_grid(first, [SHAPE] * 10, **options), factor)
    for seed in range(6):
        step = (0.3 + 0.01 * seed, -0.3 - 0.007 * seed)
        more = make_grid(first + _night(83.8, -5.4, 10, seed, step), [SHAPE] * 20, **options)
        moved = finer_grid(more, factor).wcs.wcs.crpix - before.wcs.wcs.crpix
        np.testing.assert_array_equal(moved, np.round(moved))


def test_a_grid_is_tangent_near_its_middle():
    """Fixed points are near enough for pixels of nearly one size; very wide mosaics have one near their middle."""
    for spread, most in ((1.0, 2.2), (4.0, 3.0), (20.0, 4.5), (60.0, 12.0)):
        rng = np.random.default_rng(int(spread))
        ra, dec = 200 + rng.uniform(-spread / 2, spread / 2, (2, 40)) / [[np.cos(0.5)], [1]]
        dec = dec - 170
        grid = make_grid([tan_wcs(p, SCALE, SHAPE) for p in zip(ra, dec, strict=True)], [SHAPE] * 40)
        assert separation_deg(*grid.wcs.wcs.crval, *grid.center_deg) < most


def test_north_is_up_also_beside_a_pole():
    """The grid touches the sky at the pole, where north is every direction."""
    for ra in (0.0, 100.0, 200.0, 333.0):
        grid = make_grid([tan_wcs((ra, 89.6), SCALE, SHAPE)], [SHAPE])
        angle = image_geometry(grid.wcs, grid.shape_hw).rotation_deg
        assert abs((angle + 180) % 360 - 180) <= 5.5
    assert make_grid(_frames(60.0), [SHAPE] * 4).rotation_deg == 0


def test_nominal_scale_is_a_round_number():
    for scale, expected in ((2.3689, 2.37), (2.3731, 2.37), (3.994, 3.99), (1.2013, 1.2), (0.4412, 0.442)):
        grid = make_grid([tan_wcs((10, 10), scale / 3600, SHAPE)], [SHAPE])
        assert grid.scale_arcsec == pytest.approx(expected, abs=1e-9)
        assert abs(grid.scale_arcsec / scale - 1) <= 0.0026


def test_median_orientation_folds_by_180_and_saves_area():
    rotations = (35, 215, 34, 216)
    turned = make_grid(_frames(20.0, 0, rotations), [SHAPE] * 4, orientation="median_pc")
    assert turned.rotation_deg == pytest.approx(35, abs=0.01)
    smallest = make_grid(_frames(20.0, 0, rotations), [SHAPE] * 4, orientation="min_area")
    north = make_grid(_frames(20.0, 0, rotations), [SHAPE] * 4)
    assert np.prod(smallest.shape_hw) <= 1.01 * min(np.prod(turned.shape_hw), np.prod(north.shape_hw))


def test_scale_modes_and_factor():
    wcs_list = [tan_wcs((10, 10), s / 3600, SHAPE) for s in (2.0, 3.0, 7.0)]
    for mode, expected in (("min", 2.0), ("median", 3.0), ("mean", 4.0), ("max", 7.0)):
        grid = make_grid(wcs_list, [SHAPE] * 3, pixelscale_mode=mode)
        assert grid.scale_arcsec == pytest.approx(expected, rel=1e-4)
    finer = make_grid(wcs_list, [SHAPE] * 3, scale_factor=2.0)
    assert finer.scale_arcsec == pytest.approx(1.5, rel=1e-4)


def test_errors_name_the_value():
    with pytest.raises(RunFailed):
        make_grid([], [])
    with pytest.raises(SettingsError, match="sideways"):
        make_grid(_frames(0.0), [SHAPE] * 4, orientation="sideways")
    with pytest.raises(SettingsError, match="mode"):
        make_grid(_frames(0.0), [SHAPE] * 4, pixelscale_mode="mode")
    with pytest.raises(SettingsError):
        make_grid(_frames(0.0), [SHAPE] * 4, scale_factor=0)
    far = [tan_wcs((0, 0), SCALE, SHAPE), tan_wcs((150, 0), SCALE, SHAPE)]
    with pytest.raises(RunFailed) as error:
        make_grid(far, [SHAPE] * 2)
    assert error.value.key == "grid_too_wide"


def test_outline_outside_the_canvas_gets_an_empty_box():
    grid = make_grid(_frames(0.0), [SHAPE] * 4)
    away = footprint(tan_wcs((20, 0), SCALE, SHAPE), SHAPE)
    box = footprint_boxes(grid, [away])[0]
    assert box[0] == box[1] or box[2] == box[3]


def test_stray_pointings_are_named_with_their_cost():
    ra = np.concatenate([np.full(50, 10.0), [40.0], [340.0]])
    dec = np.zeros(52)
    outliers = canvas_outliers(ra, dec, field_deg=1.5, scale_deg=SCALE)
    # Two strays on opposite sides do not hide each other.
    assert sorted(int(o.frames[0]) for o in outliers) == [50, 51]
    for o in outliers:
        assert o.separation_deg == pytest.approx(30.0)
        # 30 degrees of empty canvas, 1.5 degrees high.
        assert o.extra_pixels == pytest.approx(30 * 1.5 / SCALE**2, rel=0.01)
        assert o.extra_bytes == o.extra_pixels * BYTES_PER_PIXEL
    far = canvas_outliers([10, 10, 190], [0, 0, 1], field_deg=1.5, scale_deg=SCALE)
    assert np.isfinite(far[0].growth)


def test_a_proper_wide_mosaic_has_no_outliers():
    rng = np.random.default_rng(0)
    ra, dec = np.meshgrid(np.arange(0, 5, 0.6), np.arange(0, 4, 1.1))
    ra, dec = np.repeat(ra.ravel(), 4), np.repeat(dec.ravel(), 4)
    ra = (ra + rng.normal(0, 0.02, len(ra)) - 2) % 360
    assert canvas_outliers(ra, dec, field_deg=1.4, scale_deg=SCALE) == []
    # A second field next to it is worth its canvas.
    assert canvas_outliers([10, 10, 13], [0, 0, 0], field_deg=1.4, scale_deg=SCALE, max_growth=3) == []
