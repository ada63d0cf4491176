from __future__ import annotations

import numpy as np
import pytest

from zemosaic_core.calibration import (
    Offset,
    bad_pixels_of_dark,
    calibrated,
    colour_levels,
    flat_of_light,
    kin_median,
    level_saturated,
    scaled_offset,
    shared_sensor_places,
    typical_variance,
)

SHAPE = (60, 83)


@pytest.fixture
def rng():
    return np.random.default_rng(4)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_samples_are_calibrated_in_steps_of_float32(rng, dtype):
    raw = rng.integers(300, 60000, SHAPE).astype(dtype)
    offset = rng.normal(440, 5, SHAPE).astype(np.float32)
    inverse = rng.uniform(0.9, 1.6, SHAPE).astype(np.float32)
    whole = calibrated(raw, offset, inverse)
    np.testing.assert_array_equal(whole, (raw.astype(np.float32) - offset) * inverse)
    window = (slice(7, 31), slice(5, 40))
    np.testing.assert_array_equal(calibrated(raw[window], offset[window], inverse[window]), whole[window])
    np.testing.assert_array_equal(calibrated(raw, offset, None), raw.astype(np.float32) - offset)
    np.testing.assert_array_equal(calibrated(raw, None, inverse), raw.astype(np.float32) * inverse)
    np.testing.assert_array_equal(calibrated(raw, None, None), raw.astype(np.float32))
    with pytest.raises(ValueError, match="does not fit"):
        calibrated(raw, offset[1:], None)


def test_dark_current_grows_with_time_and_the_bias_does_not(rng):
    bias = Offset(rng.normal(440, 3, SHAPE).astype(np.float32), 1.0)
    current = rng.exponential(20, SHAPE).astype(np.float32)
    dark = Offset(bias.value + current, 4.0)
    scaled = scaled_offset(dark, bias, 2.5)
    np.testing.assert_allclose(scaled.value, bias.value + 2.5 * current, rtol=1e-5)
    assert scaled.variance == pytest.approx(2.5**2 * 4.0 + 1.5**2 * 1.0)
    assert scaled_offset(dark, None, 1.0) is dark
    assert scaled_offset(None, bias, 1.0) is bias
    assert scaled_offset(None, None, 1.0) is None
    with pytest.raises(ValueError, match="without its bias"):
        scaled_offset(dark, None, 2.0)


