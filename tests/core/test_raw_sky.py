from __future__ import annotations

import numpy as np
import pytest
import twins_measure as twins

from zemosaic_core.raw_sky import mesh_at, sky_cells
from zemosaic_core.synthetic_sky import FrameSetup, make_sky, render_frame, tan_cards


def noisy(level=900.0, sigma=60.0, shape=(300, 260), seed=0, unit=1):
    values = np.random.default_rng(seed).normal(level, sigma, shape)
    return (np.clip(np.rint(values / unit) * unit, 0, 65535)).astype(np.uint16)


def test_cells_agree_with_plain_numpy():
    plane = noisy()
    rng = np.random.default_rng(1)
    plane[rng.random(plane.shape) < 0.04] += 2500
    plane[:, 130:] += 300
    plane[64:128, 64:128] += (40 * np.arange(64)).astype(np.uint16)
    cells = sky_cells(plane)
    assert cells.level.shape == (4, 5, 5)
    # The last column is 4 px wide.
    assert np.isnan(cells.level[..., 4]).all()
    for p, j, i in np.ndindex(4, 5, 4):
        level, spread, error, steps = twins.cell_sky(plane, 64, j, i, p)
        # The twin sorts values, the cells count them in bins of a sixteenth of the noise.
        assert cells.level[p, j, i] == pytest.approx(level, abs=0.06 * spread)
        assert cells.spread[p, j, i] == pytest.approx(spread, rel=0.05)
        assert cells.error[p, j, i] == pytest.approx(error, rel=0.08)
        assert cells.steps[p, j, i] == pytest.approx(steps, rel=0.05)


@pytest.mark.parametrize(("sigma", "unit"), [(2.0, 1), (10.0, 1), (40.0, 16), (90.0, 1), (400.0, 1)])
def test_level_and_noise_are_right_whatever_the_steps_of_the_camera(sigma, unit):
    cells = sky_cells(noisy(4000.0, sigma, (512, 512), unit=unit))
    truth = np.hypot(sigma, unit / np.sqrt(12))
    assert np.nanmean(cells.level) == pytest.approx(4000.0, abs=0.01 * truth)
    np.testing.assert_allclose(cells.frame_noise(), truth, rtol=0.03)
    assert cells.noise.mean() == pytest.approx(truth, rel=0.03)
    assert np.nanmean(cells.error) == pytest.approx(np.nanstd(cells.level), rel=0.1 if unit == 1 else 0.25)


def test_noise_is_free_of_gradients_and_the_level_is_not():
    cards = tan_cards(10.0, 41.0, shape_hw=(512, 512))
    sky = make_sky((10.0, 41.0), 0.5, seed=2, stars_per_deg2=150.0)
    flat = sky_cells(render_frame(sky, FrameSetup(cards, shape_hw=(512, 512))))
    slope = (0.6, -0.4, 0.0, 0.0, 0.0)
    steep = sky_cells(render_frame(sky, FrameSetup(cards, shape_hw=(512, 512), sky_shape=slope)))
    np.testing.assert_allclose(steep.frame_noise(), flat.frame_noise(), rtol=0.05)
    # Photons of the sky, read noise and the steps of the converter.
    green = np.sqrt(14.3 * 430.0 + 14.3**2 + 3.2**2 / 12)
    np.testing.assert_allclose(flat.frame_noise()[[0, 3]], green, rtol=0.03)
    u, t = np.meshgrid(*(2 * (np.arange(8) * 64 + 31.5) / 511 - 1 for _ in range(2)))
    truth = 440.0 + 430.0 * (1 + slope[0] * u + slope[1] * t)
    assert abs((steep.level[0] - truth).mean()) < 3.0
    assert np.abs(steep.level[0] - truth).max() < 16.0


def test_a_nebula_across_the_cell_does_not_lift_the_noise():
    y, x = np.mgrid[0:256, 0:256]
    plane = noisy(900, 30, (256, 256)).astype(float) + 25.0 * np.hypot(y - 128, x - 128)
    cells = sky_cells(plane.astype(np.uint16))
    assert np.nanmin(cells.spread) > 100
    np.testing.assert_allclose(cells.frame_noise(), np.hypot(30, 0), rtol=0.5)


def test_missing_pixels_are_not_sky():
    plane, missing = noisy(), np.zeros((300, 260), bool)
    missing[:150, :100] = True
    missing[200:210, 120:180] = True
    holed = np.where(missing, 0, plane).astype(np.uint16)
    cells = sky_cells(holed, missing=missing)
    whole = sky_cells(plane)
    assert np.isnan(cells.level[:, :2, 0]).all()
    # Of cell (2, 0) two thirds are left.
    for j, i in ((2, 0), (0, 1), (3, 2)):
        for p in range(4):
            level, spread, _error, _steps = twins.cell_sky(holed, 64, j, i, p, missing)
            assert cells.level[p, j, i] == pytest.approx(level, abs=0.06 * spread)
    # What bins hold on average is learned from the pixels that are there.
    np.testing.assert_allclose(cells.level[:, 4:], whole.level[:, 4:], atol=0.05)
    assert np.isfinite(cells.sky).all()


def test_a_cell_of_one_value_or_none_is_no_error():
    cells = sky_cells(np.full((64, 64), 700, np.uint16))
    np.testing.assert_allclose(cells.level, 700.0)
    nothing = sky_cells(np.zeros((64, 64), np.uint16), missing=np.ones((64, 64), bool))
    assert np.isnan(nothing.level).all()
    assert np.isnan(nothing.frame_noise()).all()


def test_what_is_no_raw_plane_is_refused():
    with pytest.raises(ValueError, match="uint16"):
        sky_cells(np.zeros((64, 64), np.float32))
    with pytest.raises(ValueError, match="16 x 16"):
        sky_cells(np.zeros((8, 64), np.uint16))
    with pytest.raises(ValueError, match="cell_px"):
        sky_cells(np.zeros((64, 64), np.uint16), cell_px=31)


def test_a_mesh_between_its_cells_is_linear():
    rng = np.random.default_rng(3)
    mesh = rng.uniform(0, 100, (4, 3)).astype(np.float32)
    x, y = rng.uniform(-5, 200, 40), rng.uniform(-5, 260, 40)
    out = np.empty(40)
    mesh_at(mesh, 64, x, y, out)
    np.testing.assert_allclose(
        out, [twins.mesh_value(mesh, 64, b, a) for a, b in zip(x, y, strict=True)], rtol=1e-5
    )
