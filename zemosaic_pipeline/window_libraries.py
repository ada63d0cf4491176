"""Libraries that a window needs: system libraries no Python package brings, and what does not go together."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable

__all__ = ["is_unfit", "missing_packages"]

# What Qt's plugin for X11 loads, and the Debian package each library comes in.
_X11 = {
    "libEGL.so.1": "libegl1",
    "libGL.so.1": "libgl1",
    "libX11-xcb.so.1": "libx11-xcb1",
    "libdbus-1.so.3": "libdbus-1-3",
    "libfontconfig.so.1": "libfontconfig1",
    "libxcb-cursor.so.0": "libxcb-cursor0",
    "libxcb-icccm.so.4": "libxcb-icccm4",
    "libxcb-image.so.0": "libxcb-image0",
    "libxcb-keysyms.so.1": "libxcb-keysyms1",
    "libxcb-randr.so.0": "libxcb-randr0",
    "libxcb-render-util.so.0": "libxcb-render-util0",
    "libxcb-shape.so.0": "libxcb-shape0",
    "libxcb-sync.so.1": "libxcb-sync1",
    "libxcb-xfixes.so.0": "libxcb-xfixes0",
    "libxcb-xkb.so.1": "libxcb-xkb1",
    "libxkbcommon-x11.so.0": "libxkbcommon-x11-0",
    "libxkbcommon.so.0": "libxkbcommon0",
}


def missing_packages(load: Callable[[str], object] = ctypes.CDLL) -> list[str]:
    """Return the Debian packages without which Qt cannot open a window on X11; empty elsewhere than on Linux.

    Parameters
    ----------
    load : callable
        Loads a library by name and raises OSError when it is not there.
    """
    if not sys.platform.startswith("linux"):
        return []
    missing = []
    for library, package in _X11.items():
        try:
            load(library)
        except OSError:
            missing.append(package)
    return missing


def is_unfit(qt: str, python: str) -> bool:
    """Return whether a version of PySide6 and one of Python do not go together.

    From 6.12 on PySide6 gives back a reference of None at each call that returns nothing. Until Python 3.11 None
    is counted like any other object, and the interpreter ends when the count has run out, some minutes into a run.

    Parameters
    ----------
    qt, python : str
        Versions as their packages write them, e.g. ``6.12.0``.
    """
    return _release(qt) >= (6, 12) and _release(python) < (3, 12)


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
