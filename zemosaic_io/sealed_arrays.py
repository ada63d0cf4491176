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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zemosaic_io.atomic import atomic_path

__all__ = ["load_sealed", "save_sealed"]

_RECORD = "record"
_DIGEST_BYTES = 32

log = logging.getLogger(__name__)


def save_sealed(
    path: Path | str, key: str, record: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> None:
    """Write arrays and a record of JSON types under ``key``.

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
    with atomic_path(path) as temporary:
        temporary.write_bytes(content + _digest(content))


def load_sealed(path: Path | str, key: str) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """Return the record and the arrays, or None when there are none, they are damaged, or belong to another key."""
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("%s cannot be read and is made anew: %s", path, error)
        return None
    if _digest(content[:-_DIGEST_BYTES]) != content[-_DIGEST_BYTES:]:
        log.warning("%s is damaged and is made anew", path)
        return None
    with np.load(io.BytesIO(content)) as stored:
        arrays = dict(stored)
    sealed = json.loads(arrays.pop(_RECORD).tobytes())
    if sealed["key"] != key:
        log.warning("%s belongs elsewhere and is made anew", path)
        return None
    return sealed["record"], arrays


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()
