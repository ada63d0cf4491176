"""The glow over a mosaic, row by row."""

from __future__ import annotations

import numpy as np
import pytest

from zemosaic_core.sky_remains import quadric_rows


@pytest.mark.parametrize("seed", range(4))
def test_rows_of_a_quadric_are_those_of_whole_arrays(seed: int):
    rng = np.random.default_rng(seed)
    c = rng.normal(size=6) * 10.0 ** rng.integers(-3, 4, 6)
    x, y = rng.uniform(-3, 3, 57), rng.uniform(-3, 3, 31)
    rows = np.empty((31, 57), np.float32)
    quadric_rows(c, x, y, rows)
    wide, high = x[None, :], y[:, None]
    plain = c[0] + c[1] * wide + c[2] * high + c[3] * wide * wide + c[4] * wide * high + c[5] * high * high
    np.testing.assert_array_equal(rows, plain.astype(np.float32))
