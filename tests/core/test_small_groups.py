"""Groups of few frames do not stay alone where others cover their sky."""

from __future__ import annotations

import numpy as np
import pytest

from zemosaic_core.small_groups import merge_small_groups
from zemosaic_core.sphere import footprint, tan_wcs

SHAPE = (192, 108)
SCALE = 24.0 / 3600
WIDTH_DEG = SHAPE[1] * SCALE


def frames_at(*steps, centre=(10.0, 41.0), rotation=0.0):
    """Return the corners of frames at ``(x, y, how many)``, in widths and heights of a frame, and their groups."""
    plane = tan_wcs(centre, 1.0, (1, 1))
    corners, groups, first = [], [], 0
    for x, y, n in steps:
        ra, dec = plane.all_pix2world(x * WIDTH_DEG, y * SHAPE[0] * SCALE, 0)
        outline = footprint(tan_wcs((float(ra), float(dec)), SCALE, SHAPE, rotation), SHAPE, 1)
        corners += [outline] * n
        groups.append(np.arange(first, first + n))
        first += n
    return np.array(corners), groups


def sizes(groups):
    return [len(group) for group in groups]


@pytest.mark.parametrize("centre", [(10.0, 41.0), (359.9, 0.0), (0.0, 80.0)])
def test_a_small_group_joins_the_one_that_covers_most_of_it(centre):
    corners, groups = frames_at((0, 0, 20), (0.3, 0, 3), (1.0, 0, 30), centre=centre)
    merged = merge_small_groups(groups, corners, min_frames=8)
    assert sizes(merged) == [23, 30]
    np.testing.assert_array_equal(np.sort(np.concatenate(merged)), np.arange(53))


def test_isolated_groups_stay():
    corners, groups = frames_at((0, 0, 2), (0.97, 0, 3), (5, 5, 1), (0, 90, 4))
    assert sizes(merge_small_groups(groups, corners, min_frames=8)) == [2, 3, 1, 4]


def test_large_groups_stay_as_they_are_and_nothing_is_small_without_a_limit():
    corners, groups = frames_at((0, 0, 8), (0.5, 0, 9))
    assert sizes(merge_small_groups(groups, corners, min_frames=8)) == [8, 9]
    corners, groups = frames_at((0, 0, 1), (0.5, 0, 2))
    assert sizes(merge_small_groups(groups, corners, min_frames=0)) == [1, 2]


def test_a_pointing_that_moves_all_the_time_gives_groups_of_some_size():
    """Frames that are a group each: afterwards none is small, and groups hold neighbours."""
    corners, groups = frames_at(*[(0.1 * i, 0, 1) for i in range(48)])
    merged = merge_small_groups(groups, corners, min_frames=8)
    assert min(sizes(merged)) >= 8
    assert max(np.ptp(group) for group in merged) <= 2 * max(sizes(merged))


def test_caps_and_kinds_are_kept():
    corners, groups = frames_at((0, 0, 20), (0.1, 0, 4), (0.2, 0, 5))
    assert sizes(merge_small_groups(groups, corners, min_frames=8, max_per_group=20)) == [20, 9]
    kinds = ["a"] * 20 + ["b"] * 4 + ["a"] * 5
    assert sizes(merge_small_groups(groups, corners, min_frames=8, kinds=kinds)) == [25, 4]


def test_overlap_of_turned_frames_is_that_of_their_area():
    """A frame across the other covers ``w / h`` of it; below the least share nothing is merged."""
    one, _ = frames_at((0, 0, 1))
    across, _ = frames_at((0, 0, 9), rotation=90.0)
    far, _ = frames_at((0, 0.9, 9), rotation=90.0)
    corners = np.concatenate([one, across, far])
    groups = [np.arange(1), np.arange(1, 10), np.arange(10, 19)]
    assert sizes(merge_small_groups(groups, corners, min_frames=8)) == [10, 9]
    assert sizes(
        merge_small_groups([groups[0], groups[2]], np.concatenate([one, far, far]), min_frames=8)
    ) == [1, 9]
