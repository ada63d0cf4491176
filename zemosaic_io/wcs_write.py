"""Put a found position into a FITS file, because its owner asked for it; never done by a run."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from astropy.io import fits

from zemosaic_io.fits_cards import is_celestial_key
from zemosaic_io.fits_write import atomic_path

__all__ = ["solved_path", "write_wcs"]


def solved_path(path: Path) -> Path:
    """Return the name of the solved copy of a file: ``name_solved.fits`` beside it."""
    return path.with_name(f"{path.stem}_solved{path.suffix}")


def write_wcs(path: Path, target: Path, hdu: int, cards: Mapping[str, Any]) -> None:
    """Write a copy of a FITS file with another celestial WCS in one of its units; its pixels stay bit for bit.

    Parameters
    ----------
    path, target : Path
        The file to read and the one to write; they may be the same file, which is then replaced at once.
    hdu : int
        Number of the unit that holds the image.
    cards : mapping
        Celestial WCS of the full frame; all celestial cards that the unit had are removed first.

    Raises
    ------
    SaveFailed
        The target cannot be written; an old file of that name is whole.
    """
    with atomic_path(target) as temporary:
        shutil.copyfile(path, temporary)
        # A compressed image keeps its cards in the table that holds it, so it is opened as that table.
        with fits.open(
            temporary, mode="update", disable_image_compression=True, output_verify="fix"
        ) as units:
            header = units[hdu].header
            for name in [name for name in header if is_celestial_key(name)]:
                header.remove(name, ignore_missing=True, remove_all=True)
            for name, value in cards.items():
                header[name] = value
