"""The joint model of the sky on made-up meshes whose every part is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.linalg import block_diag

from tests.core.sky_cases import PEDESTAL, left_over, made_night, with_narrow_sensor
from zemosaic_core import sky_gauge, sky_model
from zemosaic_core.detector_surface import products
from zemosaic_core.glow_prior import GlowPrior
from zemosaic_core.sky_cost import channels_at_once, solving_bytes
from zemosaic_core.sky_gauge import _agreed_width, empty_nodes, large_scale_terms, structure_adu
from zemosaic_core.sky_joint import JointProblem, full_covariance, posterior_of
from zemosaic_core.sky_lattice import bilinear_lattice, cell_spacing_px
from zemosaic_core.sky_meshes import cells_of, spread_rows
from zemosaic_core.sky_model import solve_sky
from zemosaic_core.star_flat import (
    StarFlat,
    no_star_flat,
    radius_squared,
    solve_camera_flats,
    solve_star_flat,
)


def known_flat(vignetting: float) -> StarFlat:
    return StarFlat(np.array([np.log(1 - vignetting), 0.0]), np.eye(2) * 1e-6, 1000)


@pytest.mark.parametrize("with_site", [False, True])
@pytest.mark.parametrize(
    ("night", "limit_adu", "conflict"),
    [
        ({}, 2.5, {False}),
        ({"vignetting": 0.12}, 2.5, {False}),
        ({"cloud_adu": 120.0, "cloud_px": 600.0}, 3.0, {False}),
        ({"panels": (3, 3), "frames": 5, "cloud_adu": 100.0, "cloud_px": 1000.0}, 4.0, {False, True}),
        # A cloud larger than the mosaic: that its empty part is flat is wrong, and has to be noticed. Without
        # directions nothing else tells it from the glow.
        ({"cloud_adu": 120.0}, 12.0, {True}),
    ],
)
def test_one_even_sky_is_left(night, limit_adu, conflict, with_site):
    made = made_night(3, with_site=with_site, **night)
    model = solve_sky(made.meshes, made.circumstances, known_flat(made.vignetting))
    before = made.meshes.mesh[:, 0] - made.sky_truth
    assert before.std() > 10.0
    assert left_over(made, model).std() < limit_adu
    assert model.channels[0].gauge.conflict in conflict


@pytest.mark.parametrize("sizes", [{"frame_bend_adu": 9.0}, {"visit_bend_adu": 4.0}])
def test_glow_of_single_frames_that_slopes_and_bends_is_taken_out(sizes):
    """Thin clouds: planes and curvatures of every frame; nothing of them may pass for the sky's own slopes."""
    made = made_night(
        3, frames=10, cloud_adu=200.0, cloud_px=450.0, frame_level_adu=50.0, frame_plane_adu=35.0, **sizes
    )
    model = solve_sky(made.meshes, made.circumstances, known_flat(made.vignetting))
    left = left_over(made, model)
    assert left.std() < 3.0
    assert np.abs(left.reshape(4, 10, -1).mean(axis=(1, 2))).max() < 3.0
    channel = model.channels[0]
    assert not channel.gauge.conflict
    assert channel.curvature.any()
    assert not solve_sky(*quiet_night()).channels[0].curvature.any()


def quiet_night():
    made = made_night(3)
    return made.meshes, made.circumstances, known_flat(made.vignetting)


def test_which_part_is_empty_does_not_depend_on_the_unit():
    """Frames may hold counts, or shares of 65536; also where few nodes lie below the rest."""
    y, x = np.mgrid[0:4, 0:5].astype(float)
    terms = large_scale_terms(np.column_stack([x.ravel(), y.ravel()]))
    for seed in range(20):
        rng = np.random.default_rng(seed)
        sky = 700 + rng.normal(0, 3, 20) + rng.exponential(20, 20) * (rng.uniform(size=20) < 0.5)
        in_counts = empty_nodes(sky, terms, np.ones(20))
        np.testing.assert_array_equal(empty_nodes(sky / 65536, terms, np.ones(20)), in_counts)


def test_nebulae_keep_their_light():
    made = made_night(5, cloud_adu=120.0, cloud_px=600.0, with_site=True)
    model = solve_sky(made.meshes, made.circumstances, known_flat(made.vignetting))
    found = left_over(made, model) + made.sky_truth
    slope = np.polyfit(made.sky_truth.ravel(), found.ravel(), 1)[0]
    assert 0.97 < slope < 1.03


def test_a_gradient_that_all_frames_share_is_taken_out():
    made = made_night(2, tilt_adu=30.0, drift_adu=0.0, with_site=True)
    model = solve_sky(made.meshes, made.circumstances, known_flat(made.vignetting))
    x, y = np.moveaxis(made.meshes.xy.reshape(-1, 2) / 1000.0, -1, 0)
    terms = np.column_stack([np.ones(len(x)), x, y])
    left = np.linalg.lstsq(terms, left_over(made, model).ravel(), rcond=None)[0]
    assert np.hypot(*left[1:]) < 5.5  # of 30 x 1.15 ADU per 1000 px


