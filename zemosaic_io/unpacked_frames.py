"""Frames packed with gzip, which can only be read from their beginning, unpacked into a folder when they are needed.

Processes of one machine may share the folder; each frame is unpacked by one of them. Where the disk has too little room
a frame stays packed, and whoever needs a window of it unpacks what lies before.
"""

from __future__ import annotations

import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zemosaic_core.errors import SaveFailed
from zemosaic_io.file_locks import try_lock
from zemosaic_io.fits_read import unpack_pixels, unpacked_info
from zemosaic_io.headers import FrameInfo
from zemosaic_io.manifest import hash_key

__all__ = ["UnpackedFrames"]

_POLL_S = 0.01


@dataclass
class UnpackedFrames:
    """What was unpacked so far.

    Attributes
    ----------
    folder : Path
    keep_free_bytes : int
        What is left free on the disk of the folder; 0: the room was counted before, and a full disk is an error.
    """

    folder: Path
    keep_free_bytes: int = 0
    _known: dict[int, FrameInfo] = field(default_factory=dict)
    _locks: dict[int, threading.Lock] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, key: int, info: FrameInfo) -> FrameInfo:
        """Return where the pixels of a frame are: in a file of their own, or, where there is no room, as they were.

        Raises
        ------
        SkipItem
            As `zemosaic_io.fits_read.unpack_pixels`.
        SaveFailed
            The folder cannot be written.
        """
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            known = self._known.get(key)
            if known is None or not known.path.exists():
                known = self._known[key] = self._unpack(key, info)
            return known

    def __getstate__(self) -> dict[str, Any]:
        # What was unpacked stays with the process that did it.
        return {"folder": self.folder, "keep_free_bytes": self.keep_free_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _unpack(self, key: int, info: FrameInfo) -> FrameInfo:
        # Stores of other frames have the same keys.
        whose = hash_key(info.path, info.size_bytes, info.mtime_ns)
        target = self.folder / f"unpacked_{key}_{whose[:16]}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with target.with_suffix(".lock").open("wb") as file:
                while not try_lock(file):
                    time.sleep(_POLL_S)
                if target.exists():
                    return unpacked_info(info, target)
                if self._has_room(info):
                    return unpack_pixels(info, target)
        except OSError as error:
            reason = error.strerror or str(error)
            raise SaveFailed("save_failed", f"{target}: {reason}", path=str(target), reason=reason) from error
        return info

    def _has_room(self, info: FrameInfo) -> bool:
        if not self.keep_free_bytes:
            return True
        return shutil.disk_usage(self.folder).free - info.stored_bytes >= self.keep_free_bytes
