from __future__ import annotations

import numpy as np
import pytest

from zemosaic_core.row_sums import have_row_sums, row_sums


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


@pytest.mark.parametrize(("dtype", "width"), [("u1", 13), (">i2", 15), (">i2", 14), (">f4", 7)])
def test_rows_are_known_by_their_sums(dtype, width):
    rows = np.random.default_rng(3).integers(0, 120, (3, 5, width)).astype(dtype)
    sums = row_sums(rows)
    assert have_row_sums(rows, sums)
    assert have_row_sums(rows[:, 1:4], sums[:, 1:4])
    for place in np.ndindex(rows.shape):
        other = rows.copy()
        other[place] += 1
        assert not have_row_sums(other, sums)
    assert not have_row_sums(rows, np.roll(sums, 1, axis=0))
