from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial import cKDTree
from scipy.stats import binom

from zemosaic_core.star_patterns import (
    MIN_LOG10_ODDS,
    find_similarity,
    fit_similarity,
    log10_odds_against_chance,
    mutual_matches,
)
from zemosaic_core.star_triangles import make_triangles

SHAPE_XY = np.array([1920.0, 1080.0])


def make_pair(rng, n_stars, *, overlap=1.0, mirror=False, scale=1.0, common=0.5, noise=0.3):
    """Two views of one sky; each list lacks half of the stars of the other, fluxes scatter by 15 percent."""
    turn = rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    if mirror:
        rotation = rotation @ np.diag([1.0, -1.0])
    n_sky = int(n_stars / common / SHAPE_XY.prod() * 4600**2)
    sky = rng.uniform(-2300, 2300, (n_sky, 2))
    flux = rng.pareto(1.2, n_sky)
    direction = rng.uniform(0, 2 * np.pi)
    unit = np.array([np.cos(direction), np.sin(direction)])
    points = (rng.uniform(-0.5, 0.5, (3000, 2))) * SHAPE_XY
    low, high = 0.0, 2500.0
    for _ in range(16):
        middle = (low + high) / 2
        inside = (np.abs((points - unit * middle) @ rotation.T * scale) < SHAPE_XY / 2).all(axis=1).mean()
        low, high = (middle, high) if inside > overlap else (low, middle)

    def view(centre, matrix):
        xy = (sky - centre) @ matrix.T + SHAPE_XY / 2
        rows = np.flatnonzero(((xy >= 0) & (xy < SHAPE_XY)).all(axis=1) & (rng.uniform(size=n_sky) < common))
        rows = rows[np.argsort(-flux[rows] * np.exp(rng.normal(0, 0.15, len(rows))))]
        return xy[rows] + rng.normal(0, noise, (len(rows), 2)), rows

    ref, ref_rows = view(np.zeros(2), np.eye(2))
    src, src_rows = view(unit * low, rotation * scale)
    return ref, src, ref_rows, src_rows


def agreement(match, ref_rows, src_rows):
    return (ref_rows[match.ref_index] == src_rows[match.src_index]).mean()


@pytest.mark.parametrize(
    ("kwargs", "least"),
    [
        ({"n_stars": 90}, 40),
        ({"n_stars": 200, "overlap": 0.35}, 40),
        ({"n_stars": 120, "overlap": 0.35}, 38),
        ({"n_stars": 40}, 38),
    ],
)
def test_views_of_one_sky_are_matched_and_never_wrongly(kwargs, least):
    rng = np.random.default_rng(11)
    found = 0
    for _ in range(40):
        ref, src, ref_rows, src_rows = make_pair(rng, **kwargs)
        match = find_similarity(ref, src)
        if match is None:
            continue
        found += 1
        assert agreement(match, ref_rows, src_rows) > 0.85
        assert match.rms_px < 1.0
        assert match.log10_odds >= MIN_LOG10_ODDS
        assert not match.mirrored
    assert found >= least


def test_unrelated_lists_never_match():
    rng = np.random.default_rng(5)
    for n_stars in (8, 15, 40, 90, 300) * 30:
        a = rng.uniform(0, 1, (n_stars, 2)) * SHAPE_XY
        b = rng.uniform(0, 1, (n_stars, 2)) * SHAPE_XY
        assert find_similarity(a, b, allow_mirror=True) is None


def test_crowded_unrelated_lists_never_match():
    rng = np.random.default_rng(6)
    for _ in range(40):
        lists = []
        for _ in range(2):
            knots = rng.uniform(0, 1, (6, 2)) * SHAPE_XY
            lists.append(knots[rng.integers(0, 6, 120)] + rng.normal(0, 25, (120, 2)))
        assert find_similarity(*lists) is None


def test_mirrored_list_needs_permission():
    rng = np.random.default_rng(3)
    ref, src, ref_rows, src_rows = make_pair(rng, 120, mirror=True)
    assert find_similarity(ref, src) is None
    match = find_similarity(ref, src, allow_mirror=True)
    assert match is not None
    assert match.mirrored
    assert agreement(match, ref_rows, src_rows) > 0.9


