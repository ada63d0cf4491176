"""What the routes would cost: every route of the settings is planned by the planner of the run."""

from __future__ import annotations

import dataclasses
import queue as queues
import threading
from types import SimpleNamespace

import pytest
from test_ui_filter_dialog import write_frame

from zemosaic_core.gpu.terms import Decision, Reason
from zemosaic_io.headers import read_frame_info
from zemosaic_pipeline.machine import Machine
from zemosaic_pipeline.plan import resolve
from zemosaic_settings import OPTIONS_BY_KEY, Settings
from zemosaic_ui.route_costs import compare_routes, route_costs

MACHINE = Machine(4, 8_000_000_000, 50_000_000_000)
CANVAS = (300, 400)


@pytest.fixture(scope="module")
def infos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("night")
    for k in range(12):
        write_frame(folder / f"a_{k:02d}.fit", 10.0 + 0.3 * (k % 2), 41.0, seed=k)
    return [read_frame_info(path) for path in sorted(folder.glob("*.fit"))]


def by_route(costs):
    return {cost.route: cost for cost in costs}


@pytest.mark.parametrize("wanted", ["auto", "direct", "panels", "sds"])
def test_every_route_is_planned_and_one_is_taken(infos, wanted):
    settings = Settings(route=wanted)
    costs = by_route(route_costs(settings, infos, MACHINE, CANVAS))
    assert set(costs) == {route for route in OPTIONS_BY_KEY["route"].choices if route != "auto"}
    taken = [cost.route for cost in costs.values() if cost.is_taken]
    assert taken == ["direct" if wanted == "auto" else wanted]
    for route, cost in costs.items():
        plan = resolve(Settings(route=route), infos, MACHINE, canvas_hw=CANVAS)
        assert cost.memory_bytes == plan.peak_bytes > 0
        assert cost.seconds == pytest.approx(sum(row.seconds for row in plan.rows))
        assert not cost.uses_gpu


def test_a_route_that_is_not_taken_although_it_was_asked_for(infos):
    mixed = [*infos[:6], *(dataclasses.replace(info, shape_hw=(60, 80)) for info in infos[6:])]
    costs = route_costs(Settings(route="direct", sky_model="planes"), mixed, MACHINE, CANVAS)
    assert [(cost.route, cost.reason_key) for cost in costs if cost.is_taken] == [("panels", "route_sizes")]
    costs = route_costs(Settings(route="direct"), mixed, MACHINE, CANVAS)
    assert [(cost.route, cost.reason_key) for cost in costs if cost.is_taken] == [("direct", "route_asked")]


def test_finished_stacks_alone_have_one_route(infos):
    costs = route_costs(Settings(), infos, MACHINE, CANVAS, n_tiles=len(infos))
    assert [(cost.route, cost.is_taken) for cost in costs] == [("tiles", True)]


def test_what_the_machine_cannot_do_says_why(infos):
    small = Machine(4, 60_000_000, 50_000_000_000)
    costs = route_costs(Settings(), infos, small, CANVAS)
    assert costs
    assert not any(cost.is_possible or cost.is_taken for cost in costs)
    assert all(cost.reason_key for cost in costs)


def test_a_card_that_is_used_is_told(infos):
    class Policy:
        """Puts everything on a card."""

        status = SimpleNamespace(device=None)

        def plan(self, workload):
            return Decision("stack", "gpu", Reason.GPU, 64, 2, 1_000_000)

        def check_fits(self, decision):
            assert decision.device == "gpu"

    costs = route_costs(Settings(), infos, MACHINE, CANVAS, policy=Policy())
    assert all(cost.uses_gpu for cost in costs)


def test_the_job_plans_for_frames_and_stacks(infos, tmp_path, monkeypatch):
    monkeypatch.setenv("ZEMOSAIC_GPU", "off")
    said = queues.Queue()
    config = {"output_dir": str(tmp_path / "out"), "input_dir": str(tmp_path)}
    compare_routes(said, infos[:8], infos[8:], config, CANVAS, [], cancel_event=threading.Event())
    kind, (costs, n_stacks, card) = said.get_nowait()
    assert (kind, n_stacks, card) == ("routes", 4, "")
    assert {"direct", "panels", "sds"} <= set(by_route(costs))
    compare_routes(said, [], infos, config, CANVAS, [], cancel_event=threading.Event())
    assert [cost.route for cost in said.get_nowait()[1][0]] == ["tiles"]
    compare_routes(said, [], [], config, (0, 0), [], cancel_event=threading.Event())
    assert said.get_nowait() == ("error", ("run_error_no_frames", {"folder": str(tmp_path)}))
