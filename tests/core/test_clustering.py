from __future__ import annotations

import itertools

import numpy as np
import pytest

from zemosaic_core.clustering import auto_threshold_deg, cluster_pointings, link_positions
from zemosaic_core.errors import SettingsError
from zemosaic_core.sphere import separation_deg


def _slow_labels(ra, dec, threshold):
    """Union-find over all pairs."""
    parent = list(range(len(ra)))

    def find(i):
        while parent[i] != i:
            i = parent[i]
        return i

    for i in range(len(ra)):
        for j in range(i):
            if separation_deg(ra[i], dec[i], ra[j], dec[j]) <= threshold:
                parent[max(find(i), find(j))] = min(find(i), find(j))
    roots = [find(i) for i in range(len(ra))]
    order = {r: k for k, r in enumerate(dict.fromkeys(roots))}
    return np.array([order[r] for r in roots])


def _panels(centres, per_panel, spread=0.02, seed=0):
    rng = np.random.default_rng(seed)
    ra, dec = [], []
    for a, d in centres:
        ra.append(a + rng.normal(0, spread, per_panel) / np.cos(np.deg2rad(d)))
        dec.append(d + rng.normal(0, spread, per_panel))
    return np.concatenate(ra) % 360, np.concatenate(dec)


def _is_partition(groups, n):
    return np.array_equal(np.sort(np.concatenate(groups)), np.arange(n))


@pytest.mark.parametrize("threshold", [0.02, 0.06, 0.15, 0.6])
@pytest.mark.parametrize("dec0", [0.0, 60.0, 89.9])
def test_links_equal_all_pairs_union_find(threshold, dec0):
    rng = np.random.default_rng(5)
    ra, dec = _panels([(359.9, dec0), (0.2, dec0), (0.0, dec0 - 0.5)], 40, 0.08, 2)
    dec = np.minimum(dec, 90)
    # Coinciding pointings exhaust the neighbour list: the completion must still find the links.
    ra, dec = np.concatenate([ra, np.full(40, ra[0])]), np.concatenate([dec, np.full(40, dec[0])])
    order = rng.permutation(len(ra))
    ra, dec = ra[order], dec[order]
    np.testing.assert_array_equal(link_positions(ra, dec, threshold), _slow_labels(ra, dec, threshold))


def test_link_exactly_at_the_threshold_counts():
    assert link_positions([10.0, 10.0], [0.0, 0.05], 0.05).max() == 0
    assert link_positions([10.0, 10.0], [0.0, 0.0501], 0.05).max() == 1


def test_panels_across_ra_zero_and_at_high_declination():
    ra, dec = _panels([(359.5, 70), (2.0, 70), (359.5, 71.2)], 25)
    groups = cluster_pointings(ra, dec, field_deg=0.7)
    assert [len(g) for g in groups] == [25, 25, 25]
    assert [int(g[0]) for g in groups] == [0, 25, 50]


def test_one_panel_at_the_pole_is_one_group():
    rng = np.random.default_rng(1)
    groups = cluster_pointings(rng.uniform(0, 360, 60), 90 - rng.uniform(0, 0.05, 60), threshold_deg=0.1)
    assert len(groups) == 1


def test_orientation_split_limits_the_spread_and_folds_by_180():
    n = 60
    ra, dec = np.full(n, 10.0), np.full(n, 20.0)
    angle = np.concatenate([np.linspace(170, 190, 30), np.linspace(350, 370, 30)])
    groups = cluster_pointings(ra, dec, angle, threshold_deg=0.1, orientation_split_deg=25)
    assert len(groups) == 1
    groups = cluster_pointings(ra, dec, angle, threshold_deg=0.1, orientation_split_deg=5)
    assert len(groups) == 4
    assert _is_partition(groups, n)
    for g in groups:
        folded = (angle[g] - 170) % 180
        assert np.ptp(folded) <= 5 + 1e-9