@pytest.fixture
def frames_alone(monkeypatch):
    """No belief in an empty sky: what the frames alone say of one field."""
    monkeypatch.setattr(sky_gauge, "_FIELD_FACTORS", np.full(5, 1e6))


@pytest.mark.usefixtures("frames_alone")
def test_the_error_that_is_stated_covers_the_error_that_is_made():
    scores = []
    for seed in range(8):
        made = made_night(seed, with_site=True, cloud_adu=100.0, cloud_px=700.0)
        one_frame = replace(made.meshes, frame_area_px=1e12)
        model = solve_sky(one_frame, made.circumstances, known_flat(made.vignetting))
        channel = model.channels[0]
        low, high = channel.node_xy.min(axis=0), channel.node_xy.max(axis=0)
        half = (high - low).max() / 2
        x, y = (made.meshes.xy.reshape(-1, 2) - (low + high) / 2).T / half
        terms = np.column_stack([np.ones(len(x)), x, y, x * x, x * y, y * y])
        error = np.linalg.lstsq(terms, left_over(made, model).ravel(), rcond=None)[0][1:]
        scores.append(error / channel.gauge.sigma_data)
    assert np.sqrt(np.mean(np.square(scores))) < 1.2
    assert np.mean(np.abs(scores) < 2.0) >= 0.9


def test_one_panel_that_a_nebula_fills_is_not_flattened():
    made = made_night(4, panels=(1, 1), frames=16, cloud_adu=80.0, with_site=True)
    model = solve_sky(made.meshes, made.circumstances, known_flat(made.vignetting))
    assert left_over(made, model).std() < 4.5


def test_three_frames_of_an_empty_field_keep_no_gradient():
    """Nobody but the field itself knows what gradient and vignetting are here."""
    made = made_night(4, panels=(1, 1), frames=3, tilt_adu=60.0, rotation_deg=0.0, frame_plane_adu=25.0)
    model = solve_sky(made.meshes, made.circumstances, no_star_flat())
    assert left_over(made, model).std() < 3.0
    assert model.channels[0].assurance == "assumed_flat"


def test_three_frames_that_a_nebula_fills_keep_most_of_it():
    made = made_night(4, panels=(1, 1), frames=3, cloud_adu=80.0, tilt_adu=10.0, rotation_deg=0.0)
    left = left_over(made, solve_sky(made.meshes, made.circumstances, known_flat(made.vignetting)))
    assert left.std() < 0.5 * made.sky_truth.std()


def test_clouds_of_one_field_are_kept():
    """The dark part between them is a poor judge of the slope beneath them."""
    kept = []
    for seed in range(100, 105):
        made = made_night(
            seed, panels=(1, 1), frames=16, cloud_adu=80.0, cloud_px=900.0, with_site=True, tilt_adu=30.0
        )
        truth = made.sky_truth - made.sky_truth.mean()
        left = left_over(made, solve_sky(made.meshes, made.circumstances, known_flat(made.vignetting)))
        kept.append(1.0 + (truth * left).sum() / (truth**2).sum())
    assert 0.92 < np.median(kept) < 1.06


def test_structure_of_one_field_is_what_covers_much_of_it():
    x, y = np.meshgrid(np.arange(12.0), np.arange(20.0))
    lattice = bilinear_lattice(np.column_stack([x.ravel(), y.ravel()]), 1.0)
    x, y = lattice.node_xy.T
    terms, hits = large_scale_terms(lattice.node_xy), np.ones(len(x))
    noise = np.random.default_rng(5).normal(0.0, 1.0, len(x))
    galaxy = 500.0 * np.exp(-((x - 6.0) ** 2 + (y - 10.0) ** 2) / 2)
    places = (2.0, 3.0), (9.0, 15.0)
    clouds = sum(40.0 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 18) for cx, cy in places)

    def structure(sky):
        return structure_adu(sky, terms, empty_nodes(sky, terms, hits), hits > 0, lattice)

    assert structure(noise) < 0.7
    assert structure(noise + 30.0 * terms[:, 1] + 20.0 * terms[:, 5]) < 0.7
    assert structure(noise + galaxy) < 2.5
    assert structure(noise + clouds) > 5.0


def test_the_order_of_the_frames_does_not_matter():
    made = made_night(1, frames=4, cloud_adu=80.0, cloud_px=600.0, with_site=True)
    order = np.random.default_rng(0).permutation(len(made.meshes.mesh))
    m = made.meshes
    mixed = replace(
        m,
        mesh=m.mesh[order],
        error=m.error[order],
        sky=m.sky[order],
        pixel_noise=m.pixel_noise[order],
        gains=m.gains[order],
        xy=m.xy[order],
    )
    straight = solve_sky(m, made.circumstances, no_star_flat())
    shuffled = solve_sky(mixed, made.circumstances.taken(order), no_star_flat())
    np.testing.assert_allclose(shuffled.terms, straight.terms[order], atol=2e-2)


