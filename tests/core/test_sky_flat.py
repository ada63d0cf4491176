"""Vignetting that stars and sky tell together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.core.sky_cases import CELL_NOISE, LIGHT, PEDESTAL, MadeNight, left_over, made_night
from zemosaic_core import sky_flat
from zemosaic_core.sky_flat import SeenPattern, flat_of_stars_and_sky, seen_pattern
from zemosaic_core.sky_model import SkyModel, solve_sky
from zemosaic_core.star_flat import StarFlat, no_star_flat


def three_colours(made: MadeNight) -> MadeNight:
    """The night in three channels of different brightness, and noise that follows it: a pedestal shows.

    The truth is that of the first.
    """
    rng = np.random.default_rng(8)
    m = made.meshes
    light = np.stack([share * (m.mesh[:, 0] - PEDESTAL) for share in (0.8, 1.0, 0.7)], axis=1)
    error = CELL_NOISE * np.sqrt(light / LIGHT)
    mesh = PEDESTAL + light + error * rng.standard_normal(light.shape)
    sky = np.median(mesh, axis=(2, 3))
    return replace(
        made,
        meshes=replace(
            m,
            mesh=mesh,
            error=error,
            sky=sky,
            pixel_noise=40.0 * np.sqrt((sky - PEDESTAL) / LIGHT),
            gains=np.repeat(m.gains, 3, axis=1),
        ),
        sky_truth=0.8 * made.sky_truth,
    )


def poor_flat(corner: float) -> StarFlat:
    return StarFlat(np.array([np.log(corner), 0.0]), np.diag([0.03, 0.03]) ** 2, 500)


def test_what_frames_say_is_what_is_left_without_the_prior():
    """Against one dense least squares over the frames and the wished prior of the constant patterns."""
    rng = np.random.default_rng(3)
    design, truth, light, sigma = rng.normal(size=(40, 4)), np.array([-20.0, 4.0, 3.0, -2.0]), 400.0, 2.0
    data = design @ truth + rng.normal(0, sigma, 40)
    prior = np.diag([30.0, 30.0, 9.0, 9.0]) ** 2 + 4.0
    covariance = np.linalg.inv(design.T @ design / sigma**2 + np.linalg.inv(prior))
    unknowns = covariance @ design.T @ data / sigma**2
    before = np.array([-7.0, 1.0])
    seen = seen_pattern(unknowns, covariance, prior, before, light, 0.0, 40)

    pull = np.zeros((2, 4))
    pull[0, 2] = pull[1, 3] = 1.0 / (sky_flat._AMPLIFIERS * light)
    matrix = np.vstack([design / sigma, pull])
    plain = np.linalg.lstsq(matrix, np.append(data / sigma, [0.0, 0.0]), rcond=None)[0]
    spread = np.linalg.inv(matrix.T @ matrix)[:2, :2]
    np.testing.assert_allclose(np.linalg.inv(seen.information), spread / light**2, rtol=1e-6)
    np.testing.assert_allclose(
        np.linalg.solve(seen.information, seen.right), (plain[:2] + before) / light, rtol=1e-6
    )


def test_channels_that_agree_are_weighed_with_the_stars():
    mean_q = np.array([0.3, 0.15])
    nu = np.array([-0.05, -0.01])
    terms = np.expm1(nu.sum()) * np.array([0.8, 0.2])
    share = terms / (1.0 + terms @ mean_q)
    sure = SeenPattern(np.eye(2) * 1e8, 1e8 * share, 0.0, 100)
    stars = poor_flat(0.90)
    found = flat_of_stars_and_sky(stars, [sure, sure], mean_q)
    assert found.corner == pytest.approx(1.0 + terms.sum(), abs=2e-3)
    assert found.n_cells == 200
    assert found.n_measurements == 500
    # Light of the sky takes other ways than that of stars: no number of frames makes it better known than this.
    assert found.corner_sigma == pytest.approx(sky_flat._OTHER_WAY, rel=0.05)
    nothing = SeenPattern(np.zeros((2, 2)), np.zeros(2), 0.0, 0)
    assert flat_of_stars_and_sky(stars, [nothing], mean_q) is stars
    no_light = SeenPattern(np.eye(2) * 1e8, 1e8 * np.array([-2.0, -2.0]), 0.0, 100)
    assert flat_of_stars_and_sky(stars, [no_light], mean_q) is stars


@pytest.mark.parametrize("seed", [4, 9])
@pytest.mark.parametrize("stars", [poor_flat(0.99), no_star_flat()], ids=["poor", "none"])
def test_the_sky_makes_a_flat_of_few_stars_good_enough(stars: StarFlat, seed: int):
    night = made_night(seed, vignetting=0.08, cloud_adu=60.0, drift_adu=150.0, with_site=True)
    made = three_colours(night)
    assert not stars.usable
    model = solve_sky(made.meshes, made.circumstances, stars)
    flat = model.better_flat
    assert flat is not None
    assert flat.usable
    assert abs(flat.corner - 0.92) < 0.008
    again = solve_sky(made.meshes, made.circumstances, flat, before=model)
    assert again.flat_applied
    assert again.better_flat is None
    # Applied, it is taken out of the nebula as well.
    assert left_over(made, again).std() < 1.02 * left_over(made, model).std()


def test_what_is_left_of_a_flat_that_was_applied_is_found_too():
    made = three_colours(made_night(5, vignetting=0.06, drift_adu=150.0, with_site=True))
    off = StarFlat(np.array([np.log(0.955), 0.0]), np.diag([0.0054, 0.0054]) ** 2, 2000)
    assert off.usable
    flat = solve_sky(made.meshes, made.circumstances, off).better_flat
    assert flat is not None
    assert abs(flat.corner - 0.94) < 0.4 * abs(off.corner - 0.94)


def test_one_undithered_panel_tells_no_flat():
    made = three_colours(made_night(3, panels=(1, 1), frames=16, rotation_deg=0.0, drift_adu=150.0))
    stars = no_star_flat()
    model = solve_sky(made.meshes, made.circumstances, stars)
    assert model.better_flat is None
    assert model.flat is stars


def test_cameras_with_flats_of_their_own_are_left_to_their_stars():
    made = three_colours(made_night(3, frames=6))
    two = poor_flat(0.96), poor_flat(0.97)
    flats = [two[k % 2] for k in range(len(made.meshes.mesh))]
    assert solve_sky(made.meshes, made.circumstances, flats).better_flat is None


def test_a_second_solution_begins_where_the_first_ended():
    """Its one turn ends near where weights and sky settle; from equal weights it would not."""
    made = three_colours(made_night(4, vignetting=0.08, cloud_adu=60.0, drift_adu=150.0, with_site=True))
    odd = np.random.default_rng(2).random(made.meshes.mesh.shape) < 0.02
    made = replace(made, meshes=replace(made.meshes, mesh=made.meshes.mesh + 60.0 * odd))
    model = solve_sky(made.meshes, made.circumstances, no_star_flat())
    flat = model.better_flat
    assert flat is not None

    def solved_after(before: SkyModel) -> SkyModel:
        return solve_sky(made.meshes, made.circumstances, flat, before=before)

    again = settled = solved_after(model)
    for _ in range(5):
        settled = solved_after(settled)
    equal = [
        replace(channel, cell_weight=np.full_like(channel.cell_weight, np.median(channel.cell_weight)))
        for channel in model.channels
    ]

    def away(found: SkyModel) -> float:
        """Return the largest difference of what frames lose at the border of the detector, ADU."""
        terms, radial = found.terms - settled.terms, found.radial - settled.radial
        return float(max(np.abs(terms[..., 1:]).max(), np.abs(radial[..., 2:]).max()))

    assert away(again) < 0.5
    assert away(solved_after(replace(model, channels=tuple(equal)))) > 4.0
