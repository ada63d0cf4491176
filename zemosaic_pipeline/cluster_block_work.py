"""What a worker of a cluster does with a block of rows: co-add it, or make the second pass over it.

A worker imports this and nothing else of a run to co-add: each one that is started pays for every import.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from zemosaic_core.coadd import coadd_block
from zemosaic_core.refine import RefineSource, gather_block
from zemosaic_core.refine_structure import HALO_ROWS, Gathered, read_places, refined
from zemosaic_core.scratch import Scratch
from zemosaic_core.sources import CoaddBlock, CoaddSource, CombineRule, Kernel
from zemosaic_core.tile_rows import TileRows, TileRule
from zemosaic_io.frame_store import FrameStore
from zemosaic_pipeline.elsewhere import OwnWorker, RunStop, own_worker, run_folder

if TYPE_CHECKING:
    from zemosaic_gpu_policy import GpuPolicy

__all__ = ["CoaddPart", "RefinePart", "coadd_part", "looked_at", "refine_part", "values_at"]

# What stays free on the disk of a worker whatever it unpacks.
_KEEP_FREE_BYTES = 2_000_000_000


@dataclass(frozen=True)
class CoaddPart:
    """A block of the co-add and everything it takes."""

    pixels: FrameStore
    sources: tuple[CoaddSource, ...]
    rows: tuple[int, int]
    width: int
    n_channels: int
    rule: CombineRule
    kernel: Kernel
    budget_bytes: int
    lattice_row: int
    gpu_mode: str
    kept: TileRule
    stop: RunStop


@dataclass(frozen=True)
class RefinePart:
    """A block of the second pass and everything it takes.

    Most of a sky is left as it is, so only what is looked at travels: ``image`` (C, k) at the places that
    `read_places` names, rows ``image_rows`` of the co-add; ``mask`` (n,), ``weight`` and ``variance`` (C, n) where the
    mask of the block is not 0. ``wanted_bits`` are those of where that is, from `numpy.packbits`.
    """

    pixels: FrameStore
    sources: tuple[RefineSource, ...]
    image: np.ndarray
    image_rows: tuple[int, int]
    wanted_bits: np.ndarray
    mask: np.ndarray
    weight: np.ndarray
    variance: np.ndarray | None
    rows: tuple[int, int]
    width: int
    shares: tuple[float, ...]
    scale: float
    stop: RunStop


def coadd_part(part: CoaddPart) -> tuple[TileRows, str, list[dict[str, Any]]]:
    """Co-add a block on the worker this is, with its card where it has one; return also its host and its records."""
    block, host, records = _coadded(part)
    return part.kept(part.rows[0], block), host, records


def _coadded(part: CoaddPart) -> tuple[CoaddBlock, str, list[dict[str, Any]]]:
    here = own_worker()
    _unpack_on(here, part)
    y0, y1 = part.rows
    if not here.has_card:
        block = coadd_block(
            part.pixels,
            part.sources,
            y0,
            y1,
            part.width,
            part.n_channels,
            part.rule,
            part.kernel,
            threads=here.threads,
            cancel=part.stop,
            scratch=_scratch(),
        )
        return block, here.host, []
    # Only workers with a card need it, and its imports take half a second.
    from zemosaic_utils import coadd_on_grid

    policy, records = _card_policy(part.gpu_mode, part.budget_bytes)
    blocks: list[CoaddBlock] = []
    coadd_on_grid(
        part.pixels,
        part.sources,
        (y1, part.width),
        part.n_channels,
        part.rule,
        part.kernel,
        sink=lambda _a, _b, block: blocks.append(block),
        budget_bytes=part.budget_bytes,
        policy=policy,
        threads=here.threads,
        cancel=part.stop,
        first_row=y0,
        lattice_row=part.lattice_row,
        restart=blocks.clear,
    )
    told = list(records)
    records.clear()
    return CoaddBlock.joined(blocks), here.host, told


@cache
def _card_policy(mode: str, host_bytes: int) -> tuple[GpuPolicy, list[dict[str, Any]]]:
    """Return the policy of this process for its card, which remembers what went wrong, and its records."""
    from zemosaic_gpu_policy import GpuPolicy

    records: list[dict[str, Any]] = []
    return GpuPolicy(mode=mode, host_bytes=host_bytes, on_record=records.append), records


def refine_part(part: RefinePart) -> tuple[np.ndarray, np.ndarray | None]:
    """Make the second pass over a block; return image and variance (C, n) where its mask is not 0."""
    here = own_worker()
    _unpack_on(here, part)
    y0, y1 = part.rows
    shape = (y1 - y0, part.width)
    wanted = np.unpackbits(part.wanted_bits, count=shape[0] * shape[1]).view(bool).reshape(shape)
    at = np.flatnonzero(wanted)
    top, bottom = part.image_rows
    with _scratch().floats(len(part.image), bottom - top, part.width) as image:
        # Nobody looks at the others; who did would find nothing.
        image[...] = np.nan
        image[:, looked_at(wanted, y0, part.image_rows, part.scale)] = part.image
        gathered = gather_block(
            part.pixels,
            part.sources,
            image,
            top,
            wanted,
            y0,
            scale=part.scale,
            threads=here.threads,
            cancel=part.stop,
            scratch=_scratch(),
        )
        known = values_at(image[:, y0 - top : y1 - top], at)[:, None]
    # What becomes of a pixel follows from what is known of it alone: here all are one row.
    sums = Gathered(*(values_at(getattr(gathered, item.name), at)[:, None] for item in fields(Gathered)))
    variance = None if part.variance is None else part.variance[:, None]
    made, spread = refined(
        known, variance, sums, part.mask[None], part.weight[:, None], part.shares, part.scale
    )
    return made[:, 0], None if spread is None else spread[:, 0]


def values_at(planes: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Return (C, n) of planes (C, h, w) at flat indices (n,)."""
    return np.stack([np.take(plane, at) for plane in planes])


def looked_at(wanted: np.ndarray, y0: int, image_rows: tuple[int, int], scale: float) -> np.ndarray:
    """Return which pixels of rows of a co-add travel with a block of the second pass that begins in row ``y0``."""
    first = y0 - HALO_ROWS
    return read_places(wanted, scale)[image_rows[0] - first : image_rows[1] - first]


def _unpack_on(here: OwnWorker, part: CoaddPart | RefinePart) -> None:
    """Let the workers of a computer share what they unpack, in the folder that Dask has there."""
    part.pixels.unpack_into(run_folder(here.folder, part.stop.run_id), _KEEP_FREE_BYTES)


@cache
def _scratch() -> Scratch:
    """Return the memory of this worker for windows and samples: fresh pages cost much of what is computed in them."""
    return Scratch()
