"""What happens during a run, as typed messages in the past tense, and their form on the queue.

Exactly two functions cross the process boundary: `to_queue` and `from_queue`. The queue carries the 4-tuples
``(key, progress, level, values)`` that listeners of the existing program know; ``values["event"]`` names the
type, so that the trip back is exact.

An event carries text and plain numbers only, and that is checked where it is made: whoever shows it, in another
process and much later, cannot tell where a wrong value came from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

__all__ = [
    "PHASES",
    "EtaUpdated",
    "Event",
    "FrameLeftOut",
    "GpuRecorded",
    "Message",
    "PhaseFinished",
    "PhaseProgress",
    "PhaseStarted",
    "PreviewGrown",
    "Reporter",
    "RunEnded",
    "RunStarted",
    "TileFinished",
    "from_queue",
    "spoken_values",
    "to_queue",
]

# Phase name -> (number shown to the user, share of the whole run in percent). Order of execution: the output
# grid is known before the tiles are stacked, because tiles are made directly on its pixels.
PHASES: dict[str, tuple[str, float]] = {
    "phase0_survey": ("0", 2.0),
    "phase1_prepare": ("1", 38.0),
    "phase2_group": ("2", 4.0),
    "phase4_grid": ("4", 1.0),
    "phase3_master_tiles": ("3", 38.0),
    "phase5_assemble": ("5", 10.0),
    "phase6_export": ("6", 6.0),
    "phase7_cleanup": ("7", 1.0),
}


def _plain(value: Any, where: str, otherwise: Callable[[Any, str], str]) -> Any:
    """Return a value with the numbers of NumPy as Python's own, and what JSON has no word for as ``otherwise`` says."""
    match value:
        case None | str() | bool() | int() | float():
            return value
        case np.bool_():
            return bool(value)
        case np.integer():
            return int(value)
        case np.floating():
            return float(value)
        case list():
            return [_plain(item, f"{where}[{n}]", otherwise) for n, item in enumerate(value)]
        case tuple():
            return tuple(_plain(item, f"{where}[{n}]", otherwise) for n, item in enumerate(value))
        case dict():
            return {
                key if isinstance(key, str) else otherwise(key, f"a key of {where}"): _plain(
                    item, f"{where}[{key!r}]", otherwise
                )
                for key, item in value.items()
            }
        case _:
            return otherwise(value, where)


def _refuse(value: Any, where: str) -> str:
    raise TypeError(f"{where} is {value!r}; an event carries text and plain numbers: convert it first")


def spoken_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values for an event from those of an error, which may be anything: what is not plain, as its text."""
    return {str(name): _plain(value, str(name), lambda odd, _: str(odd)) for name, value in values.items()}


class _TextOnly:
    """What all events share: their values are checked when one is made.

    Raises
    ------
    TypeError
        A value is no text and no plain number, e.g. a path; the message names the event and the field.
    """

    def __post_init__(self) -> None:
        """Check every field, and keep it as plain values."""
        for declared in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            where, value = f"{type(self).__name__}.{declared.name}", getattr(self, declared.name)
            if declared.type == "str" and not isinstance(value, str):
                _refuse(value, where)
            object.__setattr__(self, declared.name, _plain(value, where, _refuse))


@dataclass(frozen=True)
class RunStarted(_TextOnly):
    """A run began. ``phases`` are the names of `PHASES` it will go through, in order."""

    run_id: str
    input_dir: str
    output_dir: str
    phases: tuple[str, ...]


@dataclass(frozen=True)
class PhaseStarted(_TextOnly):
    """A phase began; ``total`` items are expected (0 = not known yet)."""

    phase: str
    total: int


@dataclass(frozen=True)
class PhaseProgress(_TextOnly):
    """``done`` of ``total`` items of a phase are finished; ``item`` names the latest one.

    ``within`` is the finished share of the item being worked on, for phases of few long items.
    """

    phase: str
    done: int
    total: int
    item: str = ""
    within: float = 0.0


@dataclass(frozen=True)
class PhaseFinished(_TextOnly):
    """A phase ended after ``seconds`` s; ``peak_bytes`` is the peak memory of the run's processes in it."""

    phase: str
    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class FrameLeftOut(_TextOnly):
    """A frame is not used, for the reason ``key`` (text key) with its ``values``."""

    path: str
    key: str
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TileFinished(_TextOnly):
    """A master tile is on disk. ``preview_path`` is a small PNG, or empty."""

    tile_id: int
    path: str
    n_frames: int
    preview_path: str = ""


