from __future__ import annotations

import numpy as np

from zemosaic_core.star_merging import join_ghosts, merge_positions, vote_offset


def _sky(seed=0, n_stars=200, n_frames=12, noise=0.4, seen=0.7):
    rng = np.random.default_rng(seed)
    # A jittered lattice: no two stars closer than 12 px.
    grid = np.stack(np.meshgrid(np.arange(20), np.arange(10)), -1).reshape(-1, 2)[:n_stars] * 30.0
    truth = grid + rng.uniform(-9, 9, grid.shape)
    frame, star = np.nonzero(rng.random((n_frames, n_stars)) < seen)
    return truth, frame, star, truth[star] + rng.normal(0, noise, (len(star), 2))


def test_every_star_is_found_once():
    _truth, frame, star, xy = _sky()
    index, merged = merge_positions(xy, frame, 3.0)
    assert len(merged) == len(np.unique(star))
    # Same partition: each merged star holds the detections of one true star.
    assert len(np.unique(np.column_stack([index, star]), axis=0)) == len(merged)
    for j in range(len(merged)):
        np.testing.assert_allclose(merged[j], xy[index == j].mean(axis=0), atol=1e-9)


def test_order_of_detections_does_not_matter():
    _, frame, _, xy = _sky(1)
    order = np.random.default_rng(0).permutation(len(xy))
    index, merged = merge_positions(xy, frame, 3.0)
    index2, merged2 = merge_positions(xy[order], frame[order], 3.0)
    np.testing.assert_allclose(merged2, merged, atol=1e-9)
    np.testing.assert_array_equal(index2, index[order])


def test_one_detection_per_frame_and_star():
    xy = np.array([[10.0, 10], [10.2, 10], [11.0, 10], [10.1, 10.0]])
    frame = np.array([0, 1, 1, 2])
    index, merged = merge_positions(xy, frame, 3.0)
    assert index[0] == index[1] == index[3]
    assert index[2] != index[0]
    assert len(merged) == 2


def test_close_pair_is_kept_apart_by_a_small_radius():
    rng = np.random.default_rng(0)
    xy = np.concatenate([rng.normal([50, 50], 0.1, (30, 2)), rng.normal([53, 50], 0.1, (30, 2))])
    frame = np.tile(np.arange(30), 2)
    index, merged = merge_positions(xy, frame, 1.0)
    assert len(merged) == 2
    assert len(np.unique(index[:30])) == 1


def test_nan_and_empty():
    index, merged = merge_positions(np.array([[np.nan, 1], [2.0, 3.0]]), np.array([0, 1]), 2.0)
    assert index.tolist() == [-1, 0]
    assert len(merged) == 1
    index, merged = merge_positions(np.empty((0, 2)), np.empty(0, dtype=int), 2.0)
    assert len(index) == 0
    assert merged.shape == (0, 2)


def test_vote_finds_a_common_shift_among_strangers():
    rng = np.random.default_rng(2)
    reference = rng.uniform(0, 1000, (200, 2))
    mine = np.concatenate(
        [reference[:60] - [17.3, -9.2] + rng.normal(0, 0.2, (60, 2)), rng.uniform(0, 1000, (40, 2))]
    )
    shift = vote_offset(mine, reference, 40.0)
    assert shift is not None
    np.testing.assert_allclose(shift, [17.3, -9.2], atol=0.15)


def test_vote_says_none_when_nothing_stands_out():
    rng = np.random.default_rng(3)
    assert vote_offset(rng.uniform(0, 1000, (100, 2)), rng.uniform(0, 1000, (200, 2)), 40.0) is None
    assert vote_offset(np.empty((0, 2)), np.zeros((3, 2)), 40.0) is None


def test_ghosts_are_joined_and_real_pairs_are_not():
    _, frame, star, xy = _sky(4, n_frames=10)
    # Frames 5 to 9 are shifted: every star is twice in the list.
    shifted = xy + np.where(frame[:, None] >= 5, [6.0, 2.0], 0.0)
    index, merged = merge_positions(shifted, frame, 2.0)
    assert len(merged) > 300
    joined = join_ghosts(merged, index, frame, 15.0)
    assert joined is not None
    together = [len(np.unique(joined[star == s])) == 1 for s in np.unique(star)]
    assert np.mean(together) > 0.9
    assert len(np.unique(np.column_stack([joined, star]), axis=0)) < 1.1 * len(np.unique(star))
    # The same sky without the shift has no ghosts, although stars stand close together.
    index, merged = merge_positions(xy, frame, 2.0)
    assert join_ghosts(merged, index, frame, 25.0) is None
