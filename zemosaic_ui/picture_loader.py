"""Decode pictures in a thread, so that a window only ever draws what is ready."""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

__all__ = ["Picture", "PictureLoader"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Picture:
    """A decoded picture: 8-bit RGBA, row by row, with the name it was asked for."""

    key: object
    path: str
    width: int
    height: int
    rgba: bytes


class PictureLoader:
    """One thread that decodes the pictures asked for; the newest request of a key replaces an older one."""

    def __init__(self) -> None:
        self._wanted: deque[tuple[object, str, int]] = deque()
        self._ready: deque[Picture] = deque()
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def ask(self, key: object, path: str, max_dim: int) -> None:
        """Ask for a picture, made smaller when a side is longer than ``max_dim`` px."""
        with self._wake:
            self._wanted = deque(item for item in self._wanted if item[0] != key)
            self._wanted.append((key, path, max_dim))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="pictures", daemon=True)
                self._thread.start()
            self._wake.notify()

    def take(self, limit: int = 8) -> list[Picture]:
        """Return pictures that are ready."""
        taken = []
        while self._ready and len(taken) < limit:
            taken.append(self._ready.popleft())
        return taken

    def close(self) -> None:
        """End the thread."""
        with self._wake:
            self._closed = True
            self._wanted.clear()
            self._wake.notify()

    def _work(self) -> None:
        while True:
            with self._wake:
                while not self._wanted and not self._closed:
                    self._wake.wait()
                if self._closed:
                    return
                key, path, max_dim = self._wanted.popleft()
            try:
                with Image.open(path) as image:
                    image.thumbnail((max_dim, max_dim), Image.Resampling.BILINEAR, reducing_gap=2.0)
                    rgba = image.convert("RGBA")
                    self._ready.append(Picture(key, path, rgba.width, rgba.height, rgba.tobytes()))
            except (OSError, UnidentifiedImageError, ValueError) as error:
                # A preview that is being replaced at this moment comes again with the next event.
                _log.info("%s cannot be shown: %s", path, error)
