"""The boundary of one frame: whatever goes wrong with a file costs that file and nothing else.

It lies in the process that works on the frame, before anything is sent back: an exception of a library may not
survive the way between processes. Imports nothing heavy: every worker process needs it.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from zemosaic_core.errors import SkipItem, ZeMosaicError

__all__ = ["NO_MEMORY", "TRACEBACK", "portable_error", "result_or_skip"]

# Name of the value that carries the traceback home; it belongs in the log and not in a report.
TRACEBACK = "traceback"
# Key of the reason that says nothing of the file: with more room it may be used.
NO_MEMORY = "frame_no_memory"

P = ParamSpec("P")
R = TypeVar("R")


def result_or_skip(
    path: Path | str, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs
) -> R | SkipItem:
    """Call ``function``; when it fails because of the frame at ``path``, return why.

    Errors that end a run (`RunFailed`, `SaveFailed`, `Cancelled`) pass.

    Returns
    -------
    object or SkipItem
        What ``function`` returned; or ``frame_unexpected`` with ``path``, ``reason`` and the traceback, all as
        text; or ``frame_no_memory``; or the `SkipItem` that it raised.
    """
    try:
        return function(*args, **kwargs)
    except SkipItem as skip:
        return skip
    except ZeMosaicError:
        raise
    except MemoryError as error:
        return SkipItem(
            NO_MEMORY,
            f"{path}: {error or 'out of memory'}",
            path=str(path),
            free_mb=_free_mb(),
            **{TRACEBACK: traceback.format_exc()},
        )
    except Exception as error:  # noqa: BLE001 - this is the boundary
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return SkipItem(
            "frame_unexpected",
            f"{path}: {reason}",
            path=str(path),
            reason=reason[:300],
            **{TRACEBACK: traceback.format_exc()},
        )


def portable_error(error: BaseException, trace: str) -> BaseException:
    """Return an exception, or what stands for it, that survives the way to another process, with its traceback."""
    try:
        # Where it happened is known here only.
        error.add_note(trace)
        pickle.loads(pickle.dumps(error, pickle.HIGHEST_PROTOCOL))
    except Exception:  # noqa: BLE001 - whatever an exception of a library does when it is copied
        return RuntimeError(trace)
    return error


def _free_mb() -> int:
    from zemosaic_pipeline.machine import available_memory

    return available_memory() // 1_000_000
