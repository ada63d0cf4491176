from __future__ import annotations

import numpy as np
import pytest

from zemosaic_core.row_sums import row_sums


def plainly(row: bytes, word: int) -> int:
    """The same sum, one word after the other in whole numbers of any size."""
    weights = np.random.PCG64(20250326).random_raw(len(row) // word)
    words = [int.from_bytes(row[i : i + word], "little") for i in range(0, len(row), word)]
    return sum(int(w) * x for w, x in zip(weights, words, strict=True)) % 2**64 >> 32


@pytest.mark.parametrize(
    ("dtype", "width", "word"), [("u1", 13, 1), ("u1", 14, 2), (">i2", 14, 4), (">i2", 15, 2), (">f4", 7, 4)]
)
def test_sums_equal_those_of_plain_arithmetic(dtype, width, word):
    rows = np.random.default_rng(1).integers(0, 120, (3, 5, width)).astype(dtype)
    sums = row_sums(rows)
    assert sums.shape == (3, 5)
    assert sums.dtype == np.uint32
    for plane, expected in zip(rows, sums, strict=True):
        assert [plainly(row.tobytes(), word) for row in plane] == expected.tolist()


def test_flips_of_any_two_bits_and_exchanged_words_change_the_sum():
    rng = np.random.default_rng(2)
    row = rng.integers(0, 256, (1, 96), dtype=np.uint8)
    before = row_sums(row)
    for _ in range(2000):
        other = row.copy()
        for bit in rng.choice(96 * 8, 2, replace=False):
            other[0, bit // 8] ^= 1 << (bit % 8)
        assert row_sums(other) != before
    for shift in range(1, 96):
        assert row_sums(np.roll(row, shift, axis=1)) != before
