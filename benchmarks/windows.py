"""How long the window is away in one go: with a night of 10,000 frames, and with a large mosaic in the viewer.

Run with ``python -m benchmarks.windows [--frames 10000] [--mosaic 12000x9000]``. The longest event of each action is
that of the window's own thread; what takes longer than 100 ms is felt. How long a mosaic takes to open is given in
seconds of the processor, all threads together, because other programs do not change them much.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import numpy as np
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication

from tools.screenshots import fill_filter
from zemosaic_filter_gui_qt import FilterQtDialog
from zemosaic_io.fits_write import StreamingFits
from zemosaic_ui.qt.session import open_session
from zemosaic_ui.qt.theme import ThemeSwitch
from zemosaic_ui.qt.viewer_page import ViewerPage

WATCHED_S = 0.7


def longest_event_s(application: QApplication, action: Callable[[], object]) -> float:
    """Return the longest time in one go that an action and what follows from it take."""
    begin = time.thread_time()
    action()
    longest = time.thread_time() - begin
    until = time.perf_counter() + WATCHED_S
    while time.perf_counter() < until:
        begin = time.thread_time()
        application.processEvents()
        longest = max(longest, time.thread_time() - begin)
        time.sleep(0.001)
    return longest


def measure_filter(application: QApplication, folder: Path, n_frames: int) -> dict[str, float]:
    """Return the longest event of each action in the filter, s."""
    session = open_session(ThemeSwitch(application, "dark"), folder / "zemosaic_config.json")
    dialog = FilterQtDialog(session, str(folder), survey=False)
    dialog.resize(1600, 900)
    dialog.show()
    frames, table = dialog.frames, dialog.table
    fill_filter(frames, n_frames)
    longest_event_s(application, table.view.collapseAll)
    actions: dict[str, Callable[[], object]] = {
        "expand": table.view.expandAll,
        "cut": lambda: frames.set_cut("fwhm", (0.0, 3.5)),
        "select": lambda: frames.select(frames.in_rectangle(-1, -1, 1, 1)),
        "sort": lambda: table.view._on_header(5),
        "colour": lambda: dialog.sky.colour.setCurrentIndex(3),
        "text": lambda: table.search.setText("0012"),
    }
    longest = {name: longest_event_s(application, action) for name, action in actions.items()}
    dialog.reject()
    return longest


def write_large(path: Path, width: int, height: int) -> None:
    """Write a made-up mosaic of three planes by rows: noise and some stars."""
    rng = np.random.default_rng(5)
    cards = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": width / 2, "CRPIX2": height / 2}
    cards |= {"CRVAL1": 10.68, "CRVAL2": 41.27, "CDELT1": -2.4 / 3600, "CDELT2": 2.4 / 3600}
    noise = rng.normal(1200.0, 22.0, (3, 512, width)).astype(np.float32)
    for y, x in zip(rng.integers(4, 508, width // 10), rng.integers(4, width - 4, width // 10), strict=True):
        noise[:, y - 1 : y + 2, x - 1 : x + 2] += 400.0 * rng.pareto(1.5)
    with StreamingFits(path, (3, height, width), cards) as out:
        for y in range(0, height, 512):
            out.write_rows(y, np.roll(noise, 7 * y, axis=2)[:, : min(512, height - y)])
        out.commit()


def measure_viewer(application: QApplication, path: Path, folder: Path) -> dict[str, tuple[float, str]]:
    """Return how long a mosaic takes to open, and the longest event of each action."""
    session = open_session(ThemeSwitch(application, "dark"), folder / "zemosaic_config.json")
    page = ViewerPage(session)
    page.resize(1096, 650)
    page.show()
    found: dict[str, tuple[float, str]] = {}

    def until(name: str, is_there: Callable[[], bool]) -> None:
        while not is_there():
            application.processEvents()
            time.sleep(0.02)
        found[name] = (time.process_time() - begin, "CPU s")
        found[f"{name}, clock"] = (time.perf_counter() - clock, "s")

    begin, clock = time.process_time(), time.perf_counter()
    page.open_file(str(path))
    canvas = page.canvas
    until("first picture", lambda: canvas.has_overview)
    until(
        "sharp picture",
        lambda: canvas.image is not None and canvas.image.ready_level > 0 and canvas.n_parts > 0,
    )
    until("finished picture", lambda: canvas.n_finished > 0)
    found["event: single pixels"] = (longest_event_s(application, lambda: canvas.zoom_to(1.0)), "s")

    def pan() -> None:
        for _ in range(20):
            QTest.keyClick(canvas, Qt.Key.Key_Right)

    begin, clock = time.process_time(), time.perf_counter()
    found["event: panning"] = (longest_event_s(application, pan), "s")
    until("parts after panning", lambda: not canvas.missing_parts())
    page.close_file()
    return found


def main() -> None:
    """Measure and print a line for each action."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--mosaic", default="12000x9000", help="width x height, or 'none'")
    options = parser.parse_args()
    application = QApplication([])
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ZEMOSAIC_CONFIG_DIR"] = folder
        for name, seconds in measure_filter(application, Path(folder), options.frames).items():
            print(f"{name:10s} {1000 * seconds:7.1f} ms")
        if options.mosaic != "none":
            path = Path(folder) / "large.fits"
            write_large(path, *map(int, options.mosaic.split("x")))
            for name, (value, unit) in measure_viewer(application, path, Path(folder)).items():
                print(f"{name:28s} {value:7.3f} {unit}")


if __name__ == "__main__":
    main()
