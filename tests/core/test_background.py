from __future__ import annotations

import numpy as np
import pytest

from zemosaic_core.background import (
    estimate_background_map,
    expand_mesh_row,
    sky_and_noise_mesh,
    sky_mesh,
    sky_mesh_and_error,
    sky_statistics,
)
from zemosaic_core.synthetic_sky import FrameSetup, make_sky, render_frame, tan_cards


def plain_cell(values: np.ndarray) -> float:
    """Slow twin of one mesh cell with at most 2048 pixels."""
    finite = np.sort(values[np.isfinite(values)].astype(np.float64))
    if finite.size < max(4, 0.3 * values.size):
        return np.nan
    middle = np.median(finite)
    sigma = middle - finite[int(0.1587 * (finite.size - 1))]
    kept = finite
    for _ in range(10):
        new = finite[(finite >= middle - 2.5 * sigma) & (finite <= middle + 2.5 * sigma)]
        if new.size == kept.size or new.size < 4:
            break
        kept = new
        middle = np.median(kept)
        sigma = np.sqrt(((kept - middle) ** 2).sum() / (kept.size - 1)) * 1.0476
    if kept.size < 0.3 * values.size:
        return np.nan
    quarter = kept.size // 4
    return kept[quarter : kept.size - quarter].mean()


def test_mesh_agrees_with_plain_numpy():
    rng = np.random.default_rng(4)
    planes = rng.normal(500.0, 30.0, (2, 70, 100)).astype(np.float32)
    planes[rng.random(planes.shape) < 0.05] += 900.0
    planes[rng.random(planes.shape) < 0.1] = np.nan
    mesh = sky_mesh(planes, 32)
    assert mesh.shape == (2, 3, 4)
    assert mesh.dtype == np.float32
    for c, j, i in np.ndindex(mesh.shape):
        cell = planes[c, 32 * j : 32 * (j + 1), 32 * i : 32 * (i + 1)]
        assert mesh[c, j, i] == pytest.approx(plain_cell(cell), abs=0.02)


def test_mesh_follows_a_gradient_under_stars():
    cards = tan_cards(10.0, 41.0, shape_hw=(512, 512))
    sky = make_sky((10.0, 41.0), 0.5, seed=2, stars_per_deg2=150.0)
    setup = FrameSetup(cards, shape_hw=(512, 512), sky_shape=(0.2, -0.1, 0.0, 0.0, 0.0))
    green = render_frame(sky, setup)[0::2, 0::2].astype(np.float32)
    mesh = sky_mesh(green, 32)[0]
    t, u = np.meshgrid(*(2 * (2 * (np.arange(8) * 32 + 15.5)) / 511 - 1 for _ in range(2)), indexing="ij")
    truth = 440.0 + 430.0 * (1 + 0.2 * u - 0.1 * t)
    # 90 ADU of noise over 1024 px leave about 3 ADU; faint stars add a little.
    assert np.abs(mesh - truth).max() < 16.0
    assert abs((mesh - truth).mean()) < 3.0


def test_mesh_cell_without_enough_sky_is_nan():
    plane = np.full((64, 64), 100.0, dtype=np.float32)
    plane[:32, :26] = np.nan
    mesh = sky_mesh(plane, 32)
    assert np.isnan(mesh[0, 0, 0])
    np.testing.assert_allclose(mesh[0].ravel()[1:], 100.0)


def test_the_error_of_a_mesh_cell_is_its_scatter_from_sky_to_sky():
    rng = np.random.default_rng(8)
    skies = rng.normal(500.0, 30.0, (40, 96, 80)).astype(np.float32)
    level, error = sky_mesh_and_error(skies, 32)
    assert error.dtype == np.float32
    # The last column of cells holds half as many pixels.
    for cells in (np.s_[:, :, :2], np.s_[:, :, 2:]):
        assert error[cells].mean() == pytest.approx((level[cells] - 500.0).std(), rel=0.1)
    holed = skies[0].copy()
    holed[:32, :32] = np.nan
    level, error = sky_mesh_and_error(holed, 32)
    np.testing.assert_array_equal(np.isnan(error), np.isnan(level))


