"""The light of a made-up night: airglow, thin air, a town, the Moon."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from zemosaic_core.night_sky import airmass, moonlight_nl, transmission, van_rhijn

__all__ = ["Glow", "glow_adu"]

# Light of each kind relative to green: airglow has its lines at 557.7 and 630 nm, towns are warm, moonlight is
# scattered sunlight and bluer than the rest.
_AIRGLOW_RGB = np.array([0.62, 1.0, 0.55])
_AIR_RGB = np.array([0.70, 1.0, 0.63])
_DOME_RGB = np.array([0.92, 1.0, 0.48])
_MOON_RGB = np.array([0.66, 1.0, 0.74])


@dataclass(frozen=True)
class Glow:
    """How bright the sky of a night is; ADU per pixel and frame in G, above the atmosphere's own extinction.

    Attributes
    ----------
    airglow_adu : float
        Airglow at the zenith; grows towards the horizon after van Rhijn.
    air_adu : float
        Light scattered by the whole column of air, at the zenith; grows with the airmass.
    dome_adu, dome_azimuth_deg : float
        Light of a town at the horizon and its azimuth; falls off as ``exp(-altitude / dome_scale_deg)``.
    dome_scale_deg, dome_width : float
        Fall-off in altitude, and concentration in azimuth (von Mises; 1.5 is about 55 degrees each way).
    dome_fade_per_h : float
        Share of the town's light that goes out each hour.
    moon_adu_per_nl : float
        ADU per nanolambert of moonlight; 0 leaves the Moon out.
    drift : float
        Relative amplitude of the slow change of the airglow.
    drift_period_h, drift_phase : float
        Period in hours and phase in radians of that change.
    extinction_mag : float
        Extinction in G, mag per airmass.
    """

    airglow_adu: float = 110.0
    air_adu: float = 170.0
    dome_adu: float = 1800.0
    dome_azimuth_deg: float = 240.0
    dome_scale_deg: float = 22.0
    dome_width: float = 1.5
    dome_fade_per_h: float = 0.05
    moon_adu_per_nl: float = 0.0
    drift: float = 0.12
    drift_period_h: float = 2.6
    drift_phase: float = 0.0
    extinction_mag: float = 0.25


def glow_adu(
    glow: Glow,
    altitude_deg: np.ndarray,
    azimuth_deg: np.ndarray,
    hours: float,
    moon: tuple[float, float, float],
) -> np.ndarray:
    """Return the light of the sky, smooth in altitude, azimuth and time.

    Parameters
    ----------
    glow : Glow
        The night.
    altitude_deg, azimuth_deg : ndarray, shape (...)
        Where one looks.
    hours : float
        Time since the night began.
    moon : tuple of float
        As `moon_place` returns it.

    Returns
    -------
    ndarray, shape (3, ...), float64
        ADU above the pedestal in R, G, B, before vignetting.
    """
    altitude = np.asarray(altitude_deg, dtype=np.float64)
    swing = 1.0 + glow.drift * np.sin(2.0 * np.pi * hours / glow.drift_period_h + glow.drift_phase)
    dimming = transmission(altitude, 0.5 * glow.extinction_mag)
    airglow = glow.airglow_adu * swing * van_rhijn(altitude)
    air = glow.air_adu * airmass(altitude)
    facing = np.cos(np.deg2rad(np.asarray(azimuth_deg, dtype=np.float64) - glow.dome_azimuth_deg))
    dome = glow.dome_adu * np.exp(-altitude / glow.dome_scale_deg + glow.dome_width * (facing - 1.0))
    dome = dome * max(0.0, 1.0 - glow.dome_fade_per_h * hours)
    total = _times(_AIRGLOW_RGB, airglow) * dimming + _times(_AIR_RGB, air) + _times(_DOME_RGB, dome)
    if glow.moon_adu_per_nl > 0.0:
        light = moonlight_nl(altitude, azimuth_deg, moon, glow.extinction_mag)
        total = total + _times(_MOON_RGB, glow.moon_adu_per_nl * light)
    return np.asarray(total)


def _times(colour: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.asarray(colour.reshape((3,) + (1,) * values.ndim) * values)
