from __future__ import annotations

import numpy as np
import pytest

from zemosaic_core.photometry import solve_transparency


def _scene(seed=0, n_frames=60, n_stars=300, per_frame=80, outliers=0.03, noise=0.01):
    rng = np.random.default_rng(seed)
    frame = np.repeat(np.arange(n_frames), per_frame)
    star = np.concatenate([rng.choice(n_stars, per_frame, replace=False) for _ in range(n_frames)])
    brightness = np.exp(rng.normal(8, 1.0, (n_stars, 3)))
    haze = np.abs(rng.normal(0, 0.2, (n_frames, 1))) + np.abs(rng.normal(0, 0.03, (n_frames, 3)))
    transparency = np.exp(-haze)
    flux = brightness[star] * transparency[frame]
    flux = flux * (1 + rng.normal(0, noise, flux.shape)) + rng.normal(0, 30, flux.shape)
    hit = rng.random(len(flux)) < outliers
    flux[hit] *= rng.uniform(1.3, 4, hit.sum())[:, None]
    return frame, star, flux, transparency


def test_gains_undo_the_haze():
    frame, star, flux, transparency = _scene()
    result = solve_transparency(frame, star, flux, 60, 300)
    error = np.log(result.gains * transparency)
    error -= np.median(error, axis=0)
    assert error.std(axis=0).max() < 0.005
    assert result.ok.all()
    # The errors are as large as announced.
    pull = error / (result.sigma / result.gains)
    assert 0.6 < pull.std() < 1.6


def test_good_half_has_median_gain_one_in_every_channel():
    frame, star, flux, transparency = _scene(1)
    result = solve_transparency(frame, star, flux, 60, 300)
    mean = np.log(result.gains).mean(axis=1)
    good = mean <= np.median(mean)
    np.testing.assert_allclose(np.median(result.gains[good], axis=0), 1.0, atol=1e-4)
    # These are the clear frames, and hazy ones are amplified.
    assert transparency[good].mean() > transparency[~good].mean()
    assert result.gains[~good].mean() > 1.05


def test_invalid_fluxes_are_ignored():
    frame, star, flux, _ = _scene(2, outliers=0)
    expected = solve_transparency(frame, star, flux, 60, 300)
    extra = np.array([[np.nan] * 3, [-5.0] * 3, [0.0] * 3, [np.inf] * 3])
    result = solve_transparency(
        np.concatenate([frame, [0, 1, 2, 3]]),
        np.concatenate([star, [0, 1, 2, 3]]),
        np.concatenate([flux, extra]),
        60,
        300,
    )
    np.testing.assert_allclose(result.gains, expected.gains, rtol=1e-9)


def test_unlinked_and_starless_frames_are_flagged():
    frame, star, flux, transparency = _scene(3)
    # The last 20 frames see other stars; frame 0 hardly any; frame 1 none in blue.
    star = np.where(frame >= 40, star + 300, star)
    flux[(frame == 0)] = np.where(np.arange((frame == 0).sum())[:, None] < 3, flux[frame == 0], np.nan)
    flux[frame == 1, 2] = np.nan
    result = solve_transparency(frame, star, flux, 61, 600)
    assert (result.component[2:40] == 0).all()
    assert (result.component[40:60] == 1).all()
    assert (result.component[0] == -1).all()
    assert (result.component[60] == -1).all()
    assert result.component[1].tolist() == [0, 0, -1]
    np.testing.assert_array_equal(result.gains[[0, 60]], 1.0)
    assert result.gains[1, 2] == 1.0
    assert np.isnan(result.sigma[0]).all()
    assert not result.ok[[0, 1, 45, 60]].any()
    assert result.ok[2:40].all()
    # Inside its own part a frame is still put on that part's scale.
    error = np.log(result.gains[40:60] * transparency[40:60])
    assert (error - np.median(error, axis=0)).std() < 0.02


def test_weights_follow_the_scatter_of_faint_stars():
    frame, star, flux, transparency = _scene(4, noise=0.003, outliers=0)
    result = solve_transparency(frame, star, flux, 60, 300)
    error = np.log(result.gains * transparency)
    error -= np.median(error, axis=0)
    plain = np.zeros_like(error)
    log = np.log(np.where(flux > 0, flux, np.nan))
    for c in range(3):
        level = np.array([np.nanmean(log[star == s, c]) if (star == s).any() else np.nan for s in range(300)])
        for f in range(60):
            plain[f, c] = -np.nanmean((log[:, c] - level[star])[frame == f])
    plain += np.log(transparency)
    plain -= np.median(plain, axis=0)
    assert error.std() < 0.5 * plain.std()


def test_long_chain_of_panels_keeps_its_scale():
    # 40 frames in a row, each sharing stars only with its neighbours.
    rng = np.random.default_rng(5)
    frame = np.repeat(np.arange(40), 60)
    star = (frame * 30 + np.tile(np.arange(60), 40)).astype(int)
    brightness = np.exp(rng.normal(8, 0.5, 40 * 30 + 60))
    transparency = np.exp(-np.abs(rng.normal(0, 0.2, 40)))
    flux = brightness[star] * transparency[frame] * np.exp(rng.normal(0, 0.01, len(frame)))
    result = solve_transparency(frame, star, flux[:, None], 40, len(brightness))
    error = np.log(result.gains[:, 0] * transparency)
    # A random walk of 40 steps of 0.01 sqrt(2 / 30).
    assert np.abs(error - np.median(error)).max() < 0.05


def test_nothing_to_solve():
    result = solve_transparency(np.empty(0, int), np.empty(0, int), np.empty((0, 3)), 4, 0)
    np.testing.assert_array_equal(result.gains, 1.0)
    assert not result.ok.any()
    with pytest.raises(ValueError, match="flux"):
        solve_transparency(np.zeros(3, int), np.zeros(3, int), np.zeros((2, 3)), 1, 1)
