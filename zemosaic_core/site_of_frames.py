"""Where a telescope stood, from how its frames turned: an alt-az mount holds them upright. Arrays only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zemosaic_core.night_sky import Site, horizontal, parallactic_deg

__all__ = ["RotationFit", "site_from_rotation"]

Array = NDArray[np.float64]

# Frames must have turned by this much; 3.6 degrees give the place to 0.7 degrees.
LEAST_TURN_DEG = 2.0
# A frame that follows the sky keeps its angle; alt-az mounts hold theirs to a few hundredths of a degree.
EQUATORIAL_DEG = 0.5
_MAX_RMS_DEG = 0.25
_LEAST_ALTITUDE_DEG = 5.0
# Another place this far away that fits nearly as well makes the answer worthless.
_RIVAL_DEG, _RIVAL_FACTOR, _RIVAL_RMS_DEG = 8.0, 1.5, 0.05
_LATITUDES = np.arange(-70.0, 70.1, 5.0)
_LONGITUDES = np.arange(-180.0, 180.0, 5.0)
_STARTS = 6
_ANGLES_AT_ONCE = 10_000
_MIN_FRAMES = 6


@dataclass(frozen=True)
class RotationFit:
    """What the angles of the frames say.

    Attributes
    ----------
    site : Site or None
        None when they do not tell.
    rms_deg : float
        Scatter of the angles about the best place; NaN when none was tried.
    equatorial : bool
        The frames keep their angle on the sky: the mount turns with it.
    """

    site: Site | None
    rms_deg: float
    equatorial: bool


def _turns(nights: Sequence[NDArray[np.int64]], angle_deg: Array) -> Array:
    """Angles (..., N) of each night relative to their mean, degrees, wrapped to within half a turn."""
    left = np.empty_like(angle_deg)
    for own in nights:
        unit = np.exp(1j * np.deg2rad(angle_deg[..., own]))
        left[..., own] = np.rad2deg(np.angle(unit * np.conj(unit.mean(axis=-1, keepdims=True))))
    return left


def site_from_rotation(
    ra_deg: Array, dec_deg: Array, position_angle_deg: Array, jd: Array, night: NDArray[np.int64]
) -> RotationFit:
    """Find the place on Earth from which upright frames show these position angles.

    Parameters
    ----------
    ra_deg, dec_deg, position_angle_deg : ndarray, shape (N,)
        Centre of each frame and position angle of one and the same axis of its detector, degrees.
    jd : ndarray, shape (N,)
        Julian dates, UTC.
    night : ndarray, shape (N,), int
        Nights may differ by a constant angle.

    Returns
    -------
    RotationFit
        The antipode, which fits as well, is excluded because the target would be below its horizon.
    """
    nights = [np.flatnonzero(night == label) for label in np.unique(night)]
    own = _turns(nights, np.asarray(position_angle_deg, float))
    hours = float(np.ptp(jd)) * 24.0
    if len(own) < _MIN_FRAMES:
        return RotationFit(None, float("nan"), False)
    turn = max(float(np.ptp(own[members])) for members in nights)
    if turn < LEAST_TURN_DEG:
        return RotationFit(None, float("nan"), turn < EQUATORIAL_DEG and hours > 0.5)

    def misfit(latitude_deg: float, longitude_deg: Array) -> Array:
        """Return how badly places of one latitude fit, (L,)."""
        # Seen from another longitude the sky is turned.
        ra, greenwich = ra_deg - longitude_deg[:, None], Site(latitude_deg, 0.0)
        left = _turns(nights, position_angle_deg - parallactic_deg(ra, dec_deg, jd, greenwich))
        altitude = horizontal(ra, dec_deg, jd, greenwich)[0]
        below = np.maximum(_LEAST_ALTITUDE_DEG - altitude, 0.0)
        return np.asarray(np.sqrt(np.mean(left**2, axis=-1)) + below.mean(axis=-1))

    def loss(place: Array) -> float:
        return float(misfit(float(np.clip(place[0], -89.0, 89.0)), place[1:])[0])

    # Of many frames fewer longitudes at a time: tables of both would be the largest of all.
    at_once = max(1, _ANGLES_AT_ONCE // len(own))
    grid = [
        (float(value), float(lat), float(lon))
        for lat in _LATITUDES
        for some in np.split(_LONGITUDES, range(at_once, len(_LONGITUDES), at_once))
        for value, lon in zip(misfit(float(lat), some), some, strict=True)
    ]
    found: list[tuple[float, float, float]] = []
    # A tenth of what a run imports, and most headers know the site.
    from scipy.optimize import minimize

    for _, lat, lon in sorted(grid)[: 4 * _STARTS]:
        if any(_apart(lat, lon, *other[1:]) < _RIVAL_DEG for other in found) or len(found) >= _STARTS:
            continue
        fit = minimize(
            loss, np.array([lat, lon]), method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-5}
        )
        found.append((float(fit.fun), float(fit.x[0]), float((fit.x[1] + 180) % 360 - 180)))
    found.sort()
    rms, lat, lon = found[0]
    rivals = [
        other
        for other in found[1:]
        if _apart(lat, lon, *other[1:]) > _RIVAL_DEG and other[0] < _RIVAL_FACTOR * rms + _RIVAL_RMS_DEG
    ]
    good = rms < _MAX_RMS_DEG and not rivals and abs(lat) < 85.0
    return RotationFit(Site(lat, lon) if good else None, rms, False)


def _apart(lat_1: float, lon_1: float, lat_2: float, lon_2: float) -> float:
    """Distance of two places on the Earth, degrees."""
    a, b = np.deg2rad([lat_1, lat_2])
    cosine = np.sin(a) * np.sin(b) + np.cos(a) * np.cos(b) * np.cos(np.deg2rad(lon_1 - lon_2))
    return float(np.rad2deg(np.arccos(np.clip(cosine, -1, 1))))