def test_mesh_refuses_nonsense():
    with pytest.raises(ValueError, match="cell_px"):
        sky_mesh(np.zeros((8, 8)), 2)
    with pytest.raises(ValueError, match="shape"):
        sky_mesh(np.zeros(8), 8)


def test_sky_of_an_integer_plane():
    frame = np.random.default_rng(0).normal(900.0, 60.0, (400, 400)).round().astype(np.uint16)
    frame[100:110, 100:110] = 60000
    sky, sigma = sky_statistics(frame)
    assert sky == pytest.approx(900.0, abs=1.0)
    assert sigma == pytest.approx(60.0, rel=0.03)
    assert np.isnan(sky_statistics(np.full((5, 5), np.nan))).all()


@pytest.mark.parametrize("method", ["gaussian", "mesh"])
def test_background_map_is_smooth_and_knows_no_holes(method):
    yy, xx = np.mgrid[:200, :160].astype(np.float32)
    truth = 300.0 + 0.5 * xx - 0.2 * yy
    image = truth.copy()
    image[40:60, 50:80] = np.nan
    background = estimate_background_map(image, method=method, sigma=12.0)
    assert background.dtype == np.float32
    assert np.isfinite(background).all()
    assert np.abs(background - truth)[30:-30, 30:-30].max() < 4.0


def test_background_map_works_per_channel_and_checks_arguments():
    image = np.stack([np.full((50, 60), 10.0), np.full((50, 60), 20.0)], axis=-1)
    np.testing.assert_allclose(estimate_background_map(image, sigma=5.0)[7, 7], (10.0, 20.0), rtol=1e-5)
    with pytest.raises(ValueError, match="method"):
        estimate_background_map(image[..., 0], method="magic")
    with pytest.raises(ValueError, match="sigma"):
        estimate_background_map(image, sigma=0.0)


def test_sky_and_noise_mesh_has_no_gaps_and_knows_the_noise():
    rng = np.random.default_rng(8)
    yy, xx = np.mgrid[:500, :700]
    plane = (100.0 + 0.02 * xx + np.where(yy < 250, 10.0, 20.0) * rng.normal(size=xx.shape)).astype(
        np.float32
    )
    plane[:200, :200] = np.nan
    sky, noise = sky_and_noise_mesh(plane, 64)
    assert sky.shape == noise.shape == (8, 11)
    assert np.isfinite(sky).all()
    np.testing.assert_allclose(noise[1, 5:], 10.0, rtol=0.05)
    np.testing.assert_allclose(noise[6, 1:], 20.0, rtol=0.05)
    centres = (np.arange(11) + 0.5) * 64 - 0.5
    np.testing.assert_allclose(sky[6, 1:-1], 100 + 0.02 * centres[1:-1], atol=1.2)
    empty = sky_and_noise_mesh(np.full((100, 90), np.nan, np.float32), 32)
    assert all(np.isnan(mesh).all() for mesh in empty)


@pytest.mark.parametrize(("shape", "cell"), [((150, 203), 32), ((64, 64), 64), ((30, 100), 33), ((7, 5), 64)])
def test_mesh_rows_are_linear_between_cell_centres_and_go_on_at_the_borders(shape, cell):
    rng = np.random.default_rng(1)
    mesh = rng.normal(50, 9, (-(-shape[0] // cell), -(-shape[1] // cell))).astype(np.float32)

    def weights(size, count):
        position = (np.arange(size) + 0.5) / cell - 0.5
        first = np.clip(np.floor(position).astype(int), 0, max(count - 2, 0))
        return first, np.minimum(first + 1, count - 1), position - first

    row = np.empty(shape[1], np.float32)
    j, below, fy = weights(shape[0], mesh.shape[0])
    # Cells of an odd size have their centre on a pixel, where either side gives the same value.
    i, right, fx = weights(shape[1], mesh.shape[1])
    for y in range(0, shape[0], 7):
        upper = mesh[j[y], i] * (1 - fx) + mesh[j[y], right] * fx
        lower = mesh[below[y], i] * (1 - fx) + mesh[below[y], right] * fx
        expand_mesh_row(mesh, cell, y, row)
        np.testing.assert_allclose(row, upper * (1 - fy[y]) + lower * fy[y], rtol=1e-4, atol=1e-3)
