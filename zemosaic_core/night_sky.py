"""What shines in the sky of a place at a moment: where things stand, and the laws of airglow, air and moonlight.

Arrays only, no tables from the network: Sun and Moon come from the Astronomical Almanac's low-precision series,
which are good to 0.01 and 0.3 degrees between 1950 and 2050. Nobody needs the Moon better than its light is known.
Azimuth counts from north through east, longitude is positive to the east.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

__all__ = [
    "CATALOGUE_EPOCH",
    "Site",
    "airmass",
    "horizontal",
    "julian_date",
    "julian_year",
    "moon_place",
    "moonlight_nl",
    "parallactic_deg",
    "sidereal_deg",
    "sun_altitude_deg",
    "transmission",
    "van_rhijn",
]

# Julian year of the places in the star catalogue that comes with the program.
CATALOGUE_EPOCH = 2000.0
_J2000 = 2451545.0
_EARTH_RADIUS_KM = 6378.0
_AIRGLOW_HEIGHT_KM = 90.0
# Extinction in R and B relative to G.
_EXTINCTION_RGB = np.array([0.8, 1.0, 1.25])


@dataclass(frozen=True)
class Site:
    """Where the telescope stands: latitude and longitude in degrees, north and east positive."""

    latitude_deg: float
    longitude_deg: float


def julian_date(moment: datetime) -> float:
    """Return the Julian date of a moment; one without time zone is UTC."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return 2440587.5 + moment.timestamp() / 86400.0


def julian_year(moment: datetime) -> float:
    """Return the Julian year of a moment, 2000.0 at noon of 2000 January 1; one without time zone is UTC."""
    return 2000.0 + (julian_date(moment) - _J2000) / 365.25


def sidereal_deg(jd: np.ndarray | float, longitude_deg: float) -> np.ndarray | float:
    """Return the local mean sidereal time in degrees (Meeus, Astronomical Algorithms, ch. 12)."""
    return (280.46061837 + 360.98564736629 * (jd - _J2000) + longitude_deg) % 360.0


def horizontal(
    ra_deg: np.ndarray | float, dec_deg: np.ndarray | float, jd: np.ndarray | float, site: Site
) -> tuple[np.ndarray, np.ndarray]:
    """Return altitude and azimuth (degrees, float64) of sky positions; refraction and precession are left out."""
    hour = np.deg2rad(sidereal_deg(jd, site.longitude_deg) - np.asarray(ra_deg, dtype=np.float64))
    dec, lat = np.deg2rad(np.asarray(dec_deg, dtype=np.float64)), np.deg2rad(site.latitude_deg)
    up = np.sin(dec) * np.sin(lat) + np.cos(dec) * np.cos(lat) * np.cos(hour)
    north = np.sin(dec) * np.cos(lat) - np.cos(dec) * np.sin(lat) * np.cos(hour)
    east = -np.cos(dec) * np.sin(hour)
    return np.rad2deg(np.arctan2(up, np.hypot(north, east))), np.rad2deg(np.arctan2(east, north)) % 360.0


def parallactic_deg(
    ra_deg: np.ndarray | float, dec_deg: np.ndarray | float, jd: np.ndarray | float, site: Site
) -> np.ndarray:
    """Return the position angle of the zenith (north through east): how an alt-az telescope holds its frame."""
    hour = np.deg2rad(sidereal_deg(jd, site.longitude_deg) - np.asarray(ra_deg, dtype=np.float64))
    dec, lat = np.deg2rad(dec_deg), np.deg2rad(site.latitude_deg)
    across = np.cos(lat) * np.sin(hour)
    along = np.sin(lat) * np.cos(dec) - np.cos(lat) * np.sin(dec) * np.cos(hour)
    return np.rad2deg(np.arctan2(across, along))


def airmass(altitude_deg: np.ndarray | float) -> np.ndarray:
    """Airmass after Kasten and Young (1989); altitudes below 1 degree count as 1."""
    altitude = np.clip(np.asarray(altitude_deg, dtype=np.float64), 1.0, 90.0)
    return 1.0 / (np.sin(np.deg2rad(altitude)) + 0.50572 * (altitude + 6.07995) ** -1.6364)


def van_rhijn(altitude_deg: np.ndarray | float) -> np.ndarray:
    """Brightness of a thin layer 90 km up relative to the zenith (van Rhijn 1921)."""
    ratio = _EARTH_RADIUS_KM / (_EARTH_RADIUS_KM + _AIRGLOW_HEIGHT_KM)
    return 1.0 / np.sqrt(1.0 - (ratio * np.cos(np.deg2rad(np.asarray(altitude_deg, dtype=np.float64)))) ** 2)


def transmission(altitude_deg: np.ndarray | float, extinction_mag: float) -> np.ndarray:
    """Share of starlight that arrives, relative to the zenith; shape (3, ...) for R, G, B."""
    beyond = np.asarray(airmass(altitude_deg) - 1.0)
    per_channel = _EXTINCTION_RGB.reshape((3,) + (1,) * beyond.ndim)
    return np.asarray(10.0 ** (-0.4 * extinction_mag * per_channel * beyond))


def _sun(jd: float) -> tuple[float, float]:
    """Ecliptic longitude of the Sun and obliquity, degrees."""
    days = jd - _J2000
    anomaly = np.deg2rad(357.528 + 0.9856003 * days)
    longitude = 280.460 + 0.9856474 * days + 1.915 * np.sin(anomaly) + 0.020 * np.sin(2.0 * anomaly)
    return float(longitude % 360.0), 23.439 - 4e-7 * days


