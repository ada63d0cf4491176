"""Cut the bad edges off stacked pictures: public functions on arrays and files, and `python lecropper.py FILES`.

Names and call forms are those of ZeMosaic 4. Images are (h, w, C) or (h, w), float, NaN missing.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

from zemosaic_core.altaz_mask import AltAzOptions, altaz_mask
from zemosaic_core.axes import to_chw
from zemosaic_core.quality_crop import CropOptions, quality_box
from zemosaic_io.tile_tools import AltAzWish, crop_file, cropped_name, read_planes, save_cut

__all__ = [
    "AltAzOptions",
    "AltAzWish",
    "CropOptions",
    "altZ_cleanup",
    "apply_altaz_cleanup",
    "crop_file",
    "cropped_name",
    "detect_autocrop_rgb",
    "load_fits_rgb",
    "mask_altaz_artifacts",
    "quality_crop",
    "save_cropped_fits",
]


def detect_autocrop_rgb(
    lum: np.ndarray | None,
    R: np.ndarray,
    G: np.ndarray,
    B: np.ndarray,
    band_px: int = 32,
    k_sigma: float = 2.0,
    margin_px: int = 8,
    *,
    min_run: int = 2,
    coverage: np.ndarray | None = None,
) -> tuple[int, int, int, int]:
    """Return the box worth keeping as ``(y0, x0, y1, x1)``, end exclusive.

    ``lum`` is what version 4 wanted besides; the three planes say the same.
    """
    planes = np.stack([np.asarray(plane, np.float32) for plane in (R, G, B)])
    found = quality_box(planes, coverage, CropOptions(band_px, k_sigma, margin_px, min_run))
    y0, y1, x0, x1 = found.box
    return y0, x0, y1, x1


def quality_crop(
    img: np.ndarray,
    wcs: Any = None,
    *,
    band_px: int = 32,
    k_sigma: float = 2.0,
    margin_px: int = 8,
    min_run: int = 2,
    coverage: np.ndarray | None = None,
) -> tuple[np.ndarray, Any, tuple[int, int, int, int]]:
    """Return the part worth keeping, its WCS (a copy; None without one), and its box ``(y0, x0, y1, x1)``."""
    options = CropOptions(band_px, k_sigma, margin_px, min_run)
    y0, y1, x0, x1 = quality_box(to_chw(img), coverage, options).box
    moved = None
    if wcs is not None:
        moved = wcs.deepcopy()
        moved.wcs.crpix = moved.wcs.crpix - np.array([x0, y0], float)
    return np.asarray(img)[y0:y1, x0:x1].copy(), moved, (y0, x0, y1, x1)


def mask_altaz_artifacts(
    img: np.ndarray,
    margin_percent: float = 5.0,
    decay_ratio: float = 0.15,
    fill_value: float = 0.0,
    return_mask: bool = False,
    hard_threshold: float = 1e-3,
    coverage: np.ndarray | None = None,
    min_coverage_abs: float = 3.0,
    min_coverage_frac: float = 0.5,
    morph_open_px: int = 3,
) -> Any:
    """Return a copy with thin corners filled, and with ``return_mask`` also the mask (h, w), 0 to 1.

    Pixels whose mask is below ``hard_threshold`` get ``fill_value``; the others keep their value: a value times a mask
    is no light.
    """
    image = np.array(img, dtype=np.float32)
    options = AltAzOptions(margin_percent, decay_ratio, min_coverage_abs, min_coverage_frac, morph_open_px)
    mask = altaz_mask((image.shape[0], image.shape[1]), coverage, options)
    image[mask < hard_threshold] = fill_value
    return (image, mask) if return_mask else image


def apply_altaz_cleanup(
    img: np.ndarray,
    margin_percent: float = 5.0,
    decay: float = 0.15,
    nanize: bool = True,
    coverage: np.ndarray | None = None,
    **options: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Return a copy with thin corners NaN (or 0), and the mask; options as in `mask_altaz_artifacts`."""
    fill = float("nan") if nanize else 0.0
    result = mask_altaz_artifacts(
        img, margin_percent, decay, fill_value=fill, return_mask=True, coverage=coverage, **options
    )
    return result[0], result[1]


altZ_cleanup = apply_altaz_cleanup


def load_fits_rgb(path: Path | str) -> np.ndarray:
    """Return the picture of a FITS file as (h, w, 3) float32, NaN missing; grey ones three times."""
    planes, _ = read_planes(Path(path))
    planes = planes if len(planes) == 3 else np.repeat(planes[:1], 3, axis=0)
    return np.ascontiguousarray(np.moveaxis(planes, 0, -1))


def save_cropped_fits(path: Path | str, box: tuple[int, int, int, int], out_path: Path | str) -> Path:
    """Write the box ``(y0, x0, y1, x1)`` of a file, with its WCS and all planes, to another file; return its path."""
    y0, x0, y1, x1 = box
    target = Path(out_path)
    if target.resolve() == Path(path).resolve():
        raise ValueError(f"{target} is the original; choose another name")
    save_cut(Path(path), target, (y0, y1, x0, x1))
    return target


if __name__ == "__main__":
    sys.exit(importlib.import_module("run_zemosaic").main(["crop", *sys.argv[1:]]))
