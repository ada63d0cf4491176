"""ASTAP as a solver: a small picture in a folder of its own, one command, the result from its .ini file."""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from zemosaic_core.errors import SkipItem
from zemosaic_io.regular_files import open_regular
from zemosaic_io.solvers.base import Availability, Cancel, SolveOutcome, SolveRequest, failed, is_plausible
from zemosaic_io.solvers.images import SolverImage, prepare_image, wcs_to_full_frame, write_solver_image
from zemosaic_io.solvers.locate import astap_data_files, find_astap, find_astap_data
from zemosaic_io.solvers.locks import LaunchRate, SolverSlots
from zemosaic_io.solvers.process import ChildResult, ProgramSolver, solver_folder
from zemosaic_io.wcs_read import celestial_cards

__all__ = ["AstapSolver", "read_astap_ini"]

# With a sparse database ASTAP must look at fewer stars of the picture, or the quads of the two sides differ:
# 60 stars solved 18 of 18 synthetic frames with Tycho-2 stars where the default of 500 solved 6.
_STAR_LIMITS = (500, 60)
# The second attempt is only worth it while it is cheap (a failed search over a small radius takes 0.1 s).
_CHEAP_S = 3.0
_BLIND_RADIUS_DEG = 180.0
# Its results are about a page.
_MAX_RESULT_BYTES = 200_000
# Exit codes of ASTAP about its star database: missing, unreadable.
_DATABASE_CODES = (32, 33)
_DATABASE_WORDS = ("no star database", "star database not found", "could not find", "no database")


