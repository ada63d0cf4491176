"""The rows of a tile that are finished already: they outlive a run that is stopped or killed while it stacks.

Pixels go straight into the file of the tile. Beside it, for each band of rows, lies a sealed record of what cannot be
read from there: the weights, which the tile gets only when all rows are known, facts, and a digest of the pixels.
What does not fit its digest was never made.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from zemosaic_core.block_facts import BlockFacts
from zemosaic_core.errors import RunFailed
from zemosaic_core.tile_rows import TileRows
from zemosaic_io.atomic import save_failed
from zemosaic_io.fits_write import StreamingFits
from zemosaic_io.pixel_digest import PixelDigest
from zemosaic_io.sealed_arrays import load_sealed, save_sealed

__all__ = ["TileBands"]

log = logging.getLogger(__name__)


class TileBands:
    """Bands of finished rows of one tile, from its top.

    Parameters
    ----------
    folder : Path
        Belongs to this tile alone; on the disk of the finished tile.
    key : str
        Names everything the tile follows from: bands of another key do not count.
    with_variance : bool
        The tile has an extension VARIANCE.
    every_s : float
        Blocks that are finished faster than this are recorded together.
    """

    def __init__(self, folder: Path, key: str, *, with_variance: bool, every_s: float = 1.0) -> None:
        self._folder = folder
        self._key = key
        self._with_variance = with_variance
        self._every_s = every_s
        self._facts: list[BlockFacts] = []
        self._bands: list[tuple[int, int]] = []
        self._blocks: list[tuple[int, int]] = []
        self._weights: list[np.ndarray] = []
        self._new_facts: list[BlockFacts] = []
        self._digest = PixelDigest()
        self._recorded_at = time.monotonic()

    @property
    def unfinished(self) -> Path:
        """The file of the tile while it is being made."""
        return self._folder / "tile.fits"

    @property
    def facts(self) -> list[BlockFacts]:
        """Facts of all rows so far, in their order."""
        return [*self._facts, *self._new_facts]

    def recover(self, path: Path) -> None:
        """Take a complete tile back into work that a run was killed over before it could note that it exists.

        Raises
        ------
        SaveFailed
            ``save_failed``.
        """
        if path.is_file() and not self.unfinished.exists() and any(self._folder.glob("rows_*.npz")):
            try:
                os.replace(path, self.unfinished)
            except OSError as error:
                raise save_failed(path, error) from error

    def take_up(self, out: StreamingFits) -> int:
        """Return how many rows from the top are there and whole; records of others are removed."""
        done = 0
        for path in sorted(self._folder.glob("rows_*.npz")):
            stored = load_sealed(path, self._key) if out.goes_on else None
            if stored is None or stored[0]["blocks"][0][0] != done:
                path.unlink()
                continue
            record, arrays = stored
            if self._digest_of(out, record["blocks"]) != record["digest"]:
                log.warning("%s: rows from %d on are damaged and are made anew", path.parent, done)
                path.unlink()
                continue
            end = int(record["blocks"][-1][1])
            for name in self._extensions():
                out.keep_rows(done, end, name)
            self._facts.append(BlockFacts.from_arrays(arrays))
            self._bands.append((done, end))
            done = end
        return done

    def add(self, out: StreamingFits, y0: int, y1: int, rows: TileRows) -> None:
        """Write the rows that follow those written so far, all but their weights.

        Raises
        ------
        SaveFailed
            ``save_failed``.
        """
        for name, pixels in self._pixels(rows).items():
            out.write_rows(y0, pixels, ext=name)
            _feed(self._digest, pixels)
        self._blocks.append((y0, y1))
        self._weights.append(rows.weight)
        self._new_facts.append(rows.facts)
        if time.monotonic() - self._recorded_at >= self._every_s:
            self.record(out)

    def restart(self, done: int) -> None:
        """Forget the rows from ``done`` on: they were computed wrongly and will come once more."""
        kept = [band for band in self._bands if band[1] <= done]
        for y0, _ in self._bands[len(kept) :]:
            self._path(y0).unlink(missing_ok=True)
        self._bands, self._facts = kept, self._facts[: len(kept)]
        self._blocks, self._weights, self._new_facts = [], [], []
        self._digest = PixelDigest()

    def record(self, out: StreamingFits) -> None:
        """Seal the rows that were added since the last time.

        Raises
        ------
        SaveFailed
            ``save_failed``.
        """
        self._recorded_at = time.monotonic()
        if not self._blocks:
            return
        # Pixels first: a record without them would only be found damaged.
        out.flush()
        facts = BlockFacts.joined(self._new_facts)
        y0, y1 = self._blocks[0][0], self._blocks[-1][1]
        save_sealed(
            self._path(y0),
            self._key,
            {"blocks": self._blocks, "digest": self._digest.key()},
            {"weight": np.concatenate(self._weights), **facts.arrays()},
        )
        self._facts.append(facts)
        self._bands.append((y0, y1))
        self._blocks, self._weights, self._new_facts = [], [], []
        self._digest = PixelDigest()

    def weights(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yield first row, end and weights (h, W), float32, of every band.

        Raises
        ------
        RunFailed
            ``run_error_state_lost``: a record is not there any more.
        """
        for y0, y1 in self._bands:
            path = self._path(y0)
            stored = load_sealed(path, self._key)
            if stored is None:
                raise RunFailed(
                    "run_error_state_lost",
                    f"{path} was damaged or removed while the run used it; start the run again",
                    path=str(path),
                )
            yield y0, y1, stored[1]["weight"]

    def remove(self) -> None:
        """Remove the bands: the tile is complete, or there is no room for them."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, y0: int) -> Path:
        return self._folder / f"rows_{y0:07d}.npz"

    def _extensions(self) -> list[str | None]:
        return [None, "COVERAGE", "CLIPPED", *(["VARIANCE"] if self._with_variance else [])]

    def _pixels(self, rows: TileRows) -> dict[str | None, np.ndarray]:
        kept = (rows.image, rows.coverage, rows.clipped, rows.variance)
        return {
            name: pixels for name, pixels in zip(self._extensions(), kept, strict=False) if pixels is not None
        }

    def _digest_of(self, out: StreamingFits, blocks: list[list[int]]) -> str:
        digest = PixelDigest()
        for y0, y1 in blocks:
            for name in self._extensions():
                _feed(digest, out.read_rows(y0, y1, ext=name))
        return digest.key()


def _feed(digest: PixelDigest, rows: np.ndarray) -> None:
    digest.update(np.ascontiguousarray(rows).reshape(-1).view(np.uint8))
