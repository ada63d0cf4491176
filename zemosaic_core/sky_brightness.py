"""How bright the sky was, in magnitudes per square arcsecond. Arrays only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["sky_magnitude"]

Array = NDArray[np.float64]

_MAG_PER_E = 2.5 / np.log(10.0)
# A sky of which more than this share is not known is not told: a fifth are 0.2 mag.
_LARGEST_SHARE = 0.2


def sky_magnitude(
    light_adu: Array, sigma_adu: Array | float, zero_mag: float, arcsec_per_px: float
) -> tuple[Array, Array]:
    """Return the surface brightness of skies and its error.

    Parameters
    ----------
    light_adu : ndarray, shape (N,), float64
        Light of the sky in a pixel without the pedestal of the sensor, on the flux scale of ``zero_mag``.
    sigma_adu : float or ndarray, shape (N,)
        Its error.
    zero_mag : float
        Magnitude of a star that gives 1 ADU in all its pixels together.
    arcsec_per_px : float

    Returns
    -------
    mag, sigma_mag : ndarray, shape (N,), float64
        mag per square arcsecond; NaN where the light is not known to a fifth.
    """
    light = np.asarray(light_adu, float)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.abs(np.broadcast_to(sigma_adu, light.shape) / light)
        known = (light > 0) & (share <= _LARGEST_SHARE)
        mag = zero_mag - 2.5 * np.log10(light / arcsec_per_px**2)
    return np.where(known, mag, np.nan), np.where(known, _MAG_PER_E * share, np.nan)
