"""Measurements made of the truth of a night, and the sky model judged on them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.quality_sky import judge_model, measure_night, solve_night, within
from zemosaic_core.night_sky import Site
from zemosaic_core.sky_model import solve_sky
from zemosaic_core.star_flat import StarFlat, no_star_flat
from zemosaic_core.synthetic_glow import Glow
from zemosaic_core.synthetic_nebula import Cloud
from zemosaic_core.synthetic_sky import render_frame, vignette
from zemosaic_io.glow_session import NightSpec, plan_glow_night
from zemosaic_pipeline import sky

SPEC = NightSpec(
    seed=9,
    frames_per_panel=4,
    shape_hw=(640, 448),
    site=Site(47.0, 7.4),
    glow=Glow(dome_adu=3000.0, dome_azimuth_deg=100.0),
    clouds=(Cloud(peak_adu=90.0, radius_deg=0.4),),
    galaxy=None,
    n_satellites=0,
)


@pytest.fixture(scope="module")
def night():
    return plan_glow_night("", SPEC)


@pytest.fixture(scope="module")
def measured(night):
    return measure_night(night)


def test_meshes_are_those_of_the_rendered_pixels(night, measured):
    """Against a frame that was rendered: its median in each cell and colour."""
    pixels = render_frame(night.sky, night.frames[5].setup).astype(float)
    y, x = np.indices(pixels.shape) % 2
    for channel, here in enumerate((("R", 0, 1), ("G", 0, 0), ("B", 1, 0))):
        _, row, column = here
        plane = np.where((y == row) & (x == column), pixels, np.nan)
        cells = plane.reshape(10, 64, 7, 64).swapaxes(1, 2).reshape(10, 7, -1)
        median = np.nanmedian(cells, axis=2)
        # Stars raise some medians, whole numbers round them; the cells must agree as a whole and in their slope.
        difference = median - measured.meshes.mesh[5, channel]
        assert np.median(difference) == pytest.approx(0.0, abs=3.0)
        assert np.median(difference[:3]) == pytest.approx(np.median(difference[-3:]), abs=5.0)


def test_gains_undo_the_transparency(night, measured):
    product = measured.meshes.gains[:, 1] * measured.transparency[:, 1]
    assert product.std() / product.mean() < 0.01


def test_the_model_leaves_an_even_sky_and_keeps_the_cloud(night, measured):
    found = judge_model(measured, solve_night(measured))
    assert max(found["bg_rms_adu"]) < 5.0
    assert found["slope"][1] == pytest.approx(1.0, abs=0.08)
    untouched = measured.meshes.mesh * measured.meshes.gains[..., None, None]
    corner = vignette(SPEC.shape_hw, SPEC.vignetting)[0, 0]
    assert corner == pytest.approx(0.96)
    # What there was to remove: far more than is left.
    assert (untouched - measured.diffuse)[:, 1].std() > 10.0


def test_a_flat_that_the_sky_makes_better_known_changes_gains_and_sky(measured, monkeypatch):
    stars, better = measured.stars, StarFlat(np.array([np.log(0.96), 0.0]), np.eye(2) * 1e-8, 1000)
    solved = []

    def solve(meshes, circumstances, flats, *, before=None, threads=1):
        assert (before is None) == (not solved)
        found = solve_sky(meshes, circumstances, flats, before=before, threads=threads)
        solved.append(meshes.gains)
        return found if before else replace(found, better_flat=better)

    monkeypatch.setattr(sky, "solve_sky", solve)
    flats = dict.fromkeys(stars.indices, no_star_flat())
    model, gains = sky.solved_with_flat(measured.meshes, measured.circumstances, stars.indices, flats, stars)
    assert model.flat is better
    plain = stars.flux_scale(dict.fromkeys(stars.indices, better)).gains
    np.testing.assert_array_equal([gains[index] for index in stars.indices], plain)
    np.testing.assert_array_equal(solved[1], plain)
    np.testing.assert_allclose(model.terms[:, :, 0], plain, rtol=1e-6)
    solved.clear()
    kept, none = sky.solved_with_flat(measured.meshes, measured.circumstances, stars.indices, flats, None)
    assert none == {}
    assert len(solved) == 1
    np.testing.assert_allclose(kept.terms[:, :, 0], measured.meshes.gains, rtol=1e-6)


def test_site_can_be_withheld(night):
    assert measure_night(night, with_site=False).circumstances.local is None
    assert measure_night(replace(night, frames=night.frames[:4])).circumstances.local.direction.shape == (
        4,
        5,
        3,
    )


def test_claims_are_held_against_errors():
    assert within([3.0, 4.0, 0.0, 0.0, 0.0], [2.0, 1.6, 0.0, 0.0, 0.0], slice(0, 2))
    assert not within([3.0, 4.0, 0.0, 0.0, 0.0], [2.0, 1.4, 0.0, 0.0, 0.0], slice(0, 2))
    assert within([0.0, 0.0, 9.0, 9.0, 9.0], [1.0, 1.0, np.inf, np.inf, np.inf], slice(2, 5))
