"""Frames that fall into parts without a common star are said to."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from zemosaic_core.registration import register_globally
from zemosaic_pipeline import phase4_grid
from zemosaic_pipeline.report import sentences

SIDE_PX = 400.0


def _found(corners):
    rng = np.random.default_rng(5)
    sky = rng.uniform(-SIDE_PX, 6 * SIDE_PX, (6000, 2))
    xy, flux, maps = [], [], []
    for corner in np.asarray(corners, float):
        place = sky - corner
        inside = ((place > 0) & (place < SIDE_PX)).all(axis=1)
        xy.append(place[inside] + rng.normal(0, 0.05, (int(inside.sum()), 2)))
        flux.append(np.full((1, int(inside.sum())), 1e4))
        maps.append(lambda x, y, corner=corner: (x + corner[0], y + corner[1]))
    shapes = [(int(SIDE_PX), int(SIDE_PX))] * len(corners)
    return register_globally(xy, flux, maps, shapes_hw=shapes, match_radius_px=3.0, anchors_xy=None)


@pytest.mark.parametrize(
    ("corners", "told"),
    [
        ([(0, 0), (100, 50), (200, 90)], []),
        ([(0, 0), (100, 50), (900, 0), (950, 20), (940, 60)], [{"parts": 2, "frames": 2}]),
        (
            [(0, 0), (100, 50), (900, 0), (950, 20), (480, 10), (1500, 0), (1520, 9)],
            [{"parts": 3, "frames": 4}],
        ),
        # The frame in between has stars of both.
        ([(0, 0), (300, 50), (600, 0), (900, 20)], []),
    ],
)
def test_parts_without_a_common_star(corners, told):
    said = []
    context = SimpleNamespace(say=lambda key, level, **values: said.append((key, level, values)))
    found = _found(corners)
    parts = phase4_grid._tell_parts(found, context)
    assert [(key, level) for key, level, _ in said] == [("frames_disconnected", "WARN")] * len(told)
    assert [values for *_, values in said] == told
    assert parts == (told[0]["parts"] if told else 1)
    for values in told:
        assert f"{values['parts']} parts" in sentences("en")("frames_disconnected", values)
