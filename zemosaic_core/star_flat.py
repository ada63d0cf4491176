"""The flat field that stars tell: the same star at different places of the detector. Arrays only.

Overlaps of panels, field rotation and dithers move stars over the detector. What their fluxes change by, once the
transparency of each frame is taken out, is the vignetting, without any flat frame (Manfroid 1995; Regnault et al.
2009 call it the star flat).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .adjustment import solve_adjustment
from .photometry import scatter_by_brightness

__all__ = [
    "StarFlat",
    "flat_of_terms",
    "no_star_flat",
    "radius_squared",
    "solve_camera_flats",
    "solve_star_flat",
]

# A flat that is good to this much in the corner is better than none; vignetting of small telescopes is 3 to 12 %.
USABLE_SIGMA = 0.008
# So is one that is known less well where more is found, over the detector, than this many times its error.
_POOR_SIGMA, _FAR_FROM_NONE = 0.02, 2.0
# q and q^2 from the centre to the corner, on which flats are compared and refitted.
_OVER_DETECTOR = np.linspace(0.0, 1.0, 101)[:, None] ** np.array([1, 2])
# Pull of the two coefficients to zero: decides only what the stars leave open.
_PRIOR_SIGMA = 0.3
_FRAME_PRIOR = 1e-6
_ROUNDS = 8
_BISQUARE = 4.7
_MIN_MEASUREMENTS = 60
# Chi square of the differences between cameras, in its standard deviations, from which they have flats of their own.
_DIFFERENT_CAMERAS = 5.0


@dataclass(frozen=True)
class StarFlat:
    """Vignetting ``V(q) = exp(nu_1 q + nu_2 q^2)`` with q = 0 in the centre and 1 in the corners.

    Attributes
    ----------
    nu : ndarray, shape (2,), float64
        Coefficients of ln V; zeros when the stars could not tell.
    covariance : ndarray, shape (2, 2), float64
        Their covariance, as the scatter of the stars gives it.
    n_measurements : int
        Star fluxes behind it.
    n_cells : int
        Cells of the sky behind it (`sky_flat`); 0 where stars alone tell it.
    """

    nu: np.ndarray
    covariance: np.ndarray
    n_measurements: int
    n_cells: int = 0

    @property
    def corner(self) -> float:
        """Light that the corner gets relative to the centre."""
        return float(np.exp(self.nu.sum()))

    @property
    def corner_sigma(self) -> float:
        """Standard error of ``ln V`` in the corner."""
        return float(np.sqrt(self.covariance.sum()))

    @property
    def usable(self) -> bool:
        """True when the frames are better off with the flat than without.

        Either its error in the corner is below `USABLE_SIGMA`, or below 2 % and ``ln V`` over the detector, rms, is
        more than twice its error there.
        """
        if self.n_measurements + self.n_cells == 0:
            return False
        if self.corner_sigma < USABLE_SIGMA:
            return True
        found = float(np.mean((_OVER_DETECTOR @ self.nu) ** 2))
        error = float(np.mean(((_OVER_DETECTOR @ self.covariance) * _OVER_DETECTOR).sum(axis=1)))
        return self.corner_sigma < _POOR_SIGMA and found > _FAR_FROM_NONE**2 * error

    def inverse_terms(self) -> tuple[float, float]:
        """Return ``f_1, f_2`` so that ``1 / V`` is ``1 + f_1 q + f_2 q^2``, least squares over the detector.

        The error of this polynomial is below 1e-4 up to a vignetting of 12 %.
        """
        f1, f2 = _polynomial(-self.nu)
        return float(f1), float(f2)

    def terms(self) -> np.ndarray:
        """Return ``v_1, v_2`` so that ``V`` is ``1 + v_1 q + v_2 q^2``, least squares over the detector."""
        return _polynomial(self.nu)

    def values(self, q: np.ndarray) -> np.ndarray:
        """Return ``V`` at squared distances `q`."""
        return np.asarray(np.exp(self.nu[0] * q + self.nu[1] * q**2))


def _polynomial(nu: np.ndarray) -> np.ndarray:
    """Return the coefficients (2,) of q and q^2 in ``exp(nu_1 q + nu_2 q^2) - 1``."""
    return np.asarray(np.linalg.lstsq(_OVER_DETECTOR, np.expm1(_OVER_DETECTOR @ nu), rcond=None)[0])


def flat_of_terms(terms: np.ndarray) -> np.ndarray | None:
    """Return ``nu`` (2,) of the flat ``1 + v_1 q + v_2 q^2``, least squares; None where that has no light somewhere."""
    light = 1.0 + _OVER_DETECTOR @ terms
    if not (light > 0.0).all():
        return None
    return np.asarray(np.linalg.lstsq(_OVER_DETECTOR, np.log(light), rcond=None)[0])


def radius_squared(x: np.ndarray, y: np.ndarray, shape_hw: tuple[int, int]) -> np.ndarray:
    """Return the squared distance from the image centre, 1 in the corners.

    Parameters
    ----------
    x, y : ndarray
        Frame px, origin 0.
    shape_hw : tuple of int
    """
    height, width = shape_hw
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    corner = max(centre_x**2 + centre_y**2, 1e-9)
    return ((np.asarray(x) - centre_x) ** 2 + (np.asarray(y) - centre_y) ** 2) / corner


def no_star_flat() -> StarFlat:
    """Return the flat of a detector about which nothing is known."""
    return StarFlat(np.zeros(2), np.eye(2) * _PRIOR_SIGMA**2, 0)


def solve_star_flat(
    frame_index: np.ndarray,
    star_index: np.ndarray,
    flux: np.ndarray,
    q: np.ndarray,
    n_frames: int,
    n_stars: int,
) -> StarFlat:
    """Solve ``ln flux = ln s_star - ln g_frame + nu_1 q + nu_2 q^2 + noise``, one flat for all channels.

    Stars and frames are eliminated exactly (Frisch and Waugh): brightness and both patterns are freed of what a
    constant per star and per frame explains, and what is left of the brightness is fitted with what is left of
    the patterns. Bisquare weights; the scatter is measured as a function of brightness.

    Parameters
    ----------
    frame_index, star_index : ndarray, shape (K,), int
    flux : ndarray, shape (K, C)
        NaN or <= 0 where unknown (for instance saturated).
    q : ndarray, shape (K,)
        Squared distance of the detection from the image centre (`radius_squared`).
    n_frames, n_stars : int

    Returns
    -------
    StarFlat
        Within one undithered panel nothing is determined, and the covariance says so.
    """
    frame, star = np.asarray(frame_index, np.int64), np.asarray(star_index, np.int64)
    flux, q = np.asarray(flux, np.float64), np.asarray(q, np.float64)
    if not (len(flux) == len(frame) == len(star) == len(q)) or flux.ndim != 2:
        raise ValueError(f"flux (K, C), frame, star and q (K,) disagree: {flux.shape}, {q.shape}")
    information, right, used = np.eye(2) / _PRIOR_SIGMA**2, np.zeros(2), 0
    for c in range(flux.shape[1]):
        with np.errstate(invalid="ignore"):
            good = np.isfinite(flux[:, c]) & (flux[:, c] > 0) & np.isfinite(q)
        good &= np.bincount(star[good], minlength=n_stars)[star] >= 3
        if good.sum() < _MIN_MEASUREMENTS:
            continue
        inf, r = _channel_equations(frame[good], star[good], flux[good, c], q[good], n_frames, n_stars)
        information, right, used = information + inf, right + r, used + int(good.sum())
    if used == 0:
        return no_star_flat()
    covariance = np.linalg.inv(information)
    return StarFlat(covariance @ right, covariance, used)


def solve_camera_flats(
    frame_index: np.ndarray,
    star_index: np.ndarray,
    flux: np.ndarray,
    q: np.ndarray,
    camera: np.ndarray,
    n_stars: int,
) -> tuple[StarFlat, ...]:
    """Return a flat for each frame: one for all of them, or one per camera where cameras differ.

    Cameras share a flat unless their own ones are further apart than their errors explain: what all stars say
    together is better known.

    Parameters
    ----------
    camera : ndarray, shape (N,), int
        Camera of each frame; the other parameters are those of `solve_star_flat`.
    """
    frame = np.asarray(frame_index, np.int64)
    camera = np.asarray(camera, np.int64)
    common = solve_star_flat(frame, star_index, flux, q, len(camera), n_stars)
    labels = np.unique(camera)
    if len(labels) == 1:
        return (common,) * len(camera)
    own = {}
    for label in labels:
        use = camera[frame] == label
        own[int(label)] = solve_star_flat(
            frame[use], np.asarray(star_index)[use], flux[use], q[use], len(camera), n_stars
        )
    away = [flat.nu - common.nu for flat in own.values()]
    chi2 = sum(
        float(d @ np.linalg.solve(flat.covariance, d)) for d, flat in zip(away, own.values(), strict=True)
    )
    n_differences = 2 * (len(own) - 1)
    if chi2 <= n_differences + _DIFFERENT_CAMERAS * np.sqrt(2 * n_differences):
        return (common,) * len(camera)
    return tuple(own[int(label)] for label in camera)


def _channel_equations(
    frame: np.ndarray, star: np.ndarray, flux: np.ndarray, q: np.ndarray, n_frames: int, n_stars: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the normal matrix (2, 2) and right side (2,) of ln V from one channel."""
    columns = np.column_stack([np.log(flux), q, q**2])
    basis = np.ones((len(frame), 1))
    prior = np.full((n_frames, 1), _FRAME_PRIOR)
    seen = np.bincount(star, minlength=n_stars)[star]
    inflate = seen / np.maximum(seen - 1.0, 1.0)
    weights = np.ones(len(frame))
    start = np.zeros((n_frames, 1, 3))
    information, right = np.zeros((2, 2)), np.zeros(2)
    for _ in range(_ROUNDS):
        fit = solve_adjustment(
            frame, star, basis, columns, weights, prior, n_stars, start=start, tolerance=1e-7
        )
        start = fit.parameters
        # A star whose measurements all lost their weight has no value and says nothing.
        level = fit.star_values[star]
        known = np.isfinite(level).all(axis=1)
        left = np.where(known[:, None], columns + start[frame, 0] - np.where(known[:, None], level, 0.0), 0.0)
        information = (left[:, 1:] * weights[:, None]).T @ left[:, 1:]
        right = (left[:, 1:] * weights[:, None]).T @ left[:, 0]
        nu = np.linalg.solve(information + np.eye(2) * 1e-9, right)
        residual2 = np.where(known, (left[:, 0] - left[:, 1:] @ nu) ** 2 * inflate, np.inf)
        noise = scatter_by_brightness(np.where(known, level[:, 0] - level[:, 1:] @ nu, np.nan), residual2)
        weights = np.maximum(1.0 - residual2 / (_BISQUARE * noise) ** 2, 0.0) ** 2 / noise**2
    return information, right
