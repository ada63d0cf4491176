"""astrometry.net on this machine: ``solve-field`` fed with our own star list, or with a picture."""

from __future__ import annotations

import logging
import math
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from astropy.io import fits

from zemosaic_core.errors import SkipItem
from zemosaic_io.fits_cards import iter_hdus
from zemosaic_io.solvers.base import Availability, Cancel, SolveOutcome, SolveRequest, failed, is_plausible
from zemosaic_io.solvers.images import prepare_image, wcs_to_full_frame, write_solver_image, write_star_table
from zemosaic_io.solvers.locate import find_index_folders, find_solve_field, has_index_files, index_files
from zemosaic_io.solvers.process import ProgramSolver, solver_folder
from zemosaic_io.wcs_read import celestial_cards

__all__ = ["SolveFieldSolver", "read_wcs_file"]

_MAX_TABLE_BYTES = 20_000_000
# Fewer stars than this are better found again by astrometry.net in the picture.
_MIN_STARS = 8
# Quads are built from the brightest ones; more only make the verification slower.
_MAX_STARS = 300
# The header's focal length is nominal: 2.392 arcsec for a true 2.374 on a Seestar S50.
_SCALE_MARGIN = 0.1
# A mount's hint may be off by its pointing error even when the user asks for a tight search.
_MIN_RADIUS_DEG = 1.0

log = logging.getLogger(__name__)


