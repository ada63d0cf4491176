"""One model of the sky behind all frames: what each frame has to lose so that one even sky remains. Arrays only.

Per channel, with gain g, pedestal P and the flat V of the stars::

    g_i (m_i - P) / V(detector) = S(place) + level_i + plane_i + detector patterns + noise

All frames are solved at once (`sky_joint`); their glow is tied by what nights are like (`glow_prior`); what remains
open is decided by the empty part of the sky (`sky_gauge`). The input is what measuring a frame leaves behind: coarse
meshes of the sky and fluxes of stars. No pixels are read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .detector_surface import N_SURFACE, PRODUCT_ORDER, products, surface_of
from .glow_prior import BENDS, SESSION_PATTERN, FrameCircumstances, GlowPrior
from .normalize import best_frames
from .photon_transfer import Pedestal, pedestal_of_sky
from .sky_cost import MAX_JOINT_FRAMES
from .sky_flat import SeenPattern, flat_of_stars_and_sky, patterns_expected, seen_pattern
from .sky_followers import fit_to_sky
from .sky_gauge import Gauge, empty_nodes, gauged, large_scale_terms
from .sky_joint import (
    Equations,
    JointProblem,
    Reduced,
    SkyCells,
    evidence_loss,
    posterior_of,
    tuned_sizes,
)
from .sky_lattice import cell_spacing_px
from .sky_meshes import (
    SkyMeshes,
    cells_of,
    detector_columns,
    light_adu,
    on_common_scale,
    probe_places,
    spread_rows,
    usual_error_adu,
)
from .sky_nights import settled_posterior
from .sky_remains import (
    QUADRIC_UNIT_PX,
    overlap_differences,
    quadric_rows,
    removed_quadric,
    rms_per_frame,
)
from .star_flat import StarFlat

__all__ = ["ASSURANCES", "ChannelSky", "SkyModel", "solve_sky"]

Array = NDArray[np.float64]

ASSURANCES = ("night", "night_and_dark_parts", "assumed_flat")
"""Where the large scales of the sky come from: the frames, the frames and the empty parts, or only an assumption."""

# Frames from which the sizes of the glow's parts are found: seven numbers, and each trial costs a cube of this. Up to
# as many, what they leave open of these sizes matters.
MAX_TUNED_FRAMES = 64
_ROUNDS = 3
# Frames beyond those solved jointly that are fitted at a time: tables of all their cells would grow with them.
_FOLLOWERS_AT_ONCE = 64
# Below this many times the area of a frame a nebula may fill the mosaic: "the empty part is flat" is believed less.
_ONE_FIELD_FRAMES = 1.5
# Errors of the tilt, as shares of the sky's light (6 and 20 of 430 ADU): up to the first the frames know it well
# enough for any picture, beyond the second they hardly know it.
_KNOWN_SHARE, _ASSUMED_SHARE = 0.014, 0.046
_LEAST_EMPTY_SHARE = 0.25
# Errors in the corner, that of stars and sky over that of the stars, from which all is solved once more.
_WORTH_FLAT = 0.75
# What a session's frames share on the detector is asked for where sky beyond one frame is seen, relative to its order
# (scattered moonlight was seen to fall like this), and believed where it makes the frames this much likelier.
_PATTERN_AREA_FRAMES, _WORTH_PATTERN = 1.2, 5.0
_SESSION_SHAPE = 1.0 / (PRODUCT_ORDER - 1.0)
# Sizes of the curvature of frames and of visits, as shares of the light, from which it is taken out: a frame's averages
# out between many, a visit's does not.
_SEEN_BEND = np.array([0.004, 0.002])
# Loss of log evidence up to which directions over the horizon are kept: they are likely right, and say more.
_INDIFFERENT = 2.0


@dataclass(frozen=True)
class ChannelSky:
    """The sky of one channel.

    Attributes
    ----------
    glow : ndarray, shape (N, 3), float64
        Level and plane (per u and v) of each frame's glow, ADU on the common flux scale.
    patterns : ndarray, shape (2, 2), float64
        Detector patterns q and q^2: in proportion to the light (first row) and constant, ADU.
    vignetting : ndarray, shape (N, 2), float64
        What is added to the first row of the patterns in each frame: vignetting as the stars lead to expect it, ADU;
        0 where their flat is applied.
    curvature : ndarray, shape (N, 3), float64
        How the glow of each frame bends (`detector_surface.products` of second order), ADU on the common flux scale;
        zeros where it bends too little to be seen in a mosaic.
    session_patterns : ndarray, shape (sessions, 18), float64
        What each session has of its own (`detector_surface.products`), ADU in a frame of typical light; zeros where
        the frames are as likely without.
    node_xy, sky : ndarray, shape (M, 2) and (M,), float64
        The astronomical sky on its lattice, plane px and ADU; its empty part lies at ``background_adu``.
    seen : ndarray of bool, shape (M,)
        Nodes that cells touch well.
    empty : ndarray of bool, shape (M,)
        Nodes taken for empty sky.
    background_adu : float
        Level of the empty sky in the co-add.
    light_adu : float
        Typical light of the sky above the pedestal.
    gauge : Gauge
        How the large scales were decided.
    assurance : str
        One of `ASSURANCES`.
    residual_adu : ndarray, shape (N,), float64
        Rms of each frame's cells about the model; NaN for a frame without cells.
    overlaps : ndarray, shape (P, 4), float64
        Visits that see the same sky: their numbers, the nodes they share, and the rms difference of what the model
        leaves of them there, ADU.
    removed_quadric : ndarray, shape (6,), float64
        The glow that was removed from the mosaic as a whole: coefficients of 1, x, y, x^2, xy, y^2 with x and y
        in plane px over 1000 from ``quadric_centre_xy``; its median over the mosaic is 0.
    quadric_centre_xy : tuple of float
    sizes_adu : ndarray, shape (10,), float64
        Sizes of the parts of the glow (`glow_prior.SIZE_NAMES`), ADU.
    seen_pattern : SeenPattern or None
        What the frames say of vignetting; None where no frame has a usable cell.
    cell_weight : ndarray, shape (K,), float64
        How much each usable cell of the frames solved jointly counts by what the model leaves of it.
    """

    glow: Array
    patterns: Array
    vignetting: Array
    curvature: Array
    session_patterns: Array
    node_xy: Array
    sky: Array
    seen: NDArray[np.bool_]
    empty: NDArray[np.bool_]
    background_adu: float
    light_adu: float
    gauge: Gauge
    assurance: str
    residual_adu: Array
    overlaps: Array
    removed_quadric: Array
    quadric_centre_xy: tuple[float, float]
    sizes_adu: Array
    seen_pattern: SeenPattern | None
    cell_weight: Array

    def removed_rows(self, y0: int, y1: int, x0: int, x1: int) -> NDArray[np.float32]:
        """Return the glow removed from the mosaic as a whole on plane pixels, (y1 - y0, x1 - x0) float32 ADU."""
        centre_x, centre_y = self.quadric_centre_xy
        rows = np.empty((y1 - y0, x1 - x0), np.float32)
        x = (np.arange(x0, x1) - centre_x) / QUADRIC_UNIT_PX
        y = (np.arange(y0, y1) - centre_y) / QUADRIC_UNIT_PX
        quadric_rows(self.removed_quadric, x, y, rows)
        return rows


@dataclass(frozen=True)
class SkyModel:
    """What every frame gets, and what is known about the sky.

    Attributes
    ----------
    terms : ndarray, shape (N, C, 4), float32
        ``gain, c0, cx, cy`` in the form of `sources.CoaddSource.photometry`.
    radial : ndarray, shape (N, C, 4), float32
        ``f1, f2, d1, d2`` in the form of `sources.CoaddSource.radial`.
    surface : ndarray, shape (N, C, 21), float32, or None
        In the form of `sources.CoaddSource.surface`; None where no session has a pattern of its own and no frame bends.
    channels : tuple of ChannelSky
    flat : StarFlat
        The flat that was applied, or else what is known of it; with several cameras that of most frames.
    flat_applied : bool
        That flat was applied.
    better_flat : StarFlat or None
        The flat of stars and sky together, where it may be applied and is clearly better known than the one that was
        given.
    local_used : bool
        The glow was tied by directions over the horizon: they were known and fit.
    pedestal : Pedestal
    """

    terms: NDArray[np.float32]
    radial: NDArray[np.float32]
    surface: NDArray[np.float32] | None
    channels: tuple[ChannelSky, ...]
    flat: StarFlat
    flat_applied: bool
    better_flat: StarFlat | None
    local_used: bool
    pedestal: Pedestal


def solve_sky(
    meshes: SkyMeshes,
    circumstances: FrameCircumstances,
    flat: StarFlat | Sequence[StarFlat],
    *,
    before: SkyModel | None = None,
    threads: int = 1,
) -> SkyModel:
    """Solve the sky of all channels.

    Parameters
    ----------
    meshes : SkyMeshes
        At least one frame.
    circumstances : FrameCircumstances
        Of the same frames.
    flat : StarFlat, or a sequence of one per frame
        Applied where `StarFlat.usable`; its error bounds what the sky may call a detector pattern.
    before : SkyModel, optional
        The model of the same frames with a poorer flat: how large the parts of the glow are, whether directions fit,
        and how much each cell counts is taken from it.

    Returns
    -------
    SkyModel
    """
    gains = np.where(np.isfinite(meshes.gains) & (meshes.gains > 0), meshes.gains, 1.0)
    dark = pedestal_of_sky(meshes.mesh, meshes.error, meshes.sky, meshes.pixel_noise, circumstances.visit)
    pedestal, pedestal_sigma = dark.level_adu, dark.sigma_adu
    n, n_channels = gains.shape
    flats = (flat,) * n if isinstance(flat, StarFlat) else tuple(flat)
    circumstances = replace(circumstances, places=probe_places(meshes))
    brightest = int(np.argmax(np.nanmedian(np.where(np.isfinite(meshes.sky), meshes.sky, -np.inf), axis=0)))
    spacing = cell_spacing_px(meshes.xy)
    if before is not None:
        local_fits = before.local_used
    else:
        local_fits = circumstances.local is not None and _local_sky_fits(
            meshes, gains[:, brightest], brightest, circumstances, flats, float(pedestal[brightest]), spacing
        )
    if not local_fits:
        circumstances = replace(circumstances, local=None)
    joint = spread_rows(meshes.xy, circumstances.hours, MAX_JOINT_FRAMES)
    sessions = circumstances.sessions if _beyond_one_frame(meshes, spacing) else None

    # Few flats stand behind many frames.
    uses = Counter(map(id, flats))
    # One flat for all, of frames that see more sky than one of them, and not asked for before.
    may_improve = before is None and sessions is not None and len(uses) == 1

    def solve(c: int) -> ChannelSky:
        return _solve_channel(
            meshes, gains[:, c], c, circumstances, flats, float(pedestal[c]), float(pedestal_sigma[c]), joint,
            spacing, sessions, None if before is None else before.channels[c],
        )  # fmt: skip

    with ThreadPoolExecutor(threads) as executor:
        channels = tuple(executor.map(solve, range(n_channels)))
    each = {id(flat): flat for flat in flats}
    inverse = {key: flat.inverse_terms() if flat.usable else (0.0, 0.0) for key, flat in each.items()}
    f = np.array([inverse[id(flat)] for flat in flats])
    terms = np.zeros((n, n_channels, 4))
    radial = np.zeros((n, n_channels, 4))
    surface = np.zeros((n, n_channels, N_SURFACE))
    mean_q, mean_q2 = float(meshes.q.mean()), float((meshes.q**2).mean())
    for c, channel in enumerate(channels):
        light = light_adu(meshes, gains[:, c], c, float(pedestal[c]))
        lit = channel.patterns[0] + channel.vignetting
        pattern = (light / channel.light_adu)[:, None] * lit + channel.patterns[1]
        unlit = gains[:, c] * pedestal[c]
        terms[:, c, 0] = gains[:, c]
        terms[:, c, 1] = -unlit - channel.glow[:, 0] + pattern @ np.array([mean_q, mean_q2])
        terms[:, c, 2:] = -channel.glow[:, 1:]
        radial[:, c, :2] = f
        radial[:, c, 2:] = -unlit[:, None] * f - pattern
        if channel.session_patterns.any():
            own = channel.session_patterns[circumstances.sessions]
            surface[:, c] = -(light / channel.light_adu)[:, None] * surface_of(own)
        if channel.curvature.any():
            surface[:, c] -= surface_of(_as_products(channel.curvature))
    common = max(flats, key=lambda flat: uses[id(flat)])
    known = _with_sky(common, channels, meshes) if may_improve else common
    return SkyModel(
        terms.astype(np.float32),
        radial.astype(np.float32),
        surface.astype(np.float32) if surface.any() else None,
        channels,
        common if common.usable else known,
        common.usable,
        known if known is not common and known.usable else None,
        local_fits,
        dark,
    )


def _local_sky_fits(
    meshes: SkyMeshes,
    gains: Array,
    c: int,
    circumstances: FrameCircumstances,
    flats: Sequence[StarFlat],
    pedestal: float,
    spacing: float,
) -> bool:
    """Tell whether the frames are likelier with their directions over the horizon than without.

    They are not when a clock is wrong, or a telescope stood elsewhere than its header says.
    """
    rows = spread_rows(meshes.xy, circumstances.hours, MAX_TUNED_FRAMES)
    light = light_adu(meshes, gains, c, pedestal)
    value, sigma = on_common_scale(meshes, gains, c, flats, pedestal, rows, usual_error_adu(meshes, c))
    cells = cells_of(rows, value, sigma, meshes, light, spacing)
    if not len(cells.value):
        return False
    level = float(np.median(light[rows]))
    vignetting, pattern_covariance = patterns_expected(flats, level, 0.0)
    cells = _without_vignetting(cells, vignetting[rows])
    problem = JointProblem(cells)
    taken = circumstances.taken(rows)
    # What frames share over the mosaic is no part of the comparison: it only makes room for what nobody can tell.
    without = GlowPrior(replace(taken, local=None, places=None), gains[rows], level)
    equations, reduced, sizes = _iterate(problem, without, pattern_covariance, level, False, None, _ROUNDS)
    tied = GlowPrior(taken, gains[rows], level)
    tied_sizes = tuned_sizes(equations, tied, pattern_covariance)
    gain = evidence_loss(reduced, without, sizes, pattern_covariance) - evidence_loss(
        equations.reduced(tied.bend_root(tied_sizes)), tied, tied_sizes, pattern_covariance
    )
    return gain > -_INDIFFERENT


def _solve_channel(
    meshes: SkyMeshes,
    gains: Array,
    c: int,
    circumstances: FrameCircumstances,
    flats: Sequence[StarFlat],
    pedestal: float,
    pedestal_sigma: float,
    joint: NDArray[np.int64],
    spacing: float,
    sessions: NDArray[np.int64] | None,
    before: ChannelSky | None,
) -> ChannelSky:
    n = len(gains)
    light = light_adu(meshes, gains, c, pedestal)
    level = float(np.median(light[joint]))
    usual = usual_error_adu(meshes, c)
    value, sigma = on_common_scale(meshes, gains, c, flats, pedestal, joint, usual)
    cells = cells_of(joint, value, sigma, meshes, light, spacing, sessions)
    background = _background_level(meshes, gains, c)
    if not len(cells.value):
        return _unknown_sky(n, light, level, background, int(circumstances.sessions.max()) + 1)
    vignetting, pattern_covariance = patterns_expected(flats, level, pedestal_sigma)
    cells = _without_vignetting(cells, vignetting[joint])
    sizes = None if before is None else np.log(before.sizes_adu / level)
    if sizes is None and len(joint) > MAX_TUNED_FRAMES:
        few = joint[spread_rows(meshes.xy[joint], circumstances.hours[joint], MAX_TUNED_FRAMES)]
        value, sigma = on_common_scale(meshes, gains, c, flats, pedestal, few, usual)
        sizes = _tuned_on(
            few, value, sigma, meshes, light, gains, circumstances, (vignetting, pattern_covariance), spacing, sessions
        )  # fmt: skip
    prior = GlowPrior(circumstances.taken(joint), gains[joint], level, _session_shape(cells))
    problem = JointProblem(cells)
    terms = large_scale_terms(cells.lattice.node_xy)
    seen = problem.hits > 0.3
    one_field = _area_px(seen, spacing) < _ONE_FIELD_FRAMES * meshes.frame_area_px
    if before is not None:
        # Another flat moves the sky by less than a cell is known: weights that begin as good as they end need one turn.
        problem.weight = before.cell_weight
    turns = _ROUNDS if before is None else 1
    _, reduced, sizes = _iterate(problem, prior, pattern_covariance, level, one_field, sizes, turns)
    posterior = settled_posterior(
        reduced, prior, sizes, pattern_covariance, few=prior.n_frames <= MAX_TUNED_FRAMES
    )
    gauge = gauged(reduced, posterior, cells.lattice, terms, problem.hits, level, one_field=one_field)
    of_patterns = slice(3 * len(joint), 3 * len(joint) + 4)
    seen_by_frames = seen_pattern(
        posterior.unknowns[of_patterns],
        posterior.covariance[of_patterns, of_patterns],
        pattern_covariance,
        vignetting[joint[0]],
        float(np.median(light[joint])),
        pedestal_sigma / level,
        len(cells.value),
    )
    del posterior
    sky = reduced.sky(gauge.unknowns, gauge.open_)
    glow = np.zeros((n, 3))
    glow[joint] = gauge.unknowns[: 3 * len(joint)].reshape(-1, 3)
    patterns = gauge.unknowns[3 * len(joint) : 3 * len(joint) + 4].reshape(2, 2)
    own = np.zeros((int(circumstances.sessions.max()) + 1, len(PRODUCT_ORDER)))
    if sessions is not None and sizes[SESSION_PATTERN] > prior.least[SESSION_PATTERN]:
        found_own = gauge.unknowns[3 * len(joint) + 4 :].reshape(-1, len(PRODUCT_ORDER))
        own[: len(found_own)] = found_own
    found_bends = reduced.curvature(gauge.unknowns, gauge.open_)
    bends = np.exp(sizes[list(BENDS)])
    bend_adu = float(np.hypot(*bends)) * level if (bends > _SEEN_BEND).any() else 0.0
    curvature = np.zeros((n, 3))
    if bend_adu:
        curvature[joint] = found_bends
    residual = np.full(n, np.nan)
    left = problem.residual(sky, gauge.unknowns, found_bends)
    residual[joint] = rms_per_frame(left, cells.frame, len(joint))
    rest = np.setdiff1d(np.arange(n), joint)
    n_sizes = len(meshes.uv)
    columns = (table.reshape(n_sizes, -1, table.shape[1]) for table in detector_columns(meshes))
    for size, (basis, pattern_values) in enumerate(zip(*columns, strict=True)):
        shapes = products(meshes.uv[size]).reshape(len(basis), -1)
        bend_shapes = shapes[:, PRODUCT_ORDER == 2] if bend_adu else shapes[:, :0]
        for some in _in_turn(rest[meshes.size[rest] == size]):
            value, sigma = on_common_scale(meshes, gains, c, flats, pedestal, some, usual)
            on_sky = cells.lattice.interpolated(sky, seen, meshes.xy[some])
            # The light of the patterns was measured against the median of the joint frames.
            relative_light = light[some] / np.median(light[joint])
            of_session = own[circumstances.sessions[some]] @ shapes.T
            glow[some], curvature[some], residual[some] = fit_to_sky(
                (value - on_sky).reshape(len(some), -1)
                - relative_light[:, None] * (of_session + vignetting[some] @ pattern_values.T),
                sigma.reshape(len(some), -1),
                np.column_stack([basis, bend_shapes]),
                np.array([0.0, 0.0, 0.0, bend_adu, bend_adu, bend_adu])[: 3 + bend_shapes.shape[1]],
                pattern_values,
                relative_light,
                patterns,
            )
    cell_weight = problem.robust_weight(sky, left)
    empty = gauge.empty if gauge.empty.any() else empty_nodes(sky, terms, problem.hits)
    shift = background - float(np.median(sky[empty]))
    glow[:, 0] -= shift
    quadric, centre = removed_quadric(cells, problem, glow[joint], curvature[joint])
    return ChannelSky(
        glow=glow,
        patterns=patterns,
        vignetting=vignetting,
        curvature=curvature,
        session_patterns=own,
        node_xy=cells.lattice.node_xy,
        sky=sky + shift,
        seen=seen,
        empty=empty,
        background_adu=background,
        light_adu=float(np.median(light[joint])),
        gauge=gauge,
        assurance=_assurance(gauge, empty, seen, level, one_field),
        residual_adu=residual,
        overlaps=overlap_differences(cells, left, problem.weight, circumstances.visit[joint]),
        removed_quadric=quadric,
        quadric_centre_xy=centre,
        sizes_adu=np.exp(sizes) * level,
        seen_pattern=seen_by_frames,
        cell_weight=cell_weight,
    )


def _in_turn(rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yield so many frames at a time that their cells take little memory."""
    for first in range(0, len(rows), _FOLLOWERS_AT_ONCE):
        yield rows[first : first + _FOLLOWERS_AT_ONCE]