def test_orientation_split_without_angles_is_refused():
    with pytest.raises(SettingsError):
        cluster_pointings([1.0], [1.0], orientation_split_deg=5)


@pytest.mark.parametrize("target", [1, 3, 6, 12])
def test_target_number_of_groups(target):
    # Three levels of separation: 12 sub-panels in 6 pairs in 3 fields.
    centres = [(f * 4 + p * 0.8 + s * 0.2, 0.0) for f in range(3) for p in range(2) for s in range(2)]
    ra, dec = _panels(centres, 10, 0.005)
    groups = cluster_pointings(ra, dec, target_groups=target)
    assert len(groups) == target
    assert _is_partition(groups, len(ra))


def test_large_compact_group_is_cut_in_time():
    n = 53
    times = np.random.default_rng(0).permutation(n)
    groups = cluster_pointings(
        np.full(n, 5.0), np.full(n, 5.0), threshold_deg=0.1, max_per_group=20, times=times, field_deg=0.7
    )
    assert sorted(len(g) for g in groups) == [17, 18, 18]
    assert _is_partition(groups, n)
    spans = sorted((times[g].min(), times[g].max()) for g in groups)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(spans))


def test_large_wide_group_is_cut_in_space():
    ra = np.linspace(10, 13, 90)
    groups = cluster_pointings(ra, np.zeros(90), threshold_deg=0.1, max_per_group=30, field_deg=0.7)
    assert all(len(g) <= 30 for g in groups)
    intervals = sorted((ra[g].min(), ra[g].max()) for g in groups)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(intervals))


def test_wide_chain_is_cut_to_the_extent():
    ra = np.linspace(10, 13, 90)
    groups = cluster_pointings(ra, np.zeros(90), threshold_deg=0.1, max_extent_deg=0.8, field_deg=0.7)
    assert len(groups) >= 4
    assert all(np.ptp(ra[g]) <= 0.81 for g in groups)


def test_small_groups_join_near_ones_but_not_far_ones():
    ra, dec = _panels([(10, 0), (10.25, 0), (40, 0)], 20, 0.005)
    keep = np.concatenate([np.arange(20), [20, 21], [40, 41]])
    groups = cluster_pointings(ra[keep], dec[keep], threshold_deg=0.1, min_per_group=5, field_deg=0.7)
    assert sorted(len(g) for g in groups) == [2, 22]


def test_merging_respects_the_cap():
    ra, dec = _panels([(10, 0), (10.25, 0)], 20, 0.002)
    keep = np.arange(24)
    groups = cluster_pointings(
        ra[keep], dec[keep], threshold_deg=0.1, min_per_group=5, max_per_group=20, field_deg=0.7
    )
    assert sorted(len(g) for g in groups) == [4, 20]


def test_auto_threshold_follows_the_field():
    ra, dec = _panels([(10, 0)], 50, 0.001)
    assert auto_threshold_deg(ra, dec, field_deg=0.7) == pytest.approx(0.07)
    assert auto_threshold_deg([10, 20], [0, 0], field_deg=0.7) == pytest.approx(0.21)
    assert auto_threshold_deg([10], [0]) == pytest.approx(0.25)


def test_empty_and_bad_input():
    assert cluster_pointings([], []) == []
    with pytest.raises(SettingsError):
        cluster_pointings([np.nan], [0.0])
    with pytest.raises(SettingsError):
        cluster_pointings([1.0], [0.0], threshold_deg=-1)
    with pytest.raises(ValueError, match="same length"):
        cluster_pointings([1.0, 2.0], [0.0])


def test_ten_thousand_coinciding_pointings_need_no_pair_list():
    rng = np.random.default_rng(0)
    ra, dec = 10 + rng.normal(0, 0.01, 10_000), rng.normal(0, 0.01, 10_000)
    groups = cluster_pointings(ra, dec, threshold_deg=0.2)
    assert [len(g) for g in groups] == [10_000]
