"""Vector code of the rejection against plain loops."""

import numpy as np
from numba import njit

from zemosaic_core.lane_vectors import VECTOR, load_row


@njit
def _load(values, at, maps, map_at, use_map, begin, end, raw, block, shares, use_shares, row, count):
    return load_row(values, at, maps, map_at, use_map, begin, end, raw, block, shares, use_shares, row, count)


def test_a_row_of_samples_is_loaded_as_a_plain_loop_would() -> None:
    rng = np.random.default_rng(3)
    width, size = 3 * VECTOR, 150
    for _ in range(200):
        lanes = rng.integers(1, width + 1)
        begin = int(rng.integers(0, lanes + 1))
        end = int(rng.integers(begin, lanes + 1))
        values, maps = rng.normal(size=(2, size)).astype(np.float32)
        values[rng.random(size) < 0.2] = np.nan
        values[rng.random(size) < 0.1] = -np.inf
        maps[rng.random(size) < 0.1] = np.nan
        # Also at the very ends of the memory.
        at, map_at = (
            int(rng.choice([0, rng.integers(0, size - end + begin), size - end + begin])) for _ in range(2)
        )
        use_map = bool(rng.integers(2))
        use_shares = use_map or bool(rng.integers(2))
        raw, block, shares = np.zeros((3, 3, width), np.float32)
        count = np.arange(width, dtype=np.int32)
        found = _load(values, at, maps, map_at, use_map, begin, end, raw, block, shares, use_shares, 1, count)
        expected, expected_shares = np.full(width, np.inf, np.float32), np.ones(width, np.float32)
        for lane in range(begin, end):
            share = maps[map_at + lane - begin] if use_map else np.float32(1)
            expected_shares[lane] = share
            if np.isfinite(values[at + lane - begin]) and share > 0:
                expected[lane] = values[at + lane - begin]
        there = np.isfinite(expected)
        assert np.array_equal(raw[1], expected)
        assert np.array_equal(block[1], expected)
        if use_shares:
            assert np.array_equal(shares[1][begin:end], expected_shares[begin:end], equal_nan=True)
        assert np.array_equal(count, np.arange(width) + there)
        assert found == there.any()
        # Neighbouring rows are left alone.
        assert not raw[[0, 2]].any()
        assert not block[[0, 2]].any()
        assert not shares[[0, 2]].any()
