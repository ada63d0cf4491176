"""Where the samples of a block of output rows lie on the card: tile by tile, one line of memory per sample.

The output is cut into tiles of 8 x 32 pixels. A tile knows its sources; the samples of one of its rows follow each
other source by source, each 32 floats long. A warp that combines 32 neighbouring pixels thus reads one contiguous
piece of memory, and finds the next sample of its pixel always at the same distance. Where a source covers a tile
only in part, the rest of its samples is missing (NaN). Positions and numbers only; nothing here touches a card.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numba import njit

from zemosaic_core.chunks import Buffer

__all__ = ["TILE_H", "TILE_W", "TileTable", "pool_buffers", "tile_buffers", "tile_table", "widest_depth"]

TILE_H, TILE_W = 8, 32

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class TileTable:
    """Tiles of one block and the sources in them.

    Attributes
    ----------
    tiles_yx : tuple of int
        Tiles below and beside each other.
    bases : ndarray, shape (tiles,), int64
        Place of the first sample of a tile among the samples of a channel.
    firsts, counts : ndarray, shape (tiles,), int32
        First entry of a tile in `members`, and its number of sources.
    members : ndarray, shape (items,), int32
        Sources of all tiles, in their order.
    spans : ndarray, shape (N, 4), int32
        Tiles ``(ty0, ty1, tx0, tx1)`` of every source, end exclusive; all zero for one outside the block.
    slots : ndarray, shape (items,), int32
        Which sample of a tile a source owns, listed source by source and, within one, tile row by tile row.
    slot_starts : ndarray, shape (N,), int64
        First entry of a source in `slots`.
    """

    tiles_yx: tuple[int, int]
    bases: np.ndarray
    firsts: np.ndarray
    counts: np.ndarray
    members: np.ndarray
    spans: np.ndarray
    slots: np.ndarray
    slot_starts: np.ndarray

    @cached_property
    def n_samples(self) -> int:
        """Samples of one channel, missing ones included."""
        return int(self.counts.sum(dtype=np.int64)) * TILE_H * TILE_W

    @cached_property
    def depth(self) -> int:
        """Most sources of any tile."""
        return int(self.counts.max(initial=0))

    def per_item(self, values: np.ndarray) -> np.ndarray:
        """Return values (N, C) of the sources in the order of `members`, shape (C, items), float32."""
        return np.ascontiguousarray(np.asarray(values, np.float32)[self.members].T)


def tile_table(boxes: np.ndarray, height: int, width: int) -> TileTable:
    """Lay out the samples of a block.

    Parameters
    ----------
    boxes : ndarray, shape (N, 4), int
        ``(y0, y1, x0, x1)`` of every source within the block, end exclusive, in the order in which samples are
        combined.
    height, width : int
        Size of the block.
    """
    boxes = np.asarray(boxes, np.int64).reshape(-1, 4)
    spans = np.zeros((len(boxes), 4), np.int32)
    there = (boxes[:, 1] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 2])
    spans[there, 0] = boxes[there, 0] // TILE_H
    spans[there, 1] = (boxes[there, 1] - 1) // TILE_H + 1
    spans[there, 2] = boxes[there, 2] // TILE_W
    spans[there, 3] = (boxes[there, 3] - 1) // TILE_W + 1
    tiles_y, tiles_x = -(-height // TILE_H), -(-width // TILE_W)
    areas = (spans[:, 1] - spans[:, 0]).astype(np.int64) * (spans[:, 3] - spans[:, 2])
    slot_starts = np.concatenate([[0], np.cumsum(areas)]).astype(np.int64)
    counts = np.zeros(tiles_y * tiles_x, np.int32)
    slots = np.empty(int(slot_starts[-1]), np.int32)
    _take_slots(spans, tiles_x, counts, slots)
    firsts = np.concatenate([[0], np.cumsum(counts[:-1], dtype=np.int64)])
    members = np.empty(slots.size, np.int32)
    _list_members(spans, tiles_x, firsts, slots, members)
    return TileTable(
        tiles_yx=(tiles_y, tiles_x),
        bases=firsts * (TILE_H * TILE_W),
        firsts=firsts.astype(np.int32),
        counts=counts,
        members=members,
        spans=spans,
        slots=slots,
        slot_starts=slot_starts[:-1],
    )


@njit(cache=True, nogil=True)
def _take_slots(spans, tiles_x, counts, slots):
    """Give every source the next free slot of each of its tiles."""
    at = 0
    for source in range(spans.shape[0]):
        for ty in range(spans[source, 0], spans[source, 1]):
            for tx in range(spans[source, 2], spans[source, 3]):
                tile = ty * tiles_x + tx
                slots[at] = counts[tile]
                counts[tile] += 1
                at += 1


@njit(cache=True, nogil=True)
def _list_members(spans, tiles_x, firsts, slots, members):
    at = 0
    for source in range(spans.shape[0]):
        for ty in range(spans[source, 0], spans[source, 1]):
            for tx in range(spans[source, 2], spans[source, 3]):
                members[firsts[ty * tiles_x + tx] + slots[at]] = source
                at += 1


def _padded(boxes: Sequence[Box]) -> np.ndarray:
    """Boxes ``(y0, y1, tx0, tx1)`` widened to what any cut of the rows into tiles may give them; x in tiles."""
    found = np.array([b for b in boxes if b[1] > b[0] and b[3] > b[2]], np.int64).reshape(-1, 4)
    found[:, 0] -= TILE_H - 1
    found[:, 2] //= TILE_W
    found[:, 3] = (found[:, 3] - 1) // TILE_W + 1
    return found


def _running_sum(starts: np.ndarray, ends: np.ndarray, amounts: np.ndarray) -> int:
    """Return the largest sum of the amounts whose half-open ranges share a point."""
    if starts.size == 0:
        return 0
    places = np.concatenate([ends, starts])
    changes = np.concatenate([-amounts, amounts])
    # At the same place what ends goes before what starts.
    order = np.argsort(places, kind="stable")
    return int(np.cumsum(changes[order]).max())


def _items_per_tile_row(boxes: Sequence[Box]) -> tuple[int, int]:
    """Return the most entries a row of tiles can have, and the entries of all rows of tiles together."""
    padded = _padded(boxes)
    across = padded[:, 3] - padded[:, 2]
    rows = -(-(padded[:, 1] - padded[:, 0]) // TILE_H)
    return _running_sum(padded[:, 0], padded[:, 1], across), int((across * rows).sum())


def widest_depth(boxes: Sequence[Box], width: int) -> int:
    """Return a bound on the sources of one tile, wherever the rows are cut into tiles.

    Parameters
    ----------
    boxes : sequence of tuple
        ``(y0, y1, x0, x1)`` of the sources on the whole output grid.
    width : int
        Columns of the grid.
    """
    padded = _padded(boxes)
    worst = 0
    for tx in range(-(-width // TILE_W)):
        here = padded[(padded[:, 2] <= tx) & (tx < padded[:, 3])]
        if len(here) > worst:
            worst = max(worst, _running_sum(here[:, 0], here[:, 1], np.ones(len(here), np.int64)))
    return worst


def pool_buffers(boxes: Sequence[Box], n_channels: int, mapped: bool) -> list[Buffer]:
    """Declare the samples of a block, and their weights if they have any."""
    per_tile_row, all_rows = _items_per_tile_row(boxes)
    row = 4 * TILE_W * per_tile_row
    limit = 4 * TILE_H * TILE_W * max(1, all_rows)

    def samples(name: str, n: int) -> Buffer:
        return Buffer(name, fixed=n * row * (TILE_H - 1), per_row=n * row, limit=n * limit)

    weights = samples("pool weights", 1) if mapped else Buffer("pool weights", fixed=4)
    return [samples("pool", n_channels), weights]


def tile_buffers(boxes: Sequence[Box], n_channels: int, width: int, *, noise: bool) -> list[Buffer]:
    """Declare the tables of a block: what `tile_table` and `TileTable.per_item` take on the card.

    Of every entry its weight, with ``noise`` also its variance.
    """
    per_tile_row, all_rows = _items_per_tile_row(boxes)
    tiles_x = -(-width // TILE_W)

    def per_tile(name: str, n_bytes: int, limit: int = 0, copies: int = 1) -> Buffer:
        return Buffer(name, fixed=n_bytes, per_row=-(-n_bytes // TILE_H), copies=copies, limit=limit)

    return [
        per_tile("tile places", 8 * tiles_x),
        per_tile("tile counts", 4 * tiles_x, copies=2),
        per_tile("slots", 4 * per_tile_row, 4 * max(1, all_rows)),
        per_tile(
            "sample weights", 4 * n_channels * per_tile_row, 4 * n_channels * max(1, all_rows), 1 + noise
        ),
    ]
