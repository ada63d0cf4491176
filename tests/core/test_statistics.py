from __future__ import annotations

import numpy as np
import pytest

from zemosaic_core.statistics import (
    central_mean,
    clipped_central_mean_sigma,
    clipped_median_sigma,
    mad_sigma,
    nan_percentile,
    strided_sample,
    weighted_median,
)


def test_clipping_finds_the_sky_under_outliers_and_holes():
    rng = np.random.default_rng(1)
    values = rng.normal(1000.0, 80.0, 100_000)
    values[::20] += rng.exponential(5000.0, 5000)
    values[::31] = np.nan
    values[5] = np.inf
    median, sigma = clipped_median_sigma(values)
    assert median == pytest.approx(1000.0, abs=4.0)
    assert sigma == pytest.approx(80.0, rel=0.04)


def test_sigma_of_clean_normal_data_is_unbiased():
    values = np.random.default_rng(2).normal(0.0, 1.0, 400_000)
    for clip in (2.5, 3.0):
        assert clipped_median_sigma(values, clip_sigma=clip)[1] == pytest.approx(1.0, abs=0.01)


def test_nothing_finite_gives_nan():
    empty = np.array([np.nan, np.inf])
    assert np.isnan(clipped_median_sigma(empty)).all()
    assert np.isnan(mad_sigma(empty))
    assert np.isnan(central_mean(empty))
    assert np.isnan(nan_percentile(empty, 50.0))
    assert np.isnan(weighted_median(empty, np.ones(2)))


def test_constant_data_has_no_spread():
    assert clipped_median_sigma(np.full(10, 7.0)) == (7.0, 0.0)


def test_percentiles_ignore_missing_values():
    values = np.array([[np.nan, 1.0], [2.0, 3.0]])
    assert nan_percentile(values, 50.0) == 2.0
    assert nan_percentile(values, (0.0, 100.0)) == (1.0, 3.0)


def test_mad_of_hand_computed_example():
    assert mad_sigma(np.array([1.0, 2.0, 3.0, 4.0, 100.0, np.nan])) == pytest.approx(1.4826)


def test_central_mean_is_finer_than_the_steps_of_the_camera():
    true = 1000.37
    values = np.round(np.random.default_rng(3).normal(true, 80.0, 200_000) / 16.0) * 16.0
    assert abs(central_mean(values) - true) < 1.0


def test_weighted_median_by_hand():
    assert weighted_median(np.array([1.0, 2.0, 10.0]), np.array([1.0, 1.0, 3.0])) == 10.0
    assert weighted_median(np.array([4.0, 1.0, 3.0, 2.0]), np.ones(4)) == 2.5
    assert weighted_median(np.array([1.0, np.nan, 5.0]), np.array([1.0, 9.0, 0.0])) == 1.0


def test_sample_sees_all_phases_of_a_colour_filter_array():
    plane = np.tile(np.array([[1.0, 2.0], [3.0, 4.0]]), (512, 512))
    sample = strided_sample(plane, 10_000)
    assert sample.size <= 10_000
    counts = [(sample == v).mean() for v in (1.0, 2.0, 3.0, 4.0)]
    assert min(counts) > 0.2


@pytest.mark.parametrize("size", [1, 2, 3, 10, 11, 4000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint16])
def test_clipping_agrees_with_a_slow_twin(size, dtype):
    rng = np.random.default_rng(size)
    values = rng.normal(900, 30, size)
    values[:: max(7, size // 5)] += rng.exponential(4000, values[:: max(7, size // 5)].size)
    values = values.astype(dtype)
    wide = np.sort(values.astype(np.float64))
    centre, sigma = np.median(wide), 1.4826 * np.median(np.abs(wide - np.median(wide)))
    assert mad_sigma(values) == pytest.approx(sigma, rel=1e-6, abs=1e-4)
    kept = wide
    for _ in range(8):
        new = wide[(wide >= centre - 2.5 * sigma) & (wide <= centre + 2.5 * sigma)]
        if new.size < 2 or new.size == kept.size:
            break
        kept = new
        centre, sigma = np.median(kept), kept.std(ddof=1) * 1.04761
    assert clipped_median_sigma(values, clip_sigma=2.5) == pytest.approx((centre, sigma), rel=1e-4, abs=1e-3)
    inside = wide[np.abs(wide - centre) <= 2.5 * sigma]
    cut = inside.size // 4
    expected = inside[cut : inside.size - cut].mean()
    assert clipped_central_mean_sigma(values, clip_sigma=2.5)[0] == pytest.approx(expected, rel=1e-5)
