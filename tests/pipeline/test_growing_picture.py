"""The picture of a run that makes one tile, while its rows are finished."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image

from zemosaic_io.demo_session import write_demo_night
from zemosaic_pipeline import growing_picture
from zemosaic_pipeline.events import PhaseFinished, PreviewGrown
from zemosaic_pipeline.growing_picture import GrowingPicture
from zemosaic_worker import run_hierarchical_mosaic


@pytest.mark.parametrize("cuts", [(0, 900), (0, 1, 250, 251, 700, 900)])
def test_rows_come_where_they_belong_and_not_all_the_time(tmp_path, cuts):
    rng = np.random.default_rng(1)
    image = rng.normal(100.0, 1.0, (3, 900, 1500)).astype(np.float32)
    image[:, :300, :600] += 400.0
    image[:, 600:] = np.nan
    told, now = [], [0.0]
    picture = GrowingPicture(image.shape, tmp_path / "growing.png", told.append, clock=lambda: now[0])
    for row0, row1 in itertools.pairwise(cuts):
        picture.add(row0, image[:, row0:row1])
        picture.show()
    assert not told  # not yet
    now[0] = 6.0
    picture.show()
    picture.show()
    assert told == [str(tmp_path / "growing.png")]
    with Image.open(told[0]) as found:
        rgba = np.asarray(found)
    assert rgba.shape == (300, 500, 4)
    assert (rgba[:100, :, 3] == 0).all()  # the rows that are missing are the upper ones of the sky
    assert (rgba[100:, :, 3] == 255).all()
    assert rgba[210:290, 10:190, :3].mean() > 2 * rgba[210:290, 210:, :3].mean()
    now[0] = 20.0
    picture.show()
    assert len(told) == 1  # nothing new


def test_a_run_of_one_tile_shows_it_before_it_is_finished(tmp_path, monkeypatch):
    monkeypatch.setattr(growing_picture, "_EVERY_S", 0.0)
    write_demo_night(
        tmp_path / "raw",
        panels=(1, 1),
        frames_per_panel=4,
        shape_hw=(300, 400),
        with_wcs=True,
        bad_frames=False,
    )
    events = []
    run_hierarchical_mosaic(
        tmp_path / "raw", tmp_path / "out", reporter=events.append, gpu="off", stack_ram_budget_gb=0.01
    )
    stacked = next(k for k, e in enumerate(events) if isinstance(e, PhaseFinished) and "phase3" in e.phase)
    grown = [k for k, event in enumerate(events) if isinstance(event, PreviewGrown)]
    assert grown[0] < stacked < grown[-1]
    assert events[grown[0]].path.endswith("growing.png")
    assert events[grown[-1]].path.endswith("preview.png")
