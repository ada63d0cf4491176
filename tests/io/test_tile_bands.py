"""Rows of a tile in work are what was written, or do not count."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from zemosaic_core.block_facts import BlockFacts, summarise
from zemosaic_core.errors import RunFailed
from zemosaic_core.sources import CoaddBlock
from zemosaic_core.tile_rows import TileRule
from zemosaic_io.fits_write import StreamingFits
from zemosaic_io.tile_bands import TileBands

SHAPE = (40, 23)
EXTENSIONS = [
    ("COVERAGE", SHAPE, np.uint16),
    ("WEIGHT", SHAPE, np.float32),
    ("CLIPPED", SHAPE, np.uint8),
    ("VARIANCE", (3, *SHAPE), np.float32),
]


@pytest.fixture
def whole():
    rng = np.random.default_rng(4)
    image, weight, variance = (rng.uniform(1, 2, (3, *SHAPE)).astype(np.float32) for _ in range(3))
    coverage = rng.integers(0, 9, SHAPE).astype(np.uint16)
    coverage[:3] = coverage[:, 20:] = 0
    image[:, coverage == 0] = variance[:, coverage < 2] = np.nan
    low, high = (rng.integers(0, 2, (3, *SHAPE)).astype(np.uint16) for _ in range(2))
    return CoaddBlock(image, weight, coverage, variance, low, high)


def rows_of(block, y0, y1):
    return CoaddBlock(*(getattr(block, field.name)[..., y0:y1, :] for field in fields(CoaddBlock)))


def tile(folder, bands):
    return StreamingFits(
        folder / "done.fits", (3, *SHAPE), extensions=EXTENSIONS, unfinished=bands.unfinished
    )


def bands_in(folder, key="key"):
    return TileBands(folder / "work", key, with_variance=True, every_s=0.0)


def write(folder, whole, *, to, step=7, key="key"):
    """Write rows up to ``to``, from where an earlier call stopped; return that place and the facts."""
    bands = bands_in(folder, key)
    with tile(folder, bands) as out:
        first = bands.take_up(out)
        for y0 in range(first, to, step):
            y1 = min(to, y0 + step)
            bands.add(out, y0, y1, TileRule(True)(y0, rows_of(whole, y0, y1)))
        if to == SHAPE[0]:
            for y0, _, weight in bands.weights():
                out.write_rows(y0, weight, ext="WEIGHT")
            out.commit()
    return first, bands.facts


def test_rows_are_taken_up_and_give_the_same_tile(tmp_path, whole):
    write(tmp_path / "once", whole, to=40, step=40)
    stops = [
        write(tmp_path / "twice", whole, to=to, step=step)[0] for to, step in ((14, 7), (21, 3), (40, 11))
    ]
    assert stops == [0, 14, 21]
    assert (tmp_path / "twice/done.fits").read_bytes() == (tmp_path / "once/done.fits").read_bytes()


def test_facts_do_not_depend_on_how_rows_are_cut(tmp_path, whole):
    expected = summarise([BlockFacts.of(0, whole)])
    write(tmp_path, whole, to=17, step=5)
    _, facts = write(tmp_path, whole, to=40, step=9)
    assert summarise(facts) == expected
    assert expected.covered_bbox == (3, 40, 0, 20)
    rejected = float(whole.rejected_low.sum(dtype=int) + whole.rejected_high.sum(dtype=int))
    assert expected.rejected_fraction == pytest.approx(rejected / (3 * whole.coverage.sum(dtype=int)))


def test_other_keys_and_other_headers_do_not_count(tmp_path, whole):
    write(tmp_path, whole, to=14)
    assert write(tmp_path, whole, to=14, key="other")[0] == 0
    bands = bands_in(tmp_path, "other")
    with StreamingFits(
        tmp_path / "done.fits",
        (3, *SHAPE),
        {"OBJECT": "M 1"},
        extensions=EXTENSIONS,
        unfinished=bands.unfinished,
    ) as out:
        assert bands.take_up(out) == 0


def test_a_complete_tile_that_was_not_noted_is_taken_back(tmp_path, whole):
    write(tmp_path, whole, to=40)
    content = (tmp_path / "done.fits").read_bytes()
    bands_in(tmp_path).recover(tmp_path / "done.fits")
    assert not (tmp_path / "done.fits").exists()
    assert write(tmp_path, whole, to=40)[0] == 40
    assert (tmp_path / "done.fits").read_bytes() == content


def test_a_record_lost_in_work_is_an_error(tmp_path, whole):
    bands = bands_in(tmp_path)
    with tile(tmp_path, bands) as out:
        bands.add(out, 0, 40, TileRule(True)(0, whole))
        next((tmp_path / "work").glob("rows_*.npz")).unlink()
        with pytest.raises(RunFailed) as error:
            list(bands.weights())
    assert error.value.key == "run_error_state_lost"
    bands.remove()
    assert list(tmp_path.iterdir()) == []
