"""Two threads that turn parts of a mosaic into 8-bit pictures, newest wish first.

One is quick and shows every pixel by itself; the other one finishes what the eye rests on, which takes longer.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.wcs import WCS

from zemosaic_core import __version__
from zemosaic_core.annotation import Annotation, annotate
from zemosaic_core.errors import Cancelled, ZeMosaicError
from zemosaic_core.picture_histogram import picture_histogram
from zemosaic_io.picture_files import write_picture
from zemosaic_io.sky_objects import built_in_objects
from zemosaic_ui.look import Look, base_params, coverage_overlay, render, render_window, select_channels
from zemosaic_ui.mosaic_image import PART_PX, MosaicImage
from zemosaic_ui.work_thread import WorkThread

__all__ = ["PartRenderer", "Rendered", "ViewToSave"]

CLOSE_S = 30.0
_log = logging.getLogger(__name__)

Key = tuple[int, int, int]


@dataclass(frozen=True)
class Rendered:
    """A picture that is ready.

    Attributes
    ----------
    kind : str
        ``part``, ``finished_part``, ``overview``, ``fine`` (the finished overview), ``coverage``, ``annotation``,
        ``auto`` (the automatic stretch), ``saved`` or ``failed``.
    extra : object
        Histogram of an overview; the annotation; view and stretch of ``auto``; path or words of the last two.
    """

    kind: str
    look: int
    key: tuple[int, ...]
    rgba: np.ndarray | None
    extra: Any = None


@dataclass(frozen=True)
class ViewToSave:
    """A part of the picture to be written: rows and columns ``(y0, y1, x0, x1)`` of a level, and the form."""

    path: Path
    form: str
    level: int
    box: tuple[int, int, int, int]


class PartRenderer:
    """Serves one `MosaicImage`; results are collected with `take`.

    Parameters
    ----------
    shared : bool
        The image is open in another renderer, too, which builds its reduced copies and closes it.
    """

    def __init__(
        self, image: MosaicImage, options: Mapping[str, Any] | None = None, *, shared: bool = False
    ) -> None:
        self.image = image
        self._options = dict(options or {})
        self._ready: deque[Rendered] = deque()
        self._closed = threading.Event()
        self._overview: tuple[int, np.ndarray] | None = None
        self._quick: WorkThread[tuple[Any, ...]] = WorkThread("mosaic-parts", self._work)
        self._slow: WorkThread[tuple[Any, ...]] = WorkThread("mosaic-finish", self._work)
        self._builder: threading.Thread | None = None
        if not shared:
            self._builder = threading.Thread(target=self._build, name="mosaic-copies", daemon=True)
            self._builder.start()

    # ------------------------------------------------------------------ asking

    def ask_auto(self, view: str, **options: Any) -> None:
        """Ask for the automatic stretch of a channel view; ``options`` replace those of the settings."""
        self._options |= options
        self._put(("auto", view, dict(self._options)))

    def ask_overview(self, look: Look) -> None:
        """Ask for the whole picture, small."""
        self._put(("overview", look))

    def ask_coverage(self, path: str) -> None:
        """Ask for the coverage map as a translucent picture."""
        self._put(("coverage", path))

    def ask_annotation(self) -> None:
        """Ask for what there is to name in the picture."""
        self._put(("annotation",))

    def ask_parts(self, look: Look, keys: list[Key]) -> None:
        """Ask for the parts on show; wishes for other parts are forgotten."""
        self._quick.put(*(("part", look, key) for key in keys), replaces=lambda job: job[0] == "part")

    def ask_finished(self, look: Look, keys: list[Key], *, whole: bool) -> None:
        """Ask for finished parts and for the ``whole`` picture finished in small; older wishes are forgotten."""
        jobs: list[tuple[Any, ...]] = [("finished_part", look, key) for key in keys]
        if whole:
            jobs.insert(0, ("fine", look))
        self._slow.put(*jobs, replaces=lambda job: job[0] in ("fine", "finished_part"))

    def ask_save(self, look: Look, view: ViewToSave) -> None:
        """Ask for a view to be written to a file."""
        self._slow.put(("save", look, view), first=True)

    def forget_finished(self) -> None:
        """Forget wishes for finished pictures: the view moves."""
        self._slow.put(replaces=lambda job: job[0] in ("fine", "finished_part"))

    def take(self, limit: int = 6) -> list[Rendered]:
        """Return what is ready."""
        taken: list[Rendered] = []
        while self._ready and len(taken) < limit:
            taken.append(self._ready.popleft())
        return taken

    def close(self) -> None:
        """End the threads; what was opened for this renderer alone is removed when they are through."""
        self._closed.set()
        self._quick.close()
        self._slow.close()
        # The window does not wait for a picture that is being finished; the end of the program does.
        threading.Thread(target=self._let_go, name="mosaic-close", daemon=False).start()

    def _let_go(self) -> None:
        self._quick.close(wait_s=CLOSE_S)
        self._slow.close(wait_s=CLOSE_S)
        if self._builder is not None:
            self._builder.join(CLOSE_S)
            self.image.close()

    # ------------------------------------------------------------------ threads

    def _put(self, job: tuple[Any, ...]) -> None:
        self._quick.put(job, first=True, replaces=lambda known: known[0] == job[0])

    def _build(self) -> None:
        for step in (self.image.read_facts, lambda: self.image.build_copies(self._closed)):
            try:
                step()
            except (OSError, ZeMosaicError) as error:
                self._fail(error)

    def _work(self, job: tuple[Any, ...]) -> None:
        try:
            self._do(job)
        except Cancelled:
            return
        except (OSError, ValueError, ZeMosaicError) as error:
            _log.warning("%s cannot be shown: %s", self.image.path, error)
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._ready.append(Rendered("failed", 0, (), None, str(error)))

    def _small(self) -> np.ndarray:
        """Overview of the best level there is."""
        level = self.image.ready_level
        if self._overview is None or self._overview[0] != level:
            self._overview = (level, self.image.overview())
        return self._overview[1]

    def _do(self, job: tuple[Any, ...]) -> None:
        image = self.image
        match job:
            case ("auto", view, asked):
                options = {"white_gains": image.white_gains, **asked}
                found = (view, base_params(self._small(), view, options))
                self._ready.append(Rendered("auto", 0, (), None, found))
            case ("overview", look):
                rgba = render(self._small(), look)
                self._ready.append(Rendered("overview", look.number, (), rgba, picture_histogram(rgba)))
            case ("fine", look):
                level = image.overview_level
                height, width = image.level_shape(level)
                rgba = render_window(image, look, level, (0, height, 0, width), finish=True)
                self._ready.append(Rendered("fine", look.number, (), rgba, picture_histogram(rgba)))
            case ("coverage", path):
                plane = select_channels(MosaicImage(Path(path)).overview(), "light")[0]
                self._ready.append(Rendered("coverage", 0, (), coverage_overlay(plane)))
            case ("annotation",):
                self._ready.append(Rendered("annotation", 0, (), None, self._annotation()))
            case ("part", look, key):
                rgba = render(image.part(*key), look)
                self._ready.append(Rendered("part", look.number, key, rgba))
            case ("finished_part", look, (level, row, column)):
                y, x = row * PART_PX, column * PART_PX
                rgba = render_window(image, look, level, (y, y + PART_PX, x, x + PART_PX), finish=True)
                self._ready.append(Rendered("finished_part", look.number, job[2], rgba))
            case ("save", look, view):
                self._save(look, view)

    def _annotation(self) -> Annotation | None:
        """Name what there is to see; None without a WCS. A WCS of its own: the window uses the other one."""
        info = self.image.info
        if not info.wcs_cards:
            return None
        return annotate(
            WCS(dict(info.wcs_cards)),
            self.image.shape_hw,
            built_in_objects(),
            epoch=info.epoch,
            seen=np.isfinite(self._small()).all(axis=0),
        )

    def _save(self, look: Look, view: ViewToSave) -> None:
        bits = 16 if view.form == "tiff16" else 8
        rgba = render_window(self.image, look, view.level, view.box, finish=look.calm, bits=bits)
        recipe = {"params": asdict(look.params), "step": 2**view.level, "box": view.box, "calm": look.calm}
        texts = {"Software": f"ZeMosaic {__version__}", "Picture": json.dumps(recipe)}
        write_picture(view.path, rgba, view.form, texts=texts)
        self._ready.append(Rendered("saved", look.number, (), None, str(view.path)))
