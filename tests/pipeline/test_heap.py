"""What the C library keeps of freed arrays; each case in a process of its own, which the thresholds belong to."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from zemosaic_pipeline import heap

HOLES = """
import numpy as np, psutil
from zemosaic_pipeline import heap
assert getattr(heap, {name!r})()
process = psutil.Process()
before = process.memory_info().rss
kept = []
for _ in range(80):
    large = np.ones(250_000)  # 2 MB, between small things that stay
    kept.append([bytes(2000), large])
for pair in kept:
    del pair[1]
large = None
print((process.memory_info().rss - before) / 1e6)
"""

IN_A_THREAD = """
import threading
import numpy as np
from resource import RUSAGE_SELF, getrusage
from zemosaic_pipeline import heap
assert getattr(heap, {name!r})()
found = []
def work():
    kept = [np.ones(3_000_000), np.ones(3_000_000)]  # 24 MB each: a third does not fit beside
    for _ in range(2):
        before = getrusage(RUSAGE_SELF).ru_minflt
        for _ in range(20):
            np.ones(3_000_000)
        found.append(getrusage(RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(found[1])
"""


def number_of(case: str, name: str) -> float:
    """Run a case with one of the functions of `heap`; return what it prints: MB that stayed, or fresh pages."""
    run = subprocess.run(
        [sys.executable, "-c", case.format(name=name)], capture_output=True, text=True, check=True
    )
    return float(run.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="thresholds are those of the GNU C library")
def test_freed_arrays_between_small_things_go_back_where_that_is_wanted(monkeypatch):
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)

    assert number_of(HOLES, "return_freed_memory") < 20
    assert number_of(HOLES, "keep_freed_memory") > 100


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="heaps are those of the GNU C library")
def test_a_thread_uses_freed_arrays_again_where_there_is_one_heap(monkeypatch):
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    # Fresh pages are counted, all of one size.
    monkeypatch.setenv("NUMPY_MADVISE_HUGEPAGE", "0")
    assert number_of(IN_A_THREAD, "keep_one_heap") < 6_000
    assert number_of(IN_A_THREAD, "keep_freed_memory") > 60_000


def test_what_the_environment_says_stays(monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "262144")
    assert not heap.return_freed_memory()
    assert not heap.keep_freed_memory()
    assert not heap.keep_one_heap()


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(heap.sys, "platform", "darwin")
    assert not heap.return_freed_memory()
    assert not heap.keep_freed_memory()
    assert not heap.keep_one_heap()
