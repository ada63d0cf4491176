"""The built-in star catalogue: Tycho-2 positions and magnitudes, memory-mapped, found by direction.

File layout (little-endian): 4096 bytes of header (magic, then JSON padded with blanks), ``uint32`` start of
each cell (``n_cells + 1``), then for all stars the columns ``uint16`` x, ``uint16`` y and ``uint8`` magnitude.
The sky is cut into declination bands of one degree and each band into cells of about one degree; the stars of a
cell lie together, brightest first; x and y count 1/65536 of the cell's extent in RA and Dec (a rounding error of
at most 0.03 arcsec). ``tools/build_star_catalogue.py`` writes the file and says where the stars come from.
"""

from __future__ import annotations

import json
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from zemosaic_core.errors import RunFailed
from zemosaic_core.plate_solve import CatalogueStars
from zemosaic_core.sphere import unit_vectors

__all__ = [
    "BUILT_IN_CATALOGUE",
    "StarCatalogue",
    "catalogue_stars_near",
    "encode_catalogue",
    "open_built_in_catalogue",
]

BUILT_IN_CATALOGUE = Path(__file__).resolve().parent / "solvers" / "data" / "tycho2.stars"

_MAGIC = b"ZMSTARS1"
_HEADER_BYTES = 4096
_N_BANDS = 180
_STEPS = 65536
# 0.07 mag steps from -2 cover everything up to magnitude 15.8 in one byte; finer ones would not help a solver.
_MAG_ZERO, _MAG_STEP = -2.0, 0.07


