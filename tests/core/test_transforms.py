from __future__ import annotations

import json

import numpy as np
import pytest

from zemosaic_core.errors import SkipItem
from zemosaic_core.sphere import tan_wcs
from zemosaic_core.transforms import (
    KINDS,
    Transform,
    choose_transform,
    compose,
    fit_callable,
    fit_transform,
    min_points,
)

BOX = (-0.5, -0.5, 1079.5, 1919.5)


def _points(n, seed=0):
    return np.random.default_rng(seed).uniform([0, 0], [1080, 1920], (n, 2))


def _target(src, kind, mirror=False):
    u, v = (src[:, 0] - 540) / 960, (src[:, 1] - 960) / 960
    sign = -1 if mirror else 1
    x = 300 + 0.8 * src[:, 0] - sign * 0.6 * src[:, 1]
    y = -50 + 0.6 * src[:, 0] + sign * 0.8 * src[:, 1]
    if kind != "similarity":
        x = x + 2.0 * v
    if kind in ("poly2", "poly3"):
        x, y = x + 1.5 * u * u, y - 1.0 * u * v
    if kind == "poly3":
        r2 = u * u + v * v
        x, y = x + 1.5 * u * r2, y + 1.5 * v * r2
    return np.column_stack([x, y])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mirror", [False, True])
def test_noiseless_fit_is_exact(kind, mirror):
    src = _points(60)
    dst = _target(src, kind, mirror)
    result = fit_transform(src, dst, kind)
    x, y = result.transform.apply(src[:, 0], src[:, 1])
    np.testing.assert_allclose(np.column_stack([x, y]), dst, atol=1e-8)
    assert result.n_used == 60
    assert result.rms_px < 1e-8


@pytest.mark.parametrize("kind", KINDS)
def test_the_simplest_justified_kind_is_chosen(kind):
    rng = np.random.default_rng(4)
    src = _points(150, 2)
    dst = _target(src, kind) + rng.normal(0, 0.1, (150, 2))
    result = choose_transform(src, dst)
    assert result.kind == kind
    assert result.rms_px == pytest.approx(0.1 * np.sqrt(2), rel=0.15)
    assert result.cv_rms_px > result.rms_px


def test_pure_noise_rarely_buys_a_richer_kind():
    rng = np.random.default_rng(8)
    kinds = []
    for seed in range(100):
        src = _points(40, seed)
        kinds.append(choose_transform(src, src + rng.normal(0, 0.3, src.shape)).kind)
    assert kinds.count("similarity") >= 90


def test_few_stars_allow_only_simple_kinds():
    for n, richest in ((4, "similarity"), (9, "affine"), (18, "poly2"), (40, "poly3")):
        src = _points(n, 5)
        result = choose_transform(src, _target(src, "poly3"))
        assert KINDS.index(result.kind) <= KINDS.index(richest)
    assert [min_points(k) for k in KINDS] == [3, 9, 18, 30]


def test_max_kind_is_respected():
    src = _points(200)
    assert choose_transform(src, _target(src, "poly3"), max_kind="affine").kind == "affine"


def test_outliers_are_clipped_and_nan_ignored():
    rng = np.random.default_rng(1)
    src = _points(100)
    dst = _target(src, "affine") + rng.normal(0, 0.1, (100, 2))
    dst[:10] += rng.uniform(2, 5, (10, 2))
    dst[10] = np.nan
    for result in (fit_transform(src, dst, "affine"), choose_transform(src, dst)):
        assert result.kind == "affine"
        assert not result.keep[:11].any()
        assert result.keep[11:].sum() >= 84
        assert result.n_used == result.keep.sum()
        truth = _target(src, "affine")
        x, y = result.transform.apply(src[:, 0], src[:, 1])
        assert np.hypot(x - truth[:, 0], y - truth[:, 1]).max() < 0.15


def test_leave_one_out_error_equals_refitting_without_each_star():
    rng = np.random.default_rng(3)
    src = _points(25, 9)
    for kind in KINDS:
        dst = _target(src, kind) + rng.normal(0, 0.5, (25, 2))
        result = fit_transform(src, dst, kind, clip_sigma=np.inf)
        errors = []
        for k in range(25):
            rest = np.arange(25) != k
            t = fit_transform(src[rest], dst[rest], kind, clip_sigma=np.inf).transform
            x, y = t.apply(*src[k])
            errors.append((x - dst[k, 0]) ** 2 + (y - dst[k, 1]) ** 2)
        assert result.cv_rms_px == pytest.approx(np.sqrt(np.mean(errors)), rel=1e-6)


