"""The pictures and star tables that outside solvers get, and the way back to full-frame pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from zemosaic_core.stars import StarList
from zemosaic_io.fits_write import atomic_path, write_image
from zemosaic_io.solvers.base import SolveRequest

__all__ = ["SolverImage", "prepare_image", "wcs_to_full_frame", "write_solver_image", "write_star_table"]


@dataclass(frozen=True)
class SolverImage:
    """A small 16-bit picture of a frame.

    Its pixel ``(x, y)`` has its centre at ``(x0 + step * x, y0 + step * y)`` of the full frame.
    """

    data: np.ndarray
    step: int
    x0: float
    y0: float


def prepare_image(request: SolveRequest, step: int) -> SolverImage:
    """Return the luminance of a frame averaged over ``step`` x ``step`` pixels as uint16.

    The solver is never asked to shrink the picture itself: some versions forget that shrinking moves the
    centre of the first pixel by a fraction of a pixel.
    """
    if request.image_provider is None:
        raise ValueError("this solver needs a picture and the request offers none")
    luminance, (x0, y0) = request.image_provider()
    height, width = (n // step * step for n in luminance.shape)
    blocks = luminance[:height, :width].reshape(height // step, step, width // step, step)
    small = np.nan_to_num(blocks.mean(axis=(1, 3), dtype=np.float32), nan=0.0)
    top = float(small.max(initial=0.0))
    if top <= 1.5 or top > 65535.0:
        # Frames that are not in 16-bit ADU: normalised to 1, or summed beyond the range.
        low = float(small.min(initial=0.0))
        small = (small - low) * (65535.0 / max(top - low, 1e-12))
    data = np.rint(np.clip(small, 0.0, 65535.0)).astype(np.uint16)
    shift = (step - 1) / 2.0
    return SolverImage(data, step, x0 + shift, y0 + shift)


def write_solver_image(path: Path, image: SolverImage) -> None:
    """Write the picture as a plain FITS without any hint in its header."""
    write_image(path, image.data, durable=False)


def wcs_to_full_frame(cards: Mapping[str, Any], step: int, x0: float, y0: float) -> dict[str, Any]:
    """Return the WCS of the full frame from the WCS of a picture with `SolverImage` geometry.

    With ``u`` the offset from the reference pixel, ``u_full = step * u``: CRPIX moves, the linear part is
    divided by ``step`` and a SIP coefficient ``A_p_q`` by ``step ** (p + q - 1)`` (Shupe et al. 2005).
    """
    full = dict(cards)
    full["CRPIX1"] = x0 + step * (float(cards["CRPIX1"]) - 1.0) + 1.0
    full["CRPIX2"] = y0 + step * (float(cards["CRPIX2"]) - 1.0) + 1.0
    has_cd = any(key.startswith("CD") and key[2].isdigit() for key in cards)
    for key, value in cards.items():
        if (key.startswith("CD") and key[2].isdigit()) or (key.startswith("CDELT") and not has_cd):
            full[key] = float(value) / step
        name, *powers = key.split("_")
        if name in ("A", "B", "AP", "BP") and len(powers) == 2:
            full[key] = float(value) * float(step) ** (1 - int(powers[0]) - int(powers[1]))
    return full


def write_star_table(path: Path, stars: StarList, limit: int) -> int:
    """Write the brightest stars as a FITS table X, Y, FLUX; the first pixel is 1 there. Return how many."""
    count = min(limit, len(stars))
    order = np.argsort(-np.asarray(stars.flux), kind="stable")[:count]
    columns = [
        fits.Column("X", "D", array=np.asarray(stars.x, np.float64)[order] + 1.0),
        fits.Column("Y", "D", array=np.asarray(stars.y, np.float64)[order] + 1.0),
        fits.Column("FLUX", "E", array=np.asarray(stars.flux, np.float32)[order]),
    ]
    with atomic_path(path, durable=False) as temporary:
        fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns)]).writeto(
            temporary, overwrite=True
        )
    return count
