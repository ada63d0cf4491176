import sys

import numba
import numpy as np
import pytest

from zemosaic_core.lent_arrays import njit_lent


@njit_lent()
def add_rows(table, out):
    for y in range(len(table)):
        row, target = table[y], out[y, 1:]
        for k in range(target.size):
            target[k] = row[k] + row[k + 1]


@njit_lent()
def make_an_array(n):
    return np.zeros(n)


def test_parts_of_arrays_are_worked_on_and_nobody_is_counted():
    table, out = np.arange(20.0).reshape(4, 5), np.zeros((4, 5))
    held = sys.getrefcount(table), sys.getrefcount(out)
    add_rows(table, out)
    assert (sys.getrefcount(table), sys.getrefcount(out)) == held
    np.testing.assert_array_equal(out[:, 1:], table[:, :-1] + table[:, 1:])
    assert (out[:, 0] == 0).all()


def test_who_makes_an_array_is_refused():
    with pytest.raises(numba.core.errors.NumbaError):
        make_an_array(3)
