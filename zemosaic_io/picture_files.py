"""Finished pictures for screens, printers and the web: PNG, JPEG, JPEG XL and 16-bit TIFF, all in sRGB."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image, ImageCms, PngImagePlugin

from zemosaic_io.fits_write import atomic_path

__all__ = ["ENDINGS", "srgb_profile", "write_picture"]

ENDINGS = {"png": ".png", "jpeg": ".jpg", "tiff16": ".tif", "jxl": ".jxl"}
"""Ending of the file of each form."""

_QUALITY = 92
# JPEG and JPEG XL know no transparency here: what is missing is as black as beside the screen.
_DATE_IN_PROFILE = slice(24, 36)
_LARGEST_TIFF = 3_900_000_000
_DESCRIPTION, _SOFTWARE = 0x010E, 0x0131


def srgb_profile() -> bytes:
    """Return an ICC profile of sRGB, the same bytes each time."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[_DATE_IN_PROFILE] = np.array([2000, 1, 1, 0, 0, 0], ">u2").tobytes()
    return bytes(profile)


def write_picture(
    path: Path | str,
    rgba: np.ndarray,
    form: str,
    *,
    texts: Mapping[str, str] | None = None,
    durable: bool = True,
) -> Path:
    """Write a picture whose rows are in FITS order, the last one to the top.

    Parameters
    ----------
    rgba : ndarray, shape (H, W, 4), uint8; uint16 for ``tiff16``
    form : str
        One of `ENDINGS`.
    texts : mapping, optional
        Written into the file's metadata: chunks of PNG, the image description of the others.
    durable : bool
        See `atomic.atomic_path`.

    Raises
    ------
    SaveFailed
        ``save_failed``.
    ValueError
        For an unknown form, or a depth that does not fit it.
    """
    if form not in ENDINGS or (rgba.dtype == np.uint16) != (form == "tiff16"):
        raise ValueError(f"{form} of {rgba.dtype} cannot be written; known are {', '.join(ENDINGS)}")
    texts = dict(texts or {})
    described = "; ".join(f"{key}={value}" for key, value in texts.items())
    upright = np.ascontiguousarray(rgba[::-1])
    with atomic_path(path, durable=durable) as temporary:
        if form == "tiff16":
            tifffile.imwrite(
                temporary,
                upright,
                photometric="rgb",
                extrasamples=["unassalpha"],
                compression="zlib",
                predictor=True,
                iccprofile=srgb_profile(),
                bigtiff=upright.nbytes > _LARGEST_TIFF,
                description=described.encode("ascii", "replace").decode(),
                software="ZeMosaic",
                metadata=None,
            )
        else:
            _save_8bit(temporary, upright, form, texts, described)
    return Path(path)


def _save_8bit(path: Path, upright: np.ndarray, form: str, texts: dict[str, str], described: str) -> None:
    options: dict[str, Any] = {"icc_profile": srgb_profile()}
    if form == "png":
        info = PngImagePlugin.PngInfo()
        for key, value in texts.items():
            info.add_text(key, value)
        Image.fromarray(upright).save(path, format="PNG", pnginfo=info, compress_level=6, **options)
        return
    exif = Image.Exif()
    exif[_DESCRIPTION], exif[_SOFTWARE] = described, texts.get("Software", "ZeMosaic")
    picture = Image.fromarray(np.ascontiguousarray(upright[..., :3]))
    if form == "jxl":
        # Registers the form with Pillow.
        import pillow_jxl  # noqa: F401

        picture.save(path, format="JXL", quality=_QUALITY, exif=exif.tobytes(), **options)
    else:
        picture.save(path, format="JPEG", quality=_QUALITY, subsampling=0, exif=exif, **options)
