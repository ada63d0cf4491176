"""The built-in star catalogue: places, motions, brightness and colours, memory-mapped, found by direction.

File layout (little-endian): 4096 bytes of header (magic, then JSON padded with blanks), ``uint32`` start of
each cell (``n_cells + 1``) among all stars and again among those with known motion and colour; then for all stars
the columns ``uint16`` x, ``uint16`` y and ``uint8`` magnitude; then for stars with known motion and colour the columns
``int16`` and ``int16`` motion in RA (with the cosine of declination) and Dec, mas/yr, and ``uint16`` V magnitude
(upper 9 bits) and B-V (lower 7). The sky is cut into declination bands of one degree and each band into cells of
about one degree; the stars of a cell lie together, first those with known motion, brightest first; x and y count
1/65536 of the cell's extent in RA and Dec (a rounding error of at most 0.03 arcsec).
``tools/build_star_catalogue.py`` writes the file and says where the stars come from.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from zemosaic_core.errors import RunFailed
from zemosaic_core.night_sky import CATALOGUE_EPOCH
from zemosaic_core.plate_solve import CatalogueStars
from zemosaic_core.proper_motion import StarDrift, moved
from zemosaic_core.sphere import unit_vectors

__all__ = [
    "BUILT_IN_CATALOGUE",
    "ColouredStars",
    "StarCatalogue",
    "StarsAtEpoch",
    "catalogue_stars_near",
    "encode_catalogue",
    "open_built_in_catalogue",
]

BUILT_IN_CATALOGUE = Path(__file__).resolve().parent / "solvers" / "data" / "sky.stars"

_MAGIC = b"ZMSTARS2"
_HEADER_BYTES = 4096
_N_BANDS = 180
_STEPS = 65536
# 0.07 mag steps from -2 cover everything up to magnitude 15.8 in one byte; finer ones would not help a solver.
_MAG_ZERO, _MAG_STEP = -2.0, 0.07
# The steps of the source, so that nothing is lost.
_V_ZERO, _V_STEP, _V_CODES = -2.0, 0.05, 512
_BV_ZERO, _BV_STEP, _BV_CODES = -0.5, 4.0 / 127.0, 128
# Bytes of a star in the first columns, and in the further ones where its motion and colour are known.
_STAR_BYTES, _MOTION_BYTES = 5, 6


def _cells_per_band() -> np.ndarray:
    """Cells in each declination band: about one degree wide where the band is widest."""
    edges = np.abs(np.arange(_N_BANDS + 1) - _N_BANDS // 2).astype(np.float64)
    widest = np.cos(np.deg2rad(np.minimum(edges[:-1], edges[1:]) * 180.0 / _N_BANDS))
    return np.maximum(np.ceil(360.0 * widest - 1e-9), 1).astype(np.int64)


@dataclass(frozen=True, slots=True)
class ColouredStars:
    """Stars whose colour is known, brightest first.

    Attributes
    ----------
    ra_deg, dec_deg : numpy.ndarray
        float64 (n,), ICRS.
    v_mag, b_v : numpy.ndarray
        float64 (n,): Johnson V in steps of 0.05 mag, colour B-V in steps of 0.03 mag; a few per cent of the colours are
        wrong by more than 0.3 mag.
    """

    ra_deg: np.ndarray
    dec_deg: np.ndarray
    v_mag: np.ndarray
    b_v: np.ndarray

    def __len__(self) -> int:
        return len(self.ra_deg)


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
        n_starts = int(self._first_cell[-1]) + 1
        try:
            with open(self.path, "rb") as file:
                head = file.read(_HEADER_BYTES)
                starts = np.frombuffer(file.read(8 * n_starts), dtype="<u4")
            size = self.path.stat().st_size
        except OSError as error:
            raise RunFailed(
                "catalogue_unreadable",
                f"cannot read the star catalogue {self.path}: {error}; reinstall the program",
                path=str(self.path),
                reason=str(error),
            ) from error
        if head[: len(_MAGIC)] != _MAGIC or len(starts) != 2 * n_starts:
            raise _damaged(self.path)
        self._start, self._moving_start = starts.astype(np.int64).reshape(2, n_starts)
        n, n_moving = int(self._start[-1]), int(self._moving_start[-1])
        offset = _HEADER_BYTES + 8 * n_starts
        if size != offset + _STAR_BYTES * n + _MOTION_BYTES * n_moving:
            raise _damaged(self.path)
        self.origin: dict[str, Any] = json.loads(head[len(_MAGIC) :].decode("ascii"))
        drift = self.origin.get("drift")
        self._drift = StarDrift(drift["terms"], drift["mag"], drift["per_mag"]) if drift else None

        def column(dtype: str, count: int) -> np.ndarray:
            nonlocal offset
            place, offset = offset, offset + np.dtype(dtype).itemsize * count
            if not count:
                return np.empty(0, dtype)
            return np.memmap(self.path, dtype=dtype, mode="r", offset=place, shape=(count,))

        self._x, self._y, self._mag = column("<u2", n), column("<u2", n), column("u1", n)
        self._pm_ra, self._pm_dec = column("<i2", n_moving), column("<i2", n_moving)
        self._colour = column("<u2", n_moving)

    def __len__(self) -> int:
        return len(self._x)

    def __reduce__(self):
        # Workers map the file themselves instead of receiving ten megabytes.
        return StarCatalogue, (self.path,)

    def near(
        self,
        ra_deg: float,
        dec_deg: float,
        radius_deg: float,
        max_stars: int | None = None,
        epoch: float = CATALOGUE_EPOCH,
    ) -> CatalogueStars:
        """List the stars within a radius, brightest first.

        Parameters
        ----------
        ra_deg, dec_deg : float
            Centre, ICRS degrees.
        radius_deg : float
            Great-circle radius, 0 to 180, at the epoch of the catalogue.
        max_stars : int, optional
            Keep only the brightest.
        epoch : float
            Julian year for which the places are wanted. Stars without a known motion drift with the
            stars around them.

        Returns
        -------
        CatalogueStars
            Positions ICRS, VT magnitudes.
        """
        ra, dec, mag, pm_ra, pm_dec, _ = self._stars_near(ra_deg, dec_deg, radius_deg)
        rows = np.argsort(mag, kind="stable")[:max_stars]
        ra, dec, mag = ra[rows], dec[rows], mag[rows]
        if epoch != CATALOGUE_EPOCH:
            ra, dec = self._moved(ra, dec, mag, pm_ra[rows], pm_dec[rows], epoch)
        return CatalogueStars(ra, dec, mag)

    def coloured_near(
        self, ra_deg: float, dec_deg: float, radius_deg: float, epoch: float = CATALOGUE_EPOCH
    ) -> ColouredStars:
        """List the stars of known colour within a radius, brightest first; parameters as for `near`."""
        ra, dec, mag, pm_ra, pm_dec, code = self._stars_near(ra_deg, dec_deg, radius_deg)
        v_mag, b_v = _decode_colour(code)
        rows = np.flatnonzero(code >= 0)
        rows = rows[np.argsort(v_mag[rows], kind="stable")]
        ra, dec = self._moved(ra[rows], dec[rows], mag[rows], pm_ra[rows], pm_dec[rows], epoch)
        return ColouredStars(ra, dec, v_mag[rows], b_v[rows])

    def sky_near(
        self, ra_deg: float, dec_deg: float, radius_deg: float, epoch: float = CATALOGUE_EPOCH
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return RA, Dec, magnitude (V, or VT where no colour is known) and B-V (NaN: unknown) of all stars.

        Parameters as for `near`; what `synthetic_sky.make_sky` shows.
        """
        ra, dec, mag, pm_ra, pm_dec, code = self._stars_near(ra_deg, dec_deg, radius_deg)
        ra, dec = self._moved(ra, dec, mag, pm_ra, pm_dec, epoch)
        v_mag, b_v = _decode_colour(code)
        return ra, dec, np.where(code < 0, mag, v_mag), np.where(code < 0, np.nan, b_v)

    def at(self, epoch: float) -> StarsAtEpoch:
        """Return the same stars at their places of a Julian year."""
        return StarsAtEpoch(self, epoch)

    def all_sky(self) -> CatalogueStars:
        """Return every star, brightest first."""
        return self.near(0.0, 0.0, 180.0)

    def _stars_near(self, ra_deg: float, dec_deg: float, radius_deg: float) -> tuple[np.ndarray, ...]:
        """RA, Dec, magnitude, motions (NaN unknown) and colour code (-1 unknown) of stars within a radius."""
        parts = [self._decode(band, a, b) for band, a, b in self._cell_runs(ra_deg, dec_deg, radius_deg)]
        columns = [np.concatenate(c) for c in zip(*parts, strict=True)] if parts else [np.empty(0)] * 6
        centre = unit_vectors(ra_deg, dec_deg)
        chord2 = ((unit_vectors(columns[0], columns[1]) - centre) ** 2).sum(axis=1)
        rows = chord2 <= (2.0 * math.sin(math.radians(min(radius_deg, 180.0)) / 2.0)) ** 2
        return tuple(column[rows] for column in columns)

    def _moved(self, ra, dec, mag, pm_ra, pm_dec, epoch: float) -> tuple[np.ndarray, np.ndarray]:
        unknown = np.isnan(pm_ra)
        if unknown.any():
            pm_ra, pm_dec = pm_ra.copy(), pm_dec.copy()
            drift = (0.0, 0.0)
            if self._drift is not None:
                drift = self._drift.motion(ra[unknown], dec[unknown], mag[unknown])
            pm_ra[unknown], pm_dec[unknown] = drift
        return moved(ra, dec, pm_ra, pm_dec, epoch - CATALOGUE_EPOCH)

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

    def _decode(self, band: int, first: int, end: int) -> tuple[np.ndarray, ...]:
        cells = slice(int(self._first_cell[band]) + first, int(self._first_cell[band]) + end)
        bounds = self._start[cells.start : cells.stop + 1]
        moving = self._moving_start[cells.start : cells.stop + 1]
        stars, further = slice(int(bounds[0]), int(bounds[-1])), slice(int(moving[0]), int(moving[-1]))
        counts, known_counts = np.diff(bounds), np.diff(moving)
        column = np.repeat(np.arange(first, end), counts)
        ra = (column + (self._x[stars] + 0.5) / _STEPS) * (360.0 / int(self._cells[band]))
        dec = (band + (self._y[stars] + 0.5) / _STEPS) * (180.0 / _N_BANDS) - 90.0
        within = np.arange(len(ra)) - np.repeat(bounds[:-1] - bounds[0], counts)
        known = within < np.repeat(known_counts, counts)
        pm_ra, pm_dec = np.full(len(ra), np.nan), np.full(len(ra), np.nan)
        code = np.full(len(ra), -1, dtype=np.int64)
        pm_ra[known], pm_dec[known], code[known] = (
            self._pm_ra[further],
            self._pm_dec[further],
            self._colour[further],
        )
        return ra, dec, _MAG_ZERO + _MAG_STEP * self._mag[stars], pm_ra, pm_dec, code


