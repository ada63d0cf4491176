"""When a slow solver that finds nothing is not asked again in a run."""

from __future__ import annotations

from collections.abc import Sequence

from zemosaic_io.solvers.base import SolveOutcome, Solver
from zemosaic_pipeline.context import RunContext
from zemosaic_pipeline.solver_answers import BUILT_IN

__all__ = ["PATIENCE", "SolverPatience"]

# After so many attempts in a row that cost all the time there is.
PATIENCE = 3


class SolverPatience:
    """Counts how often a slow solver took all its time in vain, and says so when it is given up.

    Attributes
    ----------
    is_out : bool
        It did so too often in a row.
    """

    def __init__(self, solver: Solver, context: RunContext) -> None:
        self._solver = solver
        self._context = context
        self._in_vain = 0
        self.is_out = False

    def failed(self, attempts: Sequence[SolveOutcome]) -> None:
        """Note that nothing was found; ``attempts`` end with the last one."""
        is_slow = self._solver.name != BUILT_IN
        self._in_vain = self._in_vain + 1 if is_slow and _took_its_time(attempts) else 0
        if self._in_vain >= PATIENCE and not self.is_out:
            self.is_out = True
            self._context.say("solver_given_up", "WARN", solver=self._solver.name, searches=self._in_vain)

    def solved(self) -> None:
        """Note that something was found."""
        self._in_vain = 0


def _took_its_time(attempts: Sequence[SolveOutcome]) -> bool:
    """Tell whether the last attempt ended because its time was up, or by an accident."""
    return bool(attempts) and (
        attempts[-1].kind in ("timeout", "crash") or attempts[-1].key == "solver_timeout"
    )