class SolveFieldSolver(ProgramSolver):
    """``solve-field`` of astrometry.net.

    Parameters
    ----------
    configured : str
        '' looks in the usual places; else the program, its folder, an astrometry.net configuration file
        (``.cfg``), or a folder of index files.
    name : str
        Name in outcomes: ASTROMETRY, or ANSVR for the variant of that name.

    Notes
    -----
    Positions in the star table are full-frame positions, so the solution needs no conversion. SIP terms are
    kept.
    """

    def __init__(self, configured: str = "", name: str = "ASTROMETRY") -> None:
        super().__init__()
        self.name = name
        self._configured = configured.strip()
        self._program: Path | None = None
        self._config: Path | None = None
        self._index_folder: Path | None = None
        self._folders: list[Path] = []

    def _look(self) -> Availability:
        values = {"solver": self.name}
        stated = Path(self._configured).expanduser() if self._configured else None
        if stated is not None and stated.suffix.lower() == ".cfg" and os.path.isfile(stated):
            self._config = stated
        elif stated is not None and stated.is_dir() and has_index_files(stated):
            self._index_folder = stated
        self._program = find_solve_field(self._configured)
        if self._program is None:
            return Availability(False, "solve-field is not installed", key="solver_not_found", values=values)
        self._folders = folders = (
            [self._index_folder] if self._index_folder else find_index_folders(self._config, self._program)
        )
        if not folders:
            detail = f"{self._program} has no index files"
            return Availability(False, detail, str(self._program), key="solver_no_data", values=values)
        detail = f"{self._program}, index files in {', '.join(str(f) for f in folders)}"
        return Availability(True, detail, str(self._program), values=values)

    def _parts(self) -> tuple[list[Path], list[Path]]:
        assert self._program is not None
        # The search itself is in a program of its own, where it is installed as usual.
        engine = self._program.resolve().with_name("astrometry-engine")
        programs = [self._program, *([engine] if engine.is_file() else [])]
        return programs, [file for folder in self._folders for file in index_files(folder)]

    def solve(self, request: SolveRequest, cancel: Cancel | None = None) -> SolveOutcome:
        """Solve one frame; see `Solver`."""
        start = time.monotonic()
        found = self.find()
        if not found.ok:
            return failed(self.name, "unavailable", found.key)
        n_stars = 0 if request.stars is None else len(request.stars)
        if n_stars < _MIN_STARS and request.image_provider is None:
            return failed(self.name, "too_few_stars", "solver_too_few_stars", stars=n_stars)
        with solver_folder(request.work_dir) as folder:
            if n_stars >= _MIN_STARS:
                write_star_table(folder / "f.xyls", request.stars, _MAX_STARS)
                height, width = request.shape_hw
                given = [str(folder / "f.xyls"), "--width", str(width), "--height", str(height)]
                given += ["--x-column", "X", "--y-column", "Y", "--sort-column", "FLUX"]
                geometry = (1, 0.0, 0.0)
            else:
                image = prepare_image(request, 1)
                write_solver_image(folder / "f.fits", image)
                given = [str(folder / "f.fits"), "--fits-image"]
                geometry = (image.step, image.x0, image.y0)
            outcome = self._attempt(request, folder, given, geometry, cancel)
        return replace(outcome, seconds=time.monotonic() - start)

    def _attempt(
        self, request: SolveRequest, folder: Path, given: list[str], geometry: tuple[int, float, float],
        cancel: Cancel | None,
    ) -> SolveOutcome:  # fmt: skip
        command = [str(self._program), *given, *self._options(request, folder)]
        child = self._run(command, folder, request, request.timeout_s, cancel)
        if isinstance(child, SolveOutcome):
            # The same search through the same index would take as long again.
            return replace(child, kind="no_solution") if child.kind == "timeout" else child
        if not (folder / "r.wcs").is_file():
            if child.returncode != 0:
                reason = child.tail[-300:] or f"exit status {child.returncode}"
                return failed(self.name, "crash", "solver_crashed", child.seconds, reason=reason)
            return failed(self.name, "no_solution", "solver_no_solution", child.seconds)
        cards = read_wcs_file(folder / "r.wcs")
        full = None if cards is None else wcs_to_full_frame(cards, *geometry)
        if full is None or not is_plausible(full, request):
            return failed(self.name, "no_solution", "solver_implausible", child.seconds)
        n_matched, rms_px = _residuals(folder / "r.corr", geometry[0])
        return SolveOutcome(
            True, self.name, full, child.seconds, n_matched, rms_px, values={"solver": self.name}
        )

    def _options(self, request: SolveRequest, folder: Path) -> list[str]:
        options = ["--dir", str(folder), "--out", "r", "--temp-dir", str(folder), "--overwrite", "--no-plots"]
        options += ["--wcs", str(folder / "r.wcs"), "--corr", str(folder / "r.corr"), "--new-fits", "none"]
        options += ["--match", "none", "--rdls", "none", "--index-xyls", "none", "--solved", "none"]
        options += ["--crpix-center", "--cpulimit", str(max(1, math.ceil(request.timeout_s)))]
        if request.scale_arcsec:
            low, high = (request.scale_arcsec * (1 + sign * _SCALE_MARGIN) for sign in (-1, 1))
            options += [
                "--scale-units",
                "arcsecperpix",
                "--scale-low",
                f"{low:.5f}",
                "--scale-high",
                f"{high:.5f}",
            ]
        if request.has_hint:
            radius = max(_MIN_RADIUS_DEG, request.radius_deg)
            options += [
                "--ra",
                f"{request.ra_deg:.6f}",
                "--dec",
                f"{request.dec_deg:.6f}",
                "--radius",
                f"{radius:g}",
            ]
        config = self._config
        if self._index_folder is not None:
            config = folder / "index.cfg"
            config.write_text(
                f"cpulimit 600\nadd_path {self._index_folder.resolve()}\nautoindex\n", encoding="utf-8"
            )
        if config is not None:
            options += ["--config", str(config)]
        return options


def read_wcs_file(path: Path) -> dict | None:
    """Return the celestial WCS of a FITS header file, or None when it holds none."""
    try:
        for hdu in iter_hdus(path):
            cards = celestial_cards(hdu.cards)
            if cards is not None:
                return cards
    except SkipItem:
        return None
    return None


def _residuals(path: Path, step: int) -> tuple[int | None, float | None]:
    """Matched stars and their rms distance in full-frame px from the correspondence table."""
    if not path.is_file() or path.stat().st_size > _MAX_TABLE_BYTES:
        return None, None
    try:
        with fits.open(path, memmap=False) as hdus:
            table = hdus[1].data
            dx = np.asarray(table["field_x"], np.float64) - np.asarray(table["index_x"], np.float64)
            dy = np.asarray(table["field_y"], np.float64) - np.asarray(table["index_y"], np.float64)
        rms_px = float(np.sqrt(np.mean(dx**2 + dy**2))) * step if len(dx) else math.nan
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        # The table only says how good a solution is, which its stars will say again.
        log.info("%s is not the table it should be: %s", path, error)
        return None, None
    return len(dx), rms_px if math.isfinite(rms_px) else None
