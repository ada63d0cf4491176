"""The route SDS: batches in time order, each a tile that can be looked at and left out as a whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits
from made_frames import base_cards, field_sky, pointings, run, write, write_all

from zemosaic_core.coverage import without_thin_rim
from zemosaic_core.errors import RunFailed, SettingsError
from zemosaic_io.headers import read_frame_info
from zemosaic_pipeline.batches import BatchOptions, expected_batches, tile_numbers
from zemosaic_pipeline.plan import make_plan
from zemosaic_pipeline.routes import choose_route
from zemosaic_settings import Settings

SHAPE_HW = (240, 320)
QUICK = {
    "solver_method": "EMBEDDED", "sky_model": "none", "colour_calibration": "off", "cfa_refine": "off",
    "exclude_flagged_frames": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """Eleven frames of one field."""
    raw = tmp_path_factory.mktemp("sds") / "raw"
    write_all(raw, field_sky(size_deg=0.5), pointings(n=11, shape_hw=SHAPE_HW, turn_deg=0.05))
    return raw


def test_batches_are_tiles_that_can_be_left_out(night, tmp_path):
    wanted = {"route": "sds", "sds_target_batch_size": 4, "sds_min_batch_size": 3, **QUICK}
    both = run(night, tmp_path, save_variance=True, **wanted).load()
    assert both.header["ROUTE"] == "sds"
    groups = both.report["groups"]
    assert [len(group["members"]) for group in groups] == [4, 4, 3]
    # In the order of time, each over the whole field.
    assert np.concatenate([group["members"] for group in groups]).tolist() == list(range(11))
    assert min(group["field_share"] for group in groups) > 0.92
    assert {"run_info_batches", "tile_thin_masked"} <= both.message_keys
    # What one batch is left out of loses its frames and nothing else; the others are taken as they are.
    rest = run(night, tmp_path, leave_out_tiles="1", save_variance=True, **wanted).load()
    assert {"tile_left_out_as_asked", "run_info_tiles_reused"} <= rest.message_keys
    assert rest.report["frames_used"] == 7
    assert rest.coverage.max() == 7
    assert both.coverage.max() == 11
    variance = [np.nanmedian(fits.getdata(result.outputs["variance"])) for result in (both, rest)]
    assert variance[1] / variance[0] == pytest.approx(11 / 7, rel=0.15)
    # Merged with each other, batches give the same sky; next to nothing in these frames disagrees.
    merged = run(night, tmp_path, inter_master_merge_enable=True, save_variance=True, **wanted).load()
    assert {"run_info_tiles_merged", "run_info_tiles_reused"} <= merged.message_keys
    assert [tile["n_frames"] for tile in merged.report["tiles"]] == [11]
    np.testing.assert_array_equal(merged.coverage, both.coverage)
    noise = float(np.nanmedian(np.sqrt(fits.getdata(both.outputs["variance"]))))
    assert np.nanstd(merged.image - both.image) < 0.35 * noise
    assert np.nanmedian(fits.getdata(merged.outputs["variance"])) == pytest.approx(noise**2, rel=0.1)
    with pytest.raises(RunFailed, match="every tile"):
        run(night, tmp_path, leave_out_tiles="0 1, 2", **wanted)


def test_each_option_of_batches_changes_the_plan(night, tmp_path):
    def sizes(**settings):
        plan = make_plan(night, tmp_path, Settings.from_mapping({"route": "sds", **settings}))
        assert plan.run.route.values == {"batches": len(plan.run.group.batch_sizes)}
        return plan.run.group.batch_sizes, plan

    usual, plan = sizes(sds_target_batch_size=3, sds_min_batch_size=2)
    assert usual == (3, 3, 3, 2)
    assert sizes(sds_target_batch_size=5, sds_min_batch_size=2)[0] == (5, 6)
    assert sizes(sds_target_batch_size=3, sds_min_batch_size=3)[0] == (3, 3, 5)
    assert plan.run.tile_checks.keep_share == 0.4
    assert sizes(sds_min_coverage_keep=0)[1].run.tile_checks.keep_share == 0.0
    # Every batch takes the disk of a mosaic.
    one = sizes(sds_target_batch_size=11)[1]
    assert sum(row.disk_bytes for row in plan.rows[:-1]) > sum(row.disk_bytes for row in one.rows[:-1])
    # The switch of version 4 chooses the route.
    assert Settings.from_mapping({"sds_mode_default": True}).route == "sds"
    assert Settings.from_mapping({"sds_mode_default": False}).route == "auto"
    elsewhere = make_plan(night, tmp_path, Settings.from_mapping({"route": "panels"}))
    assert (elsewhere.run.group.batches, elsewhere.run.tile_checks.keep_share) == (None, 0.0)


def test_coverage_wanted_of_a_batch_and_filters_of_their_own(tmp_path):
    setups = [
        *pointings(n=4, shape_hw=SHAPE_HW, turn_deg=0),
        *pointings(n=4, shape_hw=SHAPE_HW, turn_deg=0, step_px=(310.0, 0.0)),
    ]
    infos = []
    for i, setup in enumerate(setups):
        path = write(tmp_path / f"{i}.fit", np.zeros((2, 2), np.uint16), base_cards(setup, i))
        infos.append(replace(read_frame_info(path), shape_hw=SHAPE_HW))
    half, whole = BatchOptions(0.4, 2, 2), BatchOptions(0.9, 2, 2)
    assert expected_batches(infos, half, split_by_filter=False) == (2, 2, 2, 2)
    # One side after the other: nothing less than the whole night covers both.
    assert expected_batches(infos, whole, split_by_filter=False) == (8,)
    lost = [replace(info, ra_deg=None) for info in infos]
    assert expected_batches(lost, BatchOptions(0.9, 2, 3), split_by_filter=False) == (3, 3, 2)
    filters = [replace(info, filter_name="LP" if i < 4 else "IR") for i, info in enumerate(infos)]
    assert expected_batches(filters, whole, split_by_filter=True) == (2, 2, 2, 2)


def test_rims_are_thin_and_holes_are_not():
    depth = np.zeros((9, 12))
    depth[1:-1, 1:-1] = 10
    depth[1:-1, 1] = 3
    depth[4, 6] = 1
    kept = without_thin_rim(depth, 0.4)
    assert not kept[:, :2].any()
    assert kept[1:-1, 2:-1].all()
    assert without_thin_rim(depth, 0.2)[3, 1]
    assert not without_thin_rim(np.zeros((2, 2)), 0.4).any()


def test_numbers_of_tiles():
    assert tile_numbers(" 3, 1;1 ") == (1, 3)
    assert tile_numbers("") == ()
    for wrong in ("two", "-1", "1.5"):
        with pytest.raises(SettingsError) as caught:
            tile_numbers(wrong)
        assert caught.value.key == "settings_no_tiles"


def test_sds_is_a_route_that_is_asked_for():
    assert choose_route("sds", n_chosen_groups=0, n_expected_batches=3).route == "sds"
    assert choose_route("sds", n_chosen_groups=0, n_sizes=2).route == "panels"
    assert choose_route("auto", n_chosen_groups=0).route == "direct"
