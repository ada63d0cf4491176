"""Levels of light keep digits that tell something, in counts of a sensor and in values from 0 to 1."""

from __future__ import annotations

import math

import pytest

from zemosaic_core.light_digits import decimals_of_light, rounded_light


@pytest.mark.parametrize(
    ("value", "least", "significant", "shown"),
    [
        (3.7412, 1, 2, "3.7"), (123.456, 1, 2, "123.5"), (840.3, 0, 3, "840"), (0.0374, 1, 2, "0.037"),
        (-0.00057, 1, 2, "-0.00057"), (0.01282, 0, 3, "0.0128"), (2e-5, 2, 2, "0.000020"), (0.0, 1, 2, "0.0"),
    ],
)  # fmt: skip
def test_small_levels_keep_their_digits_and_counts_their_rounding(value, least, significant, shown):
    assert f"{value:.{decimals_of_light(value, least, significant)}f}" == shown
    assert rounded_light(value, least, significant) == float(shown)


def test_a_level_without_decimals_is_a_whole_number_and_nan_stays():
    assert str(rounded_light(840.3, 0, 3)) == "840"
    assert math.isnan(rounded_light(math.nan, 1))
    assert decimals_of_light(math.inf, 1) == 1
