"""Hands finished pieces on while the next one is made: who keeps them often waits for memory, files or one core."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

__all__ = ["HandingOn"]

P = ParamSpec("P")
T = TypeVar("T")


class HandingOn:
    """Calls a receiver in a thread of its own, piece by piece in their order; at most one piece waits.

    Its errors are raised where the next piece is handed over, or where all are waited for. When the block is left
    because of another error, what was handed over is finished first and that error stays.

    Parameters
    ----------
    receive : callable
        Gets what the instance is called with.
    """

    def __init__(self, receive: Callable[..., object]) -> None:
        self._receive = receive
        self._thread = ThreadPoolExecutor(1)
        self._last: Future[object] | None = None

    def __call__(self, *piece: object) -> None:
        """Hand a piece over as soon as the one before was received."""
        self.wait()
        self._last = self._thread.submit(self._receive, *piece)

    def after(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call something else in the same thread, after what was handed over; errors are those of the future."""
        return self._thread.submit(function, *args, **kwargs)

    def wait(self) -> None:
        """Return when everything was received."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._thread.shutdown()
