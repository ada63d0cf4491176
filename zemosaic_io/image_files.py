"""Read and write any picture in a FITS file, and judge its WCS; for files that need not come from a telescope."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS, FITSFixedWarning, WcsError

from zemosaic_core.axes import to_chw
from zemosaic_core.errors import SaveFailed, SkipItem
from zemosaic_io.atomic import atomic_path
from zemosaic_io.fits_write import write_image

__all__ = [
    "LoadedImage",
    "UnusableWcs",
    "read_header_wcs",
    "read_image_file",
    "scale_to_uint16",
    "scale_to_unit",
    "write_image_file",
    "write_mask",
]


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


def _is_something_else(path: Path) -> bool:
    """Return whether a file that can be read is neither a FITS file nor a packed one."""
    try:
        with path.open("rb") as file:
            start = file.read(6)
    except OSError:
        return False
    return start != b"SIMPLE" and not start.startswith((b"\x1f\x8b", b"BZh", b"PK\x03\x04"))


def read_image_file(path: Path) -> LoadedImage:
    """Read the first picture of a FITS file; a unit called SCI or IMAGE goes first.

    Raises
    ------
    SkipItem
        ``frame_not_fits`` when the file is something else, ``frame_unreadable`` when it cannot be read or holds no
        picture.
    """
    try:
        with fits.open(path, memmap=False) as hdus:
            index = _first_image(hdus)
            stored, header = hdus[index].data, hdus[index].header.copy()
    except (OSError, ValueError, TypeError, LookupError) as error:
        if _is_something_else(path):
            raise SkipItem(
                "frame_not_fits", f"{path} does not start like a FITS file", path=str(path)
            ) from error
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


class UnusableWcs(ValueError):
    """What is wrong with the WCS of a header, in English."""


def read_header_wcs(header: fits.Header, *, require_footprint: bool = True) -> WCS:
    """Return the celestial WCS that a header describes.

    Parameters
    ----------
    header : astropy.io.fits.Header
    require_footprint : bool
        Also require the image size and finite sky positions of its corners.

    Raises
    ------
    UnusableWcs
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FITSFixedWarning)
            wcs = WCS(header, naxis=2)
    except (ValueError, TypeError, MemoryError, KeyError, WcsError) as error:
        raise UnusableWcs(f"the WCS cards cannot be read: {error}") from error
    if not wcs.has_celestial:
        raise UnusableWcs("no celestial axes (CTYPE)")
    if not np.isfinite(wcs.wcs.crval).all() or not np.isfinite(wcs.pixel_scale_matrix).all():
        raise UnusableWcs("CRVAL or the matrix is not finite")
    if abs(np.linalg.det(wcs.pixel_scale_matrix)) < 1e-18:
        raise UnusableWcs("the matrix is singular")
    if require_footprint:
        width, height = int(header.get("NAXIS1", 0)), int(header.get("NAXIS2", 0))
        if width < 1 or height < 1:
            raise UnusableWcs("the image size is missing (NAXIS1, NAXIS2)")
        corners = wcs.all_pix2world([[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]], 0)
        if not np.isfinite(corners).all():
            raise UnusableWcs("a corner has no place on the sky")
    return wcs


def write_image_file(
    image: np.ndarray,
    path: Path | str,
    header: fits.Header | Mapping[str, Any] | None = None,
    *,
    overwrite: bool = True,
    save_as_float: bool = False,
    legacy_rgb_cube: bool = False,
    axis_order: str = "HWC",
    alpha_mask: np.ndarray | None = None,
) -> None:
    """Write an image to a FITS file, complete or not at all.

    Parameters
    ----------
    image : ndarray, shape (h, w), (h, w, C) or, with ``axis_order='CHW'``, (C, h, w)
    path : str or Path
    header : Header or mapping, optional
        Cards to keep; structural ones are replaced.
    overwrite : bool
        False: an existing file is an error.
    save_as_float : bool
        True: float32 values as they are, NaN for missing. False: uint16 by `scale_to_uint16`.
    legacy_rgb_cube : bool
        For uint16 colour: one (3, h, w) image instead of a luminance with extensions R, G, B.
    axis_order : {'HWC', 'CHW'}
    alpha_mask : ndarray, shape (h, w), optional
        Written as uint8 extension ALPHA.

    Raises
    ------
    SaveFailed
        When the file exists and may not be replaced, or cannot be written.
    ValueError
        When the shape or the axis order is not usable.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise SaveFailed(
            "save_exists", f"{path} exists; choose another name or allow overwriting", path=str(path)
        )
    if axis_order not in ("HWC", "CHW"):
        raise ValueError(f"axis_order must be HWC or CHW, got {axis_order!r}")
    image = np.asarray(image)
    planes = image.astype(np.float32) if image.ndim == 3 and axis_order == "CHW" else to_chw(image)
    cards = list(header.cards) if isinstance(header, fits.Header) else list((header or {}).items())
    extensions = [] if alpha_mask is None else [("ALPHA", np.asarray(alpha_mask, np.uint8))]
    if not save_as_float:
        planes = scale_to_uint16(planes)
        if len(planes) == 3 and not legacy_rgb_cube:
            extensions = [*zip("RGB", planes, strict=True), *extensions]
            planes = planes.mean(axis=0, keepdims=True, dtype=np.float32).astype(np.uint16)
    write_image(path, planes[0] if len(planes) == 1 else planes, cards, extensions)


def write_mask(path: Path | str, mask: np.ndarray) -> None:
    """Write a mask as uint8 ``.npy``, complete or not at all.

    Raises
    ------
    SaveFailed
        When it cannot be written.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, mask.astype(np.uint8))


def scale_to_unit(image: np.ndarray) -> np.ndarray:
    """Bring the finite values to [0, 1]; 0 where they are all the same. Missing ones stay missing."""
    finite = np.isfinite(image)
    if not finite.any():
        return image
    low, high = float(image[finite].min()), float(image[finite].max())
    return (image - np.float32(low)) / np.float32(high - low) if high > low else image * 0


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
