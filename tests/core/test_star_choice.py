"""Which maxima are stars: the line most of them lie on."""

from __future__ import annotations

import numpy as np
import pytest

from zemosaic_core.star_choice import best_line


def plain_best_line(x, y, angles, width):
    """Every direction and every strip, counted anew; of equals the first direction, then the nearest strip."""
    best = (0, 0.0, 0.0)
    for a in range(angles):
        t = np.pi * a / angles
        strip = np.floor((x * np.cos(t) + y * np.sin(t)) / width).astype(int)
        for edge in sorted({s + step for s in strip for step in (0, 1)}):
            count = int(((strip == edge) | (strip == edge - 1)).sum())
            if count > best[0]:
                best = (count, t, edge * width)
    return best


@pytest.mark.parametrize("n", [1, 2, 40, 90])
def test_the_fullest_line_is_that_of_a_plain_count(n):
    rng = np.random.default_rng(n)
    x, y = rng.uniform(0, 300, n), rng.uniform(0, 200, n)
    x[: n // 4], y[: n // 4] = np.linspace(0, 280, n // 4), np.linspace(20, 150, n // 4)
    votes = np.ones(400, np.int32)
    found = best_line(x, y, 60, 4.0, votes)
    expected = plain_best_line(x, y, 60, 4.0)
    assert found[0] == expected[0]
    assert found[1:] == pytest.approx(expected[1:], abs=1e-9)