def test_channels_are_solved_side_by_side_to_the_same_numbers():
    made = made_night(4, frames=3, cloud_adu=60.0, cloud_px=600.0)
    m = made.meshes
    colours = replace(
        m,
        mesh=np.concatenate([m.mesh, 1.4 * m.mesh, 0.7 * m.mesh], axis=1),
        error=np.concatenate([m.error, 1.2 * m.error, 0.8 * m.error], axis=1),
        sky=m.sky * [1.0, 1.4, 0.7],
        pixel_noise=np.repeat(m.pixel_noise, 3, axis=1),
        gains=np.repeat(m.gains, 3, axis=1),
    )
    one, three = (solve_sky(colours, made.circumstances, no_star_flat(), threads=n) for n in (1, 3))
    assert len(three.channels) == 3
    assert np.ptp(three.terms[0, :, 1]) > 1.0
    np.testing.assert_array_equal(three.terms, one.terms)
    np.testing.assert_array_equal(three.radial, one.radial)


def test_as_many_channels_at_once_as_there_is_room_for():
    of_120 = solving_bytes(120, 1800, 510)
    assert 80e6 < of_120 < 120e6
    assert channels_at_once(of_120, 10**10, 8, 3) == 3
    assert channels_at_once(of_120, 250 * 10**6, 8, 3) == 2
    assert channels_at_once(of_120, 10**10, 2, 3) == 2
    assert channels_at_once(solving_bytes(12, 1800, 510), 10**10, 2, 1) == 1
    # Frames beyond those solved jointly take no more.
    assert solving_bytes(3000, 2000, 510) == solving_bytes(256, 2000, 510)
    assert channels_at_once(solving_bytes(3000, 20_000, 510), 10**10, 8, 3) == 1


def test_more_frames_than_are_solved_jointly_follow_the_same_sky(monkeypatch):
    made = made_night(6, frames=12, cloud_adu=80.0, cloud_px=600.0, with_site=True)
    together = left_over(made, solve_sky(made.meshes, made.circumstances, known_flat(0.04)))
    monkeypatch.setattr(sky_model, "MAX_JOINT_FRAMES", 20)
    monkeypatch.setattr(sky_model, "MAX_TUNED_FRAMES", 12)
    followed = left_over(made, solve_sky(made.meshes, made.circumstances, known_flat(0.04)))
    assert together.std() < 2.5
    assert followed.std() < 3.0


@pytest.mark.parametrize("most_joint", [400, 16])
def test_frames_of_two_sizes_lie_on_one_sky(monkeypatch, most_joint):
    monkeypatch.setattr(sky_model, "MAX_JOINT_FRAMES", most_joint)
    whole = made_night(3, frames=12, vignetting=0.0, cloud_adu=120.0, cloud_px=600.0)
    made = with_narrow_sensor(whole, columns=10)
    assert made.meshes.mesh.shape[3] > 12
    model = solve_sky(made.meshes, made.circumstances, known_flat(0.0))
    left = left_over(made, model)
    assert np.nanstd(left) < 3.0
    narrow = made.meshes.size == 1
    assert abs(np.nanmean(left[narrow]) - np.nanmean(left[~narrow])) < 0.5
    # As good as with frames that all see everything, and no less sure of it.
    of_whole = solve_sky(whole.meshes, whole.circumstances, known_flat(0.0))
    assert np.nanstd(left) < 1.3 * left_over(whole, of_whole).std()
    assert (model.channels[0].gauge.sigma_data < 2 * of_whole.channels[0].gauge.sigma_data).all()


def test_frames_without_a_usable_cell_keep_their_level():
    made = made_night(1, frames=3)
    blind = replace(made.meshes, mesh=np.full_like(made.meshes.mesh, np.nan))
    model = solve_sky(blind, made.circumstances, no_star_flat())
    level = model.terms[:, 0, 0] * made.meshes.sky[:, 0] + model.terms[:, 0, 1]
    np.testing.assert_allclose(level, model.channels[0].background_adu, atol=1e-2)


def test_a_wrong_clock_is_noticed():
    made = made_night(3, with_site=True, tilt_adu=40.0, drift_adu=0.0, frames=10)
    assert solve_sky(made.meshes, made.circumstances, known_flat(0.04)).local_used
    local = made.circumstances.local
    mixed = np.random.default_rng(1).permutation(len(local.airmass))
    wrong = replace(
        made.circumstances,
        local=replace(
            local,
            direction=local.direction[mixed],
            airmass=local.airmass[mixed],
            moonlight=local.moonlight[mixed],
        ),
    )
    assert not solve_sky(made.meshes, wrong, known_flat(0.04)).local_used


