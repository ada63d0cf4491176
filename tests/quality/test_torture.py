"""Some of what `tools.torture` does to runs for hours, once: nothing is lost, nothing silently different."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from tools.torture import Survival, Torture, gathered, products, table


@pytest.fixture(scope="module")
def torture(tmp_path_factory) -> Iterator[Torture]:
    return Torture(tmp_path_factory.mktemp("torture"), seed=3)


@pytest.mark.parametrize("name", ["stored files damaged", "a frame replaced during the run"])
def test_a_run_survives(torture, name):
    found = Survival()
    torture.faults()[name](found)
    assert found.count == 1
    assert found.wrong == []


def test_what_differs_is_noticed(torture, tmp_path, monkeypatch):
    """One pixel of one product: the comparison must be able to fail."""

    def run_and_spoil(raw: Path, out: Path, report=None):
        result = here(raw, out, report)
        path = next(p for p in out.glob("zemosaic_*.fits") if "coverage" in p.name)
        with fits.open(path, mode="update") as hdus:
            hdus[0].data.flat[7] += 1
        return result

    here = torture._here
    monkeypatch.setattr(torture, "_here", run_and_spoil)
    found = Survival()
    torture.damage(found)
    (wrong,) = found.wrong
    assert wrong.startswith("the next run gave something else: ['zemosaic_")


def test_products_are_told_apart_by_pixels_and_cards(tmp_path):
    for name, value, card in (("a", 0, 1), ("b", 1, 1), ("c", 0, 2)):
        (tmp_path / name).mkdir()
        unit = fits.PrimaryHDU(np.full((3, 4), value, np.float32))
        unit.header["EXPTIME"] = card
        unit.header["DATE"] = name
        unit.writeto(tmp_path / name / "zemosaic_x.fits")
    a, b, c = (products(tmp_path / name) for name in "abc")
    assert a != b
    assert a != c
    assert {key for key in a if a[key] != b[key]} == {"zemosaic_x.fits[0]"}


def test_results_of_several_tortures_are_one_table():
    lines = [
        '{"fault": "x", "count": 1, "codes": {"1": 1}, "seconds_to_end": [2.0], "reused": 1, "wrong": []}',
        '{"fault": "x", "count": 1, "codes": {"130": 1}, "seconds_to_end": [1.0], "reused": 0, "wrong": ["y"]}',
    ]
    assert "| x | 2 | 1: 1, 130: 1 | 2.0 s | 1 | 1 |" in table(gathered(lines))