def _cells_per_band() -> np.ndarray:
    """Cells in each declination band: about one degree wide where the band is widest."""
    edges = np.abs(np.arange(_N_BANDS + 1) - _N_BANDS // 2).astype(np.float64)
    widest = np.cos(np.deg2rad(np.minimum(edges[:-1], edges[1:]) * 180.0 / _N_BANDS))
    return np.maximum(np.ceil(360.0 * widest - 1e-9), 1).astype(np.int64)


class StarCatalogue:
    """Stars of the whole sky in a file; reads only the cells asked for.

    Parameters
    ----------
    path : Path
        A file written by `encode_catalogue`.

    Raises
    ------
    RunFailed
        The file is missing, is no star catalogue or is cut short.
    """

    def __init__(self, path: Path = BUILT_IN_CATALOGUE) -> None:
        self.path = Path(path)
        self._cells = _cells_per_band()
        self._first_cell = np.concatenate([[0], np.cumsum(self._cells)])
        n_cells = int(self._first_cell[-1])
        try:
            with open(self.path, "rb") as file:
                head = file.read(_HEADER_BYTES)
                start = np.frombuffer(file.read(4 * (n_cells + 1)), dtype="<u4")
            size = self.path.stat().st_size
        except OSError as error:
            raise RunFailed(
                "catalogue_unreadable",
                f"cannot read the star catalogue {self.path}: {error}; reinstall the program",
                path=str(self.path),
                reason=str(error),
            ) from error
        if head[: len(_MAGIC)] != _MAGIC or len(start) != n_cells + 1:
            raise _damaged(self.path)
        offset = _HEADER_BYTES + 4 * (n_cells + 1)
        n = int(start[-1])
        if size != offset + 5 * n:
            raise _damaged(self.path)
        self.origin: dict[str, Any] = json.loads(head[len(_MAGIC) :].decode("ascii"))
        self._start = start.astype(np.int64)
        self._x = np.memmap(self.path, dtype="<u2", mode="r", offset=offset, shape=(n,))
        self._y = np.memmap(self.path, dtype="<u2", mode="r", offset=offset + 2 * n, shape=(n,))
        self._mag = np.memmap(self.path, dtype="u1", mode="r", offset=offset + 4 * n, shape=(n,))

    def __len__(self) -> int:
        return len(self._x)

    def __reduce__(self):
        # Workers map the file themselves instead of receiving ten megabytes.
        return StarCatalogue, (self.path,)

    def near(
        self, ra_deg: float, dec_deg: float, radius_deg: float, max_stars: int | None = None
    ) -> CatalogueStars:
        """List the stars within a radius, brightest first.

        Parameters
        ----------
        ra_deg, dec_deg : float
            Centre, ICRS degrees.
        radius_deg : float
            Great-circle radius, 0 to 180.
        max_stars : int, optional
            Keep only the brightest.

        Returns
        -------
        CatalogueStars
            Positions ICRS at epoch J2000.0 (no proper motion; see the tool for exceptions), VT magnitudes.
        """
        parts = [self._decode(band, a, b) for band, a, b in self._cell_runs(ra_deg, dec_deg, radius_deg)]
        ra, dec, mag = (np.concatenate(c) for c in zip(*parts, strict=True)) if parts else (np.empty(0),) * 3
        centre = unit_vectors(ra_deg, dec_deg)
        chord2 = ((unit_vectors(ra, dec) - centre) ** 2).sum(axis=1)
        rows = np.flatnonzero(chord2 <= (2.0 * math.sin(math.radians(min(radius_deg, 180.0)) / 2.0)) ** 2)
        rows = rows[np.argsort(mag[rows], kind="stable")][:max_stars]
        return CatalogueStars(ra[rows], dec[rows], mag[rows])

    def all_sky(self) -> CatalogueStars:
        """Return every star, brightest first."""
        return self.near(0.0, 0.0, 180.0)

    def _cell_runs(self, ra: float, dec: float, radius: float) -> list[tuple[int, int, int]]:
        """Return runs of neighbouring cells ``(band, first, end)`` that cover the circle."""
        height = 180.0 / _N_BANDS
        low = max(int((dec - radius + 90.0) // height), 0)
        high = min(int((dec + radius + 90.0) // height), _N_BANDS - 1)
        if abs(dec) + radius >= 90.0:
            half_width = 180.0
        else:
            half_width = math.degrees(math.asin(math.sin(math.radians(radius)) / math.cos(math.radians(dec))))
        runs = []
        for band in range(low, high + 1):
            n = int(self._cells[band])
            first = math.floor((ra - half_width) / 360.0 * n)
            last = math.floor((ra + half_width) / 360.0 * n)
            if last - first + 1 >= n:
                runs.append((band, 0, n))
                continue
            first, last = first % n, last % n
            runs += [(band, first, last + 1)] if first <= last else [(band, first, n), (band, 0, last + 1)]
        return runs

    def _decode(self, band: int, first: int, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        cell0 = int(self._first_cell[band])
        bounds = self._start[cell0 + first : cell0 + end + 1]
        stars = slice(int(bounds[0]), int(bounds[-1]))
        cell = np.repeat(np.arange(first, end), np.diff(bounds))
        ra = (cell + (self._x[stars] + 0.5) / _STEPS) * (360.0 / int(self._cells[band]))
        dec = (band + (self._y[stars] + 0.5) / _STEPS) * (180.0 / _N_BANDS) - 90.0
        return ra, dec, _MAG_ZERO + _MAG_STEP * self._mag[stars]


def encode_catalogue(
    ra_deg: np.ndarray, dec_deg: np.ndarray, mag: np.ndarray, origin: dict[str, Any]
) -> bytes:
    """Encode stars in the layout described at the top of this module.

    Parameters
    ----------
    ra_deg, dec_deg, mag : numpy.ndarray
        (n,) ICRS degrees and magnitudes; all finite.
    origin : dict
        JSON-serialisable statement of where the stars come from, at most 4000 bytes as JSON.

    Returns
    -------
    bytes
        The same stars in any order give the same bytes.
    """
    cells = _cells_per_band()
    first_cell = np.concatenate([[0], np.cumsum(cells)])
    ra = np.asarray(ra_deg, dtype=np.float64) % 360.0
    y = (np.asarray(dec_deg, dtype=np.float64) + 90.0) * (_N_BANDS / 180.0)
    band = np.clip(y.astype(np.int64), 0, _N_BANDS - 1)
    x = ra / 360.0 * cells[band]
    column = np.minimum(x.astype(np.int64), cells[band] - 1)
    code_x = np.clip((x - column) * _STEPS, 0, _STEPS - 1).astype("<u2")
    code_y = np.clip((y - band) * _STEPS, 0, _STEPS - 1).astype("<u2")
    code_mag = np.clip(np.round((np.asarray(mag) - _MAG_ZERO) / _MAG_STEP), 0, 255).astype("u1")
    cell = first_cell[band] + column
    order = np.lexsort((code_y, code_x, code_mag, cell))
    start = np.concatenate([[0], np.cumsum(np.bincount(cell, minlength=int(first_cell[-1])))]).astype("<u4")
    head = _MAGIC + json.dumps(origin, sort_keys=True, ensure_ascii=True).encode("ascii")
    if len(head) > _HEADER_BYTES:
        raise ValueError(f"the statement of origin takes {len(head)} bytes, at most {_HEADER_BYTES} fit")
    columns = (code_x[order], code_y[order], code_mag[order])
    return head.ljust(_HEADER_BYTES) + start.tobytes() + b"".join(c.tobytes() for c in columns)


@lru_cache(maxsize=1)
def open_built_in_catalogue() -> StarCatalogue:
    """Open the catalogue that comes with the program; the same read-only object every time."""
    return StarCatalogue(BUILT_IN_CATALOGUE)


def catalogue_stars_near(
    ra_deg: float, dec_deg: float, radius_deg: float, max_stars: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return RA, Dec (ICRS degrees, J2000.0) and VT magnitude of built-in stars near a point, brightest first."""
    stars = open_built_in_catalogue().near(ra_deg, dec_deg, radius_deg, max_stars)
    return stars.ra_deg, stars.dec_deg, stars.mag


def _damaged(path: Path) -> RunFailed:
    return RunFailed(
        "catalogue_damaged",
        f"{path} is not a complete star catalogue; reinstall the program",
        path=str(path),
    )