def _with_sky(stars: StarFlat, channels: Sequence[ChannelSky], meshes: SkyMeshes) -> StarFlat:
    """Return the flat of stars and sky, or that of the stars where the sky hardly makes it better known."""
    seen = [channel.seen_pattern for channel in channels if channel.seen_pattern is not None]
    mean_q = np.array([meshes.q.mean(), (meshes.q**2).mean()])
    both = flat_of_stars_and_sky(stars, seen, mean_q)
    return both if both.corner_sigma < _WORTH_FLAT * stars.corner_sigma else stars


def _without_vignetting(cells: SkyCells, vignetting: Array) -> SkyCells:
    """Take vignetting (N, 2) out of the cells: the unknown patterns are what is left beside it."""
    expected = (cells.patterns * vignetting[cells.frame]).sum(axis=1)
    return replace(cells, value=cells.value - cells.light[cells.frame] * expected)


def _tuned_on(
    rows: NDArray[np.int64],
    value: Array,
    sigma: Array,
    meshes: SkyMeshes,
    light: Array,
    gains: Array,
    circumstances: FrameCircumstances,
    patterns: tuple[Array, Array],
    spacing: float,
    sessions: NDArray[np.int64] | None,
) -> Array:
    """Find the sizes of the prior from some frames alone."""
    vignetting, pattern_covariance = patterns
    cells = cells_of(rows, value, sigma, meshes, light, spacing, sessions)
    cells = _without_vignetting(cells, vignetting[rows])
    level = float(np.median(light[rows]))
    prior = GlowPrior(circumstances.taken(rows), gains[rows], level, _session_shape(cells))
    # The last turn takes the sizes of the one before.
    return _iterate(JointProblem(cells), prior, pattern_covariance, level, False, None, _ROUNDS - 1)[2]


