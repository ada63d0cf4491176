"""The light of many possible nights where the frames of one night look. Arrays only.

Airglow, light scattered in the air, towns at the horizon and the Moon: how each spreads over the sky is known, how much
there is of it is not. Together they tell more than a smooth function of altitude and azimuth could: all of them add
light, and what a slope can be follows from the level and from how the level changes while the target moves.

Where a town lies, how high its light reaches and how wide it is enter in a way that is not linear: these are drawn. How
much there is of each kind of light enters linearly, and of that the mean and the covariance are enough.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .night_sky import transmission, van_rhijn

__all__ = ["N_NIGHTS", "PossibleNights", "possible_nights"]

Array = NDArray[np.float64]

N_NIGHTS = 512
"""Nights that are drawn, always the same ones."""
_SEED = 1
# Draws of the amounts of light beside each town, from which their mean and covariance are taken.
_N_AMOUNTS = 64
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
# Steps of an additive recurrence that fills four dimensions evenly: powers of 1 / 1.16730398 (the root of x^5 = x + 1).
_EVEN_STEPS = 1.0 / 1.1673039782614187 ** np.arange(1, 5)


@dataclass(frozen=True)
class PossibleNights:
    """Nights that could be, each with a town of its own.

    The light of night ``k`` is ``sum_j a_kj kinds_kj``; its mean over all places is 1.

    Attributes
    ----------
    kinds : ndarray, shape (K, J, N, P), float64
        How each kind of light spreads over P places of N frames.
    usual : ndarray, shape (K, J), float64
        Mean of the amounts ``a``.
    root : ndarray, shape (K, J, J), float64
        Lower triangle whose product with its transpose is the covariance of the amounts.
    drawn : ndarray, shape (K, N, P), float64
        The light of one draw of the amounts each, with what differs from date to date.
    between_dates : ndarray, shape (K, N, P), float64
        That part of it; zeros for one date.
    """

    kinds: Array
    usual: Array
    root: Array
    drawn: Array
    between_dates: Array


def possible_nights(
    direction: Array, airmass: Array, moonlight: Array, hours: Array, night: NDArray[np.int64]
) -> PossibleNights:
    """Draw nights.

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
    PossibleNights
        `N_NIGHTS` of them.
    """
    rng = np.random.default_rng(_SEED)
    dates, date = np.unique(night, return_inverse=True)
    begin = np.full(len(dates), np.inf)
    np.minimum.at(begin, date, hours)
    since = (hours - begin[date])[:, None]
    altitude = np.degrees(np.arcsin(np.clip(direction[..., 2], -1.0, 1.0)))
    azimuth = np.arctan2(direction[..., 1], direction[..., 0])
    even = (0.5 + np.arange(N_NIGHTS)[:, None] * _EVEN_STEPS) % 1.0
    towards, height, width, period = (column[:, None, None] for column in even.T)
    lowest, highest = _TOWN_HEIGHT_DEG
    height = lowest * (highest / lowest) ** height
    width = _TOWN_WIDTH[0] + (_TOWN_WIDTH[1] - _TOWN_WIDTH[0]) * width
    turns = 2.0 * np.pi * since / (_SWING_HOURS[0] + (_SWING_HOURS[1] - _SWING_HOURS[0]) * period)
    usual = np.array(_USUAL_ALTITUDE_DEG)
    layer = van_rhijn(altitude) * transmission(altitude, _DIMMING_MAG)[1]
    layer /= float(van_rhijn(usual) * transmission(usual, _DIMMING_MAG)[1])
    air = airmass * np.sin(np.radians(_USUAL_ALTITUDE_DEG))
    town = np.exp(
        (_USUAL_ALTITUDE_DEG - altitude) / height + width * (np.cos(azimuth - 2.0 * np.pi * towards) - 1.0)
    )
    brightest = float(moonlight.max(initial=0.0))
    has_moon = brightest > 0.0
    kinds = np.empty((N_NIGHTS, 6 + has_moon, *altitude.shape))
    for j, light in enumerate((layer, layer * np.sin(turns), layer * np.cos(turns), air, town, town * since)):
        kinds[:, j] = light
    if has_moon:
        kinds[:, 6] = moonlight / brightest

    amounts = _amounts(rng, has_moon)
    amounts /= np.einsum("kdj,kj->kd", amounts, kinds.mean(axis=(2, 3)))[..., None]
    mean = amounts.mean(axis=1)
    away = amounts - mean[:, None]
    covariance = away.transpose(0, 2, 1) @ away / _N_AMOUNTS
    # The mean light is known, so that the covariance is singular but for this.
    covariance += 1e-9 * np.eye(kinds.shape[1])
    alike = _light(kinds, amounts[:, 0])
    drawn = np.zeros_like(alike)
    for d in range(len(dates)):
        here = date == d
        # The same kinds in another night; with one date alone there is nothing to tell apart.
        other = np.exp(_OTHER_NIGHT * rng.standard_normal((N_NIGHTS, 4)) * np.sqrt(1.0 - 1.0 / len(dates)))
        phase = rng.uniform(0.0, 2.0 * np.pi, (N_NIGHTS, 1)) if len(dates) > 1 else np.zeros((N_NIGHTS, 1))
        of_date = amounts[:, 0] * other[:, [0, 0, 0, 1, 2, 2, 3][: kinds.shape[1]]]
        sine, cosine = of_date[:, 1:2].copy(), of_date[:, 2:3].copy()
        of_date[:, 1:2] = sine * np.cos(phase) - cosine * np.sin(phase)
        of_date[:, 2:3] = sine * np.sin(phase) + cosine * np.cos(phase)
        drawn[:, here] = _light(kinds[:, :, here], of_date)
    drawn /= drawn.mean(axis=(1, 2), keepdims=True)
    return PossibleNights(kinds, mean, np.linalg.cholesky(covariance), drawn, drawn - alike)


def _amounts(rng: np.random.Generator, has_moon: bool) -> Array:
    """Draw how much there is of each kind, shape (K, `_N_AMOUNTS`, J)."""

    def drawn(low: float, high: float) -> Array:
        return rng.uniform(low, high, (N_NIGHTS, _N_AMOUNTS))

    def amount(usual: tuple[float, float]) -> Array:
        typical, factor = usual
        return np.asarray(typical * np.exp(drawn(-1.0, 1.0) * np.log(factor)))

    airglow, air, town = amount(_AIRGLOW), amount(_AIR), amount(_TOWN)
    swing, phase = airglow * drawn(0.0, _AIRGLOW_SWINGS), drawn(0.0, 2.0 * np.pi)
    parts = [
        airglow,
        swing * np.cos(phase),
        swing * np.sin(phase),
        air,
        town,
        -town * drawn(0.0, _TOWN_FADES),
    ]
    return np.stack([*parts, amount(_MOON)] if has_moon else parts, axis=-1)


def _light(kinds: Array, amounts: Array) -> Array:
    """Return the light (K, N, P) of amounts (K, J)."""
    return np.asarray(
        (amounts[:, None, :] @ kinds.reshape(*kinds.shape[:2], -1)).reshape(len(kinds), *kinds.shape[2:])
    )