def test_too_few_pairs_is_a_skip_with_numbers():
    with pytest.raises(SkipItem) as error:
        fit_transform(_points(5), _points(5), "poly3")
    assert error.value.values["n"] == 5
    assert error.value.values["needed"] == 10
    with pytest.raises(SkipItem):
        choose_transform(np.full((4, 2), np.nan), _points(4))
    with pytest.raises(ValueError, match="same length"):
        fit_transform(_points(5), _points(6), "affine")


@pytest.mark.parametrize("kind", KINDS)
def test_serialisation_is_lossless(kind):
    src = _points(60)
    t = fit_transform(src, _target(src, kind), kind).transform
    back = Transform.from_dict(json.loads(json.dumps(t.to_dict())))
    assert back.kind == t.kind
    np.testing.assert_array_equal(back.apply(src[:, 0], src[:, 1]), t.apply(src[:, 0], src[:, 1]))


@pytest.mark.parametrize("kind", KINDS)
def test_inverse_comes_back(kind):
    src = _points(60)
    t = fit_transform(src, _target(src, kind), kind).transform
    x, y = t.invert(*BOX).apply(*t.apply(src[:, 0], src[:, 1]))
    # Polynomial inverses are approximate: of the order of the square of the distortion (a few px on 1000).
    tolerance = 1e-8 if kind in ("similarity", "affine") else 0.02
    np.testing.assert_allclose(np.column_stack([x, y]), src, atol=tolerance)


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", KINDS)
def test_compose_is_one_after_the_other(first, second):
    src = _points(200)
    a = fit_transform(src, _target(src, first), first).transform
    middle = np.column_stack(a.apply(src[:, 0], src[:, 1]))
    b = fit_transform(middle, _target(middle, second), second).transform
    joined = compose(a, b, BOX)
    expected = b.apply(*a.apply(src[:, 0], src[:, 1]))
    tolerance = 1e-7 if second in ("similarity", "affine") or first in ("similarity", "affine") else 0.05
    np.testing.assert_allclose(joined.apply(src[:, 0], src[:, 1]), expected, atol=tolerance)


def test_matrix_form():
    m = np.array([[0.9, -0.1, 5.0], [0.2, 1.1, -7.0]])
    t = Transform.from_matrix(m)
    np.testing.assert_allclose(t.matrix(), m)
    src = _points(30)
    fitted = fit_transform(src, np.column_stack(t.apply(src[:, 0], src[:, 1])), "affine").transform
    np.testing.assert_allclose(fitted.matrix(), m, atol=1e-9)
    np.testing.assert_array_equal(Transform.identity().apply(3.0, 4.0), (3.0, 4.0))


def test_apply_keeps_shape_and_nan():
    t = Transform.from_matrix(np.array([[1.0, 0, 1], [0, 1.0, 2]]))
    x, y = t(np.array([[0.0, np.nan], [2, 3]]), np.zeros((2, 2)))
    assert x.shape == (2, 2)
    assert np.isnan(x[0, 1])
    assert y[0, 0] == 2


def test_wcs_chain_is_a_cubic_to_a_thousandth_of_a_pixel():
    plane = tan_wcs((100, 60), 2.4 / 3600, (5000, 5000))
    frame = tan_wcs((104, 62.5), 2.4 / 3600, (1920, 1080), 25)

    def chain(x, y):
        return plane.all_world2pix(*frame.all_pix2world(x, y, 0), 0)

    forward, error = fit_callable(chain, BOX)
    assert error < 1e-3
    backward, _ = fit_callable(chain, BOX, inverse=True)
    src = _points(100)
    x, y = forward.apply(src[:, 0], src[:, 1])
    np.testing.assert_allclose(np.column_stack([x, y]), np.column_stack(chain(*src.T)), atol=1e-3)
    np.testing.assert_allclose(np.column_stack(backward.apply(x, y)), src, atol=2e-3)


def test_a_map_that_is_not_finite_is_a_skip():
    with pytest.raises(SkipItem):
        fit_callable(lambda x, y: (x * np.nan, y), BOX)