def night_of_two_sessions(pattern_adu: float):
    """Every other frame is of a session with a twist and a wave over the detector; cells of both."""
    made = made_night(3, frames=6)
    session = np.arange(len(made.meshes.mesh)) % 2
    u, v = np.moveaxis(made.meshes.uv, -1, 0)
    pattern = pattern_adu * (u * v + 0.5 * (2.5 * u**3 - 1.5 * u))
    mesh = made.meshes.mesh + session[:, None, None, None] * pattern
    return replace(
        made,
        meshes=replace(made.meshes, mesh=mesh),
        circumstances=replace(made.circumstances, session=session),
    )


def step_between_sessions(made, left) -> float:
    """Rms difference of what is left of both sessions, cell by cell of the mosaic."""
    place = np.floor(made.meshes.xy / 128).astype(int).reshape(-1, 2)
    cell = np.unique(place, axis=0, return_inverse=True)[1].ravel()
    of_session = np.repeat(made.circumstances.sessions, left[0].size)
    means = []
    for k in (0, 1):
        use = of_session == k
        count = np.bincount(cell[use], minlength=cell.max() + 1)
        with np.errstate(invalid="ignore"):
            means.append(
                np.where(
                    count > 10, np.bincount(cell[use], left.ravel()[use], cell.max() + 1) / count, np.nan
                )
            )
    difference = means[0] - means[1]
    return float(np.sqrt(np.nanmean((difference - np.nanmean(difference)) ** 2)))


def test_a_session_has_patterns_of_its_own():
    made = night_of_two_sessions(8.0)
    model = solve_sky(made.meshes, made.circumstances, known_flat(made.vignetting))
    assert model.surface is not None
    assert step_between_sessions(made, left_over(made, model)) < 0.8
    alike = replace(made.circumstances, session=None)
    common = solve_sky(made.meshes, alike, known_flat(made.vignetting))
    assert step_between_sessions(made, left_over(made, common)) > 2.0


def test_sessions_that_are_alike_get_none():
    made = night_of_two_sessions(0.0)
    model = solve_sky(made.meshes, made.circumstances, known_flat(made.vignetting))
    assert model.surface is None
    assert not model.channels[0].session_patterns.any()


def test_one_pointing_cannot_tell_a_pattern_from_the_sky():
    made = made_night(4, panels=(1, 1), frames=8, cloud_adu=80.0, rotation_deg=0.0)
    assert solve_sky(made.meshes, made.circumstances, known_flat(made.vignetting)).surface is None


def test_overlaps_tell_how_far_visits_differ():
    made = made_night(1, frames=4)
    overlaps = solve_sky(made.meshes, made.circumstances, known_flat(made.vignetting)).channels[0].overlaps
    pairs = {(int(a), int(b)) for a, b in overlaps[:, :2]}
    # Neighbours of the 2 x 2 panels share a strip.
    assert {(0, 1), (0, 2), (1, 3), (2, 3)} <= pairs
    assert (overlaps[:, 2] >= 8).all()
    # The noise of a cell is 1.2 ADU, and four frames see it.
    assert overlaps[:, 3].min() > 0.3
    assert overlaps[:, 3].max() < 2.0


def test_shapes_are_checked():
    made = made_night(1, frames=2)
    with pytest.raises(ValueError, match="gains"):
        replace(made.meshes, gains=made.meshes.gains[:, :0])


