from __future__ import annotations

import itertools

import numpy as np
import pytest

import zemosaic_align_stack as door
from zemosaic_core.coadd import coadd_block
from zemosaic_core.errors import SettingsError
from zemosaic_core.image_coadd import ArrayPixels
from zemosaic_core.pixel_map import shift_pixel_map
from zemosaic_core.rejection import combine_stack
from zemosaic_core.sources import CoaddSource, CombineRule


def make_frames(n=12, shape=(20, 30, 3), seed=0, satellites=True):
    rng = np.random.default_rng(seed)
    frames = [rng.normal(1000, 30, shape).astype(np.float32) for _ in range(n)]
    if satellites:
        for k in range(0, n, 4):
            frames[k][k % shape[0]] += 4000
    frames[1][0, 0] = np.nan
    return frames


def star_field(shape, shift=(0.0, 0.0), angle=0.0, seed=3, n=45, noise=5.0, background=500.0):
    rng = np.random.default_rng(seed)
    height, width = shape
    image = np.zeros(shape)
    x = rng.uniform(-30, width + 30, n)
    y = rng.uniform(-30, height + 30, n)
    flux = 10 ** rng.uniform(2.8, 4, n)
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    px = c * (x - width / 2) - s * (y - height / 2) + width / 2 + shift[0]
    py = s * (x - width / 2) + c * (y - height / 2) + height / 2 + shift[1]
    gy, gx = np.mgrid[0:height, 0:width]
    for sx, sy, f in zip(px, py, flux, strict=True):
        image += f * np.exp(-((gx - sx) ** 2 + (gy - sy) ** 2) / (2 * 1.3**2))
    image += background + np.random.default_rng(int(1e3 * abs(shift[0])) + 7).normal(0, noise, shape)
    return np.repeat(image[..., None], 3, axis=2).astype(np.float32)


@pytest.mark.parametrize(
    ("function", "rule", "options"),
    [
        ("stack_winsorized_sigma_clip", CombineRule("winsorized_sigma_clip", 2.5, 2.5, (0.1, 0.1)),
         {"kappa": 2.5, "winsor_limits": (0.1, 0.1), "winsor_max_workers": 2, "apply_rewinsor": True}),
        ("stack_kappa_sigma_clip", CombineRule("kappa_sigma", 2.0, 2.5), {"sigma_low": 2.0, "sigma_high": 2.5}),
        ("stack_linear_fit_clip", CombineRule("linear_fit_clip", 4.0, 4.0), {"sigma": 4.0}),
    ],
)  # fmt: skip
def test_named_stackers_are_the_engine(function, rule, options):
    frames = make_frames()
    image, percent = getattr(door, function)(frames, **options)
    stack = np.moveaxis(np.array(frames), -1, 1)
    expected = combine_stack(stack, rule)
    assert np.array_equal(image, np.moveaxis(expected.image, 0, -1))
    assert 0 < percent < 20
    gray, _ = getattr(door, function)([f[..., 0] for f in frames], **options)
    assert np.array_equal(gray, image[..., 0])
    weighted, _ = getattr(door, function)(frames, weights=np.linspace(0.1, 1, 12), **options)
    assert not np.array_equal(weighted, image)


def test_weights_of_every_form_are_applied():
    frames = [np.full((4, 5, 3), v, np.float32) for v in (0.0, 10.0)]
    for weights, expected in (
        (np.array([1.0, 3.0]), 7.5),
        (np.full((2, 1, 1, 1), 2.0), 5.0),
        (np.array([[[[1.0, 1.0, 1.0]]], [[[3.0, 3.0, 3.0]]]]), 7.5),
        (np.stack([np.zeros((4, 5)), np.ones((4, 5))]), 10.0),
    ):
        image, _ = door.stack_kappa_sigma_clip(frames, weights=weights)
        np.testing.assert_allclose(image, expected)
    with pytest.raises(ValueError, match=r"weights of shape \(3,\)"):
        door.stack_kappa_sigma_clip(frames, weights=np.ones(3))
    with pytest.raises(TypeError, match="kapa"):
        door.stack_winsorized_sigma_clip(frames, kapa=3)


def test_noisy_frames_weigh_less():
    rng = np.random.default_rng(0)
    frames = [rng.normal(1000, s, (60, 60)).astype(np.float32) for s in (5, 5, 60)]
    plain, _ = door.stack_kappa_sigma_clip(frames)
    weighted, _ = door.stack_kappa_sigma_clip(frames, weight_method="noise_variance")
    assert weighted.std() < 0.3 * plain.std()


@pytest.mark.parametrize("method", ["linear_fit", "sky_mean"])
def test_normalisation_brings_frames_to_the_first_one(method):
    base = star_field((120, 140), noise=3.0)
    frames = [base, base + 250, base * 1.3 - 40 if method == "linear_fit" else base - 40]
    out = door.stack_aligned_images(frames, normalize_method=method, rejection_algorithm="none")
    assert np.abs(np.median(out) - np.median(base)) < 3
    bright = base > 1500
    assert np.median(out[bright] / base[bright]) == pytest.approx(1, abs=0.02)
    with pytest.raises(ValueError, match="allowed"):
        door.stack_aligned_images(frames, normalize_method="magic")


