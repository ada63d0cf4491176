"""What a tile-compressed image declares, held against the file before anything is unpacked (FITS 4.0, section 10).

A few damaged bytes can promise a picture larger than any memory, or send a decoder out of its file.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from zemosaic_core.errors import SkipItem
from zemosaic_io.fits_cards import HduInfo
from zemosaic_io.regular_files import open_regular

__all__ = ["check_compressed", "check_inflated"]

# Deflate, the densest of the codes that frames are packed with, packs up to 1032 bytes in one.
_MOST_DENSE = 1100
_ELEMENT_BYTES = {
    "L": 1, "X": 1, "B": 1, "A": 1, "I": 2, "J": 4, "E": 4, "K": 8, "D": 8, "C": 8, "M": 16, "P": 8, "Q": 16,
}  # fmt: skip
_FORM = re.compile(r"(\d{0,9})([LXBAIJEKDCMPQ])([LXBAIJEKDCM]?)")
_PACKED_COLUMNS = ("COMPRESSED_DATA", "GZIP_COMPRESSED_DATA", "UNCOMPRESSED_DATA")
# Tiles of quantised or scaled pixels hold other types than the image: none is longer.
_LONGEST_PIXEL = 8
_PIECE = 1 << 20


def check_compressed(path: Path, hdu: HduInfo) -> None:
    """Refuse an image whose declared size, tiles or places of tiles cannot be true.

    Parameters
    ----------
    path : Path
    hdu : HduInfo
        A tile-compressed image; that the file holds all its bytes has been checked.

    Raises
    ------
    SkipItem
        ``frame_bad_header``, or what opening the file raises.
    OSError
        The file cannot be read.
    """
    cards = hdu.cards
    axes = hdu.image_axes
    pixels = math.prod(axes)
    declared = pixels * abs(int(cards.get("ZBITPIX") or 8)) // 8
    # Each tile ends with a rest of a block and has a place in the table; a tiny image may be mostly those.
    if declared > _MOST_DENSE * hdu.data_bytes + 1_000_000:
        raise _bad(path, f"{declared} bytes of pixels in {hdu.data_bytes} bytes")
    tiles = _tile_shape(path, hdu)
    wanted = math.prod(-(-axis // tile) for axis, tile in zip(axes, tiles, strict=True))
    rows, row_bytes = int(cards.get("NAXIS2") or 0), int(cards.get("NAXIS1") or 0)
    if rows != wanted:
        raise _bad(path, f"{rows} tiles, {wanted} expected")
    heap_offset, heap_bytes = _heap(path, hdu, rows * row_bytes)
    for _, places in _packed_tiles(path, hdu):
        lengths, offsets = places
        # Compared without adding: both may be as large as their type allows.
        beyond = (lengths > heap_bytes) | (offsets > heap_bytes - np.minimum(lengths, heap_bytes))
        if (lengths < 0).any() or (offsets < 0).any() or beyond.any():
            raise _bad(path, f"a tile lies outside the {heap_bytes} bytes from byte {heap_offset}")


def check_inflated(path: Path, hdu: HduInfo) -> None:
    """Refuse an image with a tile that inflates to more than a tile holds.

    Only deflate is looked at: other decoders write into a buffer of the declared size.

    Raises
    ------
    SkipItem, OSError
        As `check_compressed`.
    """
    packed_as = str(hdu.cards.get("ZCMPTYPE") or "").strip()
    names = ["GZIP_COMPRESSED_DATA"] + (["COMPRESSED_DATA"] if packed_as.startswith("GZIP") else [])
    most = _LONGEST_PIXEL * math.prod(
        min(axis, tile) for axis, tile in zip(hdu.image_axes, _tile_shape(path, hdu), strict=True)
    )
    table_bytes = int(hdu.cards.get("NAXIS1") or 0) * int(hdu.cards.get("NAXIS2") or 0)
    heap_offset, _ = _heap(path, hdu, table_bytes)
    with open_regular(path) as file:
        for name, (lengths, offsets) in _packed_tiles(path, hdu):
            if name not in names:
                continue
            for length, offset in zip(lengths.tolist(), offsets.tolist(), strict=True):
                file.seek(heap_offset + offset)
                if length and _inflated_bytes(file, length, most) > most:
                    raise _bad(path, f"a tile of {most} bytes at most inflates to more")


def _inflated_bytes(file: BinaryIO, length: int, most: int) -> int:
    """Count what ``length`` bytes of a gzip stream inflate to; stop counting behind ``most``."""
    inflate = zlib.decompressobj(zlib.MAX_WBITS | 16)
    packed, total = file.read(length), 0
    while packed and not inflate.eof and total <= most:
        try:
            piece = inflate.decompress(packed, _PIECE)
        except zlib.error:
            return total  # the decoder says better what is wrong
        if not piece and inflate.unconsumed_tail == packed:
            return total
        total += len(piece)
        packed = inflate.unconsumed_tail
    return total


def _tile_shape(path: Path, hdu: HduInfo) -> tuple[int, ...]:
    """Return the sides of a tile; without cards a tile is one row (FITS 4.0, 10.1.1)."""
    axes = hdu.image_axes
    given = [hdu.cards.get(f"ZTILE{i + 1}") for i in range(len(axes))]
    sides = [side if side is not None else (axes[0] if i == 0 else 1) for i, side in enumerate(given)]
    for i, side in enumerate(sides):
        if isinstance(side, bool) or not isinstance(side, int) or side < 1:
            raise _bad(path, f"ZTILE{i + 1} = {side}")
    return tuple(sides)


def _heap(path: Path, hdu: HduInfo, table_bytes: int) -> tuple[int, int]:
    """Return where the packed tiles begin in the file, and how many bytes they have."""
    start = hdu.cards.get("THEAP")
    start = table_bytes if start is None else start
    if isinstance(start, bool) or not isinstance(start, int) or not table_bytes <= start <= hdu.data_bytes:
        raise _bad(path, f"THEAP = {start}")
    return hdu.data_offset + start, hdu.data_bytes - start


def _packed_tiles(path: Path, hdu: HduInfo) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    """Yield per column of packed tiles its name, and lengths and places of the tiles in bytes of the heap."""
    cards = hdu.cards
    row_bytes, rows = int(cards.get("NAXIS1") or 0), int(cards.get("NAXIS2") or 0)
    with open_regular(path) as file:
        file.seek(hdu.data_offset)
        table = np.frombuffer(file.read(row_bytes * rows), np.uint8)
    if len(table) != row_bytes * rows:
        raise _bad(path, "the table of tiles is cut short")
    table = table.reshape(rows, row_bytes)
    position = 0
    found = False
    for number in range(1, min(int(cards.get("TFIELDS") or 0), 99) + 1):
        form = _FORM.match(str(cards.get(f"TFORM{number}") or "").strip())
        if form is None:
            raise _bad(path, f"TFORM{number} = {cards.get(f'TFORM{number}')}")
        repeat = int(form[1] or 1)
        width = -(-repeat // 8) if form[2] == "X" else repeat * _ELEMENT_BYTES[form[2]]
        name = str(cards.get(f"TTYPE{number}") or "").strip().upper()
        if position + width > row_bytes:
            raise _bad(path, f"TFORM{number} does not fit into rows of {row_bytes} bytes")
        if name in _PACKED_COLUMNS:
            if form[2] not in "PQ" or repeat != 1 or not form[3]:
                raise _bad(path, f"TFORM{number} = {form[0]}")
            column = np.ascontiguousarray(table[:, position : position + width])
            pairs = column.view(">i4" if form[2] == "P" else ">i8").astype(np.int64)
            # Not multiplied when that would overflow: such a length is refused anyway.
            lengths = np.minimum(pairs[:, 0], np.iinfo(np.int64).max // 16) * _ELEMENT_BYTES[form[3]]
            found = True
            yield name, (lengths, pairs[:, 1])
        position += width
    if not found:
        raise _bad(path, "no column of packed tiles")


def _bad(path: Path, reason: str) -> SkipItem:
    return SkipItem("frame_bad_header", f"{path}: {reason}", path=str(path), reason=reason)
