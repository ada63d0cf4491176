"""Pixels of a frame, window by window, as stored: no debayering, no repair, no scaling beyond the header's.

Files are read with plain reads instead of memory maps: a file that shrinks or a disk that vanishes then
raises an error that names the frame, where a memory map would kill the process.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from zemosaic_core.errors import SkipItem
from zemosaic_core.row_sums import have_row_sums, row_sums
from zemosaic_core.sources import RawRows
from zemosaic_io.atomic import atomic_path
from zemosaic_io.compressed_tiles import check_inflated
from zemosaic_io.fits_cards import HduInfo, iter_hdus
from zemosaic_io.headers import FrameInfo
from zemosaic_io.pixel_digest import PixelDigest
from zemosaic_io.regular_files import open_regular, open_unpacked

__all__ = [
    "IdentifiedImage",
    "content_key",
    "frame_changed",
    "is_raw_uint16",
    "read_identified",
    "read_image",
    "read_plane_rows",
    "read_raw_rows",
    "read_window",
    "unpack_pixels",
    "unpacked_info",
    "values_of_raw",
]

_STORED = {8: ">u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
_HASH_CHUNK = 1 << 20
# A window so many times narrower than the image is read row by row: the rest of its rows is not wanted.
_NARROW = 4

log = logging.getLogger(__name__)


def is_raw_uint16(info: FrameInfo) -> bool:
    """Return True when the file stores 16-bit unsigned pixels the FITS way: int16 with BZERO 32768."""
    return info.bitpix == 16 and info.bzero == 32768.0 and info.bscale == 1.0 and info.blank is None


@dataclass(frozen=True)
class IdentifiedImage:
    """A whole frame with what its pixels are known by, all from the same bytes.

    Attributes
    ----------
    data : ndarray
        As `read_window` gives it.
    content_key : str
        See `content_key`.
    row_sums : ndarray, shape (planes, H), uint32
        Of the rows as they are stored, or decompressed (`zemosaic_core.row_sums`).
    """

    data: np.ndarray
    content_key: str
    row_sums: np.ndarray


def read_window(
    info: FrameInfo,
    y0: int,
    y1: int,
    x0: int = 0,
    x1: int | None = None,
    *,
    sums: np.ndarray | None = None,
) -> np.ndarray:
    """Read a window of a frame.

    Parameters
    ----------
    info : FrameInfo
        What `read_frame_info` said about the file.
    y0, y1, x0, x1 : int
        Window in px, end exclusive; ``x1=None`` is the right border.
    sums : ndarray, shape (planes, H), uint32, optional
        `IdentifiedImage.row_sums` of the frame; every row that is read is compared with them.

    Returns
    -------
    ndarray, shape (y1-y0, x1-x0) or (3, y1-y0, x1-x0)
        Native byte order: uint16 for unsigned pixels of up to 16 bits, else float32. ADU as in the file;
        BLANK pixels are NaN.

    Raises
    ------
    SkipItem
        ``frame_unreadable``, ``frame_truncated`` or ``frame_changed``.
    ValueError
        The window does not lie in the image.
    """
    height, width = info.shape_hw
    x1 = width if x1 is None else x1
    if not (0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width):
        raise ValueError(
            f"window rows {y0}:{y1}, columns {x0}:{x1} is not inside an image of {height} x {width}"
        )
    if info.data_offset < 0:
        if sums is None:
            return _read_compressed(info, y0, y1, x0, x1)
        whole_rows = _read_compressed(info, y0, y1, 0, width)
        _check_rows(info, whole_rows, y0, sums)
        return np.ascontiguousarray(whole_rows[..., x0:x1])
    if sums is None and not info.packed and (x1 - x0) * _NARROW <= width:
        return _to_native(info, _as_planes(info, _read_stored_columns(info, y0, y1, x0, x1)))
    stored = _read_stored_rows(info, y0, y1)
    if sums is not None:
        _check_rows(info, stored, y0, sums)
    return _to_native(info, _as_planes(info, stored)[..., x0:x1])


def read_image(info: FrameInfo) -> np.ndarray:
    """Read the whole frame; see `read_window`."""
    return read_window(info, 0, info.shape_hw[0])


def read_identified(info: FrameInfo) -> IdentifiedImage:
    """Read the whole frame once; its pixels, its key and the sums of its rows belong together.

    Raises
    ------
    SkipItem
        ``frame_unreadable`` or ``frame_truncated``.
    """
    digest = _start_digest(info)
    if info.data_offset < 0:
        _check_inflated(info)
        data = read_image(info)
        digest.update(_compressed_bytes(info, data))
        return IdentifiedImage(data, digest.key(), row_sums(_by_planes(data)))
    stored = _read_stored_rows(info, 0, info.shape_hw[0], planes=info.n_stored_planes)
    digest.update(stored.view(np.uint8))
    sums = row_sums(stored)
    return IdentifiedImage(_to_native(info, _as_planes(info, stored)), digest.key(), sums)


def read_raw_rows(info: FrameInfo, y0: int, y1: int, *, sums: np.ndarray | None = None) -> RawRows | None:
    """Read undecoded rows of an uncompressed 16-bit CFA frame; None for every other frame.

    The bit patterns are those of the file, in the file's byte order. ``hot_pixels`` is empty here. ``sums`` and
    errors as in `read_window`.
    """
    if info.kind != "cfa" or info.data_offset < 0 or not is_raw_uint16(info):
        return None
    stored = _read_stored_rows(info, y0, y1)
    if sums is not None:
        _check_rows(info, stored, y0, sums)
    return RawRows(
        data=stored[0].view(np.uint16),
        y0=y0,
        big_endian_signed=True,
        pattern=info.cfa_pattern,
        hot_pixels=np.empty(0, np.int64),
    )


def values_of_raw(rows: RawRows) -> np.ndarray:
    """Return the pixels of undecoded rows as native uint16."""
    if not rows.big_endian_signed:
        return rows.data
    native = rows.data.view(">u2").astype(np.uint16)
    native ^= np.uint16(0x8000)
    return native


def read_plane_rows(path: Path, hdu: HduInfo, y0: int, y1: int) -> np.ndarray:
    """Read rows of an uncompressed image unit as (planes, y1-y0, W) float32 in native byte order.

    Integers are scaled with BZERO and BSCALE; a 2-D image has one plane.

    Raises
    ------
    SkipItem
        ``frame_unreadable`` or ``frame_truncated``.
    """
    axes = hdu.image_axes
    width, height = axes[0], axes[1]
    planes = int(np.prod(axes[2:], dtype=np.int64)) if len(axes) > 2 else 1
    dtype = np.dtype(_STORED[int(hdu.cards["BITPIX"])])
    stored = np.empty((planes, y1 - y0, width), dtype)
    offsets = [hdu.data_offset + (p * height + y0) * width * dtype.itemsize for p in range(planes)]
    _read_into(path, offsets, stored)
    values = stored.astype(np.float32)
    bzero, bscale = float(hdu.cards.get("BZERO") or 0.0), float(hdu.cards.get("BSCALE") or 1.0)
    if (bzero, bscale) != (0.0, 1.0):
        values *= np.float32(bscale)
        values += np.float32(bzero)
    return values


def unpack_pixels(info: FrameInfo, target: Path) -> FrameInfo:
    """Write the pixels of a packed frame, as they are stored, into a file of their own, piece by piece.

    Returns
    -------
    FrameInfo
        ``info`` with the place of the pixels in that file.

    Raises
    ------
    SkipItem
        ``frame_unreadable`` or ``frame_truncated``.
    SaveFailed
        The file cannot be written.
    """
    with atomic_path(target, durable=False) as temporary, temporary.open("wb") as file:
        for piece in _iter_pixel_bytes(info):
            file.write(piece)
    return unpacked_info(info, target)


def unpacked_info(info: FrameInfo, target: Path) -> FrameInfo:
    """Return a packed frame as it is after `unpack_pixels`."""
    return replace(info, path=target, data_offset=0, packed=False)


def content_key(info: FrameInfo) -> str:
    """Fingerprint of the pixels (see `PixelDigest`): equal for copies whose headers or names differ.

    Raises
    ------
    SkipItem
        ``frame_unreadable`` or ``frame_truncated``.
    """
    digest = _start_digest(info)
    for chunk in _iter_pixel_bytes(info):
        digest.update(chunk)
    return digest.key()


def _start_digest(info: FrameInfo) -> PixelDigest:
    digest = PixelDigest()
    layout = (info.shape_hw, info.axes, info.n_stored_planes, info.bitpix, info.bzero, info.bscale)
    digest.update(repr(layout).encode())
    return digest


def _iter_pixel_bytes(info: FrameInfo) -> Iterator[bytes | memoryview]:
    if info.data_offset < 0:
        yield _compressed_bytes(info, read_image(info))
        return
    left = info.stored_bytes
    try:
        with open_unpacked(info.path, packed=info.packed) as file:
            file.seek(info.data_offset)
            while left > 0:
                chunk = file.read(min(left, _HASH_CHUNK))
                if not chunk:
                    raise _truncated(info.path, left)
                left -= len(chunk)
                yield chunk
    except OSError as error:
        raise _unreadable(info.path, error) from error


def _compressed_bytes(info: FrameInfo, data: np.ndarray) -> bytes:
    """Return what identifies a compressed frame: the same pixels can be compressed in many ways."""
    native = np.ascontiguousarray(data)
    if is_raw_uint16(info):
        # As the plain file stores them, so that a frame and its compressed copy are known as the same.
        native = (native ^ np.uint16(0x8000)).view(np.int16)
    return native.astype(_STORED[info.bitpix]).tobytes()


def _by_planes(data: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(data if data.ndim == 3 else data[np.newaxis])


def _check_rows(info: FrameInfo, rows: np.ndarray, y0: int, sums: np.ndarray) -> None:
    """Compare rows with the sums they had when the frame was measured."""
    by_planes = _by_planes(rows)
    known = sums[: len(by_planes), y0 : y0 + by_planes.shape[1]]
    if known.shape != by_planes.shape[:2] or not have_row_sums(by_planes, known):
        raise frame_changed(info.path)


def _read_stored_rows(info: FrameInfo, y0: int, y1: int, *, planes: int | None = None) -> np.ndarray:
    """Rows as they lie in the file, in its type and byte order.

    (1, h, W); for planes that come first (planes, h, W), three of them unless told; for planes that come last
    (1, h, W * planes).
    """
    layout = _Layout.of(info, planes)
    stored = np.empty((layout.in_planes, y1 - y0, info.shape_hw[1] * layout.in_rows), layout.dtype)
    offsets = [info.data_offset + (p * info.shape_hw[0] + y0) * layout.row_bytes for p in range(len(stored))]
    _read_into(info.path, offsets, stored, packed=info.packed)
    return stored


def _read_stored_columns(info: FrameInfo, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
    """Return what `_read_stored_rows` gives, of some columns only."""
    layout = _Layout.of(info)
    stored = np.empty((layout.in_planes, y1 - y0, (x1 - x0) * layout.in_rows), layout.dtype)
    first = info.data_offset + x0 * layout.in_rows * layout.dtype.itemsize
    offsets = [
        first + (p * info.shape_hw[0] + y) * layout.row_bytes
        for p in range(len(stored))
        for y in range(y0, y1)
    ]
    _read_into(info.path, offsets, stored.reshape(len(offsets), -1))
    return stored


@dataclass(frozen=True)
class _Layout:
    """How the samples of an image lie: planes beside each other in a row, or one after the other."""

    dtype: np.dtype
    in_rows: int
    in_planes: int
    row_bytes: int

    @classmethod
    def of(cls, info: FrameInfo, planes: int | None = None) -> _Layout:
        in_rows, in_planes = (info.n_stored_planes, 1) if info.axes == "hwc" else (1, planes or 3)
        if info.axes == "hw":
            in_planes = 1
        dtype = np.dtype(_STORED[info.bitpix])
        return cls(dtype, in_rows, in_planes, info.shape_hw[1] * in_rows * dtype.itemsize)


def _as_planes(info: FrameInfo, stored: np.ndarray) -> np.ndarray:
    """View stored rows as (h, W), or as (3, h, W) for both orders of planes."""
    if info.axes == "hw":
        return stored[0]
    if info.axes == "chw":
        return stored[:3]
    rows = stored.shape[1]
    return np.moveaxis(stored[0].reshape(rows, -1, info.n_stored_planes)[..., :3], -1, 0)


def _read_into(path: Path, offsets: list[int], target: np.ndarray, *, packed: bool = False) -> None:
    """Fill ``target[i]`` from byte ``offsets[i]``, in rising order."""
    try:
        with open_unpacked(path, packed=packed, buffering=0) as file:
            for offset, plane in zip(offsets, target, strict=True):
                view = memoryview(plane.reshape(-1).view(np.uint8))
                file.seek(offset)
                done = 0
                while done < len(view):
                    count = file.readinto(view[done:])  # type: ignore[attr-defined]
                    if not count:
                        raise _truncated(path, len(view) - done)
                    done += count
    except OSError as error:
        raise _unreadable(path, error) from error


def _to_native(info: FrameInfo, stored: np.ndarray) -> np.ndarray:
    if is_raw_uint16(info):
        # Subtracting 32768 flips the top bit only; the byte swap and the flip are the whole decoding.
        native = stored.astype(np.int16).view(np.uint16)
        native ^= np.uint16(0x8000)
        return native
    plain = info.bzero == 0.0 and info.bscale == 1.0
    if info.bitpix == 8 and plain and info.blank is None:
        return stored.astype(np.uint16)
    if info.bitpix < 0 and plain:
        return stored.astype(np.float32)
    scaled = stored.astype(np.float64)
    if info.blank is not None:
        scaled[stored == info.blank] = np.nan
    return (scaled * info.bscale + info.bzero).astype(np.float32)


def _read_compressed(info: FrameInfo, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
    """Decompress only the tiles under the window."""
    # Imported here: it takes a third of a second, and processes that measure plain files never need it.
    from astropy.io import fits

    try:
        with (
            open_regular(info.path) as file,
            fits.open(file, mode="readonly", memmap=False, lazy_load_hdus=True) as hdus,
        ):
            section = hdus[info.hdu].section
            if info.axes == "hw":
                # A third axis of length one is stored by some programs; FrameInfo counts it as no axis.
                leading = (0,) * (len(section.shape) - 2)
                window = np.asarray(section[(*leading, slice(y0, y1), slice(x0, x1))])
            elif info.axes == "chw":
                window = np.asarray(section[0:3, y0:y1, x0:x1])
            else:
                window = np.moveaxis(np.asarray(section[y0:y1, x0:x1, 0:3]), -1, 0)
    except (SkipItem, MemoryError):
        raise
    except Exception as error:
        # The decoders raise whatever damaged bytes lead them to; here that is one unreadable frame.
        log.info("%s cannot be decompressed", info.path, exc_info=True)
        raise _unreadable(info.path, error) from error
    if window.shape[-2:] != (y1 - y0, x1 - x0):
        raise _unreadable(info.path, ValueError(f"rows {y0}:{y1} have the shape {window.shape}"))
    if is_raw_uint16(info) or window.dtype == np.uint8:
        return np.ascontiguousarray(window, dtype=np.uint16)
    return np.ascontiguousarray(window, dtype=np.float32)


def _check_inflated(info: FrameInfo) -> None:
    hdu = next((hdu for hdu in iter_hdus(info.path) if hdu.index == info.hdu), None)
    if hdu is None or not hdu.is_compressed_image:
        raise frame_changed(info.path)
    try:
        check_inflated(info.path, hdu)
    except OSError as error:
        raise _unreadable(info.path, error) from error


def frame_changed(path: Path) -> SkipItem:
    """Return the reason to leave a frame out whose pixels are not those that were measured."""
    return SkipItem("frame_changed", f"{path} changed during the run", path=str(path))


def _truncated(path: Path, missing: int) -> SkipItem:
    return SkipItem(
        "frame_truncated",
        f"{path} is cut short: {missing} bytes are missing",
        path=str(path),
        expected=path.stat().st_size + missing,
        actual=path.stat().st_size,
    )


def _unreadable(path: Path, error: Exception) -> SkipItem:
    return SkipItem("frame_unreadable", f"{path} cannot be read: {error}", path=str(path), reason=str(error))
