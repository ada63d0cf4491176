"""How long the window is away in one go with a night of 10,000 frames: the longest event of each action.

Run with ``python -m benchmarks.windows [--frames 10000]``. Times are of the window's own thread; what takes
longer than 100 ms is felt.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from PySide6.QtWidgets import QApplication

from tools.screenshots import fill_filter
from zemosaic_filter_gui_qt import FilterQtDialog
from zemosaic_ui.qt.session import open_session
from zemosaic_ui.qt.theme import ThemeSwitch

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


def main() -> None:
    """Measure and print a line for each action."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=10_000)
    options = parser.parse_args()
    application = QApplication([])
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ZEMOSAIC_CONFIG_DIR"] = folder
        for name, seconds in measure_filter(application, Path(folder), options.frames).items():
            print(f"{name:10s} {1000 * seconds:7.1f} ms")


if __name__ == "__main__":
    main()
