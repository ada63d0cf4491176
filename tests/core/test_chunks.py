from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zemosaic_core.chunks import Buffer, Workload, equal_chunks, iter_row_chunks, peak_bytes, rows_for_budget


def test_peak_counts_whole_allocation_units():
    workload = Workload("x", 10, (Buffer("a", per_row=100), Buffer("b", fixed=1, copies=2)), halo=1)
    assert workload.peak(3) == 512 + 2 * 512
    assert workload.peak(4) == 1024 + 2 * 512


def test_two_chunks_in_flight_need_twice_the_memory_unless_one_is_all():
    workload = Workload("x", 100, (Buffer("a", per_row=512),), in_flight=2)
    assert workload.peak(100) == 100 * 512
    assert workload.peak(99) == 2 * 99 * 512
    assert workload.peak(10) == 2 * 10 * 512
    assert workload.rows_within(100 * 512) == 100
    assert workload.rows_within(100 * 512 - 1) == 49
    assert workload.rows_within(1024) == 1
    assert workload.rows_within(1023) == 0


@given(
    st.integers(1, 300),
    st.integers(1, 5000),
    st.integers(0, 50_000),
    st.integers(0, 10**6),
    st.integers(1, 2),
    st.integers(0, 200),
)
def test_rows_within_a_budget_are_the_most_that_fit(rows, per_row, fixed, budget, in_flight, alone_below):
    buffers = (Buffer("a", fixed=fixed, per_row=per_row), Buffer("b", per_row=7, copies=2))
    workload = Workload("x", rows, buffers, in_flight=in_flight, in_flight_rows=alone_below)
    fitting = [n for n in range(1, rows + 1) if workload.peak(n) <= budget]
    assert workload.rows_within(budget) == max(fitting, default=0)
    cut = [n for n in fitting if n < rows or in_flight == 1]
    assert workload.rows_within(budget, several=True) == max(cut, default=0)


@given(st.integers(0, 5000), st.integers(1, 700), st.integers(1, 16), st.integers(0, 50))
def test_equal_chunks_cover_rows_once_in_order(rows, max_rows, align, y0):
    if max_rows < align and max_rows < rows:
        with pytest.raises(ValueError, match="multiples"):
            list(equal_chunks(y0, y0 + rows, max_rows, align=align))
        return
    chunks = list(equal_chunks(y0, y0 + rows, max_rows, align=align))
    edges = [y0] + [b for _, b in chunks]
    assert [a for a, _ in chunks] == edges[:-1]
    assert edges[-1] == y0 + rows
    assert all((a - y0) % align == 0 and 0 < b - a <= max_rows for a, b in chunks)
    sizes = [b - a for a, b in chunks]
    if sizes:
        assert max(sizes) - min(sizes) <= 2 * align


@given(
    st.integers(1, 3000),
    st.integers(1, 700),
    st.integers(-3000, 3000),
    st.integers(0, 500),
    st.integers(1, 2),
)
def test_chunks_of_a_workload_begin_on_its_lattice(rows, max_rows, origin, start, align):
    """Two grids that differ by whole pixels only are cut at the same rows of the sky, where chunks are tall."""
    if max_rows < align:
        return
    work = Workload("x", start + rows, (), start=start, lattice_rows=64, origin=origin, align=align)
    chunks = work.chunks(max_rows)
    assert [a for a, _ in chunks] == [start] + [b for _, b in chunks[:-1]]
    assert chunks[-1][1] == start + rows
    assert all(0 < b - a <= max_rows for a, b in chunks)
    if max_rows >= 4 * align and len(chunks) > 1:
        unit = min(64, max(u for u in (1, 2, 4, 8, 16, 32, 64) if 4 * u <= max_rows))
        assert all((a - origin) % unit == 0 for a, _ in chunks[1:]) or unit <= align


@given(st.integers(1, 10_000), st.integers(0, 10_000), st.integers(0, 10**7), st.integers(1, 300))
def test_rows_for_budget_is_the_largest_that_fits(per_row, fixed, budget, max_rows):
    buffers = (Buffer("a", fixed, per_row, 2), Buffer("b", 0, per_row))
    rows = rows_for_budget(buffers, budget, max_rows, halo=1)
    assert rows == 0 or peak_bytes(buffers, rows, 1) <= budget
    assert rows == max_rows or peak_bytes(buffers, rows + 1, 1) > budget


def test_a_cpu_budget_that_is_too_small_still_gives_min_rows():
    assert list(iter_row_chunks((Buffer("a", per_row=10**6),), 10, 1, min_rows=4)) == [
        (0, 3),
        (3, 6),
        (6, 10),
    ]