def test_each_colour_of_a_flat_is_relative_to_its_own_middle(rng):
    """The lamp is blue, one green of the sensor is less sensitive, and one corner is dark."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    fall = 1 - 0.3 * ((y - 29.5) ** 2 + (x - 41) ** 2) / (29.5**2 + 41**2)
    lamp = np.array([[0.97, 0.3], [2.0, 1.03]])[y % 2, x % 2]
    flat = flat_of_light((9000 * fall * lamp).astype(np.float32), None, 1, "GRBG")
    sensor = np.where((y % 2 == 0) & (x % 2 == 0), 0.97, np.where((y % 2 == 1) & (x % 2 == 1), 1.03, 1.0))
    ratio = flat.inverse * fall * sensor
    # What is left is a common factor per colour: greens of both kinds have the same one.
    for phases in ([0, 3], [1], [2]):
        parts = np.concatenate([ratio[k // 2 :: 2, k % 2 :: 2].ravel() for k in phases])
        assert np.ptp(parts) < 2e-3 * parts.mean()
        assert parts.mean() == pytest.approx(1.0, abs=0.05)
    assert not flat.dead.size
    levels = colour_levels(np.ones(SHAPE), "GRBG")
    np.testing.assert_array_equal(levels, 1.0)


def test_dead_pixels_of_a_flat_are_named_and_left_alone(rng):
    light = rng.normal(20000, 100, SHAPE).astype(np.float32)
    light[10, 20], light[30, 41], light[5, 5] = 100.0, -50.0, np.nan
    flat = flat_of_light(light, np.full(SHAPE, 1000.0, np.float32), 100, None)
    assert flat.dead.tolist() == [5 * 83 + 5, 10 * 83 + 20, 30 * 83 + 41]
    assert (flat.inverse.ravel()[flat.dead] == 1).all()
    assert np.isfinite(flat.inverse).all()
    assert flat.relative_variance == pytest.approx(1000.0 / 20000.0**2, rel=0.02)
    with pytest.raises(ValueError, match="holds no light"):
        flat_of_light(np.zeros(SHAPE, np.float32), None, 1, None)


def test_hot_and_unsteady_pixels_of_a_dark(rng):
    noise, n = 12.0, 16
    glow = 300 * np.exp(-np.hypot(*np.mgrid[: SHAPE[0], : SHAPE[1]]) / 20)
    value = (440 + glow + rng.normal(0, noise / np.sqrt(n), SHAPE)).astype(np.float32)
    variance = (noise**2 / n * rng.chisquare(n - 1, SHAPE) / (n - 1)).astype(np.float32)
    value[20, 30] += 60
    value[21, 60] += 900
    value[40, 10] -= 400
    variance[50, 50] *= 200
    # A mild one is subtracted like all others, and a glow is no defect.
    assert bad_pixels_of_dark(value, variance, n).tolist() == [21 * 83 + 60, 40 * 83 + 10, 50 * 83 + 50]
    # A single master tells no noise: what all its pixels scatter stands for it.
    assert 21 * 83 + 60 in bad_pixels_of_dark(value, None, 1)
    # Nor can a few be told from all where it is too good to be true.
    assert len(bad_pixels_of_dark((440 + glow).astype(np.float32), None, 1)) <= 0.006 * value.size


def test_kin_median_is_that_of_the_same_phase(rng):
    plane = rng.normal(0, 1, (9, 11)).astype(np.float32)
    plane[3, 4] = np.nan
    found = kin_median(plane)
    for y in range(9):
        for x in range(11):
            kin = [
                plane[y + j, x + i]
                for j in (-2, 0, 2)
                for i in (-2, 0, 2)
                if (j or i) and 0 <= y + j < 9 and 0 <= x + i < 11
            ]
            assert found[y, x] == pytest.approx(np.nanmedian(kin), rel=1e-6)


def test_a_full_sensor_is_still_full_after_calibration(rng):
    raw = rng.integers(400, 3000, SHAPE).astype(np.uint16)
    raw[10:14, 10:14] = 4095
    offset = rng.normal(440, 5, SHAPE).astype(np.float32)
    samples = calibrated(raw, offset, None)
    levelled = level_saturated(samples, raw, np.full(4, 4000))
    for k in range(4):
        core = levelled[10 + k // 2 : 14 : 2, 10 + k % 2 : 14 : 2]
        assert (core == samples[10 + k // 2 : 14 : 2, 10 + k % 2 : 14 : 2].max()).all()
    untouched = raw < 4000
    np.testing.assert_array_equal(levelled[untouched], samples[untouched])


def test_frames_that_were_not_moved_share_the_noise_of_their_masters(rng):
    weights = np.ones(10)
    still = np.zeros((10, 2))
    assert shared_sensor_places([still, still], weights, 1.0) == pytest.approx(1.0)
    dithered = np.arange(10)[:, None] * np.array([5.0, -3.0])
    assert shared_sensor_places([dithered, dithered], weights, 1.0) == 0.0
    # Turned about one point the rest of the sensor moves.
    assert shared_sensor_places([still, dithered], weights, 1.0) == 0.0
    halves = np.where(np.arange(10)[:, None] < 5, 0.0, 40.0) * np.ones(2)
    weights = rng.uniform(0.5, 1, 10)
    same = np.arange(10)[:, None] // 5 == np.arange(10) // 5
    pairs = np.outer(weights, weights) * (1 - np.eye(10))
    expected = (pairs * same).sum() / pairs.sum()
    assert shared_sensor_places([halves, halves], weights, 1.0) == pytest.approx(expected)
    assert shared_sensor_places([still[:1], still[:1]], weights[:1], 1.0) == 0.0


@pytest.mark.parametrize("n", [2, 3, 8, 30])
def test_the_usual_variance_does_not_depend_on_the_number_of_frames(rng, n):
    told = 7.0 * rng.chisquare(n - 1, 20_000) / (n - 1)
    told[:50] = np.nan
    # The formula is coarse for a single degree of freedom.
    assert typical_variance(told, n) == pytest.approx(7.0, rel=0.06 if n == 2 else 0.03)
    assert typical_variance(told, 1) == 0.0
    assert typical_variance(None, n) == 0.0
