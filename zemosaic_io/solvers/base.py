"""What a plate solver is asked and what it answers; the same for the built-in one, programs and services.

Positions are those of the full frame everywhere: pixel (0, 0) has its centre at (0, 0), which FITS calls
(1, 1). A solver may look at a smaller or shifted picture; it has to answer for the full frame.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from zemosaic_core.errors import Cancelled
from zemosaic_core.frame_wcs import UnusableWcs, build_frame_wcs
from zemosaic_core.night_sky import CATALOGUE_EPOCH
from zemosaic_core.sphere import separation_deg
from zemosaic_core.stars import StarList
from zemosaic_io.wcs_read import linear_scale_arcsec

__all__ = [
    "Availability",
    "Cancel",
    "ImageProvider",
    "SolveKind",
    "SolveOutcome",
    "SolveRequest",
    "Solver",
    "check_cancel",
    "failed",
    "is_plausible",
]

ImageProvider = Callable[[], tuple[np.ndarray, tuple[float, float]]]
# Why an attempt ended: only 'timeout' and 'crash' may go better the second time.
SolveKind = Literal["solved", "no_solution", "too_few_stars", "timeout", "crash", "unavailable"]

# Focal length and pixel size in headers are nominal; more than this is another instrument.
_SCALE_TOLERANCE = 0.3
# Some programs put the reference pixel into a corner, or beside a picture that was cut out; none farther away.
_CRPIX_REACH = 2.0
# A mount's hint may be off by its pointing error even when the user asks for a tight search.
_LEAST_RADIUS_DEG = 1.0

log = logging.getLogger(__name__)


class Cancel(Protocol):
    """A request to stop: a threading.Event or anything with ``is_set``."""

    def is_set(self) -> bool:
        """Return True when the user asked to stop."""


@dataclass(frozen=True)
class SolveRequest:
    """One frame to be placed in the sky.

    Attributes
    ----------
    path : Path
        The frame, for messages; solvers never write to it or beside it.
    shape_hw : tuple of int
        Size of the full frame, px.
    ra_deg, dec_deg : float or None
        Where the centre is expected; None: no idea.
    scale_arcsec : float or None
        Expected pixel scale.
    radius_deg : float
        How far from the expected centre to search.
    stars : StarList or None
        Stars in full-frame positions, brightest first.
    image_provider : callable or None
        Returns the luminance (h, w) float32 and the full-frame position (x, y) of its pixel (0, 0). Called
        only by solvers that need a picture.
    work_dir : Path
        Folder for temporary files.
    timeout_s : float
        Longest time for one attempt.
    epoch : float
        Julian year at which the frame was taken; stars are looked for where they were then.
    radius_is_limit : bool
        A solver to which a wide search costs little does not look farther than ``radius_deg`` either.
    """

    path: Path
    shape_hw: tuple[int, int]
    ra_deg: float | None
    dec_deg: float | None
    scale_arcsec: float | None
    radius_deg: float
    stars: StarList | None
    image_provider: ImageProvider | None
    work_dir: Path
    timeout_s: float = 60.0
    epoch: float = CATALOGUE_EPOCH
    radius_is_limit: bool = False

    @property
    def has_hint(self) -> bool:
        """True when an expected centre is known."""
        return self.ra_deg is not None and self.dec_deg is not None


@dataclass(frozen=True)
class SolveOutcome:
    """What one attempt of one solver gave.

    Attributes
    ----------
    ok : bool
        A WCS was found.
    solver : str
        `Solver.name`.
    wcs_cards : dict or None
        Celestial WCS of the full frame when ``ok``, possibly with SIP terms.
    seconds : float
        Wall time.
    n_matched : int or None
        Stars the solution rests on; None when the solver does not tell.
    rms_px : float or None
        Their residual, full-frame px; None when the solver does not tell.
    key : str
        Text key of the result.
    values : dict
        Values for the text.
    kind : str
        See `SolveKind`.
    """

    ok: bool
    solver: str
    wcs_cards: dict[str, Any] | None
    seconds: float
    n_matched: int | None = None
    rms_px: float | None = None
    key: str = "solver_solved"
    values: dict[str, Any] = field(default_factory=dict)
    kind: SolveKind = "solved"


@dataclass(frozen=True)
class Availability:
    """Whether a solver can be used here.

    Attributes
    ----------
    ok : bool
        It can.
    detail : str
        English line for logs and the doctor: what was found or what is missing.
    path : str
        Program or address; '' when none.
    version : str
        Version when known.
    key : str
        Text key.
    values : dict
        Values for the text.
    """

    ok: bool
    detail: str
    path: str = ""
    version: str = ""
    key: str = "solver_available"
    values: dict[str, Any] = field(default_factory=dict)


class Solver(Protocol):
    """One way to solve. Calls may come from several threads."""

    name: str

    def find(self) -> Availability:
        """Tell whether the solver can be used; costs nothing the second time."""

    def identity(self) -> str:
        """Return what its answers follow from, in short: program and star data, whatever folders they lie in.

        '' when it cannot be used, or is not on this machine.
        """

    def solve(self, request: SolveRequest, cancel: Cancel | None = None) -> SolveOutcome:
        """Try once.

        Raises
        ------
        Cancelled
            The user asked to stop; children of the solver are gone.
        SkipItem
            The frame itself cannot be read.
        SaveFailed
            The work folder cannot be written.
        """


def failed(solver: str, kind: SolveKind, key: str, seconds: float = 0.0, **values: Any) -> SolveOutcome:
    """Return the outcome of an attempt without a solution."""
    return SolveOutcome(False, solver, None, seconds, key=key, values={"solver": solver, **values}, kind=kind)


def check_cancel(cancel: Cancel | None) -> None:
    """Raise `Cancelled` when a stop was asked for."""
    if cancel is not None and cancel.is_set():
        raise Cancelled()


def is_plausible(cards: Mapping[str, Any], request: SolveRequest) -> bool:
    """Tell whether another program's answer can be right at all; what the stars say comes afterwards.

    The cards have to be a WCS that leads from the frame to the sky and back, at the known pixel scale within 30
    percent, with its reference pixel near the frame and the centre of the frame where it was looked for.
    """
    height, width = request.shape_hw
    try:
        wcs = build_frame_wcs(cards, request.shape_hw)
        scale = linear_scale_arcsec(cards)
    except (UnusableWcs, TypeError, ValueError, OverflowError) as error:
        log.info("an answer for %s is no WCS: %s", request.path, error)
        return False
    if scale is None or not math.isfinite(scale):
        return False
    if request.scale_arcsec is not None and abs(scale / request.scale_arcsec - 1.0) > _SCALE_TOLERANCE:
        return False
    from_centre_px = np.abs(wcs.wcs.crpix - 1.0 - np.array([width - 1, height - 1]) / 2.0)
    if not (from_centre_px <= _CRPIX_REACH * np.array([width, height])).all():
        return False
    if request.ra_deg is None or request.dec_deg is None:
        return True
    ra, dec = wcs.all_pix2world((width - 1) / 2.0, (height - 1) / 2.0, 0)
    field_deg = math.hypot(height, width) * scale / 3600.0
    reach_deg = max(_LEAST_RADIUS_DEG, request.radius_deg) + field_deg
    return bool(separation_deg(request.ra_deg, request.dec_deg, float(ra), float(dec)) <= reach_deg)
