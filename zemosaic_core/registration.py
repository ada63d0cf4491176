"""Global registration: all frames of a mosaic against all stars at once, on the plane of the mosaic.

The shape of each frame's initial map (projection and distortion of its WCS) is kept as a cubic polynomial;
the stars decide a correction to it. First an affine correction of every frame is solved jointly over all
shared stars, so that an error cannot build up along a chain of panels; then each frame is refitted on the
common star positions with the simplest correction its own residuals justify. Arrays only; no files.

Gauge: what relative measurements cannot tell (a shift, rotation or scale of the whole mosaic) follows the
initial maps. Each frame's correction is pulled to zero with a weight far below that of its stars and
robustly, so the mosaic as a whole stays where most of the initial maps put it. Catalogue anchors, where
given, take over that role.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial import cKDTree

from .adjustment import corrections, frame_components, solve_adjustment, star_means
from .errors import SkipItem
from .star_merging import join_ghosts, merge_positions, vote_offset
from .transforms import (
    FitResult,
    Kind,
    Transform,
    choose_transform,
    compose,
    fit_callable,
    fit_transform,
    lattice_points,
)

__all__ = ["FrameRegistration", "GlobalRegistration", "PlaneMap", "RegistrationOptions", "register_globally"]

# Weights must not explode on noiseless input.
_MIN_SIGMA_PX = 0.02

PlaneMap = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class RegistrationOptions:
    """Numbers that rarely change.

    Attributes
    ----------
    max_kind : str
        Richest correction a frame may get (`transforms.KINDS`).
    min_matches : int
        Fewer matched stars: the frame keeps its initial map.
    max_rms_px : float
        A worse fit keeps the initial map and is marked.
    min_radius_px : float
        Matching never gets stricter than this.
    prior_shift_px, prior_linear_px : float
        How far a frame's initial map may be off: as a shift, and at its corners by rotation, scale and shear.
    anchor_sigma_px : float
        Accuracy of the anchors on the plane.
    recover_radius_px : float
        Frames that match badly, and groups of frames that are off together, are searched for a common shift of
        their stars this far out; 0: never.
    """

    max_kind: Kind = "poly3"
    min_matches: int = 6
    max_rms_px: float = 1.5
    min_radius_px: float = 1.0
    prior_shift_px: float = 2.0
    prior_linear_px: float = 2.0
    anchor_sigma_px: float = 0.3
    recover_radius_px: float = 40.0


@dataclass(frozen=True)
class FrameRegistration:
    """Where one frame lies on the plane.

    Attributes
    ----------
    to_plane, to_frame : Transform or None
        Frame px -> plane px and back. None only when the initial map itself is unusable.
    rms_px : float
        Root mean square 2-D distance of the matched stars, frame px; NaN when nothing was fitted.
    n_matched : int
        Stars used by the fit.
    kind : str
        Kind of the correction; '' when the initial map was kept.
    ok : bool
        Refitted on stars.
    reason : str
        Text key why not; '' when ok.
    shift_px : float
        Largest distance between the initial and the final position of a frame corner, plane px.
    """

    to_plane: Transform | None
    to_frame: Transform | None
    rms_px: float
    n_matched: int
    kind: str
    ok: bool
    reason: str
    shift_px: float


@dataclass(frozen=True)
class GlobalRegistration:
    """All frames and the common star list.

    Attributes
    ----------
    frames : tuple of FrameRegistration
        In the order given.
    star_xy : ndarray, shape (M, 2), float64
        Mean star positions, plane px.
    n_seen : ndarray, shape (M,), int64
        Frames each star was seen in.
    frame_index, star_index, detection_index : ndarray, shape (K,), int64
        Sparse table of detections: frame, star, and index in the frame's own list; ordered by frame.
    flux : ndarray, shape (K, C), float64
        Flux of each detection; NaN where unknown.
    component : ndarray, shape (N,), int64
        Frames linked by common stars share a number, 0 the largest; -1: without a link.
    scatter_px : float
        Robust scatter per axis of detections around their stars, plane px.
    """

    frames: tuple[FrameRegistration, ...]
    star_xy: np.ndarray
    n_seen: np.ndarray
    frame_index: np.ndarray
    star_index: np.ndarray
    detection_index: np.ndarray
    flux: np.ndarray
    component: np.ndarray
    scatter_px: float


@dataclass(frozen=True)
class _Detections:
    """All detections of all usable frames, flat; `plane` are the initial positions.

    `centre` and `half` (per frame) are the middle of the frame on the plane and half its diagonal.
    """

    frame: np.ndarray
    index: np.ndarray
    xy: np.ndarray
    plane: np.ndarray
    centre: np.ndarray
    half: np.ndarray

    def basis(self, plane_xy: np.ndarray) -> np.ndarray:
        """Return 1 and both normalised frame-centred coordinates of a plane position per detection."""
        offset = (plane_xy - self.centre[self.frame]) / self.half[self.frame, None]
        return np.column_stack([np.ones(len(offset)), offset])


@dataclass(frozen=True)
class _Stars:
    """The present star list: which star each detection belongs to, its weight, and where the stars are."""

    index: np.ndarray
    weight: np.ndarray
    xy: np.ndarray
    sigma: float
    anchor_xy: np.ndarray
    anchor_weight: np.ndarray


def register_globally(
    star_xy: Sequence[np.ndarray],
    star_flux: Sequence[np.ndarray],
    initial: Sequence[Transform | PlaneMap],
    *,
    match_radius_px: float = 3.0,
    iterations: int = 4,
    anchors_xy: np.ndarray | None = None,
    shapes_hw: Sequence[tuple[int, int]] | tuple[int, int] | None = None,
    options: RegistrationOptions | None = None,
) -> GlobalRegistration:
    """Register all frames on the mosaic plane through their common stars.

    Parameters
    ----------
    star_xy : sequence of ndarray, shape (n_i, 2), float64
        Star positions of each frame, frame px (x, y); rows with NaN are ignored.
    star_flux : sequence of ndarray, shape (C, n_i)
        Fluxes per channel, NaN allowed; only carried through to the result.
    initial : sequence of callables
        Frame px -> plane px, each smooth over its frame.
    match_radius_px : float
        How far initial positions of the same star may be from their mean; shrinks with the iterations.
    iterations : int
        Rounds of merging and solving, at least 1.
    anchors_xy : ndarray, shape (A, 2), optional
        Catalogue stars on the plane, plane px.
    shapes_hw : shape or sequence of shapes, optional
        Frame sizes: the area over which the maps must hold. Default: the extent of all stars.
    options : RegistrationOptions, optional

    Returns
    -------
    GlobalRegistration
        Frames with too few matches or a poor fit keep their initial map (as a cubic) with ``ok=False``.
    """
    options = options or RegistrationOptions()
    n = len(star_xy)
    if not (len(star_flux) == len(initial) == n) or iterations < 1:
        raise ValueError(
            f"need one star list, flux table and initial map per frame, got {n}, {len(star_flux)} and "
            f"{len(initial)}, and at least 1 iteration, got {iterations}"
        )
    boxes = _frame_boxes(star_xy, shapes_hw)
    base = [_initial_transforms(m, box) for m, box in zip(initial, boxes, strict=True)]
    detections = _flatten(star_xy, base, boxes)
    anchors = (
        np.empty((0, 2)) if anchors_xy is None else np.asarray(anchors_xy, dtype=np.float64).reshape(-1, 2)
    )
    parameters = np.zeros((n, 3, 2))
    radius = match_radius_px
    stars = None
    original = base
    for iteration in range(iterations):
        # Frames of two panels may be off together: at first everything within the radius pulls alike, or the
        # many stars that agree inside each panel would declare the few in the overlap outliers.
        tail = radius / (4.0 if iteration == 0 else 12.0)
        stars, parameters = _solve_affine(detections, parameters, radius, tail, anchors, options)
        if iteration == 0 and options.recover_radius_px > 0:
            shifts = _recover_shifts(detections, stars, n, options)
            if shifts:
                base = [_shifted(b, shifts.get(i)) for i, b in enumerate(base)]
                detections = _flatten(star_xy, base, boxes)
                parameters[list(shifts)] = 0.0
                stars, parameters = _solve_affine(detections, parameters, radius, tail, anchors, options)
            joined = join_ghosts(stars.xy, stars.index, detections.frame, options.recover_radius_px)
            if joined is not None:
                reach = options.recover_radius_px
                parameters = _adjust(detections, joined, parameters, reach, anchors, options)[1]
                stars, parameters = _solve_affine(detections, parameters, radius, tail, anchors, options)
        radius = float(np.clip(6.0 * stars.sigma, max(options.min_radius_px, 0.5 * radius), radius))
    positions = detections.plane
    for _ in range(2):
        # The second round fits on stars that are free of what an affine correction could not follow.
        fits = _fit_frames(detections, stars, base, n, options)
        frames = [_frame_registration(f, base[i], original[i], boxes[i]) for i, f in enumerate(fits)]
        positions = _refit_positions(detections, frames, positions)
        trusted = np.array([f.ok for f in frames], dtype=bool)[detections.frame]
        stars = _restar(detections, positions, radius, anchors, options, trusted)
    return _collect(tuple(frames), detections, positions, stars, radius, star_flux, n)


def _frame_boxes(star_xy, shapes_hw) -> list[tuple[float, float, float, float]]:
    n = len(star_xy)
    if shapes_hw is not None:
        array = np.broadcast_to(np.asarray(shapes_hw, dtype=np.float64), (n, 2))
        return [(-0.5, -0.5, w - 0.5, h - 0.5) for h, w in array]
    filled = [np.asarray(s, dtype=np.float64).reshape(-1, 2) for s in star_xy if len(s)]
    points = np.concatenate(filled) if filled else np.empty((0, 2))
    points = points[np.isfinite(points).all(axis=1)]
    if len(points) == 0:
        raise ValueError("without any star the frames' shapes_hw must be given")
    low, high = points.min(axis=0), points.max(axis=0) + 1.0
    return [(float(low[0]), float(low[1]), float(high[0]), float(high[1]))] * n


def _initial_transforms(initial: PlaneMap, box) -> tuple[Transform, Transform] | str:
    """Return the initial map and its inverse as cubics, or the text key of what is wrong with it."""
    try:
        return fit_callable(initial, box)[0], fit_callable(initial, box, inverse=True)[0]
    except SkipItem as error:
        return error.key


def _shifted(base, shift):
    if shift is None or isinstance(base, str):
        return base
    forward, backward = base
    dx, dy = shift
    coeff_x, coeff_y = forward.coeff_x.copy(), forward.coeff_y.copy()
    coeff_x[0] += dx
    coeff_y[0] += dy
    center = (backward.center[0] + dx, backward.center[1] + dy)
    return replace(forward, coeff_x=coeff_x, coeff_y=coeff_y), replace(backward, center=center)


def _flatten(star_xy, base, boxes) -> _Detections:
    n = len(star_xy)
    centre, half = np.zeros((n, 2)), np.ones(n)
    parts = [(np.empty(0, dtype=np.int64),) * 2 + (np.empty((0, 2)),) * 2]
    for i, (xy, maps, box) in enumerate(zip(star_xy, base, boxes, strict=True)):
        if isinstance(maps, str) or len(xy) == 0:
            continue
        points = np.asarray(xy, dtype=np.float64).reshape(-1, 2)
        index = np.flatnonzero(np.isfinite(points).all(axis=1))
        points = points[index]
        plane = np.column_stack(maps[0].apply(points[:, 0], points[:, 1]))
        corners = np.column_stack(maps[0].apply(*_corners(box)))
        centre[i] = corners.mean(axis=0)
        half[i] = np.hypot(*(corners - centre[i]).T).max()
        parts.append((np.full(len(points), i, dtype=np.int64), index, points, plane))
    return _Detections(*(np.concatenate(column) for column in zip(*parts, strict=True)), centre, half)


def _corners(box) -> tuple[np.ndarray, np.ndarray]:
    return np.array(box)[[0, 2, 0, 2]], np.array(box)[[1, 1, 3, 3]]


def _positions(detections: _Detections, parameters: np.ndarray, at: np.ndarray) -> np.ndarray:
    moved = corrections(detections.frame, detections.basis(at), parameters)
    moved += detections.plane
    return np.asarray(moved)


def _solve_affine(detections, parameters, radius, tail, anchors, options) -> tuple[_Stars, np.ndarray]:
    """One round: merge at the present positions, then solve all frames jointly."""
    positions = _positions(detections, parameters, detections.plane)
    index, _ = merge_positions(positions, detections.frame, radius)
    return _adjust(detections, index, parameters, tail, anchors, options, radius)


def _adjust(
    detections, index, parameters, tail, anchors, options, anchor_radius=0.0
) -> tuple[_Stars, np.ndarray]:
    """Solve all frames jointly for a given assignment of detections to stars, with robust weights.

    The correction of a detection is evaluated at its star's mean position, not at the noisy measured one:
    otherwise the residuals could be made smaller by shrinking the whole plane, and they would be.
    """
    positions = _positions(detections, parameters, detections.plane)
    n_stars = int(index.max(initial=-1)) + 1
    mean = star_means(index, positions, np.ones(len(index)), n_stars)
    anchor = _match_anchors(mean, anchors, anchor_radius, options)
    trusted = np.ones(len(index), dtype=bool)
    stars = _weigh(index, mean, positions, anchor, trusted, tail)
    sigma_prior = np.array([options.prior_shift_px] + 2 * [options.prior_linear_px])
    for _ in range(3):
        # A frame far from its initial map (solved wrongly) must not drag the whole mosaic along.
        size = np.sqrt((parameters**2).sum(axis=2)) / sigma_prior
        prior = np.minimum(1.0, 1.0 / np.maximum(size, 1e-12)) / sigma_prior**2
        at = stars.xy[stars.index]
        solution = solve_adjustment(
            detections.frame,
            stars.index,
            detections.basis(at),
            detections.plane,
            stars.weight,
            prior,
            n_stars,
            anchor_values=stars.anchor_xy,
            anchor_weights=stars.anchor_weight,
            start=parameters,
        )
        parameters = solution.parameters
        positions = _positions(detections, parameters, at)
        stars = _weigh(index, solution.star_values, positions, anchor, trusted, tail)
    return stars, parameters


def _restar(detections, positions, radius, anchors, options, trusted) -> _Stars:
    """Merge once more at final positions and average; frames without a fit do not move the stars."""
    index, merged = merge_positions(positions, detections.frame, radius)
    anchor = _match_anchors(merged, anchors, radius, options)
    stars = _weigh(index, merged, positions, anchor, trusted)
    for _ in range(2):
        all_index = np.concatenate([index, np.arange(len(merged))])
        values = np.concatenate([positions, stars.anchor_xy])
        weights = np.concatenate([stars.weight, stars.anchor_weight])
        mean = star_means(all_index, values, weights, len(merged))
        stars = _weigh(index, np.where(np.isnan(mean), merged, mean), positions, anchor, trusted)
    return stars


def _weigh(index, star_xy, positions, anchor, trusted, tail=0.0) -> _Stars:
    """Robust weights of all detections: bisquare to six times the scatter, or six times `tail` if larger.

    Lone detections weigh nothing.
    """
    n_stars = len(star_xy)
    anchor_xy, anchor_weight = anchor
    # An anchor counts as one more detection of its star.
    count = np.bincount(index, trusted, minlength=n_stars) + (anchor_weight > 0)
    shared = trusted & (count[index] >= 2)
    lone = star_means(index, positions, np.ones(len(index)), n_stars)
    xy = np.where(np.isnan(star_xy), lone, star_xy)
    # A detection pulls its own star along: undo the shrinkage before measuring the scatter.
    inflate = count[index] / np.maximum(count[index] - 1.0, 1.0)
    residual2 = ((positions - xy[index]) ** 2).sum(axis=1) * inflate
    sigma = _MIN_SIGMA_PX
    if shared.any():
        sigma = max(sigma, float(np.sqrt(np.median(residual2[shared]) / (2.0 * np.log(2.0)))))
    bisquare = np.maximum(1.0 - residual2 / (6.0 * max(sigma, tail)) ** 2, 0.0) ** 2
    weight = np.where(shared, bisquare, 0.0) / sigma**2
    return _Stars(index, weight, xy, sigma, anchor_xy, anchor_weight)


def _match_anchors(star_xy, anchors, radius, options) -> tuple[np.ndarray, np.ndarray]:
    """Position and weight of the anchor of each star; weight 0 without one."""
    anchor_xy, weight = np.zeros_like(star_xy), np.zeros(len(star_xy))
    if len(anchors) and len(star_xy):
        distance, nearest = cKDTree(anchors).query(star_xy, distance_upper_bound=radius)
        matched = np.isfinite(distance)
        anchor_xy[matched] = anchors[nearest[matched]]
        weight[matched] = 1.0 / options.anchor_sigma_px**2
    return anchor_xy, weight


def _recover_shifts(detections, stars, n_frames, options) -> dict[int, tuple[float, float]]:
    """Look for a common shift of the stars of frames that match badly."""
    count = np.bincount(stars.index, minlength=len(stars.xy))
    per_frame = np.bincount(detections.frame, minlength=n_frames)
    matched = np.bincount(detections.frame, count[stars.index] >= 2, minlength=n_frames)
    fraction = matched / np.maximum(per_frame, 1)
    typical = float(np.median(fraction[per_frame > 0])) if (per_frame > 0).any() else 0.0
    suspects = np.flatnonzero(
        (per_frame > 0) & ((matched < options.min_matches) | (fraction < 0.4 * typical))
    )
    if len(suspects) == 0:
        return {}
    trusted = ~np.isin(detections.frame, suspects)
    seen = np.bincount(stars.index, trusted, minlength=len(stars.xy)) >= min(2, trusted.any() + 1)
    reference = stars.xy[seen]
    starts = np.searchsorted(detections.frame, np.arange(n_frames + 1))
    shifts = {}
    for i in suspects:
        own = detections.plane[starts[i] : starts[i + 1]]
        shift = vote_offset(own, reference, options.recover_radius_px, min_votes=options.min_matches)
        if shift is not None:
            shifts[int(i)] = shift
    return shifts


def _fit_frames(detections, stars, base, n_frames, options) -> list[FitResult | str]:
    """Choose each frame's correction: predicted frame px (base map of the star) -> measured frame px."""
    usable = stars.weight > 0
    starts = np.searchsorted(detections.frame, np.arange(n_frames + 1))
    fits: list[FitResult | str] = []
    for i in range(n_frames):
        if isinstance(base[i], str):
            fits.append(base[i])
            continue
        rows = np.arange(starts[i], starts[i + 1])
        rows = rows[usable[rows]]
        if len(rows) < options.min_matches:
            fits.append("registration_too_few_matches")
            continue
        target = stars.xy[stars.index[rows]]
        predicted = np.column_stack(base[i][1].apply(target[:, 0], target[:, 1]))
        fit = choose_transform(predicted, detections.xy[rows], max_kind=options.max_kind)
        if fit.n_used < options.min_matches:
            fits.append("registration_too_few_matches")
        elif fit.rms_px > options.max_rms_px:
            fits.append("registration_poor_fit")
        else:
            fits.append(fit)
    return fits


