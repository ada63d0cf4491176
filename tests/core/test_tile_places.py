"""Tiles of one place, and the variance of their mean, against plain counting."""

from __future__ import annotations

import numpy as np
import pytest

from zemosaic_core.tile_places import CoveredCells, kept_variance, overlap_share, tiles_of_one_place


def cells(y, x, height=10, width=10):
    return CoveredCells((y, x), np.ones((height, width), bool))


def groups(tiles, threshold=0.6, min_group=2, max_group=64):
    return tiles_of_one_place(tiles, threshold=threshold, min_group=min_group, max_group=max_group)


def test_share_of_the_smaller_tile():
    rng = np.random.default_rng(2)
    for _ in range(20):
        a, b = (
            CoveredCells(tuple(rng.integers(-5, 5, 2)), rng.random(tuple(rng.integers(3, 9, 2))) < 0.7)
            for _ in range(2)
        )
        places = [
            {(y + part.first_yx[0], x + part.first_yx[1]) for y, x in np.argwhere(part.covered)}
            for part in (a, b)
        ]
        smaller = min(map(len, places))
        assert overlap_share(a, b) == pytest.approx(len(places[0] & places[1]) / smaller if smaller else 0.0)
        assert overlap_share(a, b) == overlap_share(b, a)
    # A small tile inside a large one shows the same place.
    assert overlap_share(cells(0, 0), cells(3, 3, 4, 4)) == 1.0


def test_groups_follow_links_and_limits():
    row = [cells(0, 3 * i) for i in range(5)]
    assert groups(row) == [(0, 1, 2, 3, 4)]
    assert groups(row, threshold=0.8) == []
    assert groups(row, max_group=3) == [(0, 1, 2), (3, 4)]
    # Parts that have become too small are no groups.
    assert groups(row, max_group=3, min_group=3) == [(0, 1, 2)]
    assert groups(row, min_group=6) == []
    two = [cells(0, 0), cells(100, 100), cells(1, 0), cells(101, 100), cells(500, 0)]
    assert groups(two) == [(0, 2), (1, 3)]
    assert groups([]) == groups([cells(0, 0)]) == []


def test_variance_of_what_was_kept():
    rng = np.random.default_rng(3)
    w = rng.uniform(0.5, 2.0, 5)
    v = rng.uniform(1.0, 3.0, 5)
    of_all = (w**2 * v).sum() / w.sum() ** 2
    whole = kept_variance(np.array([of_all]), np.array([w.sum()]), np.array([w.sum()]))
    assert whole[0] == pytest.approx(of_all, rel=1e-6)
    # With weights of inverse variances it is that of the kept alone.
    v = 2.0 / w
    of_all = (w**2 * v).sum() / w.sum() ** 2
    kept = kept_variance(np.array([of_all, 1.0]), np.array([w.sum(), 1.0]), np.array([w[:3].sum(), 0.0]))
    assert kept[0] == pytest.approx((w[:3] ** 2 * v[:3]).sum() / w[:3].sum() ** 2, rel=1e-6)
    assert np.isnan(kept[1])
