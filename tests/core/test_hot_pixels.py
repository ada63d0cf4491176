from __future__ import annotations

import numpy as np
import pytest

from zemosaic_core.hot_pixels import DefectEvidence, detect_and_correct, repair_cfa
from zemosaic_core.raw_defects import find_defects
from zemosaic_core.raw_sky import sky_cells

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


def candidates(frame):
    return find_defects(frame, sky_cells(frame))


def test_hot_and_cold_pixels_are_found_and_stars_are_not():
    for seed in range(4):
        frame = make_frame(seed)
        assert len(candidates(frame)[0]) <= 1
    frame = with_defects(make_frame(1, stars=0))
    found, significance = candidates(frame)
    assert set(found.tolist()) == {y * SHAPE[1] + x for y, x in HOT + COLD}
    assert np.array_equal(found, np.sort(found))
    cold = np.isin(found, [y * SHAPE[1] + x for y, x in COLD])
    np.testing.assert_array_equal(significance < 0, cold)


def test_defects_stay_while_stars_move():
    evidence = DefectEvidence(SHAPE)
    for seed in range(6):
        evidence.add(*candidates(with_defects(make_frame(seed))))
    found = evidence.persistent()
    expected = {y * SHAPE[1] + x for y, x in HOT + COLD}
    assert expected - set(found.tolist()) == set()
    assert len(found) <= len(expected) + 1
    assert found.dtype == np.int64


def test_two_frames_suffice_and_one_does_not():
    evidence = DefectEvidence(SHAPE)
    evidence.add(*candidates(with_defects(make_frame(0, stars=5))))
    assert len(evidence.persistent()) == 0
    evidence.add(*candidates(with_defects(make_frame(1, stars=5))))
    found = set(evidence.persistent().tolist())
    assert {y * SHAPE[1] + x for y, x in HOT} <= found
    assert found <= {y * SHAPE[1] + x for y, x in HOT + COLD}


def test_weak_defects_of_either_sign_are_found_by_all_frames_together():
    evidence = DefectEvidence(SHAPE)
    bright, dark = 70 * SHAPE[1] + 81, 33 * SHAPE[1] + 150
    for seed in range(4):
        frame = make_frame(seed, stars=0).astype(np.int64)
        # Nine times the noise of 60 ADU.
        frame.ravel()[[bright, dark]] += [540, -540]
        evidence.add(*candidates(frame.astype(np.uint16)))
    assert evidence.persistent().tolist() == sorted([bright, dark])


def test_what_is_seen_once_or_in_opposite_senses_is_not_persistent():
    evidence = DefectEvidence((4, 4))
    for k in range(9):
        index = [3, 7] if k == 0 else [7] if k % 2 else []
        evidence.add(
            np.array(index, np.int64),
            np.array([90.0, 30.0 * (-1) ** (k // 2)][-len(index) :] if index else []),
        )
    assert evidence.persistent().tolist() == []
    for _ in range(3):
        evidence.add(np.array([5]), np.array([12.0]))
    assert evidence.persistent().tolist() == []
    evidence.add(np.array([5]), np.array([12.0]))
    # Four of thirteen are no third.
    assert evidence.persistent().tolist() == []
    evidence.add(np.array([5]), np.array([12.0]))
    assert evidence.persistent().tolist() == [5]


@pytest.mark.parametrize("fwhm", [1.6, 1.9, 2.2])
@pytest.mark.parametrize("cfa", [False, True])
def test_stars_on_the_same_pixels_in_every_frame_are_no_defects(fwhm, cfa):
    rng = np.random.default_rng(4)
    y, x = np.mgrid[0 : SHAPE[0], 0 : SHAPE[1]]
    light = np.zeros(SHAPE)
    for _ in range(120):
        sx, sy = rng.uniform(3, SHAPE[1] - 4), rng.uniform(3, SHAPE[0] - 4)
        colour = (
            np.array([[1.0, rng.uniform(0.4, 2)], [rng.uniform(0.3, 1.6), 1.0]]) if cfa else np.ones((2, 2))
        )
        r2 = (x - sx) ** 2 + (y - sy) ** 2
        light += 10 ** rng.uniform(2, 4.5) * colour[y % 2, x % 2] * np.exp(-r2 / (2 * (fwhm / 2.3548) ** 2))
    evidence = DefectEvidence(SHAPE)
    for _ in range(4):
        frame = 900 + light + rng.normal(0, np.sqrt(30**2 + light))
        evidence.add(*candidates(np.clip(frame, 0, 65535).astype(np.uint16)))
    assert len(evidence.persistent()) == 0


def test_flat_and_saturated_frames_have_no_candidates():
    assert len(candidates(np.full((40, 40), 1000, np.uint16))[0]) == 0
    assert len(candidates(np.full((40, 40), 65535, np.uint16))[0]) == 0


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
