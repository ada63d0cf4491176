from __future__ import annotations

import numpy as np
import pytest

from zemosaic_core.frame_verdicts import (
    air_verdicts,
    clouded_frames,
    common_star_transparency,
    counts_at_common_limit,
    relative_transparency,
    shape_verdicts,
)


def shapes(fwhm, elongation, sessions=None, nights=None):
    n = len(fwhm)
    return shape_verdicts(fwhm, elongation, sessions=sessions or [0] * n, nights=nights or [0] * n)


def skies(sky, sessions=None, pointings=None):
    n = len(sky)
    return air_verdicts([1.0] * n, sky, sessions=sessions or [0] * n, pointings=pointings or [0] * n)


def named(verdicts):
    return {i: key for i, key in enumerate(verdicts) if key}


def test_outliers_of_a_night_have_their_reasons():
    rng = np.random.default_rng(1)
    fwhm = rng.normal(3.2, 0.1, 20)
    elongation = rng.normal(1.12, 0.02, 20)
    elongation[5], fwhm[5] = 2.2, 6.0
    fwhm[8] = 6.5
    fwhm[13], elongation[13] = np.nan, np.nan
    assert named(shapes(fwhm, elongation)) == {5: "frame_trailed", 8: "frame_defocused"}
    sky = rng.normal(50, 2, 20)
    sky[[4, 11]] = 90, 150
    air = rng.normal(0.95, 0.02, 20)
    air[[4, 9]] = 0.3, 0.4
    found = air_verdicts(air, sky, sessions=[0] * 20, pointings=[0] * 20)
    assert named(found) == {4: "frame_clouded", 9: "frame_clouded", 11: "frame_bright_sky"}


def test_longer_exposures_are_no_brighter_sky():
    """A pedestal that does not grow with time is in it: sky per second alone would not do."""
    exposure = np.array([10.0] * 11 + [30.0] * 5)
    sky = (160 + 43 * exposure) / exposure
    sessions = (exposure > 10).astype(int).tolist()
    assert not named(skies(sky, sessions))
    sky[14] *= 3
    assert named(skies(sky, sessions)) == {14: "frame_bright_sky"}


def test_sky_is_compared_within_a_pointing():
    sky = [50.0] * 6 + [90.0] * 6
    assert not named(skies(sky, pointings=[0] * 6 + [1] * 6))
    sky[3] = 90.0
    assert named(skies(sky, pointings=[0] * 6 + [1] * 6)) == {3: "frame_bright_sky"}


def test_a_small_session_is_judged_by_the_shapes_of_its_night():
    fwhm = [2.5] * 9 + [2.6, 5.5]
    sessions = [0] * 9 + [1, 1]
    assert named(shapes(fwhm, [1.1] * 11, sessions)) == {10: "frame_defocused"}
    # Another night is another matter.
    assert not named(shapes(fwhm, [1.1] * 11, sessions, nights=sessions))


def test_nothing_is_judged_without_comparison():
    assert shapes([], []) == []
    assert skies([]) == []
    assert shapes([2.5, 9.0], [1.1, 3.0]) == ["", ""]
    assert skies([50.0, 500.0]) == ["", ""]
    assert not clouded_frames([1.0, 0.1], sessions=[0, 0]).any()


def test_a_sharp_night_with_changing_seeing_keeps_its_frames():
    """As a real night of 142 frames on a coarse sensor: one trailed, three defocused, seeing 1.7 to 2.7 px."""
    rng = np.random.default_rng(3)
    fwhm = np.concatenate([rng.uniform(1.65, 1.9, 16), rng.uniform(1.9, 2.7, 122), [2.6, 5.2, 5.6, 4.9]])
    elongation = rng.normal(1.12, 0.03, 142)
    elongation[138] = 2.6
    found = named(shapes(fwhm, elongation))
    assert found == {138: "frame_trailed", **dict.fromkeys((139, 140, 141), "frame_defocused")}


def test_clouds_are_dim_stars():
    rng = np.random.default_rng(4)
    clear = np.clip(rng.uniform(0.82, 1.0, 30) * rng.normal(1, 0.01, 30), 0, None)
    clear[[4, 17]] = 0.5, 0.2
    assert np.flatnonzero(clouded_frames(clear, sessions=[0] * 30)).tolist() == [4, 17]
    # The scale is free: what another gain or exposure does is no cloud.
    assert np.flatnonzero(clouded_frames(0.1 * clear, sessions=[0] * 30)).tolist() == [4, 17]
    mixed = np.concatenate([clear, 3 * clear, 0.34 * clear])
    found = clouded_frames(mixed, sessions=np.repeat([0, 1, 2], 30))
    assert np.flatnonzero(found).tolist() == [4, 17, 34, 47, 64, 77]