def _iterate(
    problem: JointProblem,
    prior: GlowPrior,
    pattern_covariance: Array,
    level: float,
    one_field: bool,
    known_sizes: Array | None,
    turns: int,
) -> tuple[Equations, Reduced, Array]:
    """Alternate between the linear solution, the sizes of the prior (unless known) and robust weights.

    Returns
    -------
    equations, reduced, sizes
        Those of the last of ``turns``, of at most `_ROUNDS`.
    """
    sizes = prior.usual if known_sizes is None else known_sizes
    lattice = problem.cells.lattice
    terms = large_scale_terms(lattice.node_xy)
    for turn in range(turns):
        equations = problem.equations()
        if known_sizes is None and turn < _ROUNDS - 1:
            sizes = tuned_sizes(equations, prior, pattern_covariance, sizes, thorough=turn == 0)
        reduced = equations.reduced(prior.bend_root(sizes))
        if known_sizes is None and turn == _ROUNDS - 2:
            sizes = _without_idle_patterns(reduced, prior, pattern_covariance, sizes)
        if turn < turns - 1:
            posterior = posterior_of(reduced, prior, sizes, pattern_covariance)
            gauge = gauged(reduced, posterior, lattice, terms, problem.hits, level, one_field=one_field)
            found = gauge.unknowns, gauge.open_
            problem.reweigh(reduced.sky(*found), gauge.unknowns, reduced.curvature(*found))
            # The next turn needs their room.
            del equations, reduced, posterior
    return equations, reduced, sizes


