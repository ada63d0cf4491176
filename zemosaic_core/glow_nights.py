"""The light of many possible nights where the frames of one night look. Arrays only.

Airglow, light scattered in the air, towns at the horizon and the Moon: how each spreads over the sky is known, how much
there is of it is not. Together they tell more than a smooth function of altitude and azimuth could: all of them add
light, and what a slope can be follows from the level and from how the level changes while the target moves.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .night_sky import transmission, van_rhijn

__all__ = ["N_NIGHTS", "light_of_nights"]

Array = NDArray[np.float64]

N_NIGHTS = 512
"""Nights that are drawn, always the same ones."""
_SEED = 1
# Everything is relative to a target at this altitude, where airglow and air are about as bright as each other.
_USUAL_ALTITUDE_DEG = 45.0
# How much there is of each, there: typical, and the factor up to which it may be more or less.
_AIRGLOW, _AIR, _TOWN, _MOON = (1.0, 2.0), (1.0, 2.0), (2.0, 4.0), (1.5, 4.0)
# Light of a town falls off as exp(-altitude / height), and around its azimuth as exp(width (cos - 1)).
_TOWN_HEIGHT_DEG, _TOWN_WIDTH = (12.0, 40.0), (0.4, 3.0)
# Share of a town's light that goes out each hour, at most; relative swing of the airglow, at most, and its period.
_TOWN_FADES, _AIRGLOW_SWINGS, _SWING_HOURS = 0.1, 0.2, (1.5, 6.0)
# Scatter of each kind of light from one night to the next, in the logarithm.
_OTHER_NIGHT = 0.3
# Half the usual extinction in G: airglow is dimmed along its way, and some of it is scattered back.
_DIMMING_MAG = 0.125


def light_of_nights(direction: Array, airmass: Array, moonlight: Array, hours: Array, night: Array) -> Array:
    """Draw nights and return their light.

    Parameters
    ----------
    direction : ndarray, shape (N, P, 3)
        Unit vectors (north, east, up) of P places in each of N frames.
    airmass, moonlight : ndarray, shape (N, P)
        Moonlight in any unit; zeros while the Moon is down.
    hours : ndarray, shape (N,)
        Time since any fixed moment.
    night : ndarray, shape (N,), int64
        Frames of one night share a number.

    Returns
    -------
    ndarray, shape (N_NIGHTS, N, P), float64
        The mean over all frames is 1 in each.
    """
    rng = np.random.default_rng(_SEED)
    dates, date = np.unique(night, return_inverse=True)
    n_dates = len(dates)
    altitude = np.degrees(np.arcsin(np.clip(direction[..., 2], -1.0, 1.0)))
    azimuth = np.arctan2(direction[..., 1], direction[..., 0])
    begin = np.full(n_dates, np.inf)
    np.minimum.at(begin, date, hours)
    since = hours - begin[date]

    def drawn(low: float, high: float, *shape: int) -> Array:
        return rng.uniform(low, high, (N_NIGHTS, *shape))[..., None]

    def amount(usual: tuple[float, float]) -> Array:
        typical, factor = usual
        total = drawn(-1.0, 1.0, 1) * np.log(factor)
        # The same place in another night; with one date alone there is nothing to tell apart.
        other = _OTHER_NIGHT * rng.standard_normal((N_NIGHTS, n_dates))
        other -= other.mean(axis=1, keepdims=True)
        return np.asarray(typical * np.exp(total + other[:, date, None]))

    usual = np.array(_USUAL_ALTITUDE_DEG)
    layer = van_rhijn(altitude) * transmission(altitude, _DIMMING_MAG)[1]
    layer /= float(van_rhijn(usual) * transmission(usual, _DIMMING_MAG)[1])
    turns = 2.0 * np.pi * since[:, None] / drawn(*_SWING_HOURS, 1) + drawn(0.0, 2.0 * np.pi, n_dates)[:, date]
    light = amount(_AIRGLOW) * (1.0 + drawn(0.0, _AIRGLOW_SWINGS, 1) * np.sin(turns)) * layer
    light += amount(_AIR) * (airmass * np.sin(np.radians(_USUAL_ALTITUDE_DEG)))
    lowest, highest = _TOWN_HEIGHT_DEG
    height = lowest * (highest / lowest) ** drawn(0.0, 1.0, 1)
    towards = np.cos(azimuth - drawn(0.0, 2.0 * np.pi, 1)) - 1.0
    town = np.exp((_USUAL_ALTITUDE_DEG - altitude) / height + drawn(*_TOWN_WIDTH, 1) * towards)
    fades = np.maximum(1.0 - drawn(0.0, _TOWN_FADES, 1) * since[:, None], 0.0)
    light += amount(_TOWN) * fades * town
    brightest = float(moonlight.max())
    if brightest > 0.0:
        light += amount(_MOON) * (moonlight / brightest)
    return np.asarray(light / light.mean(axis=(1, 2), keepdims=True))
