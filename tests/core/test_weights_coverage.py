from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from zemosaic_core.coverage import autocrop_bbox, coverage_bbox, edge_ramp, enlarge_rows, inscribed_rectangle
from zemosaic_core.errors import SettingsError
from zemosaic_core.weights import frame_weights, make_radial_weight_map


def test_frame_weights_are_inverse_variances_after_the_gain():
    noise = np.array([[10.0, 20], [20, 20], [10, 40]])
    gain = np.array([[1.0, 1], [1, 1], [2, 1]])
    fwhm = np.array([2.0, 3.0, 2.0])
    np.testing.assert_allclose(
        frame_weights(noise, fwhm, gain, "noise_variance"), [[1, 1], [0.25, 1], [0.25, 0.25]]
    )
    np.testing.assert_allclose(
        frame_weights(noise, fwhm, gain, "noise_fwhm")[:, 0], [1, 0.25 * 4 / 9, 0.25], rtol=1e-6
    )
    np.testing.assert_array_equal(frame_weights(noise, fwhm, gain, "none"), 1)


def test_unknown_noise_weighs_like_the_median_frame():
    noise = np.array([[10.0], [20], [np.nan], [0], [40]])
    weights = frame_weights(noise, np.ones(5), np.ones((5, 1)), "noise_variance")[:, 0]
    np.testing.assert_allclose(weights, [1, 0.25, 0.25, 0.25, 0.0625])
    lost = frame_weights(noise * np.nan, np.ones(5), np.ones((5, 1)), "noise_variance")
    np.testing.assert_array_equal(lost, 1)
    assert frame_weights(np.empty((0, 3)), np.empty(0), np.empty((0, 3)), "noise_fwhm").shape == (0, 3)


def test_weights_beat_the_plain_mean():
    rng = np.random.default_rng(0)
    sigma = np.array([10.0, 10, 40, 60])
    frames = rng.normal(0, sigma[:, None], (4, 20000))
    weights = frame_weights(sigma[:, None], np.ones(4), np.ones((4, 1)), "noise_variance")
    weighted = (weights * frames).sum(axis=0) / weights.sum()
    assert weighted.std() < 0.5 * frames.mean(axis=0).std()


def test_weight_arguments_are_checked():
    with pytest.raises(SettingsError, match="magic"):
        frame_weights(np.ones((2, 3)), np.ones(2), np.ones((2, 3)), "magic")
    with pytest.raises(ValueError, match="fwhm"):
        frame_weights(np.ones((2, 3)), np.ones(3), np.ones((2, 3)), "none")
    for bad in ((5, 5, 0.0), (5, 5, 0.8, -1.0), (5, 5, 0.8, 2.0, 1.5), (0, 5)):
        with pytest.raises(ValueError, match=r"must be|needs"):
            make_radial_weight_map(*bad)


@pytest.mark.parametrize("shape", [(41, 61), (40, 1), (1, 1)])
def test_radial_map_is_the_formula(shape):
    ours = make_radial_weight_map(*shape, 0.8, 2.0, 0.05)
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    cy, cx = (shape[0] - 1) / 2, (shape[1] - 1) / 2
    radius = np.hypot(y - cy, x - cx) / max(np.hypot(cy, cx), 1e-9)
    expected = np.maximum(np.cos(np.pi / 2 * np.clip(radius / 0.8, 0, 1)) ** 2, 0.05)
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    assert ours.dtype == np.float32


def brute_rectangle(covered):
    best = 0
    for y0 in range(covered.shape[0]):
        for y1 in range(y0 + 1, covered.shape[0] + 1):
            columns = covered[y0:y1].all(axis=0)
            run = 0
            for value in columns:
                run = run + 1 if value else 0
                best = max(best, run * (y1 - y0))
    return best


def test_inscribed_rectangle_is_the_largest():
    rng = np.random.default_rng(0)
    for seed in range(30):
        covered = rng.random((rng.integers(1, 14), rng.integers(1, 17))) < (0.5 + seed / 60)
        y0, y1, x0, x1 = inscribed_rectangle(covered)
        assert covered[y0:y1, x0:x1].all()
        assert (y1 - y0) * (x1 - x0) == brute_rectangle(covered)
    assert inscribed_rectangle(np.zeros((3, 4), bool)) == (0, 0, 0, 0)
    assert inscribed_rectangle(np.ones((3, 4), bool)) == (0, 3, 0, 4)


def test_boxes_of_the_coverage():
    coverage = np.zeros((20, 30))
    coverage[4:10, 6:20] = 10
    coverage[6, 25] = 1
    coverage[0, 0] = np.nan
    assert coverage_bbox(coverage) == (4, 10, 6, 26)
    assert coverage_bbox(coverage, 5) == (4, 10, 6, 20)
    assert coverage_bbox(coverage, 50) == (0, 0, 0, 0)
    assert autocrop_bbox(coverage) == (4, 10, 6, 26)
    assert autocrop_bbox(coverage, min_fraction=0.5) == (4, 10, 6, 20)
    assert autocrop_bbox(coverage, inscribed=True, margin=1) == (5, 9, 7, 19)
    assert autocrop_bbox(coverage, margin=5) == (0, 0, 0, 0)
    assert autocrop_bbox(np.zeros((3, 3))) == (0, 0, 0, 0)
    with pytest.raises(ValueError, match="margin"):
        autocrop_bbox(coverage, margin=-1)


def test_edge_ramp_is_a_smoothstep_of_the_distance():
    rng = np.random.default_rng(0)
    valid = ndimage.binary_opening(rng.random((40, 50)) < 0.93, iterations=1)
    ramp = edge_ramp(valid, 6.0)
    bad = np.argwhere(~np.pad(valid, 1))
    for y, x in ((20, 25), (0, 0), (39, 49), (12, 31)):
        distance = np.hypot(*(bad - (y + 1, x + 1)).T).min()
        r = min(distance / 6.0, 1)
        assert ramp[y, x] == pytest.approx(r * r * (3 - 2 * r), abs=1e-6)
    assert ((ramp > 0) == valid).all()
    assert np.array_equal(edge_ramp(valid, 0), valid.astype(np.float32))


def test_enlarged_rows_are_bilinear_and_the_same_in_any_pieces():
    rng = np.random.default_rng(8)
    small = rng.random((6, 5)).astype(np.float32)
    whole = enlarge_rows(small, 4, 0, 23, 19)
    for y in range(23):
        for x in range(19):
            fy, fx = min(y / 4, 5), min(x / 4, 4)
            j, i = min(int(fy), 4), min(int(fx), 3)
            a, b = fy - j, fx - i
            expected = (small[j, i] * (1 - b) + small[j, i + 1] * b) * (1 - a)
            expected += (small[j + 1, i] * (1 - b) + small[j + 1, i + 1] * b) * a
            assert whole[y, x] == pytest.approx(expected, abs=1e-6)
    pieces = [enlarge_rows(small, 4, a, b, 19) for a, b in ((0, 7), (7, 8), (8, 23))]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