@dataclass(frozen=True)
class PreviewGrown(_TextOnly):
    """A newer preview of the whole mosaic is at ``path`` (PNG)."""

    path: str


@dataclass(frozen=True)
class GpuRecorded(_TextOnly):
    """One record of the GPU ledger (see `zemosaic_gpu_policy`)."""

    record: dict[str, Any]


@dataclass(frozen=True)
class EtaUpdated(_TextOnly):
    """The run is expected to end in ``seconds`` s."""

    seconds: float


@dataclass(frozen=True)
class Message(_TextOnly):
    """A text for the user: ``key`` with its ``values``; ``level`` is DEBUG, INFO, WARN, ERROR or SUCCESS."""

    key: str
    level: str = "INFO"
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunEnded(_TextOnly):
    """The run ended. ``outcome`` is success, failed or cancelled; ``outputs`` maps a kind to a path.

    ``key`` and ``values`` say why when it is not a success.
    """

    outcome: str
    outputs: dict[str, str] = field(default_factory=dict)
    key: str = ""
    values: dict[str, Any] = field(default_factory=dict)


Event = (
    RunStarted
    | PhaseStarted
    | PhaseProgress
    | PhaseFinished
    | FrameLeftOut
    | TileFinished
    | PreviewGrown
    | GpuRecorded
    | EtaUpdated
    | Message
    | RunEnded
)
Reporter = Callable[[Event], None]
QueueTuple = tuple[str, Any, Any, Any]

_TYPES: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        RunStarted,
        PhaseStarted,
        PhaseProgress,
        PhaseFinished,
        FrameLeftOut,
        TileFinished,
        PreviewGrown,
        GpuRecorded,
        EtaUpdated,
        RunEnded,
    )
}


def _clock(seconds: float) -> str:
    whole = max(0, round(seconds))
    return f"{whole // 3600:02d}:{whole % 3600 // 60:02d}:{whole % 60:02d}"


def to_queue(event: Event) -> QueueTuple:
    """Return the queue form of an event."""
    if isinstance(event, Message):
        return event.key, None, event.level, dict(event.values)
    values = {**asdict(event), "event": type(event).__name__}
    match event:
        case PhaseProgress():
            return "STAGE_PROGRESS", event.phase, event.done, values
        case PhaseStarted():
            return f"PHASE_UPDATE:{PHASES[event.phase][0]}", None, "INFO", values
        case EtaUpdated():
            return f"ETA_UPDATE:{_clock(event.seconds)}", None, "ETA_LEVEL", values
        case RunStarted():
            return "CHRONO_START_REQUEST", None, "CHRONO_LEVEL", values
        case FrameLeftOut():
            return event.key, None, "WARN", values
        case RunEnded(outcome="success"):
            return "PROCESS_DONE", None, "INFO", values
        case RunEnded():
            return "PROCESS_ERROR", None, "ERROR", {**values, "error": event.key}
        case _:
            return type(event).__name__, None, "INFO", values


def from_queue(item: QueueTuple) -> Event:
    """Return the event a queue tuple stands for; a tuple without a type is a `Message`.

    Raises
    ------
    ValueError
        The tuple names an event type that does not exist.
    """
    key, _, level, values = item
    values = dict(values or {})
    name = values.pop("event", None)
    if name is None:
        return Message(key, str(level), values)
    if name not in _TYPES:
        raise ValueError(f"unknown event type {name!r} on the queue")
    if name == "RunEnded":
        values.pop("error", None)
    if name == "RunStarted":
        values["phases"] = tuple(values["phases"])
    return _TYPES[name](**values)
