"""Trails are followed along their line and out to their faint wings; galaxies, stars and noise are none."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from zemosaic_core.measure_pass import measure_raw
from zemosaic_core.streak_spans import (
    ends_within,
    joined_spans,
    points_given_up,
    share_beside,
    streak_points,
    streak_spans,
)
from zemosaic_core.streaks import chains_of_dots, on_streaks

SHAPE = (640, 520)


def frame(seed=0, *, trails=(), n_stars=80, galaxy=False):
    """A frame of noise 20 ADU with stars; trails are ``(x0, y0, x1, y1, sigma_px, peak_adu)``."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]].astype(float)
    light = 900.0 + 0.05 * x
    for sx, sy, peak in zip(
        rng.uniform(5, SHAPE[1] - 5, n_stars), rng.uniform(5, SHAPE[0] - 5, n_stars), 10 ** rng.uniform(2, 4, n_stars),
        strict=True,
    ):  # fmt: skip
        at = np.s_[max(0, int(sy) - 9) : int(sy) + 10, max(0, int(sx) - 9) : int(sx) + 10]
        light[at] += peak * np.exp(-((x[at] - sx) ** 2 + (y[at] - sy) ** 2) / 2.6)
    if galaxy:
        u, v = (x - 260) * 0.6 + (y - 300) * 0.8, (y - 300) * 0.6 - (x - 260) * 0.8
        light += 500 * np.exp(-np.hypot(u / 90, v / 25))
    for x0, y0, x1, y1, sigma, peak in trails:
        length = np.hypot(x1 - x0, y1 - y0)
        off = ((x - x0) * (y1 - y0) - (y - y0) * (x1 - x0)) / length
        t = ((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / length
        light += np.where((t >= 0) & (t <= length), peak * np.exp(-0.5 * (off / sigma) ** 2), 0)
    return np.clip(rng.normal(light, 20), 0, 65535).astype(np.uint16)


def distance_of_ends(streak, trail):
    """Largest distance of the ends of a streak from the line of a trail."""
    x0, y0, x1, y1 = trail[:4]
    along = np.array([x1 - x0, y1 - y0]) / np.hypot(x1 - x0, y1 - y0)
    return max(abs((x - x0) * along[1] - (y - y0) * along[0]) for x, y in (streak[:2], streak[2:4]))


@pytest.mark.parametrize(
    "trail",
    [
        (-5, 100, 525, 480, 1.3, 1500.0),
        (60, -5, 130, 645, 1.3, 300.0),
        (525, 620, -5, 30, 1.2, 50.0),
        (-5, 400, 525, 380, 3.0, 200.0),
        (100, 600, 330, 200, 1.3, 400.0),  # ends within the frame
    ],
)
def test_a_trail_is_found_from_end_to_end_and_to_its_wings(trail):
    streaks = measure_raw(frame(trails=[trail], galaxy=True), "RGGB").streaks
    assert len(streaks) == 1
    (streak,) = streaks
    assert distance_of_ends(streak, trail) < 1.5
    length = np.hypot(*(np.clip(trail[2:4], 0, SHAPE[::-1]) - np.clip(trail[:2], 0, SHAPE[::-1])))
    found = np.hypot(streak[2] - streak[0], streak[3] - streak[1])
    assert length - 40 < found < length + 110
    # Where less than a third of the noise of a pixel is left.
    sigma, peak = trail[4:]
    wings = sigma * np.sqrt(2 * np.log(peak / 6.0))
    assert wings < streak[4] < wings + 5.0


def test_two_trails_of_one_frame():
    trails = [(-5, 100, 525, 480, 1.3, 1500.0), (300, -5, 130, 645, 1.3, 300.0)]
    streaks = measure_raw(frame(3, trails=trails), None).streaks
    assert len(streaks) == 2
    assert {int(np.argmin([distance_of_ends(s, t) for t in trails])) for s in streaks} == {0, 1}


def test_all_trails_of_a_train_of_satellites_are_found():
    """Twelve side by side, bright and faint, and one across them; the stars between them are kept."""
    train = [(-40 + 44 * k, -5, 90 + 44 * k, 645, 1.3, 900.0 if k % 3 else 50.0) for k in range(12)]
    trails = [*train, (-5, 580, 525, 400, 1.3, 200.0)]
    found, without = (measure_raw(frame(6, trails=t), "RGGB") for t in (trails, ()))
    assert len(found.streaks) == len(trails)
    for trail in trails:
        assert min(distance_of_ends(streak, trail) for streak in found.streaks) < 1.5
    assert len(found.stars) > 0.7 * len(without.stars)
    inner = found.streaks - np.array([0, 0, 0, 0, 2.5])
    assert not on_streaks(inner, found.stars.x, found.stars.y).any()
    assert np.median(found.stars.fwhm_px) == pytest.approx(np.median(without.stars.fwhm_px), rel=0.03)


def test_what_lies_on_a_streak_reaches_its_width_and_its_ends():
    streak = np.array([[10.0, 20.0, 110.0, 20.0, 4.0]])
    x, y = np.array([60.0, 60.0, 5.0, 7.0, 113.0]), np.array([23.9, 24.1, 20.0, 20.0, 17.0])
    assert on_streaks(streak, x, y).tolist() == [True, False, False, True, True]
    assert not on_streaks(streak[:0], x, y).any()


@pytest.mark.parametrize("galaxy", [False, True])
def test_frames_without_trails_have_none(galaxy):
    for seed in range(4):
        assert not len(measure_raw(frame(seed, galaxy=galaxy, n_stars=60 + 80 * seed), "GRBG").streaks)


def test_lamps_of_an_aeroplane_are_a_chain():
    rng = np.random.default_rng(1)
    x, y = rng.uniform(0, 1080, 12), rng.uniform(0, 1920, 12)
    t = np.arange(7)
    dots_x, dots_y = 100 + 120 * t + rng.normal(0, 0.4, 7), 300 + 200 * t + rng.normal(0, 0.4, 7)
    (chain,) = chains_of_dots(np.append(dots_x, x), np.append(dots_y, y), 2.6, (1920, 1080))
    unit = np.array([120, 200]) / np.hypot(120, 200)
    for end in (chain[:2], chain[2:4]):
        assert abs((end[0] - 100) * unit[1] - (end[1] - 300) * unit[0]) < 2.0
    reached = sorted((np.array([chain[:2], chain[2:4]]) - [100, 300]) @ unit)
    assert reached[0] < 0
    assert reached[1] > 6 * np.hypot(120, 200)
    assert 5.0 < chain[4] < 12.0


def test_chance_makes_no_chains():
    for seed in range(8):
        rng = np.random.default_rng(seed)
        n = 5 + 9 * seed
        assert not len(chains_of_dots(rng.uniform(0, 1080, n), rng.uniform(0, 1920, n), 2.6, (1920, 1080)))


@pytest.mark.parametrize(
    "streak", [(10, 5, 60, 33, 4.0), (-10, 20, 90, 20, 2.5), (30, -5, 30, 60, 3.0), (5, 40, 6, 41, 3.0)]
)
def test_spans_are_the_pixels_within_the_width(streak):
    shape = (45, 80)
    y, x = np.mgrid[: shape[0], : shape[1]]
    a, b = np.array(streak[:2], float), np.array(streak[2:4], float)
    t = np.clip(((x - a[0]) * (b - a)[0] + (y - a[1]) * (b - a)[1]) / ((b - a) @ (b - a)), 0, 1)
    truth = np.hypot(x - a[0] - t * (b - a)[0], y - a[1] - t * (b - a)[1]) <= streak[4]
    points = streak_points(np.array(streak))
    drawn = np.zeros(shape, int)
    for row, first, end in streak_spans(points, np.ones(len(points) - 1, bool), streak[4], shape):
        drawn[row, first:end] += 1
    assert drawn.max() == 1
    assert np.count_nonzero((drawn > 0) != truth) <= 2
    nothing = streak_spans(points, np.zeros(len(points) - 1, bool), streak[4], shape)
    assert nothing.shape == (0, 3)


def test_spans_are_joined_row_by_row():
    one = np.array([[3, 5, 9], [4, 0, 2], [4, 70, 80]])
    two = np.array([[3, 9, 12], [4, 1, 5], [5, 0, 3]])
    joined = joined_spans([one, two, np.empty((0, 3), np.int32)])
    np.testing.assert_array_equal(joined, [[3, 5, 12], [4, 0, 5], [4, 70, 80], [5, 0, 3]])
    assert joined_spans([]).shape == (0, 3)


def test_streaks_along_each_other_are_told_from_crossing_ones():
    points = streak_points(np.array([0, 0, 300, 30, 4.0]))
    assert share_beside(points, points + np.array([1.0, 2.0]), 5.0).all()
    assert not share_beside(points, points + np.array([0.0, 20.0]), 5.0).any()
    crossing = streak_points(np.array([0, 100, 300, -60, 4.0]))
    assert not share_beside(points, crossing, 5.0).any()
    half = share_beside(points, points[: len(points) // 2], 5.0)
    assert half[0]
    assert not half[-1]


def test_what_others_do_not_show_is_a_trail_to_its_end():
    looks, none = np.array([0, 0, 0, 2, 3, 3]), np.zeros(6, np.int64)
    assert points_given_up(looks, none).all()
    # Others see a sixth of it: that much is known, no more.
    few = np.array([0, 0, 0, 0, 0, 3])
    np.testing.assert_array_equal(points_given_up(few, none), few > 0)
    assert not points_given_up(none, none).any()
    # A galaxy seen edge-on.
    assert not points_given_up(looks, np.array([0, 0, 0, 1, 2, 2])).any()
    assert points_given_up(looks, np.array([0, 0, 0, 1, 1, 1])).all()
    # A filament that two of four frames find, within each of them.
    assert not points_given_up(looks, np.array([0, 0, 0, 1, 1, 0]), is_short=True).any()
    assert points_given_up(looks, np.array([0, 0, 0, 1, 0, 0]), is_short=True).all()
    assert points_given_up(looks, none, is_short=True).all()


def test_which_streaks_end_within_the_frame():
    assert ends_within(np.array([100.0, 100, 300, 400, 4]), SHAPE)
    assert not ends_within(np.array([-5.0, 100, 300, 400, 4]), SHAPE)
    assert not ends_within(np.array([100.0, 100, 300, 600, 4]), SHAPE)
    assert not ends_within(np.array([100.0, 100, 500, 400, 4]), SHAPE)


@pytest.mark.parametrize("width_px", [6.0, 8.0])
def test_knots_on_the_ridge_of_a_galaxy_are_no_trail(width_px):
    """Light as long and straight as a trail, with knots that stand out one by one, but much wider than a star."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]].astype(float)
    length = np.hypot(260, 450)
    off, t = ((x - 120) * 450 - (y - 90) * 260) / length, ((x - 120) * 260 + (y - 90) * 450) / length
    ridge = np.exp(-0.5 * (off / width_px) ** 2 - 6.1 * (t / length - 0.5) ** 2)
    for seed, peak in enumerate((40.0, 80.0)):
        knots = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 2.5)
        light = peak * ridge * np.clip(1 + 0.6 * knots / knots.std(), 0, 3)
        pixels = (frame(seed) + light).astype(np.uint16)
        assert not len(measure_raw(pixels, "RGGB").streaks)
