"""Magnitudes of a square arcsecond of sky."""

from __future__ import annotations

import numpy as np
import pytest

from zemosaic_core.sky_brightness import sky_magnitude


def test_the_sky_of_a_square_arcsecond_counts_like_a_star_of_its_light():
    # 250 ADU on a pixel of 2.5" are 40 ADU on a square arcsecond.
    mag, sigma = sky_magnitude(np.array([250.0]), 5.0, 24.0, 2.5)
    assert mag[0] == pytest.approx(24.0 - 2.5 * np.log10(40.0), abs=1e-12)
    assert sigma[0] == pytest.approx(2.5 * np.log10(1.02), abs=3e-4)


def test_what_is_not_known_to_a_fifth_is_not_told():
    mag, sigma = sky_magnitude(
        np.array([100.0, 100.0, -3.0, 0.0, np.nan]), np.array([19, 21, 1, 1, 1.0]), 20.0, 1.0
    )
    assert np.isfinite(mag).tolist() == np.isfinite(sigma).tolist() == [True, False, False, False, False]
