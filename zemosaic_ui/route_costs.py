"""What each route would cost with the frames chosen in the filter: memory, disk, time and where it computes.

This asks the graphics card, so it is a job in a process of its own and never part of the window's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zemosaic_core.errors import ZeMosaicError
from zemosaic_settings import OPTIONS_BY_KEY, Settings

__all__ = ["RouteCost", "compare_routes", "route_costs"]


@dataclass(frozen=True)
class RouteCost:
    """One route.

    Attributes
    ----------
    route : str
        As `choose_route` names it.
    is_taken : bool
        Whether the settings as they are lead to it.
    reason_key, reason_values
        Why, as a text key; of a route that is not possible what stands in its way.
    is_possible : bool
    memory_bytes, disk_bytes : int
    seconds : float
    uses_gpu : bool
    """

    route: str
    is_taken: bool
    reason_key: str
    reason_values: Mapping[str, Any]
    is_possible: bool = True
    memory_bytes: int = 0
    disk_bytes: int = 0
    seconds: float = 0.0
    uses_gpu: bool = False


def route_costs(
    settings: Settings,
    infos: Sequence[Any],
    machine: Any,
    canvas_hw: tuple[int, int],
    *,
    policy: Any = None,
    n_tiles: int = 0,
    groups: Sequence[Sequence[str]] = (),
) -> list[RouteCost]:
    """Plan every route that the settings know, with everything else as it is.

    Parameters
    ----------
    infos : sequence of FrameInfo
        Frames first, then ``n_tiles`` finished stacks.
    groups : sequence of sequences of str
        Groups chosen by hand.
    """
    from zemosaic_pipeline.plan import resolve

    def planned(wanted: str) -> RouteCost:
        own = Settings.from_mapping({**settings.to_mapping(), "route": wanted})
        try:
            plan = resolve(
                own, infos, machine, canvas_hw=canvas_hw, policy=policy, preplanned=groups, n_tiles=n_tiles
            )
        except ZeMosaicError as error:
            return RouteCost(wanted, False, error.key, dict(error.values), is_possible=False)
        return RouteCost(
            plan.route.route,
            False,
            plan.route.reason_key,
            plan.route.values,
            memory_bytes=plan.peak_bytes,
            disk_bytes=sum(max(0, row.disk_bytes) for row in plan.rows),
            seconds=sum(row.seconds for row in plan.rows),
            uses_gpu=any(row.device != "cpu" for row in plan.rows),
        )

    taken = planned(settings.route)
    costs = {
        cost.route: cost
        for wanted in OPTIONS_BY_KEY["route"].choices
        if wanted != "auto"
        for cost in (planned(wanted),)
    }
    # A route may be asked for and another one taken, because sizes differ or only stacks are given.
    costs[taken.route] = taken
    return [
        RouteCost(**{**vars(cost), "is_taken": cost.route == taken.route and cost.is_possible})
        for cost in costs.values()
    ]


def compare_routes(
    queue: Any,
    frames: Sequence[Any],
    stacks: Sequence[Any],
    config: Mapping[str, Any],
    canvas_hw: tuple[int, int],
    groups: Sequence[Sequence[str]],
    *,
    cancel_event: Any,
) -> None:
    """Send ``("routes", (costs, number of finished stacks, name of the card or ''))``, or ``("error", ...)``.

    ``frames`` and ``stacks`` are `FrameInfo` of what was chosen.
    """
    from zemosaic_pipeline.machine import Machine
    from zemosaic_pipeline.plan import headers_outline, make_policy

    settings = Settings.from_mapping(config)
    output = Path(settings.output_dir or ".").expanduser().absolute()
    if not frames and not stacks:
        queue.put(("error", ("run_error_no_frames", {"folder": settings.input_dir})))
        return
    try:
        machine = Machine.probe(output)
        policy = make_policy(settings, machine, None)
        if stacks or not canvas_hw[0]:
            canvas_hw = headers_outline([*frames, *stacks], settings).shape_hw
        costs = route_costs(
            settings,
            [*frames, *stacks],
            machine,
            canvas_hw,
            policy=policy,
            n_tiles=len(stacks),
            groups=groups,
        )
        status = policy.status
    except ZeMosaicError as error:
        queue.put(("error", (error.key, dict(error.values))))
        return
    card = status.device.name if status.ok and status.device is not None else ""
    queue.put(("routes", (costs, len(stacks), card)))
