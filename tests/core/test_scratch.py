"""Memory that is used again: never lent twice at a time, and no more of it than was lent at once."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from zemosaic_core.scratch import Scratch


def address(array):
    return array.__array_interface__["data"][0]


def test_what_is_lent_at_the_same_time_does_not_overlap():
    scratch = Scratch()
    with scratch.floats(3, 40) as one, scratch.floats(2, 5, 7) as other:
        one[:], other[:] = 1, 2
        assert one.shape == (3, 40)
        assert other.shape == (2, 5, 7)
        assert one.dtype == other.dtype == np.float32
        assert (one == 1).all()
        assert (other == 2).all()


def test_the_next_one_gets_the_same_memory_and_the_best_fit():
    scratch = Scratch()
    with scratch.floats(1000) as large, scratch.floats(100) as small:
        places = address(large), address(small)
    with scratch.floats(90) as small, scratch.floats(1, 900) as large:
        assert (address(large), address(small)) == places


def test_it_holds_no_more_arrays_than_were_lent_at_once():
    scratch = Scratch()
    for size in (10, 20, 30, 40):
        with scratch.floats(size), scratch.floats(size):
            pass
    assert sorted(len(memory) for memory in scratch._free) == [40, 40]


def test_an_error_gives_the_memory_back():
    scratch = Scratch()
    place = 0

    def fail():
        nonlocal place
        with scratch.floats(10) as lent:
            place = address(lent)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with scratch.floats(10) as again:
        assert address(again) == place


def test_threads_do_not_get_each_others_memory():
    scratch, wrong = Scratch(), []

    def work(mark):
        for size in range(1, 300):
            with scratch.floats(size) as lent:
                lent[:] = mark
                if not (lent == mark).all():
                    wrong.append(mark)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(scratch._free) <= 4
