"""Small arrays that stay are put together, so that what lay between them can be given back."""

from __future__ import annotations

import gc
import sys
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import psutil
import pytest

from zemosaic_core.packed_arrays import MOST_BYTES, packed
from zemosaic_core.transforms import Transform
from zemosaic_pipeline.machine import give_memory_back
from zemosaic_pipeline.records import FrameTerms


@dataclass(frozen=True)
class Whole:
    """A record of everything that is looked into, and of what is not."""

    terms: dict[int, FrameTerms]
    places: tuple[Transform, ...]
    more: list[np.ndarray | None]
    name: str = "a"

    @cached_property
    def total(self) -> float:
        return float(sum(terms.photometry.sum() for terms in self.terms.values()))


def whole() -> Whole:
    rng = np.random.default_rng(5)
    terms = {
        k: FrameTerms(rng.normal(size=(3, 4)).astype(np.float32), np.zeros((3, 4), np.float32))
        for k in range(5)
    }
    line = np.arange(3.0)
    places = tuple(Transform("affine", (k, 1.0), 2.0, line, rng.normal(size=3)) for k in range(5))
    large, fixed = np.zeros(MOST_BYTES, np.float64), np.array([[1, 2], [3, 4]], np.int16).T
    fixed.setflags(write=False)
    more = [large, fixed, None, np.empty((0, 3)), np.array(["a", "bc"]), np.array([None])]
    return Whole(terms, places, more)


def test_the_record_is_equal_and_lies_together():
    given = whole()
    assert given.total != 0
    made = packed(given)
    assert made.total == given.total
    for k, terms in given.terms.items():
        np.testing.assert_array_equal(made.terms[k].photometry, terms.photometry)
        assert made.terms[k].photometry.dtype == terms.photometry.dtype
        assert made.terms[k].surface is None
    for one, other in zip(made.places, given.places, strict=True):
        np.testing.assert_array_equal(one.coeff_y, other.coeff_y)
        assert (one.kind, one.center, one.scale) == (other.kind, other.center, other.scale)
    bases = {id(one.coeff_y.base) for one in made.places} | {id(t.radial.base) for t in made.terms.values()}
    assert len(bases) == 1
    assert not np.shares_memory(made.places[0].coeff_y, given.places[0].coeff_y)


def test_what_is_shared_large_fixed_or_no_number_stays_so():
    given = whole()
    made = packed(given)
    assert len({id(one.coeff_x) for one in made.places}) == 1
    assert made.more[0] is given.more[0]
    np.testing.assert_array_equal(made.more[1], given.more[1])
    assert not made.more[1].flags.writeable
    assert made.places[0].coeff_y.flags.writeable
    assert made.more[3] is given.more[3]
    assert made.more[4].tolist() == ["a", "bc"]
    assert made.more[5] is given.more[5]
    assert made.name is given.name


def test_what_has_no_arrays_stays_itself():
    record = ({"a": 1}, [2, (3,)], "text")
    assert packed(record) is record


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="how this system gives memory back is not known"
)
def test_what_lay_between_is_given_back():
    """Held without it: as many pages as small arrays, whatever these hold."""

    def private() -> int:
        gc.collect()
        give_memory_back()
        info = psutil.Process().memory_info()
        return info.rss - info.shared

    before = private()
    kept, served = [], []
    for k in range(8_000):
        kept.append(np.full(12, k, np.float64))
        served.append(np.full(1500, k, np.float64))
    served.clear()
    scattered = private() - before
    kept = packed(kept)
    together = private() - before
    assert scattered > 15e6
    assert together < 0.5 * scattered
    assert kept[77][5] == 77
