"""Science files written row by row to a temporary name and renamed when they are complete.

Space is claimed at the start and rows are written with plain writes, so a full disk is an error with a name
(`SaveFailed`) and not a killed process.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import DTypeLike

from zemosaic_core.errors import SaveFailed
from zemosaic_io.atomic import atomic_path, open_temporary, replace_durably, save_failed
from zemosaic_io.fits_cards import FITS_BLOCK

__all__ = ["ExtensionSpec", "StreamingFits", "atomic_path", "make_header", "write_image"]

Cards = Mapping[str, Any] | Iterable[Sequence[Any]]
# Native type -> (BITPIX, stored type, BZERO). Unsigned 16 bit is int16 with an offset, as FITS demands.
_STORAGE: dict[str, tuple[int, str, int]] = {
    "float32": (-32, ">f4", 0),
    "float64": (-64, ">f8", 0),
    "uint8": (8, ">u1", 0),
    "int16": (16, ">i2", 0),
    "uint16": (16, ">i2", 32768),
    "int32": (32, ">i4", 0),
}
_CARD_BYTES = 80
_NO_SPACE = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})
_STRUCTURE = {"SIMPLE", "XTENSION", "BITPIX", "NAXIS", "EXTEND", "PCOUNT", "GCOUNT", "BZERO", "BSCALE", "END"}


@dataclass(frozen=True)
class ExtensionSpec:
    """One image extension of a `StreamingFits`.

    Attributes
    ----------
    name : str
        EXTNAME.
    shape : tuple of int
        (H, W) or (C, H, W).
    dtype : str or type
        float32, float64, uint8, int16, uint16 or int32; as a name or as a NumPy type.
    cards : tuple
        Further cards.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DTypeLike = "float32"
    cards: tuple = ()


@dataclass
class _Unit:
    shape: tuple[int, ...]
    stored: np.dtype
    bzero: int
    data_offset: int
    written: np.ndarray = field(repr=False)

    @property
    def height(self) -> int:
        return self.shape[-2]


