"""Whether a stack gets a second pass, what it does to a run, and the finer grid."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from made_frames import field_sky, pointings, run, write_all

from zemosaic_core.pixel_map import build_pixel_map
from zemosaic_core.sources import CoaddSource
from zemosaic_core.transforms import Transform
from zemosaic_pipeline.refinement import MIN_FRAMES, choose_refine, overlap
from zemosaic_worker import run_hierarchical_mosaic

GOOD = {"kind": "cfa", "n_frames": 20, "combine": "mean", "kernel": "lanczos3"}


@pytest.mark.parametrize(
    ("wanted", "facts", "key"),
    [
        ("auto", {}, "refine_on"),
        ("off", {}, "refine_off"),
        ("auto", {"n_frames": MIN_FRAMES}, "refine_on"),
        ("auto", {"n_frames": MIN_FRAMES - 1}, "refine_few"),
        ("auto", {"kind": "mono"}, "refine_no_filters"),
        ("auto", {"kind": "rgb", "scale": 2.0}, "refine_no_filters"),
        ("auto", {"kind": "mono", "scale": 1.5}, "refine_on"),
        ("auto", {"combine": "median"}, "refine_rule"),
        ("auto", {"kernel": "bilinear"}, "refine_rule"),
        ("auto", {"noise_known": False}, "refine_noise"),
        ("auto", {"alike": 0.9}, "refine_not_dithered"),
    ],
)
def test_who_gets_a_second_pass(wanted, facts, key):
    decision = choose_refine(wanted, **{**GOOD, **facts})
    assert decision.reason_key == key
    assert decision.on == (key == "refine_on")


def shifted(shifts):
    shape, box, weight = (300, 200), (0, 300, 0, 200), np.ones(3, np.float32)
    terms = np.tile(np.array([1, 0, 0, 0], np.float32), (3, 1))
    return [
        CoaddSource(
            k, shape, build_pixel_map(lambda x, y, d=d: (x + d[0], y + d[1]), box), box, terms, weight
        )
        for k, d in enumerate(shifts)
    ]


def test_frames_that_never_move_are_found_out():
    rng = np.random.default_rng(0)
    assert overlap(shifted(rng.normal(0, 0.05, (12, 2)))) == (12, pytest.approx(1, abs=0.05))
    # Moves by whole cells of the colour filter array are none.
    assert overlap(shifted(2.0 * rng.integers(-4, 5, (12, 2))))[1] == pytest.approx(1)
    # Along one axis only is not enough.
    assert overlap(shifted(rng.normal(0, [8, 0.02], (30, 2))))[1] > 0.9
    assert overlap(shifted(rng.normal(0, 8, (12, 2))))[1] < 0.6
    assert overlap(shifted(rng.normal(0, 8, (5, 2)))) == (5, 0.0)


def test_a_run_says_and_makes_it(small_run, small_mosaic, small_night, tmp_path):
    assert small_run.report["refine"]["reason_key"] == "refine_on"
    assert [tile["refine"] for tile in small_run.report["tiles"]] == ["refine_on"]
    assert "run_info_refined" in {message["key"] for message in small_run.report["messages"]}
    off = run_hierarchical_mosaic(small_night.folder, tmp_path, gpu_mode="off", cfa_refine="off")
    assert [tile["refine"] for tile in off.report["tiles"]] == ["refine_off"]
    assert not {m["key"] for m in off.report["messages"]} & {"run_info_refined", "refine_off"}
    plain = type(small_mosaic)(off)
    both = np.isfinite(plain.image) & np.isfinite(small_mosaic.image)
    np.testing.assert_array_equal(np.isfinite(plain.image), np.isfinite(small_mosaic.image))
    changed = (plain.image != small_mosaic.image) & both
    assert 0.02 < changed.sum() / both.sum() < 0.5
    # The sky between the stars stays what it was.
    dark = both & (plain.image < np.nanmedian(plain.image, axis=(1, 2), keepdims=True))
    assert changed[dark].mean() < 0.1


def test_a_transform_onto_a_finer_grid_keeps_the_sky():
    rng = np.random.default_rng(1)
    there = Transform("poly3", (200.0, 150.0), 200.0, rng.normal(0, 5, 10), rng.normal(0, 5, 10))
    back = Transform("poly3", (100.0, 80.0), 150.0, rng.normal(0, 5, 10), rng.normal(0, 5, 10))
    x, y = rng.uniform(0, 300, (2, 50))
    for factor in (1.5, 2.0):
        fine = [factor * (v + 0.5) - 0.5 for v in there.apply(x, y)]
        np.testing.assert_allclose(there.onto_finer_grid(factor).apply(x, y), fine, atol=1e-9)
        np.testing.assert_allclose(
            back.from_finer_grid(factor).apply(factor * (x + 0.5) - 0.5, factor * (y + 0.5) - 0.5),
            back.apply(x, y),
            atol=1e-9,
        )


def test_a_finer_grid_is_the_same_sky_on_more_pixels(tmp_path):
    setups = pointings(n=9, seed=3)
    write_all(tmp_path / "raw", field_sky(), setups)
    plain = run(tmp_path / "raw", tmp_path / "one", sky_model="planes")
    fine = run(tmp_path / "raw", tmp_path / "two", sky_model="planes", drizzle_scale="2")
    keys = {message["key"] for message in fine.report["messages"]}
    assert "drizzle_not_warranted" in keys  # the stars are 2.4 px wide and more
    assert [tile["refine"] for tile in fine.report["tiles"]] == ["refine_on"]
    assert np.array(fine.image.shape[1:]) == pytest.approx(2 * np.array(plain.image.shape[1:]), abs=3)
    scales = [np.sqrt(abs(np.linalg.det(m.wcs.pixel_scale_matrix))) for m in (plain, fine)]
    assert scales[0] / scales[1] == pytest.approx(2, rel=1e-6)
    # A pixel of the coarse mosaic is the mean of four of the fine one, on the same place of the sky.
    y, x = np.mgrid[60:240:3, 60:340:3]
    ra, dec = plain.wcs.all_pix2world(x, y, 0)
    fx, fy = fine.wcs.all_world2pix(ra, dec, 0)
    around = [
        fine.image[1, np.rint(fy + b).astype(int), np.rint(fx + a).astype(int)]
        for a, b in product((-0.5, 0.5), repeat=2)
    ]
    coarse = plain.image[1, y, x]
    good = np.isfinite(coarse) & np.isfinite(around).all(axis=0)
    difference = (coarse - np.mean(around, axis=0))[good]
    assert good.mean() > 0.9
    assert abs(np.median(difference)) < 1
    assert np.percentile(np.abs(difference), 90) < 0.1 * np.ptp(coarse[good])
