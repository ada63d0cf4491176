from __future__ import annotations

import numpy as np
import pytest

from zemosaic_core.stretch import auto_stretch_params, preview_rgba, stretch_auto_asifits_like


def scene(noise=20.0, shape=(160, 200)) -> np.ndarray:
    """Tinted sky, a smooth nebula, a red and a blue star, a missing corner."""
    rng = np.random.default_rng(6)
    yy, xx = np.mgrid[: shape[0], : shape[1]]
    image = np.array([400.0, 560.0, 350.0])[:, None, None] + rng.normal(0, noise, (3, *shape))
    image += 250.0 * np.exp(-((yy - 90) ** 2 + (xx - 120) ** 2) / 600.0)
    for y, x, colour in ((40, 60, (1.6, 1.0, 0.5)), (70, 40, (0.6, 1.0, 1.7))):
        star = 6000.0 * np.exp(-((yy - y) ** 2 + (xx - x) ** 2) / 5.0)
        image += np.array(colour)[:, None, None] * star
    image[:, :30, :25] = np.nan
    return image.astype(np.float32)


def test_sky_is_neutral_dark_grey_and_missing_is_transparent():
    image = scene()
    rgba = preview_rgba(image)
    assert rgba.shape == (160, 200, 4)
    assert rgba.dtype == np.uint8
    np.testing.assert_array_equal(rgba[..., 3] == 0, np.isnan(image[0]))
    sky = np.median(rgba[100:, :60, :3].reshape(-1, 3), axis=0)
    assert (sky > 15).all()
    assert (sky < 50).all()
    assert np.ptp(sky) <= 3


def test_almost_no_pixel_is_clipped_to_black():
    rgba = preview_rgba(scene())
    seen = rgba[rgba[..., 3] > 0][:, :3]
    assert (seen == 0).mean() < 0.003


def test_stars_keep_their_colours_and_do_not_drown():
    rgba = preview_rgba(scene()).astype(int)
    red, blue = rgba[40, 60], rgba[70, 40]
    assert red[0] > red[2] + 20
    assert blue[2] > blue[0] + 20
    assert max(red[:3]) > 200


def test_missing_rows_change_nothing_elsewhere():
    whole = scene()
    whole[:, :30, :25] = 400.0
    holed = whole.copy()
    holed[:, -40:] = np.nan
    a, b = preview_rgba(whole), preview_rgba(holed)
    assert b[:120].max() > 100
    assert np.abs(a[:120, :, :3].astype(int) - b[:120, :, :3]).mean() < 4


def test_signal_brightens_monotonically():
    image = np.linspace(0, 5000, 400, dtype=np.float32).reshape(1, 1, 400).repeat(3, axis=0)
    image = np.concatenate(
        [np.random.default_rng(0).normal(0, 5, (3, 60, 400)).astype(np.float32), image], axis=1
    )
    params = auto_stretch_params(image)
    row = preview_rgba(image, params=params)[60, :, 0].astype(int)
    assert (np.diff(row) >= 0).all()


@pytest.mark.parametrize("shape", [(1, 50, 60), (50, 60)])
def test_mono_is_grey(shape):
    image = np.random.default_rng(0).normal(100, 5, shape).astype(np.float32)
    rgba = preview_rgba(image)
    np.testing.assert_array_equal(rgba[..., 0], rgba[..., 1])
    np.testing.assert_array_equal(rgba[..., 0], rgba[..., 2])


def test_large_images_are_averaged_down_without_losing_pixels_next_to_holes():
    image = scene()
    rgba = preview_rgba(image, max_dim=50)
    assert rgba.shape == (40, 50, 4)
    assert (rgba[..., 3] == 0).sum() == 7 * 6  # only blocks with nothing in them
    odd = preview_rgba(image[:, :157, :199], max_dim=50)
    assert odd.shape == (40, 50, 4)


def test_images_with_nothing_to_show():
    rgba = preview_rgba(np.full((3, 10, 12), np.nan, dtype=np.float32))
    assert (rgba == 0).all()
    flat = preview_rgba(np.full((3, 10, 12), 7.0, dtype=np.float32))
    assert (flat[..., 3] == 255).all()
    assert (flat[..., 0] == flat[..., 2]).all()
    assert 10 < flat[0, 0, 0] < 60


def test_public_stretch_is_the_documented_formula():
    image = np.random.default_rng(1).uniform(100, 900, (40, 30, 3))
    result = stretch_auto_asifits_like(image, 1.0, 99.0, 0.02, apply_wb=False)
    assert result.dtype == np.float32
    for c in range(3):
        low, high = np.percentile(image[..., c].astype(np.float32), (1.0, 99.0))
        x = np.clip((image[..., c] - low) / (high - low), 0, 1)
        np.testing.assert_allclose(result[..., c], np.arcsinh(x / 0.02) / np.arcsinh(50.0), atol=1e-5)


def test_public_stretch_is_not_black_with_missing_pixels():
    image = np.random.default_rng(1).uniform(100, 900, (40, 30, 3)).astype(np.float32)
    image[:5] = np.nan
    result = stretch_auto_asifits_like(image)
    assert np.isnan(result[:5]).all()
    assert np.nanmean(result) > 0.3
    flat = stretch_auto_asifits_like(np.full((5, 5), 3.0))
    assert flat.shape == (5, 5)
    assert (flat == 0).all()


def test_white_balance_agrees_the_means():
    rng = np.random.default_rng(1)
    image = rng.gamma(2.0, 100.0, (60, 60, 3)) ** np.array([1.0, 1.1, 0.9])
    means = stretch_auto_asifits_like(image).mean(axis=(0, 1))
    assert np.ptp(means) < 0.03


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="percentiles"):
        stretch_auto_asifits_like(np.zeros((2, 2, 3)), 50.0, 40.0)
    with pytest.raises(ValueError, match="asinh_a"):
        auto_stretch_params(np.zeros((3, 2, 2)), asinh_a=0.0)
    with pytest.raises(ValueError, match="shape"):
        preview_rgba(np.zeros((2, 5, 5)))
