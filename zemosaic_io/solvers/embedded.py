"""The built-in solver: our own stars against our own catalogue, no other program, no picture, no network."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from typing import Any

from zemosaic_core.errors import RunFailed, SkipItem
from zemosaic_core.frame_wcs import wcs_of
from zemosaic_core.night_sky import CATALOGUE_EPOCH
from zemosaic_core.plate_solve import (
    DetectedStars,
    PlateSolution,
    SolveHint,
    WcsCheck,
    solve_plate,
    verify_wcs,
)
from zemosaic_core.stars import detect_stars
from zemosaic_io.solvers.base import Availability, Cancel, SolveOutcome, SolveRequest, check_cancel, failed
from zemosaic_io.star_catalogue import StarCatalogue, open_built_in_catalogue

__all__ = ["EmbeddedSolver", "check_wcs"]

# Circles of sky cost milliseconds: the radius set for slower programs is only a lower limit.
_RADIUS_DEG = 10.0


class EmbeddedSolver:
    """Plate solver on the star catalogue that comes with the program.

    Parameters
    ----------
    catalogue : StarCatalogue, optional
        Another catalogue; the built-in one by default.
    least_radius_deg : float
        A request for a smaller circle is searched as far as this, unless its radius is a limit.

    Notes
    -----
    Needs about nine stars of the catalogue (down to VT 12) in the field. With a position to begin with it looks
    up to 10 degrees around; without one over the whole sky until the time is up. Safe in several threads.
    """

    name = "EMBEDDED"

    def __init__(
        self, catalogue: StarCatalogue | None = None, *, least_radius_deg: float = _RADIUS_DEG
    ) -> None:
        self._catalogue = catalogue
        self._least_radius_deg = least_radius_deg

    def find(self) -> Availability:
        """Tell whether the star catalogue is there and whole."""
        try:
            catalogue = self._open()
        except RunFailed as error:
            return Availability(False, str(error), key="solver_no_catalogue", values={"solver": self.name})
        origin = str(catalogue.origin.get("catalogue", ""))
        detail = f"{len(catalogue)} stars of {origin} in {catalogue.path}"
        return Availability(True, detail, str(catalogue.path), origin, values={"solver": self.name})

    def identity(self) -> str:
        """Return a digest of the star catalogue; the program is that of the run. '' without a catalogue."""
        if not self.find().ok:
            return ""
        return hashlib.sha256(self._open().path.read_bytes()).hexdigest()

    def _open(self) -> StarCatalogue:
        return open_built_in_catalogue() if self._catalogue is None else self._catalogue

    def solve(self, request: SolveRequest, cancel: Cancel | None = None) -> SolveOutcome:
        """Solve one frame; see `Solver`. ``values`` of a solution hold rotation, parity, odds and counts."""
        start = time.monotonic()
        found = self.find()
        if not found.ok:
            return failed(self.name, "unavailable", found.key)
        stars: DetectedStars | None = request.stars
        if stars is None:
            if request.image_provider is None:
                return failed(self.name, "unavailable", "solver_needs_image")
            image, offset = request.image_provider()
            stars = detect_stars(image, offset=offset)
        hint = SolveHint(
            ra_deg=request.ra_deg if request.has_hint else None,
            dec_deg=request.dec_deg if request.has_hint else None,
            radius_deg=request.radius_deg
            if request.radius_is_limit
            else max(request.radius_deg, self._least_radius_deg),
            scale_arcsec=request.scale_arcsec,
        )

        def should_stop() -> bool:
            check_cancel(cancel)
            return time.monotonic() - start > request.timeout_s

        try:
            solution = solve_plate(
                stars, request.shape_hw, self._open().at(request.epoch), hint, should_stop=should_stop
            )
        except SkipItem as reason:
            return self._unsolved(reason, request, time.monotonic() - start)
        return self._solved(solution, time.monotonic() - start)

    def _solved(self, solution: PlateSolution, seconds: float) -> SolveOutcome:
        values = {
            "solver": self.name,
            "rotation_deg": solution.rotation_deg,
            "parity": solution.parity,
            "scale_arcsec": solution.scale_arcsec,
            "n_expected": solution.n_expected,
            "log10_odds": solution.log10_odds,
            "held_out_log10_odds": solution.held_out_log10_odds,
            "sip_order": solution.fit.order,
        }
        return SolveOutcome(
            True,
            self.name,
            dict(solution.wcs_cards()),
            seconds,
            n_matched=solution.n_matched,
            rms_px=solution.rms_px,
            values=values,
        )

    def _unsolved(self, reason: SkipItem, request: SolveRequest, seconds: float) -> SolveOutcome:
        if reason.key == "solve_too_few_stars":
            stars = reason.values["n_stars"]
            return failed(self.name, "too_few_stars", "solver_too_few_stars", seconds, stars=stars)
        if reason.key == "solve_stopped":
            # Not the kind 'timeout': the same search over the same sky would take as long again.
            limit = round(request.timeout_s)
            return failed(self.name, "no_solution", "solver_timeout", seconds, limit_s=limit)
        return failed(self.name, "no_solution", "solver_no_solution", seconds)


def check_wcs(
    cards: Mapping[str, Any],
    stars: DetectedStars,
    shape_hw: tuple[int, int],
    catalogue: StarCatalogue | None = None,
    epoch: float = CATALOGUE_EPOCH,
) -> WcsCheck:
    """Check a WCS from a header or from another solver against the catalogue; see `verify_wcs`.

    Parameters
    ----------
    cards : mapping
        Celestial WCS of the full frame.
    stars : DetectedStars
        Stars in full-frame positions, brightest first.
    shape_hw : tuple of int
        Size of the frame.
    catalogue : StarCatalogue, optional
        The built-in one by default.
    epoch : float
        Julian year at which the frame was taken.
    """
    wcs = wcs_of(cards)
    source = (catalogue or open_built_in_catalogue()).at(epoch)
    return verify_wcs(wcs, stars, source, shape_hw=shape_hw)
