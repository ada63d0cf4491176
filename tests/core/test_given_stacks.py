"""Stacks made elsewhere: unit, borders, coarser pixels, weights, lattice, gate."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.wcs import WCS

from zemosaic_core.stack_planes import (
    FULL_SCALE,
    block_factor,
    block_means,
    counts_factor,
    weights_of_stacks,
    without_empty_border,
)
from zemosaic_core.tile_gate import judge_tiles
from zemosaic_core.tile_lattice import shared_lattice


@pytest.mark.parametrize(
    ("planes", "factor"),
    [
        (np.full((1, 8, 8), 0.02, np.float32), FULL_SCALE),
        (np.full((1, 8, 8), 900.0, np.float32), 1.0),
        (np.zeros((1, 8, 8), np.uint16), 1.0),
        (np.full((1, 8, 8), np.nan, np.float32), 1.0),
    ],
)
def test_pictures_between_0_and_1_become_counts(planes, factor):
    assert counts_factor(planes) == factor


def test_zeros_at_the_border_are_missing_and_single_ones_are_not():
    planes = np.full((3, 40, 40), 5.0, np.float32)
    planes[:, :, :6] = 0
    planes[:, 20, 20] = 0
    found = without_empty_border(planes)
    assert np.isnan(found[:, :, :6]).all()
    assert np.isfinite(found[:, 5:15, 10:15]).all()
    dark = np.maximum(np.random.default_rng(1).normal(0, 1, (1, 40, 40)), 0).astype(np.float32)
    assert np.isfinite(without_empty_border(dark)).all()


def test_block_means_are_those_of_a_loop():
    rng = np.random.default_rng(2)
    window = rng.normal(size=(2, 7, 9)).astype(np.float32)
    window[0, 0, :3] = np.nan
    found = block_means(window, 3)
    assert found.shape == (2, 3, 3)
    for c in range(2):
        for j in range(3):
            for i in range(3):
                block = window[c, 3 * j : 3 * j + 3, 3 * i : 3 * i + 3]
                known = block[np.isfinite(block)]
                if 2 * known.size >= 9:
                    assert found[c, j, i] == pytest.approx(known.mean(), abs=1e-6)
                else:
                    assert np.isnan(found[c, j, i])
    assert block_means(window, 1) is window


@pytest.mark.parametrize(("ratio", "factor"), [(1.0, 1), (1.4, 1), (1.6, 2), (3.1, 3), (0.5, 1)])
def test_only_coarser_grids_average(ratio, factor):
    assert block_factor(1.0, ratio) == factor


def test_noise_weighs_and_exposure_holds_it():
    plain = weights_of_stacks(np.array([1.0, 4.0]), np.array([np.nan, np.nan]))
    assert plain.weights.tolist() == [1.0, 4.0]
    assert not plain.held.any()
    smoothed = weights_of_stacks(np.array([1.0, 1.1, 1000.0]), np.array([100.0, 100.0, 100.0]))
    assert smoothed.held.tolist() == [False, False, True]
    assert smoothed.weights[2] == pytest.approx(4 * 1.1, rel=0.01)
    unknown = weights_of_stacks(np.array([np.nan, 1.0, 2.0]), np.array([30.0, 10.0, 20.0]))
    assert unknown.weights[0] == pytest.approx(3.0)


def cards_at(x, y, scale=1e-3, crval=(10.0, 40.0)):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = crval
    wcs.wcs.crpix = (100.0 - x, 50.0 - y)
    wcs.wcs.cdelt = (-scale, scale)
    return dict(wcs.to_header())


def test_tiles_that_differ_by_whole_pixels_share_a_lattice():
    found = shared_lattice([cards_at(0, 0), cards_at(30, -12)], [(40, 60), (50, 70)])
    assert found is not None
    assert found.origins_yx == ((12, 0), (0, 30))
    assert found.shape_hw == (52, 100)
    assert found.crpix_xy.tolist() == [100.0, 62.0]


@pytest.mark.parametrize(
    "other", [cards_at(0.4, 0), cards_at(3, 0, scale=1.001e-3), cards_at(3, 0, crval=(10.001, 40.0))]
)
def test_other_pixels_are_no_lattice(other):
    assert shared_lattice([cards_at(0, 0), other], [(40, 60), (40, 60)]) is None


def test_the_gate_names_what_is_empty_and_what_is_noisy():
    verdicts = judge_tiles(
        [10, 11, 9, 10, 40, 10], [1, 1, 1, 1, 1, 0.01], sigma=8.0, ratio=5000.0, min_valid=0.05
    )
    assert [verdict.key for verdict in verdicts] == ["", "", "", "", "tile_noisy", "tile_mostly_empty"]
    pair = judge_tiles([1, 100], [1, 1], sigma=8.0, ratio=5000.0, min_valid=0.05)
    assert [verdict.key for verdict in pair] == ["", ""]
    assert judge_tiles([1, 1, 100], [1, 1, 1], sigma=8.0, ratio=10.0, min_valid=0.05)[2].key == "tile_noisy"
