"""What stands before the sky: found where stars are missing and the level is another one; nothing else is."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from zemosaic_core import covered_sky
from zemosaic_core.covered_sky import cell_spans, covered_cells, sightings

N_CELLS, CELL = (30, 17), 64


class Night:
    """Meshes and stars of dithered frames of one field, as measuring and registering leave them."""

    def __init__(self, n=12, *, seed=0, stars=250, shift_px=40.0, nebula=0.0, tilt=25.0):
        rng = np.random.default_rng(seed)
        self.rng, self.n = rng, n
        ny, nx = N_CELLS
        y, x = np.mgrid[:ny, :nx]
        shift = rng.uniform(-shift_px, shift_px, (n, 2))
        centre = np.stack([(x + 0.5) * CELL, (y + 0.5) * CELL], axis=-1)
        self.xy = centre[None] + shift[:, None, None]
        self.star_xy = rng.uniform(-60, [nx * CELL + 60, ny * CELL + 60], (stars, 2))
        self.light = 10 ** rng.uniform(2.5, 5, stars)
        # The last one is seen, as stars are numbered by what is seen.
        self.star_xy[-1], self.light[-1] = (260.0, 300.0), 9e4
        u, t = 2 * x / (nx - 1) - 1, 2 * y / (ny - 1) - 1
        sky = nebula * np.exp(-((self.xy[..., 0] - 500) ** 2 + (self.xy[..., 1] - 900) ** 2) / 250**2)
        level = 430 * rng.uniform(0.85, 1.25, (n, 1, 1)) + sky
        level = level + rng.normal(0, tilt, (n, 1, 1)) * u + rng.normal(0, tilt, (n, 1, 1)) * t
        self.error = np.full((n, 3, ny, nx), 2.5)
        self.mesh = level[:, None] * np.array([0.8, 1.0, 0.7])[:, None, None]
        self.mesh = self.mesh + rng.normal(0, 2.5, self.mesh.shape)
        self.shift, self.dimming = shift, np.ones(n)
        # Air over each cell.
        self.air = np.ones((n, ny, nx))
        self.hidden = np.zeros((n, ny, nx), bool)

    def cover(self, i, cells, level=530.0):
        self.hidden[i][cells] = True
        self.mesh[i][:, cells] = level + self.rng.normal(0, 2.5, (3, np.count_nonzero(cells)))

    def cell_of_star(self, i):
        place = (self.star_xy - self.shift[i]) / CELL
        column, row = np.floor(place).astype(int).T
        inside = (row >= 0) & (row < N_CELLS[0]) & (column >= 0) & (column < N_CELLS[1])
        return np.where(inside, row * N_CELLS[1] + column, -1)

    def sightings(self, brightest=400):
        frame, star, flux, cell = [], [], [], []
        for i in range(self.n):
            cells = self.cell_of_star(i)
            light = self.light * self.dimming[i] * self.air[i].ravel()[np.maximum(cells, 0)]
            shown = (cells >= 0) & (light > 600)
            shown &= ~self.hidden[i].ravel()[np.maximum(cells, 0)]
            shown &= self.rng.uniform(size=len(shown)) > 0.03
            index = np.flatnonzero(shown)
            index = index[np.argsort(-self.light[index])][:brightest]
            frame.append(np.full(len(index), i))
            star.append(index)
            flux.append(light[index] / self.dimming[i] * self.rng.normal(1, 0.05, len(index)))
            cell.append(cells[index])
        return sightings(*map(np.concatenate, (frame, star, flux, cell)), self.cell_of_star, self.n, N_CELLS)

    def covered(self, **options):
        gains = np.ones(self.mesh.shape[:2])
        return covered_cells(self.mesh, self.error, gains, self.xy.__getitem__, self.sightings(**options))


def rows_below(k):
    cells = np.zeros(N_CELLS, bool)
    cells[:k] = True
    return cells


@pytest.mark.parametrize("stars", [120, 400])
@pytest.mark.parametrize("level", [200.0, 530.0])
def test_a_tree_that_grows_into_the_picture_is_found(stars, level):
    night = Night(18, stars=stars)
    for i in range(12, 18):
        night.cover(i, rows_below(4 + 2 * (i - 12)), level)
    found = night.covered()
    assert not found[:12].any()
    for i in range(12, 18):
        truth = rows_below(4 + 2 * (i - 12))
        assert found[i][truth].mean() > 0.97
        # Not more than the cells beside it, which may be covered in part.
        assert not found[i][~rows_below(4 + 2 * (i - 12) + 2)].any()


def test_a_frame_that_is_mostly_covered_is_known_as_such():
    night = Night(8, stars=300)
    night.cover(7, rows_below(24))
    found = night.covered()
    assert found[7].mean() > 0.75
    assert not found[:7].any()


def test_two_frames_are_enough_and_the_one_with_the_stars_is_right():
    night = Night(2, stars=300)
    night.cover(0, rows_below(10))
    found = night.covered()
    assert found[0][rows_below(10)].mean() > 0.95
    assert not found[1].any()


@pytest.fixture
def small_frames(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "N_CELLS", (9, 8))


@pytest.mark.parametrize("level", [200.0, 530.0])
@pytest.mark.parametrize(
    ("rows", "stars", "least"), [(1, 150, 0.85), (1, 60, 0.7), (2, 60, 0.95), (4, 40, 0.9)]
)
def test_parts_of_small_frames_are_found_by_their_edge(small_frames, rows, stars, least, level):
    """A row of cells lies beside stars everywhere: no cell of it is far from all that are seen."""
    shares = []
    for seed in range(30, 36):
        night = Night(10, seed=seed, stars=stars)
        for i in range(7, 10):
            night.cover(i, rows_below(rows), level)
        found = night.covered()
        assert not found[:7].any()
        assert not found[7:][:, ~rows_below(rows + 1)].any()
        shares.append(found[7:][:, rows_below(rows)].mean())
    assert np.mean(shares) > least


@pytest.mark.parametrize("stars", [25, 60, 150])
@pytest.mark.parametrize("air", [0.3, 0.5, 0.7])
def test_clouds_over_small_frames_have_no_edge(small_frames, stars, air):
    y, x = np.mgrid[: N_CELLS[0], : N_CELLS[1]]
    for seed in range(40, 46):
        night = Night(10, seed=seed, stars=stars)
        rng = np.random.default_rng(seed)
        for i in (2, 5, 9):
            angle, wide = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 2.0)
            across = (x - 4) * np.cos(angle) + (y - 4) * np.sin(angle) - rng.uniform(-2, 3)
            share = 1 / (1 + np.exp(-across / wide))
            night.air[i] = 1 - (1 - air) * share
            night.mesh[i] *= 1 + rng.uniform(0.05, 0.4) * share
        assert not night.covered().any()


def test_what_is_common_to_all_frames_is_not_covered():
    # A bright nebula; dark clouds that hide all stars behind them.
    night = Night(10, nebula=400.0, tilt=60.0)
    inside = np.hypot(night.star_xy[:, 0] - 500, night.star_xy[:, 1] - 1300) > 260
    night.star_xy, night.light = night.star_xy[inside], night.light[inside]
    assert not night.covered().any()


def test_gradients_thin_clouds_and_blurred_frames_are_not_covered():
    night = Night(10, tilt=80.0)
    y = np.mgrid[: N_CELLS[0], : N_CELLS[1]][0]
    # A cloud over half a frame that dims by a third: brighter sky, fewer stars, but stars.
    night.mesh[3] += 60.0 / (1 + np.exp(-(y - 15.0)))
    night.dimming[3] = 0.65
    # A frame with hardly any stars left, and a level of its own.
    night.dimming[4] = 0.01
    night.mesh[4] += 40.0 * (y > 20)
    assert not night.covered().any()


def test_where_no_other_frame_looks_nothing_is_known():
    night = Night(2, stars=300)
    night.shift[1] += [0, 24 * CELL]
    night.xy[1] += np.array([0, 24 * CELL])
    night.star_xy = np.concatenate([night.star_xy, night.star_xy + np.array([0, 24 * CELL])])
    night.light = np.tile(night.light, 2)
    night.cover(0, rows_below(12))
    assert not night.covered().any()


def test_spans_are_the_pixels_of_the_cells():
    cells = np.random.default_rng(0).uniform(size=(4, 5)) > 0.5
    shape = (230, 300)
    truth = np.kron(cells, np.ones((64, 64), bool))[: shape[0], : shape[1]]
    drawn = np.zeros(shape, int)
    spans = cell_spans(cells, 64, shape)
    for y, x0, x1 in spans:
        drawn[y, x0:x1] += 1
    np.testing.assert_array_equal(drawn, truth)
    assert (np.diff(spans[:, 0]) >= 0).all()
    assert cell_spans(np.zeros((4, 5), bool), 64, shape).shape == (0, 3)


def test_places_are_looked_at_in_parts_without_another_result(monkeypatch):
    night = Night(nebula=80.0)
    night.cover(3, rows_below(9))
    night.mesh[5, 1, 4:9, 2] = np.nan
    stars = night.sightings()
    gains = night.rng.uniform(0.9, 1.1, night.mesh.shape[:2])
    found = [covered_cells(night.mesh, night.error, gains, night.xy.__getitem__, stars)]
    for cells in (2_000, 1):
        monkeypatch.setattr(covered_sky, "_CELLS_AT_ONCE", cells)
        found.append(covered_cells(night.mesh, night.error, gains, night.xy.__getitem__, stars))
    assert found[0][3].any()
    assert (found[0] == found[1]).all()
    assert (found[0] == found[2]).all()
