"""When will it be done: an estimate that says how sure it is, from the run's own pace and from past runs.

The phase in progress is extrapolated from its own recent pace; the phases to come from past runs on this
machine or, without any, from the pace of this run. Where that says nothing, the worker's own estimate counts
while it is fresh. Nothing is claimed before there is something to measure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from zemosaic_ui.run_state import PhaseState, RunState

__all__ = ["Eta", "EtaEstimator"]

WINDOW_S = 45.0  # pace is measured over this span, so that one slow frame does not move the estimate
MIN_OBSERVED_S = 4.0
MIN_ITEMS = 4
WORKER_ETA_FRESH_S = 90.0


@dataclass(frozen=True)
class Eta:
    """Expected rest of a run.

    Attributes
    ----------
    seconds : float
        Best estimate, s.
    spread : float
        Relative uncertainty, 0..1: 0.1 means about 10 % either way.
    """

    seconds: float
    spread: float


class EtaEstimator:
    """Follow a run and estimate its end.

    Parameters
    ----------
    history : mapping of str to float
        Seconds per frame of each phase in past runs on this machine; may be empty.
    """

    def __init__(self, history: Mapping[str, float] | None = None) -> None:
        self.history = dict(history or {})
        self._marks: deque[tuple[float, float]] = deque()
        self._phase = ""
        self._shown: float | None = None
        self._shown_at = 0.0

    def estimate(self, state: RunState, now: float) -> Eta | None:
        """Return the expected rest of the run, or None while nothing honest can be said."""
        if not state.status.is_active or not state.started_at:
            return None
        phase = state.current
        rest_here = self._rest_of_phase(phase, now) if phase is not None else None
        if phase is None or rest_here is None:
            return self._from_worker(state, now)
        rest_later, sure = self._rest_of_run(state, phase, rest_here, now)
        return self._smooth(Eta(rest_here + rest_later, 0.15 if sure else 0.4), now)

    def learned(self, state: RunState) -> dict[str, float]:
        """Return the history mixed with the seconds per frame of a finished run, for the next one."""
        frames = state.frames_total
        if frames < MIN_ITEMS:
            return dict(self.history)
        rates = dict(self.history)
        for phase in state.phases:
            if phase.status == "done" and phase.seconds > 0:
                rate = phase.seconds / frames
                rates[phase.name] = 0.6 * rate + 0.4 * rates.get(phase.name, rate)
        return rates

    def _from_worker(self, state: RunState, now: float) -> Eta | None:
        if state.worker_eta_s is None or now - state.worker_eta_at > WORKER_ETA_FRESH_S:
            return None
        return self._smooth(Eta(max(0.0, state.worker_eta_s - (now - state.worker_eta_at)), 0.4), now)

    def _rest_of_phase(self, phase: PhaseState, now: float) -> float | None:
        if phase.name != self._phase:
            self._phase = phase.name
            self._marks.clear()
        if not self._marks:
            self._marks.append((phase.started_at, 0.0))
        if phase.finished != self._marks[-1][1]:
            self._marks.append((now, phase.finished))
        while len(self._marks) > 2 and now - self._marks[0][0] > WINDOW_S:
            self._marks.popleft()
        if phase.total <= 0:
            return None
        observed, items = now - self._marks[0][0], phase.finished - self._marks[0][1]
        if observed < MIN_OBSERVED_S or items < min(MIN_ITEMS, phase.total):
            return None
        return (phase.total - phase.finished) * observed / max(items, 1e-9)

    def _rest_of_run(self, state: RunState, phase: PhaseState, rest: float, now: float) -> tuple[float, bool]:
        later = state.phases[state.phases.index(phase) + 1 :]
        frames = state.frames_total
        if frames and all(item.name in self.history for item in later):
            return sum(self.history[item.name] for item in later) * frames, True
        measured = [item for item in state.phases if item.status == "done" and item.seconds > 0]
        seconds = sum(item.seconds for item in measured) + (now - phase.started_at) + rest
        share = sum(item.share for item in measured) + phase.share
        return seconds * sum(item.share for item in later) / max(share, 1e-6), share >= 60.0

    def _smooth(self, eta: Eta, now: float) -> Eta:
        if self._shown is not None:
            expected = max(0.0, self._shown - (now - self._shown_at))
            # A clock that jumps is not believed: follow a new estimate within about ten seconds.
            follow = min(1.0, (now - self._shown_at) / 10.0)
            eta = Eta(expected + (eta.seconds - expected) * follow, eta.spread)
        self._shown, self._shown_at = eta.seconds, now
        return eta