def _without_idle_patterns(
    reduced: Reduced, prior: GlowPrior, pattern_covariance: Array, sizes: Array
) -> Array:
    """Return the sizes without patterns of sessions, unless these make the frames clearly likelier."""
    if SESSION_PATTERN not in prior.free:
        return sizes
    without = sizes.copy()
    without[SESSION_PATTERN] = prior.least[SESSION_PATTERN]
    worth = evidence_loss(reduced, prior, without, pattern_covariance) - evidence_loss(
        reduced, prior, sizes, pattern_covariance
    )
    return sizes if worth > _WORTH_PATTERN else without


def _session_shape(cells: SkyCells) -> Array:
    """Return the relative sizes of what the sessions of some cells may have of their own."""
    n_sessions = int(cells.session.max(initial=-1)) + 1
    return np.tile(_SESSION_SHAPE[: cells.n_products], n_sessions)


def _beyond_one_frame(meshes: SkyMeshes, spacing_px: float) -> bool:
    """Tell whether the frames see clearly more sky than one of them: else a pattern of all is the sky itself."""
    xy = meshes.xy[np.isfinite(meshes.xy).all(axis=-1)]
    place = np.floor(xy / spacing_px).astype(np.int64)
    place -= place.min(axis=0, initial=0)
    places = np.unique(place[:, 1] * (place[:, 0].max(initial=0) + 1) + place[:, 0])
    return len(places) * spacing_px**2 > _PATTERN_AREA_FRAMES * meshes.frame_area_px