@dataclass(frozen=True, slots=True)
class StarsAtEpoch:
    """The stars of a catalogue at their places of one Julian year; a `StarSource`."""

    catalogue: StarCatalogue
    epoch: float

    def near(
        self, ra_deg: float, dec_deg: float, radius_deg: float, max_stars: int | None = None
    ) -> CatalogueStars:
        """List the stars within a radius, brightest first; see `StarCatalogue.near`."""
        return self.catalogue.near(ra_deg, dec_deg, radius_deg, max_stars, self.epoch)


def encode_catalogue(
    ra_deg: np.ndarray,
    dec_deg: np.ndarray,
    mag: np.ndarray,
    origin: dict[str, Any],
    motions: np.ndarray | None = None,
) -> bytes:
    """Encode stars in the layout described at the top of this module.

    Parameters
    ----------
    ra_deg, dec_deg, mag : numpy.ndarray
        (n,) ICRS degrees at `CATALOGUE_EPOCH` and VT magnitudes; all finite.
    origin : dict
        JSON-serialisable statement of where the stars come from, at most 4000 bytes as JSON; ``drift`` in it
        (``terms``, ``mag``, ``per_mag``) moves the stars without a motion of their own, see `StarDrift`.
    motions : numpy.ndarray, optional
        (n, 4): motion in RA (with the cosine of declination) and Dec, mas/yr, V and B-V; NaN rows: unknown.

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
    code_mag = _code(np.asarray(mag), _MAG_ZERO, _MAG_STEP, 256).astype("u1")
    cell = first_cell[band] + column
    further = np.full((len(ra), 4), np.nan) if motions is None else np.asarray(motions, dtype=np.float64)
    known = np.isfinite(further).all(axis=1)
    further = np.where(known[:, None], further, 0.0)
    pm = np.round(further[:, :2]).astype("<i2")
    colour = (
        _BV_CODES * _code(further[:, 2], _V_ZERO, _V_STEP, _V_CODES)
        + _code(further[:, 3], _BV_ZERO, _BV_STEP, _BV_CODES)
    ).astype("<u2")
    order = np.lexsort((colour, pm[:, 1], pm[:, 0], code_y, code_x, code_mag, ~known, cell))
    head = _MAGIC + json.dumps(origin, sort_keys=True, ensure_ascii=True).encode("ascii")
    if len(head) > _HEADER_BYTES:
        raise ValueError(f"the statement of origin takes {len(head)} bytes, at most {_HEADER_BYTES} fit")
    starts = b"".join(
        np.concatenate([[0], np.cumsum(np.bincount(which, minlength=int(first_cell[-1])))])
        .astype("<u4")
        .tobytes()
        for which in (cell, cell[known])
    )
    moving = order[known[order]]
    columns = (code_x[order], code_y[order], code_mag[order], pm[moving, 0], pm[moving, 1], colour[moving])
    return head.ljust(_HEADER_BYTES) + starts + b"".join(c.tobytes() for c in columns)


def _decode_colour(code: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return _V_ZERO + _V_STEP * (code // _BV_CODES), _BV_ZERO + _BV_STEP * (code % _BV_CODES)


def _code(values: np.ndarray, zero: float, step: float, codes: int) -> np.ndarray:
    return np.clip(np.round((values - zero) / step), 0, codes - 1).astype(np.int64)


@lru_cache(maxsize=1)
def open_built_in_catalogue() -> StarCatalogue:
    """Open the catalogue that comes with the program; the same read-only object every time."""
    return StarCatalogue(BUILT_IN_CATALOGUE)


def catalogue_stars_near(
    ra_deg: float,
    dec_deg: float,
    radius_deg: float,
    max_stars: int | None = None,
    epoch: float = CATALOGUE_EPOCH,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return RA, Dec (ICRS degrees at a Julian year) and VT magnitude of built-in stars, brightest first."""
    stars = open_built_in_catalogue().near(ra_deg, dec_deg, radius_deg, max_stars, epoch)
    return stars.ra_deg, stars.dec_deg, stars.mag


def _damaged(path: Path) -> RunFailed:
    return RunFailed(
        "catalogue_damaged",
        f"{path} is not a complete star catalogue; reinstall the program",
        path=str(path),
    )