class StreamingFits:
    """A FITS file that grows by rows and appears under its name only when it is complete.

    Parameters
    ----------
    path : Path or str
        Final name; its folder is created. An existing file is replaced at `commit`.
    shape : tuple of int
        (C, H, W) or (H, W) of the primary image.
    cards : mapping or iterable of (key, value[, comment])
        Header cards, e.g. the WCS. Structural cards are ignored.
    dtype : str or type
        Type of the primary image.
    extensions : sequence of ExtensionSpec or (name, shape, dtype)
        Image extensions, filled with ``write_rows(..., ext=name)``.
    unfinished : Path, optional
        Write to this file, on the disk of ``path``, instead of a temporary one, and leave it there when the block is
        left without `commit`. One of the same size and with the same headers is gone on with: see `keep_rows`.
    spare_cards : int
        Room in the primary header for `add_cards`, which knows what only the finished pixels tell.
    durable : bool
        Wait at `commit` until the file is on the disk itself; see `atomic.atomic_path`.

    Raises
    ------
    SaveFailed
        ``save_failed`` or ``save_incomplete``, from every method.

    Notes
    -----
    Use it as a context manager; leaving the block without `commit` removes a temporary file.
    """

    def __init__(
        self,
        path: Path | str,
        shape: tuple[int, ...],
        cards: Cards = (),
        dtype: DTypeLike = "float32",
        extensions: Sequence[ExtensionSpec | tuple] = (),
        *,
        unfinished: Path | None = None,
        spare_cards: int = 0,
        durable: bool = True,
    ) -> None:
        self.path = Path(path)
        self._unfinished = unfinished
        self._durable = durable
        specs = [s if isinstance(s, ExtensionSpec) else ExtensionSpec(*s) for s in extensions]
        self._units: dict[str | None, _Unit] = {}
        self._file: Any = None
        self.goes_on = False
        self._temporary: Path | None = None
        self._header = make_header(cards, shape, dtype, has_extensions=bool(specs))
        headers = [(None, _with_blanks(self._header, spare_cards), shape, dtype)]
        for s in specs:
            header = make_header(s.cards, s.shape, s.dtype, extname=s.name)
            headers.append((s.name, header, s.shape, s.dtype))
        try:
            if unfinished is None:
                self._temporary, self._file = open_temporary(self.path)
            else:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                unfinished.parent.mkdir(parents=True, exist_ok=True)
                unfinished.touch()
                self._temporary, self._file = unfinished, open(unfinished, "r+b")  # noqa: SIM115 - closed by abort
            self._lay_out(headers)
        except OSError as error:
            self.abort()
            raise save_failed(self.path, error) from error

    def _lay_out(self, headers: list) -> None:
        offset = 0
        texts: list[tuple[int, bytes]] = []
        for name, header, shape, dtype in headers:
            text = header.tostring(padding=True).encode("ascii")
            _, stored, bzero = _storage(dtype)
            unit = _Unit(tuple(shape), np.dtype(stored), bzero, offset + len(text), np.zeros(shape[-2], bool))
            if name in self._units:
                raise ValueError(f"two extensions are called {name}")
            self._units[name] = unit
            texts.append((offset, text))
            size = math.prod(shape) * unit.stored.itemsize
            offset = unit.data_offset + -(-size // FITS_BLOCK) * FITS_BLOCK
        self.goes_on = self._unfinished is not None and self._begins_like(texts, offset)
        if self.goes_on:
            return
        self._file.truncate(0)
        for position, text in texts:
            self._file.seek(position)
            self._file.write(text)
        _claim_space(self._file, offset)

    def _begins_like(self, texts: list[tuple[int, bytes]], size: int) -> bool:
        """Return whether the file has these headers at these places, and this size."""
        if os.fstat(self._file.fileno()).st_size != size:
            return False
        for position, text in texts:
            self._file.seek(position)
            if self._file.read(len(text)) != text:
                return False
        return True

    def keep_rows(self, y0: int, y1: int, ext: str | None = None) -> None:
        """Take rows of an unfinished file as they are; `goes_on` tells whether there are any."""
        self._units[ext].written[y0:y1] = self.goes_on

    def flush(self) -> None:
        """Hand everything written so far to the system: it outlives this process."""
        try:
            self._file.flush()
        except OSError as error:
            raise save_failed(self.path, error) from error

    def write_rows(self, y0: int, rows: np.ndarray, ext: str | None = None) -> None:
        """Write rows ``y0 .. y0 + h`` of the primary image or of the extension ``ext``.

        Parameters
        ----------
        y0 : int
            First row.
        rows : ndarray, shape (C, h, W) or (h, W)
            Must have the planes and the width of the image. Converted to the stored type; integers are
            rounded and clipped to their range, NaN becomes 0 in integer images.
        ext : str or None
            Extension; None is the primary image.
        """
        unit = self._units[ext]
        rows = np.asarray(rows)
        height = rows.shape[-2]
        if (
            rows.ndim != len(unit.shape)
            or rows.shape[:-2] + rows.shape[-1:] != unit.shape[:-2] + unit.shape[-1:]
        ):
            raise ValueError(f"rows of shape {rows.shape} do not fit an image of shape {unit.shape}")
        if y0 < 0 or y0 + height > unit.height:
            raise ValueError(f"rows {y0}:{y0 + height} are outside an image of height {unit.height}")
        planes = rows.reshape(-1, height, rows.shape[-1])
        row_bytes = unit.shape[-1] * unit.stored.itemsize
        try:
            for p, plane in enumerate(planes):
                self._file.seek(unit.data_offset + (p * unit.height + y0) * row_bytes)
                self._file.write(memoryview(_to_stored(plane, unit).reshape(-1).view(np.uint8)))
        except OSError as error:
            raise save_failed(self.path, error) from error
        unit.written[y0 : y0 + height] = True

    def read_rows(self, y0: int, y1: int, ext: str | None = None) -> np.ndarray:
        """Read rows back before `commit`, in the native type they were written in; (C, h, W) or (h, W).

        Raises
        ------
        SaveFailed
            ``save_failed`` when the file cannot be read back.
        """
        unit = self._units[ext]
        width = unit.shape[-1]
        planes = math.prod(unit.shape[:-2])
        row_bytes = width * unit.stored.itemsize
        stored = np.empty((planes, y1 - y0, width), unit.stored)
        try:
            for p in range(planes):
                self._file.seek(unit.data_offset + (p * unit.height + y0) * row_bytes)
                if self._file.readinto(memoryview(stored[p].reshape(-1).view(np.uint8))) != stored[p].nbytes:
                    raise OSError(errno.EIO, "the temporary file is shorter than it should be")
        except OSError as error:
            raise save_failed(self.path, error) from error
        native = stored.astype(unit.stored.newbyteorder("="))
        if unit.bzero:
            native = (native.view(np.uint16) ^ np.uint16(0x8000)).astype(np.uint16)
        return native.reshape(*unit.shape[:-2], y1 - y0, width)

    def add_cards(self, cards: Cards) -> None:
        """Add cards to the primary header, in the room that ``spare_cards`` left.

        Raises
        ------
        ValueError
            They do not fit.
        """
        for card in cards.items() if isinstance(cards, Mapping) else cards:
            _append_card(self._header, *card)
        room = self._units[None].data_offset
        spare = (room - len(self._header.tostring(padding=True))) // _CARD_BYTES
        if spare < 0:
            raise ValueError(f"{-spare} cards too many for the header of {self.path}")
        try:
            self._file.seek(0)
            self._file.write(_with_blanks(self._header, spare).tostring(padding=True).encode("ascii"))
        except OSError as error:
            raise save_failed(self.path, error) from error

    def commit(self) -> Path:
        """Close the file and give it its name; return the path."""
        for name, unit in self._units.items():
            missing = int(np.count_nonzero(~unit.written))
            if missing:
                where = name or "primary image"
                raise SaveFailed(
                    "save_incomplete",
                    f"{self.path}: {missing} of {unit.height} rows of {where} were never written",
                    path=str(self.path),
                    missing=missing,
                    total=unit.height,
                )
        try:
            self._file.close()
            replace_durably(self._temporary, self.path, durable=self._durable)
        except OSError as error:
            raise save_failed(self.path, error) from error
        self._file = None
        self._temporary = None
        return self.path

    def abort(self) -> None:
        """Drop everything written so far; only an unfinished file remains on disk. Does nothing after `commit`."""
        if self._file is not None:
            # On a full disk closing fails once more, on what is still buffered: nothing of it is wanted.
            with suppress(OSError):
                self._file.close()
            self._file = None
        if self._temporary is not None:
            if self._unfinished is None:
                self._temporary.unlink(missing_ok=True)
            self._temporary = None

    def __enter__(self) -> StreamingFits:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


def write_image(
    path: Path | str,
    data: np.ndarray,
    cards: Cards = (),
    extensions: Sequence[tuple[str, np.ndarray]] = (),
    *,
    durable: bool = True,
) -> Path:
    """Write a whole image, (H, W) or (C, H, W), with optional ``(name, array)`` extensions; return the path.

    Raises
    ------
    SaveFailed
        ``save_failed``.
    """
    specs = [ExtensionSpec(name, array.shape, array.dtype.name) for name, array in extensions]
    with StreamingFits(path, data.shape, cards, data.dtype.name, specs, durable=durable) as file:
        file.write_rows(0, data)
        for name, array in extensions:
            file.write_rows(0, array, ext=name)
        return file.commit()


def make_header(
    cards: Cards,
    shape: tuple[int, ...] = (),
    dtype: DTypeLike = "float32",
    *,
    extname: str | None = None,
    has_extensions: bool = False,
) -> fits.Header:
    """Build a complete header: structure from ``shape`` and ``dtype``, then ``cards``.

    Cards are ``(key, value[, comment])``; COMMENT and HISTORY repeat. Non-ASCII characters become ``?`` and
    numbers that are not finite become undefined values, because FITS has no way to write them.
    """
    bitpix, _, bzero = _storage(dtype)
    header = fits.Header()
    if extname is None:
        header["SIMPLE"] = (True, "conforms to the FITS standard")
    else:
        header["XTENSION"] = ("IMAGE", "image extension")
    header["BITPIX"] = bitpix
    header["NAXIS"] = len(shape)
    for axis, length in enumerate(reversed(shape), start=1):
        header[f"NAXIS{axis}"] = int(length)
    if extname is not None:
        header["PCOUNT"], header["GCOUNT"] = 0, 1
    elif has_extensions:
        header["EXTEND"] = True
    if bzero:
        header["BZERO"], header["BSCALE"] = bzero, 1
    if extname is not None:
        header["EXTNAME"] = extname
    for card in cards.items() if isinstance(cards, Mapping) else cards:
        _append_card(header, *card)
    return header


def _with_blanks(header: fits.Header, count: int) -> fits.Header:
    filled = header.copy()
    for _ in range(count):
        filled.append(("", ""), end=True)
    return filled


def _append_card(header: fits.Header, key: str, value: Any, comment: str = "") -> None:
    key = key.upper()
    if key in _STRUCTURE or key.startswith("NAXIS") or (key == "EXTNAME" and "EXTNAME" in header):
        return
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, tuple) and len(value) == 2:
        value, comment = value
    if isinstance(value, float) and not math.isfinite(value):
        value = None
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str):
        value = _ascii(value)
    if key in ("COMMENT", "HISTORY"):
        header.add_comment(value) if key == "COMMENT" else header.add_history(value)
    elif comment:
        header[key] = (value, _ascii(comment))
    else:
        header[key] = value


