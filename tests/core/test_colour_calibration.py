from __future__ import annotations

import numpy as np
import pytest

from zemosaic_core.colour_calibration import MIN_STARS, SUN_B_V, lonely_stars, solve_colours
from zemosaic_core.synthetic_sky import star_colour

RESPONSE = np.array([0.6, 1.0, 0.45])


def made_up(n, seed, *, noise=0.01, wrong=0.0, spread=0.35):
    """Stars of black-body colours through a known response: fluxes, errors, V, B-V and the gains that undo it."""
    rng = np.random.default_rng(seed)
    b_v = np.clip(rng.normal(0.65, spread, n), -0.2, 1.7)
    v = rng.uniform(7.0, 10.5, n)
    seen = star_colour(b_v) / star_colour(np.array([SUN_B_V])) * RESPONSE
    flux = (10.0 ** (0.4 * (20.0 - v)) * seen.T) * rng.normal(1.0, noise, (3, n))
    listed = b_v + rng.normal(0.0, 0.03, n)
    bad = rng.uniform(size=n) < wrong
    listed[bad] += rng.uniform(0.5, 2.5, bad.sum())
    truth = 1.0 / RESPONSE
    return flux, noise * flux, np.round(v / 0.05) * 0.05, listed, truth / truth.mean()


@pytest.mark.parametrize("seed", range(6))
def test_white_is_found_to_two_per_cent_with_twenty_stars(seed):
    flux, error, v, b_v, gains = made_up(20, seed, wrong=0.05)
    found = solve_colours(flux, error, v, b_v, SUN_B_V)
    ratios = np.array(found.gains) / found.gains[1] / (gains / gains[1])
    np.testing.assert_allclose(ratios, 1.0, atol=0.02)
    assert np.mean(found.gains) == pytest.approx(1.0)


def test_the_stated_error_covers_what_is_wrong():
    pulls = []
    for seed in range(60):
        flux, error, v, b_v, gains = made_up(8, 100 + seed, noise=0.03, wrong=0.04)
        found = solve_colours(flux, error, v, b_v, SUN_B_V)
        ratios = np.array(found.gains) / found.gains[1] / (gains / gains[1])
        pulls.append(np.abs(ratios - 1.0).max() / found.gain_error)
        assert 0.005 < found.gain_error < 0.1
    assert np.mean(np.array(pulls) < 2.0) > 0.9
    assert np.median(pulls) > 0.2  # and is not absurdly wide


def test_zero_points_are_those_of_a_white_star():
    flux, error, v, b_v, _ = made_up(60, 9)
    found = solve_colours(flux, error, v, b_v, SUN_B_V)
    truth = 20.0 + 2.5 * np.log10(RESPONSE)
    np.testing.assert_allclose([z.at_white for z in found.zero_points], truth, atol=0.02)


def test_stars_of_a_wrong_colour_do_not_count():
    flux, error, v, b_v, _ = made_up(30, 3)
    b_v[4] += 2.4
    found = solve_colours(flux, error, v, b_v, SUN_B_V)
    assert not any(ratio.used[4] for ratio in found.ratios)
    assert found.n_stars >= 25


def test_too_few_stars_are_none():
    flux, error, v, b_v, _ = made_up(MIN_STARS - 1, 1)
    assert solve_colours(flux, error, v, b_v, SUN_B_V) is None
    flux, error, v, b_v, _ = made_up(MIN_STARS + 2, 1)
    flux[0, :3] = (np.nan, -5.0, 0.0)
    assert solve_colours(flux, error, v, b_v, SUN_B_V) is None


def test_stars_of_one_colour_still_tell_the_white():
    """Their slope is that of usual cameras; the error knows how far away they are."""
    flux, error, v, b_v, gains = made_up(12, 5, spread=0.03)
    near = solve_colours(flux, error, v, b_v, SUN_B_V)
    far = solve_colours(flux, error, v, b_v, SUN_B_V + 0.5)
    assert far.gain_error > 2.0 * near.gain_error
    ratios = np.array(near.gains) / near.gains[1] / (gains / gains[1])
    np.testing.assert_allclose(ratios, 1.0, atol=0.04)


def test_one_channel_has_a_zero_point_and_no_white():
    flux, error, v, b_v, _ = made_up(20, 7)
    found = solve_colours(flux[1:2], error[1:2], v, b_v, SUN_B_V)
    assert found.gains == (1.0,)
    assert found.ratios == ()
    assert found.zero_points[0].at_white == pytest.approx(20.0, abs=0.03)


def test_order_of_stars_does_not_matter():
    flux, error, v, b_v, _ = made_up(25, 8, wrong=0.1)
    mixed = np.random.default_rng(0).permutation(25)
    one = solve_colours(flux, error, v, b_v, SUN_B_V)
    other = solve_colours(flux[:, mixed], error[:, mixed], v[mixed], b_v[mixed], SUN_B_V)
    np.testing.assert_allclose(one.gains, other.gains, rtol=1e-9)


def test_blended_stars_are_not_lonely():
    xy = np.array([[10.0, 10.0], [50.0, 50.0], [90.0, 90.0]])
    every = np.array([[10.1, 10.0], [50.0, 50.1], [55.0, 50.0], [90.0, 90.0], [93.0, 90.0]])
    mag = np.array([8.0, 8.0, 8.0])
    alone = lonely_stars(xy, mag, every, np.array([8.0, 8.0, 11.0, 8.0, 14.0]), 8.0)
    assert alone.tolist() == [True, False, True]
