"""What was already done, as JSON on disk: a resumed run rebuilds only what changed."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from zemosaic_core.errors import SaveFailed, SkipItem
from zemosaic_io.atomic import atomic_path, save_failed
from zemosaic_io.pixel_digest import PixelDigest
from zemosaic_io.regular_files import add_to_regular, open_regular

__all__ = ["STATE_FOLDER", "Manifest", "file_digest", "hash_key", "load_json", "make_folder", "save_json"]

STATE_FOLDER = ".zemosaic_state"
_FORMAT = 2
_SYNC_EVERY_S = 4.0
# Nothing that this program writes as JSON comes near it.
_MAX_JSON_BYTES = 1_000_000_000
_log = logging.getLogger(__name__)


def make_folder(path: Path) -> None:
    """Create a folder of the run's state.

    Raises
    ------
    SaveFailed
        ``save_failed``: the disk is full, or something else has its name.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise SaveFailed(
            "save_failed", f"{path} cannot be created: {reason}", path=str(path), reason=reason
        ) from error


def save_json(path: Path | str, data: Any, *, durable: bool = True) -> None:
    """Write JSON atomically; NumPy numbers, arrays, paths and dataclasses become plain JSON.

    Numbers that are not finite are written as NaN / Infinity, which `load_json` reads back. ``durable``: see
    `atomic_path`.

    Raises
    ------
    SaveFailed
        ``save_failed``.
    """
    text = json.dumps(_plain(data), ensure_ascii=False, indent=1)
    with atomic_path(path, durable=durable) as temporary:
        # A file name that is not valid text carries lone surrogates; as \udcXX they are valid JSON and come back.
        temporary.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def load_json(path: Path | str, max_bytes: int = _MAX_JSON_BYTES) -> Any:
    """Read JSON.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    OSError
        It cannot be read.
    ValueError
        It is no regular file, not JSON, larger than ``max_bytes`` or nested too deeply; says so in one sentence.
    """
    try:
        with open_regular(path) as file:
            content = file.read(max_bytes + 1)
    except SkipItem as error:
        raise ValueError(str(error)) from error
    if len(content) > max_bytes:
        raise ValueError(f"it has more than {max_bytes} bytes")
    try:
        return json.loads(content.decode("utf-8-sig"))
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error


def hash_key(*parts: Any) -> str:
    """Return a fingerprint of ``parts`` (BLAKE2b, 32 hex digits).

    Equal values give equal keys on every machine and in every session: numbers by value, arrays by type,
    shape and content, mappings without regard to order, paths by text.
    """
    digest = hashlib.blake2b(digest_size=16)
    _feed(digest, parts)
    return digest.hexdigest()


def file_digest(path: Path | str) -> str | None:
    """Return a fingerprint of the bytes of a file (`PixelDigest.key`), or None when it cannot be read."""
    digest = PixelDigest()
    try:
        with open_regular(path, buffering=0) as file:
            piece = bytearray(1 << 20)
            while count := file.readinto(piece):  # type: ignore[attr-defined]
                digest.update(memoryview(piece)[:count])
    except (OSError, SkipItem) as error:
        _log.info("%s cannot be read: %s", path, error)
        return None
    return digest.key()


class Manifest:
    """Records by key in one JSON file, and beside it a journal of those made since that was written.

    Each record carries a checksum over its key and its content; one that does not fit was never made. A record is in
    the journal when `put` returns: a run that is killed keeps it, and a long manifest costs no more than a short one.

    Parameters
    ----------
    path : Path or str
        The file; read now when it exists. A damaged file counts as empty, with a warning in the log: the
        worst that happens is that work is done again.

    Notes
    -----
    One process owns a manifest; it is not for concurrent writers. It holds records as texts: a solution takes 2.5 kB
    as objects, 0.5 kB as a text, and a run has one of every frame.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._journal_path = self.path.with_suffix(".journal")
        self._journal: BinaryIO | None = None
        self._synced_at = time.monotonic()
        self._texts = _stored_records(self.path)
        added = _journal_records(self._journal_path)
        self._texts |= added
        self._changed = bool(added)

    @staticmethod
    def key(*parts: Any) -> str:
        """Return the key of a result that follows from ``parts``; see `hash_key`."""
        return hash_key(*parts)

    def get(self, key: str) -> Any | None:
        """Return the record under ``key``, or None when it was never made."""
        text = self._texts.get(key)
        return None if text is None else json.loads(text)

    def put(self, key: str, record: Any) -> None:
        """Remember a record; it outlives this process from now on.

        Raises
        ------
        SaveFailed
            ``save_failed``.
        """
        plain = _plain(record)
        text = json.dumps(plain)
        self._texts[key] = text
        self._changed = True
        line = f'["{_checksum(key, plain)}", {json.dumps(key)}, {text}]\n'
        try:
            if self._journal is None:
                self._journal_path.parent.mkdir(parents=True, exist_ok=True)
                self._journal = add_to_regular(self._journal_path)  # open until `save`
                # What a killed run left half written ends here.
                self._journal.write(b"\n")
            self._journal.write(line.encode())
            if time.monotonic() - self._synced_at > _SYNC_EVERY_S:
                os.fsync(self._journal.fileno())
                self._synced_at = time.monotonic()
        except OSError as error:
            raise save_failed(self._journal_path, error) from error

    def keep_only(self, keys: set[str]) -> int:
        """Forget every record whose key is not in ``keys``, on disk too; return how many.

        Raises
        ------
        SaveFailed
            ``save_failed``.
        """
        gone = [k for k in self._texts if k not in keys]
        for key in gone:
            del self._texts[key]
        self._changed = self._changed or bool(gone)
        self.save()
        return len(gone)

    def save(self) -> None:
        """Write the manifest when it changed.

        Raises
        ------
        SaveFailed
            ``save_failed``.
        """
        if not self._changed:
            return
        with atomic_path(self.path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.write(f'{{"format": {_FORMAT},\n"checksums": {{')
            for number, (key, text) in enumerate(self._texts.items()):
                file.write(
                    f'{"," if number else ""}\n {json.dumps(key)}: "{_checksum(key, json.loads(text))}"'
                )
            file.write('\n},\n"records": {')
            for number, (key, text) in enumerate(self._texts.items()):
                file.write(f"{',' if number else ''}\n {json.dumps(key)}: {text}")
            file.write("\n}}\n")
        self._changed = False
        self.close()
        try:
            self._journal_path.unlink(missing_ok=True)
        except OSError as error:
            raise save_failed(self._journal_path, error) from error

    def close(self) -> None:
        """Close the journal; nothing is lost."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def __len__(self) -> int:
        return len(self._texts)

    def __contains__(self, key: str) -> bool:
        return key in self._texts


