"""Batches in time order: each covers the field, none is too small, every frame is in one."""

from __future__ import annotations

import numpy as np
import pytest

from zemosaic_core.field_batches import field_batches


def frame(east, north, size=1.0, at=(80.0, 40.0)):
    half = size / 2
    corners = np.array([(-half, -half), (half, -half), (half, half), (-half, half)]) + np.array([east, north])
    return np.column_stack([at[0] + corners[:, 0] / np.cos(np.deg2rad(at[1])), at[1] + corners[:, 1]])


def cut(frames, coverage=0.9, min_frames=2, target_frames=3):
    return field_batches(
        np.array(frames), coverage=coverage, min_frames=min_frames, target_frames=target_frames
    )


def sizes(batches):
    return [len(batch.members) for batch in batches]


def panels(order):
    return [frame(1.1 * place, 0.0) for place in order]


def test_a_batch_is_full_when_it_covers_the_field_with_enough_frames():
    one_place = [frame(0, 0)] * 10
    assert sizes(cut(one_place)) == [3, 3, 4]
    assert sizes(cut(one_place, min_frames=1)) == [3, 3, 3, 1]
    # Panel after panel: a batch needs all of them; going round, it is full sooner.
    assert sizes(cut(panels([0, 0, 0, 0, 1, 1, 1, 1]))) == [8]
    assert sizes(cut(panels([0, 1] * 4), target_frames=2)) == [2, 2, 2, 2]
    assert sizes(cut(panels([0, 1, 0, 1, 0]), target_frames=2)) == [2, 3]
    for batch in cut(panels([0, 1] * 4), target_frames=2):
        assert batch.covered > 0.97


def test_every_frame_is_in_one_batch_in_order():
    rng = np.random.default_rng(4)
    frames = panels(rng.integers(0, 3, 40))
    batches = cut(frames, target_frames=4)
    np.testing.assert_array_equal(np.concatenate([b.members for b in batches]), np.arange(40))
    assert len(batches) > 2
    assert all(b.covered >= 0.9 for b in batches)
    # A larger share asked for never gives more batches.
    assert len(cut(frames, coverage=0.5, target_frames=4)) >= len(batches)


def test_stray_frames_and_frames_without_a_place_keep_no_batch_open():
    frames = [frame(0, 0)] * 12
    frames[5] = frame(30.0, 5.0)
    assert sizes(cut(frames)) == [3, 3, 3, 3]
    frames[5] = np.full((4, 2), np.nan)
    assert sizes(cut(frames)) == [3, 3, 3, 3]
    assert sizes(cut([np.full((4, 2), np.nan)] * 3)) == [3]
    assert cut(np.empty((0, 4, 2))) == []
    # Across 0 h, at the pole.
    assert sizes(cut([frame(0, 0, at=(0.0, 0.0)), frame(0, 0, at=(359.9, 0.0))] * 3)) == [3, 3]
    assert sizes(cut([frame(0, 0, at=(10.0, 89.0))] * 6)) == [3, 3]


def test_numbers_out_of_range():
    for wrong in ({"coverage": 0.0}, {"coverage": 1.1}, {"min_frames": 0}, {"target_frames": 0}):
        with pytest.raises(ValueError, match="got"):
            cut([frame(0, 0)], **wrong)
