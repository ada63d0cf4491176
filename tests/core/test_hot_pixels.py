from __future__ import annotations

import numpy as np
import pytest

from zemosaic_core.hot_pixels import detect_and_correct, find_candidates, persistent, repair_cfa

SHAPE = (160, 200)


def make_frame(seed=0, stars=40):
    """Mosaicked frame with sharp stars of several colours on an uneven sky of unequal colours."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : SHAPE[0], 0 : SHAPE[1]]
    colour = np.where(y % 2 == 0, np.where(x % 2 == 0, 1.0, 0.7), np.where(x % 2 == 0, 0.55, 1.0))
    frame = (900 + 0.8 * x) * colour
    for _ in range(stars):
        sx, sy = rng.uniform(4, SHAPE[1] - 4), rng.uniform(4, SHAPE[0] - 4)
        response = np.where(y % 2 == 0, np.where(x % 2 == 0, 1, rng.uniform(0.5, 1.5)), 1.0)
        frame += (
            10 ** rng.uniform(3, 4.5) * response * np.exp(-((x - sx) ** 2 + (y - sy) ** 2) / (2 * 0.8**2))
        )
    frame = np.minimum(frame + rng.normal(0, 60, SHAPE), 65535)
    return frame.astype(np.uint16)


HOT = [(3, 7), (50, 60), (51, 90), (100, 33), (159, 199), (80, 0), (0, 120)]
COLD = [(20, 20), (77, 141)]


def with_defects(frame, hot=6000):
    frame = frame.copy()
    for y, x in HOT:
        frame[y, x] = min(65535, int(frame[y, x]) + hot)
    for y, x in COLD:
        frame[y, x] = 0
    return frame


def test_hot_and_cold_pixels_are_found_and_stars_are_not():
    for seed in range(4):
        frame = make_frame(seed)
        assert len(find_candidates(frame)) <= 1
    frame = with_defects(make_frame(1, stars=0))
    found = set(find_candidates(frame).tolist())
    assert found == {y * SHAPE[1] + x for y, x in HOT + COLD}
    assert np.array_equal(find_candidates(frame), np.sort(find_candidates(frame)))


def test_defects_stay_while_stars_move():
    counts = np.zeros(SHAPE[0] * SHAPE[1], np.uint16)
    for seed in range(6):
        np.add.at(counts, find_candidates(with_defects(make_frame(seed))), 1)
    found = persistent(counts, 6)
    expected = {y * SHAPE[1] + x for y, x in HOT + COLD}
    assert expected - set(found.tolist()) == set()
    assert len(found) <= len(expected) + 1
    assert found.dtype == np.int64


def test_few_frames_make_nothing_persistent():
    assert len(persistent(np.full(5, 2), 2)) == 0
    assert persistent(np.array([0, 3, 2]), 3).tolist() == [1]
    assert persistent(np.array([4, 5, 10]), 10, fraction=0.5).tolist() == [1, 2]
    with pytest.raises(ValueError, match="fraction"):
        persistent(np.array([1]), 3, fraction=0)


def test_flat_and_saturated_frames_have_no_candidates():
    assert len(find_candidates(np.full((40, 40), 1000, np.uint16))) == 0
    assert len(find_candidates(np.full((40, 40), 65535, np.uint16))) == 0
    with pytest.raises(ValueError, match="8 px"):
        find_candidates(np.zeros((4, 40), np.uint16))


def test_repair_takes_the_median_of_good_neighbours_of_the_same_colour():
    cfa = np.arange(81, dtype=np.float32).reshape(9, 9)
    bad = np.array([4 * 9 + 4, 4 * 9 + 6])
    fixed = repair_cfa(cfa, bad)
    near = [cfa[y, x] for y in (2, 4, 6) for x in (2, 4, 6) if (y, x) not in ((4, 4), (4, 6))]
    assert fixed[4, 4] == np.median(near)
    changed = np.argwhere(fixed != cfa)
    assert {tuple(p) for p in changed.tolist()} <= {(4, 4), (4, 6)}
    assert cfa[4, 6] == 42


def test_repair_of_rows_equals_repair_of_the_whole():
    rng = np.random.default_rng(0)
    cfa = rng.integers(0, 4000, (60, 50)).astype(np.uint16)
    bad = rng.choice(cfa.size, 60, replace=False)
    whole = repair_cfa(cfa, bad)
    part = repair_cfa(cfa[16:44], bad, y0=16)
    assert np.array_equal(part[4:-4], whole[20:40])
    assert part.dtype == np.uint16


def test_a_cluster_of_bad_pixels_uses_the_next_ring():
    cfa = np.full((20, 20), 100.0, np.float32)
    bad = [(y, x) for y in (8, 10, 12) for x in (8, 10, 12)]
    for y, x in bad:
        cfa[y, x] = 60000
    fixed = repair_cfa(cfa, np.array([y * 20 + x for y, x in bad]))
    np.testing.assert_array_equal(fixed, 100.0)


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 3)])
def test_outliers_of_an_image_are_replaced(shape):
    rng = np.random.default_rng(0)
    image = rng.normal(100, 5, shape).astype(np.float32)
    image[10, 10] = 4000
    image[20, 30] = np.nan
    fixed, mask = detect_and_correct(image, 6.0, 5)
    assert mask[10, 10].all()
    assert mask.sum() == mask[10, 10].size
    assert np.abs(fixed[10, 10] - 100).max() < 15
    assert np.isnan(fixed[20, 30]).all()
    assert fixed.dtype == image.dtype
    assert (image[10, 10] == 4000).all()
    with pytest.raises(ValueError, match="threshold"):
        detect_and_correct(image, 0.0)
