"""Read finished images by bands of rows: mosaics, coverages, master tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from zemosaic_core.errors import SkipItem
from zemosaic_io.fits_read import read_plane_rows
from zemosaic_io.headers import HduInfo, iter_hdus

__all__ = ["ImageRows"]


class ImageRows:
    """The rows of an uncompressed FITS image, read when asked for.

    Parameters
    ----------
    path : Path or str
        The file.
    extension : str, optional
        EXTNAME of the image; the first image of the file when empty.

    Attributes
    ----------
    shape : tuple of int
        (C, H, W); a 2-D image has one channel.

    Raises
    ------
    SkipItem
        ``frame_no_image`` when there is no such image.
    """

    def __init__(self, path: Path | str, extension: str = "") -> None:
        self.path = Path(path)
        self._hdu = self._find(extension)
        axes = self._hdu.image_axes
        self.shape = (int(np.prod(axes[2:], dtype=np.int64)) if len(axes) > 2 else 1, axes[1], axes[0])
        self.cards = dict(self._hdu.cards)

    def _find(self, extension: str) -> HduInfo:
        for hdu in iter_hdus(self.path):
            if len(hdu.image_axes) >= 2 and (not extension or hdu.name == extension):
                return hdu
        raise SkipItem("frame_no_image", f"{self.path} has no image {extension}", path=str(self.path))

    def rows(self, y0: int, y1: int) -> np.ndarray:
        """Return rows ``y0..y1`` as (C, y1-y0, W) float32."""
        return read_plane_rows(self.path, self._hdu, y0, y1)
