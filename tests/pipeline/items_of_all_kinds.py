"""Items of which some keep their process; a module of its own, so that a process that does one starts soon."""

from __future__ import annotations

import os
import time
from pathlib import Path


def do(item: tuple[str, str]) -> str:
    """Do what an item says."""
    name, what = item
    mark = Path(name)
    if what == "slow once" and not mark.exists():
        mark.touch()
        time.sleep(600)
    if what == "wait":
        time.sleep(600)
    if what == "compute":
        while True:
            pass
    if what == "read":
        # What a hang in a read looks like: a pipe that nobody writes to.
        os.read(os.pipe()[0], 1)
    return mark.name


def tasks(folder: Path, **special: str) -> list[tuple[str, str]]:
    """Return eight items; ``item3="wait"`` says what the fourth does."""
    return [(str(folder / f"item{i}"), special.get(f"item{i}", "")) for i in range(8)]
