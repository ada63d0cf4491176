"""What is compiled for many small fits gives what plain NumPy gives, and says what points do not tell apart."""

from __future__ import annotations

import numpy as np
import pytest

from zemosaic_core.covered_sky import _robust_plane
from zemosaic_core.frame_views import frame_views
from zemosaic_core.polynomial_fits import clipped_fit, least_squares, nested_errors
from zemosaic_core.transforms import Transform, _terms, fit_transform

RNG = np.random.default_rng(4)
SRC = RNG.uniform((5.0, 900.0), (1075.0, 1900.0), (120, 2))
DST = SRC @ np.array([[1.0, 0.02], [-0.02, 1.0]]) + 3e-5 * (SRC - 500) ** 2 + RNG.normal(0, 0.1, SRC.shape)
BENT = [[90, 99, 0, 0, 0, 0], [99, 0, 99, 0, 0, 0]]
N_TERMS = {1: 3, 2: 6, 3: 10}


def plain_terms(order: int) -> np.ndarray:
    low, high = SRC.min(axis=0), SRC.max(axis=0)
    half = (high - low).max() / 2
    return _terms(*((SRC - (low + high) / 2) / half).T, order)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_coefficients_are_those_of_a_plain_least_squares(order):
    known, x, y, scale, found = least_squares(SRC, DST, np.ones(len(SRC), bool), N_TERMS[order])
    assert known
    assert (x, y) == tuple((SRC.min(axis=0) + SRC.max(axis=0)) / 2)
    assert scale == np.ptp(SRC, axis=0).max() / 2
    plain = np.linalg.lstsq(plain_terms(order), DST, rcond=None)[0]
    np.testing.assert_allclose(found, plain.T, rtol=1e-10, atol=1e-9)


def test_errors_of_lower_orders_come_with_those_of_the_highest():
    known, errors = nested_errors(SRC, DST, 10)
    assert known
    for order in (1, 2, 3):
        q = np.linalg.qr(plain_terms(order))[0]
        residual = DST - q @ (q.T @ DST)
        plain = (residual**2).sum(axis=1) / (1 - (q**2).sum(axis=1)) ** 2
        np.testing.assert_allclose(errors[order - 1], plain, rtol=1e-8)
    for k in (3, 77):
        others = np.arange(len(SRC)) != k
        left_out = np.linalg.lstsq(plain_terms(2)[others], DST[others], rcond=None)[0]
        away = plain_terms(2)[k] @ left_out - DST[k]
        assert errors[1, k] == pytest.approx((away**2).sum(), rel=1e-8)


def test_outliers_are_clipped_as_by_plain_code():
    dst = DST.copy()
    dst[::10] += RNG.normal(0, 30, (12, 2))
    _, x, y, scale, found, keep = clipped_fit(SRC, dst, 10, 3.0, 10, 2 * np.log(2), 10)
    terms, plain_keep = plain_terms(3), np.ones(len(SRC), bool)
    for _ in range(10):
        fit = np.linalg.lstsq(terms[plain_keep], dst[plain_keep], rcond=None)[0]
        r2 = ((terms @ fit - dst) ** 2).sum(axis=1)
        plain_keep = r2 <= 9 * np.median(r2) / (2 * np.log(2)) / (1 - 10 / len(SRC))
    np.testing.assert_array_equal(keep, plain_keep)
    assert 90 < keep.sum() < 115
    np.testing.assert_allclose(
        np.column_stack(Transform("poly3", (x, y), scale, *found).apply(*SRC.T)), terms @ fit, atol=1e-7
    )


def test_points_on_a_line_do_not_tell_the_terms_apart():
    line = np.column_stack([np.arange(40.0), 2 * np.arange(40.0)])
    assert not least_squares(line, line, np.ones(40, bool), 3)[0]
    assert not nested_errors(line, line, 10)[0]
    # The map along the line is found all the same.
    fitted = fit_transform(line, line + 5.0, "affine").transform
    np.testing.assert_allclose(np.column_stack(fitted.apply(*line.T)), line + 5.0, atol=1e-9)


def test_a_plane_through_cells():
    y, x = np.mgrid[:9, :5]
    terms = np.stack([np.ones(45), x.ravel() / 2 - 1, y.ravel() / 4 - 1], axis=-1)
    values = terms @ [400.0, 5.0, -3.0] + RNG.normal(0, 1, 45)
    values[::9] += 80.0
    keep = np.ones(45, bool)
    for _ in range(3):
        plain = np.linalg.lstsq(terms[keep], values[keep], rcond=None)[0]
        residual = np.abs(values - terms @ plain)
        keep = residual <= 3 * 1.4826 * np.median(residual)
    np.testing.assert_allclose(_robust_plane(terms, values, 4), plain, rtol=1e-10)
    column = terms[:, 1] == 0
    along = terms[column] @ _robust_plane(terms[column], (400.0 - 3.0 * terms[:, 2])[column], 4)
    np.testing.assert_allclose(along, (400.0 - 3.0 * terms[:, 2])[column], atol=1e-9)


def test_frames_that_look_at_a_place_are_counted():
    shapes, cells = [(300, 200), (300, 200), (260, 320)], RNG.uniform(size=(6, 4)) < 0.3
    maps = [
        Transform.from_matrix(np.array([[1.0, 0.1, -20.0], [-0.1, 1.0, 35.0]])),
        Transform("poly2", (100.0, 90.0), 100.0, *np.add(RNG.normal(0, 3, (2, 6)), BENT)),
        Transform.identity(),
    ]
    covered = [None, cells, None]
    xy = RNG.uniform(-60, 360, (500, 2))
    looks = []
    for to_frame, (height, width), mask in zip(maps, shapes, covered, strict=True):
        x, y = to_frame.apply(*xy.T)
        inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
        if mask is not None:
            row, column = (
                (np.where(inside, y, 0) * 6 / height).astype(int),
                np.where(inside, x, 0) * 4 / width,
            )
            inside &= ~mask[row, column.astype(int)]
        looks.append(inside)
    views = frame_views(maps, shapes, covered)
    for i in range(3):
        plain = np.sum([look for j, look in enumerate(looks) if j != i], axis=0)
        assert set(plain) == {0, 1, 2}
        np.testing.assert_array_equal(views.others_at(i, xy), plain)
        np.testing.assert_array_equal(views.others_at(i, xy, most=1), plain > 0)
