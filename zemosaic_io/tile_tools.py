"""Cut and judge finished pictures in FITS files. Originals are read only; results get names of their own."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from zemosaic_core.altaz_mask import AltAzOptions, altaz_mask
from zemosaic_core.errors import SaveFailed, SkipItem
from zemosaic_core.quality_crop import CropOptions, quality_box
from zemosaic_core.tile_quality import QualityOptions, accepts, tile_quality
from zemosaic_io.atomic import atomic_path
from zemosaic_io.image_files import read_image_file

__all__ = [
    "AltAzWish",
    "Cut",
    "crop_file",
    "cropped_name",
    "judge_cut",
    "move_rejected",
    "read_planes",
    "save_cut",
    "score_file",
    "too_small",
]

# A mask below this is nothing.
MASKED = 1e-3
_MOSTLY_OPAQUE = 0.85


@dataclass(frozen=True)
class AltAzWish:
    """What is done about thin corners.

    Attributes
    ----------
    options : AltAzOptions
    nanize : bool
        Masked pixels become NaN, else 0.
    alpha : bool
        Write the mask as extension ALPHA.
    sidecar : str
        ``png`` or ``tiff``: also as a file beside it; '' for none.
    """

    options: AltAzOptions
    nanize: bool = True
    alpha: bool = True
    sidecar: str = ""


@dataclass(frozen=True)
class Cut:
    """What is kept of a picture.

    Attributes
    ----------
    shape_hw : tuple of int
        Of the whole picture.
    box : tuple of int
        ``(y0, y1, x0, x1)``, end exclusive.
    mask : ndarray, shape (h, w), or None
        What is left of each pixel of the whole picture, 0 to 1.
    reason_key : str
        See `QualityCrop`.
    bad : dict of str to float
        See `QualityCrop`.
    """

    shape_hw: tuple[int, int]
    box: tuple[int, int, int, int]
    mask: np.ndarray | None
    reason_key: str
    bad: dict[str, float]

    @property
    def masked(self) -> float:
        """Share of the picture that is masked."""
        return 0.0 if self.mask is None else round(float((self.mask < MASKED).mean()), 4)

    @property
    def kept(self) -> float:
        """Share of the picture that lies in the box."""
        y0, y1, x0, x1 = self.box
        return (y1 - y0) * (x1 - x0) / max(1, self.shape_hw[0] * self.shape_hw[1])

    def facts(self) -> dict[str, Any]:
        """Return ``reason``, ``bad``, ``pixels``, ``box`` and ``masked``."""
        return {
            "reason": self.reason_key,
            "bad": self.bad,
            "pixels": self.shape_hw[0] * self.shape_hw[1],
            "box": list(self.box),
            "masked": self.masked,
        }

    def of(self, planes: np.ndarray) -> np.ndarray:
        """Return planes (C, h, w) cut, NaN where they are masked."""
        y0, y1, x0, x1 = self.box
        cut = planes[:, y0:y1, x0:x1]
        if self.mask is None:
            return cut
        return np.where(self.mask[y0:y1, x0:x1] < MASKED, np.float32(np.nan), cut)


def read_planes(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the planes (C, h, w) of a picture, NaN where it has none or is transparent, and its coverage (h, w).

    Raises
    ------
    SkipItem
        It cannot be read.
    """
    loaded = read_image_file(path)
    image = loaded.image
    planes = image[np.newaxis] if image.ndim == 2 else np.ascontiguousarray(np.moveaxis(image, -1, 0))
    planes = np.where(loaded.valid, planes, np.float32(np.nan))
    coverage = None
    with fits.open(path, memmap=False) as hdus:
        for hdu in hdus[1:]:
            if not getattr(hdu, "is_image", False) or hdu.shape != planes.shape[1:]:
                continue
            if hdu.name.upper() == "COVERAGE":
                coverage = np.asarray(hdu.data, np.float32)
            elif hdu.name.upper() == "ALPHA":
                alpha = np.asarray(hdu.data, np.float32)
                planes[:, alpha < _MOSTLY_OPAQUE * max(float(alpha.max()), 1e-9)] = np.nan
    return planes, coverage