def test_clouds_through_nearly_half_a_night_are_still_clouds():
    rng = np.random.default_rng(5)
    air = np.concatenate([rng.normal(0.95, 0.02, 33), rng.uniform(0.05, 0.5, 27)])
    assert np.array_equal(clouded_frames(air, sessions=[0] * 60), np.arange(60) >= 33)


@pytest.mark.parametrize("lowest_altitude_deg", [20.0, 30.0, 50.0])
def test_an_object_that_sets_is_no_cloud(lowest_altitude_deg):
    altitude = np.deg2rad(np.linspace(75, lowest_altitude_deg, 200))
    extinction_mag = 0.28 / np.sin(altitude)
    transparency = 10 ** (-0.4 * extinction_mag) * np.random.default_rng(6).normal(1, 0.01, 200)
    assert not clouded_frames(transparency, sessions=[0] * 200).any()
    transparency[50] *= 0.3
    assert np.flatnonzero(clouded_frames(transparency, sessions=[0] * 200)).tolist() == [50]


def test_unknown_transparency_is_not_judged():
    found = clouded_frames([1.0, 0.98, np.nan, 0.2, 1.01], sessions=[0] * 5)
    assert found.tolist() == [False, False, False, True, False]


def test_transparency_is_relative_to_the_clear_half_of_its_group():
    values = [2.0, 2.0, 1.0, 0.7, 0.7, 0.35, np.nan]
    np.testing.assert_allclose(
        relative_transparency(values, [0, 0, 0, 1, 1, 1, 1]), [1, 1, 0.5, 1, 1, 0.5, np.nan]
    )


def test_faint_stars_tell_of_frames_without_bright_ones():
    rng = np.random.default_rng(7)
    star_flux = rng.uniform(50, 5000, 40)
    true = np.array([1.0, 0.9, 0.8, 0.25, 0.95])
    frame, star = (grid.ravel() for grid in np.meshgrid(np.arange(5), np.arange(40), indexing="ij"))
    flux = star_flux[star] * true[frame] * rng.normal(1, 0.02, frame.size)
    # The last frame shares one star with the others.
    use = (frame < 4) | (star == 0)
    gains = np.where(np.arange(5) < 3, 1 / true, 1.0)
    found = common_star_transparency(frame[use], star[use], flux[use], gains, np.arange(5) < 3, 40)
    np.testing.assert_allclose(found[:4], true[:4], rtol=0.02)
    assert np.isnan(found[4])


def test_medians_of_common_stars_agree_with_a_plain_loop():
    rng = np.random.default_rng(8)
    frame, star = rng.integers(0, 6, 300), rng.integers(0, 25, 300)
    flux = rng.lognormal(5, 1, 300)
    flux[::17] = np.nan
    gains, linked = rng.uniform(0.8, 1.5, 6), np.array([1, 1, 0, 1, 0, 1], bool)
    found = common_star_transparency(frame, star, flux, gains, linked, 25)
    for i in range(6):
        if linked[i]:
            assert found[i] == 1 / gains[i]
            continue
        ratios = []
        for k in np.flatnonzero(frame == i):
            theirs = [
                flux[j] * gains[frame[j]]
                for j in range(300)
                if star[j] == star[k] and linked[frame[j]] and flux[j] > 0
            ]
            if theirs and flux[k] > 0:
                ratios.append(flux[k] / np.median(theirs))
        assert found[i] == pytest.approx(np.median(ratios))


def test_stars_are_counted_down_to_one_flux():
    """Sharper frames find fainter stars; that is not more sky."""
    rng = np.random.default_rng(9)
    sky = np.sort(1000 * rng.pareto(1.0, 600) + 100)[::-1]
    depth = np.array([100.0, 140.0, 200.0, 260.0, 180.0, 150.0])
    flux = [sky[sky > d] for d in depth]
    snr = [f / (d / 5.0) for f, d in zip(flux, depth, strict=True)]
    found = counts_at_common_limit(flux, snr, [0] * 6)
    assert len({len(f) for f in flux}) == 6
    assert np.ptp(found) == 0
    dimmed = counts_at_common_limit([*flux, 0.3 * flux[0]], [*snr, 0.3 * snr[0]], [0] * 7)
    assert dimmed[-1] < 0.7 * dimmed[0]
    assert counts_at_common_limit([np.empty(0)], [np.empty(0)], [0]).tolist() == [0]
