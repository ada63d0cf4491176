"""Read any picture in a FITS file, and scale pictures to 16 bits; for files that need not come from a telescope."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from astropy.io import fits

from zemosaic_core.errors import SkipItem

__all__ = ["LoadedImage", "read_image_file", "scale_to_uint16"]


@dataclass(frozen=True)
class LoadedImage:
    """A picture from a file.

    Attributes
    ----------
    image : ndarray, shape (h, w) or (h, w, 3), float32
        Physical values in native byte order; NaN where the file has none.
    header : Header
        Of the unit the picture is in.
    hdu : int
        Number of that unit.
    axis_order : {'HW', 'HWC', 'CHW'}
        In the file.
    valid : ndarray, shape (h, w), bool
        Where every channel has a value and a fourth plane, if there is one, is not transparent.
    """

    image: np.ndarray
    header: fits.Header
    hdu: int
    axis_order: Literal["HW", "HWC", "CHW"]
    valid: np.ndarray


def read_image_file(path: Path) -> LoadedImage:
    """Read the first picture of a FITS file; a unit called SCI or IMAGE goes first.

    Raises
    ------
    SkipItem
        ``frame_unreadable`` when the file cannot be read or holds no picture.
    """
    try:
        with fits.open(path, memmap=False) as hdus:
            index = _first_image(hdus)
            stored, header = hdus[index].data, hdus[index].header.copy()
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise SkipItem(
            "frame_unreadable", f"{path} cannot be read: {error}", path=str(path), reason=str(error)
        ) from error
    order: Literal["HW", "HWC", "CHW"] = "HW"
    if stored.ndim == 3:
        order = "CHW" if stored.shape[0] in (1, 3, 4) else "HWC"
        stored = np.moveaxis(stored, 0, -1) if order == "CHW" else stored
    image = np.array(stored, dtype=np.float32, order="C")
    valid = np.ones(image.shape[:2], bool)
    if image.ndim == 3 and image.shape[2] == 4:
        valid, image = image[..., 3] > 0, np.ascontiguousarray(image[..., :3])
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    finite = np.isfinite(image)
    image[~finite] = np.nan
    valid &= finite if image.ndim == 2 else finite.all(axis=-1)
    return LoadedImage(image, header, index, order, valid)


def _first_image(hdus: fits.HDUList) -> int:
    usable = [index for index, hdu in enumerate(hdus) if getattr(hdu, "is_image", False) and _is_picture(hdu)]
    if not usable:
        raise LookupError("it holds no image with one, three or four planes")
    named = [index for index in usable if hdus[index].name.upper() in ("SCI", "IMAGE")]
    return (named or usable)[0]


def _is_picture(hdu: fits.ImageHDU) -> bool:
    shape = hdu.shape
    return len(shape) == 2 or (len(shape) == 3 and bool({shape[0], shape[-1]} & {1, 3, 4}))


def scale_to_uint16(planes: np.ndarray) -> np.ndarray:
    """Spread the range between the percentiles 0.1 and 99.9, widened by 2 %, over 0 .. 65535.

    Parameters
    ----------
    planes : ndarray, any shape
        NaN: missing; becomes 0, the value of nothing else but the darkest pixels.

    Returns
    -------
    ndarray, same shape, uint16
    """
    finite = planes[np.isfinite(planes)]
    low, high = np.percentile(finite, [0.1, 99.9]) if finite.size else (0.0, 1.0)
    margin = 0.02 * (high - low)
    low, span = low - margin, max(high - low + 2 * margin, 1e-12)
    scaled = np.clip((np.nan_to_num(planes, nan=low) - low) / span, 0, 1) * 65535
    return np.rint(scaled).astype(np.uint16)