def _ascii(text: str) -> str:
    return "".join(c if " " <= c <= "~" else "?" for c in text)


def _storage(dtype: DTypeLike) -> tuple[int, str, int]:
    name = np.dtype(dtype).name
    if name not in _STORAGE:
        raise ValueError(f"cannot store {name} in FITS; choose one of {', '.join(_STORAGE)}")
    return _STORAGE[name]


def _to_stored(plane: np.ndarray, unit: _Unit) -> np.ndarray:
    if unit.stored.kind == "f":
        return np.ascontiguousarray(plane, dtype=unit.stored)
    if plane.dtype == np.uint16 and unit.bzero == 32768:
        flipped = np.ascontiguousarray(plane) ^ np.uint16(0x8000)
        return flipped.view(np.int16).astype(unit.stored)
    if not unit.bzero and plane.dtype == unit.stored:
        return np.ascontiguousarray(plane)
    limits = np.iinfo(unit.stored)
    values = np.rint(np.nan_to_num(plane.astype(np.float64), nan=0.0)) if plane.dtype.kind == "f" else plane
    return np.clip(values.astype(np.float64) - unit.bzero, limits.min, limits.max).astype(unit.stored)


def _claim_space(file: Any, size: int) -> None:
    """Make the file ``size`` bytes long and, where the system can, reserve the space."""
    file.truncate(size)
    file.flush()
    if hasattr(os, "posix_fallocate") and size > 0:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            # Some file systems cannot reserve (EOPNOTSUPP, EINVAL); being full is the answer we asked for.
            if error.errno in _NO_SPACE:
                raise