class AstapSolver(ProgramSolver):
    """ASTAP, command-line or desktop version.

    Parameters
    ----------
    executable, data : str
        Configured program and star database; '' looks in the usual places.
    downsample : int
        Pixels averaged before solving, 1 to 4; 0: by size of the frame.
    slots, rate : SolverSlots, LaunchRate
        How many run at once and how fast they start.

    Notes
    -----
    The frame itself is never handed to ASTAP: it gets a picture without hints in a temporary folder with a
    short name, averaged by us, because ASTAP writes beside its input, cuts names at dots, and in some
    versions forgets half pixels when it averages.
    """

    name = "ASTAP"

    def __init__(
        self, executable: str = "", data: str = "", downsample: int = 0, *,
        slots: SolverSlots | None = None, rate: LaunchRate | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self._configured = (executable, data)
        self._downsample = downsample
        self._slots = slots or SolverSlots(1)
        self._rate = rate or LaunchRate()
        self._program: Path | None = None
        self._data: Path | None = None

    def _look(self) -> Availability:
        executable, data = self._configured
        self._program = find_astap(executable)
        if self._program is None:
            return Availability(
                False, "ASTAP is not installed", key="solver_not_found", values={"solver": self.name}
            )
        self._data = find_astap_data(data, self._program)
        if self._data is None:
            detail = f"ASTAP at {self._program} has no star database"
            return Availability(
                False, detail, str(self._program), key="solver_no_data", values={"solver": self.name}
            )
        detail = f"{self._program}, star database in {self._data}"
        return Availability(True, detail, str(self._program), values={"solver": self.name})

    def _parts(self) -> tuple[list[Path], list[Path]]:
        assert self._program is not None
        assert self._data is not None
        return [self._program], astap_data_files(self._data)

    def solve(self, request: SolveRequest, cancel: Cancel | None = None) -> SolveOutcome:
        """Solve one frame; see `Solver`."""
        found = self.find()
        if not found.ok:
            return failed(self.name, "unavailable", found.key)
        if request.image_provider is None:
            return failed(self.name, "unavailable", "solver_needs_image")
        image = prepare_image(request, self._step(request))
        outcome = failed(self.name, "no_solution", "solver_no_solution")
        with solver_folder(request.work_dir) as folder, self._slots.hold(cancel):
            # The time others take before it is its turn is not its own.
            start = time.monotonic()
            write_solver_image(folder / "f.fits", image)
            for limit in _STAR_LIMITS:
                self._rate.wait(cancel)
                left = request.timeout_s - (time.monotonic() - start)
                outcome = self._attempt(request, image, folder, limit, left, cancel)
                if outcome.kind != "no_solution" or time.monotonic() - start > _CHEAP_S:
                    break
            return replace(outcome, seconds=time.monotonic() - start)

    def _step(self, request: SolveRequest) -> int:
        if self._downsample > 0:
            return min(4, self._downsample)
        # ASTAP wants pictures of 1000 to 2000 px; a Seestar frame stays whole.
        return max(1, min(4, min(request.shape_hw) // 1500))

    def _attempt(
        self, request: SolveRequest, image: SolverImage, folder: Path, limit: int, timeout_s: float,
        cancel: Cancel | None,
    ) -> SolveOutcome:  # fmt: skip
        result_file = folder / "r.ini"
        _remove(result_file)
        command = self._command(request, image, folder, limit)
        child = self._run(command, folder, request, max(0.5, timeout_s), cancel)
        if isinstance(child, SolveOutcome):
            return child
        return self._judge(request, image, child, read_astap_ini(result_file))

    def _command(self, request: SolveRequest, image: SolverImage, folder: Path, limit: int) -> list[str]:
        command = [str(self._program), "-f", str(folder / "f.fits"), "-o", str(folder / "r")]
        command += ["-d", str(self._data), "-z", "1", "-s", str(limit)]
        if request.scale_arcsec:
            height_deg = request.scale_arcsec * image.step * image.data.shape[0] / 3600.0
            command += ["-fov", f"{height_deg:.5f}"]
        else:
            command += ["-fov", "0"]
        if request.has_hint:
            command += ["-ra", f"{request.ra_deg / 15.0:.6f}", "-spd", f"{request.dec_deg + 90.0:.6f}"]
            command += ["-r", f"{request.radius_deg:g}"]
        else:
            command += ["-r", f"{_BLIND_RADIUS_DEG:g}"]
        return command

    def _judge(
        self, request: SolveRequest, image: SolverImage, child: ChildResult, result: dict[str, Any]
    ) -> SolveOutcome:
        if result.get("PLTSOLVD") == "T":
            cards = _cards_from_ini(result)
            full = None if cards is None else wcs_to_full_frame(cards, image.step, image.x0, image.y0)
            if full is not None and is_plausible(full, request):
                return SolveOutcome(True, self.name, full, child.seconds, values={"solver": self.name})
            return failed(self.name, "no_solution", "solver_implausible", child.seconds)
        text = " ".join(str(result.get(key, "")) for key in ("ERROR", "WARNING")).strip() or child.tail[-200:]
        if child.returncode in _DATABASE_CODES or any(word in text.lower() for word in _DATABASE_WORDS):
            return failed(self.name, "unavailable", "solver_no_data", child.seconds, reason=text)
        if child.returncode < 0 or not result:
            reason = text or f"exit status {child.returncode}"
            return failed(self.name, "crash", "solver_crashed", child.seconds, reason=reason)
        return failed(self.name, "no_solution", "solver_no_solution", child.seconds, reason=text)


def _remove(path: Path) -> None:
    """Remove what a program left under a name, whatever it is."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def read_astap_ini(path: Path) -> dict[str, Any]:
    """Return ``KEY=value`` lines of ASTAP's result; {} when it wrote none, or no text of that size.

    Numbers become floats.
    """
    try:
        with open_regular(path) as file:
            content = file.read(_MAX_RESULT_BYTES + 1)
    except (OSError, SkipItem):
        return {}
    if len(content) > _MAX_RESULT_BYTES:
        return {}
    values: dict[str, Any] = {}
    for line in content.decode("latin-1").splitlines():
        key, separator, text = line.partition("=")
        if not separator:
            continue
        text = text.split(" //", 1)[0].strip()
        try:
            values[key.strip()] = float(text.replace(",", "."))
        except ValueError:
            values[key.strip()] = text
    return values


def _cards_from_ini(result: dict[str, Any]) -> dict[str, Any] | None:
    needed = ("CRPIX1", "CRPIX2", "CRVAL1", "CRVAL2", "CD1_1", "CD1_2", "CD2_1", "CD2_2")
    if not all(isinstance(result.get(k), float) and math.isfinite(result[k]) for k in needed):
        return None
    cards: dict[str, Any] = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CUNIT1": "deg", "CUNIT2": "deg"}
    cards.update({k: result[k] for k in needed})
    cards["RADESYS"] = "ICRS"
    return celestial_cards(cards)
