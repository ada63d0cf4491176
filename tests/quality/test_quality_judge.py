"""The judge of made-up mosaics finds each fault in the size in which it was put in, and nothing in a perfect one."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest
from astropy.io import fits

from benchmarks.quality_background import Cells
from benchmarks.quality_judge import judge_scene, vignetting_error
from benchmarks.quality_nights import NIGHTS, night_spec
from benchmarks.quality_pixels import worst_coverage
from benchmarks.quality_report import claims_of_report, large_scale_deviations
from benchmarks.quality_scene import CFA_DENSITY, TRUTH_FWHM_PX, load_scene
from benchmarks.quality_table import COLUMNS, print_table
from zemosaic_core.synthetic_nebula import Cloud
from zemosaic_core.synthetic_sky import (
    Camera,
    FrameSetup,
    pixel_to_sky,
    render_ideal,
    sky_to_pixel,
    tan_cards,
)
from zemosaic_io.glow_session import NightSpec, plan_glow_night

SHAPE = (900, 620)
SCALE, SKY = 0.9, 500.0
SPEC = NightSpec(
    seed=5,
    frames_per_panel=5,
    starts=(datetime(2025, 11, 20, 20, 0),),
    shape_hw=(480, 320),
    clouds=(Cloud(peak_adu=120.0, radius_deg=0.4, clumpiness=0.1),),
    galaxy=None,
    n_satellites=2,
)


def mosaic_cards(night):
    first, last = (
        np.array([f.setup.cards["CRVAL1"], f.setup.cards["CRVAL2"]])
        for f in (night.frames[0], night.frames[-1])
    )
    middle = 0.5 * (first + last)
    return tan_cards(*middle, rotation_deg=-28.0, scale_arcsec=SPEC.scale_arcsec, shape_hw=SHAPE)


@pytest.fixture(scope="module")
def night():
    """A night without seeing changes, so that the painted truth is what its best mosaic would show."""
    planned = plan_glow_night("", SPEC)
    calm = tuple(replace(f, setup=replace(f.setup, fwhm_px=TRUTH_FWHM_PX)) for f in planned.frames)
    return replace(planned, frames=calm)


@pytest.fixture(scope="module")
def perfect(night, tmp_path_factory):
    """The truth with the noise of the best mean, in other units and upon a sky, written and read as a mosaic."""
    cards = mosaic_cards(night)
    setup = FrameSetup(cards=cards, shape_hw=SHAPE, fwhm_px=TRUTH_FWHM_PX)
    path = tmp_path_factory.mktemp("mosaic") / "mosaic.fits"
    light = render_ideal(night.sky, setup)
    fits.PrimaryHDU(light, fits.Header(cards)).writeto(path)
    scene = load_scene(path, night)
    air = np.mean([frame.setup.transparency for frame in night.frames], axis=0)[:, None, None]
    photons = Camera().adu_per_electron * scene.stars / air / np.maximum(scene.frames, 1)
    sigma = np.sqrt((scene.noise**2 + photons) / CFA_DENSITY[:, None, None])
    noisy = light + sigma * np.random.default_rng(8).standard_normal(light.shape)
    path = path.with_name("noisy.fits")
    fits.PrimaryHDU((SCALE * noisy + SKY).astype(np.float32), fits.Header(cards)).writeto(path)
    return load_scene(path, night)


def judged(scene, night, **changes):
    return judge_scene(replace(scene, **changes), night).as_dict()


def changed(scene, change):
    image = scene.image.copy()
    change(image)
    return {"image": image}


def inside(scene, night, index):
    """Where a frame lies in the mosaic."""
    y, x = np.mgrid[0 : SHAPE[0], 0 : SHAPE[1]]
    cards = night.frames[index].setup.cards
    fx, fy = sky_to_pixel(cards, *pixel_to_sky(scene.cards, x, y))
    height, width = SPEC.shape_hw
    return (fx >= 0) & (fx <= width - 1) & (fy >= 0) & (fy <= height - 1)


def test_a_perfect_mosaic_has_no_fault(perfect, night):
    found = judged(perfect, night)
    assert found["flux_scale"] == pytest.approx([SCALE] * 3, rel=0.005)
    assert max(found["bg_rms_adu"]) < 1.6  # the noise of a median of 4096 pixels at the edges
    assert found["slope"] == pytest.approx([1.0] * 3, abs=0.02)
    assert found["seam_sides"] >= 4
    assert found["seam_rms_adu"] == pytest.approx(found["seam_noise_adu"], rel=0.35)
    assert found["seam_worst_sigma"] < 3.5
    assert found["panel_spread_pct"] < 3 * found["panel_spread_noise_pct"]
    assert found["flux_scatter"] == pytest.approx([1.0] * 3, abs=0.25)
    assert found["n_stars"] > 60
    assert found["outliers_ppm"] == 0.0
    assert (found["satellites"], found["satellites_left"]) == (2, 0)
    assert found["noise_ratio"] == pytest.approx(1.0 / np.sqrt(CFA_DENSITY), rel=0.02)


def test_tilt_and_bowl_of_the_sky_are_measured(perfect, night):
    clean = judged(perfect, night)
    y, x = np.mgrid[0 : SHAPE[0], 0 : SHAPE[1]]
    tilt = 20.0 * (x - 310.0) / 450.0
    found = judged(perfect, night, image=perfect.image + tilt.astype(np.float32))
    seen = np.isfinite(perfect.noise[1])
    rows = np.flatnonzero(seen.any(axis=1))
    edge = (0.5 * np.ptp(rows) - 32.0) / 450.0  # centres of the outermost cells
    assert found["bg_rms_adu"][1] == pytest.approx(tilt[seen].std(), rel=0.1)
    assert found["bg_rms_after_plane_adu"][1] == pytest.approx(clean["bg_rms_after_plane_adu"][1], abs=0.1)
    assert found["large_scales_adu"][1][0] - clean["large_scales_adu"][1][0] == pytest.approx(
        20.0 * edge, rel=0.1
    )
    bowl = 15.0 * ((x - 310.0) ** 2 + (y - 450.0) ** 2) / 450.0**2
    found = judged(perfect, night, image=perfect.image + bowl.astype(np.float32))
    assert found["bg_rms_after_plane_adu"][1] > 2.0
    change = np.array(found["large_scales_adu"][1]) - clean["large_scales_adu"][1]
    assert change[[2, 4]] == pytest.approx([15.0 * edge**2] * 2, rel=0.15)


def test_cells_count_in_the_bowl_as_much_as_frames_cover_them():
    x = np.tile(np.arange(9.0), (7, 1))
    bowl = 6.0 * ((x - 4.0) / 4.0) ** 2
    frames = np.full(bowl.shape, 20.0)
    frames[[0, 0, -1, -1], [0, -1, 0, -1]] = 0.2
    wrong = np.where(frames < 1.0, 30.0, 0.0)
    as_one = Cells(bowl + wrong, np.zeros_like(bowl), np.ones_like(bowl)).large_scales()
    found = Cells(bowl + wrong, np.zeros_like(bowl), frames).large_scales()
    assert Cells(bowl, np.zeros_like(bowl), frames).large_scales() == pytest.approx(
        [0, 0, 6.0, 0, 0], abs=1e-9
    )
    assert found == pytest.approx([0, 0, 6.0, 0, 0], abs=1.5)
    assert abs(as_one[4]) > 10.0


def test_eaten_nebula_shows_in_the_slope(perfect, night):
    found = judged(perfect, night, image=perfect.image - 0.2 * perfect.diffuse)
    assert found["slope"] == pytest.approx([0.8] * 3, abs=0.02)


def test_a_step_at_a_panel_is_a_seam(perfect, night):
    panel = inside(perfect, night, 7)
    found = judged(perfect, night, image=perfect.image + np.where(panel, np.float32(4.0), np.float32(0.0)))
    assert found["seam_worst_adu"] == pytest.approx(4.0, abs=1.5)
    assert found["seam_worst_sigma"] > 6.0


def test_a_brighter_panel_spreads_fluxes(perfect, night):
    panel = inside(perfect, night, 12)
    factor = np.where(panel, np.float32(1.05), np.float32(1.0))
    before, after = judged(perfect, night), judged(perfect, night, image=perfect.image * factor)
    # One panel of four is 5 % brighter, and its neighbours where they overlap.
    assert 1.2 < after["panel_spread_pct"] < 3.0
    assert after["panel_spread_pct"] > 2 * before["panel_spread_pct"]


def test_outliers_are_counted_where_frames_are_many(perfect, night):
    rng = np.random.default_rng(4)
    deep = np.argwhere(perfect.clean & (perfect.coverage >= 5))
    thin = np.argwhere(perfect.clean & (perfect.coverage > 0) & (perfect.coverage < 4))
    put = deep[rng.choice(len(deep), 40, replace=False)]
    put_thin = thin[rng.choice(len(thin), min(30, len(thin)), replace=False)]

    def spoil(image):
        image[1, put[:, 0], put[:, 1]] += 3000.0
        image[1, put_thin[:, 0], put_thin[:, 1]] += 3000.0

    found = judged(perfect, night, **changed(perfect, spoil))
    looked = sum(n for frames, (n, _) in found["outliers_by_coverage"].items() if frames >= 4)
    assert found["outliers_ppm"] == pytest.approx(40e6 / looked)


def test_worst_coverage_pools_thin_numbers():
    share, first = worst_coverage({4: (60_000, 0), 5: (60_000, 6), 6: (200_000, 2), 7: (10, 10)})
    assert (share, first) == (pytest.approx(50.0), 4)
    assert np.isnan(worst_coverage({4: (10, 1)})[0])


def test_a_trail_that_survived_is_found(perfect, night):
    index = next(i for i, f in enumerate(night.frames) if f.setup.satellites)
    trail = night.frames[index].setup.satellites[0]
    along = np.linspace(0.0, 1.0, 4000)
    fx, fy = trail.x0 + along * (trail.x1 - trail.x0), trail.y0 + along * (trail.y1 - trail.y0)
    x, y = sky_to_pixel(perfect.cards, *pixel_to_sky(night.frames[index].setup.cards, fx, fy))
    place = np.unique(np.rint(np.c_[y, x]).astype(int), axis=0)
    place = place[((place >= 0) & (place < SHAPE)).all(axis=1)]

    def draw(image):
        image[:, place[:, 0], place[:, 1]] += 60.0

    found = judged(perfect, night, **changed(perfect, draw))
    assert found["satellites_left"] == 1
    assert found["satellite_worst_adu"] == pytest.approx(60.0, rel=0.2)


def test_error_of_a_flat_is_against_the_true_one():
    night = plan_glow_night("", replace(SPEC, vignetting=0.12))
    q = np.linspace(0, 1, 200)
    exact = np.linalg.lstsq(np.c_[q, q**2], np.log(1 - 0.12 * q), rcond=None)[0]
    assert vignetting_error(night, tuple(exact))["max_pct"] < 0.1
    none = vignetting_error(night, (0.0, 0.0))
    assert none["rms_pct"] == pytest.approx(none["without_rms_pct"], rel=0.05)
    assert 2.0 < none["rms_pct"] < 4.0


def test_claims_of_a_run_are_set_against_the_errors():
    night = plan_glow_night("", replace(SPEC, vignetting=0.0))
    channel = {"assurance": "night", "sigma_tilt_adu": [2.0, 4.0], "sigma_bowl_adu": [1.0, 1.0, 1.0]}
    report = {"sky": {"flat": {"applied": False, "nu": [0.0, 0.0]}, "channels": [channel] * 3}}
    claims = claims_of_report(report, night)
    assert claims["vignetting"]["rms_pct"] == pytest.approx(0.0)
    assert claims["vignetting"]["applied"] is False
    assert large_scale_deviations(claims, [[-4.0, 4.0, 0.5, 0.0, 2.0]] * 3)[2] == [2.0, 1.0, 0.5, 0.0, 2.0]
    assert claims_of_report({}, night)["vignetting"] is None
    assert large_scale_deviations(claims_of_report({}, night), [[1.0] * 5] * 3) == []


def test_every_named_night_is_possible_and_the_table_shows_a_verdict(perfect, night, capsys):
    for name in NIGHTS:
        assert plan_glow_night("", replace(night_spec(name), galaxy=None, clouds=())).frames
    with pytest.raises(ValueError, match="random-SEED"):
        night_spec("nowhere")
    print_table([{"night": "a", "route": "b", **judged(perfect, night)}])
    heading, line = capsys.readouterr().out.splitlines()
    assert len(heading) == len(line)
    assert all(name in heading for name, _, _ in COLUMNS)
