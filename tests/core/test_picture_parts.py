"""A picture in parts is the picture as a whole."""

from __future__ import annotations

import numpy as np
import pytest

from zemosaic_core.picture_noise import NoiseMap
from zemosaic_core.picture_parts import bands, part_edges, with_margin
from zemosaic_core.stretch import auto_stretch_params, preview_rgba


@pytest.mark.parametrize("size", [1, 191, 192, 2048, 2049, 3200, 20_001])
def test_parts_cover_every_pixel_once_and_are_about_equal(size):
    edges = part_edges(size, 2048)
    assert [start for start, _ in edges] == [0] + [stop for _, stop in edges[:-1]]
    assert edges[-1][1] == size
    assert max(stop - start for start, stop in edges) <= 2048 + 192
    assert len(edges) <= -(-size // 2048)


def test_bands_put_parts_where_they_belong_in_both_orders():
    picture = np.arange(500 * 700).reshape(500, 700, 1)
    asked = []

    def paint(box):
        asked.append(box)
        y0, y1, x0, x1 = box
        return picture[y0:y1, x0:x1]

    up = list(bands((500, 700), paint, most=200))
    down = list(bands((500, 700), paint, most=200, last_first=True))
    assert [y for y, _ in down] == [y for y, _ in up[::-1]] == [384, 192, 0]
    np.testing.assert_array_equal(np.concatenate([band for _, band in up]), picture)
    np.testing.assert_array_equal(np.concatenate([band for _, band in down[::-1]]), picture)
    assert len(up) > 1
    assert all(y0 % 192 == x0 % 192 == 0 for y0, _, x0, _ in asked)
    assert with_margin((0, 10, 690, 700), (500, 700), 16) == (0, 26, 674, 700)


def test_finished_parts_fit_together():
    rng = np.random.default_rng(3)
    image = rng.normal(300.0, 4.0, (3, 600, 800)).astype(np.float32)
    yy, xx = np.mgrid[:600, :800]
    for y, x, peak in zip(*rng.uniform((0, 0, 20), (600, 800, 4000), (60, 3)).T, strict=True):
        image += (peak * np.exp(-((yy - y) ** 2 + (xx - x) ** 2) / 4.0)).astype(np.float32)
    image[:, :150, :200] = np.nan
    noise = NoiseMap(np.full((3, 19, 25), 4.0, np.float32), 32)
    params = auto_stretch_params(image)

    def paint(box):
        y0, y1, x0, x1 = box
        return preview_rgba(
            image[:, y0:y1, x0:x1], params=params, max_dim=None, calm_noise=True, noise=noise.part(y0, x0)
        )

    whole = paint((0, 600, 0, 800)).astype(int)
    parts = np.concatenate([band for _, band in bands((600, 800), paint, most=200)]).astype(int)
    off = np.abs(parts - whole)
    # The noise of a scale is measured in each part, so single pixels pass for stars here and for noise there.
    assert (off > 3).mean() < 1e-4
    assert (off > 1).mean() < 3e-3
    assert (off > 0).mean() < 0.02
