"""The layout of samples: every source owns its slots, nothing overlaps, and the plan bounds what any block needs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zemosaic_core.gpu.tiles import TILE_H, TILE_W, pool_buffers, tile_buffers, tile_table, widest_depth

GRID = (70, 150)


@st.composite
def boxes_on_the_grid(draw):
    def box():
        y0, y1 = sorted((draw(st.integers(0, GRID[0])), draw(st.integers(0, GRID[0]))))
        x0, x1 = sorted((draw(st.integers(0, GRID[1])), draw(st.integers(0, GRID[1]))))
        return y0, y1, x0, x1

    return [box() for _ in range(draw(st.integers(0, 9)))]


def block_boxes(boxes, y0, y1):
    cut = [(max(b[0], y0) - y0, min(b[1], y1) - y0, b[2], b[3]) for b in boxes]
    return [b for b in cut if b[1] > b[0] and b[3] > b[2]]


def tiles_of(box):
    """Slow twin: the tiles a box touches."""
    rows = sorted({y // TILE_H for y in range(box[0], box[1])})
    cols = sorted({x // TILE_W for x in range(box[2], box[3])})
    return [(ty, tx) for ty in rows for tx in cols]


@settings(deadline=None)
@given(boxes=boxes_on_the_grid())
def test_sources_are_listed_in_their_order_and_own_their_slots(boxes):
    table = tile_table(np.array(boxes, int).reshape(-1, 4), *GRID)
    tiles_y, tiles_x = table.tiles_yx
    assert (tiles_y, tiles_x) == (-(-GRID[0] // TILE_H), -(-GRID[1] // TILE_W))
    wanted = {}
    for source, box in enumerate(boxes):
        at = int(table.slot_starts[source])
        for ty, tx in tiles_of(box):
            members = wanted.setdefault((ty, tx), [])
            assert table.slots[at] == len(members)
            members.append(source)
            at += 1
    taken = np.zeros(table.n_samples, bool)
    for tile in range(tiles_y * tiles_x):
        members = wanted.get(divmod(tile, tiles_x), [])
        first, count = table.firsts[tile], table.counts[tile]
        assert table.members[first : first + count].tolist() == members
        place = slice(table.bases[tile], table.bases[tile] + count * TILE_H * TILE_W)
        assert not taken[place].any()
        taken[place] = True
    assert taken.all()
    assert table.depth == max(map(len, wanted.values()), default=0)
    weights = np.arange(2.0 * len(boxes)).reshape(-1, 2)
    np.testing.assert_array_equal(table.per_item(weights), weights[table.members].T)


@settings(deadline=None)
@given(
    boxes=boxes_on_the_grid(),
    y0=st.integers(0, GRID[0] - 1),
    rows=st.integers(1, GRID[0]),
    mapped=st.booleans(),
    noise=st.booleans(),
)
def test_the_plan_bounds_every_block(boxes, y0, rows, mapped, noise):
    y1 = min(GRID[0], y0 + rows)
    table = tile_table(np.array(block_boxes(boxes, y0, y1), int).reshape(-1, 4), y1 - y0, GRID[1])
    buffers = pool_buffers(boxes, 3, mapped) + tile_buffers(boxes, 3, GRID[1], noise=noise)
    planned = {b.name: b.n_bytes(y1 - y0) for b in buffers}
    needed = {
        "pool": 12 * table.n_samples,
        "pool weights": 4 * table.n_samples if mapped else 4,
        "tile places": table.bases.nbytes,
        "tile counts": 2 * table.counts.nbytes,
        "slots": table.slots.nbytes,
        "sample weights": (6 if noise else 3) * table.members.nbytes,
    }
    assert set(planned) == set(needed)
    for name, n_bytes in needed.items():
        assert planned[name] >= n_bytes, name
    assert widest_depth(boxes, GRID[1]) >= table.depth


@pytest.mark.parametrize("n", [1, 7])
def test_the_plan_of_full_frames_is_tight(n):
    boxes = [(0, 800, 0, 640)] * n
    table = tile_table(np.array(boxes), 800, 640)
    (pool, _) = pool_buffers(boxes, 3, False)
    assert 12 * table.n_samples == 12 * n * 800 * 640
    assert pool.n_bytes(800) <= 1.01 * 12 * table.n_samples
    assert widest_depth(boxes, 640) == table.depth == n
