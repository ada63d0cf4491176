from __future__ import annotations

import numpy as np
import pytest

from zemosaic_core.picture_histogram import picture_histogram
from zemosaic_core.stretch import (
    StretchMove,
    auto_stretch_params,
    preview_rgba,
    stretch_auto_asifits_like,
)


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


def star_field(tint=(0.6, 1.0, 0.5), shape=(240, 300), nebula=(0.0, 0.0, 0.0), noise=20.0, stars=40):
    """Uneven stars of a camera that sees green best, and a nebula of any colour."""
    rng = np.random.default_rng(9)
    yy, xx = np.mgrid[: shape[0], : shape[1]]
    image = np.array([820.0, 920.0, 750.0])[:, None, None] + rng.normal(0, noise, (3, *shape))
    image += np.array(nebula)[:, None, None] * np.exp(-((yy - 120) ** 2 + (xx - 150) ** 2) / 4000.0)
    for _ in range(stars):
        y, x = rng.uniform(8, shape[0] - 8), rng.uniform(8, shape[1] - 8)
        colour = np.array(tint) * rng.uniform(0.8, 1.2, 3) * rng.uniform(2e3, 2e4)
        image += colour[:, None, None] * np.exp(-((yy - y) ** 2 + (xx - x) ** 2) / 4.0)
    return image.astype(np.float32)


def test_white_balance_follows_the_stars_and_not_a_red_nebula():
    params = auto_stretch_params(star_field(nebula=(600.0, 60.0, 90.0)))
    balanced = np.array(params.gain) * (0.6, 1.0, 0.5)
    assert np.ptp(balanced) < 0.08 * balanced.mean()
    rgba = preview_rgba(star_field(nebula=(600.0, 60.0, 90.0)))
    assert rgba[120, 150, 0] > rgba[120, 150, 1] + 40
    assert auto_stretch_params(star_field(), apply_wb=False).gain == (1.0, 1.0, 1.0)


def test_no_pixel_is_greener_than_its_other_colours_allow():
    rgba = preview_rgba(star_field(nebula=(100.0, 400.0, 100.0))).astype(int)
    assert (rgba[..., 1] <= np.maximum(rgba[..., 0], rgba[..., 2]) + 1).all()


def sky_grey(image, **options) -> float:
    return float(np.median(preview_rgba(image, **options)[..., 0]))


def test_options_do_what_they_say():
    image = star_field()
    usual = sky_grey(image)
    assert 22 <= usual <= 42
    assert sky_grey(image, p_low=10.0) < usual - 4
    assert sky_grey(image, p_low=50.0) <= 3
    assert sky_grey(image, asinh_a=40.0) > usual + 8
    assert sky_grey(image, asinh_a=3.0) < usual - 8
    burnt = [(preview_rgba(image, p_high=p)[..., :3].min(axis=-1) > 245).mean() for p in (99.9, 80.0)]
    assert burnt[1] > 2 * burnt[0]


def test_faint_light_is_lifted_and_bright_cores_are_not_burnt():
    yy, xx = np.mgrid[:300, :400]
    image = star_field(shape=(300, 400), stars=20)
    image += (2500.0 * np.exp(-np.hypot(yy - 150, xx - 200) / 12.0)).astype(np.float32)
    halo = 20.0 * np.exp(-((yy - 80) ** 2 + (xx - 90) ** 2) / 500.0)  # as faint as the noise of a pixel
    rgba = preview_rgba(image + halo.astype(np.float32))
    assert np.median(rgba[75:86, 85:96, 0]) > sky_grey(image) + 8
    core = rgba[146:155, 196:205, :3]
    assert (core == 255).all(axis=-1).mean() < 0.2
    assert core.min() > 130


def test_galaxy_that_fills_the_frame_leaves_its_darkest_part_dark():
    yy, xx = np.mgrid[:300, :400]
    image = star_field(shape=(300, 400), stars=20)
    image += (3000.0 * np.exp(-np.hypot(yy - 150, xx - 200) / 90.0)).astype(np.float32)
    rgba = preview_rgba(image)[..., :3].mean(axis=-1)
    assert np.median(rgba[:20, :20]) < 60
    assert (rgba > 250).mean() < 0.02
    assert np.median(rgba[140:160, 190:210]) > 150


def test_noise_of_thinly_covered_rims_is_calmed():
    image = star_field(stars=0)
    image[:, :, 240:] += np.random.default_rng(2).normal(0, 80, (3, 240, 60)).astype(np.float32)
    image[:, :, 290:] = np.nan
    calm, raw = (preview_rgba(image, calm_noise=c)[..., :3].astype(float) for c in (True, False))
    for columns in (slice(0, 230), slice(250, 288)):
        assert calm[:, columns].std() < 0.4 * raw[:, columns].std()
    assert np.abs(calm[:, 250:288].mean() - calm[:, :230].mean()) < 6
    assert (preview_rgba(image)[:, 290:] == 0).all()


@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 1, 40), (1, 2, 3), (3, 30, 30)])
def test_tiny_images(shape):
    image = np.random.default_rng(0).normal(800, 10, shape).astype(np.float32)
    rgba = preview_rgba(image)
    assert rgba.shape == (*shape[1:], 4)
    assert (rgba[..., 3] == 255).all()
    assert rgba[..., :3].max() < 130


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


def test_each_slider_moves_what_it_says_and_nothing_else():
    image = star_field(nebula=(100.0, 60.0, 90.0))
    usual = auto_stretch_params(image)

    def ranges(params):
        return params.pedestal, params.asinh_a * params.span, params.span - params.pedestal, params.saturation

    for number, name in enumerate(("black", "mid", "white", "saturation")):
        moved = auto_stretch_params(image, move=StretchMove(**{name: 0.5}))
        changed = [not np.isclose(a, b) for a, b in zip(ranges(usual), ranges(moved), strict=True)]
        assert changed == [k == number for k in range(4)], name
    assert auto_stretch_params(image, move=StretchMove()) == usual
    grey = preview_rgba(image, params=StretchMove(saturation=-1.0).of(usual))
    assert np.ptp(grey[..., :3].astype(int), axis=-1).max() <= 1
    assert sky_grey(image, params=StretchMove(black=1.0).of(usual)) < sky_grey(image, params=usual) - 8
    assert sky_grey(image, params=StretchMove(mid=0.5).of(usual)) > sky_grey(image, params=usual) + 8
    with pytest.raises(ValueError, match="white"):
        StretchMove(white=1.2).of(usual)


def test_histogram_counts_what_is_known():
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[0] = (0, 0, 0, 255)
    rgba[1, 0] = (255, 255, 255, 255)
    found = picture_histogram(rgba)
    assert found.counts[:, 0].tolist() == [3, 3, 3]
    assert found.counts.sum() == 12
    assert (found.black, found.white) == (0.75, 0.25)
    assert picture_histogram(rgba[1:, 1:]).counts.sum() == 0


def test_the_picture_does_not_depend_on_the_number_of_threads():
    rng = np.random.default_rng(7)
    yy, xx = np.mgrid[:300, :280]
    image = rng.normal(100, 5, (3, *yy.shape))
    for x, y, height in ((60, 50, 900), (200, 120, 300), (140, 240, 4000)):
        image += height * np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / 8)
    image[:, :40, 100:] = np.nan
    image = image.astype(np.float32)
    clipped = image[1] > 3000
    alone = preview_rgba(image, calm_noise=True, clipped=clipped)
    assert np.array_equal(preview_rgba(image, calm_noise=True, clipped=clipped, threads=3), alone)
