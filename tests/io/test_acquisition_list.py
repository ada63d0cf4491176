"""What AstroBin is told of the exposures."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from zemosaic_io.acquisition_list import Exposure, acquisition_rows, write_acquisitions
from zemosaic_io.fits_write import write_image
from zemosaic_io.headers import read_frame_info


@pytest.fixture(scope="module")
def info(tmp_path_factory):
    cards = [("EXPTIME", 10.0), ("FILTER", "IRCUT"), ("GAIN", 80), ("DATE-OBS", "2026-03-02T01:00:00")]
    path = tmp_path_factory.mktemp("frame") / "a.fits"
    return read_frame_info(write_image(path, np.zeros((20, 30), np.uint16), [*cards, ("CCD-TEMP", 21.4)]))


def test_one_row_for_each_night_filter_and_way_of_exposing(info):
    frames = [replace(info, sensor_celsius=c) for c in (20.0, 21.0, 24.0)]
    frames += [replace(info, filter_name="LP", night="2026-03-04", exposure_s=20.0)]
    skies = (19.3, math.nan, 19.5, math.nan)
    rows = acquisition_rows(
        [Exposure(frame, 3.0 + k, sky) for k, (frame, sky) in enumerate(zip(frames, skies, strict=True))]
    )
    assert rows[0] == {
        "date": "2026-03-01",
        "filter": "IRCUT",
        "number": "3",
        "duration": "10",
        "binning": "1",
        "gain": "80",
        "sensorCooling": "22",
        "meanFwhm": "4.00",
        "meanSqm": "19.40",
    }
    assert [(r["filter"], r["number"], r["duration"]) for r in rows] == [
        ("IRCUT", "3", "10"),
        ("LP", "1", "20"),
    ]


def test_filters_have_the_numbers_of_the_settings(info):
    frames = [Exposure(replace(info, filter_name=name), 3.0) for name in ("IRCUT", "LP")]
    assert [row["filter"] for row in acquisition_rows(frames, {"ircut": "4711"})] == ["4711", "LP"]


def test_the_frames_inside_a_stack_are_counted(info):
    stack = replace(info, stack_count=120, stack_exposure_s=2400.0, exposure_s=None)
    (row,) = acquisition_rows([Exposure(stack, math.nan)])
    assert (row["number"], row["duration"], row["meanFwhm"]) == ("120", "20", "")


def test_what_nobody_knows_has_no_column(tmp_path, info):
    bare = replace(info, filter_name="", gain=None, sensor_celsius=None, exposure_s=1 / 3, binning=8)
    path = write_acquisitions(tmp_path / "a.csv", [Exposure(bare, math.nan)])
    with path.open(encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file)) == [{"date": "2026-03-01", "number": "1", "duration": "0.3333"}]


def test_without_durations_there_is_no_list(tmp_path, info):
    assert write_acquisitions(tmp_path / "a.csv", [Exposure(replace(info, exposure_s=None), 3.0)]) is None
    assert not list(Path(tmp_path).iterdir())
