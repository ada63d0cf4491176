"""What overlaps cannot tell of the sky: its tilt and bowl, and how far "the empty part is flat" decides them.

A plane over the whole mosaic changes no difference between frames, and neither does a bowl that looks like
vignetting on the detector. What the frames and the prior of the glow know about such large scales is in the
posterior; the gauge is one more observation, with an error of its own, that counts only as much as they leave open.
Arrays only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .sky_joint import Posterior, Reduced
from .sky_lattice import SkyLattice

__all__ = [
    "FLAT_SHARE",
    "Gauge",
    "empty_nodes",
    "gauged",
    "large_scale_errors",
    "large_scale_terms",
    "roughness_adu",
    "seen_nodes",
    "structure_adu",
]

# Half-width of "the empty sky is flat", as a share of the sky's level, beside what roughness adds.
FLAT_SHARE = 0.004
# Roughness of the empty part counts more for curvature, which faint nebulae imitate more easily.
_ROUGH_FACTORS = np.array([2.0, 2.0, 4.0, 4.0, 4.0])
# Within one field a nebula may be wider than all that is seen: its slope and curvature are then larger than the
# structure that shows. Of clouds about as wide as a field they were 4 and 6 times as large (rms), up to 9 and 20 times.
_FIELD_FACTORS = np.array([8.0, 8.0, 12.0, 12.0, 12.0])
# Above this the five terms together contradict a flat sky (chi square of 5 degrees of freedom).
_CONFLICT_CHI2 = 15.0
# Degrees of freedom of the belief that the empty sky is flat: nebulae wider than a mosaic are nothing unusual.
_TAIL, _WIDTH_ROUNDS = 1.0, 40
_CLIP_ABOVE, _CLIP_BELOW = 1.5, 4.0
_LEAST_EMPTY = 0.15
_MASK_ROUNDS = 30
_PASSES = 8
# The sky has settled when no node moves by more than this share of the light.
_SETTLED_SHARE = 0.001


@dataclass(frozen=True)
class Gauge:
    """A solution with the gauge, and what the frames alone said.

    Attributes
    ----------
    unknowns : ndarray
        As in `sky_joint.Posterior`, with the gauge.
    open_ : ndarray
        What the gauge says of what is open of the curvatures (`sky_joint.Reduced`).
    empty : ndarray of bool, shape (M,)
        Nodes taken for empty sky.
    sigma_data : ndarray, shape (5,), float64
        Standard error of the large scales x, y, x^2, xy, y^2 (ADU at the edge of the mosaic) without the gauge.
    used : bool
        False where there was nothing to ask.
    conflict : bool
        The frames contradict a flat sky somewhere; there they were believed.
    roughness_adu : float
        How empty "empty" is: `roughness_adu`, within one field `structure_adu`.
    """

    unknowns: np.ndarray
    open_: np.ndarray
    empty: np.ndarray
    sigma_data: np.ndarray
    used: bool
    conflict: bool
    roughness_adu: float


def large_scale_terms(node_xy: np.ndarray) -> np.ndarray:
    """Return 1, x, y, x^2, xy, y^2 per node with x and y in [-1, 1] over the longer side, shape (M, 6)."""
    low, high = node_xy.min(axis=0), node_xy.max(axis=0)
    half = max(float((high - low).max()) / 2, 1e-9)
    x, y = ((node_xy - (low + high) / 2) / half).T
    return np.column_stack([np.ones(len(x)), x, y, x * x, x * y, y * y])


def seen_nodes(hits: np.ndarray) -> np.ndarray:
    """Return which nodes (M,) cells weigh on by more than a trace."""
    return np.asarray(hits > 0.1 * np.median(hits))


def _about_polynomial(sky: np.ndarray, terms: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return what the polynomial of the masked nodes leaves of all of them, shape (M,)."""
    return np.asarray(sky - terms @ np.linalg.lstsq(terms[mask], sky[mask], rcond=None)[0])


def empty_nodes(sky: np.ndarray, terms: np.ndarray, hits: np.ndarray) -> np.ndarray:
    """Find the lower envelope of the sky: nodes near a quadric that only what lies above departs from.

    Returns
    -------
    ndarray of bool, shape (M,)
    """
    seen = seen_nodes(hits)
    mask = seen.copy()
    for _ in range(_MASK_ROUNDS):
        left = _about_polynomial(sky, terms, mask)
        below = left[seen & (left < 0)]
        if not len(below):
            break
        sigma = 1.4826 * float(np.median(-below))
        new = seen & (left < _CLIP_ABOVE * sigma) & (left > -_CLIP_BELOW * sigma)
        if new.sum() < _LEAST_EMPTY * seen.sum() or new.sum() < 2 * terms.shape[1] or (new == mask).all():
            break
        mask = new
    return np.asarray(mask)


def roughness_adu(sky: np.ndarray, terms: np.ndarray, mask: np.ndarray) -> float:
    """Return the scatter of the lower half of the masked nodes about their polynomial."""
    left = _about_polynomial(sky, terms, mask)[mask]
    below = left[left < 0]
    return 1.4826 * float(np.median(-below)) if len(below) else 0.0


