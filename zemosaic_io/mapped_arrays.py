"""Arrays of many frames in one temporary file that is mapped: the system may take its pages back whenever it wants.

What a frame needs while it is stacked, the nodes of its map and the sums of its rows, is 10 to 100 kB. Those of
thousands would take from the memory of a run what its blocks need.
"""

from __future__ import annotations

import math
import mmap
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from zemosaic_core.sources import PixelMap
from zemosaic_io.atomic import save_failed

__all__ = ["mapped_arrays", "mapped_maps"]

_ALIGN = 64


def mapped_arrays(arrays: Iterable[np.ndarray], folder: Path) -> list[np.ndarray]:
    """Return the same arrays from a file without a name that lives as long as one of them.

    They are for reading; a page that is written to becomes memory of this process.

    Parameters
    ----------
    arrays : iterable of ndarray
        Taken one at a time; of numbers.
    folder : Path
        Where there is room for the file.

    Raises
    ------
    SaveFailed
        ``save_failed``: the disk is full.
    """
    places: list[tuple[int, np.dtype, tuple[int, ...]]] = []
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            at = 0
            for array in arrays:
                places.append((at, array.dtype, array.shape))
                content = np.ascontiguousarray(array).tobytes()
                padding = -len(content) % _ALIGN
                file.write(content + bytes(padding))
                at += len(content) + padding
            if at == 0:
                return [np.empty(shape, dtype) for _, dtype, shape in places]
            file.flush()
            pages = mmap.mmap(file.fileno(), at, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise save_failed(folder, error) from error
    return [
        np.frombuffer(pages, dtype, math.prod(shape), place).reshape(shape) for place, dtype, shape in places
    ]


def mapped_maps(maps: Iterable[PixelMap], folder: Path) -> list[PixelMap]:
    """Return the same maps with their nodes in a file; as `mapped_arrays`."""
    places: list[tuple[int, int, int, float]] = []

    def nodes() -> Iterator[np.ndarray]:
        for one in maps:
            places.append((one.x0, one.y0, one.step, one.max_error_px))
            yield one.src_x
            yield one.src_y

    found = iter(mapped_arrays(nodes(), folder))
    return [PixelMap(x0, y0, step, next(found), next(found), error) for x0, y0, step, error in places]
