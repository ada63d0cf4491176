"""A background job of a page: a child process whose messages arrive as signals."""

from __future__ import annotations

from typing import Any

from PySide6.QtCore import QObject, QTimer, Signal

from zemosaic_ui.child_process import ChildProcess

__all__ = ["Job"]

TICK_MS = 40


class Job(QObject):
    """Runs one job at a time; starting another one cancels the first.

    Signals
    -------
    said : (kind, payload)
        A message of the job.
    ended : (error text)
        The job is over; the text is empty when it ended well.
    """

    said = Signal(str, object)
    ended = Signal(str)

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self._child: ChildProcess | None = None
        self._cancelled = False
        self._timer = QTimer(self)
        self._timer.setInterval(TICK_MS)
        self._timer.timeout.connect(self._on_tick)

    @property
    def is_running(self) -> bool:
        """Whether a job is at work."""
        return self._child is not None

    def start(self, function: str, *args: Any, **kwargs: Any) -> None:
        """Start ``function`` of `zemosaic_ui.jobs`, or of another module when written ``module:function``."""
        self.cancel()
        target = function if ":" in function else f"zemosaic_ui.jobs:{function}"
        self._cancelled = False
        self._child = ChildProcess(target, *args, **kwargs)
        self._timer.start()

    def cancel(self) -> None:
        """End the job; nothing more is heard of it."""
        if self._child is not None:
            self._child.request_cancel()
            self._child.end_after(1.5)
            self._child = None
            self._timer.stop()

    def _on_tick(self) -> None:
        child = self._child
        if child is None:
            return
        for kind, payload in child.poll(budget_s=0.006, limit=200):
            self.said.emit(kind, payload)
            if self._child is not child:
                return
        if child.is_finished and not child.has_messages:
            self._timer.stop()
            self._child = None
            error = ""
            if child.start_error or child.exit_code != 0:
                error = child.start_error or child.error_text() or f"exit code {child.exit_code}"
            child.close()
            self.ended.emit(error)