def test_stack_of_aligned_images_rejects_weighs_and_keeps_gaps():
    frames = make_frames()
    for frame in frames:
        frame[5, 6] = np.nan
    out = door.stack_aligned_images([None, *frames], "none", "none", "winsorized_sigma_clip")
    assert np.isnan(out[5, 6]).all()
    assert np.isfinite(out[0, 0]).all()
    assert abs(np.nanmean(out) - 1000) < 5
    median = door.stack_aligned_images(frames, rejection_algorithm="none", final_combine_method="median")
    seen = np.isfinite(median)
    np.testing.assert_allclose(median[seen], np.nanmedian(np.array(frames)[:, seen], axis=0), rtol=1e-6)
    radial = door.stack_aligned_images(frames, apply_radial_weight=True)
    assert np.isfinite(radial[0, 0]).all()
    lifted = door.stack_aligned_images(frames, minimum_signal_adu_target=2000.0)
    assert np.nanmin(lifted) == pytest.approx(2000, abs=0.01)
    with pytest.raises(ValueError, match="no image"):
        door.stack_aligned_images([None, None])
    with pytest.raises(ValueError, match="one shape"):
        door.stack_aligned_images([np.ones((3, 3)), np.ones((3, 4))])
    with pytest.raises(SettingsError):
        door.stack_aligned_images(frames, weighting_method="luck")


def test_group_is_aligned_on_its_stars():
    shape = (200, 240)
    frames = [star_field(shape), star_field(shape, (6.4, -3.7), 4.0), star_field(shape, (-11.2, 5.1), 175.0)]
    empty = np.full((*shape, 3), 500.0, np.float32) + np.random.default_rng(0).normal(0, 5, (*shape, 3))
    said = []
    aligned, failed = door.align_images_in_group(
        [*frames, empty.astype(np.float32)], 0, progress_callback=lambda *a, **k: said.append(a[0])
    )
    assert failed == [3]
    assert aligned[3] is None
    assert "align_image_failed" in said
    assert np.array_equal(aligned[0], frames[0])
    for image in aligned[1:3]:
        assert image.shape == frames[0].shape
        assert np.isnan(image).any()
        difference = (image - frames[0])[10:-10, 10:-10]
        assert np.nanstd(difference) < 0.04 * frames[0].std() + 12
    filled, _ = door.align_images_in_group(frames[:2], propagate_mask=False)
    assert np.isfinite(filled[1]).all()
    with pytest.raises(ValueError, match="reference"):
        door.align_images_in_group([], 0)


def test_medians_of_the_channels_are_made_equal():
    image = np.random.default_rng(0).normal((100, 200, 400), 5, (40, 50, 3)).astype(np.float32)
    image[0] = np.nan
    red, green, blue, target = door.equalize_rgb_medians_inplace(image)
    np.testing.assert_allclose(np.nanmedian(image, axis=(0, 1)), target, rtol=1e-5)
    assert green == pytest.approx(1)
    assert red == pytest.approx(2, rel=0.02)
    assert blue == pytest.approx(0.5, rel=0.02)
    dark = np.zeros((4, 4, 3), np.float32)
    assert door.equalize_rgb_medians_inplace(dark)[:3] == (1.0, 1.0, 1.0)
    clipped = np.random.default_rng(0).normal((100, 200, 400), 5, (40, 50, 3)).astype(np.float32)
    assert door.equalize_rgb_medians_inplace(clipped, gain_clip=(0.95, 1.05))[0] == 1.05
    with pytest.raises(ValueError, match="three channels"):
        door.equalize_rgb_medians_inplace(np.zeros((4, 4), np.float32))


def test_row_chunks_cover_the_rows_within_the_limit():
    chunks = list(door._iter_row_chunks(1000, 30, 2000, 4, 10 << 20))
    assert chunks[0].start == 0
    assert chunks[-1].stop == 1000
    assert all(a.stop == b.start for a, b in itertools.pairwise(chunks))
    assert max(c.stop - c.start for c in chunks) * 30 * 2000 * 4 <= 10 << 20
    assert list(door._iter_row_chunks(3, 1000, 1000, 4, 1)) == [slice(0, 1), slice(1, 2), slice(2, 3)]


def test_a_group_in_memory_equals_its_blocks():
    rng = np.random.default_rng(0)
    images = [rng.normal(1000, 30, (3, 50, 40)).astype(np.float32) for _ in range(5)]
    terms = np.tile(np.array([1, 0, 0, 0], np.float32), (3, 1))
    sources = [
        CoaddSource(k, (50, 40), shift_pixel_map(k, 2 * k, (k, 50 + k, 2 * k, 40 + 2 * k)),
                    (k, 50 + k, 2 * k, 40 + 2 * k), terms, np.ones(3, np.float32))
        for k in range(5)
    ]  # fmt: skip
    pixels = ArrayPixels(images)
    whole = door.stack_group(pixels, sources, (60, 50), 3, CombineRule(), budget_bytes=1)
    block = coadd_block(pixels, sources, 0, 60, 50, 3, CombineRule(), "lanczos3")
    for name in ("image", "weight", "coverage", "variance", "rejected_low", "rejected_high"):
        assert np.array_equal(
            getattr(whole, name), getattr(block, name), equal_nan=name in ("image", "variance")
        )
