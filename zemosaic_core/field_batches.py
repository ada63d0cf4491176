"""Frames cut in time into batches, each of which covers the field by itself. Arrays only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .small_groups import inside_quads
from .sphere import gnomonic, mean_direction

__all__ = ["FieldBatch", "field_batches"]

# Coverage is counted in cells: so many along the longer side of everything, more where frames are small beside it.
_CELLS, _MOST_CELLS, _CELLS_OF_A_FRAME = 64, 512, 12
# Sky that fewer frames cover than this share of what is usual is no part of the field that each batch has to cover:
# one stray frame would else keep all batches open.
_FIELD_SHARE = 0.15


@dataclass(frozen=True)
class FieldBatch:
    """Frames that follow each other.

    Attributes
    ----------
    members : ndarray of int64
        Positions of its frames in the order of time.
    covered : float
        Share of the field that they cover.
    """

    members: np.ndarray
    covered: float


def field_batches(
    corners_deg: np.ndarray, *, coverage: float, min_frames: int, target_frames: int
) -> list[FieldBatch]:
    """Cut frames into batches: one is full when it covers the field and has the frames that are aimed at.

    Parameters
    ----------
    corners_deg : ndarray, shape (N, 4, 2), float64
        (RA, Dec) of the corners of every frame, in order around it; frames in the order of time. Frames with NaN cover
        nothing.
    coverage : float
        Share of the field, 0 to 1, that a batch has to cover. The field is the sky that frames cover, without what
        hardly any does.
    min_frames : int
        What is left over at the end is a batch of its own if it covers the field with at least so many frames, else
        part of the batch before.
    target_frames : int
        A batch goes on until it has so many, however soon it covers the field.

    Returns
    -------
    list of FieldBatch
        Every frame in one of them; one batch where no shorter stretch of time covers the field.

    Raises
    ------
    ValueError
        A number is out of range.
    """
    if not 0 < coverage <= 1 or min_frames < 1 or target_frames < 1:
        raise ValueError(
            f"coverage in (0, 1], min_frames and target_frames >= 1; got {coverage}, {min_frames}, {target_frames}"
        )
    n = len(corners_deg)
    if n == 0:
        return []
    depth = sum((cells.astype(np.int64) for cells in _covered_cells(corners_deg)), np.zeros((1, 1), np.int64))
    # What a frame sees on average; a median over the sky would count a stray frame as much as the field.
    usual = float((depth.astype(float) ** 2).sum() / max(1, depth.sum()))
    field = depth >= max(1.0, _FIELD_SHARE * usual)
    size = max(1, int(np.count_nonzero(field)))
    cuts: list[tuple[int, float]] = []
    start, seen = 0, np.zeros_like(field)
    for number, cells in enumerate(_covered_cells(corners_deg)):
        seen |= cells
        share = np.count_nonzero(seen & field) / size
        if share >= coverage and number + 1 - start >= max(min_frames, target_frames):
            cuts.append((number + 1, share))
            start, seen = number + 1, np.zeros_like(field)
    left, share = n - start, np.count_nonzero(seen & field) / size
    if left:
        if cuts and not (share >= coverage and left >= min_frames):
            # With more frames the batch before covers no less; how much more is not worth another look.
            cuts[-1] = (n, max(cuts[-1][1], share))
        else:
            cuts.append((n, share))
    starts = [0, *(end for end, _ in cuts[:-1])]
    return [
        FieldBatch(np.arange(first, end, dtype=np.int64), share)
        for first, (end, share) in zip(starts, cuts, strict=True)
    ]


def _covered_cells(corners_deg: np.ndarray) -> Iterator[np.ndarray]:
    """Yield for every frame which cells (ny, nx) of a lattice over all frames it covers, bool."""
    known = np.isfinite(corners_deg).all(axis=(1, 2))
    if not known.any():
        for _ in corners_deg:
            yield np.zeros((1, 1), bool)
        return
    ra, dec = mean_direction(corners_deg[known, :, 0].ravel(), corners_deg[known, :, 1].ravel())
    # A plane: the field of one mosaic is a small part of the sky.
    x, y = gnomonic(corners_deg[..., 0], corners_deg[..., 1], float(ra), float(dec))
    low = np.array([np.nanmin(x), np.nanmin(y)])
    extent = np.array([np.nanmax(x), np.nanmax(y)]) - low
    longest = float(extent.max())
    side = float(np.nanmedian(np.minimum(np.ptp(x, axis=1), np.ptp(y, axis=1))))
    step = max(min(longest / _CELLS, side / _CELLS_OF_A_FRAME), longest / _MOST_CELLS, 1e-12)
    nx, ny = (max(1, round(float(side) / step)) for side in extent)
    cx, cy = low[0] + (np.arange(nx) + 0.5) * step, low[1] + (np.arange(ny) + 0.5) * step
    for own_x, own_y in zip(x, y, strict=True):
        cells = np.zeros((ny, nx), bool)
        if np.isfinite(own_x).all() and np.isfinite(own_y).all():
            columns = np.flatnonzero((cx >= own_x.min()) & (cx <= own_x.max()))
            rows = np.flatnonzero((cy >= own_y.min()) & (cy <= own_y.max()))
            px, py = np.meshgrid(cx[columns], cy[rows])
            quad = np.stack([own_x, own_y], axis=-1)[np.newaxis]
            inside = inside_quads(np.stack([px.ravel(), py.ravel()], axis=-1), quad)
            cells[np.ix_(rows, columns)] = inside.reshape(len(rows), len(columns))
        yield cells
