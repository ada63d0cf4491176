from __future__ import annotations

import numpy as np
import pytest

from zemosaic_core.adjustment import frame_components, frame_information, solve_adjustment, star_means


def _problem(seed=0, n_frames=8, n_stars=30, n_par=3):
    rng = np.random.default_rng(seed)
    frame, star = np.nonzero(rng.random((n_frames, n_stars)) < 0.5)
    basis = np.column_stack([np.ones(len(frame)), rng.normal(size=(len(frame), n_par - 1))])
    values = rng.normal(size=(len(frame), 2))
    weights = rng.uniform(0.2, 2, len(frame))
    weights[::17] = 0
    prior = rng.uniform(0.1, 1, (n_frames, n_par))
    return frame, star, basis, values, weights, prior


def _dense(frame, star, basis, values, weights, prior, n_stars, anchor_values=None, anchor_weights=None):
    """The same minimum from one big least-squares matrix with the stars as explicit unknowns."""
    n_frames, n_par = prior.shape
    size = n_frames * n_par + n_stars
    rows, right = [], []
    for k in range(len(frame)):
        row = np.zeros(size)
        row[frame[k] * n_par : (frame[k] + 1) * n_par] = basis[k]
        row[n_frames * n_par + star[k]] = -1
        rows.append(np.sqrt(weights[k]) * row)
        right.append(-np.sqrt(weights[k]) * values[k])
    for i, p in enumerate(prior.ravel()):
        row = np.zeros(size)
        row[i] = np.sqrt(p)
        rows.append(row)
        right.append(np.zeros(values.shape[1]))
    if anchor_weights is not None:
        for j in range(n_stars):
            row = np.zeros(size)
            row[n_frames * n_par + j] = np.sqrt(anchor_weights[j])
            rows.append(row)
            right.append(np.sqrt(anchor_weights[j]) * anchor_values[j])
    x = np.linalg.lstsq(np.array(rows), np.array(right), rcond=None)[0]
    return x[: n_frames * n_par].reshape(n_frames, n_par, -1), x[n_frames * n_par :]


@pytest.mark.parametrize("n_par", [1, 3])
def test_equals_the_dense_solution(n_par):
    problem = _problem(n_par=n_par)
    expected, stars = _dense(*problem, 30)
    result = solve_adjustment(*problem, 30)
    assert result.converged
    np.testing.assert_allclose(result.parameters, expected, atol=1e-7)
    seen = np.bincount(problem[1], problem[4], minlength=30) > 0
    np.testing.assert_allclose(result.star_values[seen], stars[seen], atol=1e-7)
    assert np.isnan(result.star_values[~seen]).all()


def test_anchors_and_a_start_value():
    problem = _problem(3)
    rng = np.random.default_rng(1)
    anchor_values, anchor_weights = rng.normal(size=(30, 2)), rng.uniform(0.5, 2, 30) * (rng.random(30) < 0.5)
    expected, _ = _dense(*problem, 30, anchor_values, anchor_weights)
    for start in (None, rng.normal(size=expected.shape)):
        result = solve_adjustment(
            *problem, 30, anchor_values=anchor_values, anchor_weights=anchor_weights, start=start
        )
        np.testing.assert_allclose(result.parameters, expected, atol=1e-7)


def test_order_of_measurements_does_not_matter():
    frame, star, basis, values, weights, prior = _problem(5)
    order = np.random.default_rng(0).permutation(len(frame))
    a = solve_adjustment(frame, star, basis, values, weights, prior, 30)
    b = solve_adjustment(frame[order], star[order], basis[order], values[order], weights[order], prior, 30)
    np.testing.assert_allclose(a.parameters, b.parameters, atol=1e-8)


def test_giving_up_is_reported():
    result = solve_adjustment(*_problem(), 30, max_steps=1)
    assert not result.converged


def test_components_are_ordered_by_size():
    frame = np.array([0, 1, 2, 3, 4, 5, 5])
    star = np.array([0, 0, 1, 1, 1, 2, 3])
    np.testing.assert_array_equal(frame_components(frame, star, 7, 4), [1, 1, 0, 0, 0, 2, -1])
    assert (frame_components(frame[:0], star[:0], 3, 4) == -1).all()


def test_information_of_one_constant_per_frame():
    # Two frames, one star, unit weights: the difference has variance 2, each frame half of it.
    info = frame_information(np.array([0, 1]), np.array([0, 0]), np.ones(2), 2, 1)
    np.testing.assert_allclose(info, [0.5, 0.5])


def test_star_means():
    mean = star_means(np.array([0, 0, 2]), np.array([[1.0], [4.0], [7.0]]), np.array([1.0, 2.0, 1.0]), 3)
    np.testing.assert_allclose(mean[[0, 2], 0], [3.0, 7.0])
    assert np.isnan(mean[1, 0])