def cropped_name(path: Path, folder: Path | None = None) -> Path:
    """Return the name that the cut picture of a file gets, beside it or in a folder."""
    stem = path.name[: -len("".join(path.suffixes[-2:]))] if path.suffix in (".fz", ".gz") else path.stem
    return (folder or path.parent) / f"{stem}_cropped.fits"


def crop_file(
    path: Path,
    target: Path,
    crop: CropOptions | None,
    altaz: AltAzWish | None = None,
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the good part of a picture, with its WCS and all its planes, to another file.

    Parameters
    ----------
    crop : CropOptions or None
        None: nothing is cut off.
    altaz : AltAzWish, optional

    Returns
    -------
    dict
        ``file``, ``written``, ``box`` (y0, y1, x0, x1), ``reason``, ``bad`` and ``masked``, the share that is masked.

    Raises
    ------
    SkipItem
        It cannot be read.
    SaveFailed
        The target exists, is the original, or cannot be written.
    """
    if target.exists() and (not overwrite or target.resolve() == path.resolve()):
        raise SaveFailed("save_exists", f"{target} exists; choose another name", path=str(target))
    planes, coverage = read_planes(path)
    cut = judge_cut(planes, coverage, crop, altaz)
    save_cut(path, target, cut.box, cut.mask, altaz)
    return {"file": str(path), "written": str(target), **cut.facts()}


def judge_cut(
    planes: np.ndarray, coverage: np.ndarray | None, crop: CropOptions | None, altaz: AltAzWish | None = None
) -> Cut:
    """Decide what of a picture is kept; arguments as `read_planes` gives them and `crop_file` takes them."""
    height, width = planes.shape[1:]
    box, reason, bad = (0, height, 0, width), "crop_nothing", {}
    if crop is not None:
        found = quality_box(planes, coverage, crop)
        box, reason, bad = found.box, found.reason_key, found.bad
    mask = None if altaz is None else altaz_mask((height, width), coverage, altaz.options)
    return Cut((height, width), box, mask, reason, bad)


def save_cut(
    path: Path,
    target: Path,
    box: tuple[int, int, int, int],
    mask: np.ndarray | None = None,
    altaz: AltAzWish | None = None,
) -> None:
    """Write part of a picture, every plane of it, with the WCS that belongs to it.

    Parameters
    ----------
    box : tuple of int
        ``(y0, y1, x0, x1)``, end exclusive.
    mask : ndarray, shape (h, w), optional
        What is left of each pixel of the whole picture, 0 to 1.
    altaz : AltAzWish, optional
        What is done with the mask.
    """
    y0, y1, x0, x1 = box
    with fits.open(path, memmap=False) as hdus:
        shape = read_shape(hdus, path)
        made = []
        for hdu in hdus:
            data = hdu.data if getattr(hdu, "is_image", False) else None
            if data is None or not _is_of_picture(data.shape, shape):
                made.append(hdu.copy())
                continue
            cut = _cut(np.asarray(data), shape, box)
            if mask is not None:
                cut = _masked(cut, hdu.name.upper(), mask[y0:y1, x0:x1], shape, altaz)
            kept = hdu.header.copy()
            for axis, first in (("CRPIX1", x0), ("CRPIX2", y0)):
                if axis in kept:
                    kept[axis] = kept[axis] - first
            for card in ("BZERO", "BSCALE", "BLANK", "CHECKSUM", "DATASUM"):
                kept.remove(card, ignore_missing=True)
            kind = fits.PrimaryHDU if not made else fits.ImageHDU
            made.append(kind(cut, kept))
        if mask is not None and altaz is not None and altaz.alpha:
            made = [hdu for hdu in made if hdu.name.upper() != "ALPHA"]
            alpha = np.rint(255 * mask[y0:y1, x0:x1]).astype(np.uint8)
            made.append(fits.ImageHDU(alpha, name="ALPHA"))
            made[-1].header["ALPHADSC"] = ("0 transparent, 255 opaque", "")
            made[0].header["ALPHAEXT"] = (1, "an extension ALPHA follows")
        made[0].header["HISTORY"] = f"ZeMosaic: rows {y0}..{y1} and columns {x0}..{x1} of {path.name}"
        with atomic_path(target) as temporary:
            fits.HDUList(made).writeto(temporary, overwrite=True)
    if mask is not None and altaz is not None and altaz.sidecar:
        _write_sidecar(target, np.rint(255 * mask[y0:y1, x0:x1]).astype(np.uint8), altaz.sidecar)


def read_shape(hdus: fits.HDUList, path: Path) -> tuple[int, int]:
    """Return height and width of the picture in an open file.

    Raises
    ------
    SkipItem
        It holds none.
    """
    for hdu in hdus:
        shape: tuple[int, ...] = hdu.shape if getattr(hdu, "is_image", False) else ()
        if len(shape) == 2:
            return int(shape[0]), int(shape[1])
        if len(shape) == 3:
            hw = shape[1:] if shape[0] in (1, 3, 4) else shape[:2]
            return int(hw[0]), int(hw[1])
    raise SkipItem("frame_no_image", f"{path} holds no image", path=str(path))


def _is_of_picture(found: tuple[int, ...], shape: tuple[int, int]) -> bool:
    return tuple(found[-2:]) == shape or (len(found) == 3 and tuple(found[:2]) == shape)


def _rows_last(data: np.ndarray, shape: tuple[int, int]) -> bool:
    """Tell whether an array is (..., h, w) and not (h, w, C)."""
    return tuple(data.shape[-2:]) == shape


def _cut(data: np.ndarray, shape: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    y0, y1, x0, x1 = box
    part = data[..., y0:y1, x0:x1] if _rows_last(data, shape) else data[y0:y1, x0:x1]
    return np.ascontiguousarray(part)


def _masked(
    cut: np.ndarray, name: str, mask: np.ndarray, shape: tuple[int, int], altaz: AltAzWish | None
) -> np.ndarray:
    """Take out what is masked: weights fade, frames and pixels go where nothing is left."""
    gone = mask < MASKED
    if name == "WEIGHT":
        return np.asarray(cut * mask, dtype=cut.dtype)
    if name in ("COVERAGE", "CLIPPED", "ALPHA"):
        return np.where(gone, 0, cut).astype(cut.dtype)
    empty = np.nan if (altaz is None or altaz.nanize) and cut.dtype.kind == "f" else 0
    where = gone[..., None] if cut.ndim == 3 and cut.shape[:2] == mask.shape else gone
    return np.where(where, empty, cut).astype(cut.dtype)


def _write_sidecar(target: Path, alpha: np.ndarray, kind: str) -> None:
    from PIL import Image

    suffix = "tiff" if kind.startswith("tif") else "png"
    with atomic_path(target.with_name(f"{target.stem}_alpha.{suffix}")) as temporary:
        Image.fromarray(alpha).save(temporary, format=suffix.upper())


def score_file(
    path: Path, threshold: float, options: QualityOptions | None = None, *, override: bool = True
) -> dict[str, Any]:
    """Return the parts and the score of the picture in a file, and whether it passes.

    Raises
    ------
    SkipItem
        It cannot be read, or holds nothing.
    """
    planes, _ = read_planes(path)
    try:
        parts = tile_quality(planes, options).to_dict()
    except ValueError as error:
        raise too_small(path, planes.shape, error) from error
    return {"file": str(path), **parts, "accepted": accepts(parts, threshold, override=override)}


def too_small(path: Path, shape: tuple[int, ...], error: ValueError) -> SkipItem:
    """Return the reason why a picture has no score."""
    return SkipItem("frame_too_small", f"{path}: {error}", path=str(path), shape=str(shape))


def move_rejected(results: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Move the files that did not pass into a folder, under names that are free there; return where they are.

    Raises
    ------
    SaveFailed
        A file cannot be moved.
    """
    moved = []
    for result in results:
        if result.get("accepted", True):
            continue
        source = Path(result["file"])
        target = folder / source.name
        number = 1
        while target.exists():
            number += 1
            target = folder / f"{source.stem}_{number}{source.suffix}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.move(source, target)
        except OSError as error:
            raise SaveFailed(
                "save_failed", f"{source} cannot be moved: {error}", path=str(target), reason=str(error)
            ) from error
        result["moved_to"] = str(target)
        moved.append(target)
    return moved
