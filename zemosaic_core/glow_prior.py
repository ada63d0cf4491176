"""What is known beforehand about the glow of the night in all frames together, as one covariance. Arrays only.

The glow of a frame is a level and a plane over the detector. Where site and time are known, it is one of many possible
nights (`glow_nights`), and what no such night has: a Gaussian process over the directions of the local sky, smooth in
altitude and azimuth, drifting slowly with time. Where they are not, only what varies from night to night, visit to
visit and frame to frame is left of it. The sizes of the parts are found from the frames themselves (marginal
likelihood, `zemosaic_core.sky_joint`); this module only knows the shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .glow_nights import PossibleNights, possible_nights

__all__ = [
    "PROBE_UV",
    "SESSION_PATTERN",
    "SIZE_NAMES",
    "FrameCircumstances",
    "GlowPrior",
    "LocalSky",
    "NightPlanes",
]

# Detector places (u, v in [-1, 1]) whose directions stand for a frame, and how they give level and plane.
PROBE_UV = np.array([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
_LEVEL, _SLOPES = (0,), (1, 2)
_TO_PLANE = np.array([[1, 0, 0, 0, 0], [0, 0.5, -0.5, 0, 0], [0, 0, 0, 0.5, -0.5]])

# The free sizes, as shares of the sky's level: what is usual, and how far the frames may move them.
SIZE_NAMES = (
    "frame_level",
    "frame_plane",
    "visit_level",
    "visit_plane",
    "standing_glow",
    "drifting_glow",
    "detector_plane",
    "session_pattern",
    "frame_curvature",
    "visit_curvature",
)
SESSION_PATTERN = SIZE_NAMES.index("session_pattern")
BENDS = (SIZE_NAMES.index("frame_curvature"), SIZE_NAMES.index("visit_curvature"))
"""Positions of the sizes of curvatures."""
_USUAL = np.array([0.01, 0.002, 0.01, 0.004, 0.03, 0.02, 0.01, 0.002, 5e-4, 5e-4])
_LEAST = np.array([0.002, 3e-4, 1e-3, 3e-4, 0.01, 0.005, 5e-4, 1e-4, 5e-5, 5e-5])
_MOST = np.array([0.3, 0.15, 0.5, 0.3, 0.6, 0.3, 0.1, 0.05, 0.05, 0.05])
# Parts of fixed size, as shares of the level: any level at all, one per night, and without directions any at all.
_ANY_LEVEL, _PER_NIGHT, _LEVEL_WITHOUT_DIRECTIONS = 0.3, 0.3, 2.0
# Where directions are not known: a plane and a bowl over the mosaic, per half of a frame's side. Half a degree at an
# altitude of 45 degrees changes airmass and the light of towns by 1 to 2 %, the change by less than a tenth of that.
_SKY_PLANE, _SKY_BOWL = 0.01, 0.0007
# And levels that follow the target over the sky: the panels of a night, taken one after the other, look like a slope.
_LEVEL_DRIFT = 0.2
# Scales on which the glow changes: results move by less than half an ADU between 0.35 and 1.2 rad, 0.5 and 5 h.
_ANGLE_RAD = 0.6
_HOURS = 1.5


@dataclass(frozen=True)
class LocalSky:
    """Where the probe places of each frame look in the sky of the observer.

    Attributes
    ----------
    direction : ndarray, shape (N, 5, 3), float64
        Unit vectors (north, east, up) of the places `PROBE_UV`.
    airmass : ndarray, shape (N, 5), float64
    moonlight : ndarray, shape (N, 5), float64
        Brightness of moonlight in any unit; zeros while the Moon is down.
    """

    direction: np.ndarray
    airmass: np.ndarray
    moonlight: np.ndarray


@dataclass(frozen=True)
class FrameCircumstances:
    """When and how the frames were taken.

    Attributes
    ----------
    hours : ndarray, shape (N,), float64
        Time since any fixed moment.
    night : ndarray, shape (N,), int64
        Frames of one night share a number.
    visit : ndarray, shape (N,), int64
        Frames taken one after the other at one pointing share a number.
    local : LocalSky or None
        None where site or time is not known, or where glow over the local sky does not fit.
    session : ndarray, shape (N,), int64, optional
        Frames that one camera took in one way in one night share a number, 0, 1, ...; None: all of them.
    places : ndarray, shape (N, 5, 2), float64, optional
        Where the places `PROBE_UV` of each frame lie in the mosaic, from its middle, in halves of a frame's side.
    """

    hours: np.ndarray
    night: np.ndarray
    visit: np.ndarray
    local: LocalSky | None
    session: np.ndarray | None = None
    places: np.ndarray | None = None

    @property
    def sessions(self) -> np.ndarray:
        """Session of each frame, shape (N,)."""
        return np.zeros(len(self.hours), np.int64) if self.session is None else self.session

    def taken(self, rows: np.ndarray) -> FrameCircumstances:
        """Return the circumstances of some frames."""
        local = self.local
        if local is not None:
            local = LocalSky(local.direction[rows], local.airmass[rows], local.moonlight[rows])
        session = None if self.session is None else self.session[rows]
        places = None if self.places is None else self.places[rows]
        return FrameCircumstances(
            self.hours[rows], self.night[rows], self.visit[rows], local, session, places
        )


@dataclass(frozen=True)
class NightPlanes:
    """Levels and planes of the frames in possible nights (`glow_nights.PossibleNights`), in units of the level.

    Attributes
    ----------
    kinds : ndarray, shape (K, J, 3 N), float64
        Of each kind of light, as it enters the frames.
    usual, root : ndarray, shape (K, J) and (K, J, J), float64
        Mean and root of the covariance of their amounts.
    beside : ndarray, shape (3 N, 3 N), float64
        The part of the covariance, of fixed size, that these nights do not have: what differs from date to date, and
        what may be added to all frames.
    """

    kinds: np.ndarray
    usual: np.ndarray
    root: np.ndarray
    beside: np.ndarray


def _over_the_mosaic(
    places: np.ndarray, night: np.ndarray, outer: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Covariance of a plane and a bowl of light over the whole mosaic, other ones in each night, in units of the level.

    Overlaps cannot tell them from a tilt and a bowl of the sky. Without directions over the horizon nothing else may
    claim to, least of all that the frames of all panels have the same level.
    """
    x, y = places[..., 0], places[..., 1]
    shapes = (_SKY_PLANE, x), (_SKY_PLANE, y), (_SKY_BOWL, x * x), (_SKY_BOWL, x * y), (_SKY_BOWL, y * y)
    total = sum(size**2 * outer(shape) for size, shape in shapes)
    return np.asarray(total * np.kron(night[:, None] == night[None, :], np.ones((3, 3))))


