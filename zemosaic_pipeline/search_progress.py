"""How far the search for places is, told while a solver is at work: which frame is looked for, and with what."""

from __future__ import annotations

import time

from zemosaic_pipeline.context import RunContext

__all__ = ["TellingCancel"]

# A solver asks a thousand times a second whether to stop.
_EVERY_S = 1.0
# What a search will take is not known, only what it may take at most; it never seems to be over before it is.
_MOST_WITHIN = 0.95


class TellingCancel:
    """The request to stop as a solver asks for it; being asked, it tells that the search goes on.

    Parameters
    ----------
    context : RunContext
    done, total : int
        Frames that have a place or were looked for, and all of them.
    item : str
        The frame, and the solver that looks for it.
    timeout_s : float
        Longest time for this search.
    """

    def __init__(self, context: RunContext, done: int, total: int, item: str, timeout_s: float) -> None:
        self._context = context
        self._told = done, total, item
        self._timeout_s = max(timeout_s, _EVERY_S)
        self._start = self._last = time.monotonic()
        self._tell(0.0)

    def is_set(self) -> bool:
        """Return True when the user asked to stop."""
        now = time.monotonic()
        if now - self._last >= _EVERY_S:
            self._last = now
            self._tell(min((now - self._start) / self._timeout_s, _MOST_WITHIN))
        return self._context.cancel.is_set()

    def _tell(self, within: float) -> None:
        done, total, item = self._told
        self._context.progress(done, total, item, within)