class TestWhatIsNotKnown:
    @pytest.mark.usefixtures("frames_alone")
    def test_without_directions_a_slope_of_all_panels_is_not_claimed_to_be_sky(self):
        """Levels that rise from panel to panel are those of the sky, or of the hour."""
        made = made_night(3, panels=(1, 3), frames=6, tilt_adu=80.0, drift_adu=0.0)
        one_frame = replace(made.meshes, frame_area_px=1e12)
        model = solve_sky(one_frame, made.circumstances, known_flat(made.vignetting))
        gauge, left = model.channels[0].gauge, left_over(made, model)
        assert gauge.sigma_data[:2].max() > 0.5 * left.std()
        assert left_over(made, solve_sky(made.meshes, made.circumstances, known_flat(0.04))).std() < 2.5

    def test_a_slope_that_the_frames_know_is_kept_and_another_is_not(self):
        width = np.full(5, 5.0)
        known, unknown = np.diag(np.full(5, 4.0)), np.diag(np.full(5, 400.0))
        found = np.array([40.0, 0.0, 0.0, 0.0, 0.0])
        for covariance, share in ((known, 0.97), (unknown, 0.15)):
            agreed = _agreed_width(found, covariance, width) ** 2
            kept = found[0] * agreed[0] / (agreed[0] + covariance[0, 0])
            assert (kept / found[0] > share) == (covariance is known)
            assert np.all(agreed[1:] < width[1:] ** 2)

    def test_a_flat_too_poor_to_be_applied_says_how_much_of_a_bowl_is_vignetting(self):
        """Its coefficients are poorly known, their sum is not: +-1.4 % in the corner."""
        made = made_night(1, panels=(2, 2), vignetting=0.06)
        spread = np.array([[1.0, -0.99], [-0.99, 1.0]]) * 0.1**2
        poor = StarFlat(np.array([np.log(0.94), 0.0]), spread, 1000)
        assert not poor.usable
        model = solve_sky(made.meshes, made.circumstances, poor)
        assert left_over(made, model).std() < 3.0
        channel = model.channels[0]
        found = channel.patterns[0] + channel.vignetting[0]
        assert found.sum() == pytest.approx(-0.06 * channel.light_adu, abs=0.02 * channel.light_adu)

    def test_each_frame_is_freed_of_the_vignetting_of_its_own_camera(self):
        made = made_night(3, frames=6, vignetting=0.04)
        other = np.arange(len(made.meshes.mesh)) % 2 == 1
        fall = (1 - 0.12 * made.meshes.q) / (1 - 0.04 * made.meshes.q)
        mesh = np.where(
            other[:, None, None, None], PEDESTAL + (made.meshes.mesh - PEDESTAL) * fall, made.meshes.mesh
        )
        made = replace(made, meshes=replace(made.meshes, mesh=mesh))
        two = known_flat(0.04), known_flat(0.12)
        own = solve_sky(made.meshes, made.circumstances, [two[int(o)] for o in other])
        assert left_over(made, own).std() < 2.5
        # With one flat for all, the difference passes for glow of the frames that bends.
        one = solve_sky(made.meshes, made.circumstances, two[0])
        assert one.channels[0].curvature.any()
        assert not own.channels[0].curvature.any()


