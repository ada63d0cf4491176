"""Where stars are at another date: their own motion, or the common drift of the stars around them. Arrays only."""

from __future__ import annotations

import numpy as np

from zemosaic_core.sphere import ra_dec, unit_vectors

__all__ = ["DRIFT_TERMS", "StarDrift", "fit_drift", "moved"]

_MAS_PER_RADIAN = 180.0 * 3600e3 / np.pi
DRIFT_TERMS = 30


def moved(
    ra_deg: np.ndarray, dec_deg: np.ndarray, pm_ra: np.ndarray, pm_dec: np.ndarray, years: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return positions after a number of years on a straight line at right angles to the line of sight.

    Parameters
    ----------
    ra_deg, dec_deg : numpy.ndarray
        (n,) float64, degrees.
    pm_ra, pm_dec : numpy.ndarray
        (n,) proper motion in mas/yr, the first along the parallel (with the cosine of declination).
    years : float
        May be negative.

    Returns
    -------
    (ra_deg, dec_deg) : numpy.ndarray
        RA in [0, 360). Radial velocity and parallax are left out: below 0.8 arcsec for every star.
    """
    east, north = _tangents(ra_deg, dec_deg)
    step = np.float64(years) / _MAS_PER_RADIAN
    there = unit_vectors(ra_deg, dec_deg) + step * (pm_ra[:, None] * east + pm_dec[:, None] * north)
    return ra_dec(there)


class StarDrift:
    """Mean motion of faint stars over the sky: the Sun's own way and the turning of the Galaxy.

    The motion at a direction p is the part at right angles to p of ``a + B p + C(p, p)``, for magnitude
    `reference_mag`; it shrinks by `per_mag` with each magnitude, as fainter stars are farther away.

    Parameters
    ----------
    terms : array_like
        `DRIFT_TERMS` numbers in mas/yr: a (3), B (9), C (18).
    reference_mag, per_mag : float
        Magnitude of the stars of the fit; ratio of the drift from one magnitude to the next, in (0, 1].

    Raises
    ------
    ValueError
        Another number of terms.
    """

    def __init__(self, terms: np.ndarray, reference_mag: float, per_mag: float) -> None:
        self._terms = np.asarray(terms, dtype=np.float64)
        if self._terms.shape != (DRIFT_TERMS,):
            raise ValueError(f"a drift has {DRIFT_TERMS} terms, got an array of shape {self._terms.shape}")
        self._reference_mag, self._per_mag = reference_mag, per_mag

    def motion(
        self, ra_deg: np.ndarray, dec_deg: np.ndarray, mag: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the expected motion (pm_ra with the cosine of declination, pm_dec), mas/yr, (n,) each."""
        east, north = _drift_design(ra_deg, dec_deg)
        size = self._per_mag ** (np.asarray(mag) - self._reference_mag)
        return size * (east @ self._terms), size * (north @ self._terms)


def fit_drift(ra_deg: np.ndarray, dec_deg: np.ndarray, pm_ra: np.ndarray, pm_dec: np.ndarray) -> np.ndarray:
    """Fit the terms of a `StarDrift` to motions of places all over the sky (medians of many stars each).

    Returns
    -------
    numpy.ndarray
        (`DRIFT_TERMS`,) mas/yr; of the many equivalent ones the shortest vector.
    """
    east, north = _drift_design(ra_deg, dec_deg)
    found = np.linalg.lstsq(np.vstack([east, north]), np.concatenate([pm_ra, pm_dec]), rcond=1e-9)
    return np.asarray(found[0])


def _tangents(ra_deg: np.ndarray, dec_deg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors to the east and to the north, (n, 3) each."""
    ra, dec = np.deg2rad(np.asarray(ra_deg, np.float64)), np.deg2rad(np.asarray(dec_deg, np.float64))
    sin, cos = np.sin(ra), np.cos(ra)
    east = np.stack([-sin, cos, np.zeros_like(ra)], axis=-1)
    return east, np.stack([-np.sin(dec) * cos, -np.sin(dec) * sin, np.cos(dec)], axis=-1)


def _drift_design(ra_deg: np.ndarray, dec_deg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Derivatives of the drift to the east and to the north by each term, (n, `DRIFT_TERMS`) each."""
    p = unit_vectors(ra_deg, dec_deg)
    squares = [p[:, b] * p[:, c] for b in range(3) for c in range(b, 3)]
    factors = np.stack([np.ones(len(p)), p[:, 0], p[:, 1], p[:, 2], *squares], axis=1)
    designs = [
        (tangent[:, :, None] * factors[:, None, :]).reshape(len(p), -1)
        for tangent in _tangents(ra_deg, dec_deg)
    ]
    return designs[0], designs[1]
