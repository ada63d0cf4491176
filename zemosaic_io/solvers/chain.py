"""Which solvers are tried for a frame, in which order, and when an attempt is worth repeating."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from zemosaic_core.errors import SettingsError
from zemosaic_io.solvers.astap import AstapSolver
from zemosaic_io.solvers.astrometry_net import SolveFieldSolver
from zemosaic_io.solvers.base import Cancel, SolveOutcome, Solver, SolveRequest, check_cancel
from zemosaic_io.solvers.locks import slots_from_environment
from zemosaic_io.solvers.nova import NovaSolver

__all__ = ["METHODS", "SolverOptions", "make_solvers", "solve_with_chain"]

METHODS = ("AUTO", "EMBEDDED", "ASTAP", "ASTROMETRY", "ANSVR", "NONE")
_REPEATABLE = ("timeout", "crash")
_DEFAULT_RETRIES = 1
_DEFAULT_BACKOFF_S = 0.8
# ansvr serves its copy of the web API here and takes any key.
_ANSVR_URL_KEY = "ansvr"


@dataclass(frozen=True)
class SolverOptions:
    """What the user chose about plate solving.

    Attributes
    ----------
    method : str
        One of `METHODS`.
    astap_path, astap_data : str
        ASTAP program and star database; '' looks in the usual places.
    search_radius_deg : float
        Radius around the expected position.
    downsample : int
        Pixels averaged before ASTAP sees the picture; 0: automatic.
    max_instances : int
        ASTAP programs at once on this machine.
    local_path : str
        ``solve-field``, its configuration, its index folder, or the address of an ANSVR server.
    api_key : str
        Key for nova.astrometry.net; '' reads the variable ASTROMETRY_API_KEY.
    timeout_s : float
        Limit for one attempt.
    """

    method: str = "AUTO"
    astap_path: str = ""
    astap_data: str = ""
    search_radius_deg: float = 3.0
    downsample: int = 0
    max_instances: int = 1
    local_path: str = ""
    api_key: str = ""
    timeout_s: float = 60.0


def make_solvers(options: SolverOptions, environment: Mapping[str, str] | None = None) -> list[Solver]:
    """Return the solvers to try, in order; whether each can be used here is told by its ``find``.

    AUTO takes everything that needs no network first, and the web service only with a key. A chosen outside
    solver is followed by ASTAP, as users of the existing program know it; EMBEDDED and ASTAP stand alone.

    Raises
    ------
    SettingsError
        ``settings_not_a_choice``: the method is unknown.
    """
    environment = os.environ if environment is None else environment
    method = options.method.strip().upper()
    if method not in METHODS:
        raise SettingsError(
            "settings_not_a_choice",
            f"solver_method = {options.method!r}; choose one of {', '.join(METHODS)}",
            option="solver_method",
            value=options.method,
            allowed=", ".join(METHODS),
        )
    if method == "NONE":
        return []
    if method == "EMBEDDED":
        return [_embedded()]
    if method == "ASTAP":
        return [_astap(options, environment)]
    if method == "ANSVR":
        return [_ansvr(options), _astap(options, environment)]
    online = _online(options, environment)
    if method == "ASTROMETRY":
        return [SolveFieldSolver(options.local_path), *online, _astap(options, environment)]
    return [_embedded(), _astap(options, environment), SolveFieldSolver(options.local_path), *online]


def solve_with_chain(
    request: SolveRequest,
    solvers: Sequence[Solver],
    cancel: Cancel | None = None,
    environment: Mapping[str, str] | None = None,
    *,
    believe: Callable[[SolveOutcome], SolveOutcome] | None = None,
) -> list[SolveOutcome]:
    """Try solvers until one succeeds; return every attempt in order, so the last one tells the result.

    ``believe`` gets every solution and returns it, or what it is instead when it cannot be right; then the next
    solver is asked.

    An attempt is repeated only after a crash or a timeout, never after "no solution": the same stars give the
    same answer. ``ZEMOSAIC_ASTAP_RETRIES`` and ``ZEMOSAIC_ASTAP_BACKOFF_SEC`` set how often and after what
    pause (default once, 0.8 s times the attempt).

    Raises
    ------
    Cancelled
        ``cancel`` was set.
    """
    environment = os.environ if environment is None else environment
    retries = int(_number(environment.get("ZEMOSAIC_ASTAP_RETRIES"), _DEFAULT_RETRIES))
    backoff_s = _number(environment.get("ZEMOSAIC_ASTAP_BACKOFF_SEC"), _DEFAULT_BACKOFF_S)
    outcomes: list[SolveOutcome] = []
    for solver in solvers:
        for attempt in range(1 + max(0, retries)):
            check_cancel(cancel)
            if attempt:
                _pause(backoff_s * attempt, cancel)
            outcome = solver.solve(request, cancel)
            outcomes.append(believe(outcome) if believe is not None and outcome.ok else outcome)
            if outcomes[-1].ok:
                return outcomes
            if outcomes[-1].kind not in _REPEATABLE:
                break
    return outcomes


def _embedded() -> Solver:
    # Its star catalogue is read on import of the solver's room; runs that never solve do not pay for it.
    from zemosaic_io.solvers.embedded import EmbeddedSolver

    return EmbeddedSolver()


def _astap(options: SolverOptions, environment: Mapping[str, str]) -> AstapSolver:
    slots, rate = slots_from_environment(options.max_instances, environment)
    return AstapSolver(options.astap_path, options.astap_data, options.downsample, slots=slots, rate=rate)


def _ansvr(options: SolverOptions) -> Solver:
    if "://" in options.local_path:
        key = options.api_key or _ANSVR_URL_KEY
        return NovaSolver(key, options.local_path, name="ANSVR", send_stars=False, poll_s=0.5)
    return SolveFieldSolver(options.local_path, name="ANSVR")


def _online(options: SolverOptions, environment: Mapping[str, str]) -> list[Solver]:
    key = options.api_key.strip() or environment.get("ASTROMETRY_API_KEY", "").strip()
    return [NovaSolver(key)] if key else []


def _pause(seconds: float, cancel: Cancel | None) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        check_cancel(cancel)
        time.sleep(0.02)


def _number(text: str | None, default: float) -> float:
    try:
        return float(text) if text else float(default)
    except ValueError:
        return float(default)
