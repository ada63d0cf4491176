"""Decode pictures in a thread, so that a window only ever draws what is ready."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from zemosaic_ui.work_thread import WorkThread

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
        self._ready: deque[Picture] = deque()
        self._thread: WorkThread[tuple[object, str, int]] = WorkThread("pictures", self._decode)

    def ask(self, key: object, path: str, max_dim: int) -> None:
        """Ask for a picture, made smaller when a side is longer than ``max_dim`` px."""
        self._thread.put((key, path, max_dim), replaces=lambda other: other[0] == key)

    def take(self, limit: int = 8) -> list[Picture]:
        """Return pictures that are ready."""
        taken = []
        while self._ready and len(taken) < limit:
            taken.append(self._ready.popleft())
        return taken

    def close(self) -> None:
        """End the thread."""
        self._thread.close()

    def _decode(self, wanted: tuple[object, str, int]) -> None:
        key, path, max_dim = wanted
        try:
            with Image.open(path) as image:
                image.thumbnail((max_dim, max_dim), Image.Resampling.BILINEAR, reducing_gap=2.0)
                rgba = image.convert("RGBA")
                self._ready.append(Picture(key, path, rgba.width, rgba.height, rgba.tobytes()))
        except (OSError, UnidentifiedImageError, ValueError) as error:
            # A preview that is being replaced at this moment comes again with the next event.
            _log.info("%s cannot be shown: %s", path, error)
