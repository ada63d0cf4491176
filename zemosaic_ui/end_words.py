"""How a run ended, in words, for every window."""

from __future__ import annotations

from zemosaic_ui.run_controller import RunController
from zemosaic_ui.run_state import RunStatus
from zemosaic_ui.texts import Texts

__all__ = ["end_words"]


def end_words(controller: RunController, text: Texts) -> str:
    """Return how the run ended, and what is left of one that did not finish; empty while it is at work."""
    state, report = controller.state, controller.stop_report
    if state.status is RunStatus.SUCCESS:
        return text("ui_end_success", time=text.clock(controller.elapsed()), tiles=len(state.tiles))
    if state.status is RunStatus.FAILED:
        words = text("ui_end_failed", reason=text.message(state.end_key, state.end_values))
    elif state.status is RunStatus.CANCELLED:
        words = text("ui_end_stopped_forced" if report and report.forced else "run_cancelled")
    else:
        return ""
    # Reasons end as the system or another program ends them.
    words += "" if words.endswith((".", "!", "?", "…")) else "."
    if report is not None and (report.tiles_kept or report.partial_removed):
        words += " " + text("ui_end_kept", tiles=report.tiles_kept, removed=report.partial_removed)
    return words