def test_scale_bounds_are_respected():
    rng = np.random.default_rng(4)
    ref, src, ref_rows, src_rows = make_pair(rng, 120, scale=0.8)
    assert find_similarity(ref, src) is None
    match = find_similarity(ref, src, scale_bounds=(0.5, 2.0))
    assert match is not None
    assert match.scale == pytest.approx(1 / 0.8, rel=2e-3)
    assert agreement(match, ref_rows, src_rows) > 0.9


def test_matrix_maps_source_to_reference():
    rng = np.random.default_rng(8)
    src = rng.uniform(0, 1000, (50, 2))
    angle = math.radians(133.0)
    linear = 1.01 * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    ref = src @ linear.T + (40.0, -7.0)
    match = find_similarity(ref[::-1], src)
    np.testing.assert_allclose(match.matrix, np.column_stack([linear, (40.0, -7.0)]), atol=1e-8)
    np.testing.assert_array_equal(match.ref_index, 49 - match.src_index)
    assert match.rotation_deg == pytest.approx(133.0)
    np.testing.assert_allclose(match.apply(src), ref, atol=1e-7)


def test_lists_may_be_empty_short_or_hold_missing_rows():
    rng = np.random.default_rng(9)
    src = rng.uniform(0, 1000, (40, 2))
    assert find_similarity(np.empty((0, 2)), src) is None
    assert find_similarity(src[:3], src[:3]) is None
    ref = src.copy()
    ref[4] = np.nan
    match = find_similarity(ref, src)
    assert 4 not in match.ref_index
    np.testing.assert_array_equal(match.ref_index, match.src_index)


def test_result_is_the_same_every_time():
    ref, src, *_ = make_pair(np.random.default_rng(21), 90, overlap=0.5)
    first, second = find_similarity(ref, src), find_similarity(ref, src)
    np.testing.assert_array_equal(first.matrix, second.matrix)
    assert first.log10_odds == second.log10_odds


@pytest.mark.parametrize("mirror", [False, True])
def test_fit_similarity_agrees_with_plain_least_squares(mirror):
    rng = np.random.default_rng(1)
    src = rng.uniform(0, 100, (9, 2))
    ref = rng.uniform(0, 100, (9, 2))
    x, y = src.T * np.array([[1.0], [-1.0 if mirror else 1.0]])
    one, zero = np.ones(9), np.zeros(9)
    design = np.concatenate([np.column_stack([x, -y, one, zero]), np.column_stack([y, x, zero, one])])
    a, b, tx, ty = np.linalg.lstsq(design, ref.T.ravel(), rcond=None)[0]
    flip = -1.0 if mirror else 1.0
    np.testing.assert_allclose(
        fit_similarity(ref, src, mirror=mirror), [[a, -b * flip, tx], [b, a * flip, ty]], atol=1e-9
    )


def test_odds_bound_the_exact_binomial_tail():
    for n, k, p in ((30, 8, 0.02), (200, 40, 0.1), (12, 12, 0.3)):
        exact = -math.log10(binom.sf(k - 1, n, p) * 50)
        bound = log10_odds_against_chance(n, k, p, 50)
        assert bound <= exact + 1e-9
        assert bound > exact - 1.5
    assert log10_odds_against_chance(100, 5, 0.1, 1) <= 0
    assert log10_odds_against_chance(0, 0, 0.1, 1) <= 0


def test_triangles_are_ordered_by_their_sides():
    xy = np.array([[0.0, 0.0], [40.0, 0.0], [0.0, 30.0], [500.0, 500.0]])
    triangles = make_triangles(xy, 2)
    row = int(np.flatnonzero(triangles.longest == 50.0)[0])
    assert list(triangles.vertices[row]) == [0, 2, 1]
    assert triangles.middle[row] == pytest.approx(0.8)
    assert triangles.shortest[row] == pytest.approx(0.6)
    assert (np.diff(triangles.middle) >= 0).all()


def test_mutual_matches_use_each_star_once():
    ref = np.array([[0.0, 0.0], [10.0, 0.0]])
    mapped = np.array([[0.5, 0.0], [0.2, 0.0], [10.4, 0.0], [50.0, 0.0]])
    ref_index, src_index = mutual_matches(cKDTree(ref), mapped, 1.0)
    assert list(ref_index) == [0, 1]
    assert list(src_index) == [1, 2]