def _stored_records(path: Path) -> dict[str, str]:
    try:
        stored = load_json(path)
        if stored["format"] == _FORMAT:
            return _sound_records(path, stored["records"], stored["checksums"])
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError, MemoryError) as error:
        _log.warning("%s cannot be used and is started anew: %r", path, error)
    return {}


def _journal_records(path: Path) -> dict[str, str]:
    """Return the sound records of a journal; a line that was cut off by a kill is one that was never made."""
    records: dict[str, str] = {}
    try:
        with open_regular(path) as journal:
            for line in journal:
                try:
                    checksum, key, record = json.loads(line)
                    if checksum == _checksum(key, record):
                        records[key] = json.dumps(record)
                except (ValueError, TypeError, RecursionError):
                    continue
    except FileNotFoundError:
        return {}
    except (OSError, SkipItem, MemoryError) as error:
        _log.warning("%s cannot be used: %r", path, error)
    return records


def _sound_records(path: Path, records: Mapping[str, Any], checksums: Mapping[str, str]) -> dict[str, str]:
    sound = {
        key: json.dumps(record)
        for key, record in records.items()
        if checksums.get(key) == _checksum(key, record)
    }
    if len(sound) < len(records):
        _log.warning("%s: %d damaged records do not count", path, len(records) - len(sound))
    return sound


def _checksum(key: str, record: Any) -> str:
    """Return the checksum of a record; the order of its names does not count."""
    ordered = json.dumps([key, record], sort_keys=True)
    return hashlib.blake2b(ordered.encode(), digest_size=8).hexdigest()


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        return [_plain(v) for v in items]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value


def _feed(digest: Any, value: Any) -> None:
    """Feed one value with a type mark and an end mark, so that ('ab', 'c') and ('a', 'bc') differ."""
    if isinstance(value, np.generic):
        value = value.item()
    if is_dataclass(value) and not isinstance(value, type):
        value = {"__type__": type(value).__qualname__, **asdict(value)}
    if isinstance(value, np.ndarray):
        digest.update(f"a{value.dtype.str}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        digest.update(b"m")
        for key in sorted(value, key=repr):
            _feed(digest, key)
            _feed(digest, value[key])
    elif isinstance(value, list | tuple):
        digest.update(b"l")
        for item in value:
            _feed(digest, item)
    elif isinstance(value, set | frozenset):
        digest.update(b"e")
        for item in sorted(value, key=repr):
            _feed(digest, item)
    elif isinstance(value, float):
        # repr is exact; an integral float and the integer are the same number.
        whole = math.isfinite(value) and value == int(value) and abs(value) < 2**53
        digest.update(b"n" + (repr(int(value)) if whole else repr(value)).encode())
    elif isinstance(value, bool) or value is None:
        digest.update(b"c" + repr(value).encode())
    elif isinstance(value, int):
        digest.update(b"n" + repr(value).encode())
    elif isinstance(value, bytes):
        digest.update(b"b" + value)
    elif isinstance(value, str | os.PathLike):
        digest.update(b"s" + os.fspath(value).encode("utf-8", "surrogatepass"))
    else:
        raise TypeError(f"cannot make a key from {type(value).__name__} {value!r}")
    digest.update(b"\x00;")