def _equatorial(longitude_deg: float, latitude_deg: float, obliquity_deg: float) -> tuple[float, float]:
    lam, beta, eps = np.deg2rad([longitude_deg, latitude_deg, obliquity_deg])
    x = np.cos(beta) * np.cos(lam)
    y = np.cos(eps) * np.cos(beta) * np.sin(lam) - np.sin(eps) * np.sin(beta)
    z = np.sin(eps) * np.cos(beta) * np.sin(lam) + np.cos(eps) * np.sin(beta)
    return float(np.rad2deg(np.arctan2(y, x)) % 360.0), float(np.rad2deg(np.arcsin(z)))


def sun_altitude_deg(jd: float, site: Site) -> float:
    """Return the altitude of the Sun's centre, degrees."""
    longitude, obliquity = _sun(jd)
    return float(horizontal(*_equatorial(longitude, 0.0, obliquity), jd, site)[0])


def moon_place(jd: float, site: Site) -> tuple[float, float, float]:
    """Return where the Moon stands as seen from a site.

    Returns
    -------
    altitude_deg, azimuth_deg : float
        Topocentric (parallax included), degrees.
    phase_deg : float
        Angle Sun - Moon - Earth: 0 is full Moon, 180 is new Moon.
    """
    t = (jd - _J2000) / 36525.0

    def series(terms: tuple[tuple[float, float, float], ...]) -> np.ndarray:
        size, start, rate = np.array(terms).T
        angle = np.deg2rad(start + rate * t)
        return np.array([(size * np.sin(angle)).sum(), (size * np.cos(angle)).sum()])

    # Astronomical Almanac, section D, "low-precision formulae for geocentric coordinates of the Moon".
    longitude = 218.32 + 481267.881 * t
    longitude += series(
        (
            (6.29, 135.0, 477198.87),
            (-1.27, 259.3, -413335.36),
            (0.66, 235.7, 890534.22),
            (0.21, 269.9, 954397.74),
            (-0.19, 357.5, 35999.05),
            (-0.11, 186.5, 966404.03),
        )
    )[0]
    latitude = series(
        (
            (5.13, 93.3, 483202.02),
            (0.28, 228.2, 960400.89),
            (-0.28, 318.3, 6003.15),
            (-0.17, 217.6, -407332.21),
        )
    )[0]
    parallax = (
        0.9508
        + series(
            (
                (0.0518, 135.0, 477198.87),
                (0.0095, 259.3, -413335.36),
                (0.0078, 235.7, 890534.22),
                (0.0028, 269.9, 954397.74),
            )
        )[1]
    )
    sun_longitude, obliquity = _sun(jd)
    altitude, azimuth = horizontal(*_equatorial(longitude, latitude, obliquity), jd, site)
    altitude = altitude - parallax * np.cos(np.deg2rad(altitude))
    cos_elongation = np.cos(np.deg2rad(latitude)) * np.cos(np.deg2rad(longitude - sun_longitude))
    phase = 180.0 - np.rad2deg(np.arccos(np.clip(cos_elongation, -1.0, 1.0)))
    return float(altitude), float(azimuth), float(phase)


def moonlight_nl(
    altitude_deg: np.ndarray | float,
    azimuth_deg: np.ndarray | float,
    moon: tuple[float, float, float],
    extinction_mag: float,
) -> np.ndarray:
    """Brightness of moonlit sky in nanolamberts, V (Krisciunas and Schaefer 1991, PASP 103, 1033, eqs. 3, 15-21).

    Parameters
    ----------
    altitude_deg, azimuth_deg : array_like
        Where one looks.
    moon : tuple of float
        Altitude, azimuth and phase angle of the Moon, as `moon_place` returns them.
    extinction_mag : float
        Extinction, mag per airmass.

    Returns
    -------
    ndarray, float64
        0 while the Moon is below the horizon.
    """
    altitude = np.asarray(altitude_deg, dtype=np.float64)
    moon_altitude, moon_azimuth, phase = moon
    if moon_altitude <= 0.0:
        return np.zeros(np.broadcast_shapes(altitude.shape, np.shape(azimuth_deg)))
    a, m = np.deg2rad(altitude), np.deg2rad(moon_altitude)
    turn = np.deg2rad(np.asarray(azimuth_deg, dtype=np.float64) - moon_azimuth)
    cos_distance = np.clip(np.sin(a) * np.sin(m) + np.cos(a) * np.cos(m) * np.cos(turn), -1.0, 1.0)
    distance = np.rad2deg(np.arccos(cos_distance))
    scatter = 10.0**5.36 * (1.06 + cos_distance**2) + 10.0 ** (6.15 - distance / 40.0)
    illuminance = 10.0 ** (-0.4 * (3.84 + 0.026 * abs(phase) + 4e-9 * phase**4))

    def path(sine: np.ndarray | float) -> np.ndarray:
        return np.asarray((1.0 - 0.96 * (1.0 - np.asarray(sine) ** 2)) ** -0.5)

    arrives = 10.0 ** (-0.4 * extinction_mag * path(np.sin(m)))
    scattered = 1.0 - 10.0 ** (-0.4 * extinction_mag * path(np.sin(a)))
    # Their law is for a Moon well up; where it rises the light comes gradually, not in one step.
    risen = np.clip(moon_altitude / 3.0, 0.0, 1.0)
    return np.asarray(scatter * illuminance * arrives * scattered * risen)
