"""A finished picture on the bench: what cutting and masking leave of it, and what it scores, without a toolkit.

Everything is decided by the functions that `zemosaic crop` and `zemosaic quality` use; here their answers become small
pictures and numbers.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zemosaic_core.altaz_mask import AltAzOptions
from zemosaic_core.binning import bin_down
from zemosaic_core.errors import SkipItem, ZeMosaicError
from zemosaic_core.quality_crop import CropOptions
from zemosaic_core.stretch import StretchParams, auto_stretch_params, preview_rgba
from zemosaic_core.tile_quality import QualityOptions, accepts, tile_quality
from zemosaic_io.tile_tools import AltAzWish, Cut, crop_file, judge_cut, read_planes, too_small
from zemosaic_ui.work_thread import WorkThread

__all__ = ["BenchPicture", "BenchScore", "Finding", "TileWorkbench", "ToolWishes"]

PICTURE_PX = 900
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ToolWishes:
    """What the sliders say; None: that tool is not used."""

    crop: CropOptions | None
    altaz: AltAzOptions | None
    quality: QualityOptions
    threshold: float

    @property
    def altaz_wish(self) -> AltAzWish | None:
        """What is asked of the corners, as `crop_file` takes it."""
        return None if self.altaz is None else AltAzWish(self.altaz)


@dataclass(frozen=True)
class BenchPicture:
    """The picture before and after.

    Attributes
    ----------
    before, after : ndarray, shape (h, w, 4), uint8
        First row of the file first.
    cut : Cut
    step : int
        Pixels of the file per pixel of the pictures.
    """

    before: np.ndarray
    after: np.ndarray
    cut: Cut
    step: int


@dataclass(frozen=True)
class BenchScore:
    """Parts of the score before and after, by their names, and whether the picture passes."""

    before: dict[str, float]
    after: dict[str, float]
    accepted_before: bool
    accepted_after: bool


@dataclass(frozen=True)
class Finding:
    """What is ready: ``picture``, ``score``, ``written`` (a path) or ``failed`` (text key and values)."""

    kind: str
    content: Any


class TileWorkbench:
    """One thread that reads a picture and answers what the tools would do with it; the newest wishes win."""

    def __init__(self) -> None:
        self._ready: deque[Finding] = deque()
        self._thread: WorkThread[tuple[Any, ...]] = WorkThread("tile-tools", self._work)
        self._path: Path | None = None
        self._planes: np.ndarray | None = None
        self._coverage: np.ndarray | None = None
        self._params: StretchParams | None = None
        self._before: np.ndarray | None = None
        self._step = 1

    def ask_open(self, path: Path, wishes: ToolWishes) -> None:
        """Ask for a file to be read, and for what the tools would do with it."""
        self._thread.put(("open", path), ("picture", wishes), ("score", wishes), replaces=lambda job: True)

    def ask(self, wishes: ToolWishes) -> None:
        """Ask what the tools would do; older questions are forgotten."""
        self._thread.put(
            ("picture", wishes), ("score", wishes), replaces=lambda job: job[0] in ("picture", "score")
        )

    def ask_apply(self, target: Path, wishes: ToolWishes, *, overwrite: bool) -> None:
        """Ask for the result to be written to another file."""
        self._thread.put(("apply", target, wishes, overwrite), first=True)

    def take(self) -> list[Finding]:
        """Return what is ready."""
        taken: list[Finding] = []
        while self._ready:
            taken.append(self._ready.popleft())
        return taken

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits."""
        return self._thread.waiting == 0

    def close(self) -> None:
        """End the thread after what it is at."""
        self._thread.close()

    # ------------------------------------------------------------------ the thread

    def _work(self, job: tuple[Any, ...]) -> None:
        try:
            self._do(job)
        except ZeMosaicError as error:
            _log.info("%s", error)
            self._ready.append(Finding("failed", (error.key, dict(error.values))))

    def _do(self, job: tuple[Any, ...]) -> None:
        match job:
            case ("open", path):
                self._read(path)
            case ("apply", target, wishes, overwrite) if self._path is not None:
                crop_file(self._path, target, wishes.crop, wishes.altaz_wish, overwrite=overwrite)
                self._ready.append(Finding("written", str(target)))
            case (("picture" | "score") as kind, wishes) if self._planes is not None:
                cut = judge_cut(self._planes, self._coverage, wishes.crop, wishes.altaz_wish)
                found = self._picture(cut) if kind == "picture" else self._score(cut, wishes)
                self._ready.append(Finding(kind, found))

    def _read(self, path: Path) -> None:
        self._path = self._planes = None
        planes, coverage = read_planes(path)
        planes = planes[:3] if planes.shape[0] >= 3 else planes[:1]
        if not np.isfinite(planes).any():
            raise SkipItem("frame_empty", f"{path} holds no value", path=str(path), value=float("nan"))
        self._step = max(1, -(-max(planes.shape[1:]) // PICTURE_PX))
        small = bin_down(planes, self._step)
        self._params = auto_stretch_params(small)
        # No slider changes it.
        self._before = self._shown(small)
        self._path, self._planes, self._coverage = path, planes, coverage

    def _picture(self, cut: Cut) -> BenchPicture:
        assert self._planes is not None
        assert self._before is not None
        after = self._shown(bin_down(cut.of(self._planes), self._step))
        return BenchPicture(self._before, after, cut, self._step)

    def _shown(self, small: np.ndarray) -> np.ndarray:
        return preview_rgba(small, params=self._params, max_dim=None)

    def _score(self, cut: Cut, wishes: ToolWishes) -> BenchScore:
        assert self._planes is not None
        assert self._path is not None
        try:
            before, after = (
                tile_quality(planes, wishes.quality).to_dict()
                for planes in (self._planes, cut.of(self._planes))
            )
        except ValueError as error:
            raise too_small(self._path, self._planes.shape, error) from error
        return BenchScore(before, after, *(accepts(parts, wishes.threshold) for parts in (before, after)))
