"""Find the place of single frames in the sky, one after the other, outside a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from astropy.wcs import WCS

from zemosaic_core.errors import SkipItem
from zemosaic_core.sphere import image_geometry
from zemosaic_io.fits_read import read_image
from zemosaic_io.headers import FrameInfo, read_frame_info
from zemosaic_io.solvers.base import Cancel, SolveOutcome, Solver, SolveRequest, failed
from zemosaic_io.solvers.chain import make_solvers, solve_with_chain
from zemosaic_io.wcs_read import linear_scale_arcsec
from zemosaic_pipeline.measure import frame_stars
from zemosaic_pipeline.plan import solver_options
from zemosaic_pipeline.solver_answers import BUILT_IN, judge_answer
from zemosaic_pipeline.solver_questions import image_provider
from zemosaic_settings import Settings

__all__ = ["FileSolution", "iter_solutions"]


@dataclass(frozen=True)
class FileSolution:
    """What was found about one file.

    Attributes
    ----------
    path : Path
        The file.
    info : FrameInfo or None
        Its header; None when it cannot be read.
    outcomes : tuple of SolveOutcome
        Every attempt; the last one tells the result.
    confirmed : bool
        Stars of the catalogue stand where the result says, or it follows from them.
    key, values : str, dict
        Why it was not even tried; empty otherwise.
    """

    path: Path
    info: FrameInfo | None = None
    outcomes: tuple[SolveOutcome, ...] = ()
    key: str = ""
    values: dict[str, Any] | None = None
    confirmed: bool = True

    @property
    def ok(self) -> bool:
        """Whether the place is known."""
        return bool(self.outcomes) and self.outcomes[-1].ok

    @property
    def centre_deg(self) -> tuple[float, float]:
        """RA and Dec of the middle of the frame, degrees."""
        assert self.info is not None
        height, width = self.info.shape_hw
        wcs = WCS(self.outcomes[-1].wcs_cards, relax=True)
        ra, dec = wcs.all_pix2world((width - 1) / 2, (height - 1) / 2, 0)
        return float(ra), float(dec)

    @property
    def rotation_deg(self) -> float:
        """Position angle of the frame's +y axis, degrees east of north."""
        assert self.info is not None
        return image_geometry(WCS(self.outcomes[-1].wcs_cards, relax=True), self.info.shape_hw).rotation_deg

    @property
    def scale_arcsec(self) -> float:
        """Pixel scale, arcsec."""
        scale = linear_scale_arcsec(self.outcomes[-1].wcs_cards or {})
        assert scale is not None
        return scale


def iter_solutions(
    paths: Sequence[Path], settings: Settings, work_dir: Path, cancel: Cancel | None = None
) -> Iterator[FileSolution]:
    """Solve files in turn; a file that cannot be used gives its reason, the others go on.

    Raises
    ------
    Cancelled
        ``cancel`` was set.
    """
    options = solver_options(settings)
    solvers = [solver for solver in make_solvers(options) if solver.find().ok]
    for path in paths:
        try:
            yield _solve(path, solvers, settings, work_dir, cancel)
        except SkipItem as skip:
            yield FileSolution(path, key=skip.key, values=skip.values)


def _solve(
    path: Path, solvers: Sequence[Solver], settings: Settings, work_dir: Path, cancel: Cancel | None
) -> FileSolution:
    info = read_frame_info(path)
    if not solvers:
        return FileSolution(path, info, key="frame_no_solver", values={})
    stars = frame_stars(info, read_image(info))

    by_stars: list[bool] = [True]

    def believe(outcome: SolveOutcome) -> SolveOutcome:
        solution = judge_answer(info, stars, outcome).solution
        if solution is None:
            return failed(outcome.solver, "no_solution", "solver_implausible", outcome.seconds)
        by_stars.append(solution.confirmed or solution.method == BUILT_IN)
        return replace(outcome, wcs_cards=solution.wcs_cards)

    request = SolveRequest(
        path=path,
        shape_hw=info.shape_hw,
        ra_deg=info.ra_deg,
        dec_deg=info.dec_deg,
        scale_arcsec=info.scale_arcsec,
        radius_deg=settings.astap_default_search_radius,
        stars=stars,
        image_provider=image_provider(info),
        work_dir=work_dir,
        timeout_s=settings.astrometry_timeout,
        epoch=info.epoch,
    )
    outcomes = tuple(solve_with_chain(request, solvers, cancel, believe=believe))
    return FileSolution(path, info, outcomes, confirmed=by_stars[-1])
