"""A tangent-plane WCS from stars whose sky positions are known."""

from __future__ import annotations

from typing import Any

import numpy as np

from zemosaic_core.sphere import gnomonic, mean_direction

__all__ = ["fit_tan"]


def fit_tan(
    ra_deg: np.ndarray, dec_deg: np.ndarray, x: np.ndarray, y: np.ndarray, shape_hw: tuple[int, int]
) -> tuple[dict[str, Any], float]:
    """Fit a linear TAN projection to star positions.

    The reference pixel is the image centre; its sky position is found by three Gauss-Newton steps, because
    moving the tangent point changes the projection only in second order.

    Parameters
    ----------
    ra_deg, dec_deg : ndarray, shape (n,), degrees
        ICRS positions.
    x, y : ndarray, shape (n,), px
        Pixel positions, origin 0.
    shape_hw : tuple of int
        Height and width of the image.

    Returns
    -------
    cards : dict
        FITS cards of the WCS.
    rms_px : float
        Root mean square of the 2-D residual distance, px.

    Raises
    ------
    ValueError
        Fewer than 3 stars.
    """
    if len(ra_deg) < 3:
        raise ValueError(f"{len(ra_deg)} stars, 3 needed for a TAN fit")
    cx, cy = (shape_hw[1] - 1) / 2, (shape_hw[0] - 1) / 2
    design = np.column_stack([np.asarray(x) - cx, np.asarray(y) - cy, np.ones(len(x))])
    ra0, dec0 = map(float, mean_direction(ra_deg, dec_deg))
    for _ in range(4):
        plane = np.column_stack(gnomonic(ra_deg, dec_deg, ra0, dec0))
        solution, *_ = np.linalg.lstsq(design, plane, rcond=None)
        ra0, dec0 = _deproject(*solution[2], ra0, dec0)
    residual = plane - design @ solution
    cd = solution[:2].T
    scale = np.sqrt(abs(np.linalg.det(cd)))
    rms = float(np.sqrt(np.mean(np.sum(residual**2, axis=1))) / scale)
    cards = {
        "WCSAXES": 2,
        "CTYPE1": "RA---TAN",
        "CTYPE2": "DEC--TAN",
        "CUNIT1": "deg",
        "CUNIT2": "deg",
        "CRPIX1": cx + 1,
        "CRPIX2": cy + 1,
        "CRVAL1": ra0 % 360.0,
        "CRVAL2": dec0,
        "CD1_1": float(cd[0, 0]),
        "CD1_2": float(cd[0, 1]),
        "CD2_1": float(cd[1, 0]),
        "CD2_2": float(cd[1, 1]),
        "RADESYS": "ICRS",
    }
    return cards, rms


def _deproject(xi_deg: float, eta_deg: float, ra0_deg: float, dec0_deg: float) -> tuple[float, float]:
    """Return the sky position of a point of the tangent plane."""
    xi, eta = np.deg2rad(xi_deg), np.deg2rad(eta_deg)
    dec0 = np.deg2rad(dec0_deg)
    east = xi
    north = np.cos(dec0) - eta * np.sin(dec0)
    ra = ra0_deg + np.rad2deg(np.arctan2(east, north))
    dec = np.rad2deg(np.arctan2(np.sin(dec0) + eta * np.cos(dec0), np.hypot(east, north)))
    return float(ra), float(dec)
