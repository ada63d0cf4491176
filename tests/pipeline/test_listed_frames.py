"""A `stack_plan.csv` in the input folder: its frames, batches, filters and weights reach plan and phases."""

from __future__ import annotations

import numpy as np
import pytest
from made_frames import base_cards, pointings, write

from zemosaic_core.errors import RunFailed
from zemosaic_pipeline import phase0_survey
from zemosaic_pipeline.context import CancelToken, RunContext
from zemosaic_pipeline.listed_frames import listed_frames
from zemosaic_pipeline.plan import make_plan
from zemosaic_pipeline.routes import choose_route
from zemosaic_settings import Settings

SHAPE_HW = (48, 64)


@pytest.fixture
def folder(tmp_path):
    raw = tmp_path / "raw"
    for i, setup in enumerate(pointings(n=5, shape_hw=SHAPE_HW)):
        cards = base_cards(setup, i, FILTER="header", EXPTIME=None if i == 0 else 10.0)
        write(raw / f"light_{i}.fit", np.full(SHAPE_HW, 300 + i, np.uint16), cards)
    return raw


def follow(folder, *lines):
    (folder / "stack_plan.csv").write_text(
        "file_path,batch_id,weight,filter,exposure\n" + "\n".join(lines), encoding="utf-8"
    )


def planned(folder, **settings):
    return make_plan(folder, folder.parent / "out", Settings.from_mapping(settings))


def test_the_plan_follows_the_list(folder):
    assert planned(folder).run.route.route == "direct"
    follow(folder, "light_0.fit,a,,LP,20", "light_1.fit,b,2,,", "light_2.fit,a,,LP,", "none.fit,b,,,")
    plan = planned(folder)
    assert (plan.n_frames, plan.run.route.route, plan.run.route.values) == (3, "grid", {"batches": 2})
    assert [len(group) for group in plan.run.group.preplanned] == [2, 1]
    assert [item["key"] for item in plan.left_out] == ["stack_plan_missing"]
    assert planned(folder, route="direct").run.route.route == "direct"
    assert planned(folder, route="panels").run.group.preplanned == ()
    everything = planned(folder, grid_mode="off")
    assert (everything.n_frames, everything.run.route.route) == (5, "direct")
    # A tile for each batch, each as large as the mosaic: the plan has room for them.
    stack = next(row for row in plan.rows if row.phase == "phase3_master_tiles")
    alone = next(row for row in planned(folder, route="direct").rows if row.phase == "phase3_master_tiles")
    assert stack.disk_bytes > alone.disk_bytes


def test_frames_carry_what_the_list_says(folder, tmp_path):
    follow(folder, "light_0.fit,a,0.25,LP,20", "light_1.fit,a,,,")
    listed = listed_frames(Settings.from_mapping({"input_dir": str(folder), "output_dir": str(tmp_path)}))
    messages = []
    context = RunContext(
        tmp_path / "out", report=messages.append, cancel=CancelToken(), policy=None, workers=1, threads=1
    )
    try:
        frames, _ = phase0_survey.run(folder, context, recursive=True, memory_bytes=1 << 40, listed=listed)
    finally:
        context.close()
    assert [(f.name, f.wanted_weight, f.info.filter_name, f.info.exposure_s) for f in frames] == [
        ("light_0.fit", 0.25, "LP", 20.0),
        ("light_1.fit", 1.0, "header", 10.0),
    ]
    assert "run_info_stack_plan" in {getattr(event, "key", "") for event in messages}


def test_a_bad_list_ends_the_run_before_it_begins(folder):
    (folder / "stack_plan.csv").write_text("order,batch\n1,2\n", encoding="utf-8")
    with pytest.raises(RunFailed, match="no column holds files"):
        planned(folder)


def test_what_was_chosen_by_hand_goes_before_the_list():
    assert choose_route("auto", n_chosen_groups=2, n_listed_batches=3).route == "panels"
    assert choose_route("auto", n_chosen_groups=0, n_listed_batches=1).route == "direct"
    assert choose_route("auto", n_chosen_groups=0, n_listed_batches=2, n_sizes=2).route == "grid"
