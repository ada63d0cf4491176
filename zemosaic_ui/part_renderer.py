"""One thread that turns parts of a mosaic into 8-bit pictures, newest wish first."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from zemosaic_core.errors import ZeMosaicError
from zemosaic_core.stretch import StretchParams
from zemosaic_ui.mosaic_image import MosaicImage, base_params, coverage_rgba, render, select_channels
from zemosaic_ui.work_thread import WorkThread

__all__ = ["Look", "PartRenderer", "Rendered"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Look:
    """How the mosaic is shown: channel view and stretch; parts of an older look are thrown away."""

    number: int
    view: str
    params: StretchParams


@dataclass(frozen=True)
class Rendered:
    """A picture that is ready: ``kind`` is part, overview, coverage, auto (parameters) or built."""

    kind: str
    look: int
    key: tuple[int, ...]
    rgba: np.ndarray | None
    extra: Any = None


class PartRenderer:
    """Serves one `MosaicImage`; results are collected with `take`."""

    def __init__(self, image: MosaicImage, options: Mapping[str, Any] | None = None) -> None:
        self.image = image
        self._options = dict(options or {})
        self._ready: deque[Rendered] = deque()
        self._closed = threading.Event()
        self._overview: np.ndarray | None = None
        self._thread: WorkThread[tuple[Any, ...]] = WorkThread("mosaic-parts", self._work)
        self._builder = threading.Thread(target=self._build, name="mosaic-copies", daemon=True)
        self._builder.start()

    # ------------------------------------------------------------------ asking

    def ask_auto(self, view: str, **options: Any) -> None:
        """Ask for the automatic stretch of a channel view; ``options`` replace those of the settings."""
        self._options |= options
        self._put(("auto", view, dict(self._options)), first=True)

    def ask_overview(self, look: Look) -> None:
        """Ask for the whole picture, small."""
        self._put(("overview", look), first=True)

    def ask_fine(self, look: Look) -> None:
        """Ask for the whole picture, small and with its noise calmed; it takes a second and comes last."""
        self._put(("fine", look), first=False)

    def ask_coverage(self, path: str) -> None:
        """Ask for the coverage map as a translucent picture."""
        self._put(("coverage", path), first=True)

    def ask_parts(self, look: Look, keys: list[tuple[int, int, int]]) -> None:
        """Ask for the parts on show; wishes for other parts are forgotten."""
        self._thread.put(*(("part", look, key) for key in keys), replaces=lambda job: job[0] == "part")

    def take(self, limit: int = 6) -> list[Rendered]:
        """Return what is ready."""
        taken = []
        while self._ready and len(taken) < limit:
            taken.append(self._ready.popleft())
        return taken

    def close(self) -> None:
        """End the threads and remove the reduced copies."""
        self._closed.set()
        self._thread.close(wait_s=5.0)
        self._builder.join(5.0)
        self.image.close()

    # ------------------------------------------------------------------ threads

    def _put(self, job: tuple[Any, ...], *, first: bool) -> None:
        self._thread.put(job, first=first, replaces=lambda known: known[0] == job[0])

    def _build(self) -> None:
        try:
            if self.image.build_copies(self._closed):
                self._overview = None
                self._ready.append(Rendered("built", 0, (), None))
        except (OSError, ZeMosaicError) as error:
            self._ready.append(Rendered("failed", 0, (), None, str(error)))

    def _work(self, job: tuple[Any, ...]) -> None:
        try:
            self._do(job)
        except (OSError, ValueError, ZeMosaicError) as error:
            _log.warning("%s cannot be shown: %s", self.image.path, error)
            self._ready.append(Rendered("failed", 0, (), None, str(error)))

    def _do(self, job: tuple[Any, ...]) -> None:
        if self._overview is None and job[0] in ("auto", "overview", "fine"):
            self._overview = self.image.overview()
        match job:
            case ("auto", view, asked):
                options = {"white_gains": self.image.white_gains, **asked}
                self._ready.append(
                    Rendered("auto", 0, (), None, (view, base_params(self._overview, view, options)))
                )
            case ("overview", look):
                self._ready.append(
                    Rendered("overview", look.number, (), render(self._overview, look.view, look.params))
                )
            case ("fine", look):
                rgba = render(self._overview, look.view, look.params, calm_noise=True)
                self._ready.append(Rendered("fine", look.number, (), rgba))
            case ("coverage", path):
                plane = select_channels(MosaicImage(_as_path(path)).overview(), "light")[0]
                self._ready.append(Rendered("coverage", 0, (), coverage_rgba(plane)))
            case ("part", look, key):
                rgba = render(self.image.part(*key), look.view, look.params)
                self._ready.append(Rendered("part", look.number, key, rgba))


def _as_path(path: str) -> Any:
    from pathlib import Path

    return Path(path)
