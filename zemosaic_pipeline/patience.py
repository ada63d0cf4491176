"""Decide how long an item may keep a process: by what the process did for it, not by the clock on the wall.

A slow network folder, a laptop that slept or a machine that others keep busy make an item take long without being
at fault. A process that is stuck either computes far longer than anything did before, or neither computes nor reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from zemosaic_core.errors import RunFailed, SkipItem

__all__ = [
    "HOPELESS",
    "SILENT",
    "TOLD_AFTER_S",
    "Overdue",
    "Pace",
    "Work",
    "given_up",
    "nothing_answers",
    "nothing_answers_for",
    "overdue",
    "paced",
]

# Computing that is always allowed: a frame of 60 megapixels takes seconds, and on the slowest machines a minute.
LEAST_CPU_S = 300.0
# Before anything has answered nobody knows the machine, and the program may be compiling.
FIRST_CPU_S = 1800.0
TIMES_THE_SLOWEST = 20.0
# A server that starts anew takes minutes; nothing that comes at all comes more slowly than this.
LEAST_STILL_S = 1800.0
SLOWEST_BYTES_PER_S = 10_000.0
# When the user is told that an item neither computes nor reads.
TOLD_AFTER_S = 60.0
# So many items in a row that were waited for in vain mean that the folder does not answer.
HOPELESS = 4
# Why a frame is left out of which nothing came.
SILENT = "frame_silent"


@dataclass(frozen=True)
class Work:
    """What a process did for its item until now.

    Attributes
    ----------
    size_bytes : int
        Of the item's file; 0 when it has none.
    cpu_s : float
        Seconds of the processor.
    still_s : float
        Seconds since it last computed or read anything, those not counted in which the run itself was halted.
    """

    size_bytes: int
    cpu_s: float
    still_s: float


@dataclass(frozen=True)
class Pace:
    """The slowest item of the same kind that has answered in this run; ``answered`` is how many have."""

    answered: int = 0
    cpu_s: float = 0.0
    size_bytes: int = 0


@dataclass(frozen=True)
class Overdue:
    """An item is not waited for any longer.

    Attributes
    ----------
    kind : {"busy", "still"}
        It computes without an end, or does nothing at all.
    seconds : float
        How long: of the processor, or of waiting.
    slowest_s : float
        Seconds of the processor of the slowest item that answered; 0 when none has.
    """

    kind: Literal["busy", "still"]
    seconds: float
    slowest_s: float = 0.0

    def __str__(self) -> str:
        what = "computed" if self.kind == "busy" else "neither computed nor read anything"
        return f"{what} for {self.seconds:.0f} s"


def paced(pace: Pace, work: Work) -> Pace:
    """Return the pace with one more item that has answered."""
    if work.cpu_s <= pace.cpu_s:
        return Pace(pace.answered + 1, pace.cpu_s, pace.size_bytes)
    return Pace(pace.answered + 1, work.cpu_s, work.size_bytes)


def overdue(work: Work, pace: Pace) -> Overdue | None:
    """Decide whether an item has had its time; None while it has not.

    Parameters
    ----------
    work : Work
        Of the item.
    pace : Pace
        Of the others; a larger file may take as much longer as it is larger.
    """
    if work.cpu_s > _allowed_cpu_s(work.size_bytes, pace):
        return Overdue("busy", work.cpu_s, pace.cpu_s)
    if work.still_s > max(LEAST_STILL_S, work.size_bytes / SLOWEST_BYTES_PER_S):
        return Overdue("still", work.still_s, pace.cpu_s)
    return None


def given_up(found: Overdue, name: str) -> SkipItem:
    """Return why an item, named by its path, is left out that has had its time."""
    minutes = round(found.seconds / 60)
    if found.kind == "still":
        return SkipItem(SILENT, f"{name}: {found}", path=name, minutes=minutes)
    return SkipItem(
        "frame_endless",
        f"{name}: {found}, others {found.slowest_s:.1f} s at most",
        path=name,
        minutes=minutes,
        slowest_s=round(found.slowest_s, 1),
    )


def nothing_answers(found: Overdue, name: str) -> RunFailed:
    """Return why a run ends when the last of `HOPELESS` items in a row was waited for in vain."""
    return RunFailed(
        "run_error_nothing_answers",
        f"{name}: {found}, as did {HOPELESS - 1} before it; is the disk or the network folder there?",
        path=name,
        minutes=round(found.seconds / 60),
    )


def nothing_answers_for(skip: SkipItem) -> RunFailed:
    """Return the same from the reason of the last of these items, ``frame_silent``."""
    minutes = int(skip.values.get("minutes", 0))
    return nothing_answers(Overdue("still", 60.0 * minutes), str(skip.values.get("path", "")))


def _allowed_cpu_s(size_bytes: int, pace: Pace) -> float:
    if not pace.answered:
        return FIRST_CPU_S
    larger = max(1.0, size_bytes / pace.size_bytes) if pace.size_bytes else 1.0
    return max(LEAST_CPU_S, TIMES_THE_SLOWEST * pace.cpu_s * larger)
