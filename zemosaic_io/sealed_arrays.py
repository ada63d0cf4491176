"""Arrays with a record in one ``.npz`` file that is either what was written, byte for byte, or does not count.

The comment of the zip archive is a digest of everything before it. It is compared before anything is unpacked, so
damaged bytes never reach a decoder.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import zipfile
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
    ValueError, KeyError, TypeError, AttributeError, EOFError, OSError, zipfile.BadZipFile, RecursionError,
    NotImplementedError, MemoryError,
)  # fmt: skip

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
    packed = io.BytesIO()
    contents: dict[str, Any] = {_RECORD: np.frombuffer(text, np.uint8), **arrays}
    np.savez(packed, **contents)
    with zipfile.ZipFile(packed, "a") as archive:
        # Its length is part of what the digest covers.
        archive.comment = bytes(_DIGEST_BYTES)
    content = packed.getvalue()[:-_DIGEST_BYTES]
    with atomic_path(path, durable=False) as temporary:
        temporary.write_bytes(content + _digest(content))


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
        with np.load(io.BytesIO(content)) as stored:
            sealed = json.loads(stored[_RECORD].tobytes())
            wanted = [name for name in stored.files if name != _RECORD] if names is None else names
            arrays = {name: stored[name] for name in wanted}
        record, belongs_to = sealed["record"], sealed["key"]
    except _NOT_OURS as error:
        log.warning("%s holds something else and is made anew: %r", path, error)
        return None
    if belongs_to != key or not isinstance(record, dict):
        log.warning("%s belongs elsewhere and is made anew", path)
        return None
    return record, arrays


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()