class TestElimination:
    """The sky eliminated by a sparse factorisation equals one dense least squares over everything."""

    def in_one_matrix(self, made, problem, covariance, root):
        """Every unknown in one dense matrix, the sky's nodes first, priors as rows; and its right side."""
        m, cells = made.meshes, problem.cells
        frames, first = cells.n_frames, 3 * cells.n_frames + 4
        n_unknowns = first + 3 * frames
        lattice = np.asarray(cells.lattice.weights.todense())
        design = np.zeros((len(cells.value), n_unknowns))
        shapes = products(m.uv).reshape(-1, 18)[:, :3]
        for k, frame in enumerate(cells.frame):
            design[k, 3 * frame : 3 * frame + 3] = cells.basis[k]
            design[k, first - 4 : first - 2] = cells.patterns[k] * cells.light[frame]
            design[k, first - 2 : first] = cells.patterns[k]
            at = np.flatnonzero(np.abs(m.uv.reshape(-1, 2) - cells.basis[k, 1:]).max(axis=1) < 1e-9)[0]
            design[k, first + frame :: frames] = shapes[at]
        weight = np.sqrt(problem.weight)[:, None]
        smooth = np.asarray(cells.lattice.differences.todense()) * np.sqrt(
            1e-5 * np.median(1 / cells.sigma**2)
        )
        bends = np.kron(np.eye(3), root @ root.T)
        pull = np.linalg.inv(np.linalg.cholesky(block_diag(covariance, bends)))
        n = lattice.shape[1]
        matrix = np.block(
            [
                [weight * lattice, weight * design],
                [smooth, np.zeros((len(smooth), n_unknowns))],
                [np.zeros((n_unknowns, n)), pull],
            ]
        )
        right = np.concatenate([weight[:, 0] * cells.value, np.zeros(len(smooth) + n_unknowns)])
        return matrix, right

    def test_the_plain_way_gives_the_same(self):
        made = made_night(2, panels=(1, 2), frames=2, with_site=True, cloud_adu=60.0)
        m, rows = made.meshes, np.arange(4)
        cells = cells_of(rows, m.mesh[:, 0], m.error[:, 0], m, np.ones(4), cell_spacing_px(m.xy))
        problem = JointProblem(cells)
        prior = GlowPrior(made.circumstances, np.ones(4), 400.0)
        sizes, sigma = prior.usual, 8.0**2 * np.eye(4)
        equations = problem.equations()
        root = np.linalg.cholesky(np.diag([9.0, 4.0, 16.0, 1.0]) + 2.0)
        reduced = equations.reduced(root)
        fast = posterior_of(reduced, prior, sizes, sigma)
        matrix, right = self.in_one_matrix(made, problem, full_covariance(prior, sizes, sigma), root)
        n = len(cells.lattice.node_xy)
        plain = np.linalg.lstsq(matrix, right, rcond=None)[0]
        sky, plain, bent = plain[:n], plain[n : n + 16], plain[n + 16 :]
        levels = np.zeros(16)
        levels[:12:3] = 1.0
        # One level of everything is only known to the prior's 800 ADU; neither way finds it to the last digit.
        common = (fast.unknowns - plain) @ levels / 4
        assert abs(common) < 0.5
        np.testing.assert_allclose(fast.unknowns - common * levels, plain, atol=2e-3)
        np.testing.assert_allclose(reduced.sky(fast.unknowns) + common, sky, atol=2e-2)
        np.testing.assert_allclose(reduced.curvature(fast.unknowns).T.ravel(), bent, atol=2e-3)
        assert np.abs(bent).max() > 0.5

    def test_what_is_open_of_the_curvatures_is_their_covariance(self):
        """The sky's covariance by way of the short numbers equals that of all unknowns in one matrix."""
        made = made_night(2, panels=(1, 2), frames=2, with_site=True)
        m, rows = made.meshes, np.arange(4)
        cells = cells_of(rows, m.mesh[:, 0], m.error[:, 0], m, np.ones(4), cell_spacing_px(m.xy))
        prior, sigma = GlowPrior(made.circumstances, np.ones(4), 400.0), 64.0 * np.eye(4)
        equations = JointProblem(cells).equations()
        root = np.linalg.cholesky(np.diag([9.0, 4.0, 16.0, 1.0]) + 2.0)
        reduced = equations.reduced(root)
        known = posterior_of(reduced, prior, prior.usual, sigma).covariance
        each_node = np.eye(len(cells.lattice.node_xy))
        _, response, open_sky = reduced.of_sky(each_node)
        fast = response @ known @ response.T + open_sky @ open_sky.T
        everything = block_diag(full_covariance(prior, prior.usual, sigma), np.kron(np.eye(3), root @ root.T))
        response = equations.of_sky(each_node)[1]
        plain = response @ np.linalg.inv(equations.normal + np.linalg.inv(everything)) @ response.T
        # Less the one level of everything, which only the prior knows.
        less = np.eye(len(plain)) - 1.0 / len(plain)
        np.testing.assert_allclose(less @ fast @ less, less @ plain @ less, atol=1e-4 * np.diag(plain).max())

    def test_the_error_of_large_scales_is_that_of_everything_in_one_matrix(self):
        """Along a strip across the axes, of few noisy cells, most of it is the noise of the sky itself."""
        made = made_night(2, panels=(3, 1), frames=1, with_site=True, rotation_deg=0.0)
        turn = np.array([[1.0, -1.0], [1.0, 1.0]]) / np.sqrt(2.0)
        m = replace(made.meshes, xy=made.meshes.xy @ turn, error=np.full_like(made.meshes.error, 10.0))
        made = replace(made, meshes=m)
        cells = cells_of(np.arange(3), m.mesh[:, 0], m.error[:, 0], m, np.ones(3), cell_spacing_px(m.xy))
        problem = JointProblem(cells)
        # As robust weights come out.
        problem.weight = np.full(len(cells.value), 1.0 / 20.0**2)
        prior, sigma, root = GlowPrior(made.circumstances, np.ones(3), 400.0), np.eye(4), 0.2 * np.eye(3)
        reduced = problem.equations().reduced(root)
        posterior = posterior_of(reduced, prior, prior.usual, sigma)
        terms = sky_gauge.large_scale_terms(cells.lattice.node_xy)
        stated = sky_gauge.large_scale_errors(reduced, posterior, terms, problem.hits)
        matrix, _ = self.in_one_matrix(made, problem, full_covariance(prior, prior.usual, sigma), root)
        n = len(terms)
        known = np.linalg.inv(matrix.T @ matrix)[:n, :n]
        weight = np.where(sky_gauge.seen_nodes(problem.hits), problem.hits, 0.0)[:, None]
        fit = np.linalg.solve(terms.T @ (weight * terms), (weight * terms).T)[1:]
        np.testing.assert_allclose(stated, np.sqrt(np.diag(fit @ known @ fit.T)), rtol=1e-3)
        noise = np.sqrt(np.diag(reduced.equations.sky_noise(fit)))
        assert (noise[2:] > 0.8 * stated[2:]).all()

    def test_the_products_of_sparse_matrices_give_the_same(self):
        made = made_night(2, panels=(1, 2), frames=3, with_site=True, cloud_adu=60.0)
        m, rows, session = made.meshes, np.arange(6), np.array([0, 1, 0, 1, 1, 0])
        light = np.linspace(0.9, 1.2, 6)
        cells = cells_of(rows, m.mesh[:, 0], m.error[:, 0], m, light, cell_spacing_px(m.xy), session)
        assert cells.products.shape[1] > 0
        problem = JointProblem(cells)
        problem.weight = problem.weight * np.random.default_rng(3).uniform(0.1, 2.0, len(problem.weight))
        equations = problem.equations()
        n, n_patterns, n_products = 6, cells.patterns.shape[1], cells.products.shape[1]
        start = 3 * n + 2 * n_patterns
        design = np.zeros((len(cells.value), start + 2 * n_products + 3 * n))
        for k, frame in enumerate(cells.frame):
            design[k, 3 * frame : 3 * frame + 3] = cells.basis[k]
            design[k, 3 * n : 3 * n + n_patterns] = cells.patterns[k] * cells.light[frame]
            design[k, 3 * n + n_patterns : start] = cells.patterns[k]
            own = start + n_products * session[frame]
            design[k, own : own + n_products] = cells.products[k] * cells.light[frame]
            design[k, start + 2 * n_products + frame :: n] = cells.curvature[k]
        lattice, weight = cells.lattice.weights.toarray(), problem.weight[:, None]
        smooth = cells.lattice.differences.toarray()
        smooth = 1e-5 * np.median(1 / cells.sigma**2) * smooth.T @ smooth
        normal_sky = lattice.T @ (weight * lattice) + smooth
        cross = lattice.T @ (weight * design)
        normal = design.T @ (weight * design) - cross.T @ np.linalg.solve(normal_sky, cross)
        scale = np.sqrt(np.outer(np.diag(normal), np.diag(normal)))
        assert (np.abs(equations.normal - normal) < 1e-6 * scale).all()
        right = design.T @ (weight[:, 0] * cells.value)
        right -= cross.T @ np.linalg.solve(normal_sky, lattice.T @ (weight[:, 0] * cells.value))
        np.testing.assert_allclose(equations.right, right, atol=1e-6 * np.abs(right).max())

    def test_the_nearest_node_is_the_first_of_the_largest_weights(self):
        rng = np.random.default_rng(5)
        xy = np.vstack([rng.uniform(-300.0, 700.0, (200, 2)), [[50.0, 50.0], [100.0, 150.0], [0.0, 0.0]]])
        lattice = bilinear_lattice(xy, 100.0)
        plain = lattice.weights.toarray().argmax(axis=1)
        np.testing.assert_array_equal(lattice.nearest(), plain)


