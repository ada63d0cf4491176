"""Read a picture that was stacked elsewhere, whatever program wrote it: FITS, XISF, or TIFF with its WCS beside it."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from zemosaic_core.errors import SkipItem
from zemosaic_core.stack_planes import counts_factor, without_empty_border
from zemosaic_io.folders import is_frame_name
from zemosaic_io.image_files import read_image_file
from zemosaic_io.xisf_read import read_xisf

__all__ = ["StackPicture", "depth_of_cards", "is_own_tile", "is_stack_name", "read_stack"]

_TIFF = (".tif", ".tiff")
# What runs of this program and of version 4 write beside a mosaic.
_BESIDE = re.compile(
    r"_(coverage|variance|sky|viewer|display|preview|alpha|picture|calibrated)(\.|$)", re.IGNORECASE
)
_DEPTHS = ("COVERAGE", "NFRAMES", "COUNT")
_WEIGHTS = ("WEIGHT", "WEIGHTS", "WHT")
_COUNT_CARDS = ("ZMT_NALGN", "NEXP_SUM", "ZMT_NRAW", "STACKCNT", "NCOMBINE", "NUMFRAME", "SNAPSHOT")
_SECONDS_CARDS = ("EXPTOTAL", "TOTALEXP", "LIVETIME")
_STRUCTURE = re.compile(r"^(SIMPLE|XTENSION|BITPIX|NAXIS\d*|EXTEND|PCOUNT|GCOUNT|BZERO|BSCALE|BLANK|EXTNAME|CHECKSUM"
                        r"|DATASUM|BAYERPAT|CFAIMAGE|COMMENT|HISTORY|END|Z[A-Z]+\d*|CTYPE3|ALPHAEXT|STACKCNT|LIVETIME"
                        r"|TOTALEXP|)$")  # fmt: skip
# Alpha below this share of its highest value is no picture; version 4 draws the line there, too.
_OPAQUE = 0.5


@dataclass(frozen=True)
class StackPicture:
    """A stack in counts.

    Attributes
    ----------
    planes : ndarray, shape (C, h, w), float32
        C is 1 or 3; NaN where there is no picture.
    depth : ndarray, shape (h, w), float32, or None
        Frames per pixel.
    weight : ndarray, shape (h, w), float32, or None
        Weight per pixel, in a unit of its own; 0 where there is no picture.
    cards : dict
        Header cards worth keeping: the WCS, where, when, with what, how long.
    n_frames, seconds : int and float or None
        Frames in the stack, and their exposure together; None when unknown.
    factor : float
        What its values were multiplied with.
    """

    planes: np.ndarray
    depth: np.ndarray | None
    weight: np.ndarray | None
    cards: dict[str, Any]
    n_frames: int | None
    seconds: float | None
    factor: float


def is_stack_name(name: str) -> bool:
    """Tell whether a file name may be that of a stack; coverage maps and pictures of mosaics are none."""
    lowered = name.lower()
    if lowered.startswith(".") or _BESIDE.search(lowered):
        return False
    return is_frame_name(name) or lowered.endswith((".xisf", *_TIFF))


def is_own_tile(path: Path) -> bool:
    """Tell whether a file is a master tile of this program, with weight and coverage, which is used as it is."""
    if not is_frame_name(path.name) or path.name.lower().endswith((".gz", ".fz")):
        return False
    try:
        with fits.open(path, memmap=False, lazy_load_hdus=True) as hdus:
            named = {hdu.name.upper() for hdu in hdus[1:]}
            return "ZMT_TYPE" in hdus[0].header and {"COVERAGE", "WEIGHT", "CLIPPED"} <= named
    except (OSError, ValueError, TypeError, KeyError):
        return False  # what is wrong with it is said where it is read


def depth_of_cards(cards: Mapping[str, Any]) -> tuple[int | None, float | None]:
    """Return how many frames a header says are stacked, and their seconds together; None where it does not."""
    count = next((n for key in _COUNT_CARDS if (n := _number(cards.get(key))) is not None and n >= 1), None)
    seconds = next(
        (s for key in _SECONDS_CARDS if (s := _number(cards.get(key))) is not None and s > 0), None
    )
    single = _number(cards.get("EXPTIME", cards.get("EXPOSURE")))
    if seconds is None and count is not None and single:
        seconds = count * single
    if count is None and seconds is not None and single and seconds > 1.5 * single:
        count = seconds / single
    return (None if count is None else max(1, round(min(count, 1e6)))), seconds


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if np.isfinite(number) else None


def read_stack(path: Path) -> StackPicture:
    """Read a stack; its values become counts, its empty borders missing.

    Raises
    ------
    SkipItem
        ``frame_unreadable``; ``stack_is_raw``: a frame that was not debayered; ``stack_wrong_planes``.
    """
    lowered = path.name.lower()
    depth = weight = alpha = None
    if lowered.endswith(".xisf"):
        found = read_xisf(path)
        planes, cards = found.planes, found.cards
    elif lowered.endswith(_TIFF):
        planes, cards = _read_tiff(path), _cards_beside(path)
    else:
        planes, cards, units = _read_fits(path)
        depth = next((units[name] for name in _DEPTHS if name in units), None)
        weight = next((units[name] for name in _WEIGHTS if name in units), None)
        alpha = units.get("ALPHA")
        if depth is None:
            depth = _coverage_beside(path, planes.shape[1:])
        if len(planes) == 1 and _is_raw(cards):
            raise SkipItem("stack_is_raw", f"{path} is an undebayered frame, no stack", path=str(path))
    if len(planes) == 4:
        alpha, planes = planes[3], planes[:3]
    if len(planes) not in (1, 3):
        raise SkipItem(
            "stack_wrong_planes", f"{path} has {len(planes)} planes", path=str(path), planes=len(planes)
        )
    factor = counts_factor(planes)
    planes = np.asarray(planes, np.float32) * np.float32(factor)
    planes = without_empty_border(np.where(np.isfinite(planes), planes, np.float32(np.nan)))
    if alpha is not None:
        planes[:, alpha < _OPAQUE * max(float(alpha.max()), 1e-9)] = np.nan
    if weight is not None and not (weight > 0).any():
        weight = None
    if weight is not None:
        planes[:, ~(weight > 0)] = np.nan
    n_frames, seconds = depth_of_cards(cards)
    kept = {key: value for key, value in cards.items() if not _STRUCTURE.match(key) and _is_plain(value)}
    return StackPicture(planes, depth, weight, kept, n_frames, seconds, factor)


def _is_plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str)


def _is_raw(cards: Mapping[str, Any]) -> bool:
    pattern = str(cards.get("BAYERPAT") or "").strip().upper()
    return len(pattern) == 4 and set(pattern) <= set("RGB") and depth_of_cards(cards)[0] in (None, 1)


def _read_fits(path: Path) -> tuple[np.ndarray, dict[str, Any], dict[str, np.ndarray]]:
    loaded = read_image_file(path)
    image = loaded.image
    planes = image[np.newaxis] if image.ndim == 2 else np.moveaxis(image, -1, 0)
    planes = np.where(loaded.valid, planes, np.float32(np.nan))
    units: dict[str, np.ndarray] = {}
    wanted = {*_DEPTHS, *_WEIGHTS, "ALPHA", "R", "G", "B"}
    try:
        with fits.open(path, memmap=False) as hdus:
            for hdu in hdus:
                name = hdu.name.upper()
                if name in wanted and getattr(hdu, "is_image", False) and hdu.shape == planes.shape[1:]:
                    units[name] = np.asarray(hdu.data, np.float32)
    except (OSError, ValueError, TypeError) as error:
        raise SkipItem(
            "frame_unreadable", f"{path} cannot be read: {error}", path=str(path), reason=str(error)
        ) from error
    if len(planes) == 1 and {"R", "G", "B"} <= set(units):
        planes = np.stack([units[name] for name in "RGB"])
    cards = {card.keyword: card.value for card in loaded.header.cards if card.keyword}
    return np.ascontiguousarray(planes), cards, units


def _read_tiff(path: Path) -> np.ndarray:
    import tifffile

    try:
        pixels = np.asarray(tifffile.imread(path, key=0))
    except (OSError, ValueError, KeyError, IndexError, struct.error, tifffile.TiffFileError) as error:
        raise SkipItem(
            "frame_unreadable", f"{path} cannot be read: {error}", path=str(path), reason=str(error)
        ) from error
    if pixels.ndim not in (2, 3) or not pixels.size:
        shape = "x".join(map(str, pixels.shape))
        raise SkipItem(
            "frame_unreadable", f"{path} holds no picture", path=str(path), reason=f"no picture ({shape})"
        )
    if pixels.ndim == 2:
        return pixels[np.newaxis]
    return pixels if pixels.shape[0] in (3, 4) else np.ascontiguousarray(np.moveaxis(pixels, -1, 0))


def _cards_beside(path: Path) -> dict[str, Any]:
    """Return the header that a solver or a stacker wrote beside a picture that can hold none."""
    for suffix in (".wcs", ".fits", ".fit"):
        beside = path.with_suffix(suffix)
        if not beside.is_file():
            continue
        try:
            data = beside.read_bytes()[:1_000_000]
            text = data.decode("latin-1")
            header = (
                fits.Header.fromstring(text, sep="\n") if "\n" in text[:81] else fits.Header.fromstring(text)
            )
        except (OSError, ValueError) as error:
            reason = f"{beside.name}: {error}"
            raise SkipItem(
                "frame_unreadable", f"{beside} cannot be read: {error}", path=str(path), reason=reason
            ) from error
        return {card.keyword: card.value for card in header.cards if card.keyword}
    return {}


def _coverage_beside(path: Path, shape_hw: tuple[int, ...]) -> np.ndarray | None:
    """Return the frames per pixel that a run wrote beside its mosaic."""
    stem = re.sub(r"(_science|_aesthetic)?\.(fits|fit|fts)$", "", path.name, flags=re.IGNORECASE)
    beside = path.with_name(f"{stem}_coverage.fits")
    if not beside.is_file() or beside == path:
        return None
    found = read_image_file(beside).image
    return found if found.shape == tuple(shape_hw) else None
