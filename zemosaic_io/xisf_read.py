"""Pictures in XISF files (Extensible Image Serialization Format, version 1.0): monolithic files, one picture.

Read are whole numbers and floats, plain or packed with zlib (with or without shuffled bytes), and the FITS keywords.
Rows begin at the top of the picture there, while the keywords of a WCS count them from the bottom, as in a FITS file.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np

from zemosaic_core.errors import SkipItem
from zemosaic_io.regular_files import open_regular

__all__ = ["XisfPicture", "read_xisf"]

_SIGNATURE = b"XISF0100"
_MOST_HEADER = 64 << 20
_TYPES = {"UInt8": "u1", "UInt16": "u2", "UInt32": "u4", "Float32": "f4", "Float64": "f8"}
_MOST_DENSE = 1100
_NUMBER = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eEdD][-+]?\d+)?$")


@dataclass(frozen=True)
class XisfPicture:
    """The first picture of a file: planes (C, h, w) in native byte order, rows as in FITS, and its FITS keywords."""

    planes: np.ndarray
    cards: dict[str, Any]


def read_xisf(path: Path) -> XisfPicture:
    """Read the first picture.

    Raises
    ------
    SkipItem
        ``frame_unreadable``: it is no such file, damaged, or packed in a way that is not read; the reason says which.
    """
    try:
        with open_regular(path) as file:
            if file.read(8) != _SIGNATURE:
                raise ValueError("it is no XISF file")
            (length,) = struct.unpack("<I", file.read(4))
            file.read(4)
            if length > _MOST_HEADER:
                raise ValueError(f"a header of {length} bytes")
            text = file.read(length)
            if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
                raise ValueError("its header declares entities")
            root = ElementTree.fromstring(text.rstrip(b"\0"))
            image = next((e for e in root.iter() if _plain(e.tag) == "Image"), None)
            if image is None:
                raise ValueError("it holds no picture")
            size = path.stat().st_size
            planes = _planes(image, lambda at, count: _read_at(file, at, count, size))
    except (OSError, ValueError, KeyError, struct.error, zlib.error, ElementTree.ParseError) as error:
        raise SkipItem(
            "frame_unreadable", f"{path} cannot be read: {error}", path=str(path), reason=str(error)
        ) from error
    return XisfPicture(np.ascontiguousarray(planes[:, ::-1]), _keywords(image))


def _plain(tag: str) -> str:
    return tag.rpartition("}")[2]


def _read_at(file: Any, at: int, count: int, size: int) -> bytes:
    if at < 0 or count < 0 or at + count > size:
        raise ValueError(f"its pixels lie at byte {at} of {size}")
    file.seek(at)
    return bytes(file.read(count))


def _planes(image: ElementTree.Element, read: Any) -> np.ndarray:
    sides = [int(part) for part in image.attrib["geometry"].split(":")]
    if len(sides) != 3 or min(sides) < 1 or sides[2] not in (1, 3, 4):
        raise ValueError(f"geometry {image.attrib['geometry']}")
    width, height, channels = sides
    dtype = np.dtype(_TYPES[image.attrib["sampleFormat"]])
    order: Literal["<", ">"] = ">" if image.attrib.get("byteOrder", "little") == "big" else "<"
    n_bytes = width * height * channels * dtype.itemsize
    kind, _, place = image.attrib["location"].partition(":")
    if kind != "attachment":
        raise ValueError(f"pixels at {image.attrib['location']}")
    at, count = (int(part) for part in place.split(":"))
    data = _unpacked(read(at, count), image.attrib.get("compression", ""), n_bytes)
    if len(data) != n_bytes:
        raise ValueError(f"{len(data)} bytes of pixels, {n_bytes} expected")
    values = np.frombuffer(data, dtype.newbyteorder(order)).astype(dtype)
    if image.attrib.get("pixelStorage", "Planar") == "Normal":
        return np.ascontiguousarray(np.moveaxis(values.reshape(height, width, channels), -1, 0))
    return values.reshape(channels, height, width)


def _unpacked(data: bytes, compression: str, n_bytes: int) -> bytes:
    if not compression:
        return data
    codec, *numbers = compression.split(":")
    if codec not in ("zlib", "zlib+sh"):
        raise ValueError(f"it is packed with {codec}; save it with zlib, or without compression")
    if n_bytes > _MOST_DENSE * len(data):
        raise ValueError(f"{n_bytes} bytes in {len(data)}")
    plain = zlib.decompressobj().decompress(data, n_bytes)
    if codec == "zlib+sh":
        # The first bytes of all values come first, then the second ones.
        item = int(numbers[1])
        plain = np.frombuffer(plain, np.uint8).reshape(item, -1).T.tobytes()
    return plain


def _keywords(image: ElementTree.Element) -> dict[str, Any]:
    cards: dict[str, Any] = {}
    for element in image:
        if _plain(element.tag) != "FITSKeyword":
            continue
        name, value = element.attrib.get("name", "").strip().upper(), element.attrib.get("value", "").strip()
        if name and name not in ("COMMENT", "HISTORY") and value:
            cards.setdefault(name, _value(value))
    return cards


def _value(text: str) -> Any:
    if text.startswith("'"):
        return text[1:].removesuffix("'").replace("''", "'").strip()
    if text in ("T", "F"):
        return text == "T"
    if _NUMBER.match(text):
        number = float(text.replace("D", "E").replace("d", "e"))
        return int(number) if number.is_integer() and "." not in text and "e" not in text.lower() else number
    return text
