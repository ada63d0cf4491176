"""Tiles of one place become one: what one of them shows alone is rejected, and the variance says what is left."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from zemosaic_core.synthetic_sky import tan_cards
from zemosaic_io.fits_write import StreamingFits
from zemosaic_io.frame_store import TileStore
from zemosaic_pipeline import merge_tiles
from zemosaic_pipeline.context import CancelToken
from zemosaic_pipeline.plan import make_plan
from zemosaic_pipeline.records import MasterTile, MosaicGrid
from zemosaic_pipeline.tile_plan import merge_options
from zemosaic_settings import Settings

SHAPE = (256, 288)
GRID = (300, 600)
FRAMES = (10, 20, 10, 10)
SPREAD = 12.0


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """Three tiles of one place, one with a trail and other levels, and one beside them."""
    folder, rng, made = tmp_path_factory.mktemp("tiles"), np.random.default_rng(8), []
    for k, n in enumerate(FRAMES):
        origin = (12 * k, 16 * k) if k < 3 else (0, 260)
        variance = np.full((1, *SHAPE), SPREAD**2 * 10 / n, np.float32)
        image = 500 + 25 * k + rng.normal(0, np.sqrt(variance[0])).astype(np.float32)
        if k == 1:
            image[100:104] += 400
        image[:2] = np.nan
        depth = np.where(np.isfinite(image), n, 0).astype(np.uint16)
        path = folder / f"{k}.fits"
        extensions = [
            ("COVERAGE", SHAPE, np.uint16),
            ("WEIGHT", SHAPE, np.float32),
            ("VARIANCE", (1, *SHAPE), np.float32),
        ]
        with StreamingFits(path, (1, *SHAPE), {}, extensions=extensions) as out:
            out.write_rows(0, image[None])
            out.write_rows(0, depth, ext="COVERAGE")
            out.write_rows(0, depth.astype(np.float32) / 10, ext="WEIGHT")
            out.write_rows(0, variance, ext="VARIANCE")
            out.commit()
        made.append(
            MasterTile(
                tile_id=k,
                path=str(path),
                origin_yx=origin,
                shape_hw=SHAPE,
                frames=tuple(range(10 * k, 10 * k + n)),
                exposure_s=10.0 * n,
                n_exposures=n,
                noise_adu=(float(np.sqrt(variance[0, 0, 0])),),
                rejected_fraction=0.0,
                core_rejected_fraction=None,
                median_coverage=float(n),
                map_error_px=0.0,
                covered_bbox=(2, SHAPE[0], 0, SHAPE[1]),
                flux_gain=(1.0,),
                saturate_adu=5000.0 + k,
            )
        )
    return made


def merged(tiles, folder, **settings):
    folder.mkdir(exist_ok=True)
    said = []
    plan = SimpleNamespace(
        n_channels=1,
        merge=merge_options(Settings.from_mapping({"inter_master_merge_enable": True, **settings})),
        assembly=SimpleNamespace(
            photometric_match=True, match_background=True, gradient=True, gradient_order=1
        ),
        output=SimpleNamespace(variance=True),
        stack=SimpleNamespace(kernel="lanczos3"),
        block_budget_bytes=1 << 26,
        threads=1,
    )
    context = SimpleNamespace(
        cancel=CancelToken(),
        policy=None,
        work_dir=folder,
        say=lambda key, *_, **values: said.append((key, values)),
    )
    grid = MosaicGrid(dict(tan_cards(150.0, 20.0, shape_hw=GRID)), GRID, 2.4)
    made = merge_tiles.run(tiles, grid, plan, context, one_flux_scale=True, one_sky=True)
    return made, dict(said)


def planes(tile, *window):
    store = TileStore({tile.tile_id: tile.path})
    window = window or (0, tile.shape_hw[0], 0, tile.shape_hw[1])
    return (
        store.read(tile.tile_id, *window)[0],
        store.read_coverage(tile.tile_id, *window),
        store.read_weight(tile.tile_id, *window),
        store.read_variance(tile.tile_id, *window)[0],
    )


def test_what_one_tile_shows_alone_is_rejected(tiles, tmp_path):
    before = [(tile.path, planes(tile)[0].tobytes()) for tile in tiles]
    made, said = merged(tiles, tmp_path / "a")
    assert [tile.tile_id for tile in made] == [0, 3]
    assert made[1] is tiles[3]
    assert (said["run_info_tiles_merged"]["before"], said["run_info_tiles_merged"]["after"]) == (4, 2)
    joint = made[0]
    assert joint.n_exposures == len(joint.frames) == 40
    assert joint.exposure_s == 400.0
    assert joint.saturate_adu == pytest.approx(5000, abs=60)
    # Where all three are and agree: the plain weighted mean, their weights and frames, and its variance.
    inside = (40, 90, 40, 280)
    image, coverage, weight, variance = planes(joint, *inside)
    y0, x0 = joint.origin_yx
    alone = [
        planes(
            t,
            *(a + b - c for a, b, c in zip(inside, (y0, y0, x0, x0), np.repeat(t.origin_yx, 2), strict=True)),
        )
        for t in tiles[:3]
    ]
    assert (coverage == 40).all()
    np.testing.assert_allclose(np.median(weight), 4.0, rtol=1e-5)
    levels = [np.median(part[0]) for part in alone]
    plain = sum(w * (part[0] - level) for w, part, level in zip((1, 2, 1), alone, levels, strict=True)) / 4
    agree = weight > 3.99
    # By chance hardly anything goes: at three sigma it would be one in a hundred of three tiles.
    assert agree.mean() > 0.9995
    assert np.std((image - np.median(image) - plain)[agree]) < 0.1 * SPREAD
    truth = SPREAD**2 / 4
    assert np.var(image) == pytest.approx(truth, rel=0.1)
    np.testing.assert_allclose(variance[agree], truth, rtol=1e-4)
    # On the trail the deepest tile is left out, and the variance is that of the other two.
    trail = planes(joint, 100 + tiles[1].origin_yx[0] - y0, 104 + tiles[1].origin_yx[0] - y0, 20, 280)
    assert abs(np.median(trail[0]) - np.median(image)) < SPREAD / 3
    np.testing.assert_allclose(np.median(trail[2]), 2.0, rtol=1e-5)
    assert np.median(trail[3]) == pytest.approx(SPREAD**2 / 2, rel=1e-4)
    assert before == [(tile.path, planes(tile)[0].tobytes()) for tile in tiles]


def test_a_noise_that_is_stated_too_low_rejects_nothing_in_vain(tiles, tmp_path):
    low = [replace(tile, noise_adu=(0.5 * tile.noise_adu[0],)) for tile in tiles[:3]]
    joint = merged(low, tmp_path / "low")[0][0]
    assert (planes(joint, 40, 90, 40, 280)[2] > 3.99).mean() > 0.98


def test_each_option_of_the_merge_does_something(tiles, tmp_path):
    row = 100 + tiles[1].origin_yx[0] - 2
    mean, _ = merged(tiles, tmp_path / "mean", inter_master_stack_method="mean")
    sky, trail = (np.median(planes(mean[0], y, y + 3, 20, 280)[0]) for y in (30, row))
    assert trail - sky > 100
    median, _ = merged(tiles, tmp_path / "median", inter_master_stack_method="median")
    assert np.median(planes(median[0], row, row + 3, 20, 280)[0]) - sky < 3 * SPREAD
    assert np.median(planes(median[0])[3][40:90, 40:280]) > 1.5 * np.median(planes(mean[0])[3][40:90, 40:280])
    pair = [tiles[0], tiles[2]]
    assert len(merged(pair, tmp_path / "pair")[0]) == 1
    for given, settings in (
        (pair, {"inter_master_overlap_threshold": 0.99}),
        (tiles, {"inter_master_min_group_size": 4}),
        (tiles, {"inter_master_merge_enable": False}),
    ):
        same, said = merged(given, tmp_path / "none", **settings)
        assert same == given
        assert ("run_info_nothing_merged" in said) is settings.get("inter_master_merge_enable", True)
    two, _ = merged(tiles, tmp_path / "two", inter_master_max_group=2)
    assert [len(tile.frames) for tile in two] == [30, 10, 10]
    apart, _ = merged(tiles, tmp_path / "apart", inter_master_photometry_intragroup=False)
    assert np.nanmedian(planes(apart[0])[0]) > np.nanmedian(planes(tiles[0])[0]) + 10


def test_merging_has_its_place_in_the_plan(tmp_path):
    from made_frames import base_cards, pointings, write

    for i, setup in enumerate(pointings(n=3, shape_hw=(48, 64))):
        write(tmp_path / "raw" / f"{i}.fit", np.full((48, 64), 300 + i, np.uint16), base_cards(setup, i))
    plans = [
        make_plan(
            tmp_path / "raw", tmp_path / "out", Settings.from_mapping({"inter_master_merge_enable": on})
        )
        for on in (False, True)
    ]
    disks = [next(r.disk_bytes for r in plan.rows if r.phase == "phase3_master_tiles") for plan in plans]
    assert disks[1] > disks[0]
    assert plans[1].run.merge == replace(plans[0].run.merge, enabled=True)