def _frame_registration(fit, base, original, box) -> FrameRegistration:
    if isinstance(original, str):
        return FrameRegistration(None, None, float("nan"), 0, "", False, original, float("nan"))
    if isinstance(fit, str):
        return FrameRegistration(*original, float("nan"), 0, "", False, fit, 0.0)
    to_plane, to_frame = _corrected_maps(fit.transform, *base, box)
    corners = _corners(box)
    moved = np.subtract(to_plane.apply(*corners), original[0].apply(*corners))
    shift = float(np.hypot(*moved).max())
    return FrameRegistration(to_plane, to_frame, fit.rms_px, fit.n_used, fit.kind, True, "", shift)


def _corrected_maps(
    correction: Transform, forward: Transform, backward: Transform, box
) -> tuple[Transform, Transform]:
    """Join the correction (predicted -> measured frame px) with the base maps, in both directions."""
    to_plane = compose(correction.invert(*box), forward, box)
    if correction.kind in ("similarity", "affine"):
        return to_plane, compose(backward, correction, box)
    x, y = lattice_points(box)
    plane, measured = np.column_stack(forward.apply(x, y)), np.column_stack(correction.apply(x, y))
    return to_plane, fit_transform(plane, measured, "poly3", clip_sigma=np.inf).transform


def _refit_positions(detections, frames, positions) -> np.ndarray:
    out = positions.copy()
    starts = np.searchsorted(detections.frame, np.arange(len(frames) + 1))
    for i, frame in enumerate(frames):
        rows = slice(starts[i], starts[i + 1])
        if frame.ok:
            xy = detections.xy[rows]
            out[rows] = np.column_stack(frame.to_plane.apply(xy[:, 0], xy[:, 1]))
        else:
            out[rows] = detections.plane[rows]
    return out


def _collect(frames, detections, positions, stars, radius, star_flux, n_frames) -> GlobalRegistration:
    distance2 = ((positions - stars.xy[stars.index]) ** 2).sum(axis=1)
    rows = np.flatnonzero(distance2 <= radius**2)
    frame, star, own = detections.frame[rows], stars.index[rows], detections.index[rows]
    n_seen = np.bincount(star, minlength=len(stars.xy))
    n_channels = max((np.atleast_2d(f).shape[0] for f in star_flux), default=1)
    flux = np.full((len(rows), n_channels), np.nan)
    starts = np.searchsorted(frame, np.arange(n_frames + 1))
    for i in range(n_frames):
        part = slice(starts[i], starts[i + 1])
        if starts[i + 1] > starts[i]:
            flux[part] = np.atleast_2d(np.asarray(star_flux[i], dtype=np.float64))[:, own[part]].T
    ok = np.array([f.ok for f in frames], dtype=bool)
    linked = ok[frame] & (n_seen[star] >= 2) if len(frame) else np.empty(0, dtype=bool)
    component = frame_components(frame[linked], star[linked], n_frames, len(stars.xy))
    return GlobalRegistration(frames, stars.xy, n_seen, frame, star, own, flux, component, stars.sigma)
