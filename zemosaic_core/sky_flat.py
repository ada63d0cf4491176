"""Vignetting in the sky: what the stars lead to expect of it there, and the flat that stars and sky tell together.

Arrays only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .star_flat import StarFlat, flat_of_terms

__all__ = ["SeenPattern", "flat_of_stars_and_sky", "patterns_expected", "seen_pattern"]

Array = NDArray[np.float64]

# Patterns that flat fielding left, as shares of the light: three errors of the star flat and this much, for light that
# took another way than that of stars; and without stars. And constant patterns, pedestal and amplifier.
_FLAT_ERRORS, _LEAST_PATTERN, _PATTERN_WITHOUT_FLAT, _CONSTANT_PATTERN = 3.0, 0.004, 0.1, 0.02
# The same constant patterns where vignetting is what is asked for. In a mosaic of real frames 0.25 to 1 % of the light
# are likeliest; the sky is left more room above, because there it costs nothing.
_AMPLIFIERS = 0.005
# Light of the sky falls on the detector on other ways than that of stars: error in the corner that is common to all
# channels and that no number of frames makes smaller.
_OTHER_WAY = 0.004


@dataclass(frozen=True)
class SeenPattern:
    """What the sky of one channel says of a pattern in proportion to the light.

    Attributes
    ----------
    information : ndarray, shape (2, 2), float64
        Inverse covariance of the coefficients of ``q`` and ``q^2``, relative to the light of a frame.
    right : ndarray, shape (2,), float64
        The information times the coefficients.
    light_error : float
        Relative error of that light, common to all its frames: it is counted from a pedestal.
    n_cells : int
        Cells of meshes behind it.
    """

    information: Array
    right: Array
    light_error: float
    n_cells: int


def seen_pattern(
    unknowns: Array,
    covariance: Array,
    prior: Array,
    expected: Array,
    light_adu: float,
    light_error: float,
    n_cells: int,
) -> SeenPattern:
    """Return what frames say of the pattern, without what was expected of it before.

    Parameters
    ----------
    unknowns : ndarray, shape (4,)
        Coefficients found of the patterns q and q^2 less their means, ADU: in proportion to the light, and constant.
    covariance, prior : ndarray, shape (4, 4)
        Of these, after and before the frames were asked.
    expected : ndarray, shape (2,)
        What was taken out of the frames before, ADU.
    light_adu : float
        Light of the frames in which the patterns have these sizes.
    light_error : float
        Its relative error.
    n_cells : int
    """
    after = np.linalg.inv(covariance)
    information, right = after - np.linalg.inv(prior), after @ unknowns
    # A covariance that averages over several sizes of the glow may be larger than one that went in.
    values, vectors = np.linalg.eigh(0.5 * (information + information.T))
    information = (vectors * np.maximum(values, 0.0)) @ vectors.T
    information[2:, 2:] += np.eye(2) / (_AMPLIFIERS * light_adu) ** 2
    aside = np.linalg.solve(information[2:, 2:], information[2:, :2]).T
    own = (information[:2, :2] - aside @ information[2:, :2]) * light_adu**2
    own_right = (right[:2] - aside @ right[2:]) * light_adu + own @ expected / light_adu
    return SeenPattern(own, own_right, light_error, n_cells)


def flat_of_stars_and_sky(stars: StarFlat, seen: Sequence[SeenPattern], mean_q: Array) -> StarFlat:
    """Return the flat that fits both, and its covariance.

    Parameters
    ----------
    stars : StarFlat
        Where it is `usable` the patterns are what is left after it was applied.
    seen : sequence of SeenPattern
        Of the channels, of one camera, of frames that see more sky than one of them.
    mean_q : ndarray, shape (2,)
        Means of q and q^2 over a frame: the light of a frame is its mean.

    Returns
    -------
    StarFlat
        That of the stars where the sky says nothing.
    """
    information = np.sum([pattern.information for pattern in seen], axis=0)
    if not seen or np.linalg.cond(information) > 1e12:
        return stars
    applied = stars.nu if stars.usable else np.zeros(2)
    share = np.linalg.solve(information, np.sum([pattern.right for pattern in seen], axis=0))
    centre = 1.0 - share @ mean_q
    of_sky = flat_of_terms(share / centre) if centre > 0.0 else None
    if of_sky is None:
        return stars
    # A pedestal is wrong in all channels alike, and so is all light that is counted from it.
    in_common = max(pattern.light_error for pattern in seen) * of_sky
    of_all = 0.5 * _OTHER_WAY**2 * np.eye(2) + np.outer(in_common, in_common)
    weight_sky = np.linalg.inv(np.linalg.inv(information) + of_all)
    weight_stars = np.linalg.inv(stars.covariance)
    covariance = np.linalg.inv(weight_sky + weight_stars)
    found = covariance @ (weight_sky @ of_sky + weight_stars @ (stars.nu - applied))
    return replace(
        stars,
        nu=applied + found,
        covariance=covariance,
        n_cells=sum(pattern.n_cells for pattern in seen),
    )


def patterns_expected(flats: Sequence[StarFlat], level: float, pedestal_sigma: float) -> tuple[Array, Array]:
    """Return what the stars lead to expect of the patterns, ADU, and the covariance of all patterns.

    A flat that is applied leaves nothing but its error. One that is not good enough for that still says how much of a
    bowl on the detector is vignetting: its coefficients are poorly known one by one and well together.

    Returns
    -------
    vignetting : ndarray, shape (N, 2)
        Of the patterns in proportion to the light, in each frame.
    covariance : ndarray, shape (4, 4)
        Of those, of the camera they are known worst of; then of the constant ones.
    """
    wide = _PATTERN_WITHOUT_FLAT**2 * np.eye(2)
    of_camera: dict[int, tuple[Array, Array]] = {}
    for flat in flats:
        if id(flat) in of_camera:
            continue
        if not flat.n_measurements:
            of_camera[id(flat)] = np.zeros(2), level**2 * wide
            continue
        of_stars = _FLAT_ERRORS**2 * flat.covariance
        share = wide @ np.linalg.inv(wide + of_stars)
        left = np.diag((_LEAST_PATTERN * level) ** 2 + (flat.nu * pedestal_sigma) ** 2)
        expected = np.zeros(2) if flat.usable else level * (share @ flat.terms())
        of_camera[id(flat)] = expected, level**2 * (share @ of_stars) + left
    covariance = np.zeros((4, 4))
    covariance[:2, :2] = max(
        (known for _, known in of_camera.values()), key=lambda known: float(np.trace(known))
    )
    covariance[2:, 2:] = (_CONSTANT_PATTERN * level) ** 2 * np.eye(2)
    return np.array([of_camera[id(flat)][0] for flat in flats]), covariance
