"""Which way frames become a mosaic: all at once, by panels or by batches; or from tiles that are there already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from zemosaic_pipeline.records import FrameGroup, SolvedFrame

__all__ = ["ROUTES", "RouteDecision", "choose_route", "groups_of_route"]

ROUTES = ("direct", "panels", "sds")


@dataclass(frozen=True)
class RouteDecision:
    """The route and why: ``reason_key`` is a text key with ``values``."""

    route: str
    reason_key: str
    values: dict[str, Any] = field(default_factory=dict)


def choose_route(
    wanted: str,
    *,
    n_chosen_groups: int,
    n_sizes: int = 1,
    n_tiles: int = 0,
    n_frames: int = 1,
    n_listed_batches: int = 0,
    n_expected_batches: int = 0,
) -> RouteDecision:
    """Return the route of a run.

    Parameters
    ----------
    wanted : {'auto', 'direct', 'panels', 'sds'}
        What the settings ask for.
    n_chosen_groups : int
        Groups the user made by hand.
    n_sizes : int
        Different sizes of frames without a model of one sky: their skies are compared cell by cell, so the frames of a
        co-add have one size.
    n_tiles, n_frames : int
        Stacks that are given, and raw frames.
    n_listed_batches : int
        Batches of a list of frames.
    n_expected_batches : int
        Batches that cover the field, by the headers.
    """
    if n_tiles and not n_frames:
        return RouteDecision("tiles", "route_tiles", {"tiles": n_tiles})
    if wanted == "auto" and not n_chosen_groups and n_listed_batches > 1:
        return RouteDecision("grid", "route_listed_batches", {"batches": n_listed_batches})
    if n_sizes > 1:
        return RouteDecision("panels", "route_sizes", {"sizes": n_sizes})
    if wanted == "sds":
        return RouteDecision("sds", "route_batches", {"batches": n_expected_batches})
    if wanted in ROUTES:
        return RouteDecision(wanted, "route_asked")
    if n_chosen_groups:
        return RouteDecision("panels", "route_chosen_groups", {"groups": n_chosen_groups})
    return RouteDecision("direct", "route_direct_default")


def groups_of_route(
    route: RouteDecision, groups: Sequence[FrameGroup], solved: Sequence[SolvedFrame]
) -> list[FrameGroup]:
    """Return the groups that are stacked: those of the pointings or batches, or one that holds every frame."""
    if not solved:
        return []
    if route.route != "direct":
        return list(groups)
    members = tuple(item.frame.index for item in solved)
    return [replace(groups[0], group_id=0, members=members)]