def _as_products(curvature: Array) -> Array:
    """Return curvatures (N, 3) among all `detector_surface.products`, (N, 18)."""
    full = np.zeros((len(curvature), len(PRODUCT_ORDER)))
    full[:, PRODUCT_ORDER == 2] = curvature
    return full


def _background_level(meshes: SkyMeshes, gains: Array, c: int) -> float:
    """Level of the empty sky in the co-add: that of the better half of the frames, pedestal and all."""
    best = best_frames(gains[:, None], meshes.sky[:, c : c + 1], meshes.pixel_noise[:, c : c + 1])
    level = (gains * meshes.sky[:, c])[best]
    level = level[np.isfinite(level)]
    return float(np.median(level)) if len(level) else 0.0


def _area_px(seen: NDArray[np.bool_], spacing_px: float) -> float:
    return float(seen.sum()) * spacing_px**2


def _assurance(
    gauge: Gauge, empty: NDArray[np.bool_], seen: NDArray[np.bool_], light_adu: float, one_field: bool
) -> str:
    worst = float(gauge.sigma_data[:2].max())
    if worst < _KNOWN_SHARE * light_adu:
        return ASSURANCES[0]
    enough_empty = empty.sum() >= _LEAST_EMPTY_SHARE * max(int(seen.sum()), 1)
    return (
        ASSURANCES[1]
        if not one_field and worst <= _ASSUMED_SHARE * light_adu and enough_empty
        else ASSURANCES[2]
    )


def _unknown_sky(n: int, light: Array, level: float, background: float, n_sessions: int) -> ChannelSky:
    """Return what is left when no frame has a usable cell: levels from the frames' skies alone."""
    glow = np.zeros((n, 3))
    glow[:, 0] = light - background
    nothing = Gauge(np.zeros(0), np.zeros(0), np.zeros(0, bool), np.full(5, np.inf), False, False, 0.0)
    no_node, no_patterns = np.zeros(0, bool), np.zeros((n_sessions, len(PRODUCT_ORDER)))
    return ChannelSky(
        glow, np.zeros((2, 2)), np.zeros((n, 2)), np.zeros((n, 3)), no_patterns, np.zeros((0, 2)), np.zeros(0), no_node,
        no_node, background, level, nothing, ASSURANCES[2], np.full(n, np.nan), np.zeros((0, 4)), np.zeros(6),
        (0.0, 0.0), np.full(10, np.nan), None, np.zeros(0),
    )  # fmt: skip