class TestPrior:
    def test_it_is_a_covariance(self):
        made = made_night(1, frames=3, with_site=True)
        prior = GlowPrior(made.circumstances, made.meshes.gains[:, 0], 400.0)
        matrix = prior.covariance(prior.usual)
        np.testing.assert_allclose(matrix, matrix.T, rtol=1e-9)
        assert np.linalg.eigvalsh(matrix).min() > 0

    def test_sizes_of_glow_over_the_horizon_need_a_site(self):
        made = made_night(1, frames=2)
        assert len(GlowPrior(made.circumstances, made.meshes.gains[:, 0], 1.0).free) == 7
        made = made_night(1, frames=2, with_site=True)
        assert len(GlowPrior(made.circumstances, made.meshes.gains[:, 0], 1.0).free) == 9


class TestLattice:
    def test_a_plane_is_met_everywhere(self):
        rng = np.random.default_rng(3)
        xy = rng.uniform(-300, 500, (400, 2))
        lattice = bilinear_lattice(xy, 64.0)
        plane = 3.0 + lattice.node_xy @ np.array([0.2, -0.1])
        np.testing.assert_allclose(lattice.weights @ plane, 3.0 + xy @ np.array([0.2, -0.1]), atol=1e-9)
        known = np.ones(len(plane), bool)
        inner = lattice.interpolated(plane, known, xy)
        np.testing.assert_allclose(inner, 3.0 + xy @ np.array([0.2, -0.1]), atol=1e-9)
        assert np.isnan(lattice.interpolated(plane, known, np.array([5000.0, 0.0])))

    def test_more_points_only_add_nodes(self):
        xy = np.random.default_rng(4).uniform(0, 300, (50, 2))
        few, more = bilinear_lattice(xy, 64.0), bilinear_lattice(np.vstack([xy, [[-700.0, 900.0]]]), 64.0)
        assert {tuple(p) for p in few.node_xy} <= {tuple(p) for p in more.node_xy}

    def test_roughness_is_the_range_of_neighbours(self):
        lattice = bilinear_lattice(np.array([[10.0, 10.0], [74.0, 10.0]]), 64.0)
        values = lattice.node_xy[:, 0].copy()
        assert lattice.roughness(values).max() == pytest.approx(128.0)

    def test_large_scales_are_measured_at_the_edge(self):
        terms = large_scale_terms(np.array([[0.0, 0.0], [1000.0, 0.0], [0.0, 500.0], [1000.0, 500.0]]))
        assert terms[:, 1].max() == 1.0
        assert terms[:, 2].max() == 0.5


class TestSpread:
    def test_few_frames_are_all_taken(self):
        assert spread_rows(np.zeros((5, 1, 1, 2)), np.arange(5.0), 5).tolist() == [0, 1, 2, 3, 4]

    def test_places_and_times_are_covered(self):
        rng = np.random.default_rng(0)
        xy = rng.uniform(0, 4000, (600, 1, 1, 2))
        hours = rng.uniform(0, 6, 600)
        rows = spread_rows(xy, hours, 100)
        assert len(rows) == len(set(rows.tolist())) == 100
        assert hours[rows].min() < 0.5
        assert hours[rows].max() > 5.5
        for corner in ((0, 0), (0, 1), (1, 0), (1, 1)):
            inside = ((xy[rows, 0, 0] > 2000) == np.array(corner, bool)).all(axis=1)
            assert inside.sum() >= 15


