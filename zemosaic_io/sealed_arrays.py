"""Arrays with a record in one ``.npz`` file that is either what was written, byte for byte, or does not count.

The comment of the zip archive is a digest of everything before it. It is compared before anything is unpacked, so
damaged bytes never reach a decoder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import struct
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zemosaic_core.errors import SkipItem
from zemosaic_io.atomic import atomic_path
from zemosaic_io.regular_files import open_regular

__all__ = ["load_sealed", "save_sealed"]

_RECORD = "record"
_DIGEST_BYTES = 32
# What reading a file says whose digest is right and whose content is not what `save_sealed` writes.
_NOT_OURS = (
    ValueError, KeyError, TypeError, AttributeError, RecursionError, NotImplementedError, MemoryError, struct.error,
)  # fmt: skip

# The records of a zip archive whose members are not compressed, and the head of an array, as `numpy.savez` writes them:
# end of the directory; entry of the directory (method, lengths of name, extra field and comment, place); local header.
_END, _ENTRY, _LOCAL = (
    struct.Struct("<4s4H2LH"),
    struct.Struct("<4s6xH16x3H8xL"),
    struct.Struct("<4s22x2H"),
)
_ARRAY = struct.Struct("<8sH")
# What local header and entry have in common: version, flags, method, time and date, checksum, sizes, lengths of names.
_ABOUT = struct.Struct("<5H3L2H")
_UTF8, _FIRST_DAY, _MOST_BYTES, _MAGIC = 0x800, 33, 2**32 - 1, b"\x93NUMPY\1\0"
_HEADER = re.compile(rb"\{'descr': '([^']+)', 'fortran_order': (True|False), 'shape': \(([\d, ]*)\), \} *\n")

log = logging.getLogger(__name__)


def save_sealed(
    path: Path | str, key: str, record: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> None:
    """Write arrays and a record of JSON types under ``key``.

    It is safe from a killed process; from a loss of power after `atomic.make_durable`.

    Raises
    ------
    SaveFailed
        ``save_failed``.
    """
    text = json.dumps({"key": key, "record": record}).encode()
    content = _packed({_RECORD: np.frombuffer(text, np.uint8), **arrays})
    with atomic_path(path, durable=False) as temporary:
        temporary.write_bytes(content + _digest(content))


def _packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return an archive of arrays as `numpy.savez` writes it, but for the digest that its comment will be.

    Raises
    ------
    ValueError
        An array is larger than the 4 GiB that a member of such an archive holds, or holds objects or records.
    """
    members, directory = bytearray(), bytearray()
    for name, given in arrays.items():
        array = np.asarray(given)
        if array.dtype.hasobject or array.dtype.fields:
            raise ValueError(f"{name} holds {array.dtype}; numbers and words are stored")
        by_columns = array.flags.f_contiguous and not array.flags.c_contiguous
        described = (
            f"{{'descr': '{array.dtype.str}', 'fortran_order': {by_columns}, 'shape': {array.shape}, }}"
        )
        # The values begin at a multiple of 64 bytes of their member.
        header = described.encode() + b" " * (-(len(described) + _ARRAY.size + 1) % 64) + b"\n"
        values = array.tobytes("F" if by_columns else "C")
        member = _ARRAY.pack(_MAGIC, len(header)) + header + values
        if len(member) > _MOST_BYTES:
            raise ValueError(f"{name} has {len(member)} bytes; a sealed array holds at most {_MOST_BYTES}")
        label, place = f"{name}.npy".encode(), len(members)
        about = _ABOUT.pack(
            20, _UTF8, 0, 0, _FIRST_DAY, zlib.crc32(member), len(member), len(member), len(label), 0
        )
        members += b"PK\3\4" + about + label + member
        directory += b"PK\1\2" + bytes([20, 0]) + about + bytes(10) + struct.pack("<L", place) + label
    end = _END.pack(b"PK\5\6", 0, 0, len(arrays), len(arrays), len(directory), len(members), _DIGEST_BYTES)
    return bytes(members + directory + end)


def load_sealed(
    path: Path | str, key: str, names: Collection[str] | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """Return the record and the arrays, or None when there are none, they are damaged, or belong to another key.

    Of the arrays only those of some names where these are given: unpacking takes longer than comparing the digest.
    """
    try:
        with open_regular(path) as file:
            content = file.read()
    except FileNotFoundError:
        return None
    except (OSError, SkipItem, MemoryError) as error:
        log.warning("%s cannot be read and is made anew: %s", path, error)
        return None
    if _digest(content[:-_DIGEST_BYTES]) != content[-_DIGEST_BYTES:]:
        log.warning("%s is damaged and is made anew", path)
        return None
    try:
        places = _members(content)
        sealed = json.loads(_array_at(content, places[_RECORD]).tobytes())
        wanted = [name for name in places if name != _RECORD] if names is None else names
        arrays = {name: _array_at(content, places[name]) for name in wanted}
        record, belongs_to = sealed["record"], sealed["key"]
    except _NOT_OURS as error:
        log.warning("%s holds something else and is made anew: %r", path, error)
        return None
    if belongs_to != key or not isinstance(record, dict):
        log.warning("%s belongs elsewhere and is made anew", path)
        return None
    return record, arrays


def _members(content: bytes) -> dict[str, int]:
    """Return where the local header of each array lies, by the directory of the archive.

    Reading a frame's arrays as any archive, each with its own look into the directory, takes ten times as long.
    """
    signature, _, _, _, n, _, at, comment = _END.unpack_from(
        content, len(content) - _DIGEST_BYTES - _END.size
    )
    if signature != b"PK\5\6" or comment != _DIGEST_BYTES:
        raise ValueError("no directory at its end")
    places = {}
    for _ in range(n):
        signature, method, length, extra, note, place = _ENTRY.unpack_from(content, at)
        name = content[at + _ENTRY.size : at + _ENTRY.size + length].decode()
        if signature != b"PK\1\2" or method != 0 or not name.endswith(".npy"):
            raise ValueError(f"{name!r} is no plain array")
        places[name.removesuffix(".npy")] = place
        at += _ENTRY.size + length + extra + note
    return places


def _array_at(content: bytes, place: int) -> np.ndarray:
    """Return the array whose local header lies at a place."""
    signature, length, extra = _LOCAL.unpack_from(content, place)
    start = place + _LOCAL.size + length + extra
    magic, header_length = _ARRAY.unpack_from(content, start)
    start += _ARRAY.size
    header = _HEADER.fullmatch(content[start : start + header_length])
    if signature != b"PK\3\4" or magic != _MAGIC or header is None:
        raise ValueError(f"no array at byte {start}")
    dtype, columns, sides = np.dtype(header[1].decode()), header[2] == b"True", header[3]
    shape = tuple(int(side) for side in sides.split(b",") if side.strip())
    flat = np.frombuffer(content, dtype, math.prod(shape), start + header_length)
    return flat.reshape(shape, order="F" if columns else "C").copy(order="K")


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()