def structure_adu(
    sky: np.ndarray, terms: np.ndarray, mask: np.ndarray, seen: np.ndarray, lattice: SkyLattice
) -> float:
    """Return half the range of the middle two thirds of all nodes seen, about the polynomial of the masked.

    One galaxy in a dark field counts for little in it; a nebula over much of the field does, where the lower half of
    the few nodes between its clouds would not show it. The noise of single nodes, which few frames see, is smoothed
    away before: it is no structure of the sky.
    """
    left = _about_polynomial(sky, terms, mask)
    low, high = np.percentile(lattice.smoothed(left, seen)[seen], [100 / 6, 500 / 6])
    return 0.5 * float(high - low)


def _agreed_width(found: np.ndarray, covariance: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Return how wide the gauge is for each term, given what the frames found.

    The sky is mostly flat and sometimes not at all: beliefs with long tails (Student's t of `_TAIL` degrees of
    freedom, term by term), whose scale follows from what is left of the term (expectation maximisation). A slope that
    the frames know well stays, one that they do not know is as flat as before.
    """
    squared = width**2
    for _ in range(_WIDTH_ROUNDS):
        pull = np.linalg.solve(covariance + np.diag(squared), covariance).T
        left = found - pull @ found
        uncertain = np.maximum(np.diag(covariance - pull @ covariance), 0.0)
        squared = (_TAIL * width**2 + left**2 + uncertain) / (_TAIL + 1.0)
    return np.asarray(np.sqrt(squared))


def large_scale_errors(
    reduced: Reduced, posterior: Posterior, terms: np.ndarray, hits: np.ndarray
) -> np.ndarray:
    """Return how well the frames know the large scales of all sky that is seen, shape (5,), ADU.

    That of a polynomial through its nodes, each counting as much as cells weigh on it. It has two parts: what is open
    of the glow, and the noise that the sky has once the glow is known. In a narrow strip x^2, xy and y^2 are so much
    alike that the second is the larger one.
    """
    root = np.sqrt(np.where(seen_nodes(hits), hits, 0.0))
    fit = (np.linalg.pinv(terms * root[:, None]) * root)[1:]
    _, onto, onto_open = reduced.of_sky(fit)
    covariance = onto @ posterior.covariance @ onto.T + onto_open @ onto_open.T
    covariance += reduced.equations.sky_noise(fit)
    return np.asarray(np.sqrt(np.diag(covariance)))


def gauged(
    reduced: Reduced,
    posterior: Posterior,
    lattice: SkyLattice,
    terms: np.ndarray,
    hits: np.ndarray,
    level: float,
    *,
    one_field: bool,
) -> Gauge:
    """Add "the empty part of the sky is flat" to a posterior, as one more observation.

    Mask and gauge follow from each other, so they are repeated until the sky settles.

    Parameters
    ----------
    lattice : SkyLattice
        Of the M nodes.
    terms : ndarray, shape (M, 6)
        From `large_scale_terms`.
    hits : ndarray, shape (M,)
        Weight of the cells on each node.
    level : float
        Light of the sky, ADU.
    one_field : bool
        Hardly more than one frame is seen: a nebula can fill that, and "flat" is believed less of the same structure.
    """
    factors = _FIELD_FACTORS if one_field else _ROUGH_FACTORS
    from_data = posterior.unknowns
    unknowns, open_ = from_data, np.zeros(len(reduced.whitened))
    sky = reduced.sky(unknowns, open_)
    conflict, rough = False, 0.0
    for _ in range(_PASSES):
        mask = empty_nodes(sky, terms, hits)
        fit = np.zeros((5, len(mask)))
        fit[:, mask] = np.linalg.pinv(terms[mask])[1:]
        # Large scales of the empty sky are linear in the unknowns: constant - onto x - onto_open z.
        constant, onto, onto_open = reduced.of_sky(fit)
        spread = onto @ posterior.covariance
        covariance = spread @ onto.T + onto_open @ onto_open.T
        rough = (
            structure_adu(sky, terms, mask, seen_nodes(hits), lattice)
            if one_field
            else roughness_adu(sky, terms, mask)
        )
        found = constant - onto @ from_data
        width = np.hypot(FLAT_SHARE * level, factors * rough)
        conflict = float(found @ np.linalg.solve(covariance + np.diag(width**2), found)) > _CONFLICT_CHI2
        width = _agreed_width(found, covariance, width)
        pull = np.linalg.solve(covariance + np.diag(width**2), found)
        unknowns, open_ = from_data + spread.T @ pull, onto_open.T @ pull
        before, sky = sky, reduced.sky(unknowns, open_)
        if float(np.abs(sky - before).max()) < _SETTLED_SHARE * level:
            break
    return Gauge(
        unknowns, open_, mask, large_scale_errors(reduced, posterior, terms, hits), True, conflict, rough
    )