class GlowPrior:
    """Covariance of level and plane of all frames (3 N unknowns, frame by frame) for given sizes.

    Parameters
    ----------
    circumstances : FrameCircumstances
    gains : ndarray, shape (N,)
        The glow enters a frame multiplied by its gain.
    level : float
        Typical light of the sky above the pedestal, ADU: unit of all sizes.
    session_shape : ndarray, shape (S,), optional
        Relative sizes of what sessions have of their own on the detector (`sky_joint.SkyCells`); None: nothing.
    """

    def __init__(
        self,
        circumstances: FrameCircumstances,
        gains: np.ndarray,
        level: float,
        session_shape: np.ndarray | None = None,
    ) -> None:
        n = len(gains)
        self.level = level
        self.n_frames = n
        self._session_shape = np.zeros(0) if session_shape is None else session_shape
        level_part = np.diag([1.0, 0.0, 0.0])
        everywhere = np.ones((n, len(PROBE_UV)))

        def outer(shape: np.ndarray) -> np.ndarray:
            vector = (np.einsum("ap,ip->ia", _TO_PLANE, shape) * gains[:, None]).ravel()
            return np.outer(vector, vector)

        def same(labels: np.ndarray) -> np.ndarray:
            return np.asarray(labels[:, None] == labels[None, :], dtype=np.float64)

        local = circumstances.local
        any_level = _LEVEL_WITHOUT_DIRECTIONS if local is None else _ANY_LEVEL
        self._fixed = any_level**2 * outer(everywhere)
        self._fixed += _PER_NIGHT**2 * np.kron(same(circumstances.night), level_part)
        visits, frames = same(circumstances.visit), np.eye(n)
        # What frames share, for the level or for both slopes; the parts that mix these are whole tables.
        everyone = np.ones((n, n))
        self._sized: list[np.ndarray | tuple[np.ndarray, tuple[int, ...]] | None] = [
            (frames, _LEVEL),
            (frames, _SLOPES),
            (visits, _LEVEL),
            (visits, _SLOPES),
            None,
            None,
            (everyone, _SLOPES),
            None,
            None,
            None,
        ]
        self._same_visit = np.outer(gains, gains) * visits
        self._gains = gains
        self._circumstances = circumstances
        self._without_nights = self._fixed.copy() if local is not None else self._fixed
        if local is None:
            if circumstances.places is not None:
                self._fixed += _over_the_mosaic(circumstances.places, circumstances.night, outer)
                elapsed = circumstances.hours[:, None] - circumstances.hours[None, :]
                drift = np.exp(-(elapsed**2) / (2 * _HOURS**2))
                self._fixed += _LEVEL_DRIFT**2 * np.kron(drift, level_part)
            return
        planes = self._as_planes(self._nights().drawn)
        self._fixed += planes.T @ planes / len(planes)
        direction = local.direction.reshape(-1, 3)
        # These tables are the largest of all: they are worked on where they are.
        kernel = (2.0 * direction) @ direction.T
        np.subtract(2.0, kernel, out=kernel)
        np.maximum(kernel, 0.0, out=kernel)
        kernel /= -(2 * _ANGLE_RAD**2)
        np.exp(kernel, out=kernel)
        self._sized[4] = _on_planes(kernel, gains)
        hours = np.repeat(circumstances.hours, len(PROBE_UV))
        elapsed = hours[:, None] - hours[None, :]
        np.square(elapsed, out=elapsed)
        elapsed /= -(2 * _HOURS**2)
        kernel *= np.exp(elapsed, out=elapsed)
        self._sized[5] = _on_planes(kernel, gains)

    def _nights(self) -> PossibleNights:
        circumstances, local = self._circumstances, self._circumstances.local
        assert local is not None
        return possible_nights(
            local.direction, local.airmass, local.moonlight, circumstances.hours, circumstances.night
        )

    def _as_planes(self, light: np.ndarray) -> np.ndarray:
        """Return light (..., N, 5) as it enters level and plane of the frames, (..., 3 N)."""
        planes = (light @ _TO_PLANE.T) * self._gains[:, None]
        return np.asarray(planes.reshape(*light.shape[:-2], -1))

    def nights(self) -> NightPlanes | None:
        """Return the nights that could be, one by one; None where directions are not known."""
        if self._circumstances.local is None:
            return None
        nights = self._nights()
        between = self._as_planes(nights.between_dates)
        beside = self._without_nights + between.T @ between / len(between)
        return NightPlanes(self._as_planes(nights.kinds), nights.usual, nights.root, beside)

    @property
    def free(self) -> np.ndarray:
        """Positions of the sizes that exist here."""
        exists = [part is not None for part in self._sized]
        exists[SESSION_PATTERN] = self._session_shape.size > 0
        for k in BENDS:
            exists[k] = True
        return np.flatnonzero(exists)

    @property
    def usual(self) -> np.ndarray:
        """Logarithms of the usual sizes, shape (10,)."""
        return np.asarray(np.log(_USUAL))

    @property
    def least(self) -> np.ndarray:
        """Logarithms of the least sizes, shape (10,)."""
        return np.asarray(np.log(_LEAST))

    @staticmethod
    def clipped(log_sizes: np.ndarray) -> np.ndarray:
        """Return logarithms of sizes within what is allowed."""
        return np.asarray(np.clip(log_sizes, np.log(_LEAST), np.log(_MOST)))

    def session_variance(self, log_sizes: np.ndarray) -> np.ndarray:
        """Return the variances (S,) in ADU^2 of what sessions have of their own."""
        size = float(np.exp(log_sizes[SESSION_PATTERN])) * self.level
        return np.asarray((size * self._session_shape) ** 2)

    def bend_root(self, log_sizes: np.ndarray) -> np.ndarray:
        """Return a square root (N, N) in ADU of the covariance of a curvature between the frames."""
        of_frame, of_visit = (np.exp(log_sizes[k]) * self.level for k in BENDS)
        total = of_visit**2 * self._same_visit
        total[np.diag_indices_from(total)] += (of_frame * self._gains) ** 2
        return np.asarray(np.linalg.cholesky(total))

    def covariance(self, log_sizes: np.ndarray, fixed: np.ndarray | None = None) -> np.ndarray:
        """Return the covariance (3 N, 3 N) in ADU^2 for sizes given as logarithms of shares of the level.

        ``fixed`` takes the place of its part of fixed size (`NightPlanes.beside`).
        """
        sizes = np.exp(log_sizes)
        total = (self._fixed if fixed is None else fixed).copy()
        of_terms = total.reshape(self.n_frames, 3, self.n_frames, 3)
        for size, part in zip(sizes, self._sized, strict=True):
            if isinstance(part, tuple):
                shared = size**2 * part[0]
                for term in part[1]:
                    of_terms[:, term, :, term] += shared
            elif part is not None:
                total += size**2 * part
        # Keeps parts that repeat each other from making the matrix singular.
        total[np.diag_indices_from(total)] += 1e-11
        total *= self.level**2
        return total


def _on_planes(kernel: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """Return what a covariance between the probes of all frames is between their levels and planes, (3 N, 3 N)."""
    n, n_probes = len(gains), len(PROBE_UV)
    pairs = kernel.reshape(n, n_probes, n, n_probes)
    planes = np.einsum("ap,ipjq,bq->iajb", _TO_PLANE, pairs, _TO_PLANE, optimize=True).reshape(3 * n, 3 * n)
    scale = np.repeat(gains, 3)
    return np.asarray(scale[:, None] * planes * scale[None, :])
