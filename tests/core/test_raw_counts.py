from __future__ import annotations

import numpy as np
import pytest

from zemosaic_core.raw_counts import as_counts


def sky(shape=(200, 180), level=0.02, sigma=0.0004, seed=0):
    return np.random.default_rng(seed).normal(level, sigma, shape).astype(np.float32)


def test_raw_pixels_and_whole_numbers_stay_what_they_are():
    raw = np.random.default_rng(0).integers(0, 65536, (40, 50)).astype(np.uint16)
    assert np.shares_memory(as_counts(raw).plane, raw)
    for values in (raw.astype(np.float32), raw.astype(np.float32) - 300, raw.astype(np.float32) + 70000):
        counts = as_counts(values)
        assert (counts.step, counts.noise_factor, counts.missing) == (1.0, 1.0, None)
        np.testing.assert_array_equal(counts.zero + counts.plane, values)


def test_missing_values_become_zero_and_nothing_else_does():
    values = np.random.default_rng(0).integers(0, 4096, (40, 50)).astype(np.float32)
    values[3:9, 4:8] = np.nan
    values[20, 20] = np.inf
    counts = as_counts(values)
    np.testing.assert_array_equal(counts.missing, ~np.isfinite(values))
    np.testing.assert_array_equal(counts.plane == 0, counts.missing)
    known = ~counts.missing
    np.testing.assert_array_equal((counts.zero + counts.step * counts.plane)[known], values[known])


def test_fractions_are_rounded_far_below_the_noise():
    values = sky()
    values[50, 50] = 0.9
    counts = as_counts(values)
    back = counts.zero + counts.step * counts.plane
    assert counts.step <= 0.0004 / 15
    np.testing.assert_allclose(back[:50], values[:50], atol=0.51 * counts.step)
    assert counts.noise_factor == 1.0
    # Bright pixels that need the room get it, at a coarser step, until the noise would suffer.
    values[60, 60] = 6.0
    counts = as_counts(values)
    assert counts.zero + counts.step * counts.plane[60, 60] == pytest.approx(6.0, rel=1e-3)
    values[60, 60] = 600.0
    counts = as_counts(values)
    assert counts.step <= 0.0004 / 1.9
    assert counts.plane[60, 60] == 65535


@pytest.mark.parametrize("full", [1.0, 65535.0])
def test_a_full_pixel_stays_the_largest_number(full):
    values = sky(level=0.02 * full, sigma=0.001 * full)
    values[50, 50:53] = full
    counts = as_counts(values)
    assert (counts.plane == 65535).sum() == 3
    np.testing.assert_allclose(counts.zero + counts.step * counts.plane, values, atol=0.6 * counts.step)
    assert counts.plane.min() >= 1


def test_noise_that_neighbours_share_is_told():
    rough = np.random.default_rng(1).normal(0, 1, (400, 400))
    shared = (rough[:-1, :-1] + rough[1:, :-1] + rough[:-1, 1:] + rough[1:, 1:]) / 2
    counts = as_counts((5 + 0.1 * shared).astype(np.float32))
    # Sums over 2 x 2 of independent values: the smoothing sees less of them average out.
    taps = np.array([1, 3, 4, 3, 1.0])
    both = np.convolve(taps, [1, 1])
    assert counts.noise_factor == pytest.approx((both**2).sum() / 2 / (taps**2).sum(), rel=0.08)


def test_nothing_to_measure_is_an_error():
    with pytest.raises(ValueError, match="finite"):
        as_counts(np.full((30, 30), np.nan, np.float32))
    with pytest.raises(ValueError, match="two dimensions"):
        as_counts(np.zeros((3, 30, 30), np.float32))
    flat = as_counts(np.full((30, 30), 0.5, np.float32))
    assert np.ptp(flat.plane) == 0