class TestStarFlat:
    @staticmethod
    def fluxes(seed: int, vignetting: float, shift_px: float):
        """Forty frames of 150 stars; the pointing wanders by `shift_px`."""
        rng = np.random.default_rng(seed)
        shape = (1920, 1080)
        star_xy = rng.uniform(-shift_px, [1080 + shift_px, 1920 + shift_px], (400, 2))
        star_flux = 10 ** rng.uniform(3, 5, 400)
        frame, star, flux, q = [], [], [], []
        for i in range(40):
            x, y = (star_xy + rng.uniform(-shift_px, shift_px, 2)).T
            on = np.flatnonzero((x > 0) & (x < 1079) & (y > 0) & (y < 1919))
            r2 = radius_squared(x[on], y[on], shape)
            transparency = rng.uniform(0.7, 1.0)
            value = star_flux[on] * transparency * (1 - vignetting * r2)
            value = value * np.exp(rng.normal(0, 0.01, len(on)))
            value[rng.uniform(size=len(on)) < 0.02] *= 1.5
            frame.append(np.full(len(on), i))
            star.append(on)
            flux.append(value)
            q.append(r2)
        return np.concatenate(frame), np.concatenate(star), np.concatenate(flux)[:, None], np.concatenate(q)

    @pytest.mark.parametrize("vignetting", [0.0, 0.04, 0.12])
    def test_vignetting_is_found_where_stars_wander(self, vignetting):
        frame, star, flux, q = self.fluxes(1, vignetting, 400.0)
        flat = solve_star_flat(frame, star, flux, q, 40, 400)
        assert flat.usable
        assert abs(flat.corner - (1 - vignetting)) < 0.005
        assert abs(flat.corner - (1 - vignetting)) < 3 * flat.corner_sigma + 1e-3
        at = np.linspace(0, 1, 20)
        f1, f2 = flat.inverse_terms()
        np.testing.assert_allclose(1 + f1 * at + f2 * at**2, 1 / flat.values(at), atol=2e-4)

    def test_a_poorer_flat_is_applied_where_much_more_than_its_error_is_found(self):
        """Left alone, a corner that lost 7 % stays 7 % too faint; taken out, it is wrong by the error."""

        def flat(corner: float, sigma: float, shape_sigma: float = 0.0) -> StarFlat:
            # Of one known shape, but for what is exchanged between the coefficients.
            exchanged = np.array([[1.0, -1.0], [-1.0, 1.0]]) * shape_sigma**2
            return StarFlat(np.array([np.log(corner), 0.0]), np.diag([sigma**2, 0.0]) + exchanged, 1000)

        assert flat(0.93, 0.012).usable
        assert flat(1.07, 0.012).usable  # what a flat frame took out too much
        assert flat(0.99, 0.007).usable
        assert flat(0.96, 0.012).usable
        assert not flat(0.98, 0.012).usable  # not known from nothing
        assert not flat(0.90, 0.021).usable  # 2 %
        assert not flat(0.93, 0.012, shape_sigma=0.2).usable  # the corner alone is known
        assert not StarFlat(np.log([0.9, 1.0]), np.zeros((2, 2)), 0).usable

    def test_one_undithered_panel_tells_nothing(self):
        frame, star, flux, q = self.fluxes(2, 0.05, 0.5)
        assert not solve_star_flat(frame, star, flux, q, 40, 400).usable

    def test_cameras_have_flats_of_their_own_where_they_differ(self):
        first, second = self.fluxes(1, 0.02, 400.0), self.fluxes(3, 0.10, 400.0)
        same = self.fluxes(3, 0.02, 400.0)
        camera = np.repeat([0, 1], 40)
        for other, corners in ((second, (0.98, 0.90)), (same, (0.98, 0.98))):
            frame = np.concatenate([first[0], other[0] + 40])
            star = np.concatenate([first[1], other[1] + 400])
            flats = solve_camera_flats(
                frame,
                star,
                np.vstack([first[2], other[2]]),
                np.concatenate([first[3], other[3]]),
                camera,
                800,
            )
            assert [flats[0].corner, flats[-1].corner] == pytest.approx(corners, abs=0.006)
            assert (flats[0] is flats[-1]) == (corners[0] == corners[1])

    def test_no_star_no_flat(self):
        nothing = np.empty(0, np.int64)
        flat = solve_star_flat(nothing, nothing, np.empty((0, 3)), np.empty(0), 2, 0)
        assert not flat.usable
        assert flat.inverse_terms() == (0.0, 0.0)
